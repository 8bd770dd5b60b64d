"""What a scan of a data set yields and notes: entries, what is missing, names of files, pair lists."""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_prep.run import Outcome
from omfa.components import Category
from omfa.files import read_text
from omfa.images import SUFFIXES

MISSING = "missing.jsonl"


@dataclass(frozen=True)
class Entry:
    """One person picture and what the data set has to it; paths relative to the data set.

    ``labels``: the label map and the names of its ids. ``keypoints``: a file of OpenPose's or DressCode's.
    """

    person: str
    split: str
    person_id: str
    outfit_id: str
    garments: tuple[tuple[Category, str], ...] = ()
    labels: tuple[str, tuple[str, ...]] | None = None
    keypoints: str | None = None
    caption: str | None = None
    view_yaw: float | None = None


@dataclass
class Missing:
    """What a data set should hold and does not: every case a line of ``missing.jsonl``, a count of each kind."""

    out: Path
    follow_links: bool = False  # into folders, where a scan walks them
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
            self.file.write(json.dumps({"kind": kind, "path": path}) + "\n")  # what is no UTF-8 as escapes
        return there

    def nothing(self, root: Path, expected: str) -> ValueError:
        """The error for a data set none of whose pictures can be used."""
        found = ", ".join(f"{n} x no {kind} (first: {self.first[kind]})" for kind, n in self.counts.items())
        return ValueError(f"{root} holds nothing to work on. Expected {expected} Found: {found or 'no pictures'}")

    def tell(self, stage: str, outcome: Outcome) -> Outcome:
        """Say what is missing; the outcome with the number of cases."""
        if not self.counts:
            return outcome
        kinds = ", ".join(f"{n} x {kind} (first: {self.first[kind]})" for kind, n in self.counts.items())
        print(f"{stage}: missing: {kinds}; all in {MISSING}", file=sys.stderr)
        return replace(outcome, notes=(*outcome.notes, f"{self.counts.total()} missing (listed in {MISSING})"))


Scan = Callable[[Path, Missing], Iterator[tuple[str, Entry]]]


def file_names(
    root: Path, folder: str, missing: Missing, *ends: str, suffixes: tuple[str, ...] = SUFFIXES
) -> list[dict[str, str]]:
    """For each ending, like ``_0``, names of a folder's pictures without it and their suffix, to their paths.

    Suffixes may be of any kind of picture, in any case of letters, and a name's accents written in either way of
    Unicode. Other files, and a second of one name, are noted; a missing folder is empty.
    """
    names: list[dict[str, str]] = [{} for _ in ends]
    path = root / folder
    for file in sorted(os.listdir(path)) if path.is_dir() else []:
        stem = one_name(file.removesuffix(Path(file).suffix)) if file.lower().endswith(suffixes) else ""
        fits = [end for end in ends if stem.endswith(end) and len(stem) > len(end)]
        if missing.check("file named as documented", f"{folder}/{file}", bool(fits) or file.startswith(".")):
            for name, end in zip(names, ends, strict=True):
                if end in fits and not file.startswith("."):
                    there = name.setdefault(stem.removesuffix(end), f"{folder}/{file}")
                    missing.check("only picture of its name", f"{folder}/{file}", there == f"{folder}/{file}")
    return names


def one_name(name: str) -> str:
    """A name in one of the two ways in which Unicode writes accents (macOS and Linux differ)."""
    return unicodedata.normalize("NFC", name)


def listed_name(word: str, end: str = "") -> str:
    """What a pair list names, as :func:`file_names` does: without suffix and ending."""
    return one_name(word.removesuffix(Path(word).suffix) if word.lower().endswith(SUFFIXES) else word).removesuffix(end)


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
