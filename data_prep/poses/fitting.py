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

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_prep.poses.evidence import BONE_ENDS, BONES, MATCHED, SEEN, SIGMA_BONE, Evidence, evidence_of, unit
from data_prep.poses.landmarks import ID, Landmarks
from data_prep.poses.skeleton import FREE, POINT, Array, Skeleton, pose_skeleton, skeleton_of
from omfa.bodies.body import Body
from omfa.bodies.convert import best_rotation
from omfa.bodies.named_poses import JOINT_LIMITS, NAMED_POSES, clamp_pose
from omfa.bodies.parameters import BETAS, JOINT_IDS, JOINTS, BodyParameters
from omfa.bodies.placing import rotation, rotation_vector

STEPS = 40


ROBUST = 4.0  # sigmas from which on a point counts as mistaken


SIGMA_LIMIT = np.radians(3)


SIGMA_BETAS = 0.8


_WIDTHS = {  # degrees about x, y, z: how far from the calm pose a joint goes without being seen to
    "hip": (30, 18, 14), "knee": (35, 4, 4), "ankle": (14, 8, 8), "foot": (8, 2, 2),
    "spine1": (8, 7, 6), "spine2": (8, 7, 6), "spine3": (8, 7, 6), "neck": (14, 18, 10), "head": (14, 18, 10),
    "collar": (5, 8, 9), "shoulder": (40, 40, 40), "elbow": (30, 45, 4), "wrist": (18, 12, 22),
    "jaw": (1e-3,) * 3, "eye": (1e-3,) * 3,
    "thumb1": (14, 18, 14), "thumb2": (8, 14, 12), "thumb3": (6, 14, 10),
}  # fmt: skip


