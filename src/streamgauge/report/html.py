"""What the HTML pages share: one document without scripts, nothing fetched, readable on paper."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

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
"""


def document(title: str, body: str, style: str = "") -> str:
    """One self-contained HTML document.

    Args:
        title: plain text, of the window; a heading belongs to the body.
        body: HTML.
        style: CSS of this page alone, after what all pages share.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def table(columns: Mapping[str, str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table that scrolls sideways where it is wider than the page.

    Args:
        columns: heading -> CSS class of the column's cells, "null" for a control, "" for none.
        rows: plain text of the cells, in the order of the columns.
        kind: CSS class of the table.
    """
    kinds = [f" class='{name}'" if name else "" for name in columns.values()]
    head = "".join(f"<th{k}>{escape(n)}</th>" for k, n in zip(kinds, columns, strict=True))
    lines = "".join(
        "<tr>"
        + "".join(f"<td{k}>{escape(text)}</td>" for k, text in zip(kinds, row, strict=True))
        + "</tr>"
        for row in rows
    )
    own = f" class='{kind}'" if kind else ""
    return f"<div class='scroll'><table{own}><tr>{head}</tr>{lines}</table></div>"


def items(title: str, texts: Sequence[str]) -> str:
    """A heading and a list of plain texts; nothing where there is no text."""
    lines = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f"<h2>{title}</h2><ul>{lines}</ul>" if texts else ""


def mark(kind: str) -> str:
    """The mark of a statement: observed, hypothesis or test."""
    return f'<span class="mark {kind}">{kind}</span>'


def number(x: Mapping[str, Any]) -> str:
    """``value`` with its interval ``low``, ``high``, as far as they exist (else None)."""
    ends = f"[{short(x['low'])}, {short(x['high'])}]" if x["low"] is not None else ""
    value = short(x["value"]) if x["value"] is not None else ""
    return " ".join(part for part in (value, ends) if part)


def short(value: float | None) -> str:
    """Three decimals; a dash for None."""
    return "–" if value is None else f"{value:.3f}"


def p(value: float | None) -> str:
    """A p-value behind a comma; nothing for None."""
    return "" if value is None else f", p = {value:.3g}"


def sentence(text: str) -> str:
    """A clause with a capital and a full stop; nothing stays nothing."""
    return f"{text[:1].upper()}{text[1:]}." if text else ""
