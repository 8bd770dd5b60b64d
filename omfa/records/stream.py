"""How records become a stream: what is read, in which order, and all chance seeded by (seed, epoch, record).

All chance in an example comes from one generator seeded by (seed, epoch, record id): never from rank, worker or batch.
The sampler walks one endless stream of (epoch, record) pairs, so that a position in it is all a resumed run needs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler

from omfa import images
from omfa.records.prepared import Record, garment_roles, record_files
from omfa.records.shards import Source


def seeded(*key: object) -> torch.Generator:
    """A generator whose stream is a function of ``key`` alone, the same on every machine."""
    digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def draw_noise(states: Sequence[bytes], shape: Sequence[int]) -> Tensor:
    """Standard normal noise (B, *shape) float32 on the CPU, each row from its own generator.

    An example's noise at 768x1024 is 1 MB and its generator 5 kB: so a loader hands over the generator.

    Args:
        states: of the generators, ``Example.generator``.
        shape: of a row.
    """
    generators = [torch.Generator().set_state(torch.frombuffer(bytearray(s), dtype=torch.uint8)) for s in states]
    return torch.stack([torch.randn(*shape, generator=g) for g in generators])


class Stream(Sampler[tuple[int, int]]):
    """An endless stream of (epoch, position); every record once per epoch, whatever the number of ranks.

    Sample k of the stream belongs to epoch k // n, shuffled by (seed, epoch). Of every global batch, rank r takes its
    share of ``batch`` samples in order.

    Args:
        n: number of records.
        batch: samples per rank and batch.
        start: samples of the whole stream already consumed, by all ranks together.
        seed: seeds the order.
        rank, world: this process among all.
    """

    def __init__(self, n: int, batch: int, start: int = 0, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        self.n, self.batch, self.start, self.seed, self.rank, self.world = n, batch, start, seed, rank, world

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, order = -1, torch.empty(0)
        base = self.start + self.rank * self.batch
        while True:
            for k in range(base, base + self.batch):
                if k // self.n != epoch:
                    epoch = k // self.n
                    order = torch.randperm(self.n, generator=seeded(self.seed, "order", epoch))
                yield epoch, int(order[k % self.n])
            base += self.batch * self.world


def read_fitted(source: Source, record: Record, name: str, size: Sequence[int]) -> Tensor:
    """A picture of :func:`omfa.records.prepared.record_files` fitted to ``size``: (3, *size). Garments padded white."""
    path = record_files(record)[name]
    fill: images.Fill = "white" if name in garment_roles(record) else "edge"
    return images.fit_pixels(images.decode_pixels(source.read(path), source.where(path)), size, fill)[0]
