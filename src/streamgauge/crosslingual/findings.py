"""What a cross-lingual study found, in sentences made from numbers, each with its null.

A sentence without a null cannot be made: `Finding` refuses it.
"""

import math
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from streamgauge.base.errors import StreamgaugeError
from streamgauge.crosslingual.dissociation import DOUBLE, OPEN


@dataclass(frozen=True)
class Finding:
    """One sentence: what was observed, where its null gives something to compare with.

    Attributes:
        topic: heading it belongs under.
        observed: words with a field ``{name}`` for every number of `values`.
        values: the numbers observed, finite.
        null: words with a field for every number of `nulls`.
        nulls: what the null gives, finite, at least one number.

    Raises:
        StreamgaugeError: there is no null, a number is not finite, or a number is not in the words.
    """

    topic: str
    observed: str
    values: Mapping[str, float]
    null: str
    nulls: Mapping[str, float]

    def __post_init__(self):
        for words, numbers in ((self.observed, self.values), (self.null, self.nulls)):
            said = {field for _, field, _, _ in string.Formatter().parse(words) if field}
            finite = all(math.isfinite(numbers[name]) for name in numbers)
            if not numbers or said != set(numbers) or not finite:
                what = "null" if words is self.null else "observation"
                raise StreamgaugeError(
                    f"a finding about {self.topic} without its {what}",
                    where=f"{words!r} with {dict(numbers)}",
                    remedy="Give every number that the words name; a sentence needs its null.",
                )

    @property
    def text(self) -> str:
        """The sentence."""
        words = f"{self.observed.format(**self.values)}, where {self.null.format(**self.nulls)}."
        return words[0].upper() + words[1:]


def found(
    tables: Mapping[str, pd.DataFrame], verdicts: Sequence[Mapping[str, Any]]
) -> list[dict[str, str]]:
    """All findings of one subject and prompts.

    Args:
        tables: see `tables.tables`, the rows of one subject and prompts.
        verdicts: their verdicts.

    Returns:
        ``topic`` and ``text`` of every sentence.

    Raises:
        StreamgaugeError: a number lacks its null, or a verdict its draws.
    """
    said = [{"topic": "Patching", "text": _verdict(v)} for v in verdicts]
    made = [
        *_tally(verdicts),
        *rates(tables["patching"]),
        *_geometry(tables["layers"], _layers(tables)),
        *_separation(tables["separation"]),
        *_updates(tables["updates"]),
        *_ard(tables["ard"]),
        *_bridge(tables["bridge"]),
    ]
    said += [{"topic": finding.topic, "text": finding.text} for finding in made]
    topics = list(dict.fromkeys(item["topic"] for item in said))
    return sorted(said, key=lambda item: topics.index(item["topic"]))


def rates(patching: pd.DataFrame) -> list[Finding]:
    """How often Z and Z⊥ change answers and language, one sentence a layer, k_sub and source.

    Args:
        patching: rows of one subject and prompts. Cells without a baseline's number or without
            random subspaces give no sentence.
    """
    made = []
    for place, every in _cells(patching, "layer", "k_sub", "source"):
        rows = every[every.over == "all"]
        by = {name: part for name, part in rows.groupby("condition", sort=False)}
        if not {"z", "z_perp", "random", "random_perp"} <= by.keys():
            continue
        z, perp = by["z"].iloc[0], by["z_perp"].iloc[0]
        if not (z.n_with_answer and z.n_with_language):
            continue
        values = {
            **_span("a", z, "answer_changed"),
            **_span("k", z, "language_kept"),
            **_span("c", perp, "answer_changed"),
            **_span("s", perp, "language_switched"),
            "n": z.n_with_answer,
            "m": z.n_with_language,
            "all": z.n,
        }
        nulls = {"draws": len(by["random"])}
        for name, kind, column in (
            ("a", "random", "answer_changed"),
            ("k", "random", "language_kept"),
            ("c", "random_perp", "answer_changed"),
            ("s", "random_perp", "language_switched"),
        ):
            draws = 100 * by[kind][column]
            nulls |= {f"{name}_low": draws.min(), f"{name}_high": draws.max()}
        made.append(
            Finding(
                "Patching",
                f"{place}: patching Z changes {{a:.0f}} % [{{a_low:.0f}}, {{a_high:.0f}}] of the"
                " answers and keeps the language of {k:.0f} % [{k_low:.0f}, {k_high:.0f}] of the"
                " outputs, while patching Z⊥ changes {c:.0f} % [{c_low:.0f}, {c_high:.0f}] of the"
                " answers and switches the language of {s:.0f} % [{s_low:.0f}, {s_high:.0f}]"
                " ({all:.0f} problems, of which {n:.0f} had a number and {m:.0f} a language"
                " unpatched)",
                values,
                "{draws:.0f} random subspaces change {a_low:.0f} % to {a_high:.0f} % and keep"
                " {k_low:.0f} % to {k_high:.0f} %, and their complements change {c_low:.0f} % to"
                " {c_high:.0f} % and switch {s_low:.0f} % to {s_high:.0f} %",
                nulls,
            )
        )
    return made


