"""A stop when the loss blows up, with the batch that did it written down."""

from __future__ import annotations

import json
import os
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from omfa.training.zero import Divides, trained

T = TypeVar("T")  # a batch


class BadLoss(RuntimeError):
    """Training stopped because its loss or its weights went wrong; the message says where the evidence lies."""


class LossGuard(pl.Callback):
    """Stops a run, on all processes at once, when its loss is not a number any more or jumps.

    The rule: the loss, averaged over all processes, is not finite, or it is more than ``factor`` times the largest of
    the last ``window`` micro-batches. The largest, not the mean: diffusion losses of small batches differ a
    hundredfold with the timestep, yet a network that learns never leaves the range it was in by an order of magnitude.
    Nothing is judged before ``window`` losses were seen. The check comes before the gradients, so that the weights are
    still those that made the loss; what is judged is that loss, before accumulation divides and float16 scales it.
    Weights and every process's batch go to ``stopped/step=N`` in the run folder, :func:`load_batch` reads a batch back.

    Args:
        factor: what counts as a jump.
        window: how many losses are looked back at.

    Raises:
        ValueError: a factor of 1 or less, or an empty window.
    """

    def __init__(self, factor: float = 10.0, window: int = 200) -> None:
        if factor <= 1 or window < 1:
            raise ValueError(f"factor {factor} must be above 1, window {window} 1 or more")
        self.factor, self.recent = factor, deque[float](maxlen=window)
        self._batch: Any = None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Keep hold of the batch."""
        self._batch = batch

    def on_before_backward(self, trainer: pl.Trainer, pl_module: Any, loss: Tensor) -> None:
        """Judge the loss; a bad one is written down and ends the run with :class:`BadLoss`."""
        own = loss.detach().float() * trainer.accumulate_grad_batches  # Lightning has divided by it
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:  # of float16
            own /= scaler.get_scale()
        mean = own.clone()
        if trainer.world_size > 1:
            dist.all_reduce(mean)
        value = float(mean) / trainer.world_size
        full = len(self.recent) == self.recent.maxlen
        if not torch.isfinite(mean) or (full and value > self.factor * max(self.recent)):
            folder = self._write(trainer, pl_module, float(own), value)
            usual = f"lately {statistics.median(self.recent):.3g}" if self.recent else "it was the first one"
            raise BadLoss(
                f"loss {value:.3g} at step {trainer.global_step} ({usual}): batch and weights are in {folder}, "
                "omfa.training.guards.load_batch reads them. Look at those records, or go on with --ckpt_path last and "
                "a lower learning rate"
            )
        self.recent.append(value)

    def _write(self, trainer: pl.Trainer, pl_module: Any, loss: float, mean: float) -> Path:
        folder = Path(trainer.default_root_dir) / "stopped" / f"step={trainer.global_step}"
        folder.mkdir(parents=True, exist_ok=True)
        strategy: Any = trainer.strategy
        whole = strategy.gather() if isinstance(strategy, Divides) else dict(trained(pl_module))
        if trainer.is_global_zero:
            save_file({k: v.detach().cpu().clone() for k, v in whole.items()}, folder / "weights.safetensors")
        about = {
            "loss": loss,
            "loss_of_all_processes": mean,
            "recent": list(self.recent),
            "step": trainer.global_step,
            "precision": str(trainer.precision),
        }
        save_batch(folder / f"batch-{trainer.global_rank}", self._batch, about)
        strategy.barrier()  # nobody leaves, and has the others ended, before everybody has written
        return folder

    def state_dict(self) -> dict[str, Any]:
        """The losses looked back at."""
        return {"recent": list(self.recent)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with a saved run's losses."""
        self.recent.extend(state_dict["recent"])


def save_batch(path: Path, batch: Any, about: Mapping[str, Any]) -> None:
    """Write a training batch as ``path.safetensors`` (all tensors) and ``path.json`` (all else, and ``about``).

    Args:
        path: without a suffix.
        batch: a tensor, or a dataclass or NamedTuple of tensors, plain values, bytes, enums and dataclasses, and
            mappings, lists and tuples of these, as its annotations say.
        about: what else to write down.

    Raises:
        TypeError: a value of another kind.
    """
    tensors: dict[str, Tensor] = {}
    plain = _taken_apart(batch, "batch", tensors)
    save_file({k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}, f"{path}.safetensors")
    part = Path(f"{path}.json.part")
    part.write_text(json.dumps({**about, "batch": plain}, indent=1) + "\n")
    os.replace(part, f"{path}.json")


def load_batch(path: str | Path, kind: type[T]) -> T:
    """Read a batch of a stopped run, for ``module.losses`` (or a VAE's ``training_step``) to make its loss again.

    Args:
        path: like ``runs/x/stopped/step=7/batch-0``; the weights lie beside it, for ``load_state_dict(strict=False)``.
        kind: of the batch: ``Tensor``, or the class it was of, like :class:`omfa.training.examples.Batch`.
    """
    plain = json.loads(Path(f"{path}.json").read_text())["batch"]
    return _put_together(kind, plain, load_file(f"{path}.safetensors"))


def _taken_apart(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """What JSON can say of a value; its tensors go to ``tensors``, by names that stand in their place."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return name
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _taken_apart(getattr(value, f.name), f"{name}/{f.name}", tensors) for f in fields(value)}
    if isinstance(value, tuple) and (names := getattr(value, "_fields", None)):  # a NamedTuple
        value = dict(zip(names, value, strict=True))
    if isinstance(value, Mapping):
        return {str(k): _taken_apart(v, f"{name}/{k}", tensors) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_taken_apart(v, f"{name}/{i}", tensors) for i, v in enumerate(value)]
    if isinstance(value, bytes):
        return value.hex()
    if value is None or isinstance(value, str | int | float):  # enums of strings too
        return value
    raise TypeError(f"{name} is of type {type(value).__name__}: batches are of tensors, plain values, dataclasses")


def _put_together(kind: Any, value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The opposite of :func:`_taken_apart`, by a value's annotated type."""
    if value is None:
        return None
    if kind is Tensor:
        return tensors[value]
    if kind is Any:
        return tensors.get(value, value) if isinstance(value, str) else value
    if is_dataclass(kind) or hasattr(kind, "_fields"):
        hints = get_type_hints(kind)
        return kind(**{name: _put_together(hints[name], v, tensors) for name, v in value.items()})  # type: ignore[operator]
    inner = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        return _put_together(next(k for k in inner if k is not NoneType), value, tensors)
    if isinstance(value, dict):
        return {_put_together(inner[0], k, tensors): _put_together(inner[1], v, tensors) for k, v in value.items()}
    if isinstance(value, list):
        made = [_put_together(inner[0], v, tensors) for v in value]
        return tuple(made) if get_origin(kind) is tuple else made
    return bytes.fromhex(value) if kind is bytes else kind(value)
