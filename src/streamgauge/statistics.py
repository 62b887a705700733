"""Percentile bootstrap over sequences, paired by construction.

Sequences are the unit of resampling. A resample is a row of counts drawn from (n, resamples, seed)
alone, so everything computed on the same n sequences, whatever the model, SAE or metric, sees the
same resamples and differences are paired.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from streamgauge.errors import StreamgaugeError


class Estimate(NamedTuple):
    """A value and its interval; `low` and `high` are NaN where no interval can be given."""

    value: float
    low: float
    high: float


def resample_counts(n: int, resamples: int = 5000, seed: int = 0) -> np.ndarray:
    """How often each of n sequences is drawn in each resample.

    Returns:
        Shape ``(resamples, n)``, float64, every row summing to n: multinomial with equal
        probabilities, a function of the three arguments only.
    """
    if n < 1 or resamples < 1:
        raise StreamgaugeError(f"{resamples} resamples of {n} sequences cannot be drawn")
    rng = np.random.default_rng(seed)
    # one draw for all resamples, as scipy.stats.bootstrap does: the tests compare draw by draw
    drawn = rng.integers(0, n, (resamples, n))
    drawn += n * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * n).reshape(resamples, n).astype(float)


def percentile_interval(value: float, replicates, n: int, confidence: float = 0.95) -> Estimate:
    """The central percentile interval of bootstrap replicates.

    Args:
        value: the statistic on the data itself.
        replicates: the statistic on each resample, shape ``(resamples,)``.
        n: how many sequences were resampled. One sequence says nothing about its own variation:
            the interval is NaN, never a false one of width 0.
        confidence: coverage aimed at, e.g. 0.95.

    Returns:
        The interval is NaN also when a replicate is not finite (an empty token set or a zero
        denominator in some resample).
    """
    if not 0 < confidence < 1:
        raise StreamgaugeError(f"confidence {confidence} is not between 0 and 1")
    replicates = np.asarray(replicates, np.float64)
    if n < 2 or not np.isfinite(replicates).all():
        return Estimate(float(value), np.nan, np.nan)
    tail = (1 - confidence) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return Estimate(float(value), float(low), float(high))


def bootstrap(
    table,
    statistic: Callable[[np.ndarray], np.ndarray],
    *,
    resamples: int = 5000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Percentile bootstrap of a function of sums over sequences.

    Ratios are recomputed in every resample: `statistic` sees resampled sums, never averaged
    ratios. A paired difference is one call with the columns of both sides next to each other.

    Args:
        table: one row a sequence, shape ``(n,)`` or ``(n, columns)``; the columns are what is
            summed. Use a column of ones where the number of sequences is needed.
        statistic: maps sums of shape ``(..., columns)`` to values of shape ``(...)``, e.g.
            ``lambda s: 1 - s[..., 0] / s[..., 1]`` for R² from SSE and SST.
        resamples, seed: see `resample_counts`.
        confidence: see `percentile_interval`.
    """
    table = np.asarray(table, np.float64)
    table = table[:, None] if table.ndim == 1 else table
    counts = resample_counts(len(table), resamples, seed)
    return percentile_interval(
        statistic(table.sum(0)), statistic(counts @ table), len(table), confidence
    )
