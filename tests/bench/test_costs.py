"""What is counted equals what is there; the full-size network is SDXL's."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention

from omfa.bench import costs
from omfa.bench.costs import SDXL_UNET, Alive, build_unet, canvas_design, dual_design, flops
from omfa.canvas import Canvas
from omfa.tuning import choose_trained
from tests.conftest import UNET

TINY = {
    **UNET,
    "in_channels": 4,
    "out_channels": 4,
    "cross_attention_dim": 32,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 16,
    "use_linear_projection": True,
}
SIZE = (16, 24)


def test_full_size_sdxl_widened_is_sdxl_but_for_the_first_convolution() -> None:
    """Counts and hash of names and shapes are those of stable-diffusion-xl-base-1.0's UNet."""
    with torch.device("meta"):
        base = UNet2DConditionModel.from_config(SDXL_UNET)
    shapes = {name: tuple(p.shape) for name, p in base.state_dict().items()}
    assert len(shapes) == 1680 and sum(p.numel() for p in base.parameters()) == 2_567_463_684
    listed = "\n".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items()))
    assert hashlib.sha256(listed.encode()).hexdigest()[:16] == "1252d970e55232bb"
    wide = {name: tuple(p.shape) for name, p in build_unet(SDXL_UNET).state_dict().items()}
    assert list(wide) == list(shapes)
    assert {name for name in shapes if wide[name] != shapes[name]} == {"conv_in.weight"}
    assert wide["conv_in.weight"] == (320, 13, 3, 3) and shapes["conv_in.weight"] == (320, 4, 3, 3)


def test_operations_of_full_size_canvases() -> None:
    unet = build_unet(SDXL_UNET)
    with torch.no_grad():
        of = [
            flops(lambda size=size: unet(**costs.arguments(unet, 1, size))) / 1e12  # type: ignore[misc]
            for size in ((128, 96), (128, 192), Canvas((128, 96), 1).size)
        ]
    assert of == pytest.approx([4.94, 10.68, 13.87], abs=0.005)


