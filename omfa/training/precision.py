"""The fastest arithmetic of a processor, found by trying: float32 or bfloat16, attention fused or by plain products.

Processors differ. With matrix units for bfloat16 (``amx_bf16``) plain products in bfloat16 train several times as fast
as float32, and torch's fused attention is slow in the backward pass; without them bfloat16 is emulated, and fused
attention wins. :class:`Fastest` measures on the run's own first batch.

A module's parameters are the float32 masters, always. bfloat16 is lent to a step: its weights are copies rounded from
the masters, through which gradients flow back and arrive in float32. So clipping, AdamW, the average, checkpoints and
saved models see float32 alone, a run resumes exactly, and updates too small for bfloat16 are not lost (mixed precision
with master weights, Micikevicius et al. 2018, arXiv 1710.03740).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from omfa.training.parts import TrainedModule
from omfa.training.zero import Divides, trained
from omfa.tuning import Mismatch

SECONDS, ROUNDS = 10.0, 8  # of a trial, at most; but two rounds at least, for the first one warms up
WORTH = 1.5  # bfloat16 is tried where its matrix product is so many times as fast as float32's


def plain_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """softmax(Q K^T / sqrt(D) + mask) V by two matrix products.

    Args:
        query: (..., L, D); scaled before the product, since there are fewer of it than of scores.
        key, value: (..., S, D).
        attn_mask: broadcast to (..., L, S); bool, False for what must not be read, or added to the scores.
    """
    scores = (query * query.shape[-1] ** -0.5) @ key.mT
    if attn_mask is not None:
        hides = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -torch.inf) if hides else scores + attn_mask
    return scores.softmax(-1) @ value


class PlainProducts(TorchFunctionMode):
    """Within a ``with`` block every attention, whoever asks for it, is :func:`plain_attention`; causal ones are not."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Any function of torch as it is, but one."""
        kwargs = kwargs or {}
        mask = {k: v for k, v in kwargs.items() if k == "attn_mask"}
        if func is F.scaled_dot_product_attention and not any(v for k, v in kwargs.items() if k not in mask):
            return plain_attention(*args, **mask)
        return func(*args, **kwargs)


@contextmanager
def bfloat16_lent(module: nn.Module) -> Iterator[None]:
    """bfloat16 copies in place of all trained weights within a ``with`` block; gradients flow through to the weights.

    Checkpointing, which computes the forward pass again after the block, does not go with it.
    """
    copies = {p: p.to(torch.bfloat16) for _, p in trained(module)}  # a shared weight has one
    own = [(m, name, p) for m in module.modules() for name, p in m._parameters.items() if p in copies]
    try:
        for owner, name, p in own:  # a copy is no parameter, which setattr would ask for
            owner._parameters[name] = copies[p]  # type: ignore[assignment, index]
        yield
    finally:
        for owner, name, p in own:
            owner._parameters[name] = p


@dataclass(frozen=True)
class Arithmetic:
    """How a training step computes.

    Args:
        dtype: of trained weights in it, and of what the network makes with them.
        plain: attention by plain products; torch's fused kernel otherwise.
    """

    dtype: torch.dtype
    plain: bool

    def __str__(self) -> str:
        return f"{str(self.dtype)[6:]}, {'plain products' if self.plain else 'fused attention'}"

    @contextmanager
    def within(self, module: nn.Module) -> Iterator[None]:
        """Forward passes of a module so, within a ``with`` block; backward follows by itself, in it or after it."""
        with (
            bfloat16_lent(module) if self.dtype == torch.bfloat16 else nullcontext(),
            PlainProducts() if self.plain else nullcontext(),
        ):
            yield


CANDIDATES = (Arithmetic(torch.float32, False), Arithmetic(torch.float32, True), Arithmetic(torch.bfloat16, True))


def cpu_seconds(run: Callable[[], object]) -> float:
    """Seconds of CPU time of all threads, so that other work on the machine does not count."""
    began = time.process_time()
    run()
    return time.process_time() - began


def product_rate(dtype: torch.dtype, n: int = 512) -> float:
    """FLOP/s in CPU time of a product of two n x n matrices."""
    a = torch.ones(n, n, dtype=dtype)
    return 2 * n**3 / min(cpu_seconds(lambda: a @ a) for _ in range(3))


def gradients(module: TrainedModule, batch: Any, how: Arithmetic) -> tuple[Tensor | None, ...]:
    """The gradients of a step by all trained weights, which stay as they are, ``grad`` and all."""
    with how.within(module):
        loss = module.losses(batch).mean()
    return torch.autograd.grad(loss, [p for _, p in trained(module)], allow_unused=True)


def trial(module: TrainedModule, batch: Any, seconds: float = SECONDS) -> dict[Arithmetic, float]:
    """CPU seconds of a step, forward and backward, the least of several; of all that may be the fastest.

    Nothing of a run is changed by it: no weight, no gradient, no draw of chance.

    Args:
        module: whose steps.
        batch: as the run has it.
        seconds: of CPU time, after which no third, fourth ... round begins.
    """
    single, half = map(product_rate, (torch.float32, torch.bfloat16))
    hows = [how for how in CANDIDATES if how.dtype == torch.float32 or half > WORTH * single]
    took, began = dict.fromkeys(hows, torch.inf), time.process_time()
    with isolate_rng():
        for done in range(ROUNDS):
            if done >= 2 and time.process_time() - began > seconds:
                break
            for how in hows:
                took[how] = min(took[how], cpu_seconds(partial(gradients, module, batch, how)))
    return took


class Fastest(pl.Callback):
    """Trains on a CPU in the :class:`Arithmetic` that is the fastest there, by a :func:`trial` on the first batch.

    The choice is printed, kept in checkpoints, and a run that goes on keeps it, on any machine. Nothing is tried or
    changed on other devices, under ZeRO, with checkpointing of activations, or where ``trainer.precision`` is set.
    """

    def __init__(self) -> None:
        self.choice: Arithmetic | None = None
        self._chooses = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See whether there is a choice.

        Raises:
            Mismatch: a module whose steps can't be tried.
        """
        if not isinstance(pl_module, TrainedModule):
            raise Mismatch(f"Fastest asks for a TrainedModule, whose losses it times, not {type(pl_module).__name__}")
        plain = trainer.precision == "32-true" and not isinstance(trainer.strategy, Divides)
        twice = any(getattr(m, "gradient_checkpointing", False) for m in pl_module.modules())
        self._chooses = trainer.strategy.root_device.type == "cpu" and plain and not twice

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Choose, before the first step; the first process does for all."""
        if not self._chooses:
            return
        self._chooses = False
        if self.choice is None:
            took = trial(pl_module, batch)
            self.choice = trainer.strategy.broadcast(min(took, key=took.__getitem__))
            if trainer.is_global_zero:
                tried = "; ".join(f"{how} {seconds:.2f}" for how, seconds in took.items())
                print(f"arithmetic: {self.choice} (CPU seconds of a step: {tried})", flush=True)
        plugin: Any = trainer.precision_plugin
        plugin.train_step_context = partial(self.choice.within, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The choice, in words."""
        return {"choice": None if self.choice is None else str(self.choice)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a saved run's choice."""
        self.choice = next((how for how in CANDIDATES if str(how) == state_dict["choice"]), None)
