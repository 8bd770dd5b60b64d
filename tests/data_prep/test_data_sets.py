"""Data sets to records: true layouts, incomplete ones, wrong ones, hostile ones."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from data_prep.__main__ import main
from data_prep.check import validate
from omfa.components import Category
from omfa.records.keypoints import read_keypoints
from omfa.records.labels import ATR, CIHP, DEEPFASHION, LIP, PARTS_OF, Part, read_labels, read_parts, table, to_parts
from omfa.records.prepared import Record, read_records
from tests.samples import sample

SIZE = (48, 36)  # (H, W)


def picture(path: Path, seed: int = 0, size: tuple[int, int] = SIZE, **save: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 5, 3), np.uint8)
    Image.fromarray(cv2.resize(coarse, size[::-1])).save(path, **save)


def label_map(path: Path, ids: int, size: tuple[int, int] = SIZE) -> None:
    """All ids of a scheme as stripes, with a palette, as the data sets write them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.repeat(np.arange(size[0], dtype=np.uint8)[:, None] % ids, size[1], 1)).convert("P")
    image.putpalette(np.random.default_rng(0).integers(0, 255, 768, np.uint8).tobytes())
    image.save(path)


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def vitonhd(root: Path) -> None:
    for split, names in (("train", ["00001_00", "00002_00"]), ("test", ["00003_00"])):
        for n, name in enumerate(names):
            picture(root / split / "image" / f"{name}.jpg", n)
            picture(root / split / "cloth" / f"{name}.jpg", n + 9)
            label_map(root / split / "image-parse-v3" / f"{name}.png", 20)
            body25 = {"people": [{"pose_keypoints_2d": [k + d for k in range(25) for d in (0, 0.5, 0)]}]}
            write(root / split / "openpose_json" / f"{name}_keypoints.json", body25)
        (root / f"{split}_pairs.txt").write_text("".join(f"{n}.jpg {n}.jpg\n" for n in names))


def dresscode(root: Path) -> None:
    for n, folder in enumerate(("upper_body", "lower_body", "dresses")):
        names = [f"0{n}000{k}" for k in range(2)]
        for name in names:
            picture(root / folder / "images" / f"{name}_0.jpg", n)
            picture(root / folder / "images" / f"{name}_1.jpg", n + 9)
            label_map(root / folder / "label_maps" / f"{name}_4.png", 18)
            points = [[192.0, 256.0, 0.9, k] for k in range(17)] + [[-1.0, -1.0, 0.0, -1.0]]
            write(root / folder / "keypoints" / f"{name}_2.json", {"keypoints": points})
        (root / folder / "train_pairs.txt").write_text(f"{names[0]}_0.jpg\t{names[0]}_1.jpg\n")
        (root / folder / "test_pairs_paired.txt").write_text(f"{names[1]}_0.jpg\t{names[1]}_1.jpg\n")


def deepfashion(root: Path) -> None:
    """20 pictures: three views of six outfits, a flat picture of one, and one named otherwise."""
    stems = [
        f"{who}-{what}-id_0000{item:04d}-0{shoot}_{view}"
        for who, what, item, shoot in [
            ("WOMEN", "Dresses", 1, 1),
            ("WOMEN", "Dresses", 1, 2),
            ("MEN", "Pants", 7, 1),
            ("WOMEN", "Tees_Tanks", 11, 1),
            ("WOMEN", "Rompers_Jumpsuits", 12, 1),
            ("MEN", "Jackets_Vests", 13, 1),
        ]
        for view in ("1_front", "2_side", "3_back")
    ] + ["WOMEN-Tees_Tanks-id_00000011-01_6_flat", "IMG_1234"]
    for n, stem in enumerate(stems):
        picture(root / "images" / f"{stem}.jpg", n)
        if "front" in stem or "back" in stem:
            label_map(root / "segm" / f"{stem}_segm.png", 24)
    (root / "labels" / "labels").mkdir(parents=True)
    captions = {f"{stem}.jpg": f"a picture of {stem}" for stem in stems[:5]}
    (root / "captions.json").write_text(json.dumps(captions))


