"""From a run to a model: the averaged weights of a checkpoint as a folder that ``from_pretrained`` reads.

    python -m omfa.export --run runs/compact --out models/mine [--dtype float16] [--ckpt_path last] [--whole]

Works while the run goes on. The folder is plain diffusers: each subfolder loads as its own class. A run that trained
LoRA or attention alone gives small files, for ``omfa.sdxl.load_small``; with ``--whole`` a whole pipeline.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser
from pytorch_lightning import LightningModule
from safetensors import SafetensorError

from omfa.commands import Parser
from omfa.files import aside, read_text, unwritable
from omfa.training.checkpoints import checkpoint_to_resume, load_weights
from omfa.training.configs import innermost, load_yaml
from omfa.training.model_card import write_card
from omfa.training.parts import Describes, Saves

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_run(root: Path, wanted: str = "last") -> tuple[Saves, int]:
    """The module of a run with the weights of a checkpoint (averaged where the run keeps an average), and its step.

    Args:
        root: the run folder.
        wanted: a checkpoint, or "last".

    Raises:
        ValueError: no run, no whole checkpoint there, or one that does not fit the run's config.
    """
    config = root / "config.yaml"
    if not config.is_file():
        raise ValueError(f"{root} holds no config.yaml: give the run folder that omfa.fit wrote")
    path = checkpoint_to_resume(root, wanted)
    if path is None:
        raise ValueError(f"{root / 'checkpoints'} holds no whole checkpoint yet")
    module = build_module(config)
    if not isinstance(module, Saves):
        raise ValueError(
            f"{config}: {type(module).__name__} has no save(folder, whole, dtype), so it can't be exported"
        )
    return module, load_weights(module, path)


def build_module(config: Path) -> Any:
    """The module of a run's ``config.yaml``, with the weights it began with.

    Raises:
        ValueError: a config that names none, or one that can't be built.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "model", required=True)
    try:
        told = load_yaml(read_text(config))
        if not isinstance(told, dict) or not isinstance(told.get("model"), dict):
            raise ValueError("it has no 'model' with a class_path")
        settings = parser.parse_object({"model": told["model"]})
    except (ValueError, yaml.YAMLError, argparse.ArgumentError) as e:
        said = shorten(innermost(e), 300)
        raise ValueError(f"{config} names no model ({said}): give the run folder as omfa.fit wrote it") from None
    seed = told.get("seed_everything")
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed if isinstance(seed, int) else 0)  # what is made from nothing is made as the run did
            return parser.instantiate(settings).model
    except ValueError as e:
        raise ValueError(f"{config}: its model can't be built: {innermost(e)}") from None


def main(args: Sequence[str] | None = None) -> int:
    """Write the folder; 0 all well, 2 the call or its input was wrong."""
    parser = Parser(prog="python -m omfa.export", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--run", required=True, type=Path, help="run folder of omfa.fit")
    parser.add_argument("--out", required=True, type=Path, help="folder to make; what holds something is refused")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="float16 halves the files")
    parser.add_argument("--whole", action="store_true", help="a whole pipeline, LoRA merged, even of a small training")
    parser.add_argument("--ckpt_path", default="last", help="a checkpoint of the run (default last)")
    call = parser.parse_args(args)
    try:
        if call.out.is_file() or (call.out.is_dir() and any(call.out.iterdir())):
            raise ValueError(f"--out {call.out} is there already: give a new folder, or remove that one")
        module, step = load_run(call.run, call.ckpt_path)
    except (ValueError, OSError) as e:
        print(f"error: {innermost(e)}", file=sys.stderr)
        return 2
    try:
        with aside(call.out) as folder:
            module.save(folder, call.whole, DTYPES[call.dtype])
            if isinstance(module, Describes):
                write_card(call.run, folder, step, module.about(folder))
    except (ValueError, OSError, SafetensorError) as e:
        print(f"error: {e if isinstance(e, ValueError) else unwritable(call.out, e)}", file=sys.stderr)
        return 2
    size = sum(p.stat().st_size for p in call.out.rglob("*") if p.is_file())
    print(f"{call.out}: {size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
