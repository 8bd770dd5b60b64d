"""Batches: every row once, whatever is wrong with its neighbours and however often the call is stopped."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import omfa.__main__ as door
from omfa.batches.rows import Batch, read_rows
from omfa.bodies.body import load_body
from omfa.bodies.standing import standing
from tests.conftest import SIZE, make_compact
from tests.test_main import run, written

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_compact().save_pretrained(folder)
    return folder


@pytest.fixture
def jobs(records: Path, tmp_path: Path) -> Path:
    """A folder for a jobs file, with a photo, a garment, a head and a text that is no picture beside it."""
    for kind, name in (("person", "photo"), ("garment", "shirt"), ("face", "head")):
        shutil.copy(sorted((records / kind).glob("*.png"))[0], tmp_path / f"{name}.png")
    (tmp_path / "bad.png").write_text("no picture")
    return tmp_path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def call(jobs: Path, model: Path, out: Path, *more: object) -> int:
    return run("batch", jobs, "--model", model, "--steps", 1, "-o", out, *more)


def test_a_row_is_what_the_command_makes(jobs: Path, model: Path, tmp_path: Path) -> None:
    looks = {"pose": "waving", "face": "head.png"}
    rows = [
        {"task": "try-off", "name": "a", "photo": "photo.png", "category": ["upper", "lower"], "seed": 3},
        {"task": "try-on", "garments": {"upper": "shirt.png"}, **looks, "guidance": 1.0},
        {"task": "transfer", "name": "deep/c", "source": "photo.png", "photo": "photo.png", **looks},
        {"task": "turntable", "name": "d", "photo": "photo.png", **looks, "views": 2},
    ]
    (jobs / "jobs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out, photo, shirt = tmp_path / "out", jobs / "photo.png", jobs / "shirt.png"
    assert call(jobs / "jobs.jsonl", model, out) == 0
    pictures = ["a_lower.png", "a_upper.png", "d_000.png", "d_180.png", "row-000002.png"]
    assert written(out) == sorted(["done.jsonl", "c.png", "deep", *pictures])
    common = ["--model", model, "--steps", 1, "-o", tmp_path / "one"]
    looked = ["--pose", "waving", "--face", jobs / "head.png", *common]
    assert run("try-off", photo, "--category", "upper", "lower", "--seed", 3, *common) == 0
    assert run("try-on", "--garment", f"upper={shirt}", "--guidance", 1, *looked) == 0
    assert run("transfer", photo, photo, *looked) == 0
    assert run("turntable", photo, "--views", 2, *looked) == 0
    alike = {"photo_upper": "a_upper", "try_on": "row-000002", "photo_on_photo": "deep/c", "photo_180": "d_180"}
    for one, many in alike.items():
        assert (tmp_path / "one" / f"{one}.png").read_bytes() == (out / f"{many}.png").read_bytes(), one


BAD = {
    "a picture that is none": ({"photo": "bad.png"}, "bad.png: not a picture"),
    "one that is not there": ({"photo": "gone.png"}, "gone.png: no such file"),
    "a word that is none": ({"task": "fly"}, "'fly' must be one of try-off"),
    "no person": ({"photo": ""}, "needs a photo"),
    "a number that is none": ({"seed": "many"}, "a whole number"),
    "a name that leads out": ({"name": "../out"}, "letters, digits"),
    "a name that is taken": ({"name": "good"}, "row 1 makes good_upper.png already"),
    "a garment that is none": ({"category": "tie"}, "'tie' is no garment"),
    "garments as a heap": ({"garments": "shirt.png"}, "upper=shirt.png"),
    "a seed beyond all": ({"seed": str(2**63)}, "2^63"),
    "steps beyond all": ({"steps": "1001"}, "1001"),
    "a pose that is none": ({"task": "try-on", "garments": "upper=shirt.png", "pose": "dancing"}, "dancing"),
}


def test_bad_rows_are_named_and_the_others_made(
    jobs: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = ["task", "name", "photo", "category", "garments", "seed", "steps", "pose"]
    good = {"task": "try-off", "photo": "photo.png"}
    rows = [good | {"name": "good"}, *(good | changed for changed, _ in BAD.values()), good | {"name": "last"}]
    text = "\n".join(",".join(row.get(c, "") for c in columns) for row in [{c: c for c in columns}, *rows])
    (jobs / "jobs.csv").write_text("\ufeff" + text + "\ntry-off,x,photo.png,,,,,,too,many\n")
    assert call(jobs / "jobs.csv", model, tmp_path / "out") == 1
    said = capsys.readouterr()
    assert written(tmp_path / "out") == ["done.jsonl", "failures.jsonl", "good_upper.png", "last_upper.png"]
    told = [line for line in said.err.splitlines() if line.startswith("batch: row")]
    failed = lines(tmp_path / "out/failures.jsonl")
    assert len(told) == len(failed) == len(BAD) + 1 and "Traceback" not in said.err
    for i, (name, (_, reason)) in enumerate(BAD.items()):
        assert reason in failed[i]["reason"] and f"row {i + 2} " in told[i] and reason in told[i], name
    assert "more cells" in failed[-1]["reason"]
    assert "2 rows made, 13 failed" in said.out


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.csv", "task;photo\ntry-off;a.png\n", "no column"),
        ("a.csv", "photo\na.png\n", "no column 'task'"),
        ("a.csv", "", "no column"),
        ("a.csv", "task,photo\n", "holds no row"),
        ("a.csv", 'task,photo\ntry-off,"' + "x" * 200_000, "write it anew"),
        ("a.txt", "task\n", ".csv or a .jsonl"),
        ("gone.csv", None, "no such file"),
    ],
)
def test_a_file_that_is_no_batch_is_refused(
    name: str, text: str | None, told: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    assert call(tmp_path / name, model, tmp_path / "out") == 2
    errors = capsys.readouterr().err
    assert told in errors and len(errors.splitlines()) == 1 and "Traceback" not in errors


def test_lines_that_are_no_json_are_rows_that_fail(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        b'{"task": "try-off"\n\n[1]\n\xff\xfe\n{"task": 1}\n{"task": "try-off", "garments": 3}\n'
    )
    rows = list(read_rows(Batch(tmp_path / "a.jsonl", tmp_path / "out", str(model))))
    assert [row.number for row in rows] == [1, 2, 3, 4, 5] and all(row.problem for row in rows)
    assert call(tmp_path / "a.jsonl", model, tmp_path / "out") == 2  # nothing could be made


def test_what_has_changed_is_made_again_and_nothing_else(
    jobs: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(jobs / "photo.png", jobs / "other.png")
    rows = [
        {"task": "try-off", "name": n, "photo": p}
        for n, p in (("a", "photo.png"), ("b", "other.png"), ("c", "photo.png"))
    ]
    (jobs / "jobs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "out"
    assert call(jobs / "jobs.jsonl", model, out) == 0
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("*.png")}

    def again(*more: object) -> set[str]:
        assert call(jobs / "jobs.jsonl", model, out, *more) == 0
        now = {p.name: p.stat().st_mtime_ns for p in out.glob("*.png")}
        changed = {name[0] for name in now if now[name] != before[name]}
        before.update(now)
        return changed

    assert again() == set()
    shutil.copy(jobs / "shirt.png", jobs / "other.png")
    assert again() == {"b"}
    rows[0]["seed"] = 5  # type: ignore[assignment]
    (jobs / "jobs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert again() == {"a"}
    (out / "c_upper.png").unlink()
    before["c_upper.png"] = 0
    assert again() == {"c"}
    assert again("--seed", 1) == {"b", "c"}  # the other says its own
    with (out / "done.jsonl").open("r+") as file:  # a kill in the middle of a line
        file.truncate(file.seek(0, os.SEEK_END) - 9)
    assert again("--seed", 1) == {"c"}


def test_killed_half_way_and_run_again(jobs: Path, model: Path, tmp_path: Path) -> None:
    """50 rows, 5 of them bad, two processes: 45 pictures once each, 5 rows named, exit code 1."""
    photos = ["bad.png" if i % 10 == 7 else "photo.png" for i in range(50)]
    rows = [{"task": "try-off", "name": f"r{i:02d}", "photo": photo} for i, photo in enumerate(photos)]
    (jobs / "jobs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "out"
    words = ["batch", jobs / "jobs.jsonl", "--model", model, "--steps", 1, "-o", out, "--processes", 2]
    command = [sys.executable, "-m", "omfa", *map(str, words)]
    child = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 400
        while len(list(out.glob("*.png"))) < 10 and time.monotonic() < until:
            time.sleep(0.02)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    pictures = {p.name: p.stat().st_ino for p in out.glob("*.png")}
    finished = {name for line in lines(out / "done.jsonl") for name in line["files"]}
    assert 10 <= len(pictures) < 45 and len(finished) >= 8
    assert run(*words, "--processes", 1) == 1
    now = {p.name: p.stat().st_ino for p in out.glob("*.png")}
    assert set(now) == {f"r{i:02d}_upper.png" for i in range(50) if i % 10 != 7}
    assert all(now[name] == pictures[name] for name in finished)
    made = [name for line in lines(out / "done.jsonl") for name in line["files"]]
    assert sorted(made) == sorted(now)  # once each
    assert [line["row"] for line in lines(out / "failures.jsonl")] == [8, 18, 28, 38, 48]
    assert not list(out.rglob("*.part"))


def test_two_calls_at_once_and_a_model_that_is_none(jobs: Path, model: Path, tmp_path: Path, capsys: Any) -> None:
    (jobs / "jobs.csv").write_text("task,photo\ntry-off,photo.png\n")
    assert run("batch", jobs / "jobs.csv", "--model", "nowhere", "-o", tmp_path / "out") == 2
    assert "nowhere" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert call(jobs / "jobs.csv", model, "/proc/none") == 2
    assert door.parser().parse_args(["batch", "x.csv", "-o", "y"]).engine == "local"


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="ray is installed")
def test_without_ray_the_cure_is_said(jobs: Path, model: Path, tmp_path: Path, capsys: Any) -> None:
    (jobs / "jobs.csv").write_text("task,photo\ntry-off,photo.png\n")
    assert call(jobs / "jobs.csv", model, tmp_path / "out", "--engine", "ray") == 2
    assert "pip install 'ray[data]'" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_the_same_pictures_over_ray(jobs: Path, model: Path, tmp_path: Path) -> None:
    rows = "".join(f"try-off,{p}.png\n" for p in ("photo", "bad", "photo", "shirt"))
    (jobs / "jobs.csv").write_text("task,photo\n" + rows)
    assert call(jobs / "jobs.csv", model, tmp_path / "here") == 1
    assert call(jobs / "jobs.csv", model, tmp_path / "ray", "--engine", "ray", "--processes", 2) == 1
    assert written(tmp_path / "here") == written(tmp_path / "ray")
    for path in (tmp_path / "here").glob("*.png"):
        assert path.read_bytes() == (tmp_path / "ray" / path.name).read_bytes()


def test_several_garments_of_a_category_are_worn_in_the_order_said(jobs: Path, tmp_path: Path) -> None:
    make_compact(join="rows").save_pretrained(tmp_path / "model")
    looks = {"task": "try-on", "pose": "waving", "face": "head.png"}
    rows = [
        {"name": "a", "garments": {"upper": ["shirt.png", "photo.png"]}, **looks},
        {"name": "b", "garments": "upper=photo.png;upper=shirt.png", **looks},
    ]
    (jobs / "jobs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert call(jobs / "jobs.jsonl", tmp_path / "model", tmp_path) == 0
    worn = [word for name in ("shirt", "photo") for word in ("--garment", f"upper={jobs / name}.png")]
    common = ["--pose", "waving", "--face", jobs / "head.png", "--model", tmp_path / "model", "--steps", 1]
    assert run("try-on", *worn, *common, "-o", tmp_path) == 0
    made = {name: (tmp_path / f"{name}.png").read_bytes() for name in ("try_on", "a", "b")}
    assert made["try_on"] == made["a"] != made["b"]


def test_bodies_beside_pictures_are_read_as_on_the_command_line(jobs: Path, tmp_path: Path) -> None:
    drafts = {"draft": "surface", "pose_style": "surface", "join": "rows"}
    make_compact(**drafts).save_pretrained(tmp_path / "model")
    row = {"task": "try-on", "name": "a", "pose": "waving", "face": "head.png", "garments": "upper=shirt.png"}
    (jobs / "jobs.jsonl").write_text(json.dumps(row))
    made: list[bytes] = []
    for arms in (None, 5.0, 60.0):
        if arms is not None:
            standing(load_body(), "upper", SIZE, arms=arms).save(jobs / "shirt.npz")
        assert call(jobs / "jobs.jsonl", tmp_path / "model", tmp_path / "out") == 0
        made.append((tmp_path / "out" / "a.png").read_bytes())
    assert len(set(made)) == 3
    common = ["--pose", "waving", "--face", jobs / "head.png", "--model", tmp_path / "model", "--steps", 1]
    assert run("try-on", "--garment", f"upper={jobs / 'shirt.png'}", *common, "-o", tmp_path) == 0
    assert (tmp_path / "try_on.png").read_bytes() == made[-1]
