"""How skin follows bones: weights, twists, dual quaternions, and the smoothing that correctives are learned from.

Legend: V vertices, F faces, J = 55 joints.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.spatial.transform import Rotation

from data_prep.open_body.makehuman import PARENTS, Array
from omfa.bodies.convert import best_rotation
from omfa.bodies.parameters import JOINTS


def straighten(joints: Array) -> tuple[Array, Array]:
    """World rotations (55, 3, 3) that lift the arms into the T-pose, and the joints (55, 3) after it."""
    turn = np.repeat(np.eye(3)[None], JOINTS, axis=0)
    for right, side in enumerate((1.0, -1.0)):
        along = np.array([[side, 0, 0]])
        shoulder, elbow, wrist, middle, first = 16 + right, 18 + right, 20 + right, 28 + 15 * right, 25 + 15 * right
        for j, child, before in ((shoulder, elbow, None), (elbow, wrist, shoulder), (wrist, middle, elbow)):
            base = np.eye(3) if before is None else turn[before]
            bone = base @ (joints[child] - joints[j])
            turn[j] = best_rotation(bone[None] / np.linalg.norm(bone), along) @ base
        turn[first : first + 15] = turn[wrist]
    straight = joints.copy()
    for j in range(1, JOINTS):
        straight[j] = straight[PARENTS[j]] + turn[PARENTS[j]] @ (joints[j] - joints[PARENTS[j]])
    return turn, straight


def posed_transforms(joints: Array, straight: Array, turn: Array, local: Array) -> tuple[Array, Array]:
    """World rotations (55, 3, 3) and shifts (55, 3) from MakeHuman's stance to a pose given in SMPL-X's way."""
    world, place = np.empty_like(local), straight.copy()
    world[0] = local[0]
    for j in range(1, JOINTS):
        p = PARENTS[j]
        world[j] = world[p] @ local[j]
        place[j] = place[p] + world[p] @ (straight[j] - straight[p])
    total = world @ turn
    return total, place - np.einsum("jab,jb->ja", total, joints)


def blend_dual(vertices: Array, weights: Array, turns: Array, shifts: Array) -> Array:
    """Dual-quaternion skinning (Kavan et al. 2007), signs taken relative to each vertex's heaviest joint."""
    real = Rotation.from_matrix(turns).as_quat()  # x y z w
    dual = 0.5 * _quaternion_product(np.concatenate([shifts, np.zeros((len(turns), 1))], 1), real)
    heaviest = real[weights.argmax(1)]
    signed = weights * np.where(heaviest @ real.T < 0, -1, 1)
    q, d = signed @ real, signed @ dual
    norm = np.linalg.norm(q, axis=1, keepdims=True)
    q, d = q / norm, d / norm
    conjugate = q * [-1, -1, -1, 1]
    return Rotation.from_quat(q).apply(vertices) + 2 * _quaternion_product(d, conjugate)[:, :3]


def _quaternion_product(a: Array, b: Array) -> Array:
    xyz = a[:, 3:] * b[:, :3] + b[:, 3:] * a[:, :3] + np.cross(a[:, :3], b[:, :3])
    return np.concatenate([xyz, a[:, 3:] * b[:, 3:] - (a[:, :3] * b[:, :3]).sum(1, keepdims=True)], 1)


class DeltaMush:
    """Smooths a deformed mesh and puts the rest shape's detail back on top (Mancewicz et al. 2014)."""

    def __init__(self, faces: Array, count: int, where: Array, steps: int = 10) -> None:
        self.faces, self.where, self.steps = faces, where[:, None], steps
        self.step = neighbour_mean(faces, count)
        self.toward = np.zeros(count, np.int64)  # a neighbour of each vertex: fixes the frame's tangent
        self.toward[faces[:, 0]], self.toward[faces[:, 1]], self.toward[faces[:, 2]] = (
            faces[:, 1],
            faces[:, 2],
            faces[:, 0],
        )

    def smooth(self, vertices: Array) -> Array:
        """Laplacian smoothing."""
        for _ in range(self.steps):
            vertices = 0.5 * vertices + 0.5 * (self.step @ vertices)
        return vertices

    def frames(self, smooth: Array) -> Array:
        """(V, 3, 3) local frames on the smooth mesh, axes in columns."""
        a, b, c = (smooth[self.faces[:, k]] for k in range(3))
        normal, flat = np.zeros_like(smooth), np.cross(b - a, c - a)
        for k in range(3):
            np.add.at(normal, self.faces[:, k], flat)
        normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-12
        tangent = smooth[self.toward] - smooth
        tangent -= normal * (tangent * normal).sum(1, keepdims=True)
        tangent /= np.linalg.norm(tangent, axis=1, keepdims=True) + 1e-12
        return np.stack([tangent, np.cross(normal, tangent), normal], -1)

    def __call__(self, rest: Array, deformed: Array) -> Array:
        """``deformed`` with the detail of ``rest``; unchanged where ``where`` is 0."""
        base = self.smooth(rest)
        delta = np.einsum("vba,vb->va", self.frames(base), rest - base)
        target = self.smooth(deformed)
        target = target + np.einsum("vab,vb->va", self.frames(target), delta)
        return deformed + self.where * (target - deformed)


