"""Records as OMFA's training examples: which task, what is hidden, which pictures or latents.

``C`` latent channels, ``H W`` pixels, ``h w`` latents of the canvas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kornia
import torch
from torch import Tensor
from torch.utils.data import default_collate

from omfa.canvas import FACE, PERSON, Canvas
from omfa.components import JOINT, TRY_OFF, TRY_ON, Component, Task
from omfa.conditioning import Drops, Layout
from omfa.pipeline import OMFAPipeline
from omfa.prompts import TextEncoders, phrases
from omfa.records.latents import Latents
from omfa.records.prepared import Record, RecordError
from omfa.records.stream import read_fitted
from omfa.training.streaming import RecordExamples, StreamDataModule

TRAIN_STEPS = 1000


@dataclass(frozen=True)
class TaskWeights:
    """How often each task is drawn.

    Args:
        try_on, try_off, joint: weights, not negative, not all zero.
    """

    try_on: float = 0.45
    try_off: float = 0.45
    joint: float = 0.10

    def __post_init__(self) -> None:
        if min(self.try_on, self.try_off, self.joint) < 0 or self.try_on + self.try_off + self.joint <= 0:
            raise ValueError(f"task weights {self} must be at least 0, and not all of them 0")

    def draw(self, generator: torch.Generator) -> Task:
        """One task."""
        weights = torch.tensor([self.try_on, self.try_off, self.joint], dtype=torch.float64)
        return (TRY_ON, TRY_OFF, JOINT)[int(torch.multinomial(weights, 1, generator=generator))]


@dataclass(frozen=True)
class Example:
    """One training example.

    Args:
        id: record id.
        layout: what is a target, what is given.
        pixels: slot name to (3, H, W) in [-1, 1], or where ``encoded`` to the posterior (2C, H/f, W/f) of
            ``omfa.encode``; slots that are not in the layout are constant, and are not looked at.
        pose: the pose map, likewise; not looked at where ``has_pose`` is False.
        has_pose: whether the network sees the pose.
        unconditional: whether everything given is dropped.
        t: timestep of each draw of the noise.
        generator: state of the example's own generator, for :func:`omfa.records.stream.draw_noise`.
        encoded: whether ``pixels`` and ``pose`` are posteriors; the same for a whole data set.
    """

    id: str
    layout: Layout
    pixels: dict[str, Tensor]
    pose: Tensor
    has_pose: bool
    unconditional: bool
    t: tuple[int, ...]
    generator: bytes
    encoded: bool = False


@dataclass(frozen=True)
class Batch:
    """``B`` examples: pictures (B, ...) by slot, pose maps (B, ...), and a list of B of every other field.

    Fields are named as those of :class:`Example`.
    """

    id: list[str]
    layout: list[Layout]
    pixels: dict[str, Tensor]
    pose: Tensor
    has_pose: list[bool]
    unconditional: list[bool]
    t: list[tuple[int, ...]]
    generator: list[bytes]
    encoded: bool = False


def collate(examples: Sequence[Example]) -> Batch:
    """A batch of examples: pictures to tensors (B, ...), in a worker right into shared memory; the rest to lists."""
    return Batch(
        id=[e.id for e in examples],
        layout=[e.layout for e in examples],
        pixels={slot: default_collate([e.pixels[slot] for e in examples]) for slot in examples[0].pixels},
        pose=default_collate([e.pose for e in examples]),
        has_pose=[e.has_pose for e in examples],
        unconditional=[e.unconditional for e in examples],
        t=[e.t for e in examples],
        generator=[e.generator for e in examples],
        encoded=examples[0].encoded,
    )


@dataclass(frozen=True)
class Geometry:
    """What examples are fitted to.

    Args:
        canvas: the model's canvas.
        factor: pixels per latent on a side.
        channels: latent channels.
    """

    canvas: Canvas
    factor: int
    channels: int

    @classmethod
    def of(cls, pipe: OMFAPipeline) -> Geometry:
        """A pipeline's."""
        return cls(pipe.canvas, pipe.vae_scale_factor, pipe.vae.config.latent_channels)


