"""Garments off photos and onto people, from the command line.

Every example runs as it stands, from top to bottom; the first line makes the pictures the others use:

    python -m data_prep synthetic --records 16 --seed 77 --out data/demo
    python -m omfa try-off data/demo/person/s77-o0-v0.png --category upper lower -o outputs/off
    python -m omfa try-on --garment upper=outputs/off/s77-o0-v0_upper.png \\
        --garment lower=outputs/off/s77-o0-v0_lower.png --face data/demo/face/s77-o2.png \\
        --pose data/demo/pose/s77-o2-v1.npz -o outputs/on --contact-sheet
    python -m omfa transfer data/demo/person/s77-o0-v0.png data/demo/person/s77-o2-v1.png \\
        --pose data/demo/pose/s77-o2-v1.npz --face data/demo/face/s77-o2.png -o outputs/transfer
    python -m omfa turntable data/demo/person/s77-o2-v1.png --pose data/demo/pose/s77-o2-v1.npz \\
        --face data/demo/face/s77-o2.png --views 4 -o outputs/turn --contact-sheet
    printf '%s\\n' task,photo,category 'try-off,data/demo/person/s77-o0-v0.png,upper;lower' > jobs.csv
    python -m omfa batch jobs.csv -o outputs/batch

Without --pose the pose comes from the photo, by the estimator of data_prep. Exit code 0: all well; 1: some inputs
failed, each named on a line; 2: the call or all of its input was wrong, and no input was finished.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from tqdm import tqdm

from omfa.batches import rows as batch_rows
from omfa.batches.engines import ENGINES, Loader
from omfa.batches.rows import Batch
from omfa.batches.running import FAILURES, run
from omfa.bodies.parameters import BodyParameters
from omfa.commands import DEVICES, Parser, count, find_device
from omfa.components import Category
from omfa.files import check_writable
from omfa.images import ENOUGH, ImageError, read_image
from omfa.orders import (
    KEEPS,
    MOST_VIEWS,
    Order,
    Pose,
    body_beside,
    check_seed,
    hand_estimator,
    read_pose,
)
from omfa.pipeline import OMFAPipeline
from omfa.sheets import contact_sheet, save_whole

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


# ---------------------------------------------------------------------------------------------------- the commands
# Each turns the call into orders. What all orders share is read at once and refused at once; of several photos the bad
# ones are added to ``problems`` and the others go on.


def try_off(call: argparse.Namespace, problems: list[str]) -> list[Order]:
    """An order a photo."""
    worn = tuple(call.category)
    photos = _readable(call.photos, problems)
    return [Order(task="try-off", name=stem, photo=photo, categories=worn) for stem, photo in photos]


def try_on(call: argparse.Namespace, problems: list[str]) -> list[Order]:
    """An order a portrait; one without portraits."""
    shared: dict[str, Any] = {"task": "try-on", **_garments(call), **_looks(call)}
    if not call.portrait:
        return [Order(name="try_on", **shared)]
    return [Order(name=f"{stem}_try_on", photo=photo, **shared) for stem, photo in _readable(call.portrait, problems)]


def transfer(call: argparse.Namespace, problems: list[str]) -> list[Order]:
    """An order a target."""
    shared: dict[str, Any] = {"task": "transfer", "source": _read(call.source), **_looks(call)}
    shared["categories"] = tuple(call.category)
    start = f"{Path(call.source).stem}_on_"
    return [Order(name=start + stem, photo=photo, **shared) for stem, photo in _readable(call.targets, problems)]


def turntable(call: argparse.Namespace, problems: list[str]) -> list[Order]:
    """An order a portrait."""
    shared: dict[str, Any] = {"task": "turntable", **_garments(call), **_looks(call), "views": call.views}
    return [Order(name=stem, photo=photo, **shared) for stem, photo in _readable(call.photos, problems)]


def _looks(call: argparse.Namespace) -> dict[str, Any]:
    face, head = (_read(call.face), body_beside(call.face)) if call.face else (None, None)
    return {"face": face, "face_pose": head, "pose": _pose(call), "keep": call.keep}


def _read(path: str) -> Image.Image:
    return read_image(path, enough=ENOUGH)


def _readable(paths: Sequence[str], problems: list[str]) -> Iterator[tuple[str, Image.Image]]:
    """Stem and picture of every file that can be read; a line in ``problems`` for each other."""
    for path in paths:
        try:
            yield Path(path).stem, _read(path)
        except ImageError as e:
            problems.append(str(e))


def _garments(call: argparse.Namespace) -> dict[str, Any]:
    """Category to pictures, from inside to outside, and to the bodies that lie beside them."""
    worn: dict[str, list[Image.Image]] = {}
    stands: dict[str, list[BodyParameters | None]] = {}
    for category, path in call.garment:
        worn.setdefault(category, []).append(_read(path))
        stands.setdefault(category, []).append(body_beside(path))
    return {"garments": worn, "garment_poses": stands}


def _pose(call: argparse.Namespace) -> Pose:
    if getattr(call, "pose_map", None):
        if call.pose:
            raise ValueError("give --pose or --pose-map, not both")
        return read_image(call.pose_map)
    return read_pose(call.pose) if call.pose else None


# ---------------------------------------------------------------------------------------------------- the call


def garment(text: str) -> tuple[str, str]:
    """``upper=shirt.png`` -> ("upper", "shirt.png")."""
    category, _, path = text.partition("=")
    if category not in set(Category) or not path:
        raise argparse.ArgumentTypeError(f"{text!r} must be like upper=shirt.png ({', '.join(Category)})")
    return category, path


def views(text: str) -> int:
    """A number of whole degrees."""
    if count(text) > MOST_VIEWS:
        raise argparse.ArgumentTypeError(f"{text!r} must be {MOST_VIEWS} at most")
    return int(text)


def _example(command: str) -> str:
    """The command's example in this module's docstring."""
    calls = ["python -m " + rest.split("\n\n")[0].rstrip() for rest in (__doc__ or "").split("python -m ")]
    return "example:\n\n    " + next(call for call in calls if call.startswith(f"python -m omfa {command}"))


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    common = Parser(add_help=False)
    common.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="folder for the pictures")
    common.add_argument("--model", default="compact", help="a model that ships, a folder or a hub id (default compact)")
    common.add_argument("--device", default="auto", choices=DEVICES, help="where to compute (default: the best there)")
    precision = "of the weights; on most CPUs the others are slower (default float32)"
    common.add_argument("--dtype", default="float32", choices=DTYPES, help=precision)
    common.add_argument("--steps", type=count, help="of the sampler (default: the model's own)")
    common.add_argument("--guidance", type=float, help="1 or less turns it off (default: the model's own)")
    common.add_argument("--seed", type=int, default=0, help="the same seed gives the same picture (default 0)")
    sheet = Parser(add_help=False)
    sheet.add_argument("--contact-sheet", action="store_true", help="also contact_sheet.png: given | made")
    person = Parser(add_help=False)
    face = "head crop, with body parameters of the same name beside it where there are any; default: the portrait's"
    person.add_argument("--face", metavar="PICTURE", help=face)
    person.add_argument("--pose", metavar="FILE", help="body parameters (.npz), a photo of somebody in it, or a name")
    person.add_argument(
        "--keep",
        default="auto",
        choices=KEEPS,
        help="photo: all but the garments given, in the photo's own pose; others: the other clothes, in a new picture; "
        "nothing (default: photo where the model can and neither pose nor face is given, else others)",
    )
    worn = Parser(add_help=False)
    worn.add_argument(
        "--garment",
        type=garment,
        action="append",
        default=[],
        metavar="CATEGORY=PICTURE",
        help="a shop picture to put on, like upper=shirt.png; once for each, of one category from inside to outside; "
        "body parameters of the same name beside it, where there are any, tell how a body stands in it, without which "
        "shoes, bags and hats are in no draft",
    )
    whole = Parser(prog="python -m omfa", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    def command(name: str, does: str, *parents: Parser) -> argparse.ArgumentParser:
        layout = argparse.RawDescriptionHelpFormatter
        words: dict[str, Any] = {"help": does, "description": f"{does[0].upper()}{does[1:]}.", "epilog": _example(name)}
        return commands.add_parser(name, parents=[common, *parents], formatter_class=layout, **words)

    off = command("try-off", "garments off photos, as shop pictures", sheet)
    off.add_argument("photos", nargs="+", metavar="PHOTO", help="photos of dressed people")
    _categories(off)
    off.set_defaults(prepare=try_off)

    on = command("try-on", "garments onto people", sheet, person, worn)
    on.add_argument("--portrait", nargs="+", metavar="PHOTO", help="who shall wear them")
    on.add_argument("--pose-map", metavar="PICTURE", help="a rendered pose map, instead of --pose")
    on.set_defaults(prepare=try_on)

    move = command("transfer", "clothes of one person onto others", sheet, person)
    move.add_argument("source", metavar="SOURCE", help="photo of who wears them")
    move.add_argument("targets", nargs="+", metavar="TARGET", help="photo of who shall")
    _categories(move)
    move.set_defaults(prepare=transfer)

    turn = command("turntable", "a person from all sides", sheet, person, worn)
    turn.add_argument("photos", nargs="+", metavar="PHOTO", help="photos of the people to turn")
    turn.add_argument("--views", type=views, default=8, help="pictures over the full turn (default 8)")
    turn.set_defaults(prepare=turntable)

    many = command("batch", "rows of a file, each a call of one of the others")
    layout = (batch_rows.__doc__ or "").partition("\n\n")[2]
    many.description = f"{many.description}\n\n{layout}"
    many.add_argument("jobs", type=Path, metavar="FILE", help=".csv or .jsonl; a call that was stopped goes on")
    many.add_argument("--processes", type=count, metavar="N", help="side by side (default: one a CUDA device, else 1)")
    many.add_argument("--engine", default="local", choices=ENGINES, help="what runs them (default local)")
    return whole


def _categories(command: argparse.ArgumentParser) -> None:
    names = [c.value for c in Category]
    command.add_argument("--category", nargs="+", default=["upper"], choices=names, help="garments (default upper)")


def main(args: Sequence[str] | None = None) -> int:
    """Make the pictures; exit codes as in the module's docstring."""
    call = parser().parse_args(args)
    warnings.formatwarning = lambda message, *_: f"{call.command}: {message}\n"
    diffusers_logging.disable_progress_bar()  # of loading: seconds at most
    return batch(call) if call.command == "batch" else make(call)


