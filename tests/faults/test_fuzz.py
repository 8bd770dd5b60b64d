"""Mutations of every format that the doors read: what comes of each is a result or a line, in bounded time and memory.

``OMFA_FUZZ=1000`` does fewer of each format than the 10,000 it does otherwise.
"""

from __future__ import annotations

import io
import os
import resource
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from data_prep.data_sets.entries import Missing
from data_prep.data_sets.folder import scan_folder
from data_prep.run import run_stage
from data_prep.shards import packs, write_shard
from omfa import images
from omfa.bodies.parameters import read_npz
from omfa.records.prepared import METADATA, iter_records
from omfa.records.shards import open_records
from omfa.training.configs import load_yaml
from omfa.weights import read_state
from tests.test_images import as_bytes, noise

SECONDS, MEMORY = 5, 2 * 2**30
ROOT = Path(__file__).parents[2]


def picture(data: bytes, folder: Path) -> None:
    (folder / "a").write_bytes(data)
    images.read_image(folder / "a")
    images.fit(images.decode_trusted(data, "a"), (64, 48))


def archive(data: bytes, folder: Path) -> None:
    (folder / "a.npz").write_bytes(data)
    read_npz(folder / "a.npz", 1 << 20, ("points",))


def weights(data: bytes, folder: Path) -> None:
    (folder / "a.safetensors").write_bytes(data)
    read_state(folder / "a.safetensors", ["a", "b"])


def shard(data: bytes, folder: Path) -> None:
    (folder / "a.tar").write_bytes(data)
    source = open_records(folder)
    for record in source.records():
        source.read(record.file_name)


def lines(data: bytes, folder: Path) -> None:
    (folder / METADATA).write_bytes(data)
    list(iter_records(folder))


def table(data: bytes, folder: Path) -> None:
    (folder / "in").mkdir(exist_ok=True)
    (folder / "in" / "pairs.csv").write_bytes(data)
    with Missing(folder / "out") as missing:
        list(scan_folder(folder / "in", missing))


def config(data: bytes, folder: Path) -> None:
    import yaml

    with suppress(yaml.YAMLError):  # jsonargparse says these in a line
        load_yaml(data.decode("utf-8", "replace"))


def npz() -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, points=np.ones((18, 3)), other=np.arange(5))
    return out.getvalue()


def tar(records: Path, folder: Path) -> bytes:
    run_stage("shards", packs(records, 2, 1), partial(write_shard, source=records), folder / "packed")
    return (folder / "packed" / "shard-000000.tar").read_bytes()


CSV = "photo,garment,category,split\na.jpg,b.jpg,upper,train\na.jpg,c.jpg,lower,train\nd/e.jpg,,,test\n"
FORMATS: dict[str, Callable[[bytes, Path], None]] = {
    **dict.fromkeys(("jpeg", "png", "webp"), picture),
    "npz": archive,
    "safetensors": weights,
    "tar": shard,
    "jsonl": lines,
    "csv": table,
    "yaml": config,
}


def seed_of(kind: str, records: Path, folder: Path) -> bytes:
    if kind in ("jpeg", "png", "webp"):
        return as_bytes(Image.fromarray(noise(24, 20)), kind.upper())
    if kind == "safetensors":
        return save({"a": torch.ones(3), "b": torch.zeros(2, 2)})
    if kind == "tar":
        return tar(records, folder)
    if kind == "yaml":
        return (ROOT / "lightning_configs" / "tiny.yaml").read_bytes()
    return {"npz": npz, "jsonl": (records / METADATA).read_bytes, "csv": CSV.encode}[kind]()


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes changed, pieces cut out, doubled, moved or overwritten with numbers at their limits."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 6)):
        at, length = int(rng.integers(len(changed))), int(rng.integers(1, 9))
        way = rng.integers(6)
        if way == 0:
            changed[at] = rng.integers(256)
        elif way == 1:
            changed[at] ^= 1 << rng.integers(8)
        elif way == 2:
            changed[at : at + length] = rng.choice([b"\0", b"\xff", b"\x7f", b"9", b"*", b"&"]) * length
        elif way == 3 and len(changed) > 40:
            del changed[at : at + length]
        elif way == 4:
            other = int(rng.integers(len(changed)))
            changed[at:at] = changed[other : other + 4 * length]
        else:
            changed[at : at + 4] = int(rng.integers(2**32)).to_bytes(4, "big")
    if rng.random() < 0.1:
        del changed[int(rng.integers(1, len(changed))) :]
    return bytes(changed)


def too_long(number: int, frame: object) -> None:
    raise AssertionError(f"over {SECONDS} s")


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
def test_mutations_end_in_a_result_or_a_line(kind: str, records: Path, tmp_path: Path) -> None:
    rng, count = np.random.default_rng(list(kind.encode())), int(os.environ.get("OMFA_FUZZ", "10000"))
    data, longest, read = seed_of(kind, records, tmp_path), 0.0, 0
    (tmp_path / "w").mkdir()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    old = signal.signal(signal.SIGALRM, too_long)
    try:
        for i in range(count):
            start, changed = time.perf_counter(), mutated(data, rng)
            signal.alarm(SECONDS)
            try:
                FORMATS[kind](changed, tmp_path / "w")
                read += 1
            except ValueError as e:
                assert kind in ("csv", "yaml") or "\n" not in str(e), (i, str(e))
            finally:
                signal.alarm(0)
            longest = max(longest, time.perf_counter() - start)
    finally:
        signal.signal(signal.SIGALRM, old)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(f"{kind}: {count} mutations, {read} read, longest {longest:.2f} s, memory grown by {grown / 2**20:.0f} MiB")
    assert grown < MEMORY
