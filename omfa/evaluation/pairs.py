"""What is predicted and scored: one item a picture, and who wears whose garments.

Paired, a person wears their own garments and the true picture exists; unpaired, those of another record, the donor.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omfa.components import CLOTHES, Category, TaskKind
from omfa.files import read_text
from omfa.records.prepared import GarmentRef, Record
from omfa.records.worn import clothes


@dataclass(frozen=True)
class Item:
    """One prediction to score.

    Args:
        record: whose picture it is (try-on) or whose garment (try-off).
        category: the garment of a try-off; None for try-on.
        donor: the record whose garments an unpaired try-on wears; None for paired.
    """

    record: Record
    category: Category | None = None
    donor: Record | None = None

    @property
    def key(self) -> str:
        """Name of the prediction's file, without its suffix."""
        return self.record.id if self.category is None else f"{self.record.id}.{self.category}"

    @property
    def garment(self) -> GarmentRef | None:
        """The record's garment of ``category``."""
        return next((g for g in clothes(self.record) if g.category == self.category), None)

    @property
    def truth(self) -> str:
        """Path of the true picture, relative to the records folder."""
        garment = self.garment
        return self.record.file_name if garment is None else garment.path


@dataclass(frozen=True)
class Selection:
    """Which records; None: all of them.

    Args:
        split: only those of this split.
        max_yaw: only those turned by at most so many degrees.
        limit: only the first so many pictures, counted after pairing.
        categories: of try-off, only garments of these.
    """

    split: str | None = None
    max_yaw: float | None = None
    limit: int | None = None
    categories: tuple[str, ...] | None = None

    def of(self, records: Iterable[Record]) -> list[Record]:
        """Records of the split, turned by at most ``max_yaw``, in order."""
        found = [r for r in records if self.split in (None, r.split)]
        return [
            r for r in found if self.max_yaw is None or (r.view_yaw is not None and abs(r.view_yaw) <= self.max_yaw)
        ]


ALL = Selection()


def make_items(
    chosen: Sequence[Record],
    task: TaskKind,
    donors: Mapping[str, str] | None,
    every: Sequence[Record],
    limit: int | None = None,
    categories: Collection[str] | None = None,
) -> tuple[Item, ...]:
    """One item a picture: what is predicted is what is scored.

    Args:
        chosen: whose pictures, in order; a record without garments has none to make.
        task: TRY_ON or TRY_OFF.
        donors: unpaired try-on: id to the id of the record whose garments are worn; None for paired.
        every: all records, donors among them.
        limit: only the first so many.
        categories: of try-off, only garments of these; None: of all.

    Raises:
        ValueError: a donor that is no record, or categories for try-on, which puts on whole outfits.
    """
    if categories is not None and task != TaskKind.TRY_OFF:
        raise ValueError("--category is for try_off; a try_on puts all garments on")
    by_id = {r.id: r for r in every}
    unknown = sorted(set((donors or {}).values()) - set(by_id))
    if unknown:
        raise ValueError(f"predictions wear garments of {unknown[0]!r}, which is no record; give the right --records")
    if task == TaskKind.TRY_OFF:
        wanted = CLOTHES if categories is None else categories
        items = [Item(r, g.category) for r in chosen for g in clothes(r) if g.category in wanted]
    elif donors is None:
        items = [Item(r) for r in chosen if clothes(r)]
    else:
        items = [Item(r, donor=by_id[donors[r.id]]) for r in chosen if r.id in donors]
    return tuple(items[:limit])


def unpaired_donors(records: Sequence[Record], seed: int = 0) -> dict[str, str]:
    """Whose garments each record wears: another person's outfit, the same for all pictures of an outfit.

    The outfits are shuffled and each takes the next one of another person in that circle.

    Raises:
        ValueError: all records show one person.
    """
    outfits: dict[str, Record] = {}
    for record in records:
        if clothes(record):
            outfits.setdefault(record.outfit_id, record)
    names = sorted(outfits)
    random.Random(seed).shuffle(names)
    if len({outfits[n].person_id for n in names}) < 2:
        raise ValueError("unpaired try-on needs records of at least two persons")
    donor = {}
    for at, name in enumerate(names):
        ahead = (names[(at + k) % len(names)] for k in range(1, len(names)))
        donor[name] = next(outfits[n].id for n in ahead if outfits[n].person_id != outfits[name].person_id)
    return {r.id: donor[r.outfit_id] for r in records if r.outfit_id in donor}


def donors_from_file(path: Path, records: Sequence[Record]) -> tuple[dict[str, str], list[str]]:
    """Pairs from a text file: on each line the person's record and the record whose garments they wear.

    A name is a record's id or the file it was made from, as the lists of VITON-HD (``00055_00.jpg 00069_00.jpg``) and
    DressCode (``048462_0.jpg 049951_1.jpg``, perhaps with the category's number behind) give them.

    Returns:
        The person's id to the garments'; the lines that name no record here, or garments of a record that has none.

    Raises:
        ValueError: a line that is no pair, a person listed twice, a name of several records, or no pair of records.
    """
    ids, made_from = {r.id for r in records}, _ids_by_source(records)
    dressed = {r.id for r in records if clothes(r)}
    found: dict[str, str] = {}
    absent = []
    lines = read_text(path).splitlines()
    for number, line in enumerate(lines, 1):
        words, where = line.split(), f"{path}:{number}: {line.strip()!r}"
        if not words:
            continue
        if len(words) not in (2, 3):
            raise ValueError(f"{where} must be two names, the person's and the garments'")
        named = []
        for word in words[:2]:
            name = word if word in ids else word.rsplit(".", 1)[0]
            named.append({name} if name in ids else made_from.get(name, set()))
            if len(named[-1]) > 1:
                raise ValueError(f"{where}: {word} stands for {', '.join(sorted(named[-1]))}; give ids, or a --split")
        if not named[0] or not named[1] & dressed:
            absent.append(where)
            continue
        (person,), (donor,) = named
        if person in found:
            raise ValueError(f"{where}: {person} is listed twice, and there is one picture a record; keep one line")
        found[person] = donor
    if not found:
        first = f"; the first: {absent[0]}" if absent else ""
        raise ValueError(f"no line of {path} names records with garments, by id or by source file{first}")
    return found, absent


def _ids_by_source(records: Sequence[Record]) -> dict[str, set[str]]:
    """Name of the file a record was made from, without suffix, to ids; DressCode's garments have their person's."""
    found: dict[str, set[str]] = {}
    for record in records:
        source = record.provenance.get("source")
        if not isinstance(source, str):
            continue
        name = Path(source).stem
        found.setdefault(name, set()).add(record.id)
        if record.provenance.get("stage") == "dresscode":
            found.setdefault(name.removesuffix("_0") + "_1", set()).add(record.id)
    return found
