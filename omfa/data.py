"""Records as training examples.

All chance in an example (task, drops, timestep, noise, which view) comes from one generator seeded by
(seed, epoch, record id): never from rank, worker or batch. The sampler walks one endless stream of (epoch, record)
pairs, so that a position in it is all a resumed run needs.

``C`` latent channels, ``H W`` pixels, ``h w`` latents of the canvas.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import kornia
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from omfa import images
from omfa.canvas import FACE, PERSON, Canvas
from omfa.components import JOINT, TRY_OFF, TRY_ON, Component, Task
from omfa.conditioning import Drops, Layout
from omfa.prepared import Record, RecordError
from omfa.shards import open_records

TRAIN_STEPS = 1000


def seeded(*key: object) -> torch.Generator:
    """A generator whose stream is a function of ``key`` alone, the same on every machine."""
    digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


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
    """One training example, or a batch of them after :func:`collate` (then every field has B of it).

    Args:
        id: record id.
        layout: what is a target, what is given.
        pixels: slot name to (3, H, W) in [-1, 1]; slots that are not in the layout are white, and are not looked at.
        pose: (3, H, W) pose map; not looked at where ``has_pose`` is False.
        has_pose: whether the network sees the pose.
        unconditional: whether everything given is dropped.
        t: timestep.
        noise: (C, h, w) for the forward process.
        posterior_noise: (C, h, w) for sampling the targets' posteriors.
    """

    id: Any
    layout: Any
    pixels: dict[str, Tensor]
    pose: Tensor
    has_pose: Any
    unconditional: Any
    t: Any
    noise: Tensor
    posterior_noise: Tensor


def collate(examples: Sequence[Example]) -> Example:
    """Stack examples: tensors to (B, ...), ids and layouts to lists."""
    return Example(
        id=[e.id for e in examples],
        layout=[e.layout for e in examples],
        pixels={slot: torch.stack([e.pixels[slot] for e in examples]) for slot in examples[0].pixels},
        pose=torch.stack([e.pose for e in examples]),
        has_pose=torch.tensor([e.has_pose for e in examples]),
        unconditional=torch.tensor([e.unconditional for e in examples]),
        t=torch.tensor([e.t for e in examples]),
        noise=torch.stack([e.noise for e in examples]),
        posterior_noise=torch.stack([e.posterior_noise for e in examples]),
    )


class RecordsDataset(Dataset[Example]):
    """Records of a folder as examples; indexed by (epoch, position).

    Args:
        folder: a records folder (``omfa.prepared``), or one of shards (``omfa.shards``).
        canvas: the model's canvas.
        factor: pixels per latent on a side.
        channels: latent channels.
        split: which records; None for all.
        seed: seeds every draw.
        tasks: how often each task is drawn.
        drops: what is hidden from the network.
        jitter: largest shift (of the side) and scaling of person and pose map together, e.g. 0.05.

    Raises:
        RecordError: no records with garments there.
    """

    def __init__(
        self,
        folder: str | Path,
        canvas: Canvas,
        factor: int,
        channels: int,
        split: str | None = "train",
        seed: int = 0,
        tasks: TaskWeights | None = None,
        drops: Drops | None = None,
        jitter: float = 0.0,
    ) -> None:
        self.source, self.canvas, self.factor, self.channels = open_records(folder), canvas, factor, channels
        self.seed, self.jitter = seed, jitter
        self.tasks, self.drops = tasks or TaskWeights(), drops or Drops()
        self.records = [r for r in self.source.records(split) if r.garments]
        if not self.records:
            raise RecordError(f"{folder} holds no records of split {split!r} with garments; check metadata.jsonl")

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> Example:
        epoch, position = key
        record = self.records[position]
        generator = seeded(self.seed, epoch, record.id)
        layout, keep_pose, unconditional = self.drops.draw(self.layout(record, generator), generator)
        t = int(torch.randint(TRAIN_STEPS, (1,), generator=generator))
        noise = torch.randn(2, self.channels, *self.canvas.size, generator=generator)
        has_pose = record.pose is not None and record.pose.map is not None
        pixels, pose = self._pictures(record, layout, has_pose and keep_pose, generator)
        return Example(record.id, layout, pixels, pose, has_pose and keep_pose, unconditional, t, noise[0], noise[1])

    def layout(self, record: Record, generator: torch.Generator) -> Layout:
        """Draw a task for a record: every garment it shows and its face take their slots.

        With one garment slot, or half the time in try-off, one of several garments is drawn alone: taking off just the
        trousers is a task too.
        """
        task = self.tasks.draw(generator)
        u = torch.rand(2, generator=generator, dtype=torch.float64)
        worn = [g.category for g in record.garments]
        if self.canvas.garments == 1 or (task == TRY_OFF and u[0] < 0.5):
            worn = [worn[int(u[1] * len(worn))]]
        places = self.canvas.place(worn)
        present = {PERSON: Component.PERSON} | {places[c]: Component.GARMENT for c in worn}
        if record.face is not None and task != TRY_OFF:
            present[FACE] = Component.FACE
        return Layout(task.kind, task.states(present), {places[c]: c for c in worn}, record.caption)

    def _pictures(
        self, record: Record, layout: Layout, with_pose: bool, generator: torch.Generator
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Pixels of every slot of the layout and the pose map, fitted; person and pose moved together."""
        paths = {PERSON: record.file_name} | ({FACE: record.face.path} if record.face else {})
        garments = {g.category: g.path for g in record.garments}
        paths |= {slot: garments[c] for slot, c in layout.categories.items()}
        pixels = {}
        for slot in self.canvas.slots:
            size = slot.height * self.factor, slot.width * self.factor
            if slot.name in layout.states:
                picture = self._read(paths[slot.name])
                pixels[slot.name] = images.fit(
                    picture, size, "white" if slot.component is Component.GARMENT else "edge"
                )[0]
            else:
                pixels[slot.name] = torch.ones(3, *size)
        pose = torch.full_like(pixels[PERSON], -1.0)
        if with_pose and record.pose is not None and record.pose.map is not None:
            pose = images.fit(self._read(record.pose.map), pose.shape[-2:])[0]
        if self.jitter > 0:
            pixels[PERSON], pose = moved_together([pixels[PERSON], pose], self.jitter, generator)
        return pixels, pose

    def _read(self, path: str) -> Tensor:
        return images.decode_trusted(self.source.read(path), path)


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


