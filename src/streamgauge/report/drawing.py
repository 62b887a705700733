"""What the figures share: style, axes, legends and lines with intervals."""

import contextlib
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.mathtext import MathTextParser
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from streamgauge.base.errors import StreamgaugeError

SINGLE, MIDDLE, DOUBLE = 3.4, 4.6, 7.0  # inches: 1, 1½ and 2 columns of a printed page
BLUE, VERMILLION = "#0072B2", "#D55E00"
# Okabe and Ito's colours, each with a marker of its own
SERIES = [
    (BLUE, "o"),
    (VERMILLION, "s"),
    ("#009E73", "D"),
    ("#E69F00", "^"),
    ("#CC79A7", "v"),
    ("#56B4E9", "P"),
    ("#000000", "X"),
]
GREY, PALE = "#767676", "#D9D9D9"
# a line of panels: the label of its group; value and rows of every panel
PanelLine = tuple[str, list[tuple[Any, pd.DataFrame]]]
TOKEN_SETS = {"all": "all tokens", "no_sink": "without sinks"}
_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "figure.titlesize": 9,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.frameon": False,
    "axes.formatter.useoffset": False,
    "figure.facecolor": "white",
    "svg.hashsalt": "streamgauge",
    "svg.fonttype": "path",
    "savefig.dpi": 250,
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Matplotlib's defaults and this project's style, whatever a user's matplotlibrc says."""
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_STYLE, "backend": "agg"}):
        yield


def figure(title: str, width: float, height: float) -> Figure:
    """An empty figure (inches), without pyplot's global state."""
    made = Figure(figsize=(width, height + (0.25 if title else 0)), layout="constrained")
    made.get_layout_engine().set(h_pad=0.05, w_pad=0.05)
    if title:
        made.suptitle(title, x=0.01, ha="left", weight="bold")
    return made


def settle(of: Figure) -> None:
    """Lay a figure out for good, at positions rounded to a millionth of its size.

    The layout's solver goes by memory addresses: its last bit is not the same every time.
    """
    draw_as_they_stand(of)
    of.draw_without_rendering()
    of.set_layout_engine("none")
    for ax in of.axes:
        ax.set_position(np.round(ax.get_position(original=True).bounds, 6))


def draw_as_they_stand(of: Figure) -> None:
    """Let every text that would be a formula, and is none, be drawn character by character."""
    parser = MathTextParser("path")
    for ax in of.axes:
        for axis in (ax.xaxis, ax.yaxis):
            axis.get_ticklabels()  # which gives them their texts
    for text in (text for text in of.findobj(Text) if "$" in text.get_text()):
        try:
            parser.parse(text.get_text())
        except ValueError:
            text.set_parse_math(False)


def words(title: str, text: str) -> Figure:
    """A figure that says why there is nothing to see; a study may be too small for a question."""
    with style():
        made = figure(title, MIDDLE, 0.8)
        made.text(0.5, 0.4, text, ha="center", va="center")
    return made


