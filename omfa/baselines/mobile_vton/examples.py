"""Records as Mobile-VTON's training examples, from latents and embeddings made ahead.

An example is one person in two outfits: the photo to be changed, the garment's shop picture, and the photo as it is to
become. ``C`` latent channels, ``h w`` latents, ``L E`` tokens of a phrase, ``P F`` those of the image encoder.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from omfa.baselines.mobile_vton.prompts import NEGATIVE, PLAIN, PromptBook, try_on_phrase
from omfa.components import Category
from omfa.records.prepared import Record, RecordError, read_records
from omfa.records.stream import seeded
from omfa.records.worn import clothes
from omfa.training.streaming import StreamDataModule

PROMPTS, ENCODING, NOTHING = "prompts.safetensors", "encoding.json", "nothing.safetensors"


@dataclass(frozen=True)
class TryOnExample:
    """One example, or a batch of them after :func:`collate` (tensors have B rows, the first and last field lists).

    Args:
        id: record id of the target.
        target, person, garment: mean and log-variance of latents (2C, h, w).
        text: tokens of TryonNet's phrase (L, E).
        garment_text, garment_pooled: of the garment's description (L, E), (P').
        target_text, target_pooled: of the target picture's, for the teacher.
        features: of the garment's picture (P, F).
        given: 1, or 0 where everything given but the pictures' latents is dropped, as in guidance's other pass.
        generator: state of the example's own generator.
    """

    id: Any
    target: Tensor
    person: Tensor
    garment: Tensor
    text: Tensor
    garment_text: Tensor
    garment_pooled: Tensor
    target_text: Tensor
    target_pooled: Tensor
    features: Tensor
    given: Tensor
    generator: Any

    def to(self, device: torch.device) -> TryOnExample:
        """The same on a device; half precision as stored becomes float32."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return TryOnExample(**{k: v.to(device).float() if isinstance(v, Tensor) else v for k, v in values.items()})


def collate(examples: Sequence[TryOnExample]) -> TryOnExample:
    """Stack examples."""
    rows: dict[str, list[Any]] = {f.name: [getattr(e, f.name) for e in examples] for f in fields(TryOnExample)}
    stacked: dict[str, Any] = {k: default_collate(v) if isinstance(v[0], Tensor) else v for k, v in rows.items()}
    return TryOnExample(**stacked)


def target_phrase(record: Record, category: Category) -> str:
    """What the teacher is told about a picture."""
    return record.caption or f"a person wearing {PLAIN[category]}"


def sources(records: Sequence[Record]) -> dict[str, list[str]]:
    """For each record, names of photos to be changed: its portrait, or else its person in other clothes.

    Returns:
        Record id to encoded pictures ``<record id>/<name>``, of others those seen from the most alike side first.

    Raises:
        RecordError: no record has a portrait, and nobody is there in two outfits.
    """
    persons = defaultdict(list)
    for record in records:
        persons[record.person_id].append(record)

    def turned(a: Record, b: Record) -> float:
        return abs(((a.view_yaw or 0) - (b.view_yaw or 0) + 180) % 360 - 180)

    found = {}
    for record in records:
        others = [r for r in persons[record.person_id] if r.outfit_id != record.outfit_id]
        if clothes(record) and record.portrait is not None:
            found[record.id] = [f"{record.id}/portrait"]
        elif clothes(record) and others:
            near = sorted(others, key=lambda r: (turned(record, r), r.id))
            found[record.id] = [f"{r.id}/person" for r in near]
    if not found:
        raise RecordError(
            "no record has a portrait and nobody is seen in two outfits: an example needs a photo before and after a "
            "change of clothes"
        )
    return found


class TryOnDataset(Dataset[TryOnExample]):
    """Records as examples; indexed by (epoch, position). All chance is a function of (seed, epoch, record).

    Args:
        folder: a records folder.
        encoded: what :mod:`omfa.baselines.mobile_vton.encode` made of it.
        split: which records; None for all.
        seed: seeds every draw.
        drop: how often everything given is dropped.
        nearest: without a portrait the photo is drawn from so many that are seen from the most alike side.

    Raises:
        RecordError: nobody in two outfits, or records that are not encoded.
        ValueError: ``drop`` is no probability, or ``nearest`` below 1.
    """

    collate = staticmethod(collate)

    def __init__(
        self,
        folder: str | Path,
        encoded: str | Path,
        split: str | None = "train",
        seed: int = 0,
        drop: float = 0.1,
        nearest: int = 4,
    ) -> None:
        if not 0 <= drop < 1 or nearest < 1:
            raise ValueError(f"drop {drop} must be in [0, 1) and nearest {nearest} at least 1")
        records = read_records(folder, split)
        self.seed, self.drop, self.nearest, self.encoded = seed, drop, nearest, Path(encoded)
        self.sources = sources(records)
        self.records = [r for r in records if r.id in self.sources]
        lacking = [r.id for r in records if not encoded_file(self.encoded, r.id).is_file()]
        if lacking or not (self.encoded / ENCODING).is_file():
            raise RecordError(
                f"{encoded} lacks {len(lacking)} of {len(records)} records; run python -m "
                f"omfa.baselines.mobile_vton.encode --records {folder}"
            )
        self.size = tuple(json.loads((self.encoded / ENCODING).read_text())["size"])
        self.book = PromptBook.read(self.encoded / PROMPTS)
        self.nothing = load_file(self.encoded / NOTHING)["features"]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> TryOnExample:
        epoch, position = key
        record = self.records[position]
        generator = seeded(self.seed, epoch, record.id)
        u = torch.rand(3, generator=generator, dtype=torch.float64)
        worn = clothes(record)
        category = worn[int(u[0] * len(worn))].category
        near = self.sources[record.id][: self.nearest]
        photo, _, name = near[int(u[1] * len(near))].partition("/")
        dropped = bool(u[2] < self.drop)
        own, garment = load_file(encoded_file(self.encoded, record.id)), PLAIN[category]
        said = NEGATIVE if dropped else try_on_phrase(category, garment)
        text, _ = self.book.pages[said]
        garment_text, garment_pooled = self.book.pages[garment]
        target_text, target_pooled = self.book.pages[target_phrase(record, category)]
        return TryOnExample(
            id=record.id,
            target=own["person"],
            person=load_file(encoded_file(self.encoded, photo))[name],
            garment=own[str(category)],
            text=text,
            garment_text=garment_text,
            garment_pooled=garment_pooled,
            target_text=target_text,
            target_pooled=target_pooled,
            features=self.nothing if dropped else own[f"{category}.features"],
            given=torch.tensor(0.0 if dropped else 1.0),
            generator=generator.get_state().numpy().tobytes(),
        )


def encoded_file(folder: Path, record_id: str) -> Path:
    """Where a record's latents and features lie."""
    return folder / "records" / f"{record_id}.safetensors"


class TryOnDataModule(StreamDataModule):
    """:class:`TryOnDataset` for training.

    Args:
        folder, encoded, split, seed, drop, nearest: see there.
        batch_size: examples per process and batch.
        workers: loader processes.
    """

    def __init__(
        self,
        folder: str,
        encoded: str,
        split: str | None = "train",
        seed: int = 0,
        drop: float = 0.1,
        nearest: int = 4,
        batch_size: int = 32,
        workers: int = 0,
    ) -> None:
        super().__init__(batch_size, workers, seed)
        self.given = folder, encoded, split, seed, drop, nearest

    def dataset(self) -> TryOnDataset:
        """The examples."""
        return TryOnDataset(*self.given)
