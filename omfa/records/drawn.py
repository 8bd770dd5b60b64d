"""What is drawn from a record's bodies: surface maps and drafts, as a model that was made for them is given them.

Names in what :meth:`Drawer.pictures` returns, as far as the record has the bodies they need:

    surface_map      of the person
    <garment>_map    of the body that stands in the garment's picture, where the garment is given
    <garment>_stand  of the body that is chosen for the shop picture, where that is to be made (try-off)
    <garment>_draft  of the garment, from the person picture, in that body; not of what is worn under its like
    person_draft     of the person, from all garments that the model can be given and the face
    portrait_draft   the portrait with the garments that it lacks laid over it

Legend: ``H W`` pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from omfa import images
from omfa.bodies.body import Body
from omfa.bodies.drafts import Shown, draft_garment, draft_person, fitted, nudged
from omfa.bodies.parameters import BodyParameters
from omfa.bodies.standing import Kind, standing
from omfa.bodies.surface import NoDraft, surface_map
from omfa.components import ACCESSORIES, Category
from omfa.records.prepared import GarmentRef, Record, RecordError, garment_roles, record_files
from omfa.records.shards import Source
from omfa.records.worn import wearable

GIVEN = 0.5  # how wrong a given garment's body is taken to be, as a share of a chosen one's error
INSIDE_OUT = (  # what is worn over what
    *(Category.SHOES, Category.LOWER, Category.DRESS, Category.UPPER, Category.BAG, Category.HAT),
)


def drawn_files(record: Record) -> dict[str, str]:
    """Files that the drawings are made of besides pictures: role in ``record_files`` to path."""
    roles = (
        "pose_params",
        "face_pose",
        *(f"{role}_{what}" for role in garment_roles(record) for what in ("pose", "mask")),
    )
    files = record_files(record)
    return {role: files[role] for role in roles if role in files}


class Drawer:
    """Draws for records; views of an outfit share what is drawn of its garments.

    Bodies in garment pictures are taken to be a little wrong, as an estimate is (:func:`omfa.bodies.drafts.nudged`):
    in the record they are the truth, whose framing would tell the answer. The picture's path seeds by how much.

    Args:
        source: of the records.
        size: (H, W) that person and garments are fitted to.
        body: the one whose surface all share; parameters of another draw nothing.
        join, accessories: of the model, whose garments alone are drawn.
    """

    def __init__(
        self,
        source: Source,
        size: tuple[int, int],
        body: Body,
        join: str = "canvas",
        accessories: Collection[str] = (),
    ) -> None:
        self.source, self.size, self.body, self.join, self.accessories = source, size, body, join, accessories
        self._garment = lru_cache(16)(self._drawn_garment)

    def pictures(self, record: Record) -> dict[str, Tensor]:
        """Everything that can be drawn for a record: name (see above) to (3, H, W) in [-1, 1].

        Raises:
            RecordError: body parameters that can't be read.
            ImageError: a picture that can't be.
        """
        files, drawn, body = record_files(record), dict[str, Tensor](), self.body
        person, inner = _read(self.source, files["person"], self.size, "edge")
        params = _params(self.source, files.get("pose_params"), inner, self.size)
        if params is not None:
            with suppress(NoDraft):
                drawn["surface_map"] = as_map(body, params)
        shown, worn = dict[str, Shown](), wearable(record, self.join, self.accessories)
        for role, garment in sorted(worn.items(), key=lambda item: INSIDE_OUT.index(item[1].category)):
            if garment.pose is None and garment.category in ACCESSORIES:
                continue  # nobody knows its body, and no category of them has one
            with suppress(NoDraft):
                own = self._garment(garment)
                shown[role], drawn[f"{role}_map"] = own.shown, own.shown_map
                if params is not None and role in set(Category):
                    made = draft_garment(body, own.chosen, Shown(person, params), wall=True)
                    drawn |= {f"{role}_draft": made.picture, f"{role}_stand": own.chosen_map}
        if params is not None and shown:
            with suppress(NoDraft):
                face = self._face(files)
                drawn["person_draft"] = draft_person(body, params, self.size, list(shown.values()), face=face).picture
                if record.portrait is not None:
                    portrait, _ = _read(self.source, record.portrait.path, self.size, "edge")
                    changed = record.portrait.changed or tuple(Category)
                    new = [s for role, s in shown.items() if worn[role].category in changed]
                    drawn["portrait_draft"] = draft_person(body, params, self.size, new, portrait).picture
        return drawn

    def _face(self, files: Mapping[str, str]) -> Shown | None:
        if "face_pose" not in files:
            return None
        where = self.source.where(files["face"])
        picture = images.pixels_to_tensor(images.decode_pixels(self.source.read(files["face"]), where))
        size = picture.shape[1], picture.shape[2]
        params = _params(self.source, files["face_pose"], images.Box(0, 0, *size), size)
        if params is None:
            return None
        with suppress(NoDraft):
            return Shown(picture, params).checked(self.body)
        return None

    def _drawn_garment(self, garment: GarmentRef) -> _Garment:
        digest = hashlib.sha256(f"drawn\0{garment.path}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        picture, stand, mask = _standing_garment(self.source, garment, self.size, self.body)
        try:
            given, chosen = nudged(stand, rng, GIVEN), nudged(stand, rng)
        except ValueError as e:  # as far away as numbers go
            raise NoDraft(str(e)) from None
        shown = Shown(picture, given, mask).checked(self.body)
        return _Garment(shown, as_map(self.body, given), chosen, as_map(self.body, chosen))


class _Garment(NamedTuple):
    """A garment where it is given, and the body that is chosen where it is to be made; surface maps of both."""

    shown: Shown
    shown_map: Tensor
    chosen: BodyParameters
    chosen_map: Tensor


def as_map(body: Body, params: BodyParameters) -> Tensor:
    """The surface map (3, H, W) in [-1, 1]; NoDraft for another's parameters."""
    return images.pixels_to_tensor(surface_map(body, params))


def _read(source: Source, path: str, size: Sequence[int], fill: images.Fill) -> tuple[Tensor, images.Box]:
    return images.fit_pixels(images.decode_pixels(source.read(path), source.where(path)), size, fill)


def _params(source: Source, path: str | None, inner: images.Box, size: tuple[int, int]) -> BodyParameters | None:
    """A file's parameters, for the picture as it was fitted."""
    if path is None:
        return None
    try:
        params = BodyParameters.load(Path(source.where(path)), source.read(path))
        return fitted(params, inner.top, inner.left, (inner.height, inner.width), size)
    except ValueError as e:
        raise RecordError(str(e)) from None


def _standing_garment(
    source: Source, garment: GarmentRef, size: tuple[int, int], body: Body
) -> tuple[Tensor, BodyParameters, Tensor | None]:
    """The picture, the body that would stand in it, or its category's, and the mask or None."""
    picture, inner = _read(source, garment.path, size, "white")
    stand = _params(source, garment.pose, inner, size)
    if stand is None:
        own = standing(body, cast(Kind, garment.category.value), (inner.height, inner.width))
        stand = fitted(own, inner.top, inner.left, (inner.height, inner.width), size)
    if garment.mask is None:
        return picture, stand, None
    mask = torch.zeros(size, dtype=torch.bool)
    mask[inner.window] = _read(source, garment.mask, (inner.height, inner.width), "edge")[0][0] > 0
    return picture, stand, mask if bool(mask.any()) else None
