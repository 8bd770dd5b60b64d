"""The open body in the real smplx package, parameters, poses, cameras, and hostile files."""

import pickle
import zipfile
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import smplx
import torch

from omfa.bodies.body import KEY_VERTICES, PARTS, Body, load_body, vertex_parts
from omfa.bodies.convert import approximate_parameters, convert_parameters, rest_rotations
from omfa.bodies.named_poses import (
    JOINT_LIMITS,
    MIRROR,
    NAMED_POSES,
    clamp_pose,
    make_pose,
    mirror_parameters,
    mirror_pose,
)
from omfa.bodies.parameters import JOINT_IDS, BodyParameters
from omfa.bodies.placing import camera, look_at, place, project, rotation, turned
from omfa.bodies.pose_render import person_mask


@pytest.fixture(scope="module")
def body() -> Body:
    return load_body()


def batch(*arrays):
    return tuple(torch.tensor(np.asarray(a, np.float32))[None] for a in arrays)


@pytest.fixture(scope="module")
def standing(body) -> BodyParameters:
    return place(body, NAMED_POSES["standing"], image_size=(256, 192))


def test_the_real_smplx_loads_the_open_body(tmp_path, capsys):
    folder = tmp_path / "smplx"
    folder.mkdir()
    (folder / "SMPLX_NEUTRAL.npz").write_bytes(open_asset())
    model = smplx.create(tmp_path, "smplx", use_pca=False, use_face_contour=True)
    out = model()
    assert out.joints.shape == (1, 144, 3) and len(model.faces) > 20_000


def open_asset() -> bytes:
    from importlib.resources import files

    return files("omfa").joinpath("assets/open_body.npz").read_bytes()


def test_joints_are_where_they_should_be(body):
    at = {name: body.rest_joints[j] for name, j in JOINT_IDS.items()}
    assert len(at) == 55 and tuple(at) == body.joint_names
    tall = np.ptp(body.template[:, 1])
    assert 1.6 < tall < 1.95
    heights = [at[n][1] for n in ("left_foot", "left_ankle", "left_knee", "left_hip", "pelvis", "spine1", "spine2")]
    heights += [at[n][1] for n in ("spine3", "left_collar", "neck", "head", "left_eye")]
    assert (np.diff(heights) > 0).all()
    out = [at[n][0] for n in ("pelvis", "left_collar", "left_shoulder", "left_elbow", "left_wrist", "left_middle1")]
    assert (np.diff(out) > 0.02).all(), "a T-pose, the left arm along +x"
    assert at["left_foot"][2] > at["left_ankle"][2] + 0.05, "toes to the front"
    np.testing.assert_allclose(body.rest_joints[MIRROR] * [-1, 1, 1], body.rest_joints, atol=2e-3)
    low, high = body.template.min(0), body.template.max(0)
    assert ((body.rest_joints > low) & (body.rest_joints < high)).all()
    # each joint lies inside the limb it turns: near the middle of the ring of vertices it shares with its parent
    for j in range(1, 22):
        shared = np.minimum(body.weights[:, j], body.weights[:, body.parents[j]]) > 0.2
        assert np.linalg.norm(body.template[shared].mean(0) - body.rest_joints[j]) < 0.12, body.joint_names[j]


def test_weights_and_key_vertices(body):
    np.testing.assert_allclose(body.weights.sum(1), 1, atol=1e-6)
    point = {name: body.template[v] for name, v in KEY_VERTICES.items()}
    assert point["nose"][2] == body.template[vertex_parts(body) == PARTS.index("head")][:, 2].max()
    assert point["lear"][0] > 0.06 > -0.06 > point["rear"][0]
    assert point["lindex"][0] > body.rest_joints[JOINT_IDS["left_index3"], 0]
    assert point["LBigToe"][2] > point["LHeel"][2] + 0.15
    assert set(vertex_parts(body)) == set(range(len(PARTS)))


