"""What the network is told: one function for training and sampling, dropped equals absent, null is null."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from omfa.components import Category, State, TaskKind
from omfa.conditioning import Drops, Guide, Layout, SlotTokens, choose, stack
from omfa.pipeline import OMFAPipeline
from omfa.records.stream import seeded
from omfa.training.examples import ExampleOptions, Geometry, RecordsDataset, TaskWeights, collate
from omfa.training.module import OMFAModule
from tests.test_pipeline import face, gen, person, pose, shirt

TRY_ON = Layout(
    TaskKind.TRY_ON,
    {"person": State.TARGET, "garment_1": State.GIVEN, "garment_2": State.GIVEN, "face": State.GIVEN},
    {"garment_1": Category.UPPER, "garment_2": Category.LOWER},
)


def same(a: Guide, b: Guide) -> bool:
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in fields(Guide)]
    return all((x is None and y is None) or torch.equal(x, y) for x, y in pairs)


def latents(pipe: OMFAPipeline, batch: int = 1, seed: int = 0) -> dict[str, torch.Tensor]:
    g = gen(seed)
    return {s.name: torch.randn(batch, 4, s.height, s.width, generator=g) for s in pipe.canvas.slots}


@torch.no_grad()
def test_absent_equals_dropped(pipe: OMFAPipeline) -> None:
    parts = latents(pipe)
    dropped = pipe.guide([TRY_ON.without({"garment_2", "face"})], parts, {}, "cpu")
    kept = {"person": State.TARGET, "garment_1": State.GIVEN}
    never = Layout(TaskKind.TRY_ON, kept, {"garment_1": Category.UPPER})
    only = {"garment_1": parts["garment_1"]}
    assert same(dropped, pipe.guide([never], only, {}, "cpu"))
    assert not same(dropped, pipe.guide([TRY_ON], parts, {}, "cpu"))


@torch.no_grad()
def test_targets_are_never_dropped_and_prompt_is() -> None:
    assert TRY_ON.without({"person"}).states == TRY_ON.states
    assert TRY_ON.without((), prompt=True).prompt() == ""


@torch.no_grad()
def test_unconditional_input_is_the_same_in_training_and_sampling(pipe: OMFAPipeline, records) -> None:  # type: ignore[no-untyped-def]
    """Both recorded where they enter the network."""
    seen: list[tuple] = []

    def record(module, args, kwargs):  # type: ignore[no-untyped-def]
        seen.append((args[0].clone(), kwargs["encoder_hidden_states"].clone(), kwargs["added_cond_kwargs"]))

    hook = pipe.unet.register_forward_pre_hook(record, with_kwargs=True)
    try:
        tasks = TaskWeights(1, 0, 0)
        data = RecordsDataset(
            records, Geometry(pipe.canvas, 4, 4), ExampleOptions(tasks=tasks, drops=Drops(everything=1.0, each=0.0))
        )
        OMFAModule(pipe).losses(collate([data[0, 0]]))
        worn = {"upper": shirt(), "lower": shirt()}
        pipe(["person"], None, worn, face(), pose(), num_inference_steps=1, generator=gen(), output_type="latent")
    finally:
        hook.remove()
        pipe.unet.requires_grad_(True)
    (trained, context_t, added_t), (sampled, context_s, added_s) = seen
    target = pipe.canvas.mask([{"person"}])[0, 0]
    assert torch.equal(trained[0, 4:], sampled[0, 4:])  # mask, known, pose channels: all but z_t
    assert (trained[0, :4][:, ~target] == 0).all() and (sampled[0, :4][:, ~target] == 0).all()
    assert torch.equal(context_t[0], context_s[0])
    if added_t is not None:
        assert all(torch.equal(added_t[k][0], added_s[k][0]) for k in added_t)
    assert (trained[0, 4:9] == 0).all() and (trained[0, 9:, :, :12] == 0).all()
    assert not torch.equal(context_s[0], context_s[1])


def on_targets(pipe: OMFAPipeline) -> OMFAPipeline:
    sizes = {name: pipe.config[name] for name in ("person_size", "garment_slots")}
    made = OMFAPipeline(**pipe.components, **sizes, unconditional_on="targets")
    made.set_progress_bar_config(disable=True)
    return made


@torch.no_grad()
@pytest.mark.parametrize("kind", [TaskKind.TRY_ON, TaskKind.TRY_OFF])
def test_the_unconditional_pass_can_run_over_the_targets_alone(pipe: OMFAPipeline, records, kind: TaskKind) -> None:  # type: ignore[no-untyped-def]
    """The same in training and sampling: of the whole pass's input, the targets' part."""
    narrow, seen = on_targets(pipe), []
    everything = Drops(everything=1.0, each=0.0)
    tasks = TaskWeights(kind is TaskKind.TRY_ON, kind is TaskKind.TRY_OFF, 0)
    data = RecordsDataset(records, Geometry(pipe.canvas, 4, 4), ExampleOptions(tasks=tasks, drops=everything))
    hook = pipe.unet.register_forward_pre_hook(lambda m, a, k: seen.append(a[0].clone()), with_kwargs=True)
    try:
        for used in (pipe, narrow):
            OMFAModule(used).losses(collate([data[0, 0]]))
            if kind is TaskKind.TRY_ON:
                used.try_on(garments={"upper": shirt()}, pose=pose(), face=face(), output_type="latent",
                            num_inference_steps=1, generator=gen())  # fmt: skip
            else:
                used.try_off(person(), ["upper", "lower"][: pipe.canvas.garments], output_type="latent",
                             num_inference_steps=1, generator=gen())  # fmt: skip
    finally:
        hook.remove()
        pipe.unet.requires_grad_(True)
    trained, sampled, trained_alone, sampled_alone, conditional = seen
    slots = {"person"} if kind is TaskKind.TRY_ON else {s.name for s in pipe.canvas.slots if "garment" in s.name}
    window = pipe.canvas.window(slots)
    assert torch.equal(trained_alone, trained[..., *window])
    assert torch.equal(sampled_alone, sampled[:1, ..., *window])
    assert torch.equal(conditional, sampled[1:])


@torch.no_grad()
def test_a_mixed_batch_has_the_losses_of_its_examples(compact: OMFAPipeline, records) -> None:  # type: ignore[no-untyped-def]
    narrow = on_targets(compact)
    data = RecordsDataset(
        records, Geometry(compact.canvas, 4, 4), ExampleOptions(tasks=TaskWeights(1, 1, 1), drops=Drops(0.5, 0, 0.5))
    )
    examples = [data[0, i] for i in range(8)]
    assert 1 < sum(e.unconditional for e in examples) < 7
    module = OMFAModule(narrow)
    each = torch.cat([module.losses(collate([e])) for e in examples])
    assert torch.allclose(module.losses(collate(examples)), each, rtol=1e-4)
    whole = OMFAModule(compact).losses(collate(examples))
    differs = ~torch.isclose(whole, each, rtol=1e-4)
    assert differs.tolist() == [e.unconditional for e in examples]


def test_where_the_unconditional_pass_runs_is_kept_and_checked(compact: OMFAPipeline, tmp_path) -> None:  # type: ignore[no-untyped-def]
    on_targets(compact).save_pretrained(tmp_path)
    assert OMFAPipeline.from_pretrained(tmp_path).config.unconditional_on == "targets"
    with pytest.raises(ValueError, match="'face'; give 'canvas' or 'targets'"):
        OMFAPipeline(**compact.components, person_size=compact.config.person_size, unconditional_on="face")


@torch.no_grad()
def test_encoding_alone(compact: OMFAPipeline, records) -> None:  # type: ignore[no-untyped-def]
    """Another target picture in the same batch changes no given latent by a bit."""
    tasks, drops = TaskWeights(1, 0, 0), Drops(0, 0, 0)
    data = RecordsDataset(records, Geometry(compact.canvas, 4, 4), ExampleOptions(tasks=tasks, drops=drops))
    batch, module = collate([data[0, i] for i in range(3)]), OMFAModule(compact)
    z0, _, guide = module.prepare(batch)
    other = replace(batch, pixels=batch.pixels | {"person": batch.pixels["person"].flip(0) * 0.5})
    z1, _, guide_1 = module.prepare(other)
    compact.unet.requires_grad_(True)
    assert same(guide, guide_1)
    outside = ~guide.target.expand_as(z0)
    assert torch.equal(z0[outside], z1[outside]) and not torch.equal(z0, z1)


@torch.no_grad()
def test_pose_reaches_the_person_slot_only(pipe: OMFAPipeline) -> None:
    z = torch.randn(2, 4, *pipe.canvas.person)
    guide = pipe.guide([TRY_ON] * 2, latents(pipe, 2), {"person": [z[0], None]}, "cpu")
    planes = pipe.canvas.split(guide.pose)
    assert torch.equal(planes["person"][0], z[0]) and (planes["person"][1] == 0).all()
    for slot in ("garment_1", "garment_2", "face"):
        assert torch.equal(planes[slot][0], planes[slot][1])


@torch.no_grad()
def test_known_holds_given_slots_only(pipe: OMFAPipeline) -> None:
    parts = latents(pipe)
    guide = pipe.guide([TRY_ON], parts, {}, "cpu")
    planes = pipe.canvas.split(guide.known)
    assert (planes["person"] == 0).all() and torch.equal(planes["face"], parts["face"])
    assert torch.equal(guide.mask.bool(), guide.target)


def test_choose_and_stack(compact: OMFAPipeline) -> None:
    with torch.no_grad():
        a = compact.guide([TRY_ON] * 2, latents(compact, 2), {}, "cpu")
        b = compact.unconditional(a)
    mixed = choose(torch.tensor([True, False]), b, a)
    assert torch.equal(mixed.known[0], b.known[0]) and torch.equal(mixed.known[1], a.known[1])
    assert stack(b, a).context.shape[0] == 4


def test_slot_tokens_tell_component_category_and_state_apart(compact: OMFAPipeline) -> None:
    tokens, canvas = SlotTokens(8), compact.canvas
    kinds = [{"garment_1": c} for c in (Category.UPPER, Category.LOWER, Category.DRESS)]
    layouts = [
        Layout(TaskKind.TRY_OFF, {"person": State.GIVEN, "garment_1": s}, k) for k in kinds for s in list(State)[:2]
    ]
    rows = tokens.rows(canvas, layouts)
    assert len(set(rows[:, 1].tolist())) == 6
    assert (tokens.rows(canvas, [Layout(TaskKind.TRY_ON, {}, prompted=False)]) == 0).all()
    absent = tokens.rows(canvas, [Layout(TaskKind.TRY_ON, {})])
    assert len({*absent[0].tolist(), *rows[:, 1].tolist(), 0}) == 3 + 6 + 1


def test_prompts_and_the_text_encoders_cache(sdxl: OMFAPipeline) -> None:
    assert TRY_ON.prompt() == "try-on: a photo of a person wearing an upper-body garment and a lower-body garment"
    context, pooled = sdxl.texts(["try-on: a", "", "try-on: a"], "cpu")
    assert context.shape == (3, 77, 32) and pooled.shape == (3, 16)
    assert (context[1] == 0).all() and (pooled[1] == 0).all() and torch.equal(context[0], context[2])
    calls: list[int] = []
    hook = sdxl.text_encoder.register_forward_pre_hook(lambda *a: calls.append(1))
    sdxl.texts(["try-on: a"], "cpu")
    hook.remove()
    assert calls == []


def test_drop_rates_over_a_thousand_draws() -> None:
    drops, counts = Drops(), {"everything": 0, "garment_2": 0, "face": 0, "prompt": 0}
    off_pose = 0
    off = Layout(TaskKind.TRY_OFF, {"person": State.GIVEN, "garment_1": State.TARGET}, {"garment_1": Category.UPPER})
    n = 4000
    for i in range(n):
        g = seeded(0, i)
        layout, keep, everything, _ = drops.draw(TRY_ON, g)
        assert keep
        counts["everything"] += everything
        counts["prompt"] += not layout.prompted
        for slot in ("garment_2", "face"):
            counts[slot] += slot not in layout.states
        off_pose += drops.draw(off, g)[1]
    assert all(abs(c / n - 0.05) < 0.015 for c in counts.values()), counts
    assert abs(off_pose / n - 0.5) < 0.04


def test_bad_probabilities_are_refused() -> None:
    with pytest.raises(ValueError, match=r"each=1\.5"):
        Drops(each=1.5)


@torch.no_grad()
def test_a_look_holds_mean_colours_of_given_slots_only(compact: OMFAPipeline) -> None:
    parts = {name: torch.full_like(z, n + 1.0) for n, (name, z) in enumerate(latents(compact).items())}
    guide = compact.guide([TRY_ON], parts, {}, "cpu")
    assert guide.look is not None
    seen = guide.look.view(len(compact.canvas.slots), 12, 4)
    for slot, cells in zip(compact.canvas.slots, seen, strict=True):
        given = TRY_ON.states.get(slot.name) is State.GIVEN
        assert (cells == (parts[slot.name].flatten()[0] if given else 0.0)).all()
    assert (compact.unconditional(guide).look == 0).all()
    blind = replace(guide, look=guide.look * 0)
    assert not torch.equal(
        compact.predict(guide.known, torch.tensor(9), guide), compact.predict(guide.known, torch.tensor(9), blind)
    )
