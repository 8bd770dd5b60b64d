"""Cuts: how long, how wide, which neck; and where cloth of a cut ends.

Frame and legend as in :mod:`data_prep.wardrobe.meshes`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.wardrobe.meshes import Array, Distance, smoothstep

WAIST_Y = 0.085  # where lower garments and skirts begin, rest pose
ANKLE_Y, GROUND_Y = -0.971, -1.051
SEAM_X = 0.172  # the sleeve's seam at the shoulder
ARM_Y, ARM_Z = 0.418, 0.028  # the arm's axis at rest
TORSO, SLEEVE, COLLAR, SKIRT, LEGS = range(5)  # regions of a garment: what a pattern may colour differently


@dataclass(frozen=True)
class Cut:
    """The shape of a garment.

    Args:
        kind: t-shirt, long-sleeve top, tank top, strap top, shirt, hoodie, trousers, shorts, skirt or dress.
        fit: 0 tight to 1 loose.
        hem: height of the lower hem at rest, metres.
        sleeve: where the sleeve ends on the arm (x at rest, metres); 0: none.
        neck: crew, scoop, v, boat, collar, hood or straps.
        flare: how much a skirt widens, metres of radius per metre of length.
        folds: how many folds a skirt falls in.
    """

    kind: str
    fit: float = 0.5
    hem: float = -0.08
    sleeve: float = 0.36
    neck: str = "crew"
    flare: float = 0.2
    folds: int = 7

    @property
    def category(self) -> str:
        """upper, lower or dress."""
        return "dress" if self.kind == "dress" else "lower" if self.kind in ("trousers", "shorts", "skirt") else "upper"


_NECKS = {  # half width, depth in front, depth behind, roundness (1: a V, 2: an ellipse)
    "crew": (0.084, 0.058, 0.012, 2.0),
    "scoop": (0.100, 0.125, 0.030, 2.0),
    "v": (0.088, 0.165, 0.014, 1.15),
    "boat": (0.125, 0.050, 0.030, 2.0),
    "collar": (0.080, 0.075, 0.006, 1.3),
    "hood": (0.086, 0.075, 0.012, 1.6),
    "straps": (0.098, 0.150, 0.130, 2.6),
}
_NECK_Y = 0.517


def neckline(p: Array, neck: str) -> Array:
    """(N,) signed distance to the neckline, about metres; negative inside the opening."""
    width, front, back, power = _NECKS[neck]
    depth = back + (front - back) * smoothstep(-0.03, 0.075, p[:, 2])
    down = np.maximum(_NECK_Y - p[:, 1], 0)
    radius = ((np.abs(p[:, 0]) / width) ** power + (down / depth) ** power) ** (1 / power)
    return (radius - 1) * np.minimum(width, depth + 0.02)


def upper_keep(cut: Cut, hem: float) -> Distance:
    """Signed distance of a top (or a dress's bodice that ends at ``hem``)."""

    def distance(p: Array) -> Array:
        x, y = np.abs(p[:, 0]), p[:, 1]
        if cut.sleeve:
            side = cut.sleeve - x
        else:  # an armhole: narrow on the shoulder, wide under the arm
            side = 0.128 + 0.075 * smoothstep(0.43, 0.30, y) + 0.2 * smoothstep(0.31, 0.25, y) - x
        return np.minimum(np.minimum(y - hem, side), neckline(p, cut.neck))

    return distance


def lower_keep(cut: Cut) -> Distance:
    """Signed distance of trousers or shorts."""
    return lambda p: np.minimum(WAIST_Y - p[:, 1], p[:, 1] - cut.hem)


def seam(p: Array) -> Array:
    """(N,) signed distance to the seam between torso (negative) and sleeve (positive)."""
    x, y = np.abs(p[:, 0]), p[:, 1]
    return np.minimum(x - SEAM_X + 0.25 * (ARM_Y - y) * (y < ARM_Y), y - 0.29)


_ELLIPSE = np.linspace(-np.pi, np.pi, 721)
ARC = np.concatenate([[0], np.cumsum(np.hypot(np.diff(0.165 * np.sin(_ELLIPSE)), np.diff(0.11 * np.cos(_ELLIPSE))))])
ARC -= ARC[len(ARC) // 2]


def around_torso(x: Array, z: Array) -> Array:
    """(N,) metres along the girth from the front's middle, positive to the left."""
    return np.interp(np.arctan2(x / 0.165, (z - 0.025) / 0.11), _ELLIPSE, ARC)
