"""Texts as editors, Excel and other systems save them, and configs that unfold."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from data_prep.data_sets.entries import Missing, listed_name, pair_list
from data_prep.data_sets.folder import scan_folder
from data_prep.poses.parameter_files import read_parameters
from omfa.bodies.parameters import read_npz
from omfa.evaluation.pairs import donors_from_file
from omfa.files import read_text
from omfa.records.keypoints import read_keypoints
from omfa.records.prepared import METADATA, RecordError, iter_records, read_records
from omfa.training.configs import load_yaml, refuse_bombs
from omfa.training.rates import Rates
from omfa.training.streaming import StreamDataModule

MARKED = {
    "plain": lambda text: text.encode(),
    "UTF-8 with a mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "UTF-16": lambda text: text.encode("utf-16"),
    "UTF-16 big-endian": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
}


@pytest.mark.parametrize("how", MARKED)
def test_pair_lists_of_every_editor_say_the_same(records: Path, tmp_path: Path, how: str) -> None:
    every = read_records(records)
    one, two = every[0].id, every[1].id
    path = tmp_path / "pairs.txt"
    path.write_bytes(MARKED[how](f"{one} {two}\n{two} {one}\n"))
    assert donors_from_file(path, every)[0] == {one: two, two: one}
    assert pair_list(tmp_path, "pairs.txt") == [[one, two], [two, one]]


@pytest.mark.parametrize("how", ["UTF-8 with a mark", "CRLF"])
def test_records_with_a_byte_order_mark_are_read(records: Path, tmp_path: Path, how: str) -> None:
    (tmp_path / METADATA).write_bytes(MARKED[how]((records / METADATA).read_text()))
    assert [r.id for r in iter_records(tmp_path)] == [r.id for r in iter_records(records)]


def test_a_line_without_an_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / METADATA).write_bytes(b"{" * 1_500_000)
    with pytest.raises(RecordError, match=":1: over"):
        list(iter_records(tmp_path))


@pytest.mark.parametrize("how", MARKED)
def test_a_list_of_pairs_as_a_table(tmp_path: Path, how: str) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "pairs.csv").write_bytes(MARKED[how]("photo,split\na.jpg,test\n"))
    with Missing(tmp_path / "out") as missing:
        ((_, entry),) = scan_folder(tmp_path, missing)
    assert entry.split == "test"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("photo,caption\na.jpg,été\n".encode("cp1252"), r"pairs\.csv, line 2: no UTF-8.*UTF-8"),
        (b"photo;caption\na.jpg;x\n", "no column 'photo'"),
        (b"photo,caption\na.jpg,a,b\n", "line 2: more fields"),
        (b'photo,caption\na.jpg,"' + b"x" * 200_000 + b'"\n', "no CSV"),
        (b"photo,photographer\na.jpg,x\n", "photographer"),
        (b"", "no column 'photo'"),
        (b"\n\n", "no column 'photo'"),
        (b"Photo\na.jpg\n", "no column 'photo'"),
        (b"photo\tcaption\na.jpg\tx\n", "no column 'photo'"),
        (b"a.jpg,b.jpg\n", "no column 'photo'"),
        (b"photo,photo\na.jpg,b.jpg\n", "two columns"),
        (b"photo,caption\r\n" + "a.jpg,naïve\r\n".encode("latin-1"), "line 2: no UTF-8"),
        (b"photo\n" + bytes(range(128, 256)), "no UTF-8"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "no UTF-8"),
        (b"PK\x03\x04\xff" + bytes(40), "no UTF-8"),
        (b"photo\n" + "a.jpg".encode("utf-32"), "no UTF-8"),
    ],
)
def test_tables_that_cannot_be_read_are_named(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "pairs.csv").write_bytes(data)
    with Missing(tmp_path / "out") as missing, pytest.raises(ValueError, match=words):
        list(scan_folder(tmp_path, missing))


def test_texts_are_regular_files_of_bounded_size(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe: is no regular file"):
        read_text(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"x" * 2_000_001)
    with pytest.raises(ValueError, match="large: over 2 MB"):
        read_text(tmp_path / "large", limit=2_000_000)
    for data in (b"\xff\xfe\x41", b"ab\xff", b"\xef\xbb\xbf\xff", b"\xed\xa0\x80"):
        (tmp_path / "bad").write_bytes(data)
        with pytest.raises(ValueError, match="bad, line 1: no UTF-8"):
            read_text(tmp_path / "bad")


def test_names_are_one_in_either_unicode_and_any_case() -> None:
    assert listed_name("cafe\u0301.JPG") == listed_name("caf\u00e9.jpg") == listed_name("caf\u00e9")
    assert listed_name("048462_0.JpEg", "_0") == "048462"


def claiming(path: Path, shape: str, held: int = 80) -> Path:
    """An archive whose one array claims a shape and holds some bytes."""
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "points.npy", b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + header.encode() + bytes(held)
        )
    return path


CLAIMS = ["(1000000000000000,)", "(10**9, 10**9)", "(18, 3)", "(-5,)", "(2**70,)", "()" * 2, "(1.5,)", "None", "'x'"]
CLAIMS += ["[18, 3]", "(True,)", "(18, 3", "(2**31,)", "(2**63,)", "(0, 10**18)", "(1,) * 40", "__import__('os')"]
CLAIMS += ["(18, -3)", "", "(nan,)"]


@pytest.mark.parametrize("shape", CLAIMS)
def test_arrays_that_claim_more_than_they_hold(tmp_path: Path, shape: str) -> None:
    path = claiming(tmp_path / "a.npz", shape)
    with pytest.raises(ValueError, match=r"a\.npz"):
        read_npz(path, 1 << 20, ("points",))
    with pytest.raises(RecordError, match=r"a\.npz"):
        read_keypoints(path, "openpose-18")


def test_nobody_in_a_photo_is_said_so(tmp_path: Path) -> None:
    names = {"global_orient": (0, 1, 3, 3), "body_pose": (0, 23, 3, 3), "pred_cam_t_full": (0, 3)}
    np.savez(tmp_path / "a.npz", **{k: np.zeros(s) for k, s in names.items()})
    with pytest.raises(ValueError, match=r"a\.npz: global_orient is empty: nobody"):
        read_parameters(tmp_path / "a.npz", "4d-humans", (64, 48))


def bomb(depth: int, width: int = 10) -> str:
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, depth)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("text", [bomb(9), bomb(30, 2), "a: &a [*a]", "a: &a {b: *a}", "[" * 500 + "]" * 500])
def test_configs_that_unfold_without_end_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="stands for more than"):
        refuse_bombs(text, "x.yaml")


def test_aliases_in_moderation_are_fine() -> None:
    assert load_yaml("a: &x {b: 1}\nc: [*x, *x]\nd: &s text\ne: *s") == {
        "a": {"b": 1},
        "c": [{"b": 1}, {"b": 1}],
        "d": "text",
        "e": "text",
    }


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), 0.0, -1.0, 1e9])
def test_rates_are_bounded(rate: float) -> None:
    with pytest.raises(ValueError, match="learning_rate"):
        Rates(rate)
    with pytest.raises(ValueError, match="weight_decay"):
        Rates(1e-3, weight_decay=float("nan"))


@pytest.mark.parametrize("batch", [0, -1, 10**9])
def test_batches_are_bounded(batch: int) -> None:
    with pytest.raises(ValueError, match="batch_size"):
        StreamDataModule(batch, 0, 0)


def test_json_of_lone_surrogates_is_read_back(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    text = json.dumps({"source": name}, ensure_ascii=False).encode("utf-8", "backslashreplace")
    assert json.loads(text.decode("utf-8"))["source"] == name
