"""AdamW and its learning rate, step by step; a run that goes on follows its config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch


@dataclass(frozen=True)
class Rates:
    """How fast a module learns.

    Args:
        learning_rate: AdamW's, after warm-up.
        weight_decay: AdamW's.
        warmup_steps: steps of linear warm-up.
        decay_from: fraction of all steps after which the rate falls linearly to zero; 1 never.

    Raises:
        ValueError: a number out of range.
    """

    learning_rate: float
    weight_decay: float = 0.01
    warmup_steps: int = 100
    decay_from: float = 1.0

    def __post_init__(self) -> None:
        fits = 0 < self.learning_rate <= 10 and 0 <= self.weight_decay <= 10 and 0 <= self.decay_from <= 1
        if not fits or self.warmup_steps < 0:  # NaN fits nowhere
            raise ValueError(
                f"0 < learning_rate {self.learning_rate} <= 10, 0 <= weight_decay {self.weight_decay} <= 10, "
                f"warmup_steps {self.warmup_steps} >= 0 and 0 <= decay_from {self.decay_from} <= 1 are needed"
            )

    def at(self, step: int, total: int) -> float:
        """Fraction of the learning rate: up over the warm-up, down to 0 from ``decay_from * total`` steps on."""
        rise = min(1.0, (step + 1) / (self.warmup_steps + 1))
        if self.decay_from >= 1:
            return rise
        return rise * min(1.0, max(0.0, (total - step) / (total * (1 - self.decay_from))))

    def adamw(self, module: pl.LightningModule) -> dict[str, Any]:
        """AdamW over what is trained, its rate stepped by :meth:`at`, as ``configure_optimizers`` returns it."""
        trained = [p for p in module.parameters() if p.requires_grad]
        device, scaled = trained[0].device.type, module.trainer.precision == "16-mixed"
        fused = device in ("cuda", "cpu") and not scaled  # fp16's scaler and clipping don't fit it
        optimizer = torch.optim.AdamW(
            trained, lr=self.learning_rate, weight_decay=self.weight_decay, fused=fused or None
        )
        if fused:  # no scaler here, so Lightning may clip
            optimizer._step_supports_amp_scaling = False
        total = module.trainer.max_steps
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.at(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def follow(self, checkpoint: dict[str, Any], module: pl.LightningModule) -> None:
        """Put these rates in place of a checkpoint's, before they are restored, and say what changes.

        Nothing changes, to the last bit, where they are the ones the checkpoint was made with.
        """
        (group,), (schedule,) = checkpoint["optimizer_states"][0]["param_groups"], checkpoint["lr_schedulers"]
        wanted = {
            "learning_rate": (group["initial_lr"], self.learning_rate),
            "weight_decay": (group["weight_decay"], self.weight_decay),
        }
        changes = [f"{name} {old:g} -> {new:g}" for name, (old, new) in wanted.items() if old != new]
        if changes and module.trainer.is_global_zero:
            print(f"from step {checkpoint['global_step']} on: {', '.join(changes)}", flush=True)
        now = self.learning_rate * self.at(schedule["last_epoch"], module.trainer.max_steps)
        group.update(lr=now, initial_lr=self.learning_rate, weight_decay=self.weight_decay)
        schedule.update(base_lrs=[self.learning_rate], _last_lr=[now])
