"""Drafts and photos to be changed, from the records to the network: training and sampling are given the same."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from omfa import encode, images
from omfa.bodies.body import PARTS, load_body
from omfa.bodies.drafts import Shown, draft_garment, draft_person, fitted, nudged
from omfa.bodies.parameters import BodyParameters
from omfa.bodies.placing import project, turned
from omfa.bodies.predicted_standing import standing_off
from omfa.bodies.standing import standing
from omfa.bodies.surface import Draft, resized
from omfa.components import Category, State
from omfa.composer import Composer
from omfa.conditioning import KINDS, Drops, SlotTokens
from omfa.drafting import PLAIN, draw, known_pictures
from omfa.pipeline import OMFAPipeline
from omfa.records.drawn import Drawer
from omfa.records.labels import LABEL_OF, Label
from omfa.records.shards import open_records
from omfa.records.worn import clothes
from omfa.request import read_request
from omfa.tasks import Estimate
from omfa.training.examples import ExampleOptions, Geometry, RecordsDataset, TaskWeights, collate
from omfa.training.module import OMFAModule
from tests.conftest import SIZE, make_compact

NEVER = Drops(0, 0, 0, 0)
LEGS = [1 + i for i, name in enumerate(PARTS) if name.endswith(("thigh", "shin"))]  # on a map of limbs
H, W = SIZE


@pytest.fixture(scope="module")
def pipe() -> OMFAPipeline:
    return make_compact(join="rows", draft="surface", pose_style="surface", portraits=True)


def data(world: Path, pipe: OMFAPipeline, latents: Path | None = None, tasks=(1, 0, 0), drops=NEVER, portraits=0.0):  # type: ignore[no-untyped-def]
    options = ExampleOptions(
        split=None, tasks=TaskWeights(*tasks), drops=drops, latents=latents, portraits=portraits, draws=2
    )
    return RecordsDataset(world, Geometry.of(pipe), options)


def guide(pipe: OMFAPipeline, examples):  # type: ignore[no-untyped-def]
    module, batch = OMFAModule(pipe), collate(examples)
    z = module._latents(batch, pipe.canvas.split(torch.zeros(len(examples), 4, *pipe.canvas.size)))
    planes, drafts = module._drawn(batch)
    with torch.no_grad():
        return pipe.row_guide(batch.layout, z, planes, "cpu", drafts)


def test_views_of_an_outfit_share_their_garments_and_all_names_are_there(world: Path) -> None:
    source = open_records(world)
    drawer = Drawer(source, SIZE, load_body())
    for record in source.records():
        drawn = drawer.pictures(record)
        worn = [g.category.value for g in record.garments]
        fixed = {"surface_map", "person_draft", "portrait_draft"}
        assert set(drawn) == fixed | {f"{c}_{what}" for c in worn for what in ("map", "stand", "draft")}
        assert all(p.shape == (3, *SIZE) and p.isfinite().all() and p.abs().max() <= 1 for p in drawn.values())
    first, second = (drawer.pictures(r) for r in source.records()[:2])
    maps = [name for name in first if name.endswith(("_map", "_stand")) and name != "surface_map"]
    assert maps and all(torch.equal(first[m], second[m]) for m in maps)
    assert all(torch.equal(first[n], Drawer(source, SIZE, load_body()).pictures(source.records()[0])[n]) for n in first)


def test_encoded_ahead_is_what_is_encoded_in_the_step(world: Path, pipe: OMFAPipeline, tmp_path: Path) -> None:
    pipe.vae.save_pretrained(tmp_path / "vae")
    args = ["--records", str(world), "--vae", str(tmp_path / "vae"), "--size", f"{H}x{W}", "--out", str(tmp_path / "z")]
    assert encode.main([*args, "--draft", "surface"]) == 0
    assert encode.main(args) == 2  # the folder holds drafts
    for tasks, portraits in (((1, 0, 0), 0.0), ((1, 0, 0), 1.0), ((0, 1, 0), 0.0)):
        live = data(world, pipe, tasks=tasks, portraits=portraits)
        ahead = data(world, pipe, tmp_path / "z", tasks, portraits=portraits)
        a, b = (guide(pipe, [d[0, i] for i in range(3)]) for d in (live, ahead))
        assert a.targets.slots == b.targets.slots
        assert a.targets.guide.known.abs().sum() > 0
        for one, other in zip([a.targets, *a.given], [b.targets, *b.given], strict=True):
            assert torch.allclose(one.guide.known, other.guide.known, atol=4e-3)
            assert torch.allclose(one.guide.pose, other.guide.pose, atol=4e-3)


def test_latents_without_drafts_are_refused(world: Path, pipe: OMFAPipeline, tmp_path: Path) -> None:
    pipe.vae.save_pretrained(tmp_path / "vae")
    args = ["--records", str(world), "--vae", str(tmp_path / "vae"), "--size", f"{H}x{W}", "--out", str(tmp_path / "z")]
    assert encode.main(args) == 0
    with pytest.raises(ValueError, match="--draft surface"):
        data(world, pipe, tmp_path / "z")


def test_a_draft_goes_where_what_it_shows_goes(world: Path, pipe: OMFAPipeline) -> None:
    def known(examples) -> float:  # type: ignore[no-untyped-def]
        return float(guide(pipe, examples).targets.guide.known.abs().sum())

    off = (0, 1, 0)
    assert known([data(world, pipe, tasks=off)[0, 0]]) > 0
    assert known([data(world, pipe, tasks=off, drops=replace(NEVER, pose_in_try_off=1.0))[0, 0]]) == 0
    assert known([data(world, pipe, tasks=off, drops=replace(NEVER, draft=1.0))[0, 0]]) == 0
    assert known([data(world, pipe, drops=replace(NEVER, each=1.0))[0, 0]]) == 0  # all garments dropped
    assert known([data(world, pipe, tasks=(0, 0, 1))[0, 0]]) == 0  # a joint task is given nothing to look up in
    assert "person_draft" not in data(world, make_compact(join="rows"))[0, 0].drawn


def test_a_portrait_brings_only_the_garments_that_it_lacks(world: Path, pipe: OMFAPipeline) -> None:
    dataset = data(world, pipe, portraits=1.0)
    for i, record in enumerate(dataset.records):
        layout = dataset[0, i].layout
        assert record.portrait is not None and layout.slots(State.TARGET) == {"person"}
        changed = record.portrait.changed or tuple(g.category for g in record.garments)
        assert set(layout.categories.values()) == set(changed)
        assert layout.slots(State.GIVEN) == {"portrait", *layout.categories}


def test_losses_flow_and_depend_on_drafts(world: Path, pipe: OMFAPipeline) -> None:
    module = OMFAModule(pipe)
    examples = [data(world, pipe, portraits=p)[0, i] for i, p in enumerate((0.0, 1.0))]
    losses = module.losses(collate(examples))
    losses.mean().backward()
    assert losses.isfinite().all() and pipe.unet.conv_in.weight.grad is not None
    without = collate([replace(e, there=()) for e in examples])
    assert not torch.allclose(module.losses(without), losses)


def read(world: Path, path: str) -> Image.Image:
    return Image.open(world / path).convert("RGB")


def test_a_call_draws_what_the_bodies_say(world: Path, pipe: OMFAPipeline) -> None:
    record, body = open_records(world).records()[0], load_body()
    assert record.pose is not None and record.pose.params is not None and record.portrait is not None
    params = BodyParameters.load(world / record.pose.params)
    worn = {g.category.value: read(world, g.path) for g in record.garments}
    stands = {g.category.value: BodyParameters.load(world / str(g.pose)) for g in record.garments}
    portrait, person = read(world, record.portrait.path), read(world, record.file_name)

    def pixels(picture: Image.Image) -> torch.Tensor:
        return images.pixels_to_tensor(np.asarray(picture))

    request = read_request(pipe.canvas, ["person"], None, worn, None, params, None, portrait, stands, None, "surface")
    made = draw(request, SIZE, body).drafts["person"][0]
    order = sorted(worn, key=["lower", "dress", "upper"].index)
    shown = [Shown(pixels(worn[c]), stands[c]) for c in order]
    wanted = draft_person(body, params, SIZE, shown)
    assert isinstance(made, Draft) and torch.equal(made.picture, wanted.picture)
    (known,) = known_pictures(request, "person", draw(request, SIZE, body), SIZE)
    assert torch.equal(known, draft_person(body, params, SIZE, shown, pixels(portrait)).picture)  # type: ignore[arg-type]

    assert record.face is not None and record.face.pose is not None
    face, head = read(world, record.face.path), BodyParameters.load(world / record.face.pose)
    request = read_request(pipe.canvas, ["person"], None, worn, face, params, None, None, stands, head)
    made = draw(request, SIZE, body).drafts["person"][0]
    wanted = draft_person(body, params, SIZE, shown, face=Shown(pixels(face), head))
    assert isinstance(made, Draft) and torch.equal(made.picture, wanted.picture)

    category = order[0]
    request = read_request(pipe.canvas, [category], person, None, None, params, None)
    drawn = draw(request, SIZE, body)
    chosen = standing_off(pixels(person), params, category, SIZE, body)  # type: ignore[arg-type]
    told = read_request(pipe.canvas, [category], person, None, None, params, None, None, {category: stands[category]})
    for stand, made_by in ((chosen, drawn), (stands[category], draw(told, SIZE, body))):
        wanted = draft_garment(body, stand, Shown(pixels(person), params), wall=True)
        (several,) = made_by.drafts.values()
        assert isinstance(several[0], Draft) and torch.equal(several[0].picture, wanted.picture)
    elsewhere = replace(params, transl=params.transl * [1, 1, -1])
    with pytest.raises(ValueError, match="nothing of this body is in its picture"):
        read_request(pipe.canvas, [category], person, None, None, elsewhere, None)
    with pytest.warns(UserWarning, match="behind the camera"):
        drawn = draw(replace(request, params=[elsewhere]), SIZE, body)
        assert drawn.drafts == {"garment_1": [None]} or category == "lower"


def test_everyday_calls(world: Path, pipe: OMFAPipeline) -> None:
    record = open_records(world).records()[0]
    assert record.pose is not None and record.pose.params is not None
    params = BodyParameters.load(world / record.pose.params)
    person, worn = read(world, record.file_name), {g.category.value: read(world, g.path) for g in record.garments}
    category, options = next(iter(worn)), {"num_inference_steps": 1}

    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    plain = pipe.try_off(person, category, params, generator=seeded(), **options).images[0]
    with pytest.warns(UserWarning, match="without a draft: .* set pipe.pose_estimator"):
        without = pipe.try_off(person, category, generator=seeded(), **options).images[0]
    assert np.asarray(plain).std() > 0 and not np.array_equal(np.asarray(plain), np.asarray(without))
    with pytest.raises(ValueError, match="no pose estimator"):
        pipe.try_on(person, worn, **options)
    pipe.pose_estimator = lambda _: Estimate(params, None)
    try:
        found = pipe.try_off(person, category, generator=seeded(), **options).images[0]
        assert np.array_equal(np.asarray(found), np.asarray(plain))
        photo = pipe.try_on(person, worn, generator=seeded(), **options).person[0]
        said = pipe.try_on(person, worn, keep="photo", generator=seeded(), **options).person[0]
        new = pipe.try_on(person, worn, pose=params, face=person, generator=seeded(), **options).person[0]
        assert np.array_equal(np.asarray(photo), np.asarray(said))
        assert not np.array_equal(np.asarray(photo), np.asarray(new))
    finally:
        pipe.pose_estimator = None


@pytest.fixture(scope="module")
def composing(pipe: OMFAPipeline) -> Iterator[OMFAPipeline]:
    torch.manual_seed(3)
    pipe.register_modules(composer=Composer(channels=(8, 8), size=SIZE, shrink=1))
    yield pipe
    pipe.register_modules(composer=None)


def test_composed_pictures_come_at_the_photo_s_own_size(world: Path, composing: OMFAPipeline, tmp_path: Path) -> None:
    record = open_records(world).records()[0]
    assert record.pose is not None and record.pose.params is not None
    params = resized(BodyParameters.load(world / record.pose.params), (3 * H, 3 * W))
    person = read(world, record.file_name).resize((3 * W, 3 * H))
    worn = {g.category.value: read(world, g.path) for g in record.garments}
    category, one = next(iter(worn)), {"num_inference_steps": 1}

    def off(pipe: OMFAPipeline, **options: Any) -> Image.Image:
        return pipe.try_off(person, category, params, generator=torch.manual_seed(0), **one, **options).images[0]

    large = off(composing)
    assert large.size == person.size and off(composing, compose=False).size == (W, H)
    with warnings.catch_warnings(action="ignore"):  # said before, or now
        assert composing.try_off(person, category, **one).images[0].size == (W, H)
    composing.save_pretrained(tmp_path)
    again = OMFAPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert again.config.portraits and np.array_equal(np.asarray(off(again)), np.asarray(large))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_the_size_compose_nearly_the_same(
    world: Path, composing: OMFAPipeline, tmp_path: Path, dtype: torch.dtype
) -> None:
    composing.save_pretrained(tmp_path)
    half = OMFAPipeline.from_pretrained(tmp_path, dtype=dtype)
    half.set_progress_bar_config(disable=True)
    record = open_records(world).records()[0]
    assert half.composer.dtype == dtype and record.pose is not None and record.pose.params is not None
    params, person = BodyParameters.load(world / record.pose.params), read(world, record.file_name)
    worn = {g.category.value: read(world, g.path) for g in record.garments}
    one = {"pose": params, "keep": "photo", "num_inference_steps": 1}
    whole, made = (
        np.asarray(p.try_on(person, worn, generator=torch.manual_seed(0), **one).images[0], float)
        for p in (composing, half)
    )
    assert np.abs(whole - made).mean() < 2 and not np.array_equal(whole, made)


def test_a_photo_stays_where_the_composer_keeps_it(world: Path, composing: OMFAPipeline) -> None:
    record = open_records(world).records()[0]
    assert record.pose is not None and record.pose.params is not None
    params, person = BodyParameters.load(world / record.pose.params), read(world, record.file_name)
    worn = {g.category.value: read(world, g.path) for g in record.garments}
    last = composing.composer.last[2]
    logits = torch.zeros_like(last.bias).view(-1, 4)  # by channel of what is said, then by place in a square
    logits[5] = 50.0
    with torch.no_grad():
        last.bias.copy_(logits.flatten())
    made = composing.try_on(person, worn, params, keep="photo", num_inference_steps=1).person[0]
    with torch.no_grad():
        last.bias.zero_()
    assert np.array_equal(np.asarray(made), np.asarray(person))


def test_what_clothes_can_t_reach_stays_the_photo_s(world: Path, composing: OMFAPipeline) -> None:
    """Whatever a composer makes: this one knows nothing. By the wardrobe's labels of who is where."""
    beside, seen = 0.0, 0
    for record in (r for r in open_records(world).records() if r.portrait is not None):
        assert record.pose is not None and record.pose.params is not None and record.portrait is not None
        portrait, worn = read(world, record.portrait.path), {g.category.value: g for g in record.garments}
        labels = np.asarray(Image.open(world / f"masks/{record.id}-portrait.png"))
        params = BodyParameters.load(world / record.pose.params)
        for category in record.portrait.changed or ():
            clothes = read(world, worn[category].path)
            one = {"pose": params, "keep": "photo", "num_inference_steps": 1}
            outline = Image.fromarray((labels > 0).astype(np.uint8) * 255)
            with warnings.catch_warnings(record=True) as told:
                made = composing.try_on(portrait, {category: clothes}, portrait_mask=outline, **one).images[0]
            same = (np.asarray(made) == np.asarray(portrait)).all(-1)
            if told:  # from the side and from behind
                assert same.all() and "the photo stays as it is" in str(told[-1].message)
                continue
            beside, seen = beside + float(same[labels == Label.BACKGROUND].mean()), seen + 1
            assert not same[labels == LABEL_OF[category]].all()
    assert seen and beside / seen > 0.6  # borders are wide in pictures so small
    with pytest.raises(ValueError, match="portrait_mask"):
        composing(["person"], garments={"upper": portrait}, pose=params, portrait_mask=[portrait])