def test_landmarks_lie_on_the_face(body, tmp_path):
    (tmp_path / "b.npz").write_bytes(open_asset())
    model = smplx.SMPLX(str(tmp_path / "b.npz"), use_pca=False, use_face_contour=True)
    joints = model().joints[0].detach().numpy()
    points, contour = joints[76:127], joints[127:144]  # iBUG 17 to 67, then the jaw line
    eye_left, eye_right = joints[23], joints[24]
    nose = joints[55]
    assert np.abs(points[13] - nose).max() < 0.012  # tip of the nose
    assert (points[:5, 0] < 0).all() and (points[5:10, 0] > 0).all(), "right brow, then left brow"
    assert (points[:10, 1] > eye_left[1]).all() and (points[:10, 1] < eye_left[1] + 0.05).all()
    assert np.abs(points[19:25].mean(0) - eye_right)[:2].max() < 0.006
    assert np.abs(points[25:31].mean(0) - eye_left)[:2].max() < 0.006
    assert (points[31:, 1] < points[14:19, 1].min()).all(), "the mouth is under the nose"
    assert (points[37:42, 0].argmax() == 0) and points[40, 1] < points[34, 1], "under lip under upper lip"
    assert (np.diff(contour[1:16, 0]) > 0).all() and contour[:, 1].argmin() == 8, "from the right ear round the chin"
    np.testing.assert_allclose(contour[::-1] * [-1, 1, 1], contour, atol=2e-3)
    mirrored = np.r_[9:-1:-1, 10:14, 18:13:-1, 28:24:-1, 30, 29, 22:18:-1, 24, 23]
    np.testing.assert_allclose(points[mirrored] * [-1, 1, 1], points[:31], atol=4e-3)


def test_jaw_and_expression_move_the_mouth_alone(body):
    pose = make_pose(jaw=(20, 0, 0))
    zero = np.zeros(10)
    still, opened = (body.pose(*batch(zero, zero, p)).vertices[0] for p in (NAMED_POSES["t_pose"], pose))
    moved = (opened - still).norm(dim=1).numpy()
    assert moved.max() > 0.01 and moved[vertex_parts(body) != PARTS.index("head")].max() < 5e-3
    face = np.zeros(10)
    face[0] = 2
    assert (body.pose(*batch(zero, face, NAMED_POSES["t_pose"])).vertices[0] - still).abs().max() > 0.002


def test_left_is_left(body):
    """Raising the left arm raises it on the viewer's right, when the person faces the camera."""
    params = place(body, make_pose(left_shoulder=(0, 0, 70), right_shoulder=(0, 0, 75)), image_size=(256, 192))
    uv = project(body.posed(params).joints[0].numpy(), params.K)
    left, right = uv[JOINT_IDS["left_wrist"]], uv[JOINT_IDS["right_wrist"]]
    assert left[0] > uv[0, 0] > right[0]
    assert left[1] < uv[JOINT_IDS["head"], 1] < right[1]


def test_posing_is_the_real_models(body, tmp_path):
    rng = np.random.default_rng(0)
    pose = rng.normal(scale=0.3, size=(55, 3))
    betas, face, shift = rng.normal(size=10), rng.normal(size=10), rng.normal(size=3)
    (tmp_path / "b.npz").write_bytes(open_asset())
    model = smplx.SMPLX(str(tmp_path / "b.npz"), use_pca=False, flat_hand_mean=True)
    b, e, p, t = batch(betas, face, pose, shift)
    want = model(
        betas=b, expression=e, global_orient=p[:, 0], body_pose=p[:, 1:22].reshape(1, 63), jaw_pose=p[:, 22],
        leye_pose=p[:, 23], reye_pose=p[:, 24], left_hand_pose=p[:, 25:40].reshape(1, 45),
        right_hand_pose=p[:, 40:].reshape(1, 45), transl=t,
    )  # fmt: skip
    got = body.pose(b, e, p, t)
    torch.testing.assert_close(got.vertices, want.vertices, atol=1e-6, rtol=0)
    torch.testing.assert_close(got.joints, want.joints[:, :55], atol=1e-6, rtol=0)
    few = body.joints_only(b, e, p, t, ids=[KEY_VERTICES["nose"], 5])
    torch.testing.assert_close(few[:, :55], got.joints, atol=1e-5, rtol=0)
    torch.testing.assert_close(few[:, 55:], got.vertices[:, [KEY_VERTICES["nose"], 5]], atol=1e-5, rtol=0)


