"""From records to records: what the stages that read and write records folders share."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

from omfa.records.prepared import Record, iter_records, record_files, resolve


def record_items(folder: Path, limit: int | None = None) -> Iterator[tuple[str, Record]]:
    """Records as items of the runner; only the first ``limit`` of them."""
    return ((record.id, record) for record in islice(iter_records(folder), limit))


def as_line(record: Record) -> dict[str, Any]:
    """A record as a line of metadata for the runner."""
    line: dict[str, Any] = json.loads(record.to_json())
    return line


def carry(record: Record, source: Path, out: Path) -> None:
    """Bring a record's files along into another folder: linked where the file system allows, else copied.

    Raises:
        RecordError: a path leads out of the source folder.
        OSError: a file is missing.
    """
    for path in record_files(record).values():
        link(resolve(source, path), out / path)


def link(source: Path, target: Path) -> None:
    """Give a file a second name, or a copy where that can't be; an older target is replaced at once."""
    if not source.is_file():
        raise FileNotFoundError(f"{source} is missing")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{uuid4().hex}.part")
    try:
        os.link(source, part)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, part)
    os.replace(part, target)
    part.unlink(missing_ok=True)  # replacing a name of the same file leaves both