class Stream(Sampler[tuple[int, int]]):
    """An endless stream of (epoch, position); every record once per epoch, whatever the number of ranks.

    Sample k of the stream belongs to epoch k // n, shuffled by (seed, epoch). Of every global batch, rank r takes its
    share of ``batch`` samples in order.

    Args:
        n: number of records.
        batch: samples per rank and batch.
        start: samples of the whole stream already consumed, by all ranks together.
        seed: seeds the order.
        rank, world: this process among all.
    """

    def __init__(self, n: int, batch: int, start: int = 0, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        self.n, self.batch, self.start, self.seed, self.rank, self.world = n, batch, start, seed, rank, world

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, order = -1, torch.empty(0)
        base = self.start + self.rank * self.batch
        while True:
            for k in range(base, base + self.batch):
                if k // self.n != epoch:
                    epoch = k // self.n
                    order = torch.randperm(self.n, generator=seeded(self.seed, "order", epoch))
                yield epoch, int(order[k % self.n])
            base += self.batch * self.world


class PicturesDataset(Dataset[Tensor]):
    """Crops of all pictures in some folders, and made-up textures, for training a VAE; indexed by (epoch, position).

    Args:
        folders: searched recursively for pictures of at least ``size``.
        size: (height, width) of a crop.
        textures: fraction of examples that are textures of noise, stripes and flat colours instead.
        seed: seeds every draw.

    Raises:
        ImageError: a folder that is none, or no pictures in them.
    """

    def __init__(self, folders: Sequence[str], size: Sequence[int], textures: float = 0.1, seed: int = 0) -> None:
        missing = [f for f in folders if not Path(f).is_dir()]
        if missing:
            raise images.ImageError(f"no such folder: {', '.join(missing)}")
        found = [p for f in folders for p in sorted(Path(f).rglob("*")) if p.suffix.lower() in images.SUFFIXES]
        self.paths = [p for p in found if "masks" not in p.parts]
        if not self.paths:
            raise images.ImageError(f"no pictures in {', '.join(folders)}")
        self.size, self.textures, self.seed = (int(size[0]), int(size[1])), textures, seed

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        epoch, position = key
        generator = seeded(self.seed, epoch, position)
        u = torch.rand(5, generator=generator).tolist()
        if u[0] < self.textures:
            return texture(self.size, generator)
        picture = images.read_trusted(self.paths[position])
        scale = max(self.size[0] / picture.shape[1], self.size[1] / picture.shape[2], 1.0) * (
            1 if u[1] < 0.5 else 1 + u[2]
        )
        if scale > 1:
            picture = kornia.geometry.rescale(picture[None], scale, interpolation="bilinear")[0].clamp(-1, 1)
        top = int(u[3] * (picture.shape[1] - self.size[0] + 1))
        left = int(u[4] * (picture.shape[2] - self.size[1] + 1))
        return picture[:, top : top + self.size[0], left : left + self.size[1]]


def texture(size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Noise at a random scale between two colours, with or without stripes, (3, *size) in [-1, 1]."""
    colours = torch.rand(2, 3, 1, 1, generator=generator) * 2 - 1
    u = torch.rand(4, generator=generator)
    cells = int(2 ** (2 + 4 * u[0]))
    blend = torch.rand(1, 1, cells, cells, generator=generator)
    blend = kornia.geometry.resize(blend, size, interpolation="bicubic")[0].clamp(0, 1)
    if u[1] < 0.5:
        y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
        angle, period = u[2] * torch.pi, 4 + 28 * u[3]
        wave = torch.sin((x * angle.cos() + y * angle.sin()) * 2 * torch.pi / period)
        blend = (0.2 * blend + 0.8 * (wave > 0)).float()
    return colours[0] + (colours[1] - colours[0]) * blend


class _StreamDataModule(pl.LightningDataModule):
    """An endless stream over a data set that resumes where it stopped. Subclasses make the data set."""

    def __init__(self, batch_size: int, workers: int, seed: int) -> None:
        super().__init__()
        if batch_size < 1 or workers < 0:
            raise ValueError(f"batch_size {batch_size} must be 1 or more, workers {workers} 0 or more")
        self.batch_size, self.workers, self.seed = batch_size, workers, seed
        self._consumed = 0  # samples of the stream behind us when training (re)starts
        self._first_step = 0  # the trainer's step at that moment

    def dataset(self) -> Dataset[Any]:
        """The data set, indexed by (epoch, position)."""
        raise NotImplementedError

    def train_dataloader(self) -> DataLoader[Any]:
        """The stream from where it stopped."""
        trainer = self.trainer
        assert trainer is not None
        self._first_step = trainer.global_step
        data: Any = self.dataset()
        stream = Stream(len(data), self.batch_size, self._consumed, self.seed, trainer.global_rank, trainer.world_size)
        return DataLoader(
            data,
            self.batch_size,
            sampler=stream,
            num_workers=self.workers,
            collate_fn=collate if isinstance(data, RecordsDataset) else None,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def consumed(self) -> int:
        """Samples of the stream consumed so far, by all ranks together."""
        if self.trainer is None:
            return self._consumed
        per_step = self.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches
        return self._consumed + (self.trainer.global_step - self._first_step) * per_step

    def state_dict(self) -> dict[str, int]:
        """The position in the stream."""
        return {"consumed": self.consumed()}

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        """Continue at a saved position."""
        self._consumed = int(state_dict["consumed"])


class PicturesDataModule(_StreamDataModule):
    """Crops of pictures, for training a VAE; see :class:`PicturesDataset`.

    Args:
        folders: searched recursively for pictures.
        size: (height, width) of a crop.
        textures: fraction of made-up textures.
        batch_size: crops per process and batch.
        workers: loader processes.
        seed: seeds order, crops and textures.
    """

    def __init__(
        self,
        folders: list[str],
        size: list[int],
        textures: float = 0.1,
        batch_size: int = 16,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, workers, seed)
        self.folders, self.size, self.textures = folders, size, textures

    def dataset(self) -> PicturesDataset:
        """The pictures."""
        return PicturesDataset(self.folders, self.size, self.textures, self.seed)


class RecordsDataModule(_StreamDataModule):
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
    ) -> None:
        super().__init__(batch_size, workers, seed)
        if not 0 <= jitter < 0.5:
            raise ValueError(f"jitter {jitter} must be in [0, 0.5)")
        self.folder, self.split, self.tasks, self.drops, self.jitter = folder, split, tasks, drops, jitter

    def dataset(self) -> RecordsDataset:
        """The records, laid out for the canvas of the pipeline in training."""
        assert self.trainer is not None
        pipe: Any = self.trainer.lightning_module.pipe
        return RecordsDataset(
            self.folder,
            pipe.canvas,
            pipe.vae_scale_factor,
            pipe.vae.config.latent_channels,
            self.split,
            self.seed,
            self.tasks,
            self.drops,
            self.jitter,
        )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move an :class:`Example` batch; its plain values stay."""
        moved = {name: _to(getattr(batch, name), device) for name in batch.__dataclass_fields__}
        return replace(batch, **moved)


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {k: _to(v, device) for k, v in value.items()}
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
