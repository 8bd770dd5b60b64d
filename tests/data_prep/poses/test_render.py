"""The stage that renders pose maps: from records, from parameter files, whoever does the work."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("data_prep.run")

from data_prep.__main__ import main
from data_prep.check import validate
from omfa.bodies.body import load_body
from omfa.bodies.named_poses import NAMED_POSES
from omfa.bodies.parameters import BodyParameters
from omfa.bodies.placing import place
from omfa.bodies.pose_render import render_pose_map
from omfa.records.prepared import PoseRef, Record, read_records
from tests.records.writing import write_records


@pytest.fixture(scope="module")
def params() -> dict[str, BodyParameters]:
    body = load_body()
    return {n: place(body, NAMED_POSES[n], image_size=(96, 72)) for n in ("standing", "walking", "sitting")}


def test_parameter_files_become_pictures(params, tmp_path):
    for name, p in params.items():
        p.save(tmp_path / "in" / f"{name}.npz")
    (tmp_path / "in" / "broken.npz").write_bytes(b"no")
    assert main(["render", "--params", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 1
    for name, p in params.items():
        picture = np.asarray(Image.open(tmp_path / "out" / "pose" / f"{name}.png"))
        assert np.array_equal(picture, render_pose_map(load_body(), p, engine="torch"))
    failures = [json.loads(line) for line in (tmp_path / "out" / "failures.jsonl").read_text().splitlines()]
    assert [f["id"] for f in failures] == ["broken"] and "broken.npz" in failures[0]["reason"]


def test_records_get_new_maps(params, tmp_path):
    source = tmp_path / "in"
    (source / "person").mkdir(parents=True)
    records = []
    for name, p in params.items():
        Image.new("RGB", (72, 96)).save(source / "person" / f"{name}.png")
        p.save(source / "params" / f"{name}.npz")
        pose = PoseRef(None, f"params/{name}.npz")
        records.append(Record(name, "train", "p1", "o1", f"person/{name}.png", pose=pose))
    records.append(replace(records[0], id="unknown", pose=None))
    write_records(source, records)
    out = tmp_path / "out"
    assert main(["render", "--records", str(source), "--out", str(out), "--style", "normals"]) == 1
    assert validate(out) == []
    assert [r.id for r in read_records(out)] == list(params)
    assert all(r.pose is not None and (out / str(r.pose.map)).is_file() for r in read_records(out))


def test_wrong_calls_exit_with_two(tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(["render", "--params", str(empty), "--out", str(tmp_path / "out")]) == 2
    assert "no .npz" in capsys.readouterr().err
    (tmp_path / "x.npz").write_bytes(b"x")
    wrong = ["render", "--params", str(empty), "--out", str(tmp_path / "o2"), "--body", str(tmp_path / "x.npz")]
    assert main(wrong) == 2
    assert "smpl-x.is.tue.mpg.de" in capsys.readouterr().err
    for arguments in (["--out", "o"], ["--params", str(empty), "--records", str(empty), "--out", "o"]):
        with pytest.raises(SystemExit) as stopped:
            main(["render", *arguments])
        assert stopped.value.code == 2
    assert not Path("o").exists()
