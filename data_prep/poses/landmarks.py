"""Where people's joints are in a photo: mediapipe's landmark models, which lie inside its wheel (Apache-2.0).

mediapipe's pins clash with the rest, so it is an installation step of its own (``INSTALL``), needed by nothing else.
Its models run on the CPU, without a display and without a network.

One look is not trusted: a photo is also shown in the mirror and with room above the head, and what most looks agree on
is taken. Where the photo cuts the head off, one is drawn. That mends nearly all people taken for their own back, or for
somebody folded up.

Legend: H W pixels, L = 33 body landmarks, 21 landmarks a hand; pixel centres at whole numbers.
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
Box = tuple[float, float, float, float]

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

SURE = 0.7  # of a score: people reach 0.8 and more, garments without anybody in them up to 0.66
WORKING_SIZE = 1280  # longest side the models see; they look at crops of 256 pixels anyway
PEOPLE = 4  # looked for in one photo
HEADROOM = 0.2  # of the height, put above a photo for one of the looks: the detector goes by heads
DOUBT = 0.06  # of the score by which a back must explain a headless body better than a front
AGREE = 0.05  # of the person's height: looks that lie nearer to each other than this agree


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
        face: x0, y0, x1, y1 of the face's landmarks in pixels; None where not seen.
        mask: (H, W) bool, the person's pixels.
        looks: how many looks agreed.
    """

    image_size: tuple[int, int]
    points: Array
    visible: Array
    world: Array
    hands: Array
    face: Box | None
    mask: Array
    looks: int = 1

    @property
    def inside(self) -> Array:
        """(33,) bool: which landmarks lie in the picture."""
        height, width = self.image_size
        return np.all((self.points >= -0.5) & (self.points < np.array([width, height]) - 0.5), axis=1)

    @property
    def box(self) -> Box:
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
    canvas = small
    while len(found) < people:
        first = _look(canvas)
        if found and (first is None or not _is_new(first, found)):
            break
        person = _consensus(canvas, first)
        if person is None or person.score < SURE:
            break
        found.append(person)
        canvas = _paint_over(canvas, person)
    if not found:
        raise NobodyError("no person was found: the photo should show one from head or chin to hips, upright")
    factor = np.array([width, height]) / np.array([small.shape[1], small.shape[0]])
    found.sort(key=lambda person: -person.prominence)
    return [_scaled(person, (height, width), factor) for person in found]


def find_faces(image: Array) -> list[Box]:
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
        raise ValueError(
            f"this mediapipe ({mediapipe.__version__}) ships no models; install the last that does: {INSTALL}"
        )
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


