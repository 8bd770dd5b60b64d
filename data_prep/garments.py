"""Garments cut out of dressed people: on white, clean edges, what hides them marked in grey.

A cut-out never meets the picture it came from: of every outfit seen in several pictures, each gets the best cut-out of
the others in its split. Pictures that stand alone get none (unless for a proof that only memorises: ``--own``).
"""

from __future__ import annotations

import argparse
import dataclasses
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import kornia
import numpy as np
import torch

from data_prep.records import as_line, carry
from data_prep.run import Outcome, add_source, run_stage, write_image
from omfa.bodies.parameters import BodyParameters
from omfa.components import CLOTHES, Category
from omfa.images import read_image
from omfa.records.labels import ARMS, PARTS_OF, Part, read_parts
from omfa.records.prepared import GarmentRef, Record, iter_records, resolve

HIDDEN = 128  # grey of what can't be seen: neither cloth nor the white ground
MIN_AREA = 0.02  # of the picture: less is a sliver, not a garment
_BELTED = (Category.LOWER, Category.DRESS)
# What hides a garment, and from how many of eight directions cloth must be seen around it. Hair, scarves and skin of
# no known limb lie beside cloth as often as before it (a neckline is open to the top), so they must be enclosed.
_HIDES = {
    6: (*ARMS, Part.GLOVES, Part.BAG, Part.JEWELLERY),
    7: (Part.HAIR, Part.SCARF, Part.SKIN),
}


@dataclass(frozen=True)
class Cutout:
    """A garment on white.

    Args:
        image: (h, w, 3) uint8.
        hidden: share of the garment's outline that something else covers, painted grey.
        area: share of the picture that the visible garment covers.
        corner: x, y of its upper left pixel in the picture; may lie outside.
    """

    image: np.ndarray
    hidden: float
    area: float
    corner: tuple[int, int]

    def body(self, params: BodyParameters) -> BodyParameters:
        """The body of the picture, as it stands in the cut-out."""
        K = params.K.copy()
        K[:2, 2] -= self.corner
        return dataclasses.replace(params, K=K, image_size=self.image.shape[:2])


def worn(parts: np.ndarray) -> list[Category]:
    """Categories that a part map shows: a dress, or upper and lower, whichever covers more."""
    area = {category: float(np.isin(parts, of).mean()) for category, of in PARTS_OF.items()}
    seen = [category for category in CLOTHES if area[category] >= MIN_AREA]
    if Category.DRESS in seen and area[Category.DRESS] >= area[Category.UPPER] + area[Category.LOWER]:
        return [Category.DRESS]
    return [category for category in seen if category != Category.DRESS]


def cut_out(rgb: np.ndarray, parts: np.ndarray, category: Category) -> Cutout | None:
    """One garment of a picture.

    Args:
        rgb: (H, W, 3) uint8.
        parts: (H, W) uint8 part map.
        category: which garment.

    Returns:
        The cut-out, cropped with a margin of 4 %; None where less than ``MIN_AREA`` of the picture shows it.
    """
    mask = _without_specks(np.isin(parts, (*PARTS_OF[category], *((Part.BELT,) if category in _BELTED else ()))))
    if mask.mean() < MIN_AREA:
        return None
    holes = _hidden(parts, mask, category)
    left, top, width, height = cv2.boundingRect((mask | holes).astype(np.uint8))
    radius = max(1, round(len(parts) / 256))
    margin = round(0.04 * max(height, width)) + 2 * radius  # the edge may move out by as much
    rows, columns = slice(top - margin, top + height + margin), slice(left - margin, left + width + margin)
    corner = (columns.start, rows.start)
    rgb, mask, holes = (_window(a, rows, columns) for a in (rgb, mask, holes))
    mask = _snap(rgb, mask, holes, radius)
    alpha = _soft_edge(rgb, mask | holes, radius)
    colour = np.where(holes[..., None], HIDDEN, _inner_colours(rgb, mask, radius))
    image = 255 + alpha[..., None] * (colour - 255.0)
    hidden, area = float(holes.sum() / (mask | holes).sum()), float(mask.sum() / parts.size)
    return Cutout(image.round().astype(np.uint8), hidden, area, corner)


def _without_specks(mask: np.ndarray) -> np.ndarray:
    """Pieces of at least a twentieth of the largest; pinholes up to a thousandth of it are closed."""
    for keep, small in ((True, 0.05), (False, 0.001)):
        count, labels, stats, _ = cv2.connectedComponentsWithStats((mask == keep).astype(np.uint8), connectivity=4)
        areas = stats[1:, cv2.CC_STAT_AREA] if count > 1 else np.zeros(1)
        largest = areas.max() if keep else mask.sum()
        big = np.concatenate([[False], areas >= small * largest])[:count]
        mask = big[labels] if keep else ~big[labels]
    return mask


