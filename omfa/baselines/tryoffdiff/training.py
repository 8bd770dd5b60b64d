"""Training TryOffDiff on any records: a photo and a garment of it, the garment noised, the noise predicted.

``B`` examples, ``C`` latent channels, ``h w`` latents, ``S`` the side of the square pictures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytorch_lightning as pl
import torch
from diffusers.optimization import get_scheduler
from einops import rearrange
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from omfa import images
from omfa.backbone import encode
from omfa.baselines.tryoffdiff.networks import CLASSES
from omfa.baselines.tryoffdiff.pictures import to_square
from omfa.baselines.tryoffdiff.pipeline import TryOffDiffPipeline
from omfa.records.prepared import Record, RecordError, record_files
from omfa.records.shards import open_records
from omfa.records.stream import draw_noise, seeded
from omfa.records.worn import clothes
from omfa.training.model_card import forget_origins
from omfa.training.streaming import StreamDataModule

TRAIN_STEPS = 1000
Schedule = Literal["cosine_with_restarts", "linear", "constant_with_warmup"]


class Pair(NamedTuple):
    """A photo and one garment of it; a batch of them has a row for each.

    Args:
        id: record id.
        person: the photo, (3, S, S) in [-1, 1].
        garment: the shop picture, likewise.
        label: class of the garment's category.
        t: timestep.
        generator: state of the example's own generator, (5056,) uint8.
    """

    id: Any
    person: Tensor
    garment: Tensor
    label: Any
    t: Any
    generator: Tensor


class PairsDataset(Dataset[Pair]):
    """Every garment of every record beside its photo; indexed by (epoch, position).

    Args:
        folder: a records folder, or one of shards.
        side: S.
        categories: garments of which categories.
        split: which records; None for all.
        seed: seeds every draw, together with epoch, record and category.

    Raises:
        RecordError: no such garments there.
    """

    def __init__(
        self, folder: str | Path, side: int, categories: list[str], split: str | None = "train", seed: int = 0
    ) -> None:
        self.source, self.side, self.seed = open_records(folder), side, seed
        records = self.source.records(split)
        self.pairs = [(r, g.category) for r in records for g in clothes(r) if g.category in categories]
        if not self.pairs:
            raise RecordError(
                f"{folder} holds no {' or '.join(categories)} garments in split {split!r}; check metadata.jsonl"
            )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> Pair:
        epoch, position = key
        record, category = self.pairs[position]
        generator = seeded(self.seed, epoch, record.id, category)
        t = int(torch.randint(TRAIN_STEPS, (1,), generator=generator))
        person, garment = (self._square(record, name) for name in ("person", category.value))
        return Pair(record.id, person, garment, CLASSES[category], t, generator.get_state())

    def collate(self, examples: list[Pair]) -> Pair:
        """A batch."""
        return default_collate(examples)

    def _square(self, record: Record, name: str) -> Tensor:
        path = record_files(record)[name]
        return to_square(images.decode(self.source.read(path), self.source.where(path)), self.side)[0]


class PairsDataModule(StreamDataModule):
    """:class:`PairsDataset` for the pipeline in training, as an endless stream that resumes where it stopped.

    Args:
        folder: a records folder.
        batch_size: pairs per process and batch.
        split: split to train on.
        workers: loader processes; 0 loads in the training process.
        seed: seeds order, timesteps and noise.
    """

    def __init__(
        self, folder: str, batch_size: int = 16, split: str = "train", workers: int = 0, seed: int = 0
    ) -> None:
        super().__init__(batch_size, workers, seed)
        self.folder, self.split = folder, split

    def dataset(self) -> PairsDataset:
        """The pairs."""
        assert self.trainer is not None
        pipeline: Any = self.trainer.lightning_module.pipeline
        return PairsDataset(self.folder, pipeline.side, pipeline.config.categories, self.split, self.seed)


class TryOffDiffModule(pl.LightningModule):
    """Trains the UNet and the adapter of a pipeline to predict the noise; VAE and SigLIP stay frozen.

    Published: v1 one rate for all; v2 and MGT ten times as much for the adapter, no decay of biases and norms, and the
    adapter's norm in no group of the optimiser, so that it stays as it began.

    Args:
        pipeline: what to train, of :mod:`omfa.baselines.tryoffdiff.start` in a config.
        learning_rate: AdamW's, after warm-up.
        adapter_rate: the adapter's; None: the same.
        weight_decay: AdamW's.
        decay_norms: whether biases and norms are decayed too.
        train_norm: whether the adapter's norm is trained.
        train_encoder: whether the image encoder is trained along, at ``learning_rate``; for one without weights.
        schedule: of the rate after warm-up: down along a cosine, in a line, or not at all.
        warmup_steps: of linear warm-up.
        channels_last: memory format of the UNet.
        gradient_checkpointing: compute the UNet's activations twice rather than keep them.
        seed: of v1's dropout.

    Raises:
        ValueError: a number out of range.
    """

    alphas_cumprod: Tensor

    def __init__(
        self,
        pipeline: TryOffDiffPipeline,
        learning_rate: float = 1e-4,
        adapter_rate: float | None = None,
        weight_decay: float = 0.01,
        decay_norms: bool = True,
        train_norm: bool = True,
        train_encoder: bool = False,
        schedule: Schedule = "linear",
        warmup_steps: int = 0,
        channels_last: bool = False,
        gradient_checkpointing: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        adapter_rate = learning_rate if adapter_rate is None else adapter_rate
        if min(learning_rate, adapter_rate) <= 0 or min(weight_decay, warmup_steps) < 0:
            raise ValueError(
                f"learning_rate {learning_rate} and adapter_rate {adapter_rate} must be over 0, weight_decay "
                f"{weight_decay} and warmup_steps {warmup_steps} at least 0"
            )
        self.pipeline = pipeline  # no nn.Module: what is frozen stays out of checkpoints
        self.unet, self.adapter = pipeline.unet.train(), pipeline.adapter.train()
        self.encoder = pipeline.image_encoder.train() if train_encoder else None
        self.adapter.norm.requires_grad_(train_norm)
        for part in (pipeline.vae, *(() if train_encoder else (pipeline.image_encoder,))):
            part.requires_grad_(False).eval()
        if gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        if channels_last:
            self.unet.to(memory_format=torch.channels_last)
        self.rates = learning_rate, adapter_rate
        self.weight_decay, self.decay_norms = weight_decay, decay_norms
        self.schedule, self.warmup_steps, self.seed = schedule, warmup_steps, seed
        self.register_buffer("alphas_cumprod", pipeline.scheduler.alphas_cumprod.clone(), persistent=False)

    def on_fit_start(self) -> None:
        """Bring the frozen networks to the device."""
        self.pipeline.vae.to(self.device)
        self.pipeline.image_encoder.to(self.device)

    def training_step(self, batch: Pair, batch_idx: int) -> Tensor:
        """The mean of :meth:`losses`, logged."""
        if self.adapter.transformer is not None:  # its dropout is a function of the step: a resumed run is the same
            dropout = seeded("dropout", self.seed, self.global_step, batch_idx, self.global_rank)
            torch.manual_seed(dropout.initial_seed())
        loss = self.losses(batch).mean()
        self.log("loss", loss, prog_bar=True, batch_size=len(batch.person))
        return loss

    def losses(self, batch: Pair) -> Tensor:
        """Each example's loss, (B,): noise the garment's latents, predict the noise from the photo, compare."""
        pipeline, vae = self.pipeline, self.pipeline.vae
        states = [state.cpu().numpy().tobytes() for state in batch.generator]
        shape = 2, vae.config.latent_channels, *[self.unet.config.sample_size] * 2
        sample, noise = draw_noise(states, shape).to(self.device).unbind(1)
        with torch.no_grad():
            z0 = encode(vae, batch.garment, sample)
        z_t = noised(z0, noise, self.alphas_cumprod[batch.t], pipeline.config.noise == "exploding")
        labels = None if self.unet.config.num_class_embeds is None else batch.label
        predicted = self.unet(z_t, batch.t, pipeline.context(batch.person), class_labels=labels).sample
        return (predicted.float() - noise).square().mean((1, 2, 3))

    def configure_optimizers(self) -> Any:
        """AdamW in groups: network by network, biases and norms apart where they are not decayed."""
        parts: list[tuple[nn.Module, float]] = [(self.unet, self.rates[0]), (self.adapter, self.rates[1])]
        if self.encoder is not None:
            parts.append((self.encoder, self.rates[0]))
        groups = []
        for part, rate in parts:
            trained = [p for p in part.parameters() if p.requires_grad]
            flat = [] if self.decay_norms else [p for p in trained if p.ndim < 2]
            rest = trained if self.decay_norms else [p for p in trained if p.ndim >= 2]
            groups.append({"params": rest, "lr": rate, "weight_decay": self.weight_decay})
            if flat:
                groups.append({"params": flat, "lr": rate, "weight_decay": 0.0})
        optimizer = torch.optim.AdamW(groups)
        steps = {"num_warmup_steps": self.warmup_steps, "num_training_steps": self.trainer.max_steps}
        schedule = get_scheduler(self.schedule, optimizer, **steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def save(self, folder: Path, whole: bool = False, dtype: torch.dtype | None = None) -> None:
        """Write a folder that ``TryOffDiffPipeline.from_pretrained`` reads; see :class:`omfa.training.parts.Saves`."""
        if dtype is not None:
            self.pipeline.to(dtype)
        self.pipeline.save_pretrained(folder)
        forget_origins(folder)


def noised(z0: Tensor, noise: Tensor, alpha_bar: Tensor, exploding: bool) -> Tensor:
    """Latents with noise (B, C, h, w): blended to keep the variance, or added to what stays as it is.

    Args:
        z0, noise: clean latents and standard normal noise.
        alpha_bar: of each example, (B,).
        exploding: z0 + sigma noise with sigma^2 = (1 - abar) / abar; else sqrt(abar) z0 + sqrt(1 - abar) noise.
    """
    a = rearrange(alpha_bar, "b -> b 1 1 1")
    if exploding:
        return z0 + ((1 - a) / a).sqrt() * noise
    return a.sqrt() * z0 + (1 - a).sqrt() * noise
