"""The light UNet: GarmentNet and TryonNet are two sets of weights of it.

GarmentNet looks at the clean garment and hands out a feature at every self-attention; TryonNet takes them in at its
own. ``B`` batch, ``C`` latent channels, ``h w`` latents, ``N_s`` tokens of stage s, ``M`` context tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn

from omfa.baselines.mobile_vton.adapter import Resampler
from omfa.baselines.mobile_vton.blocks import Downsample, Resnet, Table, Transformer2D, Upsample, activation, conv3x3
from omfa.baselines.mobile_vton.rope import tables

PIXELS_PER_LATENT = 8
TRANSFORMER_BLOCKS = ("BasicTransformerBlockGarment", "BasicTransformerBlockTryOn")


@dataclass(frozen=True)
class LightUNetOutput:
    """What a pass gives.

    Args:
        sample: the prediction (B, out_channels, h, w).
        features: for TryonNet, (B, N_s, C_s) each, in the order in which it asks for them.
    """

    sample: Tensor
    features: tuple[Tensor, ...]


class _Stage(nn.Module):
    """Resnets, each with a transformer behind it or none, and a change of size at the end.

    Args:
        widths: channels in and out of each resnet.
        depth: transformer blocks behind each resnet; 0 for none.
        resnet, transformer: their other arguments.
    """

    def __init__(
        self, widths: Sequence[tuple[int, int]], depth: int, resnet: Mapping[str, Any], transformer: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(*width, **resnet) for width in widths)
        transformers = [Transformer2D(out, depth, **transformer) for _, out in widths if depth]
        self.attentions = nn.ModuleList(transformers) if depth else None
        self.downsamplers: nn.ModuleList | None = None
        self.upsamplers: nn.ModuleList | None = None

    def attend(self, i: int, x: Tensor, context: Tensor, table: Table | None, garment: Iterator[Tensor]) -> Any:
        """The transformer behind resnet ``i``, if there is one, with the next features from ``garment``."""
        return (x, []) if self.attentions is None else _attend(self.attentions[i], x, context, table, garment)


class _Mid(nn.Module):
    """A resnet, a transformer and perhaps a resnet."""

    def __init__(
        self, width: int, depth: int, resnets: int, resnet: Mapping[str, Any], transformer: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(width, width, **resnet) for _ in range(resnets))
        self.attentions = nn.ModuleList([Transformer2D(width, depth, **transformer)])


class LightUNet(ModelMixin, ConfigMixin):
    """A three-stage (or other) UNet of separable convolutions and multi-query attention with rotary positions.

    The arguments are the keys of the published ``config.json``. One value for a setting of stages stands for all of
    them; lists of ``up_block_*`` begin at the lowest resolution.

    Args:
        sample_size: side of the square whose position tables are resized to each shape.
        in_channels, out_channels: TryonNet 32 and 16 (noise and picture), GarmentNet 16 and 16.
        down_block_types, up_block_types: "CrossAttn..." has transformers, the other kind has not.
        block_out_channels: per stage.
        layers_per_block: resnets of a stage on the way down; one more on the way up.
        transformer_layers_per_block: blocks of a transformer, per stage.
        cross_attention_dim: width of the context.
        attention_head_dim: number of query heads per stage (the name is diffusers').
        use_linear_projection: see :class:`omfa.baselines.mobile_vton.blocks.Transformer2D`.
        norm_num_groups, norm_eps, act_fn, dropout: of the resnets.
        conv_in_module, conv_out_module: "SepConv2d" or "Conv2d".
        time_embedding_dim: None for four times the first stage's width.
        *_resnet_middle_expansion, *_kv_heads, *_ff_mult, *_use_self_attention, *_qk_norm: of each stage.
        mid_block_use_additional_resnet: a second resnet in the middle.
        use_rope: rotary positions.
        height, width: pixels of the picture that the network sees (TryonNet: two of them, one above the other), for
            which the position tables are kept; other sizes get theirs when they come.
        encoder_hid_dim_type: "ip_image_proj" for a Light-Adapter (TryonNet), None for none.
        encoder_type: image encoder of the adapter.
        adapter: sizes of the adapter (:class:`omfa.baselines.mobile_vton.adapter.Resampler`) where not the published.

    Raises:
        ValueError: a setting that is not known, or lists of different lengths.
    """

    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(
        self,
        sample_size: int = 128,
        in_channels: int = 16,
        out_channels: int = 16,
        down_block_types: Sequence[str] = ("CrossAttnDownBlock2D",) * 3,
        mid_block_type: str = "UNetMidBlock2DCrossAttn",
        up_block_types: Sequence[str] = ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels: Sequence[int] = (256, 512, 896),
        layers_per_block: int = 2,
        transformer_layers_per_block: int | Sequence[int] = (1, 2, 4),
        cross_attention_dim: int = 4096,
        attention_head_dim: int | Sequence[int] = (4, 8, 14),
        use_linear_projection: bool = False,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        act_fn: str = "silu",
        dropout: float = 0.0,
        conv_in_module: str = "SepConv2d",
        conv_out_module: str = "SepConv2d",
        time_embedding_dim: int | None = None,
        down_block_resnet_middle_expansion: float | None = None,
        mid_block_resnet_middle_expansion: float | None = None,
        up_block_resnet_middle_expansion: float | None = None,
        down_block_kv_heads: int | Sequence[int] | None = None,
        mid_block_kv_heads: int | None = None,
        up_block_kv_heads: int | Sequence[int] | None = None,
        down_block_ff_mult: int = 4,
        mid_block_ff_mult: int = 4,
        up_block_ff_mult: int = 4,
        down_block_use_self_attention: bool | Sequence[bool] = True,
        mid_block_use_self_attention: bool = True,
        up_block_use_self_attention: bool | Sequence[bool] = True,
        down_block_qk_norm: str | None = None,
        mid_block_qk_norm: str | None = None,
        up_block_qk_norm: str | None = None,
        mid_block_use_additional_resnet: bool = True,
        use_rope: bool = False,
        height: int = 1024,
        width: int = 768,
        encoder_hid_dim_type: str | None = None,
        encoder_type: str = "dinov2_base",
        transformer2d_model_type: str = "Transformer2DModel",
        transformer_block_type: str = "BasicTransformerBlockGarment",
        adapter: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        stages = len(block_out_channels)
        if transformer2d_model_type != "Transformer2DModel" or transformer_block_type not in TRANSFORMER_BLOCKS:
            raise ValueError(
                f"transformers {transformer2d_model_type!r} of {transformer_block_type!r} are not known; give "
                f"'Transformer2DModel' of one of {', '.join(TRANSFORMER_BLOCKS)}"
            )
        if mid_block_type != "UNetMidBlock2DCrossAttn":
            raise ValueError(f"mid_block_type {mid_block_type!r} is not known; give 'UNetMidBlock2DCrossAttn'")
        if encoder_hid_dim_type not in (None, "ip_image_proj"):
            raise ValueError(
                f"encoder_hid_dim_type {encoder_hid_dim_type!r} is not known; give 'ip_image_proj' or null"
            )
        widths, heads = block_out_channels, _each("attention_head_dim", attention_head_dim, stages)
        depths = _each("transformer_layers_per_block", transformer_layers_per_block, stages)
        down = _transformed("down_block_types", down_block_types, "CrossAttnDownBlock2D", "DownBlock2D", stages)
        up = _transformed("up_block_types", up_block_types, "CrossAttnUpBlock2D", "UpBlock2D", stages)
        time_width = time_embedding_dim or 4 * widths[0]

        def resnet(expansion: float | None) -> dict[str, Any]:
            shared = {"time_width": time_width, "groups": norm_num_groups, "eps": norm_eps}
            return shared | {"expansion": expansion or 1, "act": act_fn, "dropout": dropout}

        def transformer(stage: int, kv_heads: int | None, self_attention: bool, ff_mult: int, qk_norm: Any) -> Any:
            shared = {"context_width": cross_attention_dim, "groups": norm_num_groups, "linear": use_linear_projection}
            own = {"heads": heads[stage], "kv_heads": kv_heads or heads[stage], "ff_mult": ff_mult}
            return shared | own | {"self_attention": self_attention, "qk_norm": qk_norm}

        self.conv_in = conv3x3(conv_in_module, in_channels, widths[0])
        self.time_proj = Timesteps(widths[0], flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(widths[0], time_width)
        self.time_embedding.act = activation(act_fn)

        self_attention = _each("down_block_use_self_attention", down_block_use_self_attention, stages)
        shared_heads = _each("down_block_kv_heads", down_block_kv_heads, stages)
        self.down_blocks = nn.ModuleList()
        skips = [widths[0]]
        for s in range(stages):
            before = widths[max(s - 1, 0)]
            pairs = [(before, widths[s])] + [(widths[s], widths[s])] * (layers_per_block - 1)
            setting = transformer(s, shared_heads[s], self_attention[s], down_block_ff_mult, down_block_qk_norm)
            stage = _Stage(pairs, down[s] * depths[s], resnet(down_block_resnet_middle_expansion), setting)
            skips += [widths[s]] * layers_per_block
            if s < stages - 1:
                stage.downsamplers = nn.ModuleList([Downsample(widths[s])])
                skips.append(widths[s])
            self.down_blocks.append(stage)

        last = stages - 1
        self.mid_block = _Mid(
            widths[last],
            depths[last],
            1 + mid_block_use_additional_resnet,
            resnet(mid_block_resnet_middle_expansion),
            transformer(last, mid_block_kv_heads, mid_block_use_self_attention, mid_block_ff_mult, mid_block_qk_norm),
        )

        self_attention = _each("up_block_use_self_attention", up_block_use_self_attention, stages)
        shared_heads = _each("up_block_kv_heads", up_block_kv_heads, stages)
        self.up_blocks = nn.ModuleList()
        x = widths[last]
        for i, s in enumerate(reversed(range(stages))):
            pairs = []
            for _ in range(layers_per_block + 1):
                pairs.append((x + skips.pop(), widths[s]))
                x = widths[s]
            setting = transformer(s, shared_heads[i], self_attention[i], up_block_ff_mult, up_block_qk_norm)
            stage = _Stage(pairs, up[i] * depths[s], resnet(up_block_resnet_middle_expansion), setting)
            if s > 0:
                stage.upsamplers = nn.ModuleList([Upsample(widths[s])])
            self.up_blocks.append(stage)

        self.conv_norm_out = nn.GroupNorm(norm_num_groups, widths[0], norm_eps)
        self.conv_act = activation(act_fn)
        self.conv_out = conv3x3(conv_out_module, widths[0], out_channels)
        if encoder_hid_dim_type is not None:
            sizes = {"in_width": 768 if encoder_type == "dinov2_base" else 1536, "out_width": cross_attention_dim}
            self.encoder_hid_proj = Resampler(**{**sizes, **(adapter or {})})
        if use_rope:
            for s, (cos, sin) in enumerate(self._tables(height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT), 1):
                self.register_buffer(f"reso{s}_image_rotary_emb_cos", cos)
                self.register_buffer(f"reso{s}_image_rotary_emb_sin", sin)

    def _tables(self, rows: int, columns: int) -> list[Table]:
        """Position tables of every stage for so many latents."""
        c, made = self.config, []
        head_width = c.block_out_channels[0] // _each("", c.attention_head_dim, 1)[0]
        for s in range(len(c.block_out_channels)):
            # rounded up, as a convolution of stride 2 does it
            made.append(tables(-(-rows >> s), -(-columns >> s), head_width, c.sample_size >> s))
        return made

    def positions(self, rows: int, columns: int) -> list[Table | None]:
        """Position tables of every stage, from the buffers where they are of this size, else computed."""
        c, stages = self.config, range(1, len(self.config.block_out_channels) + 1)
        if not c.use_rope:
            return [None for _ in stages]
        if (rows, columns) == (c.height // PIXELS_PER_LATENT, c.width // PIXELS_PER_LATENT):
            return [tuple(getattr(self, f"reso{s}_image_rotary_emb_{k}") for k in ("cos", "sin")) for s in stages]
        like = self.reso1_image_rotary_emb_cos
        return [(cos.to(like), sin.to(like)) for cos, sin in self._tables(rows, columns)]

    @property
    def takes(self) -> int:
        """How many garment features a pass takes in, one for each self-attention."""
        return sum(m.features for m in self.modules() if isinstance(m, Transformer2D))

    def image_tokens(self, features: Tensor) -> Tensor:
        """Context tokens (B, Q, cross_attention_dim) that stand for a picture.

        Args:
            features: the image encoder's hidden states, last but one (B, P, width).
        """
        return self.encoder_hid_proj(features)

    def forward(
        self, sample: Tensor, timestep: Tensor, context: Tensor, garment: Sequence[Tensor] = ()
    ) -> LightUNetOutput:
        """One pass.

        Args:
            sample: (B, in_channels, h, w).
            timestep: 0 to 1000, (B) or (1).
            context: (B, M, cross_attention_dim): text, and behind it a picture's tokens.
            garment: features of the other network for this one's tokens (B, N_s, C_s); more than :attr:`takes` are
                left over, as the published pair does. Empty for none.

        Raises:
            ValueError: too few garment features.
        """
        if garment and len(garment) < self.takes:
            raise ValueError(f"{len(garment)} garment features for {self.takes} self-attentions: give one for each")
        table = self.positions(*sample.shape[-2:])
        time = self.time_proj(timestep.expand(len(sample))).to(sample.dtype)
        time = self.time_embedding(time)
        given, made = iter(garment), list[Tensor]()

        x = self.conv_in(sample)
        skips = [x]
        for s, stage in enumerate(self.down_blocks):
            assert isinstance(stage, _Stage)
            for i, resnet in enumerate(stage.resnets):
                x, features = stage.attend(i, resnet(x, time), context, table[s], given)
                made += features
                skips.append(x)
            if stage.downsamplers is not None:
                x = stage.downsamplers[0](x)
                skips.append(x)

        first, *more = self.mid_block.resnets
        x, features = _attend(self.mid_block.attentions[0], first(x, time), context, table[-1], given)
        for resnet in more:
            x = resnet(x, time)
        # With one resnet the published network hands the middle's features out twice, so those of the way up are
        # taken in later than where they come from, and the last ones never. Its weights expect that.
        made += features if more else [*features, *features]

        for i, stage in enumerate(self.up_blocks):
            assert isinstance(stage, _Stage)
            for j, resnet in enumerate(stage.resnets):
                x = resnet(torch.cat([x, skips.pop()], 1), time)
                x, features = stage.attend(j, x, context, table[-1 - i], given)
                made += features
            if stage.upsamplers is not None:
                x = stage.upsamplers[0](x, skips[-1].shape[-2:])
        return LightUNetOutput(self.conv_out(self.conv_act(self.conv_norm_out(x))), tuple(made))


def _attend(transformer: nn.Module, x: Tensor, context: Tensor, table: Table | None, garment: Iterator[Tensor]) -> Any:
    """A transformer with as many of the next garment features as it has places for them."""
    assert isinstance(transformer, Transformer2D)
    return transformer(x, context, table, list(islice(garment, transformer.features)))


def _each(name: str, value: Any, stages: int) -> list[Any]:
    """A setting of every stage, from one for all or from a list."""
    if not isinstance(value, Sequence):
        return [value] * stages
    if len(value) < stages:
        raise ValueError(f"{name} {list(value)} is for {len(value)} stages, and there are {stages}")
    return list(value)


def _transformed(name: str, kinds: Sequence[str], with_one: str, without: str, stages: int) -> list[bool]:
    """Which stages have transformers."""
    if len(kinds) != stages or not set(kinds) <= {with_one, without}:
        raise ValueError(f"{name} {list(kinds)} must be {stages} of {with_one!r} and {without!r}")
    return [kind == with_one for kind in kinds]
