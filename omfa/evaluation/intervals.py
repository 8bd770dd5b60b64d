"""How sure a number is: an interval that is valid for each kind of metric, the same for the same input.

Means over pictures: bootstrap over groups (pictures of one person depend on each other). KID: jackknife. FID: its
spread over half samples, for a bootstrap of FID or KID with replacement is badly biased (a sample drawn twice looks
like a perfect match of itself).

Legend: N pictures, G groups, D feature width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr, stdtrit

from omfa.evaluation.distances import frechet_distance

DRAWS = 2000
FEWEST = 8  # groups below which chance is not told from the groups themselves
HALVES = 10
Z95 = 1.959964


def group_numbers(names: Sequence[str]) -> np.ndarray:
    """(N,) integers from 0, equal where the names are."""
    return np.unique(np.asarray(names, dtype=str), return_inverse=True)[1]


def bootstrap_mean(values: np.ndarray, groups: np.ndarray, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """95 % interval of a mean over pictures, groups drawn with replacement.

    The expanded percentile interval (Hesterberg 2015, "What Teachers Should Know About the Bootstrap"): resamples
    of G groups vary too little, by sqrt((G - 1) / G), and know nothing of Student's t; so percentiles further out are
    taken. At 8 groups the interval is 1.3 times as wide as the plain one, at 100 groups 1.02 times.

    Args:
        values: (N,) finite.
        groups: (N,) integers from 0.
        draws: resamples.
        seed: of the resampling.

    Returns:
        Lower and upper end; NaN with fewer than ``FEWEST`` groups.
    """
    counts = np.bincount(groups)
    sums, counts = np.bincount(groups, values)[counts > 0], counts[counts > 0]
    if len(counts) < FEWEST:
        return float("nan"), float("nan")
    rng = np.random.RandomState(seed)  # a stream that NumPy has frozen
    means = np.empty(draws)
    for draw in range(draws):
        times = np.bincount(rng.randint(len(counts), size=len(counts)), minlength=len(counts))
        means[draw] = (times * sums).sum() / (times * counts).sum()
    tail = 100 * ndtr(np.sqrt(len(counts) / (len(counts) - 1)) * stdtrit(len(counts) - 1, 0.025))
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


def jackknife_error(left_out: np.ndarray) -> float:
    """Standard error from leave-one-group-out values (G,); NaN with fewer than two.

    sqrt((G - 1) / G * sum (v_g - mean v)^2) (Efron & Stein 1981). For the error of a difference of two
    estimates on the same groups, give the difference of their values.
    """
    left_out = left_out[np.isfinite(left_out)]
    if len(left_out) < 2:
        return float("nan")
    count = len(left_out)
    return float(np.sqrt((count - 1) / count * ((left_out - left_out.mean()) ** 2).sum()))


def half_samples(groups: np.ndarray, halves: int = HALVES, seed: int = 0) -> list[np.ndarray]:
    """Row numbers of ``halves`` random halves of the groups, drawn without replacement."""
    names, rng = np.unique(groups), np.random.RandomState(seed)
    return [np.flatnonzero(np.isin(groups, rng.permutation(names)[: len(names) // 2])) for _ in range(halves)]


def frechet_halves(x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """FID of each half sample (for its spread; not an interval, for FID is biased at finite N). Pairs stay together.

    Args:
        x, y: (N, D) features, row by row of the same record.
        groups: (N,) integers.

    Returns:
        (HALVES,); empty with fewer than ``FEWEST`` groups. Its standard deviation estimates that of FID on the whole
        set (delete-half jackknife).
    """
    if len(np.unique(groups)) < FEWEST:
        return np.empty(0)
    return np.array([frechet_distance(x[rows], y[rows]) for rows in half_samples(groups)])
