"""The method against plain NumPy written here from the equations, and its properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from omfa import partial_diffusion as pd

B, C, H, W = 3, 4, 8, 10
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def setup(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    z0, eps = torch.randn(2, B, C, H, W, generator=g)
    target = torch.zeros(B, 1, H, W, dtype=torch.bool)
    target[0, :, :, :5], target[1, :, :4], target[2] = True, True, True
    return z0, eps, target, torch.tensor([10, 500, 999])


def numpy_alphas(zero_snr: bool = False) -> np.ndarray:
    """abar of SDXL's scaled-linear betas; rescaled to zero terminal SNR as in Lin et al. 2023, algorithm 1."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    abar = np.cumprod(1 - betas)
    if zero_snr:
        root = np.sqrt(abar)
        abar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return abar


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_forward_and_loss_against_numpy(kind: pd.Prediction) -> None:
    z0, eps, target, t = setup()
    abar = numpy_alphas()[t.numpy()]
    prediction = torch.randn(B, C, H, W, generator=torch.Generator().manual_seed(9))
    z, e, m, p = (x.double().numpy() for x in (z0, eps, target, prediction))
    a, s = np.sqrt(abar)[:, None, None, None], np.sqrt(1 - abar)[:, None, None, None]
    z_t = m * (a * z + s * e) + (1 - m) * z
    goal = e if kind == "epsilon" else a * e - s * z
    per_example = [(m[i] * (goal[i] - p[i]) ** 2).sum() / (m[i].sum() * C) for i in range(B)]

    schedule = DDPMScheduler(**BETAS).alphas_cumprod[t]
    assert np.abs(pd.add_noise(z0, eps, schedule, target).numpy() - z_t).max() < 1e-5
    losses = pd.loss(prediction, pd.training_goal(z0, eps, schedule, kind), target)
    assert np.abs(losses.numpy() - per_example).max() < 1e-5


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_ten_masked_ddim_steps_against_numpy(kind: pd.Prediction) -> None:
    """DDIM (Song et al. 2021, eq. 12, eta 0) with trailing steps; a toy network that looks at all it is given."""
    z0, noise, target, _ = setup()
    zero_snr = kind == "v_prediction"
    rest = {"prediction_type": kind, "rescale_betas_zero_snr": zero_snr, "timestep_spacing": "trailing"}
    scheduler = DDIMScheduler(**BETAS, **rest, clip_sample=False, set_alpha_to_one=True)
    scheduler.set_timesteps(10)
    clean = torch.where(target, 0.0, z0)

    def network(x, t):  # type: ignore[no-untyped-def]  # torch and NumPy alike
        return 0.3 * x + 0.1 * x.mean() + t / 5000

    x = pd.start(scheduler, noise, target)
    for t in scheduler.timesteps:
        seen = pd.network_latents(scheduler, x, t, target, clean)
        x = pd.step(scheduler, network(seen, float(t)), t, x, target)

    abar = numpy_alphas(zero_snr)
    m, c = target.numpy(), clean.double().numpy()
    y = np.where(m, noise.double().numpy(), 0)
    steps = np.arange(1000, 0, -100) - 1
    for t, after in zip(steps, [*steps[1:], None], strict=True):
        p = network(np.where(m, y, c), float(t))
        a, s = np.sqrt(abar[t]), np.sqrt(1 - abar[t])
        start, eps = ((y - s * p) / a, p) if kind == "epsilon" else (a * y - s * p, a * p + s * y)
        b = 1.0 if after is None else abar[after]
        y = np.where(m, np.sqrt(b) * start + np.sqrt(1 - b) * eps, 0)
    scale = max(1.0, np.abs(y).max())
    assert np.abs(x.numpy() - y).max() / scale < 1e-5


def test_gradient_is_zero_outside_targets_and_not_inside() -> None:
    z0, eps, target, t = setup()
    prediction = torch.zeros(B, C, H, W, requires_grad=True)
    abar = numpy_alphas()[t.numpy()]
    goal = pd.training_goal(z0, eps, torch.tensor(abar).float(), "v_prediction")
    pd.loss(prediction, goal, target).mean().backward()
    inside = target.expand_as(prediction)
    assert prediction.grad is not None
    assert (prediction.grad[~inside] == 0).all() and (prediction.grad[inside] != 0).all()


def test_loss_of_an_example_does_not_depend_on_its_batch() -> None:
    z0, eps, target, _ = setup()
    together = pd.loss(z0, eps, target)
    alone = torch.cat([pd.loss(z0[i : i + 1], eps[i : i + 1], target[i : i + 1]) for i in range(B)])
    assert torch.allclose(together, alone, rtol=1e-6, atol=0)


def test_all_noised_equals_the_schedulers_own_add_noise() -> None:
    z0, eps, _, t = setup()
    scheduler = DDPMScheduler(**BETAS)
    everything = torch.ones(B, 1, H, W, dtype=torch.bool)
    ours = pd.add_noise(z0, eps, scheduler.alphas_cumprod[t], everything)
    assert torch.allclose(ours, scheduler.add_noise(z0, eps, t), atol=1e-6)


def test_given_latents_pass_the_forward_process_untouched() -> None:
    z0, eps, target, t = setup()
    z_t = pd.add_noise(z0, eps, DDPMScheduler(**BETAS).alphas_cumprod[t], target)
    assert torch.equal(z_t[~target.expand_as(z_t)], z0[~target.expand_as(z0)])


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_tweedie_undoes_the_forward_process(kind: pd.Prediction) -> None:
    z0, eps, target, _ = setup()
    abar = torch.tensor([0.9, 0.5, 0.1])
    z_t = pd.add_noise(z0, eps, abar, target)
    back = pd.tweedie(z_t, pd.training_goal(z0, eps, abar, kind), abar, target, z0, kind)
    assert torch.allclose(back, z0, atol=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_weights_are_the_formula_and_finite_at_the_ends(kind: pd.Prediction) -> None:
    abar = torch.tensor([0.01, 0.3, 0.8, 0.99], dtype=torch.float64)
    snr = abar / (1 - abar)
    expected = torch.minimum(snr, torch.tensor(5.0)) / (snr if kind == "epsilon" else snr + 1)
    assert torch.allclose(pd.min_snr_weight(abar, 5.0, kind), expected)
    ends = pd.min_snr_weight(torch.tensor([0.0, 1.0]), 5.0, kind)
    assert torch.isfinite(ends).all() and (ends >= 0).all()
