"""The network and its eyes: diffusers' UNet widened for the canvas, diffusers' VAE from pixels to latents and back.

Input channels of the UNet, for a VAE of C latent channels: z_t (C) | target mask (1) | known latents (C) | pose (C).
The first 2C + 1 stand in SDXL-inpainting's order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from omfa.weights import finite


def input_channels(latent_channels: int) -> int:
    """Channels of the UNet's input: z_t, mask, known latents, pose."""
    return latent_channels + 1 + latent_channels + latent_channels


def canvas_multiple(unet: UNet2DConditionModel) -> int:
    """What each side of a slot must be divisible by: 2 ** (levels - 1)."""
    return 2 ** (len(unet.config.block_out_channels) - 1)


def widen_unet(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Widen ``conv_in`` in place from C (text-to-image) or 2C + 1 (inpainting) channels; new channels start at zero.

    A freshly widened network computes what the original did. The surgery is recorded in the config: ``in_channels`` is
    the new count and ``_widened_from`` the old one. A network that is wide enough already comes back as it is.

    Args:
        unet: C output channels and C, 2C + 1 or 3C + 1 input channels.

    Returns:
        The same object.

    Raises:
        ValueError: another number of input channels.
    """
    c, old = unet.config.out_channels, unet.config.in_channels
    new = input_channels(c)
    if old == new:
        return unet
    if old not in (c, 2 * c + 1):
        raise ValueError(
            f"the UNet takes {old} channels; give one with {c} (text-to-image), {2 * c + 1} (inpainting) or {new}"
        )
    conv = unet.conv_in
    like = {"device": conv.weight.device, "dtype": conv.weight.dtype}
    wide = torch.nn.Conv2d(new, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, **like)
    with torch.no_grad():
        wide.weight.zero_()
        wide.weight[:, :old] = conv.weight
        if wide.bias is not None and conv.bias is not None:
            wide.bias.copy_(conv.bias)
    unet.conv_in = wide
    unet.register_to_config(in_channels=new, _widened_from=old)
    return unet


def vae_factor(vae: AutoencoderKL) -> int:
    """Pixels per latent on a side (8 for SDXL)."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


@contextmanager
def steady(vae: AutoencoderKL, device: torch.device) -> Iterator[None]:
    """No float16 for a VAE whose config says ``force_upcast``: SDXL's own overflows there, to black pictures or NaN.

    It is then brought to float32 for good, and no autocast reaches it. The fp16-fix VAE says otherwise: left alone.
    """
    if vae.config.force_upcast:
        if vae.dtype == torch.float16:
            vae.to(torch.float32)
        with torch.autocast(device.type, enabled=False):
            yield
    else:
        yield


def posterior(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] -> mean and log-variance of the latents, (B, 2C, H/f, W/f), in the VAE's dtype.

    Each picture alone, and before ``scaling_factor``: this is what ``omfa.encode`` keeps.
    """
    with steady(vae, pixels.device):
        return vae.encode(pixels.to(vae.dtype)).latent_dist.parameters


def latents_from(moments: Tensor, noise: Tensor | None, scaling_factor: float) -> Tensor:
    """Mean and log-variance (B, 2C, h, w) -> latents (B, C, h, w) times ``scaling_factor``, float32.

    Args:
        moments: of :func:`posterior`.
        noise: standard normal (B, C, h, w) for a sample (targets); None for the mode (given).
        scaling_factor: the VAE's.
    """
    distribution = DiagonalGaussianDistribution(moments.float())
    latents = distribution.mode() if noise is None else distribution.mean + distribution.std * noise.to(moments.device)
    return latents * scaling_factor


def encode(vae: AutoencoderKL, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
    """Pixels -> latents, each picture alone: :func:`posterior` and :func:`latents_from`. Undone by :func:`decode`."""
    return latents_from(posterior(vae, pixels), noise, vae.config.scaling_factor)


def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Latents -> pixels (B, 3, H, W) in [-1, 1], float32. Undoes :func:`encode` as far as the VAE can.

    Raises:
        ValueError: NaN or infinity came of them.
    """
    with steady(vae, latents.device):
        pixels = vae.decode((latents / vae.config.scaling_factor).to(vae.dtype), return_dict=False)[0]
    return finite(pixels).float().clamp(-1, 1)


def fingerprint(*parts: torch.nn.Module, dtype: torch.dtype = torch.float32) -> str:
    """16 hex digits that change with any weight: what one VAE or text encoder made is nothing to another.

    Args:
        parts: networks.
        dtype: weights are rounded to it first. In float16 a network and its half-precision files are one, and SDXL's
            UNet takes half the time.
    """
    digest = hashlib.sha256()
    for part in parts:
        for name, tensor in sorted(part.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().to("cpu", dtype).contiguous().numpy())
    return digest.hexdigest()[:16]
