"""From landmarks to a posed body: SMPL-X fitted to what was seen, in a quarter of a second.

Maximum a posteriori, by Levenberg-Marquardt with exact derivatives of the joint tree: no vertex is posed, only joints
and a few points that hang on them. What is seen pulls in two ways: points towards their pixels, robustly, and bones
towards their directions in space, which do not care whose skeleton it is. What is not seen is left to joint limits
and to a calm pose (arms hanging, legs under the body), so that hidden and cut-off limbs stay quiet.

    minimise  sum rho(|project(p) - seen| / s2)^2 + sum |direction(bone) - seen|^2 / s3^2
              + sum ((pose - calm) / width)^2 + sum (beyond the limits / s4)^2 + |betas|^2 / s5^2

over pose (52 joints), betas (10) and translation; rho is Geman and McClure's (1987).

Legend: B people, J = 55 joints, N = J + hanging points, K matched points, E bones, P = 3 * 52 + 10 + 3 unknowns;
G global rotations, camera frame, metres.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_prep.faces import head_crop
from data_prep.poses.landmarks import ID, Landmarks, detect, person_height, require
from omfa.bodies.body import KEY_VERTICES, Body, load_body
from omfa.bodies.convert import best_rotation
from omfa.bodies.named_poses import JOINT_LIMITS, NAMED_POSES, clamp_pose
from omfa.bodies.parameters import BETAS, JOINT_IDS, JOINTS, BodyParameters
from omfa.bodies.placing import rotation, rotation_vector

Array = NDArray[Any]

STEPS = 40
FOCAL = 2.0  # of the picture's longer side: a field of view of 28 degrees, as catalogue photos have
SIGMA_POINT = 0.012  # of the person's height: how far a point may lie from where it was seen
ROBUST = 4.0  # sigmas from which on a point counts as mistaken
SIGMA_BONE = 0.2  # of a bone's length (11 degrees)
SIGMA_FINGER = 0.35
SIGMA_LIMIT = np.radians(3)
SIGMA_BETAS = 0.8
OUTSIDE = 0.04  # of the person's height beyond the border: from here on a landmark is a guess

# Points that hang on a joint: name (also of KEY_VERTICES) to the joint that carries them.
_HANGING = {
    "nose": "head", "leye": "head", "reye": "head", "lear": "head", "rear": "head",
    "LBigToe": "left_foot", "RBigToe": "right_foot", "LHeel": "left_ankle", "RHeel": "right_ankle",
    **{f"{s[0]}{finger}": f"{s}_{finger}3" for s in ("left", "right")
       for finger in ("thumb", "index", "middle", "ring", "pinky")},
}  # fmt: skip
POINT: dict[str, int] = JOINT_IDS | {name: JOINTS + i for i, name in enumerate(_HANGING)}

_SEEN = {  # body landmark to the point it shows, and how well it does
    "nose": ("nose", 1.0), "left_eye": ("leye", 1.0), "right_eye": ("reye", 1.0),
    "left_ear": ("lear", 0.7), "right_ear": ("rear", 0.7),
    **{f"{s}_{j}": (f"{s}_{j}", w) for s in ("left", "right")
       for j, w in (("shoulder", 0.8), ("elbow", 1.0), ("wrist", 1.0), ("hip", 0.5), ("knee", 0.9), ("ankle", 1.0))},
    **{f"{s}_{mark}": (f"{s[0].upper()}{part}", 0.7) for s in ("left", "right")
       for mark, part in (("toe", "BigToe"), ("heel", "Heel"))},
    **{f"{s}_{mark}": (f"{s}_{joint}", 0.5) for s in ("left", "right")
       for mark, joint in (("index", "index1"), ("pinky", "pinky1"), ("thumb", "thumb2"))},
}  # fmt: skip
_KNUCKLES = {f"{s}_{k}" for s in ("left", "right") for k in ("index", "pinky", "thumb")}
_BONES = [  # pairs of body landmarks whose direction in space is taken over
    ("left_hip", "right_hip"), ("left_shoulder", "right_shoulder"),
    ("left_ear", "right_ear"), ("left_ear", "nose"), ("right_ear", "nose"),
    *((f"{s}_{a}", f"{s}_{b}") for s in ("left", "right") for a, b in (
        ("hip", "shoulder"), ("shoulder", "elbow"), ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle"),
        ("ankle", "toe"), ("heel", "toe"), ("wrist", "index"), ("wrist", "pinky"),
    )),
]  # fmt: skip
_FINGERS = ("thumb", "index", "middle", "ring", "pinky")
_HAND = [  # the 21 landmarks of a hand as points, left
    "left_wrist",
    *(name for f in _FINGERS for name in (f"left_{f}1", f"left_{f}2", f"left_{f}3", f"l{f}")),
]
_HAND_BONES = [(0, 5), (0, 17), (5, 17), *((k, k + 1) for start in (1, 5, 9, 13, 17) for k in range(start, start + 3))]

_WIDTHS = {  # degrees about x, y, z: how far from the calm pose a joint goes without being seen to
    "hip": (30, 18, 14), "knee": (35, 4, 4), "ankle": (14, 8, 8), "foot": (8, 2, 2),
    "spine1": (8, 7, 6), "spine2": (8, 7, 6), "spine3": (8, 7, 6), "neck": (14, 18, 10), "head": (14, 18, 10),
    "collar": (5, 8, 9), "shoulder": (40, 40, 40), "elbow": (30, 45, 4), "wrist": (18, 12, 22),
    "jaw": (1e-3,) * 3, "eye": (1e-3,) * 3,
    "thumb1": (14, 18, 14), "thumb2": (8, 14, 12), "thumb3": (6, 14, 10),
}  # fmt: skip
_FINGER_WIDTHS = (5, 8, 22)
_FREE = np.array([j for name, j in JOINT_IDS.items() if not name.endswith(("jaw", "eye_smplhf", "eye"))])


@dataclass(frozen=True, eq=False)
class Fit:
    """A body found in a photo: what every estimator gives.

    Args:
        params: pose, shape and camera of the photo.
        joints: (55, 2) pixels of the body's joints.
        confidence: (55,) in [0, 1]: how surely what moves each joint was seen.
        residuals: numbers about the fit, for the metadata.
        estimator: who found it.
        people: how many people the photo shows.
    """

    params: BodyParameters
    joints: Array
    confidence: Array
    residuals: dict[str, float]
    estimator: str = "landmarks"
    people: int = 1


class PhotoEstimate(NamedTuple):
    """What the pipeline wants to know of a portrait: the body, and a head crop (None: no face is seen)."""

    params: BodyParameters
    face: Image.Image | None


def photo_estimator(body: Body | None = None, person: int = 1) -> Callable[[Image.Image], PhotoEstimate]:
    """A pose estimator for ``OMFAPipeline.pose_estimator``.

    Args:
        body: the body to fit; None for the open one.
        person: which of several people, the most prominent first.

    Raises:
        ValueError: mediapipe is not installed (with the cure). The estimator itself raises it where nobody is found.
    """
    require()
    fitted = load_body() if body is None else body

    def estimate(photo: Image.Image) -> PhotoEstimate:
        rgb = np.asarray(photo.convert("RGB"))
        people = detect(rgb)
        if person > len(people):
            raise ValueError(f"person {person} was asked for; {len(people)} found")
        params = fit(people[person - 1 : person], fitted)[0].params
        crop = head_crop(rgb, params, fitted).crop
        return PhotoEstimate(params, None if crop is None else Image.fromarray(crop))

    return estimate


def view_yaw(params: BodyParameters) -> float:
    """Degrees in (-180, 180]: which way the pelvis faces; 0 the camera, +90 turned to the body's own left."""
    forward = rotation(params.pose[0])[:, 2]
    return float(round(180 - (180 - np.degrees(np.arctan2(forward[0], -forward[2]))) % 360, 2))


