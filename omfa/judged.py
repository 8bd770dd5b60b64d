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

    A model with drafts takes bodies instead of pose maps, and tries off without one where a record has none.

    Args:
        pipe: moved to a device already, or by :meth:`to`.
    """

    try_on_needs = frozenset({Input.GARMENTS, Input.POSE_MAP})
    try_on_takes = frozenset({Input.FACE})
    try_off_needs = frozenset({Input.PHOTO})
    try_off_takes: frozenset[Input] = frozenset()

    def __init__(self, pipe: OMFAPipeline) -> None:
        self.pipe = pipe
        if "surface" in (pipe.config.draft, pipe.config.pose_style):
            self.try_on_needs = frozenset({Input.GARMENTS, Input.POSE})
            self.try_on_takes = frozenset({Input.FACE, Input.FACE_POSE, Input.GARMENT_POSES})
            self.try_off_takes = frozenset({Input.POSE})

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
        faces: dict[str, Any] = {
            "face": list(map(str, batch.faces)) or None,
            "face_pose": list(batch.face_poses) or None,
        }
        poses: list[Any] = list(batch.poses) or list(batch.pose_maps)
        return list(self.pipe(["person"], pose=poses, **faces, **_worn(batch), **_options(batch)).images)

    def try_off(self, batch: Batch) -> list[Image.Image]:
        """See :class:`omfa.evaluation.predictions.TryOffModel`."""
        assert batch.category is not None
        people, poses = list(map(str, batch.photos)), list(batch.poses) or None
        return list(self.pipe([batch.category.value], person=people, pose=poses, **_options(batch)).images)


class OMFAInPhoto(OMFAModel):
    """The same where a try-on changes a photo (``keep="photo"``): the record's portrait."""

    def __init__(self, pipe: OMFAPipeline) -> None:
        super().__init__(pipe)
        self.try_on_needs = frozenset({Input.PORTRAIT, Input.GARMENTS, Input.POSE})
        self.try_on_takes = frozenset({Input.GARMENT_POSES})

    def try_on(self, batch: Batch) -> list[Image.Image]:
        """See :class:`omfa.evaluation.predictions.TryOnModel`."""
        photos, poses = list(map(str, batch.portraits)), list(batch.poses)
        return list(self.pipe(["person"], portrait=photos, pose=poses, **_worn(batch), **_options(batch)).images)


def _worn(batch: Batch) -> dict[str, Any]:
    return {
        "garments": {category.value: [[str(path)] for path in paths] for category, paths in batch.garments.items()},
        "garment_poses": {category.value: [[p] for p in poses] for category, poses in batch.garment_poses.items()},
    }


def _options(batch: Batch) -> dict[str, Any]:
    return {
        "generator": list(batch.generators),
        "num_inference_steps": batch.steps,
        "guidance_scale": batch.guidance,
    }
