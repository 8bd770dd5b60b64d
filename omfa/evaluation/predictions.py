"""The evaluator's door: what any try-on or try-off system must be like, and what it is given of a record.

A system is a class that says which inputs it needs and takes, and makes pictures of a batch:

    class Mine:
        try_on_needs = frozenset({Input.PHOTO, Input.GARMENTS, Input.MASK})
        try_on_takes = frozenset({Input.FACE})

        def try_on(self, batch: Batch) -> list[Image.Image]: ...

``python -m omfa.predict --class-path package.module.Mine`` then makes its predictions for any records. A record that
lacks what is *needed* is a named problem of its picture, and all others are made; what is merely *taken* is handed over
where a record has it. All items of a batch have the same inputs and categories.

**Which photo a try-on gets** (``PHOTO``): the record's portrait, the same view of the person in another outfit, where
it has one; else its person picture. Paired, that picture shows the very garments that are asked for, as it does in the
tables of all systems that repaint a masked part; a system that sees it must not see under its own mask. Systems that
ask for ``MASK`` or ``PARTS`` always get the person picture, for these describe it. Whoever wants portraits alone asks
for ``PORTRAIT``. Unpaired, garments, their masks and the caption are the donor's, everything else is the person's. A
try-off gets the person picture, and nothing of the garment.

Legend: B batch, H W pixels of the photo.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import cv2
import numpy as np
import torch
from PIL import Image

from omfa.bodies.parameters import BodyParameters
from omfa.components import CLOTHES, Category, TaskKind
from omfa.evaluation.pairs import Item
from omfa.images import read_image
from omfa.records.keypoints import read_keypoints
from omfa.records.labels import ARMS, HEAD, LEGS, PARTS_OF, read_labels
from omfa.records.parts import part_map
from omfa.records.prepared import GarmentRef, Record, RecordError, record_files, resolve
from omfa.records.worn import clothes

PREDICTIONS = "predictions.json"


class Input(StrEnum):
    """What a system may ask for; the field of :class:`Batch` of the same name tells what it then gets."""

    PHOTO = "photos"
    PORTRAIT = "portraits"
    GARMENTS = "garments"
    GARMENT_MASKS = "garment_masks"
    GARMENT_POSES = "garment_poses"
    FACE = "faces"
    FACE_POSE = "face_poses"
    POSE_MAP = "pose_maps"
    POSE = "poses"
    KEYPOINTS = "keypoints"
    PARTS = "parts"
    MASK = "masks"
    CAPTION = "captions"


OF_GARMENTS = frozenset({Input.GARMENTS, Input.GARMENT_MASKS, Input.GARMENT_POSES})
_LACKS = {  # what is said of a record that lacks it
    Input.PHOTO: "no person picture",
    Input.PORTRAIT: "no portrait, a picture of the same view in another outfit; name one in the record",
    Input.GARMENTS: "no garments; cut some out with 'python -m data_prep garments'",
    Input.GARMENT_MASKS: "a garment without a mask; name it in the record",
    Input.GARMENT_POSES: "a garment without a pose, the body that would stand in it; name it in the record",
    Input.FACE: "no face; cut one out with 'python -m data_prep faces'",
    Input.FACE_POSE: "a face without the body whose head it is; cut it out with 'python -m data_prep faces'",
    Input.POSE_MAP: "no pose map; make it with 'python -m data_prep pose-maps'",
    Input.POSE: "no body parameters; make them with 'python -m data_prep pose-maps'",
    Input.KEYPOINTS: "no keypoints; name a file of them in the record",
    Input.PARTS: "no part map; make it with 'python -m data_prep parse'",
    Input.MASK: "no mask of what to repaint, nor a part map to make one of; make it with 'python -m data_prep parse'",
    Input.CAPTION: "no caption; write one in the record",
}


@dataclass(frozen=True)
class Batch:
    """B items as a system is given them, each field a tuple of B; empty where it was not asked for or is not there.

    Args:
        keys: names of the predictions.
        category: what a try-off takes off; None for try-on.
        generators: one for each picture's noise.
        steps, guidance: of the sampler; None: the system's own.
        photos: the photo to change (try-on) or to take the garment from (try-off); see the module's docstring.
        portraits: pictures of the same view in another outfit.
        garments: category to shop pictures or cut-outs.
        garment_masks: category to (H, W) bool of the garment picture, where the garment is.
        garment_poses: category to the body that would stand in the garment picture.
        faces: head crops.
        face_poses: the body whose head is shown, before the crop's own camera.
        pose_maps: pictures of the posed body, aligned with the person picture.
        poses: body and camera.
        keypoints: (18, 3) float32, see :func:`omfa.records.keypoints.read_keypoints`.
        parts: (H, W) uint8 of :class:`omfa.records.labels.Part`.
        masks: (H, W) bool, True where the photo is to be repainted.
        captions: what can be seen, in a few words.
    """

    keys: tuple[str, ...]
    category: Category | None
    generators: tuple[torch.Generator, ...]
    steps: int | None = None
    guidance: float | None = None
    photos: tuple[Path, ...] = ()
    portraits: tuple[Path, ...] = ()
    garments: Mapping[Category, tuple[Path, ...]] = field(default_factory=dict)
    garment_masks: Mapping[Category, tuple[np.ndarray, ...]] = field(default_factory=dict)
    garment_poses: Mapping[Category, tuple[BodyParameters, ...]] = field(default_factory=dict)
    faces: tuple[Path, ...] = ()
    face_poses: tuple[BodyParameters, ...] = ()
    pose_maps: tuple[Path, ...] = ()
    poses: tuple[BodyParameters, ...] = ()
    keypoints: tuple[np.ndarray, ...] = ()
    parts: tuple[np.ndarray, ...] = ()
    masks: tuple[np.ndarray, ...] = ()
    captions: tuple[str, ...] = ()


class TryOnModel(Protocol):
    """A system that puts garments on people: ``needs`` and ``takes`` say which inputs (the module's docstring)."""

    try_on_needs: frozenset[Input]
    try_on_takes: frozenset[Input]

    def try_on(self, batch: Batch) -> Sequence[Image.Image]:
        """A picture of each person wearing the garments."""


class TryOffModel(Protocol):
    """A system that takes garments off people: likewise."""

    try_off_needs: frozenset[Input]
    try_off_takes: frozenset[Input]

    def try_off(self, batch: Batch) -> Sequence[Image.Image]:
        """A shop picture of each person's garment of ``batch.category``."""


@runtime_checkable
class TellsOfWeights(Protocol):
    """What a class may tell of weights before they are loaded: it goes into ``predictions.json``."""

    def sampler_defaults(self, weights: str) -> tuple[int, float]:
        """Steps and guidance of a call that names none (a classmethod)."""

    def weights_path(self, weights: str) -> Path | None:
        """Where they lie, if here (a classmethod)."""


@dataclass(frozen=True)
class Wishes:
    """What a system asks for in one task."""

    needs: frozenset[Input]
    takes: frozenset[Input]

    @property
    def all(self) -> frozenset[Input]:
        """Needed and taken."""
        return self.needs | self.takes


def wishes_of(model: object, task: TaskKind) -> Wishes:
    """What a system (or its class) asks for.

    Raises:
        ValueError: it fulfils no protocol, or asks a try-off for the garment.
    """
    names = [f"{task.value}_needs", f"{task.value}_takes"]
    needs, takes = (getattr(model, name, None) for name in names)
    kind = "TryOnModel" if task == TaskKind.TRY_ON else "TryOffModel"
    fits = all(isinstance(w, frozenset | set) and set(w) <= set(Input) for w in (needs, takes))
    if not fits or not callable(getattr(model, task.value, None)):
        named = model.__name__ if isinstance(model, type) else type(model).__name__
        raise ValueError(
            f"{named} is no {kind} of omfa.evaluation.predictions: it must have {' and '.join(names)} (frozensets of "
            f"Input) and {task.value}(batch)"
        )
    wishes = Wishes(frozenset(map(Input, needs or ())), frozenset(map(Input, takes or ())))
    if task == TaskKind.TRY_OFF and wishes.all & OF_GARMENTS:
        raise ValueError(f"a try-off is asked for the garment: it can't be given {', '.join(wishes.all & OF_GARMENTS)}")
    return wishes


# --------------------------------------------------------------------------------------------------- records to batches
def has(item: Item) -> frozenset[Input]:
    """Which inputs an item's records name."""
    files, wears, worn = record_files(item.record), _wears(item), _worn(item)
    roles = {
        Input.PHOTO: "person", Input.PORTRAIT: "portrait", Input.FACE: "face", Input.FACE_POSE: "face_pose",
        Input.POSE_MAP: "pose_map", Input.POSE: "pose_params", Input.KEYPOINTS: "keypoints",
    }  # fmt: skip
    there = {name: role in files for name, role in roles.items()}
    there |= {
        Input.GARMENTS: bool(worn),
        Input.GARMENT_MASKS: bool(worn) and all(g.mask is not None for g in worn),
        Input.GARMENT_POSES: bool(worn) and all(g.pose is not None for g in worn),
        Input.PARTS: bool({"parts", "labels"} & set(files)),
        Input.MASK: bool({"inpaint", "parts", "labels"} & set(files)),
        Input.CAPTION: wears.caption is not None,
    }
    return frozenset(name for name, is_there in there.items() if is_there)


def check_has(item: Item, wishes: Wishes) -> None:
    """Refuse an item that lacks what is needed.

    Raises:
        RecordError: names the record, everything it lacks, and the cures.
    """
    lacking = [name for name in Input if name in wishes.needs - has(item)]
    if lacking:
        raise RecordError(f"{item.record.id}: {'; '.join(_LACKS[name] for name in lacking)}")


def alike(item: Item, wishes: Wishes) -> tuple[Any, ...]:
    """What the items of one batch have in common."""
    worn = tuple(sorted(g.category.value for g in _worn(item)))
    return (item.category,) if item.category is not None else (worn, wishes.all & has(item))


def make_batch(
    records: Path,
    items: Sequence[Item],
    wishes: Wishes,
    generators: Sequence[torch.Generator],
    steps: int | None = None,
    guidance: float | None = None,
) -> Batch:
    """A batch of items that are :func:`alike`, as a system asks for it.

    Raises:
        RecordError, ValueError: an item that lacks what is needed, or a file that can't be read.
    """
    for item in items:
        check_has(item, wishes)
    wanted = wishes.all & frozenset.intersection(*(has(item) for item in items))
    found = [{name: _read(records, item, name, wishes) for name in wanted} for item in items]
    columns: dict[str, Any] = {}
    for name in wanted:
        column = [given[name] for given in found]
        columns[name.value] = {c: tuple(x[c] for x in column) for c in column[0]} if name in OF_GARMENTS else (*column,)
    keys = tuple(item.key for item in items)
    return Batch(keys, items[0].category, tuple(generators), steps, guidance, **columns)


def _wears(item: Item) -> Record:
    """The record whose garments are worn in the picture."""
    return item.donor or item.record


def _worn(item: Item) -> tuple[GarmentRef, ...]:
    """The garments a try-on puts on; nothing for a try-off, whose answer they are."""
    return () if item.category is not None else clothes(_wears(item))


def _read(records: Path, item: Item, name: Input, wishes: Wishes) -> Any:
    """One input of one item, which has it."""
    files, worn = record_files(item.record), record_files(_wears(item))
    categories = [g.category for g in _worn(item)]

    def at(role: str) -> Path:
        return resolve(records, files[role])

    def of_garments(suffix: str = "") -> dict[Category, Path]:
        return {c: resolve(records, worn[f"{c}{suffix}"]) for c in categories}

    def parts() -> np.ndarray:
        found, picture = part_map(records, item.record), read_image(at("person"))
        if found.shape != (picture.height, picture.width):
            what = f"no part map of {picture.width}x{picture.height} but of {found.shape[1]}x{found.shape[0]}"
            raise RecordError(f"{item.record.id}: {what}; parse again")
        return found

    match name:
        case Input.PHOTO:
            described = {Input.MASK, Input.PARTS} & wishes.all
            own = "portrait" not in files or item.category is not None or described
            return at("person" if own else "portrait")
        case Input.PORTRAIT:
            return at("portrait")
        case Input.FACE:
            return at("face")
        case Input.POSE_MAP:
            return at("pose_map")
        case Input.POSE | Input.FACE_POSE:
            return BodyParameters.load(at("pose_params" if name == Input.POSE else "face_pose"))
        case Input.GARMENTS:
            return of_garments()
        case Input.GARMENT_MASKS:
            return {c: read_labels(path) > 127 for c, path in of_garments("_mask").items()}
        case Input.GARMENT_POSES:
            return {c: BodyParameters.load(path) for c, path in of_garments("_pose").items()}
        case Input.KEYPOINTS:
            assert item.record.keypoints is not None
            return read_keypoints(at("keypoints"), item.record.keypoints.format)
        case Input.PARTS:
            return parts()
        case Input.MASK:
            if "inpaint" in files:
                return read_labels(at("inpaint")) > 127
            return repainted(parts(), {*categories, *(g.category for g in clothes(item.record))})
        case Input.CAPTION:
            return _wears(item).caption


def repainted(parts: np.ndarray, categories: set[Category]) -> np.ndarray:
    """What to repaint for garments of these categories, where nobody has drawn a mask.

    The clothes of the categories, the limbs that such clothes may cover, and a rim of a 40th of the height, for the new
    garment may be wider than the old one. The head stays.

    Args:
        parts: (H, W) uint8 of :class:`omfa.records.labels.Part`.
        categories: of the garments worn and to be worn; a dress takes the place of both others.

    Returns:
        (H, W) bool.
    """
    both = set(CLOTHES) if Category.DRESS in categories else categories
    found = [of for c in both for of in PARTS_OF[c]] + list(PARTS_OF[Category.DRESS])
    found += [*ARMS] if Category.UPPER in both else []
    found += [*LEGS] if Category.LOWER in both else []
    rim = 2 * (len(parts) // 40) + 1
    wide = cv2.dilate(np.isin(parts, found).astype(np.uint8), np.ones((rim, rim), np.uint8)) > 0
    return wide & ~np.isin(parts, HEAD)


# -------------------------------------------------------------------------------------------------------- the system
def find_class(path: str) -> type:
    """The class that ``package.module.Class`` names.

    Raises:
        ValueError: there is none.
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as e:
        raise ValueError(f"--class-path {path!r}: {e}; give it as package.module.Class") from None
    if not isinstance(found, type):
        raise ValueError(f"--class-path {path!r} is no class; give it as package.module.Class")
    return found


def load_system(class_path: str, weights: str | None, device: str) -> Any:
    """A system on a device: made of nothing, or by its ``from_pretrained`` of weights, and moved by its ``to``.

    Raises:
        ValueError: it can't be loaded.
    """
    kind = cast(Any, find_class(class_path))
    try:
        model = kind() if weights is None else kind.from_pretrained(weights)
        return (model.to(device) or model) if hasattr(model, "to") else model
    except (ValueError, OSError):
        raise
    except Exception as e:  # whatever a foreign class raises
        raise ValueError(f"{class_path} can't be loaded from {weights!r}: {said(e)}") from e


def weights_state(class_path: str, weights: str | None) -> str | None:
    """Names, sizes and times of a system's files as a hash; the text itself where it is no folder or file here."""
    if weights is None:
        return None
    kind = find_class(class_path)
    path = kind.weights_path(weights) if isinstance(kind, TellsOfWeights) else Path(weights)
    if path is None or not path.exists():
        return weights
    files = [p for p in sorted(path.rglob("*")) if p.is_file() and "__pycache__" not in p.parts] or [path]
    stats = [(p.relative_to(path).as_posix(), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()


def said(error: Exception) -> str:
    """An error's words; where they are not made for users, with its kind."""
    return str(error) if isinstance(error, ValueError | RuntimeError) else f"{type(error).__name__}: {error}"
