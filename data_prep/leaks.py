"""Near-duplicates between and inside splits: found by perceptual hashes, confirmed by pixels.

Copies, re-encodings, small crops, mirrored and recoloured pictures of the same thing make a test measure memory. Three
steps: hashes of all pictures, candidates among them (in memory: half a kilobyte a picture), pixels of each candidate.
Results: ``leaks.jsonl``, and with ``--leave-out`` the folder ``records`` without the leaks.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.records import as_line, carry, record_items
from data_prep.run import Outcome, add_source, run_stage, write_bytes
from omfa.images import read_image
from omfa.records.prepared import METADATA, Record, resolve

LEAKS = "leaks.jsonl"
COARSE, FINE = 14, 72  # bits of 64 and of 256 in which the hashes of candidates may differ
LIKE = 0.75  # correlation of fine detail from which two pictures are one
_VARIANTS = ("same", "mirrored", "cropped")  # how the one may have been made from the other
_TRIM = 0.03
_SIDE = 128
_GUARDED = ("test", "val")  # of two splits with the same picture, these keep theirs

Hashes = NDArray[np.uint64]


# ------------------------------------------------------------------------------------------------------------ hashing


def perceptual_hash(rgb: np.ndarray) -> Hashes:
    """A picture's layout as (5,) uint64: signs of its lowest 8x8 cosine coefficients, then of its lowest 16x16.

    After Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010.
    """
    grey = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY)
    waves = cv2.dct(cv2.resize(grey, (64, 64), interpolation=cv2.INTER_AREA).astype(np.float32))
    signs = np.concatenate([waves[:8, :8].ravel(), waves[:16, :16].ravel()]) > 0
    return np.packbits(signs).view(np.uint64)


def hash_record(item_id: str, record: Record, out: Path, *, source: Path) -> list[dict[str, Any]]:
    """Work of the runner: hashes of a record's person and shop pictures, each as it is, mirrored and trimmed."""
    pictures = [("person", record.file_name)] + [("garment", g.path) for g in record.garments if g.kind == "shop"]
    lines = []
    for kind, path in pictures:
        rgb = np.asarray(read_image(resolve(source, path)))
        dy, dx = (round(_TRIM * side) for side in rgb.shape[:2])
        variants = (rgb, rgb[:, ::-1], rgb[dy : rgb.shape[0] - dy, dx : rgb.shape[1] - dx])
        hashes = "".join(perceptual_hash(v).tobytes().hex() for v in variants)
        lines.append({"id": item_id, "split": record.split, "kind": kind, "path": path, "hashes": hashes})
    return lines


# --------------------------------------------------------------------------------------------------------- candidates


@dataclass(frozen=True)
class Picture:
    """A picture of one kind, and the first record that has it."""

    path: str
    record: str
    split: str


def read_hashes(folder: Path, kind: str) -> tuple[list[Picture], Hashes]:
    """Distinct pictures of a kind and their hashes (N, variants, 5)."""
    pictures: dict[str, tuple[Picture, bytes]] = {}
    with (folder / METADATA).open(encoding="utf-8") as lines:
        for line in map(json.loads, lines):
            if line["kind"] == kind:
                found = Picture(line["path"], line["id"], line["split"])
                pictures.setdefault(line["path"], (found, bytes.fromhex(line["hashes"])))
    hashes = np.frombuffer(b"".join(of for _, of in pictures.values()), np.uint64)
    return [p for p, _ in pictures.values()], hashes.reshape(-1, len(_VARIANTS), 5)


def candidates(hashes: Hashes) -> Iterator[tuple[int, int, str]]:
    """Pairs ``i < j`` of like hashes, and how the one may have been made from the other.

    Like: one of eight bytes of the coarse hash is the same (which finds them by sorting), at most ``COARSE`` of its
    bits and ``FINE`` bits of the fine one differ.

    Args:
        hashes: (N, variants, 5); every variant is compared with the first one of the others.
    """
    best = dict[tuple[int, int], tuple[int, int]]()
    plain, byte = hashes[:, 0], hashes[..., 0].copy().view(np.uint8).reshape(*hashes.shape[:2], 8)
    for band in range(8):
        order = np.argsort(byte[:, 0, band], kind="stable")
        starts = np.searchsorted(byte[order, 0, band], np.arange(257))
        for i, variant in np.ndindex(hashes.shape[:2]):
            key = int(byte[i, variant, band])
            bucket = order[starts[key] : starts[key + 1]]
            coarse = np.bitwise_count(plain[bucket, 0] ^ hashes[i, variant, 0])
            bucket = bucket[(coarse <= COARSE) & (bucket != i)]
            fine = np.bitwise_count(plain[bucket, 1:] ^ hashes[i, variant, 1:]).sum(1, dtype=int)
            for j, bits in zip(bucket[fine <= FINE].tolist(), fine[fine <= FINE].tolist(), strict=True):
                pair = (min(i, j), max(i, j))
                best[pair] = min(best.get(pair, (bits, variant)), (bits, variant))
    for (i, j), (_, variant) in sorted(best.items()):
        yield i, j, _VARIANTS[variant]


