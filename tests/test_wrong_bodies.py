"""Bodies that can't be used, are not known or can't be right: each costs its own picture, and says why."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from omfa import encode, images
from omfa.bodies.body import load_body
from omfa.bodies.parameters import BodyParameters
from omfa.bodies.standing import standing
from omfa.bodies.surface import resized
from omfa.drafting import draw
from omfa.orders import Order, hand_estimator
from omfa.pipeline import OMFAPipeline
from omfa.records.drawn import Drawer
from omfa.records.prepared import RecordError, record_files
from omfa.records.shards import open_records
from omfa.request import read_request
from omfa.tasks import Estimate, PoseEstimator
from tests.conftest import SIZE, make_compact

H, W = SIZE


@pytest.fixture
def pipe() -> OMFAPipeline:
    made = make_compact(join="rows", draft="surface", pose_style="surface", portraits=True)
    made.set_progress_bar_config(disable=True)
    return made


def read(world: Path, path: str) -> Image.Image:
    return Image.open(world / path).convert("RGB")


def spoiled(world: Path, to: Path, role: str, **change: Any) -> Path:
    """A copy of the world in which the first record's file of this role tells of another body."""
    shutil.copytree(world, to)
    path = to / record_files(open_records(world).records()[0])[role]
    params = BodyParameters.load(path)
    path.unlink()
    replace(params, **{k: f(params) if callable(f) else f for k, f in change.items()}).save(path)
    return to


def test_numbers_beyond_all_bounds_are_the_record_s_fault_or_draw_nothing(world: Path, tmp_path: Path) -> None:
    record = open_records(world).records()[0]
    kind = record.garments[0].category.value
    far = {"transl": lambda p: p.transl * 0 + 1e6, "K": lambda p: np.diag([9e5, 9e5, 1.0])}
    folder = spoiled(world, tmp_path / "far", f"{kind}_pose", **far)
    drawn = Drawer(open_records(folder), SIZE, load_body()).pictures(record)
    assert f"{kind}_map" not in drawn and "person_draft" in drawn
    folder = spoiled(world, tmp_path / "near", f"{kind}_pose", K=far["K"], image_size=lambda p: (8, 6))
    with pytest.raises(RecordError, match="1e6"):
        Drawer(open_records(folder), SIZE, load_body()).pictures(record)


@pytest.mark.parametrize("role", ["pose_params", "face_pose", "garment"])
def test_one_file_of_another_body_loses_its_own_drawings_alone(world: Path, tmp_path: Path, role: str) -> None:
    record = open_records(world).records()[0]
    kinds = [g.category.value for g in record.garments]
    lost = f"{kinds[0]}_pose" if role == "garment" else role
    folder = spoiled(world, tmp_path / "w", lost, body_hash="another")
    before, after = (set(Drawer(open_records(f), SIZE, load_body()).pictures(record)) for f in (world, folder))
    own = {f"{kinds[0]}_{what}" for what in ("map", "stand", "draft")}
    person = {n for n in before if n.endswith("_draft")} | {f"{k}_stand" for k in kinds} | {"surface_map"}
    assert before - after == {"garment": own, "pose_params": person, "face_pose": set()}[role]


def test_one_body_behind_the_camera_loses_its_own_picture_alone(
    world: Path, pipe: OMFAPipeline, tmp_path: Path
) -> None:
    record, body = open_records(world).records()[0], load_body()
    kinds = [g.category.value for g in record.garments]
    assert len(kinds) == 2 and record.face is not None
    away = {"transl": lambda p: p.transl * [1, 1, -1]}
    drawn = Drawer(open_records(spoiled(world, tmp_path / "w", f"{kinds[0]}_pose", **away)), SIZE, body).pictures(
        record
    )
    assert "person_draft" in drawn and f"{kinds[1]}_map" in drawn and f"{kinds[0]}_map" not in drawn

    params, head = (BodyParameters.load(world / record_files(record)[role]) for role in ("pose_params", "face_pose"))
    worn = {g.category.value: read(world, g.path) for g in record.garments}
    stands = {g.category.value: BodyParameters.load(world / str(g.pose)) for g in record.garments}
    broken = stands | {kinds[0]: replace(stands[kinds[0]], transl=stands[kinds[0]].transl * [1, 1, -1])}
    face, rest = read(world, record.face.path), {k: v for k, v in worn.items() if k != kinds[0]}

    def asked(garments: Any, poses: Any, face_pose: Any) -> Any:
        return read_request(pipe.canvas, ["person"], None, garments, face, params, None, None, poses, face_pose)

    with pytest.warns(UserWarning, match=f"no draft shows {kinds[0]}: .*behind the camera") as said:
        made = draw(asked(worn, broken, head), SIZE, body)
        draw(asked(worn, broken, head), SIZE, body, tell=False)
    assert len(said) == 1 and len(made.drafts) == 1
    wanted = draw(asked(rest, {kinds[1]: stands[kinds[1]]}, head), SIZE, body).drafts["person"][0]
    assert torch.equal(made.drafts["person"][0].picture, wanted.picture)  # type: ignore[union-attr]
    with pytest.warns(UserWarning, match="no draft shows face: "):
        faceless = draw(asked(worn, stands, replace(head, body_hash="another")), SIZE, body)
    assert faceless.drafts["person"][0] is not None