def test_calls_that_can_t_be(world: Path, pipe: OMFAPipeline, compact: OMFAPipeline) -> None:
    record = open_records(world).records()[0]
    person, worn = read(world, record.file_name), {g.category.value: read(world, g.path) for g in record.garments}
    with pytest.raises(ValueError, match="has not learned"):
        compact(["person"], garments=worn, portrait=person)
    with pytest.raises(ValueError, match="makes new pictures"):
        compact.try_on(person, worn, keep="photo")
    with pytest.raises(ValueError, match="a garment to put on"):
        pipe.try_on(person, keep="photo")
    with pytest.raises(ValueError, match="always dressed"):
        pipe(["person"], portrait=person)
    with pytest.raises(ValueError, match="with targets="):
        pipe(["upper"], person=person, portrait=person)
    with pytest.raises(ValueError, match="garment_poses"):
        pipe(["person"], garments=worn, garment_poses={"hat": 3})
    with pytest.raises(ValueError, match=r"face_pose must be BodyParameters.*is about \(upper"):
        pipe(["person"], garments=worn, face_pose=3)
    with pytest.raises(ValueError, match="join: rows"):
        make_compact(portraits=True)
    with pytest.raises(ValueError, match="draft 'x'"):
        make_compact(draft="x")


def test_a_canvas_takes_drafts_too(world: Path) -> None:
    pipe = make_compact(draft="surface", pose_style="surface")
    module = OMFAModule(pipe)
    options = ExampleOptions(split=None, tasks=TaskWeights(0, 1, 0), drops=NEVER)
    batch = collate([RecordsDataset(world, Geometry.of(pipe), options)[0, i] for i in range(2)])
    with torch.no_grad():
        _, _, with_drafts = module.prepare(batch)
        _, _, without = module.prepare(replace(batch, there=[()] * 2))
    target = with_drafts.target.expand_as(with_drafts.known)
    assert (without.known[target] == 0).all() and with_drafts.known[target].abs().sum() > 0
    assert torch.equal(with_drafts.known[~target], without.known[~target])


