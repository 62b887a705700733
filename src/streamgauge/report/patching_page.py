"""The outputs of a patching run as one HTML page that a person reads: one problem a row."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd

from streamgauge.report import html

#: condition -> heading
NAMES = {
    "none": "not patched",
    "full": "everything replaced",
    "z": "Z patched",
    "random": "random subspaces",
    "norm_matched": "random subspaces, change of the norm in Z",
    "z_wrong": "Z, wrong problem",
    "z_same": "Z, other problem, same language",
    "z_self": "Z, own mean",
    "z_perp": "Z⊥ patched",
    "random_perp": "complements of random subspaces",
    "z_perp_wrong": "Z⊥, wrong problem",
    "z_perp_same": "Z⊥, other problem, same language",
    "z_perp_self": "Z⊥, own mean",
}
_RATES = {
    "answer_changed": "answer changed",
    "answer_preserved": "preserved",
    "answer_lost": "lost",
    "language_kept": "language kept",
    "language_switched": "switched",
    "degenerate": "degenerate",
    "correct": "correct",
}
_OVER = {"all": "All problems", "baseline_correct": "Problems answered correctly unpatched"}
_MAIN = ["none", "z", "z_perp", "full"]
_TITLE = "Patching {subject} with {prompts}, layer {ell}, k_sub {k_sub}, source {source}"
_STYLE = """
body { max-width: 90rem }
table.texts { table-layout: fixed; width: 100% }
table.texts th, table.texts td { text-align: left; vertical-align: top; white-space: pre-wrap;
  overflow-wrap: anywhere }
"""


def page(
    outputs: pd.DataFrame,
    rates: pd.DataFrame,
    verdict: Mapping[str, Any],
    texts: Mapping[str, str],
    cell: Mapping[str, str],
) -> str:
    """One self-contained HTML page.

    Args:
        outputs: from `patching.run`.
        rates: of `dissociation.rates`.
        verdict: of `dissociation.verdict`.
        texts: each problem's own text, see `patching.problem_texts`.
        cell: what was patched: ``subject``, ``prompts``, ``ell``, ``k_sub``, ``source``.
    """
    title = _TITLE.format(**cell)
    there = set(outputs.condition)
    controls = [c for c in NAMES if c in there and c not in _MAIN]
    return html.document(
        title,
        "\n".join(
            [
                f"<h1>{escape(title)}</h1>",
                f"<p class='verdict'>{escape(verdict['sentence'])}</p>",
                f"<p>{escape(verdict['reason'])}</p>",
                *(_over(rates[rates.over == over], title) for over, title in _OVER.items()),
                "<h2>Outputs</h2><p>Below every text: its number, its language.</p>",
                _texts(outputs, texts, _MAIN),
                "<h2>Outputs of the controls</h2><p>Of random subspaces the first one alone; all"
                " are in the table of outputs beside this page.</p>",
                _texts(outputs, texts, controls),
            ]
        ),
        _STYLE,
    )


def rates_table(rates: pd.DataFrame) -> str:
    """The rates of every condition, of random draws the range, each null below what it is for.

    Args:
        rates: rows of `dissociation.rates` over one set of problems, of one run of patching.

    Returns:
        How many problems there were, and a table of shares in percent, as HTML.
    """
    rows = []
    for condition, name in NAMES.items():
        part = rates[rates.condition == condition]
        if len(part) > 1 or condition in ("random", "random_perp", "norm_matched"):
            name = f"null: {len(part)} {name}, lowest to highest"
            cells = [_range(part[rate]) for rate in _RATES]
        elif len(part):
            cells = [_rate(part.iloc[0], rate) for rate in _RATES]
        if len(part):
            rows.append([name, *cells])
    first = rates.iloc[0]
    return (
        f"<p>{first.n} problems, {first.n_with_answer} with a number and "
        f"{first.n_with_language} with a language unpatched; shares of these, in percent, with "
        "exact intervals. Degenerate and correct are shares of all; a degenerate output counts "
        "neither as preserved nor as kept or switched.</p>"
        + html.table({"condition": "", **dict.fromkeys(_RATES.values(), "")}, rows)
    )


def _over(rates: pd.DataFrame, title: str) -> str:
    return f"<h2>{title}</h2>{rates_table(rates)}"


def _rate(row: pd.Series, rate: str) -> str:
    ends = [row.get(f"{rate}_{end}", None) for end in ("low", "high")]
    if pd.isna(row[rate]):
        return "–"
    interval = "" if pd.isna(ends).any() else " [{:.0f}, {:.0f}]".format(*(100 * e for e in ends))
    return f"{100 * row[rate]:.0f}{interval}"


def _range(values: pd.Series) -> str:
    return "–" if values.isna().all() else f"{100 * values.min():.0f} to {100 * values.max():.0f}"


def _texts(outputs: pd.DataFrame, texts: Mapping[str, str], conditions: Sequence[str]) -> str:
    """One problem a row, one condition a column."""
    first = outputs[outputs.draw <= 0]
    cells = {(row.condition, row.problem): _cell(row) for row in first.itertuples()}
    problems = outputs[outputs.condition == "none"]
    rows = [
        [
            f"{row.problem}\n{texts[row.problem].strip()}\n→ {row.answer:g}",
            *(cells[condition, row.problem] for condition in conditions),
        ]
        for row in problems.itertuples()
    ]
    columns = {"problem, true answer": "", **{NAMES[condition]: "" for condition in conditions}}
    return html.table(columns, rows, "texts")


def _cell(row) -> str:
    number = "no number" if pd.isna(row.extracted) else f"{row.extracted:g}"
    return f"{row.text.strip()}\n→ {number}, {'degenerate' if row.degenerate else row.language}"
