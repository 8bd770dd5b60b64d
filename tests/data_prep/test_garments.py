"""Cut-outs: what is kept, what is marked, and that none meets the picture it came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from data_prep.__main__ import main
from data_prep.check import validate
from data_prep.garments import HIDDEN, Cutout, cut_out, outfits, worn
from data_prep.run import write_image
from omfa.bodies.body import load_body
from omfa.bodies.named_poses import NAMED_POSES
from omfa.bodies.placing import place, project
from omfa.components import Category
from omfa.records.labels import Part
from omfa.records.prepared import Maps, Record, read_records
from tests.records.writing import write_records
from tests.samples import sample

SIZE = (256, 192)
COLOURS = {Part.UPPER: (200, 40, 40), Part.PANTS: (40, 40, 160), Part.DRESS: (30, 140, 60), Part.OUTER: (150, 120, 20)}


def draw(*shapes: tuple[Part, tuple[int, int, int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Rectangles (top, left, bottom, right) of parts over a grey-green ground, in order; picture and part map."""
    rgb = np.full((*SIZE, 3), (90, 160, 150), np.uint8)
    parts = np.zeros(SIZE, np.uint8)
    for part, (top, left, bottom, right) in shapes:
        rgb[top:bottom, left:right] = COLOURS.get(part, (220, 180, 150))
        parts[top:bottom, left:right] = part
    return rgb, parts


PERSON = (
    (Part.FACE, (10, 80, 50, 110)),
    (Part.UPPER, (50, 60, 130, 130)),
    (Part.PANTS, (130, 65, 240, 125)),
    (Part.LEFT_ARM, (60, 130, 140, 145)),
)


def cut(*shapes: tuple[Part, tuple[int, int, int, int]], category: Category) -> Cutout:
    found = cut_out(*draw(*shapes), category)
    assert found is not None
    return found


def colours(cut: Cutout) -> set[tuple[int, ...]]:
    """Colours of more than a few pixels."""
    values, counts = np.unique(cut.image.reshape(-1, 3), axis=0, return_counts=True)
    return {tuple(int(x) for x in v) for v, n in zip(values, counts, strict=True) if n > 100}


def test_only_cloth_on_white() -> None:
    upper = cut(*PERSON, category=Category.UPPER)
    assert colours(upper) == {(255, 255, 255), COLOURS[Part.UPPER]}
    assert upper.hidden == 0 and upper.area == pytest.approx(80 * 70 / 256 / 192, rel=0.05)
    assert colours(cut(*PERSON, category=Category.LOWER)) == {(255, 255, 255), COLOURS[Part.PANTS]}
    assert (upper.image[0] == 255).all() and (upper.image[:, 0] == 255).all()  # a margin all around


