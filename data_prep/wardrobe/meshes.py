"""Meshes of cloth and skin: posed bodies, cloth that follows them, cutting and joining.

Frame: model frame, metres. Legend: V body vertices, N cloth vertices, M cloth faces, J = 55 joints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]
Distance = Callable[[Array], Array]


def smoothstep(low: float | Array, high: float | Array, x: Array) -> Array:
    """0 before ``low``, 1 after ``high`` (or the reverse for low > high), smooth between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


@dataclass(frozen=True, eq=False)
class Wearer:
    """A posed body, float32.

    Args:
        vertices: (V, 3) camera frame.
        joints: (55, 3) camera frame.
        transforms: (55, 3, 4) of the joints, from rest to the camera frame.
        bulge: (V, 3) what the pose adds to the surface at rest (SMPL's pose blend shapes), softened for cloth.
    """

    vertices: Array
    joints: Array
    transforms: Array
    bulge: Array

    def moved(self, by: Array) -> Wearer:
        """The same, translated by (3,) metres."""
        by = by.astype(np.float32)
        transforms = self.transforms.copy()
        transforms[..., 3] += by
        return Wearer(self.vertices + by, self.joints + by, transforms, self.bulge)


@dataclass(frozen=True, eq=False)
class Cloth:
    """A skinned surface at rest.

    Args:
        rest: (N, 3) on the template body.
        shape: (N, 3) what the wearer's body shape adds.
        weights: (N, 55) skinning.
        anchor: (N,) body vertex whose bulge it follows.
        faces: (M, 3).
        uv: (N, 2) metres along and across the cloth: where patterns live.
        edge: (N,) metres to the nearest hem.
        region: (M,) one of TORSO, SLEEVE, COLLAR, SKIRT, LEGS.
    """

    rest: Array
    shape: Array
    weights: Array
    anchor: Array
    faces: Array
    uv: Array
    edge: Array
    region: Array

    def posed(self, body: Wearer) -> Array:
        """(N, 3) float32 vertices on the posed wearer."""
        return skin(self.rest + self.shape + body.bulge[self.anchor], self.weights, body.transforms)


def skin(points: Array, weights: Array, transforms: Array) -> Array:
    """Linear blend skinning (SMPL, equation 2). points (N, 3), weights (N, 55), transforms (55, 3, 4) -> (N, 3)."""
    blended = torch.from_numpy(weights) @ torch.from_numpy(transforms.reshape(55, 12))
    matrices = blended.numpy().reshape(-1, 3, 4)
    return np.einsum("nab,nb->na", matrices[..., :3], points) + matrices[..., 3]


def joint_transforms(joints: Array, parents: Array, rotations: Array) -> Array:
    """(55, 3, 4) float32 world transforms of joints (55, 3) at rest turned by local rotations (55, 3, 3)."""
    world = np.zeros((len(joints), 3, 4))
    for j, p in enumerate(parents):
        if p < 0:
            world[j, :, :3], world[j, :, 3] = rotations[j], joints[j]
        else:
            world[j, :, :3] = world[p, :, :3] @ rotations[j]
            world[j, :, 3] = world[p, :, :3] @ (joints[j] - joints[p]) + world[p, :, 3]
    world[..., 3] -= np.einsum("jab,jb->ja", world[..., :3], joints)
    return world.astype(np.float32)


def join(pieces: list[Cloth]) -> Cloth:
    """Several pieces as one, seams kept open (each side keeps its own pattern coordinates)."""
    starts = np.cumsum([0] + [len(p.rest) for p in pieces[:-1]])
    faces = np.concatenate([p.faces + s for p, s in zip(pieces, starts, strict=True)])
    names = ("rest", "shape", "weights", "anchor", "uv", "edge")
    rows = {n: np.concatenate([getattr(p, n) for p in pieces]) for n in names}
    return Cloth(faces=faces, region=np.concatenate([p.region for p in pieces]), **rows)


def clip(rows: Array, ids: Array, faces: Array, distance: Array) -> tuple[Array, Array, Array, Array]:
    """Cut a mesh along distance = 0 and keep the positive side.

    Args:
        rows: (N, D) attributes, interpolated along cut edges.
        ids: (N,) labels, taken from one end of a cut edge.
        faces: (M, 3).
        distance: (N,).

    Returns:
        Attributes, labels, faces and distances of the kept part; vertices not used are dropped.
    """
    inside = distance > 0
    count = inside[faces].sum(1)
    whole = faces[count == 3]
    pieces = [whole]
    new_rows, new_ids, new_distance = [rows], [ids], [distance]
    cut = faces[(count == 1) | (count == 2)]
    if len(cut):
        odd = inside[cut] == (inside[cut].sum(1) == 1)[:, None]  # the corner alone on its side
        turn = (odd.argmax(1)[:, None] + np.arange(3)) % 3
        a, b, c = np.take_along_axis(cut, turn, 1).T
        edges = np.concatenate([np.sort(np.stack([a, b], 1), 1), np.sort(np.stack([a, c], 1), 1)])
        keys, back = np.unique(edges[:, 0].astype(np.int64) * len(rows) + edges[:, 1], return_inverse=True)
        i, j = keys // len(rows), keys % len(rows)
        t = (distance[i] / (distance[i] - distance[j]))[:, None].astype(rows.dtype)
        new_rows.append(rows[i] * (1 - t) + rows[j] * t)
        new_ids.append(ids[i])
        new_distance.append(np.zeros(len(keys), distance.dtype))
        ab, ac = (len(rows) + back.reshape(-1)).reshape(2, -1)
        lone = inside[a]
        pieces.append(np.stack([a, ab, ac], 1)[lone])
        pieces.append(np.stack([ab, b, c], 1)[~lone])
        pieces.append(np.stack([ab, c, ac], 1)[~lone])
    kept = np.concatenate(pieces)
    used, flat = np.unique(kept, return_inverse=True)
    rows, ids, distance = (np.concatenate(parts)[used] for parts in (new_rows, new_ids, new_distance))
    return rows, ids, flat.reshape(-1, 3), distance


def dot(a: Array, b: Array) -> Array:
    """(n,) dot products of (n, 3) rows; much faster than ``(a * b).sum(1)``."""
    return np.einsum("nc,nc->n", a, b)


def face_normals(vertices: Array, faces: Array) -> Array:
    """(M, 3) normals, twice as long as the faces' areas."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    (x0, y0, z0), (x1, y1, z1) = (b - a).T, (c - a).T
    return np.stack([y0 * z1 - z0 * y1, z0 * x1 - x0 * z1, x0 * y1 - y0 * x1], 1)


def unit(v: Array) -> Array:
    """(n, 3) float32 rows scaled to length one."""
    return (v / np.maximum(np.sqrt(dot(v, v)), 1e-12)[:, None]).astype(np.float32)


def vertex_normals(vertices: Array, faces: Array) -> Array:
    """(N, 3) float32 unit normals, area-weighted."""
    n = face_normals(vertices, faces)
    corners = faces.reshape(-1)
    return unit(np.stack([np.bincount(corners, np.repeat(n[:, k], 3), len(vertices)) for k in range(3)], 1))
