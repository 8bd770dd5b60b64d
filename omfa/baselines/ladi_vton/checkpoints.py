"""The published files into these networks: read without running anything in them, and strictly.

    unet_{d}.pth  emasc_{d}.pth  inversion_adapter_{d}.pth  warping_{d}.pth ({"tps": ..., "refinement": ...})

where d is ``vitonhd`` or ``dresscode``: https://github.com/miccunifi/ladi-vton, release "weights".
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn

from omfa.baselines.ladi_vton.emasc import EMASC
from omfa.baselines.ladi_vton.inversion import InversionAdapter
from omfa.baselines.ladi_vton.refinement import Refinement
from omfa.baselines.ladi_vton.warping import TPSWarping

PREFIXES = ("module.", "_orig_mod.")
INPAINTING = 9  # input channels of Stable Diffusion 2's inpainting network
CONDITIONED = 31, 27  # as published, and without the garment's latent
SD2_UNET: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
    "sample_size": 64,
}
"""stabilityai/stable-diffusion-2-inpainting's UNet, whatever its input channels."""


class Refused(ValueError):
    """A file that is not what it should be; one line says what was found and what would work."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.pth`` or ``.safetensors`` file, prefixes of parallel or compiled training removed.

    Raises:
        Refused: missing, damaged, holding more than tensors, or no state dict.
    """
    return tensors(_read(path), str(path))


def tensors(found: Any, name: str) -> dict[str, Tensor]:
    """A state dict, checked to be one, prefixes removed; errors as :func:`read_weights`."""
    if not isinstance(found, Mapping) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        raise Refused(f"{name}: no state dict (names to tensors); give a file of the official release")
    plain = {}
    for key, value in found.items():
        key = str(key)
        while key.startswith(PREFIXES):
            key = key.split(".", 1)[1]
        plain[key] = value
    return plain


def _read(path: Path) -> Any:
    if not path.is_file():
        raise Refused(f"{path}: no such file; get it from https://github.com/miccunifi/ladi-vton, release 'weights'")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # unpicklers raise almost anything; torch's own message advises what must not be done
        raise Refused(f"{path}: damaged, or holds more than weights ({type(e).__name__}); it was not loaded") from None


def fill(network: nn.Module, weights: Mapping[str, Tensor], name: str) -> None:
    """Load strictly.

    Raises:
        Refused: names the first weight that is missing, too much, of another shape or not finite.
    """
    wanted = network.state_dict()
    for key in {**wanted, **weights}:
        here, there = (tuple(x[key].shape) if key in x else None for x in (wanted, weights))
        if here != there:
            raise Refused(f"{name}: {key} is {there or 'missing'}, the network has {here or 'no such weight'}")
        if not weights[key].isfinite().all():
            raise Refused(f"{name}: {key} holds NaN or infinity; get the file again")
    network.load_state_dict(dict(weights), strict=True)


def load_warping(path: Path) -> tuple[TPSWarping, Refinement]:
    """``warping_{d}.pth``.

    Raises:
        Refused: as :func:`fill` and :func:`read_weights` say.
    """
    found = _read(path)
    if not isinstance(found, Mapping) or set(found) != {"tps", "refinement"}:
        there = ", ".join(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
        raise Refused(f"{path}: holds {there[:80]}; a warping file holds 'tps' and 'refinement'")
    tps, refinement = TPSWarping(), Refinement()
    fill(tps, tensors(found["tps"], f"{path} (tps)"), f"{path} (tps)")
    fill(refinement, tensors(found["refinement"], f"{path} (refinement)"), f"{path} (refinement)")
    return tps.eval(), refinement.eval()


def load_emasc(path: Path) -> EMASC:
    """``emasc_{d}.pth``, of either kind; errors as :func:`load_warping`."""
    weights = read_weights(path)
    network = EMASC(kind="nonlinear" if "conv.0.0.weight" in weights else "linear")
    fill(network, weights, str(path))
    return network.eval()


def load_inversion_adapter(path: Path) -> InversionAdapter:
    """``inversion_adapter_{d}.pth``; errors as :func:`load_warping`."""
    network = InversionAdapter()
    fill(network, read_weights(path), str(path))
    return network.eval()


def load_unet(path: Path) -> UNet2DConditionModel:
    """``unet_{d}.pth``, with the garment's channels (31) or without (27); errors as :func:`load_warping`."""
    weights = read_weights(path)
    first = weights.get("conv_in.weight")
    channels = first.shape[1] if first is not None and first.ndim == 4 else 0
    if channels not in CONDITIONED:
        raise Refused(f"{path}: conv_in.weight has {channels or 'no'} input channels; LaDI-VTON's has 31 or 27")
    network = UNet2DConditionModel(**SD2_UNET, in_channels=channels)
    fill(network, weights, str(path))
    return network.eval()


@torch.no_grad()
def widen(unet: UNet2DConditionModel, channels: int = CONDITIONED[0]) -> UNet2DConditionModel:
    """Widen an inpainting network in place: new input channels start at zero, so that at first it computes as before.

    Args:
        unet: with nine input channels.
        channels: of the result.

    Returns:
        The same object; its config names the new count.

    Raises:
        ValueError: another number of input channels.
    """
    old = unet.conv_in
    if old.in_channels != INPAINTING or channels < INPAINTING:
        raise ValueError(
            f"a UNet of {old.in_channels} channels to {channels}: give an inpainting network, of 9 channels"
        )
    like = {"device": old.weight.device, "dtype": old.weight.dtype}
    wide = nn.Conv2d(channels, old.out_channels, old.kernel_size, old.stride, old.padding, **like)
    wide.weight.zero_()
    wide.weight[:, :INPAINTING] = old.weight
    wide.bias = old.bias
    unet.conv_in = wide
    unet.register_to_config(in_channels=channels)
    return unet
