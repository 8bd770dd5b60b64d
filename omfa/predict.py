"""Predictions for a whole records folder, to be judged by ``python -m omfa.evaluate``.

    python -m omfa.predict --records DIR --task try_off --out DIR
    python -m omfa.predict --records DIR --task try_on --pairs unpaired --model compact --steps 20 --out DIR
    python -m omfa.predict --records DIR --task try_on --class-path package.module.Model --model weights/ --out DIR

Writes ``<record id>.png`` (try-on) or ``<record id>.<category>.png`` (try-off), and ``predictions.json`` saying how
they were made. Pictures that are there are not made again, so a killed call goes on. Every picture has its own seed, a
function of --seed and its name: neither batch nor processes change it. Exit code 0: all well; 1: some failed, each
named; 2: the call was wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import inspect
import json
import multiprocessing
import os
import random
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from tqdm import tqdm

from omfa.commands import Parser, count, find_device
from omfa.components import TaskKind
from omfa.evaluation.results import read_json
from omfa.evaluation.scoring import Item, make_items, prediction_files, select
from omfa.files import Unwritable, check_writable, unwritable, whole, write_json
from omfa.pipeline import MODELS, OMFAPipeline
from omfa.records.prepared import METADATA, Record, RecordError, read_records, resolve
from omfa.records.stream import seeded

VERSION = 1
PREDICTIONS, TIMINGS = "predictions.json", "timings.jsonl"
PIPELINE = "omfa.pipeline.OMFAPipeline"


@dataclass(frozen=True)
class Job:
    """One call.

    Args:
        records, out: folders.
        task: TRY_ON or TRY_OFF.
        items: what to make, in order.
        class_path: the model's class; it has ``from_pretrained`` (or takes nothing), ``try_on`` and ``try_off`` with
            the pipeline's signature.
        model: what its ``from_pretrained`` is given, or None.
        steps, guidance, seed: of the sampler; None leaves another class's own.
        batch: pictures at once.
        device: "cpu", "cuda" or "mps".
        processes: how many work at once, each with its own copy of the model.
        selection: split, max_yaw and limit that the items were chosen by.
    """

    records: Path
    out: Path
    task: TaskKind
    items: tuple[Item, ...]
    class_path: str
    model: str | None
    steps: int | None
    guidance: float | None
    seed: int
    batch: int
    device: str
    processes: int
    selection: dict[str, Any]

    def options(self, items: Sequence[Item]) -> dict[str, Any]:
        """Sampler options and one generator per picture."""
        generators = [seeded(self.seed, self.task, i.key, i.donor.id if i.donor else "") for i in items]
        wanted = {"num_inference_steps": self.steps, "guidance_scale": self.guidance}
        return {k: v for k, v in wanted.items() if v is not None} | {"generator": generators}


def unpaired_donors(records: Sequence[Record], seed: int = 0) -> dict[str, str]:
    """Whose garments each record wears: another person's outfit, the same for all pictures of an outfit.

    The outfits are shuffled and each takes the next one of another person in that circle.

    Raises:
        ValueError: all records show one person.
    """
    outfits: dict[str, Record] = {}
    for record in records:
        if record.garments:
            outfits.setdefault(record.outfit_id, record)
    names = sorted(outfits)
    random.Random(seed).shuffle(names)
    if len({outfits[n].person_id for n in names}) < 2:
        raise ValueError("unpaired try-on needs records of at least two persons")
    donor = {}
    for at, name in enumerate(names):
        ahead = (names[(at + k) % len(names)] for k in range(1, len(names)))
        donor[name] = next(outfits[n].id for n in ahead if outfits[n].person_id != outfits[name].person_id)
    return {r.id: donor[r.outfit_id] for r in records if r.outfit_id in donor}


def donors_from_file(path: Path, records: Sequence[Record]) -> tuple[dict[str, str], list[str]]:
    """Pairs from a text file: on each line the person's record and the record whose garments they wear.

    A name is a record's id or the file it was made from, as the lists of VITON-HD (``00055_00.jpg 00069_00.jpg``) and
    DressCode (``048462_0.jpg 049951_1.jpg``, perhaps with the category's number behind) give them.

    Returns:
        The person's id to the garments'; the lines that name no record here, or garments of a record that has none.

    Raises:
        ValueError: a line that is no pair, a person listed twice, a name of several records, or no pair of records.
    """
    ids, made_from = {r.id for r in records}, _ids_by_source(records)
    dressed = {r.id for r in records if r.garments}
    found: dict[str, str] = {}
    absent = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as e:
        raise ValueError(f"{path} is no UTF-8 text ({e}); give a list of pairs, two names a line") from None
    for number, line in enumerate(lines, 1):
        words, where = line.split(), f"{path}:{number}: {line.strip()!r}"
        if not words:
            continue
        if len(words) not in (2, 3):
            raise ValueError(f"{where} must be two names, the person's and the garments'")
        named = []
        for word in words[:2]:
            name = word if word in ids else word.rsplit(".", 1)[0]
            named.append({name} if name in ids else made_from.get(name, set()))
            if len(named[-1]) > 1:
                raise ValueError(f"{where}: {word} stands for {', '.join(sorted(named[-1]))}; give ids, or a --split")
        if not named[0] or not named[1] & dressed:
            absent.append(where)
            continue
        (person,), (donor,) = named
        if person in found:
            raise ValueError(f"{where}: {person} is listed twice, and there is one picture a record; keep one line")
        found[person] = donor
    if not found:
        first = f"; the first: {absent[0]}" if absent else ""
        raise ValueError(f"no line of {path} names records with garments, by id or by source file{first}")
    return found, absent


def _ids_by_source(records: Sequence[Record]) -> dict[str, set[str]]:
    """Name of the file a record was made from, without suffix, to ids; DressCode's garments have their person's."""
    found: dict[str, set[str]] = {}
    for record in records:
        source = record.provenance.get("source")
        if not isinstance(source, str):
            continue
        name = Path(source).stem
        found.setdefault(name, set()).add(record.id)
        if record.provenance.get("stage") == "dresscode":
            found.setdefault(name.removesuffix("_0") + "_1", set()).add(record.id)
    return found


# ---------------------------------------------------------------------------------------------------------- one call
def model_class(path: str) -> Any:
    """The class that ``package.module.Class`` names.

    Raises:
        ValueError: there is none.
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as e:
        raise ValueError(f"--class-path {path!r}: {e}; give it as package.module.Class") from None
    if not isinstance(found, type):
        raise ValueError(f"--class-path {path!r} is no class; give it as package.module.Class")
    return found


def load_model(job: Job, device: str) -> Any:
    """The model of ``class_path`` on a device, silent.

    Raises:
        ValueError: it can't be loaded.
    """
    kind = model_class(job.class_path)
    diffusers_logging.disable_progress_bar()  # of loading: seconds at most
    try:
        model = kind() if job.model is None else kind.from_pretrained(job.model)
        model = model.to(device) or model if hasattr(model, "to") else model
    except (ValueError, OSError):
        raise
    except Exception as e:  # whatever a foreign class raises
        raise ValueError(f"{job.class_path} can't be loaded from {job.model!r}: {_said(e)}") from e
    if hasattr(model, "set_progress_bar_config"):
        model.set_progress_bar_config(disable=True)
    return model


def call_model(model: Any, job: Job, items: Sequence[Item], options: dict[str, Any]) -> list[Any]:
    """Pictures of some items that can share a call (:func:`alike`)."""

    def path(name: str) -> str:
        return str(resolve(job.records, name))

    if job.task == TaskKind.TRY_OFF:
        people = [path(i.record.file_name) for i in items]
        return list(model.try_off(people, str(items[0].category), **options).images)
    worn = [{g.category.value: path(g.path) for g in (i.donor or i.record).garments} for i in items]
    garments = {category: [w[category] for w in worn] for category in worn[0]}
    for item in items:
        if item.record.pose is None or item.record.pose.map is None:
            raise ValueError(f"{item.record.id}: no pose map; make it with 'python -m data_prep pose-maps'")
    poses = [path(i.record.pose.map) for i in items if i.record.pose is not None and i.record.pose.map is not None]
    faces = [path(i.record.face.path) for i in items if i.record.face is not None]
    if "keep" in inspect.signature(model.try_on).parameters:
        options = options | {"keep": None}
    return list(model.try_on(None, garments, pose=poses, face=faces or None, **options).images)


def alike(item: Item) -> tuple[Any, ...]:
    """What items of one batch have in common."""
    garments = tuple(sorted(g.category.value for g in (item.donor or item.record).garments))
    return (item.category,) if item.category is not None else (garments, item.record.face is None)


def batches(items: Sequence[Item], size: int) -> list[list[Item]]:
    """Items in order, in batches of those that are alike."""
    open_batches: dict[tuple[Any, ...], list[Item]] = {}
    full = []
    for item in items:
        batch = open_batches.setdefault(alike(item), [])
        batch.append(item)
        if len(batch) == size:
            full.append(open_batches.pop(alike(item)))
    return full + list(open_batches.values())


def count_flops(model: Any, job: Job) -> float | None:
    """Floating point operations of one picture: counted at 1 and 2 steps, and continued to all of them."""
    if job.steps is None:
        return None
    from torch.utils.flop_counter import FlopCounterMode

    counts = []
    for steps in (1, 2):
        with FlopCounterMode(display=False) as counter:
            item = job.items[:1]
            call_model(model, job, item, job.options(item) | {"num_inference_steps": steps})
        counts.append(counter.get_total_flops())
    return float(counts[0] + (job.steps - 1) * (counts[1] - counts[0]))


def peak_memory_mb(device: str) -> float:
    """Most memory used so far: of the device, or resident in this process."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def work(job: Job, rank: int = 0, quiet: bool = False) -> None:
    """Make every picture of this rank that is not there yet; failures and seconds go to files beside them."""
    missing = [i for i in job.items[rank :: job.processes] if not prediction_files(job.out, i.key)]
    if not missing:
        return
    device = job.device
    if device == "cuda":
        device = f"cuda:{rank % torch.cuda.device_count()}"
    if job.processes > 1 and device == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // job.processes))
    model = load_model(job, device)
    if rank == 0 and not (job.out / "flops.json").exists():
        write_json(job.out / "flops.json", _flops_or_none(model, job))
    hidden = quiet or rank > 0 or not sys.stderr.isatty()
    for batch in tqdm(batches(missing, job.batch), unit="batch", disable=hidden):
        make(model, job, batch, device)


def make(model: Any, job: Job, batch: Sequence[Item], device: str) -> None:
    """Pictures of a batch; where it fails they are made one by one, so that a bad record spoils no other.

    Raises:
        Unwritable: ``job.out`` can't be written to.
    """
    start = time.perf_counter()
    try:
        pictures = call_model(model, job, batch, job.options(batch))
        seconds = (time.perf_counter() - start) / len(batch)
        for item, picture in zip(batch, pictures, strict=True):
            with whole(job.out / f"{item.key}.png") as part:
                picture.save(part, "PNG")
    except Unwritable:
        raise
    except Exception as e:  # whatever a foreign model raises or hands back: named, and the others are made
        missing = [i for i in batch if not prediction_files(job.out, i.key)]
        for item in missing if len(batch) > 1 else ():
            make(model, job, [item], device)
        if len(batch) == 1:
            _append(job.out / "failures.jsonl", [{"key": i.key, "error": _said(e)} for i in missing])
        return
    memory = round(peak_memory_mb(device), 1)
    _append(job.out / TIMINGS, [{"key": i.key, "seconds": seconds, "peak_memory_mb": memory} for i in batch])


def _flops_or_none(model: Any, job: Job) -> float | None:
    try:
        return count_flops(model, job)
    except Exception:  # a model that can't be counted still predicts
        return None


def _said(error: Exception) -> str:
    """An error's words; where they are not made for users, with its kind."""
    return str(error) if isinstance(error, ValueError | RuntimeError) else f"{type(error).__name__}: {error}"


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


def run(job: Job, pairs: str, name: str, quiet: bool = False) -> list[dict[str, Any]]:
    """Make all pictures, then write ``predictions.json``; the failures.

    Raises:
        ValueError: ``out`` holds pictures of another call, or can't be written to.
    """
    check_writable(job.out)
    told: dict[str, Any] = {
        "version": VERSION, "model": name, "class_path": job.class_path, "weights": job.model, "task": job.task.value,
        "pairs": pairs, **job.selection, "steps": job.steps, "guidance": job.guidance, "seed": job.seed,
        "batch": job.batch, "device": job.device, "weights_state": model_state(job.model),
        "records_state": hashlib.sha256((job.records / METADATA).read_bytes()).hexdigest(),
    }  # fmt: skip
    if pairs != "paired":
        told["garments_from"] = {i.record.id: i.donor.id for i in job.items if i.donor is not None}
    _check_same(job.out / PREDICTIONS, told)
    write_json(job.out / PREDICTIONS, told, indent=1)
    (job.out / "failures.jsonl").unlink(missing_ok=True)
    if job.processes == 1:
        work(job, quiet=quiet)
    else:
        context = multiprocessing.get_context("spawn")
        workers = [context.Process(target=work, args=(job, rank, quiet), daemon=True) for rank in range(job.processes)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    timings = _lines(job.out / TIMINGS)
    if timings:
        seconds = [t["seconds"] for t in timings]
        told["seconds"] = {"median": statistics.median(seconds), "mean": statistics.fmean(seconds), "n": len(seconds)}
        told["peak_memory_mb"] = max(t["peak_memory_mb"] for t in timings)
    flops = job.out / "flops.json"
    told["flops"] = json.loads(flops.read_text()) if flops.exists() else None
    write_json(job.out / PREDICTIONS, told, indent=1)
    failures = _lines(job.out / "failures.jsonl")
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


def model_state(model: str | None) -> str | None:
    """Names, sizes and times of a model's files as a hash; the text itself where it is no folder or file here."""
    path = next((p for p in (MODELS / model, Path(model)) if p.exists()), None) if model else None
    if path is None:
        return model
    files = [p for p in sorted(path.rglob("*")) if p.is_file() and "__pycache__" not in p.parts] or [path]
    stats = [(p.relative_to(path).as_posix(), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------- the command line
def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(prog="python -m omfa.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--records", required=True, metavar="DIR", help="records folder")
    p.add_argument("--task", required=True, choices=["try_on", "try_off"])
    p.add_argument("--pairs", default="paired", metavar="paired|unpaired|FILE", help="whose garments try-on puts on")
    p.add_argument("--out", required=True, metavar="DIR")
    p.add_argument("--split", help="only records of this split")
    p.add_argument("--max-yaw", type=float, metavar="DEG", help="only records turned by at most this")
    p.add_argument("--limit", type=count, metavar="N", help="only the first N pictures")
    p.add_argument("--model", default=None, help="what from_pretrained is given (default: compact, for the pipeline)")
    p.add_argument("--class-path", default=PIPELINE, metavar="PATH", help=f"the model's class (default {PIPELINE})")
    p.add_argument("--name", help="what the model is called in tables")
    p.add_argument("--steps", type=count, help="of the sampler (default: the model's own)")
    p.add_argument("--guidance", type=float, help="likewise")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--batch", type=count, default=1)
    p.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    p.add_argument("--processes", type=count, default=1, metavar="N")
    return p


def prepare(args: argparse.Namespace) -> Job:
    """The job that the command line asks for.

    Raises:
        ValueError: something about the call is wrong.
    """
    every = read_records(args.records)
    records = select(every, args.split, args.max_yaw)
    task, donors = TaskKind(args.task), None
    if args.pairs != "paired":
        if task == TaskKind.TRY_OFF:
            raise ValueError("--pairs is for try_on; a try_off takes a garment off its own picture")
        if args.pairs != "unpaired" and not Path(args.pairs).is_file():
            raise ValueError(f"--pairs {args.pairs!r} must be 'paired', 'unpaired' or a file of pairs")
        if args.pairs == "unpaired":
            donors = unpaired_donors(records)
        else:
            donors, absent = donors_from_file(Path(args.pairs), select(every, args.split, None))
            if absent:
                print(f"{len(absent)} pairs name no record here; the first: {absent[0]}", file=sys.stderr)
    items = make_items(records, task, donors, every, args.limit)
    if not items:
        raise ValueError(f"{args.records} holds no record of split {args.split!r} with garments; check --split")
    device = find_device(args.device)
    model_class(args.class_path)
    model, steps, guidance = args.model, args.steps, args.guidance
    if args.class_path == PIPELINE:
        model = model or "compact"
        own = OMFAPipeline.sampler_defaults(model)
        steps, guidance = steps or own[0], own[1] if guidance is None else guidance
    return Job(
        Path(args.records), Path(args.out), task, items, args.class_path, model, steps, guidance, args.seed,
        args.batch, device, args.processes, {"split": args.split, "max_yaw": args.max_yaw, "limit": args.limit},
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Make predictions; the exit code."""
    args = parser().parse_args(argv)
    try:
        job = prepare(args)
        failures = run(job, args.pairs, args.name or job.model or args.class_path)
    except (ValueError, RecordError, OSError) as e:
        print(f"python -m omfa.predict: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; call again to go on from here", file=sys.stderr)
        return 1
    for failure in failures:
        print(f"failed: {failure['key']}: {failure['error']}", file=sys.stderr)
    print(f"{len(job.items) - len(failures)} of {len(job.items)} pictures in {job.out}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
