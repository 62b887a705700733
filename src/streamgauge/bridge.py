"""Is the step from one language to another inside Z linear, and is it a rotation?

Definitions are those of DEFINITIONS.md, "Bridge". With as many dimensions as problems any data is
fitted without error, so what is left out of the fit decides, beside permuted pairs and random
subspaces.
"""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd

from streamgauge import statistics, subspace
from streamgauge.contrasts import rank_from_top
from streamgauge.errors import StreamgaugeError

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


def fit(z_en, z_zh, ridge: float = 0.0) -> Bridge:
    """The linear map from one language's coordinates to the other's, without intercept.

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


def tables(
    target,
    source,
    basis,
    *,
    ridge: float,
    random: int,
    permutations: int,
    seed: int,
    confidence: float = 0.95,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Bridges inside a subspace by least squares and by ridge, beside their nulls.

    Args:
        target: pooled states in the language mapped from, ``(N, d)``.
        source: of the same problems in the language mapped to, ``(N, d)``.
        basis: ``(k, d)``, orthonormal rows.
        ridge: penalty of method ``ridge``, see `fit`.
        random: how many random subspaces of dimension k (`subspace.random_subspace`).
        permutations: how many times problems of the two languages are paired at random.
        seed: of both.
        confidence: central share of a null between its `_low` and `_high`.

    Returns:
        One row a method, and one a method and singular value. `p_permuted` and `p_random` are
        one-sided: (1 + draws with `r2_loo` at least as large)/(1 + draws). `rank_random` is 1 where
        the subspace is ahead of all random ones; ties count against it.

    Raises:
        StreamgaugeError: no draws of a null; see `fit`.
    """
    if random < 1 or permutations < 1:
        raise StreamgaugeError(
            f"{random} random subspaces and {permutations} permutations are no null",
            where="bridge",
            remedy="Set bridge.random and bridge.permutations to 1 or more.",
        )
    target, source = np.asarray(target, np.float64), np.asarray(source, np.float64)
    basis = np.asarray(basis, np.float64)
    others = subspace.random_subspaces(basis.shape[1], len(basis), seed, random)
    shuffled = statistics.shuffles([0] * len(target), permutations, seed)
    rows, spectra = [], []
    for method, penalty in {"least_squares": 0.0, "ridge": ridge}.items():
        x, y = _pairs(target @ basis.T, source @ basis.T)
        design = _design(x, penalty)
        own = _fitted(design, y)
        permuted = np.array([_r2_loo(design, y[order]) for order in shuffled])
        null = [fit(target @ v.T, source @ v.T, penalty) for v in others]
        loo = np.array([found.r2_loo for found in null])
        rank = rank_from_top(own.r2_loo, loo)
        row = {
            "method": method,
            "n_pairs": len(target),
            "r2_loo": own.r2_loo,
            "r2_in_sample": own.r2_in_sample,
            "informative": own.informative,
            "orthogonality_error": own.orthogonality_error,
            "condition": own.condition,
            **_band("permuted", permuted, confidence),
            "p_permuted": rank_from_top(own.r2_loo, permuted) / (1 + permutations),
            **_band("random", loo, confidence),
            "rank_random": rank,
            "p_random": rank / (1 + random),
            "n_random": random,
            "n_permutations": permutations,
        }
        errors = [found.orthogonality_error for found in null]
        rows.append(row | _band("random_orthogonality", errors, confidence))
        spectrum = {"method": method, "index": range(len(basis))}
        spectrum["singular_value"] = own.singular_values
        spectrum |= _band("random", [found.singular_values for found in null], confidence)
        spectra.append(pd.DataFrame(spectrum))
    return pd.DataFrame(rows), pd.concat(spectra, ignore_index=True)


def _band(name, draws, confidence):
    """Ends of the central share of draws."""
    low, high = subspace.central(draws, confidence)
    return {f"{name}_low": low, f"{name}_high": high}


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
    varies = sst > statistics.ROUNDING * (y**2).sum()
    return float(1 - sse / sst) if varies else math.nan
