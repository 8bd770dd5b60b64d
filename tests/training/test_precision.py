"""The arithmetic of a step: plain products, bfloat16 with float32 masters, and a choice that leaves a run as it is."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from omfa.fit import main
from omfa.training import precision
from omfa.training.examples import Batch, ExampleOptions, Geometry, RecordsDataset, collate
from omfa.training.module import OMFAModule
from omfa.training.precision import CANDIDATES, Arithmetic, PlainProducts, bfloat16_lent, gradients
from omfa.training.zero import trained
from tests.conftest import make_compact
from tests.test_fit import arguments, weights

FUSED, PLAIN, HALF = CANDIDATES
REAL = precision.trial
Step = tuple[OMFAModule, Batch]


@pytest.fixture(params=["canvas", "rows"])
def step(records: Path, request: pytest.FixtureRequest) -> Step:
    module = OMFAModule(make_compact(join=request.param))
    data = RecordsDataset(records, Geometry.of(module.pipe), ExampleOptions(split=None))
    return module, collate([data[0, i] for i in range(3)])


@pytest.mark.parametrize("mask", [None, "bool", "added"])
def test_plain_products_equal_the_fused_kernel(mask: str | None) -> None:
    torch.manual_seed(0)
    leaves = [torch.randn(2, 3, n, 8, requires_grad=True) for n in (7, 11, 11)]
    masks = {"bool": torch.rand(2, 1, 1, 11) < 0.6, "added": torch.randn(2, 1, 7, 11), None: None}

    def both() -> list[Tensor]:
        out = F.scaled_dot_product_attention(*leaves, attn_mask=masks[mask])
        return [out, *torch.autograd.grad(out.square().sum(), leaves)]

    fused = both()
    with PlainProducts():
        plain = both()
    assert "Softmax" in graph(plain[0]) and "Softmax" not in graph(fused[0])
    for a, b in zip(plain, fused, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def graph(out: Tensor) -> str:
    """The names of all steps of a backward pass."""
    nodes, names = [out.grad_fn], ""
    while nodes:
        node = nodes.pop()
        if node is not None:
            names += f" {type(node).__name__}"
            nodes += [before for before, _ in node.next_functions]
    return names


def test_causal_attention_is_left_alone() -> None:
    q = torch.randn(1, 2, 5, 8)
    with PlainProducts():
        out = F.scaled_dot_product_attention(q, q, q, is_causal=True)
    assert torch.equal(out, F.scaled_dot_product_attention(q, q, q, is_causal=True))


def test_a_step_s_gradients_are_the_same_whichever_the_attention(step: Step) -> None:
    fused, plain = (gradients(*step, how) for how in (FUSED, PLAIN))
    for a, b in zip(fused, plain, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_masters_are_those_of_the_recipe_written_out(step: Step) -> None:
    """Against a network kept in bfloat16 whose gradients float32 copies are stepped by, as it is done by hand."""
    module, batch = step
    half = copy.deepcopy(module)
    half.unet.to(torch.bfloat16)
    assert half.slot_tokens is not None and half.pipe.unet is half.unet
    half.slot_tokens.to(torch.bfloat16)
    masters = [p.detach().clone() for _, p in trained(module)]
    ours = torch.optim.AdamW([p for _, p in trained(module)], 1e-3)
    theirs = torch.optim.AdamW(masters, 1e-3)
    for _ in range(3):
        with HALF.within(module):
            loss = module.losses(batch).mean()
        ours.zero_grad()
        loss.backward()
        ours.step()
        half.zero_grad()
        with PlainProducts():
            half.losses(batch).mean().backward()
        for master, (_, p) in zip(masters, trained(half), strict=True):
            master.grad = None if p.grad is None else p.grad.float()
        theirs.step()
        with torch.no_grad():
            for master, (_, p) in zip(masters, trained(half), strict=True):
                p.copy_(master)
    for master, (name, p) in zip(masters, trained(module), strict=True):
        assert p.dtype == torch.float32
        torch.testing.assert_close(p.detach(), master, atol=1e-6, rtol=1e-6, msg=name)
    assert not torch.equal(masters[0], masters[0].bfloat16().float())


def test_updates_that_bfloat16_would_lose_are_kept() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(layer.weight)
    lost = copy.deepcopy(layer).bfloat16()
    for one, x in ((layer, torch.ones(1, 1).bfloat16()), (lost, torch.ones(1, 1).bfloat16())):
        sgd = torch.optim.SGD(one.parameters(), 1e-4)
        for _ in range(100):
            if one is layer:
                with bfloat16_lent(layer):
                    made = layer(x)
            else:
                made = one(x)
            assert made.dtype == torch.bfloat16
            sgd.zero_grad()
            made.sum().backward()
            sgd.step()
    assert lost.weight.item() == 1 and layer.weight.item() == pytest.approx(0.99, abs=1e-5)


def test_what_is_lent_comes_back_even_from_a_step_that_fails() -> None:
    layer = torch.nn.Linear(2, 2)
    own = dict(layer.named_parameters())
    with pytest.raises(RuntimeError), bfloat16_lent(layer):
        layer(torch.zeros(1, 3))
    assert all(p is own[name] for name, p in layer.named_parameters())


def test_a_trial_changes_nothing(step: Step) -> None:
    module, batch = step
    before, chance = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    took = precision.trial(module, batch, seconds=0)
    assert {FUSED, PLAIN} <= took.keys() and all(0 < seconds < 100 for seconds in took.values())
    assert torch.equal(torch.get_rng_state(), chance)
    assert all(p.grad is None for p in module.parameters())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def train(records: Path, run: Path, steps: int, *more: str, fastest: bool = True) -> dict[str, Tensor]:
    callbacks = ["--trainer.callbacks=EMA", *(["--trainer.callbacks+=omfa.training.precision.Fastest"] * fastest)]
    assert main([*arguments(records, run, steps, "--trainer.gradient_clip_val=1.0", *callbacks), *more]) == 0
    return weights(run)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and len(a) > 100 and all(torch.equal(a[name], b[name]) for name in a)


def ends_in(how: Arithmetic, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real trial, whose winner is known beforehand."""

    def trial(module: Any, batch: Any) -> dict[Arithmetic, float]:
        return REAL(module, batch, seconds=0) | {how: 0.0}

    monkeypatch.setattr(precision, "trial", trial)


