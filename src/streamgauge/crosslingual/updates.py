"""What every block writes inside and outside Z: R(ell) by language, beside its chance level.

Definitions: docs/definitions.md, "Residual updates"; functions of arrays are in `subspace`.
"""

from typing import Any

import numpy as np
import pandas as pd

from streamgauge.crosslingual.states import States
from streamgauge.numerics import inference, nulls, subspace


def table(
    states: States, basis: np.ndarray, *, random: int, seed: int, confidence: float
) -> pd.DataFrame:
    """R of every transition between layers, for both languages, with Z fixed.

    The update of a prompt is the mean over its tokens of h(ell+1) − h(ell).

    Args:
        states: residual streams of pairs of prompts.
        basis: of Z, (k_sub, d_model), orthonormal rows.
        random: random subspaces of the null.
        seed: random subspace j is ``subspace.random_subspace(d, k_sub, [seed, j])``.
        confidence: of every interval.

    Returns:
        One row a transition and language: ``layer`` (ell of ell → ell+1), ``language``,
        ``n_prompts``; ``r`` with ``r_low, r_high``, mean over prompts and its t interval;
        ``r_chance`` (`subspace.update_ratio_chance`), ``r_over_chance``; ``r_random_low,
        r_random_high``, central interval over random subspaces of the same mean; ``asymmetry``,
        the mean over problems of R(target) − R(source), with its paired t interval
        ``asymmetry_low, asymmetry_high``, and the interval of random subspaces
        ``asymmetry_random_low, asymmetry_random_high``, the same on both rows. NaN where a
        prompt's update is 0.
    """
    k_sub, d_model = basis.shape
    null = subspace.random_subspaces(d_model, k_sub, seed, random)
    chance = subspace.update_ratio_chance(d_model, k_sub)
    rows: list[dict[str, Any]] = []
    below = states.pooled("mean", 0)
    for layer in range(states.n_layers - 1):
        above = states.pooled("mean", layer + 1)
        deltas = [b - a for a, b in zip(below, above, strict=True)]
        ratios = [subspace.update_ratio(delta, basis) for delta in deltas]
        # (draw, language)
        draws = np.array([[subspace.update_ratio(d, v).mean() for d in deltas] for v in null])
        asymmetry = _interval(ratios[0] - ratios[1], confidence)
        apart_low, apart_high = nulls.central(draws[:, 0] - draws[:, 1], confidence)
        for language, r, drawn in zip(states.languages, ratios, draws.T, strict=True):
            mean = _interval(r, confidence)
            low, high = nulls.central(drawn, confidence)
            rows.append(
                {
                    "layer": layer,
                    "language": language,
                    "n_prompts": len(r),
                    "r": mean.value,
                    "r_low": mean.low,
                    "r_high": mean.high,
                    "r_chance": chance,
                    "r_over_chance": mean.value / chance,
                    "r_random_low": low,
                    "r_random_high": high,
                    "asymmetry": asymmetry.value,
                    "asymmetry_low": asymmetry.low,
                    "asymmetry_high": asymmetry.high,
                    "asymmetry_random_low": apart_low,
                    "asymmetry_random_high": apart_high,
                }
            )
        below = above
    return pd.DataFrame(rows)


def _interval(values: np.ndarray, confidence: float) -> inference.Estimate:
    """The t interval, all NaN where a value is not finite."""
    if not np.isfinite(values).all():
        return inference.Estimate(np.nan, np.nan, np.nan)
    return inference.t_interval(values, confidence)
