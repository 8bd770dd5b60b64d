"""One evaluation from scores to a results folder: portions scored by workers, saved at once, gathered at the end.

Killed and called again, a run goes on where it was: a portion is scored anew only where what it depends on has changed.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from tqdm import tqdm

from omfa.commands import end_with_parent
from omfa.components import CLOTHES, TaskKind
from omfa.evaluation.judges import PATTERN_WEIGHTS
from omfa.evaluation.learned_metrics import NEEDS, MissingWeights, find_weights, load_network, sha256
from omfa.evaluation.pairs import ALL, Item, Selection, make_items
from omfa.evaluation.predictions import PREDICTIONS
from omfa.evaluation.protocols import METRICS, NOT_DONE, Pairing, Protocol, find_protocol
from omfa.evaluation.results import HOW, RESULTS, RUN, VALUES, VERSION, read_json, summarise
from omfa.evaluation.scoring import SCORING, Scorer, label_files, needed_networks, prediction_files
from omfa.files import whole, write_json
from omfa.records.prepared import read_records
from omfa.records.worn import clothes

SPEED = ("seconds", "peak_memory_mb", "flops", "steps", "guidance", "seed", "device")
CHUNK = 16  # predictions between two savings; small, so that a kill costs little


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
            donors = [] if item.donor is None else [g.path for g in clothes(item.donor)]
            read = [self.records / path for path in (item.truth, *label_files(item).values(), *donors)]
            for path in [*prediction_files(self.predictions, item.key), *read]:
                stat = path.stat() if path.exists() else None
                files.append((str(path), stat and (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)))
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


def make_run(
    records: Path,
    predictions: Path,
    out: Path,
    protocol: str = "records",
    name: str | None = None,
    task: str | None = None,
    pairs: str | None = None,
    chosen: Selection = ALL,
    weights: Path | None = None,
    download: bool = False,
    device: str = "cpu",
    processes: int = 1,
) -> Run:
    """A run over a folder of predictions, everything checked; what is None is as the predictions say of themselves.

    Args:
        records, predictions, out, weights, device, processes: see :class:`Run`.
        protocol: name of a preset.
        name: what the model is called in tables.
        task: "try_on" or "try_off".
        pairs: "paired" or "unpaired".
        chosen: which records to score.
        download: fetch weight files that are missing.

    Raises:
        ValueError: something about the call is wrong; says what would be right.
    """
    preset = find_protocol(protocol)
    if not predictions.is_dir():
        raise ValueError(f"{predictions} is no folder; make predictions with 'python -m omfa.predict'")
    told = _told(predictions)
    task_name = task or told.get("task") or preset.task
    if task_name not in (TaskKind.TRY_ON, TaskKind.TRY_OFF):
        raise ValueError(f"{predictions} has no {PREDICTIONS} that says the task: give --task try_on or --task try_off")
    donors = told.get("garments_from")
    pairing: Pairing = "paired" if donors is None else "unpaired"
    if pairs == "unpaired" and donors is None:
        raise ValueError(f"unpaired predictions need {PREDICTIONS} with 'garments_from' {{record id: record id}}")
    if pairs == "paired":
        pairing, donors = "paired", None
    kind = TaskKind(task_name)
    if (preset.task or kind) != kind or (preset.pairing or pairing) != pairing:
        wanted = f"{preset.pairing or 'any'} {preset.task or 'task'}"
        raise ValueError(f"protocol {preset.name!r} is for {wanted}, these predictions are {pairing} {kind}")
    given = {field: value for field, value in vars(chosen).items() if value is not None}
    chosen = Selection(**({field: told.get(field) for field in vars(chosen)} | given))
    every = read_records(records)
    items = make_items(chosen.of(every), kind, donors, every, chosen.limit, chosen.categories)
    if not items:
        raise ValueError(
            f"{records} holds nothing to score: {len(every)} records, {len(chosen.of(every))} of them of split "
            f"{chosen.split or 'any'} and yaw {chosen.max_yaw or 'any'}, none of which has garments; check --records, "
            "--split and --max-yaw"
        )
    columns = applicable(preset, kind, pairing)
    networks, absent = _networks(columns, weights, download)
    if "pattern_agreement" in columns and not PATTERN_WEIGHTS.is_file():
        absent["pattern_agreement"] = "no pattern classifier ships with this release"
    return Run(
        records, predictions, out, preset, name or str(told.get("model") or predictions.resolve().name), kind, pairing,
        items, weights, networks, absent, device, processes, {k: told[k] for k in SPEED if k in told},
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
        "categories": told.get("categories") is None or _is_categories(told["categories"]),
        "garments_from": isinstance(donors, dict | None) and all(isinstance(d, str) for d in (donors or {}).values()),
    }
    for name, fit in fits.items():
        if not fit:
            raise ValueError(f"{path}: {name!r} can't be {told[name]!r:.80}; {cure}")
    return told


def _is_categories(told: Any) -> bool:
    return isinstance(told, list) and told != [] and all(c in CLOTHES for c in told)


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


def _start(run: Run) -> None:
    global _scorer
    # One thread each: sums are then taken in the same order, and the last digit does not depend on --processes.
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    end_with_parent()  # a killed run leaves no workers behind
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
    return {"record_id": item.donor.id, "garments": [[str(g.category), g.path] for g in clothes(item.donor)]}


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
