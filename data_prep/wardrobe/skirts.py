"""Skirts: rings of cloth around the hips that hang and swing, of any length.

Frame and legend as in :mod:`data_prep.wardrobe.meshes`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data_prep.wardrobe.meshes import Array, Wearer, skin, smoothstep
from data_prep.wardrobe.tailor import ANGLES, DIRECTIONS, THETA, radial_hull, tailor

HEMS = {"skirt": (-0.78, -0.34), "dress": (-0.85, -0.36)}  # how long they are drawn: lowest and highest hem, at rest
_BAND = 4  # rings of a skirt that make its waistband


@dataclass(frozen=True, eq=False)
class Skirt:
    """A hanging surface: R rings of A points from the waist (rest height ``top``) to ``hem``."""

    top: float
    hem: float
    flare: float
    folds: int
    phase: float
    ease: float
    shape: Array
    rings: int = 22

    @cached_property
    def heights(self) -> Array:
        """(R,) rest heights of the rings."""
        return np.linspace(self.top, self.hem, self.rings)

    @cached_property
    def faces(self) -> Array:
        """(M, 3) of a tube, outside counter-clockwise."""
        r, a = np.meshgrid(np.arange(self.rings - 1), np.arange(ANGLES), indexing="ij")
        i, j = r * (ANGLES + 1) + a, r * (ANGLES + 1) + a + 1
        k, l = i + ANGLES + 1, j + ANGLES + 1
        return np.concatenate([np.stack([i, k, j], -1).reshape(-1, 3), np.stack([j, k, l], -1).reshape(-1, 3)])

    @cached_property
    def uv(self) -> Array:
        """(N, 2) along the girth and up; the seam is at the back, where the first and the last column meet."""
        theta = np.linspace(-np.pi, np.pi, ANGLES + 1)
        girth = theta[None, :] * (0.155 + 0.5 * self.flare * (self.top - self.heights)[:, None])
        return np.stack([girth, np.repeat(self.heights[:, None], ANGLES + 1, 1)], -1).reshape(-1, 2)

    @cached_property
    def edge(self) -> Array:
        """(N,) metres to hem or waist."""
        d = np.minimum(self.heights - self.hem, self.top - self.heights)
        return np.repeat(d, ANGLES + 1)

    @cached_property
    def _bands(self) -> list[Array]:
        t = tailor()
        below = np.isin(t.dominant, [0, 1, 2, 3, 4, 5, 6, 7, 8])
        return [np.where(below & (np.abs(t.template[:, 1] - h) < 0.027))[0] for h in self.heights]

    @cached_property
    def _band(self) -> tuple[Array, Array, Array]:
        """The waistband, which moves with the skin: rest positions (4 A, 3), weights (4 A, 55), anchors (4 A,)."""
        t = tailor()
        rows = []
        for height, ids in zip(self.heights[:_BAND], self._bands[:_BAND], strict=True):
            reach = radial_hull(t.template[ids][:, [0, 2]])[:, None] + 0.006
            ring = DIRECTIONS * reach
            rows.append(np.stack([ring[:, 0], np.full(ANGLES, height, np.float32), ring[:, 1]], 1))
        points = np.concatenate(rows).astype(np.float32)
        ids = np.unique(np.concatenate(self._bands[:_BAND]))
        nearest = ids[((points[:, None] - t.template[ids][None]) ** 2).sum(-1).argmin(1)]
        return points + self.shape[nearest], t.soft_weights[nearest], nearest

    def hang(self, body: Wearer) -> Array:
        """(N, 3) float32 the skirt around a posed body."""
        t, vertices, joints, transforms = tailor(), body.vertices, body.joints, body.transforms
        spine = [(7, 8), (4, 5), (1, 2), (6, 6), (9, 9)]  # joints whose middles the skirt hangs around, from below
        levels = np.array([t.joints[a, 1] for a, _ in spine])
        middle = np.stack([(joints[a] + joints[b]) / 2 for a, b in spine])
        centres = np.stack([np.interp(self.heights, levels, middle[:, k]) for k in range(3)], 1)
        kernel = np.array([1, 2, 3, 2, 1]) / 9
        padded = np.concatenate([np.repeat(centres[:1], 2, 0), centres, np.repeat(centres[-1:], 2, 0)])
        soft = np.stack([np.convolve(padded[:, k], kernel, "valid") for k in range(3)], 1)
        tangent = np.gradient(soft, axis=0)
        tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-9)
        side, down_axis = transforms[0, :3, 0], -transforms[0, :3, 1]
        tangent += np.maximum(tangent @ down_axis, 0)[:, None] ** 2 * down_axis  # hems hang level
        tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
        reach: Array = np.zeros((self.rings, ANGLES), np.float32)
        frames = []
        hanging = self.flare * abs(self.heights[1] - self.heights[0])
        for r, band in enumerate(self._bands):
            x = side - tangent[r] * (side @ tangent[r])
            x /= np.linalg.norm(x)
            z = np.cross(x, -tangent[r])
            frames.append((x, z))
            away = vertices[band] - soft[r]
            begin = min(1.0, (self.top - self.heights[r]) / 0.06)  # the waistband sits close
            reach[r] = radial_hull(np.stack([away @ x, away @ z], 1)) + 0.005 + begin * (self.ease - 0.005)
            if r:  # cloth falls from the widest place above, unless the thighs lie level (sitting)
                upright = max(0.0, float(tangent[r] @ down_axis)) ** 2
                fall = 0.90 + (0.04 + 0.06 * min(1.0, self.flare * 4)) * upright
                reach[r] = np.maximum(reach[r], reach[r - 1] * fall + hanging * upright)
        down = (self.top - self.heights)[:, None] / (self.top - self.hem)
        wave = np.cos(self.folds * THETA + self.phase) + 0.5 * np.cos((self.folds * 2 - 3) * THETA + 2 * self.phase)
        reach = reach + (0.006 + 0.05 * self.flare) * down**1.5 * (wave[None, :] + 0.6)
        d = DIRECTIONS
        rings = [soft[r] + reach[r, :, None] * (d[:, :1] * x + d[:, 1:] * z) for r, (x, z) in enumerate(frames)]
        points = np.stack(rings)
        rest, weights, anchor = self._band
        band = skin(rest + body.bulge[anchor], weights, transforms).reshape(_BAND, ANGLES, 3)
        share = smoothstep(0.0, 1.0, np.arange(_BAND) / _BAND)[:, None, None]
        points[:_BAND] = band * (1 - share) + points[:_BAND] * share
        columns = (np.arange(ANGLES + 1) + ANGLES // 2) % ANGLES  # start at the back
        return points[:, columns].reshape(-1, 3).astype(np.float32)
