"""Predict: pictures of any system for any records; what fails is named, and nothing of two calls is mixed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from omfa import evaluate, predict
from omfa.evaluation.pairs import donors_from_file
from omfa.evaluation.predictions import Batch, Input, weights_state
from omfa.records.prepared import GarmentRef, Record, read_records
from tests.records.writing import write_records


class Echo:
    """A model that draws its seed: what a prediction depends on can then be read off it."""

    try_on_needs = frozenset({Input.GARMENTS, Input.POSE_MAP})
    try_on_takes = frozenset({Input.FACE})
    try_off_needs = frozenset({Input.PHOTO})
    try_off_takes: frozenset[Input] = frozenset()

    @staticmethod
    def _draw(batch: Batch) -> list[Image.Image]:
        values = [torch.randint(0, 256, (64, 48, 3), generator=g, dtype=torch.uint8) for g in batch.generators]
        return [Image.fromarray(v.numpy()) for v in values]

    def try_off(self, batch: Batch) -> list[Image.Image]:
        assert len(batch.photos) == len(batch.generators) and batch.steps == 3 and not batch.garments
        return self._draw(batch)

    def try_on(self, batch: Batch) -> list[Image.Image]:
        assert not batch.photos and all(len(g) == len(batch.pose_maps) for g in batch.garments.values())
        assert len(batch.faces) == len(batch.pose_maps) == len(batch.keys)
        return self._draw(batch)


def predicted(records: Path, out: Path, *more: str) -> int:
    call = ["--records", str(records), "--out", str(out), "--class-path", "tests.test_predict.Echo", "--steps", "3"]
    return predict.main([*call, *more])


@pytest.mark.parametrize("task", ["try_off", "try_on"])
def test_predictions_depend_on_seed_and_name_alone(records: Path, tmp_path: Path, task: str) -> None:
    assert predicted(records, tmp_path / "a", "--task", task) == 0
    several = ["--processes", "2"] if task == "try_off" else []
    assert predicted(records, tmp_path / "b", "--task", task, "--batch", "3", *several) == 0
    assert predicted(records, tmp_path / "c", "--task", task, "--seed", "1") == 0
    names = sorted(p.name for p in (tmp_path / "a").glob("*.png"))
    assert names == sorted(p.name for p in (tmp_path / "b").glob("*.png"))
    assert len(names) == (14 if task == "try_off" else 8)
    a, b, c = ([(tmp_path / k / n).read_bytes() for n in names] for k in "abc")
    assert a == b and not set(a) & set(c) and len(set(a)) == len(a)
    told = json.loads((tmp_path / "b" / "predictions.json").read_text())
    assert told["task"] == task and told["steps"] == 3 and told["seconds"]["n"] == len(names)


def test_predict_goes_on_and_refuses_to_mix(records: Path, tmp_path: Path, capsys) -> None:
    assert predicted(records, tmp_path, "--task", "try_off", "--limit", "5") == 0
    kept = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.png")}
    assert predicted(records, tmp_path, "--task", "try_off") == 0
    assert all(p.stat().st_mtime_ns == t for p, t in kept.items()) and len(list(tmp_path.glob("*.png"))) == 14
    assert predicted(records, tmp_path, "--task", "try_off", "--seed", "5") == 2
    assert "another seed" in capsys.readouterr().err


def test_garments_of_one_category_alone(records: Path, tmp_path: Path, capsys) -> None:
    """Predicted, remembered in predictions.json, and scored; try-on has no such choice."""
    out = tmp_path / "made"
    assert predicted(records, out, "--task", "try_off", "--category", "lower", "dress", "--limit", "3") == 0
    names = sorted(p.name for p in out.glob("*.png"))
    assert len(names) == 3 and all(n.endswith((".lower.png", ".dress.png")) for n in names)
    call = ["run", "--records", str(records), "--predictions", str(out), "--out", str(tmp_path / "scores")]
    assert sorted(f"{i.key}.png" for i in evaluate.prepare(evaluate.parser().parse_args(call)).items) == names
    assert predicted(records, tmp_path / "on", "--task", "try_on", "--category", "upper") == 2
    assert "--category is for try_off" in capsys.readouterr().err


def test_pairs_from_a_file(records: Path, tmp_path: Path, capsys) -> None:
    ids = [r.id for r in read_records(records)]
    pairs = tmp_path / "pairs.txt"
    pairs.write_text(f"{ids[0]}.jpg {ids[5]}.jpg\n\n{ids[1]} {ids[6]}\n")
    assert predicted(records, tmp_path / "made", "--task", "try_on", "--pairs", str(pairs)) == 0
    assert sorted(p.stem for p in (tmp_path / "made").glob("*.png")) == sorted(ids[:2])
    assert "pairs name no record" not in capsys.readouterr().err
    pairs.write_text(f"{ids[0]} {ids[5]}\n{ids[0]} {ids[6]}\n")
    assert predicted(records, tmp_path / "twice", "--task", "try_on", "--pairs", str(pairs)) == 2
    assert "pairs.txt:2" in (err := capsys.readouterr().err) and "listed twice" in err
    pairs.write_text("nobody someone\n")
    assert predicted(records, tmp_path / "other", "--task", "try_on", "--pairs", str(pairs)) == 2
    assert "pairs.txt:1" in capsys.readouterr().err


def test_records_without_garments_are_told(records: Path, tmp_path: Path, capsys) -> None:
    """Paired they have nothing to make; unpaired they wear another's, if their outfit is known from other pictures."""
    copy = shutil.copytree(records, tmp_path / "records")
    first, *others = read_records(copy)
    write_records(copy, [replace(first, garments=(), portrait=None), *others])
    for number, (call, told) in enumerate(
        {("try_on",): True, ("try_off",): True, ("try_on", "--pairs", "unpaired"): False}.items()
    ):
        out = tmp_path / str(number)
        assert predicted(copy, out, "--task", *call) == 0
        assert (
            f"1 records name no garments and are left out; the first: {first.id}" in capsys.readouterr().err
        ) is told
        assert any(p.stem.split(".")[0] == first.id for p in out.glob("*.png")) is not told


