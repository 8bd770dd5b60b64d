"""Parameters of others: each documented layout lands where it was, and no file can do harm."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.__main__ import main
from data_prep.poses.parameter_files import PELVIS, full_translation, on_body, read_amass, read_parameters
from omfa.bodies.body import Body, load_body
from omfa.bodies.named_poses import NAMED_POSES
from omfa.bodies.parameters import BodyParameters
from omfa.bodies.placing import look_at, project, rotation, rotation_vector

SIZE = (400, 300)


@pytest.fixture(scope="module")
def body() -> Body:
    return load_body()


@pytest.fixture(scope="module")
def pose() -> np.ndarray:
    pose = NAMED_POSES["waving"].astype(np.float64).copy()
    pose[0] = rotation_vector(look_at(20, 3))
    return pose


def matrices(pose: np.ndarray) -> np.ndarray:
    return np.stack([rotation(v) for v in pose])


def whole_body(pose: np.ndarray) -> dict[str, np.ndarray]:
    """As SMPLer-X writes it, hands relative to a mean hand."""
    hands = pose[25:] - NAMED_POSES["standing"][25:]
    return {
        "global_orient": pose[:1], "body_pose": pose[1:22], "left_hand_pose": hands[:15],
        "right_hand_pose": hands[15:], "jaw_pose": np.zeros((1, 3)), "betas": np.ones((1, 10)),
        "expression": np.zeros((1, 10)), "transl": np.array([[0.1, 0.2, 8.0]]),
    }  # fmt: skip


def test_4d_humans(tmp_path: Path, body: Body, pose: np.ndarray) -> None:
    smpl = {"global_orient": matrices(pose[:1]), "body_pose": matrices(pose[1:24]), "betas": np.ones(10)}
    np.savez(tmp_path / "a.npz", **smpl, camera=np.array([0.1, -0.3, 30.0]))
    params = read_parameters(tmp_path / "a.npz", "4d-humans", SIZE)
    assert np.allclose(params.pose[:22], pose[:22], atol=1e-5) and not params.betas.any()
    assert params.K[0, 0] == pytest.approx(5000 / 256 * 400)
    ours = on_body(params, body, None)
    assert "approximate" in ours.body and "4d-humans" in ours.body
    pelvis = body.posed(ours).joints[0, 0].numpy()
    assert np.allclose(pelvis, np.array([0.1, -0.3, 30]) + PELVIS["smpl"], atol=1e-4)


@pytest.mark.parametrize("kind", ["smpler-x", "osx", "smplest-x"])
def test_whole_body_tools(tmp_path: Path, body: Body, pose: np.ndarray, kind: str) -> None:
    data = whole_body(pose)
    if kind == "smplest-x":  # (people, frames, ...)
        data["body_poses"] = data.pop("body_pose").reshape(1, 1, 63)
        data["global_orient"] = data["global_orient"][None]
    (tmp_path / "smplx").mkdir()
    np.savez(tmp_path / "smplx" / "00001_0.npz", **data)
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "00001_0.json").write_text(json.dumps({"focal": [900.0, 910.0], "princpt": [150.0, 200.0]}))
    params = read_parameters(tmp_path / "smplx" / "00001_0.npz", kind, SIZE)
    assert np.allclose(params.pose, pose, atol=1e-6)
    assert params.K[1, 1] == 910 and params.K[0, 2] == 149.5 and params.transl[2] == 8
    ours = on_body(params, body, None)
    assert kind in ours.body and not ours.betas.any()
    expected = project(np.array([0.1, 0.2, 8]) + PELVIS["smplx"], params.K)
    assert np.allclose(project(body.posed(ours).joints[0, 0].numpy(), ours.K), expected, atol=1e-2)


def test_pixie_in_json(tmp_path: Path, pose: np.ndarray) -> None:
    data = {
        "global_pose": matrices(pose[:1])[None].tolist(), "body_pose": matrices(pose[1:22])[None].tolist(),
        "left_hand_pose": matrices(pose[25:40]).tolist(), "right_hand_pose": matrices(pose[40:]).tolist(),
        "shape": [0.5] * 200, "exp": [0.1] * 50, "body_cam": [0.8, 0.1, 0.2], "bbox": [50, 100, 150, 300],
    }  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(data))
    params = read_parameters(tmp_path / "a.json", "pixie", SIZE)
    assert np.allclose(params.pose, np.concatenate([pose[:22], np.zeros((3, 3)), pose[25:]]), atol=1e-5)
    assert params.betas.shape == (10,) and params.betas[9] == 0.5
    b = 200 * 0.8  # side times scale; the box's centre is (100, 200), the photo's (150, 200)
    assert np.allclose(params.transl, [0.1 + 2 * (100 - 150) / b, 0.2, 2 * 800 / b])


def test_parameters_made_with_a_body_at_hand_are_converted_exactly(
    tmp_path: Path, body: Body, pose: np.ndarray
) -> None:
    from importlib.resources import files

    from data_prep.poses.parameter_files import made_with_body

    with files("omfa").joinpath("assets/open_body.npz").open("rb") as shipped:
        source = made_with_body(Path(shipped.name))  # stands for a licensed file
    data = whole_body(pose) | {"focal": np.array([900.0]), "princpt": np.array([150.0, 200.0])}
    np.savez(tmp_path / "a.npz", **data)
    params = read_parameters(tmp_path / "a.npz", "osx", SIZE, source)
    ours = on_body(params, body, source)
    assert "approximate" not in ours.body and ours.betas.any() and np.allclose(ours.pose, params.pose)


@pytest.mark.parametrize("columns", [165, 156])
def test_amass_stands_upright(tmp_path: Path, body: Body, pose: np.ndarray, columns: int) -> None:
    standing = NAMED_POSES["standing"].astype(np.float64)
    up = rotation_vector(np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]))  # y up to z up
    row = np.concatenate([up, standing[1:22].ravel(), np.zeros(columns - 66)])
    np.savez(tmp_path / "walk.npz", poses=np.stack([row] * 61), trans=np.zeros((61, 3)))
    frames = list(read_amass(tmp_path / "walk.npz", body, every=30, image_size=SIZE))
    assert [t for t, _ in frames] == [0, 30, 60]
    joints = body.posed(frames[1][1]).joints[0].numpy()
    assert joints[15, 1] < joints[0, 1] < joints[7, 1]  # head above pelvis above ankle, y down
    (tmp_path / "in").mkdir()
    (tmp_path / "walk.npz").rename(tmp_path / "in" / "walk.npz")
    assert main(["render", "--amass", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--every", "40"]) == 0
    lines = [json.loads(x) for x in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()]
    assert [x["id"] for x in lines] == ["walk-000000", "walk-000040"]
    assert "made with amass" in BodyParameters.load(tmp_path / "out" / lines[1]["params"]).body
    with pytest.raises(ValueError, match=r"poses are \(61, 10\)"):
        np.savez(tmp_path / "bad.npz", poses=np.zeros((61, 10)))
        list(read_amass(tmp_path / "bad.npz", body, image_size=SIZE))


class Harm:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.mkdir, ("harm-was-done",)


def test_hostile_files(tmp_path: Path, pose: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    good = whole_body(pose) | {"focal": np.array([900.0]), "princpt": np.array([150.0, 200.0])}

    def refused(name: str, match: str, kind: str = "osx") -> None:
        with pytest.raises(ValueError, match=match):
            read_parameters(tmp_path / name, kind, SIZE)

    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"body_pose": Harm()}))
    refused("a.pkl", "pickles are not opened")
    np.savez(tmp_path / "pickled.npz", **{**good, "body_pose": np.array([Harm()], dtype=object)})
    refused("pickled.npz", "no body_pose")
    assert not (tmp_path / "harm-was-done").exists()
    np.savez(tmp_path / "nan.npz", **{**good, "body_pose": np.full((21, 3), np.nan)})
    refused("nan.npz", "body_pose holds numbers that are not finite")
    np.savez(tmp_path / "short.npz", **{**good, "body_pose": np.zeros((4, 3))})
    refused("short.npz", "21 rotations are needed")
    np.savez(tmp_path / "none.npz", x=np.zeros(3))
    refused("none.npz", "no global_orient.*there is x")
    (tmp_path / "list.json").write_text("3")
    refused("list.json", "one object")
    (tmp_path / "cut.json").write_text('{"a": [1, 2')
    refused("cut.json", "not readable as JSON")
    (tmp_path / "words.json").write_text(json.dumps({"global_orient": "north"}))
    refused("words.json", "no plain numbers")
    (tmp_path / "noise.npz").write_bytes(b"PK\x03\x04nothing")
    refused("noise.npz", "noise.npz")
    refused("gone.npz", "no such file")
    refused("a.txt", r"\.npz or \.json")
    refused("a.npz", "must be one of", kind="frank")


def test_the_formula_of_the_whole_photos_camera() -> None:
    assert np.allclose(full_translation(np.array([1.0, 0, 0]), np.array([50, 50]), 100, (100, 100), 500), [0, 0, 10])


def test_stage_takes_parameters_by_the_photos_name(tmp_path: Path, body: Body, pose: np.ndarray) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (SIZE[1], SIZE[0]), "white").save(tmp_path / "in" / f"{name}.png")
    (tmp_path / "params").mkdir()
    data = whole_body(pose) | {"focal": np.array([900.0]), "princpt": np.array([150.0, 200.0])}
    np.savez(tmp_path / "params" / "a_0.npz", **data)
    call = ["pose-maps", "--images", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--estimator", "import"]
    assert main([*call, "--params", str(tmp_path / "params"), "--format", "smpler-x"]) == 1
    line = json.loads((tmp_path / "out" / "metadata.jsonl").read_text())
    assert line["id"] == "a" and line["provenance"]["pose"]["estimator"] == "smpler-x"
    assert line["view_yaw"] == pytest.approx(20, abs=0.1)
    saved = BodyParameters.load(tmp_path / "out" / line["pose"]["params"])
    assert saved.body_hash == body.hash and "approximate" in saved.body
    assert "no parameters of b" in (tmp_path / "out" / "failures.jsonl").read_text()
    assert main(call) == 2
