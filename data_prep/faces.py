"""Head crops: ``python -m data_prep faces --records DIR --out DIR``; from the fitted body, checked by a face detector.

A crop is made only where the photo shows a face: eyes inside the picture, turned to the camera, and found by a detector
that knows nothing of the body. Else the record has none and says why.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.poses.landmarks import Box, find_faces, require
from data_prep.poses.render import existing_file
from data_prep.records import as_line, carry, record_items
from data_prep.run import Outcome, add_source, run_stage, write_image
from omfa.bodies.body import KEY_VERTICES, Body, load_body
from omfa.bodies.parameters import BodyParameters
from omfa.bodies.placing import project
from omfa.bodies.pose_render import head_box
from omfa.bodies.surface import resized
from omfa.images import read_image
from omfa.records.prepared import FaceRef, Record, resolve

Array = NDArray[Any]

LARGEST = 512  # pixels a side; larger crops are scaled down
SMALLEST = 24  # a smaller head shows no face


@dataclass(frozen=True, eq=False)
class Head:
    """A head in a photo.

    Args:
        crop: (S, S, 3) uint8, or None where no face can be seen.
        box: x0, y0, x1, y1 of the crop in the photo.
        missing: why there is no crop; empty where there is one.
        params: the body, before the crop's own camera; None where there is no crop.
    """

    crop: Array | None
    box: tuple[int, int, int, int]
    missing: str = ""
    params: BodyParameters | None = None


def head_crop(rgb: Array, params: BodyParameters, body: Body) -> Head:
    """The head of a fitted body, cut out square, if its face can be seen.

    Args:
        rgb: (H, W, 3) uint8, the photo.
        params: fitted to it.
        body: the body the parameters were made with.
    """
    box = _inside(head_box(body, params), rgb.shape)
    vertices = body.posed(params).vertices[0].cpu().numpy()
    eyes, ears = (vertices[[KEY_VERTICES[side + part] for side in "lr"]] for part in ("eye", "ear"))
    pixels = project(eyes, params.K)
    height, width = rgb.shape[:2]
    side = box[2] - box[0]
    if side < SMALLEST:
        return Head(None, box, f"the head is only {side} pixels wide")
    if not ((pixels >= 0) & (pixels < [width, height])).all():
        return Head(None, box, "the photo cuts the face off")
    if (ears.mean(0) - eyes.mean(0))[2] < 0:  # the eyes lie behind the ears
        return Head(None, box, "the face is turned away")
    if not any(_is_face(found, box) for found in _faces_near(rgb, box)):
        return Head(None, box, "no face was found where the body has its head")
    crop = rgb[box[1] : box[3], box[0] : box[2]]
    if side > LARGEST:
        crop = cv2.resize(crop, (LARGEST, LARGEST), interpolation=cv2.INTER_AREA)
    moved = np.array([[1, 0, -box[0]], [0, 1, -box[1]], [0, 0, 1.0]])
    in_box = replace(params, K=moved @ params.K, image_size=(side, side))
    return Head(np.ascontiguousarray(crop), box, params=resized(in_box, crop.shape[:2]))


def _inside(box: tuple[int, int, int, int], shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """The box moved into the picture, made smaller only where it has to be."""
    height, width = shape[:2]
    side = min(box[2] - box[0], height, width)
    x0 = int(np.clip((box[0] + box[2] - side) // 2, 0, width - side))
    y0 = int(np.clip((box[1] + box[3] - side) // 2, 0, height - side))
    return x0, y0, x0 + side, y0 + side


def _faces_near(rgb: Array, box: tuple[int, int, int, int]) -> list[Box]:
    """Faces in and around a box, in pixels of the picture."""
    side = box[2] - box[0]
    x0, y0 = max(0, box[0] - side), max(0, box[1] - side)
    window = rgb[y0 : box[3] + side, x0 : box[2] + side]
    scale = min(1.0, 384 / max(window.shape[:2]))
    small = cv2.resize(window, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    back = np.array([window.shape[1] / small.shape[1], window.shape[0] / small.shape[0]] * 2)
    found = [np.array(face) * back + [x0, y0, x0, y0] for face in find_faces(small)]
    return [(float(a), float(b), float(c), float(d)) for a, b, c, d in found]


def _is_face(face: Box, box: tuple[int, int, int, int]) -> bool:
    """Whether a face has its middle in the box and a fitting size."""
    x, y, side = (face[0] + face[2]) / 2, (face[1] + face[3]) / 2, box[2] - box[0]
    return box[0] <= x <= box[2] and box[1] <= y <= box[3] and 0.2 < (face[2] - face[0]) / side < 1.0


def crop_record(item_id: str, record: Record, out: Path, *, source: Path, body: Path | None) -> list[dict[str, Any]]:
    """Work of the runner: the record with its head crop, or with the reason why it has none."""
    if record.pose is None or record.pose.params is None:
        raise ValueError("the record has no body parameters: fit them first with 'python -m data_prep pose-maps'")
    rgb = np.asarray(read_image(resolve(source, record.file_name)))
    params = BodyParameters.load(resolve(source, record.pose.params))
    if params.image_size != rgb.shape[:2]:
        raise ValueError(f"parameters are for a picture of {params.image_size}, this one has {rgb.shape[:2]} (H, W)")
    head = head_crop(rgb, params, load_body(body))
    record = replace(record, face=None, provenance=record.provenance | {"head_box": list(head.box)})
    carry(record, source, out)
    if head.crop is None:
        return [as_line(replace(record, provenance=record.provenance | {"no_face": head.missing}))]
    path = f"face/{item_id}.png"
    write_image(out / path, head.crop)
    pose = f"face/{item_id}.npz"
    assert head.params is not None
    head.params.save(out / pose)
    return [as_line(replace(record, face=FaceRef(path, record.id, pose)))]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the stage."""
    add_source(parser, "records")
    parser.add_argument(
        "--body", metavar="FILE", type=existing_file, help="a licensed SMPL-X .npz (default: the open body)"
    )


def main(args: argparse.Namespace) -> Outcome:
    """Crop the head of every record.

    Raises:
        ValueError: mediapipe is not installed.
    """
    require()
    load_body(args.body)
    work = partial(crop_record, source=args.records, body=args.body)
    items = record_items(args.records, args.limit)
    return run_stage("faces", items, work, args.out, workers=args.workers, engine=args.engine)