def make(call: argparse.Namespace) -> int:
    """The commands that make one order after the other."""
    problems: list[str] = []
    try:
        orders = call.prepare(call, problems)
        _check(call, orders, problems)
        device = find_device(call.device)
        pipe = OMFAPipeline.from_pretrained(call.model, dtype=DTYPES[call.dtype]).to(device)
        orders[0].check(pipe)  # all of a call are of the same garments
        hand_estimator(pipe, _estimator, any(order.needs_estimator for order in orders))
        check_writable(call.out, "-o")
    except (ValueError, OSError) as e:
        return _tell(call.command, [*problems, str(e)], 2)
    rows: list[tuple[str, list[Image.Image | None]]] = []
    pipe.set_progress_bar_config(disable=None, leave=False)
    for order in tqdm(orders, unit="input", disable=None if len(orders) > 1 else True):
        options = {"num_inference_steps": call.steps, "guidance_scale": call.guidance}
        options["generator"] = torch.Generator().manual_seed(call.seed)
        try:
            made = {f"{stem}.png": picture for stem, picture in order.make(pipe, **options).items()}
            for name, picture in made.items():
                _save(picture, call.out / name)
        except (ValueError, OSError) as e:
            problems.append(f"{order.name}: {e}")
            continue
        rows.append((", ".join(made), [*order.given, None, *made.values()]))
        print("\n".join(str(call.out / name) for name in made))
    if call.contact_sheet and rows:
        try:
            print(_save(contact_sheet(rows), call.out / "contact_sheet.png"))
        except ValueError as e:
            problems.append(str(e))
    if not rows:
        with suppress(OSError):
            call.out.rmdir()  # unless something is in it
    return _tell(call.command, problems, 1 if rows else 2) if problems else 0


