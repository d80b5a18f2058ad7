"""Means with intervals, and whether two measurements of the same samples agree."""

from collections.abc import Mapping, Sequence

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


def paired(a: Sequence[float], b: Sequence[float]) -> dict[str, float]:
    """The mean of a - b over pairs, with its t-interval (see `interval`). Raises ValueError for other lengths."""
    if len(a) != len(b):
        raise ValueError(f"pairs expected, got {len(a)} and {len(b)} values")
    return interval(np.subtract(a, b))


def bootstrap(values: Sequence[tuple[float, float]], draws: int = 2000, seed: int = 0) -> dict[str, float]:
    """Σ part / Σ whole over samples of (part, whole), with the ends of its 95 % bootstrap interval (percentiles;
    samples are drawn with replacement). For a mean, every whole is 1; for a share of things, it is the number of things
    in a picture. Where every part is its whole, or nothing, draws show no uncertainty: then the interval is that of
    Clopper and Pearson, each sample with a whole being one trial.

    Raises ValueError if there are no samples, or the wholes sum to nothing.
    """
    pairs = np.asarray(values, dtype=np.float64).reshape(-1, 2)  # [K, 2]
    if not pairs[:, 1].sum() > 0:
        raise ValueError(f"nothing to average: {len(pairs)} samples with a total of {pairs[:, 1].sum():g}")
    part, whole = pairs.sum(0)
    counts = np.random.default_rng(seed).multinomial(len(pairs), np.full(len(pairs), 1 / len(pairs)), draws)
    parts, wholes = (counts @ pairs).T  # [draws]
    low, high = np.percentile(parts[wholes > 0] / wholes[wholes > 0], (2.5, 97.5))
    told = pairs[pairs[:, 1] > 0]
    if part == whole and (told[:, 0] == told[:, 1]).all():
        low = 0.025 ** (1 / len(told))
    elif not told[:, 0].any():
        high = 1 - 0.025 ** (1 / len(told))
    return {"mean": float(part / whole), "low": float(low), "high": float(high)}


def mean_differences(a: Mapping[str, Sequence[float]], b: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Per metric, the mean absolute difference of numbers of the same samples.

    Raises ValueError when the two are not of the same metrics and number of samples.
    """
    if {k: len(v) for k, v in a.items()} != {k: len(v) for k, v in b.items()}:
        raise ValueError("numbers of other metrics or another number of samples; compare like with like")
    return {key: float(np.abs(np.subtract(a[key], b[key])).mean()) for key in a}


def agreement(
    stored: Mapping[str, Sequence[float]], recomputed: Mapping[str, Sequence[float]], tolerance: Mapping[str, float]
) -> str:
    """Whether recomputed numbers of the same samples are those of a record, sample by sample: "agrees", or "DISAGREES"
    and by how much.

    Sampling in another order of additions, as another machine does, moves single pictures; so the differences are
    averaged. Those of another model do not average out.
    """
    differences = mean_differences(stored, recomputed)
    if all(difference <= tolerance[key] for key, difference in differences.items()):
        return "agrees"
    told = (f"{key} differs by {value:.3g}, tolerance {tolerance[key]:.3g}" for key, value in differences.items())
    return f"DISAGREES ({'; '.join(told)})"
