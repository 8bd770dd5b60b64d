"""What things cost on this machine: one table.

    python -m omfa.bench --config lightning_configs/demo.yaml [--steps 20]

Loads the model and data of a training config and measures the loader, a training step and a guided sampling step.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytorch_lightning as pl
import torch
from jsonargparse import ArgumentError

from omfa.data import RecordsDataset, collate
from omfa.fit import FitCLI
from omfa.module import OMFAModule


def median_seconds(run: Callable[[], object], repeats: int) -> float:
    """Median wall-clock seconds of ``run`` over ``repeats`` calls, after one that does not count."""
    run()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def matmul_rate() -> float:
    """Measured float32 matrix multiplication rate of this machine, GFLOP/s."""
    a = torch.randn(1024, 1024)
    return 2 * 1024**3 / median_seconds(lambda: a @ a, 5) / 1e9


def measure(module: OMFAModule, data: RecordsDataset, batch: int, repeats: int) -> Iterator[tuple[str, float, str]]:
    """Rows of the table: what, how much, unit."""
    numbers = itertools.count()

    def load() -> object:
        return collate([data[divmod(next(numbers), len(data))] for _ in range(batch)])

    example = collate([data[0, i % len(data)] for i in range(batch)])
    optimizer = torch.optim.AdamW(module.parameters(), 1e-6)

    def train() -> None:
        module.losses(example).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    slot = module.pipe.canvas["person"]
    scale = module.pipe.vae_scale_factor
    person = np.zeros((slot.height * scale, slot.width * scale, 3), np.uint8)
    module.pipe.set_progress_bar_config(disable=True)
    yield "threads", torch.get_num_threads(), ""
    yield "matrix multiplication, float32", matmul_rate(), "GFLOP/s"
    yield "loader, one process", batch / median_seconds(load, repeats), "records/s"
    yield f"training step, batch {batch}", median_seconds(train, repeats), "s"
    module.eval()
    yield (
        "try-off, 10 guided steps",
        median_seconds(lambda: module.pipe.try_off(person, num_inference_steps=10), 3),
        "s",
    )
    yield "peak memory of this process", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "MiB"


def main(args: Sequence[str] | None = None) -> int:
    """Print the table; 0 all well, 2 the call was wrong."""
    parser = argparse.ArgumentParser(prog="python -m omfa.bench", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--config", required=True, help="a training config with OMFAModule and RecordsDataModule")
    parser.add_argument("--steps", type=int, default=10, help="repeats of each measurement")
    call, rest = parser.parse_known_args(args)
    try:
        cli = FitCLI(
            OMFAModule,
            pl.LightningDataModule,
            run=False,
            args=["--config", call.config, *rest],
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=None,
            parser_kwargs={"exit_on_error": False},
            seed_everything_default=0,
        )
        pipe, data = cli.model.pipe, cli.datamodule
        records = RecordsDataset(data.folder, pipe.canvas, pipe.vae_scale_factor, pipe.vae.config.latent_channels)
    except (ValueError, ArgumentError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    for what, value, unit in measure(cli.model, records, data.batch_size, call.steps):
        print(f"{what:36}{value:10.3g} {unit}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
