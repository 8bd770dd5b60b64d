"""The runner: same bytes however it is run, nothing twice, nothing lost, whatever goes wrong."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep import __main__ as cli
from data_prep.journal import FAILURES, JOURNAL
from data_prep.run import Outcome, describe, run_stage, write_bytes, write_image
from omfa.records.prepared import METADATA


def draw(
    item_id: str, payload: int, out: Path, *, size: int = 8, log: str = "", pause: float = 0
) -> list[dict[str, Any]]:
    """A picture of noise, one line; some items go wrong each in its own way."""
    if log:
        with open(log, "a") as file:
            file.write(item_id + "\n")
    if payload % 10 == 3:
        raise ValueError(f"{payload} ends\nin three")
    if payload % 10 == 7:
        return [{"id": item_id, "x": 1 // (payload % 7 - payload % 7)}]
    time.sleep(pause)
    write_image(
        out / "a" / f"{item_id}.png", np.random.default_rng(payload).integers(0, 255, (size, size, 3), np.uint8)
    )
    return [{"id": item_id, "n": payload}]


def crash(item_id: str, payload: int, out: Path) -> list[dict[str, Any]]:
    if payload == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return draw(item_id, payload, out)


def twice(item_id: str, payload: int, out: Path) -> list[dict[str, Any]]:
    return 2 * draw(item_id, payload, out)


def threads(item_id: str, payload: int, out: Path) -> list[dict[str, Any]]:
    import cv2
    import torch

    return [{"id": item_id, "torch": torch.get_num_threads(), "cv2": cv2.getNumThreads()}]


def items(n: int) -> Iterator[tuple[str, int]]:
    return ((f"i{k:04d}", k) for k in range(n))


def digest(folder: Path) -> dict[str, str]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith(JOURNAL))
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_same_bytes_whatever_the_workers(tmp_path: Path, workers: int) -> None:
    assert run_stage("draw", items(40), draw, tmp_path / "one") == Outcome(32, 8, 0)
    assert run_stage("draw", items(40), draw, tmp_path / "many", workers=workers) == Outcome(32, 8, 0)
    assert digest(tmp_path / "one") == digest(tmp_path / "many")
    assert [d["n"] for d in lines(tmp_path / "many" / METADATA)] == [k for k in range(40) if k % 10 not in (3, 7)]


def test_records_are_said_where_an_item_is_several(tmp_path: Path) -> None:
    assert str(run_stage("draw", items(3), draw, tmp_path / "one")) == "3 done"
    assert str(run_stage("twice", items(2), twice, tmp_path / "two")) == "2 done, 4 records"
    assert str(run_stage("twice", items(3), twice, tmp_path / "two")) == "1 done, 2 done before, 6 records"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_same_bytes_over_ray(tmp_path: Path) -> None:
    run_stage("draw", items(600), draw, tmp_path / "one")
    assert run_stage("draw", items(600), draw, tmp_path / "ray", workers=2, engine="ray") == Outcome(480, 120, 0)
    assert digest(tmp_path / "one") == digest(tmp_path / "ray")


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="ray is installed")
def test_absent_ray_names_the_cure(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pip install 'ray"):
        run_stage("draw", items(2), draw, tmp_path, engine="ray")


def test_failures_have_reasons(tmp_path: Path) -> None:
    outcome = run_stage("draw", items(10), draw, tmp_path)
    assert outcome.exit_code == 1
    value, bug = lines(tmp_path / FAILURES)
    assert value == {"id": "i0003", "reason": "3 ends in three"}
    assert bug["id"] == "i0007" and re.match(r"ZeroDivisionError at test_run\.py:\d+: ", bug["reason"])


def test_again_does_nothing_but_the_failed(tmp_path: Path) -> None:
    work = partial(draw, log=str(tmp_path / "log"))
    run_stage("draw", items(20), work, tmp_path / "out")
    before = digest(tmp_path / "out")
    (tmp_path / "log").unlink()
    assert run_stage("draw", items(20), work, tmp_path / "out") == Outcome(0, 4, 16)
    assert (tmp_path / "log").read_text().split() == ["i0003", "i0007", "i0013", "i0017"]
    assert digest(tmp_path / "out") == before


def test_input_may_grow_and_shrink(tmp_path: Path) -> None:
    some = [item for item in items(20) if item[1] % 2]
    run_stage("draw", some, draw, tmp_path / "out")
    assert run_stage("draw", items(20), draw, tmp_path / "out").skipped == 6
    run_stage("draw", items(20), draw, tmp_path / "fresh")
    assert digest(tmp_path / "out") == digest(tmp_path / "fresh")
    run_stage("draw", items(5), draw, tmp_path / "out")
    assert [d["n"] for d in lines(tmp_path / "out" / METADATA)] == [0, 1, 2, 4]


SCRIPT = """
import sys
from functools import partial
from pathlib import Path
from data_prep.run import run_stage
from tests.data_prep.test_run import draw, items
if __name__ == "__main__":
    out, log, workers = sys.argv[1:]
    run_stage("draw", items(150), partial(draw, size=64, log=log, pause=0.01), Path(out), workers=int(workers))
