"""Edits of source code: other words, which count for nothing, and one more line, which counts."""

import ast
from collections import Counter
from pathlib import Path


def reworded(text: str, count: Counter) -> bytes:
    """A module with other docstrings, errors and labels, a comment and a function more.

    `count` learns how many docstrings, errors (raised and made) and labels there were.
    """
    places = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and ast.get_docstring(
            node
        ):
            places.append(node.body[0].value)
            count["docstring"] += 1
        kind = getattr(getattr(node, "func", None), "id", None)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            kind, node = "raise", node.exc
        if kind in ("Progress", "busy", "one_line"):
            kind = "label"
        if kind in ("raise", "StreamgaugeError", "label"):
            for given in (*node.args, *(keyword.value for keyword in node.keywords)):
                given = given.values[-1] if isinstance(given, ast.BoolOp) else given
                if isinstance(given, ast.JoinedStr) or isinstance(getattr(given, "value", 0), str):
                    places.append(given)
                    count[kind] += 1
    lines = [line.encode() for line in text.splitlines()]
    for line, column in sorted({(p.end_lineno, p.end_col_offset) for p in places}, reverse=True):
        old = lines[line - 1]
        lines[line - 1] = old[:column] + b" ' More.'" + old[column:]
    return b"# why\n" + b"\n".join(lines) + b"\ndef unused(): return 1  # why\n"


def add_line(folder: Path, function: str) -> None:
    """Add a line that computes something to ``"package/module.py:function"`` of a copy."""
    file, _, name = function.partition(":")
    path = folder / "src/streamgauge" / file
    tree = ast.parse(path.read_text())
    for part in name.split("."):
        tree = next(node for node in tree.body if getattr(node, "name", None) == part)
    first = tree.body[1] if ast.get_docstring(tree) else tree.body[0]
    lines = path.read_text().splitlines(keepends=True)
    lines.insert(first.lineno - 1, f"{' ' * first.col_offset}extra = 1\n")
    path.write_text("".join(lines))
