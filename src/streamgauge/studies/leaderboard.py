"""Which cheap score of an SAE orders SAEs as their behaviour does: the proxy leaderboard.

Definitions are those of docs/definitions.md, "Comparisons across scale" and "Sensitivity". The
table is made from a study's grid table alone.
"""

import functools
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from streamgauge.base.errors import StreamgaugeError
from streamgauge.numerics import correlation, inference, nulls
from streamgauge.numerics.token_sets import TOKEN_SETS


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
    trained = _trained(grid, TARGETS)
    settings = {"resamples": resamples, "confidence": confidence, "seed": seed}
    table = pd.DataFrame(
        {"target": target, **way, "proxy": proxy} | saes.correlation(proxy, target)
        for way, saes in _ways(trained, HOWS, settings)
        for proxy in PROXIES
        for target in TARGETS
    )
    place = table.groupby(_KEYS).spearman.rank(ascending=False, method="min")
    table["rank"] = place.astype("Int64")
    order = [list(TARGETS), list(TOKEN_SETS), list(HOWS)]
    known = {name: pd.Categorical(table[name], o) for name, o in zip(_KEYS, order, strict=True)}
    table = table.assign(**known).sort_values([*_KEYS, "rank"], kind="stable", ignore_index=True)
    return table.astype(dict.fromkeys(_KEYS, str))


