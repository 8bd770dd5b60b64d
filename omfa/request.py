"""What a call asks for: checked at the door, every picture read, before any long work."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from numbers import Integral, Real
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image

from omfa import images
from omfa.bodies.body import load_body
from omfa.bodies.parameters import BodyParameters
from omfa.bodies.pose_render import Style, render_pose_map
from omfa.bodies.surface import at_most
from omfa.canvas import FACE, PERSON, PORTRAIT, Canvas
from omfa.components import CLOTHES, Category, Component, State, Task, clash
from omfa.conditioning import Layout
from omfa.images import Picture

Pictures = Picture | Sequence[Picture]
Worn = Pictures | Sequence[Sequence[Picture]]
"""A garment, several of one category, or lists of those of each picture of a batch; see :func:`dressed`."""
Pose = Picture | BodyParameters
Bodies = BodyParameters | Sequence[BodyParameters] | Sequence[Sequence[BodyParameters | None]]


@dataclass(frozen=True)
class Request:
    """One checked call: what is wanted, and pictures as read.

    Args:
        layout: of all pictures.
        batch: B.
        given: slot name to B pictures.
        pose: B pose maps, None for a photo of which none is known; or none.
        params: B body parameters behind them, None for a map that was given as a picture; or none.
        stands: slot of a garment or the face to B bodies that stand in its pictures, given or to be made, as far as
            they are known; None where not.
        outlines: B pictures, white where the portrait shows the person; or none.
    """

    layout: Layout
    batch: int
    given: dict[str, list[Image.Image]]
    pose: list[Image.Image | None]
    params: list[BodyParameters | None]
    stands: dict[str, list[BodyParameters | None]]
    outlines: list[Image.Image]


def read_request(
    canvas: Canvas,
    targets: Collection[str],
    person: Pictures | None = None,
    garments: Mapping[str, Worn] | None = None,
    face: Pictures | None = None,
    pose: Pose | Sequence[Pose | None] | None = None,
    caption: str | None = None,
    portrait: Pictures | None = None,
    garment_poses: Mapping[str, Bodies] | None = None,
    face_pose: Bodies | None = None,
    style: Style = "parts_blend",
    join: str = "canvas",
    accessories: Collection[str] = (),
    seeds: int = 1,
    portrait_mask: Pictures | None = None,
) -> Request:
    """The request behind a call, everything checked and every picture read.

    Args:
        canvas: the model's.
        targets, person, garments, face, pose, caption, portrait, garment_poses, face_pose: as
            :class:`omfa.pipeline.OMFAPipeline` is called.
        style: of pose maps that are rendered.
        join, accessories: of the model.
        seeds: how many generators there are, one for each picture of a batch.
        portrait_mask: as there.

    Raises:
        ValueError: a call that asks for the impossible, or a picture that can't be used.
    """
    wanted = [targets] if isinstance(targets, str) or not isinstance(targets, Collection) else list(targets)
    if not wanted or any(not isinstance(t, str) or t not in (PERSON, *Category) for t in wanted):
        raise ValueError(f"targets {wanted} must be some of 'person', {', '.join(map(repr, map(str, Category)))}")
    wanted = list(dict.fromkeys(wanted))
    worn = {Category(c): g for c, g in worn_garments(garments).items() if g is not None}
    new = [Category(t) for t in wanted if t != PERSON]
    both = set(new) & set(worn)
    if both or (PERSON in wanted and person is not None):
        named = ", ".join(sorted(both)) or "person"
        raise ValueError(f"{named} is given and a target at once; take it out of targets, or don't give it")
    if PERSON in wanted and not worn and not new:
        raise ValueError(
            "people are always dressed: give at least one garment to put on, like garments={'upper': picture}, "
            "or make one a target too"
        )
    if PERSON not in wanted and person is None:
        raise ValueError("try-off needs person=, the photo to take the garment from")
    check_learned([*new, *worn], accessories)
    if PERSON in wanted and portrait is None and not {*new, *worn} & {*CLOTHES}:
        raise ValueError(
            f"people are always dressed, and nobody in {', '.join([*worn, *new])} alone: give an upper, a lower or a "
            "dress too, or the portrait to change"
        )
    poses = read_poses(pose)
    others = (person, face, portrait)
    layers = dressed(worn, max(seeds, len(poses), *(len(images.as_list(p)) for p in others)), join)
    places = _places(canvas, new, {c: len(g[0]) for c, g in layers.items()}, join)
    states = {slot: State.TARGET for c in new for slot in places[c]}
    states |= {slot: State.GIVEN for c in worn for slot in places[c]}
    pictures: dict[str, list[Any]] = {
        slot: [several[k] for several in layers[c]] for c in worn for k, slot in enumerate(places[c])
    }
    if portrait is not None and wanted != [PERSON]:
        raise ValueError(f"portrait= is the photo to change the clothes in, with targets=['person']; got {wanted}")
    if portrait is not None and pose is None:  # or little of the photo is kept
        raise ValueError("portrait= needs pose=, its own body or pose map: give it, or call try_on, which estimates it")
    for slot, value in ((PERSON, person), (FACE, face), (PORTRAIT, portrait)):
        if value is not None:
            states[slot], pictures[slot] = State.GIVEN, images.as_list(value)
    if PERSON in wanted:
        states[PERSON] = State.TARGET
    batch = max([len(p) for p in pictures.values()] + [len(poses), 1])
    called = {slot: str(c) for c, slots in places.items() for slot in slots}  # as the caller knows them
    called |= {slot: f"{c}, layer {k}" for c, slots in places.items() if slots[1:] for k, slot in enumerate(slots, 1)}
    for slot, several in [*pictures.items(), ("pose", poses)]:
        name = called.get(slot, slot)
        if not several and not (name == "pose" and pose is None):
            raise ValueError(f"an empty list for {name}; give a picture, or leave it out")
        if len(several) not in (0, 1, batch):
            raise ValueError(f"{len(several)} pictures for {name} in a batch of {batch}; give 1 or {batch}")
    outlines = (
        []
        if portrait_mask is None
        else [images.read_image(p, "portrait_mask", images.ENOUGH) for p in images.as_list(portrait_mask)]
    )
    if outlines and (portrait is None or len(outlines) not in (1, batch)):
        there = "there is no portrait= that it could be of" if portrait is None else f"give {_one_or(batch)}"
        raise ValueError(f"portrait_mask holds {len(outlines)}: {there}")
    kinds = {Component.PERSON if t == PERSON else Component.GARMENT for t in wanted}
    categories = {slot: c for c in [*new, *worn] for slot in places[c]}
    read = {
        slot: [images.read_image(p, called.get(slot, slot), images.ENOUGH) for p in several]
        for slot, several in pictures.items()
    }
    for outline in outlines:
        _check_mask(outline, read[PORTRAIT])
    if PERSON in wanted and any(p is None for p in poses):
        raise ValueError("pose: a person who is to be made needs one, in every picture of the batch; got None")
    known = [p if isinstance(p, BodyParameters) else None for p in poses]
    maps = [None if p is None else pose_picture(p, style) for p in poses]
    request = Request(
        layout=Layout(Task(frozenset(kinds)).kind, states, categories, caption),
        batch=batch,
        given={slot: several * (batch // len(several)) for slot, several in read.items()},
        pose=maps * (batch // len(maps)) if maps else [],
        params=known * (batch // len(known)) if known else [],
        stands=_stands(garment_poses, face_pose, pictures, places, batch),
        outlines=outlines * (batch // len(outlines)) if outlines else [],
    )
    _check_bodies(request)
    return request


def _alike(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two pictures' sizes (W, H) are of one shape; sides are cut to whole pixels where one is read smaller."""
    return abs(one[0] * other[1] / (one[1] * other[0]) - 1) <= 0.02


