"""Real data sets to records, each read exactly as it unpacks; what is missing is counted, the rest goes on.

A *scan* walks a data set and yields one :class:`Entry` a person picture: the only place that knows the set's folders,
categories and label ids. Everything after it is the same for all. A person picture is taken as it is when any decoder
reads it alike (upright 8-bit RGB), else written again as PNG.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.data_sets.deepfashion import scan_deepfashion
from data_prep.data_sets.dresscode import scan_dresscode
from data_prep.data_sets.entries import Entry, Missing, Scan
from data_prep.data_sets.folder import scan_folder
from data_prep.data_sets.vitonhd import scan_vitonhd
from data_prep.records import as_line, link
from data_prep.run import Nothing, Outcome, add_source, run_stage, write_bytes, write_image
from omfa.files import read_text
from omfa.images import decode, is_plain, opened, read_file
from omfa.records.keypoints import read_keypoints
from omfa.records.labels import read_labels, to_parts
from omfa.records.prepared import GarmentRef, KeypointsRef, Maps, Record, resolve


def convert(
    item_id: str, entry: Entry, out: Path, *, stage: str, root: Path, follow_links: bool = False
) -> list[dict[str, Any]]:
    """Work of the runner: one entry of a data set to one record.

    Raises:
        ValueError: a picture that can't be read, a map that does not fit, a path that leads out of the data set.
    """
    person, size = _take(root, entry.person, out, f"person/{item_id}", follow_links)
    garments = []
    for category, path in entry.garments:
        garments.append(GarmentRef(category, _take(root, path, out, f"garment/{item_id}-{category}", follow_links)[0]))
    maps = None
    if entry.labels is not None:
        (path, names), parts = entry.labels, f"parts/{item_id}.png"
        maps = Maps(parts)
        write_image(out / parts, to_parts(read_labels(resolve(root, path, follow_links), names), names, size))
    points = None if entry.keypoints is None else f"keypoints/{item_id}.json"
    if entry.keypoints is not None and points is not None:
        write_bytes(out / points, keypoints(resolve(root, entry.keypoints, follow_links), size))
    record = Record(
        id=item_id,
        split=entry.split,
        person_id=entry.person_id,
        outfit_id=entry.outfit_id,
        file_name=person,
        garments=tuple(garments),
        maps=maps,
        keypoints=None if points is None else KeypointsRef(points, "openpose-18"),
        caption=entry.caption,
        view_yaw=entry.view_yaw,
        provenance={"stage": stage, "source": entry.person},
    )
    return [as_line(record)]


def keypoints(path: Path, size: tuple[int, int]) -> bytes:
    """OpenPose's file of 18 points in pixels of a picture, out of OpenPose's own of 25 or of DressCode's.

    Args:
        path: ``people[0].pose_keypoints_2d``, x, y and confidence of 25 points in pixels; or ``keypoints``, x, y,
            confidence and number of 18 points in a picture of 384x512, -1 where not seen.
        size: (H, W) of the picture.

    Raises:
        ValueError: another file, or nobody in it.
    """
    said = json.loads(read_text(path))
    if isinstance(said, dict) and "keypoints" in said:
        try:
            points = np.asarray(said["keypoints"], np.float64).reshape(18, -1)[:, :3]
        except (ValueError, TypeError) as e:
            raise ValueError(f"{path}: no 18 keypoints ({e}); write the file again") from None
        points = points * [size[1] / 384, size[0] / 512, 1] * (points[:, :1] >= 0)
    else:
        points = read_keypoints(path, "openpose-25")
    told = [round(float(value), 3) for value in points.flatten()]
    return json.dumps({"people": [{"pose_keypoints_2d": told}]}).encode()


def _take(root: Path, path: str, out: Path, target: str, follow_links: bool) -> tuple[str, tuple[int, int]]:
    """Bring a picture over; its new path (with suffix) and (H, W)."""
    source = resolve(root, path, follow_links)
    data = read_file(source)
    image = decode(data, str(source))
    with opened(data, str(source)) as raw:
        kind = {"JPEG": ".jpg", "PNG": ".png"}.get(raw.format or "", "")
        plain = raw.mode == "RGB" and is_plain(raw)
    if kind and plain:
        link(source, out / (target + kind))
    else:
        kind = ".png"
        write_image(out / (target + kind), np.asarray(image))
    return target + kind, (image.height, image.width)


SCANS: dict[str, Scan] = {
    "vitonhd": scan_vitonhd,
    "dresscode": scan_dresscode,
    "deepfashion-mm": scan_deepfashion,
    "folder": scan_folder,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the stages vitonhd, dresscode, deepfashion-mm and folder: where the data set lies."""
    stage = parser.get_default("stage")
    what = "folder of photos" if stage == "folder" else "root of the data set, as it unpacks (see below)"
    add_source(parser, "images", images=what)
    help_links = "also take what symbolic links bring in from outside of it (default: refused by name)"
    parser.add_argument("--follow-links", action="store_true", help=help_links)
    parser.epilog = " ".join((SCANS[stage].__doc__ or "").split())


def main(args: argparse.Namespace) -> Outcome:
    """Read a data set into records; what is missing is said and listed in ``missing.jsonl``."""
    with Missing(args.out, args.follow_links) as missing:
        entries = islice(SCANS[args.stage](args.images, missing), args.limit)
        links: dict[str, Any] = (
            {"follow_links": True} if args.follow_links else {}
        )  # the call stays what it was without
        work = partial(convert, stage=args.stage, root=args.images, **links)
        try:
            outcome = run_stage(args.stage, entries, work, args.out, workers=args.workers, engine=args.engine)
        except Nothing:
            raise missing.nothing(args.images, " ".join((SCANS[args.stage].__doc__ or "").split())) from None
    return missing.tell(args.stage, outcome)
