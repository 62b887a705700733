"""Intervals and tests: bootstrap over sequences, t over training seeds, equivalence, k*.

Definitions: docs/definitions.md, "Comparisons across scale". Sequences are the unit of resampling.
A resample is a row of counts drawn from (n, resamples, seed) alone, so everything computed on the
same n sequences, whatever the model, SAE or metric, sees the same resamples and differences are
paired. Arrays are NumPy or torch (see `arrays`).
"""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special  # not scipy.stats, which takes long to import

from streamgauge.base.errors import StreamgaugeError
from streamgauge.numerics.arrays import NUMPY, either
from streamgauge.numerics.nulls import central


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

    Raises:
        StreamgaugeError: nothing to draw, or no resamples.
    """
    if n < 1 or resamples < 1:
        raise StreamgaugeError(f"{resamples} resamples of {n} sequences cannot be drawn")
    rng = np.random.default_rng(seed)
    # one draw for all resamples, as scipy.stats.bootstrap does: the tests compare draw by draw
    drawn = rng.integers(0, n, (resamples, n))
    drawn += n * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * n).reshape(resamples, n).astype(float)


def data_and_resamples(n: int, resamples: int = 5000, seed: int = 0) -> np.ndarray:
    """`resample_counts` below a row of ones, which is the data itself: (1 + resamples, n)."""
    return np.vstack([np.ones(n), resample_counts(n, resamples, seed)])


@either("replicates", inside=NUMPY)
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

    Raises:
        StreamgaugeError: `confidence` is not between 0 and 1.
    """
    _check_confidence(confidence)
    replicates = np.asarray(replicates, np.float64)
    if n < 2 or not np.isfinite(replicates).all():
        return Estimate(float(value), np.nan, np.nan)
    low, high = central(replicates, confidence)
    return Estimate(float(value), float(low), float(high))


def _check_confidence(confidence):
    if not 0 < confidence < 1:
        raise StreamgaugeError(f"confidence {confidence} is not between 0 and 1")


@either("table", inside=NUMPY)
def bootstrap(
    table,
    statistic: Callable[[np.ndarray], np.ndarray],
    *,
    resamples: int = 5000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Percentile bootstrap of a function of sums over sequences.

    ``scipy.stats.bootstrap(..., method="percentile")`` with the same generator. Ratios are
    recomputed in every resample: `statistic` sees resampled sums, never averaged ratios. A paired
    difference is one call with the columns of both sides next to each other.

    Args:
        table: one row a sequence, shape ``(n,)`` or ``(n, columns)``; the columns are what is
            summed. Use a column of ones where the number of sequences is needed.
        statistic: maps sums of shape ``(..., columns)``, NumPy in any case, to values of shape
            ``(...)``, e.g. ``lambda s: r_squared_from_totals(s[..., 0], s[..., 1])``.
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


@either("replicates", inside=NUMPY)
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


@either("values", inside=NUMPY)
def t_interval(values, confidence: float = 0.95) -> Estimate:
    """Mean of independent values, e.g. one a training seed, and its Student t interval.

    ``scipy.stats.ttest_1samp(values, 0).confidence_interval(confidence)``.

    Args:
        values: shape ``(n,)``.
        confidence: coverage aimed at.

    Returns:
        The interval is NaN below two values, and everything where one is not finite.

    Raises:
        StreamgaugeError: no value, or `confidence` is not between 0 and 1.
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
        return _ends(self.value, self.se, self.df, confidence)


@either("value", "se", "df", inside=NUMPY)
def _ends(value, se, df, confidence):
    _check_confidence(confidence)
    reach = _reach(se, df, confidence)
    return value - reach, value + reach


@either("value", "se_sequences", "df_sequences", "se_seeds", "df_seeds", inside=NUMPY)
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


@either("value", "standard_error", "df", inside=NUMPY)
def tost(value, standard_error, df, margin: float, alpha: float = 0.05) -> Tost:
    """Two one-sided t tests of |true value| ≥ margin (Schuirmann): equivalence to 0.

    ``statsmodels.stats.weightstats.ttost_paired(x, y, -margin, margin)`` where the estimate is a
    mean of paired differences.

    Args:
        value, standard_error, df: estimates, their standard errors and degrees of freedom, of
            shapes that broadcast; a `Mean` has all three.
        margin: what counts as no difference, > 0, in the unit of the value.
        alpha: level of the test, below 0.5.

    Returns:
        `p_value` is the larger of the two; `equivalent` says that it is below `alpha`, which is
        so where the interval of coverage 1 − 2 alpha lies within ±margin. Without a standard
        error all is NaN, and nothing is equivalent.

    Raises:
        StreamgaugeError: a margin or a level that makes no test.
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


@either("k", "ce_rec", inside=NUMPY)
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

    Raises:
        StreamgaugeError: not one value for each of one or more different k.
    """
    found = float(k_star_curves(k, np.asarray(ce_rec, np.float64)[None], target)[0])
    return uncensored(found, k)


@either("k", "curves", inside=NUMPY)
def k_star_curves(k, curves, target: float):
    """`k_star` of many curves, shape ``(..., n)`` over the same k, at once.

    Returns:
        Shape ``(...)``; −inf where it is ``<=k_min``, inf where it is ``>k_max``, so that
        quantiles of replicates order censored ones rightly.

    Raises:
        StreamgaugeError: see `k_star`.
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


@either("k", inside=NUMPY)
def uncensored(found: float, k) -> KStar:
    """A value of `k_star_curves` as a number on the grid and what is to be known about it."""
    if math.isinf(found):
        return KStar(float(np.min(k) if found < 0 else np.max(k)), CENSORED[found])
    return KStar(found, "")
