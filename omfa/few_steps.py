"""Few steps: what a distilled model learns from its teacher, and how it is sampled.

A model walks from noise to a picture along one path, in many small steps with guidance. A consistency model
(Song et al. 2023, arXiv 2303.01469) learns where on that path the walk will end, and jumps:

    J(z_t, t -> s) = sqrt(abar_s) z0^ + sqrt(1 - abar_s) eps^                   z0^, eps^ from a prediction at z_t
    z_{t-k}        = J(z_t, t -> t-k)  by the teacher's  u + w (c - u)          a step of DDIM with guidance
    L              = d( J_student(z_t, t -> e),  J_average(z_{t-k}, t-k -> e) ) e: where the phase of t ends

With one phase e is the picture itself (latent consistency models, arXiv 2310.04378, skipping steps k and guidance w as
there), sampled by jumping to it and noising anew; with several, each ends where the next begins (phased consistency
models, arXiv 2405.18407), sampled by DDIM from end to end. At its end a phase's jump is the identity whatever the
network says, so the boundary condition needs no constants of its own: of J to the picture by v-prediction, c_skip =
sqrt(abar) and c_out = -sqrt(1 - abar), which are 0 and -1 at zero terminal SNR, and 1 and 0 where nothing is noised.

All of it on the targets alone. ``B`` examples or rows, ``C`` latent channels, ``h w`` latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, LCMScheduler
from torch import Tensor

from omfa.partial_diffusion import Prediction, tweedie

TRAIN_STEPS = 1000
CLEAN = -1  # the timestep of a picture without noise
_LEVELS = ("beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type", "rescale_betas_zero_snr")


@dataclass(frozen=True)
class Ladder:
    """The teacher's timesteps, 999 the first of them, and the phases they fall into.

    Args:
        steps: of the teacher from noise to picture; the training steps it skips are 1000 / steps.
        phases: of equal length.

    Raises:
        ValueError: numbers that do not divide.
    """

    steps: int = 50
    phases: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or TRAIN_STEPS % self.steps or self.phases < 1 or self.steps % self.phases:
            raise ValueError(
                f"teacher steps {self.steps} must divide {TRAIN_STEPS} (50, 40, 20, 8), and phases {self.phases} them"
            )

    @property
    def stride(self) -> int:
        """Training steps from one of the teacher's to the next."""
        return TRAIN_STEPS // self.steps

    def at(self, t: Tensor) -> Tensor:
        """The teacher's timestep at or next above ``t`` (any shape, 0 to 999); even draws of ``t`` give even draws."""
        return t // self.stride * self.stride + self.stride - 1

    def below(self, t: Tensor) -> Tensor:
        """The teacher's next timestep; ``CLEAN`` after the last."""
        return t - self.stride

    def end(self, t: Tensor) -> Tensor:
        """Where the phase of ``t`` ends: the first timestep of the next one, ``CLEAN`` of the last one."""
        length = TRAIN_STEPS // self.phases
        return t // length * length - 1


def jump(z: Tensor, prediction: Tensor, start: Tensor, end: Tensor, target: Tensor, kind: Prediction) -> Tensor:
    """Along the path from one level of noise to another as one prediction sees it: a step of DDIM without noise.

    Args:
        z: (B, C, h, w), noised at ``start`` on the targets.
        prediction: of the network, or guided, there (B, C, h, w).
        start, end: abar (B,).
        target: (B, 1, h, w) bool.
        kind: what is predicted.

    Returns:
        (B, C, h, w), float32, ``z`` outside the targets; ``z`` where ``start`` is ``end``, up to rounding.
    """
    z, prediction = z.float(), prediction.float()
    levels = (start, 1 - start, end, 1 - end)
    a, s, b, r = (x.to(z).sqrt()[:, None, None, None] for x in levels)
    clean = tweedie(z, prediction, start, target, z, kind)
    noise = prediction if kind == "epsilon" else s * z + a * prediction
    return torch.where(target, b * clean + r * noise, z)


def guided_by(without: Tensor, with_: Tensor, scale: Tensor) -> Tensor:
    """Classifier-free guidance with a scale (B,) for each example: u + w (c - u). (B, C, h, w)."""
    return without + scale.to(with_)[:, None, None, None] * (with_ - without)


