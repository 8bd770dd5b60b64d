"""A model from nothing: what is done is not done again, what fails is told, and the number of steps fits the time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from omfa import from_nothing
from omfa.composer import TASKS
from omfa.from_nothing import Failed, Work, main, make
from omfa.pipeline import OMFAPipeline

TRAINER = """
import signal, sys, time
from pathlib import Path
options = dict(o.split("=", 1) for o in sys.argv[1:] if "=" in o)
root, most = Path(options["--trainer.default_root_dir"]), int(options["--trainer.max_steps"])
folder = root / "checkpoints"
folder.mkdir(parents=True, exist_ok=True)
step = max([int(p.stem[5:]) for p in folder.glob("step=*.ckpt")], default=0)
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
(root / "config.yaml").write_text("")
while step < most and not stopped:
    time.sleep(0.02)
    step += 1
import hashlib
data = str(step).encode()
(folder / f"step={step}.ckpt").write_bytes(data)
(folder / f"step={step}.ckpt.sha256").write_text(hashlib.sha256(data).hexdigest())
print("at", step)
"""


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path, 60.0, "cpu", (32, 32), 0)


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of ``python -m omfa.fit``: 50 steps a second, stops on SIGTERM."""
    (tmp_path / "omfa").mkdir()
    (tmp_path / "omfa" / "__init__.py").write_text("")
    (tmp_path / "omfa" / "fit.py").write_text(TRAINER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def test_as_many_steps_as_there_is_time_for(work: Work, trainer: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(from_nothing, "SHARES", {"vae": 0.1})
    steps = work.fit("vae", "compact_vae.yaml")
    assert 10 < steps < 600  # 300 in 6 seconds, as far as the machine is free
    assert (work.out / "vae" / "checkpoints" / f"step={steps}.ckpt").is_file()
    assert json.loads((work.out / "stages.json").read_text()) == {"vae": {"steps": steps}}
    again = Work(work.out, 60.0, "cpu", (32, 32), 0, json.loads((work.out / "stages.json").read_text()))
    assert again.fit("vae", "compact_vae.yaml") == steps  # settled once


def test_what_is_done_is_not_done_again(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    did: list[str] = []

    def first(work: Work) -> dict[str, float]:
        did.append("first")
        return {"records": 80}

    def second(work: Work) -> dict[str, float]:
        did.append("second")
        if did.count("second") == 1:
            raise Failed("second ended with 1")
        return {}

    monkeypatch.setattr(from_nothing, "STAGES", (first, second))
    with pytest.raises(Failed):
        make(work)
    make(Work(work.out, 60.0, "cpu", (32, 32), 0))
    assert did == ["first", "second", "second"]
    done = json.loads((work.out / "stages.json").read_text())
    assert done["first"]["records"] == 80 and set(done) == {"first", "second"}


def test_a_stage_that_fails_shows_its_last_lines(work: Work) -> None:
    with pytest.raises(Failed, match=r"vae ended with 1(.|\n)*No module named .?no_such_module"):
        work.run("vae", "no_such_module")
    work.run("vae", "this")
    assert "Beautiful is better than ugly" in (work.out / "vae.log").read_text()


def test_records_are_whole_people_and_fit_the_time(work: Work) -> None:
    assert work.records == from_nothing.LEAST
    for minutes in (20, 60, 600):
        work.seconds = minutes * 60.0
        seconds = work.records * (0.5 / (os.cpu_count() or 1) + 0.9)
        assert (work.records % 80 == 0 and seconds <= work.seconds * 0.25) or work.records == from_nothing.LEAST


@pytest.mark.parametrize(
    ("more", "words"),
    [(["--size", "100x96"], "multiples of 32"), (["--device", "foo"], "invalid choice"), (["--minutes", "0"], "'0'")],
)
def test_wrong_calls(tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], words: str) -> None:
    try:
        code = main(["--out", str(tmp_path / "out"), *more])
    except SystemExit as e:
        code = int(str(e.code))
    assert code == 2 and words in capsys.readouterr().err


def test_another_call_takes_another_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(from_nothing, "STAGES", ())
    assert main(["--out", str(tmp_path), "--minutes", "2"]) == 0
    assert main(["--out", str(tmp_path), "--minutes", "3"]) == 2 and "another --out" in capsys.readouterr().err


@pytest.mark.slow
def test_from_nothing_to_a_model_that_makes_pictures(tmp_path: Path) -> None:
    assert main(["--out", str(tmp_path), "--minutes", "1", "--size", "64x64"]) == 0
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| wardrobe | 80 records" in card and "PSNR" in card and str(tmp_path) not in card
    assert OMFAPipeline.from_pretrained(tmp_path / "model").composer.config.decoded == [*TASKS]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a command that its parent has been killed")
def test_a_killed_call_leaves_no_command_behind(tmp_path: Path) -> None:
    script = (
        "import sys; from omfa.from_nothing import _started; log = open(sys.argv[1], 'wb');"
        "run = _started(['http.server', '0', '--bind', '127.0.0.1'], log); print(run.pid, flush=True); run.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", script, tmp_path / "log"], stdout=subprocess.PIPE) as call:
        assert call.stdout is not None
        command = Path("/proc", str(int(call.stdout.readline())))
        assert command.is_dir()
        call.kill()
    for _ in range(200):
        if not command.is_dir() or (command / "stat").read_text().split(")")[1].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the command is still at work")
