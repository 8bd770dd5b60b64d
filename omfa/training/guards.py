"""A stop when the loss blows up, with the batch that did it written down."""

from __future__ import annotations

import json
import os
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from omfa.components import Category, State, TaskKind
from omfa.conditioning import Layout
from omfa.training.examples import Example
from omfa.training.zero import ZeRO, trained


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
        whole = strategy.gather() if isinstance(strategy, ZeRO) else dict(trained(pl_module))
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


def save_batch(path: Path, batch: Example | Tensor, about: Mapping[str, Any]) -> None:
    """Write a training batch as ``path.safetensors`` (all tensors) and ``path.json`` (all else, and ``about``)."""
    values: dict[str, Any] = (
        {"batch": batch} if isinstance(batch, Tensor) else {f.name: getattr(batch, f.name) for f in fields(batch)}
    )
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for name, value in values.items():
        if name == "pixels":
            tensors |= {f"pixels/{slot}": v for slot, v in value.items()}
        elif isinstance(value, Tensor):
            tensors[name] = value
        else:
            plain[name] = [asdict(layout) for layout in value] if name == "layout" else value
    save_file({k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}, f"{path}.safetensors")
    part = Path(f"{path}.json.part")
    text = json.dumps({**about, "batch": plain}, indent=1, default=lambda value: {"hex": value.hex()})
    part.write_text(text + "\n")
    os.replace(part, f"{path}.json")


def load_batch(path: str | Path) -> Example | Tensor:
    """Read a batch of a stopped run, for ``module.losses`` (or a VAE's ``training_step``) to make its loss again.

    Args:
        path: like ``runs/x/stopped/step=7/batch-0``; the weights lie beside it, for ``load_state_dict(strict=False)``.
    """
    tensors: dict[str, Any] = load_file(f"{path}.safetensors")
    if "batch" in tensors:
        return tensors["batch"]
    text = Path(f"{path}.json").read_text()
    plain = json.loads(text, object_hook=lambda x: bytes.fromhex(x["hex"]) if set(x) == {"hex"} else x)["batch"]
    pixels = {name.split("/")[1]: tensors.pop(name) for name in list(tensors) if name.startswith("pixels/")}
    layouts = [
        Layout(
            TaskKind(x["kind"]),
            {slot: State(s) for slot, s in x["states"].items()},
            {slot: Category(c) for slot, c in x["categories"].items()},
            x["caption"],
            x["prompted"],
        )
        for x in plain.pop("layout")
    ]
    return Example(**plain, **tensors, layout=layouts, pixels=pixels)
