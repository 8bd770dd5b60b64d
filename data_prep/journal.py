"""The journal of a stage: what is done, so that a killed run goes on and the same call gives the same files."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from omfa.files import unwritable
from omfa.records.prepared import METADATA

FAILURES = "failures.jsonl"
JOURNAL = ".journal.sqlite"
Line = dict[str, Any]


@dataclass(frozen=True)
class StageItem:
    """One thing a stage works on: its place in the order, its name, and what the work is given."""

    position: int
    item_id: str
    payload: Any


@dataclass(frozen=True)
class StageResult:
    """A task's metadata lines as text, or the reason why there are none. ``source``: its files, looks and contents."""

    task: StageItem
    lines: str | None = None
    reason: str | None = None
    source: str | None = None


def told(text: str) -> str:
    """The text that tells a call from another; ValueError for an object's bare address, which tells nothing."""
    if " at 0x" in text:
        raise ValueError(f"{text} does not tell itself from another: use plain values or frozen dataclasses")
    return text


MadeFrom = Callable[[str, Any], tuple[str, Callable[[], str]]]
"""Of an item and its payload how its files look, and a function that gives a code of their contents."""


def writable(text: str | None) -> str | None:
    """A text that UTF-8 can hold: names of files that are no UTF-8 as JSON's escapes, which reading undoes."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode("utf-8")


@contextmanager
def no_tracebacks(out: Path) -> Iterator[None]:
    """The database's errors as those of the disk that it lies on."""
    try:
        yield
    except sqlite3.Error as e:
        raise unwritable(out, e) from None


