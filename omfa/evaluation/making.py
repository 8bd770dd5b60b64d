"""A folder of predictions: every picture made by a system, one seed each, what is there not made again.

Every picture has its own seed, a function of the call's and its name: neither batch nor processes change it.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from omfa.commands import worker_device
from omfa.components import TaskKind
from omfa.evaluation.pairs import ALL, Item, Selection
from omfa.evaluation.predictions import (
    PREDICTIONS,
    Wishes,
    alike,
    check_has,
    load_system,
    make_batch,
    said,
    weights_state,
    wishes_of,
)
from omfa.evaluation.results import read_json
from omfa.evaluation.scoring import prediction_files
from omfa.evaluation.speed import count_flops, peak_memory_mb, summarise_timings
from omfa.files import Unwritable, clear_parts, file_digest, sole, unwritable, whole, write_json
from omfa.records.prepared import METADATA, RecordError, record_files
from omfa.records.stream import seeded

VERSION = 1
TIMINGS, FAILURES, FLOPS = "timings.jsonl", "failures.jsonl", "flops.json"


@dataclass(frozen=True)
class Job:
    """What predictions to make.

    Args:
        records, out: folders.
        task: TRY_ON or TRY_OFF.
        items: what to make, in order.
        class_path: the system's class, a ``TryOnModel`` or ``TryOffModel`` of ``omfa.evaluation.predictions``.
        weights: what its ``from_pretrained`` is given; None: it is made of nothing.
        steps, guidance: of the sampler; None leaves the system's own.
        seed: of the call.
        batch: pictures at once.
        device: "cpu", "cuda" or "mps".
        processes: how many work at once, each with its own copy of the system.
        chosen: how the items were chosen, for the record.
        pairs: "paired", "unpaired" or a file of pairs, for the record.
    """

    records: Path
    out: Path
    task: TaskKind
    items: tuple[Item, ...]
    class_path: str
    weights: str | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0
    batch: int = 1
    device: str = "cpu"
    processes: int = 1
    chosen: Selection = ALL
    pairs: str = "paired"

    def generator(self, item: Item) -> torch.Generator:
        """The noise of one picture."""
        return seeded(self.seed, self.task, item.key, item.donor.id if item.donor else "")


def call_system(model: Any, job: Job, items: Sequence[Item], wishes: Wishes, steps: int | None) -> list[Image.Image]:
    """Pictures of some items that are alike."""
    generators = [job.generator(item) for item in items]
    batch = make_batch(job.records, items, wishes, generators, steps, job.guidance)
    return list(model.try_off(batch) if job.task == TaskKind.TRY_OFF else model.try_on(batch))


def batches(items: Sequence[Item], size: int, wishes: Wishes) -> list[list[Item]]:
    """Items in order, in batches of those that are alike."""
    open_batches: dict[tuple[Any, ...], list[Item]] = {}
    full = []
    for item in items:
        batch = open_batches.setdefault(alike(item, wishes), [])
        batch.append(item)
        if len(batch) == size:
            full.append(open_batches.pop(alike(item, wishes)))
    return full + list(open_batches.values())


def work(job: Job, rank: int = 0, quiet: bool = False) -> None:
    """Make every picture of this rank that is not there yet; failures and seconds go to files beside them."""
    before = {line["key"]: line.get("made_from") for line in _lines(job.out / TIMINGS)}
    mine = job.items[rank :: job.processes]
    missing = [
        i for i in mine if not prediction_files(job.out, i.key) or before.get(i.key) not in (None, made_of(job, i))
    ]
    for item in missing:  # made from other pictures than those that are there now
        (job.out / f"{item.key}.png").unlink(missing_ok=True)
    if not missing:
        return
    device = worker_device(job.device, rank)
    if job.processes > 1 and device == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // job.processes))
    model = load_system(job.class_path, job.weights, device)
    wishes = wishes_of(model, job.task)
    ready = []
    for item in missing:
        try:
            check_has(item, wishes)
            ready.append(item)
        except RecordError as e:
            _append(job.out / FAILURES, [{"key": item.key, "error": str(e)}])
    if rank == 0 and ready and not (job.out / FLOPS).exists():
        flops = count_flops(lambda steps: call_system(model, job, ready[:1], wishes, steps), job.steps)
        write_json(job.out / FLOPS, flops)
    hidden = quiet or rank > 0 or not sys.stderr.isatty()
    for batch in tqdm(batches(ready, job.batch, wishes), unit="batch", disable=hidden):
        make(model, job, batch, wishes, device)


def make(model: Any, job: Job, batch: Sequence[Item], wishes: Wishes, device: str) -> None:
    """Pictures of a batch; where it fails they are made one by one, so that a bad record spoils no other.

    Raises:
        Unwritable: ``job.out`` can't be written to.
    """
    marks, start = [made_of(job, item) for item in batch], time.perf_counter()
    try:
        pictures = call_system(model, job, batch, wishes, job.steps)
        seconds = (time.perf_counter() - start) / len(batch)
        for item, picture in zip(batch, pictures, strict=True):
            with whole(job.out / f"{item.key}.png") as part:
                picture.save(part, "PNG")
    except Unwritable:
        raise
    except Exception as e:  # whatever a foreign system raises or hands back: named, and the others are made
        missing = [i for i in batch if not prediction_files(job.out, i.key)]
        for item in missing if len(batch) > 1 else ():
            make(model, job, [item], wishes, device)
        if len(batch) == 1:
            _append(job.out / FAILURES, [{"key": i.key, "error": said(e)} for i in missing])
        return
    memory = round(peak_memory_mb(device), 1)
    about = {"seconds": seconds, "peak_memory_mb": memory}
    _append(
        job.out / TIMINGS, [{"key": i.key, **about, "made_from": mark} for i, mark in zip(batch, marks, strict=True)]
    )


def made_of(job: Job, item: Item) -> str:
    """A hash of all files of the records that a picture is made from; a file that is not there counts as empty."""
    digest = hashlib.sha256()
    for record in (item.record, *([] if item.donor is None else [item.donor])):
        for name, path in sorted(record_files(record).items()):
            full = job.records / path
            digest.update(f"{name} {file_digest(full) if full.is_file() else ''}\n".encode())
    return digest.hexdigest()[:32]


def _append(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:  # one write: lines of several processes don't mix
            file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    except OSError as e:
        if path.exists() and not path.stat().st_size:
            path.unlink()
        raise unwritable(path.parent, e) from None


def _lines(path: Path) -> list[dict[str, Any]]:
    """Lines of a file that may have been cut off in the middle of one."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def run(job: Job, name: str, quiet: bool = False) -> list[dict[str, Any]]:
    """Make all pictures, then write ``predictions.json``; the failures.

    Args:
        job: what to make.
        name: what the system is called in tables.
        quiet: no progress bar.

    Raises:
        ValueError: ``out`` holds pictures of another call, or can't be written to; or the system can't be loaded.
    """
    with sole(job.out):
        clear_parts(job.out)
        return _run(job, name, quiet)


