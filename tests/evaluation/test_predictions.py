"""The evaluator's door: any system that says what it needs gets it; a record that lacks it is named."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from omfa import evaluate, predict
from omfa.components import Category, TaskKind
from omfa.evaluation.pairs import Item
from omfa.evaluation.predictions import (
    Batch,
    Input,
    TryOnModel,
    Wishes,
    alike,
    check_has,
    has,
    make_batch,
    repainted,
    wishes_of,
)
from omfa.records.labels import Part
from omfa.records.prepared import PortraitRef, PoseRef, Record, RecordError, read_records
from tests.records.writing import write_records


class Repainter:
    """A system of twenty lines: it paints the garments' colours into the mask, brighter above the hips."""

    try_on_needs = frozenset({Input.PHOTO, Input.GARMENTS, Input.MASK, Input.KEYPOINTS})
    try_on_takes: frozenset[Input] = frozenset()

    def try_on(self, batch: Batch) -> list[Image.Image]:
        made = []
        for i, (photo, mask, points) in enumerate(zip(batch.photos, batch.masks, batch.keypoints, strict=True)):
            pixels = np.array(Image.open(photo).convert("RGB"))
            rows = np.arange(len(pixels))[:, None].repeat(pixels.shape[1], 1)
            above = rows < points[[8, 11], 1].mean()
            for category, pictures in batch.garments.items():
                cloth = np.array(Image.open(pictures[i]).convert("RGB")).reshape(-1, 3)
                where = mask & {"upper": above, "lower": ~above}.get(category, mask)
                pixels[where] = cloth[(cloth < 250).any(1)].mean(0)
            made.append(Image.fromarray(pixels))
        return made


REPAINTER: TryOnModel = Repainter()  # mypy agrees that it is one


def test_a_system_that_never_heard_of_omfa_is_predicted_and_judged(records: Path, tmp_path: Path, capsys) -> None:
    folder = shutil.copytree(records, tmp_path / "records")
    every = read_records(folder)
    bare = dataclasses.replace(every[2], keypoints=None)
    write_records(folder, [bare if r.id == bare.id else r for r in every])
    call = ["--records", str(folder), "--task", "try_on", "--class-path", "tests.evaluation.test_predictions.Repainter"]
    assert predict.main([*call, "--out", str(tmp_path / "made"), "--batch", "3"]) == 1
    said = capsys.readouterr()
    assert said.err.splitlines() == [f"failed: {bare.id}: no keypoints; name a file of them in the record"]
    made = sorted(p.stem for p in (tmp_path / "made").glob("*.png"))
    assert made == sorted(r.id for r in every if r.id != bare.id)

    told = ["run", "--records", str(folder), "--predictions", str(tmp_path / "made"), "--out", str(tmp_path / "scores")]
    assert evaluate.main(told) == 1
    results = json.loads((tmp_path / "scores" / "results.json").read_text())
    assert results["scored"] == 7 and [p["key"] for p in results["problems"]] == [bare.id]
    assert {"psnr", "psnr_garment", "palette_error", "silhouette_iou"} <= set(results["metrics"])
    assert results["metrics"]["psnr"]["value"] > 12  # what is not under the mask is the photo
    assert predict.main([*call[:2], "--task", "try_off", *call[4:], "--out", str(tmp_path / "off")]) == 2
    assert "Repainter is no TryOffModel" in capsys.readouterr().err


def everything(records: Path, tmp_path: Path) -> tuple[Path, list[Record]]:
    """The drawn records with all that a record can have; the first has a portrait."""
    folder = Path(shutil.copytree(records, tmp_path / "all"))
    made = []
    for record in read_records(folder):
        worn = tuple(dataclasses.replace(g, mask=f"masks/{g.category}.png") for g in record.garments)
        for g in worn:
            (folder / "masks").mkdir(exist_ok=True)
            cv2.imwrite(str(folder / f"masks/{g.category}.png"), np.full((64, 48), 255, np.uint8))
        made.append(dataclasses.replace(record, garments=worn))
    other = next(r for r in made if r.person_id == made[0].person_id and r.outfit_id != made[0].outfit_id)
    made[0] = dataclasses.replace(made[0], portrait=PortraitRef(other.file_name, other.id))
    write_records(folder, made)
    return folder, read_records(folder)


def batch_of(folder: Path, item: Item, *needs: Input) -> Batch:
    return make_batch(folder, [item], Wishes(frozenset(needs), frozenset()), [torch.Generator()])


def test_which_photo_a_try_on_gets(records: Path, tmp_path: Path) -> None:
    folder, every = everything(records, tmp_path)
    portrait, plain = every[0], every[1]
    assert portrait.portrait is not None

    def photo(item: Item, *more: Input) -> str:
        return batch_of(folder, item, Input.PHOTO, *more).photos[0].relative_to(folder).as_posix()

    assert photo(Item(portrait)) == photo(Item(portrait, donor=every[5])) == portrait.portrait.path
    assert photo(Item(portrait), Input.MASK) == photo(Item(portrait), Input.PARTS) == portrait.file_name
    assert photo(Item(plain)) == plain.file_name
    assert photo(Item(portrait, portrait.garments[0].category)) == portrait.file_name
    with pytest.raises(RecordError, match=f"{plain.id}: no portrait"):
        batch_of(folder, Item(plain), Input.PORTRAIT)


