"""The evaluation door.

    python -m omfa.evaluate run --records DIR --predictions DIR --out DIR [--protocol NAME] [--weights DIR]
    python -m omfa.evaluate compare OUT_A OUT_B ... [--out FILE.json]
    python -m omfa.evaluate report OUT_A [OUT_B ...] --out DIR
    python -m omfa.evaluate protocols

A predictions folder holds ``<record id>.png`` (try-on) or ``<record id>.<category>.png`` (try-off), and the
``predictions.json`` that ``python -m omfa.predict`` writes; without that file, say --task. Killed and called again, a
run goes on where it was. Exit code 0: all well; 1: some predictions could not be scored, each named; 2: the call was
wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from tqdm import tqdm

from omfa.commands import Parser, count, find_device
from omfa.components import TaskKind
from omfa.evaluation.judges import PATTERN_WEIGHTS
from omfa.evaluation.learned_metrics import NEEDS, MissingWeights, find_weights, load_network, sha256
from omfa.evaluation.protocols import METRICS, NOT_DONE, PROTOCOLS, Pairing, Protocol, find_protocol
from omfa.evaluation.results import (
    HOW,
    RESULTS,
    RUN,
    VALUES,
    VERSION,
    Results,
    compare,
    formatted,
    read_json,
    summarise,
)
from omfa.evaluation.scoring import (
    SCORING,
    Item,
    Scorer,
    label_files,
    make_items,
    needed_networks,
    prediction_files,
    select,
)
from omfa.files import check_writable, whole, write_json
from omfa.records.prepared import RecordError, read_records

PREDICTIONS = "predictions.json"
SPEED = ("seconds", "peak_memory_mb", "flops", "steps", "guidance", "seed", "device")
CHUNK = 16  # predictions between two savings; small, so that a kill costs little


# ------------------------------------------------------------------------------------------------------- one run
@dataclass(frozen=True)
class Run:
    """One evaluation.

    Args:
        records, predictions, out: folders.
        protocol: how pictures are compared.
        name: what the model is called in tables.
        task, pairing: what the predictions are.
        items: what to score, in order.
        weights: folder of weight files, or None.
        networks: network to the path of its weights.
        absent: metric to why it can't be had.
        device: "cpu", "cuda" or "mps".
        processes: how many work at once.
        speed: what ``predictions.json`` says of seconds and memory.
    """

    records: Path
    predictions: Path
    out: Path
    protocol: Protocol
    name: str
    task: TaskKind
    pairing: Pairing
    items: tuple[Item, ...]
    weights: Path | None
    networks: dict[str, str]
    absent: dict[str, str]
    device: str = "cpu"
    processes: int = 1
    speed: dict[str, Any] | None = None

    @property
    def wanted(self) -> tuple[str, ...]:
        """Metrics of the protocol that fit task and pairing and can be had."""
        return tuple(m for m in applicable(self.protocol, self.task, self.pairing) if m not in self.absent)

    def scorer(self) -> Scorer:
        """Everything loaded, ready to score."""
        networks = {n: load_network(n, self.weights).to(self.device) for n in self.networks}
        return Scorer(
            self.records, self.predictions, self.protocol, self.task, self.pairing, self.wanted, networks,
            kinds="pattern_agreement" in self.wanted, device=self.device,
        )  # fmt: skip

    def chunks(self) -> list[tuple[int, tuple[Item, ...]]]:
        """Items in numbered portions, the same whatever the number of processes."""
        return [(i // CHUNK, self.items[i : i + CHUNK]) for i in range(0, len(self.items), CHUNK)]

    def fingerprint(self, items: Sequence[Item]) -> str:
        """What the scores of these items depend on, as a short hash: settings, weights, and the files' state."""
        files = []
        for item in items:
            donors = [] if item.donor is None else [g.path for g in item.donor.garments]
            read = [self.records / path for path in (item.truth, *label_files(item).values(), *donors)]
            for path in [*prediction_files(self.predictions, item.key), *read]:
                stat = path.stat() if path.exists() else None
                files.append((str(path), stat and (stat.st_size, stat.st_mtime_ns)))
        settings = [SCORING, asdict(self.protocol), self.task, self.pairing, self.wanted, self.device]
        weights = {n: sha256(Path(p)) for n, p in sorted(self.networks.items())}
        if "pattern_agreement" in self.wanted:
            weights["patterns"] = sha256(PATTERN_WEIGHTS)
        records = [(item.key, item.record.to_json()) for item in items]
        return hashlib.sha256(json.dumps([settings, weights, records, files]).encode()).hexdigest()


