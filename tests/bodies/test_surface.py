"""Drafts against independent answers: a picture from itself, from another view, from a mirror, from a wrong body."""

import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import Tensor

from data_prep.wardrobe.synthetic import Sample, make_outfit
from omfa.bodies.body import PARTS, Body, load_body
from omfa.bodies.drafts import KEPT, Shown, draft_person
from omfa.bodies.named_poses import NAMED_POSES, mirror_parameters
from omfa.bodies.paper import off_paper
from omfa.bodies.parameters import BodyParameters
from omfa.bodies.placing import place, project, turned
from omfa.bodies.standing import standing
from omfa.bodies.surface import Draft, NoDraft, Source, covered, draft, head_mask, see, surface_map
from omfa.components import ACCESSORIES
from omfa.records.labels import LABEL_OF, Label

SIZE = (160, 120)
FRONT = 40  # degrees of yaw within which pictures count as seen from the front


@lru_cache(maxsize=1)
def body() -> Body:
    return load_body()


@lru_cache(maxsize=1)
def outfits() -> list[list[Sample]]:
    return [make_outfit(21, k, SIZE, 2) for k in range(4)]


def pixels(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 127.5 - 1


def person(sample: Sample) -> Source:
    return Source(pixels(sample.person), see(body(), sample.params), torch.from_numpy(sample.person_mask))


def shop(sample: Sample, category: str, layer: int = 0) -> Source:
    mask = torch.from_numpy(sample.garment_masks[category])
    return Source(pixels(sample.garments[category]), see(body(), sample.garment_params[category]), mask, layer)


def psnr(made: Draft, sample: Sample) -> float:
    where = made.valid & torch.from_numpy(sample.person_mask)
    error = (made.picture - pixels(sample.person))[:, where] / 2
    return float(-10 * error.square().mean().log10())


def near_the_front() -> list[tuple[Sample, Sample]]:
    views = [[s for s in outfit if abs(s.record.view_yaw or 0) < FRONT] for outfit in outfits()]
    return [(v[0], v[1]) for v in views if len(v) > 1]


# ---------------------------------------------------------------------------------------------------- right answers


def test_a_picture_drafted_from_itself_is_the_picture() -> None:
    for outfit in outfits():
        for sample in outfit:
            source = person(sample)
            made = draft(source.seen, [source])
            error = (made.picture - source.picture)[:, made.valid].abs() * 127.5
            assert error.median() <= 2, sample.record.id
            assert made.valid[torch.from_numpy(sample.person_mask)].float().mean() > 0.9, sample.record.id
            assert (made.picture[:, ~made.valid] == 0).all()


def test_another_view_of_the_outfit_is_drafted_better_than_by_wrong_bodies() -> None:
    right, posed, swapped = [], [], []
    for a, b in near_the_front():
        source, target = person(a), see(body(), b.params)
        right.append(psnr(draft(target, [source]), b))
        other = turned(a.params, 60)
        posed.append(psnr(draft(target, [replace(source, seen=see(body(), other))]), b))
        swapped.append(psnr(draft(target, [replace(source, seen=see(body(), mirror_parameters(a.params)))]), b))
    assert len(right) >= 3
    assert np.mean(right) > np.mean(posed) + 3, (right, posed)
    assert np.mean(right) > np.mean(swapped) + 2, (right, swapped)


def test_shop_pictures_dress_the_person() -> None:
    """Better than if another body stood in them: the category's, or one that is turned or of another size."""

    def dressed(sample: Sample, wrong: Callable[[str, BodyParameters], BodyParameters] | None = None) -> Draft:
        sources = [shop(sample, c, k) for k, c in enumerate(sample.garments)]
        if wrong is not None:
            bodies = [wrong(c, sample.garment_params[c]) for c in sample.garments]
            sources = [replace(s, seen=see(body(), p)) for s, p in zip(sources, bodies, strict=True)]
        return draft(see(body(), sample.params), sources)

    right: list[float] = []
    gains: dict[str, list[float]] = {"fixed": [], "turned": [], "larger": []}
    for sample in (outfit[0] for outfit in outfits()):
        made, cloth = dressed(sample), torch.from_numpy(np.isin(sample.labels, [4, 5, 6]))
        assert made.valid[cloth].float().mean() > 0.5, sample.record.id
        right.append(psnr(made, sample))
        others: dict[str, Callable[[str, BodyParameters], BodyParameters]] = {
            "fixed": lambda c, _: standing(body(), c, SIZE),  # type: ignore[arg-type]
            "turned": lambda _, p: turned(p, 40),
            "larger": lambda _, p: replace(p, transl=p.transl * [1, 1, 0.75]),
        }
        for name, wrong in others.items():
            gains[name].append(right[-1] - psnr(dressed(sample, wrong), sample))
    assert np.mean(right) > 18, right
    assert np.mean(gains["fixed"]) > 4 and np.mean(gains["turned"]) > 2 and np.mean(gains["larger"]) > 2, gains


def test_clothes_are_where_they_may_be_and_faces_and_hands_are_not() -> None:
    limbs = {name: 1 + k for k, name in enumerate(PARTS)}
    for sample in (s for outfit in outfits() for s in outfit):
        seen, labels = see(body(), sample.params), sample.labels
        for garment in sample.record.garments:
            where = covered(seen, body(), [garment.category.value]).numpy()
            assert where[labels == LABEL_OF[garment.category]].mean() > 0.94  # a hood reaches the face
            assert where[labels == Label.FACE].mean() < 0.05 if (labels == Label.FACE).any() else True
            hands = np.isin(sample.parts, [limbs["left_hand"], limbs["right_hand"]]) & (labels == Label.SKIN)
            assert not hands.any() or where[hands].mean() < 0.2
    assert covered(seen, body(), ["upper", "bag"]).all()  # who knows where a bag hangs


def test_a_face_comes_along_and_nothing_else_of_its_picture() -> None:
    """The person from their garments and the face of another day: the head is nearer to the truth than grey."""
    for sample in (o[0] for o in outfits()):
        masks = {c: torch.from_numpy(mask) for c, mask in sample.garment_masks.items()}
        garments = [Shown(pixels(g), sample.garment_params[c], masks[c]) for c, g in sample.garments.items()]
        size = sample.person.shape[:2]
        bare = draft_person(body(), sample.params, size, garments)
        face = Shown(pixels(sample.face), sample.face_params)
        made = draft_person(body(), sample.params, size, garments, face=face)
        same = (made.picture == bare.picture).all(0)[bare.valid]
        assert float(same.float().mean()) > 0.98  # clothes lie over it; gaps between the two are closed anew
        new, seen = made.valid & ~bare.valid, see(body(), sample.params)
        on_head = head_mask(seen, body())
        assert int(new.sum()) > 20 and float((new & on_head).sum()) > 0.9 * float(new.sum())
        skin = new & (seen.fragments.face >= 0)
        truth = pixels(sample.person)[:, skin]
        assert (made.picture[:, skin] - truth).abs().median() < 0.6 * truth.abs().median()


def test_the_mirrored_picture_gives_the_mirrored_draft() -> None:
    for a, b in near_the_front()[:2]:
        source = person(a)
        assert source.mask is not None
        flipped = Source(source.picture.flip(-1), see(body(), mirror_parameters(a.params)), source.mask.flip(-1))
        made = draft(see(body(), b.params), [source])
        mirrored = draft(see(body(), mirror_parameters(b.params)), [flipped])
        assert (made.valid != mirrored.valid.flip(-1)).float().mean() < 0.01
        both = made.valid & mirrored.valid.flip(-1)
        assert (made.picture - mirrored.picture.flip(-1))[:, both].abs().median() * 127.5 < 2


def test_left_is_left() -> None:
    """The person's left half is red, their right half blue, and so it stays on another pose from another side."""
    params = place(body(), NAMED_POSES["a_pose"], image_size=SIZE)
    painted = torch.full((3, *SIZE), -1.0)
    painted[0, :, SIZE[1] // 2 :] = 1  # a person who faces the camera: their left is the picture's right
    painted[2, :, : SIZE[1] // 2] = 1
    mask = torch.ones(SIZE, dtype=torch.bool)
    target = place(body(), NAMED_POSES["walking"], yaw=25, image_size=SIZE)
    made = draft(see(body(), target), [Source(painted, see(body(), params), mask)])
    x = project(body().posed(target).joints[0].numpy(), target.K).round().astype(int)
    names = body().joint_names
    for side, channel in (("left", 0), ("right", 2)):
        u, v = x[names.index(f"{side}_elbow")]
        assert made.valid[v, u] and made.picture[channel, v, u] > 0.9


# ---------------------------------------------------------------------------------------------------- how sources meet


def flat(colour: float, seen_from: float = 0, **more: object) -> Source:
    params = place(body(), NAMED_POSES["a_pose"], yaw=seen_from, image_size=SIZE)
    mask = torch.ones(SIZE, dtype=torch.bool)
    return Source(torch.full((3, *SIZE), colour), see(body(), params), mask, **more)  # type: ignore[arg-type]


def test_outer_layers_hide_inner_ones_and_nothing_else() -> None:
    target = flat(0).seen
    half = torch.zeros(SIZE, dtype=torch.bool)
    half[: SIZE[0] // 2] = True
    outer, inner = replace(flat(0.5), mask=half), flat(-0.5, layer=1)
    for sources in ([outer, inner], [inner, outer]):
        made = draft(target, sources)
        assert made.picture[:, : SIZE[0] // 2 - 2][:, made.valid[: SIZE[0] // 2 - 2]].unique().tolist() == [0.5]
        assert made.picture[:, SIZE[0] // 2 + 2 :][:, made.valid[SIZE[0] // 2 + 2 :]].unique().tolist() == [-0.5]


def test_the_squarer_view_counts_for_more() -> None:
    made = draft(flat(0).seen, [flat(0.8), flat(-0.8, seen_from=70)])
    chest = project(
        body().posed(place(body(), NAMED_POSES["a_pose"], image_size=SIZE)).joints[0, 9].numpy(), flat(0).seen.K
    )
    u, v = chest.round().astype(int)
    assert made.picture[0, v, u] > 0.6


def test_a_back_says_nothing_of_a_front() -> None:
    made = draft(flat(0).seen, [flat(1.0, seen_from=180)], reach=0)
    assert made.valid.float().mean() < 0.1 * draft(flat(0).seen, [flat(1.0)], reach=0).valid.float().mean()


def test_wide_clothes_come_along() -> None:
    gains = []
    for sample in (outfit[0] for outfit in outfits()):
        sources = [shop(sample, c, k) for k, c in enumerate(sample.garments)]
        cloth, target = torch.from_numpy(np.isin(sample.labels, [4, 5, 6])), see(body(), sample.params)
        covered = [draft(target, sources, reach).valid[cloth].float().mean() for reach in (0.0, 0.2)]
        gains.append(float(covered[1] - covered[0]))
    assert np.mean(gains) > 0.05 and min(gains) >= 0


def test_any_size() -> None:
    sample = outfits()[0][0]
    small, large = (
        draft(see(body(), sample.params, size), [shop(sample, c) for c in sample.garments]).valid.float().mean()
        for size in (SIZE, (384, 288))
    )
    assert abs(float(small - large)) < 0.01


# ---------------------------------------------------------------------------------------------------- paper


def test_paper_is_what_reaches_in_from_the_rim() -> None:
    picture = torch.full((3, *SIZE), 1.0)
    picture[:, 50:100, 40:90] = 0.5  # a hem
    picture[:, 55:95, 45:85] = 1.0  # of a white shirt
    assert torch.equal(off_paper(picture), torch.nn.functional.pad(torch.ones(50, 50), (40, 30, 50, 60)).bool())
    assert off_paper(torch.rand(3, *SIZE)).all()


def test_paper_may_be_shaded_padded_and_as_light_as_cloth() -> None:
    """What real shop pictures are: a shaded ground laid into another shape, white cloth with specks of the paper's."""
    height, width = 400, 300
    shirt = torch.zeros(height, width, dtype=torch.bool)
    shirt[120:300, 80:220] = True
    shade = torch.linspace(0.82, 0.95, width).expand(3, height, width)
    assert torch.equal(off_paper(torch.where(shirt, 0.0, shade)), shirt)
    padded = torch.where(shirt, 0.0, shade)
    padded[:, :40] = padded[:, -40:] = 1.0
    assert torch.equal(off_paper(padded), shirt)
    white = torch.where(shirt, 1.0, torch.full((3, height, width), 0.9))
    white[:, 119:210, 100:103] = 0.9  # a crack that leads in
    assert (off_paper(white) == shirt).float().mean() > 0.999
    white[:, 119:210, 100:120] = 0.9  # a gap
    assert not off_paper(white)[150:200, 102:118].any()
    assert off_paper(torch.ones(3, height, width)).sum() == 0


def test_the_rim_of_cloth_is_left_to_the_paper() -> None:
    """Half of a rim's pixels is paper: looked up, they would be a white seam around the garment."""
    size = (800, 600)
    seen = see(body(), outfits()[0][0].params, size)
    red = torch.tensor([0.8, -0.9, -0.9])[:, None, None]
    cloth = torch.nn.functional.avg_pool2d((seen.fragments.face >= 0)[None].float(), 3, 1, 1)
    made = draft(seen, [Source(cloth * red + 1 - cloth, seen)])
    assert made.valid.float().mean() > 0.5 * cloth.mean()
    assert ((made.picture - red).abs().amax(0)[made.valid] < 0.05).float().mean() > 0.99  # holes that it encloses count


def test_without_a_mask_paper_is_no_garment() -> None:
    sample = outfits()[0][0]
    target = see(body(), sample.params)
    for category in sample.garments:
        given = shop(sample, category)
        with_mask, without = draft(target, [given]), draft(target, [replace(given, mask=None)])
        assert (with_mask.valid != without.valid).float().mean() < 0.02


# ---------------------------------------------------------------------------------------------------- no draft


def test_no_draft_and_why() -> None:
    params = place(body(), NAMED_POSES["standing"], image_size=SIZE)
    with pytest.raises(NoDraft, match="were made with body"):
        see(body(), replace(params, body_hash="another"))
    with pytest.raises(NoDraft, match="behind the camera"):
        see(body(), replace(params, transl=params.transl * [1, 1, -1]))
    with pytest.raises(NoDraft, match="outside the picture"):
        see(body(), replace(params, transl=params.transl + np.array([50, 0, 0], np.float32)))
    with pytest.raises(NoDraft, match="empty"):
        replace(flat(0), mask=torch.zeros(SIZE))
    with pytest.raises(NoDraft, match="convert one"):
        draft(replace(flat(0).seen, body_hash="another"), [flat(0)])
    assert not draft(flat(0).seen, []).valid.any()


def test_pictures_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="its body was seen at"):
        replace(flat(0), picture=torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match="the picture is"):
        replace(flat(0), mask=torch.ones(8, 8))
    with pytest.raises(ValueError, match="not finite"):
        replace(flat(0), picture=torch.full((3, *SIZE), torch.nan))
    with pytest.raises(ValueError, match=r"from 0 to 255; give them in \[-1, 1\]"):
        replace(flat(0), picture=torch.arange(256.0).expand(3, SIZE[0], -1)[..., : SIZE[1]] * 255 / (SIZE[1] - 1))
    with pytest.raises(ValueError, match="give one"):
        off_paper(torch.ones(1, 3, *SIZE))
    params = place(body(), NAMED_POSES["standing"], image_size=SIZE)
    with pytest.raises(ValueError, match="under a draft of"):
        draft_person(body(), params, SIZE, [], portrait=torch.zeros(3, 8, 8))


def test_words_and_numbers_that_mean_nothing_are_refused() -> None:
    for reach in (float("nan"), float("inf"), -1.0):
        with pytest.raises(ValueError, match="0 or more"):
            draft(flat(0).seen, [flat(0)], reach)
        with pytest.raises(ValueError, match="0 or more"):
            covered(flat(0).seen, body(), ["upper"], reach)
    with pytest.raises(ValueError, match="uper are not known; known are upper, lower, dress, bag, hat, shoes"):
        covered(flat(0).seen, body(), ["uper"])
    assert all(covered(flat(0).seen, body(), [accessory.value]).all() for accessory in ACCESSORIES)


def test_a_body_is_seen_once_and_forgotten_with_its_parameters() -> None:
    params = place(body(), NAMED_POSES["standing"], image_size=SIZE)
    mask = torch.ones(SIZE, dtype=torch.bool)
    shown = Shown(torch.zeros(3, *SIZE), params, mask)
    seen = weakref.ref(shown.source(body()).seen)
    assert shown.source(body()).seen is seen()
    assert Shown(torch.zeros(3, 80, 60), params).source(body()).seen.size == (80, 60)
    del params, shown
    assert seen() is None
    several = [place(body(), NAMED_POSES["standing"], image_size=(8, 6)) for _ in range(KEPT + 1)]
    first = weakref.ref(Shown(torch.zeros(3, 8, 6), several[0]).source(body()).seen)
    for one in several[1:]:
        Shown(torch.zeros(3, 8, 6), one).source(body())
    assert first() is None  # so many at once, whoever holds on to parameters


# ---------------------------------------------------------------------------------------------------- maps, standing


def test_the_same_place_has_the_same_colour_in_any_pose() -> None:
    colours = []
    for pose, yaw in (("standing", 0), ("lunge", 25)):
        params = place(body(), NAMED_POSES[pose], yaw=yaw, image_size=(512, 384))
        seen, picture = see(body(), params), surface_map(body(), params)
        rim = torch.nn.functional.max_pool2d((seen.fragments.face < 0).float()[None], 3, 1, 1)[0]  # mixed with black
        v, u = torch.nonzero(rim == 0).T
        vertex = seen.faces[seen.fragments.face[v, u], seen.fragments.bary[v, u].argmax(-1)]
        colours.append(dict(zip(vertex.tolist(), picture[v, u].astype(int), strict=True)))
    both = colours[0].keys() & colours[1].keys()
    change = np.array([np.abs(colours[0][k] - colours[1][k]).max() for k in both])
    assert len(both) > 1000 and np.median(change) <= 3 and np.quantile(change, 0.95) <= 16
    assert np.array([colours[0][k] for k in both]).std(0).min() > 20  # and other places others


@pytest.mark.parametrize("category", ["upper", "lower", "dress"])
def test_standing_bodies_fill_the_picture_with_their_garment(category: str) -> None:
    params = standing(body(), category, (256, 192))  # type: ignore[arg-type]
    posed = body().posed(params)
    y = project(posed.joints[0].numpy(), params.K)[:, 1]
    names = body().joint_names
    neck, pelvis, knee, ankle = (y[names.index(n)] for n in ("neck", "pelvis", "left_knee", "left_ankle"))
    top, bottom = {"upper": (neck, pelvis), "lower": (pelvis, ankle), "dress": (neck, knee)}[category]
    assert 0 <= top < bottom < 256 and bottom - top > 0.45 * 256
    assert np.abs(params.betas).max() == 0 and params.image_size == (256, 192)


def test_an_unknown_category_is_refused() -> None:
    with pytest.raises(ValueError, match="upper, lower, dress"):
        standing(body(), "hat", SIZE)  # type: ignore[arg-type]
