"""Data modules over an endless stream that resumes where it stopped, whatever is trained."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from omfa.records.stream import Stream


class StreamDataset(Protocol):
    """What is streamed: examples of any kind, each a function of (epoch, position), and how a batch is made of them."""

    def __len__(self) -> int:
        """How many there are in an epoch."""

    def __getitem__(self, key: tuple[int, int]) -> Any:
        """The example of (epoch, position)."""

    def collate(self, examples: list[Any]) -> Any:
        """A batch; in a worker its tensors go right into shared memory by torch's ``default_collate``."""


class StreamDataModule(pl.LightningDataModule):
    """An endless stream over a data set that resumes where it stopped. Subclasses make the data set."""

    def __init__(self, batch_size: int, workers: int, seed: int) -> None:
        super().__init__()
        if batch_size < 1 or workers < 0:
            raise ValueError(f"batch_size {batch_size} must be 1 or more, workers {workers} 0 or more")
        self.batch_size, self.workers, self.seed = batch_size, workers, seed
        self._consumed = 0  # samples of the stream behind us when training (re)starts
        self._first_step = 0  # the trainer's step at that moment

    def dataset(self) -> StreamDataset:
        """The data set, made when training begins: ``self.trainer.lightning_module`` is at hand."""
        raise NotImplementedError

    def train_dataloader(self) -> DataLoader[Any]:
        """The stream from where it stopped."""
        trainer = self.trainer
        assert trainer is not None
        self._first_step = trainer.global_step
        data = self.dataset()
        stream = Stream(len(data), self.batch_size, self._consumed, self.seed, trainer.global_rank, trainer.world_size)
        return DataLoader(
            data,  # type: ignore[arg-type]  # torch asks for its own class
            self.batch_size,
            sampler=stream,
            num_workers=self.workers,
            collate_fn=data.collate,
            worker_init_fn=_leave_stopping_to_the_parent,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def consumed(self) -> int:
        """Samples of the stream consumed so far, by all ranks together."""
        if self.trainer is None:
            return self._consumed
        per_step = self.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches
        return self._consumed + (self.trainer.global_step - self._first_step) * per_step

    def state_dict(self) -> dict[str, int]:
        """The position in the stream."""
        return {"consumed": self.consumed()}

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        """Continue at a saved position."""
        self._consumed = int(state_dict["consumed"])


def _leave_stopping_to_the_parent(worker: int) -> None:
    """A cluster sends SIGTERM to all processes of a job; the step at hand still needs its loader."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
