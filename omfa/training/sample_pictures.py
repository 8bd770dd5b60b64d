"""What one looks at while a run goes on: sample pictures, and the bar."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import TQDMProgressBar

from omfa import images
from omfa.records.shards import open_records
from omfa.records.worn import clothes
from omfa.sheets import contact_sheet
from omfa.training.ema import best_weights, lent
from omfa.training.parts import Samples, Sampling
from omfa.tuning import Mismatch


class SamplePictures(pl.Callback):
    """Every so often, what the module makes of a few records with the averaged weights; see ``parts.Samples``.

    Pictures go to TensorBoard and to ``samples/`` in the run folder: given | made | truth, a row per record and task.

    Args:
        every: steps between two sets.
        records: number of records, the first ones of ``split``.
        split: which records; None takes those trained on.
        steps: sampler steps.
        guidance: guidance scale.
    """

    def __init__(
        self, every: int = 1000, records: int = 4, split: str | None = None, steps: int = 20, guidance: float = 2.0
    ) -> None:
        self.every, self.records, self.split, self.steps, self.guidance = every, records, split, steps, guidance

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Sample at every ``every``-th step."""
        if trainer.global_step % self.every or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        weights = best_weights(trainer, pl_module)
        if not trainer.is_global_zero:
            return
        with lent(pl_module, weights, cast=True):
            sheet = self.sheet(trainer, pl_module)
        folder = Path(trainer.default_root_dir) / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        sheet.save(folder / f"step={trainer.global_step:07d}.png")
        if trainer.logger is not None:
            pixels = images.pixels_to_tensor(np.asarray(sheet)) / 2 + 0.5
            trainer.logger.experiment.add_image("samples", pixels, trainer.global_step)  # type: ignore[attr-defined]

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """See at once that there will be something to draw.

        Raises:
            Mismatch: a module that makes no pictures, or data that are no records.
        """
        if not isinstance(pl_module, Samples):
            raise Mismatch(f"SamplePictures asks for a module with sample(); {type(pl_module).__name__} has none")
        if not isinstance(data := trainer.datamodule, _OfRecords):  # type: ignore[attr-defined]
            raise Mismatch(f"SamplePictures asks for data with folder and split; {type(data).__name__} has not both")

    @torch.no_grad()
    def sheet(self, trainer: pl.Trainer, pl_module: Samples) -> Image.Image:
        """The contact sheet for the weights as they are now."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        source = open_records(data.folder)
        records = [r for r in source.records(self.split or data.split) if clothes(r)][: self.records]
        rows = []
        with trainer.precision_plugin.forward_context(), evaluating(pl_module):
            for i, record in enumerate(records):
                rows += pl_module.sample(source, record, Sampling(self.steps, self.guidance, i))
        return contact_sheet([("", row) for row in rows], pl_module.picture_size)


@runtime_checkable
class _OfRecords(Protocol):
    folder: str
    split: str | None


@contextmanager
def evaluating(module: Any) -> Iterator[None]:
    """A module in evaluation mode for the length of a ``with`` block; every part of it as it was afterwards."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


class StepBar(TQDMProgressBar):
    """Lightning's bar over the steps of the whole run; it vanishes when the output is piped."""

    @property
    def total_train_batches(self) -> int | float:
        """Batches until ``max_steps``."""
        return self.trainer.max_steps * self.trainer.accumulate_grad_batches

    @property
    def is_disabled(self) -> bool:
        """Whether the bar is off."""
        return not sys.stdout.isatty() or super().is_disabled
