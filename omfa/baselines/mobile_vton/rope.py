"""Rotary position tables over a picture's latents, as the published networks hold them in their buffers.

``N`` tokens (rows x columns of a stage), ``D`` width of a head: the first half turns with the column, the second with
the row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

THETA = 10_000.0


def axial(columns: int, rows: int, dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (rows * columns, dim) of a grid, row by row.

    Neighbouring channels share an angle: position / 10000^(2i / (dim / 2)), i counting the pairs of a half.
    """
    if dim % 4:
        raise ValueError(f"a head of {dim} channels can't be halved into pairs: give a multiple of 4")
    speeds = THETA ** -(torch.arange(0, dim // 2, 2, dtype=torch.float64) / (dim // 2))
    across = repeat(torch.arange(columns, dtype=torch.float64), "c -> (r c)", r=rows)
    down = repeat(torch.arange(rows, dtype=torch.float64), "r -> (r c)", c=columns)
    angles = torch.cat([torch.outer(at, speeds).repeat_interleave(2, 1) for at in (across, down)], 1)
    return angles.cos().float(), angles.sin().float()


def tables(height: int, width: int, dim: int, base: int) -> tuple[Tensor, Tensor]:
    """Tables (height * width, dim) for any shape out of those of a square of ``base``.

    The square's tables are resized as pictures (bicubic, corners aligned) to the longer side, and the middle is cut
    out. So all shapes span the angles that the square was trained on; cos^2 + sin^2 is only near 1 (0.91 to 1.06).
    """
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2

    def resized(table: Tensor) -> Tensor:
        picture = rearrange(table, "(h w) d -> 1 d h w", h=base)
        picture = F.interpolate(picture, (side, side), mode="bicubic", align_corners=True)
        return rearrange(picture[0, :, top : top + height, left : left + width], "d h w -> (h w) d").contiguous()

    cos, sin = axial(base, base, dim)
    return resized(cos), resized(sin)


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the pairs of neighbouring channels of ``x`` (..., n N, D) by a table (N, D).

    More tokens than the table has rows are several pictures of one shape, one after another: each begins at position 0.
    """
    cos, sin = (t.repeat(x.shape[-2] // t.shape[0], 1).to(x.dtype) for t in table)
    if cos.shape[0] != x.shape[-2]:
        raise ValueError(f"{x.shape[-2]} tokens are no multiple of the {table[0].shape[0]} positions of the table")
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * cos + torch.stack([-odd, even], -1).flatten(-2) * sin
