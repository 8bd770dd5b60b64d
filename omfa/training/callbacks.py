"""What happens around training: averaged weights, checkpoints that can't break, sample pictures, the finished model."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from textwrap import shorten
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from PIL import Image
from pytorch_lightning.callbacks import TQDMProgressBar
from torch import Tensor

from omfa import images
from omfa.canvas import PERSON
from omfa.records.shards import open_records
from omfa.training.model_card import write_card
from omfa.training.module import OMFAModule
from omfa.training.zero import ZeRO, trained
from omfa.tuning import Mismatch


class EMA(pl.Callback):
    """An exponential moving average of all trained weights, in float32; saved and resumed with the run.

    Under :class:`omfa.training.zero.ZeRO` every process averages its own part of the float32 weights, and the whole is
    gathered where it is needed.

    Args:
        decay: of the average; warmed up as (1 + n) / (10 + n) so that the first steps don't linger.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA decay {decay} must be in [0, 1)")
        self.decay, self.updates = decay, 0
        self.weights: dict[str, Tensor] = {}  # by name, or this process's parts by number
        self._zero: ZeRO | None = None
        self._writes = True  # this process writes checkpoints

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Start from the weights as they are, unless a checkpoint brought its own."""
        self._zero = trainer.strategy if isinstance(trainer.strategy, ZeRO) else None
        self._writes = trainer.is_global_zero
        if self._zero is not None:
            parts = self._zero.scatter(self.weights) if self.weights else self._zero.masters()
            self.weights = {str(i): part.detach().clone() for i, part in enumerate(parts)}
            return
        for name, p in trained(pl_module):
            start = self.weights.get(name, p.detach())
            self.weights[name] = start.to(p.device, torch.float32, copy=True)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move towards the new weights after every optimiser step."""
        if trainer.global_step <= self.updates:  # within an accumulation
            return
        self.updates = trainer.global_step
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        now = [p for _, p in trained(pl_module)] if self._zero is None else self._zero.masters()
        for average, p in zip(self.weights.values(), now, strict=True):
            average.lerp_(p.detach().float(), 1 - decay)

    def whole(self) -> dict[str, Tensor]:
        """The averaged weights by name; under ZeRO all processes must call, and only the first one gets them."""
        return self.weights if self._zero is None else self._zero.gather(list(self.weights.values()))

    def copy_to(self, pl_module: Any) -> None:
        """Put the averaged weights into the model for good."""
        with torch.no_grad():
            for name, p in trained(pl_module):
                p.copy_(self.weights[name])

    def state_dict(self) -> dict[str, Any]:
        """The average, on the process that writes it, and how many updates it has seen."""
        whole = self.whole()
        return {"updates": self.updates, "weights": {k: v.cpu() for k, v in whole.items()} if self._writes else {}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue a saved average."""
        self.updates, self.weights = state_dict["updates"], dict(state_dict["weights"])


def best_weights(trainer: pl.Trainer, pl_module: Any) -> dict[str, Tensor]:
    """Trained weights by name, averaged where the run keeps an average. All processes must call; see `EMA.whole`."""
    ema = next((c for c in trainer.callbacks if isinstance(c, EMA)), None)  # type: ignore[attr-defined]
    if ema is not None:
        return ema.whole()
    return trainer.strategy.gather() if isinstance(trainer.strategy, ZeRO) else dict(trained(pl_module))


@contextmanager
def lent(pl_module: Any, weights: Mapping[str, Tensor], cast: bool) -> Iterator[None]:
    """Other weights in the model, for the length of a ``with`` block.

    Args:
        pl_module: whose trained parameters point to ``weights`` meanwhile.
        weights: by name, all of them.
        cast: bring them to each parameter's device and dtype; otherwise they come as they are.
    """
    own = {name: p.data for name, p in trained(pl_module)}
    try:
        for name, p in trained(pl_module):
            p.data = weights[name].to(p) if cast else weights[name].detach()
        yield
    finally:
        for name, p in trained(pl_module):
            p.data = own[name]


class SafeCheckpointIO(TorchCheckpointIO):
    """Checkpoints written to the side, checksummed, and swapped in; read with ``weights_only=True``.

    The checksum finds what a kill or a bad disk did. It proves nothing about who wrote the file: whoever can change the
    one can change the other. A stranger's checkpoint can still do no more than hold wrong numbers, since nothing but
    tensors and plain values is unpickled.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``path`` and ``path.sha256``; a kill at any moment leaves the old file or the new one."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        with part.open("wb") as out:
            torch.save(checkpoint, out)
            out.flush()
            os.fsync(out.fileno())
        digest = _sha256(part)
        checksum = checksum_file(path)
        checksum.unlink(missing_ok=True)
        os.replace(part, path)
        part.write_text(digest)
        os.replace(part, checksum)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint; ValueError if its checksum does not match."""
        if not is_whole(Path(path)):
            raise ValueError(f"{path}: damaged or cut short (its checksum does not match); use the one before it")
        return torch.load(
            path, map_location=map_location or "cpu", weights_only=True, mmap=True
        )  # ranks share the pages

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint and its checksum."""
        checksum_file(Path(path)).unlink(missing_ok=True)
        Path(path).unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum_file(path: Path) -> Path:
    """Where a checkpoint's checksum lies."""
    return path.with_name(path.name + ".sha256")


def is_whole(path: Path) -> bool:
    """Whether a checkpoint file is there and matches its checksum."""
    checksum = checksum_file(path)
    return path.is_file() and checksum.is_file() and checksum.read_text().strip() == _sha256(path)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run's ``checkpoints`` folder; None if there is none."""
    return next((p for p in reversed(by_step(folder)) if is_whole(p)), None)


def step_of(path: Path) -> int:
    """The optimiser steps behind ``step=N.ckpt``; -1 for another name."""
    found = re.fullmatch(r"step=(\d+)\.ckpt", path.name)
    return int(found[1]) if found else -1


def by_step(folder: Path) -> list[Path]:
    """A run's checkpoints, oldest first, damaged ones too."""
    return sorted((p for p in folder.glob("step=*.ckpt") if step_of(p) >= 0), key=step_of)


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


class SaveModel(pl.Callback):
    """At the end of a run, the module's ``save`` with averaged weights, and a card, into ``model/`` of the run.

    The folder is there whole or not at all. Where a run was killed while it wrote, ``--ckpt_path last`` writes it.
    """

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Write the folder, unless the run was stopped before its end or was only a rehearsal."""
        if trainer.global_step < trainer.max_steps or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        weights = best_weights(trainer, pl_module)
        if not trainer.is_global_zero:
            return
        if trainer.logger is not None:
            trainer.logger.save()
        with lent(pl_module, weights, cast=False):
            save_model(pl_module, Path(trainer.default_root_dir), trainer.global_step)


def save_model(pl_module: Any, run: Path, step: int) -> None:
    """The module as it is, and a card of the run, as ``model/`` of the run folder."""
    with aside(run / "model") as folder:
        pl_module.save(folder)
        if hasattr(pl_module, "pipe") and (run / "config.yaml").is_file():
            write_card(run, folder, step)


@contextmanager
def aside(folder: Path) -> Iterator[Path]:
    """A path to write a folder to, which takes the place of ``folder`` at the end of the ``with`` block.

    Where the block raises, ``folder`` stays as it was and nothing is left beside it.
    """
    folder = folder.absolute()
    part, old = (folder.with_name(f".{folder.name}.{x}") for x in ("part", "replaced"))
    for left_by_a_kill in (part, old):
        shutil.rmtree(left_by_a_kill, ignore_errors=True)
    try:
        yield part
        if folder.exists():
            os.replace(folder, old)
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def load_weights(pl_module: Any, checkpoint: Path) -> int:
    """Put a checkpoint's weights into a module, averaged where the run keeps an average; returns its step.

    Raises:
        ValueError: a damaged checkpoint (:class:`omfa.tuning.Mismatch` where it is whole), or one of another model.
    """
    try:
        loaded = SafeCheckpointIO().load_checkpoint(checkpoint)
        if isinstance(pl_module, OMFAModule):
            pl_module.check(loaded)
        pl_module.load_state_dict(loaded["state_dict"])
        for key, state in loaded.get("callbacks", {}).items():
            if key.startswith("EMA"):
                ema = EMA()
                ema.load_state_dict(state)
                ema.copy_to(pl_module)
        return int(loaded["global_step"])
    except (RuntimeError, LookupError, TypeError, AttributeError, UnpicklingError) as e:
        raise Mismatch(
            f"{checkpoint} is no checkpoint of this model ({shorten(str(e), 300)}): take the config.yaml of its run"
        ) from None


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
