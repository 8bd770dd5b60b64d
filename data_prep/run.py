"""The one runner under every stage: resumable, parallel, in bounded memory, with the same bytes however it is run.

A stage is a list of items and a function that does one of them. The runner keeps a journal (``.journal.sqlite`` in the
output folder), so a killed run goes on where it stopped; it writes ``metadata.jsonl`` in the order of the items and
``failures.jsonl`` with a reason for each item that could not be done.

    def work(item_id: str, payload: Path, out: Path, *, size: int) -> list[dict[str, Any]]:
        write_image(out / "person" / f"{item_id}.png", shrink(payload, size))
        return [{"id": item_id, "file_name": f"person/{item_id}.png"}]

    run_stage("shrink", ((p.stem, p) for p in photos), partial(work, size=256), out, workers=8)
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from types import FunctionType
from typing import Any
from uuid import uuid4

import numpy as np
from PIL import Image
from tqdm import tqdm

from data_prep.journal import FAILURES, Journal, Line, StageItem, StageResult, no_tracebacks, told
from data_prep.sources import told_apart
from omfa.commands import end_with_parent
from omfa.records.prepared import METADATA

ENGINES = ("local", "ray")


AHEAD = 4  # items handed out per worker: enough to keep it busy, few enough to bound the memory


Work = Callable[[str, Any, Path], list[Line]]


# ---------------------------------------------------------------------------------------------------- for the stages


@dataclass(frozen=True)
class Outcome:
    """What a run came to, in items.

    ``skipped``: done by an earlier run of the same call. ``notes``: what else to say.
    """

    done: int
    failed: int
    skipped: int
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def exit_code(self) -> int:
        """0: all well; 1: some items failed."""
        return int(self.failed > 0)

    def __str__(self) -> str:
        said = [f"{self.done} done"]
        said += [f"{self.skipped} done before"] if self.skipped else []
        said += [f"{self.failed} failed (reasons in {FAILURES})"] if self.failed else []
        return ", ".join([*said, *self.notes])


class Nothing(ValueError):
    """No items: whoever reads the output would go on with an empty folder."""


def run_stage(
    name: str,
    items: Iterable[tuple[str, Any]],
    work: Work,
    out: str | Path,
    *,
    workers: int = 1,
    engine: str = "local",
    may_be_nothing: bool = False,
) -> Outcome:
    """Do every item once, in this call and all its repetitions together.

    Args:
        name: of the stage; goes into the journal.
        items: ``(item_id, payload)`` pairs in the order of the output, read lazily; ids are unique. The payload is
            small, can be pickled, and its ``repr`` tells it from another (strings, numbers, paths, records).
        work: ``work(item_id, payload, out)`` writes its files under ``out`` with :func:`write_bytes` or
            :func:`write_image` and returns its lines of ``metadata.jsonl``. A module-level function, a
            ``functools.partial`` of one, or a frozen dataclass with ``__call__``: its parameters are the call's.
            Whatever it draws at random comes from the item, never from the order of work.
        out: folder of the results; made if need be.
        workers: processes; 1 works in this one. Each runs torch and OpenCV on one thread.
        may_be_nothing: no items at all are no error.
        engine: ``local``, or ``ray`` for Ray Data on this machine or a cluster that sees ``out`` at the same path.

    Returns:
        Counts of items. A ValueError or OSError of an item becomes a line ``{"id", "reason"}`` of ``failures.jsonl``;
        so does any other exception, with its type and place. Failed items are tried again by the next run, and so are
        those whose files have other contents than when they were made.

    Raises:
        Nothing: there are no items.
        Unwritable: ``out`` can't be written to.
        ValueError: ``out`` belongs to another call or a run still at work, an id twice, or a wrong argument.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine {engine!r} must be one of {', '.join(ENGINES)}")
    if workers < 1:
        raise ValueError(f"workers {workers} must be at least 1")
    if engine == "ray":
        perform: Callable[..., Iterator[StageResult]] = partial(_perform_ray, workers=workers)
    else:
        perform = partial(_perform_pool, workers=workers) if workers > 1 else _perform_here
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    total = len(items) if isinstance(items, Sized) else None
    done = failed = 0
    made_from = partial(told_apart, work)
    with no_tracebacks(out), closing(Journal(out, f"{name}: {describe(work)}", made_from)) as journal, one_thread():
        # disable=None: no bar where nobody watches
        with tqdm(total=total, desc=name, unit="", disable=None, dynamic_ncols=True) as bar:
            for result in perform(partial(_attempt, work, out), journal.todo(items, bar)):
                journal.add(result)
                done, failed = done + (result.reason is None), failed + (result.reason is not None)
                bar.set_postfix_str(f"{failed} failed" if failed else "", refresh=False)
                bar.update()
        if not (done or failed or journal.skipped or may_be_nothing):
            raise Nothing(f"{name} found nothing to work on")
        lines = journal.finish()
        notes: tuple[str, ...] = (
            (f"{lines} records",) if lines != done + journal.skipped else ()
        )  # an item can be several
        notes += (f"{journal.again} of them again, for their files have changed",) if journal.again else ()
        return Outcome(done, failed, journal.skipped, notes)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file at once: to the side first, then swapped in; its folder is made if need be."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{uuid4().hex}.part")  # two workers may write the same file
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Write a picture at once, encoded by its suffix: ``.png`` without loss, ``.jpg`` at quality 95.

    Args:
        path: the file.
        image: ``(H, W)`` grey, ``(H, W, 3)`` RGB or ``(H, W, 4)`` RGBA, uint8.
    """
    if image.dtype != np.uint8:
        raise ValueError(f"a picture of {image.dtype} can't be written: convert it to uint8 in [0, 255]")
    options: dict[str, dict[str, Any]] = {
        ".png": {"format": "PNG", "compress_level": 4},
        ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    }
    if (suffix := Path(path).suffix) not in options:
        raise ValueError(f"{path}: pictures are written as {' or '.join(options)}, not {suffix!r}")
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, **options[suffix])
    write_bytes(path, encoded.getvalue())


def add_source(parser: argparse.ArgumentParser, *kinds: str, images: str = "folder of pictures") -> None:
    """Give a stage's parser the inputs it takes: ``images`` and/or ``records``, exactly one of them required."""
    help_of = {"images": images, "records": f"folder of records (with {METADATA})"}
    group = parser.add_mutually_exclusive_group(required=True)
    for kind in kinds:
        group.add_argument(f"--{kind}", metavar="DIR", type=existing_folder, help=help_of[kind])


