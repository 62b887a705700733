"""What rank correlations are made of: ranks, deviations of unit length, values within groups.

Each takes the number of times every value occurs, so that a whole bootstrap is one call. Arrays are
NumPy or torch (see `arrays`).
"""

import numpy as np

from streamgauge.numerics.arrays import NUMPY, either
from streamgauge.numerics.nulls import ROUNDING


@either("x", "counts", inside=NUMPY)
def ranks(x, counts=None):
    """Ranks along the last axis from 1, ties sharing their mean rank: ``scipy.stats.rankdata``.

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


@either("x", "counts", inside=NUMPY)
def standardised(x, counts=None):
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


@either("x", "counts", inside=NUMPY)
def demeaned(x, groups, counts=None):
    """Values less the mean of their group, along the last axis.

    Args:
        x: finite values, shape ``(..., n)``.
        groups: the group each of the n values belongs to.
        counts: how often each value of `x`, shape ``(n,)``, occurs, shape ``(resamples, n)``.
            Default: once each.

    Returns:
        float64, the shape of `x` or of `counts`; exactly 0 where a group does not vary, or where
        none of it occurs.
    """
    x, groups = np.asarray(x, np.float64), np.asarray(groups)
    found = np.zeros(x.shape if counts is None else np.shape(counts))
    for group in np.unique(groups):
        own = groups == group
        if counts is None:
            found[..., own] = x[..., own] - x[..., own].mean(-1, keepdims=True)
        else:
            total = counts[:, own].sum(1, keepdims=True)
            mean = counts[:, own] @ x[own, None] / np.where(total, total, 1)
            found[:, own] = np.where(total, x[own] - mean, 0)
    # equal values leave only the rounding of their mean
    size = np.abs(x).max(-1, keepdims=True, initial=0)
    return np.where(np.abs(found) > ROUNDING * size, found, 0)
