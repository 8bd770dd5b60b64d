"""Real data sets to records, each read exactly as it unpacks; what is missing is counted, the rest goes on.

A *scan* walks a data set and yields one :class:`Entry` a person picture: the only place that knows the set's folders,
categories and label ids. Everything after it is the same for all. A person picture is taken as it is when any decoder
reads it alike (upright 8-bit RGB), else written again as PNG.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, groupby, islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from data_prep.records import as_line, link
from data_prep.run import Outcome, add_source, run_stage, write_image
from omfa.components import Category
from omfa.images import SUFFIXES, read_image
from omfa.records.labels import ATR, CIHP, DEEPFASHION, read_labels, to_parts
from omfa.records.prepared import GarmentRef, Maps, Record, RecordError, check_path, resolve

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


# ------------------------------------------------------------------------------------------------------ the data sets


def scan_vitonhd(root: Path, missing: Missing) -> Iterator[tuple[str, Entry]]:
    """VITON-HD: ``{train,test}/{image,cloth,image-parse-v3}``, ``{train,test}_pairs.txt``; garments are uppers."""
    there = {split: (root / split / "image").is_dir() for split in ("train", "test")}
    if not any(there.values()):
        raise _not_a("VITON-HD", root, "train/image/*.jpg or test/image/*.jpg, beside train_pairs.txt, test_pairs.txt")
    for split in (s for s in there if missing.check("folder of a split", f"{s}/image", there[s])):
        (people,) = _names(root, f"{split}/image", missing, ".jpg")
        (cloth,) = _names(root, f"{split}/cloth", missing, ".jpg")
        (maps,) = _names(root, f"{split}/image-parse-v3", missing, ".png")
        listed = {line[0].removesuffix(".jpg") for line in _pair_list(root, f"{split}_pairs.txt")}
        missing.check("pair list", f"{split}_pairs.txt", bool(listed))
        for name in sorted(people | cloth | maps | listed):
            person = f"{split}/image/{name}.jpg"
            if missing.check("person picture", person, name in people):
                missing.check(f"entry in {split}_pairs.txt", person, name in listed or not listed)
                garment, labels = f"{split}/cloth/{name}.jpg", f"{split}/image-parse-v3/{name}.png"
                worn = ((Category.UPPER, garment),) if missing.check("garment", garment, name in cloth) else ()
                scheme = (labels, CIHP) if missing.check("label map", labels, name in maps) else None
                yield f"{split}-{name}", Entry(person, split, name, name, worn, scheme)


_DRESSCODE = {"upper_body": Category.UPPER, "lower_body": Category.LOWER, "dresses": Category.DRESS}


def scan_dresscode(root: Path, missing: Missing) -> Iterator[tuple[str, Entry]]:
    """DressCode: ``{upper_body,lower_body,dresses}/{images,label_maps}`` and the pair lists, which give the split.

    ``_0.jpg`` is the person, ``_1.jpg`` the garment, ``_4.png`` the label map. A picture in no list is of the split
    ``unlisted``.
    """
    there = {folder: (root / folder / "images").is_dir() for folder in _DRESSCODE}
    if not any(there.values()):
        raise _not_a("DressCode", root, "upper_body/images/*_0.jpg, lower_body/images/..., or dresses/images/...")
    for folder in (f for f in there if missing.check("folder of a category", f"{f}/images", there[f])):
        people, cloth = _names(root, f"{folder}/images", missing, "_0.jpg", "_1.jpg")
        (maps,) = _names(root, f"{folder}/label_maps", missing, "_4.png")
        split_of = _dresscode_splits(root, folder, missing)
        for name in sorted(people | cloth | maps | split_of.keys()):
            person = f"{folder}/images/{name}_0.jpg"
            if missing.check("person picture", person, name in people):
                missing.check("entry in a pair list", person, name in split_of or not split_of)
                garment, labels = f"{folder}/images/{name}_1.jpg", f"{folder}/label_maps/{name}_4.png"
                worn = ((_DRESSCODE[folder], garment),) if missing.check("garment", garment, name in cloth) else ()
                scheme = (labels, ATR) if missing.check("label map", labels, name in maps) else None
                yield f"{folder}-{name}", Entry(person, split_of.get(name, "unlisted"), name, name, worn, scheme)


def _dresscode_splits(root: Path, folder: str, missing: Missing) -> dict[str, str]:
    """Person to split, from the category's own lists or, where they are not, the common ones (third column: class)."""
    split_of: dict[str, str] = {}
    for split, name in (("train", "train_pairs.txt"), ("test", "test_pairs_paired.txt")):
        lines = _pair_list(root, f"{folder}/{name}")
        if not lines:
            lines = [line for line in _pair_list(root, name) if line[2:] == [str(list(_DRESSCODE).index(folder))]]
        missing.check("pair list", f"{folder}/{name}", bool(lines))
        split_of |= {line[0].removesuffix("_0.jpg"): split for line in lines}
    return split_of