def test_unpaired_garments_and_caption_are_the_donors_and_all_else_the_persons(records: Path, tmp_path: Path) -> None:
    folder, every = everything(records, tmp_path)
    person, donor = every[1], every[6]
    wanted = [
        Input.GARMENTS,
        Input.GARMENT_MASKS,
        Input.CAPTION,
        Input.FACE,
        Input.POSE_MAP,
        Input.KEYPOINTS,
        Input.PARTS,
    ]
    batch = batch_of(folder, Item(person, donor=donor), *wanted)
    assert batch.captions == (donor.caption,) and set(batch.garments) == {g.category for g in donor.garments}
    assert {p[0] for p in batch.garments.values()} == {(folder / g.path).resolve() for g in donor.garments}
    assert all(mask[0].all() and mask[0].dtype == bool for mask in batch.garment_masks.values())
    assert person.face is not None and batch.faces == ((folder / person.face.path).resolve(),)
    assert batch.parts[0].shape == (64, 48) and batch.keypoints[0].shape == (18, 3)
    assert not batch.photos and not batch.masks and not batch.poses


def test_a_record_says_everything_it_lacks_at_once() -> None:
    bare = Item(Record("a", "test", "p", "o", "a.png"))
    assert has(bare) == {Input.PHOTO}
    with pytest.raises(RecordError) as error:
        check_has(bare, Wishes(frozenset(Input), frozenset()))
    assert str(error.value).startswith("a: no portrait") and str(error.value).count(";") > 10
    check_has(bare, Wishes(frozenset({Input.PHOTO}), frozenset(Input)))


def test_items_of_a_batch_have_the_same_inputs(records: Path) -> None:
    first = read_records(records)[0]
    faceless, upper = dataclasses.replace(first, face=None), dataclasses.replace(first, garments=first.garments[:1])
    wishes = Wishes(frozenset({Input.GARMENTS}), frozenset({Input.FACE}))
    groups = {alike(Item(r), wishes) for r in (first, faceless, upper)}
    assert len(groups) == 3 and alike(Item(first), wishes) == alike(Item(dataclasses.replace(first, id="b")), wishes)
    poseless = dataclasses.replace(first, pose=PoseRef())
    assert alike(Item(first), wishes) == alike(Item(poseless), wishes)  # nobody asked for the pose


def test_a_damaged_input_is_named(records: Path, tmp_path: Path) -> None:
    folder, every = everything(records, tmp_path)
    (folder / "keypoints/0.json").write_text("{")
    with pytest.raises(RecordError, match=r"keypoints/0\.json: no keypoints"):
        batch_of(folder, Item(every[0]), Input.KEYPOINTS)
    cv2.imwrite(str(folder / f"parts/{every[1].id}.png"), np.zeros((10, 10), np.uint8))
    with pytest.raises(ValueError, match=f"{every[1].id}: no part map of 48x64"):
        batch_of(folder, Item(every[1]), Input.MASK)


@pytest.mark.parametrize("categories", [{Category.UPPER}, {Category.LOWER}, {Category.DRESS}])
def test_the_mask_covers_the_clothes_and_spares_the_head(categories: set[Category]) -> None:
    parts = np.zeros((120, 80), np.uint8)
    for part, top in ((Part.HAIR, 0), (Part.FACE, 10), (Part.UPPER, 30), (Part.LEFT_ARM, 50), (Part.PANTS, 70)):
        parts[top : top + 20, 20:60] = part
    parts[90:110, 20:60], parts[110:, 20:60] = Part.LEFT_LEG, Part.SHOES
    mask = repainted(parts, categories)
    upper, lower = Category.LOWER not in categories, Category.UPPER not in categories
    assert mask[parts == Part.UPPER].all() == mask[parts == Part.LEFT_ARM].all() == upper
    assert mask[parts == Part.PANTS].all() == mask[parts == Part.LEFT_LEG].all() == lower
    assert not mask[np.isin(parts, (Part.HAIR, Part.FACE))].any() and not mask[:, :10].any()


class Cheat:
    try_off_needs = frozenset({Input.GARMENTS})
    try_off_takes: frozenset[Input] = frozenset()

    def try_off(self, batch: Batch) -> list[Image.Image]:
        return []


class Vague(Repainter):
    try_on_needs: Any = frozenset({"hat"})


@pytest.mark.parametrize(
    ("model", "task", "words"),
    [
        (Cheat, TaskKind.TRY_OFF, "asked for the garment"),
        (Cheat, TaskKind.TRY_ON, "Cheat is no TryOnModel"),
        (Vague(), TaskKind.TRY_ON, "try_on_needs and try_on_takes"),
    ],
)
def test_what_is_no_system_is_told_how_to_be_one(model: object, task: TaskKind, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        wishes_of(model, task)


def test_every_input_has_its_field() -> None:
    fields: Mapping[str, object] = Batch.__dataclass_fields__
    assert {i.value for i in Input} <= set(fields)
