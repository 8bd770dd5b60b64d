"""The rule that gives golden weights and inputs their values, so that they need not be stored.

Element i of a tensor: SplitMix64 of (seed of the name) + (i + 1) * the golden ratio, its top 24 bits as a number in
[0, 1), spread over the range of that kind of tensor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

S3 = 1.7320508


def uniform(name: str, shape: Sequence[int], low: float = -S3, high: float = S3) -> Tensor:
    """Values of an input by its name, float32."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    with np.errstate(over="ignore"):
        x = np.arange(1, int(np.prod(shape, dtype=np.int64)) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x += np.uint64(seed)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    u = (x >> np.uint64(40)).astype(np.float64) / 2**24
    return torch.from_numpy((low + (high - low) * u).astype(np.float32).reshape(tuple(shape)))


def weight(prefix: str, key: str, shape: Sequence[int], gain: float = 1.0) -> Tensor:
    """Values of a weight by its model's prefix and its key."""
    last = key.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return torch.zeros(tuple(shape), dtype=torch.int64)
    if len(shape) >= 2:
        a = gain * (3 / np.prod(shape[1:])) ** 0.5
        low, high = -a, a
    else:
        low, high = {"weight": (0.9, 1.1), "running_var": (0.5, 1.5)}.get(last, (-0.1, 0.1))
    return uniform(f"{prefix}:{key}", shape, low, high)


def fill(module: nn.Module, prefix: str, gain: float = 1.0, inside: str = "") -> None:
    """Give all of a module's weights the rule's values; ``inside``: what stands before its keys."""
    with torch.no_grad():
        for key, value in module.state_dict().items():
            value.copy_(weight(prefix, inside + key, value.shape, gain))
