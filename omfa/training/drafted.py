"""Records as drafts beside their truths: made once, kept as pictures, read in milliseconds.

A shop picture's own framing would tell how long the garment is, so its body's standing is framed anew by chance, and
the true picture with it: a change of the camera's matrix alone is a change of the picture, exactly. Legend: H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from omfa.bodies.body import Body
from omfa.bodies.drafts import Shown, draft_garment, draft_person, misfit, nudged, seen_map
from omfa.bodies.likeness import likeness
from omfa.bodies.parameters import BodyParameters
from omfa.bodies.surface import Draft, NoDraft, resized
from omfa.files import whole
from omfa.images import ImageError, read_trusted
from omfa.records.drawn import INSIDE_OUT
from omfa.records.labels import PERSON
from omfa.records.prepared import GarmentRef, Record, RecordError, resolve
from omfa.records.worn import clothes

Array = NDArray[Any]
SCALE = (-0.25, 0.1)  # logarithms between which a shop picture is framed anew
SHIFT = 0.06  # of the height, at most
ERROR = 0.2  # of bodies in given shop pictures; with more of it, a composer blurs patterns that may be a little off


@dataclass(frozen=True, eq=False)
class Drafted:
    """A target's draft and its truth, all uint8 of one size.

    Args:
        draft: (H, W, 3).
        valid: (H, W), 255 where the draft is.
        surface: (H, W, 3) the target's surface map.
        truth: (H, W, 3).
        area: (H, W), 255 where the garment or the person truly is.
        likeness: (H, W, 3), 255 is 1; see :func:`omfa.bodies.likeness.likeness`.
        photo: (H, W, 3) the portrait, for a person that has one.
    """

    draft: Array
    valid: Array
    surface: Array
    truth: Array
    area: Array
    likeness: Array
    photo: Array | None = None

    def save(self, path: Path) -> None:
        """One PNG: draft and valid, surface and area, truth, likeness, photo, from left to right."""
        full = np.full_like(self.valid, 255)
        pairs = [(self.draft, self.valid), (self.surface, self.area), (self.truth, full), (self.likeness, full)]
        pairs += [] if self.photo is None else [(self.photo, full)]
        strip = np.concatenate([np.dstack([colour[..., ::-1], alpha]) for colour, alpha in pairs], 1)
        with whole(path) as part:
            part.write_bytes(cv2.imencode(".png", strip, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes())

    @classmethod
    def load(cls, path: Path, width: int) -> Drafted:
        """Read what :meth:`save` wrote.

        Raises:
            ImageError: damaged.
        """
        strip = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
        if strip is None or strip.ndim != 3 or strip.shape[2] != 4 or strip.shape[1] not in (4 * width, 5 * width):
            raise ImageError(f"{path}: no drafts of width {width}: delete the folder, they are made anew")
        panels = np.split(strip, strip.shape[1] // width, 1)
        colours, alphas = [p[..., 2::-1] for p in panels], [p[..., 3] for p in panels]
        return cls(colours[0], alphas[0], colours[1], colours[2], alphas[1], *colours[3:])  # likeness, photo

    def mirrored(self) -> Drafted:
        """Left and right changed over, in the surface map's colours too."""
        flipped = {f.name: x[:, ::-1] for f in fields(self) if (x := getattr(self, f.name)) is not None}
        surface = flipped["surface"].copy()
        on = surface.any(-1)
        surface[on, 0] = np.clip(287 - surface[on, 0].astype(int), 0, 255)  # red runs from 32 to 255
        return Drafted(**flipped | {"surface": surface})


