"""Percentile bootstrap over sequences, paired by construction.

Sequences are the unit of resampling. A resample is a row of counts drawn from (n, resamples, seed)
alone, so everything computed on the same n sequences, whatever the model, SAE or metric, sees the
same resamples and differences are paired.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np

from streamgauge.errors import StreamgaugeError

# Numbers that differ by less than this share of their size are equal.
ROUNDING = 1e-12


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


def clustered_counts(
    clusters: Sequence[Hashable], resamples: int = 5000, seed: int = 0
) -> np.ndarray:
    """How often each row is drawn where whole clusters of rows are drawn.

    Args:
        clusters: the cluster each of n rows belongs to.
        resamples, seed: see `resample_counts`, which draws the clusters.

    Returns:
        Shape ``(resamples, n)``, float64; rows of one cluster have equal counts.
    """
    numbers: dict[Hashable, int] = {}
    of_row = [numbers.setdefault(cluster, len(numbers)) for cluster in clusters]
    return resample_counts(len(numbers), resamples, seed)[:, of_row]


def shuffles(groups: Sequence[Hashable], resamples: int = 5000, seed: int = 0) -> np.ndarray:
    """Random permutations of n rows that move rows only within their group.

    Args:
        groups: the group each of n rows belongs to; all the same for a free shuffle.

    Returns:
        Shape ``(resamples, n)``, indices: ``labels[shuffles(...)]`` are the shuffled labels. A
        function of the three arguments only.
    """
    rng = np.random.default_rng(seed)
    rows: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    order = np.empty((resamples, len(groups)), np.intp)
    for members in rows.values():
        order[:, members] = rng.permuted(np.tile(members, (resamples, 1)), axis=1)
    return order


def ranks(x, counts=None) -> np.ndarray:
    """Ranks along the last axis from 1, ties sharing their mean rank.

    Args:
        x: finite values, shape ``(..., n)``.
        counts: how often each value occurs, broadcastable with `x`: the rank is the one it has in
            the sample with every value repeated that often. Default: once each.

    Returns:
        float64, the broadcast shape. Values that occur 0 times get a rank too, one of no use.
    """
    x = np.asarray(x, np.float64)
    counts = np.ones_like(x) if counts is None else np.asarray(counts, np.float64)
    ndim = max(x.ndim, counts.ndim)
    x, counts = (v[(None,) * (ndim - v.ndim)] for v in (x, counts))
    order = x.argsort(-1, kind="stable")
    x = np.take_along_axis(x, order, -1)
    # a run of equal values covers the ranks from below + 1 to above
    upto = np.take_along_axis(counts, order, -1).cumsum(-1)
    edge = np.ones((*x.shape[:-1], 1), bool)
    new = np.concatenate([edge, x[..., 1:] != x[..., :-1]], -1)
    last = np.concatenate([new[..., 1:], edge], -1)
    before = np.concatenate([np.zeros_like(upto[..., :1]), upto[..., :-1]], -1)
    below = np.maximum.accumulate(np.where(new, before, 0), -1)
    above = np.minimum.accumulate(np.where(last, upto, np.inf)[..., ::-1], -1)[..., ::-1]
    found = np.empty_like(upto)
    np.put_along_axis(found, np.broadcast_to(order, upto.shape), (below + above + 1) / 2, -1)
    return found


def standardised(x, counts=None) -> np.ndarray:
    """Deviations from the mean along the last axis, of unit length.

    The sum of products of two of them is Pearson's correlation, of standardised `ranks` Spearman's.

    Args:
        x: finite values, shape ``(..., n)``.
        counts: how often each value occurs, broadcastable with `x`. Default: once each.

    Returns:
        The broadcast shape; NaN where x does not vary. Deviations are multiplied by the square
        root of the counts, so that products need no further weights.
    """
    x = np.asarray(x, np.float64)
    counts = np.ones_like(x) if counts is None else np.asarray(counts, np.float64)
    mean = (counts * x).sum(-1, keepdims=True) / counts.sum(-1, keepdims=True)
    d = np.sqrt(counts) * (x - mean)
    length = np.sqrt((d * d).sum(-1, keepdims=True))
    # a constant is left with nothing but the rounding of its mean
    size = np.sqrt((counts * x * x).sum(-1, keepdims=True))
    return d / np.where(length > ROUNDING * size, length, np.nan)
