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

Without --pose the pose comes from the photo, by the estimator of data_prep. Exit code 0: all well; 1: some inputs
failed, each named on a line; 2: the call or all of its input was wrong, and no input was finished.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from tqdm import tqdm

from omfa.bodies.parameters import BodyParameters
from omfa.commands import Parser, count, find_device
from omfa.components import Category
from omfa.files import check_writable
from omfa.images import ENOUGH, ImageError, read_image
from omfa.pipeline import OMFAPipeline
from omfa.sheets import contact_sheet, save_whole

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Order:
    """One picture, or set of pictures, to make.

    Args:
        name: what its files begin with.
        given: pictures for the contact sheet.
        needs_estimator: whether pose or face is to be taken from a photo.
        make: pipeline and sampler options to pictures by file name.
    """

    name: str
    given: list[Image.Image]
    needs_estimator: bool
    make: Callable[[OMFAPipeline, dict[str, Any]], dict[str, Image.Image]]


class _Photo:
    """A photo of somebody in the pose that is wanted."""

    def __init__(self, picture: Image.Image) -> None:
        self.picture = picture


# ---------------------------------------------------------------------------------------------------- the commands
# Each turns the call into orders. What all orders share is read at once and refused at once; of several photos the bad
# ones are added to ``problems`` and the others go on.


def try_off(call: argparse.Namespace, problems: list[str]) -> list[Order]:
    """An order a photo."""

    def order(stem: str, photo: Image.Image) -> Order:
        def make(pipe: OMFAPipeline, options: dict[str, Any]) -> dict[str, Image.Image]:
            made = pipe.try_off(photo, call.category, **options).garments
            return {f"{stem}_{category}.png": pictures[0] for category, pictures in made.items()}

        return Order(stem, [photo], False, make)

    return [order(stem, photo) for stem, photo in _readable(call.photos, problems)]


def try_on(call: argparse.Namespace, problems: list[str]) -> list[Order]:
    """An order a portrait; one without portraits."""
    worn, face, pose = _garments(call), _face(call), _pose(call)

    def order(name: str, portrait: Image.Image | None) -> Order:
        def make(pipe: OMFAPipeline, options: dict[str, Any]) -> dict[str, Image.Image]:
            made = pipe.try_on(portrait, worn, _estimated(pipe, pose), face, call.keep, **options)
            return {f"{name}.png": made.person[0]}

        given = _pictures(portrait, *worn.values(), face, pose)
        return Order(name, given, _estimator_needed(portrait, face, pose), make)

    if not call.portrait:
        return [order("try_on", None)]
    return [order(f"{stem}_try_on", portrait) for stem, portrait in _readable(call.portrait, problems)]


def transfer(call: argparse.Namespace, problems: list[str]) -> list[Order]:
    """An order a target."""
    source, face, pose = _read(call.source), _face(call), _pose(call)

    def order(name: str, target: Image.Image) -> Order:
        def make(pipe: OMFAPipeline, options: dict[str, Any]) -> dict[str, Image.Image]:
            at = _estimated(pipe, pose)
            made = pipe.transfer(source, target, call.category, at, face, call.keep, **options)
            return {f"{name}.png": made.person[0]}

        return Order(name, _pictures(source, target, face, pose), _estimator_needed(target, face, pose), make)

    start = f"{Path(call.source).stem}_on_"
    return [order(start + stem, target) for stem, target in _readable(call.targets, problems)]


def turntable(call: argparse.Namespace, problems: list[str]) -> list[Order]:
    """An order a portrait."""
    worn, face, pose = _garments(call), _face(call), _pose(call)

    def order(stem: str, portrait: Image.Image) -> Order:
        def make(pipe: OMFAPipeline, options: dict[str, Any]) -> dict[str, Image.Image]:
            at = _estimated(pipe, pose)
            keep: Any = None if call.keep is None else "others"  # a new picture each
            made = pipe.turntable(portrait, worn, at, face, call.views, keep=keep, **options)
            return {f"{stem}_{round(360 * i / call.views):03d}.png": p for i, p in enumerate(made.images)}

        given = _pictures(portrait, *worn.values(), face, pose)
        return Order(stem, given, _estimator_needed(portrait, face, pose), make)

    return [order(stem, portrait) for stem, portrait in _readable(call.photos, problems)]


