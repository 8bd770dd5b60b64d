"""Intervals hold what they promise, also over few persons."""

from __future__ import annotations

import numpy as np

from omfa.evaluation.intervals import FEWEST, bootstrap_mean


def misses(people: int, trials: int = 300) -> float:
    """How often the interval of a mean over ``people`` persons of three pictures each misses the true mean, 0."""
    rng, groups = np.random.RandomState(0), np.repeat(np.arange(people), 3)
    missed = 0
    for trial in range(trials):
        values = np.repeat(rng.randn(people), 3) + 0.5 * rng.randn(3 * people)
        low, high = bootstrap_mean(values, groups, draws=400, seed=trial)
        missed += not low <= 0 <= high
    return missed / trials


def test_a_95_percent_interval_misses_one_time_in_twenty() -> None:
    assert 0.02 <= misses(FEWEST) <= 0.08  # percentiles as they come miss twice as often
    assert 0.02 <= misses(40) <= 0.08


def test_too_few_persons_have_no_interval() -> None:
    values = np.arange(70, dtype=float)
    assert np.isnan(bootstrap_mean(values, np.arange(70) % (FEWEST - 1))).all()
    assert np.isfinite(bootstrap_mean(values, np.arange(70) % FEWEST)).all()
