"""Largest values and means over squares, against the definition."""

from __future__ import annotations

import numpy as np
import torch

from omfa.bodies.windows import largest, mean


def test_squares_end_where_the_picture_does() -> None:
    values = torch.rand(2, 9, 7, generator=torch.Generator().manual_seed(0))
    for radius in (0, 1, 3):
        for y in range(9):
            for x in range(7):
                square = values[:, max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
                assert torch.equal(largest(values, radius)[:, y, x], square.amax((1, 2)))
                assert np.allclose(mean(values, radius)[:, y, x], square.mean((1, 2)), atol=1e-6)
