"""Records as training examples.

All chance in an example (task, drops, timestep, noise, which view) comes from one generator seeded by
(seed, epoch, record id): never from rank, worker or batch. The sampler walks one endless stream of (epoch, record)
pairs, so that a position in it is all a resumed run needs.

``C`` latent channels, ``H W`` pixels, ``h w`` latents of the canvas.
"""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import kornia
import pytorch_lightning as pl
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from omfa import images
from omfa.canvas import FACE, PERSON, Canvas
from omfa.components import JOINT, TRY_OFF, TRY_ON, Category, Component, Task
from omfa.conditioning import Drops, Layout
from omfa.prompts import TextEncoders, phrases
from omfa.records.prepared import Record, RecordError, record_files, record_pictures
from omfa.records.shards import Source, open_records

TRAIN_STEPS = 1000


def seeded(*key: object) -> torch.Generator:
    """A generator whose stream is a function of ``key`` alone, the same on every machine."""
    digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def draw_noise(states: Sequence[bytes], shape: Sequence[int]) -> Tensor:
    """Standard normal noise (B, *shape) float32 on the CPU, each row from its own generator.

    An example's noise at 768x1024 is 1 MB and its generator 5 kB: so a loader hands over the generator.

    Args:
        states: of the generators, ``Example.generator``.
        shape: of a row.
    """
    generators = [torch.Generator().set_state(torch.frombuffer(bytearray(s), dtype=torch.uint8)) for s in states]
    return torch.stack([torch.randn(*shape, generator=g) for g in generators])


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
    """One training example, or a batch of them after :func:`collate` (tensors have B rows, other fields are lists).

    Args:
        id: record id.
        layout: what is a target, what is given.
        pixels: slot name to (3, H, W) in [-1, 1], or where ``encoded`` to the posterior (2C, H/f, W/f) of
            ``omfa.encode``; slots that are not in the layout are constant, and are not looked at.
        pose: the pose map, likewise; not looked at where ``has_pose`` is False.
        has_pose: whether the network sees the pose.
        unconditional: whether everything given is dropped.
        t: timestep.
        generator: state of the example's own generator, for :func:`draw_noise`.
        encoded: whether ``pixels`` and ``pose`` are posteriors; the same for a whole data set.
    """

    id: Any
    layout: Any
    pixels: dict[str, Tensor]
    pose: Tensor
    has_pose: Any
    unconditional: Any
    t: Any
    generator: Any
    encoded: bool = False


