"""What the values of a record's label pictures mean, and everybody else's names for them: the one table of labels.

Three kinds of grey pictures belong to a person picture (:class:`omfa.records.prepared.Maps`): ``parts`` of
:class:`Part`, which every parser's labels are brought into; ``labels`` of :class:`Label`, the synthetic wardrobe's;
``limbs``, which part of the body a pixel shows, clothed or not. Left and right are the person's own.
Legend: H W pixels.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from omfa.bodies.body import PARTS as BODY_PARTS
from omfa.components import Category
from omfa.files import read_bytes
from omfa.images import FORMATS, MAX_PIXELS


class Part(IntEnum):
    """What a pixel of a dressed person belongs to."""

    BACKGROUND = 0
    HAIR = 1
    FACE = 2
    SKIN = 3  # neck, and whatever a scheme does not tell apart
    LEFT_ARM = 4  # with its hand
    RIGHT_ARM = 5
    LEFT_LEG = 6
    RIGHT_LEG = 7
    UPPER = 8
    OUTER = 9  # coats and jackets
    PANTS = 10
    SKIRT = 11
    DRESS = 12
    JUMPSUIT = 13
    BELT = 14
    SCARF = 15  # and ties
    SHOES = 16
    SOCKS = 17
    GLOVES = 18
    HAT = 19
    GLASSES = 20
    BAG = 21
    JEWELLERY = 22


class Label(IntEnum):
    """What a pixel of the synthetic wardrobe shows; socks count as shoes."""

    BACKGROUND = 0
    SKIN = 1
    FACE = 2
    HAIR = 3
    UPPER = 4
    LOWER = 5
    DRESS = 6
    SHOES = 7
    PROP = 8


# ------------------------------------------------------------------------------------------------ what belongs together
PARTS_OF: dict[Category, tuple[Part, ...]] = {
    Category.UPPER: (Part.UPPER, Part.OUTER),
    Category.LOWER: (Part.PANTS, Part.SKIRT),
    Category.DRESS: (Part.DRESS, Part.JUMPSUIT),
}
LABEL_OF: dict[Category, Label] = {
    Category.UPPER: Label.UPPER,
    Category.LOWER: Label.LOWER,
    Category.DRESS: Label.DRESS,
}
HEAD = (Part.HAIR, Part.FACE, Part.HAT, Part.GLASSES)
ARMS = (Part.LEFT_ARM, Part.RIGHT_ARM)
LEGS = (Part.LEFT_LEG, Part.RIGHT_LEG)
PERSON = tuple(label for label in Label if label not in (Label.BACKGROUND, Label.PROP))


def _limbs(*names: str) -> tuple[int, ...]:
    return tuple(1 + BODY_PARTS.index(f"{side}_{name}") for name in names for side in ("left", "right"))


# The maps that evaluation measures in, in this order (a later one takes the place of an earlier): area to its values.
AREAS: dict[str, dict[str, tuple[int, ...]]] = {
    "parts": {"person": tuple(p for p in Part if p != Part.BACKGROUND)} | {c.value: of for c, of in PARTS_OF.items()},
    "labels": {"person": PERSON} | {c.value: (of,) for c, of in LABEL_OF.items()},
    "limbs": {"forearms": _limbs("forearm"), "shins": _limbs("shin")},
}


# ------------------------------------------------------------------------------------------------- everybody's names
_NAMES: dict[Part, str] = {
    Part.BACKGROUND: "background",
    Part.HAIR: "hair",
    Part.FACE: "face head",
    Part.SKIN: "skin neck torso torso-skin arms hands legs feet",
    Part.LEFT_ARM: "left-arm",
    Part.RIGHT_ARM: "right-arm",
    Part.LEFT_LEG: "left-leg",
    Part.RIGHT_LEG: "right-leg",
    Part.UPPER: "upper upper-clothes top shirt",
    Part.OUTER: "outer coat jacket",
    Part.PANTS: "pants leggings shorts",
    Part.SKIRT: "skirt",
    Part.DRESS: "dress",
    Part.JUMPSUIT: "jumpsuits jumpsuit rompers",
    Part.BELT: "belt",
    Part.SCARF: "scarf neckwear tie",
    Part.SHOES: "left-shoe right-shoe shoes footwear",
    Part.SOCKS: "socks",
    Part.GLOVES: "glove gloves",
    Part.HAT: "hat headwear",
    Part.GLASSES: "sunglasses eyeglass glasses",
    Part.BAG: "bag",
    Part.JEWELLERY: "ring wrist-wearing necklace earrings jewelry",
}
_PART_OF = {name: part for part, names in _NAMES.items() for name in names.split()}


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Schemes: the names of their labels in the order of their ids.
_LIP = (
    "background hat hair glove sunglasses upper-clothes dress coat socks pants {} scarf skirt face left-arm right-arm"
)
_LIP += " left-leg right-leg left-shoe right-shoe"
LIP = _words(_LIP.format("jumpsuits"))
CIHP = _words(_LIP.format("torso-skin"))  # image-parse-v3 of VITON-HD
ATR = _words(
    "background hat hair sunglasses upper-clothes skirt pants dress belt left-shoe right-shoe face "
    "left-leg right-leg left-arm right-arm bag scarf"
)  # label_maps of DressCode
DEEPFASHION = _words(
    "background top outer skirt dress pants leggings headwear eyeglass neckwear belt footwear bag hair face skin ring "
    "wrist-wearing socks gloves necklace rompers earrings tie"
)  # segm of DeepFashion-MultiModal
SCHEMES = {"lip": LIP, "atr": ATR, "cihp": CIHP, "deepfashion": DEEPFASHION}


def table(names: Sequence[str]) -> np.ndarray:
    """Lookup from a scheme's ids to parts, uint8.

    Args:
        names: label names in the order of their ids; capitals, blanks and underscores don't matter.

    Raises:
        ValueError: a name that is in no scheme known here.
    """
    plain = [re.sub(r"[\s_]+", "-", name.strip().lower()) for name in names]
    if unknown := [name for name in plain if name not in _PART_OF]:
        raise ValueError(f"labels {', '.join(unknown)} are not known; known are {', '.join(_PART_OF)}")
    return np.array([_PART_OF[name] for name in plain], np.uint8)


def _bits(count: int) -> np.ndarray:
    """PASCAL VOC's colours, which SCHP writes: three bits of an id to the highest bits of red, green, blue, and on."""
    bits = np.unpackbits(np.arange(count, dtype=np.uint8)[:, None], axis=1, bitorder="little")[:, :6]
    return np.stack([bits[:, c] * 128 + bits[:, c + 3] * 64 for c in range(3)], axis=1).astype(np.uint8)


