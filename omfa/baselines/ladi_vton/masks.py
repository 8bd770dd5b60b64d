"""What is repainted: masks and pose maps by the rules of the two data sets that LaDI-VTON was trained on.

A mask is made from a label map (CIHP's labels for VITON-HD, ATR's for DressCode) and OpenPose's 18 keypoints: the
garment and the arms are repainted, widened by ten pixels; head, hands, shoes and the other clothes stay.
``H W`` pixels. Keypoints are (18, 2) or (18, 3): x and y in pixels of the label map, 0 where a point was not seen.
LaDI-VTON, arXiv 2305.13501, as published, quirks included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from omfa.components import Category

Rules = Literal["vitonhd", "dresscode"]
JOINTS = 18
LEFT_ARM, RIGHT_ARM = (7, 6, 5), (2, 3, 4)  # wrist, elbow, shoulder; shoulder, elbow, wrist
COCO_OF_BODY25 = (0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18)
ARMS = 14, 15  # in both label sets
SIGMA = 9.0  # pixels, at every size
REACH = 92  # pixels: from here on a bump is 0 in float32
GROWTH = 5  # how often a mask grows by two pixels


@dataclass(frozen=True)
class Rule:
    """Labels of one data set and category.

    Args:
        head: always kept.
        fixed: kept too: shoes, bags, the other clothes.
        garment: what a garment's picture is cut from.
        mask: what is repainted.
        arms: whether the arms are repainted, all but the hands.
    """

    head: tuple[int, ...]
    fixed: tuple[int, ...]
    garment: tuple[int, ...]
    mask: tuple[int, ...]
    arms: bool


_HEAD, _FIXED = (1, 2, 3, 11), (1, 2, 3, 9, 10, 16, 17)
RULES: dict[Rules, dict[Category, Rule]] = {
    "vitonhd": {Category.UPPER: Rule((1, 2, 4, 13), (1, 2, 9, 12, 18, 19), (5, 6, 7), (5, 6, 7), arms=True)},
    "dresscode": {
        Category.UPPER: Rule(_HEAD, (*_FIXED, 5, 6), (4,), (4,), arms=True),
        Category.LOWER: Rule(_HEAD, (*_FIXED, 4, *ARMS), (6,), (6, 12, 13), arms=False),
        Category.DRESS: Rule(_HEAD, _FIXED, (7,), (7, 12, 13), arms=True),
    },
}


def rule_of(rules: Rules, category: Category) -> Rule:
    """The rule for a category.

    Raises:
        ValueError: VITON-HD's rules know upper garments alone.
    """
    try:
        return RULES[rules][category]
    except KeyError:
        there = "; ".join(f"{name}: {', '.join(of)}" for name, of in RULES.items())
        raise ValueError(f"no rule of {rules} for {category} garments; there are {there}") from None


def inpaint_mask(labels: np.ndarray, keypoints: np.ndarray, category: Category, rules: Rules) -> np.ndarray:
    """Where a photo is repainted for another garment.

    Args:
        labels: (H, W) uint8, CIHP's ids for "vitonhd", ATR's for "dresscode"; a smaller or larger map is resized to
            the data set's size before, by nearest neighbours.
        keypoints: (18, 2 or 3) in pixels of ``labels``.
        category: of the garment.
        rules: the data set's.

    Returns:
        (H, W) bool, True = repaint.

    Raises:
        ValueError: no such rule, or keypoints of another shape.
    """
    rule, (height, width) = rule_of(rules, category), labels.shape
    points = _points(keypoints)
    head, fixed, mask = (_among(labels, ids) for ids in (rule.head, rule.fixed, rule.mask))
    changeable = (labels == 0) | ~fixed
    if rule.arms:
        thickness = int(90 / 512 * height) if rules == "vitonhd" else 45
        drawn = _stroke((height, width), arm_line(points), thickness)
        mask = mask | drawn
        fixed = fixed | (_among(labels, ARMS) & ~drawn)  # hands
    if rule.arms and rules == "dresscode":
        below = _below_neck(points, (height, width))
        mask, head = mask | (head & below), head & ~below
    grown = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8), iterations=GROWTH) > 0
    return ~((changeable & ~grown) | fixed | head)


def _among(labels: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """Where (H, W) uint8 labels are some of these; much faster than numpy's isin."""
    table = np.zeros(256, np.uint8)
    table[list(ids)] = 1
    return cv2.LUT(labels, table).view(bool)


