"""The synthetic wardrobe: any number of records of dressed people, with exact ground truth, rendered from nothing.

``make_outfit(seed, index, size)`` is the whole world as a pure function: one person in one outfit, in several poses,
with the garments' shop pictures, a portrait, pose maps, parameters and masks. Writing files is a thin layer above it.
Everyone is always dressed: an upper and a lower garment, or a dress, and shoes.

Legend: H W pixels, n points.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.run import Outcome, run_stage, write_image
from data_prep.wardrobe.dressing import dress
from data_prep.wardrobe.fabrics import PLAIN
from data_prep.wardrobe.heads import Person, draw_person
from data_prep.wardrobe.outfits import Outfit, Worn, caption, draw_outfit
from data_prep.wardrobe.tailor import tailor
from data_prep.wardrobe.views import View, face_size, make_view, portrait, shoes_picture, shop_picture
from omfa.bodies.parameters import BodyParameters
from omfa.bodies.pose_render import render_pose_map
from omfa.components import Category
from omfa.records.labels import PERSON, Label
from omfa.records.prepared import FaceRef, GarmentRef, Maps, PortraitRef, PoseRef, Record

Array = NDArray[Any]

VIEWS = 4  # pictures of each outfit
OUTFITS = 2  # outfits of each person
TEST_EVERY = 10  # every tenth person is held out


# ---------------------------------------------------------------------------------------------------- samples


@dataclass(frozen=True, eq=False)
class Sample:
    """One record in memory.

    Args:
        record: what ``metadata.jsonl`` says.
        person: (H, W, 3) uint8.
        face: (F, F, 3) uint8, F half the width rounded up to a multiple of 32.
        face_params: the body in it.
        garments: category to (H, W, 3) uint8 shop picture on white.
        garment_masks: category to (H, W) bool, where the shop picture shows the garment.
        garment_params: category to the body that would stand in the shop picture.
        pose_map: (H, W, 3) uint8.
        params: body and camera.
        labels: (H, W) uint8, of :class:`omfa.records.labels.Label`.
        parts: (H, W) uint8, 0 or 1 + index into ``omfa.bodies.body.PARTS``, clothes counted to what they cover.
        joints: (55, 3) float32 camera frame.
        portrait: (H, W, 3) uint8, the same view of the same person in other clothes, or None.
        portrait_labels: (H, W) uint8 of it, or None.
    """

    record: Record
    person: Array
    face: Array
    face_params: BodyParameters
    garments: dict[str, Array]
    garment_masks: dict[str, Array]
    garment_params: dict[str, BodyParameters]
    pose_map: Array
    params: BodyParameters
    labels: Array
    parts: Array
    joints: Array
    portrait: Array | None = None
    portrait_labels: Array | None = None

    @property
    def person_mask(self) -> Array:
        """(H, W) bool: person and clothes."""
        return np.isin(self.labels, PERSON)


def other_clothes(
    rng: np.random.Generator, outfit: Outfit, skin: tuple[float, ...], photographic: bool = False
) -> tuple[Outfit, tuple[str, ...]]:
    """Another outfit with the same shoes: all of it changed, or the upper or the lower garment alone.

    Returns:
        The outfit, and the categories of ``outfit`` that it does not keep.
    """
    other = draw_outfit(rng, skin, photographic)
    shoes = {f: getattr(outfit, f) for f in ("shoe_height", "shoe_colour", "sole_colour", "sock_colour", "shoe_name")}
    worn = [w.category for w in outfit.worn]
    alike = len(worn) == 2 and [w.category for w in other.worn] == worn
    changed = int(rng.integers(4)) if alike else 3  # 0: upper, 1: lower, else all
    if changed < 2:
        kept = outfit.worn[1 - changed]
        pair = (other.worn[0], kept) if changed == 0 else (kept, other.worn[1])
        tucked = outfit.tucked if changed == 1 else other.tucked
        return Outfit(pair, tucked, **shoes), (worn[changed].value,)
    return replace(other, **shoes), tuple(c.value for c in worn)


def make_outfit(
    seed: int,
    index: int,
    size: tuple[int, int] = (256, 192),
    views: int = VIEWS,
    portraits: bool = False,
    shoes: bool = False,
    photographic: bool = False,
) -> list[Sample]:
    """One person in one outfit, in several pictures: a pure function of its arguments.

    Args:
        seed: of the world.
        index: of the outfit; outfits ``2 k`` and ``2 k + 1`` are worn by person k.
        size: (H, W) of the pictures.
        views: pictures of the outfit; fewer are the first of more.
        portraits: show every view in other clothes, too. All else stays as it is.
        shoes: the pair of shoes is a garment, of every view that shows it. All else stays as it is.
        photographic: richer clothes, rooms and streets, a camera's light, noise and JPEG. Other outfits than without.

    Returns:
        ``views`` samples that share face and shop pictures.
    """
    person = draw_person(np.random.default_rng([seed, 1, index // OUTFITS]))
    outfit = draw_outfit(np.random.default_rng([seed, 2, index]), person.skin, photographic)
    dressed = dress(person, outfit)
    other_day = np.random.default_rng([seed, 4, index])  # the portrait shows other clothes
    then = dress(person, draw_outfit(other_day, person.skin, photographic))
    face, face_params = portrait(then, other_day, face_size(size[1]), photographic)
    hanger = np.random.default_rng([seed, 5, index])
    shop = {w.category.value: shop_picture(w, size, hanger) for w in outfit.worn}
    if shoes:
        shop["shoes"] = shoes_picture(outfit, size, np.random.default_rng([seed, 7, index]))
    other, changed = other_clothes(np.random.default_rng([seed, 6, index]), outfit, person.skin, photographic)
    before = dress(person, other) if portraits else None
    samples = []
    for number in range(views):
        place = partial(np.random.default_rng, [seed, 3, index, number])  # pose, camera, light, background
        view = make_view(dressed, place(), number, size, photographic)
        old = None if before is None else make_view(before, place(), number, size, photographic)
        samples.append(
            Sample(
                record=_record(seed, index, person, outfit, view, changed if portraits else (), shoes, photographic),
                person=view.person,
                face=face,
                face_params=face_params,
                garments={category: s.picture for category, s in shop.items()},
                garment_masks={category: s.mask for category, s in shop.items()},
                garment_params={category: s.params for category, s in shop.items()},
                pose_map=render_pose_map(tailor().body, view.params, engine="torch"),
                params=view.params,
                labels=view.labels,
                parts=view.parts,
                joints=view.joints,
                portrait=None if old is None else old.person,
                portrait_labels=None if old is None else old.labels,
            )
        )
    return samples


def _record(
    seed: int,
    index: int,
    person: Person,
    outfit: Outfit,
    view: View,
    changed: tuple[str, ...],
    shoes: bool,
    photographic: bool,
) -> Record:
    """What ``metadata.jsonl`` says of a view; paths as :func:`write_outfit` writes them.

    ``changed``: the garments that the portrait doesn't show; none if there is no portrait. ``shoes``: they are one.
    """
    worn = [w.category for w in outfit.worn]
    if shoes and (view.labels == Label.SHOES).any():
        worn.append(Category.SHOES)
    number = index // OUTFITS
    worn_id = f"s{seed}-o{index}"
    name, shop = f"{worn_id}-v{view.words['view']}", f"garment/{worn_id}"
    return Record(
        id=name,
        split="test" if number % TEST_EVERY == TEST_EVERY - 1 else "train",
        person_id=f"s{seed}-p{number}",
        outfit_id=worn_id,
        file_name=f"person/{name}.png",
        face=FaceRef(f"face/{worn_id}.png", f"{worn_id}-portrait", f"face/{worn_id}.npz"),
        garments=tuple(
            GarmentRef(c, f"{shop}-{c}.png", pose=f"{shop}-{c}.npz", mask=f"masks/{worn_id}-{c}.png")
            for c in worn
        ),
        pose=PoseRef(f"pose/{name}.png", f"pose/{name}.npz"),
        maps=Maps(labels=f"masks/{name}.png", limbs=f"masks/{name}-parts.png"),
        portrait=PortraitRef(f"portrait/{name}.png", changed=tuple(map(Category, changed))) if changed else None,
        caption=caption(outfit),
        view_yaw=view.words["yaw"],
        provenance={
            "stage": "synthetic", "seed": seed, "outfit": index, **view.words, "skin": person.names[0],
            "hair": person.names[1], "garments": {w.category.value: _said(w) for w in outfit.worn},
        } | ({"shoes": outfit.shoe_name} if shoes else {}) | ({"photographic": True} if photographic else {}),
    )  # fmt: skip


def _said(worn: Worn) -> dict[str, Any]:
    """A garment for the record's provenance."""
    pattern = worn.pattern
    said: dict[str, Any] = {"kind": worn.cut.kind, "pattern": pattern.kind, "colours": list(pattern.names)}
    said |= {"rgb": [list(c) for c in pattern.colours], "cut": asdict(worn.cut)}
    if worn.fabric != PLAIN:
        said |= {"variant": pattern.variant, "fabric": asdict(worn.fabric)}
    if pattern.kind == "print":
        said |= {"motif": pattern.motif, "text": pattern.text}
    return said


