"""From photos, data sets or nothing at all to records: ``python -m data_prep STAGE ...``."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from contextlib import nullcontext
from pathlib import Path

from data_prep.run import ENGINES, positive
from omfa.commands import Parser
from omfa.files import clear_parts, sole

# Stage to its module (imported only when chosen, so that --help is fast) and what it does.
_ALL = {
    "synthetic": ("wardrobe.synthetic", "dressed people and their garments, rendered from nothing"),
    "vitonhd": ("data_sets.convert", "the VITON-HD data set to records"),
    "dresscode": ("data_sets.convert", "the DressCode data set to records"),
    "deepfashion-mm": ("data_sets.convert", "the DeepFashion-MultiModal data set to records"),
    "folder": ("data_sets.convert", "a folder of photos, with garments and pairs if there are any, to records"),
    "pose-maps": ("poses.pose_maps", "photos to body parameters and pose maps"),
    "render": ("poses.render", "body parameters to pose maps"),
    "faces": ("faces", "a head crop for every record"),
    "parse": ("parse", "a map of body parts and clothes for every picture"),
    "garments": ("garments", "garments cut out of dressed people"),
    "garment-poses": ("standings.garment_poses", "a body for every garment picture"),
    "portraits": ("portraits", "the same photos in other clothes, made by a model that then learns the way back"),
    "leaks": ("leaks", "near-duplicates between and inside splits"),
    "shards": ("shards", "records to WebDataset shards"),
    "check": ("check", "whether a records folder keeps its contract; writes nothing"),
}
STAGES = {s: entry for s, entry in _ALL.items() if importlib.util.find_spec(f"data_prep.{entry[0]}") is not None}


def main(argv: list[str] | None = None) -> int:
    """Run a stage.

    Returns:
        0: all well; 1: some items failed; 2: the call was wrong; 130: stopped by hand.
    """
    argv = sys.argv[1:] if argv is None else argv
    width = max(map(len, STAGES), default=0)
    choose = Parser(
        prog="python -m data_prep",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
        epilog="stages:\n"
        + "\n".join(f"  {s:{width}}  {text}" for s, (_, text) in STAGES.items())
        + "\n\nEach stage explains itself: python -m data_prep STAGE --help",
    )
    choose.add_argument("stage", choices=STAGES, metavar="STAGE")
    stage = choose.parse_args(argv[:1]).stage

    module = importlib.import_module(f"data_prep.{STAGES[stage][0]}")
    parser = Parser(prog=f"python -m data_prep {stage}", description=STAGES[stage][1], allow_abbrev=False)
    parser.set_defaults(stage=stage)
    module.add_arguments(parser)
    if stage != "check":
        _add_common(parser)
    args = parser.parse_args(argv[1:])
    out = getattr(args, "out", None)
    if out is not None and out in (getattr(args, "images", None), getattr(args, "records", None)):
        parser.error("--out must be another folder than the input")
    try:
        begun = out if out is not None and out.is_dir() else None  # a wrong call makes no folder
        with nullcontext() if begun is None else sole(begun):
            if begun is not None:
                clear_parts(begun)
            outcome = module.main(args)
    except (ValueError, OSError) as e:
        print(f"{parser.prog}: {' '.join(str(e).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog}: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(f"{stage}: {outcome}" + (f"; {out}" if out is not None else ""))
    return int(outcome.exit_code)


def _add_common(parser: argparse.ArgumentParser) -> None:
    common = parser.add_argument_group("common options")
    common.add_argument("--out", metavar="DIR", type=lambda text: Path(text).resolve(), required=True, help="results")
    common.add_argument("--limit", metavar="N", type=positive, help="only the first N items")
    common.add_argument("--workers", metavar="N", type=positive, default=1, help="processes (default 1)")
    common.add_argument("--engine", choices=ENGINES, default="local", help="what runs the processes (default local)")


if __name__ == "__main__":
    sys.exit(main())
