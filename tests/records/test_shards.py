"""Shards: the same records and bytes as the folder, in the same order, and nothing hostile gets in or out."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.__main__ import main
from data_prep.run import write_image
from omfa.components import Category
from omfa.pipeline import OMFAPipeline
from omfa.records.prepared import FaceRef, GarmentRef, Maps, PoseRef, Record, RecordError, read_records, record_files
from omfa.records.shards import Shards, open_records
from omfa.training.examples import ExampleOptions, Geometry, RecordsDataModule, RecordsDataset, collate
from tests.ranks import run
from tests.records.writing import write_records

ROOT = Path(__file__).parents[2]


def folder(root: Path, n: int = 5) -> Path:
    made = []
    for k in range(n):
        rng = np.random.default_rng(k)
        for name in (f"person/p.{k}.png", f"face/{k}.jpg", f"pose/{k}.png", f"garment/{k // 2}.png"):
            write_image(root / name, rng.integers(0, 255, (32, 24, 3), np.uint8))
        garment = GarmentRef(Category.UPPER, f"garment/{k // 2}.png")
        made.append(
            Record(
                f"p.{k}",
                "train" if k else "test",
                "ann",
                f"o{k}",
                f"person/p.{k}.png",
                face=FaceRef(f"face/{k}.jpg"),
                garments=(garment,),
                pose=PoseRef(map=f"pose/{k}.png"),
            )
        )
    write_records(root, made)
    return root


def pack(root: Path, out: Path, *more: str) -> int:
    return main(["shards", "--records", str(root), "--out", str(out), "--per-shard", "2", *more])


def test_shards_hold_what_the_folder_holds(tmp_path: Path) -> None:
    root = folder(tmp_path / "in")
    assert pack(root, tmp_path / "out") == 0
    assert [p.name for p in sorted((tmp_path / "out").glob("*.tar"))] == [f"shard-00000{n}.tar" for n in range(3)]
    source = open_records(tmp_path / "out")
    for one, other in zip(read_records(root), source.records(), strict=True):
        assert (one.id, one.split, one.outfit_id, one.caption) == (
            other.id,
            other.split,
            other.outfit_id,
            other.caption,
        )
        for role, path in record_files(one).items():
            assert (root / path).read_bytes() == source.read(record_files(other)[role])
    assert [r.id for r in source.records("test")] == ["p.0"]
    assert open_records(root).records() == read_records(root)


def test_shards_are_webdatasets(tmp_path: Path) -> None:
    """A key ends at the first dot; the members of a record follow one another."""
    pack(folder(tmp_path / "in"), tmp_path / "out")
    with tarfile.open(tmp_path / "out/shard-000000.tar") as tar:
        names = tar.getnames()
        keys = [name.split(".", 1)[0] for name in names]
        assert keys == ["p%2E0"] * 5 + ["p%2E1"] * 5
        assert [n.split(".", 1)[1] for n in names[:5]] == [
            "json",
            "person.png",
            "face.jpg",
            "pose_map.png",
            "upper.png",
        ]
        tar.extractall(tmp_path / "flat", filter="data")
    lines = [(tmp_path / "flat" / n).read_text() for n in names if n.endswith(".json")]
    assert all(
        (tmp_path / "flat" / f).is_file() for line in lines for f in record_files(Record.from_json(line)).values()
    )


def test_masks_and_part_maps_come_along(tmp_path: Path) -> None:
    record = read_records(folder(tmp_path / "in", 1))[0]
    worn = tuple(dataclasses.replace(g, mask="masks/b.png") for g in record.garments)
    maps = Maps("parts/a.png", "masks/a.png", "masks/c.png")
    for n, path in enumerate(["parts/a.png", "masks/a.png", "masks/b.png", "masks/c.png"]):
        write_image(tmp_path / "in" / path, np.full((32, 24), n, np.uint8))
    record = dataclasses.replace(record, garments=worn, maps=maps)
    write_records(tmp_path / "in", [record])
    assert pack(tmp_path / "in", tmp_path / "out") == 0
    source = open_records(tmp_path / "out")
    packed, files = record_files(source.records()[0]), record_files(record)
    assert set(packed) == set(files) >= {"parts", "labels", "limbs", "upper_mask"}
    for role, path in files.items():
        assert source.read(packed[role]) == (tmp_path / "in" / path).read_bytes()


def test_same_bytes_again(tmp_path: Path) -> None:
    root = folder(tmp_path / "in")
    pack(root, tmp_path / "one")
    pack(root, tmp_path / "two", "--workers", "2")
    for path in (tmp_path / "one").glob("[!.]*"):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_training_reads_both_alike(records: Path, compact: OMFAPipeline, tmp_path: Path) -> None:
    assert pack(records, tmp_path / "out") == 0
    batches = []
    for where in (records, tmp_path / "out"):
        data = RecordsDataset(where, Geometry(compact.canvas, 4, 4), ExampleOptions(jitter=0.05))
        batches.append(collate([data[epoch, k] for epoch in range(3) for k in range(len(data))]))
    a, b = batches
    assert a.id == b.id and a.layout == b.layout
    assert all(torch.equal(a.pixels[slot], b.pixels[slot]) for slot in a.pixels) and torch.equal(a.pose, b.pose)


def many_shards(folder: Path) -> None:
    """1,000 records in four shards."""
    buffer = io.BytesIO()
    Image.new("RGB", (12, 16), "white").save(buffer, "PNG")
    for k in range(4):
        members: list[tuple[str, bytes | str]] = []
        for n in range(250 * k, 250 * k + 250):
            garment = GarmentRef(Category.UPPER, f"{n}.upper.png")
            record = Record(f"{n}", "train", "p", f"o{n}", f"{n}.person.png", garments=(garment,))
            members.append((f"{n}.json", record.to_json().encode()))
            members += [(f"{n}.person.png", buffer.getvalue()), (f"{n}.upper.png", buffer.getvalue())]
        shard(folder / f"{k}.tar", *members)


def test_two_processes_of_two_workers_see_each_record_once_per_epoch(compact: OMFAPipeline, tmp_path: Path) -> None:
    """1,000 records, 3 epochs, through the real loaders; resumed in mid-epoch, none is repeated and none skipped."""
    many_shards(tmp_path)

    def loaders(position: dict[str, int] | None) -> tuple[list[RecordsDataModule], list[Iterator[Any]]]:
        modules = [RecordsDataModule(str(tmp_path), batch_size=6, workers=2) for _ in range(2)]
        for rank, module in enumerate(modules):
            if position is not None:
                module.load_state_dict(position)
            place = {"global_rank": rank, "world_size": 2, "global_step": 0, "accumulate_grad_batches": 1}
            module.trainer = SimpleNamespace(**place, lightning_module=SimpleNamespace(pipe=compact))  # type: ignore[assignment]
        return modules, [iter(m.train_dataloader()) for m in modules]

    def take(modules: list[RecordsDataModule], streams: list[Iterator[Any]], steps: int) -> list[str]:
        ids = []
        for _ in range(steps):
            ids += [i for stream in streams for i in next(stream).id]
            for module in modules:
                module.trainer.global_step += 1  # type: ignore[union-attr,misc]
        return ids

    first = loaders(None)
    seen = take(*first, 130)  # 1,560 records: in the middle of the second epoch; the loaders have read on already
    positions = [m.state_dict() for m in first[0]]
    assert positions == [{"consumed": 1560}] * 2
    seen += take(*loaders(positions[0]), 120)
    for epoch in range(3):
        assert sorted(map(int, seen[1000 * epoch : 1000 * epoch + 1000])) == list(range(1000))


@pytest.mark.slow
def test_training_on_two_processes_sees_each_record_once_per_epoch(tmp_path: Path) -> None:
    """The same in a real run of two processes with two workers each, stopped in the second epoch."""
    many_shards(tmp_path)
    config = str(ROOT / "lightning_configs/tiny.yaml")
    tiny = ["--trainer.strategy=ddp", "--trainer.logger=false", "--trainer.enable_model_summary=false"]
    unet, data = "--model.init_args.pipeline.init_args.unet.", "--data.init_args."
    tiny += [f"{unet}block_out_channels=[8,16]", f"{unet}norm_num_groups=4", f"--trainer.default_root_dir={tmp_path}"]
    tiny += ["--model.init_args.pipeline.init_args.person_size=[16,16]"]
    tiny += [f"{data}folder={tmp_path}", f"{data}batch_size=50", f"{data}workers=2"]
    tiny += ["--trainer.callbacks=tests.killer.Seen", f"--trainer.callbacks.to={tmp_path}"]
    for steps in (13, 30):
        ended = run(["--config", config, *tiny, f"--trainer.max_steps={steps}", "--ckpt_path=last"], 2)
        assert ended.codes == [0, 0], ended.log
    seen = [(tmp_path / f"seen-{rank}").read_text().splitlines() for rank in range(2)]
    assert [len(lines) for lines in seen] == [30, 30]
    for epoch in range(3):
        ids = [i for lines in seen for line in lines[10 * epoch : 10 * epoch + 10] for i in line.split()]
        assert sorted(map(int, ids)) == list(range(1000))


def test_broken_records_are_named(tmp_path: Path) -> None:
    root = folder(tmp_path / "in")
    (root / "person/p.3.png").unlink()
    assert pack(root, tmp_path / "out") == 1
    (failure,) = (tmp_path / "out/failures.jsonl").read_text().splitlines()
    assert "p.3.png" in failure and not (tmp_path / "out/shard-000001.tar").exists()
    assert not list((tmp_path / "out").glob(".*.part"))


def test_hostile_records_are_refused(tmp_path: Path) -> None:
    root = folder(tmp_path / "in", 2)
    (tmp_path / "secret.png").write_bytes(b"secret")
    (root / "pose/0.png").unlink()
    (root / "pose/0.png").symlink_to(tmp_path / "secret.png")
    assert pack(root, tmp_path / "link") == 1
    assert "leads out of" in (tmp_path / "link/failures.jsonl").read_text()
    text = (folder(tmp_path / "again", 2) / "metadata.jsonl").read_text()
    for path in ("../secret.png", str(tmp_path / "secret.png")):
        (tmp_path / "again/metadata.jsonl").write_text(text.replace("person/p.1.png", path))
        assert pack(tmp_path / "again", tmp_path / "path") == 2


def test_a_pickle_posing_as_parameters_is_refused(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return (open, (str(tmp_path / "ran"), "w"))  # type: ignore[return-value]

    root = folder(tmp_path / "in", 2)
    lines = [json.loads(line) for line in (root / "metadata.jsonl").read_text().splitlines()]
    lines[1]["pose"]["params"] = "pose/1.npz"
    (root / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (root / "pose/1.npz").write_bytes(pickle.dumps(Bomb.__new__(Bomb), protocol=2))
    (tmp_path / "ran").unlink(missing_ok=True)
    assert pack(root, tmp_path / "out") == 1
    assert "1.npz" in (tmp_path / "out/failures.jsonl").read_text() and not (tmp_path / "ran").exists()
    buffer = io.BytesIO()
    np.savez(buffer, pose=np.array([Bomb()], dtype=object))
    (tmp_path / "ran").unlink(missing_ok=True)
    (root / "pose/1.npz").write_bytes(buffer.getvalue())
    assert pack(root, tmp_path / "other") == 1 and not (tmp_path / "ran").exists()


def shard(path: Path, *members: tuple[str, bytes | str]) -> Path:
    """A tar file; a member whose content is text is a link to it."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


