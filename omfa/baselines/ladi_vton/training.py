"""LaDI-VTON's five trainings, each from what the one before has left.

    tps        spline      L1(warped, worn) + 0.01 regularisers
    refine     refinement  L1 + 0.25 perceptual, behind the spline, which is frozen
    emasc      EMASC       L1 + 0.5 perceptual of the photo through the VAE, from what is around the mask
    inversion  adapter     squared error of the inpainting network, which is frozen
    repaint    UNet        the same; text, pose and garment each left out of 20 % of the examples

Morelli et al. 2023, arXiv 2305.13501. ``B`` batch, ``C`` latent channels, ``H W`` pixels, ``h w`` latents. Every module
has ``losses(batch)``, one number a picture, and ``save(folder)``; the last folder is a pipeline's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from omfa.backbone import latents_from
from omfa.baselines.ladi_vton import emasc
from omfa.baselines.ladi_vton.from_records import Example, Examples
from omfa.baselines.ladi_vton.inputs import Inputs, stack
from omfa.baselines.ladi_vton.perceptual import VGGLoss
from omfa.baselines.ladi_vton.pipeline import LaDIVTONPipeline
from omfa.baselines.ladi_vton.warping import regularisers, resize, sample
from omfa.partial_diffusion import training_goal
from omfa.training.streaming import StreamDataModule


class _Stage(pl.LightningModule):
    """What the five have in common: a whole pipeline of which one part is trained.

    Args:
        pipeline: the last stage's folder, read by ``LaDIVTONPipeline.from_pretrained`` in a config.
        learning_rate, warmup_steps: of the optimizer; after warm-up the rate stays.
    """

    trained: tuple[str, ...] = ()
    betas = (0.9, 0.999)
    weight_decay = 0.01

    def __init__(self, pipeline: LaDIVTONPipeline, learning_rate: float, warmup_steps: int = 0) -> None:
        super().__init__()
        if learning_rate <= 0 or warmup_steps < 0:
            raise ValueError(f"learning_rate {learning_rate} must be over 0 and warmup_steps {warmup_steps} 0 or more")
        self.system = pipeline  # no nn.Module: what is frozen stays out of checkpoints
        self.learning_rate, self.warmup_steps = learning_rate, warmup_steps
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        self.parts = nn.ModuleDict({name: self._part(name) for name in self.trained})
        self.parts.requires_grad_(True).train()

    def _part(self, name: str) -> nn.Module:
        part = getattr(self.system, name)
        if part is None:
            raise ValueError(f"the pipeline has no {name} to train; give one that has")
        return part

    def on_fit_start(self) -> None:
        """Bring what is frozen to the device."""
        self.system.to(self.device)

    def transfer_batch_to_device(self, batch: Example, device: torch.device, dataloader_idx: int) -> Example:
        """Move a batch."""
        return batch.to(device)

    def configure_optimizers(self) -> Any:
        """AdamW (Adam where no weight decays) with a constant rate after warm-up."""
        optimizer = torch.optim.AdamW(
            self.parts.parameters(), self.learning_rate, betas=self.betas, weight_decay=self.weight_decay
        )
        rise = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / max(1, self.warmup_steps))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rise, "interval": "step"}}

    def training_step(self, batch: Example, batch_idx: int) -> Tensor:
        """The mean of :meth:`losses`."""
        torch.manual_seed(batch.seed)  # noise, steps, drops: the same whenever and wherever this batch is met
        loss = self.losses(batch).mean()
        self.log("loss", loss, prog_bar=True, batch_size=len(batch.ids))
        return loss

    def losses(self, batch: Example) -> Tensor:
        """Each picture's loss, (B,)."""
        raise NotImplementedError

    def save(self, folder: Path, whole: bool = False, dtype: torch.dtype | None = None) -> None:
        """Write the pipeline, for the next stage or for good.

        Args:
            folder: to be made.
            whole: says nothing here: every stage's folder is whole.
            dtype: of all numbers in the files; None leaves them. Training need not go on afterwards.
        """
        if dtype is not None:
            self.system.to(dtype=dtype)
        self.parts.eval()
        self.system.save_pretrained(folder)
        self.parts.train()


class TPSModule(_Stage):
    """Stage 1a: the spline, on pictures of its own size.

    Args:
        pipeline: see :class:`_Stage`.
        learning_rate: Adam's.
        regularisation: weight of the six regularisers.
    """

    trained: tuple[str, ...] = ("tps",)
    betas = (0.5, 0.99)
    weight_decay = 0.0

    def __init__(self, pipeline: LaDIVTONPipeline, learning_rate: float = 1e-4, regularisation: float = 0.01) -> None:
        super().__init__(pipeline, learning_rate)
        self.regularisation = regularisation

    def losses(self, batch: Example) -> Tensor:
        """L1 between the warped garment and the worn one, plus the regularisers, which are the whole batch's."""
        inputs = batch.inputs
        size = self.system.tps.config.size
        grid, theta = self.system.align(inputs)
        warped = sample(resize(inputs.cloth, size), grid)
        apart = _each(warped - resize(batch.worn, size))
        return apart + self.regularisation * regularisers(theta).total()