def _points(keypoints: np.ndarray) -> np.ndarray:
    points = np.asarray(keypoints, np.float64)
    if points.shape not in ((JOINTS, 2), (JOINTS, 3)) or not np.isfinite(points).all():
        raise ValueError(f"keypoints of shape {points.shape}; give ({JOINTS}, 2) finite numbers, OpenPose's 18 points")
    return points[:, :2]


def arm_line(points: np.ndarray) -> list[tuple[int, int]]:
    """From the left wrist over both shoulders to the right one, in whole pixels.

    As published a missing joint (x and y at most 1) shortens one side only: the left one is looked at where the right
    wrist is there; a missing elbow beside a wrist that is there is drawn at the corner, and so is a missing shoulder.
    """
    whole = points.clip(0).astype(np.uint16).astype(int)
    missing = [bool((point <= 1).all()) for point in whole]
    left, right = list(LEFT_ARM), list(RIGHT_ARM)
    if missing[right[2]]:
        right = right[:1] if missing[right[1]] else right[:2]
    elif missing[left[0]]:
        left = left[2:] if missing[left[1]] else left[1:]
    return [(int(whole[j, 0]), int(whole[j, 1])) for j in (*left, *right)]


def _stroke(size: tuple[int, int], line: Sequence[tuple[int, int]], thickness: int) -> np.ndarray:
    picture = Image.new("L", (size[1], size[0]))
    ImageDraw.Draw(picture).line(line, 1, thickness, "curve")
    return np.asarray(picture) > 0


def _below_neck(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Under the line through both shoulders, moved up a little; where that leaves the picture at its top, a column
    counts from the bottom, as published."""
    (x1, y1), (x2, y2) = points[2], points[5]
    slope, offset = np.linalg.lstsq(np.array([[x1, 1], [x2, 1]]), np.array([y1, y2]), rcond=None)[0]
    line = np.trunc(np.arange(size[1]) * slope + offset - 20 * (size[0] / 512)).clip(-size[0], size[0])
    return np.arange(size[0])[:, None] >= np.where(line < 0, line + size[0], line)


def pose_map(keypoints: np.ndarray, size: Sequence[int]) -> Tensor:
    """One bump for each joint, (18, H, W) float32 in [0, 1]; all 0 for a joint that was not seen.

    Args:
        keypoints: (18, 2 or 3) in pixels of a picture of ``size``.
        size: (H, W).
    """
    points, (height, width) = _points(keypoints), size
    x, y = (_bell(side, at) for side, at in zip((width, height), points.T, strict=True))
    maps = np.zeros((JOINTS, height, width), np.float32)
    for joint, (px, py) in enumerate(points):
        rows, columns = _near(py, height), _near(px, width)
        bump = maps[joint, rows, columns]
        if max(px, py) > 0 and bump.size:
            # of two lines, a hundred times fewer exponentials; in place, as memory is most of the work
            np.multiply(y[joint, rows, None], x[joint, columns], out=bump, casting="same_kind")
            bump /= bump.max() + np.finfo(np.float32).eps
    return torch.from_numpy(maps)


def _bell(side: int, at: np.ndarray) -> np.ndarray:
    """How high the bumps of points at (n,) are along a side, (n, side), not normalised."""
    away = torch.arange(side, dtype=torch.float64) - torch.tensor(at)[:, None]
    return torch.exp(-away.square() / SIGMA**2).numpy()


def _near(at: float, side: int) -> slice:
    return slice(*(int(min(max(end, 0), side)) for end in (at - REACH, at + REACH + 1)))


def body25_to_18(points: np.ndarray) -> np.ndarray:
    """OpenPose's 25 points as its 18: the middle of the hips and the feet left out."""
    return points[list(COCO_OF_BODY25)]


def garment_on_white(photo: Tensor, labels: np.ndarray, category: Category, rules: Rules) -> Tensor:
    """The garment as worn, (3, H, W): the photo where its labels are, white elsewhere."""
    there = torch.from_numpy(_among(labels, rule_of(rules, category).garment))
    return torch.where(there, photo, 1.0)
