"""Training a composer on records whose bodies are all known: absolute error of pixels and of their differences.

Three tasks are drawn: a garment off its photo (framed anew, see :mod:`omfa.training.drafted`), a person in the given
garments, and the same with a portrait, the photo in which other clothes are worn, to be kept. ``B`` examples of a
batch, ``H W`` pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import default_collate

from omfa.bodies.body import load_body
from omfa.composer import KINDS, Composer, Composition, Given, check_tasks, given
from omfa.evaluation.metrics import psnr
from omfa.images import enlarged, pixels_to_tensor
from omfa.records.prepared import Record
from omfa.records.stream import seeded
from omfa.records.worn import clothes
from omfa.training.decoded import Decoder
from omfa.training.drafted import Array, Drafted, Drafter, drafted
from omfa.training.model_card import About, forget_origins
from omfa.training.parts import TrainedModule
from omfa.training.rates import Rates
from omfa.training.streaming import RecordExamples, StreamDataModule

FARTHEST_YAW = 100  # degrees; from farther round, a photo shows nothing of a shop picture


@dataclass(frozen=True)
class ComposerExample:
    """One example, or ``B`` of them.

    Args:
        layers: what is given, (3, H, W) and so on each; see :func:`omfa.composer.given`.
        kind: () index into KINDS.
        truth: (3, H, W) in [-1, 1].
        area: (1, H, W) of 0 and 1, where the garment or the person truly is.
    """

    layers: Given
    kind: Tensor
    truth: Tensor
    area: Tensor


@dataclass(frozen=True)
class Shares:
    """How often each task is drawn, and how often the draft is missing.

    Args:
        try_off: a garment off its photo.
        try_on: a person in the given garments.
        keep: the same with the photo to be kept.
        no_draft: probability.
    """

    try_off: float = 0.5
    try_on: float = 0.25
    keep: float = 0.25
    no_draft: float = 0.1

    def __post_init__(self) -> None:
        if min(vars(self).values()) < 0 or self.try_off + self.try_on + self.keep <= 0 or self.no_draft > 1:
            raise ValueError(f"{self}: shares must be at least 0 and not all 0, no_draft at most 1")

    def draw(self, u: float) -> str:
        """``try_off``, ``try_on`` or ``keep``, for a number in [0, 1)."""
        place = u * (self.try_off + self.try_on + self.keep)
        return "try_off" if place < self.try_off else "try_on" if place < self.try_off + self.try_on else "keep"


def rng_of(seed: int, name: str) -> np.random.Generator:
    """A stream that depends on these alone."""
    return np.random.default_rng(int(torch.randint(2**62, (), generator=seeded(seed, "draft", name))))


class ComposerExamples(RecordExamples[ComposerExample]):
    """Records as examples for a composer.

    Args:
        folder: of records as files, with body parameters of people and of garments.
        kept: a folder for drafts; those that are not there yet are made.
        size: (H, W).
        shares: of the tasks.
        nudges: drafts of each target, framed and wrong in different ways.
        model: whose pictures are given, too; None: none.
        split, seed: see :class:`RecordExamples`.
    """

    def __init__(
        self, folder: str | Path, kept: str | Path, size: Sequence[int], shares: Shares, nudges: int = 1,
        model: str | None = None, split: str | None = "train", seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(folder, split, seed)
        self.kept, self.shares, self.nudges = Path(kept), shares, nudges
        self.drafter = Drafter(load_body(), Path(folder), (int(size[0]), int(size[1])))
        self.decoder = None if model is None else Decoder(model, self.drafter, self.kept)

    def example(self, record: Record, generator: torch.Generator) -> ComposerExample:
        """See :class:`RecordExamples`."""
        u = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
        task = self.shares.draw(u[0])
        if task == "try_off" and abs(record.view_yaw or 0) > FARTHEST_YAW:
            others = self.shares.try_on + self.shares.keep
            task = "try_on" if u[1] * others < self.shares.try_on else "keep"
        if record.portrait is None:
            task = "try_on" if task == "keep" else task
        elif task == "try_on" and self.shares.keep and record.provenance.get("photographic"):
            task = "keep"  # nothing given tells the room of a new picture: learned from these, all walls would be grey
        worn = clothes(record)
        garment = worn[int(u[1] * len(worn))].category.value
        target = {"try_off": garment, "try_on": "person", "keep": "portrait"}[task]
        name = f"{record.id}-{target}-{int(u[2] * self.nudges)}"
        made, picture = drafted(self.drafter, record, target, self.kept, rng_of(self.seed, name), name), None
        if self.decoder is not None:
            picture = self.decoder.decoded(record, target, rng_of(self.seed, name), name)
        if u[3] < 0.5:
            made, picture = made.mirrored(), None if picture is None else picture[:, ::-1]
        kind = garment if task == "try_off" else "person"
        return as_example(made, kind, task == "keep", u[4] >= self.shares.no_draft, picture)

    def collate(self, examples: list[ComposerExample]) -> ComposerExample:
        """A batch."""
        layers = Given(*(default_collate(list(x)) for x in zip(*(e.layers for e in examples), strict=True)))
        rest = [default_collate([getattr(e, n) for e in examples]) for n in ("kind", "truth", "area")]
        return ComposerExample(layers, *rest)


def as_example(
    made: Drafted, kind: str, keep: bool = False, with_draft: bool = True, decoded: Array | None = None
) -> ComposerExample:
    """An example for a composer.

    Args:
        made: what is kept of it.
        kind: of KINDS, what the target is.
        keep: give the photo too, where there is one.
        with_draft: give the draft.
        decoded: (h, w, 3) uint8, what a model made; brought to the draft's size.
    """
    photo = pixels_to_tensor(made.photo)[None] if keep and made.photo is not None else None
    valid = torch.from_numpy(made.valid > 127)[None, None] & with_draft
    large = None if decoded is None else enlarged(pixels_to_tensor(decoded)[None], made.valid.shape)
    looks = torch.from_numpy(made.likeness.copy()).permute(2, 0, 1)[None].float() / 255
    looks[:, :2] *= with_draft
    looks[:, 2:] *= photo is not None
    surface = pixels_to_tensor(made.surface)[None]
    layers = given(pixels_to_tensor(made.draft)[None], valid, surface, large, photo, likeness=looks)
    area = torch.from_numpy(made.area.copy())[None].float() / 255
    number = torch.tensor(KINDS.index(kind))
    return ComposerExample(Given(*(x[0] for x in layers)), number, pixels_to_tensor(made.truth), area)


class ComposerDataModule(StreamDataModule):
    """Records as a composer's examples; see :class:`ComposerExamples`.

    Args:
        folder: of records, with body parameters.
        kept: a folder for drafts, made where they are not there yet.
        size: (height, width) in pixels.
        shares: of the tasks.
        nudges: drafts of each target.
        model: whose decoded pictures are given, too: a folder, or a model that ships; None: none.
        split: which records.
        batch_size: examples per process and batch.
        workers: loader processes.
        seed: seeds order, tasks and drafts.
    """

    def __init__(
        self,
        folder: str,
        kept: str,
        size: list[int],
        shares: Shares | None = None,
        nudges: int = 1,
        model: str | None = None,
        split: str | None = "train",
        batch_size: int = 16,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, workers, seed)
        if len(size) != 2 or min(size) < 16 or nudges < 1:
            raise ValueError(f"size {size} must be height and width in pixels, nudges {nudges} 1 or more")
        self.folder, self.kept, self.size, self.split = folder, kept, size, split
        self.shares, self.nudges, self.model = shares or Shares(), nudges, model

    def dataset(self) -> ComposerExamples:
        """The records."""
        return ComposerExamples(
            self.folder, self.kept, self.size, self.shares, self.nudges, self.model, self.split, self.seed
        )  # fmt: skip


class ComposerModule(TrainedModule):
    """Trains a composer.

    Args:
        channels, size, shrink: of :class:`omfa.composer.Composer`; a ``start`` has its own.
        start: a composer's folder to begin with; None: from nothing.
        decoded: of :data:`omfa.composer.TASKS`, those in which it is given what a latent model decoded: the data's
            ``model``. None: ``start``'s, or none.
        only_decoded: train the weights alone that read what was decoded. Without it, pictures stay ``start``'s, bit for
            bit; so new pictures can be learned and nothing of real photographs forgotten. No weight decay then.
        learning_rate: AdamW's, after warm-up.
        weight_decay: AdamW's.
        warmup_steps, decay_from: as in :class:`omfa.training.rates.Rates`.
        edge_weight: of the error of differences between neighbours; keeps lettering and outlines sharp.
        coarse_weight: of the error of means over squares of 8 and of 32 pixels; finds colours sooner.
        matte_weight: of the cross entropy of a shop picture's matte.
        texture_weight: of the error of contrast within squares of 8 pixels: between two patterns that are a little off
            their mean is nearest to both, and shows neither.
    """

    def __init__(
        self,
        channels: list[int],
        size: list[int],
        shrink: int = 2,
        start: str | None = None,
        decoded: list[str] | None = None,
        only_decoded: bool = False,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        warmup_steps: int = 50,
        decay_from: float = 0.5,
        edge_weight: float = 0.5,
        coarse_weight: float = 0.5,
        texture_weight: float = 0.0,
        matte_weight: float = 0.2,
    ) -> None:
        super().__init__(Rates(learning_rate, 0.0 if only_decoded else weight_decay, warmup_steps, decay_from))
        self.composer = Composer(channels, size, shrink) if start is None else Composer.from_pretrained(start).train()
        if decoded is not None:
            check_tasks(decoded)
            self.composer.register_to_config(decoded=decoded)
        if only_decoded:
            self.composer.train_decoded_alone()
        self.edge_weight, self.coarse_weight, self.texture_weight = edge_weight, coarse_weight, texture_weight
        self.matte_weight = matte_weight

    def losses(self, batch: ComposerExample) -> Tensor:
        """Each example's loss, (B,)."""
        made: Composition = self.composer(batch.layers, batch.kind)
        weights = self.edge_weight, self.coarse_weight, self.texture_weight
        found = picture_error(made.picture, batch.truth, batch.area, *weights)
        matte = made.matte.float().clamp(1e-6, 1 - 1e-6)
        matted = F.binary_cross_entropy(matte, batch.area, reduction="none").mean((1, 2, 3))
        found = found + self.matte_weight * torch.where(batch.kind > 0, matted, 0.0)
        with torch.no_grad():
            seen = psnr((made.picture.clamp(-1, 1) + 1) / 2, (batch.truth + 1) / 2, batch.area)
            kept = batch.layers.has_photo.amax((1, 2, 3)) > 0
            tasks = {"try_off": batch.kind > 0, "try_on": (batch.kind == 0) & ~kept, "keep": kept}
            for name, chosen in tasks.items():
                if chosen.any():
                    self.log(f"psnr/{name}", seen[chosen].nanmean(), batch_size=int(chosen.sum()))
        return found

    def save(self, folder: Path, whole: bool = False, dtype: torch.dtype | None = None) -> None:
        """See :class:`omfa.training.parts.Saves`; the folder is one that ``Composer.from_pretrained`` reads."""
        torch.nn.Module.to(deepcopy(self.composer), dtype).save_pretrained(folder)
        forget_origins(folder)

    def about(self, folder: Path) -> About:
        """See :class:`omfa.training.parts.Describes`."""
        code = "from omfa.composer import Composer\n\ncomposer = Composer.from_pretrained(FOLDER)"
        return About(
            title="OMFA composer",
            tags=("virtual-try-on", "virtual-try-off", "image-to-image"),
            what="Puts a picture together from a draft, a photo to be kept, and what a diffusion model decoded.",
            use=f"```python\n{code}\n```",
            terms="",
        )