class RefineModule(_Stage):
    """Stage 1b: the refinement behind the spline.

    Args:
        pipeline: see :class:`_Stage`.
        vgg: torchvision's VGG19 file; None trains by L1 alone.
        learning_rate: Adam's.
        perceptual: weight of the perceptual loss.
    """

    trained: tuple[str, ...] = ("refinement",)
    betas = (0.5, 0.99)
    weight_decay = 0.0

    def __init__(
        self,
        pipeline: LaDIVTONPipeline,
        vgg: str | None,
        learning_rate: float = 1e-4,
        perceptual: float = 0.25,
    ) -> None:
        super().__init__(pipeline, learning_rate)
        self.perceptual = _Perceptual(vgg, perceptual)

    def losses(self, batch: Example) -> Tensor:
        """L1 and perceptual loss of the refined garment against the worn one."""
        inputs = batch.inputs
        with torch.no_grad():
            warped = sample(inputs.cloth, self.system.align(inputs).grid)
        made = self.system.refinement(torch.cat([inputs.kept, inputs.pose, warped], 1))
        return _each(made - batch.worn) + self.perceptual(made, batch.worn)


class EMASCModule(_Stage):
    """Stage 2: EMASC on the frozen VAE.

    Args:
        pipeline: see :class:`_Stage`.
        vgg: torchvision's VGG19 file; None trains by L1 alone.
        learning_rate, warmup_steps: AdamW's.
        perceptual: weight of the perceptual loss.
    """

    trained: tuple[str, ...] = ("emasc",)

    def __init__(
        self,
        pipeline: LaDIVTONPipeline,
        vgg: str | None,
        learning_rate: float = 1e-5,
        warmup_steps: int = 500,
        perceptual: float = 0.5,
    ) -> None:
        super().__init__(pipeline, learning_rate, warmup_steps)
        self.perceptual = _Perceptual(vgg, perceptual)

    def losses(self, batch: Example) -> Tensor:
        """The photo through the VAE, helped by what its encoder saw around the mask, against the photo itself."""
        inputs, pipe = batch.inputs, self.system
        with torch.no_grad():
            moments = pipe.vae.encode(inputs.photo).latent_dist.parameters
            z = latents_from(moments, torch.randn_like(moments.chunk(2, 1)[0]), 1.0)
            _, features = emasc.encode(pipe.vae, inputs.kept)
        made = emasc.decode(pipe.vae, z, pipe.emasc(features, inputs.hard_mask))
        return _each(made - inputs.photo) + self.perceptual(made, inputs.photo)


class InversionModule(_Stage):
    """Stage 3: the adapter, so that its words help the frozen inpainting network.

    Args:
        pipeline: see :class:`_Stage`; its UNet is the inpainting network, widened but not yet trained on.
        learning_rate, warmup_steps: AdamW's.
        train_encoders: train the text and the vision model too: for compact models, which have no CLIP.
    """

    trained: tuple[str, ...] = ("inversion_adapter",)

    def __init__(
        self,
        pipeline: LaDIVTONPipeline,
        learning_rate: float = 1e-5,
        warmup_steps: int = 500,
        train_encoders: bool = False,
    ) -> None:
        if train_encoders:
            self.trained = (*self.trained, "text_encoder", "vision_encoder")
        super().__init__(pipeline, learning_rate, warmup_steps)

    def losses(self, batch: Example) -> Tensor:
        """The inpainting network's squared error; pose map and garment are not given."""
        inputs = batch.inputs
        text, _ = self.system.encode_text(inputs)
        dropped = torch.ones(len(inputs), dtype=torch.bool, device=self.device)
        return noise_losses(self.system, inputs, batch.worn, text, no_pose=dropped, no_cloth=dropped)