def _hidden(parts: np.ndarray, mask: np.ndarray, category: Category) -> np.ndarray:
    """Pixels of other things that lie before the garment: cloth is seen from them in most of eight directions."""
    around = sum(_seen(np.rot90(mask, k), k) + _seen_aslant(np.rot90(mask, k), k) for k in range(4))
    holes = np.zeros_like(mask)
    for directions, of in _HIDES.items():
        holes |= np.isin(parts, of) & (around >= directions)
    if category == Category.LOWER:  # a coat hangs over trousers, never the other way round; a mere hem is thin
        over = (np.isin(parts, PARTS_OF[Category.UPPER]) & (around >= 4)).astype(np.uint8)
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (len(parts) // 25 | 1, len(parts) // 25 | 1))
        holes |= cv2.morphologyEx(over, cv2.MORPH_OPEN, kernel) > 0
    return holes & ~mask


def _seen(mask: np.ndarray, k: int) -> np.ndarray:
    """1 where the mask lies straight above, in a picture turned ``k`` times; turned back."""
    return np.rot90(np.logical_or.accumulate(mask, 0), -k).astype(np.uint8)


def _seen_aslant(mask: np.ndarray, k: int) -> np.ndarray:
    """1 where the mask lies above and to the left, in a picture turned ``k`` times; turned back."""
    seen = mask.copy()
    for row in range(1, len(seen)):
        seen[row, 1:] |= seen[row - 1, :-1]
    return np.rot90(seen, -k).astype(np.uint8)


def _window(array: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
    """A window that may reach over the border, which is repeated for colours and empty for masks."""
    height, width = array.shape[:2]
    pad = [(max(0, -rows.start), max(0, rows.stop - height)), (max(0, -columns.start), max(0, columns.stop - width))]
    padded = np.pad(array, [*pad, (0, 0)], mode="edge") if array.ndim == 3 else np.pad(array, pad)
    return padded[rows.start + pad[0][0] : rows.stop + pad[0][0], columns.start + pad[1][0] : columns.stop + pad[1][0]]


def _snap(rgb: np.ndarray, mask: np.ndarray, holes: np.ndarray, radius: int) -> np.ndarray:
    """The mask with its outline moved, by at most 2 ``radius``, to where the colours change (GrabCut in a band)."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (4 * radius + 1, 4 * radius + 1))
    whole = (mask | holes).astype(np.uint8)
    trimap = np.where(whole > 0, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    trimap[cv2.erode(whole, kernel) > 0] = cv2.GC_FGD
    trimap[(cv2.dilate(whole, kernel) == 0) | holes] = cv2.GC_BGD
    cv2.setRNGSeed(0)
    colours = np.zeros((1, 65)), np.zeros((1, 65))  # mixtures of ground and of cloth
    cv2.grabCut(rgb[..., ::-1].copy(), trimap, (0, 0, 0, 0), *colours, 2, cv2.GC_INIT_WITH_MASK)
    return _without_specks(np.isin(trimap, (cv2.GC_FGD, cv2.GC_PR_FGD)) & ~holes)


def _soft_edge(rgb: np.ndarray, mask: np.ndarray, radius: int) -> np.ndarray:
    """Opacity in [0, 1]: the mask's outline drawn to the picture's own edges (guided filter, He et al. 2010)."""
    guide = torch.from_numpy(rgb.transpose(2, 0, 1).copy())[None].float() / 255
    soft = kornia.filters.guided_blur(guide, torch.from_numpy(mask)[None, None].float(), 2 * radius + 1, 1e-3)
    alpha = (soft[0, 0].numpy() - 0.5) * 3 + 0.4  # steeper than the filter, and a little inside
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    inside = cv2.erode(mask.astype(np.uint8), kernel)
    outside = 1 - cv2.dilate(mask.astype(np.uint8), kernel)
    return np.where(inside, 1, np.where(outside, 0, alpha)).clip(0, 1)


def _inner_colours(rgb: np.ndarray, mask: np.ndarray, radius: int) -> np.ndarray:
    """The picture with the cloth's rim replaced by the nearest colour further inside, so that no ground shines in."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius - 1, 2 * radius - 1))
    core = cv2.erode(mask.astype(np.uint8), kernel)
    core = np.where(
        mask & (cv2.dilate(core, kernel) == 0), 1, core
    )  # straps thinner than the kernel are their own core
    _, nearest = cv2.distanceTransformWithLabels(1 - core, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    colours = np.zeros((nearest.max() + 1, 3), np.uint8)
    colours[nearest[core > 0]] = rgb[core > 0]
    return colours[nearest]


# -------------------------------------------------------------------------------------------------------- the stage


def outfits(folder: Path, limit: int | None = None) -> Iterator[tuple[str, tuple[Record, ...]]]:
    """Records grouped by outfit, in the order in which outfits first appear; grouped on disk, not in memory."""
    with closing(sqlite3.connect("")) as lines:  # a temporary file that goes with the connection
        lines.execute("CREATE TABLE line (outfit TEXT, position INTEGER, text TEXT)")
        rows = ((r.outfit_id, n, r.to_json()) for n, r in enumerate(iter_records(folder)))
        lines.executemany("INSERT INTO line VALUES (?, ?, ?)", rows)
        lines.execute("CREATE INDEX by_outfit ON line (outfit, position)")
        order = lines.execute("SELECT outfit FROM line GROUP BY outfit ORDER BY min(position)")
        for (outfit,) in islice(order, limit):
            texts = lines.execute("SELECT text FROM line WHERE outfit = ? ORDER BY position", (outfit,))
            yield outfit, tuple(Record.from_json(text) for (text,) in texts)


@dataclass(frozen=True)
class _Candidate:
    record: str
    split: str
    path: str
    pose: str | None
    hidden: float
    area: float

    @property
    def worth(self) -> float:
        """Large and little hidden is best."""
        return self.area * (1 - self.hidden) ** 2


def cut_outfit(
    item_id: str, records: tuple[Record, ...], out: Path, *, source: Path, own: bool
) -> list[dict[str, Any]]:
    """Work of the runner: the pictures of one outfit, each with the best cut-outs of the others.

    Shop pictures stay. ``own``: a picture without others gets its own cut-out, and its record says so.
    """
    candidates: dict[Category, list[_Candidate]] = {}
    wears: dict[str, list[Category]] = {}
    for record in records:
        carry(record, source, out)
        path = None if record.maps is None else record.maps.parts
        if path is None or (len(records) == 1 and not own):
            continue
        rgb = np.asarray(read_image(resolve(source, record.file_name)))
        parts = read_parts(resolve(source, path), (rgb.shape[0], rgb.shape[1]))
        wears[record.id] = worn(parts)
        for category in wears[record.id]:
            if (cut := cut_out(rgb, parts, category)) is not None:
                target = f"garment/{record.id}-{category}-cutout.png"
                write_image(out / target, cut.image)
                pose = _stand(record, cut, source, out, f"garment/{record.id}-{category}-cutout.npz")
                found = _Candidate(record.id, record.split, target, pose, round(cut.hidden, 4), round(cut.area, 4))
                candidates.setdefault(category, []).append(found)
    return [as_line(_dress(record, wears.get(record.id), candidates, own)) for record in records]


def _stand(record: Record, cut: Cutout, source: Path, out: Path, target: str) -> str | None:
    """Write the person's body as it stands in the cut-out; None where nobody knows the person's."""
    if record.pose is None or record.pose.params is None:
        return None
    cut.body(BodyParameters.load(resolve(source, record.pose.params))).save(out / target)
    return target


def _dress(
    record: Record, wears: list[Category] | None, candidates: dict[Category, list[_Candidate]], own: bool
) -> Record:
    """A record with its split's best cut-out of each garment that its picture shows and no shop picture gives."""
    given = {g.category for g in record.garments if g.category in CLOTHES}
    garments, hidden, used_own = list(record.garments), {}, False
    for category in candidates if wears is None else wears:
        clash = Category.DRESS in given or (category == Category.DRESS and given)
        of_split = (c for c in candidates.get(category, []) if c.split == record.split)
        of_all = sorted(of_split, key=lambda c: -c.worth)
        best = next((c for c in of_all if c.record != record.id), of_all[0] if own and of_all else None)
        if best is None or clash or category in given:
            continue
        garments.append(GarmentRef(category, best.path, "cutout", best.record, pose=best.pose))
        hidden[category.value] = best.hidden
        given.add(category)
        used_own |= best.record == record.id
    if not hidden:
        return record
    provenance = record.provenance | {"hidden": hidden} | ({"own_cutouts": True} if used_own else {})
    return dataclasses.replace(record, garments=tuple(garments), provenance=provenance)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the stage."""
    add_source(parser, "records")
    help_own = "let a cut-out meet its own picture where there is no other: only for proofs that merely memorise"
    parser.add_argument("--own", action="store_true", help=help_own)


def main(args: argparse.Namespace) -> Outcome:
    """Cut the garments of every outfit; the items are outfits."""
    work = partial(cut_outfit, source=args.records, own=args.own)
    items = outfits(args.records, args.limit)
    return run_stage("garments", items, work, args.out, workers=args.workers, engine=args.engine)
