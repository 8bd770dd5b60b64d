"""Leaks: planted near-duplicates are found, strangers are not, and the right side is left out."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from data_prep.__main__ import main
from data_prep.check import validate
from data_prep.leaks import candidates, likeness, loser, perceptual_hash
from data_prep.run import write_image
from omfa.records.prepared import FaceRef, GarmentRef, Maps, Record, read_records, record_files
from tests.records.writing import write_records


def person(seed: int) -> np.ndarray:
    """A figure of a few coloured, textured shapes on a plain ground: all alike from afar, as in a shop."""
    rng = np.random.default_rng(seed)
    image = np.full((192, 144, 3), 235, np.uint8)
    texture = cv2.resize(rng.integers(0, 120, (48, 36, 3), np.uint8), (144, 192), interpolation=cv2.INTER_CUBIC)
    for _ in range(4):
        x, y, w, h = rng.integers([45, 20, 20, 30], [80, 110, 50, 80])
        mask = np.zeros(image.shape[:2], np.uint8)
        cv2.ellipse(mask, (int(x), int(y)), (int(w) // 2, int(h) // 2), float(rng.uniform(0, 180)), 0, 360, 255, -1)
        colour = rng.integers(0, 130, 3)
        image = np.where(mask[..., None] > 0, (texture + colour).astype(np.uint8), image)
    return image


def reencoded(image: np.ndarray) -> np.ndarray:
    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=60)
    return np.asarray(Image.open(data))


def recoloured(image: np.ndarray) -> np.ndarray:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0].astype(int) + 60) % 180
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "copied": lambda x: x.copy(),
    "encoded again": reencoded,
    "halved": lambda x: cv2.resize(x, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "cropped": lambda x: np.ascontiguousarray(x[6:, 4:]),
    "trimmed": lambda x: np.ascontiguousarray(x[6:-6, 4:-4]),
    "mirrored": lambda x: np.ascontiguousarray(x[:, ::-1]),
    "recoloured": recoloured,
}


def test_hash_keeps_its_distance() -> None:
    hashes = [perceptual_hash(person(n)) for n in range(30)]
    assert all(np.bitwise_count(h ^ perceptual_hash(reencoded(person(n)))).sum() < 20 for n, h in enumerate(hashes))
    apart = [np.bitwise_count(a[1:] ^ b[1:]).sum() for n, a in enumerate(hashes) for b in hashes[:n]]
    assert min(apart) > 60


@pytest.mark.parametrize("change", CHANGES)
def test_likeness(change: str) -> None:
    for n in range(5):
        changed = CHANGES[change](person(n))
        if change == "mirrored":
            changed = changed[:, ::-1]
        assert likeness(person(n), changed) > 0.8
        assert likeness(person(n), person(n + 100)) < 0.5


def test_candidates_against_all_pairs() -> None:
    """The sorted search finds what comparing all with all finds, but for pairs that differ in every byte."""
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, (200, 3, 5), np.uint64)
    hashes[:, 1:] = ~hashes[:, :1]  # no other variant matches
    for n in range(100):  # two by two, a few bits apart
        hashes[2 * n + 1, 0] = hashes[2 * n, 0] ^ np.uint64(1 << int(rng.integers(64)))
    assert [(i, j) for i, j, _ in candidates(hashes)] == [(2 * n, 2 * n + 1) for n in range(100)]


def folder(root: Path, *records: dict[str, Any]) -> Path:
    made = []
    for n, fields in enumerate(records):
        path = f"person/r{n}.png"
        write_image(root / path, fields["image"])
        garments = ()
        if "garment" in fields:
            write_image(root / f"garment/{fields['garment']}.png", person(1000 + fields["garment"]))
            garments = (GarmentRef("upper", f"garment/{fields['garment']}.png"),)  # type: ignore[arg-type,assignment]
        made.append(Record(f"r{n}", fields.get("split", "train"), f"p{n}", f"o{n}", path, garments=garments))
    write_records(root, made)
    return root


def run(root: Path, out: Path, *more: str) -> list[dict[str, Any]]:
    assert main(["leaks", "--records", str(root), "--out", str(out), *more]) == 0
    return [json.loads(line) for line in (out / "leaks.jsonl").read_text().splitlines()]


def test_planted_leaks_are_found_and_left_out(tmp_path: Path) -> None:
    images = [person(n) for n in range(40)]
    planted = [change(images[n]) for n, change in enumerate(CHANGES.values())]
    records = [{"image": x, "split": "test" if n < 10 else "train"} for n, x in enumerate(images)]
    records += [{"image": x, "split": "train" if n < 4 else "test"} for n, x in enumerate(planted)]
    leaks = run(folder(tmp_path / "in", *records), tmp_path / "out", "--leave-out")
    found = {(leak["a"]["record"], leak["b"]["record"]): leak["how"] for leak in leaks}
    assert set(found) == {(f"r{n}", f"r{40 + n}") for n in range(len(planted))}
    assert found["r5", "r45"] == "mirrored" and found["r0", "r40"] == "same"
    assert validate(tmp_path / "out/records") == []
    gone = {f"r{n}" for n in range(47)} - {r.id for r in read_records(tmp_path / "out/records")}
    assert gone == {f"r{n}" for n in range(40, 47)}  # test keeps its own; inside a split the later goes


def test_garments_across_splits(tmp_path: Path) -> None:
    rows = [("train", 0), ("train", 0), ("test", 0), ("train", 1), ("train", 1)]
    records = [{"image": person(n), "split": s, "garment": g} for n, (s, g) in enumerate(rows)]
    leaks = run(folder(tmp_path / "in", *records), tmp_path / "out", "--leave-out")
    assert [(leak["kind"], leak["a"]["split"], leak["b"]["split"]) for leak in leaks] == [("garment", "train", "test")]
    assert [r.id for r in read_records(tmp_path / "out/records")] == ["r2", "r3", "r4"]


def test_masks_come_along(tmp_path: Path) -> None:
    """What evaluation measures with is there after leaving out: a record names no file that is not."""
    records = []
    for n in range(2):
        write_image(tmp_path / f"in/person/r{n}.png", person(n))
        write_image(tmp_path / f"in/garment/r{n}.png", person(n + 7))
        for name in ("labels", "upper"):
            write_image(tmp_path / f"in/masks/r{n}-{name}.png", np.full((192, 144), 255, np.uint8))
        worn = (GarmentRef("upper", f"garment/r{n}.png", mask=f"masks/r{n}-upper.png"),)  # type: ignore[arg-type]
        maps = Maps(labels=f"masks/r{n}-labels.png")
        records.append(Record(f"r{n}", "train", "p", "o", f"person/r{n}.png", None, worn, maps=maps))
    write_records(tmp_path / "in", records)
    assert run(tmp_path / "in", tmp_path / "out", "--leave-out") == []
    assert read_records(tmp_path / "out/records") == records
    for record in records:
        for path in record_files(record).values():
            assert (tmp_path / "out/records" / path).read_bytes() == (tmp_path / "in" / path).read_bytes()
    (tmp_path / "in/masks/r1-upper.png").unlink()
    assert main(["leaks", "--records", str(tmp_path / "in"), "--out", str(tmp_path / "two"), "--leave-out"]) == 1
    assert "r1-upper.png is missing" in (tmp_path / "two/records/failures.jsonl").read_text()


def test_cutouts_of_what_is_left_out_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """b and the test's t are one picture: b goes, and so does what a had from it, but not what c had from a."""
    for name, seed in {"a": 0, "b": 1, "c": 2, "t": 1}.items():
        write_image(tmp_path / f"in/person/{name}.png", person(seed))
    for n in range(3):
        write_image(tmp_path / f"in/piece/{n}.png", person(100 + n))

    def record(name: str, source: str, **fields: Any) -> Record:
        cut = GarmentRef("upper", "piece/0.png", "cutout", source)  # type: ignore[arg-type]
        shop = GarmentRef("lower", "piece/1.png")  # type: ignore[arg-type]
        split = "test" if name == "t" else "train"
        face = FaceRef("piece/2.png", source)
        return Record(name, split, "p", "o", f"person/{name}.png", face=face, garments=(cut, shop), **fields)

    hidden = {"provenance": {"hidden": {"upper": 0.1}, "stage": "garments"}}
    made = [record("a", "b", **hidden), record("b", "a"), record("c", "a", **hidden)]
    write_records(tmp_path / "in", [*made, Record("t", "test", "q", "o2", "person/t.png")])
    run(tmp_path / "in", tmp_path / "out", "--leave-out")
    assert "leave-out: 1 records, 2 cut-outs and faces of theirs in other records" in capsys.readouterr().out
    a, c, t = read_records(tmp_path / "out/records")
    assert ([g.category.value for g in a.garments], a.face, a.provenance["hidden"]) == (["lower"], None, {})
    assert c == made[2] and t.id == "t"
    assert validate(tmp_path / "out/records") == []


def test_who_loses() -> None:
    def leak(kind: str, a: str, b: str) -> dict[str, Any]:
        return {"kind": kind, "a": {"split": a}, "b": {"split": b}}

    assert loser(leak("person", "train", "test")) == "a" and loser(leak("person", "test", "train")) == "b"
    assert loser(leak("person", "val", "test")) == "a" and loser(leak("garment", "val", "train")) == "b"
    assert loser(leak("person", "test", "test")) == "b" and loser(leak("garment", "train", "train")) is None
