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

from omfa.bodies.body import load_body
from omfa.canvas import FACE, PERSON, PORTRAIT, Canvas
from omfa.components import JOINT, TRY_OFF, TRY_ON, Category, Component, State, Task
from omfa.conditioning import Drops, Kept, Layout
from omfa.pipeline import OMFAPipeline
from omfa.prompts import check_captions, phrases
from omfa.records.drawn import Drawer
from omfa.records.latents import Latents
from omfa.records.prepared import GarmentRef, Record, RecordError
from omfa.records.stream import read_fitted
from omfa.records.worn import wearable
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
        drawn: "<slot>_map" (a garment's pose plane) and "<slot>_draft" (a target's) of a model that takes them,
            likewise; constant where they are not ``there``.
        there: names of ``drawn`` that the network sees.
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
    drawn: dict[str, Tensor] = field(default_factory=dict)
    there: tuple[str, ...] = ()


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
    drawn: dict[str, Tensor] = field(default_factory=dict)
    there: list[tuple[str, ...]] = field(default_factory=list)


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
        drawn={name: default_collate([e.drawn[name] for e in examples]) for name in examples[0].drawn},
        there=[e.there for e in examples],
    )


@dataclass(frozen=True)
class Geometry:
    """What examples are fitted to.

    Args:
        canvas: the model's canvas.
        factor: pixels per latent on a side.
        channels: latent channels.
        draft, pose_style, portraits, join, accessories: of the pipeline.
    """

    canvas: Canvas
    factor: int
    channels: int
    draft: str = "none"
    pose_style: str = "parts_blend"
    portraits: bool = False
    join: str = "canvas"
    accessories: Sequence[str] = ()

    @classmethod
    def of(cls, pipe: OMFAPipeline) -> Geometry:
        """A pipeline's."""
        taken = {name: pipe.config[name] for name in ("draft", "pose_style", "portraits", "join", "accessories")}
        return cls(pipe.canvas, pipe.vae_scale_factor, pipe.vae.config.latent_channels, **taken)


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
        portraits: how often a try-on of a record that has a portrait changes it; of a model that learns that.

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
    portraits: float = 0.5

    def __post_init__(self) -> None:
        named = self.timesteps
        if named is not None and not (named and all(0 <= t < TRAIN_STEPS for t in named)):
            raise ValueError(f"timesteps {named} must be one or more of 0 to {TRAIN_STEPS - 1}, or null for all")
        if not 1 <= self.draws <= 16:
            raise ValueError(f"draws {self.draws} must be in 1 to 16")
        if not 0 <= self.portraits <= 1:
            raise ValueError(f"portraits {self.portraits} must be in [0, 1]")
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
        RecordError: no records with garments there, latents made for something else, or drafts that are jittered.
    """

    def __init__(self, folder: str | Path, geometry: Geometry, options: ExampleOptions | None = None) -> None:
        self.options = options or ExampleOptions()
        super().__init__(folder, self.options.split, self.options.seed)
        self.canvas, self.factor, self.channels = geometry.canvas, geometry.factor, geometry.channels
        self.geometry, self.drawer = geometry, None
        size = self.canvas.person[0] * self.factor, self.canvas.person[1] * self.factor
        if "surface" in (geometry.draft, geometry.pose_style):
            self.drawer = Drawer(self.source, size, load_body(), geometry.join, geometry.accessories)
        if self.drawer is not None and self.options.jitter > 0:
            raise RecordError("a draft belongs to the person picture as it is and can't be jittered; give jitter=0")
        self.latents = None if self.options.latents is None else Latents(self.options.latents)
        if self.latents is not None:
            kind = "none" if self.drawer is None else "surface"
            self.latents.check(self.records, size, kind, geometry.join, geometry.accessories)
        most = max((len(self.worn(r)) for r in self.records), default=0) if geometry.join == "rows" else 0
        self.garment_slots = [f"garment_{i + 1}" for i in range(max(most, self.canvas.garments))]

    def collate(self, examples: list[Example]) -> Batch:
        """A batch."""
        return collate(examples)

    def example(self, record: Record, generator: torch.Generator) -> Example:
        """Task, drops, timestep and pictures; the noise comes from where the generator then stands."""
        kept = self.options.drops.draw(self.layout(record, generator), generator)
        layout = kept.layout
        choice = range(TRAIN_STEPS) if self.options.timesteps is None else self.options.timesteps
        t = tuple(choice[i] for i in torch.randint(len(choice), (self.options.draws,), generator=generator).tolist())
        look = self._pictures if self.latents is None else self._posteriors
        pixels, drawn = look(record, layout, kept.pose, generator)
        constant = torch.full_like(pixels[PERSON], -1.0 if self.latents is None else 0.0)
        pose, has_pose = drawn.get(self._map, constant), kept.pose and self._map in drawn
        wanted = self._drawn_names(layout, record, kept)
        there = {name: drawn[source] for name, source in wanted.items() if source in drawn}
        state, encoded = generator.get_state().numpy().tobytes(), self.latents is not None
        return Example(
            record.id, layout, pixels, pose, has_pose, kept.everything, t, state, encoded,
            dict.fromkeys(wanted, constant) | there, tuple(there),
        )  # fmt: skip

    @property
    def _map(self) -> str:
        """Name of the person's pose map."""
        return "surface_map" if self.geometry.pose_style == "surface" else "pose_map"

    def _drawn_names(self, layout: Layout, record: Record, kept: Kept) -> dict[str, str]:
        """What of :class:`omfa.records.drawn.Drawer` each plane and draft is; "" for none."""
        if self.drawer is None:
            return {}
        garments, roles = self.garment_slots, self._roles(record, layout)
        names = dict.fromkeys([*(f"{g}_map" for g in garments), *_drafts(garments)], "")
        off = layout.states.get(PERSON) is State.GIVEN and kept.pose
        for slot, role in roles.items():
            given = layout.states[slot] is State.GIVEN
            if self.geometry.pose_style == "surface" and (given or off):
                names[f"{slot}_map"] = f"{role}_map" if given else f"{role}_stand"
            if off and not given and kept.draft:
                names[f"{slot}_draft"] = f"{role}_draft"
        worn = {role for slot, role in roles.items() if layout.states[slot] is State.GIVEN}
        if kept.draft and layout.states.get(PERSON) is State.TARGET:
            if PORTRAIT in layout.states:
                names[f"{PERSON}_draft"] = "portrait_draft"
            elif worn == {*self.worn(record)}:
                names[f"{PERSON}_draft"] = "person_draft"
        return names if self.geometry.draft == "surface" else names | dict.fromkeys(_drafts(garments), "")

    def layout(self, record: Record, generator: torch.Generator) -> Layout:
        """Draw a task for a record: every garment it shows that the model can be given and its face take their slots.

        With one garment slot, or half the time in try-off, one of several garments is drawn alone: taking off just the
        trousers is a task too. Of several garments of a category only the outermost is ever to be made.
        """
        task = self.options.tasks.draw(generator)
        u = torch.rand(2, generator=generator, dtype=torch.float64)
        worn = self.worn(record)
        caption = record.caption if self.options.captions else None
        changed = None if record.portrait is None else (record.portrait.changed or tuple(Category))
        new = [role for role, g in worn.items() if g.category in (changed or ())]
        changes = self.geometry.portraits and task == TRY_ON and new
        if changes and float(torch.rand(1, generator=generator, dtype=torch.float64)) < self.options.portraits:
            places = self._slots(record, new)
            states = {PERSON: State.TARGET, PORTRAIT: State.GIVEN} | dict.fromkeys(places.values(), State.GIVEN)
            return Layout(task.kind, states, {places[r]: worn[r].category for r in new}, caption)
        seen = [role for role in worn if task == TRY_ON or role in set(Category)]
        one_slot = self.canvas.garments == 1 and self.geometry.join != "rows"
        if one_slot or (task == TRY_OFF and u[0] < 0.5):
            seen = [seen[int(u[1] * len(seen))]]
        places = self._slots(record, seen)
        present = {PERSON: Component.PERSON} | {places[r]: Component.GARMENT for r in seen}
        if record.face is not None and task != TRY_OFF:
            present[FACE] = Component.FACE
        return Layout(task.kind, task.states(present), {places[r]: worn[r].category for r in seen}, caption)

    def worn(self, record: Record) -> dict[str, GarmentRef]:
        """The garments that the model can be given: see :func:`omfa.records.worn.wearable`."""
        return wearable(record, self.geometry.join, self.geometry.accessories)

    def _slots(self, record: Record, roles: Sequence[str]) -> dict[str, str]:
        """Role to slot: the canvas's own; in rows, where a record keeps it, the first that is free."""
        worn, slots = self.worn(record), dict[str, str]()
        if self.geometry.join != "rows":
            places = self.canvas.place([worn[role].category for role in roles])
            return {role: places[worn[role].category] for role in roles}
        for role, garment in worn.items():
            lower = garment.category is Category.LOWER and self.canvas.garments > 1
            order = ["garment_2" if lower else "garment_1", *self.garment_slots]
            slots[role] = next(slot for slot in order if slot not in slots.values())
        return {role: slots[role] for role in roles}

    def _roles(self, record: Record, layout: Layout) -> dict[str, str]:
        """Garment slot of a layout to what it holds: a role in :func:`omfa.records.prepared.record_files`."""
        if self.geometry.join != "rows":
            return {slot: str(c) for slot, c in layout.categories.items()}
        roles = {slot: role for role, slot in self._slots(record, list(self.worn(record))).items()}
        return {slot: roles[slot] for slot in layout.categories}

    def _pictures(
        self, record: Record, layout: Layout, with_pose: bool, generator: torch.Generator
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Pixels of every slot, and by name what is drawn: the pose map, drafts; person and pose moved together."""
        names, pixels = self._names(record, layout), {}
        person = self.canvas.person[0] * self.factor, self.canvas.person[1] * self.factor
        for slot, (height, width) in self._sizes().items():
            size = height * self.factor, width * self.factor
            there = slot in layout.states
            pixels[slot] = read_fitted(self.source, record, names[slot], size) if there else torch.ones(3, *size)
        drawn = self.drawer.pictures(record) if self.drawer is not None else {}
        if with_pose and record.pose is not None and record.pose.map is not None:
            drawn["pose_map"] = read_fitted(self.source, record, "pose_map", person)
        if self.options.jitter > 0:
            together = [pixels[PERSON], drawn.get("pose_map", pixels[PERSON])]
            pixels[PERSON], pose = moved_together(together, self.options.jitter, generator)
            drawn |= {"pose_map": pose} if "pose_map" in drawn else {}
        return pixels, drawn

    def _posteriors(
        self, record: Record, layout: Layout, with_pose: bool, generator: torch.Generator
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The same from latents encoded ahead: float16 posteriors (2C, h, w)."""
        assert self.latents is not None
        names, empty = (
            self._names(record, layout),
            torch.zeros(2 * self.channels, *self.canvas.person, dtype=torch.float16),
        )
        encoded = self.latents.of(record)
        pixels = {
            slot: encoded[names[slot]] if slot in layout.states else empty[:, :height, :width]
            for slot, (height, width) in self._sizes().items()
        }
        return pixels, encoded

    def _sizes(self) -> dict[str, tuple[int, int]]:
        """(height, width) in latents of what an example holds."""
        sizes = {slot.name: (slot.height, slot.width) for slot in self.canvas.slots}
        sizes |= dict.fromkeys(self.garment_slots, self.canvas.person)
        return sizes | ({PORTRAIT: self.canvas.person} if self.geometry.portraits else {})

    def _names(self, record: Record, layout: Layout) -> dict[str, str]:
        """Slot name to the name of its picture in :func:`omfa.records.prepared.record_files`."""
        return {slot: slot for slot in (PERSON, FACE, PORTRAIT)} | self._roles(record, layout)


def _drafts(garments: Sequence[str]) -> list[str]:
    """Names of the drafts of targets."""
    return [f"{slot}_draft" for slot in (PERSON, *garments)]


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
        portraits: how often a try-on of a record that has a portrait changes it, where the model learns that.
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
        portraits: float = 0.5,
    ) -> None:
        super().__init__(batch_size, workers, seed)
        how = (captions, draws, portraits)
        self.options = ExampleOptions(
            split, seed, tasks or TaskWeights(), drops or Drops(), jitter, latents, timesteps, *how
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
            said = [r for r in data.records if r.caption]
            asked = {r.id: phrases([g.category for g in data.worn(r).values()], r.caption) for r in said}
            check_captions(asked, pipe.texts)
        return data
