"""Any folder of photos, with a list of their garments if there is one."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from itertools import chain, groupby
from pathlib import Path, PurePosixPath

from data_prep.data_sets.entries import Entry, Missing, not_a
from omfa.files import read_text
from omfa.images import SUFFIXES
from omfa.records.prepared import RecordError, check_path

PAIRS = "pairs.csv"
_COLUMNS = ("photo", "garment", "category", "split", "person", "outfit", "caption")


def scan_folder(root: Path, missing: Missing) -> Iterator[tuple[str, Entry]]:
    """Any folder of photos; with a ``pairs.csv`` in it, the photos that stand there and their garments.

    Columns of ``pairs.csv``: photo; and as you like garment, category (upper, lower, dress), split, person, outfit,
    caption. One row a garment, the rows of a photo one after another; paths relative to the folder.
    """
    if (root / PAIRS).is_file():
        yield from _scan_pairs(root, missing)
        return
    photos = (
        (path, unique)
        for path, unique in _walk(root, missing.follow_links)
        if missing.check("picture of a kind that can be read", path, _is_picture(path))
        and missing.check(f"row in {PAIRS}", path, not path.startswith("garments/"))
    )
    if (first := next(photos, None)) is None:
        raise not_a("folder of photos", root, f"pictures ({', '.join(SUFFIXES)})")
    for path, unique in chain([first], photos):
        item_id = _id_of(path if unique else path.replace(".", "_"))
        yield item_id, Entry(path, "train", person_id=item_id, outfit_id=item_id)


def _is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _walk(root: Path, follow_links: bool) -> Iterator[tuple[str, bool]]:
    """Files in order, and whether no other picture of the folder has the same name without the suffix."""
    been = set[str]()
    for folder, below, names in os.walk(root, followlinks=follow_links):
        been.add(os.path.realpath(folder))
        below[:] = sorted(b for b in below if not b.startswith("."))
        if follow_links:  # a link may lead back up
            below[:] = [b for b in below if os.path.realpath(os.path.join(folder, b)) not in been]
        stems = Counter(Path(n).stem for n in names if _is_picture(n) and not n.startswith("."))
        for name in sorted(n for n in names if not n.startswith(".")):
            yield Path(folder, name).relative_to(root).as_posix(), stems[Path(name).stem] == 1


def _scan_pairs(root: Path, missing: Missing) -> Iterator[tuple[str, Entry]]:
    named = _check_pairs(root)
    for photo, group in groupby((row for _, row in _pair_rows(root)), key=lambda row: row["photo"]):
        row, *more = group
        item_id = _id_of(photo)
        if missing.check("person picture", photo, os.path.lexists(root / photo)):
            worn = ((r["category"], r["garment"]) for r in (row, *more) if r.get("garment"))
            yield (
                item_id,
                Entry(
                    photo,
                    row.get("split") or "train",
                    person_id=row.get("person") or item_id,
                    outfit_id=row.get("outfit") or item_id,
                    garments=tuple(
                        (category, path)  # type: ignore[misc]  # the category is checked where the record is built
                        for category, path in worn
                        if missing.check("garment", path, os.path.lexists(root / path))
                    ),
                    caption=row.get("caption") or None,
                ),
            )
    for path, _ in _walk(root, missing.follow_links):
        missing.check(f"row in {PAIRS}", path, path == PAIRS or path in named)


def _pair_rows(root: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of the list, each with the number of its line."""
    rows = csv.DictReader(io.StringIO(read_text(root / PAIRS), newline=""), restval="", strict=True)
    try:
        columns = rows.fieldnames or []
        if len(set(columns)) < len(columns):
            raise ValueError(f"{root / PAIRS}: two columns of one name in {', '.join(columns)}; leave one out")
        if "photo" not in columns or (unknown := [c for c in columns if c not in _COLUMNS]):
            given = ", ".join(map(str, unknown)) if "photo" in columns else "no column 'photo'"
            raise ValueError(f"{root / PAIRS}: {given}; the columns are {', '.join(_COLUMNS)}, commas between them")
        for row in rows:
            if None in row:
                raise ValueError(
                    f"{root / PAIRS}, line {rows.line_num}: more fields than columns; quote commas in them"
                )
            yield rows.line_num, row
    except csv.Error as e:
        raise ValueError(f"{root / PAIRS}, line {rows.line_num}: no CSV ({e}); save it again") from None


def _check_pairs(root: Path) -> set[str]:
    """Every path that the list names, once all of its rows are in order."""
    before, photo_of, named = "", dict[str, str](), set[str]()
    for number, row in _pair_rows(root):
        where, photo = f"{root / PAIRS}, line {number}", row["photo"]
        if not photo:
            raise ValueError(f"{where}: no photo: write which one, in every row of its garments, or remove the row")
        for path in filter(None, (photo, row.get("garment"))):
            try:
                named.add(PurePosixPath(check_path(path)).as_posix())
            except RecordError:
                raise ValueError(
                    f"{where}: {path!r} must be relative to the folder of the photos and stay inside, like 'a/b.jpg'"
                ) from None
        if photo != before and (other := photo_of.get(_id_of(photo))) is not None:
            cure = "put the rows of a photo one after another" if other == photo else f"rename it or {other!r}"
            raise ValueError(f"{where}: the record of {photo!r} stands further up: {cure}")
        photo_of[_id_of(photo)] = before = photo
    return named


def _id_of(path: str) -> str:
    """A record id from a path: as it is where it can be, else with a code that keeps it unique."""
    stem = path.removesuffix(Path(path).suffix)
    stem, path = unicodedata.normalize("NFC", stem), unicodedata.normalize("NFC", path)
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).lstrip("-._")[-180:]
    code = hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()
    return plain if plain == stem else f"{plain}-{code}".lstrip("-")
