"""EMASC: what the VAE's encoder sees of the photo outside the mask, handed to its decoder, so that it stays sharp.

LaDI-VTON, arXiv 2305.13501, section 3.3. diffusers' ``AutoencoderKL`` stays as it is: hooks read its encoder and add to
its decoder while a picture is under way. ``B`` batch, ``C`` latent channels, ``H W`` pixels, ``h w`` latents.

Five features, finest first: conv_in's output, then the inputs of the encoder's blocks (the first two are one tensor);
they join the decoder before conv_out, then at the inputs of its blocks, last block first. A VAE of n blocks has n + 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch.nn.functional as F
from diffusers import AutoencoderKL, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

Kind = Literal["nonlinear", "linear"]
SD2 = (128, 256, 512, 512)  # block_out_channels of Stable Diffusion's VAE


class EMASC(ModelMixin, ConfigMixin):
    """One small adapter for each feature.

    Args:
        block_out_channels: the VAE's.
        kind: "nonlinear" (two convolutions with SiLU between them, as published) or "linear" (one, zero at first).

    Raises:
        ValueError: another kind.
    """

    @register_to_config
    def __init__(self, block_out_channels: Sequence[int] = SD2, kind: Kind = "nonlinear") -> None:
        super().__init__()
        if kind not in ("nonlinear", "linear"):
            raise ValueError(f"kind {kind!r} must be 'nonlinear' or 'linear'")
        counts = zip(*feature_channels(block_out_channels), strict=True)
        self.conv = nn.ModuleList(_nonlinear(a, b) if kind == "nonlinear" else _linear(a, b) for a, b in counts)

    def forward(self, features: Sequence[Tensor], mask: Tensor) -> list[Tensor]:
        """What the decoder is to add: adapted features, zero where the photo is repainted.

        Args:
            features: of :func:`encode`, finest first.
            mask: (B, 1, H, W), 1 = repaint.

        Returns:
            One (B, C_i, H_i, W_i) for each feature.
        """
        adapted = []
        for conv, feature in zip(self.conv, features, strict=True):
            mask = F.interpolate(mask, feature.shape[2:])  # nearest, each time from the last one
            adapted.append(conv(feature) * (1 - mask.to(feature.dtype)))
        return adapted


def feature_channels(block_out_channels: Sequence[int]) -> tuple[list[int], list[int]]:
    """Channels of the features as they leave the encoder, and as the decoder wants them, finest first."""
    counts = list(block_out_channels)
    return [counts[0], counts[0], *counts[:-1]], [*counts, counts[-1]]


def _nonlinear(before: int, after: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(before, before, 3, padding=1), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1))


def _linear(before: int, after: int) -> nn.Module:
    conv = nn.Conv2d(before, after, 3, padding=1)
    for values in conv.parameters():
        nn.init.zeros_(values)
    return conv


def encode(vae: AutoencoderKL, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
    """A photo through the encoder.

    Args:
        vae: left as it is.
        pixels: (B, 3, H, W) in [-1, 1].

    Returns:
        Mean and log-variance (B, 2C, h, w), unscaled, and the features, finest first.
    """
    features: list[Tensor] = []
    with ExitStack() as hooks:
        hooks.enter_context(_hooked(vae.encoder.conv_in.register_forward_hook, lambda _m, _i, y: features.append(y)))
        for block in vae.encoder.down_blocks:
            keep: Callable[..., None] = lambda _m, given: features.append(given[0])  # noqa: E731
            hooks.enter_context(_hooked(block.register_forward_pre_hook, keep))
        moments = vae.encode(pixels.to(vae.dtype)).latent_dist.parameters
    return moments, features


def decode(vae: AutoencoderKL, z: Tensor, adapted: Sequence[Tensor]) -> Tensor:
    """Latents to pixels with the photo's features added.

    Args:
        vae: left as it is.
        z: unscaled latents (B, C, h, w).
        adapted: of :class:`EMASC`.

    Returns:
        (B, 3, H, W), about [-1, 1], not clamped.
    """
    places = [vae.decoder.conv_out, *reversed(vae.decoder.up_blocks)]
    with ExitStack() as hooks:
        for place, feature in zip(places, adapted, strict=True):
            hooks.enter_context(_hooked(place.register_forward_pre_hook, _adding(feature)))
        return vae.decode(z.to(vae.dtype), return_dict=False)[0]


def _adding(feature: Tensor) -> Callable[..., Any]:
    return lambda _module, given: (given[0] + feature, *given[1:])


@contextmanager
def _hooked(register: Callable[..., Any], hook: Callable[..., Any]) -> Iterator[None]:
    handle = register(hook)
    try:
        yield
    finally:
        handle.remove()
