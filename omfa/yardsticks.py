"""A model's table beside what a number means: its VAE alone, the nearest training record, the mean picture.

    python -m omfa.yardsticks --records data/held_out --train data/wardrobe --out outputs/table [--model compact]

One call makes every prediction, scores it and prints one table for each direction. Beside the model stand

- ``ceiling``: the true picture through the model's VAE; no latent diffusion model can do better;
- ``nearest``: the answer of the training record whose given pictures are nearest (garments, face and pose for try-on,
  the photo for try-off; mean squared difference of thumbnails, averaged over the given kinds);
- ``mean``: the mean training picture (of the category, for garments);
- ``pose map`` and ``wrong pose`` (try-on): the bare pose map before a light wall, and the model's picture of another
  record, by which the silhouette columns say whether the pose is obeyed.

Killed and called again, it goes on where it was. A record that can't be read is named, and the others are judged. Exit
codes as those of ``omfa.evaluate``.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from omfa.backbone import decode, encode
from omfa.commands import Parser, count, find_device
from omfa.components import CLOTHES, Category, TaskKind
from omfa.evaluation.making import VERSION, Job, run
from omfa.evaluation.pairs import ALL, Item, Selection, make_items
from omfa.evaluation.predictions import PREDICTIONS, weights_state
from omfa.evaluation.protocols import METRICS, find_protocol
from omfa.evaluation.results import FEWEST, Results, formatted, read_json
from omfa.evaluation.runs import gather, make_run, score_all
from omfa.files import clear_parts, sole, whole, write_json
from omfa.images import read_image, tensor_to_pixels
from omfa.judged import OMFAModel
from omfa.pipeline import OMFAPipeline
from omfa.records.prepared import METADATA, Record, RecordError, record_pictures
from omfa.records.shards import Source, open_records
from omfa.records.stream import read_fitted
from omfa.records.worn import clothes

THUMBNAIL = (32, 24)  # pixels; coarse enough that a shift of a hand's breadth does not matter
CLASS_PATH = "omfa.judged.OMFAModel"
GIVEN = ("face", "pose_map", *(c.value for c in CLOTHES))  # to a try-on, of what a record shows
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
    return [n for n in record_pictures(record) if n in GIVEN]


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
        names = ["person", *GIVEN]
        # name to (N, D); NaN where a record has no such picture
        self.thumbnails = {n: torch.full((len(records), 3 * THUMBNAIL[0] * THUMBNAIL[1]), torch.nan) for n in names}
        for i, record in enumerate(tqdm(self.records, desc="reading", unit="record", disable=None, leave=False)):
            for name in record_pictures(record):
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
        total, pictures = torch.zeros(3, *size), 0
        for record in self.records:
            if wanted(category) in record_pictures(record):
                total += read_fitted(self.source, record, wanted(category), size)
                pictures += 1
        return picture(total / max(1, pictures))


def picture(pixels: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] -> PIL."""
    return Image.fromarray(tensor_to_pixels(pixels))


def on_a_wall(pose_map: Tensor) -> Tensor:
    """A pose map (3, H, W) in [-1, 1] with a light wall in place of the black, as people stand before one."""
    return torch.where(pose_map.amax(0) > -0.9, pose_map, 0.7)


def make(
    job: Job, name: str, one: Callable[[Item], Image.Image], out: Path, failed: dict[str, str]
) -> tuple[str, Path]:
    """A predictions folder as ``omfa.predict`` writes it, each picture by ``one``; why a picture can't be had, by key.

    Raises:
        Unwritable: ``out`` can't be written to.
    """
    for item in tqdm(job.items, desc=name, unit="picture", disable=None, leave=False):
        path = out / f"{item.key}.png"
        if path.is_file():
            continue
        try:
            made = one(item)
        except (ValueError, OSError) as e:
            failed.setdefault(item.key, str(e))
            continue
        with whole(path) as part:
            made.save(part, "PNG")
    told = {"version": VERSION, "model": name, "task": job.task.value, "pairs": "paired", "split": None}
    write_json(out / PREDICTIONS, told)
    return name, out


def check_same(call: argparse.Namespace, records: Sequence[Record]) -> None:
    """Refuse to mix pictures of two settings in one folder; a folder that says nothing is taken as it is.

    Args:
        call: the command line.
        records: those of training to look through.

    Raises:
        ValueError: another --model, --records, --train, --split, --limit, or size of --protocol.
    """
    told = {
        "model": weights_state(CLASS_PATH, call.model),
        "records": hashlib.sha256((call.records / METADATA).read_bytes()).hexdigest(),
        "train, split or limit": hashlib.sha256("\n".join(r.to_json() for r in records).encode()).hexdigest(),
        "size of protocol": list(find_protocol(call.protocol).size or ()),
    }
    path = call.out / "made_from.json"
    old = read_json(path, "give another --out") if path.exists() else told
    differ = [name for name, state in told.items() if old.get(name) != state]
    if differ:
        raise ValueError(f"{call.out} holds pictures made with another {', '.join(differ)}: give another --out")
    write_json(path, told)


