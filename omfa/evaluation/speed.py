"""What a system costs: operations, memory and seconds of a picture."""

from __future__ import annotations

import resource
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def count_flops(call: Callable[[int], object], steps: int | None) -> float | None:
    """Floating point operations of a call: counted at 1 and 2 steps, and continued to all of them.

    Args:
        call: makes a picture in so many steps.
        steps: how many it takes; None: not known.

    Returns:
        None where it can't be counted: a system that can't be still predicts.
    """
    if steps is None:
        return None
    counts = []
    try:
        for few in (1, 2):
            with FlopCounterMode(display=False) as counter:
                call(few)
            counts.append(counter.get_total_flops())
    except Exception:  # whatever a foreign system raises; it will be named where its pictures are made
        return None
    return float(counts[0] + (steps - 1) * (counts[1] - counts[0]))


def peak_memory_mb(device: str) -> float:
    """Most memory used so far: of the device, or resident in this process."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def summarise_timings(timings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Median and mean seconds a picture, and most memory; empty where nothing was timed."""
    if not timings:
        return {}
    seconds = [t["seconds"] for t in timings]
    spent = {"median": statistics.median(seconds), "mean": statistics.fmean(seconds), "n": len(seconds)}
    return {"seconds": spent, "peak_memory_mb": max(t["peak_memory_mb"] for t in timings)}