def applicable(protocol: Protocol, task: TaskKind, pairing: Pairing) -> tuple[str, ...]:
    """The protocol's metrics that mean something for this task and pairing."""
    names = protocol.metrics or tuple(METRICS)
    outlines = ("silhouette_iou", "silhouette_forearms", "silhouette_shins", "psnr_person", "ssim_rgb_valid_person")
    if pairing == "unpaired":
        return tuple(n for n in names if METRICS[n].of_set or n in ("clip_i", "dino"))
    if task == TaskKind.TRY_OFF:
        return tuple(n for n in names if n not in outlines)
    return tuple(n for n in names if n != "pattern_agreement")


def prepare(args: argparse.Namespace) -> Run:
    """The run that the command line asks for, everything checked.

    Raises:
        ValueError: something about the call is wrong; says what would be right.
    """
    records, predictions, protocol = Path(args.records), Path(args.predictions), find_protocol(args.protocol)
    if not predictions.is_dir():
        raise ValueError(f"{predictions} is no folder; make predictions with 'python -m omfa.predict'")
    told = _told(predictions)
    task_name = args.task or told.get("task") or protocol.task
    if task_name not in (TaskKind.TRY_ON, TaskKind.TRY_OFF):
        raise ValueError(f"{predictions} has no {PREDICTIONS} that says the task: give --task try_on or --task try_off")
    donors = told.get("garments_from")
    pairing: Pairing = "paired" if donors is None else "unpaired"
    if args.pairs == "unpaired" and donors is None:
        raise ValueError(f"unpaired predictions need {PREDICTIONS} with 'garments_from' {{record id: record id}}")
    if args.pairs == "paired":
        pairing, donors = "paired", None
    task = TaskKind(task_name)
    if (protocol.task or task) != task or (protocol.pairing or pairing) != pairing:
        wanted = f"{protocol.pairing or 'any'} {protocol.task or 'task'}"
        raise ValueError(f"protocol {protocol.name!r} is for {wanted}, these predictions are {pairing} {task}")
    own = vars(args)
    split, max_yaw, limit = (told.get(k) if own[k] is None else own[k] for k in ("split", "max_yaw", "limit"))
    every = read_records(records)
    chosen = select(every, split, max_yaw)
    items = make_items(chosen, task, donors, every, limit)
    if not items:
        raise ValueError(
            f"{records} holds nothing to score: {len(every)} records, {len(chosen)} of them of split {split or 'any'} "
            f"and yaw {max_yaw or 'any'}, none of which has garments; check --records, --split and --max-yaw"
        )
    networks, absent = _networks(applicable(protocol, task, pairing), args.weights, args.download)
    if "pattern_agreement" in applicable(protocol, task, pairing) and not PATTERN_WEIGHTS.is_file():
        absent["pattern_agreement"] = "no pattern classifier ships with this release"
    name = args.name or str(told.get("model") or predictions.resolve().name)
    return Run(
        records, predictions, Path(args.out), protocol, name, task, pairing, items, args.weights, networks, absent,
        find_device(args.device), args.processes, {k: told[k] for k in SPEED if k in told},
    )  # fmt: skip


