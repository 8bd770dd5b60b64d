"""Any number of garments: layers, accessories, what a list means, and calls that can't be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from omfa import encode
from omfa.bodies.body import load_body
from omfa.bodies.named_poses import NAMED_POSES
from omfa.bodies.placing import place
from omfa.bodies.standing import standing
from omfa.canvas import Canvas
from omfa.compact import compact_pipeline
from omfa.components import ACCESSORIES, CLOTHES, Category, State
from omfa.conditioning import KINDS, Drops, Layout, SlotTokens
from omfa.drafting import draw
from omfa.pipeline import MODELS, OMFAPipeline
from omfa.prompts import PromptFiles, phrases
from omfa.records.latents import Latents
from omfa.records.prepared import GarmentRef, Record, RecordError, read_records, record_files
from omfa.records.worn import clothes, wearable
from omfa.request import Request, dressed, read_request
from omfa.rows import row_code
from omfa.sdxl import CAPTIONS, load_prompts
from omfa.training.examples import ExampleOptions, Geometry, RecordsDataset, TaskWeights, collate
from omfa.training.module import OMFAModule
from tests.conftest import SIZE, encode_call, make_compact
from tests.test_rows import TRY_ON

UPPER, LOWER, DRESS, SHOES = Category.UPPER, Category.LOWER, Category.DRESS, Category.SHOES
FAST: dict[str, Any] = {"num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "latent"}
NEVER = Drops(0, 0, 0, 0)


@pytest.fixture(scope="module")
def rowing() -> OMFAPipeline:
    return make_compact(join="rows", portraits=True, accessories=["shoes"])


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*SIZE, 3), np.uint8))


SHIRT, JACKET, SKIRT, BOOTS, COAT, TOP, POSE, OTHER = map(picture, range(8))


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def made(pipe: OMFAPipeline, garments: dict[str, Any], pose: Any = POSE, generator: Any = None, **more: Any) -> Any:
    return pipe(["person"], garments=garments, pose=pose, generator=generator or seed(), **FAST | more).images


# ------------------------------------------------------------------------------------------------------ what is worn


def test_the_order_of_layers_matters_and_no_other(rowing: OMFAPipeline) -> None:
    worn = {"upper": [SHIRT, JACKET], "lower": SKIRT, "shoes": BOOTS}
    once = made(rowing, worn)
    torch.testing.assert_close(made(rowing, dict(reversed(worn.items()))), once, atol=1e-5, rtol=1e-4)
    for other in ({"upper": [JACKET, SHIRT]}, {"upper": JACKET}, {"shoes": COAT}):
        assert not torch.allclose(made(rowing, worn | other), once, atol=1e-4), other
    without = {c: g for c, g in worn.items() if c != "shoes"}
    assert not torch.allclose(made(rowing, without), once, atol=1e-4)


def test_a_batch_is_a_loop(rowing: OMFAPipeline) -> None:
    both = {"upper": [[SHIRT, JACKET], [TOP, COAT]], "shoes": [[BOOTS], [SKIRT]], "lower": SKIRT}
    together = made(rowing, both, generator=[seed(0), seed(1)])
    for i, uppers in enumerate(both["upper"]):
        alone = made(rowing, {"upper": [uppers], "shoes": both["shoes"][i], "lower": SKIRT}, generator=seed(i))
        torch.testing.assert_close(together[i], alone[0], atol=1e-5, rtol=1e-4)


def test_a_list_is_a_batch_s_where_all_else_is_a_batch_of_as_many(rowing: OMFAPipeline, compact: OMFAPipeline) -> None:
    two = {UPPER: [SHIRT, JACKET]}
    assert dressed(two) == {UPPER: [[SHIRT, JACKET]]}
    assert dressed(two, 3) == {UPPER: [[SHIRT, JACKET]]}
    assert dressed(two, 2) == {UPPER: [[SHIRT], [JACKET]]}
    assert dressed(two | {LOWER: [[SKIRT], [TOP]]}) == {UPPER: [[SHIRT], [JACKET]], LOWER: [[SKIRT], [TOP]]}
    assert dressed(two, join="canvas") == {UPPER: [[SHIRT], [JACKET]]}
    assert dressed({UPPER: SHIRT, LOWER: [SKIRT]}) == {UPPER: [[SHIRT]], LOWER: [[SKIRT]]}
    assert len(dressed({UPPER: np.zeros((2, *SIZE, 3))})[UPPER]) == 2  # an array of pictures is a batch
    worn = {"upper": [SHIRT, JACKET]}
    assert len(made(rowing, worn)) == 1
    for more in ({"pose": [POSE, OTHER]}, {"generator": [seed(0), seed(1)]}, {"face": [POSE, OTHER]}):
        assert len(made(rowing, worn, **more)) == 2, more
    assert compact(["person"], garments=worn, pose=POSE, **FAST).images.shape[0] == 2


def test_outputs_are_shaped_as_what_was_given(rowing: OMFAPipeline) -> None:
    out = rowing.try_on(None, {"upper": [[SHIRT, JACKET]], "shoes": BOOTS}, POSE, TOP, None, num_inference_steps=1)
    assert [[np.array_equal(p, q) for p, q in zip(out.garments["upper"][0], (SHIRT, JACKET), strict=True)]] == [
        [True] * 2
    ]
    assert len(out.garments["upper"]) == 1 and np.array_equal(out.garments["shoes"][0], BOOTS)
    off = rowing.try_off([SHIRT, COAT], ["upper", "shoes"], num_inference_steps=1)
    assert [len(off.garments[c]) for c in ("upper", "shoes")] == [2, 2]
    assert all(np.array_equal(a, b) for a, b in zip(off.images, off.garments["upper"], strict=True))


def test_everyday_calls_wear_layers(rowing: OMFAPipeline) -> None:
    standing_still = place(load_body(), NAMED_POSES["standing"], image_size=SIZE)
    worn = {"upper": [SHIRT, JACKET], "lower": SKIRT}
    turned = rowing.turntable(None, worn, standing_still, views=2, num_inference_steps=1)  # 2 views, 2 layers
    assert len(turned.images) == 2 and len(turned.garments["upper"][0]) == 2
    with pytest.raises(ValueError, match="one person"):
        rowing.turntable(None, {"upper": [[SHIRT], [JACKET]]}, standing_still, views=2, num_inference_steps=1)
    filled = rowing.try_on(TOP, {"shoes": BOOTS}, POSE, COAT, "others", num_inference_steps=1)
    assert set(filled.garments) == {"shoes", "upper", "lower"}
    kept = rowing.try_on(TOP, {"dress": COAT, "upper": JACKET}, POSE, keep="photo", num_inference_steps=1)
    assert set(kept.garments) == {"dress", "upper"}


# ----------------------------------------------------------------------------------------------------------- bodies


def asked(garments: dict[str, Any], stands: dict[str, Any], poses: Any) -> Request:
    more = {"garment_poses": stands, "style": "surface", "join": "rows", "accessories": ["shoes"]}
    return read_request(Canvas((16, 12)), ["person"], None, garments, None, poses, None, **more)


def plain(colour: tuple[int, int, int], rows: slice = slice(None)) -> Image.Image:
    pixels = np.full((*SIZE, 3), 255, np.uint8)
    pixels[rows] = colour
    return Image.fromarray(pixels)


RED, BLUE, GREEN = (200, 0, 0), (0, 0, 200), (0, 150, 0)


def test_a_draft_shows_the_outer_layer_and_shoes_where_their_body_is_known() -> None:
    stand, feet = standing(load_body(), "upper", SIZE), place(load_body(), NAMED_POSES["standing"], image_size=SIZE)
    boots = plain(GREEN, slice(int(SIZE[0] * 0.9), None))
    uppers = {"upper": [plain(RED), plain(BLUE)]}

    def drafted(garments: dict[str, Any], stands: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        (made,) = draw(asked(garments, stands, feet), SIZE, load_body()).drafts["person"]
        assert made is not None
        colours = ((made.picture + 1) * 127.5).round().int().permute(1, 2, 0).numpy()
        return colours, made.valid.numpy()

    inner, _ = drafted({"upper": plain(RED)}, {"upper": stand})
    assert (inner == RED).all(-1).sum() > 50
    both, valid = drafted(uppers, {"upper": [stand, stand]})
    assert (both == BLUE).all(-1).sum() > 50 and not (both == RED).all(-1).any()
    turned, _ = drafted({"upper": uppers["upper"][::-1]}, {"upper": [[stand, stand]]})
    assert np.array_equal((turned == RED).all(-1), (both == BLUE).all(-1))
    unknown, _ = drafted(uppers | {"shoes": boots}, {"upper": [stand, stand]})
    assert np.array_equal(unknown, both)  # nothing guesses how a body stands in a picture of shoes
    known, more = drafted(uppers | {"shoes": boots}, {"upper": [stand, stand], "shoes": feet})
    assert (known[int(SIZE[0] * 0.8) :] == GREEN).all(-1).sum() > 5 and more.sum() > valid.sum()


def test_bodies_are_shaped_as_garments_are() -> None:
    stand = standing(load_body(), "upper", SIZE)
    small = replace(stand, transl=stand.transl * 2)
    worn = {"upper": [[SHIRT, JACKET], [TOP, COAT]], "shoes": BOOTS}
    told = asked(worn, {"upper": [[stand, None], [small, stand]], "shoes": [small, stand]}, [POSE, OTHER]).stands
    assert told == {"garment_1": [stand, small], "garment_2": [None, stand], "garment_3": [small, stand]}
    assert asked(worn, {"upper": [stand, small]}, [POSE, OTHER]).stands == {
        "garment_1": [stand] * 2,
        "garment_2": [small] * 2,
    }
    for wrong in (stand, [[stand]], [[stand, small]] * 3, [stand] * 3, [[stand, "a"]]):
        with pytest.raises(ValueError, match=r"1 or 2 of them, each a list of 2"):
            asked(worn, {"upper": wrong}, [POSE, OTHER])


# -------------------------------------------------------------------------------------------------------- bad calls


BAD: list[tuple[bool, dict[str, Any], str]] = [
    (True, {"targets": ["person"], "portrait": TOP}, "always dressed: give at least one garment"),
    (True, {"garments": {"shoes": BOOTS}}, "nobody in shoes alone: give an upper"),
    (True, {"garments": {"dress": [COAT, TOP]}}, "two dresses can't be worn at once: give one"),
    (True, {"garments": {"dress": COAT, "lower": SKIRT}}, "takes the place of a lower garment: give one of the two"),
    (True, {"garments": {"upper": TOP, "hat": COAT}}, "has not learned hat: leave it out .it knows upper, .*, shoes"),
    (True, {"targets": ["bag"], "person": TOP}, "has not learned bag: leave it out"),
    (True, {"garments": {"upper": [[TOP, COAT], [TOP]]}}, "as many pictures each, like"),
    (True, {"garments": {"upper": [[TOP, COAT], TOP]}}, "as many pictures each, like"),
    (True, {"garments": {"upper": [[]]}}, "as many pictures each, like"),
    (True, {"garments": {"upper": []}}, "an empty list for upper"),
    (True, {"garments": {"upper": [[TOP], [TOP]]}, "pose": [POSE] * 3}, "in a batch of 3; give 1 or 3"),
    (False, {"garments": {"upper": TOP, "shoes": BOOTS}}, "has not learned shoes: .* a model in rows that was trained"),
    (
        False,
        {"garments": {"upper": [[TOP, COAT]], "lower": [[SKIRT, TOP]]}},
        "a slot for one; give one, or .*join: rows",
    ),
    (False, {"garments": {"upper": TOP, "lower": SKIRT, "dress": COAT}}, "takes the place"),
    (False, {"garments": {"dress": TOP, "upper": SKIRT}}, "takes the place"),
]


@pytest.mark.parametrize(("in_rows", "call", "words"), BAD)
def test_bad_calls_are_one_line_that_says_what_works(
    in_rows: bool, call: dict[str, Any], words: str, rowing: OMFAPipeline, compact: OMFAPipeline
) -> None:
    with pytest.raises(ValueError, match=words) as said:
        (rowing if in_rows else compact)(**{"targets": ["person"], "pose": POSE, **FAST} | call)
    assert "\n" not in str(said.value)


def test_one_slot_is_one_garment(rowing: OMFAPipeline) -> None:
    one = make_compact(garment_slots=1)
    with pytest.raises(ValueError, match=r"join: rows.* takes any number"):
        one(["person"], garments={"upper": TOP, "lower": SKIRT}, pose=POSE)
    for accessories, join in ((["shoes"], "canvas"), (["tie"], "rows")):
        with pytest.raises(ValueError, match="must be of shoes, bag, hat"):
            make_compact(join=join, accessories=accessories)
    with pytest.raises(ValueError, match="widen them"):
        parts = {n: p for n, p in rowing.components.items() if n != "slot_tokens"}
        OMFAPipeline(**parts, slot_tokens=SlotTokens(32), person_size=SIZE, join="rows", accessories=["shoes"])


# ----------------------------------------------------------------------------------------------------------- models


def test_the_shipped_model_knows_clothes_and_can_be_widened(tmp_path: Path) -> None:
    shipped = OMFAPipeline.from_pretrained("compact")
    assert shipped.config.accessories == []
    with pytest.raises(ValueError, match="has not learned shoes"):
        shipped(["person"], garments={"upper": TOP, "shoes": BOOTS}, pose=POSE)
    folder = str(MODELS / "compact")
    size = shipped.config.person_size
    how = {"person_size": size, "join": "rows", "draft": "surface", "pose_style": "surface", "portraits": True}
    wider = compact_pipeline(f"{folder}/vae", folder, accessories=["shoes"], **how)
    assert wider.slot_tokens.kinds == (*shipped.slot_tokens.kinds, "garment:shoes")
    old = len(shipped.slot_tokens.kinds) * 2 + 1
    new, table = wider.slot_tokens.table.weight, shipped.slot_tokens.table.weight
    assert torch.equal(new[:old], table[:old]) and torch.equal(new[-3:], table[-3:])
    assert torch.equal(new[old : old + 2], table[3:5])  # begins as an upper garment's
    wider.save_pretrained(tmp_path)
    assert list(OMFAPipeline.from_pretrained(tmp_path).config.accessories) == ["shoes"]
    assert KINDS == ("person", "garment:upper", "garment:lower", "garment:dress", "face")  # sizes trained tables


def test_every_row_has_a_code_of_its_own(rowing: OMFAPipeline) -> None:
    worn = [UPPER, UPPER, UPPER, UPPER, UPPER, UPPER, LOWER, LOWER, SHOES, Category.BAG, Category.BAG, Category.HAT]
    slots = {f"garment_{i}": c for i, c in enumerate(worn, 1)}
    layout = Layout(TRY_ON.kind, dict.fromkeys([*slots, "face"], State.GIVEN), slots)
    codes = [row_code(rowing.canvas, layout, slot, 4)[:2, 0, 0] for slot in layout.states]
    apart = torch.cdist(torch.stack(codes), torch.stack(codes)) + torch.eye(len(codes))
    assert apart.min() > 0.02
    assert torch.equal(codes[0], row_code(rowing.canvas, TRY_ON, "garment_1", 4)[:2, 0, 0])


def test_phrases_name_each_category_once() -> None:
    layered = {"garment_1": UPPER, "garment_2": UPPER, "garment_3": SHOES}
    words = Layout(TRY_ON.kind, {}, layered).prompt()
    assert words == "try-on: a photo of a person wearing an upper-body garment and a pair of shoes"
    assert words in phrases((*CLOTHES, SHOES)) and words not in phrases()
    assert set(phrases()) < set(phrases((*CLOTHES, *ACCESSORIES)))


# ---------------------------------------------------------------------------------------------------------- records


def layered(records: Path) -> tuple[Record, Record]:
    """A drawn record, and the same in two uppers, a lower and shoes."""
    both = [r for r in read_records(records) if {g.category for g in r.garments} == {UPPER, LOWER}]
    first = both[0]
    others = sorted({g.path for r in both for g in r.garments} - {g.path for g in first.garments})
    under, shoes = GarmentRef(UPPER, others[0]), GarmentRef(SHOES, others[1])
    return first, replace(first, id="layered", garments=(shoes, under, *first.garments), portrait=None)


def test_roles_are_unique_and_the_outermost_is_called_as_its_category(records: Path) -> None:
    first, record = layered(records)
    files = record_files(record)
    assert [r for r in files if r.startswith(("upper", "shoes", "lower"))] == ["shoes", "upper_2", "upper", "lower"]
    assert files["upper"] == record_files(first)["upper"] and len(set(files.values())) == len(files)
    assert Record.from_json(record.to_json()) == record
    assert clothes(record) == first.garments
    assert [*wearable(record, "rows")] == ["upper_2", "upper", "lower"]
    assert [*wearable(record, "rows", ["shoes"])] == ["shoes", "upper_2", "upper", "lower"]
    dress, jacket = GarmentRef(DRESS, "d.png"), GarmentRef(UPPER, "j.png")
    over = replace(first, garments=(dress, jacket))
    assert clothes(over) == (dress,) and [*wearable(over, "rows")] == ["dress", "upper"]
    for garments, words in (((dress, replace(dress, path="e.png")), "two dresses"), ((jacket, jacket), "twice")):
        with pytest.raises(RecordError, match=words):
            replace(first, garments=garments)


def folder_of(records: Path, tmp_path: Path, *some: Record) -> Path:
    tmp_path.mkdir(exist_ok=True)
    for path in records.iterdir():
        if path.is_dir():
            copytree(path, tmp_path / path.name)
    (tmp_path / "metadata.jsonl").write_text("".join(r.to_json() + "\n" for r in some))
    return tmp_path


def test_training_lays_out_what_the_model_knows(records: Path, rowing: OMFAPipeline, tmp_path: Path) -> None:
    folder = folder_of(records, tmp_path, *layered(records))

    def worn(pipe: OMFAPipeline, task: TaskWeights) -> list[Any]:
        options = ExampleOptions(split=None, tasks=task, drops=NEVER)
        data = RecordsDataset(folder, Geometry.of(pipe), options)
        return [data[epoch, 1] for epoch in range(12)]

    on, off = TaskWeights(1, 0, 0), TaskWeights(0, 1, 0)
    for example in worn(rowing, on):
        assert list(example.layout.worn()) == [SHOES, UPPER, LOWER]
        first, second = example.layout.worn()[UPPER]
        assert not torch.equal(example.pixels[first], example.pixels[second])
    unlearned, canvas = make_compact(join="rows"), make_compact()
    assert all(len(e.layout.categories) == 3 for e in worn(unlearned, on))
    assert all(sorted(e.layout.categories.values()) == [LOWER, UPPER] for e in worn(canvas, on))
    assert {len(e.layout.categories) for e in worn(rowing, off)} == {1, 3}  # never what lies under another
    examples = worn(rowing, off)[:3] + worn(rowing, on)[:1]
    losses = OMFAModule(make_compact(join="rows", portraits=True, accessories=["shoes"])).losses(collate(examples))
    assert losses.shape == (4,) and losses.isfinite().all() and (losses > 0).all()


def test_what_is_encoded_ahead_is_for_a_model_that_wears_the_same(
    records: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = folder_of(records, tmp_path / "records", *layered(records)), tmp_path / "latents"
    knows = ["--join", "rows", "--accessories", "shoes"]
    assert encode.main(encode_call(base, folder, out, "--draft", "surface", "--captions", *knows)) == 0
    assert {*phrases((*CLOTHES, SHOES))} == {*load_prompts(out).config.phrases}
    how = {"draft": "surface", "pose_style": "surface", "join": "rows"}
    options = ExampleOptions(split=None, tasks=TaskWeights(1, 0, 0), drops=NEVER, latents=out)
    data = RecordsDataset(folder, Geometry(Canvas((16, 12)), 4, 4, accessories=["shoes"], **how), options)
    assert {"shoes", "upper", "upper_2", "lower"} <= set(Latents(out).of(data.records[1]))
    assert len(data[0, 1].layout.categories) == 4
    with pytest.raises(RecordError, match=r"other garments .* 'layered': encode them anew with --join rows$"):
        RecordsDataset(folder, Geometry(Canvas((16, 12)), 4, 4, **how), options)
    less = tmp_path / "less"  # phrases that an older folder lacks are added to it
    assert encode.main(encode_call(base, folder, less)) == 0 == encode.main(encode_call(base, folder, less, *knows))
    kept = [load_prompts(less), PromptFiles(less / CAPTIONS)]
    assert all(any(p in some for some in kept) for p in phrases((*CLOTHES, SHOES)))
    with pytest.raises(SystemExit):
        encode.main(encode_call(base, folder, out, "--accessories", "tie"))
    assert encode.main(encode_call(base, folder, out, "--accessories", "shoes")) == 2
    assert "give --join rows" in capsys.readouterr().err
