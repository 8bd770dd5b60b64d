"""Sampling: from noise on the targets to clean latents, with everything given untouched.

``B`` batch, ``C`` latent channels, ``h w`` latents.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from omfa.partial_diffusion import network_latents, start, step

STEPS, GUIDANCE = 50, 2.0  # the paper's; a model's config may say others (default_steps, default_guidance)

Predict = Callable[[Tensor, Tensor], Tensor]
"""What the network sees (B, C, h, w) and the timestep to its (guided) prediction (B, C, h, w)."""


def denoise(
    scheduler: Any,
    predict: Predict,
    noise: Tensor,
    target: Tensor,
    clean: Tensor,
    after: Callable[[int, Tensor, Tensor], tuple[Tensor, bool]],
    **options: Any,
) -> Tensor:
    """Every step of a scheduler, on the targets alone.

    Args:
        scheduler: one that :func:`omfa.partial_diffusion.check_scheduler` takes, its timesteps set.
        predict: the network.
        noise: standard normal (B, C, h, w).
        target: (B, 1, h, w) bool.
        clean: latents of what is given (B, C, h, w), zero elsewhere.
        after: called with the number, the timestep and the state of each step; gives the state to go on with, perhaps
            changed, and whether to stop there.
        options: ``generator`` and ``eta``, handed on where the scheduler's step takes them.

    Returns:
        (B, C, h, w): made on the targets, ``clean`` bit by bit elsewhere.

    Raises:
        ValueError: ``after`` gives a state of another shape.
    """
    options = {k: v for k, v in options.items() if k in inspect.signature(scheduler.step).parameters}
    x = start(scheduler, noise, target)
    for i, t in enumerate(scheduler.timesteps):
        prediction = predict(network_latents(scheduler, x, t, target, clean), t)
        x = step(scheduler, prediction.float(), t, x, target, **options)
        changed, stop = after(i, t, x)
        if changed.shape != x.shape:
            raise ValueError(f"the callback returned latents {tuple(changed.shape)}; {tuple(x.shape)} it got")
        x = torch.where(target, changed, 0.0)
        if stop:
            break
    return torch.where(target, x, clean)
