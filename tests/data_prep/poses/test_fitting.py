"""The fit, on landmarks made from bodies whose pose is known; no landmark model is needed."""

from __future__ import annotations

import time
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from data_prep.poses.fitting import CALM, fit, view_yaw
from data_prep.poses.landmarks import ID, NAMES, Landmarks
from data_prep.poses.skeleton import POINT, exponential, pose_skeleton, skeleton_of
from omfa.bodies.body import Body, load_body
from omfa.bodies.named_poses import JOINT_LIMITS, NAMED_POSES
from omfa.bodies.parameters import JOINT_IDS, BodyParameters
from omfa.bodies.placing import place, project

_AS_POINT = {
    "nose": "nose", "left_eye": "leye", "right_eye": "reye", "left_ear": "lear", "right_ear": "rear",
    **{f"{s}_{m}": f"{s[0].upper()}{p}" for s in ("left", "right") for m, p in (("toe", "BigToe"), ("heel", "Heel"))},
    **{f"{s}_{m}": f"{s}_{p}" for s in ("left", "right")
       for m, p in (("index", "index1"), ("pinky", "pinky1"), ("thumb", "thumb2"))},
}  # fmt: skip


@pytest.fixture(scope="module")
def body() -> Body:
    return load_body()


def points_of(body: Body, params: BodyParameters) -> np.ndarray:
    values = (np.asarray(v, np.float64)[None] for v in (params.pose, params.betas, params.transl))
    return pose_skeleton(skeleton_of(body), *values).points[0]


def seen(body: Body, params: BodyParameters) -> Landmarks:
    """What a perfect landmark model would say; mouth and inner eyes, which nobody uses, are left at the nose."""
    points = points_of(body, params)
    ids = [POINT[_AS_POINT.get(name, name)] if _AS_POINT.get(name, name) in POINT else POINT["nose"] for name in NAMES]
    middle = points[[JOINT_IDS["left_hip"], JOINT_IDS["right_hip"]]].mean(0)
    fingers = ("thumb", "index", "middle", "ring", "pinky")
    hands = []
    for side in ("left", "right"):
        names = [f"{side}_wrist"]
        for f in fingers:
            names += [f"{side}_{f}1", f"{side}_{f}2", f"{side}_{f}3", f"{side[0]}{f}"]
        at = points[[POINT[n] for n in names]]
        scale = params.K[0, 0] / at[0, 2]
        hands.append(np.concatenate([project(at, params.K), (at[:, 2:] - at[0, 2]) * scale], axis=1))
    return Landmarks(
        params.image_size,
        project(points[ids], params.K),
        np.ones(33),
        points[ids] - middle,
        np.stack(hands),
        None,
        np.zeros(params.image_size, bool),
    )


def off(body: Body, a: BodyParameters, b: BodyParameters) -> float:
    """Mean distance of the 22 joints of the body about the pelvis, metres."""
    x, y = (points_of(body, p)[:22] for p in (a, b))
    return float(np.linalg.norm((x - x[0]) - (y - y[0]), axis=1).mean())


def test_the_tree_is_the_bodys_own(body: Body) -> None:
    rng = np.random.default_rng(0)
    pose, betas, transl = rng.normal(0, 0.4, (3, 55, 3)), rng.normal(0, 1, (3, 10)), rng.normal(0, 1, (3, 3))
    a, b, c = (torch.tensor(v, dtype=torch.float32) for v in (pose, betas, transl))
    expected = body.joints_only(b, torch.zeros(3, 10), a, c).numpy()
    assert np.allclose(pose_skeleton(skeleton_of(body), pose, betas, transl).points[:, :55], expected, atol=1e-5)


