"""Pictures as they are given: their range, and what in them is paper. Legend: H W pixels."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

_ONE = 1.01  # rounding is no error
_LIKE = 0.04  # of [-1, 1]: paper is as plain as this


def check_range(picture: Tensor) -> None:
    """ValueError for a picture that holds anything but numbers in [-1, 1], such as levels of 0 to 255."""
    if not (picture.numel() and torch.isfinite(picture).all()):
        raise ValueError(f"a picture {tuple(picture.shape)} of no or not finite numbers; give (3, H, W) in [-1, 1]")
    low, high = picture.min().item(), picture.max().item()
    if not -_ONE <= low <= high <= _ONE:
        raise ValueError(f"a picture of numbers from {low:g} to {high:g}; give them in [-1, 1]")


def off_paper(picture: Tensor, like: float = _LIKE) -> Tensor:
    """Where a picture (3, H, W) in [-1, 1] shows anything but plain light paper that reaches in from its rim.

    White cloth stays, as far as its edge can be told from the paper; so does paper that cloth encloses.

    Args:
        picture: see above.
        like: of [-1, 1], how far from the rim's median a value may be to be paper.

    Returns:
        (H, W) bool on the picture's device; true everywhere if the rim is no paper, or paper of uneven brightness.

    Raises:
        ValueError: not one picture.
    """
    if picture.ndim != 3 or picture.shape[0] != 3 or not picture.numel():
        raise ValueError(f"a picture of shape {tuple(picture.shape)}; give one, (3, H, W)")
    rim = torch.cat([picture[:, 0], picture[:, -1], picture[:, :, 0], picture[:, :, -1]], 1).float()
    paper = rim.median(1).values
    off = (rim - paper[:, None]).abs().amax(0)
    plain = bool((paper > 0.8).all() & (((off > like) & (off < 5 * like)).float().mean() < 0.05))
    alike = ((picture - paper[:, None, None].to(picture)).abs().amax(0) < like) & plain
    framed = np.pad(alike.cpu().numpy().astype(np.uint8), 1, constant_values=1)
    _, label = cv2.connectedComponents(framed, connectivity=4)
    return torch.from_numpy((label != label[0, 0])[1:-1, 1:-1]).to(picture.device)
