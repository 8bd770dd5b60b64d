"""A teacher of one's own, where there is no SD3: flow matching from phrases to the pictures of the records.

``B`` examples, ``C`` latent channels, ``h w`` latents.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor

from omfa.baselines.mobile_vton import losses
from omfa.baselines.mobile_vton.examples import TryOnExample
from omfa.baselines.mobile_vton.prompts import TextEmbeds
from omfa.baselines.mobile_vton.teacher import velocity_of
from omfa.baselines.mobile_vton.training import Draws, drawn


class TeacherModule(pl.LightningModule):
    """Trains a text-to-image network of SD3's shape on persons and garments, each told by its phrase.

    Args:
        teacher: new, or to go on with.
        learning_rate, weight_decay: AdamW's.
        warmup_steps: over which the rate rises.
        latent_scale, latent_shift: the VAE's scaling and shift factors.
    """

    def __init__(
        self,
        teacher: SD3Transformer2DModel,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        warmup_steps: int = 100,
        latent_scale: float = 1.5305,
        latent_shift: float = 0.0609,
    ) -> None:
        super().__init__()
        self.teacher = teacher.requires_grad_(True).train()
        self.learning_rate, self.weight_decay, self.warmup_steps = learning_rate, weight_decay, warmup_steps
        self.latent_scale, self.latent_shift = latent_scale, latent_shift

    def configure_optimizers(self) -> Any:
        """AdamW with a warm-up."""
        optimizer = torch.optim.AdamW(self.teacher.parameters(), self.learning_rate, weight_decay=self.weight_decay)
        rise = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / (self.warmup_steps + 1)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rise, "interval": "step"}}

    def training_step(self, batch: TryOnExample, batch_idx: int) -> Tensor:
        """The flow-matching loss of targets and garments."""
        batch = batch.to(self.device)
        draws = Draws(batch.generator, self.device)
        raw = torch.cat([drawn(m, draws) for m in (batch.target, batch.garment)])
        x0 = (raw - self.latent_shift) * self.latent_scale
        texts = TextEmbeds(
            torch.cat([batch.target_text, batch.garment_text]), torch.cat([batch.target_pooled, batch.garment_pooled])
        )
        noise, s = (
            torch.cat([draws.normal(x0.shape[1:]) for _ in range(2)]),
            torch.cat([draws.levels(), draws.levels()]),
        )
        velocity, _ = velocity_of(self.teacher, losses.noised(x0, noise, s), s, texts)
        loss = losses.flow_loss(velocity, x0, noise)
        self.log("loss", loss, batch_size=len(batch.id))
        return loss

    def save(self, folder: Path, whole: bool = False, dtype: torch.dtype | None = None) -> None:
        """Write a folder that :func:`omfa.baselines.mobile_vton.teacher.read_teacher` reads.

        Args:
            folder: where to.
            whole: nothing else is known here.
            dtype: of its numbers, for good; None leaves them.
        """
        (self.teacher if dtype is None else self.teacher.to(dtype)).save_pretrained(folder)
