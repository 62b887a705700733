"""Intervals and tests: bootstrap over sequences, t over training seeds, equivalence, k*.

Sequences are the unit of resampling. A resample is a row of counts drawn from (n, resamples, seed)
alone, so everything computed on the same n sequences, whatever the model, SAE or metric, sees the
same resamples and differences are paired.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special  # not scipy.stats, which takes long to import

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
    _check_confidence(confidence)
    replicates = np.asarray(replicates, np.float64)
    if n < 2 or not np.isfinite(replicates).all():
        return Estimate(float(value), np.nan, np.nan)
    tail = (1 - confidence) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return Estimate(float(value), float(low), float(high))


def _check_confidence(confidence):
    if not 0 < confidence < 1:
        raise StreamgaugeError(f"confidence {confidence} is not between 0 and 1")


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


def demeaned(x, groups) -> np.ndarray:
    """Values less the mean of their group, along the last axis.

    Args:
        x: finite values, shape ``(..., n)``.
        groups: the group each of the n values belongs to.

    Returns:
        float64, the shape of `x`; exactly 0 where a group does not vary.
    """
    x, groups = np.asarray(x, np.float64), np.asarray(groups)
    found = np.empty_like(x)
    for group in np.unique(groups):
        own = groups == group
        found[..., own] = x[..., own] - x[..., own].mean(-1, keepdims=True)
    # equal values leave only the rounding of their mean
    size = np.abs(x).max(-1, keepdims=True, initial=0)
    return np.where(np.abs(found) > ROUNDING * size, found, 0)


def standard_error(replicates, n: int) -> float:
    """Standard error from bootstrap replicates of a statistic of n sequences.

    Args:
        replicates: shape ``(resamples,)``.
        n: how many sequences were resampled.

    Returns:
        The standard deviation of the replicates times sqrt(n/(n−1)), without which that of a mean
        would be too small by just this. NaN for one sequence or a replicate that is not finite.
    """
    replicates = np.asarray(replicates, np.float64)
    if n < 2 or not np.isfinite(replicates).all():
        return math.nan
    return float(replicates.std() * math.sqrt(n / (n - 1)))


def t_interval(values, confidence: float = 0.95) -> Estimate:
    """Mean of independent values, e.g. one a training seed, and its Student t interval.

    Args:
        values: shape ``(n,)``.
        confidence: coverage aimed at.

    Returns:
        The interval is NaN below two values, and everything where one is not finite.
    """
    _check_confidence(confidence)
    values = np.asarray(values, np.float64)
    if len(values) == 0:
        raise StreamgaugeError("no values to take the mean of")
    mean = float(values.mean())
    if len(values) < 2:
        return Estimate(mean, math.nan, math.nan)
    se = float(values.std(ddof=1)) / math.sqrt(len(values))
    reach = float(_reach(se, len(values) - 1, confidence))
    return Estimate(mean, mean - reach, mean + reach)


def _reach(se, df, confidence):
    """Half the width of a t interval."""
    return special.stdtrit(df, (1 + confidence) / 2) * se


class Mean(NamedTuple):
    """Means with their standard errors and degrees of freedom, arrays of one shape."""

    value: np.ndarray
    se: np.ndarray
    df: np.ndarray

    def interval(self, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Ends of the t interval; NaN where there is no standard error."""
        _check_confidence(confidence)
        reach = _reach(self.se, self.df, confidence)
        return self.value - reach, self.value + reach


def combined(value, se_sequences, df_sequences, se_seeds, df_seeds) -> Mean:
    """Means over seeds, with an error that counts both sequences and seeds as drawn.

    The two variances add, and the degrees of freedom are those of Welch and Satterthwaite. A
    bootstrap that resamples the S seeds as well would take their variance (S−1)/S times too
    small, and a normal quantile: far too narrow for the two to four seeds there are.

    Args:
        value: means over seeds, any shape; the others broadcast to it.
        se_sequences, df_sequences: `standard_error` of that mean over sequences; sequences less 1.
        se_seeds, df_seeds: standard deviation over seeds / sqrt(S); S less 1.

    Returns:
        No error and no degrees of freedom (NaN) where an error is NaN or a number of degrees of
        freedom is not positive: one seed says nothing about how much seeds differ. Where the
        seeds' differences between sequences vary (an interaction), that part is counted in both
        variances, and the interval is somewhat too wide. Where two seeds vary much more than the
        sequences it is too narrow still (docs/comparisons.md has the coverage).
    """
    parts = np.broadcast_arrays(value, se_sequences, df_sequences, se_seeds, df_seeds)
    value, one, df_one, other, df_other = (np.asarray(part, np.float64) for part in parts)
    one, other = one**2, other**2
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = one**2 / df_one + other**2 / df_other
        # no variance at all: any t quantile gives the interval of width 0
        df = np.where(spread > 0, (one + other) ** 2 / spread, df_one + df_other)
    known = np.isfinite(one + other) & (df_one > 0) & (df_other > 0)
    return Mean(value, *(np.where(known, x, np.nan) for x in (np.sqrt(one + other), df)))