def fit(people: Sequence[Landmarks], body: Body, steps: int = STEPS) -> list[Fit]:
    """Fit the body to several people at once, each in a photo of their own.

    Args:
        people: landmarks.
        body: the body to fit.
        steps: of Levenberg-Marquardt.
    """
    if not people:
        return []
    skeleton = skeleton_of(body)
    seen = [_evidence(person) for person in people]
    evidence = _Evidence(*(np.stack([getattr(e, f) for e in seen]) for f in _Evidence.__dataclass_fields__))
    state = _minimise(skeleton, evidence, _begin(skeleton, people, evidence), steps)
    return [_result(body, skeleton, people[i], evidence, state, i) for i in range(len(people))]


# ---------------------------------------------------------------------------------------------------- joint tree


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
class _State:
    """Unknowns: pose (B, J, 3), betas (B, 10), transl (B, 3)."""

    pose: Array
    betas: Array
    transl: Array


@dataclass(frozen=True, eq=False)
class Posed:
    """A posed tree: points (B, N, 3) and, if asked for, their derivatives (B, N, 3, P)."""

    points: Array
    derivatives: Array | None = None


def pose_skeleton(skeleton: Skeleton, pose: Array, betas: Array, transl: Array, derivatives: bool = False) -> Posed:
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
        return Posed(points)
    axes = (before @ jacobians)[:, _FREE]  # (B, F, 3, 3): column k is the axis that component k turns about
    arms = points[:, :, None] - points[:, None, _FREE]  # (B, N, F, 3)
    swept = np.cross(axes.swapaxes(-1, -2)[:, None], arms[..., None, :])  # (B, N, F, k, 3)
    swept *= skeleton.moved[:, _FREE][None, :, :, None, None]
    by_pose = swept.transpose(0, 1, 4, 2, 3).reshape(count, len(parents), 3, -1)
    by_transl = np.broadcast_to(np.eye(3), (count, len(parents), 3, 3))
    return Posed(points, np.concatenate([by_pose, shape_moves, by_transl], axis=-1))


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


