"""What each pixel of a person picture belongs to, from whichever maps a record has. ``H W`` pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from omfa.bodies.body import PARTS
from omfa.records.labels import Label, Part, read_labels
from omfa.records.prepared import Record, RecordError, resolve

_OF_LABEL: dict[Label, Part] = {
    **{Label.BACKGROUND: Part.BACKGROUND, Label.SKIN: Part.SKIN, Label.FACE: Part.FACE, Label.HAIR: Part.HAIR},
    **{Label.UPPER: Part.UPPER, Label.LOWER: Part.PANTS, Label.DRESS: Part.DRESS, Label.SHOES: Part.SHOES},
    Label.PROP: Part.BAG,
}
_OF_LIMB: dict[str, Part] = {
    **dict.fromkeys(("left_upper_arm", "left_forearm", "left_hand"), Part.LEFT_ARM),
    **dict.fromkeys(("right_upper_arm", "right_forearm", "right_hand"), Part.RIGHT_ARM),
    **dict.fromkeys(("left_thigh", "left_shin", "left_foot"), Part.LEFT_LEG),
    **dict.fromkeys(("right_thigh", "right_shin", "right_foot"), Part.RIGHT_LEG),
}


def part_map(folder: Path, record: Record) -> np.ndarray:
    """A record's part map, (H, W) uint8 of :class:`omfa.records.labels.Part`.

    ``maps.parts`` where there is one, else the wardrobe's exact ``maps.labels``; skin is told apart by ``maps.limbs``.

    Raises:
        RecordError: no map of either kind, unknown values, or two maps of different sizes.
    """
    maps = record.maps
    if maps is not None and maps.parts is not None:
        return _read(folder, record, maps.parts, len(Part))
    if maps is None or maps.labels is None:
        raise RecordError(f"{record.id}: no label map to make a mask from; run 'python -m data_prep parse' first")
    labels = _read(folder, record, maps.labels, len(Label))
    parts = np.array([_OF_LABEL[label] for label in Label], np.uint8)[labels]
    if maps.limbs is not None:
        limbs = _read(folder, record, maps.limbs, len(PARTS) + 1)
        if limbs.shape != labels.shape:
            raise RecordError(f"{record.id}: maps of {labels.shape} and {limbs.shape} don't belong together")
        bare = labels == Label.SKIN
        parts[bare] = np.array([Part.SKIN, *(_OF_LIMB.get(name, Part.SKIN) for name in PARTS)], np.uint8)[limbs[bare]]
    return parts


def _read(folder: Path, record: Record, path: str, count: int) -> np.ndarray:
    try:
        labels = read_labels(resolve(folder, path))
    except ValueError as e:
        raise RecordError(f"{record.id}: {e}") from None
    if labels.max(initial=0) >= count:
        raise RecordError(f"{record.id}: {path} holds {labels.max()}, known are values up to {count - 1}")
    return labels