def test_a_garment_on_a_carpet_has_its_category_s_body(pipe: OMFAPipeline) -> None:
    """As the stage that poses garments for training has it."""
    carpet = Image.fromarray(np.random.default_rng(0).integers(60, 160, (*SIZE, 3)).astype(np.uint8))
    params = standing(load_body(), "dress", SIZE)
    request = read_request(pipe.canvas, ["person"], None, {"upper": carpet}, None, params, None)
    found = draw(request, SIZE, load_body()).bodies["garment_1"][0]
    assert found is not None and np.allclose(found.transl, standing(load_body(), "upper", SIZE).transl)


def test_a_photo_without_a_body_costs_the_others_nothing(world: Path, pipe: OMFAPipeline) -> None:
    record = open_records(world).records()[0]
    params = BodyParameters.load(world / record_files(record)["pose_params"])
    person, nobody = read(world, record.file_name), Image.new("RGB", (W, H), "white")
    calls: list[Any] = []

    def find(photo: Image.Image) -> Estimate:
        calls.append(photo)
        if np.array_equal(np.asarray(photo), np.asarray(nobody)):
            raise ValueError("nobody is in it")
        return Estimate(params, None)

    def off(photos: Any, **options: Any) -> list[np.ndarray]:
        seeds = [torch.Generator().manual_seed(0) for _ in images.as_list(photos)]
        made = pipe.try_off(photos, "upper", generator=seeds, num_inference_steps=1, **options)
        return [np.asarray(p).astype(int) for p in made.images]

    pipe.pose_estimator = find
    with pytest.warns(UserWarning, match="photo 2 of 2: .*nobody is in it"):
        both = off([person, nobody])
    pipe.pose_estimator = None
    assert np.abs(both[0] - off(person, pose=params)[0]).max() <= 2  # a batch of another size rounds differently
    assert np.abs(both[1] - off(nobody, pose=[None])[0]).max() <= 2
    with pytest.raises(ValueError, match="needs one, in every picture"):
        pipe(["person"], garments={"upper": [person, person]}, pose=[params, None])


def test_missing_tools_are_told_once_with_their_cure(world: Path, pipe: OMFAPipeline) -> None:

    def make() -> PoseEstimator:
        raise ValueError("mediapipe is not here: make pose-tools")

    photo = read(world, open_records(world).records()[0].file_name)
    order = Order(task="try-off", name="a", photo=photo)
    hand_estimator(pipe, make, order.needs_estimator)
    with pytest.warns(UserWarning) as said:
        for _ in range(2):
            order.make(pipe, num_inference_steps=1)
            with warnings.catch_warnings(action="ignore"):  # Python forgets what it has shown here
                pass
    told = [str(w.message) for w in said if "draft" in str(w.message)]
    assert len(told) == 1 and "make pose-tools" in told[0]
    with pytest.raises(ValueError, match="make pose-tools"):
        hand_estimator(pipe, make, needed=True)


def test_a_body_of_a_picture_of_another_shape_is_refused(world: Path, pipe: OMFAPipeline) -> None:
    record = open_records(world).records()[0]
    params = BodyParameters.load(world / record_files(record)["pose_params"])
    person, other = read(world, record.file_name), replace(params, image_size=(100, 900))
    with pytest.raises(ValueError, match=f"pose: body parameters of a picture of 900x100 for one of {W}x{H}"):
        read_request(pipe.canvas, ["upper"], person, None, None, other, None)
    garments = {"upper": person}
    with pytest.raises(ValueError, match="upper: body parameters of a picture of 900x100"):
        read_request(pipe.canvas, ["person"], None, garments, None, params, None, None, {"upper": other})
    twice = resized(params, (2 * H, 2 * W))
    assert read_request(pipe.canvas, ["upper"], person, None, None, twice, None).params == [twice]


def test_encode_says_once_that_garments_have_no_bodies(
    world: Path, pipe: OMFAPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [r for r in open_records(world).records() if r.outfit_id == "s4-o0"]
    assert not encode._without_body(records)
    bare = [replace(r, garments=tuple(replace(g, pose=None) for g in r.garments)) for r in records]
    folder = tmp_path / "w"
    shutil.copytree(world, folder)
    (folder / "metadata.jsonl").write_text("".join(r.to_json() + "\n" for r in bare[:1]))
    pipe.vae.save_pretrained(tmp_path / "vae")
    args = [
        "--records",
        str(folder),
        "--vae",
        str(tmp_path / "vae"),
        "--size",
        f"{H}x{W}",
        "--out",
        str(tmp_path / "z"),
    ]
    assert encode.main([*args, "--draft", "surface"]) == 0
    count = len(bare[0].garments)
    assert capsys.readouterr().err.count(f"{count} shop pictures have no body") == 1
