"""Is the step from one language to another inside Z linear, and is it a rotation?

Definitions: docs/definitions.md, "Bridge". With as many dimensions as problems any data is
fitted without error, so what is left out of the fit decides. `crosslingual.bridges` holds a bridge
against permuted pairs and random subspaces.
"""

import math
from typing import NamedTuple

import numpy as np

from streamgauge.base.errors import StreamgaugeError
from streamgauge.numerics import nulls
from streamgauge.numerics.arrays import NUMPY, either
from streamgauge.numerics.metrics import r_squared_from_totals

# a pair of leverage 1 alone holds a direction: without it there is another fit of lower rank
_FULL_LEVERAGE = 1 - 1e-8


class Bridge(NamedTuple):
    """A linear map between the coordinates of two languages.

    Attributes:
        w: ``(k, k)``, rows of the second language ≈ rows of the first times `w`.
        r2_in_sample: 1 − SSE/SST over all pairs and dimensions, SST about the mean. Least
            squares reaches 1 for any data where N ≤ k.
        r2_loo: the same of pairs left out one at a time, each against the mean of the others.
        orthogonality_error: ‖wᵀw − I‖_F/k.
        singular_values: of `w`, ``(k,)``, largest first.
        condition: largest over smallest singular value; inf where `w` is not of full rank.
        informative: whether N > k, so that `r2_in_sample` says anything.
    """

    w: np.ndarray
    r2_in_sample: float
    r2_loo: float
    orthogonality_error: float
    singular_values: np.ndarray
    condition: float
    informative: bool


@either("z_en", "z_zh", inside=NUMPY)
def fit(z_en, z_zh, ridge: float = 0.0) -> Bridge:
    """The linear map from one language's coordinates to the other's, without intercept.

    ``scipy.linalg.lstsq``, with a penalty ``sklearn.linear_model.Ridge(fit_intercept=False)``.

    Args:
        z_en: coordinates of N problems in the language mapped from, ``(N, k)``.
        z_zh: of the same problems in the language mapped to, ``(N, k)``.
        ridge: penalty on ‖W‖²_F in units of the mean squared singular value of `z_en`. 0: least
            squares, the solution of least norm where there are many.

    Returns:
        The map and its fit. R² is NaN where `z_zh` does not vary. Leaving a pair out keeps the
        penalty of all pairs.

    Raises:
        StreamgaugeError: fewer than two pairs; shapes that do not fit; a value that is not finite;
            a negative penalty.
    """
    x, y = _pairs(z_en, z_zh)
    return _fitted(_design(x, ridge), y)


@either("z_en", "z_zh", inside=NUMPY)
def permuted_r2(z_en, z_zh, orders, ridge: float = 0.0):
    """`Bridge.r2_loo` of `fit` to problems paired otherwise, for the price of a single fit.

    Args:
        z_en, z_zh, ridge: see `fit`.
        orders: orders of the rows of `z_zh`, ``(permutations, N)``, e.g. from `nulls.shuffles`.

    Returns:
        Shape ``(permutations,)``.

    Raises:
        StreamgaugeError: see `fit`.
    """
    x, y = _pairs(z_en, z_zh)
    design = _design(x, ridge)
    return np.array([_r2_loo(design, y[order]) for order in orders])


def _pairs(x, y):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.shape != y.shape or x.ndim != 2 or 0 in x.shape:
        raise StreamgaugeError(f"coordinates of shapes {x.shape} and {y.shape} are no pairs")
    if len(x) < 2:
        raise StreamgaugeError(
            "one pair of prompts is not enough for a bridge",
            remedy="Use at least two pairs of prompts.",
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise StreamgaugeError("coordinates of a bridge are not finite")
    return x, y


class _Design(NamedTuple):
    """What follows from the language mapped from alone, so that shuffled pairs cost little."""

    x: np.ndarray
    coefficients: np.ndarray  # (k, N); times y it is the map
    left_out: np.ndarray  # (N, N); times y it predicts each pair from all others


def _design(x, ridge):
    if not ridge >= 0:
        raise StreamgaugeError(f"a penalty of {ridge} is negative", where="bridge.ridge")
    penalty = ridge * np.mean(np.linalg.svd(x, compute_uv=False) ** 2)
    coefficients = _solve(x, penalty)
    return _Design(x, coefficients, _left_out(x, coefficients, penalty))


def _solve(x, penalty):
    """The coefficients of the fit of least norm."""
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    kept = s > s[0] * max(x.shape) * np.finfo(np.float64).eps
    inverse = np.divide(s, s**2 + penalty, out=np.zeros_like(s), where=kept)
    return (vt.T * inverse) @ u.T


def _left_out(x, coefficients, penalty):
    """Leave-one-out predictions in closed form, by another fit where leverage is full."""
    hat = x @ coefficients
    leverage = hat.diagonal().copy()
    np.fill_diagonal(hat, 0)
    full = leverage > _FULL_LEVERAGE
    predicted = hat / np.where(full, 1, 1 - leverage)[:, None]
    for i in np.flatnonzero(full):
        others = np.arange(len(x)) != i
        predicted[i, others] = x[i] @ _solve(x[others], penalty)
    return predicted


def _fitted(design, y):
    """The map onto `y`."""
    w = design.coefficients @ y
    k = len(w)
    singular = np.linalg.svd(w, compute_uv=False)
    full_rank = singular[-1] > singular[0] * k * np.finfo(np.float64).eps
    return Bridge(
        w,
        _r2(((y - design.x @ w) ** 2).sum(), ((y - y.mean(0)) ** 2).sum(), y),
        _r2_loo(design, y),
        float(np.linalg.norm(w.T @ w - np.eye(k)) / k),
        singular,
        float(singular[0] / singular[-1]) if full_rank else math.inf,
        len(y) > k,
    )


def _r2_loo(design, y):
    """Pooled PRESS against the mean of the other pairs."""
    press = ((y - design.left_out @ y) ** 2).sum()
    apart = (y - y.mean(0)) * (len(y) / (len(y) - 1))
    return _r2(press, (apart**2).sum(), y)


def _r2(sse, sst, y):
    """NaN where `y` varies by rounding only."""
    varies = sst > nulls.ROUNDING * (y**2).sum()
    return float(r_squared_from_totals(sse, sst)) if varies else math.nan
