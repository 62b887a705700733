"""The edits that the pages under docs/extending describe, read from the pages and performed."""

import re
from pathlib import Path
from typing import NamedTuple

from pipeline import ROOT

PAGES = sorted((ROOT / "docs/extending").glob("*.md"))
_PLACE = r"(?P<place>at the end|below|above|instead of)(?: `(?P<code>[^`]+)`| “(?P<row>[^”]+)”)?"
_EDIT = re.compile(
    rf"^\*\*\d\.\*\* (?:In|New,) `(?P<file>[^`]+)`(?:, {_PLACE})?:.*\n"
    r"\n```\w+\n(?P<text>(?s:.*?))^```$",
    re.M,
)


class Edit(NamedTuple):
    """One numbered step: `text` goes to a `place` of a file, which is that of the line `anchor`."""

    file: str
    place: str | None
    anchor: str | None
    text: str


def edits(page: str) -> list[Edit]:
    """The edits of a page, in their order."""
    text = (ROOT / f"docs/extending/{page}.md").read_text()
    found = [
        Edit(m["file"], m["place"], m["code"] or m["row"], m["text"]) for m in _EDIT.finditer(text)
    ]
    assert len(found) == len(re.findall(r"^\*\*\d", text, re.M)), "a step that is not understood"
    return found


def perform(folder: Path, page: str) -> None:
    """Make the edits of a page in a copy of the repository."""
    for edit in edits(page):
        path = folder / edit.file
        assert path.exists() == bool(edit.place), edit.file
        path.write_text(edited(path.read_text(), edit) if edit.place else edit.text)


def edited(text: str, edit: Edit) -> str:
    """The text of a file after an edit."""
    if edit.place == "at the end":
        return f"{text.rstrip()}\n\n\n{edit.text}"
    lines = text.splitlines(keepends=True)
    (at,) = (i for i, line in enumerate(lines) if line.strip() == edit.anchor)
    new = [edit.text, "\n\n"] if edit.text.startswith("def ") else [edit.text]
    kept = [] if edit.place == "instead of" else [lines[at]]
    lines[at : at + 1] = kept + new if edit.place == "below" else new + kept
    return "".join(lines)
