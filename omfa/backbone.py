"""The network and its eyes: diffusers' UNet widened for the canvas, diffusers' VAE from pixels to latents and back.

Input channels of the UNet, for a VAE of C latent channels: z_t (C) | target mask (1) | known latents (C) | pose (C).
The first 2C + 1 stand in SDXL-inpainting's order.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor


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
    wide = torch.nn.Conv2d(new, conv.out_channels, conv.kernel_size, conv.stride, conv.padding).to(conv.weight)
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


def encode(vae: AutoencoderKL, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
    """Pixels -> latents, each picture alone.

    Args:
        vae: any AutoencoderKL.
        pixels: (B, 3, H, W) in [-1, 1].
        noise: standard normal (B, C, H/f, W/f) for a sample of the posterior (targets); None for its mode (given).

    Returns:
        (B, C, H/f, W/f) times ``vae.config.scaling_factor``, in the dtype of ``pixels``. Undone by :func:`decode`.
    """
    posterior = vae.encode(pixels.to(vae.dtype)).latent_dist
    latents = posterior.mode() if noise is None else posterior.mean + posterior.std * noise.to(posterior.mean)
    return latents.to(pixels.dtype) * vae.config.scaling_factor


def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Latents -> pixels (B, 3, H, W) in [-1, 1], float32. Undoes :func:`encode` as far as the VAE can."""
    pixels = vae.decode((latents / vae.config.scaling_factor).to(vae.dtype), return_dict=False)[0]
    return pixels.float().clamp(-1, 1)
