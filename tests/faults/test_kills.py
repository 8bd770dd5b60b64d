"""kill -9 in the middle of writing, at every door that makes a folder: the next call gives the same, and no rest stays.

``OMFA_KILLS=100`` kills more often than the 10 times it does otherwise.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from data_prep import __main__ as data_prep
from omfa import encode, evaluate, export, fit, predict
from tests.conftest import make_compact
from tests.test_fit import arguments

Door = Callable[[Path, Path], int]
TELLS = ("open", "os.rename", "os.remove", "os.mkdir")  # of Python's audit events: a file is about to be changed


def do_encode(given: Path, out: Path) -> int:
    call = ["--records", str(given / "records"), "--vae", str(given / "model" / "vae"), "--size", "64x48"]
    return encode.main([*call, "--batch", "2", "--out", str(out)])


def do_synthetic(given: Path, out: Path) -> int:
    return data_prep.main(["synthetic", "--records", "1", "--seed", "5", "--size", "64x48", "--out", str(out)])


def do_export(given: Path, out: Path) -> int:
    return export.main(["--run", str(given / "run"), "--out", str(out)])


def do_predict(given: Path, out: Path) -> int:
    call = ["--records", str(given / "records"), "--task", "try_off", "--model", str(given / "model"), "--steps", "1"]
    return predict.main([*call, "--device", "cpu", "--out", str(out)])


def do_evaluate(given: Path, out: Path) -> int:
    call = ["run", "--records", str(given / "records"), "--predictions", str(given / "predictions")]
    return evaluate.main([*call, "--device", "cpu", "--out", str(out)])


def do_pose_maps(given: Path, out: Path) -> int:
    call = ["pose-maps", "--images", str(given / "photos"), "--estimator", "import", "--format", "4d-humans"]
    return data_prep.main([*call, "--params", str(given / "params"), "--out", str(out)])


DOORS: dict[str, Door] = {
    "encode": do_encode,
    "synthetic": do_synthetic,
    "export": do_export,
    "predict": do_predict,
    "evaluate": do_evaluate,
    "pose-maps": do_pose_maps,
}


@dataclass(frozen=True)
class End:
    """How a call ended: exit code (-9: killed), how often it changed a file, seconds from the first change on."""

    code: int
    touches: int
    seconds: float


def in_a_child(call: Callable[[], int], folder: Path, kill_at: int | None = None, wait: float = 0) -> End:
    """Run a call in a fork of this process, which has imported all.

    ``kill_at``: kill -9 at that change of something below a folder, or, with ``wait``, so many seconds later.
    """
    hear, tell = os.pipe()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.close(hear)
            with open(folder.parent / "said.txt", "a") as said:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            sys.addaudithook(teller(tell, str(folder), None if wait else kill_at))
            code = call()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    os.close(tell)
    touches, start = 0, time.perf_counter()
    while os.read(hear, 1):
        touches += 1
        if touches == 1:
            start = time.perf_counter()
        if touches == kill_at and wait:
            time.sleep(wait)
            os.kill(child, signal.SIGKILL)
            break
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(hear)
    return End(code, touches, time.perf_counter() - start)


def teller(pipe: int, folder: str, kill_at: int | None) -> Callable[[str, tuple[Any, ...]], None]:
    touches = 0

    def hook(event: str, given: tuple[Any, ...]) -> None:
        nonlocal touches
        read = event == "open" and not given[2] & (os.O_WRONLY | os.O_RDWR)
        if event not in TELLS or read or not str(given[0]).startswith(folder):
            return
        touches += 1
        if touches == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        os.write(pipe, b".")

    return hook


@pytest.fixture(scope="module")
def given(records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the doors start from."""
    cv2.setNumThreads(1)  # a fork has no threads of its parent
    folder = tmp_path_factory.mktemp("given")
    shutil.copytree(records, folder / "records")
    make_compact().save_pretrained(folder / "model")
    more = ("--save_every=2", "--trainer.callbacks=SaveModel")
    calls: list[Callable[[], int]] = [
        lambda: fit.main(arguments(records, folder / "run", 2, *more)),
        lambda: do_predict(folder, folder / "predictions"),
    ]
    for call in calls:
        assert in_a_child(call, folder / "none").code == 0, (folder / "said.txt").read_text()
    shutil.copytree(records / "person", folder / "photos")
    (folder / "params").mkdir()
    focal = 5000 / 256 * 64
    for photo in (folder / "photos").iterdir():
        turns = {
            "global_orient": np.diag([1.0, -1.0, -1.0])[None, None],
            "body_pose": np.eye(3)[None, None].repeat(23, 1),
        }
        where = np.array([[0, 0.3, 2 * focal / 64]])
        np.savez(folder / "params" / f"{photo.stem}.npz", **turns, pred_cam_t_full=where)
    return folder


def left(folder: Path) -> dict[str, Any]:
    """Every file by name, without journals, and without seconds, which no two calls share."""
    files: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith(".journal") and path.name != "timings.jsonl":
            files[str(path.relative_to(folder))] = path.read_bytes()
    if "out/predictions.json" in files:
        told = json.loads(files["out/predictions.json"])
        files["out/predictions.json"] = {k: v for k, v in told.items() if k not in ("seconds", "peak_memory_mb")}
    return files


@pytest.mark.slow
@pytest.mark.parametrize("door", DOORS)
def test_killed_in_the_middle_of_writing(given: Path, tmp_path: Path, door: str) -> None:
    rng, wanted = np.random.default_rng(list(door.encode())), int(os.environ.get("OMFA_KILLS", "10"))
    work = tmp_path / "work"

    def call(kill_at: int | None = None, wait: float = 0) -> End:
        return in_a_child(lambda: DOORS[door](given, work / "out"), work, kill_at, wait)

    work.mkdir()
    alone = call()
    assert alone.code == 0, (tmp_path / "said.txt").read_text()
    whole, kills, halves = left(work), 0, 0
    assert len(whole) > 2
    pause = alone.seconds / alone.touches
    for _ in range(5 * wanted):
        shutil.rmtree(work)
        work.mkdir()
        for _ in range(int(rng.integers(1, 3))):  # and what goes on is killed as well
            wait = float(rng.uniform(0, 2 * pause)) * int(rng.integers(2))
            ended = call(int(rng.integers(1, alone.touches + 1)), wait)
            there = left(work)
            kills += ended.code == -signal.SIGKILL and there != whole
            halves += any(".part" in name for name in there)
        assert call().code == 0, (tmp_path / "said.txt").read_text()
        again = left(work)
        assert {n for n in again if again[n] != whole.get(n)} == set() == set(whole) - set(again)
        assert not [p for p in work.rglob("*") if {".part", ".replaced", ".lock"} & set(p.suffixes)]
        if kills >= wanted:
            break
    print(f"{door}: {kills} kills among {alone.touches} changes in {alone.seconds:.2f} s, {halves} left a .part")
    assert kills >= wanted
