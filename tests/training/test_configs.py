"""Runs made before the house had wings go on: their config, checkpoint, model and records are read as ever."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from omfa import export
from omfa.fit import main
from omfa.pipeline import OMFAPipeline
from omfa.records.prepared import read_records
from omfa.training.checkpoints import SafeCheckpointIO, last_checkpoint
from omfa.training.configs import MOVED, todays

BEFORE = Path(__file__).parents[1] / "fixtures" / "before_wings"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return shutil.copytree(BEFORE / "run", tmp_path / "run")


def go_on(run: Path, steps: int) -> int:
    where = [f"--trainer.default_root_dir={run}", f"--data.init_args.folder={BEFORE / 'records'}"]
    config = ["--config", str(run / "config.yaml"), f"--trainer.max_steps={steps}"]
    return main([*config, *where, "--ckpt_path=last"])


def test_every_moved_class_is_where_the_mapping_says() -> None:
    for path in MOVED.values():
        module, _, name = path.rpartition(".")
        assert getattr(importlib.import_module(module), name).__module__ == module
    assert not set(MOVED) & set(MOVED.values())
    assert todays({"class_path": "somebody.Else", "list": [{"class_path": "omfa.callbacks.EMA"}]}) == {
        "class_path": "somebody.Else",
        "list": [{"class_path": "omfa.training.ema.EMA"}],
    }


def test_a_run_of_before_goes_on(run: Path) -> None:
    before = SafeCheckpointIO().load_checkpoint(run / "checkpoints" / "step=2.ckpt")
    shutil.rmtree(run / "model")
    assert go_on(run, 4) == 0
    path = last_checkpoint(run / "checkpoints")
    assert path is not None and path.name == "step=4.ckpt"
    after = SafeCheckpointIO().load_checkpoint(path)
    assert after["callbacks"].keys() == before["callbacks"].keys()
    assert after["callbacks"]["EMA"]["updates"] == 4
    recent = after["callbacks"]["LossGuard"]["recent"]
    assert recent[:2] == before["callbacks"]["LossGuard"]["recent"] and len(recent) == 4
    assert (after["RecordsDataModule"]["consumed"], before["RecordsDataModule"]["consumed"]) == (16, 8)
    assert "class_path: omfa.training.module.OMFAModule" in (run / "config.yaml").read_text()
    OMFAPipeline.from_pretrained(run / "model")


def test_its_lost_model_is_written_again(run: Path) -> None:
    shutil.rmtree(run / "model")
    assert go_on(run, 2) == 0
    one, other = (OMFAPipeline.from_pretrained(f / "model").unet.state_dict() for f in (run, BEFORE / "run"))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_its_checkpoint_is_exported(run: Path, tmp_path: Path) -> None:
    before = yaml.safe_load((run / "config.yaml").read_text())["model"]["class_path"]
    assert before == "omfa.module.OMFAModule"
    assert export.main(["--run", str(run), "--out", str(tmp_path / "out")]) == 0
    one, other = (OMFAPipeline.from_pretrained(f).unet.state_dict() for f in (tmp_path / "out", run / "model"))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_its_records_are_read() -> None:
    records = read_records(BEFORE / "records")
    assert len(records) == 8 and all(r.garments and r.face and r.pose for r in records)
