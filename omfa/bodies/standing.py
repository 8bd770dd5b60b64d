"""Standing bodies: how a body would stand in a shop picture, wearing the garment that is shown alone.

Where nothing better is known, each category has one: from the front, arms a little out, framed as most garments are.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from omfa.bodies.body import Body
from omfa.bodies.named_poses import NAMED_POSES, make_pose
from omfa.bodies.parameters import BETAS, EXPRESSION, BodyParameters
from omfa.bodies.placing import camera, look_at, rotation_vector

Array = NDArray[Any]
Kind = Literal["upper", "lower", "dress"]

ARMS = 52.0  # degrees
PITCH = 4.0
FOV = 14.0
MARGIN = 0.06


def shop_pose(arms: float = ARMS, legs: float = 0.0, *, yaw: float = 0.0, pitch: float = PITCH) -> Array:
    """(55, 3) pose of a body in a shop picture, turned to the camera frame.

    Args:
        arms: degrees by which the upper arms hang below the horizontal.
        legs: degrees by which each leg is spread.
        yaw: degrees, see :func:`omfa.bodies.body.look_at`.
        pitch: degrees, see :func:`omfa.bodies.body.look_at`.
    """
    pose = NAMED_POSES["a_pose"].astype(np.float64).copy()
    moved = make_pose(both_shoulder=(0, 0, -arms), both_elbow=(0, -6, 0), both_hip=(0, 0, legs))
    pose[[1, 2, 16, 17, 18, 19]] = moved[[1, 2, 16, 17, 18, 19]]
    pose[0] = rotation_vector(look_at(yaw, pitch))
    return pose


def framed(points: Array, K: Array, size: tuple[int, int], rows: tuple[float, float], margin: float = MARGIN) -> Array:
    """(3,) translation that centres points and fits them between rows of the picture.

    Args:
        points: (n, 3) camera frame, root at the origin.
        K: (3, 3).
        size: (H, W).
        rows: lowest and highest y (metres, downwards) to show.
        margin: share of the picture left free on each side.
    """
    height, width = size
    tall, wide = rows[1] - rows[0], np.ptp(points[:, 0])
    near = float(points[:, 2].min())
    distance = max(tall * K[1, 1] / (height * (1 - 2 * margin)), wide * K[0, 0] / (width * (1 - 1.2 * margin)))
    return -np.array([(points[:, 0].max() + points[:, 0].min()) / 2, (rows[0] + rows[1]) / 2, near * 0.5 - distance])


def standing(body: Body, category: Kind, size: tuple[int, int], *, arms: float = ARMS) -> BodyParameters:
    """The category's own standing body: what a garment's picture is taken for until more is known.

    Args:
        body: any.
        category: what the picture shows.
        size: (H, W) of the picture.
        arms: see :func:`shop_pose`.

    Raises:
        ValueError: an unknown category.
    """
    if category not in get_args(Kind):
        raise ValueError(f"category {category!r} must be one of {', '.join(get_args(Kind))}")
    K, zero = camera(size, FOV), np.zeros(3)
    params = BodyParameters(
        body.name, body.hash, np.zeros(BETAS), np.zeros(EXPRESSION), shop_pose(arms), zero, K, size
    )  # fmt: skip
    posed = body.posed(params)
    points, joints = posed.vertices[0].cpu().numpy(), posed.joints[0].cpu().numpy()
    neck, pelvis, knee, ankle = joints[[12, 0, 4, 7], 1]
    top, bottom, reach = {  # metres: y of collar and hem, and how far from the middle sleeves and hems reach
        "upper": (neck, pelvis + 0.10, 0.37),
        "lower": (pelvis - 0.10, ankle, 0.35),
        "dress": (neck, knee + 0.05, 0.37),
    }[category]
    shown = (points[:, 1] > top) & (points[:, 1] < bottom) & (np.abs(points[:, 0]) < reach)
    return BodyParameters(
        body.name, body.hash, params.betas, params.expression, params.pose,
        framed(points[shown], K, size, (float(top), float(bottom))), K, size,
    )  # fmt: skip
