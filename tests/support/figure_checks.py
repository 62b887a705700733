"""What every figure must hold: text that fits, equal bytes, refusal of tables it cannot draw."""

import itertools
from collections.abc import Callable
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from streamgauge.base.errors import StreamgaugeError
from streamgauge.report import drawing, score_figures


def lines(ax, colour: str, marker: str | None = None) -> list:
    """Drawn lines of one colour: those with a marker, or those without."""
    return [
        line
        for line in ax.get_lines()
        if to_hex(line.get_color()).upper() == colour.upper()
        and line.get_marker() == (marker or "None")
    ]


def check_layout(figure: Figure) -> None:
    """Every text lies inside the page at 8 or 9 points; legend and titles lie outside the axes."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    with drawing.style():
        figure.draw(renderer)
        page = figure.bbox.padded(1)
        legends = [legend.get_window_extent(renderer) for legend in figure.legends]
        boxes = [ax.get_window_extent(renderer) for ax in figure.axes]
        titles = [ax.title for ax in figure.axes] + [ax._left_title for ax in figure.axes]
        titles = [t.get_window_extent(renderer) for t in titles if t.get_text().strip()]
        parts = [*legends, *titles, *(text.get_window_extent(renderer) for text in figure.texts)]
        parts += [ax.get_tightbbox(renderer) for ax in figure.axes]
        for i, title in enumerate(titles):
            assert not any(title.overlaps(box) for box in [*boxes, *titles[i + 1 :]])
        for ax in figure.axes:
            labels = [t.get_window_extent(renderer) for t in ax.get_xticklabels() if t.get_text()]
            inside = [b for b in labels if ax.bbox.x0 <= (b.x0 + b.x1) / 2 <= ax.bbox.x1]
            assert not any(a.overlaps(b) for a, b in itertools.pairwise(inside))
    assert len(legends) == bool(figure.axes)  # a figure of words alone needs none
    assert not any(legend.overlaps(box) for legend in legends for box in boxes)
    for part in parts:
        assert page.x0 <= part.x0 and part.x1 <= page.x1
        assert page.y0 <= part.y0 and part.y1 <= page.y1
    for text in figure.findobj(Text):
        assert 8 <= text.get_fontsize() <= 9
    assert figure.get_size_inches()[0] in (drawing.SINGLE, drawing.MIDDLE, drawing.DOUBLE)


def check_same_bytes(draw: Callable[[], Figure], folder: Path) -> None:
    """Neither the time, nor a user's matplotlibrc, nor pyplot's state is in the file."""
    for i, rc in enumerate([{}, {"font.size": 20, "axes.facecolor": "red", "svg.hashsalt": "x"}]):
        with matplotlib.rc_context(rc):
            score_figures.save(draw(), folder / f"{i}.svg", folder / f"{i}.png")
    for suffix in ("svg", "png"):
        first, second = ((folder / f"{i}.{suffix}").read_bytes() for i in range(2))
        assert first == second
    text = (folder / "0.svg").read_text()
    assert "<dc:date>" not in text and matplotlib.__version__ not in text


def check_refusals(draw: Callable, table: pd.DataFrame, column: str, empty: bool = True) -> None:
    """A table without the column is refused by name; so is one without rows, if `empty`."""
    with pytest.raises(StreamgaugeError, match=f"lacks the columns {column}"):
        draw(table.drop(columns=column))
    if empty:
        with pytest.raises(StreamgaugeError, match="nothing to draw"):
            draw(table.iloc[:0])
