"""A body for every garment picture: ``python -m data_prep garment-poses --records DIR --out DIR``.

Says where a body would stand in each shop picture, wearing what it shows: predicted from the picture, or the category's
fixed standing where the prediction can't be right. What has a body keeps it: the wardrobe's are exact, and a cut-out
has its person's (:mod:`data_prep.garments`). A strip to look at for each record, garment by garment with the body's
outline; the strips are put together to contact sheets at the end. ``provenance.garment_poses`` tells which is which.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.poses.pose_maps import STRIP, write_sheets
from data_prep.poses.render import existing_file
from data_prep.records import as_line, carry, record_items
from data_prep.run import Outcome, add_source, run_stage, write_image
from omfa.bodies.body import Body, load_body
from omfa.bodies.parameters import BodyParameters
from omfa.bodies.placing import project
from omfa.bodies.pose_render import person_mask
from omfa.bodies.predicted_standing import KINDS, stand_in
from omfa.bodies.surface import resized
from omfa.components import ACCESSORIES
from omfa.images import pixels_to_tensor, read_image
from omfa.records.prepared import GarmentRef, Record, resolve

Array = NDArray[Any]


def pose_garments(item_id: str, record: Record, out: Path, *, source: Path, body: Path | None) -> list[dict[str, Any]]:
    """Work of the runner: the record with a body for each of its garment pictures."""
    wearer, garments, known, tiles = load_body(body), list[GarmentRef](), dict[str, str](), list[Array]()
    carry(record, source, out)
    for garment in record.garments:
        if garment.category in ACCESSORIES:  # nothing predicts those
            garments.append(garment)
            continue
        kind = KINDS[KINDS.index(garment.category.value)]
        picture, params = np.asarray(read_image(resolve(source, garment.path))), None
        if garment.pose is not None:
            params, how = BodyParameters.load(resolve(source, garment.pose)), "given"
        elif garment.kind == "cutout":
            how = "none: cut out before its person's body was known; fit it and cut again"
        else:
            params, how = stand_in(pixels_to_tensor(picture), kind, body=wearer)
            garment = replace(garment, pose=str(PurePosixPath(garment.path).with_suffix(".npz")))
            assert garment.pose is not None
            params.save(out / garment.pose)
        garments.append(garment)
        known[garment.category.value] = how
        tiles += [] if params is None else [outlined(picture, params, wearer)]
    if tiles:
        write_image(out / f"contact/{item_id}.jpg", np.concatenate(tiles, axis=1))
    told = record.provenance | ({"garment_poses": known} if known else {})
    return [as_line(replace(record, garments=tuple(garments), provenance=told))]


def outlined(picture: Array, params: BodyParameters, body: Body) -> Array:
    """(STRIP, w, 3) uint8: a garment picture (H, W, 3) uint8 with the outline of its body and the bones' ends."""
    size = (STRIP, max(1, round(STRIP * picture.shape[1] / picture.shape[0])))
    tile = cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA)
    small = resized(params, size)
    try:
        shown = person_mask(body, small, "torch").astype(np.uint8)
        at = project(body.posed(small).joints[0].cpu().numpy()[:22], small.K)
    except ValueError:  # another body's parameters: nothing to draw
        return tile
    edge, _ = cv2.findContours(shown, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(tile, edge, -1, (230, 0, 120), 2)
    for x, y in at[np.isfinite(at).all(1)].round().astype(int).tolist():
        cv2.circle(tile, (x, y), 3, (0, 160, 80), -1)
    return tile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the stage."""
    add_source(parser, "records")
    parser.add_argument(
        "--body", metavar="FILE", type=existing_file, help="a licensed SMPL-X .npz (default: the open body)"
    )


def main(args: argparse.Namespace) -> Outcome:
    """Pose the garments of every record."""
    load_body(args.body)
    work = partial(pose_garments, source=args.records, body=args.body)
    items = record_items(args.records, args.limit)
    outcome = run_stage("garment-poses", items, work, args.out, workers=args.workers, engine=args.engine)
    write_sheets(args.out)
    return outcome