def test_the_choice_leaves_a_run_bit_for_bit(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without = train(records, tmp_path / "without", 3, fastest=False)
    assert "arithmetic" not in capsys.readouterr().out
    ends_in(FUSED, monkeypatch)
    assert same(train(records, tmp_path / "fused", 3), without)
    assert "arithmetic: float32, fused attention (CPU seconds of a step" in capsys.readouterr().out
    ends_in(HALF, monkeypatch)
    half = train(records, tmp_path / "half", 3)
    assert not same(half, without)
    assert all(v.dtype == without[k].dtype for k, v in half.items())
    for name, value in half.items():
        torch.testing.assert_close(value, without[name], atol=0.02, rtol=0.05, msg=name)


def test_a_run_that_goes_on_keeps_its_choice_and_is_exact(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ends_in(HALF, monkeypatch)
    whole = train(records, tmp_path / "whole", 4)
    train(records, tmp_path / "halves", 2)
    monkeypatch.setattr(precision, "trial", None)  # nothing to choose any more
    capsys.readouterr()
    assert same(train(records, tmp_path / "halves", 4, "--ckpt_path=last"), whole)
    assert "arithmetic" not in capsys.readouterr().out


def test_where_precision_is_said_nothing_is_chosen(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "trial", None)
    train(records, tmp_path, 1, "--trainer.precision=bf16-mixed")
