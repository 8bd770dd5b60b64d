"""LaDI-VTON's inputs out of records: labels and keypoints from whatever a record has.

Label maps: ``maps.parts`` (by ``python -m data_prep parse``, or a data set's own), or the wardrobe's exact
``maps.labels`` with ``maps.limbs``. Keypoints: ``keypoints``, or the joints of ``pose.params``. Both are brought into
the ids and the order that the published rules know. ``H W`` pixels of the person picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from omfa import images
from omfa.baselines.ladi_vton.inputs import Inputs, Person, fit_person, make_inputs, stack
from omfa.baselines.ladi_vton.masks import JOINTS, RULES, Rules, garment_on_white, rule_of
from omfa.bodies.body import KEY_VERTICES, Body, load_body
from omfa.bodies.parameters import JOINT_IDS, BodyParameters
from omfa.bodies.placing import project
from omfa.bodies.surface import resized
from omfa.components import Category, as_clothes
from omfa.images import read_image
from omfa.records.keypoints import read_keypoints
from omfa.records.labels import PARTS_OF, Part, read_labels
from omfa.records.parts import part_map
from omfa.records.prepared import GarmentRef, Record, RecordError, read_records, resolve
from omfa.records.worn import clothes

# Ids by part. What a set has no label for goes to one that is treated alike: SKIN of no known limb is repainted where a
# mask reaches it, and kept elsewhere. One deviation: ATR's rule for lower garments leaves skirts out; here they are in.
_CIHP: dict[Part, int] = {
    **{Part.BACKGROUND: 0, Part.HAIR: 2, Part.FACE: 13, Part.SKIN: 10, Part.LEFT_ARM: 14, Part.RIGHT_ARM: 15},
    **{Part.LEFT_LEG: 16, Part.RIGHT_LEG: 17, Part.UPPER: 5, Part.OUTER: 7, Part.PANTS: 9, Part.SKIRT: 12},
    **{Part.DRESS: 6, Part.JUMPSUIT: 6, Part.BELT: 9, Part.SCARF: 11, Part.SHOES: 18, Part.SOCKS: 8, Part.GLOVES: 3},
    **{Part.HAT: 1, Part.GLASSES: 4, Part.BAG: 3, Part.JEWELLERY: 10},
}
_ATR: dict[Part, int] = {
    **{Part.BACKGROUND: 0, Part.HAIR: 2, Part.FACE: 11, Part.SKIN: 11, Part.LEFT_ARM: 14, Part.RIGHT_ARM: 15},
    **{Part.LEFT_LEG: 12, Part.RIGHT_LEG: 13, Part.UPPER: 4, Part.OUTER: 4, Part.PANTS: 6, Part.SKIRT: 5},
    **{Part.DRESS: 7, Part.JUMPSUIT: 7, Part.BELT: 8, Part.SCARF: 17, Part.SHOES: 9, Part.SOCKS: 9, Part.GLOVES: 16},
    **{Part.HAT: 1, Part.GLASSES: 3, Part.BAG: 16, Part.JEWELLERY: 8},
}
_LOWER = {Part.SKIRT: 6, Part.SKIN: 8}
_DRESS = dict.fromkeys((Part.UPPER, Part.OUTER, Part.PANTS, Part.SKIRT, Part.BELT), 7)  # what a dress replaces
_JOINTS = (
    *(None, None, "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist"),
    *("right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle"),
)
_FACE = {0: "nose", 14: "reye", 15: "leye", 16: "rear", 17: "lear"}


def labels_of(folder: Path, record: Record, category: Category, rules: Rules) -> np.ndarray:
    """A record's label map in the ids of a data set's rules, (H, W) uint8.

    Args:
        folder: the records folder.
        record: one of it.
        category: of the garment that a mask is wanted for.
        rules: whose ids.

    Raises:
        RecordError: no label map, or one with unknown values.
    """
    return ids_of_parts(part_map(folder, record), category, rules)


def ids_of_parts(parts: np.ndarray, category: Category, rules: Rules) -> np.ndarray:
    """A part map in the ids of a data set's rules, (H, W) uint8.

    Args:
        parts: (H, W) uint8 of :class:`omfa.records.labels.Part`.
        category: of the garment that a mask is wanted for.
        rules: whose ids.
    """
    table = dict(_CIHP if rules == "vitonhd" else _ATR)
    if rules == "dresscode" and category is Category.LOWER:
        table |= _LOWER
    if rules == "dresscode" and category is Category.DRESS and not np.isin(parts, PARTS_OF[Category.DRESS]).any():
        table |= _DRESS  # the published rule knows wearers of dresses alone
    return np.array([table[part] for part in Part], np.uint8)[parts]


def keypoints_of(folder: Path, record: Record, size: tuple[int, int]) -> np.ndarray:
    """OpenPose's 18 points of a record, (18, 2) in pixels of the person picture, 0 where not seen.

    Args:
        folder: the records folder.
        record: one of it.
        size: (height, width) of its person picture.

    Raises:
        RecordError: neither keypoints nor body parameters, damaged ones, or those of another picture.
    """
    if record.keypoints is not None:
        points = read_keypoints(resolve(folder, record.keypoints.path), record.keypoints.format)
        return np.where(points[:, 2:] > 0, points[:, :2], 0.0)
    if record.pose is None or record.pose.params is None:
        raise RecordError(
            f"{record.id}: neither keypoints nor body parameters; run 'python -m data_prep pose-maps' first"
        )
    try:
        return body_keypoints(BodyParameters.load(resolve(folder, record.pose.params)), size)
    except ValueError as e:
        raise RecordError(f"{record.id}: {e}") from None


def body_keypoints(params: BodyParameters, size: tuple[int, int]) -> np.ndarray:
    """The 18 points of a posed body, (18, 2) in pixels; 0 for what lies outside the picture.

    Args:
        params: of the open body.
        size: (height, width) of the picture, of the shape that the parameters' has.

    Raises:
        ValueError: parameters of another body, or of a picture of another shape.
    """
    body = _open_body()
    if params.body_hash != body.hash:
        raise ValueError(f"body parameters of {params.body}; give keypoints, or parameters of {body.name}")
    if params.image_size != size:
        there, here = (f"{width}x{height}" for height, width in (params.image_size, size))
        if abs(params.image_size[0] * size[1] / (params.image_size[1] * size[0]) - 1) > 0.01:
            raise ValueError(f"body parameters of a picture of {there} for one of {here}: give those of the same one")
        params = resized(params, size)
    betas, expression, pose, transl = (
        torch.tensor(v)[None].float() for v in (params.betas, params.expression, params.pose, params.transl)
    )
    ids = [KEY_VERTICES[name] for name in _FACE.values()]
    found = body.joints_only(betas, expression, pose, transl, ids)[0].numpy()
    at = np.zeros((JOINTS, 3))
    for number, name in enumerate(_JOINTS):
        if name is not None:
            at[number] = found[JOINT_IDS[name]]
    at[1] = (at[2] + at[5]) / 2  # OpenPose's neck lies between the shoulders
    at[list(_FACE)] = found[-len(_FACE) :]
    points, (height, width) = project(at, params.K), size
    seen = [bool(np.isfinite(p).all() and 0 <= p[0] < width and 0 <= p[1] < height) for p in points]
    return np.where(np.array(seen)[:, None], points, 0.0)


@lru_cache(maxsize=1)
def _open_body() -> Body:
    return load_body()


def person_of(
    folder: Path,
    record: Record,
    category: Category,
    rules: Rules,
    size: tuple[int, int],
    found: dict[str, np.ndarray] | None = None,
) -> Person:
    """A record's photo, labels and keypoints at the model's size.

    Args:
        folder: the records folder.
        record: one of it.
        category: of the garment that a mask is wanted for.
        rules: whose ids.
        size: (height, width) of the model's pictures.
        found: keypoints by record, as found before; new ones are put there.

    Raises:
        RecordError: something is missing or does not belong together; it names the record.
        ImageError: the photo can't be read.
    """
    photo = read_image(resolve(folder, record.file_name))
    labels, found = labels_of(folder, record, category, rules), {} if found is None else found
    if record.id not in found:
        found[record.id] = keypoints_of(folder, record, (photo.height, photo.width))
    try:
        return fit_person(photo, labels, found[record.id], size)
    except ValueError as e:
        raise RecordError(f"{record.id}: {e}") from None


def cloth_of(folder: Path, garment: GarmentRef, size: tuple[int, int]) -> Tensor:
    """A garment's picture, (3, H, W) in [-1, 1], white outside its mask, where it has one; then it is resized."""
    mask = None if garment.mask is None else read_labels(resolve(folder, garment.mask)) > 127
    return images.fit_picture(on_white(read_image(resolve(folder, garment.path)), mask), size, "white")[0]


