"""The demo: what the model does, in pictures, on a folder of records.

    python -m omfa.demo --model runs/demo/model --records data/figures --out outputs/demo

Writes each picture and ``contact_sheet.png``, a captioned row each: try-off, try-on, another pose, an outfit, transfer.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from omfa.images import read_image
from omfa.pipeline import OMFAPipeline
from omfa.prepared import Record, read_records, resolve

LINE = 14  # pixels of a caption


@dataclass(frozen=True)
class Row:
    """One captioned row of the sheet."""

    caption: str
    pictures: Sequence[Image.Image]


def pictures_of(folder: Path, record: Record) -> dict[str, Image.Image]:
    """A record's pictures: person, face, pose and each garment by category."""
    paths: dict[str, str | None] = {"person": record.file_name}
    paths["face"] = None if record.face is None else record.face.path
    paths["pose"] = None if record.pose is None else record.pose.map
    paths |= {g.category.value: g.path for g in record.garments}
    return {name: read_image(resolve(folder, path)) for name, path in paths.items() if path is not None}


def make(pipe: OMFAPipeline, folder: Path, steps: int, seed: int) -> list[Row]:
    """All rows, from the records of a folder; needs two people who each wear an upper garment.

    Raises:
        ValueError: the records don't hold that.
    """
    records = [r for r in read_records(folder) if "upper" in {g.category for g in r.garments} and r.face and r.pose]
    people = list(dict.fromkeys(r.person_id for r in records))
    if len(people) < 2:
        raise ValueError(f"{folder} needs records of two people in upper garments, with face and pose; has {people}")
    first, second = ([pictures_of(folder, r) for r in records if r.person_id == p] for p in people[:2])
    a, b, pose = first[0], second[0], second[-1]["pose"]

    def options() -> dict[str, Any]:
        return {"num_inference_steps": steps, "generator": torch.Generator().manual_seed(seed)}

    off = pipe.try_off(a["person"], ["upper", "lower"], **options())
    taken = {c: g[0] for c, g in off.garments.items()}
    worn = {c: a[c] for c in taken}
    on = pipe.try_on(None, worn, a["pose"], a["face"], **options())
    moved = pipe.try_on(None, worn, pose, a["face"], **options())
    outfit = pipe.try_on(None, taken, b["pose"], b["face"], **options())
    swap = pipe.transfer(a["person"], b["person"], "upper", pose=b["pose"], face=b["face"], **options())
    return [
        Row(
            "try-off: photo | upper and lower taken off | the true ones", [a["person"], *taken.values(), *worn.values()]
        ),
        Row(
            "try-on: garments, face, pose | made | true",
            [*worn.values(), a["face"], a["pose"], *on.images, a["person"]],
        ),
        Row("another pose: pose | made", [pose, *moved.images]),
        Row("outfit taken off one, put on the other", [a["person"], b["face"], b["pose"], *outfit.images]),
        Row("transfer of the upper, the rest kept", [a["person"], b["person"], *swap.images]),
    ]


def draw(rows: Sequence[Row], cell: tuple[int, int] = (192, 256)) -> Image.Image:
    """A sheet with a caption over each row; cells are (width, height) pixels."""
    width, height = cell
    sheet = Image.new("RGB", (width * max(len(r.pictures) for r in rows), (height + LINE) * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    for y, row in enumerate(rows):
        pen.text((4, y * (height + LINE) + 1), row.caption, fill="black")
        for x, picture in enumerate(row.pictures):
            scale = min(width / picture.width, height / picture.height)
            size = (round(picture.width * scale), round(picture.height * scale))
            sheet.paste(picture.resize(size, Image.Resampling.NEAREST), (x * width, y * (height + LINE) + LINE))
    return sheet


def main(args: Sequence[str] | None = None) -> int:
    """Make the pictures; 0 all well, 2 the call or its input was wrong."""
    parser = argparse.ArgumentParser(prog="python -m omfa.demo", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", required=True, help="a shipped name, a folder or a hub id")
    parser.add_argument("--records", type=Path, required=True, help="a records folder")
    parser.add_argument("--out", type=Path, default=Path("outputs/demo"))
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    call = parser.parse_args(args)
    began = time.monotonic()
    try:
        pipe = OMFAPipeline.from_pretrained(call.model)
        pipe.set_progress_bar_config(disable=True)
        rows = make(pipe, call.records, call.steps, call.seed)
        call.out.mkdir(parents=True, exist_ok=True)
        for i, row in enumerate(rows):
            for k, picture in enumerate(row.pictures):
                picture.save(call.out / f"{i + 1}-{k + 1}.png")
        draw(rows).save(call.out / "contact_sheet.png")
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    print(f"{len(rows)} rows of pictures in {time.monotonic() - began:.0f} s: {call.out / 'contact_sheet.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