def legend(of: Figure, handles: list[Line2D], columns: int) -> None:
    """A legend below the axes, never over data; the figure grows by what it takes."""
    width, height = of.get_size_inches()
    of.set_size_inches(width, height + 0.17 * -(-len(handles) // columns) + 0.1)
    of.legend(
        handles=handles,
        loc="outside lower center",
        ncols=columns,
        handlelength=2.4,
        columnspacing=1.4,
    )


def series_handles(looks: Mapping[str, Sequence[str]]) -> list[Line2D]:
    """Legend entries of series: words -> colour and marker."""
    return [
        Line2D([], [], color=colour, marker=marker, label=words)
        for words, (colour, marker) in looks.items()
    ]


def dot(colour: str, marker: str, label: str, **style: Any) -> Line2D:
    """A legend entry that is a marker without a line."""
    return Line2D([], [], color=colour, marker=marker, ls="none", label=label, **style)


def token_set_handles() -> list[Line2D]:
    """Legend entries that explain filled against open markers."""
    return [
        Line2D([], [], color="black", marker="o", label=words, **look(i == 1))
        for i, words in enumerate(TOKEN_SETS.values())
    ]


def look(dashed: bool) -> dict[str, Any]:
    """Line and marker face: solid and filled, or dashed and open."""
    return {"ls": (0, (3.5, 2)), "mfc": "white"} if dashed else {"ls": "-", "mfc": None}


def cells(
    table: pd.DataFrame, by: Sequence[str], told: Iterable[str] = ("layer",)
) -> list[tuple[dict, str, pd.DataFrame]]:
    """Groups of rows in the order of the table: key, label and rows.

    Args:
        table: any table.
        by: columns that tell groups apart.
        told: columns that stand in every label; the others only where they differ.
    """
    varying = [name for name in by if name in told or table[name].nunique() > 1]
    found = []
    for values, rows in table.groupby(list(by), sort=False):
        key = dict(zip(by, values, strict=True))
        found.append((key, ", ".join(_part(name, key[name]) for name in varying), rows))
    return found


def _part(name: str, value: Hashable) -> str:
    words = {"layer": "layer {}", "expansion": "×{}", "tokens": "{:,} tokens"}
    return words.get(name, "{}").format(value)


def having(table: pd.DataFrame, key: Mapping[str, Hashable]) -> pd.DataFrame:
    """The rows that agree with `key`."""
    return table[np.logical_and.reduce([table[name] == value for name, value in key.items()])]


def band(ax, x, low, high) -> None:
    """The interval of a null over `x`: a pale band, or a bar where there is one point."""
    if len(x) > 1:
        ax.fill_between(x, low, high, color=PALE, lw=0)
    else:
        ax.vlines(x, low, high, color=PALE, lw=6)


def null_handles() -> list[Line2D]:
    """Legend entries of a `band` that random subspaces give, and of a dotted line at chance."""
    return [
        Line2D([], [], color=PALE, lw=6, label="random subspaces"),
        Line2D([], [], color=GREY, ls=":", label="chance"),
    ]


def panel_title(label: str, column: int, name: str) -> str:
    """A panel's title; in the first column of a line the group's label stands above it."""
    return f"{'' if column else label}\n{name}"


def layer_axes(axes: Sequence) -> None:
    """Whole layers on the x axes of storeys, written below the lowest."""
    for ax in axes:
        low, high = ax.get_xlim()
        if high - low < 1:  # a single layer, whose ticks would be parts of one
            ax.set_xlim((low + high) / 2 - 0.7, (low + high) / 2 + 0.7)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        ax.tick_params(labelbottom=ax is axes[-1])
    axes[-1].set_xlabel("layer")


def series(
    ax,
    rows: pd.DataFrame,
    x: str,
    y: str,
    colour: str,
    marker: str,
    *,
    dashed: bool = False,
    dodge: float = 1.0,
    floor: float | None = None,
) -> None:
    """A line through the means over seeds, and a point with its interval for every row.

    Args:
        ax: axes.
        rows: columns `x`, `y`, seed and, where there are intervals, ``{y}_low`` and ``{y}_high``.
        x, y: columns drawn.
        colour, marker: the series' own.
        dashed: dashed line and open markers.
        dodge: factor on x that keeps neighbouring points apart.
        floor: lowest value a logarithmic axis can show; what lies at or below zero is drawn
            there, as a triangle.
    """
    rows = rows.dropna(subset=[y]).drop_duplicates([x, "seed", y]).sort_values(x)
    if rows.empty:
        return
    value = rows[y].to_numpy(float)
    ends = [rows[f"{y}_{end}"] if f"{y}_{end}" in rows else rows[y] for end in ("low", "high")]
    low, high = (end.fillna(rows[y]).to_numpy(float) for end in ends)
    hidden = np.zeros(len(value), bool)
    if floor is not None:
        hidden = value <= 0
        value, low, high = (np.maximum(item, floor) for item in (value, low, high))
    at = rows[x].to_numpy(float) * dodge
    means = pd.Series(value).groupby(at).mean()
    ax.plot(means.index, means, color=colour, ls=look(dashed)["ls"])
    bars = np.maximum([value - low, high - value], 0)
    ax.errorbar(at, value, bars, fmt="none", ecolor=colour, elinewidth=0.8)
    points = {"ls": "none", "color": colour, "mfc": look(dashed)["mfc"] or colour}
    ax.plot(at[~hidden], value[~hidden], marker=marker, **points)
    ax.plot(at[hidden], value[hidden], marker="v", **points)


def log2_axis(ax, ks: Sequence[int], labels: bool = True) -> None:
    """A base-2 axis whose ticks are the `ks` themselves."""
    room = 2**0.5 if len(ks) > 1 else 2
    ax.set_xscale("log", base=2)
    ax.set_xlim(ks[0] / room, ks[-1] * room)
    ax.xaxis.set_major_locator(FixedLocator([float(k) for k in ks]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda k, _: f"{k:.0f}" if labels else ""))


def plain_log(axis) -> None:
    """Plain numbers on a logarithmic axis: every decade, and steps between where room allows."""
    low, high = axis.get_view_interval()
    decades = np.log10(high / low) if 0 < low < high else 1
    steps = (1, 2, 3, 5, 7) if decades < 0.7 else (1, 2, 5) if decades < 2.2 else (1,)
    axis.get_major_locator().set_params(subs=steps, numticks=20)
    axis.set_major_formatter(FuncFormatter(lambda v, _: _plain(v)))
    axis.set_minor_formatter(FuncFormatter(lambda v, _: ""))


_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _plain(value: float) -> str:
    """A tick's number; powers of ten where plain digits would be too many."""
    if value >= 10:
        return f"{value:,.0f}"
    if value >= 1e-4:
        return f"{value:g}"
    digits, power = f"{value:.0e}".split("e")
    return f"{digits}·10".removeprefix("1·") + str(int(power)).translate(_SUPERSCRIPTS)


def require(table: pd.DataFrame, columns: Iterable[str], what: str) -> None:
    """Refuse a table that is empty or lacks columns.

    Raises:
        StreamgaugeError: naming the columns, or saying that no row is left.
    """
    missing = [name for name in columns if name not in table]
    if missing:
        raise StreamgaugeError(f"the {what} lacks the columns {', '.join(missing)}")
    if table.empty:
        raise StreamgaugeError(f"the {what} holds nothing to draw")


def arrange(n: int, widest: int) -> tuple[int, int]:
    """Columns and rows for `n` panels."""
    wide = min(n, widest)
    return wide, -(-n // wide)


def lines_of_panels(
    table: pd.DataFrame, by: Sequence[str], told: Iterable[str], across: str, widest: int = 4
) -> list[PanelLine]:
    """Lines of panels: one line a group, a panel for each value of a column, wrapped.

    Args:
        table: any table.
        by, told: columns that tell groups apart, and those named in every label (see `cells`).
        across: the column whose values stand side by side, in the order of the table.
        widest: panels in a line at most; a group with more goes on in the next line.

    Returns:
        For each line the label of its group (empty where the group goes on) and its panels: the
        value of `across` and the rows.
    """
    found = []
    for _, label, rows in cells(table, by, told):
        panels = list(rows.groupby(across, sort=False))
        for start in range(0, len(panels), widest):
            found.append(("" if start else label, panels[start : start + widest]))
    return found


def stack(
    title: str, lines: Sequence[PanelLine], heights: Sequence[float], height: float
) -> tuple[Figure, np.ndarray]:
    """A figure for lines of panels whose axes stand in storeys.

    Args:
        title: text above the figure.
        lines: see `lines_of_panels`.
        heights: relative heights of the storeys of every line.
        height: of a line, inches.

    Returns:
        The figure and its axes, shape (lines, storeys, columns); a place without a panel is empty.
    """
    wide = max(len(panels) for _, panels in lines)
    made = figure(title, DOUBLE if wide > 1 else MIDDLE, height * len(lines))
    ratios = {"height_ratios": list(heights) * len(lines)}
    axes = made.subplots(len(heights) * len(lines), wide, squeeze=False, **ratios)
    grid = axes.reshape(len(lines), len(heights), wide)
    for line, (_, panels) in zip(grid, lines, strict=True):
        for ax in line[:, len(panels) :].flat:
            ax.remove()
    return made, grid


def share_storeys(grid: np.ndarray, lines: Sequence[PanelLine], labels: Sequence[str]) -> None:
    """One y scale for each storey of a `stack`, written at the left of every line."""
    for storey, label in enumerate(labels):
        used = [line[storey, : len(panels)] for line, (_, panels) in zip(grid, lines, strict=True)]
        every = np.concatenate(used)
        share_y(every, len(every), label)
        for first, *others in used:
            first.set_ylabel(label)
            for ax in others:
                ax.tick_params(labelleft=False)
    grid[0, 0, 0].figure.align_ylabels()


def cycle(n: int) -> list[tuple[str, str]]:
    """`n` colours and markers of `SERIES`, from its start again when it is through."""
    return [SERIES[i % len(SERIES)] for i in range(n)]


def sideways(steps: float) -> float:
    """The factor that moves a point by `steps` widths of a marker on a base-2 axis."""
    return 2.0 ** (0.09 * steps)


def share_y(axes: Sequence, wide: int, label: str) -> None:
    """One linear y scale for all `axes`, labelled at the left of every row of `wide`."""
    low, high = (f(ax.get_ylim()[i] for ax in axes) for i, f in enumerate((min, max)))
    pad = 0.08 * (high - low)
    for i, ax in enumerate(axes):
        ax.set_ylim(low - pad, high + pad)
        if i % wide == 0:
            ax.set_ylabel(label)


def lowest(values: pd.Series) -> float:
    """A little below the smallest positive value: the floor of a logarithmic axis."""
    positive = values[values > 0]
    return float(positive.min()) / 2 if len(positive) else 1e-3
