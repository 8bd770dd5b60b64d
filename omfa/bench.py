"""What things cost on this machine: one table.

    python -m omfa.bench --records data/demo [--model compact] [--repeats 10]

Measures the loader, a training step and a guided try-off and try-on, as users run them.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from omfa.data import RecordsDataset, collate
from omfa.module import OMFAModule
from omfa.pipeline import OMFAPipeline


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


def measure(
    module: OMFAModule, data: RecordsDataset, batch: int, steps: int, repeats: int
) -> Iterator[tuple[str, float, str]]:
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
    options: dict[str, Any] = {"num_inference_steps": steps}
    seconds = median_seconds(lambda: module.pipe.try_off(person, **options), 3)
    yield f"try-off, {steps} guided steps", seconds, "s"
    seconds = median_seconds(lambda: module.pipe.try_on(None, {"upper": person}, person, **options), 3)
    yield f"try-on, {steps} guided steps", seconds, "s"
    yield "peak memory of this process", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "MiB"


def main(args: Sequence[str] | None = None) -> int:
    """Print the table; 0 all well, 2 the call was wrong."""
    parser = argparse.ArgumentParser(prog="python -m omfa.bench", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--records", required=True, help="a records folder")
    parser.add_argument("--model", default="compact", help="a model that ships, a folder or a hub id")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20, help="of the sampler (default 20)")
    parser.add_argument("--repeats", type=int, default=5, help="of each measurement (default 5)")
    call = parser.parse_args(args)
    try:
        pipe = OMFAPipeline.from_pretrained(call.model)
        records = RecordsDataset(
            call.records, pipe.canvas, pipe.vae_scale_factor, pipe.vae.config.latent_channels, split=None
        )
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    for what, value, unit in measure(OMFAModule(pipe), records, call.batch, call.steps, call.repeats):
        print(f"{what:36}{value:10.3g} {unit}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
