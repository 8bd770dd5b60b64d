"""Mobile-VTON as graphs that :mod:`omfa.device` runs: both networks, the eye, the VAE's encoder and the decoder.

``h w`` latents of a picture; all sizes are fixed, one example at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kornia
import numpy as np
import torch
from torch import Tensor, nn

from omfa.baselines.mobile_vton.light_unet import PIXELS_PER_LATENT
from omfa.baselines.mobile_vton.pipeline import MEAN, STD, MobileVTON, eye_window
from omfa.baselines.mobile_vton.prompts import LENGTH, NEGATIVE, PLAIN, UNUSED, try_on_phrase
from omfa.baselines.mobile_vton.sampling import GUIDANCE, SHIFT, STEPS, doubled
from omfa.files import write_json
from omfa.graphs.onnx_graph import Numbers, check_numbers, numbered, write_graph


class _Encode(nn.Module):
    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the VAE's own latents."""
        raw = self.vae.encode(pixels).latent_dist
        return raw.mean, raw.std


class _Look(nn.Module):
    """A garment's picture to context tokens; the resize before the eye as products with matrices of this size."""

    rows: Tensor
    columns: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, pipe: MobileVTON, size: Sequence[int]) -> None:
        super().__init__()
        self.eye, self.adapter = pipe.parts.image_encoder, pipe.parts.tryon.encoder_hid_proj
        few, windows = eye_window(size)
        for name, many, made, window in zip(("rows", "columns"), size, few, windows, strict=True):
            weights = _weights(many, made)[window]
            self.register_buffer(name, (weights if name == "rows" else weights.T).contiguous())
        for name, values in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(values)[:, None, None])

    def forward(self, garment: Tensor) -> Tensor:
        pixels = (self.rows @ (garment / 2 + 0.5) @ self.columns).clamp(0, 1)
        return self.adapter(self.eye((pixels - self.mean) / self.std, output_hidden_states=True).hidden_states[-2])


def _weights(many: int, few: int) -> Tensor:
    """(few, many) what :func:`omfa.baselines.mobile_vton.pipeline.for_the_eye` does along one axis."""
    ones = torch.eye(many)[None, :, :, None].expand(-1, -1, -1, 16)  # a channel for each row that is 1
    return kornia.geometry.resize(ones, (few, 16), interpolation="bicubic", antialias=few < many)[0, :, :, 8].T


class _Garment(nn.Module):
    def __init__(self, network: Any, takes: int) -> None:
        super().__init__()
        self.network, self.takes = network, takes

    def forward(self, latents: Tensor, t: Tensor, context: Tensor) -> tuple[Tensor, ...]:
        return self.network(latents, t, context).features[: self.takes]


class Person(nn.Module):
    """TryonNet for one picture: x and what it sees (1, C, 2h, w), t (1), context (1, M, D), garment features."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, seen: Tensor, t: Tensor, context: Tensor, feature: Sequence[Tensor]) -> Tensor:
        """The velocity (1, C, 2h, w)."""
        return self.network(torch.cat([x, seen], 1), t, context, doubled(tuple(feature))).sample


class _Decode(nn.Module):
    def __init__(self, pipe: MobileVTON) -> None:
        super().__init__()
        self.decoder = pipe.parts.vae if pipe.parts.decoder is None else pipe.parts.decoder
        self.small = pipe.parts.decoder is not None

    def forward(self, latents: Tensor) -> Tensor:
        """The VAE's own latents to pixels."""
        return self.decoder(latents) if self.small else self.decoder.decode(latents).sample


@torch.no_grad()
def write_graphs(
    pipe: MobileVTON, folder: Path, numbers: Numbers = "float32", size: Sequence[int] | None = None
) -> None:
    """Write everything into a folder.

    Args:
        pipe: float32, on the CPU; with text encoders, or the plain phrases encoded ahead.
        folder: where to.
        numbers: what to store weights in.
        size: (H, W) of the pictures, multiples of 32; None: the one that the networks hold tables for.

    Raises:
        ValueError: numbers that are not known, or no phrases.
    """
    check_numbers(numbers)
    height, width = pipe.size if size is None else size
    parts = pipe.parts
    channels, c = parts.vae.config.latent_channels, parts.tryon.config.cross_attention_dim
    latents = torch.randn(1, channels, height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)
    pixels, t = torch.rand(1, 3, height, width) * 2 - 1, torch.tensor([500.0])
    context = torch.zeros(1, LENGTH + UNUSED, c)

    tokens = parts.tryon.image_tokens(pipe.features(pixels)[1])
    arrays = {"no_tokens": tokens, "negative": pipe.texts([NEGATIVE]).tokens[0]}
    for category, plain in PLAIN.items():
        arrays[f"text_{category}"] = pipe.texts([try_on_phrase(category, plain)]).tokens[0]
        arrays[f"garment_{category}"] = pipe.texts([plain]).tokens[0]
    kept: dict[str, Any] = {name: a.numpy() for name, a in arrays.items()}
    np.savez(folder / "arrays.npz", **kept)

    def write(name: str, module: nn.Module, inputs: dict[str, Any], outputs: list[str]) -> None:
        write_graph(module, inputs, outputs, folder / f"{name}.onnx", numbers)

    garment = _Garment(parts.garment, parts.tryon.takes)
    features = garment(latents, t, context)
    twice = torch.cat([latents, latents], 2)
    write("encode", _Encode(parts.vae), {"pixels": pixels}, ["mean", "spread"])
    write("look", _Look(pipe, (height, width)), {"garment": pixels}, ["tokens"])
    asked = {"latents": latents, "t": t, "context": context}
    write("garment", garment, asked, numbered("feature", len(features)))
    asked = {"x": twice, "seen": twice, "t": t, "context": torch.cat([context, tokens], 1), "feature": features}
    write("person", Person(parts.tryon), asked, ["velocity"])
    write("decode", _Decode(pipe), {"latents": latents}, ["pixels"])
    about = {
        "kind": "pair", "numbers": numbers, "size": [height, width], "steps": STEPS, "guidance": GUIDANCE,
        "shift": SHIFT, "channels": channels, "pixels_per_latent": PIXELS_PER_LATENT, "context": c,
        "latent_scale": parts.vae.config.scaling_factor, "latent_shift": parts.vae.config.shift_factor or 0.0,
    }  # fmt: skip
    write_json(folder / "device.json", about)
