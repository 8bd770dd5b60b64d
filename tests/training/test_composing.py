"""Training a composer: drafts beside their truths, what is drawn of them, and a run that stops and goes on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from data_prep.wardrobe.synthetic import write_outfit
from omfa.bodies.body import load_body
from omfa.bodies.drafts import Shown, draft_garment, draft_person, misfit, nudged
from omfa.bodies.parameters import BodyParameters
from omfa.bodies.surface import surface_map
from omfa.composer import KINDS, Composer, Given, given
from omfa.fit import main
from omfa.images import read_trusted, tensor_to_pixels
from omfa.records.prepared import METADATA, RecordError, read_records
from omfa.records.stream import seeded
from omfa.training.composing import ComposerExamples, Shares, picture_error
from omfa.training.drafted import ERROR, Drafted, Drafter, framing
from tests.conftest import make_compact

RECIPE = Path(__file__).parents[2] / "lightning_configs" / "compact_composer.yaml"
SIZE = (64, 48)


@pytest.fixture(scope="module")
def wardrobe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two views of an outfit, with portraits and bodies."""
    folder = tmp_path_factory.mktemp("wardrobe")
    lines = write_outfit("s5-o0", 0, folder, seed=5, size=SIZE, records=2, portraits=True)
    (folder / METADATA).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def only(task: str) -> dict[str, float]:
    return {name: float(name == task) for name in ("try_off", "try_on", "keep")}


def examples(wardrobe: Path, kept: Path, **shares: float) -> ComposerExamples:
    return ComposerExamples(wardrobe, kept, SIZE, Shares(**{"no_draft": 0.0} | shares))


def test_drafts_are_kept_as_they_are(wardrobe: Path, tmp_path: Path) -> None:
    drafter = Drafter(load_body(), wardrobe, SIZE)
    record = read_records(wardrobe)[0]
    for made in (
        drafter.person(record, np.random.default_rng(0)),
        drafter.garment(record, record.garments[0], np.random.default_rng(0)),
    ):
        made.save(tmp_path / "a.png")
        again = Drafted.load(tmp_path / "a.png", SIZE[1])
        assert all(
            np.array_equal(a, b)
            for a, b in zip(vars(made).values(), vars(again).values(), strict=True)
            if a is not None
        )
        twice = made.mirrored().mirrored()
        assert np.array_equal(twice.truth, made.truth) and np.abs(twice.surface.astype(int) - made.surface).max() <= 1


def test_a_mirrored_surface_is_that_of_the_mirrored_body(wardrobe: Path) -> None:
    record = read_records(wardrobe)[0]
    drafter = Drafter(load_body(), wardrobe, SIZE)
    garment = record.garments[0]
    assert garment.pose is not None
    stand = BodyParameters.load(wardrobe / garment.pose)
    pose = np.zeros_like(stand.pose)
    pose[0, 0] = np.pi  # upright, facing the camera: its own mirror picture
    stand = replace(stand, pose=pose, betas=np.zeros(10), transl=np.array([0, 0, 4.0]))
    _, _, surface, _ = drafter.off(record, stand, drafter.params(record))
    made = Drafted(surface, surface[..., 0], surface, surface, surface[..., 0], surface).mirrored().surface
    on = surface.any(-1) & made.any(-1)
    assert on.mean() > 0.05
    assert np.median(np.abs(made[on].astype(int) - surface[on]).max(-1)) <= 4
    assert np.median(np.abs(surface[:, ::-1][on].astype(int) - surface[on]).max(-1)) > 4  # red says left from right


