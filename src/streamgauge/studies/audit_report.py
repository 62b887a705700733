"""Is an SAE as good as its R² says? Judged from per-sequence tables, and said in words.

R² and the loss score against mean ablation have one scale: both are 0 for an SAE that returns the
mean activation and 1 for a perfect one. R² counts squared error, the loss score cross-entropy
after patching. Their difference is what R² claims beyond what the model keeps.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from streamgauge.base.errors import StreamgaugeError
from streamgauge.numerics import inference, metrics
from streamgauge.numerics.token_sets import TOKEN_SETS
from streamgauge.studies import score_card

CODECS = ("sae", "untrained")
DIFFERENCE = "sae_minus_untrained"
OVERSTATES, UNDERSTATES, UNRESOLVED = "overstates", "understates", "no difference resolved"
_MEASURES = ("r2", "ce_loss_score_mean", "ablation_cost_nats", "misleads")
# what the page shows of a scorecard
_METRICS = {
    "r2": "R²",
    "cosine": "cosine",
    "l0": "latents a token",
    "alive": "share of latents that fire",
    "ce_loss_score_mean": "loss score (mean ablation)",
    "ce_loss_score_zero": "loss score (zero ablation)",
    "ce_rec_mean_of_ratios": "CE recovered, mean of ratios",
    "ce_rec_ratio_of_totals": "CE recovered, ratio of totals",
    "delta_l_nats": "loss increase, nats",
    "kl_nats": "KL(clean‖patched), nats",
    "joint_quad_nats": "½ δᵀGδ jointly, nats",
    "swd": "(g·δ)² a token",
}
_HEADINGS = {
    "sae": "SAE",
    "untrained": "untrained",
    "mean": "mean ablation",
    "zero": "zero ablation",
}
_SETS = {"all": "All tokens", "no_sink": "Without sinks"}


def judge(
    per_sequence: pd.DataFrame,
    baseline: pd.DataFrame,
    *,
    resamples: int = 5000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """How far R² and the loss score of an SAE differ, beside the same for its untrained control.

    Args:
        per_sequence: rows of `evaluate` for the codecs ``sae`` and ``untrained``.
        baseline: its rows for ``mean``, on the same sequences.
        resamples, confidence, seed: see `inference.bootstrap`; everything is paired.

    Returns:
        ``confidence``, ``n_sequences`` and ``token_sets``: token set -> codec -> ``r2``,
        ``ce_loss_score_mean``, ``misleads`` = their difference and ``ablation_cost_nats``, what
        mean ablation adds to the loss, in nats a predicted position; each ``{"value", "low",
        "high"}``, None where a number does not exist. For the difference also ``share``, the
        share of resamples with its sign, and ``direction``: ``overstates`` or ``understates``
        where the interval excludes 0, else ``no difference resolved``. Nothing is resolved where
        the interval of the ablation's cost reaches 0: the loss score has no scale then. The codec
        ``sae_minus_untrained`` has the paired difference of ``misleads`` to the null.

    Raises:
        StreamgaugeError: a codec is missing, or they were run on different sequences.
    """
    tables = pd.concat([per_sequence, baseline])
    rows = {
        name: tables[tables.codec == name].set_index("sequence").sort_index()
        for name in (*CODECS, "mean")
    }
    index = rows["sae"].index
    for name, table in rows.items():
        if not len(table) or not table.index.equals(index) or not index.is_unique:
            raise StreamgaugeError(
                f"no rows of codec '{name}' on the sequences the SAE was run on",
                remedy="Evaluate the SAE, its control and the ablations on the same token rows.",
            )
    n = len(index)
    weights = inference.data_and_resamples(n, resamples, seed)
    found: dict[str, dict] = {}
    for s in TOKEN_SETS:
        measured = {name: _measures(rows[name], rows["mean"], s, weights) for name in CODECS}
        sae, untrained = (measured[name]["misleads"] for name in CODECS)
        measured[DIFFERENCE] = {"misleads": sae - untrained}
        found[s] = {
            codec: {name: _entry(x, n, confidence) for name, x in by_measure.items()}
            for codec, by_measure in measured.items()
        }
        has_scale = (found[s]["sae"]["ablation_cost_nats"]["low"] or 0) > 0
        for codec, by_measure in measured.items():
            replicates, entry = by_measure["misleads"], found[s][codec]["misleads"]
            same = np.sign(replicates[1:]) == np.sign(replicates[0])
            entry["share"] = float(same.mean()) if entry["low"] is not None else None
            entry["direction"] = _direction(entry) if has_scale else UNRESOLVED
    return {"confidence": confidence, "n_sequences": n, "token_sets": found}


def _measures(table, mean, s: str, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The `_MEASURES` of one codec for every row of `weights` (resamples, sequences)."""
    columns = (
        *(table[f"{name}_{s}"] for name in ("sse", "sst")),
        *(score_card.totals(table, name, s) for name in ("l_orig", "l_recon")),
        score_card.totals(mean, "l_recon", s),
        table[f"n_predicted_{s}"],
    )
    summed = weights @ np.stack([column.to_numpy(np.float64) for column in columns], axis=1)
    sse, sst, l_orig, l_recon, l_mean, n_predicted = summed.T
    with np.errstate(divide="ignore", invalid="ignore"):  # an empty token set scores NaN
        r2 = metrics.r_squared_from_totals(sse, sst)
        score = metrics.loss_score(l_orig, l_recon, l_mean)
        cost = (l_mean - l_orig) / n_predicted
    return dict(zip(_MEASURES, (r2, score, cost, r2 - score), strict=True))


