"""Records to WebDataset shards: tar files of a fixed number of records, the same bytes whenever they are made."""

from __future__ import annotations

import argparse
import io
import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from data_prep.run import Outcome, add_source, positive, run_stage
from omfa.bodies.parameters import BodyParameters
from omfa.records.prepared import (
    FaceRef,
    KeypointsRef,
    Maps,
    PortraitRef,
    PoseRef,
    Record,
    garment_roles,
    iter_records,
    record_files,
    resolve,
)
from omfa.records.shards import member

PER_SHARD = 1000
_Ref = TypeVar("_Ref", FaceRef, PortraitRef, KeypointsRef)


def packs(folder: Path, size: int, limit: int | None = None) -> Iterator[tuple[str, tuple[Record, ...]]]:
    """Records in packs of ``size`` as items of the runner, named as their shards."""
    records = iter_records(folder)
    every = iter(lambda: tuple(islice(records, size)), ())
    return ((f"shard-{n:06d}", pack) for n, pack in enumerate(islice(every, limit)))


def packed(record: Record) -> tuple[Record, dict[str, str]]:
    """A record as it stands in a shard, and which file of the folder each of its members is."""
    files = record_files(record)
    names = {role: member(record.id, role + Path(path).suffix.lower()) for role, path in files.items()}
    return with_files(record, names), {names[role]: path for role, path in files.items()}


def with_files(record: Record, paths: Mapping[str, str | None]) -> Record:
    """A record whose files lie elsewhere: what :func:`record_files` says of it is ``paths``.

    Args:
        record: any.
        paths: role to relative path; a role of the record that is not among them is left out.

    Raises:
        RecordError: no person picture, or a path that leaves the folder.
    """
    get = paths.get
    garments = [(role, g, get(role)) for role, g in garment_roles(record).items()]
    pose, maps, face = record.pose, record.maps, _moved(record.face, get("face"))
    return replace(
        record,
        file_name=get("person") or "",
        face=face and replace(face, pose=get("face_pose")),
        garments=tuple(
            replace(g, path=path, pose=get(f"{role}_pose"), mask=get(f"{role}_mask"))
            for role, g, path in garments
            if path is not None
        ),
        pose=pose and PoseRef(get("pose_map"), get("pose_params")),
        portrait=_moved(record.portrait, get("portrait")),
        maps=maps and Maps(**{name: get(name) for name in vars(maps)}),
        keypoints=_moved(record.keypoints, get("keypoints")),
    )


def _moved(ref: _Ref | None, path: str | None) -> _Ref | None:
    return None if ref is None or path is None else replace(ref, path=path)


def write_shard(item_id: str, records: tuple[Record, ...], out: Path, *, source: Path) -> list[dict[str, Any]]:
    """Work of the runner: one shard, written to the side and swapped in.

    Raises:
        ValueError: body parameters that are none (a pickle in disguise among them), or a path out of the folder.
        OSError: a file is missing.
    """
    part = out / f".{uuid4().hex}.part"
    try:
        with part.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for record in records:
                inside, files = packed(record)
                _add(tar, member(record.id, "json"), inside.to_json().encode())
                for name, path in files.items():
                    full = resolve(source, path)
                    if name.endswith("pose_params.npz") or name.endswith("_pose.npz"):
                        BodyParameters.load(full)
                    _add(tar, name, full.read_bytes())
        size = part.stat().st_size
        os.replace(part, out / f"{item_id}.tar")
    finally:
        part.unlink(missing_ok=True)
    return [{"file_name": f"{item_id}.tar", "records": len(records), "bytes": size}]


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # no time, no owner: the same bytes everywhere
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the stage."""
    add_source(parser, "records")
    parser.add_argument(
        "--per-shard", metavar="N", type=positive, default=PER_SHARD, help=f"records in a shard (default {PER_SHARD})"
    )


def main(args: argparse.Namespace) -> Outcome:
    """Pack a records folder; the items are shards. ``omfa.records.shards`` and WebDataset read them."""
    work = partial(write_shard, source=args.records)
    items = packs(args.records, args.per_shard, args.limit)
    return run_stage("shards", items, work, args.out, workers=args.workers, engine=args.engine)
