"""Where records are read from: a folder of files, or WebDataset shards (tar files) of the same records.

In a shard a record ``a.b`` is the members ``a%2Eb.json`` (its line of metadata, paths being members of the same shard)
and ``a%2Eb.person.png``, ``a%2Eb.upper.jpg``, ... ; a key ends at the first dot, as WebDataset has it. Shards are read
at any place: the index is made from the headers once, the bytes are read when asked for.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from omfa.records.prepared import Record, RecordError, read_records, record_files, resolve

MAX_LINE = 1_000_000
MAX_FILE = 200_000_000
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
        RecordError: neither is there, or a shard breaks the contract.
    """
    folder = Path(folder)
    shards = sorted(folder.glob("*.tar"))
    return Shards(shards) if shards else RecordFolder(folder)


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
            return full.read_bytes()
        except OSError as e:
            raise RecordError(f"{full}: can't be read ({e.strerror}); prepare the record again") from None

    def where(self, path: str) -> str:
        """See :class:`Source`."""
        return str(self.folder / path)


class Shards:
    """Records in tar files.

    Args:
        paths: the shards, in the order of their records.

    Raises:
        RecordError: no tar file, cut short, a hostile or unexpected member, or a record that breaks the contract.
    """

    def __init__(self, paths: list[Path]) -> None:
        self._records: list[Record] = []
        self._where: dict[str, tuple[Path, int, int]] = {}  # member to shard, offset, size
        for path in paths:
            self._index(path)

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
    """Name, offset and size of every member of a shard, each checked."""
    try:
        with tarfile.open(path, "r:") as tar:
            end = path.stat().st_size
            for info in tar:
                if not _MEMBER.fullmatch(info.name) or len(info.name) > 300:
                    raise RecordError(f"{path}: member {info.name!r} is refused: names are like 'p1.person.png'")
                if not info.isreg():
                    raise RecordError(f"{path}: member {info.name!r} is refused: it is no regular file")
                if info.size > (MAX_LINE if info.name.endswith(".json") else MAX_FILE):
                    raise RecordError(f"{path}: member {info.name!r} is refused: {info.size} bytes are too many")
                if info.offset_data + info.size > end:
                    raise RecordError(f"{path}: cut short at member {info.name!r}: copy it again")
                yield info.name, info.offset_data, info.size
    except (tarfile.TarError, EOFError, OSError) as e:
        raise RecordError(f"{path}: no readable tar file ({e})") from None
