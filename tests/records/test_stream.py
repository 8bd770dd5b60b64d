"""The stream visits every record once per epoch, on any number of ranks, and resumes anywhere."""

from __future__ import annotations

import itertools

import pytest

from omfa.records.stream import Stream


@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_record_once_per_epoch_whatever_the_ranks(world: int) -> None:
    n, batch = 10, 8 // world
    ranks = [iter(Stream(n, batch, 0, 7, r, world)) for r in range(world)]
    whole = [key for _ in range(10) for r in ranks for key in itertools.islice(r, batch)]
    assert whole == list(itertools.islice(Stream(n, 8, 0, 7), 80))
    for epoch in range(8):
        assert sorted(i for e, i in whole if e == epoch) == list(range(n))


@pytest.mark.parametrize("start", [0, 3, 8, 17])
def test_the_stream_resumes_anywhere(start: int) -> None:
    whole = list(itertools.islice(Stream(5, 4), 60))
    assert list(itertools.islice(Stream(5, 4, start), 40)) == whole[start : start + 40]
