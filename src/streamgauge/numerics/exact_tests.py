"""A patch of Z against the same patch of random subspaces: exact tests over problems.

Definitions: docs/definitions.md, "Patching". A `Contrast` cannot be built without its null.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from streamgauge.base.errors import StreamgaugeError
from streamgauge.numerics.arrays import NUMPY, either, to_numpy
from streamgauge.numerics.nulls import rank_from_top


@dataclass(frozen=True)
class Contrast:
    """What speaks for a half of the dissociation and what against it, problem by problem.

    Attributes:
        gain: Z does what the half says, shape ``(n,)``, bool.
        cost: its complement fails to do what the half says, ``(n,)``, bool (in the half of
            language the complement gains and Z fails).
        random_gain, random_cost: the null, the same of random subspaces, ``(draws, n)``.

    Arrays of either kind are kept as NumPy arrays.

    Raises:
        StreamgaugeError: the null is missing.
    """

    gain: np.ndarray
    cost: np.ndarray
    random_gain: np.ndarray
    random_cost: np.ndarray

    def __post_init__(self):
        for name in ("gain", "cost", "random_gain", "random_cost"):
            object.__setattr__(self, name, to_numpy(getattr(self, name)))
        shape, null = np.shape(self.gain), np.shape(self.random_gain)
        if len(null) != 2 or not null[0] or null[1:] != shape or np.shape(self.random_cost) != null:
            raise no_null()


class Tested(NamedTuple):
    """Result of `exact_tests`: sums over problems are divided by their number."""

    statistic: float
    random: np.ndarray
    rank: int
    p_rank: float
    discordant: tuple[int, int]
    p_paired: float
    p_within: float

    def holds(self, alpha: float) -> bool:
        """Z is ahead of the random subspaces, and of its own complement."""
        return max(self.p_rank, self.p_paired) <= alpha


def exact_tests(contrast: Contrast) -> Tested:
    """The exact tests of one half.

    Returns:
        `statistic`: mean of gain − cost for Z, and `random`, ``(draws,)``, for the random
        subspaces. `rank`: 1 where Z is ahead of all draws; a tie counts against Z. `p_rank` =
        rank/(1 + draws), exact where Z is a draw like any other. `discordant`: problems with gain
        and no cost, and with cost and no gain; `p_paired` is McNemar's exact one-sided test of
        them. `p_within`: of the sum over problems, were Z one of the 1 + draws subspaces drawn
        anew in every problem. It is exact only where random subspaces do not differ as wholes, and
        decides nothing.
    """
    own = contrast.gain.astype(int) - contrast.cost
    drawn = contrast.random_gain.astype(int) - contrast.random_cost
    n, total = len(own), int(own.sum())
    rank = rank_from_top(total, drawn.sum(1))
    return Tested(
        total / n if n else math.nan,
        drawn.sum(1) / n if n else np.full(len(drawn), np.nan),
        rank,
        rank / (1 + len(drawn)),
        (int((own == 1).sum()), int((own == -1).sum())),
        paired(contrast.gain, contrast.cost),
        _p_within(np.concatenate([own[None], drawn]), total),
    )


@either("x", "y", inside=NUMPY)
def paired(x, y) -> float:
    """McNemar's exact one-sided p of x being true more often than y over the same problems.

    ``scipy.stats.binomtest(ahead, ahead + behind, alternative="greater").pvalue``.

    Args:
        x, y: bool, shape ``(n,)``. Problems where they agree say nothing.
    """
    ahead, behind = int((x & ~y).sum()), int((y & ~x).sum())
    return float(stats.binom.sf(ahead - 1, ahead + behind, 0.5))


def _p_within(values, total):
    """P(sum ≥ total) where every problem draws one of its values, −1, 0 or 1, independently."""
    distribution = np.ones(1)
    for column in values.T:
        share = np.bincount(column + 1, minlength=3) / len(column)
        distribution = np.convolve(distribution, share)
    return float(min(distribution[total + values.shape[1] :].sum(), 1.0))


def no_null() -> StreamgaugeError:
    """What to raise where an effect has nothing to be compared with."""
    return StreamgaugeError(
        "an effect of Z comes without its null, the same patch of random subspaces",
        remedy="Patch random subspaces and their complements too; no verdict is read without.",
    )
