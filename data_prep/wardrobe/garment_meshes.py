"""Clothes as meshes on the open body: cut out of the body's own surface, moved outwards, and skinned with it.

A pattern piece is the body's surface where a signed distance ``keep(p)`` (metres, on the template's T-pose) is
positive, cut exactly along the zero line, so hems, necklines and cuffs are clean curves whatever the mesh. Its offset
from the body blends a tight and a loose fit, both prepared once. Skirts are no part of the body: they are hung anew in
every pose, around the legs' convex cross-sections.

Frame: the open body's rest pose (model frame: x to the person's left, y up, z forward, metres, pelvis at the origin).
Legend: V body vertices, N cloth vertices, M cloth faces, J = 55 joints, A angles, R rings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from omfa.bodies.body import Body, load_body

Array = NDArray[Any]
Distance = Callable[[Array], Array]

ANGLES = 48
WAIST_Y = 0.085  # where lower garments and skirts begin, rest pose
ANKLE_Y, GROUND_Y = -0.971, -1.051
SEAM_X = 0.172  # the sleeve's seam at the shoulder
ARM_Y, ARM_Z = 0.418, 0.028  # the arm's axis at rest

_BAND = 4  # rings of a skirt that make its waistband
TORSO, SLEEVE, COLLAR, SKIRT, LEGS = range(5)  # regions of a garment: what a pattern may colour differently


def smoothstep(low: float | Array, high: float | Array, x: Array) -> Array:
    """0 before ``low``, 1 after ``high`` (or the reverse for low > high), smooth between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


# ---------------------------------------------------------------------------------------------------- cloth


@dataclass(frozen=True, eq=False)
class Posed:
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

    def moved(self, by: Array) -> Posed:
        """The same, translated by (3,) metres."""
        by = by.astype(np.float32)
        transforms = self.transforms.copy()
        transforms[..., 3] += by
        return Posed(self.vertices + by, self.joints + by, transforms, self.bulge)


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

    def posed(self, body: Posed) -> Array:
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


# ---------------------------------------------------------------------------------------------------- cross-sections

_THETA = np.arange(ANGLES) * 2 * np.pi / ANGLES
_DIRECTIONS = np.stack([np.sin(_THETA), np.cos(_THETA)], 1).astype(np.float32)  # angle 0 is z (front), 90 deg is x
_COS = np.cos(_THETA[:, None] - _THETA[None, :])
_SECANT = np.where(_COS > 0.05, 1 / np.maximum(_COS, 0.05), np.inf).astype(np.float32)


def radial_hull(points: Array) -> Array:
    """(A,) distance from the origin to the convex hull of (n, 2) points (x, z), the origin inside it."""
    support = np.maximum((points.astype(np.float32) @ _DIRECTIONS.T).max(0), 1e-3)
    return (support[None, :] * _SECANT).min(1)


def at_angle(profile: Array, theta: Array) -> Array:
    """Linear interpolation of (..., A) profiles at angles (...,) that broadcast with the leading axes' values."""
    place = np.mod(theta, 2 * np.pi) * (ANGLES / (2 * np.pi))
    low = np.floor(place).astype(np.int64) % ANGLES
    t = place - np.floor(place)
    rows = np.arange(len(profile))
    return profile[rows, low] * (1 - t) + profile[rows, (low + 1) % ANGLES] * t


# ---------------------------------------------------------------------------------------------------- the tailor


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


@lru_cache(maxsize=1)
def tailor() -> Tailor:
    """The open body's tailor, prepared once per process."""
    return Tailor(load_body())


# ---------------------------------------------------------------------------------------------------- cut


@dataclass(frozen=True)
class Cut:
    """The shape of a garment.

    Args:
        kind: t-shirt, long-sleeve top, tank top, shirt, hoodie, trousers, shorts, skirt or dress.
        fit: 0 tight to 1 loose.
        hem: height of the lower hem at rest, metres.
        sleeve: where the sleeve ends on the arm (x at rest, metres); 0: none.
        neck: crew, scoop, v, boat, collar or hood.
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
_ARC = np.concatenate([[0], np.cumsum(np.hypot(np.diff(0.165 * np.sin(_ELLIPSE)), np.diff(0.11 * np.cos(_ELLIPSE))))])
_ARC -= _ARC[len(_ARC) // 2]


def around_torso(x: Array, z: Array) -> Array:
    """(N,) metres along the girth from the front's middle, positive to the left."""
    return np.interp(np.arctan2(x / 0.165, (z - 0.025) / 0.11), _ELLIPSE, _ARC)


