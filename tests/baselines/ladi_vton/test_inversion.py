from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from omfa.baselines.ladi_vton.inversion import (
    InversionAdapter,
    clip_pixels,
    encode_prompts,
    prompt,
    resize,
    token_ids,
)
from omfa.components import Category
from tests.baselines.ladi_vton.golden import CLOSE, fill, keys, read, shapes, tiny_text_encoder
from tests.conftest import make_tokenizer


def test_the_official_weights_have_a_place() -> None:
    with torch.device("meta"):
        network = InversionAdapter()
    assert shapes(network) == keys("inversion_adapter")
    assert sum(p.numel() for p in network.parameters()) == 136_360_704


@torch.no_grad()
def test_the_adapter_as_the_original() -> None:
    golden = read("inversion_adapter")
    network = fill(InversionAdapter(32, 48, 4, 128, 512), "ladi.inversion", gain=1.5)
    assert_close(network(golden["in.features"]), golden["out.word_embeddings"], **CLOSE)


@torch.no_grad()
def test_overwriting_as_the_original() -> None:
    golden, encoder = read("text_overwrite"), tiny_text_encoder()
    ids, words = golden["in.input_ids"], golden["in.word_embeddings"]
    assert_close(encode_prompts(encoder, ids, words), golden["out.last_hidden_state"], **CLOSE)
    assert not encoder.get_input_embeddings()._forward_hooks
    assert_close(encode_prompts(encoder, ids[1:2]), golden["out.last_hidden_state"][1:2], **CLOSE)  # no placeholder


def test_words_that_don_t_fit_are_refused() -> None:
    ids = torch.full((1, 77), 5)
    ids[0, 70] = 259
    with pytest.raises(ValueError, match="don't fit"):
        encode_prompts(tiny_text_encoder(), ids, torch.zeros(1, 16, 32))


def test_a_prompt_has_a_place_for_every_word(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path)
    ids = token_ids(tokenizer, [prompt(Category.DRESS, words=4)])
    assert (ids == tokenizer.convert_tokens_to_ids("$</w>")).sum() == 4
    assert prompt(Category.UPPER) == "a photo of a model wearing an upper body garment" + " $" * 16


@torch.no_grad()
def test_pixels_for_clip_as_the_original() -> None:
    golden = read("warp_path")
    cloth = golden["in.cloth"]
    values = resize(cloth / 2 + 0.5, (224, 224)).clamp(0, 1)
    assert_close(values[..., ::4, ::4], golden["out.clip_resized_224_stride4"], **CLOSE)
    seen, stored = clip_pixels(cloth)[..., ::4, ::4], golden["out.clip_pixel_values_stride4"]
    assert ((seen - stored).abs() > 1e-4).float().mean() < 1e-3  # rounding down may flip
    assert (seen - stored).abs().max() < 0.016
    exact = clip_pixels(cloth, eight_bit=False)[..., ::4, ::4]
    assert 0.01 < (exact - stored).abs().max() < 0.016
