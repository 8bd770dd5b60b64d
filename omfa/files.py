"""What the commands share: wrong calls said in one line, devices that are there, files written whole."""

from __future__ import annotations

import argparse
import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import torch

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Parser(argparse.ArgumentParser):
    """Says what was wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """One line, and exit code 2."""
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def count(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1 on")
    return int(text)


def find_device(name: str) -> str:
    """A device that is there: "cpu", "cuda", "cuda:1", "mps"; for "auto" "cuda" where there is one, else "cpu".

    Raises:
        ValueError: there is none of that name.
    """
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if name == "auto":
        return "cuda" if there["cuda"] else "cpu"
    kind, _, number = name.partition(":")
    if not (number or "0").isdecimal() or int(number or 0) >= there.get(kind, 0):
        raise ValueError(f"--device {name}: there is none here; give one of {', '.join(d for d in there if there[d])}")
    return name


class Unwritable(ValueError):
    """Something that can't be written; the message says where, why and what to do."""


def unwritable(folder: Path, error: BaseException, option: str = "--out") -> Unwritable:
    """The same error for users: a full disk wants space, everything else another folder."""
    why = getattr(error, "strerror", None) or str(error)
    full = getattr(error, "errno", None) in _FULL or "No space left" in why
    cure = "free some space and call again" if full else f"give another {option}"
    return Unwritable(f"{folder} can't be written to ({why}): {cure}")


def check_writable(folder: Path, option: str = "--out") -> None:
    """Make a folder, named on the command line by ``option``, and see that a file can be written there.

    Raises:
        Unwritable: it can't.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(4096))
    except OSError as e:
        raise unwritable(folder, e, option) from None


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write a file to, which takes the place of ``path`` at the end of the ``with`` block.

    Where the block raises, ``path`` stays as it was and nothing is left beside it.

    Raises:
        Unwritable: an OSError within the block.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except OSError as e:
        raise unwritable(path.parent, e) from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """A JSON file, whole or not at all; errors as those of :func:`whole`."""
    with whole(path) as part:
        part.write_text(json.dumps(value, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
