"""Attention-plan divergence of a study's SAEs by layer and head, with intervals."""

from collections.abc import Iterable, Mapping

import pandas as pd

from streamgauge.base.paths import cell_of
from streamgauge.numerics import inference, metrics


def table(
    per_sequence: pd.DataFrame,
    *,
    resamples: int = 5000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Mean divergence per query of every head, with bootstrap intervals over sequences.

    Args:
        per_sequence: rows of `measure`.
        resamples, confidence, seed: see `inference.bootstrap`; all heads and codecs share the
            resamples.

    Returns:
        ``codec, layer, head, n_rows, kl_nats, kl_low, kl_high, js_nats, js_low, js_high``, in the
        order of `per_sequence`; intervals of a single sequence are NaN.
    """
    n = per_sequence.sequence.nunique()
    weights = inference.data_and_resamples(n, resamples, seed)
    found = []
    for codec, rows in per_sequence.groupby("codec", sort=False, observed=True):
        # a column for each head, a row for each sequence
        wide = rows.pivot(index="sequence", columns=["layer", "head"])
        n_rows = weights @ wide.n_rows.to_numpy(float)
        made = wide.n_rows.sum().rename("n_rows").reset_index()
        made.insert(0, "codec", str(codec))
        for name in metrics.DIVERGENCES:
            values = weights @ wide[f"{name}_sum_nats"].to_numpy(float) / n_rows
            made[[f"{name}_nats", f"{name}_low", f"{name}_high"]] = [
                inference.percentile_interval(column[0], column[1:], n, confidence)
                for column in values.T
            ]
        found.append(made)
    return pd.concat(found, ignore_index=True)


def study_table(parts: Iterable[tuple[Mapping, pd.DataFrame]], **statistics) -> pd.DataFrame:
    """`table` of every SAE of a study.

    Args:
        parts: for each SAE the manifest of its rows, and the rows.
        statistics: see `table`.

    Returns:
        Rows of `table` behind ``subject, corpus, hook_layer, expansion, k, tokens, objective,
        seed``: ``hook_layer`` is where the SAE is patched in, ``layer`` where the head is.
    """
    found = []
    for record, rows in parts:
        own = cell_of(record)
        cell = {"subject": own["subject"], "corpus": own["corpus"], "hook_layer": own["layer"]}
        cell |= {name: own[name] for name in ("expansion", "k", "tokens", "objective", "seed")}
        made = table(rows, **statistics)
        found.append(made.assign(**cell)[[*cell, *made.columns]])
    return pd.concat(found, ignore_index=True)
