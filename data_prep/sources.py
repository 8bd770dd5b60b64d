"""What an item of a stage is made from: the files that it names, known by their contents and not by their names."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

BESIDE = (".png", ".npz", ".json")  # what estimators and parsers leave, named by item


def told_apart(work: Callable[..., Any], item_id: str, payload: Any) -> tuple[str, Callable[[], str]]:
    """How an item's files look (sizes, times), and a function that gives a code of their contents.

    Files are whatever paths stand in the work's parameters and in the payload, there also as text relative to one of
    the parameters' folders; and those that lie in such a folder under the item's name.

    Args:
        work: of the runner.
        item_id: of the item.
        payload: of the item.
    """
    paths = sorted(set(_files(work, item_id, payload)))
    looks = hashlib.blake2b(repr([(p, _look(p)) for p in paths]).encode(), digest_size=16).hexdigest()
    return looks, partial(_contents, tuple(paths))


def _files(work: Callable[..., Any], item_id: str, payload: Any) -> Iterator[str]:
    given = [Path(v) for v in _values(work) if isinstance(v, Path)]
    folders = [p for p in given if p.is_dir()]
    yield from (str(p) for p in given if _look(str(p)))
    names = {str(v) for v in _values(payload)} | {item_id + end for end in BESIDE}
    for folder in folders:
        yield from (path for name in names if _look(path := str(folder / name)))
    yield from (str(v) for v in _values(payload) if isinstance(v, Path) and _look(str(v)))


def _values(value: Any) -> Iterator[Path | str]:
    """Every path and every text that may be one, however deep."""
    if isinstance(value, str):
        if 0 < len(value) < 1024 and "\0" not in value:
            yield value
    elif isinstance(value, Path):
        yield value
    elif isinstance(value, partial):
        yield from _values([value.func, value.args, value.keywords])
    elif is_dataclass(value) and not isinstance(value, type):
        for f in fields(value):
            yield from _values(getattr(value, f.name))
    elif isinstance(value, Mapping):
        yield from _values(list(value.values()))
    elif isinstance(value, list | tuple):
        for v in value:
            yield from _values(v)


def _look(path: str) -> tuple[int, ...] | None:
    """What changes when a file does, as long as nobody sets clocks back; None for what is no regular file."""
    try:
        s = Path(path).stat()
    except (OSError, ValueError):
        return None
    return (s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) if stat.S_ISREG(s.st_mode) else None


def _contents(paths: tuple[str, ...]) -> str:
    return hashlib.blake2b(repr([(p, _digest(p, _look(p))) for p in paths]).encode(), digest_size=16).hexdigest()


@lru_cache(maxsize=1000)
def _digest(path: str, look: tuple[int, ...] | None) -> str:
    if look is None:
        return ""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()
