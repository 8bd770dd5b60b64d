"""What one looks at while a run goes on: sample pictures, and the bar."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import TQDMProgressBar

from omfa import images
from omfa.canvas import PERSON
from omfa.records.shards import open_records
from omfa.training.ema import best_weights, lent


class SamplePictures(pl.Callback):
    """Every so often, try-on and try-off of a few records with the averaged weights, by the pipeline users call.

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

    def sheet(self, trainer: pl.Trainer, pl_module: Any) -> Image.Image:
        """The contact sheet for the weights as they are now."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        pipe, source = pl_module.pipe, open_records(data.folder)
        pipe.set_progress_bar_config(disable=True)
        was_training = pipe.unet.training
        pipe.unet.eval()
        pipe.vae.to(pl_module.device)
        records = [r for r in source.records(self.split or data.split) if r.garments][: self.records]

        def read(path: str) -> Image.Image:
            return images.decode(source.read(path), source.where(path))

        rows = []
        for i, record in enumerate(records):
            person = read(record.file_name)
            worn = {g.category.value: read(g.path) for g in record.garments}
            worn = dict(list(worn.items())[: pipe.canvas.garments])
            pose = record.pose and record.pose.map and read(record.pose.map)
            face = record.face and read(record.face.path)
            options: dict[str, Any] = {"num_inference_steps": self.steps, "guidance_scale": self.guidance}
            with trainer.precision_plugin.forward_context():
                on = pipe(["person"], None, worn, face, pose, generator=torch.Generator().manual_seed(i), **options)
                off = pipe(list(worn), person, generator=torch.Generator().manual_seed(i), **options)
            rows.append([*worn.values(), *([pose] if pose else []), on.person[0], person])
            rows.append([person, *(p[0] for p in off.garments.values()), *worn.values()])
        pipe.unet.train(was_training)
        pipe.set_progress_bar_config(disable=False)
        slot = pipe.canvas[PERSON]
        return images.contact_sheet(
            [("", row) for row in rows], (slot.height * pipe.vae_scale_factor, slot.width * pipe.vae_scale_factor)
        )


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