def test_pairs_of_data_sets_are_found_by_their_file_names(tmp_path: Path) -> None:
    def record(item_id: str, stage: str, source: str) -> Record:
        worn = (GarmentRef("upper", f"garment/{item_id}.jpg"),)
        told = {"stage": stage, "source": source}
        return Record(item_id, "test", item_id, item_id, f"person/{item_id}.jpg", None, worn, provenance=told)

    vitonhd = [record(f"test-{n}", "vitonhd", f"test/image/{n}.jpg") for n in ("00055_00", "00069_00")]
    dresscode = [record(f"upper_body-{n}", "dresscode", f"upper_body/images/{n}_0.jpg") for n in ("048462", "049951")]
    pairs = tmp_path / "pairs.txt"
    pairs.write_text("00055_00.jpg 00069_00.jpg\n00069_00.jpg 00069_00.jpg\n00001_00.jpg 00055_00.jpg\n")
    found, absent = donors_from_file(pairs, vitonhd)
    assert found == {"test-00055_00": "test-00069_00", "test-00069_00": "test-00069_00"}
    assert len(absent) == 1 and "pairs.txt:3" in absent[0]
    pairs.write_text("048462_0.jpg 049951_1.jpg\n049951_0.jpg 048462_1.jpg 0\n")
    found, absent = donors_from_file(pairs, dresscode)
    assert found == {"upper_body-048462": "upper_body-049951", "upper_body-049951": "upper_body-048462"} and not absent
    double = record("train-00055_00", "vitonhd", "train/image/00055_00.jpg")
    pairs.write_text("00055_00.jpg 00069_00.jpg\n")
    with pytest.raises(ValueError, match=r"pairs.txt:1: .*test-00055_00, train-00055_00; give ids"):
        donors_from_file(pairs, [*vitonhd, double])


class Moody(Echo):
    """A foreign model that raises what nobody foresaw, and hands back too little."""

    def try_off(self, batch: Batch) -> list[Image.Image]:
        if batch.category == "dress":
            raise KeyError("sleeve")
        return [None] if batch.category == "lower" else self._draw(batch)  # type: ignore[list-item]


