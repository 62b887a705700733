"""Which cheap score of an SAE orders SAEs as their behaviour does: the proxy leaderboard.

Definitions are those of DEFINITIONS.md, "Comparisons across scale" and "Sensitivity". The table is
made from a study's grid table alone.
"""

import numpy as np
import pandas as pd

from streamgauge import statistics
from streamgauge.errors import StreamgaugeError
from streamgauge.spectra import TOKEN_SETS


def _larger(x):
    return x


def _smaller(x):
    return -x


def _inverse(x):
    """1/|x|: the sources correlate inverses, so that larger is better."""
    with np.errstate(divide="ignore"):
        return 1 / np.abs(x)


#: column of the grid table -> how it is turned so that a larger value says "better SAE"
PROXIES = {
    **dict.fromkeys(("r2", "cosine", "alive"), _larger),
    **dict.fromkeys(("relative_error", "nmse", "mse"), _smaller),
    # more latents and more bits are expected to carry more
    **dict.fromkeys(("l0", "rate_bits", "entropy_rate_bits"), _larger),
    **dict.fromkeys(("swd", "gradient_dot_abs", "gradient_dot", "first_order_nats"), _inverse),
    **dict.fromkeys(("quad_nats", "joint_quad_nats", "diagonal_quad_nats"), _smaller),
    "same_position_quad_nats": _smaller,
}
#: column of the grid table -> how it is turned so that a larger value is better behaviour
TARGETS = {"ce_rec_mean_of_ratios": _larger, "kl_nats": _smaller}
HOWS = ("pooled", "within_k")
_KEYS = ["target", "token_set", "how"]
# Values that differ from their mean by less than this share of the largest are equal to it.
_ROUNDING = 1e-12


def leaderboard(
    grid: pd.DataFrame, *, resamples: int = 5000, confidence: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """Correlation of every proxy with behaviour over the SAEs of a study.

    Args:
        grid: a study's grid table; only rows with codec ``sae`` count. Proxies it lacks, or that
            are empty or do not vary, have no correlation (NaN). An SAE whose proxy or target is
            not finite is left out there, and `n` says how many were left.
        resamples, seed: of the bootstrap, which draws whole clusters (subject, k), and of the
            null, which shuffles the targets among SAEs. All proxies share both, so that they are
            compared on the same draws.
        confidence: coverage of the intervals.

    Returns:
        One row for each ``target`` (``ce_rec_mean_of_ratios``; ``kl_nats``, negated), ``token_set``
        and ``how``, and each ``proxy``, turned so that +1 means that it orders SAEs as behaviour
        does:

        - ``how``: ``pooled`` correlates the values themselves; ``within_k`` first takes from proxy
          and target their mean over the SAEs of equal k, anew in every resample;
        - ``n``, ``n_clusters``; ``pearson``, ``spearman`` (the primary one) with ``_low`` and
          ``_high``, NaN below 3 SAEs or 2 clusters. Resamples in which a correlation does not
          exist (one cluster drawn again and again) are left out, and where they are most of all
          there is no interval;
        - ``null_low``, ``null_high``: central interval of the Spearman correlation with the target
          shuffled (``within_k``: among SAEs of equal k); ``p_value``: one-sided,
          (1 + #{null ≥ observed}) / (1 + resamples);
        - ``rank`` by the Spearman correlation among the proxies of one target, token set and how.

    Raises:
        StreamgaugeError: the table lacks a column that says which SAE a row is, or a target, or
            holds no SAE.
    """
    needed = ["subject", "k", "codec", "token_set", *TARGETS]
    missing = [name for name in needed if name not in grid]
    if missing:
        raise StreamgaugeError(
            f"the grid table has no column '{missing[0]}'", remedy="Remake the grid table."
        )
    trained = grid[grid.codec == "sae"]
    if trained.empty:
        raise StreamgaugeError("the grid table holds no SAE", remedy="Remake the grid table.")
    settings = {"resamples": resamples, "confidence": confidence, "seed": seed}
    rows = []
    for target, turn in TARGETS.items():
        for token_set in TOKEN_SETS:
            part = trained[trained.token_set == token_set]
            y = turn(part[target].to_numpy(np.float64))
            for how in HOWS:
                key = {"target": target, "token_set": token_set, "how": how}
                for proxy, turn_proxy in PROXIES.items():
                    x = part[proxy] if proxy in part else pd.Series(np.nan, part.index)
                    x = turn_proxy(x.to_numpy(np.float64))
                    counted = np.isfinite(x) & np.isfinite(y)
                    found = _correlate(x[counted], y[counted], part[counted], how, **settings)
                    rows.append(key | {"proxy": proxy} | found)
    table = pd.DataFrame(rows)
    place = table.groupby(_KEYS).spearman.rank(ascending=False, method="min")
    table["rank"] = place.astype("Int64")
    parts = [
        part.sort_values("rank", kind="stable") for _, part in table.groupby(_KEYS, sort=False)
    ]
    return pd.concat(parts, ignore_index=True)


def _correlate(x, y, saes, how, *, resamples, confidence, seed) -> dict:
    """Both correlations of the finite proxy x with the target y, both (n,), and their null."""
    n = len(x)
    k = saes.k.tolist()
    clusters = list(zip(saes.subject, k, strict=True))
    found = {"n": n, "n_clusters": len(set(clusters))}
    columns = ("pearson", "pearson_low", "pearson_high", "spearman", "spearman_low")
    columns += ("spearman_high", "null_low", "null_high", "p_value")
    found |= dict.fromkeys(columns, np.nan)
    if n < 2:
        return found
    within = how == "within_k"
    once = np.ones((1, n))
    one = [_demeaned(v, k, once) if within else v[None] for v in (x, y)]
    ranked = [statistics.ranks(v) for v in one]
    found["pearson"] = float(statistics.pearson(*one)[0])
    found["spearman"] = rho = float(statistics.pearson(*ranked)[0])
    if not np.isfinite(rho):
        return found
    labels = k if within else [0] * n
    shuffled = ranked[1][0][statistics.shuffles(labels, resamples, seed)]
    null = statistics.pearson(ranked[0], shuffled)
    tail = (1 - confidence) / 2
    found["null_low"], found["null_high"] = np.quantile(null, [tail, 1 - tail])
    # equal up to rounding is equal
    found["p_value"] = (1 + np.count_nonzero(null >= rho - _ROUNDING)) / (1 + resamples)
    if n < 3 or found["n_clusters"] < 2:
        return found
    counts = statistics.clustered_counts(clusters, resamples, seed)
    drawn = [_demeaned(v, k, counts) if within else v[None] for v in (x, y)]
    replicates = {
        "pearson": statistics.pearson(*drawn, counts),
        "spearman": statistics.pearson(*(statistics.ranks(v, counts) for v in drawn), counts),
    }
    for name, values in replicates.items():
        values = values[np.isfinite(values)]
        if 2 * len(values) > resamples:
            interval = statistics.percentile_interval(found[name], values, n, confidence)
            found[f"{name}_low"], found[f"{name}_high"] = interval.low, interval.high
    return found


def _demeaned(x, k, counts):
    """x (n,) less its mean over the rows of equal k, for every row of `counts`, (resamples, n)."""
    d = np.zeros(counts.shape)
    for value in set(k):
        own = np.array(k) == value
        total = counts[:, own].sum(1, keepdims=True)
        mean = counts[:, own] @ x[own, None] / np.where(total, total, 1)
        d[:, own] = np.where(total, x[own] - mean, 0)
    return np.where(np.abs(d) > _ROUNDING * np.abs(x).max(), d, 0)
