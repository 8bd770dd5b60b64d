"""A batch from its file to its pictures: every row once, what is made not made again.

``done.jsonl`` in the output says what is made, ``failures.jsonl`` why the rest is not. A row is made again where its
words, its pictures or the model have changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from tqdm import tqdm

from omfa.batches.engines import Load, make_rows
from omfa.batches.rows import Batch, Row, read_rows
from omfa.files import clear_parts, read_text, sole, unwritable

DONE, FAILURES = "done.jsonl", "failures.jsonl"


@dataclass(frozen=True)
class Tally:
    """Rows made, made by an earlier call, and failed."""

    made: int
    before: int
    failed: int

    @property
    def exit_code(self) -> int:
        """0: all well; 1: some rows failed; 2: no row could be used."""
        return 0 if not self.failed else 1 if self.made + self.before else 2


def run(batch: Batch, load: Load, tell: Callable[[str], None] = lambda _: None) -> Tally:
    """Make every row that is not made yet.

    Args:
        batch: what.
        load: gives each process its pipeline.
        tell: called with a line for each row that failed.

    Raises:
        ValueError: the file, the model or the output folder can't be used, or another call is at work in it.
    """
    with sole(batch.out, "-o"):
        clear_parts(batch.out)
        done = {line["name"]: line for line in _lines(batch.out / DONE)}
        rows = read_rows(batch)
        first = next(rows, None)
        if first is None:
            raise ValueError(f"{batch.jobs} holds no row")
        counts = {"made": 0, "before": 0, "failed": 0}
        with (
            _opened(batch.out / FAILURES, "w") as failures,
            _opened(batch.out / DONE, "a") as made,
            tqdm(unit="row", disable=None) as bar,
        ):

            def missing() -> Iterator[Row]:
                for row in chain([first], rows):
                    known = done.get(row.name, {})
                    if row.problem is None and known.get("made_from") == row.made_from and _there(batch, known):
                        counts["before"] += 1
                        bar.update()
                    else:
                        yield row

            for outcome in make_rows(batch, load, missing()):
                row = outcome.row
                if outcome.reason is None:
                    line = {"name": row.name, "made_from": row.made_from, "files": outcome.files}
                    _write(made, line, batch.out)
                else:
                    _write(failures, {"row": row.number, "name": row.name, "reason": outcome.reason}, batch.out)
                    tell(f"row {row.number} ({row.name}): {outcome.reason}")
                counts["made" if outcome.reason is None else "failed"] += 1
                bar.update()
        if not counts["failed"]:
            (batch.out / FAILURES).unlink()
        return Tally(**counts)


def _there(batch: Batch, known: Mapping[str, Any]) -> bool:
    return all((batch.out / name).is_file() for name in known.get("files", ()))


def _named(files: Any) -> bool:
    return isinstance(files, list) and bool(files) and all(isinstance(name, str) for name in files)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of a file that may have been cut off in the middle of one."""
    for line in read_text(path, 1 << 40).splitlines() if path.exists() else ():
        try:
            known = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(known, dict) and isinstance(known.get("name"), str) and _named(known.get("files")):
            yield known


def _opened(path: Path, mode: str) -> Any:
    try:
        file = path.open(mode, encoding="utf-8", buffering=1)  # a line is written when it ends
        if mode == "a" and path.stat().st_size:
            file.write("\n")  # after half a line that a kill has left
        return file
    except OSError as e:
        raise unwritable(path.parent, e, "-o") from None


def _write(file: Any, line: Mapping[str, Any], out: Path) -> None:
    try:
        file.write(json.dumps(line) + "\n")
    except OSError as e:
        raise unwritable(out, e, "-o") from None