def test_whatever_a_foreign_model_raises_is_a_named_failure(records: Path, tmp_path: Path, capsys) -> None:
    call = ["--records", str(records), "--out", str(tmp_path), "--class-path", "tests.test_predict.Moody"]
    assert predict.main([*call, "--task", "try_off"]) == 1
    err = capsys.readouterr().err
    dresses = [r.id for r in read_records(records) if r.garments[0].category == "dress"]
    assert dresses and all(f"{i}.dress: KeyError: 'sleeve'" in err for i in dresses) and ".lower: AttributeError" in err
    assert {p.stem.rsplit(".")[-1] for p in tmp_path.glob("*.png")} == {"upper"}


class Picky(Echo):
    """A foreign model that can't read one picture."""

    def try_off(self, batch: Batch) -> list[Image.Image]:
        if any(p.read_bytes() == b"no picture" for p in batch.photos):
            raise ValueError("damaged")
        return super().try_off(batch)


def test_a_bad_record_spoils_no_other_of_its_batch(records: Path, tmp_path: Path, capsys) -> None:
    copy = shutil.copytree(records, tmp_path / "records")
    bad = read_records(copy)[1]
    (copy / bad.file_name).write_bytes(b"no picture")
    call = ["--records", str(copy), "--out", str(tmp_path / "out"), "--class-path", "tests.test_predict.Picky"]
    assert predict.main([*call, "--task", "try_off", "--steps", "3", "--batch", "4"]) == 1
    keys = [f"{bad.id}.{g.category}" for g in bad.garments]
    assert sorted(capsys.readouterr().err.splitlines()) == sorted(f"failed: {key}: damaged" for key in keys)
    assert len(list((tmp_path / "out").glob("*.png"))) == 14 - len(keys)


def test_predictions_of_changed_weights_or_records_are_refused(records: Path, tmp_path: Path, capsys) -> None:
    weights, copy = tmp_path / "weights", shutil.copytree(records, tmp_path / "records")
    weights.mkdir()
    (weights / "a.bin").write_bytes(b"1")
    echo = "tests.test_predict.Echo"
    assert weights_state(echo, "owner/name") == "owner/name" and weights_state(echo, None) is None
    before = weights_state(echo, str(weights))
    (weights / "a.bin").write_bytes(b"12")
    assert before != weights_state(echo, str(weights))
    assert predicted(copy, tmp_path / "made", "--task", "try_off") == 0
    told = tmp_path / "made" / "predictions.json"
    kept = told.read_text()
    told.write_text(json.dumps(json.loads(kept) | {"weights_state": before}))
    assert predicted(copy, tmp_path / "made", "--task", "try_off") == 2
    assert "state of the model's files: give another --out" in capsys.readouterr().err
    told.write_text(kept)
    write_records(copy, read_records(copy)[1:])
    assert predicted(copy, tmp_path / "made", "--task", "try_off") == 2
    assert "metadata.jsonl: give another --out" in capsys.readouterr().err
    told.write_text(kept[:50])
    assert predicted(copy, tmp_path / "made", "--task", "try_off") == 2
    assert "predictions.json is not JSON" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--class-path", "os.path"], "--class-path 'os.path' is no class"),
        (["--class-path", "omfa.pipeline.OMFAPipeline"], "OMFAPipeline is no TryOffModel of"),
        (["--device", "cuda"], "--device cuda: there is none here"),
        (["--task", "try_on", "--pairs", "{pairs}"], "pairs.txt, line 1: no UTF-8 text"),
    ],
)
def test_predict_refuses_at_the_door(records: Path, tmp_path: Path, capsys, more: list[str], words: str) -> None:
    if "cuda" in more and torch.cuda.is_available():
        more, words = ["--device", "mps"], "--device mps: there is none here"
    (tmp_path / "pairs.txt").write_bytes(b"\xff\xfe a\n")
    more = [word.format(pairs=tmp_path / "pairs.txt") for word in more]
    assert predicted(records, tmp_path / "out", "--task", "try_off", *more) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1 and not (tmp_path / "out").exists()
