"""Largest values and means over squares of pixels: columns, then rows, so that a pixel costs two sides, not an area.

Legend: H W pixels, r radius; squares have 2 r + 1 pixels a side and end where the picture does.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def largest(values: Tensor, radius: int) -> Tensor:
    """(C, H, W) the largest value within a square around each pixel."""
    columns = F.max_pool2d(values, (2 * radius + 1, 1), 1, (radius, 0))
    return F.max_pool2d(columns, (1, 2 * radius + 1), 1, (0, radius))


def mean(values: Tensor, radius: int) -> Tensor:
    """(C, H, W) the mean within a square around each pixel."""
    columns = F.avg_pool2d(values, (2 * radius + 1, 1), 1, (radius, 0), count_include_pad=False)
    return F.avg_pool2d(columns, (1, 2 * radius + 1), 1, (0, radius), count_include_pad=False)