def _told(predictions: Path) -> dict[str, Any]:
    """``predictions.json`` where there is one, its fields of the kinds that are used here."""
    path, cure = predictions / PREDICTIONS, "write it again, or remove it and give --task"
    told = read_json(path, cure) if path.is_file() else {}
    donors = told.get("garments_from")
    fits = {
        "split": isinstance(told.get("split"), str | None),
        "max_yaw": isinstance(told.get("max_yaw"), int | float | None),
        "limit": told.get("limit") is None or (isinstance(told["limit"], int) and told["limit"] > 0),
        "garments_from": isinstance(donors, dict | None) and all(isinstance(d, str) for d in (donors or {}).values()),
    }
    for name, fit in fits.items():
        if not fit:
            raise ValueError(f"{path}: {name!r} can't be {told[name]!r:.80}; {cure}")
    return told


def _networks(names: Sequence[str], weights: Path | None, download: bool) -> tuple[dict[str, str], dict[str, str]]:
    """Networks whose weights are here, and metrics that must go without."""
    networks: dict[str, str] = {}
    absent: dict[str, str] = {}
    for name in needed_networks(tuple(names)):
        try:
            networks[name] = str(find_weights(NEEDS[name], weights, download))
        except MissingWeights as e:
            absent |= {m: str(e) for m in names if METRICS[m].network == name}
    return networks, absent


# ------------------------------------------------------------------------------------------------------ the workers
_scorer: Scorer | None = None


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _start(run: Run) -> None:
    global _scorer
    # One thread each: sums are then taken in the same order, and the last digit does not depend on --processes.
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    parent = multiprocessing.parent_process()
    if parent is not None:  # a killed run leaves no workers behind
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _scorer = run.scorer()


def _score_chunk(number: int, items: Sequence[Item], fingerprint: str, work: Path) -> int:
    """Score a portion and save it at once; the number of items."""
    assert _scorer is not None
    scores = [_scorer.score(item) for item in items]
    names = sorted({n for s in scores for n in s.features})
    features = {n: np.stack([s.features[n] for s in scores if n in s.features]) for n in names}
    lines: list[dict[str, Any]] = [
        {"key": i.key, "record_id": i.record.id, "person_id": i.record.person_id, "problem": s.problem}
        | {"values": s.values, "donor": _donor(i)}
        for i, s in zip(items, scores, strict=True)
    ]
    with whole(work / f"{number:06d}.npz") as part, part.open("wb") as file:
        np.savez(file, **cast(Any, features))
    write_json(work / f"{number:06d}.json", {"fingerprint": fingerprint, "lines": lines})
    return len(items)


def _donor(item: Item) -> dict[str, Any] | None:
    """Whose garments an unpaired try-on wears, for the report."""
    if item.donor is None:
        return None
    return {"record_id": item.donor.id, "garments": [[str(g.category), g.path] for g in item.donor.garments]}