def collate(examples: Sequence[Example]) -> Example:
    """Stack examples: pictures to tensors (B, ...), in a worker right into shared memory; the rest to lists."""
    return Example(
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


class RecordsDataset(Dataset[Example]):
    """Records of a folder as examples; indexed by (epoch, position).

    Args:
        folder: a records folder (``omfa.records.prepared``), or one of shards (``omfa.records.shards``).
        canvas: the model's canvas.
        factor: pixels per latent on a side.
        channels: latent channels.
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

    Raises:
        RecordError: no records with garments there, or latents made for something else.
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
        latents: str | Path | None = None,
        timesteps: Sequence[int] | None = None,
        captions: bool = True,
    ) -> None:
        self.source, self.canvas, self.factor, self.channels = open_records(folder), canvas, factor, channels
        self.seed, self.jitter, self.timesteps, self.captions = seed, jitter, timesteps, captions
        self.tasks, self.drops = tasks or TaskWeights(), drops or Drops()
        self.records = [r for r in self.source.records(split) if r.garments]
        if not self.records:
            raise RecordError(f"{folder} holds no records of split {split!r} with garments; check metadata.jsonl")
        self.latents = None if latents is None else Path(latents)
        if self.latents is not None:
            self._check_latents(self.latents)

    def _check_latents(self, folder: Path) -> None:
        """Refuse latents of another size, or that don't hold all records."""
        if self.jitter > 0:
            raise RecordError("latents are encoded ahead and can't be jittered; give jitter=0, or no latents")
        size = [n * self.factor for n in self.canvas.person]
        if (made := read_encoding(folder)["person_size"]) != size:
            raise RecordError(f"{folder} holds latents of {made} pictures, the model's are {size}: encode them anew")
        lacking = {r.id: names for r in self.records if (names := lacks(encoded_file(folder, r.id), r))}
        if lacking:
            first, names = next(iter(lacking.items()))
            raise RecordError(
                f"{folder} lacks latents of {len(lacking)} of {len(self.records)} records, the first one {first!r} "
                f"({', '.join(names)}): run the same python -m omfa.encode again"
            )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> Example:
        epoch, position = key
        record = self.records[position]
        generator = seeded(self.seed, epoch, record.id)
        layout, keep_pose, unconditional = self.drops.draw(self.layout(record, generator), generator)
        choice = range(TRAIN_STEPS) if self.timesteps is None else self.timesteps
        t = choice[int(torch.randint(len(choice), (1,), generator=generator))]
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
        task = self.tasks.draw(generator)
        u = torch.rand(2, generator=generator, dtype=torch.float64)
        worn = [g.category for g in record.garments]
        if self.canvas.garments == 1 or (task == TRY_OFF and u[0] < 0.5):
            worn = [worn[int(u[1] * len(worn))]]
        places = self.canvas.place(worn)
        present = {PERSON: Component.PERSON} | {places[c]: Component.GARMENT for c in worn}
        if record.face is not None and task != TRY_OFF:
            present[FACE] = Component.FACE
        caption = record.caption if self.captions else None
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
        if self.jitter > 0:
            pixels[PERSON], pose = moved_together([pixels[PERSON], pose], self.jitter, generator)
        return pixels, pose

    def _posteriors(
        self, record: Record, layout: Layout, with_pose: bool, generator: torch.Generator
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The same from latents encoded ahead: float16 posteriors (2C, h, w) of each slot."""
        assert self.latents is not None
        names, empty = self._names(layout), torch.zeros(2 * self.channels, *self.canvas.person, dtype=torch.float16)
        encoded = load(encoded_file(self.latents, record.id).read_bytes())
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


def read_fitted(source: Source, record: Record, name: str, size: Sequence[int]) -> Tensor:
    """A picture of :func:`omfa.records.prepared.record_files` fitted to ``size``: (3, *size). Garments padded white."""
    path = record_files(record)[name]
    fill: images.Fill = "white" if name in set(Category) else "edge"
    return images.fit(images.decode_trusted(source.read(path), source.where(path)), size, fill)[0]


def encoded_file(folder: Path, record_id: str) -> Path:
    """Where ``omfa.encode`` keeps a record's posteriors; folders by hash keep directories small."""
    return folder / hashlib.sha256(record_id.encode()).hexdigest()[:2] / f"{record_id}.safetensors"


def pictures_of(record: Record) -> dict[str, str]:
    """The pictures of :func:`omfa.records.prepared.record_pictures`, all of which ``omfa.encode`` encodes."""
    return record_pictures(record)


def lacks(path: Path, record: Record) -> list[str]:
    """Names of a record's pictures that a file of latents does not hold; all where there is no whole file."""
    try:
        with safe_open(path, "pt") as file:
            there = set(file.keys())
    except (OSError, SafetensorError):
        there = set()
    return [name for name in pictures_of(record) if name not in there]


def read_encoding(folder: Path) -> dict[str, Any]:
    """What ``omfa.encode`` wrote down about a folder of latents: ``person_size``, ``vae`` (a fingerprint).

    Raises:
        RecordError: no such folder, or it was made by something else.
    """
    path = folder / "encoding.json"
    try:
        made = json.loads(path.read_text())
        return {"person_size": [int(n) for n in made["person_size"]], "vae": str(made["vae"])}
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise RecordError(f"{path}: no latents of omfa.encode ({type(e).__name__}: {e})") from None


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


# Photographs in scikit-image's wheel that are in the public domain or CC0, as its own documentation says.
PHOTOGRAPHS = (
    *("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg", "hubble_deep_field.jpg"),
    *("retina.jpg", "brick.png", "grass.png", "gravel.png"),
)


def packaged_photographs() -> list[Path]:
    """The openly licensed photographs that ship with scikit-image; none where it is not installed."""
    found = find_spec("skimage")
    folder = Path(found.origin).parent / "data" if found and found.origin else None
    return [folder / name for name in PHOTOGRAPHS if (folder / name).is_file()] if folder else []


class PicturesDataset(Dataset[Tensor]):
    """Crops of all pictures in some folders, of photographs and of textures, for training a VAE.

    Indexed by (epoch, position).

    Args:
        folders: searched recursively for pictures of any size.
        size: (height, width) of a crop.
        textures: fraction of examples that are textures of noise, stripes and flat colours instead.
        photographs: fraction of examples that are crops of :func:`packaged_photographs`, recoloured and mirrored.
        seed: seeds every draw.

    Raises:
        ImageError: a folder that is none, no pictures in them, or photographs asked for and not there.
    """

    def __init__(
        self,
        folders: Sequence[str],
        size: Sequence[int],
        textures: float = 0.1,
        photographs: float = 0.0,
        seed: int = 0,
    ) -> None:
        missing = [f for f in folders if not Path(f).is_dir()]
        if missing:
            raise images.ImageError(f"no such folder: {', '.join(missing)}")
        found = [p for f in folders for p in sorted(Path(f).rglob("*")) if p.suffix.lower() in images.SUFFIXES]
        self.paths = [p for p in found if "masks" not in p.parts]
        if not self.paths:
            raise images.ImageError(f"no pictures in {', '.join(folders)}")
        self.photographs = packaged_photographs() if photographs > 0 else []
        if photographs > 0 and not self.photographs:
            raise images.ImageError("photographs come with scikit-image: pip install scikit-image, or photographs=0")
        self.size, self.seed = (int(size[0]), int(size[1])), seed
        self.shares = textures, textures + photographs

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        epoch, position = key
        generator = seeded(self.seed, epoch, position)
        u = torch.rand(6, generator=generator).tolist()
        if u[0] < self.shares[0]:
            return texture(self.size, generator)
        if u[0] >= self.shares[1]:
            return self._crop(images.read_trusted(self.paths[position]), u)
        crop = self._crop(images.read_trusted(self.photographs[int(u[5] * len(self.photographs))]), u)
        crop = crop[torch.randperm(3, generator=generator)]
        return crop.flip(-1) if torch.rand((), generator=generator) < 0.5 else crop

    def _crop(self, picture: Tensor, u: Sequence[float]) -> Tensor:
        """A crop at the picture's own scale (half the time), or at one between a crop's size and 1.5 times its own."""
        h, w = picture.shape[1:]
        least = max(self.size[0] / h, self.size[1] / w)
        scale = max(least, 1.0) if u[1] < 0.5 else max(least, min(least, 1.0) * (1.5 / min(least, 1.0)) ** u[2])
        if scale != 1:
            size = max(self.size[0], round(h * scale)), max(self.size[1], round(w * scale))
            picture = kornia.geometry.resize(picture[None], size, antialias=scale < 1)[0].clamp(-1, 1)
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
            worker_init_fn=_leave_stopping_to_the_parent,
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


def _leave_stopping_to_the_parent(worker: int) -> None:
    """A cluster sends SIGTERM to all processes of a job; the step at hand still needs its loader."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class PicturesDataModule(_StreamDataModule):
    """Crops of pictures, for training a VAE; see :class:`PicturesDataset`.

    Args:
        folders: searched recursively for pictures.
        size: (height, width) of a crop.
        textures: fraction of made-up textures.
        photographs: fraction of crops of openly licensed photographs (scikit-image's).
        batch_size: crops per process and batch.
        workers: loader processes.
        seed: seeds order, crops and textures.
    """

    def __init__(
        self,
        folders: list[str],
        size: list[int],
        textures: float = 0.1,
        photographs: float = 0.0,
        batch_size: int = 16,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, workers, seed)
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"size {size} must be height and width in pixels, like [128, 128]")
        self.folders, self.size = folders, size
        self.textures, self.photographs = textures, photographs

    def dataset(self) -> PicturesDataset:
        """The pictures."""
        return PicturesDataset(self.folders, self.size, self.textures, self.photographs, self.seed)


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
        latents: folder that ``omfa.encode`` made of these records; None encodes them in every step.
        timesteps: the only ones to train, such as [999, 499]; None for all; see :class:`RecordsDataset`.
        captions: whether prompts end with the record's caption (SDXL only); its phrases are many then.
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
    ) -> None:
        super().__init__(batch_size, workers, seed)
        if timesteps is not None and not (timesteps and all(0 <= t < TRAIN_STEPS for t in timesteps)):
            raise ValueError(f"timesteps {timesteps} must be one or more of 0 to {TRAIN_STEPS - 1}, or null for all")
        if not 0 <= jitter < 0.5:
            raise ValueError(f"jitter {jitter} must be in [0, 0.5)")
        self.folder, self.split, self.tasks, self.drops = folder, split, tasks, drops
        self.jitter, self.latents, self.timesteps, self.captions = jitter, latents, timesteps, captions

    def dataset(self) -> RecordsDataset:
        """The records, laid out for the canvas of the pipeline in training."""
        assert self.trainer is not None
        pipe: Any = self.trainer.lightning_module.pipe
        data = RecordsDataset(
            self.folder,
            pipe.canvas,
            pipe.vae_scale_factor,
            pipe.vae.config.latent_channels,
            self.split,
            self.seed,
            self.tasks,
            self.drops,
            self.jitter,
            self.latents,
            self.timesteps,
            self.captions,
        )
        if self.captions and pipe.slot_tokens is None:
            check_captions(data.records, pipe.texts)
        return data

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move an :class:`Example` batch; its plain values stay."""
        moved = {name: _to(getattr(batch, name), device) for name in batch.__dataclass_fields__}
        return replace(batch, **moved)


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


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {k: _to(v, device) for k, v in value.items()}
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
