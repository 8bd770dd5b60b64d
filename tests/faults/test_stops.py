"""Ctrl-C while a command is still importing, and two calls for one folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from omfa import demo, encode, evaluate, predict, yardsticks
from omfa.baselines.mobile_vton import encode as mobile_encode
from tests.conftest import make_compact

ROOT = Path(__file__).parents[2]
HOLD = "import sys, time; from pathlib import Path; from omfa.files import sole\n"
HOLD += "with sole(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(300)"
DOORS = ("omfa", "omfa.fit", "omfa.encode", "omfa.export", "omfa.predict", "omfa.evaluate", "omfa.yardsticks")
DOORS += ("omfa.demo", "omfa.bench", "omfa.baselines.mobile_vton.encode", "data_prep")


@pytest.mark.parametrize("door", DOORS)
def test_ctrl_c_during_imports_is_a_line(tmp_path: Path, door: str) -> None:
    (tmp_path / "numpy.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    words = [sys.executable, "-m", door, *(["synthetic", "--help"] if door == "data_prep" else [])]
    with subprocess.Popen(words, cwd=ROOT, env=environment, stdout=-1, stderr=-1, text=True) as call:
        assert call.stdout is not None and call.stdout.readline() == "importing\n"
        call.send_signal(signal.SIGINT)
        _, said = call.communicate(timeout=50)
    assert said == f"python -m {door}: stopped by hand\n" and call.returncode == -signal.SIGINT


def test_users_of_the_packages_keep_their_own_answer_to_ctrl_c() -> None:
    code = "import sys, omfa, data_prep; assert sys.excepthook is sys.__excepthook__"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_every_door_that_writes_a_folder_has_it_alone(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_compact().save_pretrained(tmp_path / "model")
    monkeypatch.setattr(mobile_encode.MobileVTON, "from_pretrained", lambda *_: make_compact())
    monkeypatch.setattr(demo, "two_people", lambda folder: None)
    held, model, known = str(tmp_path / "out"), str(tmp_path / "model"), ["--records", str(records)]
    calls = {
        encode: [*known, "--vae", f"{model}/vae", "--size", "64x48", "--out", held],
        predict: [*known, "--task", "try_off", "--model", model, "--out", held],
        yardsticks: [*known, "--train", str(records), "--model", model, "--out", held],
        evaluate: ["run", *known, "--predictions", str(tmp_path), "--task", "try_off", "--out", held],
        mobile_encode: [*known, "--model", model, "--out", held],
        demo: [*known, "--model", model, "--out", held],
    }
    with subprocess.Popen([sys.executable, "-c", HOLD, held], stdout=subprocess.PIPE, cwd=ROOT) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        for door, words in calls.items():
            assert door.main(words) == 2
            said = capsys.readouterr().err.strip()
            assert "another call is at work in" in said.splitlines()[-1], (door, said)
        other.kill()
    assert [p.name for p in Path(held).iterdir()] == [".lock"]