GOOD = Record("a", "train", "p", "o", "a.person.png").to_json().encode()


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("../a.person.png", b"x")], r"'\.\./a\.person\.png' is refused"),
        ([("/etc/a.person.png", b"x")], "is refused"),
        ([("x/a.person.png", b"x")], "is refused"),
        ([("a.person.png", "/etc/passwd")], "no regular file"),
        ([("a.person.png", b"x"), ("a.person.png", b"y")], "stands twice"),
        ([("a.json", GOOD)], "no member of its own"),
        ([("a.json", GOOD.replace(b"a.person", b"../a.person")), ("a.person.png", b"x")], "must be relative"),
        ([("a.json", GOOD.replace(b"a.person", b"b.person")), ("b.person.png", b"x")], "no member of its own"),
        ([("b.json", GOOD), ("a.person.png", b"x")], "must be named a.json"),
        ([("a.json", b"{" * 5000)], "not a JSON object"),
        ([("a.json", b"\xff\xfe")], "a.json"),
    ],
)
def test_hostile_shards_are_refused(tmp_path: Path, members: list[tuple[str, bytes | str]], said: str) -> None:
    with pytest.raises(RecordError, match=said) as refused:
        Shards([shard(tmp_path / "s.tar", *members)])
    assert "s.tar" in str(refused.value)


def test_damaged_shards_are_refused(tmp_path: Path) -> None:
    good = shard(tmp_path / "s.tar", ("a.json", GOOD), ("a.person.png", b"x" * 5000)).read_bytes()
    assert len(Shards([tmp_path / "s.tar"]).records()) == 1
    for n, data in enumerate((b"", b"text" * 500, good[:3000])):
        (tmp_path / f"{n}.tar").write_bytes(data)
        with pytest.raises(RecordError, match=f"{n}.tar"):
            Shards([tmp_path / f"{n}.tar"])
