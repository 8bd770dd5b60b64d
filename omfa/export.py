"""From a run to a model: the averaged weights of a checkpoint as a folder that ``from_pretrained`` reads.

    python -m omfa.export --run runs/compact --out models/mine [--dtype float16] [--ckpt_path last] [--whole]
    python -m omfa.export --model compact --runtime onnx --out models/device [--dtype int8] [--size 512x384]

Works while the run goes on. The folder is plain diffusers: each subfolder loads as its own class. A run that trained
LoRA or attention alone gives small files, for ``omfa.sdxl.load_small``; with ``--whole`` a whole pipeline. With
``--runtime onnx`` a folder that :mod:`omfa.device` runs without torch, of a run or of a model folder: OMFA's compact
model in rows, or a Mobile-VTON.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser
from pytorch_lightning import LightningModule
from safetensors import SafetensorError

from omfa.baselines.mobile_vton import graphs as pair
from omfa.baselines.mobile_vton.folder import TRYON
from omfa.baselines.mobile_vton.pipeline import MobileVTON
from omfa.commands import Parser, check_sides, size_of
from omfa.files import aside, read_text, unwritable
from omfa.graphs import rows_model
from omfa.graphs.onnx_graph import check_numbers
from omfa.pipeline import OMFAPipeline
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


def write_for_runtime(model: str, folder: Path, dtype: str, size: Sequence[int] | None) -> None:
    """Graphs of a model for :mod:`omfa.device`.

    Args:
        model: a folder of a Mobile-VTON, or whatever :meth:`OMFAPipeline.from_pretrained` takes.
        folder: where to.
        dtype: what to store weights in.
        size: (H, W): what a Mobile-VTON works at, what OMFA's composer puts together at; None: their own.

    Raises:
        ValueError: no such model, or one that has no graphs.
    """
    numbers: Any = dtype
    if Path(model, TRYON).is_dir():
        pair.write_graphs(MobileVTON.from_pretrained(model), folder, numbers, size)
    else:
        rows_model.write_graphs(OMFAPipeline.from_pretrained(model), folder, numbers, size or rows_model.LARGE)


def main(args: Sequence[str] | None = None) -> int:
    """Write the folder; 0 all well, 2 the call or its input was wrong."""
    parser = Parser(prog="python -m omfa.export", description=(__doc__ or "").split("\n")[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="run folder of omfa.fit")
    source.add_argument("--model", help="with --runtime: a model folder, or one that ships")
    parser.add_argument("--out", required=True, type=Path, help="folder to make; what holds something is refused")
    parser.add_argument("--dtype", default="float32", choices=[*DTYPES, "int8"], help="float16 halves the files")
    parser.add_argument("--whole", action="store_true", help="a whole pipeline, LoRA merged, even of a small training")
    parser.add_argument("--runtime", choices=["onnx"], help="graphs for omfa.device in place of a model folder")
    parser.add_argument("--size", type=size_of, help="with --runtime: height x width of what is made, like 512x384")
    parser.add_argument("--ckpt_path", default="last", help="a checkpoint of the run (default last)")
    call = parser.parse_args(args)
    try:
        if call.out.is_file() or (call.out.is_dir() and any(call.out.iterdir())):
            raise ValueError(f"--out {call.out} is there already: give a new folder, or remove that one")
        if call.size is not None:
            check_sides(call.size)
        if call.runtime is not None:
            check_numbers(call.dtype)
        elif call.model is not None or call.size is not None or call.dtype == "int8":
            raise ValueError("--model, --size and int8 are for graphs: add --runtime onnx")
        module, step = (None, 0) if call.run is None else load_run(call.run, call.ckpt_path)
    except (ValueError, OSError) as e:
        print(f"error: {innermost(e)}", file=sys.stderr)
        return 2
    try:
        with aside(call.out) as folder:
            if call.runtime is not None:
                with tempfile.TemporaryDirectory() as whole:
                    if module is not None:
                        module.save(Path(whole), True, torch.float32)
                    folder.mkdir(parents=True, exist_ok=True)
                    write_for_runtime(call.model or whole, folder, call.dtype, call.size)
            elif module is not None:
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