def test_batches_and_gradients(body):
    pose = torch.tensor(np.stack([NAMED_POSES["sitting"], NAMED_POSES["waving"]]), requires_grad=True)
    zeros = torch.zeros(2, 10)
    joints = body.joints_only(zeros, zeros, pose, ids=[KEY_VERTICES["nose"]])
    joints.square().sum().backward()
    assert pose.grad is not None and pose.grad[:, 16].abs().min() > 0
    one = body.joints_only(zeros[:1], zeros[:1], pose[1:].detach(), ids=[KEY_VERTICES["nose"]])
    torch.testing.assert_close(one[0], joints[1].detach(), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="betas"):
        body.pose(zeros[:1], zeros, pose)


def linear_alone() -> Body:
    """The open body without its pose correctives."""
    plain = deepcopy(load_body())
    plain.model.posedirs = torch.zeros_like(plain.model.posedirs)
    return plain


def thinnest(body: Body, pose, joint: str, child: str) -> float:
    """Least ratio of a limb's mean radius, posed to rest, over slices along the bone."""
    j, c = JOINT_IDS[joint], JOINT_IDS[child]
    posed = body.pose(*batch(np.zeros(10), np.zeros(10), pose)).vertices[0].numpy()
    along = (body.template[:, 0] - body.rest_joints[j, 0]) / (body.rest_joints[c, 0] - body.rest_joints[j, 0])
    ratios = []
    for low in np.linspace(-0.1, 0.9, 11):
        ring = (along > low) & (along < low + 0.1) & (np.abs(body.template[:, 1] - body.rest_joints[j, 1]) < 0.09)
        before, after = (
            np.linalg.norm((x - x.mean(0))[:, 1:], axis=1).mean() for x in (body.template[ring], posed[ring])
        )
        ratios.append(after / before)
    return min(ratios)


@pytest.mark.parametrize(
    ("joint", "child", "degrees", "least"),
    [("shoulder", "elbow", 80, 0.84), ("shoulder", "elbow", -60, 0.94), ("elbow", "wrist", 60, 0.93)],
)
def test_a_twisted_arm_is_no_candy_wrapper(body, joint, child, degrees, least):
    pose = make_pose(**{f"both_{joint}": (degrees, 0, 0)})
    corrected, linear = (thinnest(b, pose, f"left_{joint}", f"left_{child}") for b in (body, linear_alone()))
    assert corrected > least and corrected > linear + 0.04


def test_bent_limbs_keep_their_volume(body):
    zero, faces = np.zeros(10), body.faces

    def volume(pose):
        a, b, c = body.pose(*batch(zero, zero, pose)).vertices[0].double().numpy()[faces].transpose(1, 0, 2)
        return (a * np.cross(b, c)).sum() / 6

    rest = volume(NAMED_POSES["t_pose"])
    assert 0.05 < rest < 0.1  # cubic metres
    for bend in ({"both_elbow": (0, -120, 0)}, {"both_knee": (120, 0, 0)}, {"both_shoulder": (0, 0, -80)}):
        assert volume(make_pose(**bend)) == pytest.approx(rest, rel=0.02), bend


@pytest.mark.parametrize("name", NAMED_POSES)
def test_named_poses_are_possible_and_fit_the_picture(body, name):
    pose = NAMED_POSES[name]
    assert pose.shape == (55, 3) and not pose[0].any()
    assert np.degrees(np.abs(clamp_pose(pose) - pose)).max() < 12
    for yaw in (0, 90):
        params = place(body, pose, yaw=yaw, image_size=(192, 144))
        uv = project(body.posed(params).vertices[0].numpy(), params.K)
        assert uv.min() >= -0.5 and (uv.max(0) <= [143.5, 191.5]).all()


