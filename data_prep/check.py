"""Whether a records folder keeps its contract, before anything long is begun with it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from data_prep.run import add_source
from omfa.records.prepared import METADATA, Record, RecordError, record_files, resolve


@dataclass(frozen=True)
class Checked:
    """How many problems there are."""

    problems: int

    @property
    def exit_code(self) -> int:
        """0: none; 1: some."""
        return int(self.problems > 0)

    def __str__(self) -> str:
        return f"{self.problems} problems" if self.problems else "all well"


def validate(folder: str | Path) -> list[str]:
    """Every problem of a records folder as one line each: file, line, what is wrong, what would be right.

    Checks the contract of every line, unique ids, and that every named file exists, is inside the folder and is not
    empty. Pictures are not decoded here. An empty list means all is well.
    """
    root, problems, seen = Path(folder), list[str](), set[str]()
    path = root / METADATA
    if not path.is_file():
        return [f"{path}: not found; a records folder has a {METADATA}"]
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = Record.from_json(line)
        except RecordError as e:
            problems.append(f"{path}:{number}: {e}")
            continue
        if record.id in seen:
            problems.append(f"{path}:{number}: id {record.id!r} stands twice; give every record its own id")
        seen.add(record.id)
        for role, name in record_files(record).items():
            try:
                full = resolve(root, name)
                if not full.is_file():
                    problems.append(f"{path}:{number}: {role} file {name!r} is missing; add it or remove its entry")
                elif full.stat().st_size == 0:
                    problems.append(f"{path}:{number}: {role} file {name!r} is empty; write it again")
            except (RecordError, OSError) as e:
                problems.append(f"{path}:{number}: {role}: {e}")
    return problems


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the stage."""
    add_source(parser, "records")


def main(args: argparse.Namespace) -> Checked:
    """Print every problem of a records folder; nothing is written."""
    problems = validate(args.records)
    for problem in problems:
        print(problem)
    return Checked(len(problems))
