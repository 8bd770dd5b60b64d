"""The Light-Adapter: a few tokens that sum up DINOv2's view of the garment (IP-Adapter's resampler).

``B`` batch, ``P`` patch tokens of the image encoder, ``Q`` query tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class _Look(nn.Module):
    """Query tokens look at the picture's tokens and at each other."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads, inner = heads, heads * head_width
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, queries: Tensor) -> Tensor:
        x, queries = self.norm1(x), self.norm2(queries)
        k, v = self.to_kv(torch.cat([x, queries], 1)).chunk(2, -1)
        q, k, v = (rearrange(t, "b n (h d) -> b h n d", h=self.heads) for t in (self.to_q(queries), k, v))
        return self.to_out(rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)"))


class Resampler(nn.Module):
    """Tokens (B, P, in_width) of an image encoder to a few context tokens (B, Q, out_width).

    Args:
        width, depth, heads, head_width: of the layers.
        queries: Q.
        in_width: of the image encoder (DINOv2-base 768, large 1536 as published).
        out_width: of the network's context.
    """

    def __init__(
        self,
        width: int = 768,
        depth: int = 4,
        heads: int = 20,
        head_width: int = 64,
        queries: int = 16,
        in_width: int = 768,
        out_width: int = 4096,
    ) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, queries, width) / width**0.5)
        self.proj_in = nn.Linear(in_width, width)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    _Look(width, heads, head_width),
                    nn.Sequential(
                        nn.LayerNorm(width),
                        nn.Linear(width, 4 * width, bias=False),
                        nn.GELU(),
                        nn.Linear(4 * width, width, bias=False),
                    ),
                ]
            )
            for _ in range(depth)
        )
        self.proj_out = nn.Linear(width, out_width)
        self.norm_out = nn.LayerNorm(out_width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, P, in_width) -> (B, Q, out_width)."""
        x, queries = self.proj_in(x), self.latents.expand(len(x), -1, -1)
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleList)
            attention, feed_forward = layer
            queries = queries + attention(x, queries)
            queries = queries + feed_forward(queries)
        return self.norm_out(self.proj_out(queries))
