"""Eight small hand-made records: flat dressed figures, two people, two outfits each, two poses each.

python -m tests.figures OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np

from omfa.components import Category
from omfa.records.labels import Part
from omfa.records.prepared import FaceRef, GarmentRef, KeypointsRef, Maps, PoseRef, Record
from tests.records.writing import write_records

SIZE = (64, 48)
SCALE = 8  # drawn large, then averaged down: soft edges
SKIN = {"ann": (232, 190, 160), "ben": (120, 80, 55)}
HAIR = {"ann": (90, 50, 20), "ben": (20, 20, 25)}
OUTFITS = {  # person: outfits of (upper or dress, lower) colours and pattern
    "ann": [((200, 40, 40), (40, 50, 120), "stripes"), ((40, 140, 80), None, "plain")],
    "ben": [((240, 200, 60), (60, 60, 60), "plain"), ((90, 60, 160), (190, 170, 140), "stripes")],
}


def _blank(size: tuple[int, int], colour: tuple[int, ...]) -> np.ndarray:
    return np.full((size[0] * SCALE, size[1] * SCALE, 3), colour, np.uint8)


def _small(picture: np.ndarray) -> np.ndarray:
    return cv2.resize(picture, None, fx=1 / SCALE, fy=1 / SCALE, interpolation=cv2.INTER_AREA)


def _fill(
    picture: np.ndarray, points: list[tuple[float, float]], colour: tuple[int, ...], pattern: str = "plain"
) -> None:
    mask = np.zeros(picture.shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.round(np.array(points) * SCALE).astype(np.int32)], 255)
    picture[mask > 0] = colour
    if pattern == "stripes":
        rows = (np.arange(picture.shape[0]) // (3 * SCALE)) % 2 == 1
        picture[(mask > 0) & rows[:, None]] = 255


def _limb(picture: np.ndarray, a: tuple[float, float], b: tuple[float, float], colour: tuple[int, ...]) -> None:
    ends = [tuple(int(v * SCALE) for v in p) for p in (a, b)]
    cv2.line(picture, ends[0], ends[1], colour, 5 * SCALE, cv2.LINE_AA)


def _upper(x: float, dress: bool) -> list[tuple[float, float]]:
    hem = 46.0 if dress else 34.0
    flare = 11.0 if dress else 8.0
    return [(x - 8, 17), (x + 8, 17), (x + 7, 27), (x + flare, hem), (x - flare, hem), (x - 7, 27)]


def _lower(x: float, stride: float) -> list[tuple[float, float]]:
    legs = [(x + 7 + stride, 56), (x + 1 + stride, 56), (x, 40), (x - 1 - stride, 56), (x - 7 - stride, 56)]
    return [(x - 8, 33), (x + 8, 33), *legs]


def draw_person(name: str, outfit: int, pose: int) -> np.ndarray:
    """A dressed figure, (64, 48, 3) uint8: arms down (pose 0) or raised (pose 1)."""
    upper, lower, pattern = OUTFITS[name][outfit]
    picture, x, stride = _blank(SIZE, (225, 228, 232)), 24.0, 2.0 * pose
    for side in (-1, 1):
        hand = (x + side * (15 if pose else 12), 8.0 if pose else 36.0)
        _limb(picture, (x + side * 7, 20.0), hand, upper)
        cv2.circle(picture, tuple(int(v * SCALE) for v in hand), 2 * SCALE + 4, SKIN[name], -1, cv2.LINE_AA)
        if lower is None:
            _limb(picture, (x + side * 4, 44.0), (x + side * (4 + stride), 57.0), SKIN[name])
        foot = (x + side * (4 + stride), 59.0)
        cv2.ellipse(picture, tuple(int(v * SCALE) for v in foot), (4 * SCALE, 2 * SCALE), 0, 0, 360, (50, 40, 40), -1)
    if lower is not None:
        _fill(picture, _lower(x, stride), lower)
    _fill(picture, _upper(x, lower is None), upper, pattern)
    _head(picture, name, (x, 10.0), 6.0)
    return _small(picture)


def draw_parts(name: str, outfit: int, pose: int) -> np.ndarray:
    """The part map of :func:`draw_person`, (64, 48) uint8."""
    lower, x, stride = OUTFITS[name][outfit][1], 24.0, 2.0 * pose
    big = np.zeros((SIZE[0] * SCALE, SIZE[1] * SCALE, 3), np.uint8)

    def limb(a: tuple[float, float], b: tuple[float, float], part: Part) -> None:
        ends = [tuple(int(v * SCALE) for v in p) for p in (a, b)]
        cv2.line(big, ends[0], ends[1], (int(part),) * 3, 5 * SCALE)

    for side, arm, leg in ((-1, Part.RIGHT_ARM, Part.RIGHT_LEG), (1, Part.LEFT_ARM, Part.LEFT_LEG)):
        hand = (x + side * (15 if pose else 12), 8.0 if pose else 36.0)
        limb((x + side * 7, 20.0), hand, Part.UPPER if lower is not None else Part.DRESS)
        cv2.circle(big, tuple(int(v * SCALE) for v in hand), 2 * SCALE + 4, (int(arm),) * 3, -1)
        if lower is None:
            limb((x + side * 4, 44.0), (x + side * (4 + stride), 57.0), leg)
        foot = tuple(int(v * SCALE) for v in (x + side * (4 + stride), 59.0))
        cv2.ellipse(big, foot, (4 * SCALE, 2 * SCALE), 0, 0, 360, (int(Part.SHOES),) * 3, -1)
    if lower is not None:
        _fill(big, _lower(x, stride), (int(Part.PANTS),) * 3)
    _fill(big, _upper(x, lower is None), (int(Part.DRESS if lower is None else Part.UPPER),) * 3)
    cv2.circle(big, (int(x * SCALE), int(8.8 * SCALE)), 6 * SCALE, (int(Part.HAIR),) * 3, -1)
    cv2.ellipse(big, (int(x * SCALE), 11 * SCALE), (39, 43), 0, 0, 360, (int(Part.FACE),) * 3, -1)
    return big[SCALE // 2 :: SCALE, SCALE // 2 :: SCALE, 0]


def keypoints(pose: int) -> list[list[float]]:
    """OpenPose's 18 points of a figure: x, y, confidence."""
    x, stride, hand = 24.0, 2.0 * pose, (15.0, 8.0) if pose else (12.0, 36.0)
    points = [(x, 11.0), (x, 17.0)]
    for side in (-1, 1):  # the person's right is on the picture's left
        points += [
            (x + side * 7, 20.0),
            (x + side * (7 + hand[0]) / 2, (20 + hand[1]) / 2),
            (x + side * hand[0], hand[1]),
        ]
    for side in (-1, 1):
        points += [(x + side * 4, 34.0), (x + side * (4 + stride / 2), 46.0), (x + side * (4 + stride), 57.0)]
    points += [(x - 2, 10.0), (x + 2, 10.0), (x - 5, 11.0), (x + 5, 11.0)]
    return [[*point, 1.0] for point in points]


