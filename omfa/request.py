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
from omfa.bodies.pose_render import render_pose_map
from omfa.canvas import FACE, PERSON, Canvas
from omfa.components import Category, Component, State, Task
from omfa.conditioning import Layout
from omfa.images import Picture

Pictures = Picture | Sequence[Picture]
Pose = Picture | BodyParameters


@dataclass(frozen=True)
class Request:
    """One checked call: what is wanted, and pictures as read. ``given`` and ``pose``: slot name to B pictures."""

    layout: Layout
    batch: int
    given: dict[str, list[Image.Image]]
    pose: list[Image.Image]


def read_request(
    canvas: Canvas,
    targets: Collection[str],
    person: Pictures | None,
    garments: Mapping[str, Pictures] | None,
    face: Pictures | None,
    pose: Pose | Sequence[Pose] | None,
    caption: str | None,
) -> Request:
    """The request behind a call, everything checked and every picture read.

    Args:
        canvas: the model's.
        targets, person, garments, face, pose, caption: as :class:`omfa.pipeline.OMFAPipeline` is called.

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
    for slot, value in ((PERSON, person), (FACE, face)):
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
    read = {slot: [images.read_image(p, slot) for p in several] for slot, several in pictures.items()}
    maps = [pose_picture(p) for p in poses]
    return Request(
        layout=Layout(Task(frozenset(kinds)).kind, states, categories, caption),
        batch=batch,
        given={slot: several * (batch // len(several)) for slot, several in read.items()},
        pose=maps * (batch // len(maps)) if maps else [],
    )


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


def pose_picture(pose: Pose) -> Image.Image:
    """A pose map as a picture; body parameters (or their ``.npz``) are rendered with the body that ships."""
    if isinstance(pose, str | os.PathLike) and str(pose).endswith(".npz"):
        pose = BodyParameters.load(Path(pose))
    if isinstance(pose, BodyParameters):
        return Image.fromarray(render_pose_map(load_body(), pose))
    return images.read_image(pose, "pose")
