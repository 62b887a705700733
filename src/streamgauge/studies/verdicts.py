"""The four hypotheses of a study, adjudicated in their order from its tables.

H0 and H1 ask whether the difference in CE recovered between the smallest and the largest model goes
away with training; H2 and H3 ask what explains it where reconstruction misleads, and stay closed
while H0 and H1 are open (docs/definitions.md, "Comparisons across scale"). The rules are those of
`hypotheses`; here tables become cells, and decisions become facts with their reasons.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from streamgauge.numerics import inference, nulls
from streamgauge.studies import gap_verdicts
from streamgauge.studies import hypotheses as decisions
from streamgauge.studies.hypotheses import OPEN, REJECTED, SUPPORTED, fact

ORDER = ("H0", "H1", "H2", "H3")
CLAIMS = {
    "H0": "Optimisation only: the difference in CE recovered between the smallest and the largest"
    " model goes to 0 as the training budget grows.",
    "H1": "Residual gap: a difference in CE recovered is left after both models' SAEs have"
    " converged.",
    "H2": "A sensitivity proxy orders SAEs as their behaviour does, better than R² does.",
    "H3": "The number of dimensions that mutual information needs departs from the participation"
    " ratio where the proxy gap is large.",
}
LEGEND = {
    "observed": "measured in this study, with its interval and its null",
    "hypothesis": "a claim about what lies behind it, stated before the numbers were read",
    "test": "the rule that joins the two, with its margin and level",
}
#: H2 reads correlations within k: pooled, whatever grows with k looks like a good proxy
HOW = "within_k"
_NODES = {SUPPORTED: "supported", REJECTED: "rejected", OPEN: "open"}


def adjudicate(
    deltas: pd.DataFrame,
    budgets: pd.DataFrame,
    advantages: pd.DataFrame | None,
    critics: pd.DataFrame | None,
    *,
    margin: float,
    convergence: float,
    alpha: float,
    proxy: str,
    advantage: float,
    token_set: str,
    refused: Sequence[str] = (),
    missing: Sequence[str] = (),
    resamples: int = 5000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """The verdicts of a study.

    Args:
        deltas, budgets: a study's ``deltas.csv`` and ``budgets.csv``. Cells are those of the
            smallest and the largest model of each corpus, means over seeds, at the largest budget.
        advantages: result of `leaderboard.advantage` over R².
        critics: a study's ``critics.csv``.
        margin: |ΔCE_rec| up to here is no gap.
        convergence: a change of CE_rec from one budget to the next within ± this is none.
        alpha: level of every test.
        proxy: the proxy H2 is about; all others are listed as exploratory.
        advantage: the smallest difference of Spearman correlations (H2) and the smallest
            correlation (H3) that would matter.
        token_set: ``all`` or ``no_sink``.
        refused, missing: sentences of `comparisons.tables`: pairs of subjects that were not
            compared and why, SAEs that one of a pair lacks.
        resamples, confidence, seed: of the null of H3 and of intervals.

    Returns:
        Facts of ``verdicts.json``, without NaN: ``order``, ``path`` (nodes of the decision tree
        that were taken), ``legend``, ``rules``, ``exploratory`` (other proxies), ``not_compared``
        (`refused` and `missing`), and for each of the ``hypotheses`` its ``claim``, ``verdict``
        (``supported``, ``rejected``, ``not adjudicated``), ``reason``, ``statistic`` (name,
        value, low, high, unit, p_value, confidence), ``null``, ``margin`` and ``cells``.
        A closed hypothesis has neither statistic nor null.

    Raises:
        StreamgaugeError: a table lacks a column, or a cell lacks the null of untrained SAEs.
    """
    own = gap_verdicts.seed_means(deltas, token_set)
    rules = {"margin": margin, "convergence": convergence, "alpha": alpha}
    cells = gap_verdicts.Cells(own, budgets[budgets.token_set == token_set])
    hypotheses, path = cells.hypotheses(rules, refused)
    later = {"smallest": advantage, "alpha": alpha}
    exploratory = []
    if hypotheses["H0"]["verdict"] == OPEN:
        closed = "closed until H0 and H1 are adjudicated: its numbers are not read before"
        hypotheses |= {name: fact(OPEN, closed, margin=advantage) for name in ("H2", "H3")}
    else:
        hypotheses["H2"], exploratory = _proxy(advantages, proxy, token_set, confidence, later)
        drawn = {"resamples": resamples, "seed": seed}
        points = departures(own, critics, token_set)
        hypotheses["H3"] = _dimension(points, drawn, confidence, later)
        for name, node in (("H2", "q_proxy"), ("H3", "q_mi")):
            path += [node, f"{name.lower()}_{_NODES[hypotheses[name]['verdict']]}"]
    settings = {**rules, "proxy": proxy, "advantage": advantage, "token_set": token_set}
    return _plain(
        {
            "order": ORDER,
            "path": path,
            "legend": LEGEND,
            "rules": settings | {"confidence": confidence},
            "hypotheses": {name: {"claim": CLAIMS[name], **hypotheses[name]} for name in ORDER},
            "exploratory": exploratory,
            "not_compared": [*refused, *missing],
        }
    )


def _proxy(advantages, proxy, token_set, confidence, rule) -> tuple[dict, list[dict]]:
    """Facts of H2, and the proxies it is not about."""
    if advantages is None or advantages.empty:
        return fact(OPEN, "no proxy was measured", margin=rule["smallest"]), []
    own = advantages[(advantages.token_set == token_set) & (advantages.how == HOW)]
    others = own[(own.proxy != proxy) & own.advantage.notna()]
    columns = ["proxy", "advantage", "advantage_low", "advantage_high", "p_value"]
    exploratory = others.sort_values("advantage", ascending=False)[columns].to_dict("records")
    row = own[own.proxy == proxy]
    evidence = None if row.empty else proxy_evidence(row.iloc[0])
    if evidence is None:
        text = f"{proxy} and R² cannot both be ranked within k: too few SAEs, or not measured"
        return fact(OPEN, text, margin=rule["smallest"]), exploratory
    name = f"Spearman correlation of {proxy} with CE_rec less that of R², within k"
    name += f", {row.n.iloc[0]} SAEs"
    return _ordered(evidence, name, confidence, rule), exploratory


def proxy_evidence(row: pd.Series) -> decisions.Evidence | None:
    """The advantage of a proxy with its null, from its row of `leaderboard.advantage`.

    Returns:
        None where there is no correlation or no interval.
    """
    if not np.isfinite(row.p_value):
        return None
    null = decisions.Null("the same with CE_rec shuffled", row.null_low, row.null_high, row.p_value)
    estimate = inference.Estimate(row.advantage, row.advantage_low, row.advantage_high)
    return decisions.Evidence(estimate, null)


def departures(own: pd.DataFrame, critics: pd.DataFrame | None, token_set: str) -> pd.DataFrame:
    """The points of H3: a row for each pair of models at a depth.

    Args:
        own: rows of ``deltas.csv``, one token set, means over seeds; the largest budget is used.
        critics: a study's ``critics.csv``; the hybrid critic is used.
        token_set: ``no_sink`` takes the participation ratio without sinks, ``all`` that with them.

    Returns:
        ``corpus``, ``depth``, ``small``, ``big``, their layers, ``gap`` (mean of |Gap| over k,
        expansion and objective), and ``small_departure``, ``big_departure``: |log2(k*_MI / PR)|.
        Pairs are left out where k* is censored or the critic is pinned to its ceiling.
    """
    place = ["corpus", "depth", "small", "small_layer", "big", "big_layer"]
    last = own[own.tokens == own.tokens.max()]
    points = last.assign(gap=last.gap.abs()).groupby(place, as_index=False).gap.mean()
    if critics is None or critics.empty:
        return points.iloc[:0].assign(small_departure=[], big_departure=[])
    run = ["subject", "corpus", "layer"]
    hybrid = critics[critics.critic == "hybrid"]
    pinned = hybrid.groupby(run).pinned.transform("any")
    censored = hybrid.censored.notna() & (hybrid.censored != "")
    # no k* at all where no critic exceeds its null
    usable = hybrid[~pinned & ~censored & hybrid.k_star.notna()].drop_duplicates(run)
    pr = usable.pr_no_sink if token_set == "no_sink" else usable.pr
    usable = usable[run].assign(departure=np.abs(np.log2(usable.k_star / pr)))
    for side in ("small", "big"):
        names = {"subject": side, "layer": f"{side}_layer", "departure": f"{side}_departure"}
        points = points.merge(usable.rename(columns=names), on=["corpus", side, f"{side}_layer"])
    return points


def dimension_evidence(
    points: pd.DataFrame, *, resamples: int, seed: int, confidence: float
) -> decisions.Evidence | None:
    """Spearman's correlation of |Gap| with the mean departure of both models of a pair.

    Args:
        points: result of `departures`.
        resamples, seed: of the null, which shuffles departures among models and layers.
        confidence: of the interval.

    Returns:
        See `hypotheses.association`.
    """
    units: dict[tuple, int] = {}
    departure: list[float] = []
    of_point = []
    for row in points.itertuples():
        for side in ("small", "big"):
            unit = (row.corpus, getattr(row, side), getattr(row, f"{side}_layer"))
            if unit not in units:
                units[unit] = len(units)
                departure.append(getattr(row, f"{side}_departure"))
            of_point.append(units[unit])
    pairs = np.reshape(of_point, (-1, 2))
    orders = nulls.shuffles([None] * len(units), resamples, seed)
    return decisions.association(points.gap, np.array(departure), pairs, orders, confidence)


def _dimension(points, drawn, confidence, rule) -> dict[str, Any]:
    """Facts of H3."""
    evidence = None
    if len(points) >= decisions.FEWEST_POINTS:
        evidence = dimension_evidence(points, **drawn, confidence=confidence)
    if evidence is None:
        text = f"{len(points)} pairs of models at a depth have a k* that is neither censored nor"
        text += f" pinned to its ceiling, and a gap that varies; {decisions.FEWEST_POINTS} needed"
        return fact(OPEN, text, margin=rule["smallest"])
    name = f"Spearman correlation of |Gap| with |log2(k*/PR)|, {len(points)} pairs"
    return _ordered(evidence, name, confidence, rule)


def _ordered(evidence, what, confidence, rule) -> dict[str, Any]:
    """Facts of H2 or H3, which share a rule."""
    verdict = decisions.ordering(evidence, **rule)
    value, low, high = evidence.statistic
    null = evidence.null
    shown = f"{value:.2f} [{low:.2f}, {high:.2f}], p = {null.p_value:.3g}"
    reason = {
        SUPPORTED: f"{shown}: above 0, and more than the null gives",
        REJECTED: f"{shown}: the interval lies below {rule['smallest']:g}",
        OPEN: f"{shown}: neither clear of 0 and the null, nor below {rule['smallest']:g}",
    }[verdict]
    statistic = {"value": value, "low": low, "high": high}
    statistic |= {"name": what, "unit": "1", "p_value": null.p_value, "confidence": confidence}
    seen = {"name": null.name, "low": null.low, "high": null.high}
    return fact(verdict, reason, margin=rule["smallest"], statistic=statistic, null=seen)


def _plain(x):
    """As JSON holds it: NumPy's numbers as Python's, None for what is not finite."""
    if isinstance(x, dict):
        return {key: _plain(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [_plain(value) for value in x]
    x = x.item() if isinstance(x, np.generic) else x
    return None if isinstance(x, float) and not np.isfinite(x) else x
