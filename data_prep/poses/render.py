"""Body parameters to pose maps: ``python -m data_prep render --records DIR | --params DIR | --amass DIR --out DIR``.

Of records: the same records with new pose maps (another style, another body's colours, or maps that were missing).
Of a folder of parameter files: one picture each, ``pose/NAME.png``. Of AMASS sequences (``--amass``): parameters and a
picture of every N-th frame, stood upright before a camera.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from data_prep.records import as_line, carry, record_items
from data_prep.run import Outcome, existing_folder, positive, run_stage, write_image
from omfa.bodies.body import load_body
from omfa.bodies.parameters import BodyParameters
from omfa.bodies.pose_render import Style, render_pose_map
from omfa.records.prepared import PoseRef, Record, resolve

SEQUENCE_SIZE = (512, 384)  # (H, W) of pictures of motion capture


def render_record(
    item_id: str, record: Record, out: Path, *, source: Path, body: Path | None, style: Style
) -> list[dict[str, Any]]:
    """Work of the runner: the record with a pose map rendered from its own parameters."""
    if record.pose is None or record.pose.params is None:
        raise ValueError("the record has no body parameters: fit them first with 'python -m data_prep pose-maps'")
    params = BodyParameters.load(resolve(source, record.pose.params))
    path = f"pose/{item_id}.png"
    carry(replace(record, pose=PoseRef(None, record.pose.params)), source, out)
    write_image(out / path, render_pose_map(load_body(body), params, style, engine="torch"))
    return [as_line(replace(record, pose=PoseRef(path, record.pose.params)))]


def render_params(item_id: str, params: Path, out: Path, *, body: Path | None, style: Style) -> list[dict[str, Any]]:
    """Work of the runner: one parameter file to one picture."""
    path = f"pose/{item_id}.png"
    write_image(out / path, render_pose_map(load_body(body), BodyParameters.load(params), style, engine="torch"))
    return [{"id": item_id, "file_name": path}]


def render_sequence(
    item_id: str, sequence: Path, out: Path, *, body: Path | None, style: Style, every: int
) -> list[dict[str, Any]]:
    """Work of the runner: frames of one AMASS sequence to parameters and pictures."""
    from data_prep.poses.parameter_files import read_amass

    lines = []
    for frame, params in read_amass(sequence, load_body(body), every=every, image_size=SEQUENCE_SIZE):
        name = f"{item_id}-{frame:06d}"
        params.save(out / f"pose/{name}.npz")
        write_image(out / f"pose/{name}.png", render_pose_map(load_body(body), params, style, engine="torch"))
        lines.append({"id": name, "file_name": f"pose/{name}.png", "params": f"pose/{name}.npz"})
    return lines


def sequence_files(folder: Path, limit: int | None) -> Iterator[tuple[str, Path]]:
    """Items of the runner: AMASS sequences of a folder and those below it; shape files (``*stagei.npz``) are none.

    Raises:
        ValueError: there are none.
    """
    found = [p for p in sorted(folder.rglob("*.npz")) if not p.name.endswith(("stagei.npz", "shape.npz"))]
    if not found:
        raise ValueError(f"{folder} holds no AMASS sequences (.npz with poses)")
    return (("-".join(path.relative_to(folder).with_suffix("").parts), path) for path in islice(found, limit))


def parameter_files(folder: Path, limit: int | None) -> Iterator[tuple[str, Path]]:
    """Items of the runner: the folder's ``.npz`` files by name.

    Raises:
        ValueError: there are none.
    """
    found = sorted(folder.glob("*.npz"))
    if not found:
        raise ValueError(f"{folder} holds no .npz files; BodyParameters.save writes them")
    return ((path.stem, path) for path in islice(found, limit))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The stage's own options."""
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--records", metavar="DIR", type=existing_folder, help="folder of records with parameters")
    group.add_argument("--params", metavar="DIR", type=existing_folder, help="folder of body parameters (.npz)")
    group.add_argument("--amass", metavar="DIR", type=existing_folder, help="folder of AMASS sequences (.npz)")
    parser.add_argument("--every", metavar="N", type=positive, default=30, help="--amass: one frame in N (default 30)")
    parser.add_argument(
        "--body", metavar="FILE", type=existing_file, help="a licensed SMPL-X .npz (default: the open body)"
    )
    parser.add_argument("--style", choices=get_args(Style), default="parts_blend", help="default parts_blend")


def existing_file(text: str) -> Path:
    """Argument type: a file that is there, as an absolute path."""
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"{text} is no file: give one that exists")
    return Path(text).resolve()


def main(args: argparse.Namespace) -> Outcome:
    """Render every record or parameter file."""
    load_body(args.body)  # a wrong body stops the call, not every item
    options: dict[str, Any] = {"body": args.body, "style": args.style}
    if args.records is not None:
        work: Any = partial(render_record, source=args.records, **options)
        items: Iterator[tuple[str, Any]] = record_items(args.records, args.limit)
    elif args.amass is not None:
        work = partial(render_sequence, every=args.every, **options)
        items = sequence_files(args.amass, args.limit)
    else:
        work, items = partial(render_params, **options), parameter_files(args.params, args.limit)
    return run_stage("render", items, work, args.out, workers=args.workers, engine=args.engine)
