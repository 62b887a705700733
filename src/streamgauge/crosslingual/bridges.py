"""The linear maps between two languages inside a subspace, beside those of random pairs and others.

Definitions: docs/definitions.md, "Bridge"; functions of arrays are in `bridge`.
"""

import numpy as np
import pandas as pd

from streamgauge.base.errors import StreamgaugeError
from streamgauge.numerics import bridge, nulls, subspace


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
        ridge: penalty of method ``ridge``, see `bridge.fit`.
        random: how many random subspaces of dimension k (`subspace.random_subspace`).
        permutations: how many times problems of the two languages are paired at random.
        seed: of both.
        confidence: central share of a null between its `_low` and `_high`.

    Returns:
        One row a method, and one a method and singular value. `p_permuted` and `p_random` are
        one-sided: (1 + draws with `r2_loo` at least as large)/(1 + draws). `rank_random` is 1 where
        the subspace is ahead of all random ones; ties count against it.

    Raises:
        StreamgaugeError: no draws of a null; see `bridge.fit`.
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
    shuffled = nulls.shuffles([0] * len(target), permutations, seed)
    rows, spectra = [], []
    for method, penalty in {"least_squares": 0.0, "ridge": ridge}.items():
        x, y = target @ basis.T, source @ basis.T
        own = bridge.fit(x, y, penalty)
        permuted = bridge.permuted_r2(x, y, shuffled, penalty)
        null = [bridge.fit(target @ v.T, source @ v.T, penalty) for v in others]
        loo = np.array([found.r2_loo for found in null])
        rank = nulls.rank_from_top(own.r2_loo, loo)
        row = {
            "method": method,
            "n_pairs": len(target),
            "r2_loo": own.r2_loo,
            "r2_in_sample": own.r2_in_sample,
            "informative": own.informative,
            "orthogonality_error": own.orthogonality_error,
            "condition": own.condition,
            **_band("permuted", permuted, confidence),
            "p_permuted": nulls.one_sided_p(own.r2_loo, permuted),
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
    low, high = nulls.central(draws, confidence)
    return {f"{name}_low": low, f"{name}_high": high}
