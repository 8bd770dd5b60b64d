"""The rows of a batch: orders in a file, read and checked one by one.

A row of a CSV file (its first line names the columns) or an object of a JSON-lines file:

    task      try-off, try-on, transfer or turntable
    name      what its pictures begin with (default row-000001, by its place); folders as in "monday/anna"
    photo     who wears the garments (try-off), or who shall wear them
    source    transfer: photo of who wears them
    garments  upper=shirt.png;lower=skirt.png, in JSON {"upper": "shirt.png"}; several of one from inside to outside:
              upper=shirt.png;upper=jacket.png, in JSON {"upper": ["shirt.png", "jacket.png"]}
    category  what to take off: upper;lower, in JSON ["upper", "lower"]
    pose      a named pose, body parameters (.npz), or a photo of somebody in that pose
    pose_map, face, keep, views, seed, steps, guidance    as on the command line

Body parameters (.npz) beside a face or a garment and of its name are read as on the command line, too.
Relative paths begin at the file's folder.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omfa.bodies.named_poses import NAMED_POSES
from omfa.components import Category
from omfa.evaluation.predictions import weights_state
from omfa.images import ENOUGH, as_list, read_image
from omfa.orders import MOST_VIEWS, Order, body_beside, check_seed, read_pose, stems

PICTURES = ("photo", "source", "face", "pose_map")
NUMBERS: dict[str, type] = {"views": int, "seed": int, "steps": int, "guidance": float}
COLUMNS = ("task", "name", "garments", "category", "pose", "keep", *PICTURES, *NUMBERS)
_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)*")
_LONGEST = 200  # bytes of a file's or folder's name; what a file system holds, less what is put behind it
_LINE = 10_000_000  # bytes


@dataclass(frozen=True)
class Batch:
    """What to make.

    Args:
        jobs: the file, ``.csv`` or ``.jsonl``.
        out: folder of the pictures.
        model: what the pipeline is loaded from.
        steps, guidance: of rows that say none; None: the model's own.
        seed: of rows that say none.
        processes: how many work side by side, each with its own pipeline.
        engine: "local", or "ray" on a cluster whose machines see all files at the same paths.
    """

    jobs: Path
    out: Path
    model: str
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0
    processes: int = 1
    engine: str = "local"


@dataclass(frozen=True)
class Row:
    """One row as it was read.

    Args:
        number: its place, from 1.
        name: what its files begin with.
        said: column to value; empty ones are left out.
        problem: why it can't be made, where that is known already.
        made_from: a hash of all that its pictures depend on.
    """

    number: int
    name: str
    said: Mapping[str, Any]
    problem: str | None = None
    made_from: str = ""


def read_rows(batch: Batch) -> Iterator[Row]:
    """Rows in order, read as they are needed; what is wrong with one is in its ``problem``.

    Raises:
        ValueError: no such file, or none of this kind.
    """
    if batch.jobs.suffix.lower() not in (".csv", ".jsonl"):
        raise ValueError(f"{batch.jobs} must be a .csv or a .jsonl file")
    if not batch.jobs.is_file():
        raise ValueError(f"{batch.jobs}: no such file")
    state, taken = weights_state("omfa.judged.OMFAModel", batch.model), dict[str, int]()
    read = _csv if batch.jobs.suffix.lower() == ".csv" else _jsonl
    for number, (said, problem) in enumerate(read(batch.jobs), 1):
        name = f"row-{number:06d}"
        try:
            if problem is not None:
                raise ValueError(problem)
            said = _checked(said)
            name = said.get("name", name)
            words = said["task"], name, said.get("category", ["upper"]), said.get("views", 8)
            for stem in stems(*words):
                if taken.setdefault(stem.casefold(), number) != number:
                    raise ValueError(f"row {taken[stem.casefold()]} makes {stem}.png already; give another name")
            own = {"steps": batch.steps, "guidance": batch.guidance, "seed": batch.seed}
            told = [own | said, batch.model, state, _looks(said, batch.jobs.parent)]
            digest = hashlib.sha256(json.dumps(told, sort_keys=True, ensure_ascii=True).encode())
            yield Row(number, name, said, None, digest.hexdigest()[:32])
        except ValueError as e:
            yield Row(number, name, said, str(e))


def _csv(path: Path) -> Iterator[tuple[dict[str, Any], str | None]]:
    with path.open("rb") as file:
        encoding = "utf-16" if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    errors = "surrogateescape" if encoding == "utf-8-sig" else "replace"
    with path.open(encoding=encoding, errors=errors, newline="") as file:
        reader = csv.DictReader(file, strict=True)  # or a quote that is not closed swallows all that follows
        try:
            columns = list(reader.fieldnames or [""])
        except csv.Error as e:
            raise ValueError(f"{path}, line 1: {e}; write it anew as CSV") from None
        unknown = [c for c in columns if c not in COLUMNS]
        if unknown or "task" not in columns or len(set(columns)) < len(columns):
            wrong = (
                f"no column {unknown[0]!r} is known" if unknown else "there is no column 'task', or one stands twice"
            )
            raise ValueError(f"{path}: {wrong}; the first line names some of {', '.join(COLUMNS)}")
        while True:
            before = reader.reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as e:
                where = f"lines {before} to {reader.reader.line_num}"
                yield {}, f"{where} are no CSV ({e}); write it anew as CSV, every quote closed"
                continue
            said = {k: v.strip() for k, v in cells.items() if isinstance(k, str) and v and v.strip()}
            yield said, "more cells than the first line has" if None in cells else None


def _jsonl(path: Path) -> Iterator[tuple[dict[str, Any], str | None]]:
    with path.open("rb") as file:
        for line in iter(lambda: file.readline(_LINE), b""):
            if not line.strip():
                continue
            try:
                said = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as e:
                yield {}, f"no JSON ({e})"
                continue
            if isinstance(said, dict):
                yield {k: v for k, v in said.items() if v is not None and v != ""}, None
            else:
                yield {}, "no JSON object"


def _number(value: Any, kind: type) -> Any:
    """A text or a number as one of a kind; ValueError where it is none, or not whole where it should be."""
    number = kind(value)
    if isinstance(value, bool) or (isinstance(value, float) and number != value):
        raise ValueError
    return number


def _checked(said: Mapping[str, Any]) -> dict[str, Any]:
    """The same with numbers, lists and garments as such."""
    row = dict(said)
    if unknown := [c for c in row if c not in COLUMNS]:
        raise ValueError(f"no column {unknown[0]!r} is known; there are {', '.join(COLUMNS)}")
    if "task" not in row:
        raise ValueError("it has no task")
    for column, kind in NUMBERS.items():
        if column in row:
            try:
                row[column] = _number(row[column], kind)
            except (ValueError, TypeError, OverflowError):
                what = "a whole number" if kind is int else "a number"
                raise ValueError(f"{column} {row[column]!r} must be {what}") from None
    if isinstance(row.get("category"), str):
        row["category"] = [c.strip() for c in row["category"].split(";") if c.strip()]
    if isinstance(row.get("garments"), str):
        pairs = [pair.partition("=")[::2] for pair in row["garments"].split(";") if pair.strip()]
        if not all(c.strip() in set(Category) and path.strip() for c, path in pairs):
            raise ValueError(f"garments {row['garments']!r} must be like upper=shirt.png;lower=skirt.png")
        worn: dict[str, Any] = {}
        for c, path in pairs:
            worn.setdefault(c.strip(), []).append(path.strip())
        row["garments"] = {c: paths[0] if len(paths) == 1 else paths for c, paths in worn.items()}
    if not isinstance(row.get("category", []), list) or not isinstance(row.get("garments", {}), dict):
        raise ValueError('category must be a list like ["upper"], garments an object like {"upper": "shirt.png"}')
    texts = [row.get(c, "") for c in ("task", "name", "pose", "keep", *PICTURES)]
    if not all(isinstance(t, str) for t in (*texts, *row.get("category", ()), *_paths(row))):
        raise ValueError("names, poses and paths must be texts")
    if "name" in row and not _NAME.fullmatch(row["name"]):
        raise ValueError(f"name {row['name']!r} must be of letters, digits, '-', '_' and '.', folders divided by '/'")
    *folders, last = row.get("name", "row").split("/")
    if any(len(part.encode()) > _LONGEST for part in (*folders, last)):
        raise ValueError(f"name {row['name'][:20]}... is too long: give one of at most {_LONGEST} bytes")
    if any(part.lower().endswith((".png", ".jsonl")) for part in folders):  # another row's picture
        raise ValueError(f"name {row['name']!r} has a folder called like a file; call it otherwise")
    if not 1 <= row.get("views", 1) <= MOST_VIEWS:
        raise ValueError(f"views {row['views']} must be from 1 to {MOST_VIEWS}")
    check_seed(row.get("seed", 0))
    return row


def order_of(row: Row, folder: Path) -> Order:
    """The order that a row says, its pictures read. Relative paths begin at ``folder``.

    Raises:
        ValueError: a picture that can't be read, or something that can never be made.
    """
    said = row.said
    pictures: dict[str, Any] = {c: read_image(folder / said[c], enough=ENOUGH) for c in PICTURES if c in said}
    pose: Any = pictures.pop("pose_map", None)
    if "pose" in said:
        if pose is not None:
            raise ValueError("give pose or pose_map, not both")
        pose = read_pose(said["pose"] if said["pose"] in NAMED_POSES else str(folder / said["pose"]))
    worn = {
        c: [read_image(folder / path, enough=ENOUGH) for path in as_list(paths)]
        for c, paths in said.get("garments", {}).items()
    }
    more: dict[str, Any] = {c: said[c] for c in ("keep", "views") if c in said}
    more["face_pose"] = body_beside(folder / said["face"]) if "face" in said else None
    more["garment_poses"] = {
        c: [body_beside(folder / path) for path in as_list(paths)] for c, paths in said.get("garments", {}).items()
    }
    if "category" in said:
        more["categories"] = tuple(said["category"])
    return Order(task=said["task"], name=row.name, garments=worn, pose=pose, **pictures, **more)


def _paths(said: Mapping[str, Any]) -> list[Any]:
    """Of all garments."""
    return [path for paths in said.get("garments", {}).values() for path in as_list(paths)]


def _looks(said: Mapping[str, Any], folder: Path) -> list[Any]:
    """Sizes and times of all files that a row names."""
    names = [said.get(c) for c in (*PICTURES, "pose")] + _paths(said)
    beside = [Path(name).with_suffix(".npz") for name in (said.get("face"), *_paths(said)) if name]

    def look(name: Any) -> Any:
        try:
            about = (folder / name).stat() if name else None
            return about and (about.st_size, about.st_mtime_ns)
        except (OSError, ValueError):
            return None

    return [*map(look, names), *(seen for seen in map(look, beside) if seen)]  # without any as it was before them