"""


def start(tmp_path: Path, workers: int) -> subprocess.Popen[bytes]:
    root = Path(__file__).resolve().parents[2]
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(tmp_path / "out"), str(tmp_path / "log"), str(workers)]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(root)}, cwd=root)


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_run_goes_on(tmp_path: Path, workers: int) -> None:
    log = tmp_path / "log"
    process = start(tmp_path, workers)
    while process.poll() is None and (not log.exists() or log.read_text().count("\n") < 30):
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "out" / METADATA).exists()  # nothing half-done is shown as done
    time.sleep(0.3)  # the workers of the dead run end by themselves
    begun = log.read_text().split()
    assert 30 <= len(begun) < 150
    assert start(tmp_path, workers).wait() == 0
    again = log.read_text().split()[len(begun) :]
    assert len(set(begun + again)) == 150
    twice = [i for i in again if i in begun and int(i[1:]) % 10 not in (3, 7)]
    assert len(twice) <= 4 * workers  # only what was in hand, or on its way back, when the kill came
    run_stage("draw", items(150), partial(draw, size=64), tmp_path / "fresh")
    assert digest(tmp_path / "out") == digest(tmp_path / "fresh")


def test_a_second_run_is_kept_out(tmp_path: Path) -> None:
    process = start(tmp_path, 1)
    while not (tmp_path / "log").exists():
        time.sleep(0.01)
    with pytest.raises(ValueError, match="another run is at work"):
        run_stage("draw", items(1), draw, tmp_path / "out")
    process.kill()
    process.wait()


def test_crashing_process_is_one_failure(tmp_path: Path) -> None:
    assert run_stage("crash", items(20), crash, tmp_path, workers=2) == Outcome(15, 5, 0)
    assert lines(tmp_path / FAILURES)[1] == {
        "id": "i0005",
        "reason": "its process died: out of memory, or a crash in a library",
    }


@pytest.mark.parametrize("workers", [1, 2])
def test_one_thread_each(tmp_path: Path, workers: int) -> None:
    run_stage("threads", items(3), threads, tmp_path, workers=workers)
    assert {(d["torch"], d["cv2"]) for d in lines(tmp_path / METADATA)} == {(1, 1)}


def test_other_calls_are_refused(tmp_path: Path) -> None:
    run_stage("draw", items(3), draw, tmp_path / "out")
    with pytest.raises(ValueError, match=r"belongs to another call.*size=9"):
        run_stage("draw", items(3), partial(draw, size=9), tmp_path / "out")
    with pytest.raises(ValueError, match="belongs to another call"):
        run_stage("other", items(3), draw, tmp_path / "out")
    with pytest.raises(ValueError, match="item 'i0000' was another one"):
        run_stage("draw", [("i0000", 12)], draw, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / METADATA).touch()
    with pytest.raises(ValueError, match="give another --out"):
        run_stage("draw", items(3), draw, tmp_path / "mine")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / JOURNAL).write_text("no data base " * 100)
    with pytest.raises(ValueError, match="can't be used"):
        run_stage("draw", items(3), draw, tmp_path / "text")


@pytest.mark.parametrize("workers", [1, 2])
def test_ids_are_unique(tmp_path: Path, workers: int) -> None:
    with pytest.raises(ValueError, match="'b' stands twice"):
        run_stage("draw", [("a", 0), ("b", 1), ("b", 1)], draw, tmp_path, workers=workers)
    with pytest.raises(ValueError, match="'b' stands twice"):
        run_stage("draw", [("b", 1), ("b", 1)], draw, tmp_path, workers=workers)


def test_parameters_must_tell_themselves() -> None:
    assert describe(partial(draw, size=3)) == f"{__name__}.draw(size=3)"
    with pytest.raises(ValueError, match="plain values"):
        describe(partial(draw, size=object()))


def test_items_are_not_read_ahead(tmp_path: Path) -> None:
    drawn, done = 0, 0

    def endless() -> Iterator[tuple[str, int]]:
        nonlocal drawn
        for item in items(60):
            drawn += 1
            done = len(list((tmp_path / "a").glob("*.png")))
            assert drawn - done <= 8 + 2 + 15  # 4 a worker in hand, 2 in the pipe; 12 fail
            yield item

    run_stage("draw", endless(), draw, tmp_path, workers=2)
    assert drawn == 60 and done == 0


def test_writes_leave_nothing_half_done(tmp_path: Path) -> None:
    write_bytes(tmp_path / "x" / "a.bin", b"old")
    with pytest.raises(TypeError):
        write_bytes(tmp_path / "x" / "a.bin", "text")  # type: ignore[arg-type]
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["a.bin"] and (tmp_path / "x/a.bin").read_bytes() == b"old"
    with pytest.raises(ValueError, match="uint8"):
        write_image(tmp_path / "a.png", np.zeros((4, 4), np.float32))
    with pytest.raises(ValueError, match=r"\.png or \.jpg"):
        write_image(tmp_path / "a.gif", np.zeros((4, 4), np.uint8))


def test_command_line_errors_are_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["dance"], ["--help"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(argv)
        out, err = capfd.readouterr()
        if argv == ["--help"]:
            assert stop.value.code == 0 and all(stage in out for stage in cli.STAGES)
        else:
            assert stop.value.code == 2 and err.count("\n") == 1 and "--help" in err


def test_help_is_fast() -> None:
    code = "import sys; from data_prep import __main__; sys.exit('torch' in sys.modules or 'cv2' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
