"""Pictures as they are given: their range, and what in them is paper. Legend: H W pixels."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

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

    White cloth stays, as far as its edge can be told from the paper; so does paper that cloth encloses, or all but: it
    reaches through no gap of less than 1 % of the height. A picture that was padded is looked at without its padding.

    Args:
        picture: see above.
        like: of [-1, 1], how far a value may be from what the rim tells to be paper.

    Returns:
        (H, W) bool on the picture's device; true everywhere if the rim is no paper, or paper of uneven brightness.

    Raises:
        ValueError: not one picture.
    """
    if picture.ndim != 3 or picture.shape[0] != 3 or not picture.numel():
        raise ValueError(f"a picture of shape {tuple(picture.shape)}; give one, (3, H, W)")
    height, width = picture.shape[1:]
    paper = _paper(picture, like)
    if paper is None:  # perhaps there is some within the padding
        top, bottom = _padding(picture, like), _padding(picture.flip(1), like)
        left, right = _padding(picture.mT, like), _padding(picture.mT.flip(1), like)
        inner = picture[:, top : height - bottom, left : width - right]
        if not inner.numel() or inner.shape == picture.shape or _paper(inner, like) is None:
            return torch.ones((height, width), dtype=torch.bool, device=picture.device)
        return F.pad(off_paper(inner, like), (left, right, top, bottom))
    alike = (picture - paper).abs().amax(0) < like
    framed = np.pad(alike.cpu().numpy().astype(np.uint8), 1, constant_values=1)
    gap = np.ones((1 + 2 * (height // 200),) * 2, np.uint8)
    wide = cv2.erode(framed, gap, borderValue=1)  # where all around is paper
    _, label = cv2.connectedComponents(wide, connectivity=4)
    reached = cv2.dilate(((label == label[0, 0]) & (wide > 0)).astype(np.uint8), gap)
    return torch.from_numpy(((reached == 0) | (framed == 0))[1:-1, 1:-1]).to(picture.device)


def _paper(picture: Tensor, like: float) -> Tensor | None:
    """The paper (3, H, W) as its rim tells, evenly shaded from side to side; None if that is not plain and light."""
    height, width = picture.shape[1:]
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    place = torch.stack([torch.ones_like(x), x, y])
    rim, at = (torch.cat([p[:, 0], p[:, -1], p[:, :, 0], p[:, :, -1]], 1).float().T for p in (picture.cpu(), place))
    paper = torch.zeros(3, 3)  # of 1, x, y to colours
    paper[0] = rim.median(0).values
    for _ in range(3):  # what is far from it is no paper
        near = (rim - at @ paper).abs().amax(1) < 5 * like
        if near.float().mean() < 0.5:
            return None
        paper = torch.linalg.lstsq(at[near], rim[near]).solution
    off = (rim - at @ paper).abs().amax(1)
    made = torch.einsum("khw,kc->chw", place, paper)
    plain = (made > 0.8).all() and ((off > like) & (off < 5 * like)).float().mean() < 0.05
    return made.to(picture.device) if plain else None


def _padding(picture: Tensor, like: float) -> int:
    """How many lines at the top are of one colour, and two more for its edge; 0 if none is."""
    off = (picture - picture[:, :1, :1]).abs().amax((0, 2))
    lines = int((off < like).cumprod(0).sum())
    return lines and lines + 2
