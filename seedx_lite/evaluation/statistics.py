"""Means with intervals, and whether two measurements of the same samples agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean of independent values, with the ends of its 95 % t-interval: {"mean", "low", "high"}.

    Raises ValueError for fewer than two values.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.size < 2:
        raise ValueError(f"an interval needs two values or more, got {values.size}")
    mean, reach = values.mean(), stats.t.ppf(0.975, values.size - 1) * stats.sem(values)
    return {"mean": float(mean), "low": float(mean - reach), "high": float(mean + reach)}


@dataclass(frozen=True)
class Agreement:
    """Whether recomputed numbers are those of a record. `differences`: per metric, the mean absolute difference."""

    agrees: bool
    differences: dict[str, float]
    tolerance: dict[str, float]

    def __str__(self) -> str:
        if self.agrees:
            return "agrees"
        told = (f"{k} differs by {v:.3g}, tolerance {self.tolerance[k]:.3g}" for k, v in self.differences.items())
        return f"DISAGREES ({'; '.join(told)})"


def mean_differences(a: Mapping[str, Sequence[float]], b: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Per metric, the mean absolute difference of numbers of the same samples.

    Raises ValueError when the two are not of the same metrics and number of samples.
    """
    if {k: len(v) for k, v in a.items()} != {k: len(v) for k, v in b.items()}:
        raise ValueError("numbers of other metrics or another number of samples; compare like with like")
    return {key: float(np.abs(np.subtract(a[key], b[key])).mean()) for key in a}


def agreement(
    stored: Mapping[str, Sequence[float]], recomputed: Mapping[str, Sequence[float]], tolerance: Mapping[str, float]
) -> Agreement:
    """Compares recomputed with stored numbers of the same samples, sample by sample.

    Sampling in another order of additions, as another machine does, moves single pictures; so the differences are
    averaged. Those of another model do not average out.
    """
    differences = mean_differences(stored, recomputed)
    agrees = all(difference <= tolerance[key] for key, difference in differences.items())
    return Agreement(agrees, differences, dict(tolerance))