LAYOUTS = {"vitonhd": vitonhd, "dresscode": dresscode, "deepfashion-mm": deepfashion}


def run(stage: str, root: Path, out: Path, *more: str) -> int:
    return main([stage, "--images", str(root), "--out", str(out), *more])


def by_id(out: Path) -> dict[str, Record]:
    assert validate(out) == []
    return {r.id: r for r in read_records(out)}


def seen(out: Path, record: Record) -> np.ndarray:
    assert record.keypoints is not None
    return read_keypoints(out / record.keypoints.path, record.keypoints.format)


def missing(out: Path) -> list[tuple[str, str]]:
    if not (out / "missing.jsonl").exists():
        return []
    return [(d["kind"], d["path"]) for d in map(json.loads, (out / "missing.jsonl").read_text().splitlines())]


def test_vitonhd(tmp_path: Path) -> None:
    vitonhd(tmp_path / "in")
    assert run("vitonhd", tmp_path / "in", tmp_path / "out") == 0
    records = by_id(tmp_path / "out")
    assert [(r.id, r.split) for r in records.values()] == [
        ("train-00001_00", "train"),
        ("train-00002_00", "train"),
        ("test-00003_00", "test"),
    ]
    assert all([g.category for g in r.garments] == [Category.UPPER] for r in records.values())
    assert missing(tmp_path / "out") == []
    kept = (tmp_path / "out/person/train-00001_00.jpg").read_bytes()
    assert kept == (tmp_path / "in/train/image/00001_00.jpg").read_bytes()
    parts = read_parts(tmp_path / "out/parts/train-00001_00.png", SIZE)
    assert (parts[:20, 0] == table(CIHP)).all()
    points = seen(tmp_path / "out", records["train-00001_00"])
    assert points[:8, 0].tolist() == [*range(8)] and points[8:, 0].tolist() == [*range(9, 19)]


def test_dresscode(tmp_path: Path) -> None:
    dresscode(tmp_path / "in")
    assert run("dresscode", tmp_path / "in", tmp_path / "out") == 0
    records = by_id(tmp_path / "out")
    assert records["upper_body-000000"].split == "train" and records["dresses-020001"].split == "test"
    assert [r.garments[0].category.value for r in records.values()] == 2 * ["upper"] + 2 * ["lower"] + 2 * ["dress"]
    assert missing(tmp_path / "out") == []
    points = seen(tmp_path / "out", records["dresses-020001"])
    assert np.allclose(points[:17, :2], [SIZE[1] / 2, SIZE[0] / 2]) and not points[17].any()
    for folder in ("upper_body", "lower_body", "dresses"):  # the lists of the root serve as well
        (tmp_path / "in" / folder / "train_pairs.txt").unlink()
    rows = [f"0{n}0000_0.jpg\t0{n}0000_1.jpg\t{n}\n" for n in range(3)]
    (tmp_path / "in" / "train_pairs.txt").write_text("".join(rows))
    assert run("dresscode", tmp_path / "in", tmp_path / "again") == 0
    assert [r.split for r in by_id(tmp_path / "again").values()] == ["train", "test"] * 3


