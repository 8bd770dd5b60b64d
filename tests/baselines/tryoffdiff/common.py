"""What these tests share: the golden numbers, and the tiny networks that made them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from omfa.baselines.tryoffdiff.networks import ImageAdapter, Version, make_adapter, make_unet
from tests.baselines import rule

GOLDEN = Path(__file__).parent.parent / "golden"
PREFIXES: dict[Version, str] = {"v1": "tod.v1", "v2": "tod.v2single", "mgt": "tod.v2multi"}


@cache
def golden(name: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"tryoffdiff_{name}.safetensors")


@cache
def unet_config() -> dict[str, Any]:
    with safe_open(GOLDEN / "tryoffdiff_adapters.safetensors", "pt") as file:
        return json.loads(file.metadata()["unet_config"])


def networks(version: Version) -> tuple[UNet2DConditionModel, ImageAdapter]:
    """The tiny UNet and the full adapter with the rule's weights, ready to infer."""
    unet, adapter = make_unet(version, unet_config()).eval(), make_adapter(version).eval()
    rule.fill(unet, PREFIXES[version], inside="unet.")
    rule.fill(adapter, PREFIXES[version])
    return unet, adapter


def largest(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, in units of 1 or of the true value where that is larger."""
    assert ours.shape == theirs.shape
    return float(((ours - theirs).abs() / theirs.abs().clamp(min=1)).max())


def official_keys(version: Version) -> dict[str, list[int]]:
    keys = json.loads((GOLDEN / f"tryoffdiff_keys_{'v1' if version == 'v1' else 'v2_single'}.json").read_text())
    if version == "mgt":
        extra = json.loads((GOLDEN / "tryoffdiff_keys_v2_multi_extra.json").read_text())
        keys |= extra["only_in_multi"]
    return keys


def siglip_tokens() -> Tensor:
    return rule.uniform("tod:in.siglip", (2, 1024, 768))


def meta_networks(version: Version) -> tuple[UNet2DConditionModel, ImageAdapter]:
    """The full-size networks without memory."""
    with torch.device("meta"):
        return make_unet(version), make_adapter(version)
