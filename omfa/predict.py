"""Predictions for a whole records folder, to be judged by ``python -m omfa.evaluate``.

    python -m omfa.predict --records DIR --task try_off --out DIR
    python -m omfa.predict --records DIR --task try_on --pairs unpaired --model compact --steps 20 --out DIR
    python -m omfa.predict --records DIR --task try_on --class-path package.module.Model --model weights/ --out DIR

Any class that fulfils a protocol of ``omfa.evaluation.predictions`` can be named; it says which inputs it needs.
Writes ``<record id>.png`` (try-on) or ``<record id>.<category>.png`` (try-off), and ``predictions.json`` saying how
they were made. Pictures that are there are not made again, so a killed call goes on. Every picture has its own seed, a
function of --seed and its name: neither batch nor processes change it. Exit code 0: all well; 1: some failed, each
named; 2: the call was wrong; 130: stopped by hand.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from omfa.commands import Parser, count, find_device
from omfa.components import CLOTHES, TaskKind
from omfa.evaluation.making import Job, run
from omfa.evaluation.pairs import Selection, donors_from_file, make_items, unpaired_donors
from omfa.evaluation.predictions import TellsOfWeights, find_class, wishes_of
from omfa.records.prepared import RecordError, read_records
from omfa.records.worn import clothes

CLASS_PATH, WEIGHTS = "omfa.judged.OMFAModel", "compact"


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
    p.add_argument("--category", nargs="+", choices=[c.value for c in CLOTHES], help="try_off: only such garments")
    p.add_argument("--model", default=None, help=f"what from_pretrained is given (default: {WEIGHTS}, of OMFA)")
    p.add_argument("--class-path", default=CLASS_PATH, metavar="PATH", help=f"the model's class (default {CLASS_PATH})")
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
    chosen = Selection(args.split, args.max_yaw, args.limit, args.category and tuple(args.category))
    records = chosen.of(every)
    task, donors = TaskKind(args.task), None
    if args.pairs != "paired":
        if task == TaskKind.TRY_OFF:
            raise ValueError("--pairs is for try_on; a try_off takes a garment off its own picture")
        if args.pairs != "unpaired" and not Path(args.pairs).is_file():
            raise ValueError(f"--pairs {args.pairs!r} must be 'paired', 'unpaired' or a file of pairs")
        if args.pairs == "unpaired":
            donors = unpaired_donors(records)
        else:
            donors, absent = donors_from_file(Path(args.pairs), Selection(args.split).of(every))
            if absent:
                print(f"{len(absent)} pairs name no record here; the first: {absent[0]}", file=sys.stderr)
    if args.pairs in ("paired", "unpaired"):
        bare = [r.id for r in records if not clothes(r) and r.id not in (donors or {})]
        if bare:
            print(f"{len(bare)} records name no garments and are left out; the first: {bare[0]}", file=sys.stderr)
    items = make_items(records, task, donors, every, args.limit, chosen.categories)
    if not items:
        raise ValueError(f"{args.records} holds no record of split {args.split!r} with such garments; check --split")
    device = find_device(args.device)
    kind = find_class(args.class_path)
    wishes_of(kind, task)
    weights = args.model or (WEIGHTS if args.class_path == CLASS_PATH else None)
    steps, guidance = args.steps, args.guidance
    if weights is not None and isinstance(kind, TellsOfWeights):
        own = kind.sampler_defaults(weights)
        steps, guidance = steps or own[0], own[1] if guidance is None else guidance
    return Job(
        Path(args.records), Path(args.out), task, items, args.class_path, weights, steps, guidance, args.seed,
        args.batch, device, args.processes, chosen, args.pairs,
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Make predictions; the exit code."""
    args = parser().parse_args(argv)
    try:
        job = prepare(args)
        failures = run(job, args.name or job.weights or args.class_path)
    except (ValueError, RecordError, OSError) as e:
        print(f"python -m omfa.predict: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; call again to go on from here", file=sys.stderr)
        return 130
    for failure in failures:
        key = failure["key"]
        print(f"failed: {key}: {failure['error'].removeprefix(f'{key}: ')}", file=sys.stderr)
    print(f"{len(job.items) - len(failures)} of {len(job.items)} pictures in {job.out}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
