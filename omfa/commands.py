"""What the commands share: wrong calls said in one line, numbers checked, devices that are there."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, NoReturn


def stop_quietly() -> None:
    """Ctrl-C ends a command of ours with a line: at once in the seconds of imports, later where nothing catches it.

    Does nothing where the packages are used from anything but ``python -m``. A shell sees 130.
    """
    words = sys.orig_argv
    name = words[words.index("-m") + 1] if "-m" in words[:-1] else ""
    if name.partition(".")[0] not in ("omfa", "data_prep"):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print(f"python -m {name}: stopped by hand", file=sys.stderr)
        else:
            sys.__excepthook__(kind, error, trace)

    def stop(number: int, frame: FrameType | None) -> None:  # no exception: some imports swallow it and go on
        hook(KeyboardInterrupt, KeyboardInterrupt(), None)
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    sys.excepthook = hook
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop)


def begin_command() -> None:
    """All is imported: Ctrl-C is an exception again; what the console has no letters for ends nothing.

    Such letters, like parts of a file's name, are written as escapes.
    """
    if getattr(signal.getsignal(signal.SIGINT), "__module__", None) == __name__:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


class Parser(argparse.ArgumentParser):
    """Says what was wrong in one line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        begin_command()  # here, where every command begins
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """One line, and exit code 2."""
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def count(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1 on")
    return int(text)


def size_of(text: str) -> tuple[int, int]:
    """``HxW`` -> (height, width)."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} must be like 256x192, height first")
    return int(height), int(width)


def check_sides(size: tuple[int, int], step: int = 32) -> None:
    """ValueError for a ``--size`` (height, width) that is not in steps of so many pixels."""
    if any(n < step or n % step for n in size):
        raise ValueError(f"--size {size[0]}x{size[1]} must be height x width, multiples of {step}, like 512x384")


def end_with_parent() -> None:
    """In a process that another one has started: end when that one does, even when it is killed."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


DEVICES = ("auto", "cpu", "cuda", "mps")


def worker_device(name: str, worker: int) -> str:
    """The device of one of several processes: of several CUDA devices each takes the next."""
    import torch

    return f"cuda:{worker % torch.cuda.device_count()}" if name == "cuda" else name


def find_device(name: str) -> str:
    """A device that is there: "cpu", "cuda", "cuda:1", "mps"; for "auto" the first of cuda, mps, cpu.

    Raises:
        ValueError: there is none of that name.
    """
    import torch  # here, so that commands that need none of it start at once

    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if name == "auto":
        return next(d for d in ("cuda", "mps", "cpu") if there[d])
    kind, _, number = name.partition(":")
    if not (number or "0").isdecimal() or int(number or 0) >= there.get(kind, 0):
        raise ValueError(f"--device {name}: there is none here; give one of {', '.join(d for d in there if there[d])}")
    return name
