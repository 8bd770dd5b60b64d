"""The nodes' schemas, ComfyUI's V3; what they do is in ``functions``. Only ComfyUI imports this file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import folder_paths
from comfy_api.v0_0_2 import ComfyAPISync, ComfyExtension, io

from omfa.app.comfyui import functions
from omfa.bodies.named_poses import NAMED_POSES
from omfa.components import CLOTHES
from omfa.orders import KEEPS, MOST_VIEWS, TaskName

CATEGORY = "OMFA"
FOLDER = "omfa"  # below ComfyUI's models
Model, Pose = io.Custom("OMFA_MODEL"), io.Custom("OMFA_POSE")

folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))


class Loaded:
    """A pipeline, and ComfyUI's handle by which it is moved to the device and off it again."""

    def __init__(self, name: str) -> None:
        self.pipe = functions.load_model(name, folder_paths.get_folder_paths(FOLDER))
        management = comfy.model_management
        self.patcher = comfy.model_patcher.ModelPatcher(
            functions.Networks(self.pipe), management.get_torch_device(), management.unet_offload_device()
        )

    def ready(self) -> Any:
        """The pipeline on the device; what ComfyUI needs to unload for it is unloaded."""
        # whole: ComfyUI can leave parts of a network behind only where its own layers fetch them
        comfy.model_management.load_models_gpu([self.patcher], force_full_load=True)
        return self.pipe


def _watch(done: int, total: int) -> None:
    comfy.model_management.throw_exception_if_processing_interrupted()
    ComfyAPISync().execution.set_progress(done, total)


def _sampler() -> list[Any]:
    return [
        io.Int.Input("seed", default=0, min=0, max=2**53 - 1, control_after_generate=True),
        io.Int.Input("steps", default=0, min=0, max=1000, tooltip="0: the model's own"),
        io.Float.Input("guidance", default=0.0, min=0.0, max=20.0, step=0.1, tooltip="0: the model's own"),
    ]


def _garments() -> list[Any]:
    return [io.Image.Input(c.value, optional=True, tooltip=f"shop picture of the {c.value} garment") for c in CLOTHES]


def _looks() -> list[Any]:
    return [
        Pose.Input("pose", optional=True, tooltip="the photo's own, if none is given"),
        io.Image.Input("face", optional=True, tooltip="head crop; the photo's own, if none is given"),
    ]


def _made(model: Loaded, task: TaskName, photo: Any, **more: Any) -> Any:
    return io.NodeOutput(functions.make(model.ready(), task, photo, watch=_watch, **more))


class LoadModel(io.ComfyNode):
    """A model from a local folder."""

    @classmethod
    def define_schema(cls) -> Any:
        """Its name."""
        names = functions.model_names(folder_paths.get_folder_paths(FOLDER))
        return io.Schema(
            node_id="OMFALoadModel", display_name="OMFA Load Model", category=CATEGORY,
            description="A model that ships with OMFA, or a folder of ComfyUI's models/omfa. Nothing is fetched.",
            inputs=[io.Combo.Input("name", options=names)], outputs=[Model.Output("model")],
        )  # fmt: skip

    @classmethod
    def execute(cls, name: str) -> Any:
        """Load it."""
        return io.NodeOutput(Loaded(name))


