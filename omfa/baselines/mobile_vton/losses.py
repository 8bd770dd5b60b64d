"""The losses of the distillation, each a function of what the networks say (arXiv 2603.00947, section 3).

Flow matching: x_s = (1 - s) x_0 + s e, the velocity is e - x_0, so x_0 = x_s - s velocity.
``B`` examples, ``C`` latent channels, ``h w`` latents.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Weights:
    """How much each loss counts; the paper's are the defaults. 0 leaves a loss out, and what only it needs.

    Args:
        diffusion: TryonNet's error of velocity.
        feature: teacher's scores against those of the student's own samples, for both networks.
        adversarial: for TryonNet.
        consistency: GarmentNet's error of the garment, whatever the time.

    Raises:
        ValueError: one below 0, or all 0.
    """

    diffusion: float = 1.0
    feature: float = 1e-2
    adversarial: float = 5e-3
    consistency: float = 0.5

    def __post_init__(self) -> None:
        values = [getattr(self, f.name) for f in fields(self)]
        if min(values) < 0 or not any(values):
            raise ValueError(f"weights {self} must be at least 0, and not all of them 0")


def shifted(u: Tensor, shift: float = 3.0) -> Tensor:
    """Uniform numbers in [0, 1] to noise levels, as the sampler's schedule spreads them."""
    return shift * u / (1 + (shift - 1) * u)


def _rows(s: Tensor) -> Tensor:
    return s[:, None, None, None]


def noised(x0: Tensor, noise: Tensor, s: Tensor) -> Tensor:
    """x_s of latents (B, C, h, w) at levels s (B)."""
    return (1 - _rows(s)) * x0 + _rows(s) * noise


def clean(x: Tensor, velocity: Tensor, s: Tensor) -> Tensor:
    """x_0 that a velocity says x_s has come from."""
    return x - _rows(s) * velocity


def flow_loss(velocity: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
    """Squared error of the velocity."""
    return F.mse_loss(velocity, noise - x0)


def feature_loss(samples: Tensor, true: Tensor, fake: Tensor) -> Tensor:
    """Moves samples along the difference of the scores of teacher and fake-score network (DMD2, arXiv 2405.14867).

    With score = ((1 - s) x_0 - x_s) / s^2 the difference of scores is that of the two clean pictures, times a factor
    of s alone; DMD2 divides by the teacher's distance instead, so that all noise levels count alike.

    Args:
        samples: the student's (B, C, h, w); the gradient goes here.
        true, fake: what the teacher, and the network that knows the student's samples, take for the clean picture in
            the noised samples.

    Returns:
        A scalar whose gradient by ``samples`` is the normalised (fake - true) over the number of elements.
    """
    distance = (samples.detach() - true).abs().mean((1, 2, 3), keepdim=True).clamp_min(1e-4)
    towards = samples.detach() - (fake - true) / distance
    return 0.5 * F.mse_loss(samples, towards)


def consistency_loss(garments: Tensor, x0: Tensor) -> Tensor:
    """Squared error of GarmentNet's garment at any time against the garment it was given."""
    return F.mse_loss(garments, x0)


def fooling_loss(fake: Tensor) -> Tensor:
    """What the student wants: logits of its samples high."""
    return -fake.mean()


def telling_loss(real: Tensor, fake: Tensor) -> Tensor:
    """What the discriminator wants: hinge, real above 1 and fake below -1."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def telling_accuracy(real: Tensor, fake: Tensor) -> Tensor:
    """How many examples (B, logits) are told apart, by the mean of their logits."""
    return torch.cat([(real.mean(1) > 0).float(), (fake.mean(1) < 0).float()]).mean()