def existing_folder(text: str) -> Path:
    """Argument type: a folder that is there, as an absolute path (so that a call is the same from anywhere)."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is no folder: give one that exists")
    return Path(text).resolve()


def positive(text: str) -> int:
    """Argument type: a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1")
    return int(text)


def _attempt(work: Work, out: Path, task: StageItem) -> StageResult:
    try:
        looks, contents = told_apart(work, task.item_id, task.payload)
        source = f"{looks} {contents()}"  # of before: what changes meanwhile is seen by the next run
        lines = work(task.item_id, task.payload, out)
        text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
        return StageResult(task, lines=text, source=source)
    except (ValueError, OSError) as e:
        return StageResult(task, reason=" ".join(str(e).split()) or type(e).__name__)
    except Exception as e:  # a bug: told with type and place, and the other items go on
        place = traceback.extract_tb(e.__traceback__)[-1]
        return StageResult(task, reason=f"{type(e).__name__} at {Path(place.filename).name}:{place.lineno}: {e}")


def describe(work: Work) -> str:
    """The call in words: the function's name and its parameters, the same in every process.

    Raises:
        ValueError: a parameter shows only its address, so two calls could not be told apart.
    """
    if isinstance(work, partial):
        arguments = [repr(a) for a in work.args] + [f"{k}={v!r}" for k, v in sorted(work.keywords.items())]
        text = f"{describe(work.func)}({', '.join(arguments)})"
    elif isinstance(work, FunctionType):
        text = f"{work.__module__}.{work.__qualname__}"
    else:
        text = repr(work)
    return told(text)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch, OpenCV and BLAS, here and in child processes: bytes must not depend on the machine."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")
    environment = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    cv2, torch = sys.modules.get("cv2"), sys.modules.get("torch")
    threads = (cv2.getNumThreads() if cv2 else 0, torch.get_num_threads() if torch else 0)
    if cv2:
        cv2.setNumThreads(1)
    if torch:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        for name, value in environment.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        if cv2:
            cv2.setNumThreads(threads[0])
        if torch:
            torch.set_num_threads(threads[1])


