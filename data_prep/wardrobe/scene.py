"""The stage: painted surfaces before a camera, lit, rendered to a picture with exact label maps.

Legend: H W pixels of the picture (rendered at twice that), n visible points, N vertices, M faces of a surface.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from data_prep.wardrobe.meshes import dot, face_normals, smoothstep, unit, vertex_normals
from data_prep.wardrobe.painters import Painted, Points
from data_prep.wardrobe.patterns import NAMED_COLOURS
from omfa.bodies.rasterise import rasterise

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Layer:
    """One surface before the camera.

    Args:
        vertices: (N, 3) camera frame.
        faces: (M, 3).
        rows: (N, 6) to interpolate. Cloth, shoes and hair: rest position (3), uv (2), metres to the edge. Skin: rest
            position (3), on an eyeball, depth under cloth, index of that garment.
        part: (N,) uint8, 0 or 1 + index into ``omfa.bodies.body.PARTS``.
        region: (M,) of a garment, else zeros.
        paint: gives its visible points their colour.
        solid: only its outside can be seen.
        behind: (N,) metres by which it counts as farther away than it is, so that what lies on it covers it; or None.
    """

    vertices: Array
    faces: Array
    rows: Array
    part: Array
    region: Array
    paint: Callable[[Points], Painted]
    solid: bool = False
    behind: Array | None = None

    def sorted(self) -> Array:
        """(N, 3) vertices moved along the line of sight by ``behind``: other depths, the same picture."""
        if self.behind is None:
            return self.vertices
        distance = np.linalg.norm(self.vertices, axis=1, keepdims=True)
        return self.vertices * (1 + self.behind[:, None] / distance)

    def facing(self) -> Array:
        """(m,) ids of the faces that can be seen from the camera."""
        if not self.solid:
            return np.arange(len(self.faces))
        return np.where(dot(face_normals(self.vertices, self.faces), self.vertices[self.faces[:, 0]]) < 0)[0]


@dataclass(frozen=True, eq=False)
class Picture:
    """A rendered scene: rgb (H, W, 3) float in [0, 1] premultiplied by cover (H, W), labels and parts (H, W) uint8."""

    rgb: Array
    cover: Array
    labels: Array
    parts: Array

    def over(self, background: Array | float) -> Array:
        """(H, W, 3) uint8 the scene before a background in [0, 1]."""
        image = self.rgb + background * (1 - self.cover[..., None])
        return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


@dataclass(frozen=True)
class Light:
    """Where light comes from (camera frame, towards the light), how strong, and its tint."""

    direction: tuple[float, float, float]
    key: float
    fill: float
    tint: tuple[float, float, float]


def draw_light(rng: np.random.Generator) -> Light:
    """Soft light from the front, above."""
    side, height = np.radians(rng.uniform(-55, 55)), np.radians(rng.uniform(25, 60))
    direction = (np.sin(side) * np.cos(height), -np.sin(height), -np.cos(side) * np.cos(height))
    warm = rng.normal(0, 0.02)
    key = rng.uniform(0.36, 0.56)
    return Light(direction, key, 1.08 - key + rng.uniform(-0.04, 0.04), (1 + warm, 1.0, 1 - warm))


STUDIO = Light((0.35, -0.6, -0.72), 0.42, 0.64, (1.0, 1.0, 1.0))


# ---------------------------------------------------------------------------------------------------- rendering


def render(layers: list[Layer], K: Array, size: tuple[int, int], light: Light) -> Picture:
    """Rasterise at twice the size, paint what is visible, light it, and average down.

    Args:
        layers: the surfaces.
        K: (3, 3) camera of the final size.
        size: (H, W).
        light: the light.
    """
    height, width = size
    fine = np.array(K, np.float64)
    fine[:2] *= 2
    fine[:2, 2] += 0.5  # pixel centres are whole numbers
    starts = np.cumsum([0] + [len(l.vertices) for l in layers[:-1]])
    vertices = np.concatenate([l.vertices for l in layers]).astype(np.float32)
    facing = [l.facing() for l in layers]
    faces = np.concatenate([l.faces[f] + s for l, f, s in zip(layers, facing, starts, strict=True)])
    ordered = np.concatenate([l.sorted() for l in layers]).astype(np.float32)
    shown = rasterise(torch.from_numpy(ordered), torch.from_numpy(faces), fine, (2 * height, 2 * width), "torch")
    face, depth = shown.face.numpy(), shown.depth.numpy()
    py, px = np.nonzero(face >= 0)
    seen, bary = face[py, px], shown.bary.numpy()[py, px]
    corner = faces[seen]
    smooth = np.concatenate([np.concatenate([vertex_normals(l.vertices, l.faces), l.rows], 1) for l in layers])
    mixed = np.einsum("nk,nkc->nc", bary, smooth.astype(np.float32)[corner])
    ray = unit(np.stack([(px - fine[0, 2]) / fine[0, 0], (py - fine[1, 2]) / fine[1, 1], np.ones(len(px))], 1))
    inside = dot(face_normals(vertices, faces)[seen], ray) > 0
    normal = unit(np.where(inside[:, None], -mixed[:, :3], mixed[:, :3]))
    which = np.repeat(np.arange(len(layers)), [len(f) for f in facing])[seen]
    region = np.concatenate([l.region[f] for l, f in zip(layers, facing, strict=True)])[seen]
    painted = _paint(layers, which, Points(mixed[:, 3:], region, normal))
    gain = painted.gain * np.where(inside, 0.55, 1.0)
    open_ = _openness(depth, light, fine[0, 0])[py, px]
    colour = _lit(painted, gain, ray, open_, light)

    image = np.zeros((2 * height, 2 * width, 4), np.float32)
    image[py, px, :3], image[py, px, 3] = colour, 1
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    maps = np.zeros((2, 2 * height, 2 * width), np.uint8)
    nearest = corner[np.arange(len(px)), bary.argmax(1)]
    maps[0, py, px], maps[1, py, px] = painted.label, np.concatenate([l.part for l in layers])[nearest]
    return Picture(small[..., :3], small[..., 3], *maps[:, 1::2, 1::2])


def _paint(layers: list[Layer], which: Array, p: Points) -> Painted:
    """Every layer's own painter on its own points."""
    n = len(which)
    out = Painted(
        np.zeros((n, 3), np.float32), np.ones(n, np.float32), np.zeros(n, np.float32), p.normal.copy(),
        np.zeros(n, np.uint8),
    )  # fmt: skip
    for k, layer in enumerate(layers):
        mine = np.where(which == k)[0]
        if len(mine):
            painted = layer.paint(Points(p.rows[mine], p.region[mine], p.normal[mine]))
            for name in ("albedo", "gain", "gloss", "normal", "label"):
                getattr(out, name)[mine] = getattr(painted, name)
    return out


