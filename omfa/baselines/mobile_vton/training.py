"""Distillation of Mobile-VTON: student, fake-score network, discriminator and teacher in one LightningModule.

TryonNet learns from pairs (flow matching), from the teacher's scores and from an adversary; GarmentNet from the
teacher's scores and from having to know its garment at every time. The paper says no more than that about several
parts; what stands here is ours: TryonNet's target is the new picture above the garment, under one noise; a sample of
the student is the clean picture that one pass says; the teacher sees a garment only by what it is told of it; the
fake-score network begins as a copy of the teacher; the adversary is hinge, on the frozen teacher's tokens.

``B`` examples, ``C`` latent channels, ``h w`` latents of a picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from omfa.baselines.mobile_vton import losses
from omfa.baselines.mobile_vton.examples import TryOnExample
from omfa.baselines.mobile_vton.folder import GARMENT, TRYON, Parts
from omfa.baselines.mobile_vton.light_unet import LightUNet
from omfa.baselines.mobile_vton.losses import Weights
from omfa.baselines.mobile_vton.prompts import TextEmbeds, widened
from omfa.baselines.mobile_vton.sampling import doubled
from omfa.baselines.mobile_vton.teacher import Discriminator, velocity_of
from omfa.training.parts import SeveralOptimizers

LEVELS = (0.02, 0.98)  # of noise, where scores are compared: DMD2's


class Draws:
    """All chance of a step, each example's from its own generator: a batch depends on its examples alone.

    Args:
        states: of the generators, B of them.
        device: where what is drawn goes.
    """

    def __init__(self, states: Sequence[bytes], device: torch.device) -> None:
        self.device = device
        self.generators = [torch.Generator() for _ in states]
        for generator, state in zip(self.generators, states, strict=True):
            generator.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal (B, *shape)."""
        return torch.stack([torch.randn(*shape, generator=g) for g in self.generators]).to(self.device)

    def levels(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Noise levels (B), spread as the sampler's are."""
        u = torch.cat([torch.rand(1, generator=g) for g in self.generators]).to(self.device)
        return losses.shifted(low + (high - low) * u)


def drawn(moments: Tensor, draws: Draws) -> Tensor:
    """Mean and log-variance (B, 2C, h, w) -> a sample of the VAE's own latents (B, C, h, w)."""
    posterior = DiagonalGaussianDistribution(moments)
    return posterior.mean + posterior.std * draws.normal(posterior.mean.shape[1:])


@dataclass(frozen=True)
class Made:
    """What a pass of the student gave, without gradient, and what is compared with it.

    Args:
        samples: persons, then garments (2B, C, h, w).
        texts: what the teacher is told of each.
        real: the pictures that the persons should be (B, C, h, w).
    """

    samples: Tensor
    texts: TextEmbeds
    real: Tensor

    @property
    def persons(self) -> tuple[Tensor, TextEmbeds]:
        """The first half."""
        n = len(self.real)
        return self.samples[:n], TextEmbeds(self.texts.tokens[:n], self.texts.pooled[:n])


class MobileVTONModule(SeveralOptimizers):
    """Trains TryonNet and GarmentNet by TGT with FGA; the defaults are the paper's first stage.

    One step: the student's losses and its step; then ``fake_updates`` steps of the fake-score network on the samples
    just made; then one of the discriminator. Only the student's steps count in ``trainer.global_step``.

    Args:
        tryon, garment: the student.
        teacher: frozen; knows the latent space of the student. None where neither scores nor the adversary count.
        weights: of the losses.
        learning_rate: AdamW's for the student (the paper: 1e-4, in its second stage 5e-5).
        fake_rate, adversary_rate: AdamW's for the others; None for the student's.
        fake_updates: steps of the fake-score network for each of the student's (DMD2 takes 5).
        weight_decay: AdamW's.
        clip: largest norm of each network's gradient.
        latent_scale, latent_shift: the VAE's scaling and shift factors (SD3.5's by default).
        parts: folder of the published layout that lends what is not trained to :meth:`save`; None saves the student.

    Raises:
        ValueError: a number out of range, or no teacher where one is needed.
    """

    def __init__(
        self,
        tryon: LightUNet,
        garment: LightUNet,
        teacher: SD3Transformer2DModel | None = None,
        weights: Weights | None = None,
        learning_rate: float = 1e-4,
        fake_rate: float | None = None,
        adversary_rate: float | None = None,
        fake_updates: int = 5,
        weight_decay: float = 0.01,
        clip: float = 1.0,
        latent_scale: float = 1.5305,
        latent_shift: float = 0.0609,
        parts: str | None = None,
    ) -> None:
        super().__init__()
        self.weights = weights or Weights()
        if learning_rate <= 0 or fake_updates < 1 or clip <= 0:
            raise ValueError(f"learning_rate {learning_rate} and clip {clip} > 0, fake_updates {fake_updates} >= 1")
        if teacher is None and (self.weights.feature or self.weights.adversarial):
            raise ValueError(f"{self.weights} want a teacher; give one, or weigh feature and adversarial 0")
        self.tryon, self.garment = tryon, garment
        for network in (tryon, garment):
            network.requires_grad_(True).train()
        self._teacher = [] if teacher is None else [teacher.requires_grad_(False).eval()]  # not in checkpoints
        self.fake = deepcopy(teacher).requires_grad_(True) if teacher is not None and self.weights.feature else None
        self.adversary = Discriminator.of(teacher) if teacher is not None and self.weights.adversarial else None
        self.learning_rate, self.weight_decay, self.clip = learning_rate, weight_decay, clip
        self.fake_rate, self.adversary_rate = fake_rate or learning_rate, adversary_rate or learning_rate
        self.fake_updates, self.latent_scale, self.latent_shift = fake_updates, latent_scale, latent_shift
        self.parts = parts

    # ---------------------------------------------------------------------------------------------- Lightning's glue
    def on_fit_start(self) -> None:
        """Bring the teacher to the device."""
        for teacher in self._teacher:
            teacher.to(self.device)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """AdamW for the student, then for the fake-score network and the discriminator where there are such."""

        def adamw(parameters: Iterable[nn.Parameter], rate: float) -> torch.optim.Optimizer:
            return torch.optim.AdamW(parameters, lr=rate, weight_decay=self.weight_decay)

        made = [adamw([*self.tryon.parameters(), *self.garment.parameters()], self.learning_rate)]
        made += [] if self.fake is None else [adamw(self.fake.parameters(), self.fake_rate)]
        return made + ([] if self.adversary is None else [adamw(self.adversary.parameters(), self.adversary_rate)])

    def training_step(self, batch: TryOnExample, batch_idx: int) -> None:
        """One step of all networks."""
        batch = batch.to(self.device)
        optimizers: Any = self.optimizers(use_pl_optimizer=True)
        student, *others = optimizers if isinstance(optimizers, list) else [optimizers]
        draws = Draws(batch.generator, self.device)

        if self.adversary is not None:  # the student's loss must leave no gradient there
            self.adversary.requires_grad_(False)
        made, parts = self.student_losses(batch, draws)
        loss = self.total(parts)
        self.manual_backward(loss)
        self._step(student, [self.tryon, self.garment])
        said = {"loss": loss.detach()} | {f"loss/{name}": value.detach() for name, value in parts.items()}

        if self.fake is not None:
            plain = others.pop(0).optimizer  # not Lightning's wrapper, which counts steps
            for _ in range(self.fake_updates):
                loss = self.fake_loss(made, draws)
                self.manual_backward(loss)
                self._step(plain, [self.fake])
            said["loss/fake_score"] = loss.detach()
        if self.adversary is not None:
            self.adversary.requires_grad_(True)
            real, fake = self.tell_apart(made, draws)
            loss = losses.telling_loss(real, fake)
            self.manual_backward(loss)
            self._step(others.pop(0).optimizer, [self.adversary])
            said |= {"loss/discriminator": loss.detach(), "accuracy": losses.telling_accuracy(real, fake)}
        self.log_dict(said, batch_size=len(batch.id))

    def _step(self, optimizer: Any, networks: list[nn.Module]) -> None:
        parameters = [p for n in networks for p in n.parameters()]
        # One by one: what ZeRO deals out is slow in lists, by the square of their length.
        torch.nn.utils.clip_grad_norm_(parameters, self.clip, foreach=False)
        optimizer.step()
        optimizer.zero_grad()

    def save(self, folder: Path, whole: bool = False, dtype: torch.dtype | None = None) -> None:
        """Write the student, in a folder that ``MobileVTON.from_pretrained`` reads where ``parts`` lends the rest.

        Args:
            folder: where to.
            whole: nothing else is known here.
            dtype: of the student's numbers, for good; None leaves them.
        """
        if dtype is not None:
            self.tryon.to(dtype)
            self.garment.to(dtype)
        if self.parts is None:
            self.tryon.save_pretrained(folder / TRYON)
            self.garment.save_pretrained(folder / GARMENT)
        else:
            replace(Parts.read(self.parts), tryon=self.tryon, garment=self.garment).write(folder)

    # ----------------------------------------------------------------------------------------------- what is computed
    def total(self, parts: dict[str, Tensor]) -> Tensor:
        """The weighted sum of the student's losses."""
        weighted = [getattr(self.weights, name.removeprefix("garment_")) * v for name, v in parts.items()]
        return torch.stack(weighted).sum()

    def latents(self, moments: Tensor, draws: Draws) -> Tensor:
        """Mean and log-variance (B, 2C, h, w) -> a sample (B, C, h, w), shifted and scaled."""
        return (drawn(moments, draws) - self.latent_shift) * self.latent_scale

    def student_losses(self, batch: TryOnExample, draws: Draws) -> tuple[Made, dict[str, Tensor]]:
        """One pass of the student: what it made, and its losses by name."""
        width = self.tryon.config.cross_attention_dim
        target, person, garment = (self.latents(m, draws) for m in (batch.target, batch.person, batch.garment))
        noise, s = draws.normal(target.shape[1:]), draws.levels()
        x0, noise = torch.cat([target, garment], 2), torch.cat([noise, noise], 2)
        x = losses.noised(x0, noise, s)
        context = torch.cat([widened(batch.text, width), self.tryon.image_tokens(batch.features)], 1)

        worn = self.garment(garment, 1000 * s, widened(batch.garment_text, width))
        given = [f * batch.given[:, None, None] for f in doubled(worn.features)]
        seen = torch.cat([x, torch.cat([person, garment], 2)], 1)
        velocity = self.tryon(seen, 1000 * s, context, given).sample
        parts = {
            "diffusion": losses.flow_loss(velocity, x0, noise),
            "consistency": losses.consistency_loss(worn.sample, garment),
        }
        samples = torch.cat([losses.clean(x, velocity, s)[:, :, : target.shape[2]], worn.sample])
        texts = TextEmbeds(
            torch.cat([batch.target_text, batch.garment_text]), torch.cat([batch.target_pooled, batch.garment_pooled])
        )
        if self._teacher:
            parts |= self.teacher_losses(samples, texts, draws)
        return Made(samples.detach(), texts, target), parts

    def teacher_losses(self, samples: Tensor, texts: TextEmbeds, draws: Draws) -> dict[str, Tensor]:
        """What teacher, fake-score network and adversary say of samples (2B, C, h, w), persons first."""
        x, _, s = self.noised(samples, draws)
        taps = () if self.adversary is None else self.adversary.taps
        with torch.set_grad_enabled(bool(taps)):  # the adversary's gradient runs through the teacher
            velocity, features = velocity_of(self._teacher[0], x, s, texts, taps)
        parts, persons = {}, len(samples) // 2
        if self.fake is not None:
            with torch.no_grad():
                true = losses.clean(x, velocity, s)
                fake = losses.clean(x, velocity_of(self.fake, x, s, texts)[0], s)
            halves = zip(samples.split(persons), true.split(persons), fake.split(persons), strict=True)
            parts["feature"], parts["garment_feature"] = (losses.feature_loss(*half) for half in halves)
        if self.adversary is not None:
            parts["adversarial"] = losses.fooling_loss(self.adversary([f[:persons] for f in features]))
        return parts

    def noised(self, samples: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """Samples (n B, C, h, w) with new noise at new levels; that noise, and the levels (n B)."""
        n = len(samples) // len(draws.generators)
        s = torch.cat([draws.levels(*LEVELS) for _ in range(n)])
        noise = torch.cat([draws.normal(samples.shape[1:]) for _ in range(n)])
        return losses.noised(samples, noise, s), noise, s

    def fake_loss(self, made: Made, draws: Draws) -> Tensor:
        """How well the fake-score network knows the student's samples: the flow-matching loss on them."""
        assert self.fake is not None
        x, noise, s = self.noised(made.samples, draws)
        velocity, _ = velocity_of(self.fake, x, s, made.texts)
        return losses.flow_loss(velocity, made.samples, noise)

    def tell_apart(self, made: Made, draws: Draws) -> tuple[Tensor, Tensor]:
        """The discriminator's logits (B, tokens) of real persons and of the student's, at the same levels and noise."""
        assert self.adversary is not None
        persons, texts = made.persons
        s, noise = draws.levels(*LEVELS), draws.normal(persons.shape[1:])
        logits = []
        for latents in (made.real, persons):
            with torch.no_grad():
                x = losses.noised(latents, noise, s)
                _, features = velocity_of(self._teacher[0], x, s, texts, self.adversary.taps)
            logits.append(self.adversary(features))
        return logits[0], logits[1]