def _head(picture: np.ndarray, name: str, centre: tuple[float, float], radius: float) -> None:
    x, y = (int(v * SCALE) for v in centre)
    r = int(radius * SCALE)
    cv2.circle(picture, (x, y - r // 5), r, HAIR[name], -1, cv2.LINE_AA)
    cv2.ellipse(picture, (x, y + r // 6), (int(r * 0.8), int(r * 0.9)), 0, 0, 360, SKIN[name], -1, cv2.LINE_AA)
    for side in (-1, 1):
        cv2.circle(picture, (x + side * r // 3, y), max(2, r // 8), (30, 30, 40), -1, cv2.LINE_AA)
    cv2.ellipse(picture, (x, y + r // 2), (r // 4, r // 10), 0, 0, 180, (170, 60, 60), max(1, r // 12), cv2.LINE_AA)


def draw_face(name: str) -> np.ndarray:
    """A head crop, (24, 24, 3) uint8."""
    picture = _blank((24, 24), (225, 228, 232))
    _head(picture, name, (12.0, 12.0), 10.0)
    return _small(picture)


def draw_garment(name: str, outfit: int, category: Category) -> np.ndarray:
    """A shop picture on white, (64, 48, 3) uint8."""
    upper, lower, pattern = OUTFITS[name][outfit]
    picture = _blank(SIZE, (255, 255, 255))
    if category is Category.LOWER:
        assert lower is not None
        _fill(picture, _lower(24.0, 0.0), lower)
    else:
        for side in (-1, 1):
            _limb(picture, (24.0 + side * 7, 20.0), (24.0 + side * 12, 34.0), upper)
        _fill(picture, _upper(24.0, category is Category.DRESS), upper, pattern)
    return _small(picture)


def draw_pose(pose: int) -> np.ndarray:
    """A pose map in flat part colours, (64, 48, 3) uint8."""
    picture, x, stride = _blank(SIZE, (0, 0, 0)), 24.0, 2.0 * pose
    for side, arm, leg in ((-1, (255, 128, 0), (0, 160, 255)), (1, (160, 255, 0), (160, 0, 255))):
        _limb(picture, (x + side * 7, 20.0), (x + side * (15 if pose else 12), 8.0 if pose else 36.0), arm)
        _limb(picture, (x + side * 4, 34.0), (x + side * (4 + stride), 57.0), leg)
    _fill(picture, _upper(x, False), (200, 60, 120))
    cv2.circle(picture, (int(x * SCALE), 10 * SCALE), 6 * SCALE, (80, 220, 180), -1, cv2.LINE_AA)
    return _small(picture)


def make_records(out: Path) -> list[Record]:
    """Draw all eight records into a folder and write its metadata."""
    records = []

    def save(path: str, pixels: np.ndarray) -> str:
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(out / path), pixels[..., ::-1] if pixels.ndim == 3 else pixels)
        return path

    for name, outfits in OUTFITS.items():
        face = save(f"face/{name}.png", draw_face(name))
        for outfit, (_, lower, _) in enumerate(outfits):
            worn = [Category.DRESS] if lower is None else [Category.UPPER, Category.LOWER]
            garments = tuple(
                GarmentRef(c, save(f"garment/{name}-{outfit}-{c}.png", draw_garment(name, outfit, c))) for c in worn
            )
            for pose in (0, 1):
                key = f"{name}-{outfit}-{pose}"
                points = out / f"keypoints/{pose}.json"
                points.parent.mkdir(exist_ok=True)
                points.write_text(
                    json.dumps({"people": [{"pose_keypoints_2d": [v for point in keypoints(pose) for v in point]}]})
                )
                records.append(
                    Record(
                        id=key,
                        split="train",
                        person_id=name,
                        outfit_id=f"{name}-{outfit}",
                        file_name=save(f"person/{key}.png", draw_person(name, outfit, pose)),
                        face=FaceRef(face),
                        garments=garments,
                        pose=PoseRef(save(f"pose/{pose}.png", draw_pose(pose))),
                        maps=Maps(save(f"parts/{key}.png", draw_parts(name, outfit, pose))),
                        keypoints=KeypointsRef(f"keypoints/{pose}.json", "openpose-18"),
                        caption=f"{name} in outfit {outfit}",
                        view_yaw=0.0,
                        provenance={"drawn_by": "tests.figures"},
                    )
                )
    write_records(out, records)
    return records


if __name__ == "__main__":
    make_records(Path(sys.argv[1]))
