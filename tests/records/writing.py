"""Records written by tests."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from omfa.records.prepared import METADATA, Record


def write_records(folder: Path, records: Iterable[Record]) -> Path:
    """Write ``metadata.jsonl``; its path."""
    path = folder / METADATA
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(record.to_json() + "\n" for record in records), encoding="utf-8")
    return path