def test_derivatives_are_those_of_small_steps(body: Body) -> None:
    rng = np.random.default_rng(1)
    skeleton = skeleton_of(body)
    pose, betas, transl = rng.normal(0, 0.6, (1, 55, 3)), rng.normal(0, 1, (1, 10)), rng.normal(0, 1, (1, 3))
    pose[0, 0] = [np.pi, 0, 0]  # where rotation vectors turn round
    pose[0, 5] = 0
    posed = pose_skeleton(skeleton, pose, betas, transl, derivatives=True)
    assert posed.derivatives is not None and posed.derivatives.shape[-1] == 52 * 3 + 13
    h = 1e-6
    for k in (0, 1, 2, 3, 16, 17, 50, 80, 155):
        joint = [j for j in range(55) if j not in (22, 23, 24)][k // 3]
        moved = pose.copy()
        moved[0, joint, k % 3] += h
        slope = (pose_skeleton(skeleton, moved, betas, transl).points - posed.points) / h
        assert np.allclose(slope, posed.derivatives[..., k], atol=1e-4)
    for k in range(10):
        moved = betas.copy()
        moved[0, k] += h
        slope = (pose_skeleton(skeleton, pose, moved, transl).points - posed.points) / h
        assert np.allclose(slope, posed.derivatives[..., 156 + k], atol=1e-4)


def test_exponential_is_rodrigues() -> None:
    rng = np.random.default_rng(2)
    vectors = np.concatenate([rng.normal(0, 1.5, (20, 3)), np.zeros((1, 3)), [[1e-7, 0, 0]]])
    turns, jacobians = exponential(vectors)
    for v, turn, jacobian in zip(vectors, turns, jacobians, strict=True):
        assert np.allclose(turn, cv2.Rodrigues(v)[0], atol=1e-9)
        step = 1e-6 * rng.normal(size=3)  # exp(v + step) = exp(J step) exp(v)
        assert np.allclose(cv2.Rodrigues(v + step)[0], cv2.Rodrigues(jacobian @ step)[0] @ turn, atol=1e-9)


def test_known_poses_are_found_from_every_side(body: Body) -> None:
    truth = [
        place(body, NAMED_POSES[name], yaw=yaw, pitch=3)
        for name in ("standing", "walking", "hands_on_hips", "arms_crossed", "waving", "sitting", "lunge")
        for yaw in (0, 60, -90, 170)
    ]
    found = fit([seen(body, p) for p in truth], body)
    errors = np.array([off(body, f.params, t) for f, t in zip(found, truth, strict=True)])
    assert errors.mean() < 0.02 and errors.max() < 0.06, errors.round(3)
    for f, t in zip(found, truth, strict=True):
        assert abs((view_yaw(f.params) - view_yaw(t) + 180) % 360 - 180) < 12
        joints = project(points_of(body, t)[:22], t.K)
        assert np.linalg.norm(f.joints[:22] - joints, axis=1).mean() < 0.01 * t.image_size[0]
        assert f.confidence.min() >= 0 and f.confidence[:22].max() <= 1 and f.residuals["reprojection"] < 0.01


def test_a_person_does_not_depend_on_the_batch(body: Body) -> None:
    people = [seen(body, place(body, NAMED_POSES[n], yaw=25)) for n in ("walking", "sitting")]
    together, alone = fit(people, body), [fit([p], body)[0] for p in people]
    for a, b in zip(together, alone, strict=True):
        assert np.allclose(a.params.pose, b.params.pose, atol=1e-4)
    assert fit([], body) == []


def test_hands_are_found(body: Body) -> None:
    pose = NAMED_POSES["waving"].copy()
    pose[25:40] = 0  # the left hand flat, its fingers spread less
    pose[40:55, 2] = np.radians(50)  # the right hand a fist (mirrored: z positive)
    params = place(body, pose, yaw=10)
    found = fit([seen(body, params)], body)[0].params
    assert np.degrees(np.abs(found.pose[[25, 28, 31, 34], 2])).max() < 25
    assert np.degrees(found.pose[[40, 43, 46, 49], 2]).mean() > 30


def test_what_is_cut_off_stays_calm(body: Body) -> None:
    params = place(body, NAMED_POSES["waving"], yaw=15)
    whole = seen(body, params)
    rng = np.random.default_rng(3)
    legs = [i for n, i in ID.items() if any(w in n for w in ("knee", "ankle", "heel", "toe"))]
    points, world, visible = whole.points.copy(), whole.world.copy(), whole.visible.copy()
    points[legs] = rng.uniform([0, 1200], [768, 2000], (len(legs), 2))  # below the picture, anywhere
    world[legs] = rng.normal(0, 0.6, (len(legs), 3))
    visible[legs] = 0.3
    found = fit([replace(whole, points=points, world=world, visible=visible)], body)[0]
    hips_knees = [JOINT_IDS[f"{s}_{j}"] for s in ("left", "right") for j in ("hip", "knee", "ankle")]
    assert np.degrees(np.abs(found.params.pose[hips_knees] - CALM[hips_knees])).max() < 15
    assert found.confidence[JOINT_IDS["left_knee"]] < 0.1 < 0.9 < found.confidence[JOINT_IDS["left_wrist"]]
    arms = [JOINT_IDS[f"{s}_{j}"] for s in ("left", "right") for j in ("shoulder", "elbow", "wrist")]
    assert np.linalg.norm(found.joints[arms] - project(points_of(body, params)[arms], params.K), axis=1).max() < 12
    hidden = whole.visible.copy()
    hidden[[ID[f"right_{n}"] for n in ("elbow", "wrist", "index", "pinky", "thumb")]] = 0
    blind = replace(whole, visible=hidden, hands=np.stack([whole.hands[0], np.full((21, 3), np.nan)]))
    arm = [JOINT_IDS["right_shoulder"], JOINT_IDS["right_elbow"]]
    assert np.degrees(np.abs(fit([blind], body)[0].params.pose[arm] - CALM[arm])).max() < 12


def test_nonsense_stays_inside_the_limits(body: Body) -> None:
    whole = seen(body, place(body, NAMED_POSES["standing"]))
    rng = np.random.default_rng(4)
    for _ in range(3):
        wild = replace(
            whole,
            points=rng.uniform(0, 700, (33, 2)),
            world=rng.normal(0, 0.5, (33, 3)),
            hands=np.full((2, 21, 3), np.nan),
        )
        found = fit([wild], body)[0].params
        beyond = np.maximum(found.pose - JOINT_LIMITS[:, 1], JOINT_LIMITS[:, 0] - found.pose)[1:]
        assert np.degrees(beyond.max()) < 25 and np.isfinite(found.transl).all()


def test_one_mistaken_landmark_does_no_harm(body: Body) -> None:
    params = place(body, NAMED_POSES["walking"])
    whole = seen(body, params)
    points = whole.points.copy()
    points[ID["left_ankle"]] += [300, -200]
    assert off(body, fit([replace(whole, points=points)], body)[0].params, params) < 0.05


def test_the_picture_may_be_of_any_size_and_the_person_anywhere_in_it(body: Body) -> None:
    params = place(body, NAMED_POSES["contrapposto"], image_size=(100, 80))
    small = fit([seen(body, params)], body)[0]
    assert off(body, small.params, params) < 0.03
    wide = replace(params, image_size=(1000, 3000), K=np.array([[2000, 0, 600], [0, 2000, 500], [0, 0, 1]]))
    found = fit([seen(body, wide)], body)[0]
    assert np.linalg.norm(found.joints[:22] - project(points_of(body, wide)[:22], wide.K), axis=1).mean() < 10


def test_it_is_quick(body: Body) -> None:
    person = seen(body, place(body, NAMED_POSES["walking"], yaw=30))
    fit([person], body)
    began = time.process_time()
    fit([person], body)
    assert time.process_time() - began < 2
