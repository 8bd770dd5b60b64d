"""DressCode, as it unpacks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_prep.data_sets.entries import Entry, Missing, file_names, listed_name, not_a, pair_list
from omfa.components import Category
from omfa.records.labels import ATR

_DRESSCODE = {"upper_body": Category.UPPER, "lower_body": Category.LOWER, "dresses": Category.DRESS}


def scan_dresscode(root: Path, missing: Missing) -> Iterator[tuple[str, Entry]]:
    """DressCode: ``{upper_body,lower_body,dresses}/{images,label_maps,keypoints}``, and the pair lists, which give the
    split.

    ``_0.jpg`` is the person, ``_1.jpg`` the garment, ``_4.png`` the label map, ``_2.json`` the keypoints. A picture in
    no list is of the split ``unlisted``.
    """
    there = {folder: (root / folder / "images").is_dir() for folder in _DRESSCODE}
    if not any(there.values()):
        raise not_a("DressCode", root, "upper_body/images/*_0.jpg, lower_body/images/..., or dresses/images/...")
    for folder in (f for f in there if missing.check("folder of a category", f"{f}/images", there[f])):
        people, cloth = file_names(root, f"{folder}/images", missing, "_0", "_1")
        (maps,) = file_names(root, f"{folder}/label_maps", missing, "_4")
        (points,) = file_names(root, f"{folder}/keypoints", missing, "_2", suffixes=(".json",))
        split_of = _dresscode_splits(root, folder, missing)
        for name in sorted({*people, *cloth, *maps, *points, *split_of}):
            person = people.get(name, f"{folder}/images/{name}_0.jpg")
            if missing.check("person picture", person, name in people):
                missing.check("entry in a pair list", person, name in split_of or not split_of)
                garment = cloth.get(name, f"{folder}/images/{name}_1.jpg")
                labels = maps.get(name, f"{folder}/label_maps/{name}_4.png")
                worn = ((_DRESSCODE[folder], garment),) if missing.check("garment", garment, name in cloth) else ()
                scheme = (labels, ATR) if missing.check("label map", labels, name in maps) else None
                pose = points.get(name, f"{folder}/keypoints/{name}_2.json")
                seen = pose if missing.check("keypoints", pose, name in points) else None
                split = split_of.get(name, "unlisted")
                yield f"{folder}-{name}", Entry(person, split, name, name, worn, scheme, seen)


def _dresscode_splits(root: Path, folder: str, missing: Missing) -> dict[str, str]:
    """Person to split, from the category's own lists or, where they are not, the common ones (third column: class)."""
    split_of: dict[str, str] = {}
    for split, name in (("train", "train_pairs.txt"), ("test", "test_pairs_paired.txt")):
        lines = pair_list(root, f"{folder}/{name}")
        if not lines:
            lines = [line for line in pair_list(root, name) if line[2:] == [str(list(_DRESSCODE).index(folder))]]
        missing.check("pair list", f"{folder}/{name}", bool(lines))
        split_of |= {listed_name(line[0], "_0"): split for line in lines}
    return split_of
