"""What the nodes do, in plain functions of ComfyUI's pictures.

IMAGE: float tensor (B, H, W, 3) in [0, 1]. A batch goes picture by picture, each with the same seed, as on the command
line: what ComfyUI makes of a picture is what the command line makes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from omfa.bodies.body import load_body
from omfa.bodies.parameters import BodyParameters
from omfa.bodies.pose_render import render_pose_map
from omfa.images import read_image
from omfa.orders import Order, TaskName, check_seed, lazy_estimator, named_pose
from omfa.pipeline import MODELS, OMFAPipeline

Watch = Callable[[int, int], None]
"""Told of every step: steps done, steps there are. What it raises ends the work."""
STYLES = ("parts_blend", "surface")
_INDEX = "model_index.json"


class Networks(nn.Module):
    """The networks of a pipeline as one module, which ComfyUI can move between devices."""

    def __init__(self, pipe: OMFAPipeline) -> None:
        super().__init__()
        for name, part in pipe.components.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)


def model_names(folders: Iterable[str | Path]) -> list[str]:
    """Names of the models that ship, and of those in ComfyUI's folders."""
    shipped = {p.parent.name for p in MODELS.glob(f"*/{_INDEX}")}
    return sorted(shipped | {p.parent.name for folder in folders for p in Path(folder).glob(f"*/{_INDEX}")})


def load_model(name: str, folders: Iterable[str | Path]) -> OMFAPipeline:
    """A model of :func:`model_names`; nothing is fetched.

    Raises:
        ValueError: there is none of that name, or it can't be loaded.
    """
    if name not in model_names(folders):
        where = ", ".join(map(str, folders)) or "ComfyUI's models/omfa"
        raise ValueError(f"no model {name!r}; put its folder (with a {_INDEX}) into {where}")
    own = [Path(folder) / name for folder in folders if (Path(folder) / name / _INDEX).is_file()]
    pipe = OMFAPipeline.from_pretrained(own[0] if own else name, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    pipe.pose_estimator = lazy_estimator(_estimator)
    return pipe


def pictures(image: Tensor | None) -> list[Image.Image]:
    """The pictures of an IMAGE; none of None. ValueError for a tensor that is none."""
    if image is None:
        return []
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4):
        raise ValueError(f"an IMAGE of shape {tuple(image.shape)}; it must be (B, H, W, 3)")
    pixels = (image.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return [read_image(one.squeeze(-1) if one.shape[-1] == 1 else one) for one in pixels]


def image(several: Sequence[Image.Image]) -> Tensor:
    """An IMAGE of pictures of one size."""
    arrays = [np.asarray(p.convert("RGB"), np.float32) / 255 for p in several]
    if len({a.shape for a in arrays}) != 1:
        raise ValueError(f"pictures of sizes {', '.join(f'{p.width}x{p.height}' for p in several)} are no batch")
    return torch.from_numpy(np.stack(arrays))


def make(
    pipe: OMFAPipeline,
    task: TaskName,
    photo: Tensor | None,
    *,
    source: Tensor | None = None,
    garments: Mapping[str, Tensor | None] | None = None,
    face: Tensor | None = None,
    pose: Sequence[BodyParameters] | None = None,
    seed: int = 0,
    steps: int = 0,
    guidance: float = 0.0,
    watch: Watch = lambda *_: None,
    **more: Any,
) -> Tensor:
    """An order for every picture of a batch.

    Args:
        pipe: from :func:`load_model`.
        task: one of ``omfa.orders.TASKS``.
        photo, source, face: IMAGE or None: B pictures, or one for all.
        garments: category to IMAGE or None, likewise.
        pose: body parameters, likewise; None takes the photo's own.
        seed: of every picture.
        steps, guidance: of the sampler; 0 takes the model's own.
        watch: told of every step.
        more: of :class:`omfa.orders.Order`: ``categories``, ``keep``, ``views``.

    Returns:
        IMAGE, all that is made of the first picture first.

    Raises:
        ValueError: what can't be made.
    """
    given: dict[str, Sequence[Any]] = {"photo": pictures(photo), "source": pictures(source), "face": pictures(face)}
    given |= {"pose": list(pose or ()), **{c: pictures(g) for c, g in (garments or {}).items()}}
    given = {name: several for name, several in given.items() if several}
    batch = max(map(len, given.values()), default=1)
    if wrong := [f"{len(several)} of {name}" for name, several in given.items() if len(several) not in (1, batch)]:
        raise ValueError(f"{', '.join(wrong)} in a batch of {batch}: give 1 or {batch}")

    def after(pipe: Any, i: int, t: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
        watch(i + 1, len(pipe.scheduler.timesteps))
        return values

    made: list[Image.Image] = []
    for i in range(batch):
        one = {name: several[i % len(several)] for name, several in given.items()}
        worn = {c: one.pop(c) for c in garments or {} if c in one}
        order = Order(task=task, name="picture", garments=worn, **one, **more)
        generator = torch.Generator().manual_seed(check_seed(seed))
        options = {"num_inference_steps": steps or None, "guidance_scale": guidance or None, "generator": generator}
        made += order.make(pipe, callback_on_step_end=after, **options).values()
    return image(made)


def pose_from_photo(pipe: OMFAPipeline, photo: Tensor) -> list[BodyParameters]:
    """The bodies in photos; ValueError where one is not found."""
    assert pipe.pose_estimator is not None
    return [pipe.pose_estimator(p).params for p in pictures(photo)]


def pose_by_name(name: str, width: int, height: int, yaw: float = 0.0) -> list[BodyParameters]:
    """A named pose before a camera; degrees to the person's own left. ValueError for an unknown name."""
    return [named_pose(name, (height, width), yaw)]


def pose_map(pose: Sequence[BodyParameters], style: str) -> Tensor:
    """Pose maps as an IMAGE; ``style``: one of ``STYLES``."""
    return image([Image.fromarray(render_pose_map(load_body(), p, style)) for p in pose])  # type: ignore[arg-type]


def _estimator() -> Any:
    from data_prep.poses.photo import photo_estimator

    return photo_estimator()
