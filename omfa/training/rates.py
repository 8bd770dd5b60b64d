"""AdamW and its learning rate, step by step; a run that goes on follows its config."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch


def adamw(
    module: pl.LightningModule, rate: float, weight_decay: float, warmup: int, decay_from: float
) -> dict[str, Any]:
    """AdamW over what is trained, its rate stepped by :func:`rate_at`, as Lightning wants it."""
    trained = [p for p in module.parameters() if p.requires_grad]
    fused = trained[0].is_cuda and module.trainer.precision != "16-mixed"  # fp16's scaler and clipping don't go with it
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=weight_decay, fused=fused or None)
    if fused:  # no scaler here, so Lightning may clip
        optimizer._step_supports_amp_scaling = False
    total = module.trainer.max_steps
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, total, warmup, decay_from))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def follow_config(
    checkpoint: dict[str, Any],
    module: pl.LightningModule,
    rate: float,
    weight_decay: float,
    warmup: int,
    decay_from: float,
) -> None:
    """Put the config's rates in place of a checkpoint's, before they are restored, and say what changes.

    Nothing changes, to the last bit, where the config is the one the checkpoint was made with.
    """
    (group,), (schedule,) = checkpoint["optimizer_states"][0]["param_groups"], checkpoint["lr_schedulers"]
    wanted = {"learning_rate": (group["initial_lr"], rate), "weight_decay": (group["weight_decay"], weight_decay)}
    changes = [f"{name} {old:g} -> {new:g}" for name, (old, new) in wanted.items() if old != new]
    if changes and module.trainer.is_global_zero:
        print(f"from step {checkpoint['global_step']} on: {', '.join(changes)}", flush=True)
    now = rate * rate_at(schedule["last_epoch"], module.trainer.max_steps, warmup, decay_from)
    group.update(lr=now, initial_lr=rate, weight_decay=weight_decay)
    schedule.update(base_lrs=[rate], _last_lr=[now])


def rate_at(step: int, total: int, warmup: int, decay_from: float) -> float:
    """Fraction of the learning rate: up over ``warmup`` steps, down to 0 from ``decay_from * total`` on."""
    rise = min(1.0, (step + 1) / (warmup + 1))
    if decay_from >= 1:
        return rise
    return rise * min(1.0, max(0.0, (total - step) / (total * (1 - decay_from))))