class RepaintModule(_Stage):
    """Stage 4: the UNet, with the garment as the first stages warp it.

    Args:
        pipeline: see :class:`_Stage`.
        learning_rate, warmup_steps: AdamW's.
        drop: how often each of text, pose map and garment is left out, independently.
        train_adapter: train the inversion adapter along.
        train_encoders: and the text and the vision model: for compact models, which have no CLIP.
        draws: steps and noises drawn for each picture, 1 as published. What is frozen runs once for all of them, and
            on a small UNet that is most of the work.
    """

    trained: tuple[str, ...] = ("unet",)

    def __init__(
        self,
        pipeline: LaDIVTONPipeline,
        learning_rate: float = 1e-5,
        warmup_steps: int = 500,
        drop: float = 0.2,
        train_adapter: bool = False,
        train_encoders: bool = False,
        draws: int = 1,
    ) -> None:
        if not 0 <= drop < 1 or draws < 1:
            raise ValueError(f"drop {drop} must be in [0, 1) and draws {draws} at least 1")
        if train_adapter or train_encoders:
            self.trained = (*self.trained, "inversion_adapter")
        if train_encoders:
            self.trained = (*self.trained, "text_encoder", "vision_encoder")
        super().__init__(pipeline, learning_rate, warmup_steps)
        self.drop, self.draws = drop, draws

    def losses(self, batch: Example) -> Tensor:
        """The network's squared error, mean over the draws."""
        inputs, count = batch.inputs, self.draws * len(batch.ids)
        with torch.no_grad():
            worn = self.system.warp(inputs)
        text, nothing = self.system.encode_text(inputs)
        no_text, no_pose, no_cloth = torch.rand(3, count, device=self.device) < self.drop
        text = torch.where(no_text[:, None, None], nothing, text.repeat(self.draws, 1, 1))
        return noise_losses(self.system, inputs, worn, text, no_pose, no_cloth).view(self.draws, -1).mean(0)


def noise_losses(
    pipe: LaDIVTONPipeline, inputs: Inputs, worn: Tensor, text: Tensor, no_pose: Tensor, no_cloth: Tensor
) -> Tensor:
    """Each row's mean squared error at a random step, (n B,): n rows a picture, B after B.

    Of the noise or of what else the scheduler's ``prediction_type`` says.

    Args:
        pipe: whose UNet is asked.
        inputs: B pictures.
        worn: the garment on the person, (B, 3, H, W).
        text: (n B, L, D).
        no_pose, no_cloth: (n B,) bool, whose pose map and garment are left out.
    """
    scheduler, scale = pipe.scheduler, pipe.vae.config.scaling_factor
    with torch.no_grad():
        pictures = (inputs.photo, inputs.kept, worn)
        draws = len(text) // len(inputs)
        moments = [pipe.vae.encode(x).latent_dist.parameters.repeat(draws, 1, 1, 1) for x in pictures]
        clean, kept, cloth = (latents_from(m, torch.randn_like(m.chunk(2, 1)[0]), scale) for m in moments)
        noise = torch.randn_like(clean)
        t = torch.randint(scheduler.config.num_train_timesteps, (len(clean),), device=clean.device)
        noisy = scheduler.add_noise(clean, noise, t)
        inputs = stack([inputs] * draws)
        pose = torch.where(no_pose[:, None, None, None], 0.0, inputs.pose)
        cloth = torch.where(no_cloth[:, None, None, None], 0.0, cloth)
        given = pipe.given(inputs, kept, cloth, pose)
    made = pipe.unet(torch.cat([noisy, given], 1), t, text, return_dict=False)[0]
    levels = scheduler.alphas_cumprod.to(clean.device)[t]
    goal = training_goal(clean.float(), noise.float(), levels, scheduler.config.prediction_type)
    return (made.float() - goal).square().flatten(1).mean(1)


class LaDIVTONData(StreamDataModule):
    """Examples out of records, endlessly; see :class:`omfa.baselines.ladi_vton.from_records.Examples`.

    Args:
        folder: a records folder.
        size: (height, width) in pixels; the spline's own for the first stage, the pipeline's for the others.
        split: to train on.
        categories: garments to take; None for all that the model's rules know.
        batch_size: examples per process and batch.
        workers: loader processes.
        seed: seeds order and draws.
    """

    def __init__(
        self,
        folder: str,
        size: list[int],
        split: str = "train",
        categories: list[str] | None = None,
        batch_size: int = 16,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, workers, seed)
        self.folder, self.size, self.split, self.categories = folder, size, split, categories

    def dataset(self) -> Examples:
        """The records, masked by the rules of the pipeline in training.

        Raises:
            ValueError: a size that the pipeline's networks don't take, or a category that its rules don't know.
        """
        assert self.trainer is not None
        stage: Any = self.trainer.lightning_module
        stage.system.check_size(self.size)
        rules = stage.system.config.rules
        return Examples(self.folder, self.size, rules, self.split, self.categories, self.seed)


class _Perceptual(nn.Module):
    """The perceptual loss times its weight; 0 without VGG19's weights."""

    def __init__(self, vgg: str | None, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self._network = None if vgg is None else [VGGLoss.from_file(vgg)]  # in a list: out of checkpoints

    def forward(self, made: Tensor, truth: Tensor) -> Tensor:
        """A scalar."""
        if self._network is None:
            return made.new_zeros(())
        return self.weight * self._network[0].to(made.device)(made, truth)


def _each(apart: Tensor) -> Tensor:
    """Mean absolute value of each of a batch, (B,)."""
    return apart.abs().flatten(1).mean(1)
