"""Which dimensions a fit of ARD lengthscales calls shared, and how they lie to a subspace."""

from typing import NamedTuple

import numpy as np
from scipy import stats

from streamgauge.base.errors import StreamgaugeError
from streamgauge.numerics.arrays import NUMPY, either

# growth of log lengthscales that differs by less than this does not differ
_SAME_GROWTH = 1e-6


@either("basis", inside=NUMPY)
def structural_prior(basis):
    """Relative log lengthscales that favour the dimensions a subspace lies along.

    The energy of dimension j is z_j = Σ_i V_ij², the j-th diagonal entry of the projector. With
    ℓ_j = (z_j + k_sub/d_model)^(−1/2) the kernel measures distance by that diagonal and, in equal
    parts, by the flat metric of the same total: no dimension is out of the fit's reach.

    Args:
        basis: V, orthonormal rows, (k_sub, d_model).

    Returns:
        log ℓ up to a constant, float64 (d_model,).
    """
    energy = basis_energy(basis)
    return -0.5 * np.log(energy + energy.mean())


@either("basis", inside=NUMPY)
def basis_energy(basis):
    """Share of each dimension's unit vector that lies in the subspace: Σ_i V_ij², (d_model,)."""
    return (np.asarray(basis, np.float64) ** 2).sum(0)


@either("growth", "permuted", inside=NUMPY)
def shared(growth, permuted, level: float = 0.05):
    """Dimensions that do not grow more than in permuted fits: Z as the activations show it.

    Growth is measured in standard deviations of the dimension's own growth over the permuted
    fits, and those of all dimensions together are the null distribution: each permuted fit is
    held against the others in the same way. A dimension has grown where its Benjamini-Hochberg
    adjusted p (``scipy.stats.false_discovery_control``) is at most `level`; the rest is shared. So
    at most that share of the dimensions called different is expected to be shared in truth.
    "Shared" itself means "not shown to differ" and takes in dimensions that differ too little to be
    seen.

    Args:
        growth: of the real fit, (d,), dimensions that vary.
        permuted: of permuted fits of as many steps, (permutations, d), at least 3 of them.
        level: share of false calls allowed.

    Returns:
        bool (d,).

    Raises:
        StreamgaugeError: fewer than 3 permuted fits.
    """
    check_permutations(len(permuted), 3)
    others = [np.delete(permuted, i, 0) for i in range(len(permuted))]
    null = np.sort([_score(g, rest) for g, rest in zip(permuted, others, strict=True)], axis=None)
    above = len(null) - np.searchsorted(null, _score(growth, permuted), side="left")
    p = (1 + above) / (1 + len(null))
    return stats.false_discovery_control(p) > level


def check_permutations(n: int, least: int = 4) -> None:
    """Refuse too few permuted fits.

    `shared` needs 3: held against the others, each needs a spread of theirs. To hold a permuted fit
    itself against the others as the real one is, there must be 4.

    Raises:
        StreamgaugeError: there are fewer.
    """
    if n < least:
        raise StreamgaugeError(
            f"{n} permuted fits are no null distribution",
            where="ard.permutations",
            remedy="Set at least 4; 20 or more let a single dimension be found.",
        )


def _score(growth, others):
    sd = np.maximum(others.std(0, ddof=1), _SAME_GROWTH)
    return (growth - others.mean(0)) / sd


class Chance(NamedTuple):
    """Overlap of a fit with a subspace, as a share of k_sub, and what chance gives.

    Attributes:
        overlap: share of the k_sub dimensions of smallest ℓ among the k_sub of largest energy.
        p: chance of at least that overlap under the hypergeometric law.
        mean, low, high: of that law, with the central interval asked for.
    """

    overlap: float
    p: float
    mean: float
    low: float
    high: float


@either("log_lengthscale", "energy", "varying", inside=NUMPY)
def overlap(log_lengthscale, energy, k_sub: int, varying, confidence: float = 0.95) -> Chance:
    """How many of the dimensions with the smallest ℓ a subspace lies along most.

    Beside the law of as many drawn blindly, ``scipy.stats.hypergeom`` (docs/definitions.md,
    "ARD-MMD").

    Args:
        log_lengthscale: (d_model,).
        energy: of the subspace, see `basis_energy`, (d_model,).
        k_sub: how many dimensions are taken on either side.
        varying: bool (d_model,): only these have a lengthscale and can be drawn.
        confidence: of the interval.
    """
    smallest = np.argsort(np.where(varying, log_lengthscale, np.inf), kind="stable")
    smallest = smallest[: min(k_sub, varying.sum())]
    marked = np.zeros(len(energy), bool)
    marked[np.argsort(-energy, kind="stable")[:k_sub]] = True
    hits = int(marked[smallest].sum())
    law = stats.hypergeom(varying.sum(), (marked & varying).sum(), len(smallest))
    low, high = law.interval(confidence)
    return Chance(
        *(
            float(x)
            for x in (hits / k_sub, law.sf(hits - 1), law.mean() / k_sub, low / k_sub, high / k_sub)
        )
    )
