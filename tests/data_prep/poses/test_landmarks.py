"""Landmarks: how looks are made to agree; where mediapipe is installed, people in pictures whose truth is known."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.__main__ import main
from data_prep.check import validate
from data_prep.poses import landmarks
from data_prep.poses.fitting import fit, view_yaw
from data_prep.poses.landmarks import ID, NAMES, Landmarks, NobodyError, agreed, detect
from data_prep.poses.photo import photo_estimator
from omfa.bodies.body import load_body
from omfa.bodies.parameters import JOINT_IDS, BodyParameters
from omfa.bodies.placing import project
from omfa.records.prepared import read_records
from tests.samples import sample

needs_models = pytest.mark.skipif(
    importlib.util.find_spec("mediapipe") is None, reason=f"mediapipe is not installed: {landmarks.INSTALL}"
)


def person(seed: int = 0, size: tuple[int, int] = (400, 300)) -> Landmarks:
    rng = np.random.default_rng(seed)
    world = rng.normal(0, 0.4, (33, 3))
    return Landmarks(
        size, world[:, :2] * 150 + [150, 200], np.ones(33), world, rng.uniform(0, 300, (2, 21, 3)), (10, 20, 30, 50),
        rng.random(size) > 0.5,
    )  # fmt: skip


def test_looks_that_agree_outvote_the_one_that_does_not() -> None:
    good = person()
    near = replace(good, points=good.points + 2.0)
    wrong = replace(good, points=good.points[landmarks._MIRROR], visible=np.full(33, 0.9))
    for looks in ([good, near, wrong], [wrong, good, near], [near, wrong, good]):
        found = agreed(looks)
        assert found is not None and found.looks == 2
        assert np.allclose(found.points, good.points + 1)
        assert 0.9 < found.visible.min() < 1  # the two do not agree to the pixel
    assert agreed([]) is None
    alone = agreed([good])
    assert alone is not None and np.array_equal(alone.points, good.points) and alone.looks == 1


def test_landmarks_on_which_looks_differ_count_for_less() -> None:
    good = person()
    points = good.points.copy()
    points[ID["left_wrist"]] += 40
    found = agreed([good, replace(good, points=points), good])
    assert found is not None and found.visible[ID["left_wrist"]] < 0.6 < 0.99 < found.visible[ID["right_wrist"]]


def test_mirrored_twice_is_the_same() -> None:
    once = landmarks._unmirrored(person())
    twice = landmarks._unmirrored(once)
    for name in ("points", "visible", "world", "hands", "mask"):
        assert np.allclose(getattr(twice, name), getattr(person(), name)), name
    assert twice.face == person().face
    left, right = ID["left_knee"], ID["right_knee"]
    assert np.allclose(once.points[left], [299 - person().points[right][0], person().points[right][1]])


def test_windows_and_sizes() -> None:
    whole = person()
    window = landmarks._cropped(whole, 20, 30, (200, 100))
    assert np.allclose(window.points, whole.points - [20, 30]) and window.mask.shape == (200, 100)
    twice = landmarks._scaled(whole, (800, 600), np.array([2.0, 2.0]))
    assert np.allclose(twice.points, whole.points * 2 + 0.5) and twice.mask.shape == (800, 600)  # pixel centres
    outside = replace(whole, points=whole.points + 1000)
    assert not outside.inside.any() and outside.score == 0


def test_without_mediapipe_the_cure_is_told() -> None:
    code = (
        "import sys; sys.modules['mediapipe'] = None\nfrom data_prep.__main__ import main\n"
        "sys.exit(main(['pose-maps', '--images', 'tests', '--out', sys.argv[1]]))"
    )
    done = subprocess.run([sys.executable, "-c", code, "never-made"], capture_output=True, text=True)
    assert (
        done.returncode == 2 and "pip install --no-deps mediapipe==" in done.stderr and "make pose-tools" in done.stderr
    )
    assert not Path("never-made").exists()


# ---------------------------------------------------------------------------------------------------- with the models


@pytest.fixture(scope="module")
def renders() -> list[tuple[np.ndarray, BodyParameters]]:
    """Two dressed people, rendered: front and back or side."""
    from data_prep.wardrobe.synthetic import make_outfit

    return [(s.person, s.params) for s in make_outfit(77, 11, (512, 384), 3)[::2]]


def truth(params: BodyParameters) -> np.ndarray:
    return project(load_body().posed(params).joints[0].numpy(), params.K)


@needs_models
def test_people_are_found_where_they_are(renders: list[tuple[np.ndarray, BodyParameters]]) -> None:
    major = [f"{s}_{j}" for s in ("left", "right") for j in ("shoulder", "elbow", "hip", "knee")]
    for rgb, params in renders:
        found = detect(rgb)
        assert len(found) == 1 and found[0].looks >= 2
        away = found[0].points[[ID[n] for n in major]] - truth(params)[[JOINT_IDS[n] for n in major]]
        assert np.linalg.norm(away, axis=1).mean() < 0.04 * 512
        fitted = fit(found[:1], load_body())[0]
        assert abs((view_yaw(fitted.params) - view_yaw(params) + 180) % 360 - 180) < 30


@needs_models
def test_of_two_people_the_more_prominent_comes_first(renders: list[tuple[np.ndarray, BodyParameters]]) -> None:
    (a, _), (b, params_b) = renders
    small = np.asarray(Image.fromarray(b).resize((288, 384)))
    picture = np.full((512, 384 + 288, 3), 235, np.uint8)
    picture[:, :384] = a
    picture[128:, 384:] = small
    found = detect(picture)
    assert len(found) == 2 and found[0].prominence > found[1].prominence
    middles = [p.points[[ID["left_hip"], ID["right_hip"]], 0].mean() for p in found]
    assert middles[0] < 384 < middles[1]
    with pytest.raises(ValueError, match="person 3 was asked for; 2 found"):
        photo_estimator(person=3)(Image.fromarray(picture))
    second = photo_estimator(person=2)(Image.fromarray(picture)).params
    assert abs(truth(second)[0, 0] - (384 + truth(params_b)[0, 0] * 0.75)) < 25


@needs_models
def test_the_order_of_photos_changes_nothing(renders: list[tuple[np.ndarray, BodyParameters]]) -> None:
    (a, _), (b, _) = renders
    first = detect(a)[0]
    detect(b)
    again = detect(a)[0]
    assert np.array_equal(first.points, again.points) and np.array_equal(first.world, again.world)


@needs_models
def test_nobody_is_an_answer() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (256, 192, 3), np.uint8)
    for picture in (noise, np.full((64, 64, 3), 255, np.uint8), np.zeros((8, 8, 3), np.uint8)):
        with pytest.raises(NobodyError, match="no person was found"):
            detect(picture)


@needs_models
def test_stages_from_photos_to_faces(renders: list[tuple[np.ndarray, BodyParameters]], tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, (rgb, _) in zip("ab", renders, strict=True):
        Image.fromarray(rgb).save(photos / f"{name}.png")
    Image.new("RGB", (200, 300), "white").save(photos / "nobody.jpg")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    out = tmp_path / "out"
    assert main(["pose-maps", "--images", str(photos), "--out", str(out)]) == 1
    assert validate(out) == []
    reasons = {json.loads(x)["id"]: json.loads(x)["reason"] for x in (out / "failures.jsonl").read_text().splitlines()}
    assert (
        set(reasons) == {"nobody", "broken"} and "no person" in reasons["nobody"] and "broken.jpg" in reasons["broken"]
    )
    for record in read_records(out):
        assert record.pose is not None and record.view_yaw is not None
        said = record.provenance["pose"]
        assert said["people"] == 1 and said["person"] == 1 and 0 < said["reprojection"] < 0.03
        pose_map = np.asarray(Image.open(out / str(record.pose.map)))
        assert pose_map.shape == (512, 384, 3) and 0.05 < (pose_map.max(2) > 0).mean() < 0.6
    assert Image.open(out / "contact_001.jpg").height == 320
    faces = tmp_path / "faces"
    assert main(["faces", "--records", str(out), "--out", str(faces)]) == 0
    records = {r.id: r for r in read_records(faces)}
    assert validate(faces) == [] and all((r.face is None) == ("no_face" in r.provenance) for r in records.values())


@needs_models
def test_faces_of_sample_photographs() -> None:
    from data_prep.faces import head_crop

    body = load_body()
    for name, there in (("people/00035_00.jpg", True), ("people/051962_0.jpg", False)):
        rgb = np.asarray(Image.open(sample(name)).convert("RGB"))
        params = fit(detect(rgb)[:1], body)[0].params
        head = head_crop(rgb, params, body)
        assert (head.crop is not None) == there
        assert there or "cuts the face off" in head.missing


def hostile(folder: Path) -> dict[str, str]:
    """Files that are no photos of people, and what must be said of each."""
    Image.new("RGB", (300, 400), "white").save(folder / "h-nobody.png")
    Image.new("RGB", (4, 4)).save(folder / "h-tiny.png")
    Image.new("RGB", (3000, 20)).save(folder / "h-narrow.png")
    (folder / "h-empty.jpg").touch()
    (folder / "h-text.jpg").write_text("hello")
    whole = next(folder.glob("p*.jpg")).read_bytes()
    (folder / "h-cut.jpg").write_bytes(whole[: len(whole) // 2])
    png = bytearray((folder / "h-nobody.png").read_bytes())
    png[16:24] = (60000).to_bytes(4, "big") * 2  # claims 60,000 pixels a side
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    (folder / "h-bomb.png").write_bytes(png)
    (folder / "h-folder.png").mkdir()
    (folder / "h-link.jpg").symlink_to("/etc/hostname")
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    Image.fromarray(noise).save(folder / "h-noise.webp", lossless=True)
    return {
        "h-nobody": "no person", "h-tiny": "too small", "h-narrow": "too narrow", "h-empty": "empty", "h-text": "not a",
        "h-cut": "damaged", "h-bomb": "scale it down", "h-link": "link", "h-noise": "no person",
    }  # fmt: skip


@needs_models
@pytest.mark.slow
def test_a_hundred_photos_killed_and_run_again(
    renders: list[tuple[np.ndarray, BodyParameters]], tmp_path: Path
) -> None:
    """One worker in one go, or two workers killed in the middle and started again: the same bytes."""
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for k in range(91):
        small = Image.fromarray(renders[k % 2][0]).resize((192, 256))
        shifted = np.roll(np.asarray(small), rng.integers(-12, 13), axis=1) * rng.uniform(0.6, 1)
        Image.fromarray(shifted.astype(np.uint8)).save(photos / f"p{k:03d}.jpg", quality=92)
    reasons = hostile(photos)
    call = [sys.executable, "-m", "data_prep", "pose-maps", "--images", str(photos), "--out"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert subprocess.run([*call, str(one)]).returncode == 1
    killed = subprocess.Popen([*call, str(two), "--workers", "2"])
    while killed.poll() is None and len(list(two.glob("pose/*.npz"))) < 40:
        time.sleep(0.05)
    killed.kill()
    assert killed.wait() == -9
    again = subprocess.run([*call, str(two), "--workers", "2"], capture_output=True, text=True)
    assert again.returncode == 1 and "done before" in again.stdout
    assert digest(one) == digest(two)
    failed = {x["id"]: x["reason"] for x in map(json.loads, (one / "failures.jsonl").read_text().splitlines())}
    assert set(failed) == set(reasons)
    assert all(reasons[name] in failed[name] for name in reasons), failed
    assert len(read_records(one)) == 91 and len(list(one.glob("contact_*.jpg"))) == 6


def digest(folder: Path) -> dict[str, str]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith(".journal"))
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_names_are_those_of_the_models() -> None:
    if importlib.util.find_spec("mediapipe") is None:
        pytest.skip(f"mediapipe is not installed: {landmarks.INSTALL}")
    theirs = [x.name.lower().replace("foot_index", "toe") for x in landmarks._mediapipe().pose.PoseLandmark]
    assert theirs == list(NAMES)