def test_operations_of_one_attention_by_hand() -> None:
    n, d = 30, 32
    with torch.device("meta"):
        layer, x = Attention(query_dim=d, heads=4, dim_head=d // 4), torch.empty(1, n, d)
    with torch.no_grad():
        assert flops(lambda: layer(x)) == 4 * 2 * n * d * d + 2 * 2 * n * n * d


def test_operations_of_two_unets_by_hand() -> None:
    """Twice one UNet's, and for the garment's M tokens keys, values and their products with N queries."""
    one, two = costs.count_flops(canvas_design(TINY, SIZE)), costs.count_flops(dual_design(TINY, SIZE, SIZE))
    n = m = SIZE[0] // 2 * SIZE[1] // 2
    layers, d = 4, 32  # down 1, middle 1, up 2
    appended = layers * (2 * 2 * m * d * d + 2 * 2 * n * m * d)
    assert two.forward == 2 * one.forward + appended
    assert two.guided == 3 * one.forward + 2 * appended and one.guided == 2 * one.forward
    alone = costs.count_flops(canvas_design(TINY, (SIZE[0], 2 * SIZE[1]), targets=SIZE))
    assert alone.guided == alone.forward + one.forward
    assert 2.8 < one.training / one.forward < 3  # the input takes no gradient


def test_operations_of_rows_by_hand() -> None:
    """A target is one forward pass, and products of its N queries with the M keys and values it reads besides."""
    rows, face = costs.rows_design(TINY, SIZE, 2, (8, 8)), 4 * 4
    one, small = (costs.count_flops(canvas_design(TINY, size)).forward for size in (SIZE, (8, 8)))
    n = SIZE[0] // 2 * SIZE[1] // 2
    assert flops(rows.given) == 2 * one + small and flops(rows.alone) == one
    assert flops(rows.target) == one + 4 * 2 * 2 * n * (2 * n + face) * 32
    here = costs.rows_design(TINY, SIZE, 2, (8, 8), "cpu")
    here.given()
    assert here.target().shape == (1, 4, *SIZE)


def tiny(train: str, mixed: bool) -> UNet2DConditionModel:
    torch.manual_seed(0)
    unet = build_unet(TINY, "cpu")
    choose_trained(unet, train, rank=4, frozen_bf16=mixed)  # type: ignore[arg-type]
    if mixed:
        costs._float_norms(unet)
    return unet


def storages(tensors: Any) -> dict[int, Any]:
    return {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors}


@pytest.mark.parametrize("train", ["all", "attention", "lora"])
@pytest.mark.parametrize("mixed", [False, True])
def test_counted_bytes_are_those_of_a_real_step(train: Any, mixed: bool) -> None:
    counted = costs.training_bytes(TINY, train, SIZE, mixed=mixed, checkpointing=False, rank=4)
    unet = tiny(train, mixed)
    trained = [p for p in unet.parameters() if p.requires_grad]
    given = costs.arguments(unet, 1, SIZE)
    there = storages([*unet.parameters(), *costs._tensors(given)])
    saved: dict[int, Any] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        saved.update(storages([x]))
        return x

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        out = unet(**given).sample
    assert counted.activations == sum(s.nbytes() for key, s in saved.items() if key not in there)
    optimizer = torch.optim.AdamW(trained)
    out.float().square().mean().backward()
    optimizer.step()
    norms = sum(p.nbytes // 2 for m in unet.modules() if isinstance(m, torch.nn.GroupNorm | torch.nn.LayerNorm)
                for p in m.parameters() if not p.requires_grad) if mixed else 0  # fmt: skip
    assert counted.weights == sum(p.nbytes for p in unet.parameters()) - norms
    assert counted.gradients == sum(p.grad.nbytes for p in trained if p.grad is not None)
    moments = [v for state in optimizer.state.values() for k, v in state.items() if k != "step"]
    assert counted.optimizer == sum(v.nbytes for v in moments) == 2 * counted.ema


@pytest.mark.parametrize("accumulating", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_counted_peak_is_that_of_a_real_step(checkpointing: bool, accumulating: bool) -> None:
    counted = costs.training_bytes(
        TINY, "all", SIZE, mixed=False, checkpointing=checkpointing, accumulating=accumulating
    )
    unet = tiny("all", False)
    if checkpointing:
        unet.enable_gradient_checkpointing()
    given = costs.arguments(unet, 1, SIZE)
    with Alive([*unet.parameters(), *costs._tensors(given)]) as seen:
        for _ in range(2 if accumulating else 1):
            unet(**given, return_dict=False)[0].float().square().mean().backward()
    assert seen.alive >= counted.gradients
    step = counted.peak - counted.weights - counted.optimizer - counted.ema
    assert step == pytest.approx(seen.peak, rel=0.01 if checkpointing else 0)  # recomputing, the order of ends differs


def test_kept_gradients_count_while_accumulating() -> None:
    one, more = (costs.training_bytes(TINY, "attention", SIZE, accumulating=a) for a in (False, True))
    assert one.peak < more.peak <= one.peak + one.gradients and one.activations == more.activations


def test_checkpointing_and_training_less_take_less() -> None:
    peaks = {
        (train, again): costs.training_bytes(TINY, train, SIZE, checkpointing=again, rank=4).peak  # type: ignore[arg-type]
        for train in ("all", "attention", "lora")
        for again in (False, True)
    }
    for train in ("all", "attention", "lora"):
        assert peaks[train, True] < peaks[train, False]
    assert peaks["lora", True] < peaks["attention", True] < peaks["all", True]


def test_alive_follows_tensors_to_their_end() -> None:
    known = torch.zeros(100)
    with Alive([known]) as seen:
        a = torch.zeros(1000)
        b = a[:10] + known[:10]
        assert seen.alive == 4000 + 40 and seen.peak == 4040
        del a
        assert seen.alive == 40
        del b
    assert seen.alive == 0 and seen.peak == 4040


def test_zero2_shares_out_gradients_and_states() -> None:
    assert costs.zero2_bytes(1000, 1, 7) == 20_007 and costs.zero2_bytes(1000, 4, 7) == 6_507