class TryOn(io.ComfyNode):
    """Garments onto a person."""

    @classmethod
    def define_schema(cls) -> Any:
        """Photo, garments, pose."""
        inputs = [Model.Input("model"), io.Image.Input("photo"), *_garments(), *_looks()]
        inputs += [io.Combo.Input("keep", options=list(KEEPS), default="auto", tooltip="of the photo"), *_sampler()]
        return io.Schema(
            node_id="OMFATryOn", display_name="OMFA Try On", category=CATEGORY, inputs=inputs,
            description="Puts garments on the person of a photo.", outputs=[io.Image.Output("image")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: Loaded, photo: Any, keep: str, upper: Any = None, lower: Any = None, dress: Any = None, **more: Any
    ) -> Any:
        """Make the pictures."""
        return _made(
            model, "try-on", photo, garments={"upper": upper, "lower": lower, "dress": dress}, keep=keep, **more
        )


class TakeOff(io.ComfyNode):
    """A garment off a photo."""

    @classmethod
    def define_schema(cls) -> Any:
        """Photo and category."""
        choice = io.Combo.Input("garment", options=[c.value for c in CLOTHES], default="upper")
        return io.Schema(
            node_id="OMFATakeOff", display_name="OMFA Take Off", category=CATEGORY,
            description="Takes a garment off a photo, as a shop picture.",
            inputs=[Model.Input("model"), io.Image.Input("photo"), choice, _looks()[0], *_sampler()],
            outputs=[io.Image.Output("image")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model: Loaded, photo: Any, garment: str, **more: Any) -> Any:
        """Make the pictures."""
        return _made(model, "try-off", photo, categories=(garment,), **more)


class Transfer(io.ComfyNode):
    """A garment of one person onto another."""

    @classmethod
    def define_schema(cls) -> Any:
        """Both photos and the category."""
        choice = io.Combo.Input("garment", options=[c.value for c in CLOTHES], default="upper")
        inputs = [Model.Input("model"), io.Image.Input("source", tooltip="who wears it"), io.Image.Input("photo")]
        inputs += [choice, *_looks(), io.Combo.Input("keep", options=list(KEEPS), default="auto"), *_sampler()]
        return io.Schema(
            node_id="OMFATransfer", display_name="OMFA Transfer", category=CATEGORY, inputs=inputs,
            description="Takes a garment off one person and puts it on another.", outputs=[io.Image.Output("image")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model: Loaded, source: Any, photo: Any, garment: str, **more: Any) -> Any:
        """Make the pictures."""
        return _made(model, "transfer", photo, source=source, categories=(garment,), **more)


class Turntable(io.ComfyNode):
    """A person from all sides."""

    @classmethod
    def define_schema(cls) -> Any:
        """Photo, perhaps other clothes, and the number of views."""
        inputs = [Model.Input("model"), io.Image.Input("photo"), *_garments(), *_looks()]
        inputs += [io.Int.Input("views", default=8, min=1, max=MOST_VIEWS), *_sampler()]
        return io.Schema(
            node_id="OMFATurntable", display_name="OMFA Turntable", category=CATEGORY, inputs=inputs,
            description="Shows the person of a photo from all sides.", outputs=[io.Image.Output("images")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: Loaded, photo: Any, views: int, upper: Any = None, lower: Any = None, dress: Any = None, **more: Any
    ) -> Any:
        """Make the pictures."""
        worn = {"upper": upper, "lower": lower, "dress": dress}
        return _made(model, "turntable", photo, garments=worn, views=views, **more)


class PoseFromPhoto(io.ComfyNode):
    """The body in a photo."""

    @classmethod
    def define_schema(cls) -> Any:
        """Photo."""
        return io.Schema(
            node_id="OMFAPoseFromPhoto", display_name="OMFA Pose from Photo", category=CATEGORY,
            description="Estimates the body in a photo.",
            inputs=[Model.Input("model"), io.Image.Input("photo")], outputs=[Pose.Output("pose")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model: Loaded, photo: Any) -> Any:
        """Estimate it."""
        return io.NodeOutput(functions.pose_from_photo(model.pipe, photo))


class NamedPose(io.ComfyNode):
    """A pose by its name."""

    @classmethod
    def define_schema(cls) -> Any:
        """Name, size, turn."""
        size: dict[str, Any] = {"min": 64, "max": 4096, "step": 8}
        return io.Schema(
            node_id="OMFANamedPose", display_name="OMFA Named Pose", category=CATEGORY,
            description="A pose by its name, before a camera.",
            inputs=[
                io.Combo.Input("name", options=list(NAMED_POSES), default="standing"),
                io.Int.Input("width", default=768, **size), io.Int.Input("height", default=1024, **size),
                io.Float.Input("yaw", default=0.0, min=-180.0, max=180.0, step=1.0, tooltip="degrees to the own left"),
            ],
            outputs=[Pose.Output("pose")],
        )  # fmt: skip

    @classmethod
    def execute(cls, name: str, width: int, height: int, yaw: float) -> Any:
        """Stand it there."""
        return io.NodeOutput(functions.pose_by_name(name, width, height, yaw))


class PoseMap(io.ComfyNode):
    """A pose as a picture."""

    @classmethod
    def define_schema(cls) -> Any:
        """Pose and style."""
        return io.Schema(
            node_id="OMFAPoseMap", display_name="OMFA Pose Map", category=CATEGORY,
            description="Draws a body in colours that tell its parts.",
            inputs=[Pose.Input("pose"), io.Combo.Input("style", options=list(functions.STYLES), default="parts_blend")],
            outputs=[io.Image.Output("image")],
        )  # fmt: skip

    @classmethod
    def execute(cls, pose: Any, style: str) -> Any:
        """Draw it."""
        return io.NodeOutput(functions.pose_map(pose, style))


class Pack(ComfyExtension):
    """The pack."""

    async def get_node_list(self) -> list[type[Any]]:
        """All its nodes."""
        return [LoadModel, TryOn, TakeOff, Transfer, Turntable, PoseFromPhoto, NamedPose, PoseMap]
