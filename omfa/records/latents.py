"""Latents encoded ahead, as they lie on disk: a file a record, and a note on what made them.

A file holds the posterior of each picture of a record, (2C, h, w) float16 (mean and log-variance) by its name in
:func:`omfa.records.prepared.record_pictures`. ``C`` latent channels, ``h w`` latents of the picture.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from omfa.files import read_text, whole
from omfa.records.drawn import drawn_files
from omfa.records.prepared import Record, RecordError, record_pictures
from omfa.records.shards import Source
from omfa.records.worn import wearable

DRAFTS = ("none", "surface")
MADE_FROM = "made_from"  # in the metadata of a file of latents


def encoded_file(folder: Path, record_id: str) -> Path:
    """Where ``omfa.encode`` keeps a record's posteriors; folders by hash keep directories small."""
    return folder / hashlib.sha256(record_id.encode()).hexdigest()[:2] / f"{record_id}.safetensors"


def lacks(path: Path, record: Record) -> list[str]:
    """Names of a record's pictures that a file of latents does not hold; all where there is no whole file."""
    try:
        with safe_open(path, "pt") as file:
            there = set(file.keys())
    except (OSError, SafetensorError):
        there = set()
    return [name for name in record_pictures(record) if name not in there]


def read_encoding(folder: Path) -> dict[str, Any]:
    """What ``omfa.encode`` wrote about a folder of latents: ``person_size``, ``vae`` (a fingerprint), ``draft``,
    and ``join`` and ``accessories`` of the model that drafts are for.

    Raises:
        RecordError: no such folder, or it was made by something else.
    """
    path = folder / "encoding.json"
    try:
        made = json.loads(read_text(path))
        size = [int(n) for n in made["person_size"]]
        drawn = {"draft": str(made.get("draft", "none")), "join": str(made.get("join", "canvas"))}
        return {"person_size": size, "vae": str(made["vae"]), **drawn, "accessories": list(made.get("accessories", []))}
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise RecordError(f"{path}: no latents of omfa.encode ({type(e).__name__}: {e})") from None


class Latents:
    """A folder of latents that ``omfa.encode`` made, to train from in place of pictures.

    Args:
        folder: its ``--out``.

    Raises:
        RecordError: no such folder, or it was made by something else.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        made = read_encoding(self.folder)
        self.person_size, self.vae, self.draft = made["person_size"], made["vae"], made["draft"]
        self.join, self.accessories = made["join"], made["accessories"]

    def check(
        self,
        records: Sequence[Record],
        size: Sequence[int],
        draft: str = "none",
        join: str = "canvas",
        accessories: Collection[str] = (),
    ) -> None:
        """Refuse latents of person pictures of another size than (height, width), or that lack pictures or drafts, or
        whose drafts show other garments than a model of that ``join`` is given.

        Raises:
            RecordError: they don't fit, and how to make those that do.
        """
        if self.person_size != list(size):
            raise RecordError(
                f"{self.folder} holds latents of {self.person_size} pictures, the model's are {list(size)}: "
                "encode them anew"
            )
        if draft not in ("none", self.draft):
            raise RecordError(f"{self.folder} holds no drafts: run the same python -m omfa.encode with --draft {draft}")
        drawn = partial(wearable, join=self.join, accessories=self.accessories)
        others = [r.id for r in records if [*drawn(r)] != [*wearable(r, join, accessories)]]
        if draft != "none" and others:
            how = " ".join([f"--join {join}", *(["--accessories", *accessories] if accessories else [])])
            raise RecordError(
                f"{self.folder} holds drafts of other garments than this model is given, the first one of "
                f"{others[0]!r}: encode them anew with {how}"
            )
        lacking = {r.id: names for r in records if (names := lacks(encoded_file(self.folder, r.id), r))}
        if lacking:
            first, names = next(iter(lacking.items()))
            raise RecordError(
                f"{self.folder} lacks latents of {len(lacking)} of {len(records)} records, the first one {first!r} "
                f"({', '.join(names)}): run the same python -m omfa.encode again"
            )

    def of(self, record: Record) -> dict[str, Tensor]:
        """Posteriors of all of a record's pictures: name to (2C, h, w) float16."""
        return load(encoded_file(self.folder, record.id).read_bytes())


class Hashes:
    """What latents are made from: a hash of a record's pictures, which moves and copies of the files don't change.

    Args:
        source: of the records.
        drawn: whether the files that drafts are drawn from count, too.
    """

    def __init__(self, source: Source, drawn: bool = False) -> None:
        self.source, self.drawn, self._known = (
            source,
            drawn,
            dict[str, bytes](),
        )  # views of one outfit share their garments

    def of(self, record: Record) -> str:
        """64 hex digits of the bytes of all pictures by name.

        Raises:
            RecordError: a file that is not there.
        """
        digest = hashlib.sha256()
        files = record_pictures(record) | (drawn_files(record) if self.drawn else {})
        for name, path in sorted(files.items()):
            if path not in self._known:
                self._known[path] = hashlib.sha256(self.source.read(path)).digest()
            digest.update(name.encode() + b"\0" + self._known[path])
        return digest.hexdigest()

    def match(self, record: Record, path: Path) -> bool:
        """Whether a file of latents was made from the record's pictures as they are."""
        try:
            with safe_open(path, "pt") as file:
                return (file.metadata() or {}).get(MADE_FROM) == self.of(record)
        except (OSError, RecordError, SafetensorError):
            return False


def write_latents(
    out: Path, records: Sequence[Record], made: Sequence[dict[str, Tensor]], hashes: Hashes | None = None
) -> None:
    """A file for each record, whole or not at all; with ``hashes`` it says what it was made from.

    Raises:
        Unwritable: it can't be written.
    """
    for record, tensors in zip(records, made, strict=True):
        data = save(tensors, None if hashes is None else {MADE_FROM: hashes.of(record)})
        with whole(encoded_file(out, record.id)) as part:
            part.write_bytes(data)
