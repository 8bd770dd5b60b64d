"""The tailor: measures of the open body at rest that every garment is cut by.

Frame and legend as in :mod:`data_prep.wardrobe.meshes`; T angles around an axis, 0 in front.
"""

from __future__ import annotations

from functools import cached_property, lru_cache

import numpy as np
import torch

from data_prep.wardrobe.cuts import ANKLE_Y, ARM_Y, ARM_Z, GROUND_Y
from data_prep.wardrobe.meshes import Array, smoothstep, vertex_normals
from omfa.bodies.body import Body, load_body

ANGLES = 48
THETA = np.arange(ANGLES) * 2 * np.pi / ANGLES
DIRECTIONS = np.stack([np.sin(THETA), np.cos(THETA)], 1).astype(np.float32)  # angle 0 is z (front), 90 deg is x
_COS = np.cos(THETA[:, None] - THETA[None, :])
_SECANT = np.where(_COS > 0.05, 1 / np.maximum(_COS, 0.05), np.inf).astype(np.float32)


def radial_hull(points: Array) -> Array:
    """(A,) distance from the origin to the convex hull of (n, 2) points (x, z), the origin inside it."""
    support = np.maximum((points.astype(np.float32) @ DIRECTIONS.T).max(0), 1e-3)
    return (support[None, :] * _SECANT).min(1)


def at_angle(profile: Array, theta: Array) -> Array:
    """Linear interpolation of (..., A) profiles at angles (...,) that broadcast with the leading axes' values."""
    place = np.mod(theta, 2 * np.pi) * (ANGLES / (2 * np.pi))
    low = np.floor(place).astype(np.int64) % ANGLES
    t = place - np.floor(place)
    rows = np.arange(len(profile))
    return profile[rows, low] * (1 - t) + profile[rows, (low + 1) % ANGLES] * t


