"""Richer cloth than the simple patterns: tartan, flowers, leopard, marble, uneven stripes, words, pictures.

Each is a function of the cloth's own coordinates and a seed. Legend: n points; a along a pattern's rows and b across
them, in metres; c (k, 3) its colours, ground first; S pixels a side of a print's texture.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from data_prep.wardrobe.fields import edge, mix, noise

Array = NDArray[Any]

S = 256


# ------------------------------------------------------------------------------------------------------ all over
def _sett(x: Array, c: Array, period: float, seed: int) -> Array:
    """(n, 3) a sequence of bands of all colours, of widths drawn by ``seed``, repeated every ``period``."""
    rng = np.random.default_rng([seed, 91])
    count = int(rng.integers(5, 9))
    ends = np.cumsum(rng.choice([1.0, 2.0, 5.0, 8.0], count) * rng.uniform(0.8, 1.2, count))
    ends *= period / ends[-1]
    bands = c[np.concatenate([np.arange(len(c)), rng.integers(len(c), size=count)])[:count]]
    return bands[np.searchsorted(ends, np.mod(x, period), side="right").clip(max=count - 1)]


def tartan(a: Array, b: Array, c: Array, scale: float, seed: int) -> Array:
    """(n, 3) the same bands along and across, woven: each place is half of one and half of the other."""
    period = 2.2 * scale
    return (0.5 * (_sett(a, c, period, seed) + _sett(b, c, period, seed))).astype(np.float32)


def uneven(a: Array, b: Array, c: Array, scale: float, seed: int) -> Array:
    """(n, 3) stripes of several widths."""
    return _sett(b, c, 2.5 * scale, seed).astype(np.float32)


def flowers(a: Array, b: Array, c: Array, scale: float, seed: int) -> Array:
    """(n, 3) blossoms strewn over the ground, each turned and coloured its own way, small ones between the large."""
    out = np.repeat(c[:1], len(a), 0).astype(np.float32)
    for layer, size in enumerate((0.62 * scale, scale)):
        x, y = a / size + 0.37 * layer, b / size + 0.71 * layer
        i, j = np.floor(x), np.floor(y)
        hashed = [np.mod(np.sin(i * 127.1 + j * 311.7 + seed * 0.61 + k * 74.7) * 43758.5453, 1) for k in range(4)]
        dx, dy = x - i - 0.36 - 0.28 * hashed[0], y - j - 0.36 - 0.28 * hashed[1]
        radius, angle = np.hypot(dx, dy), np.arctan2(dy, dx) + 6.28 * hashed[2]
        petals = np.where(hashed[3] > 0.5, 5, 6)
        outline = 0.34 * (0.62 + 0.38 * np.abs(np.cos(angle * petals / 2)))
        colour = c[1 + (hashed[2] * 97).astype(int) % max(1, len(c) - 1)]
        there = hashed[3] > 0.25
        out = mix(out, colour, edge((outline - radius) * size) * there)
        out = mix(out, 0.75 * colour + 0.25, edge((0.09 - radius) * size) * there)
    return out


def leopard(a: Array, b: Array, c: Array, scale: float, seed: int) -> Array:
    """(n, 3) broken rings with a darker inside."""
    field = noise(seed % 53, a, b, 0.8 * scale, 1)
    gaps = noise(seed % 53 + 1, a, b, 0.5 * scale, 1)
    inside = edge(field - 0.95, 0.08)
    ring = edge(field - 0.55, 0.08) * (1 - inside) * edge(gaps + 0.55, 0.1)
    return mix(mix(np.repeat(c[:1], len(a), 0), 0.55 * c[0] + 0.45 * c[1], inside), c[1], ring)


def marble(a: Array, b: Array, c: Array, scale: float, seed: int) -> Array:
    """(n, 3) veins of every colour, as dye runs in water."""
    wander = noise(seed % 53, a, b, 3 * scale, 3)
    t = 0.5 + 0.5 * np.sin(6.28 * (b / (2.4 * scale) + 0.45 * wander))
    out = mix(np.repeat(c[:1], len(a), 0), c[1], t**1.5)
    if len(c) > 2:
        out = mix(out, c[2], np.clip(noise(seed % 53 + 2, a, b, 2 * scale, 3) - 0.4, 0, 1))
    return out


ALL_OVER: dict[str, Callable[[Array, Array, Array, float, int], Array]] = {
    f.__name__: f for f in (tartan, uneven, flowers, leopard, marble)
}
VARIANTS = {  # of the simple kinds
    "stripes": ("uneven",), "checks": ("tartan",), "dots": ("flowers",), "noise": ("leopard", "marble"),
    "print": ("words", "picture"),
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------ one print
_HERSHEY = (
    cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_COMPLEX, cv2.FONT_HERSHEY_TRIPLEX, cv2.FONT_HERSHEY_SCRIPT_COMPLEX,
)  # fmt: skip


def draw_words(rng: np.random.Generator) -> str:
    """One to three short lines that look like words or numbers."""

    def word() -> str:
        if rng.random() < 0.2:
            return str(rng.integers(1, 2030))
        syllables = zip(rng.choice(list("BCDFGHKLMNPRSTVW"), 3), rng.choice(list("AEIOU"), 3), strict=True)
        made = "".join(a + b for a, b in list(syllables)[: rng.integers(1, 4)])
        made += str(rng.choice(["", "N", "R", "S", "X"]))
        return [made, made.lower(), made.capitalize()][rng.integers(3)]

    return "\n".join(word() for _ in range(rng.choice([1, 2, 3], p=[0.55, 0.3, 0.15])))


@lru_cache(maxsize=256)
def words(text: str, seed: int) -> Array:
    """(S, S) float32 cover in [0, 1] of lines of text, their letters drawn by ``seed``: kind, weight, slant, arc."""
    rng = np.random.default_rng([seed, 92])
    alike = rng.random() < 0.7
    lines = [_line(x, np.random.default_rng([seed, 93, 0 if alike else k])) for k, x in enumerate(text.split("\n"))]
    width = max(line.shape[1] for line in lines)
    block = np.concatenate([np.pad(_as_wide(line, width), ((6, 6), (0, 0))) for line in lines])
    if rng.random() < 0.3:  # hollow letters
        block = block - cv2.erode(block, np.ones((7, 7), np.uint8))
    fit = 0.9 * S / max(block.shape)
    block = cv2.resize(block.astype(np.float32), None, fx=fit, fy=fit, interpolation=cv2.INTER_AREA)
    flat: Array = np.zeros((S, S), np.float32)
    top, left = (S - block.shape[0]) // 2, (S - block.shape[1]) // 2
    flat[top : top + block.shape[0], left : left + block.shape[1]] = block
    slant, bend = np.float32(rng.normal(0, 0.12)), np.float32(rng.choice([0.0, 0.0, rng.uniform(-0.25, 0.35)]))
    y, x = np.mgrid[:S, :S].astype(np.float32)
    arc = S * bend * ((x / S - 0.5) ** 2 - 0.08)
    return cv2.remap(flat, x + slant * (y - S / 2), y - arc, cv2.INTER_LINEAR) / 255


def _as_wide(line: Array, width: int) -> Array:
    """(h, width) a line of text blown up to this width; one that is much shorter stays as it is, in the middle."""
    if line.shape[1] > width / 3:
        return cv2.resize(line, (width, max(8, round(line.shape[0] * width / line.shape[1]))))
    left = (width - line.shape[1]) // 2
    return np.pad(line, ((0, 0), (left, width - line.shape[1] - left)))


def _line(text: str, rng: np.random.Generator) -> Array:
    """(h, w) uint8 one line of text, cut to its ink."""
    kind, weight = int(rng.integers(len(_HERSHEY) + 3)), int(rng.integers(2, 9))
    big: Array = np.zeros((220, 160 + 110 * max(1, len(text))), np.uint8)
    if kind < len(_HERSHEY):
        cv2.putText(big, text, (40, 150), _HERSHEY[kind], 4.0, 255, 3 + 2 * weight, cv2.LINE_AA)
    else:
        canvas = Image.fromarray(big)
        font = ImageFont.load_default(130)
        ImageDraw.Draw(canvas).text((40, 30), text, 255, font, stroke_width=weight if kind > len(_HERSHEY) else 0)
        big = np.asarray(canvas)
    ink = np.nonzero(big)
    return big[ink[0].min() : ink[0].max() + 1, ink[1].min() : ink[1].max() + 1]


@lru_cache(maxsize=64)
def picture(seed: int) -> Array:
    """(S, S, 4) float32 colours and cover: a landscape in a frame or a disc, as photographs are printed on shirts."""
    rng = np.random.default_rng([seed, 94])
    y, x = (g.astype(np.float32) / S for g in np.mgrid[:S, :S])
    sky, low = rng.uniform(0.2, 1, (2, 3))
    out = sky + (low - sky) * np.clip(y * 1.6, 0, 1)[..., None]
    centre, reach = rng.uniform((0.25, 0.15), (0.75, 0.45)), rng.uniform(0.06, 0.16)
    sun = np.clip((reach - np.hypot(x - centre[0], y - centre[1])) * 60, 0, 1)[..., None]
    out = out * (1 - sun) + rng.uniform(0.7, 1, 3) * sun
    for k in range(int(rng.integers(2, 5))):
        crest = 0.45 + 0.14 * k + 0.10 * noise(int(rng.integers(53)), x[0], np.zeros(S), 3.0, 3)
        hill = np.clip((y - crest[None]) * 80, 0, 1)[..., None]
        out = out * (1 - hill) + rng.uniform(0, 0.75, 3) * hill
    across, down = np.abs(x - 0.5), np.abs(y - 0.5) * rng.uniform(1, 1.5)
    cover = (np.hypot(x - 0.5, y - 0.5) if rng.random() < 0.35 else np.maximum(across, down)) < 0.46
    return np.concatenate([np.clip(out, 0, 1), cover[..., None]], 2).astype(np.float32)
