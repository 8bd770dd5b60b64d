"""TryOffDiff as the evaluator sees it (``omfa.evaluation.predictions`` is the protocol)."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from diffusers.utils import logging
from PIL import Image

from omfa.baselines.tryoffdiff.parts import SUFFIXES
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
        """Silent; see :meth:`omfa.baselines.tryoffdiff.pipeline.TryOffDiffPipeline.from_pretrained`.

        Raises:
            ValueError: it can't be loaded, or a published file, which does not say where SigLIP and the VAE lie.
        """
        logging.disable_progress_bar()
        pipe = TryOffDiffPipeline.from_pretrained(_folder(weights))
        pipe.set_progress_bar_config(disable=True)
        return cls(pipe)

    @classmethod
    def sampler_defaults(cls, weights: str) -> tuple[int, float]:
        """The model's own steps and guidance."""
        return TryOffDiffPipeline.sampler_defaults(_folder(weights))

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


def _folder(weights: str) -> str:
    if weights.endswith(SUFFIXES):
        raise ValueError(
            f"{weights}: a published file holds neither SigLIP nor the VAE: load it once by "
            "TryOffDiffPipeline.from_pretrained, save it with pipe.save_pretrained(DIR), and give DIR"
        )
    return weights
