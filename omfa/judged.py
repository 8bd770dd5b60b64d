"""OMFA as the evaluator sees it: the one place that knows both (``omfa.evaluation.predictions`` is the protocol)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from diffusers.utils import logging
from PIL import Image

from omfa.evaluation.predictions import Batch, Input
from omfa.pipeline import MODELS, OMFAPipeline


class OMFAModel:
    """A ``TryOnModel`` and ``TryOffModel``: garments and the pose make a try-on, the photo alone a try-off.

    Args:
        pipe: moved to a device already, or by :meth:`to`.
    """

    try_on_needs = frozenset({Input.GARMENTS, Input.POSE_MAP})
    try_on_takes = frozenset({Input.FACE})
    try_off_needs = frozenset({Input.PHOTO})
    try_off_takes: frozenset[Input] = frozenset()

    def __init__(self, pipe: OMFAPipeline) -> None:
        self.pipe = pipe

    @classmethod
    def from_pretrained(cls, weights: str) -> Self:
        """See :meth:`omfa.pipeline.OMFAPipeline.from_pretrained`; silent."""
        logging.disable_progress_bar()  # of loading: seconds at most
        pipe = OMFAPipeline.from_pretrained(weights)
        pipe.set_progress_bar_config(disable=True)
        return cls(pipe)

    @classmethod
    def sampler_defaults(cls, weights: str) -> tuple[int, float]:
        """The model's own steps and guidance."""
        return OMFAPipeline.sampler_defaults(weights)

    @classmethod
    def weights_path(cls, weights: str) -> Path | None:
        """Where the weights lie, if here: those that ship come first."""
        return next((p for p in (MODELS / weights, Path(weights)) if p.exists()), None)

    def to(self, device: str) -> Self:
        """On another device."""
        self.pipe.to(device)
        return self

    def try_on(self, batch: Batch) -> list[Image.Image]:
        """See :class:`omfa.evaluation.predictions.TryOnModel`."""
        garments = {category.value: list(map(str, paths)) for category, paths in batch.garments.items()}
        faces, poses = (list(map(str, paths)) or None for paths in (batch.faces, batch.pose_maps))
        return list(self.pipe(["person"], garments=garments, face=faces, pose=poses, **_options(batch)).images)

    def try_off(self, batch: Batch) -> list[Image.Image]:
        """See :class:`omfa.evaluation.predictions.TryOffModel`."""
        assert batch.category is not None
        people = list(map(str, batch.photos))
        return list(self.pipe([batch.category.value], person=people, **_options(batch)).images)


def _options(batch: Batch) -> dict[str, Any]:
    return {
        "generator": list(batch.generators),
        "num_inference_steps": batch.steps,
        "guidance_scale": batch.guidance,
    }
