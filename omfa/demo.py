"""The demo: what a model does, in pictures, with people it has never seen.

    python -m data_prep synthetic --records 16 --seed 77 --out data/demo
    python -m omfa.demo --records data/demo --out outputs/demo

Writes each picture and ``contact_sheet.png``, a captioned row each: try-off, the same photo in other clothes (where the
model has learned that), try-on, another pose, transfer, an outfit of two people's clothes, a turntable; and one real
photograph, if scikit-image is there to lend it. Where a model is given drafts, the first rows show them beside the
results: what the networks add is the difference.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from omfa.bodies.body import load_body
from omfa.bodies.drafts import Shown, draft_garment, draft_person
from omfa.bodies.parameters import BodyParameters
from omfa.bodies.predicted_standing import stand_in, standing_off
from omfa.bodies.standing import Kind
from omfa.bodies.surface import Draft
from omfa.commands import Parser, count
from omfa.files import sole
from omfa.images import pixels_to_tensor, read_image, tensor_to_pixels
from omfa.pipeline import OMFAPipeline
from omfa.records.drawn import INSIDE_OUT
from omfa.records.prepared import Record, read_records, record_pictures, resolve
from omfa.records.worn import clothes
from omfa.sheets import contact_sheet, save_whole
from omfa.training.vae import packaged_photographs

FRONT = 40.0  # degrees; beyond it half of a print is out of sight
HONEST = "a model of a drawn world has never seen one: a colour at best"


class Row(NamedTuple):
    """One row of the sheet: file name, caption, what was given, what was made, what it should have been; drafts."""

    name: str
    caption: str
    given: list[Image.Image]
    made: list[Image.Image]
    truth: list[Image.Image]
    drafts: list[Image.Image] = []  # noqa: RUF012  # never changed


class Person:
    """A record's pictures, read."""

    def __init__(self, folder: Path, record: Record) -> None:
        pictures = {role: read_image(resolve(folder, path)) for role, path in record_pictures(record).items()}
        self.person, self.face, self.map = (pictures[n] for n in ("person", "face", "pose_map"))
        self.garments = {g.category.value: pictures[g.category.value] for g in clothes(record)}
        assert record.pose is not None and record.pose.params is not None
        self.params = BodyParameters.load(resolve(folder, record.pose.params))
        head = record.face and record.face.pose
        self.head: dict[str, Any] = {
            "face": self.face,
            "face_pose": head and BodyParameters.load(resolve(folder, head)),
        }


def two_people(folder: Path) -> tuple[list[Person], list[Person]]:
    """The pictures of two people in upper and lower garments who face the camera in their first one.

    Raises:
        ValueError: the records don't hold that.
    """
    people: dict[str, list[Record]] = {}
    for record in read_records(folder):
        complete = record.face and record.pose and record.pose.map and record.pose.params
        if complete and {g.category.value for g in clothes(record)} == {"upper", "lower"}:
            people.setdefault(record.person_id, []).append(record)
    found = []
    for records in people.values():
        records.sort(key=lambda r: abs(r.view_yaw or 0))
        same = [r for r in records if r.outfit_id == records[0].outfit_id]
        if abs(records[0].view_yaw or 0) < FRONT and len(same) > 1:
            found.append([Person(folder, r) for r in same])
    if len(found) < 2:
        raise ValueError(
            f"{folder} needs two pictures each of two people in upper and lower garments, with face and pose, one of "
            f"them from the front; it has {len(found)} such people. Make more: python -m data_prep synthetic"
        )
    return found[0], found[1]


def drafted_off(photo: Image.Image, params: BodyParameters, category: str) -> Image.Image:
    """What a photo shows of a garment's shop picture, looked up by the body alone; grey where it shows nothing."""
    body, shown = load_body(), Shown(_tensor(photo), params)
    stand = standing_off(shown.picture, params, cast(Kind, category), (photo.height, photo.width), body)
    return _picture(draft_garment(body, stand, shown, wall=True))


def drafted_on(garments: dict[str, Image.Image], params: BodyParameters, head: dict[str, Any]) -> Image.Image:
    """What garments and a face show of a person in a pose, likewise."""
    body = load_body()
    pictures = {c: _tensor(garments[c]) for c in sorted(garments, key=[*map(str, INSIDE_OUT)].index)}
    shown = [Shown(p, stand_in(p, cast(Kind, c), body=body)[0]) for c, p in pictures.items()]
    face = Shown(_tensor(head["face"]), head["face_pose"]) if head["face_pose"] else None
    return _picture(draft_person(body, params, params.image_size, shown, face=face))


def _tensor(picture: Image.Image) -> Tensor:
    return pixels_to_tensor(np.asarray(picture))


def _picture(draft: Draft) -> Image.Image:
    return Image.fromarray(tensor_to_pixels(draft.picture[None])[0])


