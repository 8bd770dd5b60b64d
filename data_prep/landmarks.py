"""Where people's joints are in a photo: mediapipe's landmark models, which lie inside its wheel (Apache-2.0).

mediapipe's pins clash with the rest, so it is an installation step of its own (``INSTALL``), needed by nothing else.
Its models run on the CPU, without a display and without a network.

Legend: H W pixels, L = 33 body landmarks, 21 landmarks a hand, 468 of the face; pixel centres at whole numbers.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

INSTALL = (
    "make pose-tools, or: pip install 'protobuf>=6,<7' absl-py attrs flatbuffers matplotlib "
    "&& pip install --no-deps mediapipe==0.10.21"
)
NAMES = (
    "nose", "left_eye_inner", "left_eye", "left_eye_outer", "right_eye_inner", "right_eye", "right_eye_outer",
    "left_ear", "right_ear", "mouth_left", "mouth_right", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_pinky", "right_pinky", "left_index", "right_index",
    "left_thumb", "right_thumb", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle",
    "left_heel", "right_heel", "left_toe", "right_toe",
)  # fmt: skip
ID = {name: i for i, name in enumerate(NAMES)}
_TRUNK = [ID[f"{side}_{joint}"] for side in ("left", "right") for joint in ("shoulder", "hip")]
_MIRROR = [ID[n.replace("left", "?").replace("right", "left").replace("?", "right")] for n in NAMES]

WORKING_SIZE = 1280  # longest side the models see; they look at crops of 256 pixels anyway
PEOPLE = 4  # looked for in one photo
HEADROOM = 0.3  # of the height, put above a photo in which nobody is found: the detector looks for heads


class NobodyError(ValueError):
    """No person was found in a photo."""


@dataclass(frozen=True, eq=False)
class Landmarks:
    """One person in a photo.

    Args:
        image_size: (H, W).
        points: (33, 2) pixels; may lie outside the picture.
        visible: (33,) in [0, 1], how surely each can be seen.
        world: (33, 3) metres about the hips, camera frame: x right, y down, z away.
        hands: (2, 21, 3) left and right: pixels, and depth in pixels relative to the wrist; NaN where not seen.
        face: (468, 3) pixels and depth in pixels; NaN where not seen.
        mask: (H, W) bool, the person's pixels.
    """

    image_size: tuple[int, int]
    points: Array
    visible: Array
    world: Array
    hands: Array
    face: Array
    mask: Array

    @property
    def inside(self) -> Array:
        """(33,) bool: which landmarks lie in the picture."""
        height, width = self.image_size
        return ((self.points >= -0.5) & (self.points < np.array([width, height]) - 0.5)).all(1)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 of the landmarks, cut to the picture."""
        height, width = self.image_size
        low, high = self.points.min(0), self.points.max(0)
        x0, x1 = np.clip([low[0], high[0]], 0, width - 1)
        y0, y1 = np.clip([low[1], high[1]], 0, height - 1)
        return float(x0), float(y0), float(x1), float(y1)

    @property
    def prominence(self) -> float:
        """Share of the picture that the person's box covers, times how surely trunk and head are seen."""
        x0, y0, x1, y1 = self.box
        area = (x1 - x0) * (y1 - y0) / (self.image_size[0] * self.image_size[1])
        return float(area * self.visible[[0, *_TRUNK]].mean())

    @property
    def score(self) -> float:
        """Mean visibility of the landmarks inside the picture, 0 to 1."""
        return float(self.visible[self.inside].mean()) if self.inside.any() else 0.0


