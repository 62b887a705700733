"""Scores of an SAE beside its nulls, with paired bootstrap intervals, from per-sequence tables.

Everything is computed from the tables `evaluate` and `sensitivity` write; definitions are those of
DEFINITIONS.md.
Codecs are named ``sae``, ``untrained``, ``zero`` and ``mean``; ``sae_minus_untrained`` is the
paired difference to the untrained SAE of the same shape.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from scipy import sparse

from streamgauge import manifest, metrics, statistics
from streamgauge.errors import StreamgaugeError
from streamgauge.progress import Progress
from streamgauge.spectra import TOKEN_SETS

ABLATIONS = ("zero", "mean")
DIFFERENCE = ("sae", "untrained")
CODECS = ("sae", "untrained", "sae_minus_untrained", *ABLATIONS)
# Latents resampled at once: 5,000 resamples of 64 latents are 2.5 MB, about a core's cache.
LATENTS_AT_ONCE = 64
# Columns of the per-sequence table that are sums already.
_SUMS = ("n_tokens", "sse", "sst", "cosine_sum", "relative_error_sum", "l0_sum")
_COUNTS = ("n_sequences", "n_tokens", "n_predicted")
# The same of the sensitivity table.
_SENSITIVITY_SUMS = (
    *("n_tokens", "n_predicted", "swd_sum", "gradient_dot_abs_sum", "gradient_dot_sum"),
    *("quad_sum", "joint_quad", "diagonal_quad_sum"),
    *("n_same", "same_quad_sum", "downstream_at_same_sum"),
    *("trace_squared_sum", "trace_of_square_sum"),
)


def scores(
    per_sequence: pd.DataFrame,
    latents: pd.DataFrame,
    sensitivity: pd.DataFrame | None = None,
    *,
    d_sae: int,
    k: int | None,
    resamples: int = 5000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, dict[str, dict[str, dict[str, float | None]]]]:
    """Every score of every codec in both token sets.

    Args:
        per_sequence: rows of `evaluate` for ``zero``, ``mean`` and any SAEs, on the same
            sequences.
        latents: firing counts of `evaluate` for the codecs with latents.
        sensitivity: table of `sensitivity.measure` on the same sequences, where there is one.
        d_sae, k: shape of the SAEs, for the alive fraction and the rate; without k (an SAE that
            keeps what exceeds a threshold) there is no ``rate_bits``.
        resamples, confidence, seed: see `statistics.bootstrap`; all codecs and both token sets
            share the resamples.

    Returns:
        codec -> token set -> metric -> ``{"value", "low", "high"}``. A number that does not exist
        (the rate of an ablation, the interval of one sequence) is None. Metrics:

        - ``r2``, ``nmse``, ``mse``, ``sse_per_token``, ``sst_per_token``, ``cosine``,
          ``relative_error``. SST is about the mean of the evaluation tokens, which resampling
          does not recompute;
        - ``alive``: share of the latents that fire on one of ``n_tokens`` tokens or more.
          A resample holds about 63 % of the sequences and can only lose latents, so the interval
          lies at or below the value: it shows what fewer sequences would have found;
        - ``l0``, ``rate_bits`` (a constant of d_sae and k), ``entropy_rate_bits``, bits/token;
        - ``ce_rec_mean_of_ratios`` (over sequences), ``ce_rec_ratio_of_totals`` (over tokens);
        - ``ce_loss_score_zero``, ``ce_loss_score_mean``: over tokens, as SAELens;
        - ``l_orig_nats``, ``l_recon_nats``, ``kl_nats``, ``delta_l_nats`` = L_recon − L_orig:
          means over predicted positions;
        - ``swd``, ``gradient_dot_abs``, ``gradient_dot``: means over tokens of (g·δ)², |g·δ|, g·δ;
        - ``first_order_nats``, ``quad_nats``, ``joint_quad_nats``, ``diagonal_quad_nats``: Σg·δ,
          ½δᵀGδ of each token alone, of all together, and with diag(p) for the Fisher, per
          predicted position: what `delta_l_nats` (the first) and `kl_nats` (the others) would be;
        - ``same_position_quad_nats``: ½δᵀGδ by the token's own logits, mean over the tokens with
          such probes; ``downstream_over_same_position``: ratio of totals over those tokens;
        - ``fisher_deviation``: Fisher–Euclidean deviation of the layer, the same for every codec.
          All these are None for a codec without rows in `sensitivity`;
        - ``n_sequences``, ``n_tokens``, ``n_predicted``: what the numbers rest on, no interval.

    Raises:
        StreamgaugeError: an ablation is missing, or codecs were run on different sequences.
    """
    rows = _by_codec(per_sequence)
    costs = _costs(sensitivity, rows)
    n = len(next(iter(rows.values())))
    counts = statistics.resample_counts(n, resamples, seed)
    found: dict[str, dict] = {codec: {} for codec in rows}
    progress = Progress(len(TOKEN_SETS) * len(rows), "codecs", "score")
    for s in TOKEN_SETS:
        # row 0 is the data itself, the others its resamples
        weights = np.vstack([np.ones(n), counts])
        values = {}
        for codec, table in rows.items():
            columns = _columns(table, rows, costs.get(codec), s)
            values[codec] = _aggregate(columns, weights, table.d_model.iloc[0])
            if not np.isnan(table[f"l0_sum_{s}"]).any():
                fired = _firing(latents, codec, f"n_{s}", table.index, d_sae)
                values[codec] |= _latent_metrics(fired, weights, values[codec]["n_tokens"])
                if k is not None:
                    rate = metrics.rate_bits_per_token(d_sae, k)
                    values[codec]["rate_bits"] = np.full(len(weights), rate)
            progress.update(1, token_set=s)
        if all(codec in values for codec in DIFFERENCE):
            one, other = (values[codec] for codec in DIFFERENCE)
            values["_minus_".join(DIFFERENCE)] = {
                key: one[key] - other[key] if key not in _COUNTS else one[key] for key in one
            }
        for codec, by_metric in values.items():
            found.setdefault(codec, {})[s] = {
                key: _entry(key, by_metric.get(key), n, confidence) for key in METRICS
            }
    progress.close()
    return found


#: Metrics in the order tables show them.
METRICS = (
    *("r2", "nmse", "mse", "sse_per_token", "sst_per_token", "cosine", "relative_error"),
    *("alive", "l0", "rate_bits", "entropy_rate_bits"),
    *("ce_rec_mean_of_ratios", "ce_rec_ratio_of_totals"),
    *("ce_loss_score_zero", "ce_loss_score_mean", "kl_nats", "l_orig_nats", "l_recon_nats"),
    *("delta_l_nats", "first_order_nats", "quad_nats", "joint_quad_nats", "diagonal_quad_nats"),
    *("swd", "gradient_dot_abs", "gradient_dot"),
    *("same_position_quad_nats", "downstream_over_same_position", "fisher_deviation"),
    *_COUNTS,
)


def _by_codec(per_sequence: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """codec -> its rows, indexed by sequence; the same sequences in the same order for all."""
    names = list(dict.fromkeys(per_sequence.codec))
    missing = [name for name in ABLATIONS if name not in names]
    if missing:
        raise StreamgaugeError(
            f"no rows of the {missing[0]} ablation to score against",
            remedy="Add the rows of the baseline.",
        )
    rows = {
        str(name): per_sequence[per_sequence.codec == name].set_index("sequence").sort_index()
        for name in names
    }
    first = rows[ABLATIONS[0]].index
    for name, table in rows.items():
        if not table.index.equals(first) or not first.is_unique:
            raise StreamgaugeError(
                f"codec '{name}' was not run on the same sequences as the {ABLATIONS[0]} ablation",
                remedy="Evaluate both on the same token rows.",
            )
    return rows


def _costs(sensitivity, rows) -> dict[str, pd.DataFrame]:
    """codec -> its sensitivity rows, in the order of `rows`; those that were measured."""
    if sensitivity is None:
        return {}
    sequences = next(iter(rows.values())).index
    costs = {
        str(name): sensitivity[sensitivity.codec == name].set_index("sequence").sort_index()
        for name in sensitivity.codec.unique()
    }
    for name, table in costs.items():
        if not table.index.equals(sequences):
            raise StreamgaugeError(
                f"the sensitivity of '{name}' was not measured on the sequences of its evaluation",
                remedy="Harvest gradients and probes for the evaluation split.",
            )
    return costs


def _columns(table, rows: Mapping[str, pd.DataFrame], costs, s: str) -> pd.DataFrame:
    """Per-sequence columns of which every score is a function of the sums."""
    columns = {key: table[f"{key}_{s}"] for key in _SUMS}
    n_predicted = table[f"n_predicted_{s}"]
    counted = n_predicted > 0
    columns |= {name: totals(table, name, s) for name in ("l_orig", "l_recon", "kl")}
    columns |= {f"l_{name}": totals(rows[name], "l_recon", s) for name in ABLATIONS}
    ratio = metrics.loss_recovered(table[f"l_orig_nats_{s}"], table[f"l_recon_nats_{s}"])
    columns |= {
        "n_predicted": n_predicted,
        "ce_rec": ratio.where(counted, 0.0),
        "counted": counted,
        "n_sequences": np.ones(len(table)),
    }
    for key in _SENSITIVITY_SUMS:
        columns[f"cost_{key}"] = np.nan if costs is None else costs[f"{key}_{s}"]
    return pd.DataFrame(columns).astype(np.float64)


def totals(table: pd.DataFrame, name: str, token_set: str) -> pd.Series:
    """Σ over predicted positions of a loss or divergence, in nats, sequence by sequence.

    Args:
        table: one codec's rows of a per-sequence table.
        name: ``l_orig``, ``l_recon`` or ``kl``, which the table holds as means.
        token_set: ``all`` or ``no_sink``.

    Returns:
        0 for a sequence without predicted positions, which has no mean.
    """
    n_predicted = table[f"n_predicted_{token_set}"]
    return (table[f"{name}_nats_{token_set}"] * n_predicted).where(n_predicted > 0, 0.0)


def _aggregate(columns: pd.DataFrame, weights: np.ndarray, d_model: int) -> dict[str, np.ndarray]:
    """Scores for every row of `weights` (resamples, sequences)."""
    t = dict(zip(columns, (weights @ columns.to_numpy()).T, strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):  # an empty token set scores NaN
        nmse = t["sse"] / t["sst"]
        sse_per_token = t["sse"] / t["n_tokens"]
        scores_of = {
            f"ce_loss_score_{name}": metrics.loss_score(t["l_orig"], t["l_recon"], t[f"l_{name}"])
            for name in ABLATIONS
        }
        return (
            scores_of
            | {
                "r2": 1 - nmse,
                "nmse": nmse,
                "mse": sse_per_token / d_model,
                "sse_per_token": sse_per_token,
                "sst_per_token": t["sst"] / t["n_tokens"],
                "cosine": t["cosine_sum"] / t["n_tokens"],
                "relative_error": t["relative_error_sum"] / t["n_tokens"],
                "l0": t["l0_sum"] / t["n_tokens"],
                "ce_rec_mean_of_ratios": t["ce_rec"] / t["counted"],
                "ce_rec_ratio_of_totals": metrics.loss_recovered(t["l_orig"], t["l_recon"]),
                "kl_nats": t["kl"] / t["n_predicted"],
                "l_orig_nats": t["l_orig"] / t["n_predicted"],
                "l_recon_nats": t["l_recon"] / t["n_predicted"],
                "delta_l_nats": (t["l_recon"] - t["l_orig"]) / t["n_predicted"],
            }
            | _sensitivities(t, d_model)
            | {key: t[key] for key in _COUNTS}
        )


def _sensitivities(t, d_model) -> dict[str, np.ndarray]:
    """Scores of the sums of `_SENSITIVITY_SUMS`; NaN where they were not measured."""
    per_token = {key: f"{key}_sum" for key in ("swd", "gradient_dot_abs", "gradient_dot")}
    per_predicted = {
        "first_order_nats": "gradient_dot_sum",
        "quad_nats": "quad_sum",
        "joint_quad_nats": "joint_quad",
        "diagonal_quad_nats": "diagonal_quad_sum",
    }
    return (
        {key: t[f"cost_{name}"] / t["cost_n_tokens"] for key, name in per_token.items()}
        | {key: t[f"cost_{name}"] / t["cost_n_predicted"] for key, name in per_predicted.items()}
        | {
            "same_position_quad_nats": t["cost_same_quad_sum"] / t["cost_n_same"],
            "downstream_over_same_position": t["cost_downstream_at_same_sum"]
            / t["cost_same_quad_sum"],
            "fisher_deviation": 1
            - t["cost_trace_squared_sum"] / (d_model * t["cost_trace_of_square_sum"]),
        }
    )


def _firing(latents, codec, column, sequences, d_sae) -> sparse.csc_matrix:
    """Firing counts (sequences, d_sae) of one codec."""
    own = latents[latents.codec == codec]
    where = sequences.get_indexer(own.sequence), own.latent.to_numpy()
    if len(own) and (where[0].min() < 0 or where[1].max() >= d_sae):
        raise StreamgaugeError(f"the latent counts of '{codec}' do not belong to these sequences")
    counts = own[column].to_numpy(np.float64)
    return sparse.csc_matrix((counts, where), shape=(len(sequences), d_sae))


def _latent_metrics(fired, weights, n_tokens) -> dict[str, np.ndarray]:
    """Alive fraction and entropy rate for every row of `weights`, a few latents at a time."""
    alive, bits = np.zeros((2, len(weights)))
    d_sae = fired.shape[1]
    # latents that never fire add nothing to either
    fired = fired[:, np.diff(fired.indptr) > 0]
    for first in range(0, fired.shape[1], LATENTS_AT_ONCE):
        totals = weights @ fired[:, first : first + LATENTS_AT_ONCE].toarray()
        alive += np.count_nonzero(totals, axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            bits += metrics.entropy_rate_bits(totals / n_tokens[:, None])
    return {"alive": alive / d_sae, "entropy_rate_bits": bits}


def _entry(key, values, n, confidence) -> dict[str, float | None]:
    """Value and interval of one metric."""
    if values is None:
        return plain((np.nan,) * 3)
    if key in _COUNTS:
        return plain((values[0], np.nan, np.nan))
    return plain(statistics.percentile_interval(values[0], values[1:], n, confidence))


def plain(estimate: Iterable[float]) -> dict[str, float | None]:
    """A value and its interval as JSON holds them: None for what is not finite."""
    numbers = (float(x) if np.isfinite(x) else None for x in estimate)
    return dict(zip(("value", "low", "high"), numbers, strict=True))


def scorecard(
    per_sequence,
    latents,
    sensitivity=None,
    *,
    d_model: int,
    d_sae: int,
    k: int | None,
    **statistics_,
) -> dict:
    """`scores` with the shape they belong to, as ``scores.json`` holds them.

    Args:
        per_sequence, latents, sensitivity, d_sae, k: see `scores`; `statistics_` are its other
            arguments.
        d_model: width of the residual stream.
    """
    found = scores(per_sequence, latents, sensitivity, d_sae=d_sae, k=k, **statistics_)
    return {"d_model": d_model, "d_sae": d_sae, "k": k, "scores": found}


def tidy(found: Mapping, **columns) -> pd.DataFrame:
    """`scores` as a table: one row for each codec and token set.

    Args:
        found: what `scores` returned.
        columns: constants put in front, e.g. ``layer=10, k=32``.

    Returns:
        ``codec, token_set``, then for every metric its value and ``{metric}_low``,
        ``{metric}_high``; counts have no interval.
    """
    # manifests come back with sorted keys: the order is fixed here
    codecs = [c for c in CODECS if c in found] + sorted(set(found) - set(CODECS))
    rows = []
    for codec in codecs:
        for token_set in TOKEN_SETS:
            row = {**columns, "codec": codec, "token_set": token_set}
            for key in METRICS:
                entry = found[codec][token_set][key]
                row[key] = entry["value"]
                if key not in _COUNTS:
                    row |= {f"{key}_{end}": entry[end] for end in ("low", "high")}
            rows.append(row)
    table = pd.DataFrame(rows)
    scored = table.columns[table.columns.get_loc("token_set") + 1 :]
    # None becomes NaN, also in a column that holds nothing else
    return table.astype(dict.fromkeys(scored, float))


def grid_table(manifests: Iterable[Mapping]) -> pd.DataFrame:
    """The scores of several SAEs in one table.

    Args:
        manifests: manifests of ``scores.json`` files of SAEs that a study trained; the facts are
            the `scorecard`.

    Returns:
        `tidy` rows behind ``subject, corpus, layer, d_model, d_sae, expansion, k, tokens,
        objective, seed``; `tokens` is the training budget.
    """
    tables = []
    for record in manifests:
        own, facts = manifest.cell(record), record["facts"]
        shape = {name: facts[name] for name in ("d_model", "d_sae")}
        place = {name: own[name] for name in ("subject", "corpus", "layer")}
        run = {name: own[name] for name in ("expansion", "k", "tokens", "objective", "seed")}
        cell = {**place, **shape, **run}
        tables.append(tidy(facts["scores"], **cell))
    return pd.concat(tables, ignore_index=True)
