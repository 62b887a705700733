"""Do two languages lie closer together inside Z than outside, and than in any other subspace?

Definitions: docs/definitions.md, "Attention subspace Z"; functions of arrays are in `subspace`.
"""

from typing import Any

import numpy as np
import pandas as pd

from streamgauge.crosslingual.states import POOLINGS, States
from streamgauge.numerics import nulls, subspace


def table(
    states: States, basis: np.ndarray, layer: int, *, random: int, seed: int, confidence: float
) -> pd.DataFrame:
    """Separation of the languages in Z and in random subspaces, under every pooling.

    Args:
        states: residual streams of pairs of prompts.
        basis: of Z, (k_sub, d_model), orthonormal rows.
        layer: whose states are measured.
        random: random subspaces of the null.
        seed: random subspace j is ``subspace.random_subspace(d, k_sub, [seed, j])``.
        confidence: of the interval of ``e_chance``.

    Returns:
        One row a pooling and subspace (``z``, ``random-0``, ...): ``pooling, subspace, ratio_z,
        ratio_z_perp, ratio_full, e_z`` (see `subspace.separation`; on a random row inside and
        outside that random subspace), ``e_chance, e_chance_low, e_chance_high`` (see
        `subspace.energy_chance`), ``n_pairs, n_random`` and, on the rows of Z only,
        ``rank_ratio_z, p_ratio_z, rank_e_z, p_e_z``: where Z stands among the random subspaces
        (1 is the smallest of 1 + n_random), see `nulls.rank_among`.

    Raises:
        StreamgaugeError: fewer than two problems; a prompt of one token, which has no mean without
            the first; the layer does not exist.
    """
    k_sub, d = basis.shape
    names = ["z", *(f"random-{j}" for j in range(random))]
    bases = [basis, *subspace.random_subspaces(d, k_sub, seed, random)]
    mean, low, high = subspace.energy_chance(d, k_sub, confidence)
    fixed = {
        "e_chance": mean,
        "e_chance_low": low,
        "e_chance_high": high,
        "n_pairs": states.n_problems,
        "n_random": random,
    }
    rows: list[dict[str, Any]] = []
    for pooling in POOLINGS:
        target, source = states.pooled(pooling, layer)
        found = [subspace.separation(target, source, v) for v in bases]
        for name, values in zip(names, found, strict=True):
            rows.append({"pooling": pooling, "subspace": name, **values, **fixed})
            for column in ("ratio_z", "e_z"):
                rank, p = np.nan, np.nan
                if name == "z":
                    null = [values[column] for values in found[1:]]
                    rank, p = nulls.rank_among(values[column], null)
                rows[-1] |= {f"rank_{column}": rank, f"p_{column}": p}
    return pd.DataFrame(rows)
