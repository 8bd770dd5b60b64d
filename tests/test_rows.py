"""Rows: what is given runs once, crosses into targets alone, and is padded exactly. Legend: see ``omfa.rows``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor

from omfa.components import Category, State, TaskKind
from omfa.conditioning import Layout
from omfa.pipeline import OMFAPipeline
from omfa.rows import Memory, Recall, RowAttention, cross_rows
from tests.conftest import SIZE, make_compact, make_sdxl

UPPER, LOWER = Category.UPPER, Category.LOWER
TRY_ON = Layout(
    TaskKind.TRY_ON,
    {"person": State.TARGET, "garment_1": State.GIVEN, "garment_2": State.GIVEN, "face": State.GIVEN},
    {"garment_1": UPPER, "garment_2": LOWER},
)
ONE = Layout(TaskKind.TRY_ON, {"person": State.TARGET, "garment_1": State.GIVEN}, {"garment_1": UPPER})
TRY_OFF = Layout(TaskKind.TRY_OFF, {"person": State.GIVEN, "garment_1": State.TARGET}, {"garment_1": UPPER})
JOINT = Layout(
    TaskKind.JOINT,
    {"person": State.TARGET, "garment_1": State.TARGET, "face": State.GIVEN},
    {"garment_1": UPPER},
)


@pytest.fixture(params=["compact", "sdxl"], scope="module")
def rowing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OMFAPipeline:
    """Both kinds in rows."""
    if request.param == "compact":
        return make_compact(join="rows")
    return make_sdxl(tmp_path_factory.mktemp("rows"), join="rows")


def draw(pipe: OMFAPipeline, examples: int, seed: int = 0) -> dict[str, Tensor]:
    """Random latents of every slot."""
    generator = torch.Generator().manual_seed(seed)
    c = pipe.vae.config.latent_channels
    return {s.name: torch.randn(examples, c, s.height, s.width, generator=generator) for s in pipe.canvas.slots}


def prediction(
    pipe: OMFAPipeline, layouts: list[Layout], latents: dict[str, Tensor], z: Tensor, t: int = 500, scale: float = 1.0
) -> Tensor:
    """Of target rows ``z``; given rows anew."""
    with torch.no_grad():
        guide = pipe.row_guide(layouts, latents, {}, "cpu")
        return pipe.guided_rows(guide, layouts, scale)(z, torch.tensor(t))


def noise(pipe: OMFAPipeline, rows: int, seed: int = 1) -> Tensor:
    shape = (rows, pipe.vae.config.latent_channels, *pipe.canvas.person)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------ independent answers


def test_row_attention_is_what_its_definition_says() -> None:
    """Two examples; the first has two given rows, the second one. Written out row by row in NumPy."""
    torch.manual_seed(0)
    attn = Attention(query_dim=8, heads=2, dim_head=4, processor=RowAttention("it"))
    given, targets = torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    owner, group = torch.tensor([0, 1, 1]), torch.tensor([0, 1, 1])  # the second example has two targets
    memory = Memory(torch.tensor([0, 1, 0]))
    with torch.no_grad():
        remembered = attn(given, rows=memory)
        out = attn(targets, rows=Recall([memory], owner, group))

    def weights(layer: torch.nn.Linear) -> np.ndarray:
        return layer.weight.detach().double().numpy().T

    def plain(read_by: np.ndarray, read: np.ndarray) -> np.ndarray:
        q, k, v = read_by @ weights(attn.to_q), read @ weights(attn.to_k), read @ weights(attn.to_v)
        heads = []
        for h in range(2):
            part = slice(4 * h, 4 * h + 4)
            scores = q[:, part] @ k[:, part].T / np.sqrt(4)
            e = np.exp(scores - scores.max(1, keepdims=True))
            heads.append(e / e.sum(1, keepdims=True) @ v[:, part])
        return np.concatenate(heads, 1) @ weights(attn.to_out[0]) + attn.to_out[0].bias.detach().numpy()

    g, x = given.double().numpy(), targets.double().numpy()
    for i in range(3):
        np.testing.assert_allclose(remembered[i].numpy(), plain(g[i], g[i]), atol=1e-5)
    np.testing.assert_allclose(out[0].numpy(), plain(x[0], np.concatenate([x[0], g[0], g[2]])), atol=1e-5)
    np.testing.assert_allclose(out[1].numpy(), plain(x[1], np.concatenate([x[1], x[2], g[1]])), atol=1e-5)
    np.testing.assert_allclose(out[2].numpy(), plain(x[2], np.concatenate([x[1], x[2], g[1]])), atol=1e-5)


def test_without_rows_a_network_computes_what_it_did() -> None:
    pipe = make_compact()
    z = draw(pipe, 2)
    guide = pipe.guide([ONE, ONE], {"garment_1": z["garment_1"]}, {}, "cpu")
    latents = torch.randn_like(guide.known)
    with torch.no_grad():
        before = pipe.predict(latents, torch.tensor(500), guide)
        cross_rows(pipe.unet)
        after = pipe.predict(latents, torch.tensor(500), guide)
    assert torch.equal(before, after)


# ------------------------------------------------------------------------------------------------------- exactness


def test_targets_change_nothing_of_what_is_given(rowing: OMFAPipeline) -> None:
    latents = draw(rowing, 2)
    with torch.no_grad():
        guide = rowing.row_guide([TRY_ON, TRY_ON], latents, {}, "cpu")
        first = rowing.remember(guide.given)
        other = rowing.row_guide([TRY_ON, TRY_ON], latents | {"person": latents["person"] + 1}, {}, "cpu")
        second = rowing.remember(other.given)
    for a, b in zip(first, second, strict=True):
        assert a.layers.keys() == b.layers.keys() and len(a.layers) > 1
        assert all(torch.equal(x, y) for n in a.layers for x, y in zip(a.layers[n], b.layers[n], strict=True))


def test_memory_kept_over_steps_is_memory_computed_anew(rowing: OMFAPipeline) -> None:
    latents, z = draw(rowing, 2), noise(rowing, 2)
    with torch.no_grad():
        guide = rowing.row_guide([TRY_ON, TRY_ON], latents, {}, "cpu")
        kept = rowing.guided_rows(guide, [TRY_ON, TRY_ON], 2.0)
        for t in (999, 500, 1):
            anew = prediction(rowing, [TRY_ON, TRY_ON], latents, z, t, 2.0)
            torch.testing.assert_close(kept(z, torch.tensor(t)), anew, atol=1e-5, rtol=1e-5)


def test_a_batch_is_a_loop_and_padding_changes_nothing(rowing: OMFAPipeline) -> None:
    """Examples with four rows, two, a try-off and a joint task side by side."""
    layouts, latents = [TRY_ON, ONE, TRY_OFF, JOINT], draw(rowing, 4)
    z = noise(rowing, 5)
    together = prediction(rowing, layouts, latents, z)
    at = 0
    for b, layout in enumerate(layouts):
        count = len(layout.slots(State.TARGET))
        alone = prediction(rowing, [layout], {s: v[b : b + 1] for s, v in latents.items()}, z[at : at + count])
        torch.testing.assert_close(together[at : at + count], alone, atol=1e-5, rtol=1e-4)
        at += count


def test_garments_in_either_order_make_the_same_person(rowing: OMFAPipeline) -> None:
    latents, z = draw(rowing, 1), noise(rowing, 1)
    turned = Layout(
        TaskKind.TRY_ON,
        {"person": State.TARGET, "garment_1": State.GIVEN, "garment_2": State.GIVEN},
        {"garment_1": LOWER, "garment_2": UPPER},
    )
    straight = Layout(turned.kind, turned.states, {"garment_1": UPPER, "garment_2": LOWER})
    swapped = latents | {"garment_1": latents["garment_2"], "garment_2": latents["garment_1"]}
    a, b = prediction(rowing, [straight], latents, z), prediction(rowing, [turned], swapped, z)
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    layered = {"garment_1": UPPER, "garment_2": UPPER}  # here the order says what is worn underneath
    under, over = (Layout(turned.kind, turned.states, layered) for _ in range(2))
    assert not torch.allclose(prediction(rowing, [under], latents, z), prediction(rowing, [over], swapped, z))


def test_the_order_of_layers_is_told_with_surface_maps_too(rowing: OMFAPipeline) -> None:
    """Maps of two tops look alike. What lies innermost is told by nothing, as before there were layers."""
    latents, z = draw(rowing, 1), noise(rowing, 1)
    garments = ("garment_1", "garment_2")
    states = {"person": State.TARGET, **dict.fromkeys(garments, State.GIVEN)}
    layout = Layout(TaskKind.TRY_ON, states, dict.fromkeys(garments, UPPER))
    seen = torch.randn(latents["garment_1"].shape[1:], generator=torch.Generator().manual_seed(3))
    planes = {slot: [seen] for slot in garments}

    def made(latents: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            guide = rowing.row_guide([layout], latents, planes, "cpu")
            return rowing.guided_rows(guide, [layout], 1.0)(z, torch.tensor(500))

    swapped = latents | {"garment_1": latents["garment_2"], "garment_2": latents["garment_1"]}
    assert (made(latents) - made(swapped)).abs().max() > 1e-3
    guide = rowing.row_guide([layout], latents, planes, "cpu").given[0].guide
    assert torch.equal(guide.pose[0], seen) and not torch.equal(guide.pose[1], seen)


def test_unconditional_in_training_is_unconditional_in_sampling(rowing: OMFAPipeline) -> None:
    """A dropped example in a mixed batch (its rows read no Memory) against the pass of guidance."""
    latents, z = draw(rowing, 2), noise(rowing, 2)
    with torch.no_grad():
        guide = rowing.row_guide([ONE, ONE], latents, {}, "cpu")
        rows = guide.targets
        nothing = rowing.rows_without_anything(rows, [ONE, ONE])
        sampled = rowing.predict(z, torch.tensor(500), nothing.guide, Recall([], rows.owner, rows.owner))
        owner = torch.tensor([-1, 1])  # the first reads no Memory
        mixed = nothing.guide.map(lambda a, b: torch.cat([a[:1], b[1:]]), rows.guide)
        recall = Recall(rowing.remember(guide.given), owner, rows.owner)
        trained = rowing.predict(z, torch.tensor(500), mixed, recall)
    torch.testing.assert_close(trained[0], sampled[0], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(trained[1], sampled[1], atol=1e-3)


def test_gradients_flow_into_given_rows_of_the_same_example_alone(rowing: OMFAPipeline) -> None:
    latents = {s: v.requires_grad_() for s, v in draw(rowing, 2).items()}
    guide = rowing.row_guide([ONE, ONE], latents, {}, "cpu")
    rows = guide.targets
    recall = Recall(rowing.remember(guide.given), rows.owner, rows.owner)
    made = rowing.predict(noise(rowing, 2), torch.tensor(500), rows.guide, recall)
    (gradient,) = torch.autograd.grad(made[0].square().sum(), [latents["garment_1"]])
    assert gradient[0].abs().sum() > 0 and gradient[1].abs().sum() == 0


def test_checkpointed_activations_give_the_same_gradients() -> None:
    def gradients(checkpointed: bool) -> Tensor:
        pipe = make_compact(join="rows")
        pipe.unet.train()
        if checkpointed:
            pipe.unet.enable_gradient_checkpointing()
        guide = pipe.row_guide([TRY_ON, ONE], draw(pipe, 2), {}, "cpu")
        rows = guide.targets
        recall = Recall(pipe.remember(guide.given), rows.owner, rows.owner)
        pipe.predict(noise(pipe, 2), torch.tensor(500), rows.guide, recall).square().mean().backward()
        return torch.cat([p.grad.flatten() for p in pipe.unet.parameters() if p.grad is not None])

    torch.testing.assert_close(gradients(True), gradients(False), atol=1e-7, rtol=1e-4)


# ------------------------------------------------------------------------------------------------------- whole calls


def test_a_call_makes_pictures_and_a_sample_does_not_depend_on_its_batch(rowing: OMFAPipeline) -> None:
    pictures = [np.full((*SIZE, 3), v, np.uint8) for v in (40, 200)]
    seeds = [torch.Generator().manual_seed(s) for s in (0, 1)]
    options = {"num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "latent"}
    both = rowing.try_off(pictures, ["upper", "lower"], generator=seeds, **options).images
    alone = rowing.try_off(pictures[1], ["upper", "lower"], generator=[torch.Generator().manual_seed(1)], **options)
    assert both.shape[0] == 4
    torch.testing.assert_close(both[2:], alone.images, atol=1e-4, rtol=1e-3)
    made = rowing.try_on(None, {"upper": pictures[0]}, pose=pictures[1], face=pictures[0], num_inference_steps=1)
    assert made.images[0].size == (SIZE[1], SIZE[0])


def test_a_saved_model_knows_that_it_works_in_rows(tmp_path: Path) -> None:
    pipe = make_compact(join="rows")
    pipe.save_pretrained(tmp_path)
    again = OMFAPipeline.from_pretrained(tmp_path)
    assert again.config.join == "rows"
    assert all(isinstance(p, RowAttention) for p in again.unet.attn_processors.values())
    assert all(isinstance(p, AttnProcessor2_0) for p in make_compact().unet.attn_processors.values())
    latents, z = draw(pipe, 1), noise(pipe, 1)
    assert torch.equal(prediction(pipe, [ONE], latents, z), prediction(again, [ONE], latents, z))
