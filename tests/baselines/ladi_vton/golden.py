"""Numbers of the original modules, and these networks with weights by the rule of ``tests.baselines.rule``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from omfa.baselines.ladi_vton.emasc import EMASC
from tests.baselines.rule import uniform, weight

FOLDER = Path(__file__).parent.parent / "golden"
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
LOOSE = {"atol": 1e-4, "rtol": 1e-4}  # deep networks and loops
BLOCKS = (8, 16, 32, 32)


def read(name: str) -> dict[str, Tensor]:
    return load_file(FOLDER / f"ladi_{name}.safetensors")


def keys(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"ladi_keys_{name}.json").read_text())


def shapes(network: nn.Module) -> dict[str, list[int]]:
    return {k: list(v.shape) for k, v in network.state_dict().items()}


def ruled(name: str, shape: Sequence[int]) -> Tensor:
    """An input of these networks by the rule: values between -1 and 1."""
    return uniform(name, shape, -1, 1)


def fill(network: Any, prefix: str, gain: float = 1.0, rename: str = "") -> Any:
    """Weights by the rule; the spline's buffers are computed and stay."""
    own = network.state_dict()
    kept = {k: v for k, v in own.items() if k.startswith("gridGen.")}
    network.load_state_dict({k: weight(prefix, rename + k, v.shape, gain) for k, v in own.items()} | kept)
    return network.eval()


def tiny_vae() -> AutoencoderKL:
    n = len(BLOCKS)
    vae = AutoencoderKL(
        block_out_channels=BLOCKS,
        layers_per_block=2,
        norm_num_groups=4,
        down_block_types=["DownEncoderBlock2D"] * n,
        up_block_types=["UpDecoderBlock2D"] * n,
    )
    return fill(vae, "ladi.vae")


def tiny_emasc() -> EMASC:
    return fill(EMASC(BLOCKS), "ladi.emasc")


def tiny_text_encoder() -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        hidden_act="gelu",
        bos_token_id=298,
        eos_token_id=2,  # the old meaning: pooled is the state at the largest id
    )
    network = fill(CLIPTextModel(config), "ladi.text", rename="text_model.")
    stored = read("text_overwrite")
    tables = {k.removeprefix("text.text_model."): v for k, v in stored.items() if k.startswith("text.")}
    network.load_state_dict(tables, strict=False)
    return network