_DEEPFASHION_NAME = re.compile(
    r"((?:MEN|WOMEN)-(.+)-id_(\d{8})-\d{2})_\d_(front|side|back|full|flat|additional)", re.ASCII
)
_DEEPFASHION_CATEGORY = {
    Category.UPPER: "Tees_Tanks Graphic_Tees Blouses_Shirts Shirts_Polos Cardigans Sweaters Sweatshirts_Hoodies "
    "Jackets_Coats Jackets_Vests Suiting",
    Category.LOWER: "Denim Leggings Pants Shorts Skirts",
    Category.DRESS: "Dresses Rompers_Jumpsuits",
}
_YAW = {"front": 0.0, "back": 180.0}  # degrees, roughly: what the name says


def scan_deepfashion(root: Path, missing: Missing) -> Iterator[tuple[str, Entry]]:
    """DeepFashion-MultiModal: ``images/*.jpg``, ``*_segm.png`` and ``captions.json`` wherever they unpacked to.

    Same person in the same outfit = same gender, category, id and shoot. A ``flat`` picture is the shop picture of its
    item. The split follows the item's id (10 % test), as the same item stands in several shoots.
    """
    folder = next((p for p in sorted(root.rglob("images")) if p.is_dir()), root)
    (names,) = _names(folder, ".", missing, ".jpg")
    files = {name: _DEEPFASHION_NAME.fullmatch(name) for name in sorted(names)}
    if not any(files.values()):
        raise _not_a("DeepFashion-MultiModal", root, "images/{MEN,WOMEN}-CATEGORY-id_00000000-00_0_VIEW.jpg")
    here = folder.relative_to(root)
    maps = {p.name.removesuffix("_segm.png"): str(p.relative_to(root)) for p in sorted(root.rglob("*_segm.png"))}
    captions = _captions(root, missing)
    kind_of = {name: category for category, names in _DEEPFASHION_CATEGORY.items() for name in names.split()}
    flats: dict[str, tuple[Category, str]] = {}
    for name, match in files.items():
        if match and match[4] == "flat" and match[2] in kind_of:
            flats.setdefault(match[1], (kind_of[match[2]], str(here / f"{name}.jpg")))
    for name in sorted(maps.keys() - files.keys()):
        missing.check("person picture", str(here / f"{name}.jpg"), False)
    for name, match in files.items():
        person = str(here / f"{name}.jpg")
        if missing.check("picture named as documented", person, match is not None) and match and match[4] != "flat":
            missing.check("label map", f"segm/{name}_segm.png", name in maps)
            missing.check("entry in captions.json", person, captions is None or f"{name}.jpg" in captions)
            yield (
                name,
                Entry(
                    person,
                    _split_of(match[3]),
                    person_id=match[1],
                    outfit_id=match[1],
                    garments=(flats[match[1]],) if match[1] in flats else (),
                    labels=(maps[name], DEEPFASHION) if name in maps else None,
                    caption=(captions or {}).get(f"{name}.jpg"),
                    view_yaw=_YAW.get(match[4]),
                ),
            )


def _split_of(item: str) -> str:
    """The same for every picture of an item, on every machine."""
    return "test" if int.from_bytes(hashlib.blake2b(item.encode(), digest_size=4).digest()) % 10 == 0 else "train"


def _captions(root: Path, missing: Missing) -> dict[str, str] | None:
    path = next(iter(sorted(root.rglob("captions.json"))), None)
    if path is None:
        missing.check("captions", "captions.json", False)
        return None
    try:
        captions = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path}: {e}: unpack it again, or take it away to go without captions") from None
    if not isinstance(captions, dict) or not all(isinstance(c, str) for c in captions.values()):
        raise ValueError(f"{path}: must be one object of file names and captions")
    return captions


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
        for path, unique in _walk(root)
        if missing.check("picture of a kind that can be read", path, _is_picture(path))
        and missing.check(f"row in {PAIRS}", path, not path.startswith("garments/"))
    )
    if (first := next(photos, None)) is None:
        raise _not_a("folder of photos", root, f"pictures ({', '.join(SUFFIXES)})")
    for path, unique in chain([first], photos):
        item_id = _id_of(path if unique else path.replace(".", "_"))
        yield item_id, Entry(path, "train", person_id=item_id, outfit_id=item_id)


