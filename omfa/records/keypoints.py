"""2-D keypoints of a person picture, whoever found them, as OpenPose's 18 points.

The order is COCO's as OpenPose has it: nose, neck, right shoulder, elbow, wrist, left shoulder, elbow, wrist, right
hip, knee, ankle, left hip, knee, ankle, right eye, left eye, right ear, left ear. Left and right are the person's own.
Legend: K points of a format.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from omfa.bodies.parameters import read_npz
from omfa.files import read_text
from omfa.records.prepared import RecordError

MAX_MEMBER = 1_000_000  # bytes

# Format to which of its K points each of the 18 is; the neck of a format without one is the middle of two points.
_FROM: dict[str, tuple[int, tuple[int | tuple[int, int], ...]]] = {
    "openpose-18": (18, tuple(range(18))),
    "openpose-25": (25, (0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18)),
    "landmarks-33": (33, (0, (11, 12), 12, 14, 16, 11, 13, 15, 24, 26, 28, 23, 25, 27, 5, 2, 8, 7)),
}


def read_keypoints(path: Path, format: str) -> np.ndarray:
    """OpenPose's 18 points of the first person in a file.

    Args:
        path: ``.json`` as OpenPose writes it (``people[0].pose_keypoints_2d``: x, y, confidence, ...), or ``.npz`` with
            ``points`` (K, 3).
        format: of :class:`omfa.records.prepared.KeypointsRef`.

    Returns:
        (18, 3) float32: x and y in pixels of the person picture, confidence in [0, 1]; 0 where a point was not seen.

    Raises:
        RecordError: no such file, nobody in it, or another number of points.
    """
    count, order = _FROM[format]
    try:
        points = _read(path)
    except Exception as e:  # decoders raise almost anything on damaged files
        raise RecordError(f"{path}: no keypoints can be read ({type(e).__name__}: {e}); write the file again") from None
    if points.shape != (count, 3) or not np.isfinite(points).all():
        raise RecordError(
            f"{path}: {points.shape} of finite numbers must be ({count}, 3), for its format is {format!r}"
        )
    if np.abs(points).max() > 1e6:
        raise RecordError(f"{path}: points beyond 1e6 are of no picture; find them again")
    found = [points[i] if isinstance(i, int) else _middle(points[i[0]], points[i[1]]) for i in order]
    return np.stack(found).astype(np.float32)


def _read(path: Path) -> np.ndarray:
    if path.suffix.lower() == ".npz":
        return np.asarray(read_npz(path, MAX_MEMBER, ("points",))["points"], np.float64)
    said: Any = json.loads(read_text(path))
    return np.asarray(said["people"][0]["pose_keypoints_2d"], np.float64).reshape(-1, 3)


def _middle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The point half-way, as sure as the less sure of the two."""
    return np.array([*(a[:2] + b[:2]) / 2, min(a[2], b[2])])