# ---------------------------------------------------------------------------------------------------- what was seen


@dataclass(frozen=True, eq=False)
class _Evidence:
    """What pulls at the body, the same points and bones for everybody; weight 0 where it was not seen.

    pixels (B, K, 2), pixel_weight (B, K), scale (B,) pixels of one sigma; direction (B, E, 3), direction_weight
    (B, E) over sigma; focal (B,), centre (B, 2).
    """

    pixels: Array
    pixel_weight: Array
    scale: Array
    direction: Array
    direction_weight: Array
    focal: Array
    centre: Array


def _hand_points(side: int) -> list[int]:
    names = _HAND if side == 0 else [n.replace("left_", "right_") if "_" in n else "r" + n[1:] for n in _HAND]
    return [POINT[n] for n in names]


_MATCHED = np.array([POINT[p] for p, _ in _SEEN.values()] + _hand_points(0)[1:] + _hand_points(1)[1:])
_BONE_ENDS = np.array(
    [[POINT[_SEEN[a][0]], POINT[_SEEN[b][0]]] for a, b in _BONES]
    + [[_hand_points(side)[a], _hand_points(side)[b]] for side in (0, 1) for a, b in _HAND_BONES]
)


def _evidence(person: Landmarks) -> _Evidence:
    height, width = person.image_size
    tall = person_height(person)
    limit = np.array([width - 1, height - 1])
    beyond = np.linalg.norm(person.points - person.points.clip(0, limit), axis=1) / (OUTSIDE * tall)
    trust = person.visible * np.exp(-(beyond**2))
    hands, hand_trust = person.hands, np.zeros(2)
    for side, wrist in enumerate((ID["left_wrist"], ID["right_wrist"])):
        if np.isfinite(hands[side]).all():
            apart = np.linalg.norm(hands[side, 0, :2] - person.points[wrist]) / tall
            size = np.linalg.norm(hands[side, 9, :2] - hands[side, 0, :2]) / tall
            hand_trust[side] = float(apart < 0.06 and 0.01 < size < 0.12) * np.sqrt(person.visible[wrist])
    pixels = [person.points[[ID[n] for n in _SEEN]]] + [np.nan_to_num(hand[1:, :2]) for hand in hands]
    weights = []
    for name, (_, weight) in _SEEN.items():
        by_hand = hand_trust[int(name.startswith("right"))] if name in _KNUCKLES else 0.0
        weights.append(weight * trust[ID[name]] * (1 - by_hand))
    directions, strengths = [], []
    for a, b in _BONES:
        bone = person.world[ID[b]] - person.world[ID[a]]
        both = min(trust[ID[a]], trust[ID[b]])
        if a.endswith("wrist"):
            both *= 0.5 * (1 - hand_trust[int(a.startswith("right"))])
        directions.append(_unit(bone))
        strengths.append(both / SIGMA_BONE)
    for side in (0, 1):
        for start, end in _HAND_BONES:
            directions.append(_unit(np.nan_to_num(hands[side, end] - hands[side, start])))
            strengths.append(hand_trust[side] / SIGMA_FINGER)
    return _Evidence(
        np.concatenate(pixels),
        np.concatenate([weights, *(np.full(20, 0.6 * t) for t in hand_trust)]),
        np.array(SIGMA_POINT * tall),
        np.array(directions),
        np.array(strengths),
        np.array(FOCAL * max(height, width)),
        (limit / 2).astype(np.float64),
    )


