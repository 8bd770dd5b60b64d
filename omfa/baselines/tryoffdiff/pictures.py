"""Pictures as TryOffDiff takes and leaves them: squares.

``H W`` pixels, ``S`` the square's side.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from omfa.images import Box


def to_square(picture: Image.Image, side: int) -> tuple[Tensor, Box]:
    """Pad a picture to a square by its border pixels, centred, and resize it on 8-bit values.

    Args:
        picture: RGB.
        side: S.

    Returns:
        (3, S, S) in [-1, 1], and the box the picture covers, to the nearest pixel.
    """
    pixels = np.asarray(picture.convert("RGB"))
    height, width = pixels.shape[:2]
    whole = max(height, width)
    top, left = (whole - height) // 2, (whole - width) // 2
    edges = (top, whole - height - top), (left, whole - width - left), (0, 0)
    square = torch.from_numpy(np.pad(pixels, edges, mode="edge")).permute(2, 0, 1)[None]
    if whole != side:
        square = F.interpolate(square, (side, side), mode="bilinear", antialias=True)
    scale = side / whole
    box = Box(round(top * scale), round(left * scale), max(1, round(height * scale)), max(1, round(width * scale)))
    return square[0].float() / 255 * 2 - 1, box


def stretched(pictures: Tensor) -> Tensor:
    """Each picture of (B, 3, S, S) stretched from its own least and greatest value to [-1, 1]."""
    low, high = pictures.amin((1, 2, 3), True), pictures.amax((1, 2, 3), True)
    return (pictures - low) / (high - low).clamp(min=2e-5) * 2 - 1