_LIP_COLOURS = np.array(  # as LIP and CIHP_PGN draw them
    [
        *((0, 0, 0), (128, 0, 0), (255, 0, 0), (0, 85, 0), (170, 0, 51), (255, 85, 0), (0, 0, 85), (0, 119, 221)),
        *((85, 85, 0), (0, 85, 85), (85, 51, 0), (52, 86, 128), (0, 128, 0), (0, 0, 255), (51, 170, 221)),
        *((0, 255, 255), (85, 255, 170), (170, 255, 85), (255, 255, 0), (255, 170, 0)),
    ],
    np.uint8,
)
_DEEPFASHION_COLOURS = np.array(  # as the data set's makers draw their own ids (Text2Human)
    [
        *((0, 0, 0), (255, 250, 250), (220, 220, 220), (250, 235, 215), (255, 250, 205), (211, 211, 211)),
        *((70, 130, 180), (127, 255, 212), (0, 100, 0), (50, 205, 50), (255, 255, 0), (245, 222, 179)),
        *((255, 140, 0), (255, 0, 0), (16, 78, 139), (144, 238, 144), (50, 205, 174), (50, 155, 250)),
        *((160, 140, 88), (213, 140, 88), (90, 140, 90), (185, 210, 205), (130, 165, 180), (225, 141, 151)),
    ],
    np.uint8,
)
PALETTES = {
    LIP: (_LIP_COLOURS, _bits(20)),
    CIHP: (_LIP_COLOURS, _bits(20)),
    ATR: (_bits(18),),
    DEEPFASHION: (_DEEPFASHION_COLOURS,),
}


