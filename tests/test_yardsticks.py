"""What stands beside a model's numbers is what its name says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from omfa import yardsticks
from omfa.components import Category
from omfa.images import read_trusted, tensor_to_pixels
from omfa.prepared import read_records
from omfa.shards import RecordFolder
from tests.conftest import SIZE, make_compact


@pytest.fixture(scope="module")
def memory(records: Path) -> yardsticks.Memory:
    return yardsticks.Memory(RecordFolder(records), read_records(records))


def test_the_nearest_record_to_one_of_the_memory_is_itself(records: Path, memory: yardsticks.Memory) -> None:
    for record in read_records(records):
        for category in (None, *(g.category for g in record.garments)):
            assert memory.nearest(RecordFolder(records), record, category).id == record.id


def test_what_is_asked_for_is_never_given(records: Path) -> None:
    for record in read_records(records):
        for category in (None, *(g.category for g in record.garments)):
            names = yardsticks.given(record, category)
            assert yardsticks.wanted(category) not in names and "pose_params" not in names
    assert "pose_map" in yardsticks.given(record, None) and yardsticks.given(record, Category.UPPER) == ["person"]


def test_the_mean_is_the_mean(records: Path, memory: yardsticks.Memory) -> None:
    people = torch.stack([read_trusted(records / r.file_name) for r in read_records(records)])
    wanted = tensor_to_pixels(people.mean(0))
    assert np.abs(np.asarray(memory.mean(None, SIZE)).astype(int) - wanted).max() <= 1


def test_one_call_one_table(records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_compact().save_pretrained(tmp_path / "model")
    words = ["--records", str(records), "--train", str(records), "--out", str(tmp_path / "out")]
    words += ["--model", str(tmp_path / "model"), "--steps", "1"]
    assert yardsticks.main(words) == 0
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    models = ["omfa", "ceiling", "nearest", "mean"]
    assert [line[0] for line in lines] == ["try_off", *models, "try_on", *models, "wrong pose", "pose map"]
    assert all(len(line) == len(lines[0]) for line in lines[:5]) and lines[3][1].startswith("100")  # known by heart
