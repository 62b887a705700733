"""Figures of the cross-lingual suite: weights, updates, patching, bridges.

In the style of `score_figures`: a colour always comes with a marker of its own, nulls are grey, and
equal tables give equal bytes. A study without data for a figure gets one that says so.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from streamgauge.report import drawing
from streamgauge.report.drawing import BLUE, GREY, PALE, VERMILLION

_PLACE = ["subject", "prompts"]
#: conditions of patching from top to bottom, a gap between Z, its complement and everything
_CONDITIONS = {
    "z": "Z",
    "random": "random subspaces",
    "norm_matched": "random, same size",
    "z_wrong": "Z, other problem",
    "z_same": "Z, other, same lang.",
    "z_self": "Z, own mean",
    "": "",
    "z_perp": "Z⊥",
    "random_perp": "random complements",
    "z_perp_wrong": "Z⊥, other problem",
    "z_perp_same": "Z⊥, other, same lang.",
    "z_perp_self": "Z⊥, own mean",
    " ": "",
    "full": "everything",
}
_RATES = {
    "answer_changed": ("answer changed", BLUE, "o", -0.17),
    "language_switched": ("language switched", VERMILLION, "s", 0.17),
}
_METHODS = {"least_squares": (BLUE, "o"), "ridge": (VERMILLION, "s")}
#: R² below this is not told apart
_LOWEST_R2 = -1.0
#: and R(ℓ) over chance below this
_LOWEST_RATIO = 0.02


def geometry(table: pd.DataFrame, title: str = "") -> Figure:
    """Effective rank of the attention kernels, FFN alignment and similarity over layers.

    One column a subject. From above: the mean over heads of the kernels' effective rank with their
    standard deviation; how much of the MLP's input weights lies in Z over chance, with the interval
    of random subspaces; similarity of Z with that of the next layer, with chance and the interval
    of random subspaces.

    Args:
        table: a study's ``crosslingual_layers.csv``.
        title: text above the figure.

    Raises:
        StreamgaugeError: the table lacks a column or is empty.
    """
    names = ["effective_rank_mean", "effective_rank_sd"]
    nulls = {"ffn_alignment": "ffn_random", "similarity_next": "similarity_random"}
    ends = [f"{null}_{end}" for null in nulls.values() for end in ("low", "high")]
    needed = ["subject", "layer", *names, *nulls, *ends, "similarity_chance"]
    drawing.require(table, needed, "table of layers")
    with drawing.style():
        lines = drawing.lines_of_panels(table.assign(every=""), ["every"], (), "subject")
        figure, grid = drawing.stack(title, lines, [1.2, 1, 1], 4.4)
        for line, (_, panels) in zip(grid, lines, strict=True):
            for (rank, ffn, alike), (subject, rows) in zip(line.T, panels, strict=False):
                mean, sd = rows.effective_rank_mean, rows.effective_rank_sd.fillna(0)
                rank.fill_between(rows.layer, mean - sd, mean + sd, color=BLUE, alpha=0.2, lw=0)
                rank.plot(rows.layer, mean, color=BLUE, marker="o")
                chances = {"ffn_alignment": 1.0, "similarity_next": rows.similarity_chance.iloc[0]}
                for ax, (name, null) in zip((ffn, alike), nulls.items(), strict=True):
                    drawing.band(ax, rows.layer, rows[f"{null}_low"], rows[f"{null}_high"])
                    ax.axhline(chances[name], color=GREY, ls=":")
                    ax.plot(rows.layer, rows[name], color=BLUE, marker="o")
                rank.set_title(subject, loc="left")
                drawing.layer_axes((rank, ffn, alike))
        drawing.share_storeys(grid, lines, ["effective rank", "FFN / chance", "similarity"])
        handles = [
            Line2D([], [], color=BLUE, marker="o", label="Z, or mean over heads"),
            Line2D([], [], color=BLUE, alpha=0.2, lw=6, label="sd over heads"),
            *drawing.null_handles(),
        ]
        drawing.legend(figure, handles, 4 if grid.shape[2] > 1 else 2)
    return figure


def updates(table: pd.DataFrame, title: str = "") -> Figure:
    """R(ℓ) over its chance level for every layer's update, one line a language.

    One panel a layer and k_sub whose Z it is. Bars are the table's intervals over prompts; the
    grey band is the widest that random subspaces give in either language. The scale is logarithmic;
    what lies below a fiftieth of chance stands at its lower edge as a triangle.

    Args:
        table: a study's ``crosslingual_updates.csv``; empty where no prompts were run.
        title: text above the figure.

    Raises:
        StreamgaugeError: the table lacks a column.
    """
    if table.empty:
        return drawing.words(title, "No prompts were run: there are no updates to see.")
    ends = ["r_low", "r_high", "r_random_low", "r_random_high"]
    needed = [*_PLACE, "basis_layer", "k_sub", "layer", "language", "r", "r_chance", *ends]
    drawing.require(table, needed, "table of updates")
    table = table.assign(panel=_panel("Z of layer {}", table.basis_layer, table.k_sub), seed=0)
    for name in ("r", *ends):
        table[name] = (table[name] / table.r_chance).clip(lower=_LOWEST_RATIO)
    # a block that writes nothing into Z has R = 0, which a logarithmic axis cannot show
    table["r"] = table.r.where(table.r > _LOWEST_RATIO, 0.0)
    languages = list(dict.fromkeys(table.language))
    looks = dict(zip(languages, drawing.cycle(len(languages)), strict=True))
    with drawing.style():
        lines = drawing.lines_of_panels(table, _PLACE, ["subject"], "panel", widest=3)
        figure, grid = drawing.stack(title, lines, [1], 2.5)
        for i, (label, panels) in enumerate(lines):
            for j, (name, rows) in enumerate(panels):
                ax = grid[i, 0, j]
                null = rows.groupby("layer")[["r_random_low", "r_random_high"]]
                low, high = null.min().r_random_low, null.max().r_random_high
                drawing.band(ax, low.index, low, high)
                ax.axhline(1, color=GREY, ls=":")
                ax.set_yscale("log")
                for n, (language, (colour, marker)) in enumerate(looks.items()):
                    own = rows[rows.language == language]
                    own = own.assign(layer=own.layer + 0.08 * (n - (len(looks) - 1) / 2))
                    drawing.series(ax, own, "layer", "r", colour, marker, floor=_LOWEST_RATIO)
                ax.set_title(drawing.panel_title(label, j, name), loc="left")
                drawing.layer_axes((ax,))
        _share_log(grid, lines, "R(ℓ) / chance")
        handles = [*drawing.series_handles(looks), *drawing.null_handles()]
        drawing.legend(figure, handles, 4 if grid.shape[2] > 1 else 2)
    return figure


def patching(table: pd.DataFrame, title: str = "") -> Figure:
    """How often each patch changes the answer and switches the language.

    One panel a layer, k_sub and source; from above the patch of Z with its controls, that of Z⊥
    with its controls, and that of everything. Every random subspace is a small dot, so the null
    stands in the picture; bars are the table's intervals. Controls are grey.

    Args:
        table: a study's ``crosslingual_patching.csv``; empty where nothing was patched.
        title: text above the figure.

    Raises:
        StreamgaugeError: the table lacks a column.
    """
    if table.empty:
        return drawing.words(title, "No prompts were run: nothing was patched.")
    ends = [f"{name}_{end}" for name in _RATES for end in ("low", "high")]
    needed = [*_PLACE, "layer", "k_sub", "source", "condition", "draw", "over", *_RATES, *ends]
    drawing.require(table, needed, "patching table")
    table = table[table.over == "all"]
    panel = _panel("layer {}", table.layer, table.k_sub) + ", " + table.source
    table = table.assign(panel=panel)
    names = list(_CONDITIONS)
    with drawing.style():
        lines = drawing.lines_of_panels(table, _PLACE, ["subject"], "panel", widest=3)
        figure, grid = drawing.stack(title, lines, [1], 3.2)
        for i, (label, panels) in enumerate(lines):
            for j, (name, rows) in enumerate(panels):
                ax = grid[i, 0, j]
                for condition, part in rows.groupby("condition", sort=False):
                    if condition in _CONDITIONS:
                        _rates(ax, part, names.index(condition), condition)
                ticks = [y for y, text in enumerate(_CONDITIONS.values()) if text]
                texts = [text for text in _CONDITIONS.values() if text]
                ax.set_yticks(ticks, texts if j == 0 else [])
                ax.set(xlim=(-0.04, 1.04), ylim=(len(names) - 0.4, -0.6))
                ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
                ax.set_xlabel("share of problems")
                for y in (names.index(""), names.index(" ")):
                    ax.axhline(y, color=PALE, lw=0.7, zorder=0)
                ax.set_title(drawing.panel_title(label, j, name), loc="left")
        handles = [
            drawing.dot(colour, marker, words) for words, colour, marker, _ in _RATES.values()
        ]
        handles += [
            drawing.dot(GREY, marker, f"{words}, control")
            for words, _, marker, _ in _RATES.values()
        ]
        handles.append(drawing.dot(GREY, "o", "one random subspace", ms=2.2))
        drawing.legend(figure, handles, 3 if grid.shape[2] > 1 else 2)
    return figure


def bridge(table: pd.DataFrame, spectra: pd.DataFrame, title: str = "") -> Figure:
    """Singular values of the maps between languages, and what the maps predict of unseen pairs.

    One panel a layer and k_sub. Above: singular values of W, with the interval of random subspaces
    and 1, where a rotation has them all. Below: leave-one-out R²; left of it the interval of
    permuted pairs, right of it that of random subspaces. R² below -1 stands at the lower edge.

    Args:
        table: a study's ``crosslingual_bridge.csv``; empty where no prompts were run.
        spectra: its ``crosslingual_bridge_spectra.csv``.
        title: text above the figure.

    Raises:
        StreamgaugeError: a table lacks a column.
    """
    if table.empty:
        return drawing.words(title, "No prompts were run: there is no bridge.")
    place = [*_PLACE, "layer", "k_sub"]
    nulls = ["permuted_low", "permuted_high", "random_low", "random_high"]
    drawing.require(table, [*place, "method", "r2_loo", *nulls], "bridge table")
    values = ["method", "index", "singular_value", "random_low", "random_high"]
    drawing.require(spectra, [*place, *values], "table of bridge spectra")
    table = table.assign(panel=_panel("layer {}", table.layer, table.k_sub))
    with drawing.style():
        lines = drawing.lines_of_panels(table, _PLACE, ["subject"], "panel", widest=4)
        figure, grid = drawing.stack(title, lines, [1.3, 1], 3.6)
        for i, (label, panels) in enumerate(lines):
            for j, (name, rows) in enumerate(panels):
                top, low = grid[i, :, j]
                own = drawing.having(spectra, {key: rows.iloc[0][key] for key in place})
                for method, (colour, marker) in _METHODS.items():
                    part = own[own.method == method]
                    drawing.band(top, part["index"] + 1, part.random_low, part.random_high)
                    style = {"color": colour, "marker": marker, "ms": 2.5}
                    top.plot(part["index"] + 1, part.singular_value, **style)
                for x, row in enumerate(rows.to_dict("records")):
                    colour, marker = _METHODS[row["method"]]
                    for shift, null, shade in ((-0.2, "permuted", GREY), (0.2, "random", PALE)):
                        ends = (max(row[f"{null}_{end}"], _LOWEST_R2) for end in ("low", "high"))
                        low.vlines(x + shift, *ends, color=shade, lw=5)
                    hidden = row["r2_loo"] < _LOWEST_R2
                    at = max(row["r2_loo"], _LOWEST_R2)
                    low.plot(x, at, color=colour, marker="v" if hidden else marker, ls="none")
                low.axhline(0, color=GREY, lw=0.7, zorder=0)
                top.axhline(1, color=GREY, ls=":")
                top.set_title(drawing.panel_title(label, j, name), loc="left")
                top.set_xlabel("singular value")
                top.xaxis.set_major_locator(MaxNLocator(4, integer=True))
                low.set(xlim=(-0.6, len(rows) - 0.4), xticks=[])
        drawing.share_storeys(grid, lines, ["size", "R², leave-one-out"])
        words = {name.replace("_", " "): look for name, look in _METHODS.items()}
        handles = drawing.series_handles(words)
        handles.append(Line2D([], [], color=GREY, lw=5, label="permuted pairs"))
        handles.append(Line2D([], [], color=PALE, lw=5, label="random subspaces"))
        handles.append(Line2D([], [], color=GREY, ls=":", label="rotation"))
        drawing.legend(figure, handles, 5 if grid.shape[2] > 1 else 2)
    return figure


def _rates(ax, rows, y, condition) -> None:
    """One condition's rates: a point with its interval, or a dot for every draw."""
    for name, (_, colour, marker, shift) in _RATES.items():
        colour = colour if condition in ("z", "z_perp", "full") else GREY
        if len(rows) > 1:
            draws = np.sort(rows[name])
            ax.plot(draws, np.full(len(draws), y + shift), marker, color=GREY, ms=2.2, mew=0)
            continue
        row = rows.iloc[0]
        if np.isfinite(row[name]):
            ax.hlines(y + shift, row[f"{name}_low"], row[f"{name}_high"], color=colour, lw=0.8)
            ax.plot(row[name], y + shift, marker, color=colour)


def _panel(words, layer, k_sub) -> pd.Series:
    return layer.map(words.format) + "\nk_sub " + k_sub.astype(str)


def _share_log(grid, lines, label) -> None:
    """One logarithmic y scale for the first storey of a stack."""
    used = [
        ax for line, (_, panels) in zip(grid, lines, strict=True) for ax in line[0, : len(panels)]
    ]
    low, high = (f(ax.get_ylim()[n] for ax in used) for n, f in enumerate((min, max)))
    for ax in used:
        ax.set_ylim(low, high)
        drawing.plain_log(ax.yaxis)
        ax.tick_params(labelleft=ax in grid[:, 0, 0])
    for ax in grid[:, 0, 0]:
        ax.set_ylabel(label)