def _consensus(image: Array, first: Landmarks | None) -> Landmarks | None:
    """What most looks at a picture agree on; None if no look finds anybody."""
    if first is not None and _headless(first):
        face, hair = (_look_with_head(image, first, drawn) for drawn in ("face", "hair"))
        if face is not None and hair is not None:  # the side that makes more sense of the rest of the body
            drawn = "hair" if hair.score > face.score + DOUBT else "face"
            mirrored = _look_with_head(image, first, drawn, mirror=True)
            looks = [hair if drawn == "hair" else face, *([] if mirrored is None else [mirrored]), first]
            return agreed(looks)
    looks = [first] if first is not None else []
    if (mirrored := _look(np.ascontiguousarray(image[:, ::-1]))) is not None:
        looks.append(_unmirrored(mirrored))
    room = round(HEADROOM * len(image))
    if (roomy := _look(_with_room(image, room))) is not None:
        looks.append(_cropped(roomy, room // 2, room, image.shape[:2]))
    return agreed(looks)


def _with_room(image: Array, room: int) -> Array:
    return cv2.copyMakeBorder(image, room, 0, room // 2, room // 2, cv2.BORDER_CONSTANT, value=(128, 128, 128))


def _headless(person: Landmarks) -> bool:
    """Whether the photo cuts the whole face off."""
    face = person.points[[ID["nose"], ID["mouth_left"], ID["mouth_right"]]]
    return bool((face[:, 1] < 0.01 * person.image_size[0]).all())


def _look_with_head(image: Array, person: Landmarks, drawn: str, mirror: bool = False) -> Landmarks | None:
    """A look at the picture with a head drawn above the shoulders: without one, the models take fronts for backs."""
    shoulders = person.points[[ID["left_shoulder"], ID["right_shoulder"]]]
    tall = person_height(person)
    radius = float(np.clip(0.3 * np.linalg.norm(shoulders[0] - shoulders[1]), 0.045 * tall, 0.075 * tall))
    room = max(round(HEADROOM * len(image)), round(3 * radius))
    middle = shoulders.mean(0) + np.array([room // 2, room])
    picture = _with_room(image, room)
    _draw_head(picture, (float(middle[0]), float(min(room - 0.9 * radius, middle[1] - 2.7 * radius))), radius, drawn)
    found = _look(np.ascontiguousarray(picture[:, ::-1]) if mirror else picture)
    if found is None:
        return None
    return _cropped(_unmirrored(found) if mirror else found, room // 2, room, image.shape[:2])


def _draw_head(picture: Array, centre: tuple[float, float], radius: float, drawn: str) -> None:
    """A head as a child draws it, from before (``face``) or behind (``hair``); that is enough for the models."""
    skin, dark = (222, 176, 150), (60, 42, 30)

    def at(x: float, y: float) -> tuple[int, int]:
        return round(centre[0] + x * radius), round(centre[1] + y * radius)

    def blob(x: float, y: float, wide: float, high: float, colour: tuple[int, int, int]) -> None:
        axes = max(1, round(wide * radius)), max(1, round(high * radius))
        cv2.ellipse(picture, at(x, y), axes, 0, 0, 360, colour, -1, cv2.LINE_AA)

    cv2.rectangle(picture, at(-0.38, 0.6), at(0.38, 2.2), (200, 150, 125), -1)
    blob(0, -0.15, 0.95, 1.2, dark)
    if drawn == "hair":
        return
    blob(0, 0.1, 0.75, 1.05, skin)
    for side in (-1, 1):
        blob(0.3 * side, -0.17, 0.2, 0.04, dark)
        blob(0.3 * side, 0, 0.15, 0.08, (255, 255, 255))
        blob(0.3 * side, 0, 0.07, 0.07, dark)
        blob(0.07 * side, 0.38, 0.03, 0.03, (150, 100, 85))
    blob(0, 0.65, 0.25, 0.08, (180, 80, 80))


def agreed(looks: list[Landmarks]) -> Landmarks | None:
    """The mean of the looks that agree with the most central one; landmarks on which they differ count for less."""
    if not looks:
        return None
    tall = [person_height(look) for look in looks]
    apart = np.array([[_apart(a, b) / (height + 1e-9) for b in looks] for a, height in zip(looks, tall, strict=True)])
    centre = int(np.median(apart, axis=1).argmin()) if len(looks) > 2 else 0
    near = [look for look, distance in zip(looks, apart[centre], strict=True) if distance < AGREE]
    central = looks[centre]
    points = np.mean([look.points for look in near], axis=0)
    spread = np.max([np.linalg.norm(look.points - points, axis=1) for look in near], axis=0) / (AGREE * tall[centre])
    hands = central.hands.copy()
    for side in (0, 1):
        for look in near:
            if np.isnan(hands[side]).any():
                hands[side] = look.hands[side]
    return replace(
        central,
        points=points,
        visible=np.mean([look.visible for look in near], axis=0) * np.exp(-(spread**2)),
        world=np.mean([look.world for look in near], axis=0),
        hands=hands,
        face=next((look.face for look in [central, *near] if look.face is not None), None),
        looks=len(near),
    )


def _apart(a: Landmarks, b: Landmarks) -> float:
    """Mean distance in pixels of the body's landmarks (not the face's), those that both see counting most."""
    weight = np.minimum(a.visible, b.visible)[11:] + 1e-3
    return float(np.average(np.linalg.norm(a.points - b.points, axis=1)[11:], weights=weight))


def person_height(person: Landmarks) -> float:
    """Pixels that the whole person would measure upright, from the landmarks in space and in the picture."""
    flat, weight = person.world[:, :2], person.visible * person.inside
    if weight.sum() < 1e-3:
        weight = person.visible + 1e-3
    a = flat - np.average(flat, axis=0, weights=weight)
    b = person.points - np.average(person.points, axis=0, weights=weight)
    scale = np.sqrt((weight[:, None] * b**2).sum() / max((weight[:, None] * a**2).sum(), 1e-9))
    return float(max(1.7 * scale, 8.0))


def _look(image: Array) -> Landmarks | None:
    """One person of a picture, as the models see them."""
    height, width = image.shape[:2]
    with _quiet():
        seen = _holistic().process(np.ascontiguousarray(image))
    if seen.pose_landmarks is None or seen.pose_world_landmarks is None:
        return None
    body = _array(seen.pose_landmarks, (width, height))
    hands = [seen.left_hand_landmarks, seen.right_hand_landmarks]
    missing = np.full((21, 3), np.nan)
    face = None
    if seen.face_landmarks is not None:
        outline = _array(seen.face_landmarks, (width, height))[:, :2]
        low, high = outline.min(0), outline.max(0)
        face = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
    return Landmarks(
        (height, width),
        body[:, :2],
        np.array([p.visibility for p in seen.pose_landmarks.landmark]),
        np.array([(p.x, p.y, p.z) for p in seen.pose_world_landmarks.landmark]),
        np.stack([missing if hand is None else _array(hand, (width, height)) for hand in hands]),
        face,
        np.zeros((height, width), bool) if seen.segmentation_mask is None else seen.segmentation_mask > 0.5,
    )


def _array(found: Any, size: tuple[int, int]) -> Array:
    """(n, 3) pixels and depth in pixels from mediapipe's shares of the picture (depth is scaled as x)."""
    width, height = size
    scale, shift = np.array([width, height, width]), np.array([0.5, 0.5, 0])
    return np.array([(p.x, p.y, p.z) for p in found.landmark]) * scale - shift


def _unmirrored(person: Landmarks) -> Landmarks:
    """The same person in the picture that was not mirrored: left and right changed back."""
    last = person.image_size[1] - 1
    away = np.array([-1, 1])
    face = person.face
    return replace(
        person,
        points=person.points[_MIRROR] * away + [last, 0],
        visible=person.visible[_MIRROR],
        world=person.world[_MIRROR] * [-1, 1, 1],
        hands=person.hands[::-1] * [-1, 1, 1] + [last, 0, 0],
        face=None if face is None else (last - face[2], face[1], last - face[0], face[3]),
        mask=person.mask[:, ::-1],
    )


def _cropped(person: Landmarks, left: int, top: int, size: tuple[int, ...]) -> Landmarks:
    """The same person where the picture is a window of the one it was found in."""
    face = person.face
    return replace(
        person,
        image_size=(size[0], size[1]),
        points=person.points - [left, top],
        hands=person.hands - [left, top, 0],
        face=None if face is None else (face[0] - left, face[1] - top, face[2] - left, face[3] - top),
        mask=person.mask[top : top + size[0], left : left + size[1]],
    )


def _scaled(person: Landmarks, size: tuple[int, int], factor: Array) -> Landmarks:
    """The same person in the picture at another size. ``factor``: (2,) by which x and y grow."""
    if person.image_size == size:
        return person
    deep, shift = np.array([*factor, factor[0]]), np.array([0.5, 0.5, 0])
    face = person.face
    return replace(
        person,
        image_size=size,
        points=(person.points + 0.5) * factor - 0.5,
        hands=(person.hands + shift) * deep - shift,
        face=None if face is None else tuple((np.array(face) + 0.5) * np.tile(factor, 2) - 0.5),
        mask=cv2.resize(person.mask.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST) > 0,
    )


def _is_new(person: Landmarks, found: list[Landmarks]) -> bool:
    """Whether this is another person, and not what is left of one who was painted over."""
    if not found:
        return True
    if person.visible[_TRUNK].min() < 0.6 or person.prominence < 0.15 * found[0].prominence:
        return False
    return all(_overlap(person.box, other.box) < 0.5 for other in found)


def _overlap(a: Box, b: Box) -> float:
    """Common area as a share of the smaller box."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (a, b))
    return max(0.0, wide) * max(0.0, high) / max(smaller, 1e-9)


def _paint_over(image: Array, person: Landmarks) -> Array:
    """The picture with the person's pixels and joints in the colour of what is around them."""
    hide: Array = person.mask.astype(np.uint8)
    reach = max(3, round(0.04 * (person.box[3] - person.box[1])))
    for x, y in person.points[person.inside]:
        cv2.circle(hide, (round(x), round(y)), reach, 1, -1)
    hide = cv2.dilate(hide, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1)))
    around = image[hide == 0]
    colour = np.median(around, axis=0) if len(around) else np.full(3, 255)
    return np.where(hide[..., None] > 0, colour.astype(np.uint8), image)
