"""Records: written and read back; what breaks the contract is named with file, line and cure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from omfa.records.prepared import (
    GarmentRef,
    Record,
    RecordError,
    iter_records,
    read_records,
    resolve,
    validate,
    write_records,
)


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
        *("face", "garments", "pose", "caption", "view_yaw", "provenance"),
    ]
    assert set(line["garments"][0]) == {"category", "path", "kind", "source_id"}


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
        ({"version": 2}, "version 2"),
        ({"view_yaw": 200}, "view_yaw"),
        ({"garments": ({"category": "hat", "path": "g.png"},)}, "hat"),
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
