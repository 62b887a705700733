"""When a hypothesis about scale is supported: the rules alone, on numbers.

Definitions are those of docs/definitions.md, "Comparisons across scale". Every rule takes a
statistic together with its null; `Gap` and `Evidence` cannot be built without one. The rules of H0
and H1 run over any leading dimensions, so that `verdict_simulation` tries thousands of studies with
the very code that `verdicts` judges one study with.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from streamgauge.base.errors import StreamgaugeError
from streamgauge.numerics import correlation, inference, nulls
from streamgauge.numerics.inference import Estimate, Mean

SUPPORTED, REJECTED, OPEN = "supported", "rejected", "not adjudicated"
#: a correlation over pairs of models needs this many
FEWEST_POINTS = 4


@dataclass(frozen=True)
class Gap:
    """ΔCE_rec of every cell, and the same difference between untrained SAEs.

    Attributes:
        trained: shape ``(..., cells)``.
        untrained: the null, same shape, finite.

    Raises:
        StreamgaugeError: the null is missing.
    """

    trained: Mean
    untrained: np.ndarray

    def __post_init__(self):
        null = np.asarray(self.untrained, np.float64)
        if null.shape != np.shape(self.trained.value) or not np.isfinite(null).all():
            raise _no_null("a difference between models")


class Equivalence(NamedTuple):
    """Result of `equivalence`: the decision, and the p-value of every cell."""

    equivalent: np.ndarray
    p_equal: np.ndarray


def equivalence(gap: Gap, *, margin: float, alpha: float) -> Equivalence:
    """The rule of H0.

    Args:
        gap: ΔCE_rec, shape ``(..., cells)``.
        margin: |ΔCE_rec| up to here is no gap.
        alpha: level of the test.

    Returns:
        `equivalent`, shape ``(...)``: the gap is within the margin in every cell, by two one-sided
        tests each. A claim about all cells needs no correction for their number. `p_equal`, shape
        ``(..., cells)``, is NaN where a standard error is missing; nothing is decided there.
    """
    p_equal = inference.tost(*gap.trained, margin, alpha).p_value
    return Equivalence((p_equal < alpha).all(-1) & (p_equal.shape[-1] > 0), p_equal)


class Residual(NamedTuple):
    """Result of `residual_gap`: the decision, and the p-values of every cell."""

    residual: np.ndarray
    p_beyond: np.ndarray
    p_converged: np.ndarray
    p_residual: np.ndarray


def residual_gap(
    gap: Gap, small: Mean, big: Mean, *, margin: float, convergence: float, alpha: float
) -> Residual:
    """The rule of H1.

    Args:
        gap: ΔCE_rec at the largest budget, shape ``(..., cells)``.
        small, big: change of CE_rec from the budget before it to that budget, of either model's
            SAEs, same shape.
        margin: |ΔCE_rec| up to here is no gap.
        convergence: a change within ± this is none.
        alpha: level of every test.

    Returns:
        `residual`, shape ``(...)``: in some cell the gap is beyond the margin and both models'
        SAEs have converged. Of shape ``(..., cells)``: `p_beyond` (of |ΔCE_rec| ≤ margin),
        `p_converged` (two one-sided tests of the change, the larger p of both models) and
        `p_residual`, the larger of the two after Holm's correction over cells. NaN where a
        standard error is missing; nothing is decided there.
    """
    p_beyond = _p_beyond(gap.trained, margin)
    p_small, p_big = (inference.tost(*side, convergence, alpha).p_value for side in (small, big))
    p_converged = np.maximum(p_small, p_big)
    p_residual = _holm(np.maximum(p_beyond, p_converged))
    return Residual((p_residual < alpha).any(-1), p_beyond, p_converged, p_residual)


@dataclass(frozen=True)
class Null:
    """What the statistic is where there is nothing to find.

    Attributes:
        name: how it was made.
        low, high: interval of the statistic under it.
        p_value: one-sided, of the statistic against it.
    """

    name: str
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class Evidence:
    """A rank correlation, or a difference of two, with its interval and its null.

    Raises:
        StreamgaugeError: the null is missing.
    """

    statistic: Estimate
    null: Null

    def __post_init__(self):
        if not isinstance(self.null, Null) or not np.isfinite(self.null.p_value):
            raise _no_null("a correlation")


def ordering(evidence: Evidence, *, smallest: float, alpha: float) -> str:
    """The rule of H2 and H3.

    Args:
        evidence: the statistic, positive where the hypothesis holds.
        smallest: the smallest value that would matter.
        alpha: level against the null.

    Returns:
        ``supported``: the null is rejected and the interval lies above 0. ``rejected``: the
        interval lies below `smallest`. Else ``not adjudicated``.
    """
    low, high = evidence.statistic.low, evidence.statistic.high
    if evidence.null.p_value <= alpha and low > 0:
        return SUPPORTED
    return REJECTED if high < smallest else OPEN


def association(x, y, units, shuffled_units, confidence: float) -> Evidence | None:
    """Spearman's correlation over pairs of units, against shuffled units.

    Args:
        x: shape ``(points,)``.
        y: one value a unit, shape ``(units,)``.
        units: the two units of every point, shape ``(points, 2)``; a point's y is their mean.
        shuffled_units: orders of the units, shape ``(shuffles, units)``. Points that share a unit
            are not independent, units are: so they are what the null shuffles.
        confidence: of the interval, by Fisher's z with Bonett and Wright's standard error.

    Returns:
        None where x or y does not vary or there are fewer than `FEWEST_POINTS`.
    """
    x, y, units = np.asarray(x, np.float64), np.asarray(y, np.float64), np.asarray(units)
    if len(x) < FEWEST_POINTS:
        return None
    places = correlation.standardised(correlation.ranks(x))

    def spearman(order):
        means = y[order][..., units].mean(-1)
        return correlation.standardised(correlation.ranks(means)) @ places

    rho = float(np.clip(spearman(np.arange(len(y))), -1, 1))
    if not np.isfinite(rho):
        return None
    null = spearman(np.asarray(shuffled_units))
    tail = (1 - confidence) / 2
    ends = np.nanquantile(null, [tail, 1 - tail])
    z = stats.norm.ppf(1 - tail) * np.sqrt((1 + rho**2 / 2) / (len(x) - 3))
    with np.errstate(divide="ignore"):
        low, high = np.tanh(np.arctanh(rho) + np.array([-z, z]))
    name = "values shuffled among models and layers"
    # a shuffle without any correlation counts against the hypothesis, as does rounding
    p_value = nulls.one_sided_p(rho, null)
    return Evidence(Estimate(rho, float(low), float(high)), Null(name, *map(float, ends), p_value))


def fact(
    verdict: str,
    reason: str,
    *,
    margin: float,
    statistic: Mapping[str, Any] | None = None,
    null: Mapping[str, Any] | None = None,
    cells: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """A verdict as it is written down.

    Raises:
        StreamgaugeError: a statistic without its null.
    """
    if statistic is not None and null is None:
        raise _no_null("a statistic")
    found = {"verdict": verdict, "reason": reason, "margin": margin}
    return found | {"statistic": statistic, "null": null, "cells": list(cells)}


def _no_null(what: str) -> StreamgaugeError:
    return StreamgaugeError(
        f"{what} comes without its null",
        remedy="Score the untrained controls and make the shuffles; no verdict is read without.",
    )


def _p_beyond(m: Mean, margin) -> np.ndarray:
    """p of |mean| ≤ margin: both tails, at the edge of the margin, where it is largest."""
    size = np.abs(m.value)
    with np.errstate(divide="ignore", invalid="ignore"):
        near, far = (size - margin) / m.se, (size + margin) / m.se
    return np.minimum(stats.t.sf(near, m.df) + stats.t.sf(far, m.df), 1)


def _holm(p) -> np.ndarray:
    """Holm's adjusted p-values along the last axis; NaN counts as a test, and stays NaN."""
    order = np.argsort(p, -1)
    n = p.shape[-1]
    stepped = np.take_along_axis(p, order, -1) * np.arange(n, 0, -1)
    stepped = np.minimum(np.maximum.accumulate(stepped, -1), 1)
    adjusted = np.empty_like(stepped)
    np.put_along_axis(adjusted, order, stepped, -1)
    return adjusted
