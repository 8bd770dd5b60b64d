"""The loss in rows against the definition, written out example by example. Legend: see ``omfa.training.in_rows``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from omfa.components import State
from omfa.conditioning import Layout
from omfa.pipeline import OMFAPipeline
from omfa.rows import Recall
from omfa.training.in_rows import row_losses
from tests.conftest import make_compact
from tests.test_rows import JOINT, ONE, TRY_OFF, TRY_ON, draw

LAYOUTS = [TRY_ON, ONE, TRY_OFF, JOINT]
ALONE = Layout(JOINT.kind, {"person": State.TARGET, "garment_1": State.TARGET}, JOINT.categories)


@pytest.fixture(scope="module")
def pipe() -> OMFAPipeline:
    return make_compact(join="rows")


def losses_of(pipe: OMFAPipeline, latents: dict[str, Tensor], unconditional: list[bool], draws: int = 2) -> Tensor:
    guide = pipe.row_guide(LAYOUTS, latents, {}, "cpu")
    rows = guide.targets
    z0 = torch.stack([latents[s][b] for b, s in zip(rows.owner.tolist(), rows.slots, strict=True)])
    noise = torch.randn(draws, *z0.shape, generator=torch.Generator().manual_seed(5))
    t = torch.tensor([[100, 999], [400, 5], [800, 300], [999, 600]])[:, :draws]
    return row_losses(
        pipe, guide, LAYOUTS, z0, noise, t, torch.tensor(unconditional), pipe.scheduler.alphas_cumprod, "v_prediction"
    )


@pytest.mark.parametrize("unconditional", [[False] * 4, [True, False, False, True]])
def test_the_loss_is_the_definition_s(pipe: OMFAPipeline, unconditional: list[bool]) -> None:
    """One example, one draw at a time, the formulas by hand; the network's own forward pass is taken as it is."""
    latents = draw(pipe, 4)
    with torch.no_grad():
        together = losses_of(pipe, latents, unconditional)
        everything = pipe.row_guide(LAYOUTS, latents, {}, "cpu").targets
        noise = torch.randn(2, *everything.guide.known.shape, generator=torch.Generator().manual_seed(5))
        ts, at = [[100, 999], [400, 5], [800, 300], [999, 600]], 0
        for b, layout in enumerate(LAYOUTS):
            wanted = [s for s, state in layout.states.items() if state is State.TARGET]
            own = {s: v[b : b + 1] for s, v in latents.items()}
            errors = []
            for k, t in enumerate(ts[b]):
                abar = float(pipe.scheduler.alphas_cumprod[t])
                z0 = torch.cat([own[s] for s in wanted])
                eps = noise[k, at : at + len(wanted)]
                z = abar**0.5 * z0 + (1 - abar) ** 0.5 * eps
                guide = pipe.row_guide([layout], own, {}, "cpu")
                rows = guide.targets
                if unconditional[b]:
                    rows, memories = pipe.rows_without_anything(rows, [layout]), []
                else:
                    memories = pipe.remember(guide.given)
                v = pipe.predict(z, torch.tensor(t), rows.guide, Recall(memories, rows.owner, rows.owner))
                errors.append((v - (abar**0.5 * eps - (1 - abar) ** 0.5 * z0)).square().mean())
            at += len(wanted)
            torch.testing.assert_close(together[b], torch.stack(errors).mean(), atol=1e-5, rtol=1e-4)


def test_the_gradient_by_given_latents_stays_inside_the_example(pipe: OMFAPipeline) -> None:
    latents = {s: v.requires_grad_() for s, v in draw(pipe, 4).items()}
    losses = losses_of(pipe, latents, [False] * 4)
    (gradient,) = torch.autograd.grad(losses[0], [latents["garment_2"]], retain_graph=True)
    assert gradient[0].abs().sum() > 0 and gradient[1:].abs().sum() == 0
    (face,) = torch.autograd.grad(losses[3], [latents["face"]], allow_unused=True)
    assert face[3].abs().sum() > 0 and face[:3].abs().sum() == 0


def test_dropped_examples_give_no_gradient_to_what_they_do_not_see(pipe: OMFAPipeline) -> None:
    latents = {s: v.requires_grad_() for s, v in draw(pipe, 4).items()}
    losses = losses_of(pipe, latents, [True, False, False, False])
    gradient = torch.autograd.grad(losses[0], [latents["garment_1"]], allow_unused=True)[0]
    assert gradient is None or gradient.abs().sum() == 0


@pytest.mark.parametrize("layout", [TRY_ON, ONE, TRY_OFF, ALONE], ids=["three", "one", "off", "nothing"])
def test_in_step_every_batch_runs_the_network_as_often_there_and_back(layout: Layout) -> None:
    """ZeRO-3 gathers each layer's weights in every process at once: one pass less somewhere, and all wait for ever."""
    pipe, passes = make_compact(join="rows"), {"there": 0, "back": 0}

    def counted(way: str) -> Callable[..., None]:
        def count(*_: Any) -> None:
            passes[way] += 1

        return count

    layer = next(m for name, m in pipe.unet.named_modules() if name.endswith("attn1.to_k"))
    layer.register_forward_hook(counted("there"))
    layer.register_full_backward_hook(counted("back"))
    latents = draw(pipe, 1)
    z0 = torch.stack([latents[slot][0] for slot, state in layout.states.items() if state is State.TARGET])
    noise = torch.randn(1, *z0.shape, generator=torch.Generator().manual_seed(5))
    found = []
    for in_step, dropped in ((False, False), (True, False), (True, True)):
        rows = pipe.row_guide([layout], latents, {}, "cpu")
        rows = rows.in_step(pipe.canvas) if in_step else rows
        passes |= {"there": 0, "back": 0}
        pipe.unet.zero_grad()
        t, drop, alphas_cumprod = torch.tensor([[500]]), torch.tensor([dropped]), pipe.scheduler.alphas_cumprod
        loss = row_losses(pipe, rows, [layout], z0, noise, t, drop, alphas_cumprod, "v_prediction").sum()
        loss.backward()
        found.append((loss.detach(), {n: p.grad for n, p in pipe.unet.named_parameters() if p.grad is not None}))
        if in_step:
            assert passes == {"there": 3, "back": 3}
    torch.testing.assert_close(found[1][0], found[0][0], atol=1e-6, rtol=1e-5)
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, atol=1e-6, rtol=1e-4)
