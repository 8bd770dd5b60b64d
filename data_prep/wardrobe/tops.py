"""Tops: shirts, their necks, collars and hoods.

Frame and legend as in :mod:`data_prep.wardrobe.meshes`.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from data_prep.wardrobe.cuts import (
    ARC,
    ARM_Y,
    ARM_Z,
    COLLAR,
    SEAM_X,
    SLEEVE,
    TORSO,
    Cut,
    around_torso,
    seam,
    upper_keep,
)
from data_prep.wardrobe.meshes import Array, Cloth, Distance, join, smoothstep
from data_prep.wardrobe.pieces import cut_piece
from data_prep.wardrobe.tailor import tailor


def make_top(cut: Cut, shape: Array, hem: float | None = None) -> tuple[Cloth, Distance]:
    """A top, its sleeves sewn on as pieces of their own.

    Args:
        cut: the shape.
        shape: (V, 3) what the wearer's shape adds to the template.
        hem: where it ends; the cut's hem if None.
    """
    t = tailor()
    keep = upper_keep(cut, cut.hem if hem is None else hem)
    offset = t.upper_tight * (1 - cut.fit) + t.upper_loose * cut.fit
    if hem is not None:  # a bodice: close at the waist, where the skirt goes over it
        offset = offset * (1 - 0.75 * smoothstep(0.24, 0.13, t.template[:, 1]))[:, None]
    chosen = ~np.isin(t.dominant, [15, 22, 23, 24])
    whole = cut_piece(offset, shape, keep, chosen)
    at_seam = seam(whole.template)
    torso, sleeves = whole.cut(1e-7 - at_seam), whole.cut(1e-7 + at_seam)
    uv = np.stack([around_torso(torso.template[:, 0], torso.template[:, 2]), torso.template[:, 1]], 1)
    pieces = [torso.sewn(uv, TORSO, 2 * ARC[-1])]
    if len(sleeves.faces):
        x, y, z = sleeves.template.T
        angle = np.arctan2(z - ARM_Z, y - ARM_Y)
        uv = np.stack([angle * 0.06 + np.sign(x), 0.44 + SEAM_X - np.abs(x)], 1)  # as if it hung
        pieces.append(sleeves.sewn(uv, SLEEVE, 2 * np.pi * 0.06))
    if cut.neck == "collar":
        pieces.append(_collar(shape))
    if cut.neck == "hood":
        pieces.append(_hood(shape))
    return join(pieces), keep


def _neck_band(profile: list[tuple[float, float, float]], shape: Array, span: float, columns: int = 40) -> Cloth:
    """A band around the neck. profile: rows of (radius, height, slope of the height towards the front).

    ``span``: half the angle it covers, counted from the back (pi: closed in front).
    """
    t = tailor()
    centre = np.array([0.0, 0.0, 0.004])
    angle = np.linspace(-span, span, columns) + np.pi
    rows = []
    for radius, height, slope in profile:
        front = ((1 + np.cos(angle)) / 2) ** 2.5
        rows.append(
            np.stack(
                [
                    radius * 0.98 * np.sin(angle),
                    height - slope * front,
                    radius * np.cos(angle) * 1.02 + centre[2] + 0.012 * front,
                ],
                1,
            )
        )
    points = np.stack(rows).reshape(-1, 3).astype(np.float32)
    near = np.abs(t.template - np.array([0, 0.47, 0])).sum(1) < 0.4
    ids = np.where(near)[0]
    nearest = ids[((points[:, None] - t.template[ids][None]) ** 2).sum(-1).argmin(1)]
    n = len(profile)
    r, a = np.meshgrid(np.arange(n - 1), np.arange(columns - 1), indexing="ij")
    i, j = r * columns + a, r * columns + a + 1
    faces = np.concatenate(
        [np.stack([i, i + columns, j], -1).reshape(-1, 3), np.stack([j, i + columns, j + columns], -1).reshape(-1, 3)]
    )
    length = np.cumsum([0.0] + [np.hypot(b[0] - a_[0], b[1] - a_[1]) for a_, b in pairwise(profile)])
    uv = np.stack([np.tile(angle * 0.075, n), np.repeat(length, columns) + 0.5], 1)
    edge = np.repeat(length[-1] - length, columns)
    edge = np.minimum(edge, np.tile((span - np.abs(angle - np.pi)) * 0.075, n))
    weights = t.soft_weights[nearest]
    return Cloth(points, shape[nearest], weights, nearest, faces, uv, edge, np.full(len(faces), COLLAR))


def _collar(shape: Array) -> Cloth:
    """A stand around the neck, and the fall turned down over it."""
    return _neck_band(
        [(0.074, 0.488, 0.050), (0.074, 0.522, 0.050), (0.079, 0.533, 0.052), (0.096, 0.523, 0.060),
         (0.112, 0.503, 0.072), (0.120, 0.488, 0.086)],
        shape, span=np.pi - 0.14,
    )  # fmt: skip


def _hood(shape: Array) -> Cloth:
    """A hood that lies on the back and the shoulders."""
    return _neck_band(
        [(0.088, 0.485, 0.055), (0.098, 0.525, 0.055), (0.118, 0.535, 0.055), (0.135, 0.510, 0.055),
         (0.135, 0.465, 0.045), (0.118, 0.435, 0.02)],
        shape, span=np.pi - 0.35,
    )  # fmt: skip