def _read(path: str) -> Image.Image:
    return read_image(path, enough=ENOUGH)


def _readable(paths: Sequence[str], problems: list[str]) -> Iterator[tuple[str, Image.Image]]:
    """Stem and picture of every file that can be read; a line in ``problems`` for each other."""
    for path in paths:
        try:
            yield Path(path).stem, _read(path)
        except ImageError as e:
            problems.append(str(e))


def _garments(call: argparse.Namespace) -> dict[str, Image.Image]:
    worn = {category: _read(path) for category, path in call.garment}
    if len(worn) < len(call.garment):
        raise ValueError("two garments of one category: give one --garment of each")
    return worn


def _pictures(*given: Any) -> list[Image.Image]:
    """Those for the contact sheet."""
    several = [p.picture if isinstance(p, _Photo) else p for p in given]
    return [p for p in several if isinstance(p, Image.Image)]


def _face(call: argparse.Namespace) -> Image.Image | None:
    return _read(call.face) if call.face else None


def _face_pose(call: argparse.Namespace) -> dict[str, BodyParameters]:
    """The body whose head the crop shows, as an option of a call: ``face/anna.npz`` beside ``face/anna.png``."""
    beside = Path(call.face).with_suffix(".npz") if getattr(call, "face", None) else None
    return {} if beside is None or not beside.is_file() else {"face_pose": BodyParameters.load(beside)}


def _pose(call: argparse.Namespace) -> BodyParameters | Image.Image | _Photo | None:
    """Body parameters, a pose map, or a photo whose pose is still to be estimated."""
    if getattr(call, "pose_map", None):
        if call.pose:
            raise ValueError("give --pose or --pose-map, not both")
        return read_image(call.pose_map)
    if not call.pose:
        return None
    return BodyParameters.load(Path(call.pose)) if call.pose.endswith(".npz") else _Photo(_read(call.pose))


def _estimated(pipe: OMFAPipeline, pose: Any) -> Any:
    if not isinstance(pose, _Photo):
        return pose
    assert pipe.pose_estimator is not None
    return pipe.pose_estimator(pose.picture).params


def _estimator_needed(portrait: Image.Image | None, face: Any, pose: Any) -> bool:
    return isinstance(pose, _Photo) or (portrait is not None and (face is None or pose is None))


# ---------------------------------------------------------------------------------------------------- the call


def garment(text: str) -> tuple[str, str]:
    """``upper=shirt.png`` -> ("upper", "shirt.png")."""
    category, _, path = text.partition("=")
    if category not in set(Category) or not path:
        raise argparse.ArgumentTypeError(f"{text!r} must be like upper=shirt.png ({', '.join(Category)})")
    return category, path


def views(text: str) -> int:
    """A number of whole degrees."""
    if count(text) > 360:
        raise argparse.ArgumentTypeError(f"{text!r} must be 360 at most")
    return int(text)


