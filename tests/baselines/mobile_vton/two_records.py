"""The smallest problem of distillation: two records, a teacher that knows their pictures, and a tiny student."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytorch_lightning as pl
import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor
from torch.utils.data import DataLoader

from omfa.baselines.mobile_vton import losses
from omfa.baselines.mobile_vton.examples import TryOnExample, collate
from omfa.baselines.mobile_vton.prompts import TextEmbeds
from omfa.baselines.mobile_vton.teacher import velocity_of
from omfa.baselines.mobile_vton.training import Draws, MobileVTONModule, Weights
from omfa.records.stream import seeded
from tests.baselines.mobile_vton import tiny

SHAPE = (4, 8, 4)  # of a picture's latents
NONE = {"diffusion": 0.0, "feature": 0.0, "adversarial": 0.0, "consistency": 0.0}


def blocks(seed: int) -> Tensor:
    """Latents of a few flat patches: easy to tell from anything else."""
    g = torch.Generator().manual_seed(seed)
    return (torch.rand(4, 2, 2, generator=g).round() * 2 - 1).repeat_interleave(4, 1).repeat_interleave(2, 2)


def moments(latents: Tensor) -> Tensor:
    """The posterior whose samples, shifted and scaled, are these latents."""
    return torch.cat([latents / 1.5305 + 0.0609, torch.full_like(latents, -30.0)])


def example(number: int, step: int) -> TryOnExample:
    """One of the two."""
    g = torch.Generator().manual_seed(100 + number)

    def tokens(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    return TryOnExample(
        id=str(number),
        target=moments(blocks(number)),
        person=moments(blocks(10 + number)),
        garment=moments(blocks(20 + number)),
        text=tokens(3, 40),
        garment_text=tokens(3, 40),
        garment_pooled=tokens(24),
        target_text=tokens(3, 40),
        target_pooled=tokens(24),
        features=tokens(5, 16),
        given=torch.tensor(1.0),
        generator=seeded(0, step, number).get_state().numpy().tobytes(),
    )


def batch(step: int) -> TryOnExample:
    """Both."""
    return collate([example(0, step), example(1, step)])


def make_teacher(seed: int = 0) -> SD3Transformer2DModel:
    """A tiny one, random weights."""
    torch.manual_seed(seed)
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=40,
        caption_projection_dim=32,
        pooled_projection_dim=24,
        out_channels=4,
        pos_embed_max_size=8,
    )


@cache
def taught(steps: int = 300) -> SD3Transformer2DModel:
    """A teacher that has learned the targets and garments of both records."""
    teacher, b = make_teacher(), batch(0)
    x0 = torch.cat([torch.stack([blocks(i) for i in (0, 1)]), torch.stack([blocks(20 + i) for i in (0, 1)])])
    texts = TextEmbeds(torch.cat([b.target_text, b.garment_text]), torch.cat([b.target_pooled, b.garment_pooled]))
    optimizer, g = torch.optim.AdamW(teacher.parameters(), 3e-3), torch.Generator().manual_seed(0)
    for _ in range(steps):
        s, noise = losses.shifted(torch.rand(4, generator=g)), torch.randn(x0.shape, generator=g)
        loss = losses.flow_loss(velocity_of(teacher, losses.noised(x0, noise, s), s, texts)[0], x0, noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return teacher.requires_grad_(False)


def module(weights: dict[str, float], **options: Any) -> MobileVTONModule:
    """A tiny student under some losses."""
    tryon, garment = tiny.networks()
    teacher = taught() if weights.get("feature") or weights.get("adversarial") else None
    made: dict[str, Any] = {"learning_rate": 2e-3, "fake_rate": 2e-3, "adversary_rate": 2e-3, "fake_updates": 2}
    torch.manual_seed(0)
    return MobileVTONModule(tryon, garment, teacher, Weights(**{**NONE, **weights}), **{**made, **options})


class Steps(torch.utils.data.IterableDataset):
    """Both records, again and again."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __iter__(self) -> Iterator[TryOnExample]:
        for step in range(self.steps):
            yield batch(step)


class Log(pl.Callback):
    """What every step said."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Keep the numbers."""
        self.rows.append({k: float(v) for k, v in trainer.callback_metrics.items()})

    def mean(self, name: str, rows: slice) -> float:
        """The mean of one number."""
        values = [row[name] for row in self.rows[rows]]
        return sum(values) / len(values)


def fit(made: MobileVTONModule, steps: int, **options: Any) -> Log:
    """Train for so many steps."""
    log = Log()
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[log],
        **options,
    )
    trainer.fit(made, DataLoader(Steps(steps), batch_size=None))
    return log


@torch.no_grad()
def samples_error(made: MobileVTONModule, draws: int = 20) -> tuple[float, float]:
    """Mean squared distance of the student's persons and garments from what they should be, over noise and levels."""
    errors = []
    for step in range(1000, 1000 + draws):
        b = batch(step)
        got, _ = made.student_losses(b, Draws(b.generator, made.device))
        garments = torch.stack([blocks(20 + i) for i in (0, 1)])
        errors.append([(got.persons[0] - got.real).square().mean(), (got.samples[2:] - garments).square().mean()])
    persons, garments_ = torch.tensor(errors).mean(0).tolist()
    return persons, garments_
