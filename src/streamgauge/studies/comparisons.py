"""A study's comparisons across scale, budget and k, from its per-sequence tables.

Definitions are those of docs/definitions.md, "Comparisons across scale". Every number carries up to
three intervals: over evaluation sequences (paired bootstrap), over training seeds (t), and over
both. The same resamples of the sequences serve every SAE, so that all differences are paired.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from streamgauge.numerics import inference, nulls
from streamgauge.numerics.token_sets import TOKEN_SETS
from streamgauge.studies import proxy_gap
from streamgauge.studies.paired import (
    CELL,
    INTERVALS,
    MEASURES,
    NULL_MEASURES,
    RUN,
    Study,
    interval_columns,
    intervals,
)

#: columns of each table, also of one without rows
COLUMNS: dict[str, list[str]] = {
    "deltas": [
        *("corpus", "token_set", "depth", *RUN, "seed"),
        *("small", "big", "small_layer", "big_layer", "small_d_model", "big_d_model"),
        *("n_sequences", "n_seeds"),
        *(column for name in MEASURES for column in interval_columns(f"d_{name}")),
        *(*interval_columns("gap"), "mismatch", "resolved", "mismatch_rate"),
        *("untrained_d_r2", "untrained_d_ce_rec"),
        *("untrained_gap", "untrained_gap_low", "untrained_gap_high"),
    ],
    "budgets": [
        *("corpus", "token_set", "subject", "d_model", "depth", "layer", *RUN),
        *("n_seeds", "n_sequences"),
        *(column for name in NULL_MEASURES for column in interval_columns(name, False)),
        *("alive", "alive_seed_low", "alive_seed_high"),
        *("previous_tokens", "change_n_seeds", *interval_columns("change_ce_rec")),
        *(f"untrained_{name}" for name in NULL_MEASURES),
    ],
    "correlations": [
        *("corpus", "token_set", "expansion", "objective", "tokens", "depth", "how", "k"),
        *("n", "n_subjects", "pearson", "pearson_low", "pearson_high"),
        *("null_low", "null_high", "p_value"),
    ],
    "kstar": [
        *("corpus", "token_set", "subject", "d_model", "depth", "layer"),
        *("expansion", "objective", "tokens", "target", "k_star", "censored"),
        *("k_star_low", "k_star_high", "censored_low", "censored_high"),
        *("untrained_k_star", "untrained_censored"),
    ],
}


class Tables(NamedTuple):
    """Result of `tables`: four tables, and what was refused or is missing, in sentences."""

    deltas: pd.DataFrame
    budgets: pd.DataFrame
    correlations: pd.DataFrame
    kstar: pd.DataFrame
    facts: dict[str, list[str]]


def tables(
    saes: Iterable[tuple[Mapping, pd.DataFrame]],
    grid: pd.DataFrame,
    tokens: Mapping[tuple[str, str], str],
    depths: Mapping[str, Mapping[str, str]],
    *,
    targets: Sequence[float],
    resamples: int = 5000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Tables:
    """Every comparison of a study.

    Args:
        saes: for every SAE of the grid the manifest of its ``per_sequence.json`` and the table
            that lies beside it (`evaluate.evaluate`), read one at a time.
        grid: the study's grid table, for the share of alive latents.
        tokens: (subject, corpus) -> sha256 of the token ids of its evaluation rows. Subjects with
            different ones have different tokenizers or rows and are not compared.
        depths: subject -> layer (as text) -> name of its depth. Layers of different subjects with
            one name are compared; subjects with different names or numbers of them are not.
        targets: levels of CE_rec for k*.
        resamples, confidence, seed: see `inference.bootstrap`.

    Returns:
        `deltas`, `budgets`, `correlations` and `kstar` with the columns docs/comparisons.md
        lists, and facts: ``refused`` (pairs of subjects, and why) and ``missing`` (SAEs that one
        of two compared subjects has and the other lacks).

    Raises:
        StreamgaugeError: no SAE; an SAE that is no cell of a grid; an SAE without its untrained
            control; one subject's SAEs run on different sequences of a corpus.
    """
    total = len(grid[CELL].drop_duplicates())
    study = Study(
        saes, total, tokens, depths, resamples=resamples, confidence=confidence, seed=seed
    )
    deltas = [row for s in TOKEN_SETS for row in _deltas(study, s)]
    budgets = [row for s in TOKEN_SETS for row in _budgets(study, s, grid)]
    correlations = [row for s in TOKEN_SETS for row in _correlations(study, s)]
    kstar = [row for s in TOKEN_SETS for row in _kstar(study, s, targets)]
    facts = {"refused": sorted(study.refused), "missing": sorted(study.missing())}
    made = zip(COLUMNS, (deltas, budgets, correlations, kstar), strict=True)
    return Tables(*(_table(rows, COLUMNS[name]) for name, rows in made), facts)


def _table(rows, columns) -> pd.DataFrame:
    # where some rows have none of these they would become fractions
    whole = [name for name in ("k", "previous_tokens", "change_n_seeds") if name in columns]
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(whole, "Int64"))


def token_hashes(records: Iterable[Mapping]) -> dict[tuple[str, str], str]:
    """(subject, corpus) -> sha256 of its token ids, of manifests of ``tokens-eval.json``."""
    found = {}
    for record in records:
        place = record["spec"]["wildcards"]
        found[place["subject"], place["corpus"]] = record["facts"]["tokens_sha256"]
    return found


def _deltas(study, token_set) -> Iterator[dict[str, Any]]:
    setting = ["depth", *RUN]
    for corpus, *pair in study.pairs:
        small, big = (study.matched(subject, corpus) for subject in pair)
        common = small.merge(big, on=[*setting, "seed"], suffixes=("_small", "_big"))
        for (_, *at), both in common.groupby(["layer_small", *setting]):
            sides = [
                both.rename(columns={f"{c}_{side}": c for c in ("subject", "corpus", "layer")})
                for side in ("small", "big")
            ]
            place = {"corpus": corpus, "token_set": token_set} | dict(zip(setting, at, strict=True))
            for i, seed in enumerate(both.seed):
                one = [side.iloc[[i]] for side in sides]
                yield place | {"seed": str(seed)} | _delta(study, *one, token_set)
            yield place | {"seed": "all"} | _delta(study, *sides, token_set)


def _delta(study, small, big, token_set) -> dict[str, Any]:
    """Big less small of SAEs paired by seed."""

    def difference(name, codec="sae"):
        one, other = (study.draws(side, token_set, name, codec) for side in (big, small))
        return one - other

    row: dict[str, Any] = {}
    for side, cells in (("small", small), ("big", big)):
        subject = cells.subject.iloc[0]
        row |= {side: subject, f"{side}_layer": cells.layer.iloc[0]}
        row[f"{side}_d_model"] = study.d_model[subject]
    d = {name: difference(name) for name in MEASURES}
    row |= {"n_sequences": d["r2"].n, "n_seeds": len(small)}
    for name, draws in d.items():
        row |= intervals(f"d_{name}", draws, study.confidence, errors=True)
    row |= intervals("gap", proxy_gap.gap(d["r2"], d["ce_rec"]), study.confidence, errors=True)
    mismatches = proxy_gap.mismatch(d["r2"].values[:, 0], d["ce_rec"].values[:, 0])
    row["mismatch"] = int(proxy_gap.mismatch(row["d_r2"], row["d_ce_rec"]))
    row["mismatch_rate"] = float(mismatches.mean())
    row["resolved"] = _resolved(row, "d_r2") and _resolved(row, "d_ce_rec")
    null = {name: difference(name, "untrained") for name in ("r2", "ce_rec")}
    row |= {f"untrained_d_{name}": draws.mean[0] for name, draws in null.items()}
    gap = intervals("untrained_gap", proxy_gap.gap(null["r2"], null["ce_rec"]), study.confidence)
    return row | {name: gap[name] for name in COLUMNS["deltas"] if name in gap}


def _budgets(study, token_set, grid) -> Iterator[dict[str, Any]]:
    own = grid[(grid.codec == "sae") & (grid.token_set == token_set)]
    alive = own.set_index(CELL).alive
    curve = ["corpus", "subject", "depth", "layer", "expansion", "objective", "k"]
    for at, cells in study.cells.groupby(curve):
        previous = None
        for tokens, part in cells.groupby("tokens"):
            row = dict(zip(curve, at, strict=True)) | {"token_set": token_set, "tokens": tokens}
            row |= {"d_model": study.d_model[row["subject"]], "n_seeds": len(part)}
            row["n_sequences"] = study.n_sequences(row["subject"], row["corpus"])
            for name in NULL_MEASURES:
                row |= intervals(name, study.draws(part, token_set, name), study.confidence)
                null = study.draws(part, token_set, name, "untrained")
                row[f"untrained_{name}"] = null.mean[0]
            living = alive.reindex(pd.MultiIndex.from_frame(part[CELL]))
            share = inference.t_interval(living, study.confidence)
            names = ("alive", "alive_seed_low", "alive_seed_high")
            row |= dict(zip(names, share, strict=True))
            if previous is not None:
                row |= _change(study, previous, part, token_set)
            previous = part
            yield row


def _change(study, before, after, token_set) -> dict[str, Any]:
    """CE_rec at one budget less that at the next smaller one, over the seeds of both."""
    row = {"previous_tokens": before.tokens.iloc[0]}
    one, other = (part[part.seed.isin(x.seed)] for part, x in ((after, before), (before, after)))
    row["change_n_seeds"] = len(one)
    if one.empty:
        return row
    change = study.draws(one, token_set, "ce_rec") - study.draws(other, token_set, "ce_rec")
    return row | intervals("change_ce_rec", change, study.confidence, errors=True)


def _correlations(study, token_set) -> Iterator[dict[str, Any]]:
    settings = ["expansion", "objective", "tokens"]
    for corpus in sorted({corpus for _, corpus in study.sequences}):
        cells = study.cells[study.cells.corpus == corpus]
        cells = cells[cells.subject.isin(study.alike(corpus))]
        for at, part in cells.groupby(settings):
            place = {"corpus": corpus, "token_set": token_set}
            place |= dict(zip(settings, at, strict=True))
            depths = part.sort_values("layer").depth.unique()
            for depth in [*depths, "all"]:
                points = part if depth == "all" else part[part.depth == depth]
                for row in _correlated(study, points, token_set):
                    yield place | {"depth": depth} | row


def _correlated(study, cells, token_set) -> Iterator[dict[str, Any]]:
    """The correlations over SAEs, each point the mean over seeds."""
    groups = [part for _, part in cells.groupby(["subject", "layer", "k"])]
    k = np.array([part.k.iloc[0] for part in groups])
    subjects = np.array([part.subject.iloc[0] for part in groups])
    r2, ce_rec = (
        np.stack([study.draws(part, token_set, name).mean for part in groups], -1)
        for name in ("r2", "ce_rec")
    )
    n = study.n_sequences(subjects[0], cells.corpus.iloc[0])
    for how, only, own in proxy_gap.ways(k):
        r = proxy_gap.pearson(r2[:, own], ce_rec[:, own], k[own], how)
        estimate = inference.percentile_interval(r[0], r[1:], n, study.confidence)
        row = {"how": how, "k": only, "n": int(own.sum())}
        row |= {"n_subjects": len(set(subjects[own]))}
        row |= dict(zip(("pearson", "pearson_low", "pearson_high"), estimate, strict=True))
        if np.isfinite(r[0]):
            blocks = k[own] if how == "within_k" else np.zeros(own.sum())
            order = nulls.shuffles(blocks, **study.resampling)
            null = proxy_gap.pearson(r2[0, own], ce_rec[0, own][order], k[own], how)
            row["null_low"], row["null_high"] = nulls.central(null, study.confidence)
            # a shuffle that gives the same up to rounding counts as extreme
            row["p_value"] = nulls.one_sided_p(abs(r[0]), np.abs(null))
        yield row


def _kstar(study, token_set, targets) -> Iterator[dict[str, Any]]:
    curve = ["corpus", "subject", "depth", "layer", "expansion", "objective", "tokens"]
    for at, cells in study.cells.groupby(curve):
        place = dict(zip(curve, at, strict=True)) | {"token_set": token_set}
        place["d_model"] = study.d_model[place["subject"]]
        by_k = [part for _, part in cells.groupby("k")]
        k = np.array([part.k.iloc[0] for part in by_k])
        curves, null = (
            np.stack([study.draws(part, token_set, "ce_rec", c).mean for part in by_k], -1)
            for c in ("sae", "untrained")
        )
        n = study.n_sequences(place["subject"], place["corpus"])
        for target in targets:
            found = inference.k_star_curves(k, curves, target)
            ends = _extremes(found[1:], n, study.confidence)
            row = {"target": target}
            for suffix, value in zip(("", "_low", "_high"), (found[0], *ends), strict=True):
                value, censored = inference.uncensored(value, k)
                row |= {f"k_star{suffix}": value, f"censored{suffix}": censored}
            untrained = inference.k_star(k, null[0], target)
            names = ("untrained_k_star", "untrained_censored")
            yield place | row | dict(zip(names, untrained, strict=True))


def _resolved(row, name) -> bool:
    """Whether every interval there is, and so the widest, excludes 0."""
    ends = [[row[f"{name}_{over}{end}"] for end in ("low", "high")] for over in INTERVALS]
    there = [(low, high) for low, high in ends if np.isfinite([low, high]).all()]
    return bool(there) and all(low > 0 or high < 0 for low, high in there)


def _extremes(replicates, n, confidence) -> tuple[float, float]:
    """Ends of the central interval of replicates that may be infinite, widened to replicates.

    Between a finite and an infinite replicate there is nothing to interpolate.
    """
    if n < 2 or np.isnan(replicates).any():
        return np.nan, np.nan
    ordered, place = np.sort(replicates), (1 - confidence) / 2 * (len(replicates) - 1)
    low = int(np.floor(place + nulls.ROUNDING))
    return float(ordered[low]), float(ordered[len(ordered) - 1 - low])


_PROFILE = ["subject", "corpus", "layer", "depth", "token_set"]


def depth_profile(spectra: pd.DataFrame, budgets: pd.DataFrame) -> pd.DataFrame:
    """Dimension and what SAEs keep, layer by layer.

    Args:
        spectra: the ``spectra.csv`` tables of one or more subjects and corpora, in one.
        budgets: the table of `tables`.

    Returns:
        One row for each subject, corpus, token set and layer, all of the model's: ``pr``,
        ``pr_deflated1``, ``pr_deflated`` (the deepest deflation), ``pr_over_d``, of the centred
        covariance, ``n_tokens``, ``d_model``. For layers with SAEs ``depth`` and, at the largest
        budget, the mean over seeds of ``r2`` and ``ce_rec`` at the smallest and the largest k
        (``k_min``, ``r2_k_min`` ..., ``k_max`` ...) and of the untrained null at the smallest.
        Where there are several, the smallest expansion is shown and the objective ``mse``, or
        the first by name; ``expansion``, ``objective`` and ``tokens`` say which.
    """
    centred = spectra[spectra.centring == "centred"].rename(columns={"deflate": "dropped"})
    place = [name for name in _PROFILE if name != "depth"]
    names = {"pr": 0, "pr_deflated1": 1, "pr_deflated": centred.dropped.max()}
    raw = centred[centred.dropped == 0].set_index(place)
    table = raw[["pr_over_d", "n_tokens", "d_model"]]
    for name, dropped in names.items():
        table = table.assign(**{name: centred[centred.dropped == dropped].set_index(place).pr})
    # the preferred SAEs of a layer come first
    first = budgets.assign(other=budgets.objective != "mse").sort_values(
        ["expansion", "other", "objective", "tokens"], ascending=[True, True, True, False]
    )
    run = ["expansion", "objective", "tokens"]
    chosen = first.drop_duplicates(place)[[*place, *run]]
    kept = chosen.merge(budgets, on=[*place, *run]).sort_values("k")
    for end, own in (
        ("k_min", kept.drop_duplicates(place)),
        ("k_max", kept.drop_duplicates(place, keep="last")),
    ):
        null = ["untrained_r2", "untrained_ce_rec"] if end == "k_min" else []
        renamed = {"k": end} | {name: f"{name}_{end}" for name in ("r2", "ce_rec", *null)}
        extra = ["depth", *run] if end == "k_min" else []
        table = table.join(own.set_index(place)[[*extra, *renamed]].rename(columns=renamed))
    table = table.reset_index().sort_values(place, ignore_index=True)
    whole = dict.fromkeys(("k_min", "k_max", "expansion", "tokens"), "Int64")
    order = [
        *(*_PROFILE, *names, "pr_over_d", "n_tokens", "d_model", *run),
        *("k_min", "r2_k_min", "ce_rec_k_min", "k_max", "r2_k_max", "ce_rec_k_max"),
        *("untrained_r2_k_min", "untrained_ce_rec_k_min"),
    ]
    return table.fillna({"depth": "", "objective": ""}).astype(whole)[order]