def _entry(values: np.ndarray, n: int, confidence: float) -> dict[str, Any]:
    """One measure with its interval."""
    return score_card.plain(inference.percentile_interval(values[0], values[1:], n, confidence))


def _direction(entry: Mapping[str, Any]) -> str:
    low, high = (0 if entry[end] is None else entry[end] for end in ("low", "high"))
    if low > 0:
        return OVERSTATES
    return UNDERSTATES if high < 0 else UNRESOLVED


def sentence(judgement: Mapping[str, Any], token_set: str = "all") -> str:
    """The judgement in two sentences: of the SAE, and of the null beside it."""
    by_codec = judgement["token_sets"][token_set]
    sae, null = (by_codec[name] for name in CODECS)
    claim = {
        OVERSTATES: "R² overstates how much of the model's predictions this SAE keeps",
        UNDERSTATES: "R² understates how much of the model's predictions this SAE keeps",
        UNRESOLVED: "These sequences do not resolve R² from how much of the model's predictions "
        "this SAE keeps",
    }[sae["misleads"]["direction"]]
    share = sae["misleads"]["share"]
    sure = "" if share is None else f", and {share:.1%} of the resamples have its sign"
    beyond = by_codec[DIFFERENCE]["misleads"]
    against = "is not resolved" if beyond["direction"] == UNRESOLVED else "is resolved"
    level = f"{judgement['confidence']:.0%} interval"
    return (
        f"{claim}: R² is {_number(sae['r2']['value'])}, the loss score "
        f"{_number(sae['ce_loss_score_mean']['value'])} (on both mean ablation scores 0 and a "
        f"perfect SAE 1), a difference of {_interval(sae['misleads'], level)}{sure}. "
        f"For an untrained SAE of this shape the difference is {_interval(null['misleads'])}; "
        f"the SAE's distance from that null, {_interval(beyond)}, {against}."
    )


def page(
    name: str, sae: Mapping[str, Any], scorecard: Mapping[str, Any], judgement: Mapping[str, Any]
) -> str:
    """The audit as Markdown: the sentence, the scorecard of both token sets, what was audited.

    Args:
        name: what the SAE is called.
        sae: facts of its ``sae.json``.
        scorecard: facts of its ``scores.json``, see `score_card.scorecard`.
        judgement: see `judge`.
    """
    sections = [f"# {name}: is it as good as its R² says?"]
    for token_set, heading in _SETS.items():
        sections.append(f"## {heading}\n\n{sentence(judgement, token_set)}")
        sections.append(_table(scorecard["scores"], token_set))
    sections.append("## What was audited\n\n" + _description(sae, judgement))
    return "\n\n".join(sections) + "\n"


def _table(found: Mapping[str, Any], token_set: str) -> str:
    lines = [
        f"| | {' | '.join(_HEADINGS.values())} |",
        f"|---|{'--:|' * len(_HEADINGS)}",
    ]
    for metric, label in _METRICS.items():
        cells = (_interval(found[codec][token_set][metric]) for codec in _HEADINGS)
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _description(sae: Mapping[str, Any], judgement: Mapping[str, Any]) -> str:
    sparsity = f"k = {sae['k']}" if sae["k"] else "thresholds"
    lines = [f"- {sae['d_model']} x {sae['d_sae']}, {sparsity}"]
    if "source" in sae:
        known = sae["trained_on"].items()
        trained = ", ".join(
            f"{key.replace('_', ' ')} {_code(x)}" for key, x in known if x is not None
        )
        lines += [
            f"- read from {_code(sae['source'])} ({sae['format']}, {sae['activation']})",
            f"- says of its training: {trained or 'nothing'}",
        ]
    control = sae.get("control_k", sae["k"])
    return "\n".join(
        [
            *lines,
            f"- {judgement['n_sequences']} evaluation sequences; "
            f"{judgement['confidence']:.0%} intervals over sequences in parentheses",
            f"- untrained: TopK of the same size, k = {control}, with this SAE's decoder bias",
        ]
    )


def _code(text: Any) -> str:
    """Words of the SAE's own as Markdown that stays words: no links, pictures or HTML."""
    return "`" + re.sub(r"[`\s]+", " ", str(text)) + "`"


def _interval(entry: Mapping[str, Any], level: str = "") -> str:
    """Value (low to high)."""
    if entry["value"] is None or entry["low"] is None:
        return _number(entry["value"])
    ends = f"{_number(entry['low'])} to {_number(entry['high'])}"
    return f"{_number(entry['value'])} ({f'{level} ' if level else ''}{ends})"


def _number(x: float | None) -> str:
    # what rounding leaves of a zero is a zero
    return "not defined" if x is None else f"{round(x, 6) + 0.0:.3g}"
