"""Standing bodies that fit a picture: how a body would stand in this shop picture, or in one of what a photo shows."""

from __future__ import annotations

from torch import Tensor

from omfa.bodies.body import Body, load_body
from omfa.bodies.parameters import BodyParameters
from omfa.bodies.standing import Kind, standing


def garment_standing(
    picture: Tensor, category: Kind, size: tuple[int, int] | None = None, body: Body | None = None
) -> BodyParameters:
    """How a body would stand in a garment picture.

    Args:
        picture: (3, H, W) in [-1, 1], a garment on plain ground.
        category: what it shows.
        size: (H, W) of the parameters; None: the picture's.
        body: whose; None: the open body's.

    Raises:
        ValueError: an unknown category, or no picture.
    """
    height, width = picture.shape[-2:]
    return standing(load_body() if body is None else body, category, size or (height, width))


def standing_off(
    photo: Tensor, params: BodyParameters, category: Kind, size: tuple[int, int], body: Body | None = None
) -> BodyParameters:
    """How a body would stand in the shop picture of a garment that a photo shows: a choice, made from the photo alone.

    Args:
        photo: (3, H, W) in [-1, 1].
        params: the body in it.
        category: of the garment.
        size: (H, W) of the shop picture.
        body: whose; None: the open body's.

    Raises:
        ValueError: an unknown category, or no picture.
        NoDraft: the body is not in the photo.
    """
    return standing(load_body() if body is None else body, category, size)