def test_yaw_turns_to_the_own_left(body):
    """+90: turned to their own left, so that the camera sees their right side."""
    joints = body.posed(place(body, NAMED_POSES["standing"], yaw=90)).joints[0]
    assert joints[JOINT_IDS["right_shoulder"], 2] < joints[JOINT_IDS["left_shoulder"], 2] - 0.2
    assert joints[JOINT_IDS["left_foot"], 0] > joints[JOINT_IDS["left_ankle"], 0] + 0.05
    high = body.posed(place(body, NAMED_POSES["standing"], pitch=40)).joints[0]
    assert high[JOINT_IDS["head"], 2] < high[JOINT_IDS["left_ankle"], 2], "from above the head is nearer"
    np.testing.assert_allclose(look_at(0, 0), np.diag([1, -1, -1]), atol=1e-12)


def test_turned_equals_placed_at_that_yaw(body, standing):
    a = body.posed(turned(standing, 50)).joints[0]
    b = body.posed(place(body, NAMED_POSES["standing"], yaw=50, image_size=(256, 192))).joints[0]
    torch.testing.assert_close(a - a[0], b - b[0], atol=1e-5, rtol=0)


def test_mirrored_parameters_give_the_flipped_picture(body):
    params = place(body, NAMED_POSES["waving"], yaw=30, image_size=(256, 192))
    flipped = person_mask(body, mirror_parameters(params))[:, ::-1]
    assert (flipped != person_mask(body, params)).mean() < 0.004
    np.testing.assert_allclose(mirror_pose(mirror_pose(params.pose)), params.pose)
    np.testing.assert_allclose(JOINT_LIMITS[MIRROR][:, 0, 0], JOINT_LIMITS[:, 0, 0])


def test_conversion_keeps_the_bones_directions(body):
    """A body with another rest skeleton (upper arms 18 degrees lower) takes the same posture after conversion."""
    other = deepcopy(load_body())
    rest = other._joints.clone()
    for sign, chain in ((1, (18, 20)), (-1, (19, 21))):
        shoulder = chain[0] - 2
        turn = torch.tensor(rotation([0, 0, -sign * np.radians(18)])).float()
        lowered = (rest[chain[0]] - rest[shoulder]) @ turn.T + rest[shoulder] - rest[chain[0]]
        for j in [*chain, *(range(25, 40) if sign > 0 else range(40, 55))]:
            rest[j] += lowered
    other._joints.copy_(rest)
    other.hash = "f" * 16
    params = place(body, NAMED_POSES["hands_on_hips"], yaw=40)
    there = convert_parameters(params, body, other)
    table = np.degrees([np.linalg.norm(cv2_rotvec(c)) for c in rest_rotations(body, other)])
    assert table[16] == pytest.approx(18, abs=0.2) and table[[1, 2, 4, 5]].max() < 0.1

    def bones(b, p):
        joints = b.joints_only(*batch(p.betas, p.expression, p.pose, p.transl))[0].numpy()
        limbs = [(16, 18), (18, 20), (17, 19), (19, 21), (1, 4), (4, 7), (2, 5), (20, 28), (12, 15)]
        d = np.array([joints[c] - joints[j] for j, c in limbs])
        return d / np.linalg.norm(d, axis=1, keepdims=True)

    unconverted = replace(params, body_hash=other.hash)
    assert np.degrees(np.arccos((bones(body, params) * bones(other, unconverted)).sum(1).clip(-1, 1))).max() > 10
    assert np.degrees(np.arccos((bones(body, params) * bones(other, there)).sum(1).clip(-1, 1))).max() < 0.5
    back = convert_parameters(there, other, body)
    np.testing.assert_allclose(back.pose, params.pose, atol=2e-3)
    with pytest.raises(ValueError, match="made with"):
        convert_parameters(params, other, body)


def cv2_rotvec(matrix):
    from omfa.bodies.placing import rotation_vector

    return rotation_vector(matrix)


# ---------------------------------------------------------------------------------------------------- files


