"""Where records are read from: a folder of files, or WebDataset shards (tar files) of the same records.

In a shard a record ``a.b`` is the members ``a%2Eb.json`` (its line of metadata, paths being members of the same shard)
and ``a%2Eb.person.png``, ``a%2Eb.upper.jpg``, ... ; a key ends at the first dot, as WebDataset has it. Shards are read
at any place: the index is made from the headers once, the bytes are read when asked for.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from omfa.files import read_bytes
from omfa.records.prepared import (
    MAX_LINE,
    METADATA,
    Record,
    RecordError,
    metadata_lines,
    read_records,
    record_files,
    resolve,
)

MAX_FILE = 200_000_000
BLOCK = 512  # bytes; a tar file is made of such, and ends in two of zeros
_MEMBER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_%-]*(\.[A-Za-z0-9_]+)+")


class Source(Protocol):
    """Records and the files they name."""

    def records(self, split: str | None = None) -> list[Record]:
        """All records of a split; None for all splits."""

    def read(self, path: str) -> bytes:
        """A file that a record names; RecordError where it can't be read."""

    def where(self, path: str) -> str:
        """What that file is called in messages."""


def open_records(folder: str | Path) -> Source:
    """The records of a folder, whether as files or as shards.

    Raises:
        RecordError: neither is there, a shard breaks the contract, or less is there than the list of shards says.
    """
    folder = Path(folder)
    shards = sorted(p for p in folder.glob("*") if p.suffix.lower() == ".tar")
    return Shards(shards, _listed(folder)) if shards else RecordFolder(folder)


def _listed(folder: Path) -> dict[str, int]:
    """Shard to number of records, as ``python -m data_prep shards`` wrote them down; others wrote nothing."""
    found: dict[str, int] = {}
    for number, line in metadata_lines(folder) if (folder / METADATA).is_file() else ():
        try:
            said = json.loads(line)
            found[str(said["file_name"])] = int(said["records"])
        except (ValueError, TypeError, KeyError, RecursionError):
            raise RecordError(f"{folder / METADATA}:{number}: no line about a shard; pack the records again") from None
    return found


@dataclass(frozen=True)
class RecordFolder:
    """Records as files (``omfa.records.prepared``)."""

    folder: Path

    def records(self, split: str | None = None) -> list[Record]:
        """See :class:`Source`."""
        return read_records(self.folder, split)

    def read(self, path: str) -> bytes:
        """See :class:`Source`."""
        full = resolve(self.folder, path)
        try:
            return read_bytes(full, MAX_FILE)
        except (OSError, ValueError) as e:
            said = getattr(e, "strerror", None) or e
            raise RecordError(f"{full}: can't be read ({said}); prepare the record again") from None

    def where(self, path: str) -> str:
        """See :class:`Source`."""
        return str(self.folder / path)


class Shards:
    """Records in tar files.

    Args:
        paths: the shards, in the order of their records.
        listed: how many records each should hold, by name; what is not listed may hold any number.

    Raises:
        RecordError: no tar file, cut short, a hostile or unexpected member, a record that breaks the contract, or
            fewer records or shards than are listed.
    """

    def __init__(self, paths: list[Path], listed: Mapping[str, int] = MappingProxyType({})) -> None:
        self._records: list[Record] = []
        self._where: dict[str, tuple[Path, int, int]] = {}  # member to shard, offset, size
        absent = sorted(set(listed) - {p.name for p in paths})
        if absent:
            raise RecordError(f"{absent[0]} is listed in {METADATA} and not there: copy it again")
        for path in paths:
            before = len(self._records)
            self._index(path)
            found = len(self._records) - before
            if listed.get(path.name, found) != found:
                raise RecordError(f"{path} holds {found} records, {listed[path.name]} are listed: copy it again")

    def records(self, split: str | None = None) -> list[Record]:
        """See :class:`Source`."""
        return [r for r in self._records if split is None or r.split == split]

    def read(self, path: str) -> bytes:
        """See :class:`Source`."""
        shard, offset, size = self._where[path]
        with shard.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def where(self, path: str) -> str:
        """See :class:`Source`."""
        return f"{self._where[path][0]}: {path}"

    def _index(self, path: Path) -> None:
        lines = []
        for name, offset, size in _members(path):
            if name in self._where:
                raise RecordError(f"{path}: member {name!r} stands twice; every record is in one shard once")
            self._where[name] = (path, offset, size)
            if name.endswith(".json") and name.count(".") == 1:  # others are files of a record, like p1.keypoints.json
                lines.append(name)
        for name in lines:
            try:
                record = Record.from_json(self.read(name).decode("utf-8"))
                if name != member(record.id, "json"):
                    raise RecordError(f"holds the record {record.id!r}; it must be named {member(record.id, 'json')}")
                for file in record_files(record).values():
                    if self._where.get(file, (None,))[0] != path or not file.startswith(f"{key_of(record.id)}."):
                        raise RecordError(f"names {file!r}, which is no member of its own in this shard")
            except ValueError as e:
                raise RecordError(f"{path}: {name}: {e}") from None
            self._records.append(record)


def key_of(record_id: str) -> str:
    """A record's key in a shard: its id with the dots written as ``%2E``."""
    return record_id.replace(".", "%2E")


def member(record_id: str, suffix: str) -> str:
    """Name of a member, like ``p1.person.png``."""
    return f"{key_of(record_id)}.{suffix}"


def _members(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of every member of a shard, each checked, to the mark at the end and nothing behind it."""
    if not path.is_file():
        raise RecordError(f"{path}: is no regular file; give one that is")
    end, at, name = path.stat().st_size, 0, "the beginning"
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                name = info.name
                if not _MEMBER.fullmatch(name) or len(name) > 300:
                    raise RecordError(f"{path}: member {name!r} is refused: names are like 'p1.person.png'")
                if not info.isreg() or info.sparse is not None:
                    raise RecordError(f"{path}: member {name!r} is refused: it is no regular file")
                if not 0 <= info.size <= (MAX_LINE if name.endswith(".json") else MAX_FILE):
                    raise RecordError(f"{path}: member {name!r} is refused: {info.size} bytes are too many")
                at = info.offset_data + -(-info.size // BLOCK) * BLOCK
                if info.offset_data + info.size > end:
                    raise RecordError(f"{path}: cut short at member {name!r}: copy it again")
                yield name, info.offset_data, info.size
        with path.open("rb") as file:  # the library takes a damaged header, or no more bytes, for the end
            file.seek(at)
            if end - at < 2 * BLOCK:
                raise RecordError(f"{path}: cut short behind {name!r} (no mark of its end): copy it again")
            while rest := file.read(2**20):
                if rest.strip(b"\0"):
                    raise RecordError(f"{path}: a damaged header behind {name!r}: copy it again")
    except (tarfile.TarError, EOFError, OSError, OverflowError, ValueError, MemoryError) as e:
        if isinstance(e, RecordError):
            raise
        raise RecordError(f"{path}: no readable tar file ({e})") from None
