"""What stands beside a model's numbers is what its name says."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from omfa import yardsticks
from omfa.components import Category
from omfa.images import read_trusted, tensor_to_pixels
from omfa.records.prepared import read_records
from omfa.records.shards import RecordFolder
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
    words += ["--model", str(tmp_path / "model"), "--steps", "1", "--protocol", "records"]
    assert yardsticks.main(words) == 0
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    models = ["omfa", "ceiling", "nearest", "mean"]
    assert [line[0] for line in lines] == ["try_off", *models, "try_on", *models, "wrong pose", "pose map"]
    assert all(len(line) == len(lines[0]) for line in lines[:5]) and lines[3][1].startswith("100")  # known by heart
    assert yardsticks.main([*words, "--limit", "3"]) == 2  # another memory
    said = capsys.readouterr()
    assert "another train, split or limit: give another --out" in said.err and not said.out


@pytest.mark.parametrize(
    ("more", "words"),
    [(["--split", "nosuch"], "holds no records of split 'nosuch'"), (["--protocol", "no"], "protocol")],
)
def test_wrong_calls_write_nothing(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    call = ["--records", str(records), "--train", str(records), "--out", str(tmp_path / "out"), *more]
    assert yardsticks.main(call) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_bad_record_is_named_and_the_others_are_judged(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_compact().save_pretrained(tmp_path / "model")
    held_out = Path(shutil.copytree(records, tmp_path / "held_out"))
    bad = read_records(held_out)[0]
    (held_out / bad.file_name).write_bytes(b"no picture")
    words = ["--records", str(held_out), "--train", str(records), "--out", str(tmp_path / "out"), "--tasks", "try_off"]
    words += ["--model", str(tmp_path / "model"), "--steps", "1", "--protocol", "records"]
    assert yardsticks.main(words) == 1
    said = capsys.readouterr()
    keys = [f"{bad.id}.{g.category}" for g in bad.garments]
    assert [line.split(": ")[1] for line in said.err.splitlines()] == keys and str(held_out) in said.err
    assert [line.split(" | ")[0] for line in said.out.splitlines() if line.startswith("| ")][1:] == [
        *("| omfa", "| ceiling", "| nearest", "| mean")
    ]