def _example(command: str) -> str:
    """The command's example in this module's docstring."""
    calls = ["python -m " + rest.split("\n\n")[0].rstrip() for rest in (__doc__ or "").split("python -m ")]
    return "example:\n\n    " + next(call for call in calls if call.startswith(f"python -m omfa {command}"))


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    common = Parser(add_help=False)
    common.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="folder for the pictures")
    common.add_argument("--contact-sheet", action="store_true", help="also contact_sheet.png: given | made")
    common.add_argument("--model", default="compact", help="a model that ships, a folder or a hub id (default compact)")
    devices = ("auto", "cpu", "cuda", "mps")
    common.add_argument("--device", default="auto", choices=devices, help="where to compute (default: the best there)")
    precision = "of the weights; on most CPUs the others are slower (default float32)"
    common.add_argument("--dtype", default="float32", choices=DTYPES, help=precision)
    common.add_argument("--steps", type=count, help="of the sampler (default: the model's own)")
    common.add_argument("--guidance", type=float, help="1 or less turns it off (default: the model's own)")
    common.add_argument("--seed", type=int, default=0, help="the same seed gives the same picture (default 0)")
    person = Parser(add_help=False)
    face = "head crop, with body parameters of the same name beside it where there are any; default: the portrait's"
    person.add_argument("--face", metavar="PICTURE", help=face)
    person.add_argument("--pose", metavar="FILE", help="body parameters (.npz), or a photo of somebody in that pose")
    person.add_argument(
        "--keep",
        default="auto",
        choices=("auto", "photo", "others", "nothing"),
        help="all but the garments given, or the other clothes (default: photo where the model can)",
    )
    worn = Parser(add_help=False)
    worn.add_argument(
        "--garment",
        type=garment,
        action="append",
        default=[],
        metavar="CATEGORY=PICTURE",
        help="a shop picture to put on, like upper=shirt.png; once for each",
    )
    whole = Parser(prog="python -m omfa", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    def command(name: str, does: str, *parents: Parser) -> argparse.ArgumentParser:
        layout = argparse.RawDescriptionHelpFormatter
        words: dict[str, Any] = {"help": does, "description": f"{does[0].upper()}{does[1:]}.", "epilog": _example(name)}
        return commands.add_parser(name, parents=[common, *parents], formatter_class=layout, **words)

    off = command("try-off", "garments off photos, as shop pictures")
    off.add_argument("photos", nargs="+", metavar="PHOTO", help="photos of dressed people")
    _categories(off)
    off.set_defaults(prepare=try_off)

    on = command("try-on", "garments onto people", person, worn)
    on.add_argument("--portrait", nargs="+", metavar="PHOTO", help="who shall wear them")
    on.add_argument("--pose-map", metavar="PICTURE", help="a rendered pose map, instead of --pose")
    on.set_defaults(prepare=try_on)

    move = command("transfer", "clothes of one person onto others", person)
    move.add_argument("source", metavar="SOURCE", help="photo of who wears them")
    move.add_argument("targets", nargs="+", metavar="TARGET", help="photo of who shall")
    _categories(move)
    move.set_defaults(prepare=transfer)

    turn = command("turntable", "a person from all sides", person, worn)
    turn.add_argument("photos", nargs="+", metavar="PHOTO", help="photos of the people to turn")
    turn.add_argument("--views", type=views, default=8, help="pictures over the full turn (default 8)")
    turn.set_defaults(prepare=turntable)
    return whole


def _categories(command: argparse.ArgumentParser) -> None:
    names = [c.value for c in Category]
    command.add_argument("--category", nargs="+", default=["upper"], choices=names, help="garments (default upper)")


def main(args: Sequence[str] | None = None) -> int:
    """Make the pictures; exit codes as in the module's docstring."""
    call = parser().parse_args(args)
    keep = getattr(call, "keep", "auto")
    call.keep = None if keep == "nothing" else keep
    warnings.formatwarning = lambda message, *_: f"{call.command}: {message}\n"
    diffusers_logging.disable_progress_bar()  # of loading: seconds at most
    problems: list[str] = []
    try:
        orders, head = call.prepare(call, problems), _face_pose(call)
        _check(call, orders, problems)
        device = find_device(call.device)
        pipe = OMFAPipeline.from_pretrained(call.model, dtype=DTYPES[call.dtype]).to(device)
        if any(order.needs_estimator for order in orders):
            pipe.pose_estimator = _estimator()
        elif pipe.config.draft == "surface":  # merely better with one
            with suppress(ValueError):
                pipe.pose_estimator = _estimator()
        check_writable(call.out, "-o")
    except (ValueError, OSError) as e:
        return _tell(call.command, [*problems, str(e)], 2)
    rows: list[tuple[str, list[Image.Image | None]]] = []
    pipe.set_progress_bar_config(disable=None, leave=False)
    for order in tqdm(orders, unit="input", disable=None if len(orders) > 1 else True):
        options = {"num_inference_steps": call.steps, "guidance_scale": call.guidance} | head
        options["generator"] = torch.Generator().manual_seed(call.seed)
        try:
            made = order.make(pipe, options)
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
    if not 0 <= call.seed < 2**63:
        raise ValueError(f"--seed {call.seed} must be from 0 to 2^63 - 1")


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
