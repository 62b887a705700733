"""Figures of ARD-MMD: dimensions shared across languages over layers, and lengthscales.

In the style of `score_figures`: a colour always comes with a marker of its own, nulls are grey, and
equal tables give equal bytes. A study without data for a figure gets one that says so.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from streamgauge.base.paths import cell_of
from streamgauge.report import drawing
from streamgauge.report.drawing import GREY, PALE
from streamgauge.stores import layer_stores

_PLACE = ["subject", "prompts"]
_LENGTHSCALES = [*_PLACE, "layer", "penalty", "fit", "dimension", "log10_lengthscale"]
_DASHES = ["-", (0, (4, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (1, 1))]


def ard(table: pd.DataFrame, title: str = "") -> Figure:
    """Share of dimensions that ARD-MMD finds shared, and how many of Z's they have, over layers.

    One column a subject and prompts, one colour a penalty. Above: |Z|/d, with the interval of fits
    to exchanged tokens in grey. Below: the overlap with Z of the fit without the structural prior
    (filled), whose null is the pale interval of chance, and with it (open), which favours Z and
    whose null is that of exchanged tokens with the same prior (grey bars).

    Args:
        table: a study's ``crosslingual_ard.csv``; empty where no layer was asked for.
        title: text above the figure.

    Raises:
        StreamgaugeError: the table lacks a column.
    """
    if table.empty:
        return drawing.words(title, "No layer was asked for: there are no ARD fits.")
    sizes = ["z_size", "z_size_permuted_low", "z_size_permuted_high"]
    chance = ["overlap_chance", "overlap_chance_low", "overlap_chance_high"]
    permuted = ["overlap_permuted_low", "overlap_permuted_high"]
    needed = [*_PLACE, "layer", "penalty", "d_model", *sizes, "overlap", "overlap_flat"]
    drawing.require(table, [*needed, *chance, *permuted], "ARD table")
    table = table.assign(every="", seed=0, panel=_subjects(table))
    for name in sizes:
        table[name] = table[name] / table.d_model
    penalties = sorted(table.penalty.unique())
    looks = dict(zip(penalties, drawing.cycle(len(penalties)), strict=True))
    with drawing.style():
        lines = drawing.lines_of_panels(table, ["every"], (), "panel", widest=3)
        figure, grid = drawing.stack(title, lines, [1, 1], 3.6)
        for line, (_, panels) in zip(grid, lines, strict=True):
            for (top, low), (name, rows) in zip(line.T, panels, strict=False):
                band = rows.drop_duplicates("layer").sort_values("layer")
                drawing.band(low, band.layer, band.overlap_chance_low, band.overlap_chance_high)
                style = {"marker": "_"} if len(band) == 1 else {"ls": ":"}
                low.plot(band.layer, band.overlap_chance, color=GREY, **style)
                for n, (penalty, (colour, marker)) in enumerate(looks.items()):
                    own = rows[rows.penalty == penalty].sort_values("layer")
                    at = own.layer + 0.08 * (n - (len(looks) - 1) / 2)
                    _bars(top, at, own.z_size_permuted_low, own.z_size_permuted_high)
                    _bars(low, at, *(own[end] for end in permuted))
                    top.plot(at, own.z_size, color=colour, marker=marker)
                    for column, dashed in (("overlap_flat", False), ("overlap", True)):
                        look = drawing.look(dashed)
                        low.plot(at, own[column], color=colour, marker=marker, **look)
                top.set_title(name, loc="left")
                drawing.layer_axes((top, low))
        drawing.share_storeys(grid, lines, ["|Z| / d", "overlap with Z"])
        words = {f"penalty {penalty:g}": look for penalty, look in looks.items()}
        handles = [
            *drawing.series_handles(words),
            Line2D([], [], color="black", marker="o", label="prior flat"),
            Line2D([], [], color="black", marker="o", label="prior from Z", **drawing.look(True)),
            Line2D([], [], color=GREY, lw=2, label="exchanged tokens"),
            *drawing.null_handles()[1:],
            Line2D([], [], color=PALE, lw=6, label="interval of chance"),
        ]
        drawing.legend(figure, handles, 4 if grid.shape[2] > 1 else 2)
    return figure


def lengthscales(records: Iterable[Mapping], paths: Iterable[str | Path]) -> pd.DataFrame:
    """Lengthscales of the ARD fits of a study, and of their fits to exchanged tokens.

    Args:
        records: manifests of the fits.
        paths: their stores, in the same order.

    Returns:
        ``subject``, ``prompts``, ``layer``, ``penalty``, ``fit`` ("measured" or the permutation's
        number), ``dimension`` and ``log10_lengthscale``, one row a fit and dimension that varies; a
        table with these columns and no row where there is no fit.

    Raises:
        StreamgaugeError: a store cannot be read.
    """
    parts = [pd.DataFrame(columns=_LENGTHSCALES)]
    for record, path in zip(records, paths, strict=True):
        cell, store = cell_of(record), layer_stores.Store(path)
        measured, permuted, varying = (
            store.read(x) for x in ("log_lengthscale", "permuted", "varying")
        )
        fits = np.concatenate([measured[None], permuted])[:, varying == 1] / np.log(10)
        names = ["measured", *map(str, range(len(permuted)))]
        part = pd.DataFrame(fits.T, np.flatnonzero(varying), names)
        part = part.rename_axis("dimension").reset_index()
        part = part.melt("dimension", var_name="fit", value_name="log10_lengthscale")
        parts.append(part.assign(**{x: cell[x] for x in _LENGTHSCALES[:4]})[_LENGTHSCALES])
    return pd.concat(parts[1:] or parts, ignore_index=True)


def spectrum(table: pd.DataFrame, title: str = "") -> Figure:
    """Lengthscales of every ARD fit: how many dimensions have which, and all of them in order.

    One panel a layer, one colour and line a penalty; above a histogram of log10 of the lengthscale,
    below the sorted curve. Grey: the fits to exchanged tokens, their mean histogram and every
    curve. Two heaps say that a set of dimensions stands out, a slope that none does.

    Args:
        table: result of `lengthscales`.
        title: text above the figure.

    Raises:
        StreamgaugeError: the table lacks a column.
    """
    if table.empty:
        return drawing.words(title, "No layer was asked for: there are no lengthscales.")
    drawing.require(table, _LENGTHSCALES, "table of lengthscales")
    table = table.sort_values(["subject", "prompts", "layer", "penalty"], kind="stable")
    penalties = list(dict.fromkeys(table.penalty.sort_values()))
    looks = dict(zip(penalties, drawing.cycle(len(penalties)), strict=True))
    edges = np.histogram_bin_edges(table.log10_lengthscale, 40)
    with drawing.style():
        lines = drawing.lines_of_panels(table, _PLACE, ["subject"], "layer", widest=4)
        figure, grid = drawing.stack(title, lines, [1, 1], 3.4)
        for i, (label, panels) in enumerate(lines):
            for j, (layer, rows) in enumerate(panels):
                top, low = grid[i, :, j]
                for n, (penalty, (colour, _)) in enumerate(looks.items()):
                    own = rows[rows.penalty == penalty]
                    for measured in (False, True):
                        fits = own[(own.fit == "measured") == measured]
                        style = {"color": colour if measured else GREY, "ls": _DASHES[n % 4]}
                        style |= {"lw": 1.2 if measured else 0.5}
                        share, curves = _spectrum(fits, edges)
                        top.stairs(share, edges, **style)
                        for curve in curves:
                            low.plot(np.linspace(0, 1, len(curve)), curve, **style)
                top.set_title(drawing.panel_title(label, j, f"layer {layer}"), loc="left")
                top.set_xlabel("log10 ℓ")
                low.set(xlabel="dimensions, sorted", xlim=(0, 1))
                low.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
                top.xaxis.set_major_locator(MaxNLocator(3))
        drawing.share_storeys(grid, lines, ["share of\ndimensions", "log10 ℓ"])
        handles = [
            Line2D([], [], color=colour, ls=_DASHES[n % 4], label=f"penalty {penalty:g}")
            for n, (penalty, (colour, _)) in enumerate(looks.items())
        ]
        handles.append(Line2D([], [], color=GREY, lw=0.5, label="exchanged tokens"))
        drawing.legend(figure, handles, 4 if grid.shape[2] > 1 else 2)
    return figure


def _bars(ax, x, low, high) -> None:
    """Intervals of exchanged tokens; one without length is seen by its ends."""
    ax.vlines(x, low, high, color=GREY, lw=2)
    for end in (low, high):
        ax.plot(x, end, "_", color=GREY, ms=6)


def _spectrum(rows, edges) -> tuple[np.ndarray, list[np.ndarray]]:
    """Share of dimensions in each bin, over all fits, and every fit's sorted lengthscales."""
    counts, _ = np.histogram(rows.log10_lengthscale, edges)
    curves = [np.sort(part.log10_lengthscale) for _, part in rows.groupby("fit", sort=False)]
    return counts / max(counts.sum(), 1), curves


def _subjects(table) -> pd.Series:
    """Subject, and its prompts where there are several."""
    several = table.prompts.nunique() > 1
    return table.subject + (", " + table.prompts if several else "")
