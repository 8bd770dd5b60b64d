"""What makes a rendered picture look taken: rooms and streets out of focus, and what a camera does to light.

Legend: H W pixels.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.wardrobe.fields import noise_tile
from data_prep.wardrobe.meshes import smoothstep

Array = NDArray[Any]


def place(rng: np.random.Generator, size: tuple[int, int], shadows: Array | None) -> Array:
    """A room or a street, out of focus, soft shadows on its floor.

    Args:
        rng: the picture's.
        size: (H, W).
        shadows: (k, 3) x, y and reach in pixels, or None.

    Returns:
        (H, W, 3) float32 in [0, 1].
    """
    height, width = size
    horizon = round(height * rng.uniform(0.62, 0.82))
    image = _room(rng, size, horizon) if rng.random() < 0.55 else _street(rng, size, horizon)
    sigma = height * float(rng.choice([0.002, rng.uniform(0.004, 0.022)]))
    image = cv2.GaussianBlur(image, (0, 0), sigma)
    glow = cv2.resize(noise_tile(int(rng.integers(59)), 1)[:32, :32], (width, height), interpolation=cv2.INTER_CUBIC)
    image = image * (1 + 0.10 * glow[..., None])
    y, x = np.mgrid[:height, :width].astype(np.float32)
    for sx, sy, reach in () if shadows is None else shadows:
        dark = np.exp(-(((x - sx) / reach) ** 2) - ((y - sy) / (0.30 * reach)) ** 2)
        image = image * (1 - 0.45 * dark[..., None])
    return np.clip(image, 0, 1).astype(np.float32)


def _colour(rng: np.random.Generator, low: float, high: float, vivid: float = 0.25) -> Array:
    """(3,) a colour as light as ``low`` to ``high``, hardly coloured or up to ``vivid``."""
    grey = rng.uniform(low, high)
    return np.clip(grey * (1 + rng.uniform(-vivid, vivid, 3)), 0, 1).astype(np.float32)


def _box(image: Array, left: float, top: float, right: float, bottom: float, colour: Array) -> None:
    """Paint a rectangle, in pixels."""
    cv2.rectangle(image, (round(left), round(top)), (round(right), round(bottom)), colour.tolist(), -1)


def _floor(rng: np.random.Generator, image: Array, horizon: int, colour: Array) -> None:
    """The ground below the horizon, darker far away, joints running to a vanishing point."""
    height, width = image.shape[:2]
    y = np.arange(horizon, height, dtype=np.float32)
    image[horizon:] = colour * (0.82 + 0.18 * (y - horizon) / max(1, height - horizon))[:, None, None]
    away, joint = rng.uniform(0.2, 0.8) * width, colour * rng.uniform(0.75, 0.95)
    for end in np.arange(-2.0, 3.0, rng.uniform(0.12, 0.5)):
        start, stop = (round(away), horizon - round(0.2 * height)), (round(end * width), height)
        cv2.line(image, start, stop, joint.tolist(), 1, cv2.LINE_AA)


def _room(rng: np.random.Generator, size: tuple[int, int], horizon: int) -> Array:
    """Walls, a window, frames, shelves, a sofa, a plant."""
    height, width = size
    wall = _colour(rng, 0.35, 0.95)
    image: Array = np.empty((height, width, 3), np.float32)
    _floor(rng, image, horizon, _colour(rng, 0.25, 0.8))
    falls = np.linspace(0.85, 1, width, dtype=np.float32)[:: rng.choice([-1, 1])]  # the light, from one side
    image[:horizon] = wall * falls[None, :, None]
    _box(image, 0, horizon - 0.02 * height, width, horizon, np.minimum(wall * rng.uniform(0.7, 1.25), 1))
    for _ in range(rng.integers(1, 5)):
        left, wide = rng.uniform(-0.1, 0.95) * width, rng.uniform(0.12, 0.45) * width
        kind = rng.choice(["window", "frame", "shelves", "seat", "plant"])
        if kind == "window":
            top, bottom = rng.uniform(0, 0.2) * height, rng.uniform(0.4, 0.6) * height
            _box(image, left, top, left + wide, bottom, _colour(rng, 0.85, 1.0, 0.06))
            for bar in np.linspace(0, 1, rng.integers(2, 5)):
                _box(image, left + bar * wide - 1, top, left + bar * wide + 1, bottom, wall * 0.7)
        elif kind == "frame":
            top = rng.uniform(0.1, 0.4) * height
            _box(image, left, top, left + 0.6 * wide, top + 0.7 * wide, _colour(rng, 0.05, 0.9))
            _box(image, left + 3, top + 3, left + 0.6 * wide - 3, top + 0.7 * wide - 3, _colour(rng, 0.2, 1.0, 0.6))
        elif kind == "shelves":
            for top in np.arange(rng.uniform(0.1, 0.3) * height, horizon, rng.uniform(0.08, 0.14) * height):
                at = left
                while at < left + wide:
                    book, tall = rng.uniform(0.01, 0.05) * width, rng.uniform(0.03, 0.07) * height
                    _box(image, at, top - tall, at + book, top, _colour(rng, 0.1, 0.9, 0.6))
                    at += book + 1
                _box(image, left, top, left + wide, top + 0.01 * height, _colour(rng, 0.2, 0.7))
        elif kind == "seat":
            cushion = _colour(rng, 0.15, 0.85, 0.5)
            _box(
                image,
                left,
                horizon - rng.uniform(0.10, 0.25) * height,
                left + 1.6 * wide,
                horizon + 0.08 * height,
                cushion,
            )
            _box(image, left, horizon - 0.02 * height, left + 1.6 * wide, horizon + 0.03 * height, cushion * 0.8)
        else:
            _leaves(rng, image, left, horizon - 0.2 * height, 0.12 * height)
    return image


def _street(rng: np.random.Generator, size: tuple[int, int], horizon: int) -> Array:
    """Sky, houses with windows, trees, a pavement."""
    height, width = size
    image: Array = np.empty((height, width, 3), np.float32)
    image[:] = _colour(rng, 0.7, 1.0, 0.15)
    _floor(rng, image, horizon, _colour(rng, 0.3, 0.7, 0.1))
    image[:horizon] = _colour(rng, 0.75, 1.0, 0.12)
    left = -0.2 * width
    while left < width:
        wide, top = rng.uniform(0.2, 0.6) * width, rng.uniform(-0.4, 0.35) * height
        front = _colour(rng, 0.25, 0.85, 0.3)
        _box(image, left, top, left + wide, horizon, front)
        across, down = rng.uniform(0.07, 0.16) * width, rng.uniform(0.07, 0.16) * height
        pane = _colour(rng, 0.1, 0.6, 0.15)
        for y in np.arange(top + 0.3 * down, horizon - down, down):
            for x in np.arange(left + 0.3 * across, left + wide - 0.6 * across, across):
                _box(image, x, y, x + 0.5 * across, y + 0.6 * down, pane * rng.uniform(0.6, 1.4))
        left += wide + 1
    for _ in range(rng.integers(0, 3)):
        _leaves(rng, image, rng.uniform(0, 1) * width, rng.uniform(0.2, 0.6) * height, rng.uniform(0.1, 0.25) * height)
    return np.clip(image, 0, 1)


def _leaves(rng: np.random.Generator, image: Array, x: float, y: float, reach: float) -> None:
    """A bush or the crown of a tree."""
    green = np.array([0.20, 0.38, 0.14], np.float32) * rng.uniform(0.5, 1.6)
    for at, tone in zip(rng.normal((x, y), reach / 2, (160, 2)), rng.uniform(0.5, 1.5, 160), strict=True):
        leaf = np.clip(green * tone, 0, 1).tolist()
        cv2.circle(image, (round(at[0]), round(at[1])), max(1, round(0.07 * reach)), leaf, -1)


def taken(rng: np.random.Generator, image: Array) -> Array:
    """A picture as a camera gives it: exposure, tint, contrast, vignette, a little blur, noise, JPEG.

    Args:
        rng: the picture's.
        image: (H, W, 3) uint8.

    Returns:
        (H, W, 3) uint8.
    """
    height, width = image.shape[:2]
    x = image.astype(np.float32) / 255
    x = x * np.float32(np.exp(rng.normal(0, 0.10))) * (1 + rng.normal(0, 0.03, 3)).astype(np.float32)
    x = np.clip(x, 0, 1) ** np.float32(2 ** rng.normal(0, 0.18))
    x = x + np.float32(rng.uniform(0, 0.35)) * (smoothstep(0.0, 1.0, x) - x)
    down, across = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    x = x * (1 - rng.uniform(0, 0.12) * (down**2 + across**2))[..., None].astype(np.float32)
    if rng.random() < 0.6:
        x = cv2.GaussianBlur(x, (0, 0), height / 256 * float(rng.uniform(0.2, 0.7)))
    grain = rng.normal(0, rng.uniform(0, 0.02), x.shape).astype(np.float32)
    x = x + grain * (0.4 + np.sqrt(np.clip(x, 0, 1)))
    made = np.round(np.clip(x, 0, 1) * 255).astype(np.uint8)
    coded = cv2.imencode(".jpg", made[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(68, 97))])[1]
    read = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    assert read is not None
    return np.ascontiguousarray(read[..., ::-1])
