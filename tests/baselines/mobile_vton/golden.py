"""Numbers that the original modules gave for weights and inputs of the rule, and how they are compared."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from omfa.baselines.mobile_vton.decoder import SmallDecoder
from omfa.baselines.mobile_vton.light_unet import LightUNet
from tests.baselines.mobile_vton.rule import weights

FOLDER = Path(__file__).parent.parent / "golden"
TIGHT, LOOSE = 1e-5, 1e-4  # absolute and relative; loose for deep networks and loops
ADAPTER = {"width": 24, "depth": 2, "heads": 3, "head_width": 8, "queries": 4, "in_width": 20}


@cache
def numbers(name: str) -> dict[str, Tensor]:
    """The tensors of a golden file."""
    return load_file(FOLDER / f"{name}.safetensors")


@cache
def notes(name: str) -> dict[str, Any]:
    """The metadata of a golden file, parsed."""
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        return {k: json.loads(v) for k, v in file.metadata().items() if v[:1] in "{["}


def keys(name: str) -> dict[str, Any]:
    """A list of keys and shapes of a full-size network, with its config."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def filled(module: nn.Module, prefix: str, shapes: dict[str, list[int]]) -> nn.Module:
    """The module with the rule's weights; its names and shapes must be the originals'."""
    own = {k: list(v.shape) for k, v in module.state_dict().items()}
    assert own == shapes
    tables = {k: v for k, v in module.state_dict().items() if k.startswith("reso")}
    module.load_state_dict({**weights(prefix, shapes), **tables})
    return module.eval()


def compare(made: Tensor, wanted: Tensor, tolerance: float = TIGHT) -> float:
    """Fails beyond the tolerance; else the largest difference."""
    torch.testing.assert_close(made, wanted, atol=tolerance, rtol=tolerance)
    return float((made - wanted).abs().max()) if made.numel() else 0.0


@cache
def pair() -> tuple[LightUNet, LightUNet]:
    """The tiny GarmentNet and TryonNet."""
    about = notes("mobile_pair")
    garment, tryon = LightUNet(**about["garmentnet_config"]), LightUNet(**about["tryonnet_config"], adapter=ADAPTER)
    filled(garment, "mob.garmentnet", about["garmentnet_shapes"])
    filled(tryon, "mob.tryonnet", about["tryonnet_shapes"])
    return garment, tryon


@cache
def decoder(name: str) -> SmallDecoder:
    """One of the tiny decoders, "decoder_a" or "decoder_b"."""
    about = notes("mobile_decoder")
    made = SmallDecoder(**about[name])
    filled(made, f"mob.{name}", about[f"{name}_shapes"])
    return made