def test_new_tokens_leave_the_old_ones_alone() -> None:
    tokens = SlotTokens(8)
    wider = tokens.widened((*KINDS, "portrait"))
    layouts = read_layouts()
    for layout in layouts:
        for slot in layout.states:
            a, b = (t(torch.tensor([[t.number(layout, slot)]])) for t in (tokens, wider))
            assert torch.equal(a, b)
    assert torch.equal(tokens.table.weight[-3:], wider.table.weight[-3:])


def read_layouts():  # type: ignore[no-untyped-def]
    from tests.test_rows import JOINT, ONE, TRY_OFF, TRY_ON

    return [JOINT, ONE, TRY_OFF, TRY_ON]


def test_a_fitted_body_is_where_the_picture_is() -> None:
    """A point of the body lands where fitting a picture carries its pixel."""
    params = standing(load_body(), "upper", (200, 100))
    box = images.fitted_box((200, 100), SIZE)
    moved = fitted(params, box.top, box.left, (box.height, box.width), SIZE)
    points = load_body().posed(params).vertices[0].numpy()[::500]
    before, after = project(points, params.K), project(points, moved.K)
    scale = np.array([box.width / 100, box.height / 200])
    assert np.allclose(after, (before + 0.5) * scale - 0.5 + [box.left, box.top], atol=1e-3)
    assert moved.image_size == tuple(SIZE)


