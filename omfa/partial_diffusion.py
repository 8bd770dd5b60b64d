"""Partial diffusion: noise the targets, keep what is given clean, count the loss on the targets, step only the targets.

    z_t  = m (sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps) + (1 - m) z_0                                   (forward)
    L    = mean over examples of  sum(m w (goal - prediction)^2) / sum(m)                              (loss)
    z0^  = (z_t - sqrt(1 - abar_t) eps_theta) / sqrt(abar_t)  on targets,  z_0  elsewhere              (Tweedie)

OMFA, arXiv 2508.04559; v-prediction: Salimans & Ho 2022, arXiv 2202.00512. ``B`` batch, ``C`` latent channels, ``h w``
latents of the canvas. ``target`` is m: (B, 1, h, w) bool. ``alpha_bar`` is abar_t: (B,) in [0, 1].
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from diffusers import DDIMScheduler
from torch import Tensor

Prediction = Literal["epsilon", "v_prediction"]

SCHEDULERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)
"""diffusers' schedulers that work here, each tested with both prediction types."""


def ddim(**options: Any) -> DDIMScheduler:
    """DDIM over Stable Diffusion's noise levels, which are SDXL's too; latents are never clipped.

    Args:
        options: what else diffusers' scheduler takes.
    """
    levels = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return DDIMScheduler(**levels, clip_sample=False, **options)


def _wide(alpha_bar: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(abar), sqrt(1 - abar) as (B, 1, 1, 1)."""
    a = alpha_bar.to(like)[:, None, None, None]
    return a.sqrt(), (1 - a).sqrt()


def add_noise(z0: Tensor, noise: Tensor, alpha_bar: Tensor, target: Tensor) -> Tensor:
    """The forward process: noise on the targets, everything else untouched.

    Args:
        z0: clean latents (B, C, h, w).
        noise: standard normal, same shape.
        alpha_bar: (B,).
        target: (B, 1, h, w) bool.

    Returns:
        z_t (B, C, h, w); outside the targets equal to ``z0`` bit by bit.
    """
    signal, spread = _wide(alpha_bar, z0)
    return torch.where(target, signal * z0 + spread * noise, z0)


def training_goal(z0: Tensor, noise: Tensor, alpha_bar: Tensor, kind: Prediction) -> Tensor:
    """What the network should predict: eps, or v = sqrt(abar) eps - sqrt(1 - abar) z_0. (B, C, h, w)."""
    if kind == "epsilon":
        return noise
    signal, spread = _wide(alpha_bar, z0)
    return signal * noise - spread * z0


def tweedie(z_t: Tensor, prediction: Tensor, alpha_bar: Tensor, target: Tensor, z0: Tensor, kind: Prediction) -> Tensor:
    """The clean latents that a prediction implies: Tweedie's formula on the targets, ``z0`` elsewhere. (B, C, h, w).

    With epsilon and abar = 0 the formula divides by zero; :func:`check_scheduler` refuses that schedule.
    """
    signal, spread = _wide(alpha_bar, z_t)
    clean = (z_t - spread * prediction) / signal if kind == "epsilon" else signal * z_t - spread * prediction
    return torch.where(target, clean, z0)


def min_snr_weight(alpha_bar: Tensor, gamma: float, kind: Prediction) -> Tensor:
    """Min-SNR-gamma loss weight (Hang et al. 2023, arXiv 2303.09556), finite at SNR 0 and infinity. (B,).

    epsilon: min(SNR, gamma) / SNR;  v: min(SNR, gamma) / (SNR + 1),  SNR = abar / (1 - abar).
    """
    snr = alpha_bar / (1 - alpha_bar)
    if kind == "epsilon":
        return torch.where(snr > gamma, gamma * (1 - alpha_bar) / alpha_bar.clamp(min=1e-20), 1.0)
    return torch.where(snr > gamma, gamma * (1 - alpha_bar), alpha_bar)


def loss(prediction: Tensor, goal: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Squared error averaged over each example's own target area, then over the examples.

    An example's loss does not depend on who shares its batch, and its gradient is exactly zero outside the targets.

    Args:
        prediction: (B, C, h, w).
        goal: (B, C, h, w), from :func:`training_goal`.
        target: (B, 1, h, w) bool; every example has some target.
        weight: (B,) or None.

    Returns:
        Per-example losses (B,) in float32; take their mean.
    """
    error = torch.where(target, prediction.float() - goal.float(), 0.0).square()
    losses = error.sum((1, 2, 3)) / (target.sum((1, 2, 3)) * prediction.shape[1])
    return losses if weight is None else losses * weight


def check_scheduler(scheduler: Any) -> Prediction:
    """The scheduler's prediction type, if partial diffusion can use the scheduler.

    Raises:
        ValueError: a scheduler that is not in ``SCHEDULERS``, that can't hold the model's zero-terminal-SNR betas, that
            clips or thresholds latents, or epsilon prediction with zero terminal SNR (a division by zero).
    """
    name, config = type(scheduler).__name__, scheduler.config
    if name not in SCHEDULERS:
        raise ValueError(f"{name} is not supported; use one of {', '.join(SCHEDULERS)}")
    kind = config.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction"):
        raise ValueError(f"prediction_type {kind!r} is not supported; use 'epsilon' or 'v_prediction'")
    terminal = float(scheduler.alphas_cumprod[-1])
    wants_zero = bool(config.get("rescale_betas_zero_snr"))
    if kind == "epsilon" and (wants_zero or terminal < 1e-6):
        raise ValueError("epsilon prediction divides by zero at zero terminal SNR; use prediction_type='v_prediction'")
    if wants_zero and terminal > 1e-6:
        raise ValueError(
            f"{name} can't hold this model's betas with zero terminal SNR; use DDIM, DDPM, Euler, EulerAncestral, "
            "DPMSolverMultistep, UniPC, or LCM for distilled models"
        )
    for trap in ("clip_sample", "thresholding"):
        if config.get(trap):
            raise ValueError(
                f"{name} has {trap}=True, which damages latents; load it with from_config(..., {trap}=False)"
            )
    return cast(Prediction, kind)


def start(scheduler: Any, noise: Tensor, target: Tensor) -> Tensor:
    """The state before the first step: noise on the targets, zero elsewhere. (B, C, h, w)."""
    return torch.where(target, noise * scheduler.init_noise_sigma, 0.0)


def network_latents(scheduler: Any, x: Tensor, t: Tensor, target: Tensor, clean: Tensor) -> Tensor:
    """What the network sees: the scheduler's scaled state on targets, the clean latents elsewhere. (B, C, h, w)."""
    return torch.where(target, scheduler.scale_model_input(x, t).to(clean.dtype), clean)


def step(scheduler: Any, prediction: Tensor, t: Tensor, x: Tensor, target: Tensor, **options: Any) -> Tensor:
    """One scheduler step on the targets; the state stays zero elsewhere. (B, C, h, w).

    Args:
        scheduler: one that :func:`check_scheduler` takes, with its timesteps set.
        prediction: the network's output (B, C, h, w).
        t: the scheduler's timestep.
        x: the state (B, C, h, w).
        target: (B, 1, h, w) bool.
        options: ``generator`` and ``eta``, where the scheduler's step takes them.
    """
    return torch.where(target, scheduler.step(prediction, t, x, **options).prev_sample, 0.0)
