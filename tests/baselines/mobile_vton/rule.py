"""Weights and inputs that need not be stored: every number is a function of the tensor's name and its place."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

SQRT3 = math.sqrt(3.0)


def uniform(name: str, count: int) -> np.ndarray:
    """``count`` numbers in [0, 1), float64: SplitMix64 seeded by the first 8 bytes of SHA-256 of the name."""
    seed = np.uint64(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))
    with np.errstate(over="ignore"):
        x = seed + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return (x >> np.uint64(40)).astype(np.float64) / 2**24


def ruled(name: str, shape: Sequence[int], low: float, high: float) -> Tensor:
    """A float32 tensor of the rule, evenly spread over ``low`` to ``high``."""
    values = low + (high - low) * uniform(name, math.prod(shape))
    return torch.from_numpy(values.astype(np.float32)).reshape(*shape)


def weight(name: str, shape: Sequence[int], gain: float = 1.0) -> Tensor:
    """A weight of the rule: +-gain sqrt(3 / fan-in); norms' weights 0.9 to 1.1; everything else +-0.1."""
    if len(shape) > 1:
        bound = gain * math.sqrt(3 / math.prod(shape[1:]))
        return ruled(name, shape, -bound, bound)
    return ruled(name, shape, 0.9, 1.1) if name.endswith(".weight") else ruled(name, shape, -0.1, 0.1)


def weights(prefix: str, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Weights of a whole state dict, all but the RoPE tables, which are computed."""
    return {k: weight(f"{prefix}:{k}", shape) for k, shape in shapes.items() if not k.startswith("reso")}
