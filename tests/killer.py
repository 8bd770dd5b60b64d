"""A callback that ends its own process as a power cut would."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytorch_lightning as pl


class Killer(pl.Callback):
    """SIGKILL after ``at`` optimiser steps, whatever else is going on."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
