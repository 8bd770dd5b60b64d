"""Examples of any kind as an endless stream that resumes where it stopped: what every model's data are made with.

A model's own data are a :class:`RecordExamples` (what an example of a record is, and how a batch is made of them) and a
:class:`StreamDataModule` that makes it; order, workers, ranks and going on are done here.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from omfa.records.prepared import Record, RecordError
from omfa.records.shards import open_records
from omfa.records.stream import Stream, seeded
from omfa.records.worn import clothes

E = TypeVar("E")  # one example
MOST = 65536  # examples in a batch, and processes: beyond it is a slip of the keyboard


class StreamDataset(Protocol):
    """What is streamed: examples of any kind, each a function of (epoch, position), and how a batch is made of them."""

    def __len__(self) -> int:
        """How many there are in an epoch."""

    def __getitem__(self, key: tuple[int, int]) -> Any:
        """The example of (epoch, position)."""

    def collate(self, examples: list[Any]) -> Any:
        """A batch; in a worker torch's ``default_collate`` puts its tensors right into shared memory."""


class RecordExamples(Dataset[E], Generic[E]):
    """Records of a folder as examples; indexed by (epoch, position). Subclasses say what an example is.

    Args:
        folder: a records folder (``omfa.records.prepared``), or one of shards (``omfa.records.shards``).
        split: which records; None for all.
        seed: seeds every draw.

    Raises:
        RecordError: no records with garments there.
    """

    def __init__(self, folder: str | Path, split: str | None = "train", seed: int = 0) -> None:
        self.source, self.seed = open_records(folder), seed
        self.records = [r for r in self.source.records(split) if clothes(r)]
        if not self.records:
            raise RecordError(f"{folder} holds no records of split {split!r} with garments; check metadata.jsonl")

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> E:
        epoch, position = key
        record = self.records[position]
        return self.example(record, seeded(self.seed, epoch, record.id))

    def example(self, record: Record, generator: torch.Generator) -> E:
        """One example of a record; all chance in it comes from ``generator``, which is of (seed, epoch, record)."""
        raise NotImplementedError

    def collate(self, examples: list[E]) -> Any:
        """A batch: a tensor, or a dataclass with tensors in it."""
        raise NotImplementedError


class StreamDataModule(pl.LightningDataModule):
    """An endless stream over a data set that resumes where it stopped. Subclasses make the data set.

    Args:
        batch_size: examples per process and batch.
        workers: loader processes; 0 loads in the training process.
        seed: seeds the order.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(self, batch_size: int, workers: int, seed: int) -> None:
        super().__init__()
        if not 1 <= batch_size <= MOST or not 0 <= workers <= MOST:
            raise ValueError(f"batch_size {batch_size} must be from 1 to {MOST}, workers {workers} from 0 to {MOST}")
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

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move all tensors of a batch, which may be a frozen dataclass; its plain values stay."""
        return moved_to(batch, device)

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
    """A cluster sends SIGTERM to all processes of a job, a console Ctrl-C; the step at hand still needs its loader."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def moved_to(value: Any, device: torch.device) -> Any:
    """The same value with every tensor in it on ``device``: in mappings, lists, tuples and fields."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {k: moved_to(v, device) for k, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a NamedTuple
        return type(value)(*(moved_to(v, device) for v in value))
    if type(value) in (list, tuple):
        return type(value)(moved_to(v, device) for v in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: moved_to(getattr(value, f.name), device) for f in fields(value) if f.init})
    return value