# ------------------------------------------------------------------------------------------------------- confirmation


def likeness(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation in [-1, 1] of two pictures' fine detail after aligning them; 1 for the same picture.

    Both are made square and grey, ``b`` is moved onto ``a`` (affine, enhanced correlation: Evangelidis & Psarakis
    2008), and what is left of each after taking its blur away is compared: outlines and poses that many pictures share
    count little, prints, folds and hair much.

    Args:
        a, b: (H, W, 3) uint8.
    """
    one, two = (_grey_square(x) for x in (a, b))
    warp: Any = np.eye(2, 3, dtype=np.float32)
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 40, 1e-4)
    everywhere = np.full((_SIDE, _SIDE), 255, np.uint8)
    with contextlib.suppress(cv2.error):  # where none is found, as they lie
        _, warp = cv2.findTransformECC(one, two, warp, cv2.MOTION_AFFINE, criteria, everywhere, 5)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(two, warp, (_SIDE, _SIDE), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    inner = slice(8, -8)
    x, y = (_detail(v)[inner, inner].ravel() for v in (one, moved))
    return float(x @ y / max(1e-6, np.linalg.norm(x) * np.linalg.norm(y)))


def _grey_square(rgb: np.ndarray) -> np.ndarray:
    grey = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)


def _detail(grey: np.ndarray) -> np.ndarray:
    return grey - cv2.GaussianBlur(grey, (0, 0), 4)


@dataclass(frozen=True)
class Pair:
    """Two pictures that may be one."""

    kind: str
    a: Picture
    b: Picture
    how: str


@lru_cache(maxsize=64)
def _read(path: Path) -> np.ndarray:
    return np.asarray(read_image(path))


def confirm(item_id: str, pair: Pair, out: Path, *, source: Path) -> list[dict[str, Any]]:
    """Work of the runner: a line if the two pictures are one, none if not."""
    a, b = (_read(resolve(source, p.path)) for p in (pair.a, pair.b))
    like = likeness(a, b[:, ::-1] if pair.how == "mirrored" else b)
    return [_line(pair, like)] if like >= LIKE else []


def _line(pair: Pair, like: float) -> dict[str, Any]:
    line = {"kind": pair.kind, "how": pair.how, "likeness": round(like, 3)}
    return line | {side: vars(picture) for side, picture in (("a", pair.a), ("b", pair.b))}


def pairs(folder: Path) -> Iterator[tuple[str, Pair]]:
    """Candidates of both kinds as items of the runner; ``folder`` holds the hashes."""
    for kind in ("person", "garment"):
        pictures, hashes = read_hashes(folder, kind)
        for i, j, how in candidates(hashes):
            yield f"{pictures[i].path} {pictures[j].path}", Pair(kind, pictures[i], pictures[j], how)


# ------------------------------------------------------------------------------------------------------------ results


def shared_files(folder: Path) -> Iterator[dict[str, Any]]:
    """Leaks that need no likeness: one shop picture in records of different splits."""
    splits: dict[str, dict[str, str]] = {}  # path to split to its first record
    with (folder / METADATA).open(encoding="utf-8") as lines:
        for line in map(json.loads, lines):
            splits.setdefault(line["path"], {}).setdefault(line["split"], line["id"])
    for path, of in splits.items():
        (split, record), *others = of.items()
        for other_split, other in others:
            pair = Pair("garment", Picture(path, record, split), Picture(path, other, other_split), "same")
            yield _line(pair, 1.0)


def loser(leak: dict[str, Any]) -> str | None:
    """Which side of a leak to leave out: the less guarded split's; inside a split the later person, no garment."""
    a, b = leak["a"], leak["b"]
    if a["split"] == b["split"]:
        return "b" if leak["kind"] == "person" else None
    rank = {split: n for n, split in enumerate(_GUARDED)}
    return "b" if rank.get(a["split"], 9) < rank.get(b["split"], 9) else "a"


def left_out(leaks: list[dict[str, Any]]) -> tuple[set[str], set[tuple[str, str]]]:
    """What ``loser`` comes to: ids of records, and (split, path) of shop pictures whose records all go."""
    losers = [(leak["kind"], leak[side]) for leak in leaks if (side := loser(leak)) is not None]
    persons = {picture["record"] for kind, picture in losers if kind == "person"}
    return persons, {(picture["split"], picture["path"]) for kind, picture in losers if kind == "garment"}


def gone_records(folder: Path, leaks: list[dict[str, Any]], limit: int | None) -> set[str]:
    """Ids of the records to leave out."""
    ids, paths = left_out(leaks)
    return ids | {r.id for _, r in record_items(folder, limit) if any((r.split, g.path) in paths for g in r.garments)}


def without(record: Record, gone: set[str]) -> tuple[Record, int]:
    """A record less the cut-outs, the face and the portrait taken from records left out, and how many those are."""
    garments = tuple(g for g in record.garments if g.kind == "shop" or g.source_id not in gone)
    face = None if record.face is None or record.face.source_id in gone else record.face
    portrait = None if record.portrait is None or record.portrait.source_id in gone else record.portrait
    dropped = len(record.garments) - len(garments) + (face != record.face) + (portrait != record.portrait)
    if not dropped:
        return record, 0
    provenance = record.provenance
    if isinstance(hidden := provenance.get("hidden"), dict):  # said of cut-outs alone
        worn = {g.category.value for g in garments}
        provenance = provenance | {"hidden": {category: of for category, of in hidden.items() if category in worn}}
    less = dataclasses.replace(record, face=face, portrait=portrait, garments=garments, provenance=provenance)
    return less, dropped


def keep(item_id: str, record: Record, out: Path, *, source: Path) -> list[dict[str, Any]]:
    """Work of the runner: a record that stays."""
    carry(record, source, out)
    return [as_line(record)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the stage."""
    add_source(parser, "records")
    help_out = f"also write OUT/records without the leaks; {', '.join(_GUARDED)} keep theirs, and the earlier picture"
    parser.add_argument("--leave-out", action="store_true", help=help_out)


def main(args: argparse.Namespace) -> Outcome:
    """List the leaks of a records folder, and leave them out on request."""
    how: dict[str, Any] = {"workers": args.workers, "engine": args.engine}
    work = partial(hash_record, source=args.records)
    hashed = run_stage("hashes", record_items(args.records, args.limit), work, args.out / "hashes", **how)
    work = partial(confirm, source=args.records)
    confirmed = run_stage("confirm", pairs(args.out / "hashes"), work, args.out / "pairs", may_be_nothing=True, **how)
    with (args.out / "pairs" / METADATA).open(encoding="utf-8") as lines:
        leaks = [json.loads(line) for line in lines]
    leaks += shared_files(args.out / "hashes")
    write_bytes(args.out / LEAKS, "".join(json.dumps(leak) + "\n" for leak in leaks).encode())
    counts = Counter(f"{leak['kind']} {'-'.join(sorted({leak['a']['split'], leak['b']['split']}))}" for leak in leaks)
    print(f"leaks: {', '.join(f'{n} {what}' for what, n in sorted(counts.items())) or 'none'}; all in {LEAKS}")
    kept = Outcome(0, 0, 0)
    if args.leave_out:
        gone, pieces = gone_records(args.records, leaks, args.limit), Counter[str]()

        def stay() -> Iterator[tuple[str, Record]]:
            for item_id, record in record_items(args.records, args.limit):
                if item_id not in gone:
                    less, dropped = without(record, gone)
                    pieces.update(dropped=dropped)
                    yield item_id, less

        kept = run_stage(
            "leave-out", stay(), partial(keep, source=args.records), args.out / "records", may_be_nothing=True, **how
        )
        print(f"leave-out: {len(gone)} records, {pieces.total()} cut-outs and faces of theirs in other records")
    return Outcome(hashed.done, hashed.failed + confirmed.failed + kept.failed, hashed.skipped)