# ---------------------------------------------------------------------------------------------------- garments


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
            ring = _DIRECTIONS * reach
            rows.append(np.stack([ring[:, 0], np.full(ANGLES, height, np.float32), ring[:, 1]], 1))
        points = np.concatenate(rows).astype(np.float32)
        ids = np.unique(np.concatenate(self._bands[:_BAND]))
        nearest = ids[((points[:, None] - t.template[ids][None]) ** 2).sum(-1).argmin(1)]
        return points + self.shape[nearest], t.soft_weights[nearest], nearest

    def hang(self, body: Posed) -> Array:
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
        wave = np.cos(self.folds * _THETA + self.phase) + 0.5 * np.cos((self.folds * 2 - 3) * _THETA + 2 * self.phase)
        reach = reach + (0.006 + 0.05 * self.flare) * down**1.5 * (wave[None, :] + 0.6)
        d = _DIRECTIONS
        rings = [soft[r] + reach[r, :, None] * (d[:, :1] * x + d[:, 1:] * z) for r, (x, z) in enumerate(frames)]
        points = np.stack(rings)
        rest, weights, anchor = self._band
        band = skin(rest + body.bulge[anchor], weights, transforms).reshape(_BAND, ANGLES, 3)
        share = smoothstep(0.0, 1.0, np.arange(_BAND) / _BAND)[:, None, None]
        points[:_BAND] = band * (1 - share) + points[:_BAND] * share
        columns = (np.arange(ANGLES + 1) + ANGLES // 2) % ANGLES  # start at the back
        return points[:, columns].reshape(-1, 3).astype(np.float32)


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

    def posed(self, body: Posed) -> Array:
        """(N, 3) float32 vertices on a posed body."""
        parts = []
        if self.cloth is not None:
            parts.append(self.cloth.posed(body))
        if self.skirt is not None:
            parts.append(self.skirt.hang(body))
        points = np.concatenate(parts).astype(np.float32)
        assert np.isfinite(points).all(), f"the {self.cut.kind} has no place on this pose"
        return points


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


def _piece(offset: Array, shape: Array, keep: Distance, chosen: Array) -> Piece:
    """The body's surface where ``chosen`` (V,), moved by ``offset`` (V, 3), cut where ``keep`` ends."""
    t = tailor()
    distance = keep(t.template)
    faces = t.faces[(distance[t.faces] > 0).any(1) & chosen[t.faces].all(1)]
    used, flat = np.unique(faces, return_inverse=True)
    rows = np.concatenate([t.template, t.template + offset, shape, t.soft_weights], 1)[used].astype(np.float32)
    rows, ids, faces, distance = clip(rows, used, flat.reshape(-1, 3), distance[used])
    return Piece(np.concatenate([rows, distance[:, None]], 1).astype(np.float32), ids, faces)


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
    whole = _piece(offset, shape, keep, chosen)
    at_seam = seam(whole.template)
    torso, sleeves = whole.cut(1e-7 - at_seam), whole.cut(1e-7 + at_seam)
    uv = np.stack([around_torso(torso.template[:, 0], torso.template[:, 2]), torso.template[:, 1]], 1)
    pieces = [torso.sewn(uv, TORSO, 2 * _ARC[-1])]
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


def make_legs(cut: Cut, shape: Array) -> tuple[Cloth, Distance]:
    """Trousers or shorts: a left and a right half that meet in the middle."""
    t = tailor()
    keep = lower_keep(cut)
    offset = t.lower_slim * (1 - cut.fit) + t.lower_wide * cut.fit
    chosen = np.isin(t.dominant, [0, 1, 2, 3, 4, 5, 6, 7, 8])
    whole = _piece(offset, shape, keep, chosen)
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
    pair = _piece(t.shoe, shape, keep, chosen)
    return pair.sewn(np.stack([pair.rows[:, 2], pair.rows[:, 4] - GROUND_Y + 0.012], 1), TORSO), keep
