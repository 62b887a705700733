"""Scores of an SAE beside its nulls, with paired bootstrap intervals, from per-sequence tables.

Everything is computed from the tables `evaluate` and `sensitivity` write; definitions are those of
docs/definitions.md, the formulas those of `metrics`. Codecs are named ``sae``, ``untrained``,
``zero`` and ``mean``; ``sae_minus_untrained`` is the paired difference to the untrained SAE of the
same shape.
"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import pandas as pd
from scipy import sparse

from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.paths import cell_of
from streamgauge.base.progress import Progress
from streamgauge.numerics import inference, metrics
from streamgauge.numerics.sensitivity import deviation_from_totals
from streamgauge.numerics.token_sets import TOKEN_SETS

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
Formula = Callable[[Mapping[str, np.ndarray]], np.ndarray]


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
        resamples, confidence, seed: see `inference.bootstrap`; all codecs and both token sets
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
    weights = inference.data_and_resamples(n, resamples, seed)
    nothing = np.full(len(weights), np.nan)
    found: dict[str, dict] = {codec: {} for codec in rows}
    progress = Progress(len(TOKEN_SETS) * len(rows), "codecs", "score")
    for s in TOKEN_SETS:
        values = {}
        for codec, table in rows.items():
            columns = _columns(table, rows, costs.get(codec), s)
            t = dict(zip(columns, (weights @ columns.to_numpy()).T, strict=True))
            t |= {"d_model": table.d_model.iloc[0], "d_sae": d_sae}
            # a codec without latents has none of these
            t |= dict.fromkeys(("alive", "rate_bits", "entropy_rate_bits"), nothing)
            if not np.isnan(table[f"l0_sum_{s}"]).any():
                fired = _firing(latents, codec, f"n_{s}", table.index, d_sae)
                t["alive"], t["entropy_rate_bits"] = _latents(fired, weights, t["n_tokens"])
                if k is not None:
                    t["rate_bits"] = np.full(len(weights), metrics.rate_bits_per_token(d_sae, k))
            with np.errstate(divide="ignore", invalid="ignore"):  # an empty token set scores NaN
                values[codec] = {name: formula(t) for name, formula in METRICS.items()}
            progress.update(1, token_set=s)
        if all(codec in values for codec in DIFFERENCE):
            one, other = (values[codec] for codec in DIFFERENCE)
            values["_minus_".join(DIFFERENCE)] = {
                key: one[key] - other[key] if key not in _COUNTS else one[key] for key in one
            }
        for codec, by_metric in values.items():
            found.setdefault(codec, {})[s] = {
                key: _entry(key, by_metric[key], n, confidence) for key in METRICS
            }
    progress.close()
    return found


def _total(name: str) -> Formula:
    return lambda t: t[name]


def _ratio(total: str, over: str) -> Formula:
    return lambda t: t[total] / t[over]


#: Metric -> its formula, over totals (resamples,); in the order tables show them. The totals are
#: those of the columns of `_columns`, ``d_model``, ``d_sae``, the number of ``alive`` latents and
#: both rates. To add a metric, see docs/extending/metric.md.
METRICS: dict[str, Formula] = {
    "r2": lambda t: metrics.r_squared_from_totals(t["sse"], t["sst"]),
    "nmse": lambda t: metrics.nmse_from_totals(t["sse"], t["sst"]),
    "mse": lambda t: metrics.mse_from_totals(t["sse"], t["n_tokens"], t["d_model"]),
    "sse_per_token": _ratio("sse", "n_tokens"),
    "sst_per_token": _ratio("sst", "n_tokens"),
    "cosine": _ratio("cosine_sum", "n_tokens"),
    "relative_error": _ratio("relative_error_sum", "n_tokens"),
    "alive": _ratio("alive", "d_sae"),
    "l0": _ratio("l0_sum", "n_tokens"),
    "rate_bits": _total("rate_bits"),
    "entropy_rate_bits": _total("entropy_rate_bits"),
    "ce_rec_mean_of_ratios": _ratio("ce_rec", "counted"),
    "ce_rec_ratio_of_totals": lambda t: metrics.loss_recovered(t["l_orig"], t["l_recon"]),
    "ce_loss_score_zero": lambda t: metrics.loss_score(t["l_orig"], t["l_recon"], t["l_zero"]),
    "ce_loss_score_mean": lambda t: metrics.loss_score(t["l_orig"], t["l_recon"], t["l_mean"]),
    "kl_nats": _ratio("kl", "n_predicted"),
    "l_orig_nats": _ratio("l_orig", "n_predicted"),
    "l_recon_nats": _ratio("l_recon", "n_predicted"),
    "delta_l_nats": lambda t: (t["l_recon"] - t["l_orig"]) / t["n_predicted"],
    "first_order_nats": _ratio("cost_gradient_dot_sum", "cost_n_predicted"),
    "quad_nats": _ratio("cost_quad_sum", "cost_n_predicted"),
    "joint_quad_nats": _ratio("cost_joint_quad", "cost_n_predicted"),
    "diagonal_quad_nats": _ratio("cost_diagonal_quad_sum", "cost_n_predicted"),
    "swd": _ratio("cost_swd_sum", "cost_n_tokens"),
    "gradient_dot_abs": _ratio("cost_gradient_dot_abs_sum", "cost_n_tokens"),
    "gradient_dot": _ratio("cost_gradient_dot_sum", "cost_n_tokens"),
    "same_position_quad_nats": _ratio("cost_same_quad_sum", "cost_n_same"),
    "downstream_over_same_position": _ratio("cost_downstream_at_same_sum", "cost_same_quad_sum"),
    "fisher_deviation": lambda t: deviation_from_totals(
        t["cost_trace_squared_sum"], t["cost_trace_of_square_sum"], t["d_model"]
    ),
    **{name: _total(name) for name in _COUNTS},
}


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
    columns |= {name: totals(table, name, s) for name in ("l_orig", "l_recon", "kl")}
    columns |= {f"l_{name}": totals(rows[name], "l_recon", s) for name in ABLATIONS}
    columns["n_predicted"] = table[f"n_predicted_{s}"]
    columns["ce_rec"], columns["counted"] = recovered(table, s)
    columns["n_sequences"] = np.ones(len(table))
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


def recovered(table: pd.DataFrame, token_set: str) -> tuple[np.ndarray, np.ndarray]:
    """2 − L_recon/L_orig of every sequence, 0 where nothing is predicted; and where it is not.

    Args:
        table, token_set: see `totals`.
    """
    counted = table[f"n_predicted_{token_set}"].to_numpy() > 0
    losses = (table[f"{name}_nats_{token_set}"] for name in ("l_orig", "l_recon"))
    return np.where(counted, metrics.loss_recovered(*losses), 0.0), counted


def _firing(latents, codec, column, sequences, d_sae) -> sparse.csc_matrix:
    """Firing counts (sequences, d_sae) of one codec."""
    own = latents[latents.codec == codec]
    where = sequences.get_indexer(own.sequence), own.latent.to_numpy()
    if len(own) and (where[0].min() < 0 or where[1].max() >= d_sae):
        raise StreamgaugeError(f"the latent counts of '{codec}' do not belong to these sequences")
    counts = own[column].to_numpy(np.float64)
    return sparse.csc_matrix((counts, where), shape=(len(sequences), d_sae))


def _latents(fired, weights, n_tokens) -> tuple[np.ndarray, np.ndarray]:
    """Latents alive and entropy rate for every row of `weights`, a few latents at a time."""
    alive, bits = np.zeros((2, len(weights)))
    # latents that never fire add nothing to either
    fired = fired[:, np.diff(fired.indptr) > 0]
    for first in range(0, fired.shape[1], LATENTS_AT_ONCE):
        totals = weights @ fired[:, first : first + LATENTS_AT_ONCE].toarray()
        alive += np.count_nonzero(totals, axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            bits += metrics.entropy_rate_bits(totals / n_tokens[:, None])
    return alive, bits


def _entry(key, values, n, confidence) -> dict[str, float | None]:
    """Value and interval of one metric."""
    if key in _COUNTS:
        return plain((values[0], np.nan, np.nan))
    return plain(inference.percentile_interval(values[0], values[1:], n, confidence))


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
        own, facts = cell_of(record), record["facts"]
        shape = {name: facts[name] for name in ("d_model", "d_sae")}
        place = {name: own[name] for name in ("subject", "corpus", "layer")}
        run = {name: own[name] for name in ("expansion", "k", "tokens", "objective", "seed")}
        cell = {**place, **shape, **run}
        tables.append(tidy(facts["scores"], **cell))
    return pd.concat(tables, ignore_index=True)
