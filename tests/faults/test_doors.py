"""What an odd user or an attacker hands to the doors of batches, records, bodies and masks: a line each, the rest goes
on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.data_sets.entries import Missing
from data_prep.data_sets.folder import scan_folder
from data_prep.poses.gates import measured
from omfa import encode
from omfa.batches.rows import Batch, Row, read_rows
from omfa.batches.running import DONE, run
from omfa.bodies import pose_render
from omfa.bodies.body import load_body
from omfa.bodies.named_poses import NAMED_POSES
from omfa.bodies.parameters import BodyParameters
from omfa.bodies.placing import place
from omfa.bodies.pose_render import part_map, render_pose_map
from omfa.bodies.surface import at_most
from omfa.fit import main as fit
from omfa.images import ENOUGH, ImageError
from omfa.orders import read_pose
from omfa.pipeline import OMFAPipeline
from omfa.records.keypoints import read_keypoints
from omfa.records.labels import read_labels
from omfa.records.prepared import METADATA, Record, RecordError, read_records
from omfa.records.shards import RecordFolder
from omfa.request import pose_picture, read_request
from omfa.training.configs import load_yaml
from tests.conftest import make_compact
from tests.data_prep.poses.test_fitting import seen
from tests.test_fit import arguments


def rows(path: Path, data: bytes) -> list[Row]:
    path.write_bytes(data)
    return list(read_rows(Batch(path, path.parent / "out", "compact")))


WRONG = {
    "views without end": b'"views":1e999',
    "half a view": b'"views":2.5',
    "true steps": b'"steps":true',
    "half a step": b'"steps":2.7',
    "a seed of 500 digits": b'"seed":' + b"9" * 500,
    "a seed of 5000 digits": b'"seed":' + b"9" * 5000,
    "an endless seed": b'"seed":-1e999',
    "a nest": b'"name":' + b"[" * 200_000,
    "a long name": b'"name":"' + b"a" * 300 + b'"',
    "a long name in bytes": '"name":"{}"'.format("\u0436" * 120).encode(),
    "a long folder": b'"name":"' + b"a" * 300 + b'/b"',
    "a picture as folder": b'"name":"a.png/b"',
    "the journal as folder": b'"name":"done.jsonl/b"',
    "guidance of words": b'"guidance":"much"',
    "a task of tasks": b'"task":["try-off"]',
    "a garment in a garment": b'"garments":{"upper":[["a"]]}',
    "a photo of numbers": b'"photo":5',
    "a category of numbers": b'"category":[5]',
    "a way out": b'"name":"../a"',
    "nothing that is known": b'"photos":"a"',
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_row_that_cannot_be_is_named_and_the_others_are_read(tmp_path: Path, wrong: str) -> None:
    good = b'{"task":"try-off","photo":"a.png"}\n'
    bad = b'{"task":"try-off","photo":"a.png",' + WRONG[wrong] + b"}\n"
    read = rows(tmp_path / "JOBS.JsonL", good.replace(b"{", b'{"name":"x",') + bad + good)
    assert [r.problem is None for r in read] == [True, False, True]
    assert len(read[1].problem or "") < 700


@pytest.mark.parametrize(
    ("data", "problems"),
    [
        (b'try-off,a\ntry-off,"b\ntry-off,c\ntry-off,d\n', ["", "lines 3 to 5.*quote"]),
        (b"try-off," + b"x" * 200_000 + b"\ntry-off,c\n", ["lines 2 to 2.*limit", ""]),
        (b'try-off,"a"b\ntry-off,c\n', ["no CSV", ""]),
        (b"try-off,a,b\ntry-off,c\n", ["more cells", ""]),
    ],
)
def test_a_damaged_row_of_a_table_swallows_no_other(tmp_path: Path, data: bytes, problems: list[str]) -> None:
    read = rows(tmp_path / "j.CSV", b"task,photo\n" + data)
    assert len(read) == len(problems)
    for row, words in zip(read, problems, strict=True):
        if not words:
            assert row.problem is None
        else:
            with pytest.raises(ValueError, match=words):
                raise ValueError(row.problem)


def test_tables_of_every_editor_say_the_same(tmp_path: Path) -> None:
    text = "task,photo\r\ntry-off,\u00e9.jpg\r\n"
    said = [rows(tmp_path / "j.csv", text.encode(how))[0].said for how in ("utf-8", "utf-8-sig", "utf-16")]
    assert said[0] == said[1] == said[2] == {"task": "try-off", "photo": "\u00e9.jpg"}
    with pytest.raises(ValueError, match="twice"):
        rows(tmp_path / "j.csv", b"task,photo,photo\ntry-off,a,b\n")


def test_an_open_quote_in_a_list_of_pairs_swallows_no_photo(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text('photo,caption\na.jpg,"wide\nb.jpg,x\n')
    with Missing(tmp_path / "out") as missing, pytest.raises(ValueError, match="no CSV"):
        list(scan_folder(tmp_path, missing))


@pytest.mark.parametrize("files", [5, [5], [], {"a": 1}, None, "a.png"])
def test_a_journal_of_nonsense_makes_the_row_again(records: Path, tmp_path: Path, files: object) -> None:
    photo = records / read_records(records)[0].file_name
    pipe = make_compact()
    pipe.save_pretrained(tmp_path / "m")
    (tmp_path / "j.jsonl").write_text(json.dumps({"task": "try-off", "photo": str(photo)}))
    batch = Batch(tmp_path / "j.jsonl", tmp_path / "out", str(tmp_path / "m"), steps=1)
    (row,) = read_rows(batch)
    (tmp_path / "out").mkdir()
    line = {"name": row.name, "made_from": row.made_from, "files": files}
    (tmp_path / "out" / DONE).write_text(json.dumps(line) + "\n" + "[" * 100_000 + "\n")
    assert run(batch, lambda _: pipe).made == 1 and (tmp_path / "out" / f"{row.name}_upper.png").is_file()


@pytest.mark.parametrize("path", ["loop.png", "person/\ud800.png", "x" * 300, "a/" * 2000 + "b", "person", "."])
def test_a_file_that_can_never_be_read_fails_its_record_alone(records: Path, tmp_path: Path, path: str) -> None:
    for file in records.rglob("*.png"):
        (tmp_path / file.relative_to(records)).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / file.relative_to(records)).symlink_to(file)
    (tmp_path / "loop.png").symlink_to("loop.png")
    with pytest.raises(RecordError):
        RecordFolder(tmp_path).read(path)
    if path != "loop.png":
        return
    vae = make_compact().vae
    vae.save_pretrained(tmp_path / "vae")
    folder = tmp_path / "records"
    folder.mkdir()
    for file in records.rglob("*"):
        if file.is_file():
            (folder / file.relative_to(records)).parent.mkdir(exist_ok=True, parents=True)
            (folder / file.relative_to(records)).write_bytes(file.read_bytes())
    first, *others = (folder / METADATA).read_text().splitlines()
    (folder / "loop.png").symlink_to("loop.png")
    (folder / METADATA).write_text("\n".join([json.dumps(json.loads(first) | {"file_name": path}), *others]) + "\n")
    call = ["--records", str(folder), "--vae", str(tmp_path / "vae"), "--out", str(tmp_path / "out"), "--size"]
    assert encode.main([*call, "64x48"]) == 1
    assert len(list((tmp_path / "out").rglob("*.safetensors"))) == len(others)
    for size in ("0x0", "4000000x4000000", "1000000x8", "64x0"):
        assert encode.main([*call, size]) == 2


def test_the_person_picture_is_no_garment_of_itself(records: Path) -> None:
    record = read_records(records)[0]
    said = json.loads(record.to_json())
    said["garments"] = [{"category": "upper", "path": record.file_name}]
    with pytest.raises(RecordError, match="this very picture"):
        Record.from_json(json.dumps(said))


def test_keypoints_of_no_picture_are_refused(tmp_path: Path) -> None:
    for value in (1e300, -1e9, 3.5e38):
        (tmp_path / "k.json").write_text(json.dumps({"people": [{"pose_keypoints_2d": [value] * 54}]}))
        with pytest.raises(RecordError, match="beyond"):
            read_keypoints(tmp_path / "k.json", "openpose-18")


def test_label_maps_that_were_jpegs_are_refused(tmp_path: Path) -> None:
    for mode in ("L", "RGB"):
        Image.new(mode, (20, 20)).save(tmp_path / "a.png", "JPEG")
        with pytest.raises(ValueError, match="JPEG changes"):
            read_labels(tmp_path / "a.png", ("background", "top"))


# ------------------------------------------------------------------------------------------------ bodies of any size


@pytest.mark.parametrize("style", ["parts_blend", "surface", "normals", "parts"])
def test_a_picture_drawn_in_bands_is_the_same_picture(
    monkeypatch: pytest.MonkeyPatch, style: pose_render.Style
) -> None:
    body = load_body()
    params = place(body, NAMED_POSES["standing"], image_size=(90, 64))
    want, parts = render_pose_map(body, params, style, engine="torch"), part_map(body, params, "torch")
    for samples in (1, 64 * 4 * 7, 64 * 4 * 89):
        monkeypatch.setattr(pose_render, "AT_ONCE", samples)
        got = render_pose_map(body, params, style, engine="torch")
        assert got.shape == want.shape and (got != want).mean() < 2e-3
        assert (part_map(body, params, "torch") != parts).mean() < 2e-3


def test_a_body_in_a_vast_picture_costs_little_or_is_refused() -> None:
    params = place(load_body(), NAMED_POSES["standing"], image_size=(800, 600))
    with pytest.raises(ValueError, match="megapixels"):
        replace(params, image_size=(16384, 16384))
    vast = replace(params, image_size=(10_000, 7_500), K=np.diag([12.5, 12.5, 1]) @ params.K)
    assert at_most(params, ENOUGH) is params
    picture = pose_picture(vast)
    assert max(picture.size) == ENOUGH
    want = np.asarray(pose_picture(params).resize((60, 80)), int)
    assert np.abs(np.asarray(picture.resize((60, 80)), int) - want).mean() < 3


def test_a_body_may_be_held_against_its_outline_at_a_smaller_size() -> None:
    from data_prep.poses.fitting import fit
    from omfa.bodies.pose_render import person_mask

    body = load_body()
    params = place(body, NAMED_POSES["standing"], image_size=(400, 300))
    found = fit([replace(seen(body, params), mask=person_mask(body, params))], body)[0]
    whole = measured(found, person_mask(body, found.params)).residuals["inside"]
    small = measured(found, person_mask(body, at_most(found.params, 200))).residuals["inside"]
    assert abs(whole - small) < 0.02


# ------------------------------------------------------------------------------------------------ masks of portraits


@pytest.mark.parametrize("size", [(48, 64), (96, 128), (24, 32)])
def test_a_mask_may_be_of_any_scale(size: tuple[int, int]) -> None:
    assert len(ask(Image.new("L", size, 255)).outlines) == 1


@pytest.mark.parametrize("size", [(64, 48), (48, 48), (48, 60), (200, 12)])
def test_a_mask_of_another_shape_than_the_portrait_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises((ValueError, ImageError), match=r"portrait_mask is|narrow"):
        ask(Image.new("L", size, 255))


def ask(mask: Image.Image):  # type: ignore[no-untyped-def]
    portrait, shirt = Image.new("RGB", (48, 64)), Image.new("RGB", (40, 40), "white")
    pipe = make_compact(join="rows")
    return read_request(
        pipe.canvas, ["person"], None, {"upper": shirt}, None, portrait, None, portrait, join="rows", portrait_mask=mask
    )


@pytest.mark.parametrize("where", [(0, 0, -3), (900, 0, 3), (0, -900, 3), (0, 0, 9e5)])
def test_a_body_that_is_not_in_its_picture_is_no_pose(where: tuple[float, float, float], tmp_path: Path) -> None:
    params = place(load_body(), NAMED_POSES["standing"], image_size=(64, 48))
    path = replace(params, transl=np.array(where)).save(tmp_path / "A.NPZ")
    with pytest.raises(ValueError, match="nothing of this body"):
        pose_picture(str(path))
    assert isinstance(read_pose(str(params.save(tmp_path / "B.Npz"))), BodyParameters)


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, '{"default_steps": "x"}', '{"default_steps": []}', "5"])
def test_a_damaged_model_is_a_line_at_the_door_of_a_batch(tmp_path: Path, text: str) -> None:
    (tmp_path / "model_index.json").write_text(text)
    with pytest.raises(ValueError, match="can't be loaded"):
        OMFAPipeline.sampler_defaults(tmp_path)


@pytest.mark.parametrize(
    "text", ["a: 1\nb: 2\na: 3", "a: {b: 1, c: {d: 1, d: 2}}", "- a: 1\n  a: 1", "model: {}\ndata: {}\nmodel: {x: 1}"]
)
def test_a_config_that_says_a_thing_twice_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="stands twice"):
        load_yaml(text)
    assert load_yaml("a: {b: 1}\nc: {b: 1}") == {"a": {"b": 1}, "c": {"b": 1}}


@pytest.mark.parametrize("wrong", ["devices=0", "accumulate_grad_batches=0", "accelerator=none", "strategy=zzz"])
def test_a_trainer_that_cannot_be_is_a_line(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: str
) -> None:
    try:
        code = fit(arguments(records, tmp_path, 1, f"--trainer.{wrong}"))
    except SystemExit as e:
        code = int(str(e.code))
    assert code == 2 and "error: " in capsys.readouterr().err