def _run(job: Job, name: str, quiet: bool) -> list[dict[str, Any]]:
    told: dict[str, Any] = {
        "version": VERSION, "model": name, "class_path": job.class_path, "weights": job.weights,
        "task": job.task.value, "pairs": job.pairs, **vars(job.chosen), "steps": job.steps, "guidance": job.guidance,
        "seed": job.seed, "batch": job.batch, "device": job.device,
        "weights_state": weights_state(job.class_path, job.weights),
        "records_state": hashlib.sha256((job.records / METADATA).read_bytes()).hexdigest(),
    }  # fmt: skip
    if job.pairs != "paired":
        told["garments_from"] = {i.record.id: i.donor.id for i in job.items if i.donor is not None}
    _check_same(job.out / PREDICTIONS, told)
    write_json(job.out / PREDICTIONS, told, indent=1)
    (job.out / FAILURES).unlink(missing_ok=True)
    if job.processes == 1:
        work(job, quiet=quiet)
    else:
        context = multiprocessing.get_context("spawn")
        workers = [context.Process(target=work, args=(job, rank, quiet), daemon=True) for rank in range(job.processes)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    told |= summarise_timings(_lines(job.out / TIMINGS))
    flops = job.out / FLOPS
    told["flops"] = json.loads(flops.read_text()) if flops.exists() else None
    write_json(job.out / PREDICTIONS, told, indent=1)
    failures = _lines(job.out / FAILURES)
    named = {f["key"] for f in failures}
    gone = [i.key for i in job.items if i.key not in named and not prediction_files(job.out, i.key)]
    return failures + [{"key": key, "error": "its process ended early; call again"} for key in gone]


def _check_same(path: Path, told: dict[str, Any]) -> None:
    """Refuse to mix pictures of two settings in one folder."""
    if not path.exists():
        return
    old = read_json(path, "give another --out")
    keys = ("class_path", "weights", "task", "pairs", "steps", "guidance", "seed")
    differ = [f"{k} ({old.get(k)})" for k in keys if old.get(k) != told[k]]
    states = {"weights_state": "state of the model's files", "records_state": f"state of the records' {METADATA}"}
    differ += [words for k, words in states.items() if old.get(k) != told[k]]
    worn = told.get("garments_from", {})
    differ += [f"donor of {k} ({v})" for k, v in (old.get("garments_from") or {}).items() if worn.get(k, v) != v][:1]
    if differ:
        raise ValueError(f"{path.parent} holds predictions made with another {', '.join(differ)}: give another --out")
