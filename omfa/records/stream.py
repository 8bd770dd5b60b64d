"""How records become a stream: what is read, and all chance seeded by (seed, epoch, record)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from omfa import images
from omfa.components import Category
from omfa.records.prepared import Record, record_files
from omfa.records.shards import Source


def seeded(*key: object) -> torch.Generator:
    """A generator whose stream is a function of ``key`` alone, the same on every machine."""
    digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def read_fitted(source: Source, record: Record, name: str, size: Sequence[int]) -> Tensor:
    """A picture of :func:`omfa.records.prepared.record_files` fitted to ``size``: (3, *size). Garments padded white."""
    path = record_files(record)[name]
    fill: images.Fill = "white" if name in set(Category) else "edge"
    return images.fit(images.decode_trusted(source.read(path), source.where(path)), size, fill)[0]
