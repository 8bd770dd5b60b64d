"""Somebody else's model over OMFA's records: its own network, examples and batches, and no word of the canvas."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import default_collate

from omfa import images
from omfa.components import Category
from omfa.records.latents import Latents
from omfa.records.prepared import Record
from omfa.records.shards import Source
from omfa.records.stream import draw_noise, read_fitted
from omfa.training.parts import Sampling, TrainedModule
from omfa.training.rates import Rates
from omfa.training.streaming import RecordExamples, StreamDataModule

SIZE = 16, 12


@dataclass(frozen=True)
class Pairs:
    """Person and garment (B, 3, H, W) or their posteriors, what the garments are, and states of generators."""

    id: list[str]
    pictures: dict[str, Tensor]
    worn: list[Category]
    generator: list[bytes]


class PairExamples(RecordExamples[dict[str, Any]]):
    """A person and the first garment, as pictures or from latents encoded ahead."""

    def __init__(self, folder: str, split: str | None, seed: int, latents: str | None) -> None:
        super().__init__(folder, split, seed)
        self.latents = None if latents is None else Latents(latents)

    def example(self, record: Record, generator: torch.Generator) -> dict[str, Any]:
        worn = record.garments[0].category
        if self.latents is None:
            pictures = {
                k: read_fitted(self.source, record, v, SIZE) for k, v in (("person", "person"), ("cloth", worn))
            }
        else:
            ahead = self.latents.of(record)
            pictures = {k: ahead[v][:3].float() for k, v in (("person", "person"), ("cloth", worn))}
        state = generator.get_state().numpy().tobytes()
        return {"id": record.id, "pictures": pictures, "worn": worn, "generator": state}

    def collate(self, examples: list[dict[str, Any]]) -> Pairs:
        listed = {name: [e[name] for e in examples] for name in ("id", "worn", "generator")}
        return Pairs(pictures=default_collate([e["pictures"] for e in examples]), **listed)


class PairData(StreamDataModule):
    """Pairs of a records folder."""

    def __init__(self, folder: str, batch_size: int = 2, workers: int = 0, latents: str | None = None) -> None:
        super().__init__(batch_size, workers, seed=0)
        self.folder, self.split, self.latents = folder, "train", latents

    def dataset(self) -> PairExamples:
        return PairExamples(self.folder, self.split, self.seed, self.latents)


class Stranger(TrainedModule):
    """Guesses the garment from the person by one convolution, behind a frozen one."""

    def __init__(self, learning_rate: float = 0.01) -> None:
        super().__init__(Rates(learning_rate, warmup_steps=0))
        self.eyes = nn.Conv2d(3, 3, 1).requires_grad_(False)
        self.hand = nn.Conv2d(3, 3, 3, padding=1)

    def losses(self, batch: Pairs) -> Tensor:
        person, cloth = batch.pictures["person"], batch.pictures["cloth"]
        seen = person + 0.1 * draw_noise(batch.generator, person.shape[1:]).to(person)
        return (self.hand(self.eyes(seen)) - cloth).square().mean((1, 2, 3))

    def save(self, folder: Path, whole: bool = False, dtype: torch.dtype | None = None) -> None:
        folder.mkdir()
        save_file(
            {k: v.detach().to(dtype).contiguous() for k, v in self.state_dict().items()}, folder / "w.safetensors"
        )

    picture_size = SIZE

    def sample(self, source: Source, record: Record, how: Sampling) -> list[list[Image.Image]]:
        person = read_fitted(source, record, "person", SIZE)
        made = self.hand(self.eyes(person[None])).clamp(-1, 1)
        return [[Image.fromarray(p) for p in images.tensor_to_pixels(torch.cat([person[None], made]))]]
