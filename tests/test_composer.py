"""The composer: what weights and layers come to, whatever was learned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from omfa.composer import KINDS, LAYERS, Composer, Composition, Given, given

SIZE = (48, 32)
OWN, DRAFT, PHOTO = range(len(LAYERS))


def tiny(size: tuple[int, int] = SIZE) -> Composer:
    """One whose every weight counts: nothing is left at zero."""
    torch.manual_seed(0)
    made = Composer((8, 12), size)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return made.eval()


def layers(
    batch: int = 2, size: tuple[int, int] = SIZE, *, photo: bool = True, decoded: bool = True, seed: int = 1
) -> Given:
    """Noise, with a draft that is valid in half of the pixels."""
    g = torch.Generator().manual_seed(seed)

    def noise() -> Tensor:
        return torch.rand(batch, 3, *size, generator=g) * 2 - 1

    draft, surface, kept, made = noise(), noise(), noise(), noise()
    valid = torch.rand(batch, 1, *size, generator=g) < 0.5
    return given(draft, valid, surface, made if decoded else None, kept if photo else None)


def told(composer: Composer, layer: int) -> Composer:
    """One that takes everything from a layer, where it is there."""
    last = composer.last[2]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()
        last.bias[4 * (3 + layer) : 4 * (4 + layer)] = 200
        last.bias[-4:] = 200  # all of a shop picture is garment
    return composer


@pytest.mark.parametrize("size", [SIZE, (96, 64)])  # looked at as it is, and from twice as far away
def test_weights_sum_to_one_and_are_zero_where_a_layer_is_not_there(size: tuple[int, int]) -> None:
    given_ = layers(size=size)
    has = torch.tensor([True, False])
    given_ = given(*given_[:3], decoded=given_.decoded, photo=given_.photo, has_photo=has)
    weights = tiny().compose(given_, ["upper", "person"]).weights
    assert torch.allclose(weights.sum(1), torch.ones(2, *size), atol=1e-6)
    assert (weights[:, DRAFT : DRAFT + 1][given_.valid == 0] == 0).all()
    assert (weights[:, DRAFT : DRAFT + 1][given_.valid == 1] > 0).all()
    assert (weights[1, PHOTO] == 0).all() and (weights[0, PHOTO] > 0).all()


def test_the_picture_is_the_sum_of_its_layers() -> None:
    given_ = layers()
    made: Composition = tiny()(given_, torch.tensor([0, 1]))
    stack = torch.stack([made.own, given_.draft, given_.photo], 1)
    together = (made.weights[:, :, None] * stack).sum(1)
    assert torch.allclose(made.picture, made.matte * together + (1 - made.matte), atol=1e-6)
    assert (made.matte[0] == 1).all(), "a person is no cut-out"
    assert 0 < made.matte[1].min() < made.matte[1].max() < 1


def test_a_shop_picture_is_cut_out_onto_white() -> None:
    composer, given_ = tiny(), layers(1)
    with torch.no_grad():
        composer.last[2].weight.zero_()
        composer.last[2].bias[-4:] = -200
    assert (composer.compose(given_, ["upper"]).picture == 1).all()
    person, nobody = composer.compose(given_, ["person"]), composer.compose(given_, ["lower"])
    assert (person.picture < 1).any() and (nobody.matte == 0).all()


def test_own_colours_come_from_the_photo_and_from_its_skin() -> None:
    """Arms that were covered have the colour of other skin; what stuck out beside the body, that of the wall."""
    composer = told(Composer((8, 12), SIZE), OWN)
    skin, wall = torch.tensor([0.5, 0.1, -0.2]), torch.tensor([-0.4, 0.6, 0.3])
    photo = wall[None, :, None, None].expand(1, 3, *SIZE).clone()
    photo[..., :16, :16] = skin[:, None, None]
    likeness = torch.zeros(1, 3, *SIZE)
    likeness[:, 2, :16, :16] = 1
    nothing = torch.zeros(1, 1, *SIZE, dtype=torch.bool)
    given_ = given(torch.zeros(1, 3, *SIZE), nothing, photo, photo=photo, likeness=likeness)
    for number, colour, where in ((-2, skin, (..., slice(None))), (2 + 4, wall, (..., slice(24, 48), slice(None)))):
        with torch.no_grad():
            composer.spread.weight.zero_()
            composer.spread.bias.zero_()
            composer.spread.bias[number] = 200
        made = composer.compose(given_, ["person"]).picture[where]
        assert torch.allclose(made, colour[None, :, None, None].expand_as(made), atol=0.02)
        given_none = given(given_.draft, nothing, photo)
        assert torch.isfinite(composer.compose(given_none, ["person"]).picture).all()


def test_what_is_absent_is_as_if_it_were_in_no_example() -> None:
    composer, mixed = tiny(), layers()
    other = torch.full_like(mixed.photo, torch.nan)  # what an example without a photo holds does not matter
    other[0] = mixed.photo[0]
    has = torch.tensor([True, False])
    draft = torch.where(mixed.valid > 0, mixed.draft, 7.0)
    both = given(draft, mixed.valid, mixed.surface, None, other, has_photo=has)
    together = composer.compose(both, ["lower", "dress"]).picture
    alone = given(mixed.draft[1:], mixed.valid[1:], mixed.surface[1:])
    assert torch.allclose(together[1:], composer.compose(alone, ["dress"]).picture, atol=1e-5)
    with_photo = given(mixed.draft[:1], mixed.valid[:1], mixed.surface[:1], None, mixed.photo[:1])
    assert torch.allclose(together[:1], composer.compose(with_photo, ["lower"]).picture, atol=1e-5)
    assert not torch.allclose(composer.compose(alone, ["dress"]).picture, composer.compose(
        given(*layers()[:3], decoded=mixed.decoded), ["dress"] * 2).picture[1:], atol=1e-3)  # fmt: skip


@pytest.mark.parametrize("size", [SIZE, (45, 30), (96, 64)])
def test_told_to_copy_it_copies_bit_for_bit(size: tuple[int, int]) -> None:
    given_ = layers(size=size)
    made = told(tiny(), PHOTO).compose(given_, ["person"] * 2)
    assert (made.weights[:, PHOTO] == 1).all()
    assert torch.equal(made.picture, given_.photo)
    made = told(tiny(), DRAFT).compose(given_, ["upper"] * 2)
    where = (given_.valid > 0).expand_as(made.picture)
    assert torch.equal(made.picture[where], given_.draft[where])


def test_own_colours_without_a_word_are_what_lies_around() -> None:
    composer = told(Composer((8, 12), SIZE), OWN)
    with torch.no_grad():
        composer.spread.weight.zero_()
        composer.spread.bias.zero_()
    red = torch.tensor([0.9, -0.8, -0.7])[None, :, None, None]
    valid = torch.zeros(1, 1, *SIZE, dtype=torch.bool)
    valid[..., 16:32, 8:24] = True
    noise = torch.rand(1, 3, *SIZE)
    made = composer.compose(given(torch.where(valid, red, noise), valid, noise), ["upper"])
    middle = made.picture[..., 20:28, 12:20]
    assert torch.allclose(middle, red.expand_as(middle), atol=0.02)
    decoded = torch.rand(1, 3, *SIZE) * 2 - 1
    with torch.no_grad():
        composer.spread.bias[-1] = 200  # all of it from what was decoded
    assert torch.allclose(composer.compose(given(noise, valid, noise, decoded), ["upper"]).picture, decoded, atol=1e-6)
    lost = composer.compose(given(noise, valid, noise), ["upper"]).picture  # there is none: mixed from the rest
    assert torch.isfinite(lost).all()


def test_a_size_that_does_not_fit_is_padded_by_its_rim() -> None:
    composer, given_ = tiny(), layers(size=(45, 30))
    made = composer.compose(given_, ["person", "upper"])
    assert made.picture.shape == (2, 3, 45, 30)
    by_hand = Given(*(F.pad(x, [0, 2, 0, 3], mode="replicate") for x in given_))
    padded = composer.compose(by_hand, ["person", "upper"])
    assert torch.equal(made.picture, padded.picture[..., :45, :30])


def test_a_large_picture_keeps_its_detail() -> None:
    size = (4 * SIZE[0], 4 * SIZE[1])
    given_ = layers(size=size)
    composer = tiny()
    small = Given(*(F.interpolate(x, SIZE, mode="bilinear", antialias=True) for x in given_))
    made = composer.compose(given_, ["person"] * 2)
    assert made.picture.shape[-2:] == size
    copied = told(composer, PHOTO).compose(given_, ["person"] * 2).picture
    assert torch.equal(copied, given_.photo)
    assert small.photo.std() < 0.5 * copied.std()  # noise that a smaller picture could not hold


def test_saved_and_read_again_it_is_the_same(tmp_path: Path) -> None:
    composer, given_ = tiny(), layers()
    composer.save_pretrained(tmp_path)
    assert (tmp_path / "diffusion_pytorch_model.safetensors").is_file()
    again = Composer.from_pretrained(tmp_path)
    assert tuple(again.config.size) == SIZE
    kinds = ["dress", "person"]
    assert torch.equal(again.compose(given_, kinds).picture, composer.compose(given_, kinds).picture)


def test_gradients_reach_every_weight() -> None:
    composer = tiny()
    composer(layers(4), torch.arange(len(KINDS))).picture.square().mean().backward()
    still = [n for n, p in composer.named_parameters() if p.grad is None or not (p.grad != 0).any()]
    assert not still


def test_wrong_calls_are_told() -> None:
    composer, given_ = tiny(), layers()
    with pytest.raises(ValueError, match="shoes"):
        composer.compose(given_, ["shoes", "upper"])
    with pytest.raises(ValueError, match="1 kinds for 2"):
        composer.compose(given_, ["upper"])
    with pytest.raises(ValueError, match=r"photo is \(1, 3"):
        given(*given_[:3], photo=given_.photo[:1])


def test_layers_that_are_no_pictures_are_refused() -> None:
    draft, valid = torch.zeros(1, 3, *SIZE), torch.ones(1, 1, *SIZE, dtype=torch.bool)
    with pytest.raises(ValueError, match="must be"):
        given(draft[0], valid[0], draft[0])
    with pytest.raises(ValueError, match="draft: numbers that are not finite"):
        tiny().compose(given(draft * torch.nan, valid, draft), ["upper"])
    assert tiny().compose(given(draft * torch.nan, ~valid, draft), ["upper"]).picture.isfinite().all()


def test_learning_what_was_decoded_leaves_all_else_as_it_was() -> None:
    composer, with_, without = tiny(), layers(photo=False), layers(decoded=False)
    before = [composer.compose(g, ["person"] * 2).picture for g in (with_, without)]
    composer.train_decoded_alone()
    optimizer = torch.optim.AdamW([p for p in composer.parameters() if p.requires_grad], 0.02, weight_decay=0.0)
    for _ in range(5):
        (composer(with_, torch.zeros(2, dtype=torch.long)).picture - 1).square().mean().backward()
        composer(without, torch.ones(2, dtype=torch.long)).picture.mean().backward()  # has nothing to teach
        optimizer.step()
        optimizer.zero_grad()
    after = [composer.compose(g, ["person"] * 2).picture for g in (with_, without)]
    assert (after[0] - 1).abs().mean() < (before[0] - 1).abs().mean() - 0.01
    assert torch.equal(after[1], before[1])


def test_tasks_in_which_decodes_are_seen() -> None:
    composer = Composer((8, 12), SIZE, decoded=["try_on"])
    asked = [(KINDS[0], False), (KINDS[0], True), ("upper", False)]
    assert [composer.sees_decoded(*a) for a in asked] == [True, False, False]
    for wrong in (True, ["on"]):
        with pytest.raises(ValueError, match="try_off, try_on, keep"):
            Composer((8, 12), SIZE, decoded=wrong)
