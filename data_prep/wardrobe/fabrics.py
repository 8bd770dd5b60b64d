"""What cloth is made of: weaves that can be seen, and creases.

Both are functions of the cloth's own coordinates, so every picture of a garment agrees. Legend: n points; u around the
body and v up, in metres.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.wardrobe.fields import noise

Array = NDArray[Any]

WEAVES = ("smooth", "denim", "knit", "corduroy", "linen", "heather")
DENIM = ((0.10, 0.13, 0.22), (0.20, 0.29, 0.45), (0.36, 0.48, 0.66), (0.60, 0.70, 0.82), (0.10, 0.10, 0.11))


@dataclass(frozen=True)
class Fabric:
    """A material.

    Args:
        weave: one of WEAVES.
        crease: 0 ironed to 1 rumpled.
        seed: of its noise.

    Raises:
        ValueError: a weave that is not there.
    """

    weave: str = "smooth"
    crease: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.weave not in WEAVES:
            raise ValueError(f"weave {self.weave!r} must be one of {', '.join(WEAVES)}")

    def gain(self, u: Array, v: Array) -> Array:
        """(n,) brightness of the weave and in the creases, about 1."""
        seed, ones = self.seed % 47 + 60, np.ones(len(u), np.float32)
        if self.weave == "denim":
            washed = np.clip(noise(seed + 1, u, v * 0.6, 0.22, 2), -1, 1)
            ones += 0.10 * noise(seed, u, v * 0.5, 0.012, 2) + 0.11 * washed
        elif self.weave == "knit":
            ones += 0.11 * np.sin(6.28 * u / 0.015 + 1.2 * np.sin(6.28 * v / 0.016))
        elif self.weave == "corduroy":
            ones += 0.13 * np.sin(6.28 * u / 0.011)
        elif self.weave == "linen":
            ones += 0.05 * noise(seed, u, v * 0.1, 0.010, 2) + 0.05 * noise(seed + 1, u * 0.1, v, 0.010, 2)
        elif self.weave == "heather":
            ones += 0.10 * noise(seed, u, v * 0.6, 0.006, 2)
        if self.crease:
            ones += 0.24 * self.crease * (self._height(u, v) - 0.5)
        return ones

    def bend(self, u: Array, v: Array) -> Array:
        """(n, 2) slopes along u and v that creases give the cloth; zeros where it is ironed."""
        if not self.crease:
            return np.zeros((len(u), 2), np.float32)
        step, metres = 0.004, 0.020 * self.crease
        along_u = self._height(u + step, v) - self._height(u - step, v)
        along_v = self._height(u, v + step) - self._height(u, v - step)
        return np.stack([along_u, along_v], 1) * (metres / (2 * step))

    def _height(self, u: Array, v: Array) -> Array:
        """(n,) from 0, a hollow, to 1, a ridge: long ridges where it hangs, short ones where it was pressed."""
        seed = self.seed % 47 + 70
        hangs = np.exp(-((noise(seed, u, v * 0.28, 0.15, 1) / 0.45) ** 2))
        pressed = np.exp(-((noise(seed + 1, u + 0.5 * v, 0.45 * (v - 0.5 * u), 0.14, 1) / 0.35) ** 2))
        where = np.clip(0.5 + 0.7 * noise(seed + 2, u, v, 0.30, 1), 0, 1)
        return (0.5 * hangs + 0.5 * pressed * where).astype(np.float32)


PLAIN = Fabric()


def draw_fabric(rng: np.random.Generator, cut_kind: str) -> Fabric:
    """A material that suits a garment (``t-shirt``, ``trousers``, ...)."""
    odds = {
        "trousers": (0.30, 0.40, 0.0, 0.12, 0.12, 0.06), "shorts": (0.35, 0.35, 0.0, 0.05, 0.20, 0.05),
        "skirt": (0.45, 0.20, 0.10, 0.10, 0.10, 0.05), "long-sleeve top": (0.40, 0.0, 0.38, 0.0, 0.05, 0.17),
        "hoodie": (0.50, 0.0, 0.10, 0.0, 0.0, 0.40), "shirt": (0.50, 0.12, 0.0, 0.08, 0.30, 0.0),
    }.get(cut_kind, (0.60, 0.0, 0.12, 0.0, 0.10, 0.18))  # fmt: skip
    weave = WEAVES[rng.choice(len(WEAVES), p=odds)]
    return Fabric(weave, round(float(rng.beta(1.6, 1.6)), 3), int(rng.integers(1 << 16)))