def picture_error(
    made: Tensor, truth: Tensor, area: Tensor, edges: float, coarse: float, texture: float = 0.0
) -> Tensor:
    """Absolute errors, (B,): of pixels, of differences between neighbours, of means and of contrast over squares.

    Args:
        made, truth: (B, 3, H, W) in [-1, 1].
        area: (B, 1, H, W) of 0 and 1: pixels here count three times as much as the others.
        edges, coarse, texture: weights of the last three.
    """
    error, weight = made - truth, 0.5 + area
    total = (error.abs() * weight).mean((1, 2, 3))
    total = total + edges * (error.diff(dim=-1).abs() * weight[..., 1:]).mean((1, 2, 3))
    total = total + edges * (error.diff(dim=-2).abs() * weight[..., 1:, :]).mean((1, 2, 3))
    eighth = F.avg_pool2d(error * weight, 8)
    for means in (eighth, F.avg_pool2d(eighth, 4)):
        total = total + coarse / 2 * means.abs().mean((1, 2, 3))
    if texture:
        off = (_contrast(made) - _contrast(truth)).abs() * F.avg_pool2d(weight, 8, 4)
        total = total + texture * off.mean((1, 2, 3))
    return total


def _contrast(picture: Tensor) -> Tensor:
    """(B, 3, h, w) standard deviations within squares of 8 pixels, every 4."""
    spread = F.avg_pool2d(picture.square(), 8, 4) - F.avg_pool2d(picture, 8, 4).square()
    return (spread.clamp_min(0) + 1e-3).sqrt()