@dataclass(frozen=True)
class Drafter:
    """Makes :class:`Drafted` of records.

    Args:
        body: everybody's.
        records: the folder; body parameters are read as files.
        size: (H, W).
    """

    body: Body
    records: Path
    size: tuple[int, int]

    def person(self, record: Record, rng: np.random.Generator, onto_portrait: bool = False) -> Drafted:
        """The person in their pose, from the garments' shop pictures; for a portrait, from those that it lacks.

        Raises:
            RecordError: the record lacks body parameters.
            NoDraft: they are another body's, or not in the picture.
        """
        shown = {
            g.category: Shown(self._picture(g.path), p, self._mask(g)) for g, p in self.worn(record, rng, onto_portrait)
        }
        face = None
        if not onto_portrait and record.face is not None and record.face.pose is not None:
            face = Shown(read_trusted(resolve(self.records, record.face.path)), self._params(record.face.pose, record))
        params, order = self.params(record), sorted(shown, key=INSIDE_OUT.index)
        params = misfit(params, rng) if onto_portrait else params  # of a photo it is estimated, of a new picture given
        made = draft_person(self.body, params, self.size, [shown[c] for c in order], face=face)
        labels = record.maps and record.maps.labels
        area = np.isin(self._grey(labels), PERSON) if labels else np.ones(self.size, bool)
        kept = None if record.portrait is None else Shown(self._picture(record.portrait.path), params)
        photo, looks = None if kept is None else _pixels(kept.picture), likeness(self.body, made, None, kept)
        truth = _pixels(self._picture(record.file_name))
        return Drafted(*self._as_pixels(made, params), truth, area.astype(np.uint8) * 255, _levels(looks), photo)

    def garment(self, record: Record, garment: GarmentRef, rng: np.random.Generator) -> Drafted:
        """A shop picture, framed anew, from the photo; errors as :meth:`person`."""
        turn, stand = self.framed(record, garment, rng)
        truth = _warped(_pixels(self._picture(garment.path)), turn, 255)
        if garment.mask:
            area = _warped(self._grey(garment.mask), turn, 0)
        else:
            area = np.where((truth < 250).any(-1), 255, 0).astype(np.uint8)
        draft, valid, surface, looks = self.off(record, stand, misfit(self.params(record), rng))
        return Drafted(draft, valid, surface, truth, area, looks)

    def worn(
        self, record: Record, rng: np.random.Generator, onto_portrait: bool = False
    ) -> list[tuple[GarmentRef, BodyParameters]]:
        """The garments that are put on, for a portrait those that it lacks, and the bodies in their pictures."""
        changed = record.portrait.changed if onto_portrait and record.portrait else None
        new = [g for g in clothes(record) if not changed or g.category in changed]
        return [(g, nudged(self._params(g.pose, record), rng, ERROR)) for g in new]

    def framed(self, record: Record, garment: GarmentRef, rng: np.random.Generator) -> tuple[Array, BodyParameters]:
        """How a shop picture is framed anew: pixels to pixels (3, 3), and the body that then stands in it."""
        across, down = rng.uniform(-SHIFT, SHIFT, 2) * self.size[0]
        turn = framing(float(np.exp(rng.uniform(*SCALE))), float(across), float(down), self.size)
        stand = resized(self._params(garment.pose, record), self.size)
        return turn, replace(stand, K=turn @ stand.K)

    def off(self, record: Record, stand: BodyParameters, params: BodyParameters) -> tuple[Array, Array, Array, Array]:
        """Draft, valid, surface and likeness of a shop picture with that standing, from the record's photo and body."""
        photo = Shown(self._picture(record.file_name), params)
        made = draft_garment(self.body, stand, photo, wall=True)
        return *self._as_pixels(made, stand), _levels(likeness(self.body, made, photo))

    def _as_pixels(self, made: Draft, params: BodyParameters) -> tuple[Array, Array, Array]:
        surface = seen_map(self.body, params, self.size)
        return _pixels(made.picture), made.valid.numpy().astype(np.uint8) * 255, _pixels(surface)

    def params(self, record: Record) -> BodyParameters:
        """The person's body; RecordError if the record lacks it."""
        return self._params(None if record.pose is None else record.pose.params, record)

    def _params(self, path: str | None, record: Record) -> BodyParameters:
        if not path:
            raise RecordError(f"{record.id}: no body parameters; composers are trained where all bodies are known")
        return _read(resolve(self.records, path))

    def _picture(self, path: str) -> Tensor:
        picture = read_trusted(resolve(self.records, path))
        if picture.shape[-2:] == self.size:
            return picture
        return torch.nn.functional.interpolate(picture[None], self.size, mode="bilinear", antialias=True)[0]

    def _grey(self, path: str) -> Array:
        full = resolve(self.records, path)
        picture = cv2.imdecode(np.fromfile(full, np.uint8), cv2.IMREAD_GRAYSCALE)
        if picture is None:
            raise ImageError(f"{full}: damaged; prepare the record again")
        return cv2.resize(picture, self.size[::-1], interpolation=cv2.INTER_NEAREST)

    def _mask(self, garment: GarmentRef) -> Tensor | None:
        return torch.from_numpy(self._grey(garment.mask) > 127) if garment.mask else None


@lru_cache(64)
def _read(path: Path) -> BodyParameters:
    """The same object for the same file, so that a body is seen once for several targets in a row."""
    return BodyParameters.load(path)


def framing(scale: float, across: float, down: float, size: tuple[int, int]) -> Array:
    """(3, 3) pixels to pixels: scaled about the middle of (H, W), then moved."""
    y, x = (size[0] - 1) / 2, (size[1] - 1) / 2
    return np.array([[scale, 0, x * (1 - scale) + across], [0, scale, y * (1 - scale) + down], [0, 0, 1.0]])


def _warped(picture: Array, turn: Array, fill: int) -> Array:
    return cv2.warpAffine(
        picture, turn[:2], picture.shape[1::-1], flags=cv2.INTER_LINEAR, borderValue=(fill,) * 3
    )  # fmt: skip


def _pixels(picture: Tensor) -> Array:
    return rearrange((picture + 1) * 127.5, "c h w -> h w c").round().clamp(0, 255).byte().numpy()


def _levels(planes: Tensor) -> Array:
    return rearrange(planes * 255, "c h w -> h w c").round().byte().numpy()


def drafted(drafter: Drafter, record: Record, target: str, kept: Path, rng: np.random.Generator, name: str) -> Drafted:
    """What is kept as ``name`` in a folder, made where it is not there yet.

    Args:
        drafter: makes it.
        record: of a person.
        target: ``person``, ``portrait`` (a person from a portrait and what it lacks), or a category.
        kept: the folder.
        rng: draws framing and errors.
        name: without suffix.

    Raises:
        RecordError: no body parameters, or such that no draft is to be had.
    """
    path = kept / f"{name}.png"
    if not path.is_file():
        try:
            if target in ("person", "portrait"):
                made = drafter.person(record, rng, target == "portrait")
            else:
                (garment,) = (g for g in clothes(record) if g.category == target)
                made = drafter.garment(record, garment, rng)
        except NoDraft as e:
            raise RecordError(f"{record.id}: {e}") from None
        made.save(path)
    return Drafted.load(path, drafter.size[1])
