"""Every block, the pair and the decoders against the originals' numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn

from omfa.baselines.mobile_vton import rope
from omfa.baselines.mobile_vton.adapter import Resampler
from omfa.baselines.mobile_vton.blocks import (
    Attention,
    Downsample,
    Resnet,
    SepConv2d,
    Transformer2D,
    TransformerBlock,
    Upsample,
)
from omfa.baselines.mobile_vton.decoder import DecoderResnet, DecoderSepConv2d
from omfa.baselines.mobile_vton.light_unet import LightUNet
from tests.baselines.mobile_vton import golden
from tests.baselines.mobile_vton.rule import SQRT3, ruled, uniform

NORMS = [None, "layer_norm", "rms_norm", "l2", "fp32_layer_norm"]
TRANSFORMER = (32, 2, 2, 1, 20, True, 4)


def table() -> tuple[Tensor, Tensor]:
    n = golden.numbers("mobile_blocks")
    return n["rope_plain_h4_w3_d16.cos"], n["rope_plain_h4_w3_d16.sin"]


def block(name: str, module: nn.Module) -> tuple[nn.Module, Callable[[str], Tensor]]:
    """The module with a block's weights, and a look-up of the block's tensors."""
    n, prefix = golden.numbers("mobile_blocks"), f"{name}.w."
    module.load_state_dict({k.removeprefix(prefix): v for k, v in n.items() if k.startswith(prefix)})
    return module.eval(), lambda k: n[f"{name}.{k}"]


def test_the_rule_gives_the_numbers_it_is_told_to() -> None:
    assert uniform("ladi.tps:extractionA.model.0.weight", 2) == pytest.approx([0.43116099, 0.43659425], abs=1e-8)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("sepconv", SepConv2d(8, 12)),
        ("sepconv_s2", SepConv2d(8, 12, stride=2, bias=True)),
        ("decoder_sepconv", DecoderSepConv2d(8, 12, 4)),
        ("downsample", Downsample(8)),
        ("upsample", Upsample(8)),
        ("dec_resnet_same", DecoderResnet(16, 16, 2, 4)),
        ("dec_resnet_change", DecoderResnet(16, 24, 2, 4)),
        ("resampler_small", Resampler(24, 2, 3, 8, 4, 20, 40)),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
@torch.no_grad()
def test_plain_blocks(name: str, module: nn.Module) -> None:
    module, n = block(name, module)
    print(name, golden.compare(module(n("in.x")), n("out.y")))


@pytest.mark.parametrize(
    ("name", "sizes", "act"),
    [
        ("resnet_expand", (16, 24), "silu"),
        ("resnet_same", (16, 16), "silu"),
        ("resnet_hardswish", (24, 16), "hardswish"),
    ],
)
@torch.no_grad()
def test_resnets(name: str, sizes: tuple[int, int], act: str) -> None:
    module, n = block(name, Resnet(*sizes, expansion=2, time_width=20, groups=4, act=act))
    print(name, golden.compare(module(n("in.x"), n("in.temb")), n("out.y")))


@pytest.mark.parametrize("norm", NORMS)
@torch.no_grad()
def test_self_attention(norm: str | None) -> None:
    module, n = block(f"attn_self_{norm}", Attention(32, 2, 1, 16, qk_norm=norm))
    both = torch.cat([n("in.x"), n("in.extra_tokens")], 1)
    print(norm, golden.compare(module(n("in.x"), table=table()), n("out.y")))
    print(norm, "no positions", golden.compare(module(n("in.x")), n("out.y_norope")))
    print(norm, "24 tokens", golden.compare(module(both, table=table()), n("out.y_with_12_extra_tokens")))


@pytest.mark.parametrize("norm", [None, "rms_norm"])
@torch.no_grad()
def test_cross_attention(norm: str | None) -> None:
    module, n = block(f"attn_cross_{norm}", Attention(32, 2, 1, 16, 20, norm))
    print(norm, golden.compare(module(n("in.x"), n("in.ctx"), table()), n("out.y")))
    print(norm, "no positions", golden.compare(module(n("in.x"), n("in.ctx")), n("out.y_norope")))


@torch.no_grad()
def test_groups_of_heads_share_keys() -> None:
    module, n = block("attn_gqa", Attention(32, 4, 2, 16, qk_norm="rms_norm"))
    print(golden.compare(module(n("in.x"), table=table()), n("out.y")))


@torch.no_grad()
def test_time() -> None:
    module, n = block("time_embedding", TimestepEmbedding(32, 40, act_fn="silu"))
    sinusoid = Timesteps(32, flip_sin_to_cos=True, downscale_freq_shift=0)(n("in.t"))
    print(golden.compare(sinusoid, n("out.sinusoid")), golden.compare(module(n("out.sinusoid")), n("out.y")))


@torch.no_grad()
def test_garment_features_leave_and_enter_at_self_attention() -> None:
    module, n = block("block_selfattn", TransformerBlock(32, 2, 1, 20, True, 3, "rms_norm"))
    y, feature = module(n("in.x"), n("in.ctx"), table())
    print(golden.compare(y, n("out.y_garmentnet")), golden.compare(feature, n("out.garment_feature")))
    dressed, _ = module(n("in.x"), n("in.ctx"), table(), n("in.g1"))
    print(golden.compare(dressed, n("out.y_tryonnet_using_g1")))
    assert not torch.equal(y, dressed)


@torch.no_grad()
def test_blocks_without_self_attention_have_no_feature() -> None:
    module, n = block("block_crossonly", TransformerBlock(32, 2, 1, 20, False, 3, "rms_norm"))
    y, feature = module(n("in.x"), n("in.ctx"), table())
    assert feature is None
    print(golden.compare(y, n("out.y_garmentnet")), golden.compare(y, n("out.y_tryonnet_using_g1")))


@pytest.mark.parametrize("linear", [True, False])
@torch.no_grad()
def test_transformers(linear: bool) -> None:
    name = f"transformer2d_{'linear' if linear else 'conv'}"
    module, n = block(name, Transformer2D(*TRANSFORMER, linear=linear, ff_mult=3, qk_norm="rms_norm"))
    y, features = module(n("in.x"), n("in.ctx"), table())
    print(name, golden.compare(y, n("out.y_garmentnet")), len(features))
    for i, feature in enumerate(features):
        golden.compare(feature, n(f"out.feature{i}"))
    y, _ = module(n("in.x"), n("in.ctx"), table(), [n("in.g0"), n("in.g1")])
    print(name, "with features", golden.compare(y, n("out.y_tryonnet")))


@pytest.mark.parametrize("name", sorted(golden.numbers("mobile_rope")))
def test_position_tables_at_full_size(name: str) -> None:
    at = "sin" in name
    if name.startswith("nonsquare"):
        made = rope.axial(3, 5, 16)[at]
    elif name.startswith("square"):
        made = rope.axial(32, 32, 64)[at][::17]
    else:
        _, size, reso, every = name.replace("cos_every", "").replace("sin_every", "").split(".")
        rows, columns = map(int, size.split("x"))
        stage = int(reso[4]) - 1
        made = rope.tables(rows >> stage, columns >> stage, 64, 128 >> stage)[at][:: int(every)]
    print(golden.compare(made, golden.numbers("mobile_rope")[name]))


def test_positions_refuse_tokens_that_are_no_multiple() -> None:
    with pytest.raises(ValueError, match="13 tokens are no multiple of the 12"):
        rope.rotate(torch.zeros(1, 13, 16), table())


@torch.no_grad()
def test_full_size_adapter() -> None:
    module = Resampler()
    golden.filled(module, "mob.resampler_full", {k: list(v.shape) for k, v in module.state_dict().items()})
    y = module(ruled("mob:resfull.x", (2, 257, 768), -SQRT3, SQRT3))
    print(golden.compare(y[..., ::4], golden.numbers("mobile_resampler_full")["out.y_stride4"]))


@torch.no_grad()
def test_the_pair() -> None:
    n, (garment, tryon) = golden.numbers("mobile_pair"), golden.pair()
    for stage, (cos, sin) in enumerate(garment.positions(16, 12), 1):
        golden.compare(cos, n[f"garmentnet.w.reso{stage}_image_rotary_emb_cos"])
        golden.compare(sin, n[f"garmentnet.w.reso{stage}_image_rotary_emb_sin"])
    worn = garment(n["in.cloth"], n["in.timestep"], n["in.cloth_text"])
    print("garment", golden.compare(worn.sample, n["out.garmentnet_y"], golden.LOOSE))
    assert len(worn.features) == 10 and tryon.takes == 8
    print(
        "features", max(golden.compare(f, n[f"out.feature_{i:02d}"], golden.LOOSE) for i, f in enumerate(worn.features))
    )
    tokens = tryon.image_tokens(n["in.image_features"])
    print("tokens", golden.compare(tokens, n["out.image_tokens"]))
    twice = [torch.cat([f, f], 1) for f in worn.features]
    given = [torch.cat([torch.zeros_like(f), f]) for f in twice]
    y = tryon(n["in.tryon_x"], n["in.timestep"], torch.cat([n["in.tryon_text"], tokens], 1), given)
    print("tryon", golden.compare(y.sample, n["out.tryonnet_y"], golden.LOOSE))


@pytest.mark.parametrize("name", ["decoder_a", "decoder_b"])
@torch.no_grad()
def test_decoders(name: str) -> None:
    n = golden.numbers("mobile_decoder")
    print(name, golden.compare(golden.decoder(name)(n[f"{name}.in.z"]), n[f"{name}.out.y"], golden.LOOSE))


def full_size(name: str) -> tuple[LightUNet, dict[str, Any]]:
    about = golden.keys(f"mobile_keys_{name}_candidate")
    with torch.device("meta"):
        return LightUNet(**about["config"]), about


def test_names_shapes_and_counts_at_full_size() -> None:
    garment, about = full_size("garmentnet")
    shapes = {k: list(v.shape) for k, v in garment.state_dict().items()}
    assert shapes == about["keys"]
    tryon, other = full_size("tryonnet")
    wanted = {**about["keys"], **other["only_or_different_from_garmentnet"]}
    assert {k: list(v.shape) for k, v in tryon.state_dict().items()} == wanted
    counts = [sum(p.numel() for p in net.parameters()) for net in (garment, tryon)]
    assert counts == [413_516_832, 451_903_424]
    assert (garment.takes, tryon.takes) == (24, 24)


@torch.no_grad()
def test_any_size() -> None:
    _, tryon = golden.pair()
    context = torch.randn(1, 9, 40)
    for rows, columns in [(32, 12), (13, 9), (16, 16)]:
        y = tryon(torch.randn(1, 32, rows, columns), torch.tensor([500.0]), context)
        assert y.sample.shape == (1, 16, rows, columns) and y.sample.isfinite().all()


def test_settings_that_are_not_known_are_named() -> None:
    config = json.loads(json.dumps(golden.notes("mobile_pair")["garmentnet_config"]))
    for key, value, words in [
        ("up_block_types", ["UpBlock2D"], "must be 3 of"),
        ("mid_block_type", "Other", "mid_block_type 'Other' is not known"),
        ("down_block_qk_norm", "across_heads", "qk_norm 'across_heads' is not known"),
        ("attention_head_dim", [2, 3], "is for 2 stages"),
        ("conv_in_module", "Conv3d", "'SepConv2d' and 'Conv2d' are"),
    ]:
        with pytest.raises(ValueError, match=words):
            LightUNet(**{**config, key: value})
    _, tryon = golden.pair()
    with pytest.raises(ValueError, match="1 garment features for 8"):
        tryon(torch.zeros(1, 32, 32, 12), torch.tensor([1.0]), torch.zeros(1, 9, 40), [torch.zeros(1, 12, 64)])
