"""Files and folders written whole or not at all, and folders that can't be written to named with the cure."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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


@contextmanager
def aside(folder: Path) -> Iterator[Path]:
    """A path to write a folder to, which takes the place of ``folder`` at the end of the ``with`` block.

    Where the block raises, ``folder`` stays as it was and nothing is left beside it. What a kill between the two swaps
    had moved away is brought back by the next call.
    """
    folder = folder.absolute()
    part, old = (folder.with_name(f".{folder.name}.{x}") for x in ("part", "replaced"))
    if old.exists() and not folder.exists():
        os.replace(old, folder)
    for left_by_a_kill in (part, old):
        shutil.rmtree(left_by_a_kill, ignore_errors=True)
    try:
        yield part
        if folder.exists():
            os.replace(folder, old)
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