def test_deepfashion(tmp_path: Path) -> None:
    deepfashion(tmp_path / "in")
    assert run("deepfashion-mm", tmp_path / "in", tmp_path / "out") == 0
    records = by_id(tmp_path / "out")
    assert len(records) == 18  # 20, less the flat one and the one that is named otherwise
    front = records["WOMEN-Dresses-id_00000001-01_1_front"]
    assert front.outfit_id == records["WOMEN-Dresses-id_00000001-01_3_back"].outfit_id
    assert front.outfit_id != records["WOMEN-Dresses-id_00000001-02_1_front"].outfit_id
    assert front.split == records["WOMEN-Dresses-id_00000001-02_1_front"].split
    assert (front.view_yaw, records["WOMEN-Dresses-id_00000001-01_3_back"].view_yaw) == (0, 180)
    assert front.caption == "a picture of WOMEN-Dresses-id_00000001-01_1_front"
    shop = records["WOMEN-Tees_Tanks-id_00000011-01_3_back"].garments
    assert [(g.category, g.kind) for g in shop] == [(Category.UPPER, "shop")]
    kinds = [kind for kind, _ in missing(tmp_path / "out")]
    assert kinds.count("label map") == 6 and kinds.count("picture named as documented") == 1
    assert kinds.count("entry in captions.json") == 13
    parts = read_parts(tmp_path / "out/parts/WOMEN-Dresses-id_00000001-01_1_front.png", SIZE)
    assert (parts[:24, 0] == table(DEEPFASHION)).all()


def test_partial_downloads(tmp_path: Path) -> None:
    vitonhd(tmp_path / "in")
    (tmp_path / "in/train/image/00001_00.jpg").unlink()
    (tmp_path / "in/test/cloth/00003_00.jpg").rename(tmp_path / "in/test/cloth/00003.txt")
    shutil.rmtree(tmp_path / "in/train/image-parse-v3")
    (tmp_path / "in/test_pairs.txt").rename(tmp_path / "in/pairs.txt")
    assert run("vitonhd", tmp_path / "in", tmp_path / "out") == 0
    assert sorted(by_id(tmp_path / "out")) == ["test-00003_00", "train-00002_00"]
    assert missing(tmp_path / "out") == [
        ("person picture", "train/image/00001_00.jpg"),
        ("label map", "train/image-parse-v3/00002_00.png"),
        ("file named as documented", "test/cloth/00003.txt"),
        ("pair list", "test_pairs.txt"),
        ("garment", "test/cloth/00003_00.jpg"),
    ]


