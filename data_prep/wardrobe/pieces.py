"""Pieces of cloth cut from the body's own surface.

Frame and legend as in :mod:`data_prep.wardrobe.meshes`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from data_prep.wardrobe.meshes import Array, Cloth, Distance, clip
from data_prep.wardrobe.tailor import tailor


class Piece(NamedTuple):
    """Cloth being cut: rows (N, 65) [template 3, rest 3, shape 3, weights 55, metres to the edge], the body vertex each
    came from (N,), faces (M, 3)."""

    rows: Array
    ids: Array
    faces: Array

    @property
    def template(self) -> Array:
        """(N, 3) where on the body's rest surface the cloth lies."""
        return self.rows[:, :3]

    def cut(self, distance: Array) -> Piece:
        """What lies where ``distance`` (N,) is positive."""
        return Piece(*clip(self.rows, self.ids, self.faces, distance)[:3])

    def sewn(self, uv: Array, region: int, girth: float = 0.0) -> Cloth:
        """A cloth with pattern coordinates (N, 2); faces across the seam where u jumps by ``girth`` are opened."""
        rows, ids, faces = self
        if girth:
            u = uv[:, 0]
            low = (np.ptp(u[faces], axis=1) > girth / 2)[:, None] & (
                u[faces] < u[faces].max(1, keepdims=True) - girth / 2
            )
            again, back = np.unique(faces[low], return_inverse=True)
            faces = faces.copy()
            faces[low] = len(rows) + back.reshape(-1)
            uv = np.concatenate([uv, uv[again] + np.array([girth, 0])])
            rows, ids = np.concatenate([rows, rows[again]]), np.concatenate([ids, ids[again]])
        rest, shape, weights, edge = rows[:, 3:6], rows[:, 6:9], np.ascontiguousarray(rows[:, 9:-1]), rows[:, -1]
        return Cloth(rest, shape, weights, ids, faces, uv, edge, np.full(len(faces), region))


def cut_piece(offset: Array, shape: Array, keep: Distance, chosen: Array) -> Piece:
    """The body's surface where ``chosen`` (V,), moved by ``offset`` (V, 3), cut where ``keep`` ends."""
    t = tailor()
    distance = keep(t.template)
    faces = t.faces[(distance[t.faces] > 0).any(1) & chosen[t.faces].all(1)]
    used, flat = np.unique(faces, return_inverse=True)
    rows = np.concatenate([t.template, t.template + offset, shape, t.soft_weights], 1)[used].astype(np.float32)
    rows, ids, faces, distance = clip(rows, used, flat.reshape(-1, 3), distance[used])
    return Piece(np.concatenate([rows, distance[:, None]], 1).astype(np.float32), ids, faces)
