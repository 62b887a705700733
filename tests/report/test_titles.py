"""Titles and names from configurations: formulas, or drawn as they stand; with Matplotlib."""

import pytest

from streamgauge.report import drawing, score_figures

GOOD = [r"$\frac{1}{2}$", "R² and $k^*$", "5 $ only", "plain"]
AWKWARD = [
    r"$\frac{$", "$x_{$", "$$$$", "$^$", r"$\nosuch$", "$a^b^c$", r"\$a$ and $", "$%$", "a_b^{c",
    r"$\left($", "${$", "<&>\"'", "=cmd", "x" * 300, "$\u4e2d$", "\\", "$\\$", "a\n$\\frac{$",
]  # fmt: skip


@pytest.mark.parametrize("text", [*GOOD, *AWKWARD])
def test_any_text_is_drawn(tmp_path, text):
    """As a title, a name in a legend, a label of an axis and of its ticks."""
    with drawing.style():
        figure = drawing.figure(text, drawing.MIDDLE, 2)
        ax = figure.subplots()
        ax.plot([0, 1], [0, 1])
        ax.set_title(text)
        ax.set_xlabel(text)
        ax.set_xticks([0, 1], [text, "b"])
        drawing.legend(figure, drawing.series_handles({text: drawing.SERIES[0]}), 1)
    paths = [tmp_path / "a.svg", tmp_path / "a.png"]
    score_figures.save(figure, *paths)
    assert all(path.stat().st_size > 1000 for path in paths)
    assert figure.get_suptitle() == text
    assert text not in GOOD[:2] or ax.title.get_parse_math()


def test_what_is_no_formula_is_drawn_character_by_character(tmp_path):
    with drawing.style():
        figure = drawing.figure(r"$\frac{$", drawing.MIDDLE, 2)
        figure.subplots()
    score_figures.save(figure, tmp_path / "a.svg")
    assert not figure._suptitle.get_parse_math()