def test_absent_splits_and_categories_are_told(tmp_path: Path) -> None:
    vitonhd(tmp_path / "viton")
    shutil.rmtree(tmp_path / "viton/test")
    assert run("vitonhd", tmp_path / "viton", tmp_path / "one") == 0
    assert missing(tmp_path / "one") == [("folder of a split", "test/image")]
    dresscode(tmp_path / "dress")
    shutil.rmtree(tmp_path / "dress/lower_body")
    assert run("dresscode", tmp_path / "dress", tmp_path / "two") == 0
    assert missing(tmp_path / "two") == [("folder of a category", "lower_body/images")]


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    vitonhd(tmp_path / "in")
    (tmp_path / "in/test/cloth/00003_00.jpg").unlink()
    assert run("vitonhd", tmp_path / "in", tmp_path / "whole") == 0
    assert run("vitonhd", tmp_path / "in", tmp_path / "out", "--limit", "2") == 0
    with closing(sqlite3.connect(tmp_path / "out/.journal.sqlite")) as journal:  # as a kill leaves it
        journal.execute("UPDATE call SET finished = 0")
        journal.commit()
    (tmp_path / "out/person/.1234.part").touch()
    assert run("vitonhd", tmp_path / "in", tmp_path / "out") == 0
    files = {p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*")}
    assert {p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*")} == files
    assert missing(tmp_path / "out") == missing(tmp_path / "whole") != []


@pytest.mark.parametrize("stage", [*LAYOUTS, "folder"])
def test_empty_and_wrong_folders(tmp_path: Path, stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    assert run(stage, tmp_path / "in", tmp_path / "out") == 2
    assert "expected" in (said := capsys.readouterr().err) and "found nothing" in said and said.count("\n") == 1
    (tmp_path / "in/notes.txt").touch()
    assert run(stage, tmp_path / "in", tmp_path / "out") == 2
    assert "found notes.txt" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []  # a call that came to nothing leaves nothing


@pytest.mark.parametrize("stage", LAYOUTS)
def test_each_renamed_file_is_noticed(tmp_path: Path, stage: str) -> None:
    LAYOUTS[stage](tmp_path / "in")
    for n, path in enumerate(sorted(p for p in (tmp_path / "in").rglob("*.*") if p.is_file())):
        other = path.with_name(f"other{path.suffix}")
        path.rename(other)
        assert run(stage, tmp_path / "in", tmp_path / f"out{n}") == 0
        noticed = {Path(p).name for _, p in missing(tmp_path / f"out{n}")}
        assert path.name in noticed or other.name in noticed
        other.rename(path)


def test_folder_without_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "in"
    for name in ("b/x 1.jpg", "a.jpg", "a.png", "ünï.jpg", "c.gif", "b/d.ppm", ".hidden.jpg", "garments/g.jpg"):
        picture(root / name)
    (root / "e.HEIC").touch()
    capsys.readouterr()
    assert run("folder", root, tmp_path / "out") == 0
    sources = {r.provenance["source"] for r in by_id(tmp_path / "out").values()}
    assert sources == {"b/x 1.jpg", "a.jpg", "a.png", "ünï.jpg", "c.gif", "b/d.ppm"}
    assert missing(tmp_path / "out") == [
        ("picture of a kind that can be read", "e.HEIC"),
        ("row in pairs.csv", "garments/g.jpg"),
    ]
    assert "folder: 6 done, 2 missing (listed in missing.jsonl); " in capsys.readouterr().out


def test_folder_with_pairs(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for name in ("p/a.jpg", "p/b.jpg", "g/top.jpg", "g/skirt.png", "garments/unused.jpg"):
        picture(root / name)
    rows = ["p/a.jpg,g/top.jpg,upper,ann,blue", "p/a.jpg,g/skirt.png,lower,ann,blue", "p/b.jpg,g/gone.jpg,upper,ann,"]
    (root / "pairs.csv").write_text("\n".join(["photo,garment,category,person,outfit", *rows, "p/c.jpg,,,,"]))
    assert run("folder", root, tmp_path / "out") == 0
    a, b = read_records(tmp_path / "out")
    assert (a.person_id, a.outfit_id, [g.category for g in a.garments]) == ("ann", "blue", ["upper", "lower"])
    assert (b.person_id, b.garments) == ("ann", ())
    unused = ("row in pairs.csv", "garments/unused.jpg")
    assert missing(tmp_path / "out") == [("garment", "g/gone.jpg"), ("person picture", "p/c.jpg"), unused]
    (root / "pairs.csv").write_text("picture,garment\n")
    assert run("folder", root, tmp_path / "other") == 2


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("a.jpg,\nb.jpg,\na.jpg,g.jpg\n", "line 4: the record of 'a.jpg' stands further up: put the rows"),
        ("a.jpg,\na.png,\n", "line 3: the record of 'a.png' stands further up: rename it or 'a.jpg'"),
        ("a.jpg,\n,g.jpg\n", "line 3: no photo"),
        ("../a.jpg,\n", "line 2: '../a.jpg' must be relative to the folder of the photos"),
        ("a.jpg,/g.jpg\n", "line 2: '/g.jpg' must be relative to the folder of the photos"),
    ],
)
def test_wrong_pairs_are_named_before_any_work(
    tmp_path: Path, rows: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.jpg", "b.jpg", "a.png", "g.jpg"):
        picture(tmp_path / "in" / name)
    (tmp_path / "in/pairs.csv").write_text("photo,garment\n" + rows)
    assert run("folder", tmp_path / "in", tmp_path / "out") == 2
    assert said in capsys.readouterr().err and list((tmp_path / "out").iterdir()) == []


def test_help_says_what_to_give(capsys: pytest.CaptureFixture[str]) -> None:
    for stage in LAYOUTS:
        with pytest.raises(SystemExit):
            main([stage, "--help"])
        assert "root of the data set" in capsys.readouterr().out


def test_pictures_are_made_upright_and_rgb(tmp_path: Path) -> None:
    root = tmp_path / "in"
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(root / "turned.jpg", exif=exif)
    Image.new("CMYK", (36, 48)).save(root / "cmyk.jpg")
    Image.new("RGBA", (36, 48), (255, 0, 0, 0)).save(root / "alpha.png")
    assert run("folder", root, tmp_path / "out") == 0
    files = {r.id: tmp_path / "out" / r.file_name for r in read_records(tmp_path / "out")}
    assert Image.open(files["turned"]).size == SIZE and not Image.open(files["turned"]).getexif()
    assert {Image.open(p).mode for p in files.values()} == {"RGB"}
    assert np.asarray(Image.open(files["alpha"])).min() == 255


def test_hostile_input_is_refused_and_named(tmp_path: Path) -> None:
    root = tmp_path / "in"
    picture(root / "good.jpg")
    picture(tmp_path / "secret.jpg", 1)
    (root / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "cut.jpg").write_bytes((root / "good.jpg").read_bytes()[:300])
    (root / "text.jpg").write_text("no picture")
    (root / "empty.jpg").touch()
    assert run("folder", root, tmp_path / "out") == 1
    assert list(by_id(tmp_path / "out")) == ["good"]
    failures = [json.loads(line) for line in (tmp_path / "out/failures.jsonl").read_text().splitlines()]
    assert [f["id"] for f in failures] == ["cut", "empty", "link", "text"]
    assert "leads out of" in failures[2]["reason"] and all(f["reason"] for f in failures)

    (root / "pairs.csv").write_text("photo,garment,category\nlink.jpg,,\ngood.jpg,link.jpg,upper\n")
    assert run("folder", root, tmp_path / "pairs") == 1
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "pairs/failures.jsonl").read_text().splitlines()]
    assert len(reasons) == 2 and all("leads out of" in reason for reason in reasons)
    secret = (tmp_path / "secret.jpg").read_bytes()
    assert all(p.read_bytes() != secret for p in (tmp_path / "pairs").rglob("*.jpg"))


def test_vocabulary() -> None:
    assert len(LIP) == len(CIHP) == 20 and len(ATR) == 18 and len(DEEPFASHION) == 24
    assert Part(table(CIHP)[10]) is Part.SKIN and Part(table(LIP)[10]) is Part.JUMPSUIT
    assert [Part(p).name for p in table(ATR)[[4, 5, 6, 7, 14]]] == ["UPPER", "SKIRT", "PANTS", "DRESS", "LEFT_ARM"]
    assert [Part(p).name for p in table(DEEPFASHION)[[1, 2, 14, 21]]] == ["UPPER", "OUTER", "FACE", "JUMPSUIT"]
    assert table(["Upper-clothes", "Left_shoe", "Right arm"]).tolist() == [Part.UPPER, Part.SHOES, Part.RIGHT_ARM]
    with pytest.raises(ValueError, match="tail"):
        table(["hair", "tail"])
    worn = [part for parts in PARTS_OF.values() for part in parts]
    assert len(set(worn)) == len(worn) == 6


def test_label_maps_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="label 18 is not in the scheme"):
        to_parts(np.full((4, 4), 18, np.uint8), ATR, (4, 4))
    with pytest.raises(ValueError, match="does not fit"):
        to_parts(np.zeros((4, 8), np.uint8), ATR, (4, 4))
    assert to_parts(np.zeros((4, 8), np.uint8), ATR, (8, 16)).shape == (8, 16)
    picture(tmp_path / "rgb.png")
    with pytest.raises(ValueError, match="no map of ids"):
        read_labels(tmp_path / "rgb.png")


@pytest.mark.parametrize(("stage", "ids", "lost"), [("vitonhd", 4, 9), ("dresscode", 4, 9)])
def test_samples(tmp_path: Path, stage: str, ids: int, lost: int) -> None:
    assert run(stage, sample(stage), tmp_path / "out") == 0
    assert len(by_id(tmp_path / "out")) == ids and len(missing(tmp_path / "out")) == lost
