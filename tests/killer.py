"""Callbacks that do to a run what the world does (a power cut, a request to stop, a broken batch), or look at it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytorch_lightning as pl


class Killer(pl.Callback):
    """A signal after ``at`` optimiser steps, to one process (``rank``) or to every one, whatever else is going on."""

    def __init__(self, at: int, name: str = "SIGKILL", rank: int | None = None) -> None:
        self.at, self.number, self.rank = at, signal.Signals[name], rank

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.at and self.rank in (None, trainer.global_rank):
            os.kill(os.getpid(), self.number)


class Seen(pl.Callback):
    """Writes down the records of every batch: a line a step, a file a process."""

    def __init__(self, to: str) -> None:
        self.to = Path(to)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        with (self.to / f"seen-{trainer.global_rank}").open("a") as file:
            file.write(" ".join(batch.id) + "\n")


class Poison(pl.Callback):
    """Multiplies the pictures of the batch at step ``at`` of the last process."""

    def __init__(self, at: int, factor: float) -> None:
        self.at, self.factor = at, factor

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.at and trainer.global_rank == trainer.world_size - 1:
            for pixels in batch.pixels.values():
                pixels.mul_(self.factor)