_FINGER_WIDTHS = (5, 8, 22)


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
        outline: (H, W) bool, the person's pixels, from whoever knows; None: nobody does.
    """

    params: BodyParameters
    joints: Array
    confidence: Array
    residuals: dict[str, float]
    estimator: str = "landmarks"
    people: int = 1
    outline: Array | None = None


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
    seen = [evidence_of(person) for person in people]
    evidence = Evidence(*(np.stack([getattr(e, f) for e in seen]) for f in Evidence.__dataclass_fields__))
    state = _minimise(skeleton, evidence, _begin(skeleton, people, evidence), steps)
    return [_result(body, skeleton, people[i], evidence, state, i) for i in range(len(people))]


@dataclass(frozen=True, eq=False)
class _State:
    """Unknowns: pose (B, J, 3), betas (B, 10), transl (B, 3)."""

    pose: Array
    betas: Array
    transl: Array


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


def _begin(skeleton: Skeleton, people: Sequence[Landmarks], evidence: Evidence) -> _State:
    """Joint after joint turned along the landmarks in space, hinges about their axis; then put before the camera."""
    pose = np.stack([_follow(skeleton, person) for person in people])
    betas, transl = np.zeros((len(people), BETAS)), np.zeros((len(people), 3))
    points = pose_skeleton(skeleton, pose, betas, transl).points[:, MATCHED]
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
    root = best_rotation(np.eye(3)[:2], np.stack([unit(across), unit(upward)]))
    G = {"trunk": root}
    pose[0] = rotation_vector(root)
    faces = at["nose"] - (at["left_ear"] + at["right_ear"]) / 2
    model_faces = rest["nose"] - (rest["lear"] + rest["rear"]) / 2
    head = best_rotation(
        np.stack([np.eye(3)[0], unit(model_faces)]), np.stack([unit(at["left_ear"] - at["right_ear"]), unit(faces)])
    )
    nod = rotation_vector(root.T @ head)
    pose[JOINT_IDS["neck"]] = pose[JOINT_IDS["head"]] = nod / 2
    for side in ("left", "right"):
        for joints, bend in ((("shoulder", "elbow", "wrist"), 1.0), (("hip", "knee", "ankle"), -1.0)):
            a, b, c = (f"{side}_{j}" for j in joints)
            if person.visible[ID[b]] < 0.2:
                continue
            upper, lower = unit(at[b] - at[a]), unit(at[c] - at[b])
            rest_upper, rest_lower = unit(rest[b] - rest[a]), unit(rest[c] - rest[b])
            hinge, rest_hinge = np.cross(upper, lower), unit(np.cross(rest_upper, [0, 0, bend]))
            turned = best_rotation((root @ rest_upper)[None], upper[None]) @ root
            if np.linalg.norm(hinge) > 0.3:  # bent enough to tell the axis
                turned = best_rotation(np.stack([rest_upper, rest_hinge]), np.stack([upper, unit(hinge)]))
            pose[JOINT_IDS[a]] = rotation_vector(root.T @ turned)
            G[b] = turned
            if person.visible[ID[c]] >= 0.2:
                follow = best_rotation((turned @ rest_lower)[None], lower[None]) @ turned
                pose[JOINT_IDS[b]] = rotation_vector(turned.T @ follow)
    return clamp_pose(pose).astype(np.float64)


# ---------------------------------------------------------------------------------------------------- the minimum


def _minimise(skeleton: Skeleton, evidence: Evidence, state: _State, steps: int) -> _State:
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
    count = len(FREE) * 3
    pose = state.pose.copy()
    pose[:, FREE] += step[:, :count].reshape(len(step), -1, 3)
    transl = state.transl + step[:, count + BETAS :]
    transl[:, 2] = np.maximum(transl[:, 2], 0.3)
    return _State(pose, state.betas + step[:, count : count + BETAS], transl)


def _linearise(skeleton: Skeleton, evidence: Evidence, state: _State) -> tuple[Array, Array, Array]:
    """Gradient (B, P), Gauss-Newton matrix (B, P, P) and value (B,) of the energy."""
    posed = pose_skeleton(skeleton, state.pose, state.betas, state.transl, derivatives=True)
    assert posed.derivatives is not None
    p, dp = posed.points[:, MATCHED], posed.derivatives[:, MATCHED]
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

    ends, d_ends = posed.points[:, BONE_ENDS], posed.derivatives[:, BONE_ENDS]
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
    cost = cost + (calm[:, FREE] ** 2 + over[:, FREE] ** 2).sum((1, 2)) + (state.betas**2).sum(1) / SIGMA_BETAS**2
    slope = (calm / _CALM_WIDTHS + over / SIGMA_LIMIT)[:, FREE].reshape(len(off), -1)
    bend = (1 / _CALM_WIDTHS**2 + (over != 0) / SIGMA_LIMIT**2)[:, FREE].reshape(len(off), -1)
    count = slope.shape[1]
    gradient[:, :count] += slope
    gradient[:, count : count + BETAS] += state.betas / SIGMA_BETAS**2
    diagonal = np.einsum("bpp->bp", hessian)
    diagonal[:, :count] += bend
    diagonal[:, count : count + BETAS] += 1 / SIGMA_BETAS**2
    return gradient, hessian, cost


# ---------------------------------------------------------------------------------------------------- the result

SURE = 0.6  # of a bone: both ends were surely seen
_LIMBS = np.array([b.endswith(("elbow", "wrist", "knee", "ankle")) for _, b in BONES])


def _result(body: Body, skeleton: Skeleton, person: Landmarks, evidence: Evidence, state: _State, i: int) -> Fit:
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
    off = np.linalg.norm(pixels[MATCHED] - evidence.pixels[i], axis=1)
    body_points = len(SEEN)
    bones = points[BONE_ENDS[:, 1]] - points[BONE_ENDS[:, 0]]
    cosine = (bones * evidence.direction[i]).sum(1) / np.linalg.norm(bones, axis=1)
    angle, strength = np.degrees(np.arccos(cosine.clip(-1, 1))), evidence.direction_weight[i]
    trunk = len(BONES)
    residuals = {
        "reprojection": _mean(off[:body_points], weight[:body_points]) / height,
        "bone_degrees": _mean(angle[:trunk], strength[:trunk]),
        "limb_degrees": float(angle[:trunk][_LIMBS & (strength[:trunk] > SURE / SIGMA_BONE)].max(initial=0)),
        "landmarks": person.score,
        "looks": person.looks,
    }
    told = {k: round(v, 5) for k, v in residuals.items()}
    return Fit(params, pixels[:JOINTS], _confidence(weight), told, outline=person.mask if person.mask.any() else None)


def _mean(values: Array, weights: Array) -> float:
    return float((values * weights).sum() / max(float(weights.sum()), 1e-9))


def _confidence(weight: Array) -> Array:
    """(55,) how surely each joint was seen; joints without a landmark have their neighbours'."""
    sure = np.full(JOINTS, np.nan)
    for k, n in enumerate(MATCHED):
        if n < JOINTS:
            full = list(SEEN.values())[k][1] if k < len(SEEN) else 0.6
            sure[n] = max(np.nan_to_num(sure[n]), weight[k] / full)
    hips = sure[[JOINT_IDS["left_hip"], JOINT_IDS["right_hip"]]].min()
    shoulders = sure[[JOINT_IDS["left_shoulder"], JOINT_IDS["right_shoulder"]]].min()
    for name in ("pelvis", "spine1"):
        sure[JOINT_IDS[name]] = hips
    for name in ("spine2", "spine3", "neck", "left_collar", "right_collar"):
        sure[JOINT_IDS[name]] = shoulders
    nose = weight[list(SEEN).index("nose")]
    for name in ("head", "jaw", "left_eye", "right_eye"):
        sure[JOINT_IDS[name]] = nose
    for side in ("left", "right"):
        toe = list(SEEN).index(f"{side}_toe")
        sure[JOINT_IDS[f"{side}_foot"]] = weight[toe] / 0.7
    return np.nan_to_num(sure).clip(0, 1)
