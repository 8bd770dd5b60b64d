"""A model's table beside what a number means: its VAE alone, the nearest training record, the mean picture.

    python -m omfa.yardsticks --records data/held_out --train data/wardrobe --out outputs/table [--model compact]

One call makes every prediction, scores it and prints one table for each direction. Beside the model stand

- ``ceiling``: the true picture through the model's VAE; no latent diffusion model can do better;
- ``nearest``: the answer of the training record whose given pictures are nearest (garments, face and pose for try-on,
  the photo for try-off; mean squared difference of thumbnails, averaged over the given kinds);
- ``mean``: the mean training picture (of the category, for garments);
- ``pose map`` and ``wrong pose`` (try-on): the bare pose map before a light wall, and the model's picture of another
  record, by which the silhouette columns say whether the pose is obeyed.

Killed and called again, it goes on where it was. Exit codes as those of ``omfa.evaluate``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from omfa import evaluate, predict
from omfa.backbone import decode, encode
from omfa.components import Category, TaskKind
from omfa.data import read_fitted
from omfa.images import read_image, save_whole, tensor_to_pixels
from omfa.pipeline import OMFAPipeline
from omfa.prepared import Record, RecordError, record_files
from omfa.protocols import METRICS, find_protocol
from omfa.results import Results
from omfa.scoring import Item
from omfa.shards import Source, open_records

THUMBNAIL = (32, 24)  # pixels; coarse enough that a shift of a hand's breadth does not matter
COLUMNS = {
    TaskKind.TRY_OFF: ("psnr_garment", "ssim_rgb_valid_garment", "palette_error", "pattern_agreement"),
    TaskKind.TRY_ON: (
        *("psnr", "psnr_person", "ssim_rgb_valid_person", "psnr_garment", "palette_error"),
        *("silhouette_iou", "silhouette_forearms", "silhouette_shins"),
    ),
}


def given(record: Record, category: Category | None) -> list[str]:
    """Names of the pictures that are given: the photo for a garment of ``category``, everything else for try-on."""
    if category is not None:
        return ["person"]
    return [n for n in record_files(record) if n not in ("person", "pose_params")]


def wanted(category: Category | None) -> str:
    """Name of the picture that is asked for."""
    return "person" if category is None else category.value


class Memory:
    """Thumbnails of all training records: what a lookup and a mean need.

    Args:
        source: where the records' files are.
        records: with garments.
    """

    def __init__(self, source: Source, records: Sequence[Record]) -> None:
        self.source, self.records = source, list(records)
        self.thumbnails: dict[str, Tensor] = {}  # name to (N, D); NaN where a record has no such picture
        names = ["person", "face", "pose_map", *(c.value for c in Category)]
        self.thumbnails = {
            n: torch.full((len(self.records), 3 * THUMBNAIL[0] * THUMBNAIL[1]), torch.nan) for n in names
        }
        for i, record in enumerate(tqdm(self.records, desc="reading", unit="record", disable=None, leave=False)):
            for name in record_files(record):
                if name in self.thumbnails:
                    self.thumbnails[name][i] = read_fitted(source, record, name, THUMBNAIL).flatten()

    def nearest(self, source: Source, record: Record, category: Category | None) -> Record:
        """The record with the same kinds of pictures whose given ones are nearest."""
        names = given(record, category)
        own = torch.stack([read_fitted(source, record, n, THUMBNAIL).flatten() for n in names])
        distance = sum((self.thumbnails[n] - x).square().mean(1) for n, x in zip(names, own, strict=True))
        assert isinstance(distance, Tensor)
        fits = ~self.thumbnails[wanted(category)].isnan().any(1) & ~distance.isnan()
        if category is None:  # who wears a dress shows no upper and lower
            fits &= torch.tensor([set(given(r, None)) == set(names) for r in self.records])
        if not fits.any():
            raise RecordError(f"{record.id}: no training record shows {', '.join(names)}")
        return self.records[int(torch.where(fits, distance, torch.inf).argmin())]

    def mean(self, category: Category | None, size: Sequence[int]) -> Image.Image:
        """The mean picture, (height, width) = ``size``."""
        total, count = torch.zeros(3, *size), 0
        for record in self.records:
            if wanted(category) in record_files(record):
                total += read_fitted(self.source, record, wanted(category), size)
                count += 1
        return picture(total / max(1, count))


def picture(pixels: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] -> PIL."""
    return Image.fromarray(tensor_to_pixels(pixels))


def on_a_wall(pose_map: Tensor) -> Tensor:
    """A pose map (3, H, W) in [-1, 1] with a light wall in place of the black, as people stand before one."""
    return torch.where(pose_map.amax(0) > -0.9, pose_map, 0.7)


def make(job: predict.Job, name: str, one: Callable[[Item], Image.Image], out: Path) -> Path:
    """A predictions folder as ``omfa.predict`` writes it, each picture by ``one``."""
    out.mkdir(parents=True, exist_ok=True)
    for item in tqdm(job.items, desc=name, unit="picture", disable=None, leave=False):
        if not (out / f"{item.key}.png").is_file():
            save_whole(one(item), out / f"{item.key}.png")
    told = {"version": predict.VERSION, "model": name, "task": job.task.value, "pairs": "paired", "split": None}
    part = out / "predictions.part"
    part.write_text(json.dumps(told) + "\n", encoding="utf-8")
    os.replace(part, out / predict.PREDICTIONS)
    return out