@dataclass(frozen=True)
class ExampleOptions:
    """How examples are made of records.

    Args:
        split: which records; None for all.
        seed: seeds every draw.
        tasks: how often each task is drawn.
        drops: what is hidden from the network.
        jitter: largest shift (of the side) and scaling of person and pose map together, e.g. 0.05.
        latents: folder that ``omfa.encode`` made of these records; None reads the pictures.
        timesteps: the only ones to draw, one named twice twice as often; None draws all 1,000 alike. A network in a
            hurry learns those it will be sampled at: with 2 trailing steps 999 and 499. The colours of large areas
            show through most levels of noise; only near 999 must it take them from what is given.
        captions: whether the prompt ends with the record's caption.
        draws: of the noise, each with its own timestep, that share what is given; more than 1 for ``join: rows`` alone.

    Raises:
        ValueError: a number out of range.
        RecordError: latents, which can't be jittered, and jitter.
    """

    split: str | None = "train"
    seed: int = 0
    tasks: TaskWeights = field(default_factory=TaskWeights)
    drops: Drops = field(default_factory=Drops)
    jitter: float = 0.0
    latents: str | Path | None = None
    timesteps: Sequence[int] | None = None
    captions: bool = True
    draws: int = 1

    def __post_init__(self) -> None:
        named = self.timesteps
        if named is not None and not (named and all(0 <= t < TRAIN_STEPS for t in named)):
            raise ValueError(f"timesteps {named} must be one or more of 0 to {TRAIN_STEPS - 1}, or null for all")
        if not 1 <= self.draws <= 16:
            raise ValueError(f"draws {self.draws} must be in 1 to 16")
        if not 0 <= self.jitter < 0.5:
            raise ValueError(f"jitter {self.jitter} must be in [0, 0.5)")
        if self.latents is not None and self.jitter > 0:
            raise RecordError("latents are encoded ahead and can't be jittered; give jitter=0, or no latents")