def _unit(v: Array) -> Array:
    return v / max(float(np.linalg.norm(v)), 1e-9)


# ---------------------------------------------------------------------------------------------------- calm


def _widths() -> Array:
    widths = np.empty((JOINTS, 3))
    for name, j in JOINT_IDS.items():
        word = name.removeprefix("left_").removeprefix("right_")
        widths[j] = np.radians(_WIDTHS.get(word, _FINGER_WIDTHS if j >= 25 else (1e6,) * 3))
    return widths


CALM = NAMED_POSES["standing"].astype(np.float64)
_CALM_WIDTHS = _widths()


# ---------------------------------------------------------------------------------------------------- a beginning


def _begin(skeleton: Skeleton, people: Sequence[Landmarks], evidence: _Evidence) -> _State:
    """Joint after joint turned along the landmarks in space, hinges about their axis; then put before the camera."""
    pose = np.stack([_follow(skeleton, person) for person in people])
    betas, transl = np.zeros((len(people), BETAS)), np.zeros((len(people), 3))
    points = pose_skeleton(skeleton, pose, betas, transl).points[:, _MATCHED]
    for i in range(len(people)):
        weight = evidence.pixel_weight[i][:, None] + 1e-6
        seen, flat = evidence.pixels[i] - evidence.centre[i], points[i, :, :2]
        mean_seen, mean_flat = ((weight * a).sum(0) / weight.sum() for a in (seen, flat))
        spread = [(weight * (a - m) ** 2).sum() for a, m in ((seen, mean_seen), (flat, mean_flat))]
        scale = np.sqrt(spread[0] / spread[1])  # pixels a metre
        depth = evidence.focal[i] / max(scale, 1e-6)
        transl[i] = [*(mean_seen / scale - mean_flat), depth - (weight[:, 0] * points[i, :, 2]).sum() / weight.sum()]
    return _State(pose, betas, transl)


def _follow(skeleton: Skeleton, person: Landmarks) -> Array:
    """(J, 3) pose whose bones point as the landmarks do; calm where these were hardly seen."""
    at = {name: person.world[i] for name, i in ID.items()}
    rest = {name: skeleton.rest[n] for name, n in POINT.items()}
    pose = CALM.copy()
    middle = {k: (at[f"left_{k}"] + at[f"right_{k}"]) / 2 for k in ("hip", "shoulder")}
    across = at["left_hip"] - at["right_hip"] + at["left_shoulder"] - at["right_shoulder"]
    upward = middle["shoulder"] - middle["hip"]
    root = best_rotation(np.eye(3)[:2], np.stack([_unit(across), _unit(upward)]))
    G = {"trunk": root}
    pose[0] = rotation_vector(root)
    faces = at["nose"] - (at["left_ear"] + at["right_ear"]) / 2
    model_faces = rest["nose"] - (rest["lear"] + rest["rear"]) / 2
    head = best_rotation(
        np.stack([np.eye(3)[0], _unit(model_faces)]), np.stack([_unit(at["left_ear"] - at["right_ear"]), _unit(faces)])
    )
    nod = rotation_vector(root.T @ head)
    pose[JOINT_IDS["neck"]] = pose[JOINT_IDS["head"]] = nod / 2
    for side in ("left", "right"):
        for joints, bend in ((("shoulder", "elbow", "wrist"), 1.0), (("hip", "knee", "ankle"), -1.0)):
            a, b, c = (f"{side}_{j}" for j in joints)
            if person.visible[ID[b]] < 0.2:
                continue
            upper, lower = _unit(at[b] - at[a]), _unit(at[c] - at[b])
            rest_upper, rest_lower = _unit(rest[b] - rest[a]), _unit(rest[c] - rest[b])
            hinge, rest_hinge = np.cross(upper, lower), _unit(np.cross(rest_upper, [0, 0, bend]))
            turned = best_rotation((root @ rest_upper)[None], upper[None]) @ root
            if np.linalg.norm(hinge) > 0.3:  # bent enough to tell the axis
                turned = best_rotation(np.stack([rest_upper, rest_hinge]), np.stack([upper, _unit(hinge)]))
            pose[JOINT_IDS[a]] = rotation_vector(root.T @ turned)
            G[b] = turned
            if person.visible[ID[c]] >= 0.2:
                follow = best_rotation((turned @ rest_lower)[None], lower[None]) @ turned
                pose[JOINT_IDS[b]] = rotation_vector(turned.T @ follow)
    return clamp_pose(pose).astype(np.float64)


