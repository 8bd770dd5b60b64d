"""What a call asks for: checked at the door, every picture read, before any long work."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image

from omfa import images
from omfa.bodies.body import load_body
from omfa.bodies.parameters import BodyParameters
from omfa.bodies.pose_render import Style, render_pose_map
from omfa.canvas import FACE, PERSON, PORTRAIT, Canvas
from omfa.components import Category, Component, State, Task
from omfa.conditioning import Layout
from omfa.images import Picture

Pictures = Picture | Sequence[Picture]
Pose = Picture | BodyParameters
Bodies = BodyParameters | Sequence[BodyParameters]


@dataclass(frozen=True)
class Request:
    """One checked call: what is wanted, and pictures as read.

    Args:
        layout: of all pictures.
        batch: B.
        given: slot name to B pictures.
        pose: B pose maps, or none.
        params: B body parameters behind them, None for a map that was given as a picture; or none.
        stands: slot of a garment or the face to B bodies that stand in its pictures, given or to be made, as far as
            they are known.
    """

    layout: Layout
    batch: int
    given: dict[str, list[Image.Image]]
    pose: list[Image.Image]
    params: list[BodyParameters | None]
    stands: dict[str, list[BodyParameters]]


def read_request(
    canvas: Canvas,
    targets: Collection[str],
    person: Pictures | None,
    garments: Mapping[str, Pictures] | None,
    face: Pictures | None,
    pose: Pose | Sequence[Pose] | None,
    caption: str | None,
    portrait: Pictures | None = None,
    garment_poses: Mapping[str, Bodies] | None = None,
    face_pose: Bodies | None = None,
    style: Style = "parts_blend",
) -> Request:
    """The request behind a call, everything checked and every picture read.

    Args:
        canvas: the model's.
        targets, person, garments, face, pose, caption, portrait, garment_poses, face_pose: as
            :class:`omfa.pipeline.OMFAPipeline` is called.
        style: of pose maps that are rendered.

    Raises:
        ValueError: a call that asks for the impossible, or a picture that can't be used.
    """
    wanted = [targets] if isinstance(targets, str) or not isinstance(targets, Collection) else list(targets)
    unknown = set(wanted) - {PERSON, *Category}
    if unknown or not wanted:
        raise ValueError(f"targets {wanted} must be some of 'person', {', '.join(map(repr, map(str, Category)))}")
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
    places = canvas.place([*new, *worn])
    states = {places[c]: State.TARGET for c in new} | {places[c]: State.GIVEN for c in worn}
    pictures: dict[str, list[Any]] = {places[c]: images.as_list(g) for c, g in worn.items()}
    if portrait is not None and wanted != [PERSON]:
        raise ValueError(f"portrait= is the photo to change the clothes in, with targets=['person']; got {wanted}")
    for slot, value in ((PERSON, person), (FACE, face), (PORTRAIT, portrait)):
        if value is not None:
            states[slot], pictures[slot] = State.GIVEN, images.as_list(value)
    if PERSON in wanted:
        states[PERSON] = State.TARGET
    poses = [pose] if isinstance(pose, BodyParameters) else images.as_list(cast(Any, pose))
    batch = max([len(p) for p in pictures.values()] + [len(poses), 1])
    for name, several in [*pictures.items(), ("pose", poses)]:
        if not several and not (name == "pose" and pose is None):
            raise ValueError(f"an empty list for {name}; give a picture, or leave it out")
        if len(several) not in (0, 1, batch):
            raise ValueError(f"{len(several)} pictures for {name} in a batch of {batch}; give 1 or {batch}")
    kinds = {Component.PERSON if t == PERSON else Component.GARMENT for t in wanted}
    categories = {places[c]: c for c in [*new, *worn]}
    read = {slot: [images.read_image(p, slot, images.ENOUGH) for p in several] for slot, several in pictures.items()}
    known = [_parameters(p) for p in poses]
    maps = [pose_picture(p if k is None else k, style) for p, k in zip(poses, known, strict=True)]
    return Request(
        layout=Layout(Task(frozenset(kinds)).kind, states, categories, caption),
        batch=batch,
        given={slot: several * (batch // len(several)) for slot, several in read.items()},
        pose=maps * (batch // len(maps)) if maps else [],
        params=known * (batch // len(known)) if known else [],
        stands=_stands(garment_poses, face_pose, pictures, places, batch),
    )


def _stands(
    garment_poses: Any, face_pose: Any, pictures: Collection[str], places: Mapping[Category, str], batch: int
) -> dict[str, list[BodyParameters]]:
    """Bodies in pictures of garments and the face: slot to B."""
    known = {f"garment_poses[{c!r}]": (places.get(c, ""), p) for c, p in (garment_poses or {}).items()}
    if face_pose is not None:
        known["face_pose"] = (FACE if FACE in pictures else "", face_pose)
    stands = {}
    for name, (slot, value) in known.items():
        several = list(value) if isinstance(value, Sequence) else [value]
        if not slot or len(several) not in (1, batch) or not all(isinstance(p, BodyParameters) for p in several):
            there = ", ".join([*places, *([FACE] if FACE in pictures else [])])
            raise ValueError(
                f"{name} must be BodyParameters, 1 or {batch} of them, for what this call is about ({there or 'none'})"
            )
        stands[slot] = several * (batch // len(several))
    return stands


def check_sampler(steps: Any, scale: Any, eta: Any, generator: Any) -> None:
    """ValueError for numbers no scheduler can use."""
    if isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 1:
        raise ValueError(f"num_inference_steps is {steps!r}; give a whole number, 1 or more")
    for name, value in (("guidance_scale", scale), ("eta", eta)):
        if not isinstance(value, Real) or not math.isfinite(value):
            raise ValueError(f"{name} is {value!r}; give a finite number")
    several = generator if isinstance(generator, list) else [generator]
    if generator is not None and not all(isinstance(g, torch.Generator) for g in several):
        raise ValueError(f"generator is {generator!r}; give a torch.Generator, or a list of one per picture")


def worn_garments(garments: Any) -> dict[str, Any]:
    """Category to picture, of what was given as garments."""
    if not isinstance(garments, Mapping | None) or set(garments or ()) - set(Category):
        got = ", ".join(map(repr, garments)) if isinstance(garments, Mapping) else type(garments).__name__
        raise ValueError(f"garments must map 'upper', 'lower' or 'dress' to a picture; got {got}")
    return {str(c): g for c, g in (garments or {}).items()}


def _parameters(pose: Pose) -> BodyParameters | None:
    """Body parameters, or those in an ``.npz``; None for a picture."""
    if isinstance(pose, str | os.PathLike) and str(pose).endswith(".npz"):
        return BodyParameters.load(Path(pose))
    return pose if isinstance(pose, BodyParameters) else None


def pose_picture(pose: Pose, style: Style = "parts_blend") -> Image.Image:
    """A pose map as a picture; body parameters (or their ``.npz``) are rendered with the body that ships."""
    params = _parameters(pose)
    if params is not None:
        return Image.fromarray(render_pose_map(load_body(), params, style))
    return images.read_image(cast(Any, pose), "pose")