@dataclass(frozen=True, eq=False)
class Course:
    """A ladder at a model's levels of noise: where a prediction leads.

    Args:
        ladder: of the teacher.
        alphas_cumprod: the scheduler's (1000,).
        kind: what the network predicts.
    """

    ladder: Ladder
    alphas_cumprod: Tensor
    kind: Prediction

    def level(self, t: Tensor) -> Tensor:
        """abar of timesteps (B,), 1 for ``CLEAN``; (B,)."""
        return torch.cat([self.alphas_cumprod.new_ones(1), self.alphas_cumprod])[t + 1]

    def step(self, z: Tensor, prediction: Tensor, t: Tensor, target: Tensor) -> Tensor:
        """The teacher's step: from its timesteps ``t`` (B,) to the next ones; see :func:`jump`."""
        return jump(z, prediction, self.level(t), self.level(self.ladder.below(t)), target, self.kind)

    def land(self, z: Tensor, prediction: Tensor, t: Tensor, phase: Tensor, target: Tensor) -> Tensor:
        """From ``t`` to where the phase of the timesteps ``phase`` (B,) ends; see :func:`jump`."""
        return jump(z, prediction, self.level(t), self.level(self.ladder.end(phase)), target, self.kind)


def distance(made: Tensor, goal: Tensor, target: Tensor, huber: float) -> Tensor:
    """Pseudo-Huber distance of each example, sqrt(m + c^2) - c with m the mean square over its own targets; (B,).

    Improved consistency training (arXiv 2310.14189): far from the goal all examples pull alike, near it as a square.

    Args:
        made, goal: (B, C, h, w).
        target: (B, 1, h, w) bool; every example has some.
        huber: c.
    """
    error = torch.where(target, made.float() - goal.float(), 0.0).square()
    mean = error.sum((1, 2, 3)) / (target.sum((1, 2, 3)) * made.shape[1])
    return (mean + huber**2).sqrt() - huber


def few_step_scheduler(scheduler: Any, ladder: Ladder) -> DDIMScheduler | LCMScheduler:
    """The scheduler of a distilled model, at its teacher's levels of noise.

    Args:
        scheduler: the teacher's.
        ladder: what it was distilled by.
    """
    levels = {name: scheduler.config[name] for name in _LEVELS if name in scheduler.config}
    if ladder.phases == 1:
        return LCMScheduler(**levels, clip_sample=False, original_inference_steps=ladder.steps)
    return DDIMScheduler(**levels, clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing")


def make_distilled(pipe: Any, ladder: Ladder, steps: int) -> None:
    """Have a pipeline sample as a distilled model does, and say so in its config; its weights are left alone.

    Args:
        pipe: an :class:`omfa.pipeline.OMFAPipeline`.
        ladder: what it is distilled by.
        steps: a call takes that names none.

    Raises:
        ValueError: more steps than the teacher's, or other than the phases.
    """
    if not 1 <= steps <= ladder.steps or (ladder.phases > 1 and steps != ladder.phases):
        raise ValueError(f"{steps} steps: give 1 to the teacher's {ladder.steps}, and as many as there are phases")
    pipe.register_modules(scheduler=few_step_scheduler(pipe.scheduler, ladder))
    pipe.register_to_config(distilled=True, default_steps=steps, default_guidance=1.0)


def check_call(scheduler: Any, own_steps: int, steps: int, scale: float) -> None:
    """Whether a distilled model can be called so.

    Args:
        scheduler: of the model, as :func:`few_step_scheduler` makes it; of any other kind, any number of steps will do.
        own_steps: what it was distilled to.
        steps, scale: of the call.

    Raises:
        ValueError: guidance, steps that a phased model has not learned, or more of them than its teacher took.
    """
    if scale > 1:
        raise ValueError(
            f"guidance_scale is {scale}: this model was distilled, its guidance is in its weights and a step is one "
            f"pass; leave guidance_scale out ({own_steps} steps are its own)"
        )
    if isinstance(scheduler, DDIMScheduler) and steps != own_steps:
        raise ValueError(
            f"num_inference_steps is {steps}: this model was distilled by phases, one a step, and takes {own_steps}; "
            "leave num_inference_steps out"
        )
    if isinstance(scheduler, LCMScheduler) and steps > scheduler.config.original_inference_steps:
        most = scheduler.config.original_inference_steps
        raise ValueError(
            f"num_inference_steps is {steps}: this model was distilled from {most} steps; give 1 to {most}"
        )
