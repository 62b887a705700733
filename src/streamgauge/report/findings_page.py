"""What a cross-lingual study reached and found, as one HTML page."""

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from streamgauge.crosslingual.tables import LEVELS
from streamgauge.report import html, patching_page

_LIMITS = [
    "Z is read off the attention weights as published: no norm gain, bias, rotary position or"
    " query/key norm is folded in. Another definition of Z may come out otherwise.",
    "A verdict is about this model, these problems, this layer, k_sub and source. It compares Z"
    " with random subspaces of the same size; the raw rates alone say nothing.",
    "Patching with the mean gives every position the same content. That alone moves answers: read"
    " the rows of the own mean before those of the other language.",
    "Not adjudicated is no evidence for either side: the study cannot say.",
    "In-sample R² of a bridge is 1 for any data when there are no more pairs than dimensions; only"
    " the leave-one-out R² is read.",
]
_STYLE = """\
.texts td { text-align: left; vertical-align: top } .level { font-size: 1.15rem }
"""


def page(facts: Mapping[str, Any], tables: Mapping[str, pd.DataFrame], study: str = "") -> str:
    """One self-contained HTML page.

    Args:
        facts: result of `tables.findings`, or the facts of ``crosslingual.json``.
        tables: result of `tables.tables` or `tables.read`.
        study: name of the study, for the title.
    """
    title = f"Cross-lingual findings of study {study}" if study else "Cross-lingual findings"
    blocks = facts["blocks"]
    parts = [
        f"<h1>{escape(title)}</h1>",
        *(_block(block, tables) for block in blocks),
        "" if blocks else "<p>No prompts were run: there are tables of weights alone.</p>",
        html.items("What the levels ask", facts["rules"]),
        html.items("Limits", _LIMITS),
    ]
    return html.document(title, "\n".join(part for part in parts if part), _STYLE)


def _block(block, tables) -> str:
    """One subject and prompts: level, findings, tables."""
    name = f"{block['subject']}, prompts {block['prompts']}"
    reached = block["level"] or "none of the three"
    later = LEVELS[LEVELS.index(block["level"]) + 1 :] if block["level"] else LEVELS
    lacking = f" The next, {later[0]}, lacks: {'; '.join(block['next'])}." if later else ""
    asked = [
        (c["level"], c["asks"], "yes" if c["met"] else "no", c["there"]) for c in block["criteria"]
    ]
    columns = dict.fromkeys(("level", "asks for", "met", "what there is"), "")
    parts = [
        f"<h2>{escape(name)}</h2>",
        f"<p class='level'>Level reached: <span class='verdict'>{reached}</span>.</p>",
        f"<p>{escape(lacking.strip())}</p>" if lacking else "",
        html.table(columns, asked, "texts"),
        _findings(block["findings"]),
        _patching(tables["patching"], block),
        _separation(tables["separation"], block),
    ]
    return "\n".join(part for part in parts if part)


def _findings(findings) -> str:
    """The sentences under their topics."""
    by: dict[str, list[str]] = {}
    for finding in findings:
        by.setdefault(finding["topic"], []).append(finding["text"])
    sections = []
    for topic, texts in by.items():
        lines = "".join(f"<li>{escape(text)}</li>" for text in texts)
        sections.append(f"<section><h3>{escape(topic)}</h3><ul>{lines}</ul></section>")
    return f"<p>{html.mark('observed')} What was found, with its null:</p>{''.join(sections)}"


def _patching(table, block) -> str:
    """Rates of every condition, one table a layer, k_sub and source."""
    own = _own(table, block)
    own = own[own.over == "all"] if len(own) else own
    parts = [
        f"<h4>Layer {layer}, k_sub {k_sub}, {escape(source)} source</h4>"
        + patching_page.rates_table(rows)
        for (layer, k_sub, source), rows in own.groupby(["layer", "k_sub", "source"], sort=False)
    ]
    head = f"<h3>Rates of patched runs</h3><p>{html.mark('observed')}</p>"
    return head + "".join(parts) if parts else ""


def _separation(table, block) -> str:
    """Z by every way of pooling beside random subspaces."""
    lines = []
    own = _own(table, block)
    groups = own.groupby(["layer", "k_sub", "pooling"], sort=False) if len(own) else ()
    for (layer, k_sub, pooling), rows in groups:
        z, null = rows[rows.subspace == "z"].iloc[0], rows[rows.subspace != "z"]
        lines.append(
            [
                f"layer {layer}, k_sub {k_sub}, {pooling}",
                _number(z.ratio_z),
                _ends(null.ratio_z),
                _number(z.ratio_z_perp),
                _number(z.ratio_full),
                _number(z.e_z),
                _ends(null.e_z),
                f"{_number(z.e_chance)} [{_number(z.e_chance_low)}, {_number(z.e_chance_high)}]",
            ]
        )
    columns = {"pooling": "", "ratio_Z": "", "random": "null", "ratio_Z⊥": "", "ratio_full": ""}
    columns |= {"E_Z": "", "E, random": "null", "E, chance": "null"}
    head = (
        f"<h3>Separation</h3><p>{html.mark('observed')} ratio: mean distance between the two"
        " languages of a problem over the mean distance between problems of a language. E: share of"
        " the squared difference between languages. Random subspaces: least to most.</p>"
    )
    return head + html.table(columns, lines) if lines else ""


def _own(table, block):
    """The rows of one subject and prompts."""
    return table[(table.subject == block["subject"]) & (table.prompts == block["prompts"])]


def _ends(values) -> str:
    return f"{_number(values.min())} to {_number(values.max())}"


def _number(value) -> str:
    return html.short(float(value) if np.isfinite(value) else None)
