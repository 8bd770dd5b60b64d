"""The blocks of the light UNet: separable convolutions, attention with few keys, and the door for garment features.

``B`` batch, ``C`` channels, ``h w`` latents of a stage, ``N`` = h w tokens, ``M`` context tokens, ``D`` a head's width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers.models.activations import get_activation
from diffusers.models.attention import FeedForward
from einops import rearrange
from torch import Tensor, nn

from omfa.baselines.mobile_vton.rope import rotate

Table = tuple[Tensor, Tensor]
"""Cosines and sines (N, D) of :mod:`omfa.baselines.mobile_vton.rope`."""
QKNorm = Literal["layer_norm", "fp32_layer_norm", "rms_norm", "l2"]


class SepConv2d(nn.Module):
    """A convolution in two: each channel for itself, then a 1x1 across channels. (B, C, h, w) -> (B, C', h', w')."""

    def __init__(self, channels: int, out: int, stride: int = 1, bias: bool = False) -> None:
        super().__init__()
        self.dw_conv = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels)
        self.pw_conv = nn.Conv2d(channels, out, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Both halves."""
        return self.pw_conv(self.dw_conv(x))


def activation(name: str) -> nn.Module:
    """An activation by its published name: silu, swish, hardswish, mish, gelu or relu.

    Raises:
        ValueError: another one.
    """
    return nn.Hardswish() if name == "hardswish" else get_activation(name)


def conv3x3(kind: str, channels: int, out: int, bias: bool = False) -> nn.Module:
    """A 3x3 convolution by its published name; ``bias`` is of a separable one's second half.

    Raises:
        ValueError: neither "SepConv2d" nor "Conv2d".
    """
    if kind == "SepConv2d":
        return SepConv2d(channels, out, bias=bias)
    if kind == "Conv2d":
        return nn.Conv2d(channels, out, 3, padding=1)
    raise ValueError(f"convolution {kind!r} is not known; 'SepConv2d' and 'Conv2d' are")


class Downsample(nn.Module):
    """Half as many rows and columns."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = SepConv2d(channels, channels, stride=2, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h / 2, w / 2), rounded up."""
        return self.conv(x)


class Upsample(nn.Module):
    """Twice as many rows and columns, or those of ``size``: nearest neighbours, then a convolution."""

    def __init__(self, channels: int, out: int | None = None, conv: str = "SepConv2d") -> None:
        super().__init__()
        self.conv = conv3x3(conv, channels, out or channels, bias=True)

    def forward(self, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """(B, C, h, w) -> (B, out, *size)."""
        size = size or (2 * x.shape[-2], 2 * x.shape[-1])
        return self.conv(F.interpolate(x, list(size), mode="nearest"))


class Resnet(nn.Module):
    """Norm, activation, convolution, twice; time is added between them. (B, C, h, w), time (B, T) -> (B, out, h, w).

    Args:
        channels, out: in and out.
        expansion: channels between the two convolutions, in units of the larger of the two.
        time_width: T.
        groups, eps, act: of the norms, and the activation's name.
        dropout: before the second convolution.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        expansion: float,
        time_width: int,
        groups: int,
        eps: float = 1e-5,
        act: str = "silu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        middle = int(expansion * max(channels, out))
        self.norm1 = nn.GroupNorm(groups, channels, eps)
        self.conv1 = SepConv2d(channels, middle)
        self.time_emb_proj = nn.Linear(time_width, middle)
        self.norm2 = nn.GroupNorm(groups, middle, eps)
        self.conv2 = SepConv2d(middle, out)
        self.conv_shortcut = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()
        self.act, self.dropout = activation(act), nn.Dropout(dropout)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Latents and the time's embedding to latents."""
        h = self.conv1(self.act(self.norm1(x)))
        h = h + self.time_emb_proj(self.act(time))[:, :, None, None]
        return self.conv_shortcut(x) + self.conv2(self.dropout(self.act(self.norm2(h))))


class _FloatLayerNorm(nn.Module):
    """Layer norm without weights, computed in float32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), (self.dim,), eps=self.eps).to(x.dtype)


class _UnitLength(nn.Module):
    """Every vector divided by its length."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1, eps=self.eps)


def _head_norm(kind: str | None, dim: int, eps: float) -> nn.Module:
    """The norm of a head's queries or keys (..., D).

    Raises:
        ValueError: a kind that is not known.
    """
    if kind is None:
        return nn.Identity()
    if kind == "layer_norm":
        return nn.LayerNorm(dim, eps)
    if kind == "rms_norm":
        return nn.RMSNorm(dim, eps)
    if kind == "fp32_layer_norm":
        return _FloatLayerNorm(dim, eps)
    if kind == "l2":
        return _UnitLength(eps)
    raise ValueError(f"qk_norm {kind!r} is not known; give layer_norm, rms_norm, fp32_layer_norm, l2 or null")


class Attention(nn.Module):
    """Many query heads that share few heads of keys and values (one: multi-query attention).

    Args:
        width: of the tokens that ask.
        heads, kv_heads: of queries, and of keys and values.
        head_width: D.
        context_width: of the tokens that are asked, where those are others.
        qk_norm: norm of queries and keys.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        head_width: int,
        context_width: int | None = None,
        qk_norm: str | None = None,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if heads % kv_heads:
            raise ValueError(f"{heads} query heads can't share {kv_heads} heads of keys: give a divisor")
        asked = context_width or width
        self.kv_heads, self.head_width = kv_heads, head_width
        self.to_q = nn.Linear(width, heads * head_width, bias=False)
        self.to_k = nn.Linear(asked, kv_heads * head_width, bias=False)
        self.to_v = nn.Linear(asked, kv_heads * head_width, bias=False)
        self.norm_q, self.norm_k = (_head_norm(qk_norm, head_width, eps) for _ in range(2))
        self.to_out = nn.ModuleList([nn.Linear(heads * head_width, width)])

    def forward(
        self, x: Tensor, context: Tensor | None = None, table: Table | None = None, given: Tensor | None = None
    ) -> Tensor:
        """(B, N, width) -> the same. Positions turn the queries, and the keys only where tokens ask themselves.

        ``given`` (B, n N, width) are other pictures' tokens, asked beside one's own.
        """
        asked = x if context is None else context
        asked = asked if given is None else torch.cat([asked, given], 1)
        q, k, v = (
            rearrange(to(of), "b n (h d) -> b h n d", d=self.head_width)
            for to, of in ((self.to_q, x), (self.to_k, asked), (self.to_v, asked))
        )
        q, k = self.norm_q(q), self.norm_k(k)
        if table is not None:
            q = rotate(q, table)
            k = rotate(k, table) if context is None else k
        # The heads that share keys ask as one head with more tokens: no key is repeated in memory.
        groups = rearrange(q, "b (g h) n d -> b g (h n) d", g=self.kv_heads)
        out = F.scaled_dot_product_attention(groups, k, v)
        return self.to_out[0](rearrange(out, "b g (h n) d -> b n (g h d)", n=x.shape[1]))


class TransformerBlock(nn.Module):
    """Self-attention (in some stages), cross-attention, feed-forward, each after its own norm and added.

    Args:
        width: of the tokens.
        heads, kv_heads: of attention.
        context_width: of the context's tokens.
        self_attention: whether tokens look at each other, which is also where garment features leave and enter.
        ff_mult: inner width of the feed-forward, in units of ``width``.
        qk_norm: as in :class:`Attention`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        context_width: int,
        self_attention: bool,
        ff_mult: int = 4,
        qk_norm: str | None = None,
    ) -> None:
        super().__init__()
        sizes = width, heads, kv_heads, width // heads
        self.self_attention = self_attention
        if self_attention:
            self.norm1 = nn.LayerNorm(width)
            self.attn1 = Attention(*sizes, qk_norm=qk_norm)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(*sizes, context_width=context_width, qk_norm=qk_norm)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width, mult=ff_mult, activation_fn="geglu")

    def forward(
        self, x: Tensor, context: Tensor, table: Table | None, given: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens (B, N, C), context (B, M, context_width), garment tokens (B, N, C) to look at beside one's own.

        Returns:
            The tokens, and the feature this block has for another network (normed tokens; None without self-attention).
        """
        feature = None
        if self.self_attention:
            feature = self.norm1(x)
            x = x + self.attn1(feature, table=table, given=given)
        x = x + self.attn2(self.norm2(x), context, table)
        return x + self.ff(self.norm3(x)), feature


class Transformer2D(nn.Module):
    """Transformer blocks over a picture's latents. (B, C, h, w) -> the same.

    Args:
        depth: number of blocks.
        groups: of the norm before them.
        linear: projections in and out as linear layers rather than 1x1 convolutions (other shapes, same numbers).
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        kv_heads: int,
        context_width: int,
        self_attention: bool,
        groups: int,
        linear: bool,
        ff_mult: int = 4,
        qk_norm: str | None = None,
    ) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.linear = linear
        self.proj_in, self.proj_out = (
            nn.Linear(width, width) if linear else nn.Conv2d(width, width, 1) for _ in range(2)
        )
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(width, heads, kv_heads, context_width, self_attention, ff_mult, qk_norm)
            for _ in range(depth)
        )
        self.features = depth if self_attention else 0
        """How many garment features leave, and may enter."""

    def forward(
        self, x: Tensor, context: Tensor, table: Table | None, given: Sequence[Tensor] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """As :meth:`TransformerBlock.forward`, with no garment feature or one for every block that has a place for it.

        Returns:
            The latents and the features of these blocks.
        """
        inside, made = self.norm(x), []
        inside = self._tokens(inside, self.proj_in, into=True)
        for i, block in enumerate(self.transformer_blocks):
            inside, feature = block(inside, context, table, given[i] if given else None)
            made += [] if feature is None else [feature]
        return x + self._tokens(inside, self.proj_out, into=False, size=x.shape[-2:]), made

    def _tokens(self, x: Tensor, project: nn.Module, into: bool, size: Sequence[int] = ()) -> Tensor:
        """Latents to tokens or back, with the projection on the side where its kind works."""
        if into:
            x = x if self.linear else project(x)
            x = rearrange(x, "b c h w -> b (h w) c")
            return project(x) if self.linear else x
        x = project(x) if self.linear else x
        x = rearrange(x, "b (h w) c -> b c h w", h=size[0])
        return x if self.linear else project(x)
