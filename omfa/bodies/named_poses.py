"""Poses by name and by joint: standing, sitting, A-pose; the limits of joints; a pose in the mirror.

Poses are (55, 3) axis-angle in radians, SMPL-X's joint order.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from omfa.bodies.parameters import JOINT_IDS, JOINTS, Array, BodyParameters
from omfa.bodies.placing import rotation_vector, turn_about


def _left_to_right() -> Array:
    """(55,) index of each joint's mirror image."""
    names = list(JOINT_IDS)
    swap = {"left": "right", "right": "left"}
    return np.array([JOINT_IDS["_".join(swap.get(w, w) for w in n.split("_"))] for n in names])


MIRROR = _left_to_right()


def mirror_pose(pose: ArrayLike) -> Array:
    """The pose seen in a mirror: left and right joints swapped, rotations reflected through the plane x = 0.

    Args:
        pose: (..., 55, 3) axis-angle.
    """
    return np.asarray(pose)[..., MIRROR, :] * np.array([1, -1, -1], np.float32)


def mirror_parameters(params: BodyParameters) -> BodyParameters:
    """Parameters whose picture is the horizontal flip of the original's (bodies are symmetric to a millimetre)."""
    K = params.K.copy()
    K[0, 2] = params.image_size[1] - 1 - K[0, 2]
    transl = params.transl * np.array([-1, 1, 1], np.float32)
    return replace(params, pose=mirror_pose(params.pose), transl=transl, K=K)


_LEFT_LIMITS = {  # degrees, (lowest, highest) about x, y, z; AAOS/AMA ranges of motion with 10 degrees of slack
    "hip": ((-130, 30), (-50, 55), (-35, 55)),
    "knee": ((-5, 150), (-10, 10), (-8, 8)),
    "ankle": ((-30, 60), (-25, 25), (-30, 30)),
    "foot": ((-30, 20), (-5, 5), (-5, 5)),
    "spine1": ((-15, 35), (-20, 20), (-18, 18)),
    "spine2": ((-15, 35), (-20, 20), (-18, 18)),
    "spine3": ((-15, 35), (-20, 20), (-18, 18)),
    "neck": ((-35, 35), (-45, 45), (-25, 25)),
    "head": ((-35, 35), (-45, 45), (-25, 25)),
    "collar": ((-20, 20), (-25, 20), (-15, 35)),
    "shoulder": ((-100, 80), (-120, 45), (-100, 80)),
    "elbow": ((-60, 60), (-155, 5), (-8, 8)),
    "wrist": ((-60, 60), (-35, 35), (-85, 75)),
    "jaw": ((0, 25), (-5, 5), (-2, 2)),
    "eye": ((-25, 25), (-35, 35), (-2, 2)),
    "thumb1": ((-30, 30), (-40, 40), (-30, 30)),
}
_FINGER = ((-15, 15), (-15, 15), (-100, 15))


def _joint_limits() -> Array:
    limits = np.zeros((JOINTS, 2, 3), np.float32)
    for name, j in JOINT_IDS.items():
        words = name.removeprefix("left_").removeprefix("right_")
        left = _LEFT_LIMITS.get(words) or (_FINGER if j >= 25 else ((-180, 180),) * 3)
        limits[j] = np.radians(np.array(left).T)
        if name.startswith("right_"):  # reflected: y and z change sign, so lowest and highest swap
            limits[j, :, 1:] = -limits[j, ::-1, 1:]
    return limits


JOINT_LIMITS = _joint_limits()
"""(55, 2, 3) lowest and highest component of each joint's rotation vector, radians; the root is free."""


def clamp_pose(pose: ArrayLike) -> Array:
    """The nearest pose inside JOINT_LIMITS, component by component. ``pose``: (..., 55, 3)."""
    return np.clip(np.asarray(pose, np.float32), JOINT_LIMITS[:, 0], JOINT_LIMITS[:, 1])


def _euler(z: float = 0.0, y: float = 0.0, x: float = 0.0) -> Array:
    """Rotation vector of Rz Ry Rx, degrees: twist along an arm (x) first, then forward (y), then up and down (z)."""
    return rotation_vector(turn_about("z", z) @ turn_about("y", y) @ turn_about("x", x))