def _check_bodies(request: Request) -> None:
    """Refuse bodies and pose maps of another shape than the pictures given: stretched to them, they stand beside."""
    bodies: dict[str, list[BodyParameters | None]] = dict(request.stands)
    photos = [slot for slot in (PERSON, PORTRAIT) if slot in request.given]
    bodies |= {slot: request.params for slot in photos}
    for slot in photos:
        for pose, params, picture in zip(request.pose, request.params, request.given[slot], strict=False):
            if pose is not None and params is None and not _alike(pose.size, picture.size):
                raise ValueError(
                    f"pose: a picture of {pose.width}x{pose.height} for a {slot} of {picture.width}x{picture.height}: "
                    "give that of the same picture, uncropped"
                )
    for slot, several in bodies.items():
        for params, picture in zip(several, request.given.get(slot, ()), strict=False):
            if params is not None and not _alike(params.image_size[::-1], picture.size):
                what = "pose" if slot in photos else str(request.layout.categories.get(slot, slot))
                size = f"{params.image_size[1]}x{params.image_size[0]}"
                raise ValueError(
                    f"{what}: body parameters of a picture of {size} for one of {picture.width}x{picture.height}: give "
                    "those of the same picture, uncropped"
                )


def _check_mask(outline: Image.Image, portraits: Sequence[Image.Image]) -> None:
    """Refuse a mask that can't be of these portraits: fitted by itself, it would lie beside the person."""
    for portrait in portraits:
        if not _alike(outline.size, portrait.size):
            raise ValueError(
                f"portrait_mask is {outline.width}x{outline.height}, the portrait {portrait.width}x{portrait.height}: "
                "give a mask of the same picture, uncropped and as upright"
            )


