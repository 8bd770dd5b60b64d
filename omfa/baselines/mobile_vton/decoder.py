"""The small decoder: SD3.5's latents to pixels with separable convolutions (SnapGen's).

``B`` batch, ``C`` channels, ``h w`` latents; pixels are 8 h x 8 w with four levels.
"""

from __future__ import annotations

from collections.abc import Sequence

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from omfa.baselines.mobile_vton.blocks import SepConv2d, Upsample, activation, conv3x3


class DecoderSepConv2d(nn.Module):
    """A separable convolution with norm and activation between its halves."""

    def __init__(self, channels: int, out: int, groups: int, act: str = "silu") -> None:
        super().__init__()
        self.dw_conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.act = activation(act)
        self.pw_conv = nn.Conv2d(channels, out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, out, h, w)."""
        return self.pw_conv(self.act(self.norm(self.dw_conv(x))))


class DecoderResnet(nn.Module):
    """Two separable convolutions, the second with a norm inside. (B, C, h, w) -> (B, out, h, w)."""

    def __init__(self, channels: int, out: int, expansion: float, groups: int, act: str = "silu") -> None:
        super().__init__()
        middle = int(expansion * max(channels, out))
        self.conv1 = SepConv2d(channels, middle)
        self.conv2 = DecoderSepConv2d(middle, out, groups, act)
        self.conv_shortcut = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Both convolutions, added to the input."""
        return self.conv_shortcut(x) + self.conv2(self.conv1(x))


class _Level(nn.Module):
    def __init__(self, resnets: Sequence[nn.Module], upsampler: nn.Module | None) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.upsamplers = None if upsampler is None else nn.ModuleList([upsampler])


class _Mid(nn.Module):
    def __init__(self, resnets: Sequence[nn.Module], attention: nn.Module | None) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = None if attention is None else nn.ModuleList([attention])


class SmallDecoder(ModelMixin, ConfigMixin):
    """Latents (B, in_channels, h, w), unscaled, to pixels (B, 3, H, W), about [-1, 1]. Runs in float32.

    The arguments are the keys of the published ``decoder.json``.

    Args:
        in_channels, out_channels: of latents and pixels.
        up_block_types: "DecoderUpBlock2D" for every level.
        block_out_channels: widths, of the pixels' level first.
        layers_per_blocks: resnets of every level, the latents' level first.
        norm_num_groups, act_fn: of norms and activations.
        conv_in_module, conv_out_module, upsample_conv_module: "SepConv2d" or "Conv2d".
        resnet_conv_module, upsample_module: their only kinds.
        resnet_middle_expansion: inner channels of a resnet in units of its width; None for 1.
        use_mid_block, mid_block_use_additional_resnet, mid_block_add_attention: what stands before the levels.
        backward_output_channels: whether each upsampler goes to the next level's width (the only kind).

    Raises:
        ValueError: a setting that is not known.
    """

    config_name = "decoder.json"

    @register_to_config
    def __init__(
        self,
        in_channels: int = 16,
        out_channels: int = 3,
        up_block_types: Sequence[str] = ("DecoderUpBlock2D",) * 4,
        block_out_channels: Sequence[int] = (64, 128, 256, 512),
        layers_per_blocks: Sequence[int] = (2, 2, 2, 2),
        norm_num_groups: int = 32,
        act_fn: str = "silu",
        conv_in_module: str = "SepConv2d",
        conv_out_module: str = "SepConv2d",
        resnet_conv_module: str = "DecoderSepConv2d",
        upsample_module: str = "Upsample2D",
        upsample_conv_module: str = "SepConv2d",
        resnet_middle_expansion: float | None = None,
        use_mid_block: bool = True,
        mid_block_use_additional_resnet: bool = True,
        mid_block_add_attention: bool = False,
        backward_output_channels: bool = True,
    ) -> None:
        super().__init__()
        kinds = {"resnet_conv_module": "DecoderSepConv2d", "upsample_module": "Upsample2D"}
        for name, known in (kinds | {"backward_output_channels": True}).items():
            if self.config[name] != known:
                raise ValueError(f"{name} {self.config[name]!r} is not known; {known!r} is")
        levels = len(block_out_channels)
        if list(up_block_types) != ["DecoderUpBlock2D"] * levels or len(layers_per_blocks) != levels:
            raise ValueError(
                f"up_block_types {list(up_block_types)} and layers_per_blocks {list(layers_per_blocks)} must be "
                f"{levels} of 'DecoderUpBlock2D' and {levels} numbers, for widths {list(block_out_channels)}"
            )
        widths = list(reversed(block_out_channels))

        def resnet(width: int) -> DecoderResnet:
            return DecoderResnet(width, width, resnet_middle_expansion or 1, norm_num_groups, act_fn)

        self.conv_in = conv3x3(conv_in_module, in_channels, widths[0])
        self.mid_block = None
        if use_mid_block:
            attention = Attention(
                widths[0],
                heads=1,
                dim_head=widths[0],
                bias=True,
                norm_num_groups=norm_num_groups,
                eps=1e-6,
                residual_connection=True,
            )
            resnets = [resnet(widths[0]) for _ in range(1 + mid_block_use_additional_resnet)]
            self.mid_block = _Mid(resnets, attention if mid_block_add_attention else None)
        self.up_blocks = nn.ModuleList(
            _Level(
                [resnet(width) for _ in range(layers)],
                Upsample(width, widths[i + 1], upsample_conv_module) if i + 1 < levels else None,
            )
            for i, (width, layers) in enumerate(zip(widths, layers_per_blocks, strict=True))
        )
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, widths[-1], eps=1e-6)
        self.conv_act = activation(act_fn)
        self.conv_out = conv3x3(conv_out_module, widths[-1], out_channels)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, in_channels, h, w) -> (B, out_channels, H, W)."""
        x = self.conv_in(latents)
        if self.mid_block is not None:
            first, *more = self.mid_block.resnets
            x = first(x)
            if self.mid_block.attentions is not None:
                x = self.mid_block.attentions[0](x)
            for resnet in more:
                x = resnet(x)
        for level in self.up_blocks:
            assert isinstance(level, _Level)
            for resnet in level.resnets:
                x = resnet(x)
            if level.upsamplers is not None:
                x = level.upsamplers[0](x)
        return self.conv_out(self.conv_act(self.conv_norm_out(x)))