def batch(call: argparse.Namespace) -> int:
    """The command for many rows."""

    from data_prep.poses.photo import photo_estimator  # itself, not a function of this file: processes are handed it

    def tell(line: str) -> None:
        tqdm.write(f"batch: {line}", file=sys.stderr)

    try:
        device = find_device(call.device)
        check_seed(call.seed, "--seed")
        OMFAPipeline.sampler_defaults(call.model)  # a model that is not there is refused at once
        processes = call.processes or (torch.cuda.device_count() if device == "cuda" else 1)
        job = Batch(call.jobs, call.out, call.model, call.steps, call.guidance, call.seed, processes, call.engine)
        tally = run(job, Loader(call.model, DTYPES[call.dtype], device, photo_estimator), tell)
    except (ValueError, OSError) as e:
        return _tell("batch", [str(e)], 2)
    except KeyboardInterrupt:
        return _tell("batch", ["stopped; the same command goes on from here"], 130)
    before = f", {tally.before} made before" if tally.before else ""
    failed = f", {tally.failed} failed (reasons in {call.out / FAILURES})" if tally.failed else ""
    print(f"{tally.made} rows made{before}{failed}")
    return tally.exit_code


def _tell(command: str, problems: Sequence[str], code: int) -> int:
    """A line a problem; the exit code again."""
    for problem in problems:
        print(f"{command}: {' '.join(problem.splitlines())}", file=sys.stderr)
    return code


def _check(call: argparse.Namespace, orders: Sequence[Order], problems: list[str]) -> None:
    """What can be refused before any model is loaded."""
    if not orders:
        raise ValueError(problems.pop() if len(problems) == 1 else f"none of {len(problems)} inputs can be used")
    names = [order.name for order in orders]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ValueError(f"two inputs would both be written as {', '.join(twice)}: rename one of them")
    if call.command == "try-on" and not call.garment and not call.portrait:
        raise ValueError("people are always dressed: give --garment upper=PICTURE, or --portrait PHOTO, or both")
    check_seed(call.seed, "--seed")


def _save(picture: Image.Image, path: Path) -> Path:
    """:func:`omfa.sheets.save_whole`; ValueError with the cure where it can't."""
    try:
        return save_whole(picture, path)
    except OSError as e:
        raise ValueError(f"{path} can't be written ({e.strerror}): free some space, or give another -o") from None


def _estimator() -> Any:
    """The pose estimator of data_prep; ValueError with the cure where its tools are missing."""
    from data_prep.poses.photo import photo_estimator

    return photo_estimator()


if __name__ == "__main__":
    sys.exit(main())
