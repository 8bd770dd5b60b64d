"""The body as joints alone: posed with derivatives, which is all that fitting needs.

Legend: B people, J = 55 joints, N = J + hanging points.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omfa.bodies.body import KEY_VERTICES, Body
from omfa.bodies.parameters import BETAS, JOINT_IDS, JOINTS

Array = NDArray[Any]
# Points that hang on a joint: name (also of KEY_VERTICES) to the joint that carries them.
_HANGING = {
    "nose": "head", "leye": "head", "reye": "head", "lear": "head", "rear": "head",
    "LBigToe": "left_foot", "RBigToe": "right_foot", "LHeel": "left_ankle", "RHeel": "right_ankle",
    **{f"{s[0]}{finger}": f"{s}_{finger}3" for s in ("left", "right")
       for finger in ("thumb", "index", "middle", "ring", "pinky")},
}  # fmt: skip
POINT: dict[str, int] = JOINT_IDS | {name: JOINTS + i for i, name in enumerate(_HANGING)}
FREE = np.array([j for name, j in JOINT_IDS.items() if not name.endswith(("jaw", "eye_smplhf", "eye"))])


@dataclass(frozen=True, eq=False)
class Skeleton:
    """Joints and hanging points of a body as a tree whose rest positions are linear in the betas.

    Args:
        rest: (N, 3) metres.
        directions: (N, 3, 10).
        parents: (N,), -1 for the root; parents come first.
        moved: (N, J) bool: whether turning the joint moves the point.
    """

    rest: Array
    directions: Array
    parents: Array
    moved: Array


@lru_cache(maxsize=4)
def skeleton_of(body: Body) -> Skeleton:
    """The tree of a body, read off its template."""
    ids = [KEY_VERTICES[name] for name in _HANGING]
    shapedirs = body.model.shapedirs.cpu().numpy()
    rest = np.concatenate([body.rest_joints, body.template[ids]]).astype(np.float64)
    directions = np.concatenate([body.joint_directions[..., :BETAS], shapedirs[ids][..., :BETAS]]).astype(np.float64)
    parents = np.concatenate([body.parents, [JOINT_IDS[joint] for joint in _HANGING.values()]])
    moved = np.zeros((len(rest), JOINTS), bool)
    for n, parent in enumerate(parents):
        if parent >= 0:
            moved[n] = moved[parent]
            moved[n, parent] = True
    return Skeleton(rest, directions, parents, moved)


@dataclass(frozen=True, eq=False)
class PosedSkeleton:
    """A posed tree: points (B, N, 3) and, if asked for, their derivatives (B, N, 3, P)."""

    points: Array
    derivatives: Array | None = None


def pose_skeleton(
    skeleton: Skeleton, pose: Array, betas: Array, transl: Array, derivatives: bool = False
) -> PosedSkeleton:
    """Points of the posed tree (SMPL-X's kinematics) and what each unknown does to them.

    Turning joint j by its rotation vector v moves a point p of its subtree by (G_parent(j) J(v)) dv x (p - p_j), with
    J the left Jacobian of the rotation group (Sola et al., A micro Lie theory, 2018, equation 145).

    Args:
        skeleton: the tree.
        pose: (B, 55, 3).
        betas: (B, 10).
        transl: (B, 3).
        derivatives: also by pose (of the free joints), betas and translation, in this order.
    """
    count, parents = len(pose), skeleton.parents
    rest = skeleton.rest + np.einsum("ncs,bs->bnc", skeleton.directions, betas)
    turns, jacobians = exponential(pose)
    G = np.empty((count, JOINTS, 3, 3))
    before = np.empty_like(G)  # what a joint's own rotation is applied in
    points = np.empty_like(rest)
    shape_moves = np.empty((count, len(parents), 3, BETAS)) if derivatives else None
    for n, parent in enumerate(parents):
        if parent < 0:
            before[:, n], points[:, n] = np.eye(3), rest[:, n] + transl
            if shape_moves is not None:
                shape_moves[:, n] = skeleton.directions[n]
        else:
            points[:, n] = points[:, parent] + np.einsum("bij,bj->bi", G[:, parent], rest[:, n] - rest[:, parent])
            if shape_moves is not None:
                moved = G[:, parent] @ (skeleton.directions[n] - skeleton.directions[parent])
                shape_moves[:, n] = shape_moves[:, parent] + moved
            if n < JOINTS:
                before[:, n] = G[:, parent]
        if n < JOINTS:
            G[:, n] = before[:, n] @ turns[:, n]
    if shape_moves is None:
        return PosedSkeleton(points)
    axes = (before @ jacobians)[:, FREE]  # (B, F, 3, 3): column k is the axis that component k turns about
    arms = points[:, :, None] - points[:, None, FREE]  # (B, N, F, 3)
    swept = np.cross(axes.swapaxes(-1, -2)[:, None], arms[..., None, :])  # (B, N, F, k, 3)
    swept *= skeleton.moved[:, FREE][None, :, :, None, None]
    by_pose = swept.transpose(0, 1, 4, 2, 3).reshape(count, len(parents), 3, -1)
    by_transl = np.broadcast_to(np.eye(3), (count, len(parents), 3, 3))
    return PosedSkeleton(points, np.concatenate([by_pose, shape_moves, by_transl], axis=-1))


def exponential(v: Array) -> tuple[Array, Array]:
    """Rotation matrices and left Jacobians (..., 3, 3) of rotation vectors (..., 3), radians."""
    angle = np.linalg.norm(v, axis=-1)[..., None, None]
    small = angle < 1e-4
    safe = np.where(small, 1.0, angle)
    a = np.where(small, 1 - angle**2 / 6, np.sin(safe) / safe)
    b = np.where(small, 0.5 - angle**2 / 24, (1 - np.cos(safe)) / safe**2)
    c = np.where(small, 1 / 6 - angle**2 / 120, (safe - np.sin(safe)) / safe**3)
    x, y, z = np.moveaxis(v, -1, 0)
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(*v.shape, 3)
    square, eye = cross @ cross, np.eye(3)
    return eye + a * cross + b * square, eye + b * cross + c * square