# ---------------------------------------------------------------------------------------------------- the minimum


def _minimise(skeleton: Skeleton, evidence: _Evidence, state: _State, steps: int) -> _State:
    """Levenberg-Marquardt (Marquardt 1963), every person with a damping of their own."""
    damping = np.full(len(state.pose), 1e-2)
    done = np.zeros(len(state.pose), bool)
    gradient, hessian, cost = _linearise(skeleton, evidence, state)
    for _ in range(steps):
        diagonal = np.einsum("bpp->bp", hessian)
        damped = hessian + np.eye(hessian.shape[1]) * (damping[:, None] * diagonal + 1e-9)[:, None]
        step = -np.linalg.solve(damped, gradient[..., None])[..., 0]
        trial = _stepped(state, step)
        new = _linearise(skeleton, evidence, trial)
        better = (new[2] < cost) & ~done  # who has arrived stays, whatever company they are in
        state = _State(*(_where(better, getattr(trial, f), getattr(state, f)) for f in ("pose", "betas", "transl")))
        gain = np.where(better, (cost - new[2]) / np.maximum(cost, 1e-12), 0)
        gradient, hessian, cost = (_where(better, n, o) for n, o in zip(new, (gradient, hessian, cost), strict=True))
        damping = np.clip(np.where(better, damping / 4, damping * 6), 1e-7, 1e6)
        done |= better & (gain < 1e-4)
        if done.all():
            break
    return state


def _where(choose: Array, a: Array, b: Array) -> Array:
    return np.where(choose.reshape(-1, *[1] * (a.ndim - 1)), a, b)


def _stepped(state: _State, step: Array) -> _State:
    count = len(_FREE) * 3
    pose = state.pose.copy()
    pose[:, _FREE] += step[:, :count].reshape(len(step), -1, 3)
    transl = state.transl + step[:, count + BETAS :]
    transl[:, 2] = np.maximum(transl[:, 2], 0.3)
    return _State(pose, state.betas + step[:, count : count + BETAS], transl)


def _linearise(skeleton: Skeleton, evidence: _Evidence, state: _State) -> tuple[Array, Array, Array]:
    """Gradient (B, P), Gauss-Newton matrix (B, P, P) and value (B,) of the energy."""
    posed = pose_skeleton(skeleton, state.pose, state.betas, state.transl, derivatives=True)
    assert posed.derivatives is not None
    p, dp = posed.points[:, _MATCHED], posed.derivatives[:, _MATCHED]
    depth = np.maximum(p[..., 2:], 0.1)
    focal = evidence.focal[:, None, None]
    off = (focal * p[..., :2] / depth + evidence.centre[:, None] - evidence.pixels) / evidence.scale[:, None, None]
    d_off = (dp[:, :, :2] - (p[..., :2] / depth)[..., None] * dp[:, :, 2:]) * (focal / depth)[..., None]
    d_off /= evidence.scale[:, None, None, None]
    square, weight = (off**2).sum(-1), evidence.pixel_weight
    shrink = ROBUST**2 / (ROBUST**2 + square)  # Geman-McClure: energy square * shrink, slope square * shrink^2
    cost = (weight * square * shrink).sum(1)
    root = np.sqrt(weight) * shrink
    rows = [(root[..., None] * off).reshape(len(off), -1)]
    columns = [(root[..., None, None] * d_off).reshape(len(off), rows[0].shape[1], -1)]

    ends, d_ends = posed.points[:, _BONE_ENDS], posed.derivatives[:, _BONE_ENDS]
    bone, d_bone = ends[:, :, 1] - ends[:, :, 0], d_ends[:, :, 1] - d_ends[:, :, 0]
    length = np.linalg.norm(bone, axis=-1, keepdims=True)
    unit = bone / length
    d_unit = (d_bone - unit[..., None] * np.einsum("bec,becp->bep", unit, d_bone)[:, :, None]) / length[..., None]
    strength = evidence.direction_weight[..., None]
    miss = strength * (unit - evidence.direction)
    cost = cost + (miss**2).sum((1, 2))
    rows.append(miss.reshape(len(off), -1))
    columns.append((strength[..., None] * d_unit).reshape(len(off), rows[1].shape[1], -1))

    r, J = np.concatenate(rows, 1), np.concatenate(columns, 1)
    hessian = J.swapaxes(1, 2) @ J
    gradient = (J.swapaxes(1, 2) @ r[..., None])[..., 0]

    calm = (state.pose - CALM) / _CALM_WIDTHS
    low, high = JOINT_LIMITS[:, 0], JOINT_LIMITS[:, 1]
    over = (np.maximum(state.pose - high, 0) + np.minimum(state.pose - low, 0)) / SIGMA_LIMIT
    over[:, 0] = 0  # the root is free
    calm[:, 0] = 0
    cost = cost + (calm[:, _FREE] ** 2 + over[:, _FREE] ** 2).sum((1, 2)) + (state.betas**2).sum(1) / SIGMA_BETAS**2
    slope = (calm / _CALM_WIDTHS + over / SIGMA_LIMIT)[:, _FREE].reshape(len(off), -1)
    bend = (1 / _CALM_WIDTHS**2 + (over != 0) / SIGMA_LIMIT**2)[:, _FREE].reshape(len(off), -1)
    count = slope.shape[1]
    gradient[:, :count] += slope
    gradient[:, count : count + BETAS] += state.betas / SIGMA_BETAS**2
    diagonal = np.einsum("bpp->bp", hessian)
    diagonal[:, :count] += bend
    diagonal[:, count : count + BETAS] += 1 / SIGMA_BETAS**2
    return gradient, hessian, cost


