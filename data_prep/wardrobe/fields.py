"""Fields over cloth that patterns and weaves are made of: noise, edges, waves.

Legend: n points; u around the body and v up, in metres.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def sample(texture: Array, x: Array, y: Array) -> Array:
    """Bilinear look-up of a float32 texture (h, w) at n points in pixels, wrapped around."""
    n = len(x)
    width = 1024
    height = -(-n // width)
    maps: Array = np.zeros((2, height * width), np.float32)
    maps[0, :n] = np.mod(x, texture.shape[1])
    maps[1, :n] = np.mod(y, texture.shape[0])
    maps = maps.reshape(2, height, width)
    padded: Array = np.pad(texture, ((0, 1), (0, 1)), mode="wrap")
    return cv2.remap(padded, maps[0], maps[1], cv2.INTER_LINEAR).reshape(-1)[:n]


@lru_cache(maxsize=64)
def noise_tile(seed: int, octaves: int = 3) -> Array:
    """(256, 256) float32 tileable noise, zero mean, unit deviation; 16 cells a side, then finer octaves."""
    rng = np.random.default_rng([seed, 77])
    total: Array = np.zeros((256, 256), np.float32)
    for octave in range(octaves):
        cells = 16 * 2**octave
        lattice: Array = np.pad(rng.normal(size=(cells, cells)).astype(np.float32), 2, mode="wrap")
        step = 256 // cells
        big = cv2.resize(lattice, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
        total += big[2 * step : 2 * step + 256, 2 * step : 2 * step + 256] * 0.5**octave
    return ((total - total.mean()) / total.std()).astype(np.float32)


def noise(seed: int, u: Array, v: Array, cell: float, octaves: int = 3) -> Array:
    """(n,) noise of unit deviation whose largest blobs are ``cell`` metres."""
    return sample(noise_tile(seed, octaves), u * (16 / cell), v * (16 / cell))


def edge(d: Array, width: float = 0.0012) -> Array:
    """0 to 1 across d = 0."""
    return np.clip(d / (2 * width) + 0.5, 0, 1)


def wave(x: Array, period: float, share: float, soft: float = 0.0012) -> Array:
    """1 inside a band of ``share`` of each period, 0 outside, edges softened (metres)."""
    phase = np.mod(x, period)
    return edge(np.minimum(phase, share * period - phase), soft)


def mix(a: Array, b: Array, t: Array) -> Array:
    """(n, 3) colours from ``a`` to ``b``, each (3,) or (n, 3), as t (n,) goes from 0 to 1."""
    return (a + (b - a) * t.astype(np.float32)[:, None]).astype(np.float32)
