"""Photos to body parameters and pose maps: ``python -m data_prep pose-maps --images DIR | --records DIR --out DIR``.

Who estimates is a choice: landmarks (offline, the default), parameters made by others, or HMR2.0. Everything after it
is the same: the parameters, the pose map, the numbers that say how well it fits, and a strip to look at (photo,
overlay, pose map, the body turned by 90 degrees); the strips are put together to contact sheets at the end. A fit that
can't be right (:mod:`data_prep.poses.gates`) is a failure with its reason, and its strip lies in ``contact/failed``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.data_sets.convert import convert
from data_prep.data_sets.entries import Entry, Missing
from data_prep.data_sets.folder import scan_folder
from data_prep.poses.fitting import Fit, fit, view_yaw
from data_prep.poses.gates import doubt, measured
from data_prep.poses.landmarks import detect, require
from data_prep.poses.parameter_files import FORMATS, Imported
from data_prep.poses.render import existing_file
from data_prep.records import as_line, carry, record_items
from data_prep.run import Nothing, Outcome, add_source, existing_folder, positive, run_stage, write_image
from omfa.bodies.body import Body, load_body
from omfa.bodies.parameters import BodyParameters
from omfa.bodies.placing import turned
from omfa.bodies.pose_render import Style, render_pose_map
from omfa.bodies.surface import resized
from omfa.commands import find_device
from omfa.images import read_image
from omfa.records.prepared import METADATA, PoseRef, Record, resolve

Array = NDArray[Any]

STRIP = 320  # pixels a strip is high
SHEET = (8, 2)  # strips down and across a sheet


class Estimator(Protocol):
    """Whatever finds a body in a photo: a frozen dataclass, its model loaded once a process."""

    def __call__(self, item_id: str, rgb: Array, person: int) -> Fit:
        """The ``person``-th (from 1) of the people in a photo (H, W, 3) uint8.

        Raises:
            ValueError: nobody is there, or not that many.
        """


@dataclass(frozen=True)
class FromLandmarks:
    """Landmarks of mediapipe, and a body fitted to them."""

    body: Path | None = None

    def __call__(self, item_id: str, rgb: Array, person: int) -> Fit:
        """See :class:`Estimator`; people are counted by how prominent they are."""
        people = detect(rgb)
        if person > len(people):
            raise ValueError(f"person {person} was asked for; {len(people)} found")
        found = fit(people[person - 1 : person], load_body(self.body))[0]
        return replace(found, people=len(people))


# ---------------------------------------------------------------------------------------------------- one photo


@dataclass(frozen=True)
class _Call:
    """What is the same for every item of a run."""

    source: Path
    estimator: Estimator
    person: int
    body: Path | None
    style: Style


def estimate_photo(item_id: str, entry: Entry, out: Path, *, call: _Call) -> list[dict[str, Any]]:
    """Work of the runner: a photo to a record with its pose."""
    rgb = np.asarray(read_image(resolve(call.source, entry.person)))
    found = call.estimator(item_id, rgb, call.person)
    line = convert(item_id, entry, out, stage="pose-maps", root=call.source)[0]
    return [_posed(Record.from_json(json.dumps(line)), rgb, found, out, call)]


def estimate_record(item_id: str, record: Record, out: Path, *, call: _Call) -> list[dict[str, Any]]:
    """Work of the runner: a record with a new pose."""
    rgb = np.asarray(read_image(resolve(call.source, record.file_name)))
    found = call.estimator(item_id, rgb, call.person)
    carry(replace(record, pose=None), call.source, out)
    return [_posed(record, rgb, found, out, call)]


def _posed(record: Record, rgb: Array, found: Fit, out: Path, call: _Call) -> dict[str, Any]:
    """Write what was found; the record that tells of it. ValueError if it can't be right."""
    body = load_body(call.body)
    pose = PoseRef(f"pose/{record.id}.png", f"pose/{record.id}.npz")
    assert pose.map is not None and pose.params is not None
    picture = render_pose_map(body, found.params, call.style, engine="torch")
    found = measured(found, picture.max(axis=2) > 0)
    strip, reason = contact_strip(body, found.params, rgb, picture), doubt(found)
    if reason:
        write_image(out / f"contact/failed/{record.id}.jpg", strip)
        raise ValueError(reason)
    write_image(out / pose.map, picture)
    found.params.save(out / pose.params)
    write_image(out / f"contact/{record.id}.jpg", strip)
    said = {"estimator": found.estimator, "body": found.params.body, "person": call.person, "people": found.people}
    said |= {"confidence": round(float(found.confidence[:22].mean()), 3), **found.residuals}
    yaw = record.view_yaw if record.view_yaw is not None else view_yaw(found.params)
    return as_line(replace(record, pose=pose, view_yaw=yaw, provenance=record.provenance | {"pose": said}))


# ---------------------------------------------------------------------------------------------------- to look at


