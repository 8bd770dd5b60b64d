"""The command line: right pictures, or one line that names file and cure."""

from __future__ import annotations

import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import omfa.__main__ as door
from omfa.bodies.body import load_body
from omfa.bodies.named_poses import make_pose
from omfa.bodies.placing import place
from omfa.images import read_image
from omfa.sheets import RULE, contact_sheet
from tests.conftest import SIZE, make_compact


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_compact().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pose") / "pose.npz"
    place(load_body(), make_pose(), image_size=SIZE).save(path)
    return path


@pytest.fixture
def photos(records: Path) -> list[Path]:
    return sorted((records / "person").glob("*.png"))[:2]


def run(*words: object) -> int:
    try:
        return door.main([str(w) for w in words])
    except SystemExit as e:  # argparse
        return int(e.code or 0)


def written(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*"))


def test_try_off_writes_a_picture_a_photo_and_category(model: Path, photos: list[Path], tmp_path: Path) -> None:
    common = ["--category", "upper", "lower", "--model", model, "--steps", 2, "-o"]
    assert run("try-off", *photos, *common, tmp_path / "a", "--contact-sheet") == 0
    names = [f"{p.stem}_{c}.png" for p in photos for c in ("upper", "lower")]
    assert written(tmp_path / "a") == sorted([*names, "contact_sheet.png"])
    assert read_image(tmp_path / "a" / names[0]).size == (SIZE[1], SIZE[0])
    assert run("try-off", photos[1], *common, tmp_path / "b") == 0  # neither neighbours nor order change a picture
    assert (tmp_path / "b" / names[2]).read_bytes() == (tmp_path / "a" / names[2]).read_bytes()


def test_try_on_transfer_and_turntable(
    model: Path, photos: list[Path], pose: Path, records: Path, tmp_path: Path
) -> None:
    face, shirt = next((records / "face").glob("*.png")), next((records / "garment").glob("*upper*.png"))
    looks = ["--pose", pose, "--face", face, "--model", model, "--steps", 2, "-o", tmp_path]
    assert run("try-on", "--garment", f"upper={shirt}", *looks) == 0
    assert run("try-on", "--garment", f"upper={shirt}", "--portrait", *photos, *looks) == 0
    assert run("transfer", *photos, *looks) == 0
    assert run("turntable", photos[0], "--views", 3, *looks) == 0
    a, b = (p.stem for p in photos)
    turned = [f"{a}_{angle}.png" for angle in ("000", "120", "240")]
    assert written(tmp_path) == sorted(["try_on.png", f"{a}_try_on.png", f"{b}_try_on.png", f"{a}_on_{b}.png", *turned])


def test_a_person_keeps_the_aspect_of_their_pose(model: Path, records: Path, tmp_path: Path) -> None:
    shirt, wide = next((records / "garment").glob("*upper*.png")), tmp_path / "wide.png"
    Image.new("RGB", (60, 40), "black").save(wide)
    words = ["--pose-map", wide, "--model", model, "--steps", 1, "-o", tmp_path / "out"]
    assert run("try-on", "--garment", f"upper={shirt}", *words) == 0
    made = read_image(tmp_path / "out/try_on.png")
    assert made.width == SIZE[1] and made.height == round(SIZE[1] * 40 / 60)


def test_of_several_photos_the_good_ones_are_made(
    model: Path, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_text("no picture")
    words = ["--model", model, "--steps", 1, "-o", tmp_path / "out"]
    assert run("try-off", bad, photos[0], tmp_path / "gone.png", *words) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and "bad.jpg" in errors[0] and "gone.png: no such file" in errors[1]
    assert written(tmp_path / "out") == [f"{photos[0].stem}_upper.png"]


def hostile(folder: Path) -> dict[str, Path]:
    """Files that are no pictures this can use, by what is wrong with them."""
    good = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 48, 3), np.uint8))
    made = {name: folder / name for name in ("cut.jpg", "cut.png", "one.png", "long.png", "bomb.png", "tiny.gif")}
    good.save(made["cut.jpg"])
    made["cut.jpg"].write_bytes(made["cut.jpg"].read_bytes()[:600])
    good.save(made["cut.png"])
    made["cut.png"].write_bytes(made["cut.png"].read_bytes()[:2000])
    Image.new("RGB", (1, 1)).save(made["one.png"])
    Image.new("RGB", (30_000, 10)).save(made["long.png"])
    Image.new("1", (20_000, 20_000)).save(made["bomb.png"])
    Image.new("P", (3, 2)).save(made["tiny.gif"])
    texts = {"text.jpg": b"hello", "empty.jpg": b"", "page.png": b"<html></html>", "script.png": b"#!/bin/sh\nexit\n"}
    texts |= {
        "half.webp": b"RIFF\x10\x00\x00\x00WEBP",
        "film.jpg": b"\x00\x00\x00\x18ftypmp42",
        "zip.png": b"PK\x03\x04",
    }
    texts |= {"pdf.jpg": b"%PDF-1.7\n", "vector.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}
    texts |= {"header.png": b"\x89PNG\r\n\x1a\n", "start.jpg": b"\xff\xd8\xff\xe0"}
    for name, data in texts.items():
        made[name] = folder / name
        made[name].write_bytes(data)
    (folder / "folder.png").mkdir()
    (folder / "loop.png").symlink_to(folder / "loop.png")
    return made | {n: folder / n for n in ("folder.png", "loop.png", "missing.png", "nul\0.png", "x" * 300 + ".png")}


def test_hostile_files_are_refused_at_the_door(
    model: Path, photos: list[Path], pose: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "hostile", tmp_path / "out"
    folder.mkdir()
    files = hostile(folder)
    assert len(files) >= 20
    common = ["--model", model, "-o", out]
    for name, path in files.items():
        calls = [
            ["try-off", path, *common],
            ["try-on", "--garment", f"upper={path}", "--pose", pose, *common],
            ["try-on", "--garment", f"upper={photos[0]}", "--face", path, *common],
            ["try-on", "--garment", f"upper={photos[0]}", "--pose", path, *common],
            ["transfer", photos[0], path, *common],
            ["transfer", path, photos[0], *common],
            ["turntable", path, "--pose", pose, *common],
        ]
        for call in calls:
            assert run(*call) == 2, call
            errors = capsys.readouterr().err
            assert "Traceback" not in errors and len(errors.splitlines()) == 1, errors
            assert name.replace("\0", "") in errors.replace("\0", "").replace("\\x00", ""), errors
            assert not out.exists()


def test_odd_but_honest_pictures_are_taken(model: Path, tmp_path: Path) -> None:
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 48, 3), np.uint8))
    rgb.convert("CMYK").save(tmp_path / "cmyk.jpg")
    rgb.convert("L").save(tmp_path / "grey.png")
    rgb.convert("RGBA").save(tmp_path / "alpha.png")
    Image.fromarray(np.arange(64 * 48, dtype=np.uint16).reshape(64, 48) * 20).save(tmp_path / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.save(tmp_path / "turned.jpg", exif=exif)
    names = ["cmyk.jpg", "grey.png", "alpha.png", "deep.png", "turned.jpg"]
    words = ["--model", model, "--steps", 1, "-o", tmp_path / "out"]
    assert run("try-off", *(tmp_path / n for n in names), *words) == 0
    assert len(written(tmp_path / "out")) == 5


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["try-on"], "always dressed"),
        (["try-on", "--garment", "tie=x.png"], "upper=shirt.png"),
        (["try-off", "a/x.png", "b/x.png"], "rename"),
        (["try-off", "a/x.png", "--seed", "-1"], "seed"),
        (["try-off", "a/x.png", "--steps", "0"], "1 on"),
        (["try-off", "a/x.png", "--model", "nowhere"], "nowhere"),
        (["try-off", "a/x.png", "--model", "broken"], "export or fetch it again"),
        (["try-off", "a/x.png", "--guidance", "nan"], "finite"),
        (["try-off", "a/x.png", "--steps", "1001"], "1001"),
        (["try-off", "a/x.png", "--category", "dress", "upper"], "dress"),
        (["try-off", "a/x.png", "--category", "tie"], "choose from 'upper'"),
        (["try-off", "a/x.png", "--category", "hat"], "has not learned hat"),
        (["turntable", "a/x.png", "--views", "361"], "360"),
        (["try-on", "--garment", "upper=a/x.png", "--garment", "upper=b/x.png", "--pose", "waving"], "a slot for one"),
        (["try-off", "a\nb.png"], "no such file"),
        (["try-off", "a/x.png", "--out", "a/x.png"], "x.png"),
        (["try-off", "a/x.png", "--out", "/proc/none"], "none"),
        (["try-on", "--garment", "upper=a/x.png", "--pose", "a/x.png", "--pose-map", "a/x.png"], "not both"),
        (["try-on", "--garment", "upper=a/x.png", "--pose", "a/none.npz"], "none.npz"),
        (["fly"], "fly"),
    ],
)
def test_wrong_calls_say_what_would_be_right(
    words: list[str], told: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        Path(name).mkdir()
        Image.new("RGB", (48, 64)).save(f"{name}/x.png")
    Path("broken").mkdir()
    Path("broken/model_index.json").write_text("[]")
    words = words if "--model" in words else [*words, "--model", str(model)]
    assert run(*words, *([] if "--out" in words else ["--out", "out"])) == 2
    errors = capsys.readouterr().err
    assert told in errors and "Traceback" not in errors and len(errors.splitlines()) == 1, errors
    assert not Path("out").exists()


def test_a_full_disk_is_named_and_leaves_no_half_picture(
    model: Path, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    words = ["try-off", photos[0], "--model", model, "--steps", 1, "-o", tmp_path / "out"]
    try:  # no file may grow beyond what the trial at the door writes
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        assert run(*words, "--contact-sheet") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and str(tmp_path / "out") in said[0] and "free some space" in said[0]
    assert written(tmp_path / "out") == []


def test_the_examples_of_the_help_are_calls_that_parse() -> None:
    text = (door.__doc__ or "").replace("\\\n", " ")
    examples = [shlex.split(line) for line in re.findall(r"python -m omfa (.*)", text)]
    assert {e[0] for e in examples} == {"try-off", "try-on", "transfer", "turntable", "batch"}
    for words in examples:
        assert door.parser().parse_args(words).out.parts[0] == "outputs"


def test_nothing_but_pictures_paths_when_piped(model: Path, photos: list[Path], tmp_path: Path) -> None:
    words = ["try-off", *photos, "--model", model, "--steps", "1", "-o", tmp_path / "out"]
    done = subprocess.run([sys.executable, "-m", "omfa", *map(str, words)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(tmp_path / "out" / f"{p.stem}_upper.png") for p in photos]
    assert done.stderr == ""


def test_a_contact_sheet_has_a_cell_for_every_picture() -> None:
    red, blue = Image.new("RGB", (10, 20), "red"), Image.new("RGB", (40, 20), "blue")
    sheet = contact_sheet([("two", [red, blue]), ("", [blue])], cell=(40, 40))
    assert sheet.size == (80, 16 + 80)
    ruled = contact_sheet([("", [red, None, blue])], cell=(40, 40))
    assert ruled.size == (80 + RULE, 40) and ruled.getpixel((40 + RULE // 2, 0)) == (0, 0, 0)
    assert ruled.crop((40 + RULE, 0, 80 + RULE, 40)).tobytes() == sheet.crop((40, 16, 80, 56)).tobytes()
    assert sheet.getpixel((20, 16 + 20)) == (255, 0, 0) and sheet.getpixel((2, 16 + 20)) == (255, 255, 255)
    assert sheet.getpixel((60, 16 + 20)) == (0, 0, 255) and sheet.getpixel((20, 16 + 60)) == (0, 0, 255)
