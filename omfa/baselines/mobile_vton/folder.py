"""The published folder: which part lies where, and reading each strictly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, CLIPTextModelWithProjection, CLIPTokenizer

from omfa.baselines.mobile_vton.decoder import SmallDecoder
from omfa.baselines.mobile_vton.light_unet import LightUNet
from omfa.baselines.mobile_vton.prompts import PromptBook, TextEncoders
from omfa.weights import read_part

TRYON, GARMENT, DECODER, PROMPTS = "denoiser", "denoiser_garment", "vae_decoder", "prompts.safetensors"
WEIGHTS = "diffusion_pytorch_model.safetensors"
# Settings of diffusers' UNets that a config may also hold, and the only value of each that this network knows.
FIXED: dict[str, Any] = {
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
    "upcast_attention": False,
    "center_input_sample": False,
}


def settings(path: Path, network: type) -> dict[str, Any]:
    """A network's arguments from its JSON file; other keys must be switched off or at their only known value.

    Raises:
        ValueError: no such file, or a key that is on and that the network does not know.
    """
    try:
        config = {k: v for k, v in json.loads(path.read_text()).items() if not k.startswith("_")}
    except (OSError, ValueError, AttributeError) as e:
        raise ValueError(f"{path}: no config of a network ({type(e).__name__}: {e})") from None
    known = set(signature(network).parameters)
    strange = {k: v for k, v in config.items() if k not in known and not (v in (None, False) or FIXED.get(k) == v)}
    if strange:
        raise ValueError(
            f"{path}: {', '.join(f'{k} = {v!r}' for k, v in strange.items())}: {network.__name__} does not know that; "
            f"its settings are {', '.join(sorted(known))}"
        )
    return {k: v for k, v in config.items() if k in known}


def fill(network: torch.nn.Module, weights: Mapping[str, Tensor], where: Path) -> None:
    """Give a network its weights.

    Raises:
        ValueError: a name missing or too much, or another shape.
    """
    try:
        network.load_state_dict(dict(weights), strict=True)
    except RuntimeError as e:
        raise ValueError(f"{where} does not fit its config: {str(e)[:600]}") from None
    network.requires_grad_(False).eval()


def read_light_unet(folder: Path) -> LightUNet:
    """GarmentNet or TryonNet from ``config.json`` and its weights, strictly; errors as above."""
    network = LightUNet(**settings(folder / "config.json", LightUNet))
    fill(network, _tensors(folder / WEIGHTS), folder / WEIGHTS)
    return network


def read_decoder(folder: Path) -> SmallDecoder:
    """The small decoder from ``decoder.json`` and ``decoder.pt`` (or our safetensors), strictly; errors as above."""
    network = SmallDecoder(**settings(folder / SmallDecoder.config_name, SmallDecoder))
    path = next((p for p in (folder / "decoder.pt", folder / WEIGHTS) if p.is_file()), folder / "decoder.pt")
    fill(network, _tensors(path), path)
    return network


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # every kind of damage has an error of its own
        raise ValueError(f"{path}: no weights ({type(e).__name__}: {str(e)[:200]}); fetch the file again") from None


@dataclass(frozen=True)
class Parts:
    """What a folder holds.

    Args:
        tryon, garment: the two networks.
        vae: SD3.5's, for encoding (and decoding where there is no small decoder).
        image_encoder: DINOv2.
        decoder: the small one, or None.
        texts: text encoders, or what they said ahead; None where a folder has neither.
    """

    tryon: LightUNet
    garment: LightUNet
    vae: AutoencoderKL
    image_encoder: Any
    decoder: SmallDecoder | None
    texts: TextEncoders | PromptBook | None

    @classmethod
    def read(cls, folder: str | Path) -> Parts:
        """Everything from a folder of the published layout.

        Raises:
            ValueError: a part is missing or does not fit its config.
        """
        root = Path(folder)
        needed = (TRYON, GARMENT, "vae", "image_encoder")
        missing = [n for n in needed if not (root / n).is_dir()]
        if missing:
            raise ValueError(f"{root} is no Mobile-VTON folder: it lacks {', '.join(missing)} (it holds {needed})")
        texts: TextEncoders | PromptBook | None = None
        if (root / "text_encoder").is_dir():
            names = ("", "_2")
            encoders = [read_part(CLIPTextModelWithProjection, root / f"text_encoder{n}") for n in names]
            texts = TextEncoders(encoders, [CLIPTokenizer.from_pretrained(root / f"tokenizer{n}") for n in names])
        elif (root / PROMPTS).is_file():
            texts = PromptBook.read(root / PROMPTS)
        return cls(
            tryon=read_light_unet(root / TRYON),
            garment=read_light_unet(root / GARMENT),
            vae=read_part(AutoencoderKL, root / "vae").requires_grad_(False).eval(),
            image_encoder=read_part(AutoModel, root / "image_encoder").requires_grad_(False).eval(),
            decoder=read_decoder(root / DECODER) if (root / DECODER).is_dir() else None,
            texts=texts,
        )

    def write(self, folder: Path) -> None:
        """The same layout; the decoder's weights as safetensors."""
        self.tryon.save_pretrained(folder / TRYON)
        self.garment.save_pretrained(folder / GARMENT)
        self.vae.save_pretrained(folder / "vae")
        self.image_encoder.save_pretrained(folder / "image_encoder")
        if self.decoder is not None:
            self.decoder.save_pretrained(folder / DECODER)
        if isinstance(self.texts, PromptBook):
            self.texts.write(folder / PROMPTS)
        elif self.texts is not None:
            for n, encoder, tokenizer in zip(("", "_2"), self.texts.encoders, self.texts.tokenizers, strict=True):
                encoder.save_pretrained(folder / f"text_encoder{n}")
                tokenizer.save_pretrained(folder / f"tokenizer{n}")