def _stands(
    garment_poses: Any, face_pose: Any, pictures: Collection[str], places: Mapping[Category, list[str]], batch: int
) -> dict[str, list[BodyParameters | None]]:
    """Bodies in pictures of garments and the face: slot to B."""
    if not isinstance(garment_poses, Mapping | None):
        got = type(garment_poses).__name__
        raise ValueError(f"garment_poses must map categories to BodyParameters, like garments; got {got}")
    known = {f"garment_poses[{c!r}]": (places.get(c, []), p) for c, p in (garment_poses or {}).items()}
    if face_pose is not None:
        known["face_pose"] = ([FACE] if FACE in pictures else [], face_pose)
    stands: dict[str, list[BodyParameters | None]] = {}
    for name, (slots, value) in known.items():
        several: list[Any] = list(value) if isinstance(value, Sequence) else [value]
        if not any(isinstance(p, list | tuple) for p in several):  # of one garment they are a batch's
            several = [[p] for p in several] if len(slots) == 1 else [several]
        shaped = len(several) in (1, batch) and all(isinstance(p, list | tuple) for p in several)
        if not slots or not shaped or not all(len(p) == len(slots) and _all_bodies(p, len(slots)) for p in several):
            there = ", ".join([*places, *([FACE] if FACE in pictures else [])])
            of_each = "" if len(slots) < 2 else f", each a list of {len(slots)}"
            raise ValueError(
                f"{name} must be BodyParameters, {_one_or(batch)} of them{of_each}, for what this call is about "
                f"({there or 'none'})"
            )
        for k, slot in enumerate(slots):
            stands[slot] = [p[k] for p in several] * (batch // len(several))
    return stands


def _all_bodies(several: Sequence[Any], layers: int) -> bool:
    """Whether they are body parameters; of several layers some may be unknown (None)."""
    return all(isinstance(p, BodyParameters) or (p is None and layers > 1) for p in several)


def dressed(garments: Mapping[Category, Any], batch: int = 1, join: str = "rows") -> dict[Category, list[list[Any]]]:
    """Category to one list, or one for each picture of a batch, of what is worn of it, from inside to outside.

    Args:
        garments: category to a picture, several, or lists of pictures, which say it themselves.
        batch: of all else that is given. Several pictures are a batch's if there are as many of each, or on a canvas;
            else they are worn at once.
        join: of the model.

    Raises:
        ValueError: nothing in a list, lists of different lengths, or more than one at once on a canvas.
    """
    lists = {
        c: isinstance(g, list | tuple) and any(isinstance(p, list | tuple) for p in g) for c, g in garments.items()
    }
    batch = max([batch, *(len(garments[c]) for c, nested in lists.items() if nested)])
    layers: dict[Category, list[list[Any]]] = {}
    for category, g in garments.items():
        several = images.as_list(g)
        if not several:
            raise ValueError(f"an empty list for {category}; give a picture, or leave it out")
        if not lists[category]:
            at_once = join == "rows" and isinstance(g, list | tuple) and 1 < len(several) != batch
            layers[category] = [several] if at_once else [[p] for p in several]
            continue
        if (
            not all(isinstance(p, list | tuple) for p in several)
            or len({len(p) for p in several}) > 1
            or not several[0]
        ):
            raise ValueError(
                f"garments[{category.value!r}] must be lists of as many pictures each, like [[shirt, jacket]] for all "
                "or one such list for each picture of the batch"
            )
        if join != "rows" and len(several[0]) > 1:
            raise ValueError(
                f"{len(several[0])} of {category} at once: a canvas has a slot for one; give one, or take a model in "
                "rows (join: rows), which wears any number"
            )
        layers[category] = [list(p) for p in several]
    return layers


def _places(
    canvas: Canvas, new: Sequence[Category], worn: Mapping[Category, int], join: str
) -> dict[Category, list[str]]:
    """Each category's slots, from inside to outside: the canvas's, or in rows as many as there are garments."""
    if join != "rows":
        return {c: [slot] for c, slot in canvas.place([*new, *worn]).items()}
    numbers = dict.fromkeys(new, 1) | dict(worn)
    if problem := clash([c for c, n in numbers.items() for _ in range(n)]):
        raise ValueError(problem)
    names = (f"garment_{i}" for i in count(1))
    return {c: [next(names) for _ in range(numbers[c])] for c in Category if c in numbers}


def _one_or(batch: int) -> str:
    """How many of something a batch takes."""
    return "1" if batch == 1 else f"1 or {batch}"


def check_learned(categories: Sequence[Category], accessories: Collection[str]) -> None:
    """ValueError for what a model that knows these accessories can neither put on nor take off."""
    if never := [c for c in categories if c not in (*CLOTHES, *accessories)]:
        knows = ", ".join((*CLOTHES, *accessories))
        raise ValueError(
            f"this model has not learned {never[0]}: leave it out (it knows {knows}), or take a model in rows that was "
            f"trained with accessories: [{never[0]}]"
        )


def check_garments(
    canvas: Canvas, new: Sequence[str], worn: Mapping[str, Any], join: str, accessories: Collection[str]
) -> None:
    """Refuse what a model can't take off or put on, before any picture of it is looked at.

    Args:
        canvas, join, accessories: the model's.
        new: categories to make.
        worn: category to lists of lists, as :func:`read_request` takes them.

    Raises:
        ValueError: a category that it has not learned, or what nobody can wear at once.
    """
    made, layers = [Category(c) for c in new], dressed({Category(c): g for c, g in worn.items()}, join=join)
    check_learned([*made, *layers], accessories)
    _places(canvas, made, {c: len(g[0]) for c, g in layers.items()}, join)


def check_sampler(steps: Any, scale: Any, eta: Any, generator: Any) -> None:
    """ValueError for numbers no scheduler can use."""
    if isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 1:
        raise ValueError(f"num_inference_steps is {steps!r}; give a whole number, 1 or more")
    for name, value in (("guidance_scale", scale), ("eta", eta)):
        if not isinstance(value, Real) or not math.isfinite(value):
            raise ValueError(f"{name} is {value!r}; give a finite number")
    several = generator if isinstance(generator, list | tuple) else [generator]
    if generator is not None and not all(isinstance(g, torch.Generator) for g in several):
        raise ValueError(f"generator is {generator!r}; give a torch.Generator, or a list of one per picture")


def worn_garments(garments: Any) -> dict[str, Any]:
    """Category to picture, of what was given as garments."""
    if not isinstance(garments, Mapping | None) or set(garments or ()) - set(Category):
        got = ", ".join(map(repr, garments)) if isinstance(garments, Mapping) else type(garments).__name__
        raise ValueError(f"garments must map {', '.join(map(repr, map(str, Category)))} to a picture; got {got}")
    return {str(c): g for c, g in (garments or {}).items()}


def _parameters(pose: Pose) -> BodyParameters | None:
    """Body parameters, or those in an ``.npz``; None for a picture."""
    if isinstance(pose, str | os.PathLike) and str(pose).lower().endswith(".npz"):
        return BodyParameters.load(Path(pose))
    return pose if isinstance(pose, BodyParameters) else None


def read_poses(pose: Any) -> list[BodyParameters | Image.Image | None]:
    """Poses as a list, their files read: body parameters, or pose maps; None stays None.

    Raises:
        ValueError: a file or a picture that can't be used.
    """
    several = [pose] if isinstance(pose, BodyParameters) else images.as_list(pose)
    return [None if p is None else _parameters(p) or images.read_image(cast(Any, p), "pose") for p in several]


def pose_picture(pose: Pose, style: Style = "parts_blend") -> Image.Image:
    """A pose map as a picture; body parameters (or their ``.npz``) are rendered with the body that ships.

    Those of a large photo are rendered smaller: the picture is for networks that see less of it.

    Raises:
        ValueError: a picture or parameters that can't be used, or a body that is not in its picture.
    """
    params = _parameters(pose)
    if params is not None:
        params = at_most(params, images.ENOUGH)
        drawn = render_pose_map(load_body(), params, style)
        if not drawn.any():  # of which a model would make anybody
            raise ValueError("pose: nothing of this body is in its picture; move it before the camera (transl, K)")
        return Image.fromarray(drawn)
    return images.read_image(cast(Any, pose), "pose")