def _read_chunk(work: Path, number: int) -> dict[str, Any] | None:
    try:
        return dict(json.loads((work / f"{number:06d}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def score_all(run: Run, quiet: bool = False) -> None:
    """Score every item that has no valid score yet, into ``out/work``."""
    work = run.out / "work"
    work.mkdir(parents=True, exist_ok=True)
    todo = []
    for number, items in run.chunks():
        fingerprint, old = run.fingerprint(items), _read_chunk(work, number)
        if old is None or old.get("fingerprint") != fingerprint or not (work / f"{number:06d}.npz").is_file():
            todo.append((number, items, fingerprint))
    done = len(run.items) - sum(len(items) for _, items, _ in todo)
    hidden = quiet or not sys.stderr.isatty()
    with tqdm(total=len(run.items), initial=done, unit="picture", disable=hidden) as bar:
        if run.processes == 1:
            if todo:
                threads = torch.get_num_threads()
                _start(run)
                for number, items, fingerprint in todo:
                    bar.update(_score_chunk(number, items, fingerprint, work))
                torch.set_num_threads(threads)
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(run.processes, context, _start, (run,)) as pool:
            jobs = [pool.submit(_score_chunk, number, items, mark, work) for number, items, mark in todo]
            for job in as_completed(jobs):
                bar.update(job.result())


# ---------------------------------------------------------------------------------------------------- the gathering
def gather(run: Run) -> dict[str, Any]:
    """Bring the portions together: write values, features and ``results.json``; its contents."""
    work, problems = run.out / "work", []
    numbers = [number for number, _ in run.chunks()]
    lines: list[dict[str, Any]] = []
    for number in numbers:
        chunk = _read_chunk(work, number)
        assert chunk is not None, f"portion {number} is gone"
        for line in chunk["lines"]:
            if line["problem"] is not None:
                problems.append({"key": line["key"], "problem": line["problem"]})
            else:
                lines.append({k: line[k] for k in ("key", "record_id", "person_id", "values", "donor")})
    if not lines:
        raise ValueError(f"none of {len(problems)} predictions could be scored; the first: {problems[0]['problem']}")
    with whole(run.out / VALUES) as part:
        part.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    features = _gather_features(run, numbers, len(lines))
    table = summarise(run.wanted, lines, features)
    absent = dict(run.absent)
    for name in run.wanted:
        if name not in table:
            absent[name] = "no record has what it needs (an area mask, a picture large enough, two predictions)"
    results = {
        "version": VERSION,
        "name": run.name,
        "protocol": asdict(run.protocol),
        "task": run.task,
        "pairing": run.pairing,
        "predictions": len(lines) + len(problems),
        "scored": len(lines),
        "problems": problems,
        "metrics": table,
        "absent": absent,
        "deliberately_absent": NOT_DONE,
        "intervals": HOW,
        "weights": {n: {"file": Path(p).name, "sha256": sha256(Path(p))} for n, p in run.networks.items()},
        "speed": run.speed or {},
    }
    places = {"records": str(run.records.resolve()), "predictions": str(run.predictions.resolve())}
    write_json(run.out / RUN, places | {"split_items": [i.key for i in run.items]}, indent=1)
    write_json(run.out / RESULTS, results, indent=1)
    return results


def _gather_features(run: Run, numbers: Sequence[int], count: int) -> dict[str, np.ndarray]:
    """Features of all portions as files mapped into memory: (N, 2, D) each."""
    folder, found = run.out / "features", {}
    if run.networks:
        folder.mkdir(exist_ok=True)
    for name in {METRICS[m].network for m in run.wanted} & {"inception", "clip", "dino"}:
        assert name is not None
        row, out = 0, None
        part = folder / f"{name}.npy.part"
        for number in numbers:
            with np.load(run.out / "work" / f"{number:06d}.npz", allow_pickle=False) as chunk:
                if name not in chunk:
                    continue
                block = chunk[name]
            if out is None:
                out = np.lib.format.open_memmap(part, "w+", np.float32, (count, *block.shape[1:]))
            out[row : row + len(block)] = block
            row += len(block)
        if out is not None:
            out.flush()
            os.replace(part, folder / f"{name}.npy")
            found[name] = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    return found


def table(results: dict[str, Any]) -> str:
    """The numbers for a terminal."""
    head = f"{results['name']}: {results['pairing']} {results['task']}, protocol {results['protocol']['name']}, "
    rows = [head + f"{results['scored']} of {results['predictions']} predictions"]
    for name, row in results["metrics"].items():
        metric = METRICS[name]
        text, sure = formatted(metric, row)
        rows.append(f"  {metric.label:44} {text:>9}  {sure:20} n {row['n']} of {row['persons']} persons")
    rows += [f"  {METRICS[name].label:44} {'absent':>9}  {why}" for name, why in results["absent"].items()]
    return "\n".join(rows)


# ------------------------------------------------------------------------------------------------------ the commands
def command_run(args: argparse.Namespace) -> int:
    """``run``."""
    run = prepare(args)
    check_writable(run.out)
    try:
        score_all(run)
    except BrokenProcessPool:
        print("a process was ended from outside (out of memory?); call again to go on from here", file=sys.stderr)
        return 1
    results = gather(run)
    print(table(results))
    for problem in results["problems"]:
        key, why = problem["key"], problem["problem"]
        print(f"not scored: {key}: {why.removeprefix(f'{key}: ')}", file=sys.stderr)
    print(f"written to {run.out / RESULTS}")
    return 1 if results["problems"] else 0


def command_compare(args: argparse.Namespace) -> int:
    """``compare``."""
    from omfa.evaluation.report import comparison_text

    found = compare([Results(Path(p)) for p in args.results])
    print(comparison_text(found))
    if args.out:
        write_json(Path(args.out), found, indent=1)
    return 0


def command_report(args: argparse.Namespace) -> int:
    """``report``."""
    from omfa.evaluation.report import write_report

    for path in write_report([Results(Path(p)) for p in args.results], Path(args.out), args.pictures):
        print(path)
    return 0


def command_protocols(args: argparse.Namespace) -> int:
    """``protocols``."""
    for p in PROTOCOLS.values():
        size = "own size" if p.size is None else f"{p.size[0]}x{p.size[1]}"
        print(f"{p.name}\n  {p.task or 'any task'}, {p.pairing or 'any pairing'}, {size}, crop {p.crop}")
        print(
            f"  truth {p.truth_filter}, prediction {p.prediction_filter}, FID and KID against the {p.set_truth} truth"
        )
        print(f"  {', '.join(p.metrics or METRICS)}\n  {p.source}")
    print("\n".join(f"not done: {why}" for why in NOT_DONE.values()))
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(
        prog="python -m omfa.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="score a folder of predictions")
    run.add_argument("--records", required=True, metavar="DIR", help="records folder with the truth")
    run.add_argument("--predictions", required=True, metavar="DIR", help="<id>.png or <id>.<category>.png")
    run.add_argument("--out", required=True, metavar="DIR", help="results")
    run.add_argument("--protocol", default="records", help="see the 'protocols' command (default: records)")
    run.add_argument("--task", choices=["try_on", "try_off"], help="where predictions.json does not say")
    run.add_argument("--pairs", choices=["paired", "unpaired"], help="where predictions.json does not say")
    run.add_argument("--split", help="only records of this split (default: what predictions.json says, else all)")
    run.add_argument(
        "--max-yaw", type=float, metavar="DEG", help="only records turned by at most this (default: likewise)"
    )
    run.add_argument("--limit", type=count, metavar="N", help="only the first N predictions (default: likewise)")
    run.add_argument("--name", help="what the model is called in tables")
    run.add_argument("--weights", type=Path, metavar="DIR", help="folder of feature networks' weight files")
    run.add_argument("--download", action="store_true", help="fetch weight files that are missing")
    run.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    run.add_argument("--processes", type=count, default=1, metavar="N", help="work at once (default 1)")
    run.set_defaults(do=command_run)
    two = commands.add_parser("compare", help="models on the same records: differences, intervals, win rates")
    two.add_argument("results", nargs="+", metavar="OUT", help="folders that 'run' wrote; the first is the baseline")
    two.add_argument("--out", metavar="FILE", help="also write it as JSON")
    two.set_defaults(do=command_compare)
    report = commands.add_parser("report", help="Markdown, LaTeX, and one HTML page with the pictures")
    report.add_argument("results", nargs="+", metavar="OUT", help="folders that 'run' wrote")
    report.add_argument("--out", required=True, metavar="DIR")
    report.add_argument("--pictures", type=count, default=200, metavar="N", help="records shown at most (default 200)")
    report.set_defaults(do=command_report)
    commands.add_parser("protocols", help="list the presets").set_defaults(do=command_protocols)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit code."""
    args = parser().parse_args(argv)
    try:
        return int(args.do(args))
    except (ValueError, RecordError, OSError) as e:
        print(f"python -m omfa.evaluate: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; call again to go on from here", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
