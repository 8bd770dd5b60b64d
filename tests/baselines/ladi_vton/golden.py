"""Numbers of the original modules, the rule that their weights follow, and these networks filled by it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from omfa.baselines.ladi_vton.emasc import EMASC

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


def uniform(name: str, count: int) -> np.ndarray:
    """``count`` numbers in [0, 1), float64: SplitMix64, seeded by the first 8 bytes of SHA-256 of the name."""
    seed = np.uint64(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))
    with np.errstate(over="ignore"):
        x = seed + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return (x >> np.uint64(40)).astype(np.float64) / 2**24


def ruled(name: str, shape: Sequence[int], low: float = -1, high: float = 1) -> Tensor:
    values = low + (high - low) * uniform(name, math.prod(shape))
    return torch.from_numpy(values.astype(np.float32)).reshape(*shape)


def weight(prefix: str, key: str, shape: Sequence[int], gain: float = 1.0) -> Tensor:
    name, last = f"{prefix}:{key}", key.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return torch.zeros((), dtype=torch.int64)
    if len(shape) > 1:
        bound = gain * math.sqrt(3 / math.prod(shape[1:]))
        return ruled(name, shape, -bound, bound)
    return ruled(name, shape, *{"weight": (0.9, 1.1), "running_var": (0.5, 1.5)}.get(last, (-0.1, 0.1)))


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