class Journal:
    """What is done, on disk: one row per item, found by id, so that memory does not grow with the items.

    ``position`` is the item's place in this run, null while this run has not met it. Write-ahead logging survives a
    kill at any moment; the exclusive lock keeps a second run out.
    """

    def __init__(self, out: Path, call: str, made_from: MadeFrom = lambda *_: ("", str)) -> None:
        self.out, self.skipped, self.again, self.made_from = out, 0, 0, made_from
        if not (out / JOURNAL).exists() and (out / METADATA).exists():
            raise ValueError(f"{out} holds a {METADATA} that no run of this kind made: give another --out")
        self.db = sqlite3.connect(out / JOURNAL, timeout=0)
        try:
            self._begin(call)
        except BaseException as e:
            self.db.close()
            if isinstance(e, sqlite3.OperationalError) and "locked" in str(e):
                raise ValueError(f"another run is at work in {out}: wait for it, or give another --out") from None
            if isinstance(e, sqlite3.OperationalError) and "full" in str(e):
                raise unwritable(out, e) from None
            if isinstance(e, sqlite3.DatabaseError):
                raise ValueError(f"{out / JOURNAL} can't be used ({e}): give another --out") from None
            raise

    def _begin(self, call: str) -> None:
        for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = NORMAL"):
            self.db.execute(f"PRAGMA {pragma}")
        self.db.execute("CREATE TABLE IF NOT EXISTS call (text TEXT, finished INTEGER)")
        columns = "id TEXT PRIMARY KEY, position INTEGER, payload TEXT, lines TEXT, reason TEXT"
        self.db.execute(f"CREATE TABLE IF NOT EXISTS item ({columns})")
        if "source" not in {row[1] for row in self.db.execute("PRAGMA table_info(item)")}:  # older journals had none
            self.db.execute("ALTER TABLE item ADD COLUMN source TEXT")
        before, finished = self.db.execute("SELECT text, finished FROM call").fetchone() or (call, True)
        if before != call and self._used():
            raise ValueError(f"{self.out} belongs to another call; give another --out. There: {before}. Here: {call}")
        if not finished:
            for part in self.out.rglob(".*.part"):  # what a killed run was writing
                part.unlink()
        self.db.execute("DELETE FROM call")
        self.db.execute("INSERT INTO call VALUES (?, 0)", (call,))
        self.db.execute("UPDATE item SET position = NULL")
        self.db.commit()

    def todo(self, items: Iterable[tuple[str, Any]], bar: tqdm[Any]) -> Iterator[StageItem]:
        """The items that are not done yet, or whose files have changed since; the others only get their place."""
        for position, (item_id, payload) in enumerate(items):
            ask = "SELECT payload, lines, source FROM item WHERE id = ?"
            row = self.db.execute(ask, (writable(item_id),)).fetchone()
            if row is not None and row[0] != _digest(payload):
                raise ValueError(f"item {item_id!r} was another one when {self.out} was begun: give another --out")
            task = StageItem(position, item_id, payload)
            if row is None or row[1] is None:
                yield task
                continue
            source = self._unchanged(task, row[2])
            if source is None:
                self.again += 1
                yield task
                continue
            place = "UPDATE item SET position = ?, source = ? WHERE id = ? AND position IS NULL"
            self._place(task, place, (position, source, writable(item_id)))
            self.skipped += 1
            bar.update()
            if self.skipped % 1000 == 0:
                self.db.commit()

    def _unchanged(self, task: StageItem, before: str | None) -> str | None:
        """Looks and contents of an item's files, or None where the contents were others when it was made."""
        looks, contents = self.made_from(task.item_id, task.payload)
        old_looks, _, old = (before or "").partition(" ")
        if before is not None and looks == old_looks:
            return before
        new = contents()
        return f"{looks} {new}" if before is None or new == old else None

    def add(self, result: StageResult) -> None:
        """Note a task as done or failed."""
        task = result.task
        insert = (
            "INSERT INTO item (id, position, payload, lines, reason, source) "
            "VALUES (:id, :position, :payload, :lines, :reason, :source) ON CONFLICT (id) DO UPDATE "
            "SET position = :position, lines = :lines, reason = :reason, source = :source WHERE position IS NULL"
        )
        row = {
            "id": writable(task.item_id),
            "source": result.source,
            "position": task.position,
            "payload": _digest(task.payload),
        }
        self._place(task, insert, row | {"lines": writable(result.lines), "reason": writable(result.reason)})
        self.db.commit()

    def _place(self, task: StageItem, statement: str, values: Any) -> None:
        if self.db.execute(statement, values).rowcount != 1:
            raise ValueError(f"item {task.item_id!r} stands twice in the input: ids are unique")

    def finish(self) -> int:
        """Write both lists in the order of the items; how many lines of metadata there are."""
        lines = self._write(
            METADATA, "SELECT lines FROM item WHERE position >= 0 AND lines IS NOT NULL ORDER BY position"
        )
        failed = "FROM item WHERE position >= 0 AND reason IS NOT NULL ORDER BY position"
        if self.db.execute(f"SELECT 1 {failed}").fetchone():
            self._write(FAILURES, f"SELECT id, reason {failed}")
        else:
            (self.out / FAILURES).unlink(missing_ok=True)
        self.db.execute("UPDATE call SET finished = 1")
        self.db.commit()
        return lines

    def _write(self, name: str, query: str) -> int:
        part, lines = self.out / f".{name}.part", 0
        with part.open("w", encoding="utf-8") as file:
            for row in self.db.execute(query):
                text = row[0] if len(row) == 1 else json.dumps({"id": row[0], "reason": row[1]}) + "\n"
                file.write(text)
                lines += text.count("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, self.out / name)
        return lines

    def _used(self) -> bool:
        return self.db.execute("SELECT 1 FROM item").fetchone() is not None

    def close(self) -> None:
        """Release the folder; a call that came to nothing leaves no claim on it."""
        used = True
        try:
            used = self._used() or self.db.execute("SELECT finished FROM call").fetchone() == (1,)
        finally:
            self.db.close()
        if not used:
            (self.out / JOURNAL).unlink()


def _digest(payload: Any) -> str:
    return hashlib.blake2b(told(repr(payload)).encode(), digest_size=16).hexdigest()