def test_a_shop_picture_framed_anew_stays_on_its_body(wardrobe: Path) -> None:
    """Where the camera's matrix says that a pixel of the truth goes, it goes: the drafts of both agree."""
    drafter = Drafter(load_body(), wardrobe, SIZE)
    record = read_records(wardrobe)[0]
    garment = record.garments[0]
    made = [drafter.garment(record, garment, np.random.default_rng(seed)) for seed in range(3)]
    areas = [m.area > 127 for m in made]
    assert len({a.tobytes() for a in areas}) == 3
    for m, area in zip(made, areas, strict=True):
        both = area & (m.valid > 127) & m.surface.any(-1)
        assert both.mean() > 0.05
        off = np.abs(m.draft[both].astype(int) - m.truth[both]).mean()
        wrong = np.abs(m.draft[both].astype(int) - np.roll(m.truth, SIZE[0] // 3, 0)[both]).mean()
        assert off < wrong
    turn = framing(0.5, 3, -2, SIZE)
    assert np.allclose(turn @ [23.5, 31.5, 1], [26.5, 29.5, 1])
    assert np.allclose(turn @ [24.5, 31.5, 1] - turn @ [23.5, 31.5, 1], [0.5, 0, 0])


def test_drafts_are_those_that_a_call_gets(wardrobe: Path) -> None:
    """In training, bodies seen once serve several targets; the drafts are those of :mod:`omfa.bodies.drafts`."""
    body, record = load_body(), read_records(wardrobe)[0]
    drafter = Drafter(body, wardrobe, SIZE)

    def read(path: str | None) -> BodyParameters:
        assert path is not None
        return BodyParameters.load(wardrobe / path)

    assert record.pose is not None
    params, photo = read(record.pose.params), read_trusted(wardrobe / record.file_name)
    stand = read(record.garments[0].pose)
    wanted = draft_garment(body, stand, Shown(photo, params), wall=True)
    picture, valid, surface, _ = drafter.off(record, stand, params)
    assert np.array_equal(valid > 127, wanted.valid.numpy())
    assert np.array_equal(picture, tensor_to_pixels(wanted.picture))
    assert wanted.valid.sum() > draft_garment(body, stand, Shown(photo, params)).valid.sum()
    smooth = surface_map(body, stand)  # at its edges only
    on = surface.any(-1) & smooth.any(-1)
    assert on.mean() > 0.1 and np.median(np.abs(surface.astype(int) - smooth)[on]) <= 1

    rng, shown = np.random.default_rng(0), {}
    for g in record.garments:
        where = nudged(read(g.pose), rng, ERROR)
        mask = read_trusted(wardrobe / str(g.mask))[0] > 0
        shown[g.category] = Shown(read_trusted(wardrobe / g.path), where, mask)
    order = [shown[c] for c in ("lower", "upper", "dress") if c in shown]
    assert record.face is not None
    face = Shown(read_trusted(wardrobe / record.face.path), read(record.face.pose))
    worn = draft_person(body, params, SIZE, order, face=face)
    made = drafter.person(record, np.random.default_rng(0))
    assert np.array_equal(made.draft, tensor_to_pixels(worn.picture)) and made.photo is not None


def test_bodies_of_photos_are_a_little_wrong_and_those_of_new_pictures_are_not(wardrobe: Path) -> None:
    drafter, record = Drafter(load_body(), wardrobe, SIZE), read_records(wardrobe)[0]
    exact = drafter.params(record)
    posed = [load_body().posed(misfit(exact, np.random.default_rng(k))).joints[0] for k in range(8)]
    off = np.mean([float((p - load_body().posed(exact).joints[0])[:22].norm(dim=1).mean()) for p in posed])
    assert 0.005 < off < 0.06  # metres

    def surfaces(onto_portrait: bool) -> set[bytes]:
        return {drafter.person(record, np.random.default_rng(k), onto_portrait).surface.tobytes() for k in range(3)}

    assert len(surfaces(onto_portrait=True)) == 3 and len(surfaces(onto_portrait=False)) == 1


def test_an_example_is_a_function_of_its_seed(wardrobe: Path, tmp_path: Path) -> None:
    data = examples(wardrobe, tmp_path / "a")
    first, again = (data.example(data.records[0], seeded(0, 0)) for _ in range(2))  # made, then read
    other = examples(wardrobe, tmp_path / "b").example(data.records[0], seeded(0, 0))
    for e in (again, other):
        assert torch.equal(first.truth, e.truth) and torch.equal(first.layers.draft, e.layers.draft)


def test_from_far_round_nothing_is_taken_off(wardrobe: Path, tmp_path: Path) -> None:
    for asked, photo in (({"try_off": 0.9, "keep": 0.1}, 1.0), ({"try_off": 0.9, "try_on": 0.1, "keep": 0.0}, 0.0)):
        data = examples(wardrobe, tmp_path, **{"try_on": 0.0} | asked)
        e = data.example(replace(data.records[0], view_yaw=150.0), seeded(1))
        assert KINDS[int(e.kind)] == "person" and e.layers.has_photo.amax() == photo


def test_a_new_picture_of_a_room_is_not_asked_for(wardrobe: Path, tmp_path: Path) -> None:
    """What nobody can know: a photographic record's try-on is of its portrait, where that task and a portrait are."""
    for keep, portrait, photo in ((0.1, True, 1.0), (0.0, True, 0.0), (0.1, False, 0.0)):
        data = examples(wardrobe, tmp_path, **only("try_on") | {"try_on": 1e9, "keep": keep})
        record = data.records[0]
        assert (data.example(record, seeded(1)).layers.has_photo == 0).all()
        taken = replace(record, provenance=record.provenance | {"photographic": True})
        taken = taken if portrait else replace(taken, portrait=None)
        assert data.example(taken, seeded(1)).layers.has_photo.amax() == photo


def test_what_a_model_decodes_is_given_too(wardrobe: Path, tmp_path: Path) -> None:
    pipe = make_compact(join="rows", draft="surface", pose_style="surface", portraits=True)
    pipe.save_pretrained(tmp_path / "model")
    for shares in map(only, ("try_off", "try_on", "keep")):
        data = ComposerExamples(
            wardrobe, tmp_path / "kept", SIZE, Shares(**shares), model=str(tmp_path / "model")
        )  # fmt: skip
        one, again = (data.example(data.records[0], seeded(1)) for _ in range(2))
        bare = examples(wardrobe, tmp_path / "kept", **shares).example(data.records[0], seeded(1))
        assert (one.layers.has_decoded == 1).all() and torch.equal(one.layers.decoded, again.layers.decoded)
        assert torch.equal(one.layers.draft, bare.layers.draft) and one.layers.decoded.std() > 0.01
    (kept,) = (tmp_path / "kept").glob("decoded-*")
    assert len(list(kept.glob("*.png"))) == 3


def test_tasks_say_what_is_given(wardrobe: Path, tmp_path: Path) -> None:
    for shares, kinds, photo in (
        (only("try_off"), {"upper", "lower", "dress"}, False),
        (only("try_on"), {"person"}, False),
        (only("keep"), {"person"}, True),
    ):
        data = examples(wardrobe, tmp_path, **shares)
        e = data.example(data.records[0], seeded(1))
        assert KINDS[int(e.kind)] in kinds
        assert bool(e.layers.has_photo.all()) is photo and bool(e.layers.has_photo.any()) is photo
        assert (e.layers.valid == 1).any() and 0 < e.area.mean() < 1
        assert not (data.example(data.records[0], seeded(1)).layers.has_decoded == 1).any()
    bare = examples(wardrobe, tmp_path, **only("try_on"), no_draft=1.0)
    assert not bare.example(bare.records[0], seeded(1)).layers.valid.any()


def test_records_without_bodies_are_named(wardrobe: Path, tmp_path: Path) -> None:
    shutil.copytree(wardrobe, tmp_path / "r")
    record = read_records(wardrobe)[0]
    (tmp_path / "r" / METADATA).write_text(replace(record, pose=None).to_json() + "\n")
    data = examples(tmp_path / "r", tmp_path / "kept")
    with pytest.raises(RecordError, match="no body parameters"):
        data.example(data.records[0], seeded(0))


def test_errors_count_where_the_garment_is_and_edges_count() -> None:
    truth, area = torch.zeros(1, 3, 64, 64), torch.zeros(1, 1, 64, 64)
    area[..., :32] = 1
    inside, outside = truth.clone(), truth.clone()
    inside[..., 8:16, 8:16] = outside[..., 8:16, 40:48] = 0.5
    a, b = (float(picture_error(x, truth, area, 0, 0)) for x in (inside, outside))
    assert a == pytest.approx(3 * b)
    smooth, striped = truth + 0.1, truth + 0.1 * (torch.arange(64) % 2 * 2 - 1)
    plain = [float(picture_error(x, truth, area, 0, 0)) for x in (smooth, striped)]
    edgy = [float(picture_error(x, truth, area, 1, 0)) for x in (smooth, striped)]
    coarse = [float(picture_error(x, truth, area, 0, 1)) for x in (smooth, striped)]
    assert plain[0] == pytest.approx(plain[1], rel=1e-4)
    assert edgy[0] == pytest.approx(plain[0]) and edgy[1] > 2 * plain[1]
    assert coarse[0] > plain[0] and coarse[1] == pytest.approx(plain[1], rel=1e-3)


def test_between_two_patterns_is_worse_than_one_that_is_off() -> None:
    columns = torch.arange(64)
    stripes, moved = ((columns + k) // 4 % 2 * 1.0 for k in (0, 2))
    truth, off, mean = (x.expand(1, 3, 64, 64) for x in (stripes, moved, (stripes + moved) / 2))
    area = torch.ones(1, 1, 64, 64)
    plain = [float(picture_error(x, truth, area, 0, 0)) for x in (off, mean)]
    assert plain[0] == pytest.approx(2 * plain[1])
    crisp = [float(picture_error(x, truth, area, 0, 0, 1)) for x in (off, mean)]
    assert crisp[0] == pytest.approx(plain[0], abs=0.02) and crisp[1] > plain[1] + 0.2


def test_kinds_matter_once_learned() -> None:
    """The same draft asked for as an upper and as a lower garment: above the middle kept, below it kept."""
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    draft = F.interpolate(torch.rand(1, 3, 4, 4, generator=g) * 2 - 1, (32, 32))
    layers = given(draft, torch.ones(1, 1, 32, 32), torch.zeros(1, 3, 32, 32))
    top = torch.arange(32)[:, None].expand(1, 1, 32, 32) < 16
    truths = {k: torch.where(m, draft, 1.0) for k, m in (("upper", top), ("lower", ~top))}
    composer = Composer((8, 12), (32, 32))
    optimizer = torch.optim.AdamW(composer.parameters(), 1e-2)
    kind = torch.tensor([KINDS.index(k) for k in truths])
    both, truth = Given(*(x.expand(2, -1, -1, -1) for x in layers)), torch.cat(list(truths.values()))
    for _ in range(150):
        loss = (composer(both, kind).picture - truth).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, wanted in truths.items():
        made = composer.compose(layers, [name]).picture
        other = truths["lower" if name == "upper" else "upper"]
        assert (made - wanted).abs().mean() < 0.2 * (made - other).abs().mean()


def test_a_run_stops_goes_on_and_leaves_a_composer(wardrobe: Path, tmp_path: Path) -> None:
    def fit(run: str, steps: int) -> int:
        tiny = ["--model.init_args.channels=[8,12]", "--model.init_args.size=[32,24]", "--data.init_args.size=[64,48]"]
        where = [f"--data.init_args.folder={wardrobe}", f"--data.init_args.kept={tmp_path / 'kept'}"]
        steps_ = [f"--trainer.max_steps={steps}", "--save_every=2", "--data.init_args.batch_size=2"]
        root = [f"--trainer.default_root_dir={tmp_path / run}", "--trainer.accelerator=cpu", "--ckpt_path=last"]
        root += ["--data.init_args.model=null", "--model.init_args.decoded=[]"]
        return main(["--config", str(RECIPE), *tiny, *where, *steps_, *root, "--model.init_args.decay_from=1.0"])

    assert fit("whole", 4) == 0
    assert fit("halves", 2) == 0
    shutil.rmtree(tmp_path / "halves" / "model")
    assert fit("halves", 4) == 0
    name = "model/diffusion_pytorch_model.safetensors"
    whole, halves = (load_file(tmp_path / run / name) for run in ("whole", "halves"))
    assert whole.keys() == halves.keys() and all(torch.equal(whole[k], halves[k]) for k in whole)
    composer = Composer.from_pretrained(tmp_path / "whole" / "model")
    data = examples(wardrobe, tmp_path / "kept", **only("keep"))
    e = data.example(data.records[0], seeded(0))
    made = composer.compose(Given(*(x[None] for x in e.layers)), ["person"]).picture
    assert made.shape == (1, 3, *SIZE) and made.abs().max() <= 1
