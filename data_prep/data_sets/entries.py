"""What a scan of a data set yields and notes: entries, what is missing, names of files, pair lists."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_prep.run import Outcome
from omfa.components import Category
from omfa.files import read_text

MISSING = "missing.jsonl"


@dataclass(frozen=True)
class Entry:
    """One person picture and what the data set has to it; paths relative to the data set.

    ``labels``: the label map and the names of its ids.
    """

    person: str
    split: str
    person_id: str
    outfit_id: str
    garments: tuple[tuple[Category, str], ...] = ()
    labels: tuple[str, tuple[str, ...]] | None = None
    caption: str | None = None
    view_yaw: float | None = None


@dataclass
class Missing:
    """What a data set should hold and does not: every case a line of ``missing.jsonl``, a count of each kind."""

    out: Path
    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> Missing:
        self.out.mkdir(parents=True, exist_ok=True)
        self.part = self.out / f"{MISSING}.part"
        self.file = self.part.open("w", encoding="utf-8")
        return self

    def __exit__(self, failed: Any, *_: object) -> None:
        self.file.close()
        if failed is None and self.counts:
            os.replace(self.part, self.out / MISSING)
        else:
            self.part.unlink(missing_ok=True)
            (self.out / MISSING).unlink(missing_ok=True)

    def check(self, kind: str, path: str, there: bool) -> bool:
        """Note ``path`` if it is not there; hand ``there`` back."""
        if not there:
            self.counts[kind] += 1
            self.first.setdefault(kind, path)
            self.file.write(json.dumps({"kind": kind, "path": path}) + "\n")
        return there

    def tell(self, stage: str, outcome: Outcome) -> Outcome:
        """Say what is missing; the outcome with the number of cases."""
        if not self.counts:
            return outcome
        kinds = ", ".join(f"{n} x {kind} (first: {self.first[kind]})" for kind, n in self.counts.items())
        print(f"{stage}: missing: {kinds}; all in {MISSING}", file=sys.stderr)
        return replace(outcome, notes=(*outcome.notes, f"{self.counts.total()} missing (listed in {MISSING})"))


Scan = Callable[[Path, Missing], Iterator[tuple[str, Entry]]]


def file_names(root: Path, folder: str, missing: Missing, *suffixes: str) -> list[set[str]]:
    """For each suffix the names of a folder's files without it; other files are noted, a missing folder is empty."""
    names: list[set[str]] = [set() for _ in suffixes]
    path = root / folder
    for file in sorted(os.listdir(path)) if path.is_dir() else []:
        ends = [file.endswith(suffix) for suffix in suffixes]
        if missing.check("file named as documented", f"{folder}/{file}", any(ends) or file.startswith(".")):
            for name, suffix, end in zip(names, suffixes, ends, strict=True):
                if end:
                    name.add(file.removesuffix(suffix))
    return names


def pair_list(root: Path, name: str) -> list[list[str]]:
    """Lines of a pair list, split at blanks; none if there is no list."""
    path = root / name
    text = read_text(path) if path.is_file() else ""
    return [line.split() for line in text.splitlines() if line.strip()]


def not_a(what: str, root: Path, expected: str) -> ValueError:
    """The error for a folder that holds no such data set: what was expected, what is there."""
    found = sorted(os.listdir(root))
    shown = ", ".join(found[:8]) + (", ..." if len(found) > 8 else "") if found else "nothing"
    return ValueError(f"{root} is no {what}: expected {expected}; found {shown}")