class RecordsDataset(RecordExamples[Example]):
    """Records of a folder as OMFA's examples; indexed by (epoch, position).

    Args:
        folder: a records folder (``omfa.records.prepared``), or one of shards (``omfa.records.shards``).
        geometry: the model's.
        options: which records, and what is made of them.

    Raises:
        RecordError: no records with garments there, or latents made for something else.
    """

    def __init__(self, folder: str | Path, geometry: Geometry, options: ExampleOptions | None = None) -> None:
        self.options = options or ExampleOptions()
        super().__init__(folder, self.options.split, self.options.seed)
        self.canvas, self.factor, self.channels = geometry.canvas, geometry.factor, geometry.channels
        self.latents = None if self.options.latents is None else Latents(self.options.latents)
        if self.latents is not None:
            self.latents.check(self.records, [n * self.factor for n in self.canvas.person])

    def collate(self, examples: list[Example]) -> Batch:
        """A batch."""
        return collate(examples)

    def example(self, record: Record, generator: torch.Generator) -> Example:
        """Task, drops, timestep and pictures; the noise comes from where the generator then stands."""
        layout, keep_pose, unconditional = self.options.drops.draw(self.layout(record, generator), generator)
        choice = range(TRAIN_STEPS) if self.options.timesteps is None else self.options.timesteps
        t = tuple(choice[i] for i in torch.randint(len(choice), (self.options.draws,), generator=generator).tolist())
        has_pose = record.pose is not None and record.pose.map is not None
        keep_pose = keep_pose and has_pose
        look = self._pictures if self.latents is None else self._posteriors
        pixels, pose = look(record, layout, keep_pose, generator)
        state, encoded = generator.get_state().numpy().tobytes(), self.latents is not None
        return Example(record.id, layout, pixels, pose, keep_pose, unconditional, t, state, encoded)

    def layout(self, record: Record, generator: torch.Generator) -> Layout:
        """Draw a task for a record: every garment it shows and its face take their slots.

        With one garment slot, or half the time in try-off, one of several garments is drawn alone: taking off just the
        trousers is a task too.
        """
        task = self.options.tasks.draw(generator)
        u = torch.rand(2, generator=generator, dtype=torch.float64)
        worn = [g.category for g in record.garments]
        if self.canvas.garments == 1 or (task == TRY_OFF and u[0] < 0.5):
            worn = [worn[int(u[1] * len(worn))]]
        places = self.canvas.place(worn)
        present = {PERSON: Component.PERSON} | {places[c]: Component.GARMENT for c in worn}
        if record.face is not None and task != TRY_OFF:
            present[FACE] = Component.FACE
        caption = record.caption if self.options.captions else None
        return Layout(task.kind, task.states(present), {places[c]: c for c in worn}, caption)

    def _pictures(
        self, record: Record, layout: Layout, with_pose: bool, generator: torch.Generator
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Pixels of every slot of the layout and the pose map, fitted; person and pose moved together."""
        names = self._names(layout)
        pixels = {}
        for slot in self.canvas.slots:
            size = slot.height * self.factor, slot.width * self.factor
            pixels[slot.name] = (
                read_fitted(self.source, record, names[slot.name], size)
                if slot.name in layout.states
                else torch.ones(3, *size)
            )
        pose = torch.full_like(pixels[PERSON], -1.0)
        if with_pose:
            pose = read_fitted(self.source, record, "pose_map", pose.shape[-2:])
        if self.options.jitter > 0:
            pixels[PERSON], pose = moved_together([pixels[PERSON], pose], self.options.jitter, generator)
        return pixels, pose

    def _posteriors(
        self, record: Record, layout: Layout, with_pose: bool, generator: torch.Generator
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The same from latents encoded ahead: float16 posteriors (2C, h, w) of each slot."""
        assert self.latents is not None
        names, empty = self._names(layout), torch.zeros(2 * self.channels, *self.canvas.person, dtype=torch.float16)
        encoded = self.latents.of(record)
        pixels = {
            slot.name: encoded[names[slot.name]]
            if slot.name in layout.states
            else empty[:, : slot.height, : slot.width]
            for slot in self.canvas.slots
        }
        return pixels, encoded["pose_map"] if with_pose else empty

    def _names(self, layout: Layout) -> dict[str, str]:
        """Slot name to the name of its picture in :func:`omfa.records.prepared.record_files`."""
        return {PERSON: "person", FACE: "face"} | {slot: str(c) for slot, c in layout.categories.items()}


def moved_together(pictures: list[Tensor], jitter: float, generator: torch.Generator) -> list[Tensor]:
    """Shift and scale several aligned pictures (3, H, W) by one random transform; borders repeat."""
    h, w = pictures[0].shape[-2:]
    u = (torch.rand(3, generator=generator) * 2 - 1) * jitter
    scale = 1 + u[2]
    matrix = torch.tensor([[scale, 0.0, 0.0], [0.0, scale, 0.0]])
    matrix[:, 2] = torch.stack([(1 - scale) * (w - 1) / 2 + u[0] * w, (1 - scale) * (h - 1) / 2 + u[1] * h])
    both = torch.cat(pictures)[None]
    warped = kornia.geometry.warp_affine(both, matrix[None], (h, w), padding_mode="border")[0]
    return list(warped.split([p.shape[0] for p in pictures]))


class RecordsDataModule(StreamDataModule):
    """Training examples from a records folder; see :class:`RecordsDataset`.

    Args:
        folder: a records folder.
        batch_size: examples per process and batch.
        split: split to train on.
        workers: loader processes; 0 loads in the training process.
        seed: seeds order, tasks, drops, timesteps and noise.
        tasks: how often each task is drawn.
        drops: what is hidden from the network, and how often.
        jitter: largest shift and scaling of person and pose map together.
        latents: folder that ``omfa.encode`` made of these records; None encodes them in every step.
        timesteps: the only ones to train, such as [999, 499]; None for all; see :class:`RecordsDataset`.
        captions: whether prompts end with the record's caption (SDXL only); its phrases are many then.
        draws: of the noise, each with its own timestep, that share what is given (``join: rows`` alone).
    """

    def __init__(
        self,
        folder: str,
        batch_size: int = 8,
        split: str = "train",
        workers: int = 0,
        seed: int = 0,
        tasks: TaskWeights | None = None,
        drops: Drops | None = None,
        jitter: float = 0.0,
        latents: str | None = None,
        timesteps: Sequence[int] | None = None,
        captions: bool = True,
        draws: int = 1,
    ) -> None:
        super().__init__(batch_size, workers, seed)
        self.options = ExampleOptions(
            split, seed, tasks or TaskWeights(), drops or Drops(), jitter, latents, timesteps, captions, draws
        )
        self.folder, self.split, self.latents = folder, split, latents

    def dataset(self) -> RecordsDataset:
        """The records, laid out for the canvas of the pipeline in training."""
        assert self.trainer is not None
        pipe: Any = self.trainer.lightning_module.pipe
        if self.options.draws > 1 and pipe.config.join != "rows":
            raise RecordError(f"draws {self.options.draws} go with join: rows; on a canvas leave them at 1")
        data = RecordsDataset(self.folder, Geometry.of(pipe), self.options)
        if self.options.captions and pipe.slot_tokens is None:
            check_captions(data.records, pipe.texts)
        return data


def check_captions(records: Sequence[Record], texts: TextEncoders) -> None:
    """Every phrase of every record is kept, or can be encoded.

    Raises:
        RecordError: some are not, and can't.
    """
    if texts.loaded:
        return
    worn = {r.id: [g.category for g in r.garments] for r in records}
    lacking = [r.id for r in records if r.caption and not all(map(texts.keeps, phrases(worn[r.id], r.caption)))]
    if lacking:
        raise RecordError(
            f"the captions of {len(lacking)} of {len(records)} records, the first one {lacking[0]!r}, are not encoded "
            "ahead: run python -m omfa.encode again with --captions, or set data.init_args.captions false"
        )