def on_white(garment: Image.Image, mask: np.ndarray | None) -> Image.Image:
    """A garment's picture, white outside its mask, (H, W) bool, if there is one.

    Raises:
        RecordError: a mask of another size.
    """
    if mask is None:
        return garment
    pixels = np.asarray(garment)
    if mask.shape != pixels.shape[:2]:
        raise RecordError(f"a garment's mask of {mask.shape} for a picture of {pixels.shape[:2]}")
    return Image.fromarray(np.where(mask[..., None], pixels, 255).astype(np.uint8))


@dataclass(frozen=True)
class Example:
    """A batch for training: what the model is given, and the truth.

    Args:
        inputs: B pictures' inputs, each with the garment that the person wears.
        worn: (B, 3, H, W) in [-1, 1], that garment as worn, on white.
        ids: the records'.
        seed: of all that is drawn for this batch: by the run's seed, the epoch and the records.
    """

    inputs: Inputs
    worn: Tensor
    ids: tuple[str, ...]
    seed: int

    def to(self, device: torch.device) -> Example:
        """On another device."""
        return Example(self.inputs.to(device), self.worn.to(device), self.ids, self.seed)


class Examples(Dataset[Example]):
    """Every garment that a record's person wears, as one example of a batch of one.

    Args:
        folder: a records folder.
        size: (height, width) in pixels.
        rules: whose masks.
        split: of the records; None for all.
        categories: garments to take; None for all that the rules know.
        seed: of the run.

    Indexed by (epoch, position).

    Raises:
        RecordError: no record has such a garment.
        ValueError: a category that is none of clothes, or that the rules don't know.
    """

    def __init__(
        self,
        folder: str,
        size: tuple[int, int] | list[int],
        rules: Rules = "dresscode",
        split: str | None = "train",
        categories: list[str] | None = None,
        seed: int = 0,
    ) -> None:
        self.seed = seed
        self._points: dict[str, np.ndarray] = {}  # a body's take a while, and are asked for every epoch
        self.folder, self.size, self.rules = Path(folder), (int(size[0]), int(size[1])), rules
        wanted = set(RULES[rules] if categories is None else map(as_clothes, categories))
        for category in wanted:
            rule_of(rules, category)
        self.items = [(r, g) for r in read_records(folder, split) for g in clothes(r) if g.category in wanted]
        if not self.items:
            raise RecordError(f"{folder}: no record of split {split!r} wears {', '.join(sorted(wanted))}")

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: tuple[int, int]) -> Example:
        epoch, position = key
        record, garment = self.items[position]
        person = person_of(self.folder, record, garment.category, self.rules, self.size, self._points)
        inputs = make_inputs(person, cloth_of(self.folder, garment, self.size), garment.category, self.rules)
        worn = garment_on_white(person.photo, person.labels, garment.category, self.rules)
        return Example(inputs, worn[None], (record.id,), crc32(f"{self.seed}/{epoch}/{position}".encode()))

    @staticmethod
    def collate(examples: Sequence[Example]) -> Example:
        """One batch of several examples."""
        return Example(
            stack([e.inputs for e in examples]),
            torch.cat([e.worn for e in examples]),
            tuple(i for e in examples for i in e.ids),
            crc32(" ".join(str(e.seed) for e in examples).encode()),
        )