def folders(
    call: argparse.Namespace, task: TaskKind, memory: Memory, pipe: OMFAPipeline, failed: dict[str, str]
) -> Iterator[tuple[str, Path]]:
    """Name and predictions folder of the model and every yardstick, made one after the other; failures as ``make``."""
    source, out = open_records(call.records), call.out / task.value
    every, chosen = source.records(), chosen_for(task)
    own = OMFAModel.sampler_defaults(call.model)
    job = Job(
        call.records, out / "omfa", task, make_items(chosen.of(every), task, None, every), CLASS_PATH, call.model,
        call.steps or own[0], own[1] if call.guidance is None else call.guidance, batch=call.batch,
        device=find_device("auto"), chosen=chosen,
    )  # fmt: skip
    if not job.items:
        raise ValueError(f"{call.records} holds no records with garments to make pictures of")
    for failure in run(job, "omfa"):
        failed.setdefault(failure["key"], failure["error"])
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
    after = {a.key: b.key for a, b in zip(job.items, [*job.items[1:], job.items[0]], strict=True)}

    def wrong_pose(item: Item) -> Image.Image:
        return read_image(out / "omfa" / f"{after[item.key]}.png")

    def pose_map(item: Item) -> Image.Image:
        if "pose_map" not in record_pictures(item.record):
            raise RecordError(f"{item.record.id}: no pose map; make it with 'python -m data_prep pose-maps'")
        return picture(on_a_wall(read_fitted(source, item.record, "pose_map", full)))

    yield make(job, "ceiling", ceiling, out / "ceiling", failed)
    yield make(job, "nearest", nearest, out / "nearest", failed)
    yield make(job, "mean", lambda item: means[item.category], out / "mean", failed)
    if task is TaskKind.TRY_ON:
        yield make(job, "wrong pose", wrong_pose, out / "wrong_pose", failed)
        yield make(job, "pose map", pose_map, out / "pose_map", failed)


def chosen_for(task: TaskKind) -> Selection:
    """Try-off is judged where garments are seen from the front."""
    return Selection(max_yaw=60) if task is TaskKind.TRY_OFF else ALL


def table(task: TaskKind, results: dict[str, Results]) -> str:
    """Markdown: a row a model, a column a metric, with half the width of its 95 % interval where it has one."""
    columns = [m for m in COLUMNS[task] if any(m in r.summary["metrics"] for r in results.values())]
    lines = [
        f"| {task.value} | " + " | ".join(METRICS[m].label for m in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name, result in results.items():
        cells = []
        for metric in columns:
            row, kind = result.summary["metrics"].get(metric), METRICS[metric]
            half = None if row is None or row["low"] is None else (row["high"] - row["low"]) / 2
            cells.append(formatted(kind, row)[0] + ("" if half is None else f" ± {kind.text(half)}"))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    persons = max(row["persons"] for r in results.values() for row in r.summary["metrics"].values())
    return "\n".join([*lines, "", f"±: half the 95 % interval over {persons} persons; none below {FEWEST} persons"])


@torch.no_grad()
def main(args: Sequence[str] | None = None) -> int:
    """Make, score and print everything; exit codes as those of ``omfa.evaluate``."""
    parser = Parser(
        prog="python -m omfa.yardsticks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", required=True, type=Path, help="held-out records")
    parser.add_argument("--train", required=True, type=Path, help="the records the model was trained on")
    parser.add_argument("--split", default="train", help="of the training records (default train)")
    parser.add_argument("--limit", type=count, default=5000, help="training records to look through (default 5000)")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--model", default="compact")
    parser.add_argument("--protocol", default="wardrobe", help="see python -m omfa.evaluate protocols")
    parser.add_argument("--steps", type=count, help="of the sampler (default: the model's own)")
    parser.add_argument("--guidance", type=float, help="likewise")
    parser.add_argument("--batch", type=count, default=4)
    parser.add_argument("--tasks", nargs="+", default=["try_off", "try_on"], choices=["try_off", "try_on"])
    call = parser.parse_args(args)
    diffusers_logging.disable_progress_bar()  # of loading: seconds at most
    code = 0
    try:
        find_protocol(call.protocol)
        source = open_records(call.train)
        known = [r for r in source.records(call.split) if clothes(r)][: call.limit]
        if not known:
            raise ValueError(f"{call.train} holds no records of split {call.split!r} with garments; check --split")
        pipe = OMFAPipeline.from_pretrained(call.model)
        with sole(call.out):
            clear_parts(call.out)
            check_same(call, known)
            memory = Memory(source, known)
            for task in map(TaskKind, call.tasks):
                results, failed = {}, dict[str, str]()
                for name, folder in folders(call, task, memory, pipe, failed):
                    scores = folder.with_name(folder.name + "_scores")
                    scoring = make_run(
                        call.records, folder, scores, call.protocol, name, chosen=chosen_for(task),
                        device=find_device("auto"),
                    )  # fmt: skip
                    score_all(scoring)
                    for problem in gather(scoring)["problems"]:
                        failed.setdefault(problem["key"], problem["problem"])
                    results[name] = Results(scores)
                print(table(task, results), end="\n\n", flush=True)
                for key, why in failed.items():
                    print(f"failed: {key}: {why.removeprefix(f'{key}: ')}", file=sys.stderr)
                code |= bool(failed)
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return code


if __name__ == "__main__":
    sys.exit(main())
