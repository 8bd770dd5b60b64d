"""VITON-HD, as it unpacks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_prep.data_sets.entries import Entry, Missing, file_names, listed_name, not_a, pair_list
from omfa.components import Category
from omfa.records.labels import CIHP


def scan_vitonhd(root: Path, missing: Missing) -> Iterator[tuple[str, Entry]]:
    """VITON-HD: ``{train,test}/{image,cloth,image-parse-v3,openpose_json}``, ``{train,test}_pairs.txt``; garments are
    uppers.
    """
    there = {split: (root / split / "image").is_dir() for split in ("train", "test")}
    if not any(there.values()):
        raise not_a("VITON-HD", root, "train/image/*.jpg or test/image/*.jpg, beside train_pairs.txt, test_pairs.txt")
    for split in (s for s in there if missing.check("folder of a split", f"{s}/image", there[s])):
        (people,) = file_names(root, f"{split}/image", missing, "")
        (cloth,) = file_names(root, f"{split}/cloth", missing, "")
        (maps,) = file_names(root, f"{split}/image-parse-v3", missing, "")
        (points,) = file_names(root, f"{split}/openpose_json", missing, "_keypoints", suffixes=(".json",))
        listed = {listed_name(line[0]) for line in pair_list(root, f"{split}_pairs.txt")}
        missing.check("pair list", f"{split}_pairs.txt", bool(listed))
        for name in sorted({*people, *cloth, *maps, *points, *listed}):
            person = people.get(name, f"{split}/image/{name}.jpg")
            if missing.check("person picture", person, name in people):
                missing.check(f"entry in {split}_pairs.txt", person, name in listed or not listed)
                garment = cloth.get(name, f"{split}/cloth/{name}.jpg")
                labels = maps.get(name, f"{split}/image-parse-v3/{name}.png")
                worn = ((Category.UPPER, garment),) if missing.check("garment", garment, name in cloth) else ()
                scheme = (labels, CIHP) if missing.check("label map", labels, name in maps) else None
                pose = points.get(name, f"{split}/openpose_json/{name}_keypoints.json")
                seen = pose if missing.check("keypoints", pose, name in points) else None
                yield f"{split}-{name}", Entry(person, split, name, name, worn, scheme, seen)
