"""The verdicts of a study as one HTML page: no scripts, nothing fetched, readable on paper.

Every item is marked as what it is: observed, a hypothesis, or a test.
"""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from streamgauge.report import html

#: node -> (column, row, kind, text); the tree reads downwards, a column is an exit to the right
NODES = {
    "q_data": (0, 0, "test", "Two comparable models, two budgets, two seeds?"),
    "open_data": (1, 0, "", "H0, H1 not adjudicated"),
    "q_equal": (0, 1, "test", "|ΔCE_rec| within the margin in every cell?"),
    "h0": (1, 1, "hypothesis", "H0 supported, H1 rejected"),
    "q_gap": (0, 2, "test", "Beyond it in some cell, SAEs converged?"),
    "open_gap": (1, 2, "", "H0, H1 not adjudicated"),
    "h1": (0, 3, "hypothesis", "H1 supported, H0 rejected"),
    "q_proxy": (0, 4, "test", "Does the proxy order SAEs better than R²?"),
    "h2_supported": (1, 4, "hypothesis", "H2 supported"),
    "h2_rejected": (2, 4, "hypothesis", "H2 rejected"),
    "h2_open": (3, 4, "", "H2 not adjudicated"),
    "q_mi": (0, 5, "test", "Does k* depart from PR where Gap is large?"),
    "h3_supported": (1, 5, "hypothesis", "H3 supported"),
    "h3_rejected": (2, 5, "hypothesis", "H3 rejected"),
    "h3_open": (3, 5, "", "H3 not adjudicated"),
}
#: from, to, answer
EDGES = [
    ("q_data", "open_data", "no"),
    ("q_data", "q_equal", "yes"),
    ("q_equal", "h0", "yes"),
    ("q_equal", "q_gap", "no"),
    ("q_gap", "open_gap", "no"),
    ("q_gap", "h1", "yes"),
    ("h0", "q_proxy", ""),
    ("h1", "q_proxy", ""),
    ("q_proxy", "h2_supported", ""),
    ("q_proxy", "h2_rejected", ""),
    ("q_proxy", "h2_open", ""),
    ("q_proxy", "q_mi", ""),
    ("q_mi", "h3_supported", ""),
    ("q_mi", "h3_rejected", ""),
    ("q_mi", "h3_open", ""),
]
_WIDE, _SMALL, _HIGH, _STEP, _GAP = 330, 160, 34, 62, 46
_LIMITS = [
    "Gap = ΔR² − ΔCE_rec cannot reach 0 by behavioural parity alone: where ΔCE_rec is 0, Gap is"
    " ΔR². That is why ΔR² and ΔCE_rec are shown apart, and why no verdict is read off Gap.",
    "A verdict is about these models, this corpus and these budgets. Converged means that the last"
    " step of the budget changed little, not that no budget would change more.",
    "H0 and H1 hold at their level each by themselves; H2 and H3 are asked only after one of them"
    " was decided, once each. Exploratory numbers carry no verdict.",
    "Not adjudicated is no evidence for either side: the study is too small to say.",
]
_TREE_STYLE = """\
svg { max-width: 100%; height: auto } svg text { font: 13px system-ui, sans-serif; fill: #1a1a1a }
svg .box { fill: #fff; stroke: #8a8a8a } svg .taken .box { fill: #fff3d6; stroke: #1a1a1a;
  stroke-width: 2.5 } svg .taken text { font-weight: 700 }
svg .edge { stroke: #b0b0b0; fill: none } svg .edge.taken { stroke: #1a1a1a; stroke-width: 2.5 }
"""


def page(facts: Mapping[str, Any], study: str = "") -> str:
    """One self-contained HTML page.

    Args:
        facts: result of `verdicts.adjudicate`, or the facts of ``verdicts.json``.
        study: name of the study, for the title.
    """
    title = f"Verdicts of study {study}" if study else "Verdicts"
    legend = "".join(
        f"<dt>{html.mark(kind)}</dt><dd>{escape(words)}</dd>"
        for kind, words in facts["legend"].items()
    )
    rules = facts["rules"]
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{_settings(rules)}</p>",
        f"<h2>What the marks mean</h2><dl>{legend}</dl>",
        "<h2>The path taken</h2>",
        tree(facts["path"]),
        *(_hypothesis(name, facts["hypotheses"][name], rules) for name in facts["order"]),
        _cells(facts["hypotheses"]["H0"]["cells"]),
        _exploratory(facts["exploratory"], rules),
        html.items("Not compared", facts["not_compared"]),
        html.items("Limits", _LIMITS),
    ]
    body = "\n".join(part for part in parts if part)
    return html.document(title, body, _TREE_STYLE)


def tree(path: Iterable[str]) -> str:
    """The decision tree as inline SVG, the path taken in bold.

    Args:
        path: nodes that were taken, in their order.
    """
    taken = set(path)
    lines, boxes = [], []
    for start, end, answer in EDGES:
        lines.append(_edge(start, end, answer, {start, end} <= taken))
    for name, (_, _, _, text) in NODES.items():
        x, y, wide = _place(name)
        label = f'<text x="{x + wide / 2}" y="{y + 22}" text-anchor="middle">{escape(text)}</text>'
        box = f'<rect class="box" x="{x}" y="{y}" width="{wide}" height="{_HIGH}" rx="5"/>'
        kind = ' class="taken"' if name in taken else ""
        boxes.append(f'<g id="{name}"{kind}>{box}{label}</g>')
    width, height = _WIDE + 3 * (_SMALL + _GAP) + 60, 6 * _STEP
    words = f"Decision tree; taken: {', '.join(NODES[name][3] for name in path)}"
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'aria-label="{escape(words)}">{"".join(lines)}{"".join(boxes)}</svg>'
    )


