"""Null distributions: how labels are shuffled for them, where a value stands in them.

Every p-value here counts the value itself among the draws, so that none is 0: that of n draws is at
least 1/(1 + n). Arrays are NumPy or torch (see `arrays`).
"""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from streamgauge.numerics.arrays import NUMPY, either

#: Numbers that differ by less than this share of their size are equal.
ROUNDING = 1e-12


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


@either("draws", inside=NUMPY)
def central(draws, confidence: float):
    """Ends of the central share of draws, shape (2, ...): their ``numpy.quantile``.

    Args:
        draws: (n, ...), the draws along the first axis.
        confidence: the share between the ends.
    """
    tail = (1 - confidence) / 2
    return np.quantile(draws, [tail, 1 - tail], axis=0)


class Rank(NamedTuple):
    """Where a value stands among draws of its null: 1 is the smallest of 1 + n; exact p."""

    rank: float
    p: float


@either("null", inside=NUMPY)
def rank_among(value: float, null) -> Rank:
    """Rank of a value among itself and n draws of its null, with a two-sided exact p-value.

    Args:
        value: the value of interest.
        null: the same statistic of the draws, (n,).

    Returns:
        ``rank`` = 1 + how many draws are smaller; ``p`` = twice the share, among the 1 + n
        values, of those at least as far out on its side, at most 1; draws that tie count against
        the value. 19 draws cannot give less than p = 0.1. NaN where something is NaN.
    """
    null = np.asarray(null, np.float64)
    if math.isnan(value) or np.isnan(null).any():
        return Rank(math.nan, math.nan)
    side = min((null <= value).sum(), (null >= value).sum()) + 1
    return Rank(float((null < value).sum() + 1), float(min(1.0, 2 * side / (len(null) + 1))))


@either("drawn", inside=NUMPY)
def rank_from_top(value: float, drawn) -> int:
    """Rank of a value among those of random draws; 1 is largest, a tie (or NaN) counts against it.

    Values that differ by rounding alone are tied.
    """
    return 1 + int(np.count_nonzero(~(np.asarray(drawn) < value - ROUNDING)))


def one_sided_p(value: float, drawn) -> float:
    """Exact p of a value being as large as it is: its `rank_from_top` over 1 + draws."""
    return rank_from_top(value, drawn) / (1 + len(drawn))
