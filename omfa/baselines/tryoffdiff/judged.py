"""TryOffDiff as the evaluator sees it (``omfa.evaluation.predictions`` is the protocol)."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from diffusers.utils import logging
from PIL import Image

from omfa.baselines.tryoffdiff.pipeline import TryOffDiffPipeline
from omfa.evaluation.predictions import Batch, Input


class TryOffDiffModel:
    """A ``TryOffModel``: the photo alone.

    Args:
        pipe: moved to a device already, or by :meth:`to`.
    """

    try_off_needs = frozenset({Input.PHOTO})
    try_off_takes: frozenset[Input] = frozenset()

    def __init__(self, pipe: TryOffDiffPipeline) -> None:
        self.pipe = pipe

    @classmethod
    def from_pretrained(cls, weights: str) -> Self:
        """See :meth:`omfa.baselines.tryoffdiff.pipeline.TryOffDiffPipeline.from_pretrained`; silent."""
        logging.disable_progress_bar()
        pipe = TryOffDiffPipeline.from_pretrained(weights)
        pipe.set_progress_bar_config(disable=True)
        return cls(pipe)

    @classmethod
    def sampler_defaults(cls, weights: str) -> tuple[int, float]:
        """The model's own steps and guidance."""
        return TryOffDiffPipeline.sampler_defaults(weights)

    @classmethod
    def weights_path(cls, weights: str) -> Path | None:
        """Where the weights lie, if here."""
        return Path(weights) if Path(weights).exists() else None

    def to(self, device: str) -> Self:
        """On another device."""
        self.pipe.to(device)
        return self

    def try_off(self, batch: Batch) -> list[Image.Image]:
        """See :class:`omfa.evaluation.predictions.TryOffModel`."""
        assert batch.category is not None
        made = self.pipe(
            list(map(str, batch.photos)), batch.category.value, batch.steps, batch.guidance, list(batch.generators)
        )
        return list(made.images)