# ------------------------------------------------------------------------------ engines: attempt every task, any order


def _perform_here(attempt: Callable[[StageItem], StageResult], tasks: Iterator[StageItem]) -> Iterator[StageResult]:
    return map(attempt, tasks)


def _perform_pool(
    attempt: Callable[[StageItem], StageResult], tasks: Iterator[StageItem], workers: int
) -> Iterator[StageResult]:
    pool, running = _executor(workers), dict[Future[StageResult], StageItem]()
    try:
        while True:
            try:
                for task in islice(tasks, AHEAD * workers - len(running)):
                    running[_submit(pool, attempt, task, running)] = task
                if not running:
                    return
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                results = [future.result() for future in finished]
            except BrokenProcessPool:  # one of the running tasks took its process down: find out which
                pool.shutdown()
                results = [_attempt_alone(attempt, task) for task in running.values()]
                pool, finished = _executor(workers), set(running)
            for future in finished:
                del running[future]
            yield from results
    finally:
        pool.shutdown(cancel_futures=True)


def _submit(
    pool: ProcessPoolExecutor,
    attempt: Callable[[StageItem], StageResult],
    task: StageItem,
    running: dict[Future[StageResult], StageItem],
) -> Future[StageResult]:
    """Hand a task to the pool; if a process of it has just died, the task stays among those to be tried again."""
    try:
        return pool.submit(attempt, task)
    except BrokenProcessPool:
        running[Future()] = task
        raise


def _attempt_alone(attempt: Callable[[StageItem], StageResult], task: StageItem) -> StageResult:
    with _executor(1) as pool:
        try:
            return pool.submit(attempt, task).result()
        except BrokenProcessPool:
            return StageResult(task, reason="its process died: out of memory, or a crash in a library")


def _executor(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin_worker)


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it, even when it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def _perform_ray(
    attempt: Callable[[StageItem], StageResult], tasks: Iterator[StageItem], workers: int
) -> Iterator[StageResult]:
    try:
        import ray
        import ray.data
    except ImportError:
        raise ValueError("engine 'ray' needs Ray Data: pip install 'ray[data]', or use --engine local") from None
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if not ray.is_initialized():  # a running cluster is found by RAY_ADDRESS; else one is started here
        here = {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}}
        ray.init(log_to_driver=False, logging_level="error", runtime_env=None if "RAY_ADDRESS" in os.environ else here)
    ray.data.DataContext.get_current().enable_progress_bars = False

    pool = ray.data.TaskPoolStrategy(size=workers)
    while batch := list(islice(tasks, 256 * workers)):
        shared = ray.put(batch)

        def perform(rows: dict[str, np.ndarray], shared: Any = shared) -> dict[str, list[Any]]:
            with one_thread():
                given = ray.get(shared)
                results = [attempt(given[k]) for k in rows["k"]]
            done = [r.reason is None for r in results]
            said = [r.lines or r.reason or "" for r in results]
            return {"k": list(rows["k"]), "done": done, "text": said, "source": [r.source or "" for r in results]}

        blocks = min(len(batch), AHEAD * workers)
        numbers = ray.data.from_items([{"k": k} for k in range(len(batch))], override_num_blocks=blocks)
        for row in numbers.map_batches(perform, batch_size=None, compute=pool).iter_rows():
            task = batch[int(row["k"])]
            made = {"lines": row["text"], "source": row["source"]} if row["done"] else {"reason": row["text"]}
            yield StageResult(task, **made)
