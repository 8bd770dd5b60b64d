"""Records: written and read back; what breaks the contract is named with file, line and cure."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from data_prep.__main__ import main
from data_prep.check import validate
from data_prep.shards import with_files
from omfa.records.keypoints import read_keypoints
from omfa.records.prepared import (
    KEYPOINT_FORMATS,
    FaceRef,
    GarmentRef,
    KeypointsRef,
    Maps,
    PortraitRef,
    PoseRef,
    Record,
    RecordError,
    iter_records,
    read_records,
    record_files,
    record_pictures,
    resolve,
)
from tests.records.writing import write_records


def record(**changes: object) -> Record:
    fields = {"id": "a", "split": "train", "person_id": "p", "outfit_id": "o", "file_name": "person/a.png"}
    return Record(**fields | changes)  # type: ignore[arg-type]


def test_fixture_records_are_valid_and_come_back_equal(records: Path, tmp_path: Path) -> None:
    assert validate(records) == []
    all_ = read_records(records)
    assert len(all_) == 8 and {r.person_id for r in all_} == {"ann", "ben"}
    write_records(tmp_path, all_)
    assert read_records(tmp_path) == all_
    assert (tmp_path / "metadata.jsonl").read_bytes() == (records / "metadata.jsonl").read_bytes()


def test_keys_are_the_contracts(records: Path) -> None:
    line = json.loads((records / "metadata.jsonl").read_text().splitlines()[0])
    assert list(line) == [
        *("version", "id", "split", "person_id", "outfit_id", "file_name"),
        *("face", "garments", "pose", "portrait", "maps", "keypoints", "caption", "view_yaw", "provenance"),
    ]
    assert set(line["garments"][0]) == {"category", "path", "kind", "source_id", "pose", "mask"}


def full() -> Record:
    """A record of a shirt that names every file there can be."""
    return record(
        face=FaceRef("face.png"),
        garments=(GarmentRef("upper", "g.png", pose="g.npz", mask="g-mask.png"),),  # type: ignore[arg-type]
        pose=PoseRef("pose.png", "pose.npz"),
        portrait=PortraitRef("portrait.png", "b"),
        maps=Maps("parts.png", "labels.png", "limbs.png", "inpaint.png"),
        keypoints=KeypointsRef("k.json", "openpose-25"),
    )


def test_all_files_are_listed_and_can_be_moved(tmp_path: Path) -> None:
    files = record_files(full())
    assert files == record_pictures(full()) | {
        "pose_params": "pose.npz", "upper_pose": "g.npz", "upper_mask": "g-mask.png", "keypoints": "k.json",
        "parts": "parts.png", "labels": "labels.png", "limbs": "limbs.png", "inpaint": "inpaint.png",
    }  # fmt: skip
    named = [v for v in re.findall(r'"([^"]+\.(?:png|npz|json))"', full().to_json())]
    assert sorted(named) == sorted(files.values())
    moved = with_files(full(), {role: f"new/{path}" for role, path in files.items()})
    assert record_files(moved) == {role: f"new/{path}" for role, path in files.items()}
    assert with_files(moved, files) == full() == Record.from_json(full().to_json())
    assert record_files(with_files(full(), {"person": "a.png"})) == {"person": "a.png"}


OLD = {
    "version": 1, "id": "a", "split": "train", "person_id": "p", "outfit_id": "o", "file_name": "a.png",
    "garments": [{"category": "upper", "path": "g.png", "kind": "shop", "source_id": None}],
    "provenance": {"stage": "synthetic", "parts": "parts.png", "masks": {
        "labels": "labels.png", "parts": "limbs.png", "upper": "upper.png", "dress": "no such garment.png"}},
}  # fmt: skip


def test_what_version_1_only_said_is_in_its_fields() -> None:
    read = Record.from_json(json.dumps(OLD))
    assert read.maps == Maps("parts.png", "labels.png", "limbs.png") and read.garments[0].mask == "upper.png"
    assert read.provenance == {"stage": "synthetic"} and read.version == 2
    assert Record.from_json(read.to_json()) == read
    plain = Record.from_json(json.dumps(OLD | {"provenance": {"stage": "x"}}))
    assert plain.maps is None and plain.garments[0].mask is None and plain.provenance == {"stage": "x"}


def test_records_of_before_are_read_as_they_were() -> None:
    folder = Path(__file__).parent.parent / "fixtures" / "before_wings" / "records"
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert lines and {line["version"] for line in lines} == {1} and validate(folder) == []
    for line, read in zip(lines, read_records(folder), strict=True):
        now = json.loads(read.to_json())
        for garment in now["garments"]:
            assert garment.pop("pose") is None and garment.pop("mask") is None
        assert all(now.pop(name) is None for name in ("portrait", "maps", "keypoints"))
        assert now["face"] is None or now["face"].pop("pose") is None
        assert now == line | {"version": 2}


def test_the_door_of_the_check(records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--records", str(records)]) == 0 and "all well" in capsys.readouterr().out
    write_records(tmp_path, [full()])
    assert main(["check", "--records", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "upper_mask file 'g-mask.png' is missing" in said and "check: 13 problems" in said


@pytest.mark.parametrize("format", KEYPOINT_FORMATS)
def test_keypoints_of_all_formats_are_the_same_points(tmp_path: Path, format: str) -> None:
    body25 = [
        "nose",
        "neck",
        "rs",
        "re",
        "rw",
        "ls",
        "le",
        "lw",
        "hip",
        "rh",
        "rk",
        "ra",
        "lh",
        "lk",
        "la",
        "reye",
        "leye",
        "rear",
        "lear",
        "lt",
        "lp",
        "lheel",
        "rt",
        "rp",
        "rheel",
    ]
    names = {"openpose-18": [n for n in body25[:19] if n != "hip"], "openpose-25": body25}
    names["landmarks-33"] = [str(i) for i in range(33)]
    # mediapipe's numbers, from the picture in its documentation
    at = dict(nose=0, rs=12, ls=11, re=14, le=13, rw=16, lw=15, rh=24, lh=23, rk=26, lk=25, ra=28, la=27)
    at |= dict(reye=5, leye=2, rear=8, lear=7)
    rng = np.random.default_rng(0)
    place = {n: [*rng.uniform(0, 90, 2), 0.5] for n in body25}
    place["neck"] = [*(np.array(place["rs"]) + place["ls"])[:2] / 2, 0.5]
    by_number = {str(i): n for n, i in at.items()}
    points = [place.get(by_number.get(n, n), [1.0, 2.0, 0.0]) for n in names[format]]
    np.savez(tmp_path / "k.npz", points=np.array(points))
    (tmp_path / "k.json").write_text(json.dumps({"people": [{"pose_keypoints_2d": np.ravel(points).tolist()}]}))
    wanted = np.array([place[n] for n in names["openpose-18"]])
    for file in ("k.npz", "k.json"):
        found = read_keypoints(tmp_path / file, format)
        assert found.shape == (18, 3) and np.abs(found - wanted).max() < 1e-4


@pytest.mark.parametrize("text", ["", "{}", '{"people": []}', '{"people": [{"pose_keypoints_2d": [1, 2, 3]}]}'])
def test_keypoints_that_are_none_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "k.json").write_text(text)
    with pytest.raises(RecordError, match=r"k\.json"):
        read_keypoints(tmp_path / "k.json", "openpose-18")


@pytest.mark.parametrize("path", ["/etc/passwd", "../a.png", "a/../../b", "", "a\\b", "c:/a", "a\0b"])
def test_paths_that_leave_the_folder_are_refused(path: str) -> None:
    with pytest.raises(RecordError, match="stay inside"):
        record(file_name=path)
    with pytest.raises(RecordError, match="stay inside"):
        GarmentRef("upper", path)  # type: ignore[arg-type]


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "records"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(b"x")
    (folder / "a.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(RecordError, match="leads out"):
        resolve(folder, "a.png")
    write_records(folder, [record(file_name="a.png")])
    assert "leads out" in validate(folder)[0]


def test_a_cutout_never_meets_the_picture_it_came_from() -> None:
    own = GarmentRef("upper", "g.png", "cutout", "a")  # type: ignore[arg-type]
    with pytest.raises(RecordError, match="this very picture"):
        record(garments=(own,))
    assert record(garments=(own,), provenance={"own_cutouts": True}).garments == (own,)
    with pytest.raises(RecordError, match="needs source_id"):
        GarmentRef("upper", "g.png", "cutout")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"id": "a b"}, "id 'a b'"),
        ({"id": "../a"}, "id"),
        ({"version": 3}, "version 3"),
        ({"version": 1, "maps": {"parts": "a.png"}}, "version 1 has no portrait, maps"),
        ({"maps": {"parts": "../a.png"}}, "stay inside"),
        ({"maps": {"colours": "a.png"}}, "colours"),
        ({"maps": "a.png"}, "maps is an object"),
        ({"keypoints": {"path": "a.json", "format": "mine"}}, "keypoint format 'mine'"),
        ({"keypoints": {"path": "a.txt", "format": "openpose-18"}}, "a .json as OpenPose"),
        ({"portrait": {"path": "person/a.png"}}, "this very picture"),
        ({"portrait": {"path": "b.png", "source_id": "b"}}, "this very picture"),
        ({"garments": ({"category": "upper", "path": "g.png", "pose": "/p.npz"},)}, "stay inside"),
        ({"view_yaw": 200}, "view_yaw"),
        ({"garments": ({"category": "tie", "path": "g.png"},)}, "tie"),
        ({"garments": ({"category": "upper", "path": "g.png"},) * 2}, "twice"),
        (
            {"garments": ({"category": "dress", "path": "g"}, {"category": "lower", "path": "h"})},
            "dress takes the place",
        ),
        ({"colour": "red"}, "colour"),
    ],
)
def test_validate_names_file_line_and_trouble(tmp_path: Path, changes: dict, words: str) -> None:
    good = json.loads(record().to_json())
    (tmp_path / "person").mkdir()
    (tmp_path / "person" / "a.png").write_bytes(b"x")
    bad = json.dumps(good | {"id": "b"} | changes)
    (tmp_path / "metadata.jsonl").write_text(json.dumps(good) + "\n" + bad + "\n")
    problems = validate(tmp_path)
    assert len(problems) == 1 and "metadata.jsonl:2" in problems[0] and words in problems[0]
    with pytest.raises(RecordError, match=r"metadata\.jsonl:2"):
        read_records(tmp_path)


@pytest.mark.parametrize("line", ["{", "[]", "1", '"a"', "{}", "[" * 100_000])
def test_lines_that_are_no_record(tmp_path: Path, line: str) -> None:
    (tmp_path / "metadata.jsonl").write_text(line + "\n")
    assert "metadata.jsonl:1" in validate(tmp_path)[0]
    with pytest.raises(RecordError):
        list(iter_records(tmp_path))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"garments": 5}, "must be a list like"),
        ({"garments": [5]}, "a garment is an object"),
        ({"face": 5}, "face is an"),
    ],
)
def test_parts_of_another_kind_are_named(records: Path, tmp_path: Path, change: dict, words: str) -> None:
    line = json.loads(read_records(records)[0].to_json())
    (tmp_path / "metadata.jsonl").write_text(json.dumps(line | change) + "\n")
    with pytest.raises(RecordError, match=rf"metadata\.jsonl:1: .*{words}"):
        read_records(tmp_path)


def test_a_line_that_is_no_text_is_named(records: Path, tmp_path: Path) -> None:
    good = (records / "metadata.jsonl").read_bytes().splitlines()[0]
    (tmp_path / "metadata.jsonl").write_bytes(good + b'\n{"id": "\xff"}\n')
    with pytest.raises(RecordError, match=r"metadata\.jsonl:2: no UTF-8 text .* write the file anew"):
        read_records(tmp_path)


def test_missing_empty_and_doubled(tmp_path: Path) -> None:
    write_records(tmp_path, [record(), record(), record(id="b", file_name="b.png")])
    (tmp_path / "b.png").write_bytes(b"")
    problems = validate(tmp_path)
    assert any("'person/a.png' is missing" in p for p in problems)
    assert any("stands twice" in p for p in problems) and any("'b.png' is empty" in p for p in problems)
    with pytest.raises(RecordError, match="no records folder"):
        read_records(tmp_path / "nowhere")