def neighbour_mean(faces: Array, count: int) -> sparse.csr_matrix:
    """(V, V) each row the mean over a vertex's neighbours."""
    i = np.concatenate([faces[:, [0, 1, 2]].ravel(), faces[:, [1, 2, 0]].ravel()])
    j = np.concatenate([faces[:, [1, 2, 0]].ravel(), faces[:, [0, 1, 2]].ravel()])
    links = sparse.csr_matrix((np.ones(len(i)), (i, j)), shape=(count, count))
    links.data[:] = 1
    lonely = sparse.diags((np.asarray(links.sum(1)).ravel() == 0).astype(float))
    links = links + lonely
    return (sparse.diags(1 / np.asarray(links.sum(1)).ravel()) @ links).tocsr()


def smooth_weights(weights: Array, faces: Array, where: Array, steps: int) -> Array:
    """Skinning weights diffused along the surface where ``where`` (V,) is 1."""
    mean, out = neighbour_mean(faces, len(weights)), weights.copy()
    for _ in range(steps):
        out += where[:, None] * 0.5 * (mean @ out - out)
    return out / out.sum(1, keepdims=True)


def split_twist(rest: Array, joints: Array, weights: Array) -> Array:
    """(V, 55 + 6) weights with twist spread along the arms: shoulders and elbows without their twist, and forearms
    that follow the wrist's, take over near the joint (the skin of an arm turns little by little).
    """
    extra = np.zeros((len(weights), 6))
    out = np.concatenate([weights, extra], 1)
    for k, (j, child, begin, end) in enumerate(_TWISTS):
        bone = joints[child] - joints[j]
        along = _smoothstep((rest - joints[j]) @ bone / (bone @ bone), begin, end)
        if k < 4:
            out[:, JOINTS + k], out[:, j] = weights[:, j] * (1 - along), weights[:, j] * along
        else:
            out[:, JOINTS + k] = out[:, j] * 0.6 * along
            out[:, j] -= out[:, JOINTS + k]
    return out


# joint, next joint, and the stretch of the bone (0 to 1) along which its skin takes up the twist; the last two: the
# wrist's twist on the forearm
_TWISTS: tuple[tuple[int, int, float, float], ...] = (
    (16, 18, 0.0, 0.9), (17, 19, 0.0, 0.9), (18, 20, -0.1, 0.7), (19, 21, -0.1, 0.7),
    (18, 20, 0.45, 1.0), (19, 21, 0.45, 1.0),
)  # fmt: skip


def _smoothstep(x: Array, low: float, high: float) -> Array:
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def twist_about_x(matrix: Array) -> Array:
    """(3, 3) the part of a rotation that turns about x: matrix = swing @ twist."""
    x, _, _, w = Rotation.from_matrix(matrix).as_quat()
    return Rotation.from_rotvec([2 * np.arctan2(x, w), 0, 0]).as_matrix()


def twist_transforms(joints: Array, turn: Array, local: Array, turns: Array, shifts: Array) -> tuple[Array, Array]:
    """The transforms of :func:`posed_transforms` and those of the six helpers of :func:`split_twist`."""
    more_turns, more_shifts = [], []
    for k, (j, child, _, _) in enumerate(_TWISTS):
        world = turns[j] @ turn[j].T
        twist = twist_about_x(local[j]).T if k < 4 else twist_about_x(local[child])
        total = world @ twist @ turn[j]
        more_turns.append(total)
        more_shifts.append(shifts[j] + (turns[j] - total) @ joints[j])
    return np.concatenate([turns, np.stack(more_turns)]), np.concatenate([shifts, np.stack(more_shifts)])


def deform(rest: Array, joints: Array, weights: Array, mush: DeltaMush, local: Array) -> Array:
    """The reference: (V, 3) posed vertices. ``rest`` and ``joints`` as MakeHuman stands, ``local`` (55, 3, 3)."""
    turn, straight = straighten(joints)
    transforms = posed_transforms(joints, straight, turn, local)
    transforms = twist_transforms(joints, turn, local, *transforms)
    split = split_twist(rest, joints, weights)
    return mush(rest, blend_dual(rest, split, *transforms))