# ---------------------------------------------------------------------------------------------------- the result


def _result(body: Body, skeleton: Skeleton, person: Landmarks, evidence: _Evidence, state: _State, i: int) -> Fit:
    height, width = person.image_size
    focal, (cx, cy) = float(evidence.focal[i]), evidence.centre[i]
    pose = state.pose[i].copy()
    pose[0] = rotation_vector(rotation(pose[0]))
    params = BodyParameters(
        body.name,
        body.hash,
        state.betas[i],
        np.zeros(10),
        pose,
        state.transl[i],
        np.array([[focal, 0, cx], [0, focal, cy], [0, 0, 1]]),
        (height, width),
    )
    points = pose_skeleton(skeleton, pose[None], state.betas[i : i + 1], state.transl[i : i + 1]).points[0]
    pixels = points[:, :2] / np.maximum(points[:, 2:], 1e-3) * focal + evidence.centre[i]
    weight = evidence.pixel_weight[i]
    off = np.linalg.norm(pixels[_MATCHED] - evidence.pixels[i], axis=1)
    body_points = len(_SEEN)
    bones = points[_BONE_ENDS[:, 1]] - points[_BONE_ENDS[:, 0]]
    cosine = (bones * evidence.direction[i]).sum(1) / np.linalg.norm(bones, axis=1)
    angle, strength = np.degrees(np.arccos(cosine.clip(-1, 1))), evidence.direction_weight[i]
    trunk = len(_BONES)
    residuals = {
        "reprojection": _mean(off[:body_points], weight[:body_points]) / height,
        "bone_degrees": _mean(angle[:trunk], strength[:trunk]),
        "landmarks": person.score,
        "looks": person.looks,
    }
    return Fit(params, pixels[:JOINTS], _confidence(weight), {k: round(v, 5) for k, v in residuals.items()})


def _mean(values: Array, weights: Array) -> float:
    return float((values * weights).sum() / max(float(weights.sum()), 1e-9))


def _confidence(weight: Array) -> Array:
    """(55,) how surely each joint was seen; joints without a landmark have their neighbours'."""
    sure = np.full(JOINTS, np.nan)
    for k, n in enumerate(_MATCHED):
        if n < JOINTS:
            full = list(_SEEN.values())[k][1] if k < len(_SEEN) else 0.6
            sure[n] = max(np.nan_to_num(sure[n]), weight[k] / full)
    hips = sure[[JOINT_IDS["left_hip"], JOINT_IDS["right_hip"]]].min()
    shoulders = sure[[JOINT_IDS["left_shoulder"], JOINT_IDS["right_shoulder"]]].min()
    for name in ("pelvis", "spine1"):
        sure[JOINT_IDS[name]] = hips
    for name in ("spine2", "spine3", "neck", "left_collar", "right_collar"):
        sure[JOINT_IDS[name]] = shoulders
    nose = weight[list(_SEEN).index("nose")]
    for name in ("head", "jaw", "left_eye", "right_eye"):
        sure[JOINT_IDS[name]] = nose
    for side in ("left", "right"):
        toe = list(_SEEN).index(f"{side}_toe")
        sure[JOINT_IDS[f"{side}_foot"]] = weight[toe] / 0.7
    return np.nan_to_num(sure).clip(0, 1)
