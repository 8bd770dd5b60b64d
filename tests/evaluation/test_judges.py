"""The judges: patterns of garments wherever they lie in the picture, outlines of people sharp and blurred."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from data_prep.__main__ import main as prepare
from data_prep.wardrobe.fields import noise
from data_prep.wardrobe.outfits import draw_outfit
from data_prep.wardrobe.patterns import NAMED_COLOURS, Pattern, draw_palette, draw_pattern, like_skin, motif_mask
from data_prep.wardrobe.views import shop_picture
from omfa.evaluation.judges import KINDS, SIDE, garment_crops, pattern_kinds, pattern_logits, person_outline
from omfa.evaluation.pairs import Item
from omfa.evaluation.scoring import truth_masks
from omfa.images import read_trusted
from omfa.records.prepared import read_records


def shop(index: int, size: tuple[int, int] = (128, 96)) -> tuple[Tensor, Tensor, str]:
    worn = draw_outfit(np.random.default_rng([30_000, 2, index])).worn[0]
    picture, mask, _ = shop_picture(worn, size)
    return torch.from_numpy(picture).permute(2, 0, 1) / 255, torch.from_numpy(mask)[None], worn.pattern.kind


def test_kinds_of_garments_never_seen() -> None:
    shops = [shop(i) for i in range(32)]
    guessed = pattern_kinds(torch.stack([s[0] for s in shops]), torch.stack([s[1] for s in shops]))
    assert np.mean([g == s[2] for g, s in zip(guessed, shops, strict=True)]) >= 0.85


def test_where_a_garment_lies_does_not_matter() -> None:
    image, mask, _ = shop(3)
    canvas, moved = torch.rand(3, 200, 150), torch.zeros(1, 200, 150, dtype=torch.bool)
    canvas[:, 40:168, 30:126], moved[:, 40:168, 30:126] = image, mask
    here, there = pattern_logits(image[None], mask[None]), pattern_logits(canvas[None], moved[None])
    assert torch.allclose(here, there, atol=1e-4)
    assert garment_crops(image[None], mask[None]).shape == (1, 3, SIDE, SIDE)


def test_an_empty_mask_means_the_whole_picture_and_wrong_shapes_are_refused() -> None:
    image = torch.rand(1, 3, 20, 30)
    none, full = torch.zeros(1, 1, 20, 30), torch.ones(1, 1, 20, 30)
    assert torch.equal(garment_crops(image, none), garment_crops(image, full))
    with pytest.raises(ValueError, match=r"\(B, 1, H, W\)"):
        garment_crops(image, torch.ones(1, 20, 30))


def test_people_of_the_wardrobe_are_found_even_when_blurred(tmp_path: Path) -> None:
    records = tmp_path / "wardrobe"
    assert prepare(["synthetic", "--records", "4", "--seed", "4321", "--size", "128x96", "--out", str(records)]) == 0
    scores = []
    for record in read_records(records):
        seen = read_trusted(records / record.file_name)[None] / 2 + 0.5
        size = (int(seen.shape[-2]), int(seen.shape[-1]))
        true = truth_masks(records, Item(record), size)["person"][None, None] > 0.5
        small = F.interpolate(seen, (size[0] // 3, size[1] // 3), mode="bilinear", antialias=True)
        blurred = F.interpolate(small, size, mode="bicubic").clamp(0, 1)
        for picture in (seen, blurred):
            found = person_outline(picture)
            assert found.dtype == torch.bool and found.shape == (1, 1, *size)
            scores.append(float((found & true).sum() / (found | true).sum()))
    assert sum(scores) / len(scores) > 0.88, scores


def test_other_shapes_are_refused_and_other_aspects_taken() -> None:
    assert person_outline(torch.rand(2, 3, 50, 90)).shape == (2, 1, 50, 90)
    with pytest.raises(ValueError, match="give"):
        person_outline(torch.rand(3, 50, 90))


def grid() -> np.ndarray:
    v, u = np.meshgrid(np.linspace(0.5, -0.5, 200), np.linspace(-0.4, 0.4, 160), indexing="ij")
    return np.stack([u.ravel(), v.ravel()], 1)


@pytest.mark.parametrize("kind", KINDS)
def test_patterns_show_their_colours_and_only_mixtures_of_them(kind: str) -> None:
    colours = ((0.9, 0.1, 0.1), (0.1, 0.2, 0.8))
    pattern = Pattern(kind, colours, ("red", "blue"), scale=0.2, motif="disc", place=(0.0, 0.25))
    uv = grid()
    seen = pattern.albedo(uv, uv[:, 1] < 0)
    assert seen.shape == (len(uv), 3)
    a, b = np.array(colours)
    t = ((seen - a) @ (b - a)) / ((b - a) @ (b - a))
    assert np.abs(seen - (a + t[:, None] * (b - a))).max() < 1e-5 and t.min() > -1e-5 and t.max() < 1 + 1e-5
    shares = (t < 0.1).mean(), (t > 0.9).mean()
    assert shares[0] > 0.05 and (kind == "plain" or shares[1] > 0.02)
    assert np.array_equal(seen, pattern.albedo(uv, uv[:, 1] < 0))


def test_stripes_repeat_with_their_period_and_run_where_they_should() -> None:
    pattern = Pattern("stripes", ((1.0, 1.0, 1.0), (0.0, 0.0, 0.0)), ("white", "black"), scale=0.08, angle=0.0)
    uv, none = grid(), np.zeros(160 * 200, bool)
    seen = pattern.albedo(uv, none)
    assert np.abs(seen - pattern.albedo(uv + np.array([0, 0.08]), none)).max() < 1e-3
    assert np.abs(seen - pattern.albedo(uv + np.array([0.013, 0]), none)).max() < 1e-6


def test_a_pattern_of_no_known_kind_or_too_few_colours_is_refused() -> None:
    with pytest.raises(ValueError, match="must be one of plain"):
        Pattern("zebra", ((0, 0, 0), (1, 1, 1)), ("black", "white"))
    with pytest.raises(ValueError, match="two colours"):
        Pattern("dots", ((0, 0, 0),), ("black",))


def test_palettes_are_told_apart_and_never_look_like_bare_skin() -> None:
    skin = (0.88, 0.70, 0.58)
    rng = np.random.default_rng(0)
    for _ in range(100):
        names, colours = draw_palette(rng, 2, skin)
        assert len(set(names)) == 2 and np.linalg.norm(np.subtract(*colours)) > 0.4
        assert not any(like_skin(c, skin) for c in colours)
    assert like_skin(NAMED_COLOURS["beige"], skin) and not like_skin(NAMED_COLOURS["navy"], skin)


def test_every_kind_comes_up_for_every_garment() -> None:
    rng = np.random.default_rng(0)
    for garment in ("t-shirt", "trousers", "skirt", "dress"):
        assert {draw_pattern(rng, garment, (-0.1, 0.4)).kind for _ in range(300)} == set(KINDS)


def test_prints_and_noise() -> None:
    for motif in ("letters", "star", "heart", "disc", "ring", "triangle", "bolt", "bars"):
        mask = motif_mask(motif, "AB")
        assert mask.shape == (128, 128) and 0.05 < mask.mean() < 0.8
        assert mask[0].max() == mask[:, 0].max() == 0
    u = np.linspace(0, 3, 4000)
    values = noise(5, u, 0.3 * u, 0.1)
    assert abs(values.mean()) < 0.4 and 0.5 < values.std() < 1.5