def contact_strip(body: Body, params: BodyParameters, rgb: Array, picture: Array) -> Array:
    """(STRIP, 4 w, 3) uint8: photo, overlay, pose map, and the body turned to its left by 90 degrees."""
    size = (STRIP, max(1, round(STRIP * rgb.shape[1] / rgb.shape[0])))
    photo, pose = (cv2.resize(a, size[::-1], interpolation=cv2.INTER_AREA) for a in (rgb, picture))
    shown = (picture.max(axis=2) > 0).astype(np.float32)
    cover = 0.65 * cv2.resize(shown, size[::-1], interpolation=cv2.INTER_AREA)[..., None]
    overlay = (photo * (1 - cover) + 0.65 * pose).clip(0, 255).astype(np.uint8)  # black is nothing: soft edges add up
    side = render_pose_map(body, resized(turned(params, 90), size), supersample=1, engine="torch")
    return np.concatenate([photo, overlay, pose, side], axis=1)


def write_sheets(out: Path) -> list[Path]:
    """Put the strips of a folder together, in the order of its metadata, as ``contact_001.jpg`` and so on."""
    with (out / METADATA).open(encoding="utf-8") as file:
        paths = [out / "contact" / f"{json.loads(line)['id']}.jpg" for line in file if line.strip()]
    strips = [p for p in paths if p.is_file()]
    rows, columns = SHEET
    written = []
    for number in range(-(-len(strips) // (rows * columns))):
        pictures = [np.asarray(read_image(p)) for p in strips[number * rows * columns :][: rows * columns]]
        width = max(p.shape[1] for p in pictures)
        pictures = [np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in pictures]
        pictures += [np.full_like(pictures[0], 255)] * (-len(pictures) % columns)
        sheet = np.concatenate(
            [np.concatenate(pictures[k : k + columns], axis=1) for k in range(0, len(pictures), columns)]
        )
        written.append(out / f"contact_{number + 1:03d}.jpg")
        write_image(written[-1], sheet)
    return written


# ---------------------------------------------------------------------------------------------------- command line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the stage."""
    add_source(parser, "images", "records")
    parser.add_argument(
        "--person", metavar="N", type=positive, default=1, help="which of several people, the most prominent first"
    )
    parser.add_argument(
        "--estimator", choices=("landmarks", "import", "hmr2"), default="landmarks", help="default landmarks"
    )
    parser.add_argument("--params", metavar="DIR", type=existing_folder, help="import: ID.npz or ID.json by photo")
    parser.add_argument("--format", choices=FORMATS, help="import: who made --params")
    parser.add_argument(
        "--made-with",
        metavar="FILE",
        type=existing_file,
        help="import: SMPL-X .npz behind --params, to convert exactly",
    )
    parser.add_argument(
        "--checkpoint", metavar="FILE", type=existing_file, help="hmr2: 4D-Humans' Lightning checkpoint"
    )
    parser.add_argument("--boxes", metavar="FILE", type=existing_file, help="hmr2: people's boxes, json; else detected")
    parser.add_argument("--device", default="cpu", help="hmr2: cpu (default), cuda, mps")
    parser.add_argument("--style", choices=get_args(Style), default="parts_blend", help="default parts_blend")
    parser.add_argument(
        "--body", metavar="FILE", type=existing_file, help="a licensed SMPL-X .npz (default: the open body)"
    )


def make_estimator(args: argparse.Namespace) -> Estimator:
    """The estimator that the options ask for.

    Raises:
        ValueError: what it needs is not there.
    """
    if args.estimator == "import":
        if args.params is None or args.format is None:
            raise ValueError(f"--estimator import needs --params DIR and --format, one of {', '.join(FORMATS)}")
        return Imported(args.params, args.format, args.body, args.made_with)
    if args.estimator == "hmr2":
        from data_prep.poses import hmr2

        if args.checkpoint is None:
            raise ValueError(f"--estimator hmr2 needs --checkpoint: {hmr2.WHERE}")
        hmr2.cached(args.checkpoint, args.device)  # a wrong file is told before the first photo
        if args.boxes is not None:
            hmr2.read_boxes(args.boxes)
        else:
            require()
        return hmr2.Hmr2(args.checkpoint, args.boxes, args.body, find_device(args.device))
    require()
    return FromLandmarks(args.body)


def main(args: argparse.Namespace) -> Outcome:
    """Estimate every photo.

    Raises:
        ValueError: the estimator can't be used, or the body can't be loaded.
    """
    estimator = make_estimator(args)
    load_body(args.body)
    call = _Call(args.images or args.records, estimator, args.person, args.body, args.style)
    items: Iterator[tuple[str, Any]]
    if args.images is not None:
        with Missing(args.out) as missing:
            items = islice(scan_folder(args.images, missing), args.limit)
            work: Any = partial(estimate_photo, call=call)
            try:
                outcome = run_stage("pose-maps", items, work, args.out, workers=args.workers, engine=args.engine)
            except Nothing:
                raise missing.nothing(args.images, "a folder of photos") from None
        outcome = missing.tell("pose-maps", outcome)
    else:
        work = partial(estimate_record, call=call)
        items = record_items(args.records, args.limit)
        outcome = run_stage("pose-maps", items, work, args.out, workers=args.workers, engine=args.engine)
    write_sheets(args.out)
    return outcome
