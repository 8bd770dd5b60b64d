"""Portraits by a model: what is taken for one, what is not and why, and what becomes of the records."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep import portraits
from data_prep.__main__ import main
from data_prep.portraits import doubt, other_garments
from data_prep.wardrobe.synthetic import write_outfit
from omfa.bodies.body import load_body
from omfa.bodies.parameters import BodyParameters
from omfa.bodies.pose_render import head_box
from omfa.records.prepared import METADATA, Record, read_records

SIZE = (256, 192)


@pytest.fixture(scope="module")
def wardrobe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three people, a view each, with portraits that the records do not name: what a perfect model would make."""
    folder = tmp_path_factory.mktemp("wardrobe")
    several = [
        write_outfit(f"s7-o{k}", k, folder, seed=7, size=SIZE, records=4 * k + 1, portraits=True) for k in (0, 2, 4)
    ]
    records = [replace(Record.from_json(json.dumps(line)), portrait=None) for (line,) in several]
    (folder / METADATA).write_text("".join(r.to_json() + "\n" for r in records))
    return folder


def pictures(folder: Path, record: Record) -> tuple[np.ndarray, np.ndarray, BodyParameters]:
    """The photo, the portrait and the body."""
    assert record.pose is not None and record.pose.params is not None
    read = [np.asarray(Image.open(folder / p).convert("RGB")) for p in (record.file_name, f"portrait/{record.id}.png")]
    return read[0], read[1], BodyParameters.load(folder / record.pose.params)


def test_a_portrait_is_the_same_person_in_other_clothes(wardrobe: Path) -> None:
    for record in read_records(wardrobe):
        photo, other, params = pictures(wardrobe, record)
        assert doubt(photo, other, params) == ""
        assert doubt(photo, photo, params).startswith("clothes: only 0.0")
        assert doubt(photo, np.full_like(photo, 200), params).startswith("outline:")
        assert doubt(photo, np.roll(other, 40, 1), params).startswith(("outline:", "pose:"))
        x0, y0, x1, y1 = np.clip(head_box(load_body(), params), 0, None)
        beheaded = other.copy()
        beheaded[y0:y1, x0:x1] = beheaded[y0:y1, x0:x1][::-1]
        assert doubt(photo, beheaded, params)


def test_records_get_portraits_or_reasons(
    wardrobe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    records = read_records(wardrobe)
    of_photo = {pictures(wardrobe, r)[0].tobytes(): r for r in records}
    alone = {r for r, garments in other_garments(records).items() if not garments}
    bad = next(r.id for r in records if r.id not in alone)

    def dressed(targets: list[str], portrait: Image.Image, **given: Any) -> SimpleNamespace:
        record = of_photo[np.asarray(portrait).tobytes()]
        assert set(given["garments"]) == {g.category.value for g in record.garments}
        assert not any(record.outfit_id in str(path) for path in given["garments"].values())
        made = portrait if record.id == bad else Image.fromarray(pictures(wardrobe, record)[1])
        return SimpleNamespace(person=[made])

    dressed.config = SimpleNamespace(portraits=True)  # type: ignore[attr-defined]
    monkeypatch.setattr(portraits, "_model", lambda _: dressed)
    call = ["portraits", "--records", str(wardrobe), "--model", "any", "--out", str(tmp_path / "out")]
    assert main(call) == 0 and "portraits: left out" in capsys.readouterr().out
    for record in read_records(tmp_path / "out"):
        if record.id == bad or record.id in alone:
            assert record.portrait is None and record.provenance["no_portrait"].startswith("clothes:")
        else:
            assert record.portrait is not None and (tmp_path / "out" / record.portrait.path).is_file()
            assert record.portrait.changed is None and "no_portrait" not in record.provenance
    again = ["portraits", "--records", str(tmp_path / "out"), "--model", "any", "--out", str(tmp_path / "again")]
    assert main(again) == 0  # what has a portrait keeps it
    first, second = (read_records(tmp_path / name) for name in ("out", "again"))
    assert [r.portrait for r in first] == [r.portrait for r in second]


def test_donors_are_others_who_wear_the_same(wardrobe: Path) -> None:
    first = read_records(wardrobe)[0]
    several = [replace(first, id=name, person_id=name, outfit_id=name) for name in ("a", "b", "c")]
    garments = {r.id: tuple(replace(g, path=f"garment/{r.id}.png") for g in r.garments) for r in several}
    several = [replace(r, garments=garments[r.id]) for r in several]
    bare = replace(several[0], id="d", person_id="d", outfit_id="d", garments=first.garments[:1])
    donors = other_garments([*several, bare])
    assert donors["d"] == () or len(first.garments) == 1
    for record in several:
        assert donors[record.id] in [g for name, g in garments.items() if name != record.id]


def test_a_model_without_portraits_is_refused(
    wardrobe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(portraits, "_model", lambda _: SimpleNamespace(config=SimpleNamespace(portraits=False)))
    call = ["portraits", "--records", str(wardrobe), "--model", "old", "--out", str(tmp_path / "out")]
    assert main(call) == 2 and "--model old has not learned portraits" in capsys.readouterr().err