def folders(call: argparse.Namespace, task: TaskKind, memory: Memory, pipe: OMFAPipeline) -> Iterator[tuple[str, Path]]:
    """Name and predictions folder of the model and every yardstick, made one after the other."""
    source, out = open_records(call.records), call.out / task.value
    arguments = [
        "--records",
        str(call.records),
        "--task",
        task.value,
        "--out",
        str(out / "omfa"),
        "--model",
        call.model,
    ]
    arguments += ["--batch", str(call.batch)]
    for name in ("steps", "guidance"):
        if getattr(call, name) is not None:
            arguments += [f"--{name}", str(getattr(call, name))]
    if task is TaskKind.TRY_OFF:
        arguments += ["--max-yaw", "60"]
    job = predict.prepare(predict.parser().parse_args(arguments))
    failures = predict.run(job, "paired", "omfa")
    if failures:
        raise ValueError(f"{failures[0]['key']}: {failures[0]['error']}")
    yield "omfa", out / "omfa"

    size = pipe.config.person_size
    full = find_protocol(call.protocol).size or size

    def ceiling(item: Item) -> Image.Image:
        pixels = read_fitted(source, item.record, wanted(item.category), size)[None]
        return picture(decode(pipe.vae, encode(pipe.vae, pixels))[0])

    def nearest(item: Item) -> Image.Image:
        found = memory.nearest(source, item.record, item.category)
        return picture(read_fitted(memory.source, found, wanted(item.category), full))

    means = {c: memory.mean(c, full) for c in {item.category for item in job.items}}
    yield "ceiling", make(job, "ceiling", ceiling, out / "ceiling")
    yield "nearest", make(job, "nearest", nearest, out / "nearest")
    yield "mean", make(job, "mean", lambda item: means[item.category], out / "mean")
    if task is TaskKind.TRY_ON:
        after = {a.key: b.key for a, b in zip(job.items, [*job.items[1:], job.items[0]], strict=True)}
        yield (
            "wrong pose",
            make(
                job, "wrong pose", lambda item: read_image(out / "omfa" / f"{after[item.key]}.png"), out / "wrong_pose"
            ),
        )
        yield (
            "pose map",
            make(
                job,
                "pose map",
                lambda item: picture(on_a_wall(read_fitted(source, item.record, "pose_map", full))),
                out / "pose_map",
            ),
        )


def table(task: TaskKind, results: dict[str, Results]) -> str:
    """Markdown: a row a model, a column a metric, with half the width of its 95 % interval."""
    columns = [m for m in COLUMNS[task] if any(m in r.summary["metrics"] for r in results.values())]
    lines = [
        f"| {task.value} | " + " | ".join(METRICS[m].label for m in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name, result in results.items():
        cells = []
        for metric in columns:
            row, kind = result.summary["metrics"].get(metric), METRICS[metric]
            if row is None:
                cells.append("-")
                continue
            half = (row["high"] - row["low"]) / 2 * kind.scale if row["low"] is not None else 0.0
            cells.append(f"{row['value'] * kind.scale:.{kind.digits}f} ± {half:.{kind.digits}f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@torch.no_grad()
def main(args: Sequence[str] | None = None) -> int:
    """Make, score and print everything; exit codes as those of ``omfa.evaluate``."""
    parser = argparse.ArgumentParser(
        prog="python -m omfa.yardsticks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", required=True, type=Path, help="held-out records")
    parser.add_argument("--train", required=True, type=Path, help="the records the model was trained on")
    parser.add_argument("--split", default="train", help="of the training records (default train)")
    parser.add_argument("--limit", type=int, default=5000, help="training records to look through (default 5000)")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--model", default="compact")
    parser.add_argument("--protocol", default="wardrobe", help="see python -m omfa.evaluate protocols")
    parser.add_argument("--steps", type=int, help="of the sampler (default: the model's own)")
    parser.add_argument("--guidance", type=float, help="likewise")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tasks", nargs="+", default=["try_off", "try_on"], choices=["try_off", "try_on"])
    call = parser.parse_args(args)
    diffusers_logging.disable_progress_bar()  # of loading: seconds at most
    code = 0
    try:
        pipe = OMFAPipeline.from_pretrained(call.model)
        source = open_records(call.train)
        memory = Memory(source, [r for r in source.records(call.split) if r.garments][: call.limit])
        for task in map(TaskKind, call.tasks):
            results = {}
            for name, folder in folders(call, task, memory, pipe):
                scores = folder.with_name(folder.name + "_scores")
                told = ["--records", str(call.records), "--predictions", str(folder), "--out", str(scores)]
                told += ["--protocol", call.protocol]
                run = evaluate.prepare(
                    evaluate.parser().parse_args(
                        ["run", *told, "--name", name, *(["--max-yaw", "60"] if task is TaskKind.TRY_OFF else [])]
                    )
                )
                run.out.mkdir(parents=True, exist_ok=True)
                evaluate.score_all(run)
                code |= bool(evaluate.gather(run)["problems"])
                results[name] = Results(scores)
            print(table(task, results), end="\n\n", flush=True)
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return code


if __name__ == "__main__":
    sys.exit(main())