def _verdict(verdict) -> str:
    """The sentence of a verdict, which must have been read against draws."""
    decided = [half for half in verdict["halves"].values() if half["holds"] is not None]
    if not all(half["random"] for half in decided) or (verdict["verdict"] != OPEN and not decided):
        raise StreamgaugeError(
            f"a verdict without its null: {verdict['verdict']}",
            remedy="Set patching.random to 19 or more.",
        )
    place = _place(verdict, ("layer", "k_sub", "source"))
    return f"{place}: {verdict['sentence']}"


def _tally(verdicts) -> Iterator[Finding]:
    """How many verdicts came out, beside how many chance would give."""
    judged = [v for v in verdicts if v["verdict"] != OPEN]
    if judged:
        double = sum(v["verdict"] == DOUBLE for v in judged)
        yield Finding(
            "Patching",
            "{double:.0f} of {judged:.0f} adjudicated verdicts ({open:.0f} more are open) are a"
            " double dissociation",
            {"double": double, "judged": len(judged), "open": len(verdicts) - len(judged)},
            "at level {alpha:g} each at most {expected:.2g} would be expected of subspaces that"
            " are nothing special",
            {"alpha": judged[0]["alpha"], "expected": sum(v["alpha"] for v in judged)},
        )


def _layers(tables) -> list[int]:
    """Layers whose Z was asked about."""
    return sorted(
        {int(n) for name in ("separation", "patching", "bridge") for n in tables[name].layer}
    )


def _geometry(layers, asked) -> Iterator[Finding]:
    """Weights of the layers whose Z was asked about."""
    for _, rows in _cells(layers, "layer"):
        row = rows.iloc[0]
        if row.layer not in asked:
            continue
        if math.isfinite(row.ffn_alignment):
            yield Finding(
                "Weight geometry",
                f"layer {row.layer}: the MLP's input weights lie in Z (k_sub {row.k_sub})"
                " {x:.3g} times as much as chance gives",
                {"x": row.ffn_alignment},
                "random subspaces get {low:.3g} to {high:.3g}",
                {"low": row.ffn_random_low, "high": row.ffn_random_high},
            )
        if math.isfinite(row.similarity_next):
            yield Finding(
                "Weight geometry",
                f"layer {row.layer}: the similarity of Z with that of the next layer is {{x:.3g}}",
                {"x": row.similarity_next},
                "chance is {chance:.3g} and random subspaces give {low:.3g} to {high:.3g}",
                {
                    "chance": row.similarity_chance,
                    "low": row.similarity_random_low,
                    "high": row.similarity_random_high,
                },
            )


def _separation(table) -> Iterator[Finding]:
    """Distance between languages inside Z; pooled as the specification does, by the mean."""
    for place, every in _cells(table, "layer", "k_sub"):
        rows = every[every.pooling == "mean"]
        z = rows[rows.subspace == "z"].iloc[0]
        null = rows[rows.subspace != "z"]
        # problems that do not differ in some subspace have no ratio there
        if np.isfinite([z.ratio_z, z.ratio_z_perp, *null.ratio_z]).all():
            yield Finding(
                "Separation",
                f"{place}: the distance between languages over that between problems is {{z:.3g}}"
                " in Z and {perp:.3g} in Z⊥ (p = {p:.2g})",
                {"z": z.ratio_z, "perp": z.ratio_z_perp, "p": z.p_ratio_z},
                "{n:.0f} random subspaces give {low:.3g} to {high:.3g}",
                {"n": len(null), "low": null.ratio_z.min(), "high": null.ratio_z.max()},
            )
        yield Finding(
            "Separation",
            f"{place}: Z holds {{e:.3g}} of the squared difference between languages"
            " (p = {p:.2g})",
            {"e": z.e_z, "p": z.p_e_z},
            "a random direction has {chance:.3g} [{low:.3g}, {high:.3g}] there and random subspaces"
            " hold {least:.3g} to {most:.3g}",
            {
                "chance": z.e_chance,
                "low": z.e_chance_low,
                "high": z.e_chance_high,
                "least": null.e_z.min(),
                "most": null.e_z.max(),
            },
        )


