"""The evaluation door.

    python -m omfa.evaluate run --records DIR --predictions DIR --out DIR [--protocol NAME] [--weights DIR]
    python -m omfa.evaluate compare OUT_A OUT_B ... [--out FILE.json]
    python -m omfa.evaluate report OUT_A [OUT_B ...] --out DIR
    python -m omfa.evaluate protocols

A predictions folder holds ``<record id>.png`` (try-on) or ``<record id>.<category>.png`` (try-off), and the
``predictions.json`` that ``python -m omfa.predict`` writes; without that file, say --task. Killed and called again, a
run goes on where it was. Exit code 0: all well; 1: some predictions could not be scored, each named; 2: the call was
wrong; 130: stopped by hand.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from omfa.commands import Parser, count, find_device
from omfa.evaluation.pairs import Selection
from omfa.evaluation.protocols import METRICS, NOT_DONE, PROTOCOLS
from omfa.evaluation.results import RESULTS, Results, compare, formatted
from omfa.evaluation.runs import Run, gather, make_run, score_all
from omfa.files import clear_parts, sole, write_json
from omfa.records.prepared import RecordError


def prepare(args: argparse.Namespace) -> Run:
    """The run that the command line asks for, everything checked; errors as those of :func:`make_run`."""
    return make_run(
        Path(args.records), Path(args.predictions), Path(args.out), args.protocol, args.name, args.task, args.pairs,
        Selection(args.split, args.max_yaw, args.limit), args.weights, args.download, find_device(args.device),
        args.processes,
    )  # fmt: skip


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
    with sole(run.out):
        clear_parts(run.out)
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

    with sole(Path(args.out)):
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
        return 130


if __name__ == "__main__":
    sys.exit(main())
