"""A body put before a camera: cameras, turns, framing, projection.

Model frame: x to the person's left, y up, z forward, metres. Camera frame: x right, y down, z away from the camera.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import torch
from numpy.typing import ArrayLike

from omfa.bodies.body import Body
from omfa.bodies.parameters import BETAS, EXPRESSION, Array, BodyParameters

MODEL_TO_CAMERA = np.diag([1.0, -1.0, -1.0])  # a person who faces the camera: their left is the picture's right


def rotation(rotvec: ArrayLike) -> Array:
    """(3, 3) matrix of a rotation vector in radians."""
    return cv2.Rodrigues(np.asarray(rotvec, np.float64).reshape(3, 1))[0]


def rotation_vector(matrix: ArrayLike) -> Array:
    """(3,) rotation vector in radians of a rotation matrix."""
    return cv2.Rodrigues(np.asarray(matrix, np.float64))[0].reshape(3)


def turn_about(axis: str, degrees: float) -> Array:
    """(3, 3) rotation by degrees about "x", "y" or "z"."""
    return rotation(np.radians(degrees) * np.eye(3)["xyz".index(axis)])


def camera(image_size: tuple[int, int], fov: float = 24.0) -> Array:
    """(3, 3) pinhole matrix that looks at the picture's centre.

    Args:
        image_size: (H, W) pixels.
        fov: vertical field of view in degrees, in (0, 170). Catalogue photos: 15 to 30.
    """
    if not 0 < fov < 170:
        raise ValueError(f"fov {fov} must lie between 0 and 170 degrees")
    height, width = image_size
    focal = height / 2 / np.tan(np.radians(fov / 2))
    return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]], np.float32)


def look_at(yaw: float = 0.0, pitch: float = 0.0) -> Array:
    """(3, 3) rotation from the model frame to a camera that looks at the body.

    Args:
        yaw: degrees; 0: the body faces the camera; +90: it is turned to its own left, the camera sees its right side.
        pitch: degrees; positive: the camera stands higher and looks down.
    """
    return turn_about("x", pitch) @ MODEL_TO_CAMERA @ turn_about("y", yaw)


@torch.no_grad()
def place(
    body: Body,
    pose: ArrayLike,
    *,
    betas: ArrayLike | None = None,
    expression: ArrayLike | None = None,
    yaw: float = 0.0,
    pitch: float = 0.0,
    image_size: tuple[int, int] = (1024, 768),
    fov: float = 24.0,
    fill: float = 0.9,
) -> BodyParameters:
    """Stand a body upright before a camera, whole and centred.

    The distance is chosen so that the upright cylinder around the body fills the share ``fill`` of the picture, so one
    pose has one size from every side.

    Args:
        body: the body.
        pose: (55, 3) in the model frame, such as ``NAMED_POSES["standing"]``; its root rotation is kept.
        betas: (10,), zeros if None.
        expression: (10,), zeros if None.
        yaw: see :func:`look_at`.
        pitch: see :func:`look_at`.
        image_size: (H, W).
        fov: vertical field of view, degrees.
        fill: share of the picture's height or width, whichever binds, in (0, 1].
    """
    if not 0 < fill <= 1:
        raise ValueError(f"fill {fill} must lie in (0, 1]")
    K = camera(image_size, fov)
    shape = np.zeros(BETAS, np.float32) if betas is None else np.asarray(betas, np.float32)
    face = np.zeros(EXPRESSION, np.float32) if expression is None else np.asarray(expression, np.float32)
    upright = BodyParameters(body.name, body.hash, shape, face, np.asarray(pose), np.zeros(3), K, image_size)
    points = body.posed(upright).vertices[0].cpu().numpy().astype(np.float64)
    pelvis = (body.rest_joints + joint_shift(body, shape, face))[0]
    low, high = points[:, 1].min(), points[:, 1].max()
    middle = np.array([pelvis[0], (low + high) / 2, pelvis[2]])
    radius = np.linalg.norm((points - middle)[:, [0, 2]], axis=1).max()
    turn = look_at(yaw, pitch)
    half = (np.array(image_size) - 1) / 2 * fill
    distance = max(K[1, 1] * (high - low) / 2 / half[0], K[0, 0] * radius / half[1]) + radius * (abs(pitch) > 1) * 0.5
    root = rotation_vector(turn @ rotation(upright.pose[0]))
    # x -> root (x - pelvis) + pelvis + transl; the cylinder's middle goes to (0, 0, distance)
    transl = np.array([0, 0, distance + radius * 0.3]) - turn @ (middle - pelvis) - pelvis
    placed = upright.pose.copy()
    placed[0] = root
    return replace(upright, pose=placed, transl=transl)


def joint_shift(body: Body, betas: Array, expression: Array) -> Array:
    """(55, 3) how shape moves the rest joints."""
    return body.joint_directions @ np.concatenate([betas, expression])


def turned(params: BodyParameters, degrees: float) -> BodyParameters:
    """The same scene with the body turned by ``degrees`` to its own left about the picture's upright axis."""
    pose = params.pose.copy()
    pose[0] = rotation_vector(turn_about("y", -degrees) @ rotation(pose[0]))  # y points down in the camera frame
    return replace(params, pose=pose)  # smplx turns about the pelvis: nothing else moves


def project(points: ArrayLike, K: ArrayLike) -> Array:
    """(..., 2) pixel coordinates of (..., 3) points in the camera frame; NaN for points not before the camera."""
    homogeneous = np.asarray(points, np.float64) @ np.asarray(K, np.float64).T
    depth = np.where(homogeneous[..., 2:] > 1e-6, homogeneous[..., 2:], np.nan)
    return homogeneous[..., :2] / depth