def advantage(
    grid: pd.DataFrame,
    *,
    over: str = "r2",
    target: str = "ce_rec_mean_of_ratios",
    hows: Sequence[str] = HOWS,
    resamples: int = 5000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """How much better every proxy orders the SAEs of a study than one of them does.

    Args:
        grid, resamples, confidence, seed: see `leaderboard`.
        over: the proxy that the others are held against.
        target: a key of `TARGETS`.
        hows: of `HOWS`, those wanted.

    Returns:
        One row for each ``token_set``, ``how`` and other ``proxy`` of the table: ``n``,
        ``n_clusters``, ``spearman`` and ``spearman_over`` of the two over the SAEs that have both
        proxies and the target; ``advantage``, their difference, with ``_low`` and ``_high`` from
        the same resamples of clusters; ``null_low``, ``null_high`` and the one-sided ``p_value``,
        both correlations taken with the same shuffled target. Where a correlation or an interval
        does not exist (see `leaderboard`), all of it is NaN.

    Raises:
        StreamgaugeError: the table lacks a column that says which SAE a row is, `over` or
            `target`, or holds no SAE.
    """
    trained = _trained(grid, [over, target])
    settings = {"resamples": resamples, "confidence": confidence, "seed": seed}
    return pd.DataFrame(
        {**way, "proxy": proxy} | saes.advantage(proxy, over, target)
        for way, saes in _ways(trained, hows, settings)
        for proxy in PROXIES
        if proxy != over and proxy in grid
    )


def _trained(grid, columns) -> pd.DataFrame:
    """The rows of SAEs in a grid table that has the columns needed."""
    missing = [n for n in ("subject", "k", "codec", "token_set", *columns) if n not in grid]
    if missing:
        raise StreamgaugeError(
            f"the grid table has no column '{missing[0]}'", remedy="Remake the grid table."
        )
    trained = grid[grid.codec == "sae"]
    if trained.empty:
        raise StreamgaugeError("the grid table holds no SAE", remedy="Remake the grid table.")
    return trained


def _ways(trained, hows, settings) -> Iterator[tuple[dict[str, str], "_Saes"]]:
    """Every token set and way of comparing, with the SAEs compared."""
    for token_set in TOKEN_SETS:
        part = trained[trained.token_set == token_set]
        for how in hows:
            yield {"token_set": token_set, "how": how}, _Saes(part, how == "within_k", **settings)


class _Saes:
    """The SAEs of one token set, whose columns are correlated with each other."""

    def __init__(self, part, within_k, *, resamples, confidence, seed):
        self.part, self.within_k, self.confidence = part, within_k, confidence
        self.draws = {"resamples": resamples, "seed": seed}
        # two targets and a proxy are in use at a time, and each holds `resamples` x SAEs numbers
        self._prepared = functools.lru_cache(maxsize=4)(self._prepare)
        self._drawn = functools.lru_cache(maxsize=2)(self._draw)

    def correlation(self, proxy, target) -> dict:
        """Both correlations of a proxy with a target, their intervals and null."""
        counted = np.isfinite(self._values(proxy)) & np.isfinite(self._values(target))
        n, clusters = int(counted.sum()), self._clusters(counted)
        found = {"n": n, "n_clusters": len(set(clusters))}
        for name in ("pearson", "spearman"):
            found |= dict.fromkeys((name, f"{name}_low", f"{name}_high"), np.nan)
        found |= dict.fromkeys(("null_low", "null_high", "p_value"), np.nan)
        if n < 2:
            return found
        x, y = (self._prepared(name, counted.tobytes()) for name in (proxy, target))
        for name, one, other in zip(("pearson", "spearman"), x, y, strict=True):
            # row 0 is the data itself, the others its resamples
            r = np.clip(np.einsum("ri,ri->r", one, other), -1, 1)
            found[name] = float(r[0])
            interval = self._interval(r, n)
            if n > 2 and found["n_clusters"] > 1 and interval:
                found[f"{name}_low"], found[f"{name}_high"] = interval.low, interval.high
        if np.isfinite(found["spearman"]):
            found |= self._against_null(found["spearman"], x[1][0], y[1][0], counted)
        return found

    def advantage(self, proxy, over, target) -> dict:
        """Spearman's correlation of `proxy` with the target less that of `over`."""
        columns = [self._values(name) for name in (proxy, over, target)]
        counted = np.isfinite(columns).all(0)
        n, clusters = int(counted.sum()), self._clusters(counted)
        names = ("spearman", "spearman_over", "advantage", "advantage_low", "advantage_high")
        found = {"n": n, "n_clusters": len(set(clusters))}
        found |= dict.fromkeys((*names, "null_low", "null_high", "p_value"), np.nan)
        if n < 3 or found["n_clusters"] < 2:
            return found
        one, two, y = (self._prepared(name, counted.tobytes())[1] for name in (proxy, over, target))
        r, r_over = (np.clip(np.einsum("ri,ri->r", x, y), -1, 1) for x in (one, two))
        d = r - r_over
        interval = self._interval(d, n)
        if not np.isfinite(d[0]) or interval is None:
            return found
        found |= dict(zip(names, (float(r[0]), float(r_over[0]), *interval), strict=True))
        return found | self._against_null(d[0], one[0] - two[0], y[0], counted)

    def _interval(self, r, n) -> inference.Estimate | None:
        """Of r[0] from its resamples r[1:]; None where most of them are not defined."""
        defined = r[1:][np.isfinite(r[1:])]
        if 2 * len(defined) <= len(r) - 1:
            return None
        return inference.percentile_interval(r[0], defined, n, self.confidence)

    def _against_null(self, value, x, y, counted) -> dict:
        """Interval of x·y with the target y (n,) shuffled, and the one-sided p of `value`."""
        null = y[self._drawn(counted.tobytes())[1]] @ x
        low, high = nulls.central(null, self.confidence)
        # a shuffle that gives the same up to rounding counts against the proxy
        return {"null_low": low, "null_high": high, "p_value": nulls.one_sided_p(value, null)}

    def _values(self, name) -> np.ndarray:
        """The column `name`, turned so that larger is better; NaN where the table lacks it."""
        if name not in self.part:
            return np.full(len(self.part), np.nan)
        return (PROXIES | TARGETS)[name](self.part[name].to_numpy(np.float64))

    def _clusters(self, counted) -> list[tuple]:
        part = self.part[counted]
        return list(zip(part.subject, part.k, strict=True))

    def _draw(self, counted: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Counts of every SAE, once each and then resampled; and the shuffles of the null."""
        clusters = self._clusters(np.frombuffer(counted, bool))
        counts = inference.clustered_counts(clusters, **self.draws)
        groups = [k if self.within_k else None for _, k in clusters]
        once = np.ones((1, len(clusters)))
        return np.vstack([once, counts]), nulls.shuffles(groups, **self.draws)

    def _prepare(self, name, counted: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Column `name` and its ranks, standardised in every resample: (1 + resamples, n) each."""
        use, counts = np.frombuffer(counted, bool), self._drawn(counted)[0]
        x = self._values(name)[use]
        k = self.part.k.to_numpy()[use]
        x = correlation.demeaned(x, k, counts) if self.within_k else x[None]
        ranks = correlation.ranks(x, counts)
        return tuple(correlation.standardised(v, counts) for v in (x, ranks))