def _is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _walk(root: Path) -> Iterator[tuple[str, bool]]:
    """Files in order, and whether no other picture of the folder has the same name without the suffix."""
    for folder, below, names in os.walk(root):
        below[:] = sorted(b for b in below if not b.startswith("."))
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
    for path, _ in _walk(root):
        missing.check(f"row in {PAIRS}", path, path == PAIRS or path in named)


def _pair_rows(root: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of the list, each with the number of its line."""
    with (root / PAIRS).open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, restval="")
        columns = rows.fieldnames or []
        if "photo" not in columns or (unknown := [c for c in columns if c not in _COLUMNS]):
            given = ", ".join(unknown) if "photo" in columns else "no column 'photo'"
            raise ValueError(f"{root / PAIRS}: {given}; the columns are {', '.join(_COLUMNS)}")
        yield from ((rows.line_num, row) for row in rows)


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
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).lstrip("-._")[-180:]
    code = hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()
    return plain if plain == stem else f"{plain}-{code}".lstrip("-")


def _names(root: Path, folder: str, missing: Missing, *suffixes: str) -> list[set[str]]:
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


def _pair_list(root: Path, name: str) -> list[list[str]]:
    """Lines of a pair list, split at blanks; none if there is no list."""
    path = root / name
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return [line.split() for line in text.splitlines() if line.strip()]


def _not_a(what: str, root: Path, expected: str) -> ValueError:
    found = sorted(os.listdir(root))
    shown = ", ".join(found[:8]) + (", ..." if len(found) > 8 else "") if found else "nothing"
    return ValueError(f"{root} is no {what}: expected {expected}; found {shown}")


# ------------------------------------------------------------------------------------------------- an entry to a record


def convert(item_id: str, entry: Entry, out: Path, *, stage: str, root: Path) -> list[dict[str, Any]]:
    """Work of the runner: one entry of a data set to one record.

    Raises:
        ValueError: a picture that can't be read, a map that does not fit, a path that leads out of the data set.
    """
    person, size = _take(root, entry.person, out, f"person/{item_id}")
    garments = []
    for category, path in entry.garments:
        garments.append(GarmentRef(category, _take(root, path, out, f"garment/{item_id}-{category}")[0]))
    maps = None
    if entry.labels is not None:
        (path, names), parts = entry.labels, f"parts/{item_id}.png"
        maps = Maps(parts)
        write_image(out / parts, to_parts(read_labels(resolve(root, path)), names, size))
    record = Record(
        id=item_id,
        split=entry.split,
        person_id=entry.person_id,
        outfit_id=entry.outfit_id,
        file_name=person,
        garments=tuple(garments),
        maps=maps,
        caption=entry.caption,
        view_yaw=entry.view_yaw,
        provenance={"stage": stage, "source": entry.person},
    )
    return [as_line(record)]


def _take(root: Path, path: str, out: Path, target: str) -> tuple[str, tuple[int, int]]:
    """Bring a picture over; its new path (with suffix) and (H, W)."""
    source = resolve(root, path)
    image = read_image(source)
    with Image.open(source) as raw:
        kind = {"JPEG": ".jpg", "PNG": ".png"}.get(raw.format or "", "")
        plain = raw.mode == "RGB" and "transparency" not in raw.info and raw.getexif().get(0x0112, 1) == 1
    if kind and plain:
        link(source, out / (target + kind))
    else:
        kind = ".png"
        write_image(out / (target + kind), np.asarray(image))
    return target + kind, (image.height, image.width)


# ---------------------------------------------------------------------------------------------------- the command line

_SCANS: dict[str, Scan] = {
    "vitonhd": scan_vitonhd,
    "dresscode": scan_dresscode,
    "deepfashion-mm": scan_deepfashion,
    "folder": scan_folder,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the stages vitonhd, dresscode, deepfashion-mm and folder: where the data set lies."""
    stage = parser.get_default("stage")
    what = "folder of photos" if stage == "folder" else "root of the data set, as it unpacks (see below)"
    add_source(parser, "images", images=what)
    parser.epilog = " ".join((_SCANS[stage].__doc__ or "").split())


def main(args: argparse.Namespace) -> Outcome:
    """Read a data set into records; what is missing is said and listed in ``missing.jsonl``."""
    with Missing(args.out) as missing:
        entries = islice(_SCANS[args.stage](args.images, missing), args.limit)
        work = partial(convert, stage=args.stage, root=args.images)
        outcome = run_stage(args.stage, entries, work, args.out, workers=args.workers, engine=args.engine)
    return missing.tell(args.stage, outcome)