def _lit(painted: Painted, gain: Array, ray: Array, open_: Array, light: Light) -> Array:
    """(n, 3) colours in [0, 1]: sky and key light, a soft highlight, all dimmed in creases."""
    toward = np.array(light.direction, np.float32)
    key = np.clip((painted.normal @ toward + 0.25) / 1.25, 0, 1) * (0.35 + 0.65 * open_)
    sky = (0.86 - 0.14 * painted.normal[:, 1]) * (0.45 + 0.55 * open_)
    shine = painted.gloss * np.clip(dot(painted.normal, unit(toward - ray)), 0, 1) ** 24 * open_ * 0.8
    diffuse = painted.albedo * (gain * (light.fill * sky + light.key * key))[:, None]
    return np.clip((diffuse + shine[:, None]) * np.array(light.tint, np.float32), 0, 1)


def _openness(depth: Array, light: Light, focal: float) -> Array:
    """(H, W) 1 in the open to 0 in creases: depth against its own blurred neighbourhood (Luft et al. 2006)."""
    solid = np.isfinite(depth)
    if not solid.any():
        return np.ones_like(depth)
    far = float(depth[solid].max())
    near = float(depth[solid].min())
    d = np.where(solid, depth, far + 0.02).astype(np.float32)
    pixel = focal / max(near, 0.1)  # pixels per metre
    out: Array = np.ones_like(d)
    for metres, strength in ((0.035, 7.0), (0.11, 2.2)):
        k = int(2 * round(metres * pixel / 2) + 1)
        mean = cv2.blur(np.where(solid, d, 0), (k, k)) / np.maximum(cv2.blur(solid.astype(np.float32), (k, k)), 1e-3)
        out = out - np.clip((d - cv2.blur(mean, (k, k))) * strength, 0, 0.3)
    shift = np.round(np.array(light.direction[:2]) * 0.045 * pixel)
    matrix = np.array([[1, 0, -shift[0]], [0, 1, -shift[1]]], np.float32)
    moved = cv2.warpAffine(d, matrix, d.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
    gap = d - moved
    shade = smoothstep(0.015, 0.05, gap) * smoothstep(0.40, 0.25, gap)
    k = int(2 * round(0.012 * pixel / 2) + 1)
    return np.clip(out, 0.25, 1) * (1 - 0.42 * cv2.blur(shade.astype(np.float32), (k, k)))


# ---------------------------------------------------------------------------------------------------- places


def background(rng: np.random.Generator, size: tuple[int, int], shadows: Array | None) -> Array:
    """A simple place: a studio, a wall and a floor, soft lights.

    Args:
        rng: the picture's.
        size: (H, W).
        shadows: (k, 3) x, y and reach in pixels of soft shadows on the floor, or None.

    Returns:
        (H, W, 3) float32 in [0, 1].
    """
    height, width = size
    x = (np.arange(width, dtype=np.float32) / width - 0.5)[None, :]
    y = (np.arange(height, dtype=np.float32) / height)[:, None]
    wall = np.array(NAMED_COLOURS[_WALLS[rng.integers(len(_WALLS))]], np.float32)
    wall = 0.55 * wall + np.float32(0.45 * rng.uniform(0.72, 0.95))
    kind = rng.choice(["studio", "room", "lights"], p=[0.55, 0.33, 0.12])
    horizon = rng.uniform(0.68, 0.80)
    floor = wall * np.array([1.0, 0.985, 0.96], np.float32) * np.float32(rng.uniform(0.78, 0.95))
    soft = 0.003 if kind == "room" else 0.09
    below = smoothstep(horizon - soft, horizon + soft, y)
    light = (1 - 0.10 * (2 * x**2 + (y - 0.4) ** 2)) * (1 - below)
    image = light[..., None] * wall + ((0.94 + 0.06 * y) * below)[..., None] * floor
    if kind == "room":  # a skirting board
        board = smoothstep(0.006, 0.004, np.abs(y - horizon + 0.012))[..., None]
        image = image * (1 - board) + np.minimum(wall * 1.12, 1) * board
    if kind == "lights":
        for _ in range(5):
            cx, cy, reach = rng.uniform(-0.5, 0.5), rng.uniform(0, 0.6), rng.uniform(0.06, 0.2)
            glow = 0.25 * np.exp(-(((x - cx) * width / height / reach) ** 2)) * np.exp(-(((y - cy) / reach) ** 2))
            image = image * (1 - glow[..., None]) + np.array([1, 0.97, 0.9], np.float32) * glow[..., None]
    for sx, sy, reach in () if shadows is None else shadows:
        across = np.exp(-((((x + 0.5) * width - sx) / reach) ** 2))
        image = image * (1 - 0.38 * across * np.exp(-(((y * height - sy) / (0.30 * reach)) ** 2)))[..., None]
    return np.clip(image, 0, 1).astype(np.float32)


_WALLS = ("white", "beige", "light blue", "grey", "mint", "lilac", "white", "white")