def _updates(table) -> Iterator[Finding]:
    """The update that lies most in Z, one sentence a language."""
    for place, rows in _cells(table, "basis_layer", "k_sub", "language"):
        top = rows.loc[rows.r_over_chance.idxmax()]
        outside = ((rows.r < rows.r_random_low) | (rows.r > rows.r_random_high)).sum()
        yield Finding(
            "Residual updates",
            f"{place}: R(ℓ) is largest after layer {top.layer}, {{r:.3g}}"
            " [{low:.3g}, {high:.3g}] or {times:.3g} times chance, and {outside:.0f} of {n:.0f}"
            " updates lie outside what random subspaces give",
            {
                "r": top.r,
                "low": top.r_low,
                "high": top.r_high,
                "times": top.r_over_chance,
                "outside": outside,
                "n": len(rows),
            },
            "chance is {chance:.4g} and random subspaces give {low:.3g} to {high:.3g} there",
            {"chance": top.r_chance, "low": top.r_random_low, "high": top.r_random_high},
        )


def _ard(table) -> Iterator[Finding]:
    """Dimensions that ARD keeps, and how many of them Z has."""
    for place, rows in _cells(table, "layer", "penalty"):
        row = rows.iloc[0]
        yield Finding(
            "ARD-MMD",
            f"{place}: {{z:.0f}} of {{d:.0f}} dimensions count as shared by both languages",
            {"z": row.z_size, "d": row.d_model},
            "exchanged tokens give {low:.3g} to {high:.3g}",
            {"low": row.z_size_permuted_low, "high": row.z_size_permuted_high},
        )
        yield Finding(
            "ARD-MMD",
            f"{place}: fitted with the prior of Z, ARD's dimensions have {{x:.3g}} of those of Z"
            " (p = {p:.2g})",
            {"x": row.overlap, "p": row.overlap_p},
            "exchanged tokens with the same prior give {low:.3g} to {high:.3g}",
            {"low": row.overlap_permuted_low, "high": row.overlap_permuted_high},
        )
        if math.isfinite(row.overlap_flat):
            yield Finding(
                "ARD-MMD",
                f"{place}: fitted without the prior, ARD's dimensions have {{x:.3g}} of those of Z"
                " (p = {p:.2g})",
                {"x": row.overlap_flat, "p": row.overlap_flat_p},
                "chance is {chance:.3g} [{low:.3g}, {high:.3g}]",
                {
                    "chance": row.overlap_chance,
                    "low": row.overlap_chance_low,
                    "high": row.overlap_chance_high,
                },
            )


def _bridge(table) -> Iterator[Finding]:
    """Leave-one-out R² and orthogonality of every bridge."""
    for place, rows in _cells(table, "layer", "k_sub", "method"):
        row = rows.iloc[0]
        if not math.isfinite(row.r2_loo):
            continue
        yield Finding(
            "Bridge",
            f"{place}: the leave-one-out R² is {{r2:.3g}} over {{n:.0f}} pairs and the"
            " orthogonality error {error:.3g}",
            {"r2": row.r2_loo, "n": row.n_pairs, "error": row.orthogonality_error},
            "permuted pairs give an R² of {low:.3g} to {high:.3g} (p = {p:.2g}), and random"
            " subspaces one of {random_low:.3g} to {random_high:.3g} (p = {p_random:.2g}) with an"
            " error of {error_low:.3g} to {error_high:.3g}",
            {
                "low": row.permuted_low,
                "high": row.permuted_high,
                "p": row.p_permuted,
                "random_low": row.random_low,
                "random_high": row.random_high,
                "p_random": row.p_random,
                "error_low": row.random_orthogonality_low,
                "error_high": row.random_orthogonality_high,
            },
        )


def _span(name, row, column) -> dict[str, float]:
    """A rate and its interval in percent as fields ``name``, ``name_low``, ``name_high``."""
    return {f"{name}{end}": 100 * row[f"{column}{end}"] for end in ("", "_low", "_high")}


def _cells(table, *keys) -> Iterator[tuple[str, pd.DataFrame]]:
    """Rows that agree in `keys`, with the words for them; nothing for a table without rows."""
    for values, rows in table.groupby(list(keys), sort=False) if len(table) else ():
        yield _place(dict(zip(keys, values, strict=True)), keys), rows


def _place(cell, keys) -> str:
    words = {"source": "{} source", "basis_layer": "Z of layer {}", "language": "{}"}
    words |= {"method": "{}", "penalty": "penalty {:g}"}
    return ", ".join(words.get(key, key + " {}").format(cell[key]) for key in keys)