def test_a_nudge_is_as_large_as_it_says() -> None:
    stand, rng = standing(load_body(), Category.UPPER.value, SIZE), np.random.default_rng(0)
    several = [nudged(stand, rng) for _ in range(400)]
    arms, other = (np.degrees([s.pose[j, 2] - stand.pose[j, 2] for s in several]) for j in (16, 17))
    assert abs(np.std(arms) - 6) < 1 and np.allclose(arms, -other, atol=1e-3)
    depth = np.log([s.transl[2] / stand.transl[2] for s in several])
    assert abs(np.std(depth) - 0.04) < 0.008
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(nudged(stand, rng, 0.0).transl, stand.transl)


def test_nobody_is_left_half_dressed(world: Path, composing: OMFAPipeline) -> None:
    """What no given picture shows is drafted in plain grey, from all sides; in a photo it is the photo's."""
    record = next(r for r in open_records(world).records() if {g.category for g in clothes(r)} == {"upper", "lower"})
    assert record.pose is not None and record.pose.params is not None
    params = BodyParameters.load(world / record.pose.params)
    upper = {"upper": read(world, next(g.path for g in record.garments if g.category == "upper"))}
    legs = torch.from_numpy(np.isin(np.asarray(read(world, record.maps.limbs).convert("L")), LEGS))
    for targets in (["person"], ["person", "lower"]):
        for pose in (params, turned(params, 180)):
            request, *_ = composing._asked(targets, garments=upper, pose=[pose])
            (made,) = draw(request, SIZE, load_body()).drafts["person"]
            assert made is not None
            plain = (made.picture - PLAIN).abs().amax(0) < 0.01
            if pose is params:
                assert plain[legs].float().mean() > 0.6 and plain.float().mean() < 0.6
    request, *_ = composing._asked(["person"], garments=upper, pose=[params], portrait=read(world, record.file_name))
    (kept,) = draw(request, SIZE, load_body()).drafts["person"]
    assert kept is not None and ((kept.picture - PLAIN).abs().amax(0) < 0.01).float().mean() < 0.01


def test_where_nothing_can_be_put_on_the_photo_stays(world: Path, composing: OMFAPipeline) -> None:
    record = open_records(world).records()[0]
    assert record.pose is not None and record.pose.params is not None
    person = read(world, record.file_name)
    with pytest.warns(UserWarning, match="plain paper"):
        made = composing.try_on(
            person, {"upper": Image.new("RGB", (48, 64), "white")}, BodyParameters.load(world / record.pose.params),
            keep="photo",
        )  # fmt: skip
    assert np.abs(np.asarray(made.images[0], int) - np.asarray(person)).max() <= 1
