"""Predicted standings against independent answers: cameras, paddings, mirrors, and the wardrobe's exact bodies."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from data_prep.standings.garment_standing import HELD_OUT, drawn
from data_prep.wardrobe.synthetic import Sample, make_outfit
from data_prep.wardrobe.views import Shop, shop_picture
from omfa.bodies.body import Body, load_body
from omfa.bodies.named_poses import MIRROR, mirror_parameters
from omfa.bodies.parameters import BodyParameters
from omfa.bodies.placing import project
from omfa.bodies.predicted_standing import (
    REACH_WEIGHTS,
    STAND_WEIGHTS,
    Kind,
    Stand,
    framing,
    garment_standing,
    load_standing,
    stand_in,
    standing_off,
)
from omfa.bodies.standing import ARMS, standing
from omfa.bodies.surface import NoDraft

SIZE = (160, 120)


@lru_cache(maxsize=1)
def body() -> Body:
    return load_body()


def pixels(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 127.5 - 1


def joints(params: BodyParameters) -> np.ndarray:
    """(22, 2) pixels."""
    return project(body().posed(params).joints[0].numpy()[:22], params.K)


@lru_cache(maxsize=1)
def shops() -> list[tuple[Shop, Kind]]:
    """Garments that the network never saw, two of each category."""
    found: dict[str, list[tuple[Shop, Kind]]] = {"upper": [], "lower": [], "dress": []}
    for index in range(60):
        worn, rng = drawn(HELD_OUT, index)
        if len(same := found[worn.category.value]) < 2:
            same.append((shop_picture(worn, SIZE, rng), worn.category.value))  # type: ignore[arg-type]
    return [s for same in found.values() for s in same]


@lru_cache(maxsize=1)
def worn() -> list[Sample]:
    return [make_outfit(23, k, SIZE, 1)[0] for k in range(3)]


# ---------------------------------------------------------------------------------------------------- a standing


@pytest.mark.parametrize("size", [(256, 192), (100, 300)])
def test_a_stand_is_its_parameters(size: tuple[int, int]) -> None:
    stand = Stand(arms=70, legs=3, yaw=-8, scale=0.9, x=0.05, y=-0.2)
    params = stand.params(body(), size)
    assert np.allclose(
        [*vars(Stand.of(body(), params)).values()], [*vars(stand).values()], atol=0.05
    )  # degrees, mostly
    middle = (np.array(size[::-1]) - 1) / 2
    assert np.allclose(joints(params)[0], middle + np.array([0.05, -0.2]) * size[0], atol=0.01)
    shin = (
        joints(stand.params(body(), size))[[4, 7]],
        joints(Stand(70, 3, -8, 1.8, 0.05, -0.2).params(body(), size))[[4, 7]],
    )
    once, twice = (np.linalg.norm(a - b) for a, b in shin)
    assert twice == pytest.approx(2 * once, rel=0.05)  # a little less or more: the camera is nearer


def test_the_categorys_own_is_a_stand() -> None:
    for kind in ("upper", "lower", "dress"):
        fixed = standing(body(), kind, SIZE)  # type: ignore[arg-type]
        stand = Stand.of(body(), fixed)
        assert stand.arms == pytest.approx(ARMS) and abs(stand.yaw) < 1e-3
        assert np.abs(joints(stand.params(body(), SIZE)) - joints(fixed)).max() < 0.01


def test_the_mirrored_stand_is_the_mirrored_body() -> None:
    stand = Stand(arms=40, legs=2, yaw=9, scale=0.7, x=0.1, y=0.0)
    there, here = joints(stand.params(body(), SIZE)), joints(stand.mirrored().params(body(), SIZE))
    assert np.abs(mirrored(there) - here).max() < 0.05


def mirrored(at: np.ndarray) -> np.ndarray:
    """Pixels of joints in the mirrored picture."""
    return (at * [-1, 1] + [SIZE[1] - 1, 0])[np.array(MIRROR)[:22]]


# ---------------------------------------------------------------------------------------------------- a shop picture


def test_held_out_garments_have_their_body() -> None:
    off, fixed = [], []
    for shop, kind in shops():
        true = joints(shop.params)
        inside = [k for k, (x, y) in enumerate(true.round().astype(int)) if 0 <= x < SIZE[1] and 0 <= y < SIZE[0]]
        on = [k for k in inside if shop.mask[tuple(true[k].round().astype(int)[::-1])]]
        for guess, into in ((garment_standing(pixels(shop.picture), kind), off), (standing(body(), kind, SIZE), fixed)):
            into += (np.linalg.norm(joints(guess) - true, axis=1)[on] / SIZE[0]).tolist()
    assert np.mean(off) < 0.03 and np.mean(off) < np.mean(fixed) / 2


def test_a_padded_picture_has_the_same_body_moved() -> None:
    left, right, top, bottom = 30, 11, 7, 44
    for shop, kind in shops():
        alone = joints(garment_standing(pixels(shop.picture), kind))
        padded = F.pad(pixels(shop.picture), (left, right, top, bottom), value=1.0)
        moved = joints(garment_standing(padded, kind))
        on = [0, 1, 2, 4, 5] if kind == "lower" else [0, 1, 2, 3, 6, 9, 12]  # farther off, perspective counts
        assert np.abs(moved - alone - [left, top])[on].max() < 1.0, kind


def test_a_mirrored_picture_has_the_mirrored_body() -> None:
    for shop, kind in shops():
        alone = joints(garment_standing(pixels(shop.picture), kind))
        flipped = joints(garment_standing(pixels(shop.picture).flip(-1), kind))
        assert np.abs(flipped - mirrored(alone)).max() < 1.0


def test_a_garment_whiter_than_its_paper_has_the_same_body() -> None:
    """As in real shops: white cloth on light grey; the networks have seen no such thing."""
    far = []
    for shop, kind in shops():
        white, dark = (torch.where(torch.from_numpy(shop.mask), c, 0.92).expand(3, -1, -1) for c in (1.0, -0.2))
        far.append(np.abs(joints(garment_standing(white, kind)) - joints(garment_standing(dark, kind))).mean())
    assert np.mean(far) < 0.03 * SIZE[0]


def test_the_same_picture_larger() -> None:
    shop, kind = shops()[0]
    large = F.interpolate(pixels(shop.picture)[None], scale_factor=3.0)[0]
    once, thrice = garment_standing(pixels(shop.picture), kind), garment_standing(large, kind)
    assert np.abs((joints(thrice) - 1) / 3 - joints(once))[:16].max() < 1.5
    asked = garment_standing(pixels(shop.picture), kind, (320, 240))
    assert asked.image_size == (320, 240)
    assert np.abs((joints(asked) - 0.5) / 2 - joints(once)).max() < 0.01


@pytest.mark.parametrize("level", [-1.0, 0.3, 1.0])
def test_a_picture_of_nothing_has_a_body_still(level: float) -> None:
    params = garment_standing(torch.full((3, *SIZE), level), "upper")
    assert params.image_size == SIZE and np.isfinite(params.transl).all()


def test_a_body_that_cant_be_is_the_categorys() -> None:
    """A garment on a carpet, a thin strip, a sliver of a picture; and one that can be is what was predicted."""
    rng = np.random.default_rng(0)
    carpet = pixels(rng.integers(60, 160, (*SIZE, 3)).astype(np.uint8))
    strip, sliver = torch.ones(3, *SIZE), torch.ones(3, 4, 400)
    strip[:, 75:79, 12:106], sliver[:, 1:3, 100:300] = -0.7, -0.7
    for picture in (carpet, strip, sliver):
        found, how = stand_in(picture, "upper")
        fixed = standing(body(), "upper", (picture.shape[1], picture.shape[2]))
        assert how.startswith("category: ") and np.allclose(joints(found), joints(fixed))
    shop, kind = shops()[0]
    found, how = stand_in(pixels(shop.picture), kind, (80, 60))
    assert how == "predicted" and found.image_size == (80, 60)
    assert np.allclose(found.transl, garment_standing(pixels(shop.picture), kind).transl)


# ---------------------------------------------------------------------------------------------------- off a photo


def test_a_framing_holds_its_garment() -> None:
    for size, reach in (((256, 192), (-0.5, 0.1, 0.2)), ((256, 192), (-0.5, 0.1, 0.6)), ((100, 300), (-0.1, 0.9, 0.3))):
        params = framing(reach, body(), size)
        top, bottom, half = reach
        pelvis = params.transl + body().rest_joints[0]
        ends = project(pelvis + np.array([[-half, top, -0.12], [half, bottom, -0.12]]), params.K)
        free = np.concatenate([ends[0], np.array(size[::-1]) - 1 - ends[1]]) / [*size[::-1], *size[::-1]]
        assert 0.02 < free.min() < 0.08, (size, reach, free)  # one pair of sides binds
        assert free[0] == pytest.approx(free[2], abs=0.01) and free[1] == pytest.approx(free[3], abs=0.01)


def test_a_photo_says_where_its_garment_would_hang() -> None:
    off, fixed = [], []
    for sample in worn():
        for category, truth in sample.garment_params.items():
            kind: Kind = category  # type: ignore[assignment]
            torso = joints(truth)[[0, 1, 2, 4, 5, 9, 12]]
            chosen = standing_off(pixels(sample.person), sample.params, kind, SIZE)
            assert Stand.of(body(), chosen).arms == pytest.approx(ARMS)
            off.append(np.abs(joints(chosen)[[0, 1, 2, 4, 5, 9, 12]] - torso).mean())
            fixed.append(np.abs(joints(standing(body(), kind, SIZE))[[0, 1, 2, 4, 5, 9, 12]] - torso).mean())
    assert np.mean(off) < np.mean(fixed)


def test_a_mirrored_photo_hangs_alike() -> None:
    sample = worn()[0]
    there = standing_off(pixels(sample.person), sample.params, "upper", SIZE)
    here = standing_off(pixels(sample.person).flip(-1), mirror_parameters(sample.params), "upper", SIZE)
    assert np.abs(joints(there) - joints(here)).max() < 2.0


# ---------------------------------------------------------------------------------------------------- the door


def test_the_networks_are_small_and_loaded_once() -> None:
    assert load_standing() is load_standing()
    assert STAND_WEIGHTS.stat().st_size < 600_000 and REACH_WEIGHTS.stat().st_size < 600_000
    assert not any(p.requires_grad for net in load_standing() for p in net.parameters())


def test_what_is_no_picture_is_refused() -> None:
    photo, params = torch.zeros(3, *SIZE), standing(body(), "upper", SIZE)
    with pytest.raises(ValueError, match="hat"):
        garment_standing(photo, "hat")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="finite"):
        garment_standing(photo + float("nan"), "upper")
    with pytest.raises(ValueError, match="finite"):
        standing_off(photo[:2], params, "upper", SIZE)
    with pytest.raises(ValueError, match="no or not finite"):
        garment_standing(torch.ones(3, 0, 5), "upper")
    with pytest.raises(ValueError, match="from 200 to 200"):
        garment_standing(torch.full((3, *SIZE), 200, dtype=torch.uint8), "upper")
    with pytest.raises(ValueError, match="above 0"):
        Stand(50, 0, 0, -1.0, 0, 0).params(body(), SIZE)
    away = Stand(50, 0, 0, 0.5, 9.0, 0.0).params(body(), SIZE)
    with pytest.raises(NoDraft, match="outside"):
        standing_off(photo, away, "upper", SIZE)