def _place(name) -> tuple[int, int, int]:
    """Left, top and width of a node's box."""
    column, row, _, _ = NODES[name]
    wide = _WIDE if column == 0 else _SMALL + 40 * (row < 3)
    left = 10 + (column > 0) * (_WIDE + _GAP) + max(column - 1, 0) * (_SMALL + _GAP // 2)
    return left, 8 + row * _STEP, wide


def _edge(start, end, answer, taken) -> str:
    """A line from box to box: sideways to an exit, down to the next question."""
    x, y, wide = _place(start)
    to_x, to_y, to_wide = _place(end)
    kind = "edge taken" if taken else "edge"
    if y == to_y:
        # exits of one question leave below it, in a row
        level = y + _HIGH / 2
        across = f"M{x + wide} {level} H{to_x}"
        if NODES[end][0] > 1:
            above = y - 6
            across = f"M{x + wide} {level} h{_GAP // 3} V{above} H{to_x + to_wide / 2} V{to_y}"
        at = (x + wide + 8, level - 5)
    elif to_x < x:
        # back to the first column, past the boxes below
        across = f"M{x + wide} {y + _HIGH / 2} h16 V{to_y - 14} H{to_x + to_wide * 0.75} V{to_y}"
        at = (0, 0)
    else:
        across = f"M{x + wide / 2} {y + _HIGH} V{to_y}"
        at = (x + wide / 2 + 6, y + _HIGH + 18)
    word = f'<text x="{at[0]}" y="{at[1]}">{answer}</text>' if answer else ""
    return f'<path class="{kind}" d="{across}"/>{word}'


def _settings(rules) -> str:
    words = {"all": "all tokens", "no_sink": "attention sinks left out"}[rules["token_set"]]
    return escape(
        f"Smallest against largest model of the study, {words}. A gap is |ΔCE_rec| above"
        f" {rules['margin']:g}; an SAE has converged when its last step of the budget changed"
        f" CE_rec by less than {rules['convergence']:g}; every test has level {rules['alpha']:g}."
    )


def _hypothesis(name, fact, rules) -> str:
    """One verdict: the claim, the test, what was observed, and its null."""
    rule = f"{_rule(name, rules)} {html.sentence(fact['reason'])}"
    parts = [
        f"<section><h2>{name}: <span class='verdict'>{escape(fact['verdict'])}</span></h2>",
        f"<p>{html.mark('hypothesis')} {escape(fact['claim'])}</p>",
        f"<p>{html.mark('test')} {escape(rule)}</p>",
    ]
    if fact["statistic"]:
        seen, null = fact["statistic"], fact["null"]
        text = f"{seen['name']}: {html.number(seen)}{html.p(seen['p_value'])}"
        ends = html.number({"value": None, **null})
        parts.append(f"<p>{html.mark('observed')} {escape(text)}</p>")
        parts.append(
            f"<p class='null'>{html.mark('observed')} null, {escape(null['name'])}: {ends}</p>"
        )
    return "\n".join([*parts, "</section>"])


def _rule(name, rules) -> str:
    margin, alpha = f"{rules['margin']:g}", f"{rules['alpha']:g}"
    last = f"the interval lies above 0 and p ≤ {alpha}; rejected when it lies below"
    last += f" {rules['advantage']:g}."
    return {
        "H0": f"Supported when two one-sided tests put ΔCE_rec within ±{margin} in every cell.",
        "H1": "Supported when in some cell, corrected for their number, |ΔCE_rec| is above"
        f" {margin} and both models' SAEs have converged.",
        "H2": f"{rules['proxy']} against R², within k: supported when {last}",
        "H3": f"Supported when {last}",
    }[name]


def _cells(cells) -> str:
    """The table of cells: ΔR², ΔCE_rec and Gap apart, each with its null."""
    if not cells:
        return ""
    names = {"d_r2": "ΔR²", "d_ce_rec": "ΔCE_rec", "gap": "Gap"}
    columns = {"cell": ""}
    for words in names.values():
        columns |= {words: "", f"{words}, untrained": "null"}
    rows = []
    for cell in cells:
        row = [cell["label"]]
        for x in names:
            value = {"value": cell[x]}
            for end in ("low", "high"):
                both = cell.get(f"{x}_both_{end}")
                value[end] = cell.get(f"{x}_{end}") if both is None else both
            row += [html.number(value), html.short(cell[f"untrained_{x}"])]
        changes = ", ".join(html.short(cell[f"change_{side}"]) for side in ("small", "big"))
        rows.append([*row, changes, cell["state"]])
    table = html.table({**columns, "last change": "", "tests": ""}, rows)
    return (
        f"<h2>Cells at the largest budget</h2><p>{html.mark('observed')} Big less small, means"
        " over seeds. Intervals count sequences and seeds as drawn; where there is one seed they"
        " count sequences alone. Last change: of CE_rec, smallest and largest model, from the"
        f" budget before.</p>{table}"
    )


def _exploratory(rows, rules) -> str:
    """The proxies H2 was not about."""
    if not rows:
        return ""
    lines = [(row["proxy"], html.number(_of(row)), html.short(row["p_value"])) for row in rows]
    return (
        f"<h2>Exploratory: other proxies</h2><p>{html.mark('observed')} What they order better"
        f" than R² by, as H2 asks of {escape(rules['proxy'])}. No correction for their number, no"
        f" verdict.</p>{html.table(dict.fromkeys(('proxy', 'advantage', 'p'), ''), lines)}"
    )


def _of(row):
    return {end: row[name] for end, name in zip(_ENDS, _ADVANTAGE, strict=True)}


_ENDS = ("value", "low", "high")
_ADVANTAGE = ("advantage", "advantage_low", "advantage_high")
