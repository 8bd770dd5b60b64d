from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from omfa.baselines.ladi_vton.emasc import EMASC, decode, encode
from tests.baselines.ladi_vton.golden import BLOCKS, CLOSE, LOOSE, keys, read, shapes, tiny_emasc, tiny_vae


@pytest.mark.parametrize("kind", ["nonlinear", "linear"])
def test_the_official_weights_have_a_place(kind: str) -> None:
    with torch.device("meta"):
        network = EMASC(kind=kind)  # type: ignore[arg-type]
    assert shapes(network) == keys("emasc")[kind]


@torch.no_grad()
def test_as_the_original() -> None:
    golden, vae, emasc = read("vae_emasc"), tiny_vae(), tiny_emasc()
    moments, features = encode(vae, golden["in.image"])
    mean, log_variance = moments.chunk(2, 1)
    assert_close(mean, golden["out.posterior_mean"], **CLOSE)
    assert_close(log_variance.clamp(-30, 20), golden["out.posterior_logvar"], **CLOSE)
    assert features[1] is features[0]
    for place, name in enumerate(["1_stride4", "3_stride4", "4_stride4", "5"], 1):
        seen = features[place][..., ::4, ::4] if "stride" in name else features[place]
        assert_close(seen, golden[f"out.encoder_feature_{name}"], **CLOSE)
    adapted = emasc(features, golden["in.mask"])
    for place, feature in enumerate(adapted):
        name = f"out.masked_{place}"
        whole = name in golden
        seen = feature if whole else feature[..., ::4, ::4]
        assert_close(seen, golden[name if whole else f"{name}_stride4"], **CLOSE)
    assert_close(decode(vae, golden["in.z"], adapted), golden["out.decoded_emasc"], **LOOSE)
    assert_close(vae.decode(golden["in.z"]).sample, golden["out.decoded_plain"], **LOOSE)


@torch.no_grad()
def test_the_vae_is_left_as_it_was_even_after_an_error() -> None:
    golden, vae, emasc = read("vae_emasc"), tiny_vae(), tiny_emasc()
    _, features = encode(vae, golden["in.image"])
    with pytest.raises(RuntimeError):
        decode(vae, golden["in.z"], [f[..., 1:] for f in emasc(features, golden["in.mask"])])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in vae.modules())
    assert_close(vae.decode(golden["in.z"]).sample, golden["out.decoded_plain"], **LOOSE)


@torch.no_grad()
def test_nothing_comes_through_where_all_is_repainted() -> None:
    vae, emasc = tiny_vae(), tiny_emasc()
    z = torch.randn(1, 4, 4, 4, generator=torch.manual_seed(0))
    _, features = encode(vae, torch.rand(1, 3, 32, 32))
    assert_close(decode(vae, z, emasc(features, torch.ones(1, 1, 32, 32))), vae.decode(z).sample)


@torch.no_grad()
def test_linear_adds_nothing_at_first_and_folders_come_back(tmp_path: Path) -> None:
    _, features = encode(tiny_vae(), torch.rand(1, 3, 32, 32))
    emasc = EMASC(BLOCKS, "linear")
    assert all(not f.any() for f in emasc(features, torch.zeros(1, 1, 32, 32)))
    emasc.save_pretrained(tmp_path)
    assert (tmp_path / "diffusion_pytorch_model.safetensors").is_file()
    assert EMASC.from_pretrained(tmp_path).config.kind == "linear"


def test_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="'nonlinear' or 'linear'"):
        EMASC(kind="cubic")  # type: ignore[arg-type]
