"""Clothes as meshes on the open body: cut out of the body's own surface, moved outwards, and skinned with it.

A pattern piece is the body's surface where a signed distance ``keep(p)`` (metres, on the template's T-pose) is
positive, cut exactly along the zero line, so hems, necklines and cuffs are clean curves whatever the mesh. Its offset
from the body blends a tight and a loose fit, both prepared once. Skirts are no part of the body: they are hung anew in
every pose, around the legs' convex cross-sections.

Frame: the open body's rest pose (model frame: x to the person's left, y up, z forward, metres, pelvis at the origin).
Legend: V body vertices, N cloth vertices, M cloth faces, J = 55 joints, A angles, R rings.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from data_prep.wardrobe.cuts import GROUND_Y, LEGS, SKIRT, TORSO, WAIST_Y, Cut, lower_keep
from data_prep.wardrobe.meshes import Array, Cloth, Distance, Wearer, join, smoothstep
from data_prep.wardrobe.pieces import cut_piece
from data_prep.wardrobe.skirts import Skirt
from data_prep.wardrobe.tailor import tailor
from data_prep.wardrobe.tops import make_top


@dataclass(frozen=True, eq=False)
class Garment:
    """A garment ready to wear: skinned cloth, a skirt, or both.

    ``keep`` tells for any point of the body's rest surface how deep (metres) it lies under the garment.
    """

    cut: Cut
    cloth: Cloth | None
    skirt: Skirt | None
    keep: Distance

    @cached_property
    def faces(self) -> Array:
        """(M, 3) over cloth then skirt."""
        parts, start = [], 0
        if self.cloth is not None:
            parts.append(self.cloth.faces)
            start = len(self.cloth.rest)
        if self.skirt is not None:
            parts.append(self.skirt.faces + start)
        return np.concatenate(parts)

    @cached_property
    def heights(self) -> Array:
        """(N,) rest heights of the vertices, metres."""
        parts = [] if self.cloth is None else [self.cloth.rest[:, 1]]
        if self.skirt is not None:
            parts.append(np.repeat(self.skirt.heights, len(self.skirt.uv) // self.skirt.rings))
        return np.concatenate(parts)

    @cached_property
    def rows(self) -> tuple[Array, Array, Array]:
        """uv (N, 2), edge (N,), region (M,)."""
        uv, edge, region = [], [], []
        if self.cloth is not None:
            uv, edge, region = [self.cloth.uv], [self.cloth.edge], [self.cloth.region]
        if self.skirt is not None:
            uv, edge = [*uv, self.skirt.uv], [*edge, self.skirt.edge]
            region = [*region, np.full(len(self.skirt.faces), SKIRT)]
        return np.concatenate(uv).astype(np.float32), np.concatenate(edge).astype(np.float32), np.concatenate(region)

    def posed(self, body: Wearer) -> Array:
        """(N, 3) float32 vertices on a posed body."""
        parts = []
        if self.cloth is not None:
            parts.append(self.cloth.posed(body))
        if self.skirt is not None:
            parts.append(self.skirt.hang(body))
        points = np.concatenate(parts).astype(np.float32)
        assert np.isfinite(points).all(), f"the {self.cut.kind} has no place on this pose"
        return points


def make_legs(cut: Cut, shape: Array) -> tuple[Cloth, Distance]:
    """Trousers or shorts: a left and a right half that meet in the middle."""
    t = tailor()
    keep = lower_keep(cut)
    offset = t.lower_slim * (1 - cut.fit) + t.lower_wide * cut.fit
    chosen = np.isin(t.dominant, [0, 1, 2, 3, 4, 5, 6, 7, 8])
    whole = cut_piece(offset, shape, keep, chosen)
    pieces = []
    for side in (1.0, -1.0):
        half = whole.cut(side * whole.template[:, 0] + 1e-7)
        y = half.template[:, 1]
        away = half.template[:, [0, 2]] - t.leg_axis(y, np.full(len(y), side))
        uv = np.stack([np.arctan2(away[:, 0], away[:, 1]) * 0.095 + side, y], 1)
        pieces.append(half.sewn(uv, LEGS, 2 * np.pi * 0.095))
    return join(pieces), keep


def make_garment(cut: Cut, shape: Array, phase: float = 0.0) -> Garment:
    """Sew a garment for a wearer.

    Args:
        cut: the shape.
        shape: (V, 3) what the wearer's shape adds to the template at rest; zeros for the template itself.
        phase: turns a skirt's folds.
    """
    if cut.category == "upper":
        cloth, keep = make_top(cut, shape)
        return Garment(cut, cloth, None, keep)
    if cut.kind in ("trousers", "shorts"):
        cloth, keep = make_legs(cut, shape)
        return Garment(cut, cloth, None, keep)
    top = WAIST_Y if cut.kind == "skirt" else 0.115
    ease = 0.010 + 0.004 * cut.fit if cut.kind == "skirt" else 0.016 + 0.010 * cut.fit
    skirt = Skirt(top, cut.hem, cut.flare, cut.folds, phase, ease, shape)

    def hanging(p: Array) -> Array:
        return np.minimum(np.minimum(top - p[:, 1], p[:, 1] - cut.hem), 0.6 - np.abs(p[:, 0]))

    if cut.kind == "skirt":
        return Garment(cut, None, skirt, hanging)
    bodice, bodice_keep = make_top(replace(cut, fit=cut.fit * 0.3), shape, hem=0.05)

    def both(p: Array) -> Array:  # deep under the overlap of the two
        over, below = bodice_keep(p), hanging(p)
        return np.maximum(over, below) + np.maximum(np.minimum(over, below), 0)

    return Garment(cut, bodice, skirt, both)


def make_shoes(shape: Array, height: float) -> tuple[Cloth, Distance]:
    """A pair of shoes that end ``height`` metres above the ground."""
    t = tailor()
    top = GROUND_Y + height

    def keep(p: Array) -> Array:
        return top + 0.035 * smoothstep(0.02, -0.05, p[:, 2]) - p[:, 1]

    chosen = np.isin(t.dominant, [4, 5, 7, 8, 10, 11])
    pair = cut_piece(t.shoe, shape, keep, chosen)
    return pair.sewn(np.stack([pair.rows[:, 2], pair.rows[:, 4] - GROUND_Y + 0.012], 1), TORSO), keep
