"""Files and folders written whole or not at all, and folders that can't be written to named with the cure."""

from __future__ import annotations

import codecs
import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

MAX_BYTES = 200_000_000  # of a file that is read at once
_LOCK = ".lock"
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
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


def read_bytes(path: str | os.PathLike[str], limit: int = MAX_BYTES) -> bytes:
    """A regular file's bytes; a pipe or a device, at which a reader could wait for ever, is refused.

    Raises:
        OSError: it can't be read.
        ValueError: no regular file, or more than ``limit`` bytes.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(handle, "rb") as file:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise ValueError("is no regular file; give one that is")
        if about.st_size > limit:
            raise ValueError(f"over {limit // 10**6} MB; give a smaller file")
        return file.read()


def file_digest(path: Path) -> str:
    """64 hex digits that change with any byte of a file; errors as of opening it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_text(path: str | os.PathLike[str], limit: int = MAX_BYTES) -> str:
    """A regular file's text: UTF-8, with or without a byte order mark, or UTF-16 with one.

    Raises:
        OSError: it can't be read.
        ValueError: it is no such text; names file, line and cure.
    """
    try:
        data = read_bytes(path, limit)
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from None
    try:
        return data.decode("utf-16" if data.startswith(_UTF16) else "utf-8-sig")
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        raise ValueError(
            f"{path}, line {line}: no UTF-8 text ({e.reason}, byte 0x{data[e.start]:02x}); save it as UTF-8 (in Excel: "
            "CSV UTF-8)"
        ) from None


def text_lines(path: Path, limit: int) -> Iterator[tuple[int, str]]:
    """Number and text of each line that has any, of a file of any length; a byte order mark is passed over.

    Raises:
        OSError: it can't be read.
        ValueError: a line of more than ``limit`` bytes, or one that is no UTF-8 text; names file and line.
    """
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(limit + 1), b""), 1):
            if len(line) > limit:
                raise ValueError(f"{path}:{number}: over {limit} bytes; put a line end where one belongs")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as e:
                raise ValueError(f"{path}:{number}: no UTF-8 text ({e}); write the file anew as UTF-8") from None
            if text.strip():
                yield number, text


def clear_parts(folder: Path) -> None:
    """Remove what a killed call was writing anywhere in a folder, which nobody else may be writing to."""
    for part in folder.rglob("*.part"):
        if part.is_file():
            part.unlink()


@contextmanager
def sole(folder: Path, option: str = "--out") -> Iterator[None]:
    """Nobody else may hold the same folder for the length of a ``with`` block; it is made if need be.

    A kill at any moment leaves nothing that keeps the next one out.

    Raises:
        ValueError: another process holds it.
        Unwritable: it can't be written to.
    """
    check_writable(folder, option)
    with _held(folder / _LOCK, folder, option):
        yield


@contextmanager
def _held(path: Path, folder: Path, option: str = "--out") -> Iterator[None]:
    """A file that one process alone can hold, for a folder; not its children, and not beyond its own end."""
    try:
        import fcntl
    except ImportError:  # a system without such locks
        yield
        return
    while True:
        with path.open("w") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"another call is at work in {folder}: wait for it, or give another {option}"
                ) from None
            except OSError:  # a file system without locks
                pass
            try:
                same = os.path.samestat(os.fstat(file.fileno()), path.stat())
            except FileNotFoundError:  # its last holder has just removed it
                continue
            if not same:
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


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

    Where the block raises, ``folder`` stays as it was and nothing is left beside it.

    Raises:
        ValueError: another process is writing the same folder.
    """
    folder = folder.absolute()
    part, old, lock = (folder.with_name(f".{folder.name}.{x}") for x in ("part", "replaced", "lock"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _held(lock, folder):
        if old.exists() and not folder.exists():  # a kill between the two steps below
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
