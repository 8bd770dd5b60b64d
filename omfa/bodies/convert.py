"""Parameters made with another body: converted by a rotation for each joint at rest, or marked approximate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from omfa.bodies.body import Body
from omfa.bodies.parameters import BETAS, JOINT_IDS, JOINTS, Array, BodyParameters
from omfa.bodies.placing import joint_shift, rotation, rotation_vector


def rest_rotations(from_body: Body, to_body: Body) -> Array:
    """(55, 3, 3) the rest-rotation table: C[j] turns ``to_body``'s bone at joint j, at rest, onto ``from_body``'s.

    Computed from the two bodies, because SMPL-X's numbers are not ours to ship. The open body's arms lie exactly along
    x at rest; SMPL-X's upper arms hang about 18 degrees lower and further back, the other limbs differ by less.
    Joints with one child: the least rotation between the two bone directions. Joints with several (pelvis, chest,
    wrists): the rotation that fits all of them best (Kabsch 1976). Joints with none share their parent's.
    """
    a, b, parents = from_body.rest_joints, to_body.rest_joints, from_body.parents
    table = np.repeat(np.eye(3)[None], JOINTS, axis=0)
    for j in range(JOINTS):
        children = np.where(parents == j)[0]
        if j == JOINT_IDS["head"]:
            continue  # its children are jaw and eyes, no bone: heads are taken to be upright alike
        if len(children) == 0:
            table[j] = table[parents[j]]
        else:
            table[j] = best_rotation(_unit(b[children] - b[j]), _unit(a[children] - a[j]))
    return table


def convert_parameters(params: BodyParameters, from_body: Body, to_body: Body) -> BodyParameters:
    """Parameters that give ``to_body`` the posture that ``params`` give ``from_body``.

    With G the world rotation of a joint, the posed bone G d must point the same way on both bodies, so G' = G C with
    the table C of :func:`rest_rotations`; for local rotations R' = C[parent]^T R C. Shape and expression spaces differ
    between bodies and have no common meaning: both are set to zero, and the pelvis stays where it was.

    Raises:
        ValueError: ``params`` were not made with ``from_body``.
    """
    if params.body_hash != from_body.hash:
        raise ValueError(f"parameters were made with {params.body} ({params.body_hash}), not with {from_body.name}")
    if from_body.hash == to_body.hash:
        return params
    table = rest_rotations(from_body, to_body)
    pose = np.zeros((JOINTS, 3))
    for j, parent in enumerate(from_body.parents):
        before = table[parent].T if parent >= 0 else np.eye(3)
        pose[j] = rotation_vector(before @ rotation(params.pose[j]) @ table[j])
    pelvis = (from_body.rest_joints + joint_shift(from_body, params.betas, params.expression))[0]
    transl = params.transl + pelvis - to_body.rest_joints[0]
    zero = np.zeros(BETAS, np.float32)
    changed = dict(betas=zero, expression=zero, pose=pose, transl=transl)
    return replace(params, body=to_body.name, body_hash=to_body.hash, **changed)  # type: ignore[arg-type]


def approximate_parameters(params: BodyParameters, body: Body) -> BodyParameters:
    """The same numbers for another body, marked approximate: for when the body they were made with is not at hand.

    Bones then point off by the difference of the rest bones (:func:`rest_rotations`) and the shape means nothing, so
    it is set to zero. The name keeps where they came from.
    """
    if params.body_hash == body.hash:
        return params
    zero, name = np.zeros(BETAS, np.float32), f"{body.name} (approximate, made with {params.body[:150]})"
    return replace(params, body=name, body_hash=body.hash, betas=zero, expression=zero)


def _unit(v: Array) -> Array:
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def best_rotation(a: Array, b: Array) -> Array:
    """(3, 3) rotation R with R a[i] nearest to b[i] for unit vectors (n, 3); least turn for a single vector."""
    if len(a) == 1:
        axis = np.cross(a[0], b[0])
        sine = np.linalg.norm(axis)
        return rotation(axis / sine * np.arctan2(sine, a[0] @ b[0])) if sine > 1e-9 else np.eye(3)
    u, _, vt = np.linalg.svd(b.T @ a)
    return u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt
