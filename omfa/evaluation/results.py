"""From scores to tables: means with valid intervals, and comparisons of models on the same records.

A results folder holds ``results.json`` (the table, the protocol, what is absent and why), ``values.jsonl`` (one line
per prediction), ``features/<network>.npy`` (N, 2, D: prediction's, truth's) and ``run.json`` (where the pictures are).

Legend: N predictions, D feature width.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from omfa.evaluation.distances import frechet_distance, kernel_distance_jackknife
from omfa.evaluation.intervals import (
    FEWEST,
    HALVES,
    Z95,
    bootstrap_mean,
    frechet_halves,
    group_numbers,
    jackknife_error,
)
from omfa.evaluation.protocols import METRICS, Metric
from omfa.files import read_text

VERSION = 1
RESULTS, VALUES, RUN = "results.json", "values.jsonl", "run.json"
HOW = {
    "mean": "95 % bootstrap of the mean over persons, 2,000 draws, widened for few persons (Hesterberg 2015); none "
    f"below {FEWEST} persons",
    "kid": "95 % from the delete-a-person jackknife; whole sets, unbiased, so small negative values are valid",
    "frechet": "no interval, for FID is biased at finite n; spread: standard deviation over "
    f"{HALVES} half samples drawn without replacement",
}


AGAIN = "run the evaluation again"


def read_json(path: Path, cure: str) -> dict[str, Any]:
    """A file's JSON object.

    Raises:
        ValueError: there is none in it; names file and cure.
    """
    try:
        found = json.loads(read_text(path))
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path} is not JSON ({e}); {cure}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} must be a JSON object; {cure}")
    return found


def number(value: float) -> float | None:
    """A float for JSON, which knows no NaN."""
    return float(value) if math.isfinite(value) else None


# ------------------------------------------------------------------------------------------------------ one model
def summarise_mean(values: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """Mean over predictions (N,) with its interval."""
    low, high = bootstrap_mean(values, groups)
    return {
        "value": number(values.mean()), "n": len(values), "persons": len(np.unique(groups)), "low": number(low),
        "high": number(high), "interval": "mean",
    }  # fmt: skip


def summarise_set(name: str, features: np.ndarray, groups: np.ndarray) -> dict[str, Any] | None:
    """FID, CLIP-FID or KID of features (N, 2, D); None with fewer than two predictions."""
    if len(features) < 2:
        return None
    mine, true = features[:, 0], features[:, 1]
    sizes = {"n": len(features), "persons": len(np.unique(groups))}
    if name == "kid":
        value, left_out = kernel_distance_jackknife(mine, true, groups, groups)
        error = jackknife_error(left_out)
        ends = {"low": number(value - Z95 * error), "high": number(value + Z95 * error)}
        return {"value": number(value), **sizes, **ends, "interval": "kid"}
    halves = frechet_halves(mine, true, groups)
    spread = number(halves.std(ddof=1)) if len(halves) > 1 else None
    distance = number(frechet_distance(mine, true))
    return {"value": distance, **sizes, "low": None, "high": None, "spread": spread, "interval": "frechet"}


def summarise(
    wanted: Sequence[str], lines: Sequence[Mapping[str, Any]], features: Mapping[str, np.ndarray]
) -> dict[str, dict[str, Any]]:
    """The table: metric to value, n, persons, interval.

    Args:
        wanted: metrics in the table's order.
        lines: one per scored prediction: key, person_id, values.
        features: network to (N, 2, D), in the order of ``lines``.
    """
    table: dict[str, dict[str, Any]] = {}
    persons = [str(line["person_id"]) for line in lines]
    for name in wanted:
        metric, row = METRICS[name], None
        if metric.of_set:
            if metric.network is not None and metric.network in features:
                row = summarise_set(name, features[metric.network], group_numbers(persons))
        else:
            has = [i for i, line in enumerate(lines) if name in line["values"]]
            if has:
                values = np.array([lines[i]["values"][name] for i in has], dtype=np.float64)
                row = summarise_mean(values, group_numbers([persons[i] for i in has]))
        if row is not None:
            table[name] = row
    return table


def formatted(
    metric: Metric, row: Mapping[str, Any] | None, key: Literal["value", "difference"] = "value"
) -> tuple[str, str]:
    """A row's value (or difference, with its sign) and its interval or spread; "-" and nothing where it is absent."""
    if row is None or row[key] is None:
        return "-", ""
    sign = "+" if key == "difference" else ""
    value, spread = metric.text(row[key], sign), row.get("spread")
    if spread is not None and key == "value":
        return value, f"spread {metric.text(spread)}"
    if row["low"] is None or row["high"] is None:
        return value, ""
    return value, f"[{metric.text(row['low'], sign)}, {metric.text(row['high'], sign)}]"


# --------------------------------------------------------------------------------------------------- several models
@dataclass(frozen=True)
class Results:
    """A results folder, read as needed."""

    folder: Path

    def __post_init__(self) -> None:
        if not (self.folder / RESULTS).is_file():
            raise ValueError(f"{self.folder} holds no {RESULTS}; make it with 'python -m omfa.evaluate run'")
        if self.summary.get("version") != VERSION:
            raise ValueError(f"{self.folder / RESULTS} is of another version; run the evaluation again")

    @cached_property
    def summary(self) -> dict[str, Any]:
        """``results.json``."""
        return read_json(self.folder / RESULTS, AGAIN)

    @cached_property
    def lines(self) -> dict[str, dict[str, Any]]:
        """Key to its line of ``values.jsonl``, in order."""
        path = self.folder / VALUES
        try:
            with path.open(encoding="utf-8") as file:
                return {line["key"]: line for line in map(json.loads, file)}
        except (ValueError, KeyError, TypeError) as e:
            raise ValueError(f"{path} is damaged ({e}); {AGAIN}") from None

    @cached_property
    def run(self) -> dict[str, Any]:
        """Where records and predictions lay."""
        return read_json(self.folder / RUN, AGAIN)

    @property
    def name(self) -> str:
        """What the model is called in tables."""
        return str(self.summary["name"])

    def features(self, network: str, keys: Sequence[str]) -> np.ndarray | None:
        """(N, 2, D) of these predictions, or None where the network was absent."""
        path = self.folder / "features" / f"{network}.npy"
        if not path.is_file():
            return None
        rows = {key: row for row, key in enumerate(self.lines)}
        return np.load(path, mmap_mode="r", allow_pickle=False)[[rows[k] for k in keys]]


def comparable(results: Sequence[Results]) -> list[str]:
    """Keys that all have in common.

    Raises:
        ValueError: fewer than two results, another protocol, task, pairing or weights, or nothing in common.
    """
    if len(results) < 2:
        raise ValueError("comparing takes two results folders or more")
    first = results[0].summary
    for other in results[1:]:
        for what in ("protocol", "task", "pairing"):
            if other.summary[what] != first[what]:
                raise ValueError(
                    f"{results[0].folder} and {other.folder} differ in their {what}: their numbers are different "
                    "quantities; evaluate both the same way"
                )
        mine, theirs = first["weights"], other.summary["weights"]
        for network in sorted(mine.keys() & theirs.keys()):
            if mine[network]["sha256"] != theirs[network]["sha256"]:
                raise ValueError(
                    f"{results[0].folder} and {other.folder} were scored with different weights of {network}: "
                    "evaluate both with the same --weights"
                )
    keys = [k for k in results[0].lines if all(k in r.lines for r in results[1:])]
    if not keys:
        raise ValueError("these results have no record in common; evaluate all on the same records")
    return keys


def compare(results: Sequence[Results], most: int = 5) -> dict[str, Any]:
    """Every later model against the first, on the records all have in common.

    Args:
        results: two or more.
        most: how many records to name where a pair differs most.

    Returns:
        ``{"n", "left_out", "models", "pairs": [{"a", "b", "metrics": {metric: {a, b, difference, low, high, wins,
        most}}}]}``; difference is b - a, wins the share of records where b is better (a tie is half a win).
    """
    keys = comparable(results)
    pairs = [_compare_two(results[0], other, keys, most) for other in results[1:]]
    left_out = sum(len(r.lines) - len(keys) for r in results)
    return {"n": len(keys), "left_out": left_out, "models": [r.name for r in results], "pairs": pairs}


def _compare_two(a: Results, b: Results, keys: Sequence[str], most: int) -> dict[str, Any]:
    persons = group_numbers([str(a.lines[k]["person_id"]) for k in keys])
    table: dict[str, Any] = {}
    for name, metric in METRICS.items():
        if metric.of_set:
            x, y = (r.features(str(metric.network), keys) if name in r.summary["metrics"] else None for r in (a, b))
            row = None if x is None or y is None else _set_difference(name, x, y, persons)
        else:
            row = _mean_difference(name, a, b, keys, persons, most)
        if row is not None:
            table[name] = row
    return {"a": a.name, "b": b.name, "metrics": table}


def _mean_difference(
    name: str, a: Results, b: Results, keys: Sequence[str], persons: np.ndarray, most: int
) -> dict[str, Any] | None:
    both = [i for i, k in enumerate(keys) if name in a.lines[k]["values"] and name in b.lines[k]["values"]]
    if not both:
        return None
    x, y = (np.array([r.lines[keys[i]]["values"][name] for i in both], dtype=np.float64) for r in (a, b))
    difference = y - x
    low, high = bootstrap_mean(difference, group_numbers([str(persons[i]) for i in both]))
    sign = 1 if METRICS[name].better == "higher" else -1
    wins = ((sign * difference > 0) + 0.5 * (difference == 0)).mean()
    order = np.argsort(-np.abs(difference), kind="stable")[:most]
    return {
        "a": number(x.mean()), "b": number(y.mean()), "n": len(both), "difference": number(difference.mean()),
        "low": number(low), "high": number(high), "wins": number(wins),
        "most": [{"key": keys[both[i]], "a": float(x[i]), "b": float(y[i])} for i in order],
    }  # fmt: skip


def _set_difference(name: str, x: np.ndarray, y: np.ndarray, persons: np.ndarray) -> dict[str, Any] | None:
    """Set metrics of both against the same truth; the same persons left out, the same halves drawn for both."""
    if len(x) < 2:
        return None
    if name == "kid":
        (value_a, out_a), (value_b, out_b) = (
            kernel_distance_jackknife(f[:, 0], f[:, 1], persons, persons) for f in (x, y)
        )
        error = jackknife_error(out_b - out_a)
        spread = None
    else:
        value_a, value_b = (frechet_distance(f[:, 0], f[:, 1]) for f in (x, y))
        halves = [frechet_halves(f[:, 0], f[:, 1], persons) for f in (x, y)]
        # The bias at finite n is nearly the same for both; the spread of halves is that of the difference.
        error = spread = float((halves[1] - halves[0]).std(ddof=1)) if len(halves[0]) > 1 else math.nan
    difference = value_b - value_a
    row: dict[str, Any] = {"a": value_a, "b": value_b, "n": len(x), "difference": difference, "wins": None, "most": []}
    row |= {"low": number(difference - Z95 * error), "high": number(difference + Z95 * error)}
    return row if spread is None else row | {"spread": number(spread)}
