"""Distillation: a trained model learns to make in a few steps what it makes in many with guidance (omfa.few_steps).

Teacher, average and student are one network with three sets of weights: those training began with, the run's average
(:class:`omfa.training.ema.EMA`), and those that learn. So small trainings cost the memory of small weights.

Legend: ``B`` examples, ``R`` canvases or target rows, ``C`` latent channels, ``h w`` latents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from omfa import partial_diffusion as pd
from omfa.conditioning import choose
from omfa.few_steps import Course, Ladder, check_call, distance, guided_by, make_distilled
from omfa.pipeline import OMFAPipeline
from omfa.records.stream import seeded
from omfa.sampling import Predict
from omfa.training.ema import EMA, lent
from omfa.training.examples import Batch
from omfa.training.in_rows import drawn_rows, of_examples
from omfa.training.model_card import About
from omfa.training.module import OMFAModule
from omfa.training.sample_pictures import SamplePictures
from omfa.training.zero import Divides, trained
from omfa.tuning import Mismatch


class Look(NamedTuple):
    """A batch before the network as its weights are now.

    ``target`` (R, 1, h, w) bool, ``known`` (R, C, h, w), and predictions with what is given and without anything.
    """

    target: Tensor
    known: Tensor
    predict: Predict
    without: Predict


class Scene(NamedTuple):
    """A batch that no trained weight has touched yet.

    ``z0``, ``noise`` (R, C, h, w); ``t`` and ``owner``, the example, (R,); ``look`` lays it before the network.
    """

    z0: Tensor
    noise: Tensor
    t: Tensor
    owner: Tensor
    look: Callable[[], Look]


class Distillation(OMFAModule):
    """Consistency distillation of a trained pipeline, on its targets alone, guidance and all; see ``omfa.few_steps``.

    What a run saves says that it is distilled: a call takes ``steps`` and no guidance. Without an EMA among the
    callbacks the student as it is is its own target network.

    Args:
        pipeline: the teacher, and what the student begins as.
        steps: of the student.
        phased: whether each of these steps is a phase of its own (PCM). A phased student is sampled without new noise,
            in so many steps and no others; any other in 1 to 8, whichever is asked for.
        teacher_steps: of the teacher from noise to picture; one of them is a training step's.
        guidance: lowest and highest scale of the teacher's guidance, drawn evenly for each example; alike for one.
        huber: of the distance; see :func:`omfa.few_steps.distance`.
        training: the arguments of :class:`OMFAModule`.

    Raises:
        ValueError: a number out of range, or a teacher that is distilled already.
    """

    def __init__(
        self,
        pipeline: OMFAPipeline,
        steps: int = 4,
        phased: bool = False,
        teacher_steps: int = 50,
        guidance: Sequence[float] = (2.0, 2.0),
        huber: float = 1e-3,
        **training: Any,
    ) -> None:
        super().__init__(pipeline, min_snr=None, **training)
        if pipeline.config.distilled:
            raise ValueError("this pipeline is distilled already: distil the model that it was distilled from")
        if len(guidance) != 2 or not 1 <= guidance[0] <= guidance[1] < 100 or not 0 < huber < 1:
            raise ValueError(
                f"guidance {list(guidance)} must be two scales from 1 (none) up, lowest first, and huber {huber} in "
                "(0, 1)"
            )
        self.ladder, self.guidance, self.huber = Ladder(teacher_steps, steps if phased else 1), guidance, huber
        make_distilled(pipeline, self.ladder, steps)
        self.teacher = {name: p.detach().clone() for name, p in trained(self)}
        self.average: EMA | None = None

    def on_fit_start(self) -> None:
        """Find the average; see :class:`OMFAModule` for the rest.

        Raises:
            Mismatch: weights dealt out by ZeRO, or sample pictures that a distilled model does not make.
        """
        super().on_fit_start()
        if isinstance(self.trainer.strategy, Divides):
            raise Mismatch("distillation swaps whole weights, which ZeRO deals out: train LoRA, or on larger cards")
        callbacks, own = self.trainer.callbacks, self.pipe.config.default_steps  # type: ignore[attr-defined]
        for drawn in (c for c in callbacks if isinstance(c, SamplePictures)):
            try:
                check_call(self.pipe.scheduler, own, drawn.steps, drawn.guidance)
            except ValueError as e:
                raise Mismatch(f"give SamplePictures steps: {own}, guidance: 1.0; {e}") from e
        self.average = next((c for c in callbacks if isinstance(c, EMA)), None)
        self.teacher = {name: p.to(self.device) for name, p in self.teacher.items()}

    def losses(self, batch: Batch) -> Tensor:
        """Each example's loss, (B,): where the student lands, and where its average does a teacher's step further."""
        scene = self.scene(batch)
        course = Course(self.ladder, self.alphas_cumprod, self.kind)
        t = self.ladder.at(scene.t)
        below = self.ladder.below(t)
        with torch.no_grad():
            with lent(self, self.teacher, cast=True):
                look = scene.look()
                noised = pd.add_noise(scene.z0, scene.noise, course.level(t), look.target)
                z_t = torch.where(look.target, noised, look.known)
                guided = self._guided(look, z_t, t, self.scales(batch)[scene.owner])
                z_next = course.step(z_t, guided, t, look.target)
            with lent(self, self._average(), cast=True):
                look = scene.look()
                prediction = look.predict(z_next, below.clamp(min=0))  # where the phase has ended any will do
                goal = course.land(z_next, prediction, below, t, look.target)
        look = scene.look()
        made = course.land(z_t, look.predict(z_t, t), t, t, look.target)
        return of_examples(distance(made, goal, look.target, self.huber), scene.owner)

    def scales(self, batch: Batch) -> Tensor:
        """The scale of each example's guidance (B,), drawn from the example's own generator."""
        lowest, highest = self.guidance
        draws = [torch.rand(1, generator=seeded("guidance", state)) for state in batch.generator]
        return lowest + (highest - lowest) * torch.cat(draws).to(self.device)

    def _guided(self, look: Look, z_t: Tensor, t: Tensor, scale: Tensor) -> Tensor:
        seen = look.predict(z_t, t)
        if self.guidance[1] == 1:
            return seen
        return guided_by(look.without(torch.where(look.target, z_t, 0.0), t), seen, scale)

    def _average(self) -> dict[str, Tensor]:
        return dict(trained(self)) if self.average is None else self.average.whole()

    def scene(self, batch: Batch) -> Scene:
        """A batch encoded, on the canvas or in rows."""
        pipe, made, dropped = self.pipe, self.encode(batch), torch.tensor(batch.unconditional)
        layouts, draws = batch.layout, len(made.noise)
        how = (layouts, made.latents, made.planes, self.device, made.drafts)
        steps = torch.tensor(batch.t, device=self.device)

        def canvas() -> Look:
            guide = pipe.guide(*how)
            nothing = pipe.unconditional(guide)
            guide, alone = choose(dropped, nothing, guide), replace(batch, unconditional=[True] * len(layouts))
            return Look(
                guide.target,
                guide.known,
                lambda z, t: self.predict(z, t, guide, batch),
                lambda z, t: self.predict(z, t, nothing, alone),
            )

        def rows() -> Look:
            drawn = drawn_rows(pipe, pipe.row_guide(*how), layouts, draws, dropped)
            return Look(drawn.rows.guide.target, drawn.rows.guide.known, drawn.predict, drawn.without)

        if pipe.config.join == "canvas":
            owner = torch.arange(len(layouts), device=self.device)
            return Scene(pipe.canvas.join(made.latents), made.noise[0], steps[:, 0], owner, canvas)
        targets = pipe.row_guide(*how).targets
        z0, noise = self.of_targets(targets, made)
        owner = targets.owner.repeat(draws)
        t = steps.T[:, targets.owner].flatten()
        return Scene(z0.repeat(draws, 1, 1, 1), noise.flatten(0, 1), t, owner, rows)

    def told(self) -> dict[str, Any]:
        """What small files say of themselves: also how they are sampled."""
        few = {
            "teacher_steps": self.ladder.steps,
            "phases": self.ladder.phases,
            "steps": self.pipe.config.default_steps,
        }
        return {**super().told(), "few_steps": few}

    def about(self, folder: Path) -> About:
        """See :class:`omfa.training.parts.Describes`."""
        about, steps = super().about(folder), self.pipe.config.default_steps
        how = "by phases (arXiv 2405.18407)" if self.ladder.phases > 1 else "(arXiv 2310.04378)"
        what = f" Distilled {how}: {steps} steps, one pass each; the guidance is in the weights."
        return replace(about, title="OMFA model for few steps", what=about.what + what)