# ---------------------------------------------------------------------------------------------------- files


def write_outfit(
    item_id: str,
    index: int,
    out: Path,
    *,
    seed: int,
    size: tuple[int, int],
    records: int,
    portraits: bool = False,
    shoes: bool = False,
    photographic: float = 0.0,
) -> list[dict[str, Any]]:
    """Write one outfit's files; its lines of ``metadata.jsonl``.

    Args:
        item_id: the outfit's name.
        index: of the outfit.
        out: the records folder.
        seed: of the world.
        size: (H, W).
        records: how many the whole call makes; the last outfit may have fewer views.
        portraits: write every view in other clothes, too.
        shoes: write the pair of shoes as a garment, too.
        photographic: share of outfits drawn so, see :func:`make_outfit`; 0 to 1.
    """
    as_photos = bool(np.random.default_rng([seed, 8, index]).random() < photographic)
    samples = make_outfit(seed, index, size, min(VIEWS, records - index * VIEWS), portraits, shoes, as_photos)
    first = samples[0]
    assert first.record.face is not None
    write_image(out / first.record.face.path, first.face)
    first.face_params.save(out / f"face/{item_id}.npz")
    for garment in {g.category: g for s in samples for g in s.record.garments}.values():
        category = garment.category.value
        write_image(out / garment.path, first.garments[category])
        write_image(out / f"masks/{item_id}-{category}.png", first.garment_masks[category].astype(np.uint8) * 255)
        first.garment_params[category].save(out / f"garment/{item_id}-{category}.npz")
    for s in samples:
        write_image(out / s.record.file_name, s.person)
        write_image(out / f"pose/{s.record.id}.png", s.pose_map)
        write_image(out / f"masks/{s.record.id}.png", s.labels)
        write_image(out / f"masks/{s.record.id}-parts.png", s.parts)
        s.params.save(out / f"pose/{s.record.id}.npz")
        if s.portrait is not None and s.portrait_labels is not None:
            write_image(out / f"portrait/{s.record.id}.png", s.portrait)
            write_image(out / f"masks/{s.record.id}-portrait.png", s.portrait_labels)
    return [json.loads(s.record.to_json()) for s in samples]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The stage's options."""
    parser.add_argument(
        "--records", type=_count, required=True, metavar="N", help=f"pictures to make; {VIEWS} of each outfit"
    )
    parser.add_argument("--seed", type=_seed, default=0, help="of the world: another seed, other people (default 0)")
    parser.add_argument(
        "--size", type=_size, default=(256, 192), metavar="HxW", help="of the pictures (default 256x192)"
    )
    parser.add_argument(
        "--portraits", action="store_true", help="show every view in other clothes, too: the photo to be changed"
    )
    parser.add_argument("--shoes", action="store_true", help="the pairs of shoes are garments, too, with shop pictures")
    parser.add_argument(
        "--photographic", type=_share, nargs="?", const=1.0, default=0.0, metavar="SHARE",
        help="richer clothes, rooms and streets, a camera's light and noise: of all outfits, or of a share of them",
    )  # fmt: skip


def main(args: argparse.Namespace) -> Outcome:
    """Make the records."""
    items = [(f"s{args.seed}-o{i}", i) for i in range(-(-args.records // VIEWS))][: args.limit]
    how = {"portraits": args.portraits, "shoes": args.shoes, "photographic": args.photographic}
    work = partial(write_outfit, seed=args.seed, size=args.size, records=args.records, **how)
    return run_stage("synthetic", items, work, args.out, workers=args.workers, engine=args.engine)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 10**7:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1 to 10,000,000")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number from 0 to 1, like 0.5")
    return share


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 1 << 32:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 0 to 4294967295")
    return int(text)


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and 32 <= int(height) <= 2048 and 32 <= int(width) <= 2048):
        raise argparse.ArgumentTypeError(f"{text!r} must be HEIGHTxWIDTH in pixels, 32 to 2048 each, like 256x192")
    return int(height), int(width)
