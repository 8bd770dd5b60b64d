"""Where the rows of a batch are made: in this process, in several, or on the machines of a Ray cluster."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging

from omfa.batches.rows import Batch, Row, order_of
from omfa.commands import end_with_parent, worker_device
from omfa.files import whole
from omfa.orders import lazy_estimator
from omfa.pipeline import OMFAPipeline

ENGINES = ("local", "ray")
AHEAD = 2  # rows handed out per process: enough to keep it busy

Load = Callable[[int], OMFAPipeline]
"""The pipeline of a process, by the process's number; can be pickled."""


@dataclass(frozen=True)
class Loader:
    """A ``Load``.

    Args:
        model: what the pipeline is loaded from.
        dtype: of its weights.
        device: "cpu", "cuda" (each process takes the next) or "mps".
        estimator: makes the pose estimator, for the rows that need one.
    """

    model: str
    dtype: torch.dtype
    device: str
    estimator: Callable[[], Any]

    def __call__(self, worker: int) -> OMFAPipeline:
        """Load it; errors as of ``from_pretrained``."""
        diffusers_logging.disable_progress_bar()
        warnings.simplefilter("ignore")  # what a row lacks is in its reason
        pipe = OMFAPipeline.from_pretrained(self.model, dtype=self.dtype).to(worker_device(self.device, worker))
        pipe.set_progress_bar_config(disable=True)
        pipe.pose_estimator = lazy_estimator(self.estimator)
        return pipe


@dataclass(frozen=True)
class Made:
    """What became of a row: its files, or the reason why there are none."""

    row: Row
    files: tuple[str, ...] = ()
    reason: str | None = None


def make_rows(batch: Batch, load: Load, rows: Iterator[Row]) -> Iterator[Made]:
    """What becomes of the rows, in any order; errors as of :meth:`Maker.make`."""
    engine = _over_ray if batch.engine == "ray" else _in_pool if batch.processes > 1 else _here
    return engine(batch, load, rows)


class Maker:
    """Makes rows with one pipeline, loaded at the first of them."""

    def __init__(self, batch: Batch, load: Load, worker: int = 0) -> None:
        self.batch, self.load, self.worker = batch, load, worker
        self.pipe: OMFAPipeline | None = None

    def make(self, row: Row) -> Made:
        """A row's pictures, written; whatever is wrong with it is in what comes back.

        Raises:
            ValueError: the pipeline can't be loaded.
            Unwritable: the output can't be written to.
        """
        if row.problem is not None:
            return Made(row, reason=row.problem)
        if self.pipe is None:
            self.pipe = self.load(self.worker)
        batch, said = self.batch, row.said
        options = {
            "num_inference_steps": said.get("steps", batch.steps),
            "guidance_scale": said.get("guidance", batch.guidance),
            "generator": torch.Generator().manual_seed(said.get("seed", batch.seed)),
        }
        try:
            made = order_of(row, batch.jobs.parent).make(self.pipe, **options)
        except (ValueError, OSError) as e:
            return Made(row, reason=" ".join(str(e).split()))
        except Exception as e:  # out of memory, or a bug: told with its kind, and the other rows go on
            return Made(row, reason=" ".join(f"{type(e).__name__}: {e}".split())[:300])
        for stem, picture in made.items():
            with whole(batch.out / f"{stem}.png") as part:
                picture.save(part, "PNG")
        return Made(row, tuple(f"{stem}.png" for stem in made))


def _here(batch: Batch, load: Load, rows: Iterator[Row]) -> Iterator[Made]:
    return map(Maker(batch, load).make, rows)


def _in_pool(batch: Batch, load: Load, rows: Iterator[Row]) -> Iterator[Made]:
    pool, running = _pool(batch, load, batch.processes), dict[Future[Made], Row]()
    try:
        while True:
            try:
                for row in islice(rows, AHEAD * batch.processes - len(running)):
                    try:
                        running[pool.submit(_make, row)] = row
                    except BrokenProcessPool:
                        running[Future()] = row
                        raise
                if not running:
                    return
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                made = [future.result() for future in finished]
            except BrokenProcessPool:  # one of the rows took its process down: find out which
                pool.shutdown()
                made = [_alone(batch, load, row) for row in running.values()]
                pool, finished = _pool(batch, load, batch.processes), set(running)
            for future in finished:
                del running[future]
            yield from made
    finally:
        pool.shutdown(cancel_futures=True)


def _alone(batch: Batch, load: Load, row: Row) -> Made:
    with _pool(batch, load, 1) as pool:
        try:
            return pool.submit(_make, row).result()
        except BrokenProcessPool:
            return Made(row, reason="its process died: out of memory, or a crash in a library")


def _pool(batch: Batch, load: Load, processes: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, context, _begin_worker, (batch, load, context.Value("i", 0)))


_maker: Maker | None = None  # of a pool's process


def _begin_worker(batch: Batch, load: Load, workers: Any) -> None:
    """Take a number, leave Ctrl-C to the parent, and end with it, even when it is killed."""
    global _maker
    with workers.get_lock():
        worker, workers.value = workers.value, workers.value + 1
    _maker = Maker(batch, load, worker)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // batch.processes))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def _make(row: Row) -> Made:
    assert _maker is not None
    return _maker.make(row)


def _over_ray(batch: Batch, load: Load, rows: Iterator[Row]) -> Iterator[Made]:
    """An actor a process, on whatever machines Ray has; a CUDA device each where there are some."""
    try:
        import ray
    except ImportError:
        raise ValueError("--engine ray needs Ray: pip install 'ray[data]', or use --engine local") from None
    if not ray.is_initialized():  # a running cluster is found by RAY_ADDRESS; else one is started here
        here = {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}}
        runtime = None if "RAY_ADDRESS" in os.environ else here
        ray.init(log_to_driver=False, logging_level=logging.ERROR, runtime_env=runtime)
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    actor = ray.remote(num_cpus=1, num_gpus=gpus)(Maker)
    idle = [actor.remote(batch, load) for _ in range(batch.processes)]  # a worker sees its own device alone
    running: dict[Any, tuple[Any, Row]] = {}
    try:
        while True:
            for row in islice(rows, len(idle)):
                worker = idle.pop()
                running[worker.make.remote(row)] = (worker, row)
            if not running:
                return
            (ready,), _ = ray.wait(list(running))
            worker, row = running.pop(ready)
            try:
                made = ray.get(ready)
            except ray.exceptions.RayTaskError as e:
                raise e.cause if isinstance(e.cause, ValueError) else e from None
            except ray.exceptions.RayError:
                made, worker = Made(row, reason="its process died: out of memory, or a crash in a library"), None
            idle.append(worker or actor.remote(batch, load))
            yield made
    finally:
        ray.shutdown()