class Tost(NamedTuple):
    """Result of `tost`; `low` and `high` bound the interval the test can be read off."""

    p_value: np.ndarray
    equivalent: np.ndarray
    low: np.ndarray
    high: np.ndarray


def tost(value, standard_error, df, margin: float, alpha: float = 0.05) -> Tost:
    """Two one-sided t tests of |true value| ≥ margin (Schuirmann): equivalence to 0.

    Args:
        value, standard_error, df: estimates, their standard errors and degrees of freedom, of
            shapes that broadcast; a `Mean` has all three.
        margin: what counts as no difference, > 0, in the unit of the value.
        alpha: level of the test, below 0.5.

    Returns:
        `p_value` is the larger of the two; `equivalent` says that it is below `alpha`, which is
        so where the interval of coverage 1 − 2 alpha lies within ±margin. Without a standard
        error all is NaN, and nothing is equivalent.
    """
    if not (margin > 0 and 0 < alpha < 0.5):
        raise StreamgaugeError(
            f"a margin of {margin} and a level of {alpha} are no equivalence test",
            remedy="Choose a margin above 0 and a level between 0 and 0.5.",
        )
    mean = Mean(*(np.asarray(part, np.float64) for part in (value, standard_error, df)))
    inside = margin - np.abs(mean.value)
    with np.errstate(divide="ignore", invalid="ignore"):
        p_value = special.stdtr(mean.df, -inside / mean.se)
    p_value = np.where((mean.se == 0) & (mean.df > 0), inside <= 0, p_value)
    return Tost(p_value, p_value < alpha, *mean.interval(1 - 2 * alpha))


class KStar(NamedTuple):
    """Result of `k_star`; `censored` is ``""``, ``"<=k_min"`` or ``">k_max"``."""

    value: float
    censored: str


CENSORED = {-math.inf: "<=k_min", math.inf: ">k_max"}


def k_star(k, ce_rec, target: float) -> KStar:
    """Smallest k with CE_rec ≥ target, linear in k between grid points, at the first up-crossing.

    Args:
        k: sparsities, shape ``(n,)``, all different, in any order.
        ce_rec: CE recovered at each.
        target: the level to reach.

    Returns:
        Outside the grid it is censored, never extrapolated: the value is then the smallest k
        (reached there already) or the largest (reached nowhere). NaN, and not censored, where a
        point is not finite.
    """
    found = float(k_star_curves(k, np.asarray(ce_rec, np.float64)[None], target)[0])
    return uncensored(found, k)


def k_star_curves(k, curves, target: float) -> np.ndarray:
    """`k_star` of many curves, shape ``(..., n)`` over the same k, at once.

    Returns:
        Shape ``(...)``; −inf where it is ``<=k_min``, inf where it is ``>k_max``, so that
        quantiles of replicates order censored ones rightly.
    """
    k, curves = np.asarray(k, np.float64), np.asarray(curves, np.float64)
    if k.ndim != 1 or len(k) == 0 or curves.shape[-1:] != k.shape or len(np.unique(k)) < len(k):
        raise StreamgaugeError("k* needs one value for each of one or more different k")
    order = k.argsort()
    k, curves = k[order], curves[..., order]
    reached = curves >= target
    after = reached.argmax(-1)
    before = np.maximum(after - 1, 0)
    high, low = (np.take_along_axis(curves, i[..., None], -1)[..., 0] for i in (after, before))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = k[before] + (k[after] - k[before]) * (target - low) / (high - low)
    found = np.where(after == 0, -np.inf, found)
    found = np.where(reached.any(-1), found, np.inf)
    return np.where(np.isfinite(curves).all(-1), found, np.nan)


def uncensored(found: float, k) -> KStar:
    """A value of `k_star_curves` as a number on the grid and what is to be known about it."""
    if math.isinf(found):
        return KStar(float(np.min(k) if found < 0 else np.max(k)), CENSORED[found])
    return KStar(found, "")
