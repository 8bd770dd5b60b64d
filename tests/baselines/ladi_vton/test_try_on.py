from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from omfa.baselines.ladi_vton.try_on import LaDIVTON
from omfa.bodies.body import load_body
from omfa.bodies.named_poses import NAMED_POSES
from omfa.bodies.placing import place
from omfa.components import Category, TaskKind
from omfa.evaluation.predictions import Batch, Input, wishes_of
from omfa.records.labels import ATR, table
from omfa.records.prepared import RecordError
from tests.baselines.ladi_vton import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LaDIVTON:
    folder = tmp_path_factory.mktemp("model")
    tiny.tiny_pipeline(folder).save_pretrained(folder / "saved")
    return LaDIVTON.from_pretrained(str(folder / "saved")).to("cpu")


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    photo, labels, points = tiny.person()
    photo.save(tmp_path / "photo.png")
    tiny.garment().save(tmp_path / "garment.png")
    return Batch(
        keys=("a", "b"),
        category=None,
        generators=tuple(torch.Generator().manual_seed(n) for n in (1, 2)),
        steps=1,
        photos=(tmp_path / "photo.png",) * 2,
        garments={c: (tmp_path / "garment.png",) * 2 for c in (Category.UPPER, Category.LOWER)},
        parts=(table(ATR)[labels],) * 2,
        keypoints=(points.astype(np.float32),) * 2,
    )


def test_the_evaluator_knows_what_it_wants() -> None:
    wishes = wishes_of(LaDIVTON, TaskKind.TRY_ON)
    assert Input.PARTS in wishes.needs and {Input.KEYPOINTS, Input.POSE} <= wishes.takes
    assert LaDIVTON.sampler_defaults("anything") == (50, 7.5)


def test_an_outfit_is_put_on_each_person(model: LaDIVTON, batch: Batch) -> None:
    seen: list[int] = []
    handle = model.pipe.tps.register_forward_pre_hook(lambda _m, given: seen.append(len(given[0])))
    one, two = model.try_on(batch)
    handle.remove()
    assert one.size == two.size == (tiny.SIZE[1], tiny.SIZE[0]) and one != two
    assert seen == [2, 2]  # both people at once, the lower garment and then the upper one
    generators = (torch.Generator().manual_seed(2),)
    second = {n: getattr(batch, n)[1:] for n in ("keys", "photos", "parts", "keypoints")}
    garments = {c: paths[1:] for c, paths in batch.garments.items()}
    fresh = replace(batch, **second, garments=garments, generators=generators)
    (alone,) = model.try_on(fresh)
    assert np.abs(np.asarray(alone).astype(int) - np.asarray(two)).max() <= 1


def test_a_body_serves_in_place_of_keypoints(model: LaDIVTON, batch: Batch) -> None:
    body = place(load_body(), NAMED_POSES["standing"], image_size=(256, 192))
    assert len(model.try_on(replace(batch, keypoints=(), poses=(body, body)))) == 2
    for strange in (
        replace(body, body_hash="another"),
        place(load_body(), NAMED_POSES["standing"], image_size=(99, 99)),
    ):
        with pytest.raises(RecordError, match=r"^b: body parameters of"):
            model.try_on(replace(batch, keypoints=(), poses=(body, strange)))
    with pytest.raises(RecordError, match=r"^a: neither keypoints"):
        model.try_on(replace(batch, keypoints=()))


def test_a_garment_the_rules_do_not_know_is_a_problem_of_its_record(tmp_path: Path, batch: Batch) -> None:
    pipe = tiny.tiny_pipeline(tmp_path)
    pipe.register_to_config(rules="vitonhd")
    with pytest.raises(RecordError, match=r"^a: no rule of vitonhd for lower"):
        LaDIVTON(pipe).try_on(batch)