def rows(
    pipe: OMFAPipeline, people: tuple[list[Person], list[Person]], steps: int | None, seed: int, views: int = 6
) -> Iterator[Row]:
    """All rows, made one by one."""
    (anna, anna_again, *_), (ben, *_) = people

    def options() -> dict[str, Any]:
        return {"num_inference_steps": steps, "generator": torch.Generator().manual_seed(seed)}

    off = pipe.try_off(anna.person, ["upper", "lower"], anna.params, **options()).garments
    taken = {c: pictures[0] for c, pictures in off.items()}
    true = [anna.garments[c] for c in taken]
    shows = pipe.config.draft == "surface"
    drafts = [drafted_off(anna.person, anna.params, c) for c in taken] if shows else []
    said = "photo | drafts | taken off | true" if shows else "photo | taken off | true"
    yield Row("try_off", f"try-off: {said}", [anna.person], list(taken.values()), true, drafts)

    if pipe.config.portraits:
        on, given = [], [ben.person, *anna.garments.values()]
        for worn in ({"upper": anna.garments["upper"]}, anna.garments):
            on += pipe.try_on(ben.person, worn, ben.params, keep="photo", **options()).images
        yield Row("photo", "the same photo in other clothes: photo, garments | upper, both", given, on, [])

    given = [*anna.garments.values(), anna.face, anna.map]
    on = pipe.try_on(None, anna.garments, anna.params, **anna.head, **options()).images
    drafts = [drafted_on(anna.garments, anna.params, anna.head)] if shows else []
    said = "draft | made" if shows else "made"
    yield Row("try_on", f"try-on: garments, face, pose | {said} | true", given, on, [anna.person], drafts)

    given = [*anna.garments.values(), anna.face, anna_again.map]
    on = pipe.try_on(None, anna.garments, anna_again.params, **anna.head, **options()).images
    drafts = [drafted_on(anna.garments, anna_again.params, anna.head)] if shows else []
    yield Row("another_pose", f"the same in another pose | {said} | true", given, on, [anna_again.person], drafts)

    how: dict[str, Any] = {"pose": ben.params, "source_pose": anna.params}
    how |= {"keep": "photo"} if pipe.config.portraits else {"keep": "others", **ben.head}
    on = pipe.transfer(anna.person, ben.person, "upper", **how, **options()).images
    yield Row("transfer", "transfer: upper of the first onto the second | made", [anna.person, ben.person], on, [])

    lower = pipe.try_off(ben.person, "lower", ben.params, **options()).images[0]
    worn = {"upper": taken["upper"], "lower": lower}
    on = pipe.try_on(None, worn, ben.params, **ben.head, **options()).images
    yield Row("outfit", "an outfit of both, taken off two photos | made", [taken["upper"], lower, ben.face], on, [])

    turn = pipe.turntable(None, taken, anna.params, views=views, **anna.head, **options()).images
    yield Row("turntable", "turntable of clothes taken off one photo | made", [anna.person], turn, [])

    for path in packaged_photographs()[:1]:
        photo = read_image(path)
        with warnings.catch_warnings(action="ignore"):  # nobody's body may be found in it
            made = pipe.try_off(photo, "upper", **options()).images
        yield Row("real_photo", f"try-off of a real photograph ({path.stem}); {HONEST} | made", [photo], made, [])


def _estimator() -> Any:
    from data_prep.poses.photo import photo_estimator

    return photo_estimator()


def main(args: Sequence[str] | None = None) -> int:
    """Make the pictures; 0 all well, 2 the call or its input was wrong."""
    parser = Parser(prog="python -m omfa.demo", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="compact", help="a shipped name, a folder or a hub id (default compact)")
    parser.add_argument("--records", type=Path, required=True, help="a records folder with body parameters")
    parser.add_argument("--out", type=Path, default=Path("outputs/demo"))
    parser.add_argument("--steps", type=count, help="of the sampler (default: the model's own)")
    parser.add_argument("--seed", type=int, default=0)
    call = parser.parse_args(args)
    diffusers_logging.disable_progress_bar()
    began = time.monotonic()
    try:
        if not 0 <= call.seed < 2**63:
            raise ValueError(f"--seed {call.seed} must be from 0 to 2^63 - 1")
        pipe = OMFAPipeline.from_pretrained(call.model)
        pipe.set_progress_bar_config(disable=True)
        with suppress(ValueError):  # the landmark models are not there
            pipe.pose_estimator = _estimator()
        people = two_people(call.records)
        with sole(call.out):
            done = []
            for row in tqdm(rows(pipe, people, call.steps, call.seed), unit="row", disable=None):
                for i, picture in enumerate(row.made):
                    save_whole(picture, call.out / f"{row.name}_{i}.png")
                drafts, truth = ([None, *several] if several else [] for several in (row.drafts, row.truth))
                done.append((row.caption, [*row.given, *drafts, None, *row.made, *truth]))
            sheet = save_whole(contact_sheet(done), call.out / "contact_sheet.png")
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    print("\n".join(caption for caption, _ in done))
    steps = call.steps or pipe.config.default_steps
    print(f"made with {call.model}, {steps} steps, in {time.monotonic() - began:.0f} s: open {sheet}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