def detect(image: Array, people: int = PEOPLE) -> list[Landmarks]:
    """Everybody in a photo, the most prominent first.

    The models find one person at a time; who was found is painted over, and they look again.

    Args:
        image: (H, W, 3) uint8 RGB.
        people: look for no more than this many.

    Raises:
        ValueError: mediapipe is not installed (with the cure).
        NobodyError: there is nobody.
    """
    height, width = image.shape[:2]
    scale = min(1.0, WORKING_SIZE / max(height, width))
    small = cv2.resize(image, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    found: list[Landmarks] = []
    canvas = small.copy() if scale == 1 else small
    while len(found) < people and (person := _find(canvas)) is not None and _is_new(person, found):
        found.append(person)
        canvas = _paint_over(canvas, person)
    if not found:
        raise NobodyError("no person was found: the photo should show one from head or chin to hips, upright")
    factor = np.array([width, height]) / np.array([small.shape[1], small.shape[0]])
    found.sort(key=lambda person: -person.prominence)
    return [_scaled(person, (height, width), factor) for person in found]


def find_face(image: Array) -> list[tuple[float, float, float, float]]:
    """Faces by a detector of its own, the surest first: x0, y0, x1, y1 in pixels.

    Args:
        image: (H, W, 3) uint8 RGB.
    """
    height, width = image.shape[:2]
    with _quiet():
        found = _face_detector().process(np.ascontiguousarray(image)).detections or []
    boxes = [d.location_data.relative_bounding_box for d in found]
    return [(b.xmin * width, b.ymin * height, (b.xmin + b.width) * width, (b.ymin + b.height) * height) for b in boxes]


def require() -> None:
    """Raise ValueError with the cure unless mediapipe can be used."""
    _mediapipe()


# ---------------------------------------------------------------------------------------------------- inside


@lru_cache(maxsize=1)
def _mediapipe() -> Any:
    os.environ.setdefault("GLOG_minloglevel", "2")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        with _quiet():
            import mediapipe
    except ImportError as e:
        raise ValueError(f"finding people in photos needs mediapipe ({e}); install it: {INSTALL}") from None
    if not hasattr(mediapipe, "solutions"):
        raise ValueError(f"this mediapipe ({mediapipe.__version__}) ships no models; install the last that does: {INSTALL}")
    return mediapipe.solutions


@lru_cache(maxsize=1)
def _holistic() -> Any:
    with _quiet():
        return _mediapipe().holistic.Holistic(
            static_image_mode=True, model_complexity=1, enable_segmentation=True, min_detection_confidence=0.3
        )


@lru_cache(maxsize=1)
def _face_detector() -> Any:
    with _quiet():
        return _mediapipe().face_detection.FaceDetection(model_selection=1, min_detection_confidence=0.4)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' C++ chatter off the terminal; Python's own messages still pass."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _find(image: Array) -> Landmarks | None:
    """The surest person of a picture; where there seems to be none, room for a head is put above and tried again."""
    person = _landmarks(image)
    if person is not None:
        return person
    room = round(HEADROOM * len(image))
    person = _landmarks(cv2.copyMakeBorder(image, room, 0, room // 2, room // 2, cv2.BORDER_REPLICATE))
    return None if person is None else _cropped(person, room // 2, room, image.shape[:2])


def _landmarks(image: Array) -> Landmarks | None:
    height, width = image.shape[:2]
    with _quiet():
        seen = _holistic().process(np.ascontiguousarray(image))
    if seen.pose_landmarks is None or seen.pose_world_landmarks is None:
        return None
    body = _array(seen.pose_landmarks, (width, height))
    world = np.array([(p.x, p.y, p.z) for p in seen.pose_world_landmarks.landmark])
    hands = [seen.left_hand_landmarks, seen.right_hand_landmarks]
    missing = np.full((21, 3), np.nan)
    return Landmarks(
        (height, width),
        body[:, :2],
        np.array([p.visibility for p in seen.pose_landmarks.landmark]),
        world,
        np.stack([missing if hand is None else _array(hand, (width, height)) for hand in hands]),
        np.full((468, 3), np.nan) if seen.face_landmarks is None else _array(seen.face_landmarks, (width, height))[:468],
        np.zeros((height, width), bool) if seen.segmentation_mask is None else seen.segmentation_mask > 0.5,
    )


def _array(found: Any, size: tuple[int, int]) -> Array:
    """(n, 3) pixels and depth in pixels from mediapipe's shares of the picture (depth is scaled as x)."""
    width, height = size
    scale, shift = np.array([width, height, width]), np.array([0.5, 0.5, 0])
    return np.array([(p.x, p.y, p.z) for p in found.landmark]) * scale - shift


def _cropped(person: Landmarks, left: int, top: int, size: tuple[int, ...]) -> Landmarks:
    """The same person where the picture is a window of the one it was found in."""
    height, width = size[:2]
    shift = np.array([left, top])
    move = np.array([left, top, 0])
    mask = person.mask[top : top + height, left : left + width]
    return replace(
        person,
        image_size=(height, width),
        points=person.points - shift,
        hands=person.hands - move,
        face=person.face - move,
        mask=mask,
    )


def _scaled(person: Landmarks, size: tuple[int, int], factor: Array) -> Landmarks:
    """The same person in the picture at another size."""
    if person.image_size == size:
        return person
    deep = np.array([*factor, factor[0]])
    shift = np.array([0.5, 0.5, 0])
    return replace(
        person,
        image_size=size,
        points=(person.points + 0.5) * factor - 0.5,
        hands=(person.hands + shift) * deep - shift,
        face=(person.face + shift) * deep - shift,
        mask=cv2.resize(person.mask.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST) > 0,
    )


def _is_new(person: Landmarks, found: list[Landmarks]) -> bool:
    """Whether this is another person, and not what is left of one who was painted over."""
    if not found:
        return True
    if person.visible[_TRUNK].min() < 0.6 or person.prominence < 0.15 * found[0].prominence:
        return False
    return all(_overlap(person.box, other.box) < 0.5 for other in found)


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Common area as a share of the smaller box."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (a, b))
    return max(0.0, wide) * max(0.0, high) / max(smaller, 1e-9)


def _paint_over(image: Array, person: Landmarks) -> Array:
    """The picture with the person's pixels and joints in the colour of what is around them."""
    hide = person.mask.astype(np.uint8)
    reach = max(3, round(0.04 * (person.box[3] - person.box[1])))
    for x, y in person.points[person.inside]:
        cv2.circle(hide, (round(x), round(y)), reach, 1, -1)
    hide = cv2.dilate(hide, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1)))
    around = image[hide == 0]
    colour = np.median(around, axis=0) if len(around) else np.full(3, 255)
    return np.where(hide[..., None] > 0, colour.astype(np.uint8), image)