def test_parameters_come_back_as_they_were(standing, tmp_path):
    path = standing.save(tmp_path / "deep" / "p.npz")
    again = BodyParameters.load(path)
    for name in ("betas", "expression", "pose", "transl", "K"):
        assert np.array_equal(getattr(again, name), getattr(standing, name)), name
    assert (again.body, again.body_hash, again.image_size) == (standing.body, standing.body_hash, (256, 192))
    assert [p.name for p in path.parent.iterdir()] == ["p.npz"]
    assert "flat_hand_mean" in np.load(path).files


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("pose", np.zeros((54, 3)), "pose"),
        ("betas", np.full(10, np.nan), "finite"),
        ("betas", np.zeros(10, complex), "numbers"),
        ("transl", np.full(3, 1e30), "beyond"),
        ("K", np.zeros((3, 3)), "no camera"),
        ("image_size", np.array([0, 5]), "image_size"),
        ("image_size", np.array([10**9, 5]), "image_size"),
        ("image_size", np.array([1.5, 5.0]), "image_size"),
        ("body_hash", np.array(""), "body_hash"),
        ("flat_hand_mean", np.array(False), "hands"),
    ],
)
def test_parameters_out_of_contract_are_refused(standing, tmp_path, field, value, said):
    path = standing.save(tmp_path / "p.npz")
    data = dict(np.load(path)) | {field: value}
    np.savez(path, **data)
    with pytest.raises(ValueError, match=said) as told:
        BodyParameters.load(path)
    assert "p.npz" in str(told.value)


class _Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was opened",))


def test_hostile_files_are_refused(standing, tmp_path):
    path = tmp_path / "p.npz"
    good = standing.save(tmp_path / "good.npz").read_bytes()
    np.savez(path, **(dict(np.load(tmp_path / "good.npz")) | {"betas": np.array([_Bomb()], object)}))
    cases = {
        "pickled": path.read_bytes(),
        "cut": good[:300],
        "empty": b"",
        "text": b"not a zip",
        "pickle": pickle.dumps(1),
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("betas.npy", bytes(5_000_000))
    cases["bomb"] = path.read_bytes()
    for name, data in cases.items():
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"p\.npz"):
            BodyParameters.load(path)
        assert name
    path.unlink()
    with pytest.raises(ValueError, match="no such file"):
        BodyParameters.load(path)


def test_wrong_body_files_say_where_to_get_one(tmp_path, standing):
    for path in (tmp_path / "missing.npz", standing.save(tmp_path / "params.npz")):
        with pytest.raises(ValueError, match=r"smpl-x\.is\.tue\.mpg\.de"):
            load_body(path)
    arrays = dict(np.load(write(tmp_path / "b.npz", open_asset())))
    arrays["joint2num"] = np.array(_Bomb(), object)  # licensed files carry pickled tables: never opened
    np.savez(tmp_path / "SMPLX_NEUTRAL.npz", **arrays)
    assert load_body(tmp_path / "SMPLX_NEUTRAL.npz").hash == load_body().hash
    arrays["posedirs"] = arrays["posedirs"][..., :207]
    np.savez(tmp_path / "SMPL.npz", **{k: v for k, v in arrays.items() if v.dtype != object})
    with pytest.raises(ValueError, match="posedirs"):
        load_body(tmp_path / "SMPL.npz")


def write(path, data):
    path.write_bytes(data)
    return path


def test_other_bodies_parameters_are_refused(body, standing):
    with pytest.raises(ValueError, match="convert_parameters"):
        body.posed(replace(standing, body_hash="0" * 16))
    other = approximate_parameters(replace(standing, body="someone's", body_hash="0" * 16), body)
    assert "approximate" in other.body and "someone's" in other.body
    assert torch.equal(body.posed(other).vertices, body.posed(standing).vertices)
    assert approximate_parameters(standing, body) is standing


def test_wrong_calls_are_refused(body):
    with pytest.raises(ValueError, match="left_elbow"):
        make_pose(left_ellbow=(0, 0, 0))
    with pytest.raises(ValueError, match="fill"):
        place(body, NAMED_POSES["t_pose"], fill=0)
    with pytest.raises(ValueError, match="fov"):
        camera((10, 10), 190)
