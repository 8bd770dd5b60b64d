"""From noise to a dressed person: 28 steps of flow matching, garment features anew in each, guidance.

``B`` examples, ``C`` = 16 latent channels, ``h w`` latents of a picture. The network sees two pictures, one above the
other (B, C, 2h, w): the person and the garment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from omfa.baselines.mobile_vton.light_unet import LightUNet

STEPS, GUIDANCE, SHIFT = 28, 2.5, 3.0


@dataclass(frozen=True)
class Given:
    """All that a sample is made from, encoded.

    Args:
        person, garment: latents (B, C, h, w), shifted and scaled.
        text, negative: contexts for TryonNet (B, M, D).
        garment_text: context for GarmentNet (B, M, D).
        features, no_features: of the garment's picture and of a picture of zeros (B, P, F), from the image encoder.

    Raises:
        ValueError: latents of different shapes.
    """

    person: Tensor
    garment: Tensor
    text: Tensor
    negative: Tensor
    garment_text: Tensor
    features: Tensor
    no_features: Tensor

    def __post_init__(self) -> None:
        if self.person.shape != self.garment.shape:
            raise ValueError(
                f"latents of person {tuple(self.person.shape)} and garment {tuple(self.garment.shape)} differ: fit "
                "both pictures to one size"
            )

    @property
    def seen(self) -> Tensor:
        """Person above garment (B, C, 2h, w)."""
        return torch.cat([self.person, self.garment], 2)


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """The published one: 1,000 steps, shift 3."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=SHIFT)


def doubled(features: tuple[Tensor, ...]) -> list[Tensor]:
    """GarmentNet's features for the tokens of two pictures, one above the other."""
    return [torch.cat([f, f], 1) for f in features]


def sample(
    tryon: LightUNet,
    garment: LightUNet,
    given: Given,
    noise: Tensor,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    progress: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Latents (B, C, h, w) of the person in the garment.

    Args:
        tryon, garment: the networks.
        given: what is given.
        noise: standard normal (B, C, h, w); both halves begin with it.
        steps: of the sampler.
        guidance: how far to go from the unconditional prediction; 1 or less for the conditional one alone.
        progress: called after each step with its number and both halves' latents.
    """
    steps_ = scheduler()
    steps_.set_timesteps(steps, device=noise.device)
    x, seen, guided = torch.cat([noise, noise], 2), given.seen, guidance > 1
    context = torch.cat([given.text, tryon.image_tokens(given.features)], 1)
    if guided:
        without = torch.cat([given.negative, tryon.image_tokens(given.no_features)], 1)
        context = torch.cat([without, context])
        seen = torch.cat([seen, seen])
    for i, t in enumerate(steps_.timesteps):
        worn = doubled(garment(given.garment, t[None], given.garment_text).features)
        if guided:
            worn = [torch.cat([torch.zeros_like(f), f]) for f in worn]
        state = torch.cat([x, x]) if guided else x
        velocity = tryon(torch.cat([state, seen], 1), t[None], context, worn).sample
        if guided:
            base, towards = velocity.chunk(2)
            velocity = base + guidance * (towards - base)
        x = steps_.step(velocity, t, x, return_dict=False)[0]
        if progress is not None:
            progress(i, x)
    return x[:, :, : noise.shape[2]]
