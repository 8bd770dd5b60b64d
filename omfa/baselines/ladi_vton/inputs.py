"""What LaDI-VTON is given for one or more pictures, checked; and how it comes out of a photo, its labels and points.

``B`` batch, ``H W`` pixels of the model (512 x 384 as published), ``h w`` those of a photo.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from omfa.baselines.ladi_vton.masks import JOINTS, Rules, inpaint_mask, pose_map
from omfa.components import Category, as_clothes
from omfa.images import Box, fit_pixels


@dataclass(frozen=True)
class Inputs:
    """One batch.

    Args:
        photo: (B, 3, H, W) in [-1, 1].
        mask: (B, 1, H, W); 1, or anything from 0.5 on, is repainted.
        pose: (B, 18, H, W) in [0, 1], of :func:`omfa.baselines.ladi_vton.masks.pose_map`.
        cloth: (B, 3, H, W) in [-1, 1], the garment's picture on white.
        categories: B of them.

    Raises:
        ValueError: shapes that don't go together, or numbers that are not finite.
    """

    photo: Tensor
    mask: Tensor
    pose: Tensor
    cloth: Tensor
    categories: tuple[Category, ...]

    def __post_init__(self) -> None:
        b, _, h, w = self.photo.shape if self.photo.ndim == 4 else (0, 0, 0, 0)
        if not b * h * w:
            raise ValueError(f"photo is {tuple(self.photo.shape)}; give (B, 3, H, W)")
        for name, channels in {"photo": 3, "mask": 1, "pose": JOINTS, "cloth": 3}.items():
            value: Tensor = getattr(self, name)
            if value.shape != (b, channels, h, w) or not torch.stack(value.aminmax()).isfinite().all():
                raise ValueError(f"{name} is {tuple(value.shape)}; give finite numbers of ({b}, {channels}, {h}, {w})")
        object.__setattr__(self, "categories", tuple(as_clothes(c) for c in self.categories))
        if len(self.categories) != b:
            raise ValueError(f"{len(self.categories)} categories for {b} pictures; give one for each")

    @property
    def hard_mask(self) -> Tensor:
        """The mask as 0 and 1."""
        return (self.mask >= 0.5).to(self.mask.dtype)

    @property
    def kept(self) -> Tensor:
        """The photo without what is repainted, which is mid grey (0)."""
        return self.photo * (1 - self.hard_mask)

    def to(self, *where: Any) -> Inputs:
        """On another device or in another dtype."""
        tensors = {f.name: getattr(self, f.name).to(*where) for f in fields(self) if f.name != "categories"}
        return Inputs(**tensors, categories=self.categories)

    def __len__(self) -> int:
        return len(self.photo)


def stack(several: Sequence[Inputs]) -> Inputs:
    """One batch of several."""
    tensors = {n: torch.cat([getattr(x, n) for x in several]) for n in ("photo", "mask", "pose", "cloth")}
    return Inputs(**tensors, categories=tuple(c for x in several for c in x.categories))


@dataclass(frozen=True)
class Person:
    """A photo at the model's size with what belongs to it.

    Args:
        photo: (3, H, W) in [-1, 1].
        labels: (H, W) uint8 in the rules' ids.
        keypoints: (18, 2) in pixels of ``photo``, 0 where not seen.
        box: where the photo lies in its padding.
    """

    photo: Tensor
    labels: np.ndarray
    keypoints: np.ndarray
    box: Box


def fit_person(photo: Image.Image, labels: np.ndarray, keypoints: np.ndarray, size: Sequence[int]) -> Person:
    """Bring a photo, its label map and its keypoints to the model's size, padded where the aspect differs.

    Args:
        photo: upright RGB.
        labels: (h', w') uint8, of the photo's aspect.
        keypoints: (18, 2 or 3) in pixels of the photo.
        size: (H, W).

    Raises:
        ValueError: a label map of another aspect.
    """
    if abs(labels.shape[0] / labels.shape[1] * photo.width / photo.height - 1) > 0.01:
        raise ValueError(
            f"a label map of {labels.shape[1]}x{labels.shape[0]} does not fit a photo of {photo.width}x{photo.height}"
        )
    pixels, box = fit_pixels(np.asarray(photo), size)
    inner = Image.fromarray(labels).resize((box.width, box.height), Image.Resampling.NEAREST)
    whole = np.zeros(tuple(size), np.uint8)
    whole[box.window] = np.asarray(inner)
    points = np.asarray(keypoints, np.float64)[:, :2] * [box.width / photo.width, box.height / photo.height]
    points[points.max(1) > 0] += [box.left, box.top]  # a point that was not seen stays at 0
    return Person(pixels, whole, points, box)


def make_inputs(person: Person, cloth: Tensor, category: Category, rules: Rules) -> Inputs:
    """A batch of one, mask and pose map by the rules of a data set.

    Args:
        person: of :func:`fit_person`.
        cloth: (3, H, W), the garment's picture on white.
        category: of the garment.
        rules: whose.

    Raises:
        ValueError: no rule for the category.
    """
    mask = inpaint_mask(person.labels, person.keypoints, category, rules)
    return Inputs(
        photo=person.photo[None],
        mask=torch.from_numpy(mask)[None, None].float(),
        pose=pose_map(person.keypoints, person.photo.shape[1:])[None],
        cloth=cloth[None],
        categories=(category,),
    )


def to_latent_size(x: Tensor, size: Sequence[int], mode: str) -> Tensor:
    """Masks by "nearest", pose maps by "bilinear" without antialias, as published."""
    return F.interpolate(x, tuple(size), mode=mode)