def _ids_of_colours(colours: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """(H, W, 3) uint8 in a published palette of a scheme -> (H, W) ids; colours may be off by one, as 254 for 255.

    Raises:
        ValueError: a colour of none of them, or palettes that disagree about the picture.
    """
    found = []
    some, where = np.unique(colours.reshape(-1, 3), axis=0, return_inverse=True)
    strange = some[:1]
    for palette in PALETTES.get(tuple(names), ()):
        far = np.abs(some[:, None].astype(int) - palette[None]).max(axis=2)
        if (far.min(axis=1) <= 1).all():
            found.append(far.argmin(axis=1).astype(np.uint8)[where].reshape(colours.shape[:2]))
        else:
            strange = some[far.min(axis=1) > 1]
    if not found:
        raise ValueError(
            f"colours like {tuple(map(int, strange[0]))} are in no published palette of this scheme; give a map of "
            "ids, an 8-bit palette or grey PNG"
        )
    if any((other != found[0]).any() for other in found[1:]):
        raise ValueError("its colours are in two palettes that give them other ids; give an 8-bit palette or grey PNG")
    return found[0]


def read_labels(path: Path, names: Sequence[str] = ()) -> np.ndarray:
    """The ids of a label map, (H, W) uint8: the palette's indices, never its colours.

    Args:
        path: 8-bit grey or palette picture; RGB too, in a published palette of the scheme.
        names: the scheme, for RGB.

    Raises:
        ValueError: another kind of picture or palette, damaged, or too large.
    """
    try:
        with Image.open(io.BytesIO(read_bytes(path)), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}x{image.height} pixels are too many")
            if image.format in ("JPEG", "MPO"):
                raise ValueError("JPEG changes values, and so ids; give the map as it was before, as PNG")
            if image.mode == "RGB" and names:
                return _ids_of_colours(np.array(image), names)
            if image.mode not in ("P", "L"):
                raise ValueError(f"mode {image.mode} is no map of ids; give an 8-bit palette or grey PNG")
            return np.array(image)
    except Exception as e:  # decoders raise almost anything on damaged files
        raise ValueError(f"{path}: {e}") from None


def to_parts(labels: np.ndarray, names: Sequence[str], size: tuple[int, int]) -> np.ndarray:
    """A part map from another scheme's label map.

    Args:
        labels: (h, w) uint8 ids.
        names: the scheme.
        size: (H, W) of the picture.

    Returns:
        (H, W) uint8 parts.

    Raises:
        ValueError: an id the scheme does not have, or a map of another shape than the picture's.
    """
    if labels.max(initial=0) >= len(names):
        raise ValueError(f"label {labels.max()} is not in the scheme: its {len(names)} labels are {', '.join(names)}")
    parts = table(names)[labels]
    if parts.shape != size:
        if abs(parts.shape[0] / parts.shape[1] * size[1] / size[0] - 1) > 0.01:
            raise ValueError(
                f"a map of {parts.shape[1]}x{parts.shape[0]} does not fit a picture of {size[1]}x{size[0]}"
            )
        parts = cv2.resize(parts, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return parts


def read_parts(path: Path, size: tuple[int, int]) -> np.ndarray:
    """A part map of a records folder, checked against its picture's (H, W)."""
    parts = read_labels(path)
    if parts.max(initial=0) > max(Part) or parts.shape != size:
        raise ValueError(f"{path}: no part map of {size[1]}x{size[0]} with values up to {max(Part)}: parse again")
    return parts
