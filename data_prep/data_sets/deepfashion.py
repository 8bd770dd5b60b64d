"""DeepFashion-MultiModal, as it unpacks."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from data_prep.data_sets.entries import Entry, Missing, file_names, not_a
from omfa.components import Category
from omfa.files import read_text
from omfa.records.labels import DEEPFASHION

_DEEPFASHION_NAME = re.compile(
    r"((?:MEN|WOMEN)-(.+)-id_(\d{8})-\d{2})_\d_(front|side|back|full|flat|additional)", re.ASCII
)
_DEEPFASHION_CATEGORY = {
    Category.UPPER: "Tees_Tanks Graphic_Tees Blouses_Shirts Shirts_Polos Cardigans Sweaters Sweatshirts_Hoodies "
    "Jackets_Coats Jackets_Vests Suiting",
    Category.LOWER: "Denim Leggings Pants Shorts Skirts",
    Category.DRESS: "Dresses Rompers_Jumpsuits",
}
_YAW = {"front": 0.0, "back": 180.0}  # degrees, roughly: what the name says


def scan_deepfashion(root: Path, missing: Missing) -> Iterator[tuple[str, Entry]]:
    """DeepFashion-MultiModal: ``images/*.jpg``, ``*_segm.png`` and ``captions.json`` wherever they unpacked to.

    Same person in the same outfit = same gender, category, id and shoot. A ``flat`` picture is the shop picture of its
    item. The split follows the item's id (10 % test), as the same item stands in several shoots.
    """
    folder = next((p for p in sorted(root.rglob("images")) if p.is_dir()), root)
    (names,) = file_names(folder, ".", missing, "")
    files = {name: _DEEPFASHION_NAME.fullmatch(name) for name in sorted(names)}
    if not any(files.values()):
        raise not_a("DeepFashion-MultiModal", root, "images/{MEN,WOMEN}-CATEGORY-id_00000000-00_0_VIEW.jpg")
    here = folder.relative_to(root)
    maps = {p.name.removesuffix("_segm.png"): str(p.relative_to(root)) for p in sorted(root.rglob("*_segm.png"))}
    captions = _captions(root, missing)
    kind_of = {name: category for category, names in _DEEPFASHION_CATEGORY.items() for name in names.split()}
    flats: dict[str, tuple[Category, str]] = {}
    for name, match in files.items():
        if match and match[4] == "flat" and match[2] in kind_of:
            flats.setdefault(match[1], (kind_of[match[2]], str(here / names[name])))
    for name in sorted(maps.keys() - files.keys()):
        missing.check("person picture", str(here / f"{name}.jpg"), False)
    for name, match in files.items():
        person = str(here / names[name])
        if missing.check("picture named as documented", person, match is not None) and match and match[4] != "flat":
            missing.check("label map", f"segm/{name}_segm.png", name in maps)
            missing.check("entry in captions.json", person, captions is None or f"{name}.jpg" in captions)
            yield (
                name,
                Entry(
                    person,
                    _split_of(match[3]),
                    person_id=match[1],
                    outfit_id=match[1],
                    garments=(flats[match[1]],) if match[1] in flats else (),
                    labels=(maps[name], DEEPFASHION) if name in maps else None,
                    caption=(captions or {}).get(f"{name}.jpg"),
                    view_yaw=_YAW.get(match[4]),
                ),
            )


def _split_of(item: str) -> str:
    """The same for every picture of an item, on every machine."""
    return "test" if int.from_bytes(hashlib.blake2b(item.encode(), digest_size=4).digest()) % 10 == 0 else "train"


def _captions(root: Path, missing: Missing) -> dict[str, str] | None:
    path = next(iter(sorted(root.rglob("captions.json"))), None)
    if path is None:
        missing.check("captions", "captions.json", False)
        return None
    try:
        captions = json.loads(read_text(path))
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path}: {e}: unpack it again, or take it away to go without captions") from None
    if not isinstance(captions, dict) or not all(isinstance(c, str) for c in captions.values()):
        raise ValueError(f"{path}: must be one object of file names and captions")
    return captions