def make_pose(**joints: ArrayLike) -> Array:
    """(55, 3) pose from named joints.

    Args:
        joints: joint name (``left_shoulder``) to a rotation vector in *degrees*. ``both_elbow=...`` sets the left
            joint and the right one mirrored. Joints not named stay at rest (T-pose).

    Raises:
        ValueError: an unknown joint name.
    """
    pose = np.zeros((JOINTS, 3), np.float32)
    for name, degrees in joints.items():
        left = name.replace("both_", "left_")
        if left not in JOINT_IDS:
            raise ValueError(f"{name!r} is no joint; choose from both_<joint>, {', '.join(JOINT_IDS)}")
        value = np.radians(np.asarray(degrees, np.float32))
        pose[JOINT_IDS[left]] = value
        if name.startswith("both_"):
            pose[MIRROR[JOINT_IDS[left]]] = value * np.array([1, -1, -1])
    return pose


def _arms(z: float, y: float = 0.0, x: float = 0.0) -> Array:
    return np.degrees(_euler(z, y, x))


_CURLS = {"index": (12, 14, 8), "middle": (15, 17, 10), "ring": (17, 19, 11), "pinky": (19, 20, 12)}  # degrees
_RELAXED_HANDS: dict[str, ArrayLike] = {
    f"both_{finger}{k}": (0, 0, -a) for finger, angles in _CURLS.items() for k, a in enumerate(angles, 1)
}


def _named_poses() -> dict[str, Array]:
    down = {"both_shoulder": _arms(-68, -4, 8), "both_elbow": (0, -12, 0), **_RELAXED_HANDS}
    sit = {"both_hip": (-82, 6, 6), "both_knee": (84, 0, 0)}
    poses: dict[str, dict[str, ArrayLike]] = {
        "t_pose": {},
        "a_pose": {"both_shoulder": (0, 0, -45), **_RELAXED_HANDS},
        "standing": {**down, "both_hip": (0, 4, 2)},
        "contrapposto": {
            **down, "spine1": (0, 4, -6), "spine3": (0, -4, 6), "left_hip": (-14, 12, 10), "left_knee": (24, 0, 0),
            "right_hip": (0, 0, 4), "head": (0, 10, -4),
        },
        "walking": {
            "left_shoulder": _arms(-66, 22, 0), "right_shoulder": _arms(66, 22, 0), "left_elbow": (0, -14, 0),
            "right_elbow": (0, 30, 0), "left_hip": (-26, 0, 0), "left_knee": (14, 0, 0), "right_hip": (18, 0, 0),
            "right_knee": (28, 0, 0), "right_ankle": (16, 0, 0), "spine3": (3, 6, 0), **_RELAXED_HANDS,
        },
        "hands_on_hips": {
            "both_shoulder": _arms(-44, 16, 46), "both_elbow": (0, -100, 0), "both_wrist": (0, 0, -20),
            **_RELAXED_HANDS,
        },
        "arms_crossed": {
            "left_shoulder": _arms(-58, -34, 50), "right_shoulder": _arms(54, 28, 44), "left_elbow": (0, -112, 0),
            "right_elbow": (0, 98, 0), **_RELAXED_HANDS,
        },
        "arms_raised": {"both_collar": (0, 0, 18), "both_shoulder": (0, 0, 60), "both_elbow": (0, -12, 0)},
        "waving": {
            **down, "left_collar": (0, 0, 12), "left_shoulder": _arms(-8, -20, -70), "left_elbow": (0, -105, 0),
        },
        "sitting": {**sit, "both_shoulder": _arms(-62, -28, 0), "both_elbow": (0, -42, 0), **_RELAXED_HANDS},
        "hand_on_hip": {
            **down, "left_shoulder": _arms(-44, 16, 46), "left_elbow": (0, -100, 0), "spine1": (0, 0, 4),
            "right_hip": (-8, -10, -8), "right_knee": (16, 0, 0),
        },
        "lunge": {
            "both_shoulder": _arms(-40, -10, 0), "both_elbow": (0, -30, 0), "left_hip": (-70, 0, 4),
            "left_knee": (78, 0, 0), "right_hip": (16, 0, -4), "right_knee": (34, 0, 0), "right_ankle": (20, 0, 0),
            **_RELAXED_HANDS,
        },
    }  # fmt: skip
    return {name: make_pose(**joints) for name, joints in poses.items()}


NAMED_POSES: dict[str, Array] = _named_poses()
"""Name to (55, 3) pose in the model frame: root zero, so that :func:`place` stands it upright."""
