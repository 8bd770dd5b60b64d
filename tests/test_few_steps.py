"""What a distilled model learns, against closed forms and NumPy; how it is sampled. Legend: see ``omfa.few_steps``."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from omfa.few_steps import CLEAN, Course, Ladder, distance, few_step_scheduler, guided_by, jump
from omfa.partial_diffusion import Prediction, check_scheduler, ddim
from omfa.sampling import denoise
from tests.test_partial_diffusion import numpy_alphas, setup

V: Prediction = "v_prediction"
ZERO_SNR = {"prediction_type": V, "rescale_betas_zero_snr": True}


def scheduler(**options: Any) -> DDIMScheduler:
    return ddim(timestep_spacing="trailing", **options)


def course(ladder: Ladder, kind: Prediction = V) -> Course:
    made = scheduler(**ZERO_SNR) if kind == V else scheduler()
    return Course(ladder, made.alphas_cumprod.double(), kind)


# ------------------------------------------------------------------------------------------------ the teacher's step


@pytest.mark.parametrize("kind", ["epsilon", V])
def test_the_teachers_step_is_ddim_with_guidance_on_the_targets(kind: Prediction) -> None:
    """Song et al. 2021, eq. 12 with eta 0, in NumPy; three examples at the first, a middle and the last timestep."""
    z, with_, target, _ = setup()
    without, scale = setup(1)[0], torch.tensor([1.5, 2.0, 3.0])
    t = torch.tensor([999, 499, 19])
    made = course(Ladder(50), kind).step(z, guided_by(without, with_, scale), t, target)

    abar = np.append(numpy_alphas(zero_snr=kind == V), 1.0)  # the last is that of -1, clean
    x, c, u, m = (v.double().numpy() for v in (z, with_, without, target))
    a, b = (abar[n][:, None, None, None] for n in (t.numpy(), t.numpy() - 20))
    p = u + scale.numpy()[:, None, None, None] * (c - u)
    r = np.sqrt(1 - a)
    start, eps = (
        ((x - r * p) / np.sqrt(a), p) if kind == "epsilon" else (np.sqrt(a) * x - r * p, np.sqrt(a) * p + r * x)
    )
    expected = m * (np.sqrt(b) * start + np.sqrt(1 - b) * eps) + (1 - m) * x
    assert np.abs(made.numpy() - expected).max() / np.abs(expected).max() < 1e-5
    assert torch.equal(made[~target.expand_as(made)], z[~target.expand_as(z)])


@pytest.mark.parametrize("kind", ["epsilon", V])
def test_the_teachers_steps_are_the_schedulers(kind: Prediction) -> None:
    made = scheduler(**ZERO_SNR) if kind == V else scheduler(set_alpha_to_one=True)
    made.set_timesteps(8)
    ours, ladder = course(Ladder(8), kind), Ladder(8)
    everywhere, z = torch.ones(1, 1, 8, 10, dtype=torch.bool), torch.randn(1, 4, 8, 10)
    for t in made.timesteps:
        p = torch.tanh(z + t / 500)
        step = made.step(p, t, z).prev_sample
        assert int(ladder.at(t)) == int(t)
        torch.testing.assert_close(ours.step(z, p, t[None], everywhere), step, atol=1e-4, rtol=1e-4)
        z = step


def test_phases_end_where_the_next_begin() -> None:
    t = torch.tensor([999, 750, 749, 500, 249, 0])
    assert Ladder(40, 4).end(t).tolist() == [749, 749, 499, 499, CLEAN, CLEAN]
    assert Ladder(50).end(t).tolist() == [CLEAN] * 6
    assert Ladder(50).at(t).tolist() == [999, 759, 759, 519, 259, 19]
    assert Ladder(50).at(torch.arange(1000)).unique(return_counts=True)[1].tolist() == [20] * 50
    for steps, phases in ((30, 1), (50, 4), (0, 1), (8, 0)):
        with pytest.raises(ValueError, match="must divide"):
            Ladder(steps, phases)


def test_the_boundary_holds_whatever_the_network_says() -> None:
    """Where a phase ends its jump is the identity; to the picture c_skip, c_out are 0, -1 at t = 999, 1, 0 at clean."""
    z, p, target, _ = setup()
    ours = course(Ladder(40, 4))
    for t, phase in ((749, 999), (499, 600), (CLEAN, 100)):
        at, of = torch.full((3,), t), torch.full((3,), phase)
        torch.testing.assert_close(ours.land(z, 100 * p, at, of, target), z, atol=1e-4, rtol=1e-5)
    first = torch.full((3,), 999)
    landed = course(Ladder(50)).land(z, p, first, first, target)
    assert torch.equal(landed, torch.where(target, -p, z))
    same = torch.tensor([0.0, 0.4, 1.0])
    assert torch.isfinite(jump(z, p, same, same.flip(0), target, V)).all()


def test_the_distance_is_pseudo_huber_over_each_examples_own_targets() -> None:
    made, goal, target, _ = setup()
    m = target.numpy().astype(float)
    mean = [(m[i] * (made[i] - goal[i]).double().numpy() ** 2).sum() / (4 * m[i].sum()) for i in range(3)]
    expected = np.sqrt(np.array(mean) + 0.01**2) - 0.01
    np.testing.assert_allclose(distance(made, goal, target, 0.01).numpy(), expected, atol=1e-6)
    alone = distance(made[:1], goal[:1], target[:1], 0.01)
    torch.testing.assert_close(alone, distance(made, goal, target, 0.01)[:1])
    made.requires_grad_()
    distance(made, made.detach().clone(), target, 0.01).sum().backward()
    assert made.grad is not None and made.grad.isfinite().all()


# ------------------------------------------------------------------------------------------- a toy with known answers


def denoiser(abar: float, mean: float, std: float) -> tuple[float, float]:
    """E[x0 | z] = slope z + shift of x0 ~ N(mean, std^2), z = sqrt(abar) x0 + sqrt(1 - abar) eps."""
    slope = std**2 * abar**0.5 / (abar * std**2 + 1 - abar)
    return slope, mean - slope * abar**0.5 * mean


def test_two_steps_of_a_gaussian_are_its_closed_form() -> None:
    """Teacher: exact for N(.7, .5^2) given, N(-.2, 1) not given, guided by 2. Loss and sampler of the exact student."""
    ladder, scale, c = Ladder(2), 2.0, 0.01
    ours, (abar, first) = course(ladder), numpy_alphas(zero_snr=True)[[499, 999]]
    a, b = abar**0.5, (1 - abar) ** 0.5
    slopes = {}
    for t, level in ((999, first), (499, abar)):
        k, m = (np.array(denoiser(level, *of)) for of in ((0.7, 0.5), (-0.2, 1.0)))
        slopes[t] = m + scale * (k - m)
    slope, shift = slopes[499]
    where = slopes[999][1]  # of the guided step at pure noise, which sees no z: its slope is 0
    # teacher: z = n -> a where + b n -> slope (a where + b n) + shift
    gain, offset = slope * b, slope * a * where + shift

    def as_v(z: Tensor, x0: Tensor, level: float) -> Tensor:
        return (level**0.5 * z - x0) / (1 - level) ** 0.5

    def predict(z: Tensor, t: int, of: tuple[float, float], level: float) -> Tensor:
        k, m = denoiser(level, *of)
        return as_v(z, k * z + m, level)

    def student(z: Tensor, t: int, off: float = 0.0) -> Tensor:
        return as_v(z, (gain * z + offset if t == 999 else slope * z + shift) + off, first if t == 999 else abar)

    n = torch.randn(5, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x0 = 0.7 + 0.5 * torch.randn(5, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    target = torch.ones(5, 1, 2, 2, dtype=torch.bool)
    for t, level in ((999, first), (499, abar)):
        at = torch.full((5,), t)
        z = level**0.5 * x0 + (1 - level) ** 0.5 * n
        both = (predict(z, t, (-0.2, 1.0), level), predict(z, t, (0.7, 0.5), level))
        onward = ours.step(z, guided_by(*both, torch.full((5,), scale)), at, target)
        goal = ours.land(onward, student(onward, 499), ladder.below(at), at, target)
        for off in (0.0, 0.3, -0.02):
            made = ours.land(z, student(z, t, off), at, at, target)
            expected = (off**2 + c**2) ** 0.5 - c
            assert distance(made, goal, target, c).numpy() == pytest.approx(expected, abs=1e-4)

    made = few_step_scheduler(scheduler(**ZERO_SNR), ladder)
    made.set_timesteps(2)
    start, seed = n.float(), torch.Generator().manual_seed(5)
    out = denoise(made, lambda z, t: student(z, int(t)), start, target, torch.zeros(()), _on, generator=seed)
    again = torch.randn(start.shape, generator=torch.Generator().manual_seed(5))
    expected = slope * (a * (gain * start + offset) + b * again) + shift
    torch.testing.assert_close(out, expected.float(), atol=1e-4, rtol=1e-4)


def _on(i: int, t: Tensor, x: Tensor) -> tuple[Tensor, bool]:
    return x, False


# ---------------------------------------------------------------------------------------- a toy that is really learned


class Toy(nn.Module):
    """x0 is -.5 or 1 by a quarter and three quarters, spread by .5; guided to the upper. The student adds a net."""

    def __init__(self, levels: Tensor, scale: float) -> None:
        super().__init__()
        self.levels, self.scale = levels.double(), scale
        self.net = nn.Sequential(nn.Linear(32, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))
        nn.init.zeros_(self.net[-1].weight)  # the student begins as its teacher
        nn.init.zeros_(self.net[-1].bias)

    def teacher(self, z: Tensor, t: Tensor) -> Tensor:
        abar = self.levels[t].view(-1, *[1] * (z.ndim - 1))
        a, var = abar.sqrt(), 0.25 * abar + 1 - abar
        each = [m + 0.25 * a * (z - a * m) / var for m in (-0.5, 1.0)]
        share = torch.sigmoid(1.5 * a * (z - 0.25 * a) / var + np.log(3))  # of the upper one
        free = share * each[1] + (1 - share) * each[0]
        x0 = free + self.scale * (each[1] - free)
        return ((a * z - x0) / (1 - abar).sqrt()).float()

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        t = t.expand(len(z)) if t.ndim else t.repeat(len(z))
        seen = torch.cat([z.flatten(1), z.flatten(1) ** 2, get_timestep_embedding(t, 30)], 1)  # a phase's edge is sharp
        return self.teacher(z, t) + self.net(seen).view(z.shape)


def moments(x: Tensor) -> np.ndarray:
    return np.array([x.mean(), x.std(), x.abs().pow(3).mean() ** (1 / 3)])


@pytest.mark.parametrize(
    ("ladder", "scale"), [(Ladder(50), 1.0), (Ladder(40, 4), 1.5)], ids=["one phase", "four phases"]
)
def test_four_learned_steps_give_the_teachers_fifty(ladder: Ladder, scale: float) -> None:
    """With guidance only by phases: noised anew, as one phase is sampled, a guided path is no longer its own."""
    torch.manual_seed(0)
    by_teacher, batch, steps, rate = scheduler(**ZERO_SNR), 256, 1500, 1e-2
    ours, student = Course(ladder, by_teacher.alphas_cumprod, V), Toy(by_teacher.alphas_cumprod, scale)
    average, target = copy.deepcopy(student), torch.ones(batch, 1, 1, 1, dtype=torch.bool)
    optimizer = torch.optim.Adam(student.net.parameters(), rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        t = ladder.at(torch.randint(1000, (batch,)))
        x0 = torch.where(torch.rand(batch) < 0.25, -0.5, 1.0) + 0.5 * torch.randn(batch)
        level = ours.level(t).float()
        z = (level.sqrt() * x0 + (1 - level).sqrt() * torch.randn(batch)).view(-1, 1, 1, 1)
        with torch.no_grad():
            onward, below = ours.step(z, student.teacher(z, t), t, target), ladder.below(t)
            goal = ours.land(onward, average(onward, below.clamp(min=0)), below, t, target)
        loss = distance(ours.land(z, student(z, t), t, t, target), goal, target, 0.1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for mine, theirs in zip(average.net.parameters(), student.net.parameters(), strict=True):
                mine.lerp_(theirs, 0.2)

    noise = torch.randn(20_000, 1, 1, 1)
    everywhere = torch.ones(len(noise), 1, 1, 1, dtype=torch.bool)

    @torch.no_grad()
    def sampled(by: Any, predict: Any, steps: int) -> np.ndarray:
        by.set_timesteps(steps)
        return moments(denoise(by, predict, noise, everywhere, torch.zeros(()), _on, generator=None))

    def undistilled(z: Tensor, t: Tensor) -> Tensor:
        return student.teacher(z, t.repeat(len(z)))

    truth = sampled(by_teacher, undistilled, 50)
    few = sampled(few_step_scheduler(by_teacher, ladder), average, 4)
    worse = sampled(by_teacher, undistilled, 4)
    assert np.abs(few / truth - 1).max() < 0.05, (few, truth)
    assert np.abs(worse / truth - 1).max() > 0.3, (worse, truth)


def test_a_distilled_model_is_sampled_by_one_of_two_schedulers() -> None:
    for teacher in (scheduler(**ZERO_SNR), scheduler()):
        one, four = (few_step_scheduler(teacher, ladder) for ladder in (Ladder(50), Ladder(40, 4)))
        assert isinstance(one, LCMScheduler) and isinstance(four, DDIMScheduler)
        for made in (one, four):
            assert check_scheduler(made) == check_scheduler(teacher)
            assert torch.equal(made.alphas_cumprod, teacher.alphas_cumprod)
            made.set_timesteps(4)
            assert int(made.timesteps[0]) == 999
        assert four.timesteps.tolist() == [999, 749, 499, 249]
        assert {int(Ladder(50).at(t)) for t in one.timesteps} == set(one.timesteps.tolist())
