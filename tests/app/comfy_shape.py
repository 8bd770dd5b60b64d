"""The shape of what the nodes use of ComfyUI, recorded from its documentation and behaviour and written anew.

ComfyUI is no package that can be installed, so this stands in for ``comfy_api.v0_0_2``, ``comfy`` and
``folder_paths``: the same names, arguments and rules of a schema (ids unique among inputs and outputs together, every
input of ``execute`` declared), and an executor of graphs in the API format. It is no proof that ComfyUI itself agrees.
"""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image


class Interrupted(Exception):
    """What ComfyUI raises in a node when the person presses stop."""


class Port:
    def __init__(self, kind: str, allowed: dict[str, type | tuple[type, ...]], id: str, **options: Any) -> None:
        for name, value in options.items():
            assert name in allowed and isinstance(value, allowed[name]), f"{kind} {id}: {name}={value!r}"
        self.kind, self.id, self.options = kind, id, options
        self.optional = bool(options.get("optional"))


def _type(kind: str, **widget: type | tuple[type, ...]) -> Any:
    both: dict[str, Any] = {"display_name": str, "tooltip": str}
    inputs = {**both, "optional": bool, "lazy": bool, **widget}

    class Kind:
        io_type = kind

        @staticmethod
        def Input(id: str, **options: Any) -> Port:
            return Port(kind, inputs, id, **options)

        @staticmethod
        def Output(id: str | None = None, **options: Any) -> Port:
            return Port(kind, {**both, "is_output_list": bool}, id or f"_{kind}_", **options)

    return Kind


_NUMBER = {"step": (int, float), "min": (int, float), "max": (int, float), "control_after_generate": bool}


@dataclass
class Schema:
    node_id: str
    display_name: str
    category: str = "sd"
    inputs: list[Port] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)
    description: str = ""

    def validate(self) -> None:
        ids = [p.id for p in (*self.inputs, *self.outputs)]
        assert len(set(ids)) == len(ids), f"{self.node_id}: ids must be unique, also between inputs and outputs: {ids}"
        for port in self.inputs:
            default, options = port.options.get("default"), port.options.get("options")
            assert options is None or (options and (default is None or default in options)), port.id
            assert "min" not in port.options or port.options["min"] <= default <= port.options["max"], port.id


class NodeOutput:
    def __init__(self, *args: Any) -> None:
        self.args = args


class ComfyNode:
    pass


class ComfyExtension:
    pass


class Bar:
    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []
        self.stop_at: int | None = None
        self.loaded: list[Any] = []


def install() -> tuple[Bar, Path]:
    """Put the stand-ins where imports find them; what they saw, and the folder of models."""
    bar = Bar()
    io = types.SimpleNamespace(
        Image=_type("IMAGE"), Int=_type("INT", default=int, **_NUMBER), Float=_type("FLOAT", default=float, **_NUMBER),
        Combo=_type("COMBO", options=list, default=str), Custom=_type, Schema=Schema, NodeOutput=NodeOutput,
        ComfyNode=ComfyNode,
    )  # fmt: skip

    class Execution:
        def set_progress(self, value: float, max_value: float) -> None:
            bar.seen.append((value, max_value))

    class ModelPatcher:
        def __init__(self, model: torch.nn.Module, load_device: Any, offload_device: Any) -> None:
            assert isinstance(model, torch.nn.Module) and list(model.parameters())
            self.model, self.load_device, self.offload_device = model, load_device, offload_device

    def interrupted() -> None:
        if bar.stop_at is not None and len(bar.seen) >= bar.stop_at:
            raise Interrupted

    def load_models_gpu(
        models: list[ModelPatcher], memory_required: float = 0, force_patch_weights: bool = False,
        minimum_memory_required: float | None = None, force_full_load: bool = False,
    ) -> None:  # fmt: skip
        assert force_full_load, "where memory is short, layers that are not ComfyUI's own would stay on the CPU"
        for patcher in models:
            patcher.model.to(patcher.load_device)
            bar.loaded.append(patcher)

    paths: dict[str, list[str]] = {}
    modules: dict[str, dict[str, Any]] = {
        "comfy_api": {}, "comfy": {},
        "comfy_api.v0_0_2": {
            "io": io, "ComfyExtension": ComfyExtension,
            "ComfyAPISync": lambda: types.SimpleNamespace(execution=Execution()),
        },
        "comfy.model_patcher": {"ModelPatcher": ModelPatcher},
        "comfy.model_management": {
            "get_torch_device": lambda: torch.device("cpu"), "unet_offload_device": lambda: torch.device("cpu"),
            "load_models_gpu": load_models_gpu, "throw_exception_if_processing_interrupted": interrupted,
        },
        "folder_paths": {
            "models_dir": "models", "get_folder_paths": lambda name: paths.get(name, []),
            "add_model_folder_path": lambda name, path: paths.setdefault(name, []).append(path),
        },
    }  # fmt: skip
    for name, content in modules.items():
        module = sys.modules[name] = types.ModuleType(name)
        vars(module).update(content)
    for name in ("model_patcher", "model_management"):
        setattr(sys.modules["comfy"], name, sys.modules[f"comfy.{name}"])
    return bar, paths  # type: ignore[return-value]


def check_node(node: Any) -> Schema:
    """The node's schema, held against the arguments of its ``execute``."""
    schema: Schema = node.define_schema()
    schema.validate()
    takes = inspect.signature(node.execute).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    for port in schema.inputs:
        assert open_ended or port.id in takes, f"{schema.node_id}: execute takes no {port.id}"
        if port.optional and port.id in takes:
            assert takes[port.id].default is None, f"{schema.node_id}: {port.id} may be missing"
    named = {n for n, p in takes.items() if p.kind is not p.VAR_KEYWORD}
    assert named <= {p.id for p in schema.inputs}, f"{schema.node_id}: {named} are not all declared"
    return schema


def execute(graph: Mapping[str, Any], nodes: Mapping[str, Any], pictures: Path) -> dict[str, Any]:
    """Run a graph of the API format, node by node: node id to its outputs; SaveImage's are what it was given."""
    done: dict[str, Any] = {}

    def value(given: Any) -> Any:
        return run(given[0])[given[1]] if isinstance(given, list) else given

    def run(i: str) -> Any:
        if i not in done:
            kind, inputs = graph[i]["class_type"], {k: value(v) for k, v in graph[i]["inputs"].items()}
            if kind == "LoadImage":
                rgb = np.asarray(Image.open(pictures / inputs["image"]).convert("RGB"), np.float32) / 255
                done[i] = (torch.from_numpy(rgb)[None], None)
            elif kind == "SaveImage":
                done[i] = (inputs["images"],)
            else:
                schema = nodes[kind].define_schema()
                required = {p.id for p in schema.inputs if not p.optional}
                known = {p.id: p for p in schema.inputs}
                assert required <= set(inputs) <= set(known), f"{kind}: {sorted(inputs)}"
                for name, given in inputs.items():
                    options = known[name].options.get("options")
                    assert options is None or given in options, f"{kind}: {name}={given!r}"
                output = nodes[kind].execute(**inputs)
                assert isinstance(output, NodeOutput) and len(output.args) == len(schema.outputs)
                done[i] = output.args
        return done[i]

    with torch.inference_mode():  # as ComfyUI runs everything
        for i in graph:
            run(i)
    return done
