"""Portraits of photographed people: ``python -m data_prep portraits --records DIR --model FOLDER --out DIR``.

Nobody photographs the same person in the same pose in other clothes. So a model that knows portraits dresses everybody
in another person's garments, and learns the way back: from its own picture, the portrait, to the photo, which is always
the truth. Pictures that would teach something wrong are left out, with the reason in ``provenance.no_portrait``:

- outline: the person's outline in both pictures must agree (``OUTLINE``, intersection over union);
- pose: the outline must hold the body that the photo was fitted with (``BODY``, share of its silhouette);
- face: it must be the photo's (``FACE``, PSNR in the middle of the head's box);
- clothes: something must have changed (``CHANGED``, mean difference within the outline, of 255).
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_prep.records import as_line, carry
from data_prep.run import Outcome, add_source, run_stage, write_image
from omfa.bodies.body import load_body
from omfa.bodies.parameters import BodyParameters
from omfa.bodies.pose_render import head_box, person_mask
from omfa.evaluation.judges import person_outline
from omfa.evaluation.pairs import unpaired_donors
from omfa.images import read_image
from omfa.pipeline import OMFAPipeline
from omfa.records.prepared import GarmentRef, PortraitRef, Record, iter_records, read_records, resolve
from omfa.records.worn import clothes

Array = NDArray[Any]

OUTLINE = 0.8
BODY = 0.8
FACE = 22.0  # dB
CHANGED = 8.0


def doubt(photo: Array, made: Array, params: BodyParameters) -> str:
    """Why a picture is no portrait of the person in a photo; empty where it is one.

    Args:
        photo: (H, W, 3) uint8.
        made: (H, W, 3) uint8, the same person in other clothes, as a model sees them.
        params: the body in the photo.
    """
    both = torch.from_numpy(np.stack([photo, made])).permute(0, 3, 1, 2).float() / 255
    old, new = (outline.numpy() for outline in person_outline(both)[:, 0])
    if not old.any():
        return "outline: nobody is found in the photo"
    if (shared := float((old & new).sum() / (old | new).sum())) < OUTLINE:
        return f"outline: the two agree by {shared:.2f}, not {OUTLINE}"
    body = load_body()
    silhouette = person_mask(body, params)
    if (covered := float((silhouette & new).sum() / max(1, silhouette.sum()))) < BODY:
        return f"pose: {covered:.2f} of the body is inside the outline, not {BODY}"
    x0, y0, x1, y1 = head_box(body, params)
    inset = (x1 - x0) // 4  # the box holds collars too
    face = slice(max(0, y0 + inset), max(0, y1 - inset)), slice(max(0, x0 + inset), max(0, x1 - inset))
    off = (photo[face].astype(float) - made[face]) / 255
    if off.size and (psnr := -10 * np.log10(max(float(np.square(off).mean()), 1e-10))) < FACE:
        return f"face: it has {psnr:.1f} dB, not {FACE}"
    moved = float(np.abs(photo.astype(float) - made)[old].mean())
    return "" if moved >= CHANGED else f"clothes: only {moved:.1f} of 255 has changed, not {CHANGED}"


@lru_cache(1)
def _model(folder: str) -> OMFAPipeline:
    pipe = OMFAPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def give_portrait(
    item_id: str, pair: tuple[Record, tuple[GarmentRef, ...]], out: Path, *, source: Path, model: str
) -> list[dict[str, Any]]:
    """Work of the runner: a record with its portrait, in another record's garments, or the reason why it has none."""
    record, garments = pair
    carry(record, source, out)
    if record.portrait is not None:
        return [as_line(record)]
    if not garments:
        return [_without(record, "clothes: nobody else wears garments of these categories")]
    if record.pose is None or record.pose.params is None:
        raise ValueError("the record has no body parameters: fit them first with 'python -m data_prep pose-maps'")
    photo = read_image(resolve(source, record.file_name))
    params = BodyParameters.load(resolve(source, record.pose.params))
    stands = {g.category.value: BodyParameters.load(resolve(source, g.pose)) for g in garments if g.pose}
    made = _model(model)(
        ["person"],
        garments={g.category.value: resolve(source, g.path) for g in garments},
        portrait=photo,
        pose=params,
        garment_poses=stands,
        generator=torch.Generator().manual_seed(0),
    ).person[0]
    picture = np.asarray(made.resize(photo.size))
    if reason := doubt(np.asarray(photo), picture, params):
        return [_without(record, reason)]
    path = f"portrait/{item_id}.png"
    write_image(out / path, picture)
    return [as_line(replace(record, portrait=PortraitRef(path)))]


def _without(record: Record, reason: str) -> dict[str, Any]:
    return as_line(replace(record, provenance=record.provenance | {"no_portrait": reason}))


def other_garments(records: Sequence[Record]) -> dict[str, tuple[GarmentRef, ...]]:
    """Record id to the garments of another person who wears the same categories; none where there is nobody else."""
    alike: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        alike.setdefault(tuple(sorted(g.category.value for g in clothes(record))), []).append(record)
    by_id, donors = {r.id: r for r in records}, dict[str, str]()
    for several in alike.values():
        if len({r.person_id for r in several}) > 1:
            donors |= unpaired_donors(several)
    return {r.id: clothes(by_id[donors[r.id]]) if r.id in donors else () for r in records}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the stage."""
    add_source(parser, "records")
    parser.add_argument("--model", required=True, help="that knows portraits: a name that ships, a folder or a hub id")


def main(args: argparse.Namespace) -> Outcome:
    """Dress everybody otherwise."""
    if not _model(args.model).config.portraits:
        raise ValueError(f"--model {args.model} has not learned portraits: train one with portraits: true")
    records = read_records(args.records)
    garments = other_garments(records)
    items = ((r.id, (r, garments[r.id])) for r in records[: args.limit])
    work = partial(give_portrait, source=args.records, model=args.model)
    outcome = run_stage("portraits", items, work, args.out, workers=args.workers, engine=args.engine)
    reasons = Counter(str(r.provenance.get("no_portrait", "")).split(":")[0] for r in iter_records(args.out))
    told = [f"{times} for {reason}" for reason, times in reasons.most_common() if reason]
    if told:
        print(f"portraits: left out {', '.join(told)}; provenance.no_portrait says more")
    return outcome
