"""Distances between sets of features: FID and KID, exact and the same for the same input.

Legend: N, M samples, D feature width, G groups.
"""

from __future__ import annotations

import math

import numpy as np


def _mean_and_root(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and a matrix R (min(N, D), D) with R^T R the covariance (ddof 1), both float64."""
    count, width = features.shape
    mean = features.mean(0, dtype=np.float64)
    if count <= width:
        return mean, (features - mean) / math.sqrt(count - 1)
    covariance = np.zeros((width, width))
    for start in range(0, count, 4096):  # in blocks: the features may be a file mapped into memory
        centred = features[start : start + 4096] - mean
        covariance += centred.T @ centred
    values, vectors = np.linalg.eigh(covariance / (count - 1))
    return mean, np.sqrt(values.clip(min=0))[:, None] * vectors.T


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Fréchet distance of two sets' Gaussians: FID on Inception features, CLIP-FID on CLIP's (Heusel et al. 2017).

    |mx - my|^2 + tr Sx + tr Sy - 2 tr (Sx Sy)^(1/2); the last trace is the nuclear norm of Rx Ry^T, S = R^T R, which
    stays exact with fewer samples than features. Biased upwards at finite N: compare only at the same N.

    Args:
        x, y: (N, D) and (M, D) features.

    Raises:
        ValueError: shapes, or fewer than two samples.
    """
    _check_features(x, y)
    (mean_x, root_x), (mean_y, root_y) = _mean_and_root(x), _mean_and_root(y)
    traces = (root_x**2).sum() + (root_y**2).sum() - 2 * np.linalg.norm(root_x @ root_y.T, "nuc")
    return float(((mean_x - mean_y) ** 2).sum() + traces)


def _check_features(x: np.ndarray, y: np.ndarray) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(f"features {x.shape} and {y.shape} must be (N, D) and (M, D) with at least two samples each")


def _kernel_sums(
    x: np.ndarray, y: np.ndarray, gx: np.ndarray, gy: np.ndarray, groups: int, same: bool = False, block: int = 1024
) -> tuple[float, np.ndarray]:
    """Sum of k(x_i, y_j) over i, j (i != j if ``same``), and the part of it that each group takes part in (G,)."""
    total, part = 0.0, np.zeros(groups)
    for top in range(0, len(x), block):
        rows = slice(top, top + block)
        for left in range(0, len(y), block):
            columns = slice(left, left + block)
            kernel = (x[rows].astype(np.float64) @ y[columns].T.astype(np.float64) / x.shape[1] + 1) ** 3
            if same and top == left:
                np.fill_diagonal(kernel, 0)
            own = np.where(gx[rows, None] == gy[None, columns], kernel, 0).sum(1)  # in its row and in its column
            total += kernel.sum()
            part += np.bincount(gx[rows], kernel.sum(1) - own, groups) + np.bincount(gy[columns], kernel.sum(0), groups)
    return total, part


def kernel_distance_jackknife(
    x: np.ndarray, y: np.ndarray, groups_x: np.ndarray, groups_y: np.ndarray
) -> tuple[float, np.ndarray]:
    """KID, and KID without each group in turn (for :func:`omfa.evaluation.intervals.jackknife_error`).

    KID is the unbiased squared MMD with k(a, b) = (a.b / D + 1)^3, over the whole sets (Binkowski et al. 2018): what
    clean-fid's mean over random subsets estimates, without the randomness. Raw scale (often shown x 1000); small
    negative values are valid.

    Args:
        x, y: (N, D) and (M, D) features.
        groups_x, groups_y: (N,) and (M,) integers from 0; samples that depend on each other (a prediction and its own
            truth, pictures of one person) share a number and are left out together.

    Returns:
        KID, and (G,) leave-one-group-out values; NaN where too few samples would be left.
    """
    _check_features(x, y)
    groups = int(max(groups_x.max(), groups_y.max())) + 1
    (xx, part_xx), (yy, part_yy), (xy, part_xy) = (
        _kernel_sums(a, b, ga, gb, groups, same)
        for a, b, ga, gb, same in (
            (x, x, groups_x, groups_x, True),
            (y, y, groups_y, groups_y, True),
            (x, y, groups_x, groups_y, False),
        )
    )

    def mmd(xx: np.ndarray, yy: np.ndarray, xy: np.ndarray, n: np.ndarray, m: np.ndarray) -> np.ndarray:
        return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)

    n, m = np.array(float(len(x))), np.array(float(len(y)))
    left_n, left_m = n - np.bincount(groups_x, minlength=groups), m - np.bincount(groups_y, minlength=groups)
    left_n, left_m = (np.where(left > 1, left, np.nan) for left in (left_n, left_m))
    left_out = mmd(xx - part_xx, yy - part_yy, xy - part_xy, left_n, left_m)
    return float(mmd(np.array(xx), np.array(yy), np.array(xy), n, m)), left_out