def test_edges_hold_no_ground() -> None:
    """Between cloth and white there is nothing but their mixture, even with a map a pixel too wide."""
    rgb, parts = draw(*PERSON)
    wide = cv2.dilate((parts == Part.UPPER).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    parts[wide] = Part.UPPER
    found = cut_out(rgb, parts, Category.UPPER)
    assert found is not None
    mixed = found.image.reshape(-1, 3).astype(float)
    cloth = np.array(COLOURS[Part.UPPER], float)
    share = (mixed - 255) @ (cloth - 255) / ((cloth - 255) @ (cloth - 255))
    off = np.abs(mixed - 255 - share[:, None] * (cloth - 255)).max(1)
    assert (off > 20).mean() < 0.001
    assert found.area == pytest.approx(80 * 70 / 256 / 192, rel=0.05)


def test_the_person_stands_in_the_cut_out() -> None:
    """A joint lies on the same cloth in the picture and in what is cut out of it."""
    rgb, parts = draw(*PERSON)
    rgb[80:84, 90:94] = (20, 220, 20)
    found = cut_out(rgb, parts, Category.UPPER)
    assert found is not None
    person = place(load_body(), NAMED_POSES["standing"], image_size=SIZE)
    there, here = (project(load_body().posed(p).joints[0].numpy(), p.K) for p in (person, found.body(person)))
    (x, y), size = (there[9] - here[9]).round().astype(int), found.body(person).image_size
    assert size == found.image.shape[:2] and np.abs(there - here - [x, y]).max() < 0.01
    assert (found.image[80 - y : 84 - y, 90 - x : 94 - x] == (20, 220, 20)).all()


def test_what_hides_it_is_marked() -> None:
    hand = cut(*PERSON, (Part.RIGHT_ARM, (80, 80, 100, 100)), category=Category.UPPER)
    assert (HIDDEN,) * 3 in colours(hand) and hand.hidden == pytest.approx(400 / 5600, rel=0.1)
    edge = cut(*PERSON, (Part.RIGHT_ARM, (80, 50, 100, 80)), category=Category.UPPER)  # a hand on the hip
    assert 0 <= edge.hidden < 0.06
    beside = cut(*PERSON, (Part.RIGHT_ARM, (60, 45, 140, 60)), category=Category.UPPER)  # an arm that hangs beside
    assert beside.hidden == 0
    neck = cut(*PERSON, (Part.SKIN, (50, 85, 70, 105)), category=Category.UPPER)  # a neckline is no hole
    assert neck.hidden < 0.02
    coat = cut(*PERSON, (Part.OUTER, (120, 100, 180, 125)), category=Category.LOWER)  # a coat over trousers is
    assert coat.hidden > 0.1
    assert cut(*PERSON, (Part.OUTER, (50, 60, 130, 75)), category=Category.UPPER).hidden == 0


def test_what_is_worn() -> None:
    assert worn(draw(*PERSON)[1]) == [Category.UPPER, Category.LOWER]
    assert worn(draw((Part.DRESS, (50, 60, 200, 130)), (Part.UPPER, (50, 60, 80, 130)))[1]) == [Category.DRESS]
    assert worn(draw((Part.JUMPSUIT, (50, 60, 200, 130)))[1]) == [Category.DRESS]
    assert worn(draw((Part.UPPER, (50, 60, 55, 70)))[1]) == []
    assert cut_out(*draw((Part.UPPER, (50, 60, 55, 70))), Category.UPPER) is None


def test_specks_go_and_pinholes_close() -> None:
    shapes = [*PERSON, (Part.UPPER, (200, 150, 206, 156)), (Part.BACKGROUND, (90, 90, 92, 92))]
    found = cut(*shapes, category=Category.UPPER)
    height, width = found.image.shape[:2]
    assert height < 100 and width < 90


def folder(root: Path, *records: dict[str, Any]) -> Path:
    """Records of a person whose hand hides the top more and more, from picture to picture."""
    made = []
    for n, fields in enumerate(records):
        name = f"r{n}"
        rgb, parts = draw(*PERSON, (Part.RIGHT_ARM, (80, 80, 82 + 8 * n, 100)))
        write_image(root / "person" / f"{name}.png", rgb)
        write_image(root / "parts" / f"{name}.png", parts)
        maps = Maps(f"parts/{name}.png")
        split = fields.get("split", "train")
        made.append(Record(name, split, "p", fields["outfit"], f"person/{name}.png", maps=maps))
    write_records(root, made)
    return root


def run(root: Path, out: Path, *more: str) -> list[Record]:
    assert main(["garments", "--records", str(root), "--out", str(out), *more]) == 0
    assert validate(out) == []
    return read_records(out)


def test_a_cutout_never_meets_its_picture(tmp_path: Path) -> None:
    root = folder(tmp_path / "in", *({"outfit": o} for o in ("a", "b", "a", "c", "a")))
    records = run(root, tmp_path / "out")
    sources = {r.id: {g.category.value: g.source_id for g in r.garments} for r in records}
    assert sources == {
        "r0": {"upper": "r2", "lower": "r2"},  # the best of the others
        "r2": {"upper": "r0", "lower": "r0"},
        "r4": {"upper": "r0", "lower": "r0"},
        "r1": {},
        "r3": {},
    }
    assert all(g.kind == "cutout" for r in records for g in r.garments)
    assert records[0].provenance["hidden"]["upper"] > 0


def test_cutouts_keep_to_their_split(tmp_path: Path) -> None:
    """The test's picture is the best, and only the test's other one gets its garments."""
    splits = ("test", "train", "train", "test", "val")
    records = run(folder(tmp_path / "in", *({"outfit": "a", "split": s} for s in splits)), tmp_path / "out")
    sources = {r.id: {g.source_id for g in r.garments} for r in records}
    assert sources == {"r0": {"r3"}, "r1": {"r2"}, "r2": {"r1"}, "r3": {"r0"}, "r4": set()}


def test_own_cutouts_are_flagged(tmp_path: Path) -> None:
    root = folder(tmp_path / "in", {"outfit": "a"}, {"outfit": "b"}, {"outfit": "b"})
    alone, first, _ = run(root, tmp_path / "out", "--own")
    assert alone.provenance["own_cutouts"] and alone.garments[0].source_id == "r0"
    assert "own_cutouts" not in first.provenance and first.garments[0].source_id == "r2"


def test_shop_pictures_stay(tmp_path: Path) -> None:
    root = folder(tmp_path / "in", {"outfit": "a"}, {"outfit": "a"})
    write_image(root / "shop.png", np.full((64, 64, 3), 255, np.uint8))
    lines = [json.loads(line) for line in (root / "metadata.jsonl").read_text().splitlines()]
    lines[0]["garments"] = [{"category": "upper", "path": "shop.png"}]
    lines[1]["garments"] = [{"category": "dress", "path": "shop.png"}]
    (root / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second = run(root, tmp_path / "out")
    assert [(g.category.value, g.kind) for g in first.garments] == [("upper", "shop"), ("lower", "cutout")]
    assert [(g.category.value, g.kind) for g in second.garments] == [("dress", "shop")]


def test_outfits_are_grouped_from_any_order(tmp_path: Path) -> None:
    root = folder(tmp_path / "in", *({"outfit": o} for o in ("b", "a", "b", "c", "a")))
    grouped = [(o, [r.id for r in records]) for o, records in outfits(root)]
    assert grouped == [("b", ["r0", "r2"]), ("a", ["r1", "r4"]), ("c", ["r3"])]
    assert len(list(outfits(root, 2))) == 2


@pytest.mark.slow
def test_same_bytes_whatever_the_workers(tmp_path: Path) -> None:
    root = folder(tmp_path / "in", *({"outfit": o} for o in "aabbcc"))
    run(root, tmp_path / "one")
    run(root, tmp_path / "two", "--workers", "2")
    for path in (p for p in (tmp_path / "one").rglob("*.*") if p.is_file() and p.name[0] != "."):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


def test_hostile_part_map_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path / "in", {"outfit": "a"}, {"outfit": "a"})
    kept = (root / "parts/r1.png").rename(tmp_path / "r1.png")
    (root / "parts/r1.png").symlink_to(kept)
    assert main(["garments", "--records", str(root), "--out", str(tmp_path / "out")]) == 1
    assert "parts/r1.png' leads out" in (tmp_path / "out/failures.jsonl").read_text()
    text = (root / "metadata.jsonl").read_text()
    (root / "metadata.jsonl").write_text(text.replace("parts/r1.png", "../parts/r1.png"))
    assert main(["garments", "--records", str(root), "--out", str(tmp_path / "two")]) == 2
    assert "metadata.jsonl:2: path '../parts/r1.png'" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["vitonhd", "dresscode"])
def test_samples(tmp_path: Path, stage: str) -> None:
    """Every sample with a map gives cut-outs that are mostly cloth, little hidden, on pure white."""
    assert main([stage, "--images", str(sample(stage)), "--out", str(tmp_path / "records")]) == 0
    records = [r for r in run(tmp_path / "records", tmp_path / "out", "--own") if r.maps is not None]
    assert records and all(r.garments for r in records)
    for record in records:
        for garment in record.garments:
            image = np.asarray(Image.open(tmp_path / "out" / garment.path))
            assert (image[[0, -1]] == 255).all() and 0.2 < (image < 250).any(2).mean() < 0.9
            assert record.provenance["hidden"][garment.category] < 0.2
