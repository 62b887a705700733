"""The verdicts of a study as one HTML page: no scripts, nothing fetched, readable on paper.

Every item is marked as what it is: observed, a hypothesis, or a test.
"""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

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
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
.mark { font-size: .75rem; border: 1px solid; border-radius: .6rem; padding: 0 .5rem;
  white-space: nowrap; background: #fff }
.observed { color: #00527d; border-style: solid }
.hypothesis { color: #8c3a00; border-style: dashed }
.test { color: #00614a; border-style: dotted }
.verdict { font-weight: 700 } section { border-left: 3px solid #d9d9d9; padding-left: 1rem }
.scroll { overflow-x: auto } .null { color: #595959 }
table { border-collapse: collapse; font-size: .85rem }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #d9d9d9 }
th:first-child, td:first-child, td:last-child { text-align: left }
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
    title = escape(f"Verdicts of study {study}" if study else "Verdicts")
    legend = "".join(
        f"<dt>{_mark(kind)}</dt><dd>{escape(words)}</dd>" for kind, words in facts["legend"].items()
    )
    rules = facts["rules"]
    parts = [
        f"<h1>{title}</h1>",
        f"<p>{_settings(rules)}</p>",
        f"<h2>What the marks mean</h2><dl>{legend}</dl>",
        "<h2>The path taken</h2>",
        tree(facts["path"]),
        *(_hypothesis(name, facts["hypotheses"][name], rules) for name in facts["order"]),
        _cells(facts["hypotheses"]["H0"]["cells"]),
        _exploratory(facts["exploratory"], rules),
        _list("Not compared", facts["not_compared"]),
        _list("Limits", _LIMITS),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


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


def _mark(kind: str) -> str:
    return f'<span class="mark {kind}">{kind}</span>'


def _settings(rules) -> str:
    words = {"all": "all tokens", "no_sink": "attention sinks left out"}[rules["token_set"]]
    return escape(
        f"Smallest against largest model of the study, {words}. A gap is |ΔCE_rec| above"
        f" {rules['margin']:g}; an SAE has converged when its last step of the budget changed"
        f" CE_rec by less than {rules['convergence']:g}; every test has level {rules['alpha']:g}."
    )


def _hypothesis(name, fact, rules) -> str:
    """One verdict: the claim, the test, what was observed, and its null."""
    parts = [
        f"<section><h2>{name}: <span class='verdict'>{fact['verdict']}</span></h2>",
        f"<p>{_mark('hypothesis')} {escape(fact['claim'])}</p>",
        f"<p>{_mark('test')} {escape(_rule(name, rules))} {escape(_sentence(fact['reason']))}</p>",
    ]
    if fact["statistic"]:
        seen, null = fact["statistic"], fact["null"]
        text = f"{seen['name']}: {_number(seen)}{_p(seen['p_value'])}"
        ends = _number({"value": None, **null})
        parts.append(f"<p>{_mark('observed')} {escape(text)}</p>")
        parts.append(
            f"<p class='null'>{_mark('observed')} null, {escape(null['name'])}: {ends}</p>"
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
    head = "".join(f"<th>{n}</th><th class='null'>{n}, untrained</th>" for n in names.values())
    rows = []
    for cell in cells:
        row = f"<td>{escape(cell['label'])}</td>"
        for x in names:
            value = {"value": cell[x]}
            for end in ("low", "high"):
                both = cell.get(f"{x}_both_{end}")
                value[end] = cell.get(f"{x}_{end}") if both is None else both
            row += (
                f"<td>{_number(value)}</td><td class='null'>{_short(cell[f'untrained_{x}'])}</td>"
            )
        changes = ", ".join(_short(cell[f"change_{side}"]) for side in ("small", "big"))
        row += f"<td>{changes}</td><td>{escape(cell['state'])}</td>"
        rows.append(f"<tr>{row}</tr>")
    return (
        f"<h2>Cells at the largest budget</h2><p>{_mark('observed')} Big less small, means over"
        " seeds. Intervals count sequences and seeds as drawn; where there is one seed they count"
        " sequences alone. Last change: of CE_rec, smallest and largest model, from the budget"
        " before.</p><div class='scroll'><table><tr><th>cell</th>"
        f"{head}<th>last change</th><th>tests</th></tr>{''.join(rows)}</table></div>"
    )


def _exploratory(rows, rules) -> str:
    """The proxies H2 was not about."""
    if not rows:
        return ""
    lines = "".join(
        f"<tr><td>{escape(row['proxy'])}</td><td>{_number(_of(row))}</td>"
        f"<td>{_short(row['p_value'])}</td></tr>"
        for row in rows
    )
    return (
        f"<h2>Exploratory: other proxies</h2><p>{_mark('observed')} What they order better than R²"
        f" by, as H2 asks of {escape(rules['proxy'])}. No correction for their number, no verdict."
        "</p><div class='scroll'><table><tr><th>proxy</th><th>advantage</th><th>p</th></tr>"
        f"{lines}</table></div>"
    )


def _list(title, items) -> str:
    lines = "".join(f"<li>{escape(text)}</li>" for text in items)
    return f"<h2>{title}</h2><ul>{lines}</ul>" if items else ""


def _of(row):
    return {end: row[name] for end, name in zip(_ENDS, _ADVANTAGE, strict=True)}


_ENDS = ("value", "low", "high")
_ADVANTAGE = ("advantage", "advantage_low", "advantage_high")


def _number(x) -> str:
    """Value and interval, as far as they exist."""
    ends = f"[{_short(x['low'])}, {_short(x['high'])}]" if x["low"] is not None else ""
    value = _short(x["value"]) if x["value"] is not None else ""
    return " ".join(part for part in (value, ends) if part)


def _short(value) -> str:
    return "–" if value is None else f"{value:.3f}"


def _p(value) -> str:
    return "" if value is None else f", p = {value:.3g}"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""