class Tailor:
    """The body prepared for dressmaking: smoothed surfaces, tight and loose offsets, softened weights.

    All fields are (V, 3) offsets from the template's rest pose, or (V, 55) weights.
    """

    def __init__(self, body: Body) -> None:
        self.body = body
        self.faces = body.faces
        self.template = body.template.astype(np.float32)
        self.weights = body.weights.astype(np.float32)
        self.joints = body.rest_joints.astype(np.float32)
        self.parents = body.parents
        self.dominant = self.weights.argmax(1)
        count = len(self.template)
        i = torch.from_numpy(self.faces[:, [0, 1, 2, 1, 2, 0]].T.reshape(-1).copy())
        j = torch.from_numpy(self.faces[:, [1, 2, 0, 0, 1, 2]].T.reshape(-1).copy())
        pairs = torch.unique(torch.stack([i, j]), dim=1)
        ones = torch.ones(pairs.shape[1])
        self._neighbours = torch.sparse_coo_tensor(pairs, ones, (count, count), check_invariants=True).coalesce()
        self._degree = torch.sparse.sum(self._neighbours, 1).to_dense()[:, None].clamp(min=1)

    def smooth(self, rows: Array, rounds: int, share: float = 0.7) -> Array:
        """Each row moved towards its neighbours' mean, ``rounds`` times."""
        x = torch.from_numpy(np.ascontiguousarray(rows, np.float32))
        for _ in range(rounds):
            x = x + share * (torch.sparse.mm(self._neighbours, x) / self._degree - x)
        return x.numpy()

    @cached_property
    def normals(self) -> Array:
        """(V, 3) of the template."""
        return vertex_normals(self.template, self.faces)

    @cached_property
    def soft_weights(self) -> Array:
        """(V, 55) weights of cloth: it bends in a wider arc than skin."""
        return self.smooth(self.weights, 5)

    def _ironed(self, rounds: int, gap: float) -> Array:
        """Hollows filled, bumps kept, ``gap`` metres away from the skin."""
        fill = self.smooth(self.template, rounds) - self.template
        out = np.clip((fill * self.normals).sum(1, keepdims=True), 0, 0.03) + gap
        return self.smooth(self.normals * out, 4)

    @cached_property
    def upper_tight(self) -> Array:
        """Tops close to the skin: they bridge the chest's hollows and follow its girth."""
        on_torso = self._torso_share()[:, None]
        field = self._ironed(22, 0.009) * (1 - on_torso) + self._around_trunk(0.965, 0.009, 0.013) * on_torso
        return self.smooth(field, 4)

    @cached_property
    def lower_slim(self) -> Array:
        """Trousers close to the skin."""
        return self._ironed(8, 0.006)

    def _torso_share(self) -> Array:
        """(V,) 1 on the torso below the shoulders, 0 on arms, neck and head."""
        x, y = np.abs(self.template[:, 0]), self.template[:, 1]
        return smoothstep(0.45, 0.35, y) * (1 - smoothstep(0.15, 0.25, x) * smoothstep(0.27, 0.33, y))

    def _around_trunk(self, fall: float, above: float, below: float) -> Array:
        """(V, 3) offsets to the convex girth of the trunk.

        Args:
            fall: how much of the girth above is kept 2 cm lower: 1 hangs straight down, less follows the body.
            above: ease at the chest, metres.
            below: ease at the hips.
        """
        v = self.template
        x, y = np.abs(v[:, 0]), v[:, 1]
        levels = np.linspace(0.45, -0.17, 32)
        trunk = (x < 0.26) & ~((y > 0.30) & (x > 0.165)) & ~((y > 0.40) & (x > 0.12))
        reach = np.stack([radial_hull(v[trunk & (np.abs(y - l) < 0.025)][:, [0, 2]]) for l in levels])
        for r in range(1, len(levels)):
            reach[r] = np.maximum(reach[r], reach[r - 1] * fall)
        rows = np.clip((levels[0] - y) / (levels[0] - levels[1]), 0, len(levels) - 1.001)
        low = rows.astype(int)
        theta, radius = np.arctan2(v[:, 0], v[:, 2]), np.hypot(v[:, 0], v[:, 2])
        t = rows - low
        wanted = at_angle(reach[low], theta) * (1 - t) + at_angle(reach[low + 1], theta) * t
        ease = above + (below - above) * smoothstep(0.36, 0.0, y)
        out = v[:, [0, 2]] / np.maximum(radius, 1e-6)[:, None] * (np.maximum(wanted - radius, 0) + ease)[:, None]
        return np.stack([out[:, 0], np.zeros(len(v)), out[:, 1]], 1)

    @cached_property
    def upper_loose(self) -> Array:
        """Tops that hang straight from chest and shoulder, in wide sleeves."""
        v = self.template
        x, y = np.abs(v[:, 0]), v[:, 1]
        dy, dz = y - ARM_Y, v[:, 2] - ARM_Z
        radius = np.hypot(dy, dz)
        sleeve = 0.088 - 0.028 * smoothstep(0.36, 0.72, x)
        out = (np.maximum(sleeve - radius, 0) + 0.008) / np.maximum(radius, 1e-6)
        arm = np.stack([np.zeros(len(v)), dy * out, dz * out], 1)
        arm[:, 1] -= 0.012 * smoothstep(0.2, 0.3, x)
        on_arm = (smoothstep(0.15, 0.25, x) * smoothstep(0.27, 0.33, y))[:, None]
        on_torso = self._torso_share()[:, None]
        torso = self._around_trunk(0.992, 0.010, 0.042)
        return self.smooth(self.upper_tight * 1.25 * (1 - on_arm - on_torso) + arm * on_arm + torso * on_torso, 6)

    @cached_property
    def lower_wide(self) -> Array:
        """Trousers with straight, wide legs."""
        v = self.template
        side, y = np.sign(v[:, 0]), v[:, 1]
        axis = self.leg_axis(y, side)
        away = v[:, [0, 2]] - axis
        radius = np.linalg.norm(away, axis=1)
        wanted = np.interp(y, [-1.0, -0.52, -0.2], [0.115, 0.112, 0.125])
        out = away / np.maximum(radius, 1e-6)[:, None] * (np.maximum(wanted - radius, 0) + 0.012)[:, None]
        field = np.stack([out[:, 0], np.zeros(len(v)), out[:, 1]], 1)
        on_leg = smoothstep(-0.06, -0.22, y)[:, None]
        field = self.smooth(field * on_leg + self.lower_slim * 1.6 * (1 - on_leg), 4)
        inner = side * (v[:, 0] + field[:, 0]) < 0.004  # legs of cloth do not cross the middle
        field[inner, 0] = (side * 0.004 - v[:, 0])[inner]
        return field

    def leg_axis(self, y: Array, side: Array) -> Array:
        """(n, 2) x and z of the leg's middle at heights y (n,); ``side`` +1 left, -1 right."""
        hip, knee, ankle = self.joints[1], self.joints[4], self.joints[7]
        heights = [ankle[1], knee[1], hip[1]]
        x = np.interp(y, heights, [ankle[0], knee[0], hip[0]])
        return np.stack([side * x, np.interp(y, heights, [ankle[2], knee[2] - 0.01, hip[2]])], 1)

    @cached_property
    def shoe(self) -> Array:
        """Feet filled to the hull of their cross-sections, with a flat sole."""
        v = self.template
        field = np.zeros_like(v)
        for side in (1, -1):
            foot = (np.sign(v[:, 0]) == side) & (v[:, 1] < ANKLE_Y + 0.14)
            p = v[foot]
            levels = np.linspace(p[:, 2].min(), p[:, 2].max(), 26)
            x0 = side * self.joints[7, 0]
            low_part = p[:, 1] < ANKLE_Y + 0.02
            centre = np.array([x0, GROUND_Y + 0.035])
            reach = []
            for l in levels:
                near = p[low_part & (np.abs(p[:, 2] - l) < 0.018)]
                near = near if len(near) > 5 else p[low_part & (np.abs(p[:, 2] - l) < 0.04)]
                reach.append(radial_hull(near[:, :2] - centre))
            grid = np.stack(reach)
            rows = np.clip((p[:, 2] - levels[0]) / (levels[1] - levels[0]), 0, len(levels) - 1.001)
            low, t = rows.astype(int), rows % 1
            away = p[:, :2] - centre
            theta, radius = np.arctan2(away[:, 0], away[:, 1]), np.linalg.norm(away, axis=1)
            wanted = at_angle(grid[low], theta) * (1 - t) + at_angle(grid[low + 1], theta) * t
            fill = np.where(
                p[:, 1] < ANKLE_Y, np.maximum(wanted - radius, 0) * smoothstep(ANKLE_Y, ANKLE_Y - 0.03, p[:, 1]), 0
            )
            push = away / np.maximum(radius, 1e-6)[:, None] * fill[:, None]
            field[foot, :2] += push
        field += self.normals * 0.007
        field = np.where((v[:, 1] < ANKLE_Y + 0.1)[:, None], self.smooth(field, 3), field)
        toes = smoothstep(0.09, 0.16, v[:, 2]) * smoothstep(GROUND_Y + 0.008, GROUND_Y + 0.022, v[:, 1])
        field[:, 1] += 0.016 * toes * (v[:, 1] < ANKLE_Y)  # room above them
        sole = smoothstep(GROUND_Y + 0.03, GROUND_Y + 0.015, v[:, 1])
        field[:, 2] += sole * 0.004 * np.sign(v[:, 2] - 0.06)
        field[:, 1] = np.where(v[:, 1] < GROUND_Y + 0.012, GROUND_Y - 0.012 - v[:, 1], field[:, 1])
        return field


@lru_cache(maxsize=1)
def tailor() -> Tailor:
    """The open body's tailor, prepared once per process."""
    return Tailor(load_body())
