"""The average of the weights, which is what a run leaves behind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from omfa.training.zero import Divides, trained


class EMA(pl.Callback):
    """An exponential moving average of all trained weights, in float32; saved and resumed with the run.

    Under ZeRO (:class:`omfa.training.zero.Divides`) every process averages its own part of the float32 weights, and the
    whole is gathered where it is needed.

    Args:
        decay: of the average; warmed up as (1 + n) / (10 + n) so that the first steps don't linger.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA decay {decay} must be in [0, 1)")
        self.decay, self.updates = decay, 0
        self.weights: dict[str, Tensor] = {}  # by name, or this process's parts by number
        self._zero: Divides | None = None
        self._writes = True  # this process writes checkpoints

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Start from the weights as they are, unless a checkpoint brought its own."""
        self._zero = trainer.strategy if isinstance(trainer.strategy, Divides) else None
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
    return trainer.strategy.gather() if isinstance(trainer.strategy, Divides) else dict(trained(pl_module))


@contextmanager
def lent(pl_module: Any, weights: Mapping[str, Tensor], cast: bool) -> Iterator[None]:
    """Other weights in the model, for the length of a ``with`` block.

    Args:
        pl_module: whose trained parameters point to ``weights`` meanwhile.
        weights: by name, all of them.
        cast: bring them to each parameter's device and dtype; otherwise they come as they are.
    """
    own = [(name, p, p.data) for name, p in trained(pl_module)]
    try:
        for name, p, _ in own:
            value = weights[name].to(p) if cast else weights[name].detach()
            if isinstance(p, DTensor):  # it can't point to anything whole
                _set(pl_module, name, nn.Parameter(value))
            else:
                p.data = value
        torch.clear_autocast_cache()  # autocast knows a cast weight by its parameter, whatever that points to by now
        yield
    finally:
        for name, p, data in own:
            if isinstance(p, DTensor):
                _set(pl_module, name, p)
            else:
                p.data = data
        torch.clear_autocast_cache()


def _set(module: nn.Module, name: str, p: nn.Parameter) -> None:
    """Another parameter by the name of one."""
    owner, _, last = name.rpartition(".")
    setattr(module.get_submodule(owner), last, p)
