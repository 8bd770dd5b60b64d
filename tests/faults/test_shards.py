"""Shards that were cut, damaged or forged: every record, or a refusal."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.run import run_stage
from data_prep.shards import packs, write_shard
from omfa.records.prepared import METADATA, RecordError, read_records
from omfa.records.shards import BLOCK, open_records


def pack(records: Path, out: Path) -> Path:
    from functools import partial

    run_stage("shards", packs(records, 5), partial(write_shard, source=records), out)
    return out


def headers(path: Path) -> list[int]:
    with tarfile.open(path) as tar:
        return [info.offset for info in tar]


def damaged(at: int, value: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[headers(path)[len(headers(path)) // 2] + at] ^= value
        path.write_bytes(data)

    return change


def cut(path: Path, where: int) -> None:
    os.truncate(path, where)


def closed_early(path: Path) -> None:
    """Cut between two records, and an end put behind it: a tar file like any other."""
    with tarfile.open(path) as tar:
        at = [i.offset for i in tar if i.name.endswith(".json") and i.name.count(".") == 1][-1]
    cut(path, at)
    with path.open("ab") as file:
        file.write(bytes(2 * BLOCK))


def huge(path: Path) -> None:
    """A header that claims 8 GB."""
    data, at = bytearray(path.read_bytes()), headers(path)[3]
    info = tarfile.TarInfo.frombuf(bytes(data[at : at + BLOCK]), "utf-8", "strict")
    info.size = 8 * 2**30
    data[at : at + BLOCK] = info.tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(data)


def zeroed(path: Path) -> None:
    data, at = bytearray(path.read_bytes()), headers(path)[4]
    data[at : at + BLOCK] = bytes(BLOCK)
    path.write_bytes(data)


WRONG: dict[str, Callable[[Path], None]] = {
    "cut at a member": lambda p: cut(p, headers(p)[6]),
    "cut at the last member": lambda p: cut(p, headers(p)[-1]),
    "cut in a header": lambda p: cut(p, headers(p)[5] + 100),
    "cut in a member": lambda p: cut(p, headers(p)[5] + BLOCK + 10),
    "without its end": lambda p: cut(p, headers(p)[-1] + 2 * BLOCK),
    "checksum": damaged(150, 1),
    "name": damaged(0, 32),
    "size": damaged(126, 4),
    "kind": damaged(156, 2),
    "magic": damaged(257, 255),
    "a header of zeros": zeroed,
    "closed early": closed_early,
    "8 GB": huge,
    "gone": lambda p: p.unlink(),
    "empty": lambda p: cut(p, 0),
    "something else": lambda p: p.write_bytes(b"\xff" * 3000) and None,
}


@pytest.mark.parametrize("wrong", WRONG)
def test_nothing_is_lost_in_silence(records: Path, tmp_path: Path, wrong: str) -> None:
    folder = pack(records, tmp_path / "shards")
    ids = [r.id for r in read_records(records)]
    assert [r.id for r in open_records(folder).records()] == ids
    WRONG[wrong](folder / "shard-000000.tar")
    with pytest.raises(RecordError, match="shard-000000"):
        open_records(folder)


def test_without_a_list_the_end_is_still_demanded(records: Path, tmp_path: Path) -> None:
    folder = pack(records, tmp_path / "shards")
    (folder / METADATA).unlink()
    (folder / "shard-000001.tar").rename(folder / "shard-000001.TAR")
    assert len(open_records(folder).records()) == 8
    cut(folder / "shard-000000.tar", headers(folder / "shard-000000.tar")[6])
    with pytest.raises(RecordError, match="cut short behind"):
        open_records(folder)


def test_a_pipe_is_no_shard(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(RecordError, match="no regular file"):
        open_records(tmp_path)
