"""Figures of what errors cost the model: calibration, objectives, leaderboard, attention.

In the style of `score_figures`: a colour always comes with a marker of its own, controls are grey,
and equal tables give equal bytes.
"""

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from streamgauge.report import drawing
from streamgauge.report.drawing import (
    BLUE,
    DOUBLE,
    GREY,
    MIDDLE,
    PALE,
    SERIES,
    SINGLE,
    TOKEN_SETS,
    VERMILLION,
)

_PLACE = ["subject", "corpus", "layer"]
_SAE = ["expansion", "tokens", "objective", "k", "seed"]
_SOURCES = {"synthetic": "synthetic", "sae": "SAE", "untrained": "untrained"}
_TARGETS = {"ce_rec_mean_of_ratios": "CE recovered", "kl_nats": "KL"}
_PROXIES = {
    "r2": "R²",
    "l0": "L0",
    "mse": "MSE",
    "nmse": "NMSE",
    "relative_error": "relative error",
    "rate_bits": "rate",
    "entropy_rate_bits": "entropy rate",
    "swd": "SWD",
    "gradient_dot": "g·δ",
    "gradient_dot_abs": "|g·δ|",
    "first_order_nats": "Σ g·δ",
    "quad_nats": "½ δᵀGδ",
    "joint_quad_nats": "½ δᵀGδ, joint",
    "diagonal_quad_nats": "½ δᵀGδ, diagonal F",
    "same_position_quad_nats": "½ δᵀGδ, same position",
}


def calibration(table: pd.DataFrame, points: pd.DataFrame, title: str = "") -> Figure:
    """Predicted against measured KL of every sequence, and their ratio over the size of errors.

    One panel a layer and token set. Filled markers are predictions with the errors of all
    positions at once, open ones take each token's error alone; all in nats per predicted position.
    Above each panel stand slope and R² of the least-squares line through the filled points'
    logarithms. The lower axes hold measured/predicted of the synthetic errors with the table's
    intervals. A value of zero or less sits on the lower edge as a triangle.

    Args:
        table: a study's ``calibration.csv``.
        points: its ``calibration_points.csv``.
        title: text above the figure.

    Raises:
        StreamgaugeError: a table lacks a column or is empty.
    """
    place = [*_PLACE, "token_set", "source"]
    drawing.require(table, [*place, "scale", "ratio", "ratio_joint"], "calibration table")
    drawing.require(table, ["k", "log_slope", "log_r2"], "calibration table")
    values = ["predicted_nats", "joint_nats", "measured_nats"]
    drawing.require(points, [*place, "objective", *values], "table of calibration points")
    several = points.objective.nunique() > 1
    looks = _error_looks(points)
    low, high = (f(points[values].where(points[values] > 0).stack()) for f in (np.min, np.max))
    ends = low / 2, high * 2
    with drawing.style():
        panels = [
            ({**key, "token_set": token_set}, f"{label}, {words}", own)
            for key, label, every in drawing.cells(points, _PLACE)
            for token_set, words in TOKEN_SETS.items()
            if len(own := every[every.token_set == token_set])
        ]
        wide, n_rows = drawing.arrange(len(panels), 2)
        figure = drawing.figure(title, DOUBLE if wide > 1 else SINGLE, 4.4 * n_rows)
        heights = [2.6, 1] * n_rows
        axes = figure.subplots(2 * n_rows, wide, squeeze=False, height_ratios=heights)
        tops, lows = axes[::2].ravel(), axes[1::2].ravel()
        for top, below, (key, label, own) in zip(tops, lows, panels, strict=False):
            rows = drawing.having(table, key)
            top.plot(ends, ends, color=GREY, ls=":", lw=0.9, zorder=0)
            for x, filled in (("predicted_nats", False), ("joint_nats", True)):
                for (source, objective), (colour, marker, _) in looks.items():
                    kind = (own.source == source) & (own.objective.fillna("") == objective)
                    style = {"color": colour, "ms": 2.8, "mew": 0.6, "ls": "none"}
                    style |= {"mfc": colour if filled else "none", "zorder": 2 + (colour != GREY)}
                    _scatter(top, own[kind], x, "measured_nats", marker, ends[0], style)
            top.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
            top.set_xlabel("predicted KL, nats per position")
            lines = [_fit(rows, source) for source in _SOURCES if (rows.source == source).any()]
            top.set_title("\n".join([label, *lines]), loc="left")
            for axis in (top.xaxis, top.yaxis):
                drawing.plain_log(axis)
                axis.get_major_locator().set_params(numticks=5)
            _ratios(below, rows[(rows.source == "synthetic") & rows.scale.notna()])
        spans = np.array([ax.get_ylim() for ax in lows[: len(panels)]])
        for i, (top, below) in enumerate(zip(tops, lows, strict=True)):
            if i >= len(panels):
                top.remove()
                below.remove()
                continue
            below.set_ylim(spans[:, 0].min(), spans[:, 1].max())
            drawing.plain_log(below.yaxis)
            if i % wide == 0:
                top.set_ylabel("measured KL, nats per position")
                below.set_ylabel("measured /\npredicted")
        figure.align_ylabels()
        handles = [
            Line2D([], [], color=colour, marker=marker, ls="none", label=label)
            for colour, marker, label in dict.fromkeys(looks.values())
        ]
        for mfc, label in ((None, "positions at once"), ("white", "each token alone")):
            handles.append(Line2D([], [], color="black", marker="o", mfc=mfc, label=label))
            handles[-1].set_linestyle("none")
        handles.append(Line2D([], [], color=GREY, ls=":", lw=0.9, label="measured = predicted"))
        drawing.legend(figure, handles, (4 if several else 3) if wide > 1 else 2)
    return figure


def objectives(grid: pd.DataFrame, title: str = "") -> Figure:
    """CE recovered, R² and the costs in nats over k, one line an objective.

    One row of panels a layer (and expansion, budget), one column a score. Bars are the table's
    intervals; with several seeds every seed has its point and the line joins their means. The
    controls over all tokens, the untrained SAE and mean ablation, are grey: on axes of their own
    below the two shares, on the same logarithmic axis for the costs in nats.

    Args:
        grid: a study's grid table (``grid.csv``).
        title: text above the figure.

    Raises:
        StreamgaugeError: the table lacks a column or has no SAE in it.
    """
    shares = {"ce_rec_mean_of_ratios": "CE recovered", "r2": "R²"}
    costs = {"kl_nats": "KL, nats", "quad_nats": "½ δᵀGδ, nats"}
    by = [*_PLACE, "expansion", "tokens"]
    needed = [*by, "k", "seed", "objective", "codec", "token_set", *shares, "kl_nats"]
    drawing.require(grid, needed, "grid table")
    trained = grid[grid.codec == "sae"]
    drawing.require(trained, [], "grid table")
    costs = {name: words for name, words in costs.items() if name in trained}
    costs = {name: words for name, words in costs.items() if trained[name].notna().any()}
    names = list(dict.fromkeys(trained.objective))
    looks = dict(zip(names, drawing.cycle(len(names)), strict=True))
    with drawing.style():
        panels = drawing.cells(trained, by)
        figure = drawing.figure(title, DOUBLE, 2.7 * len(panels))
        spec = figure.add_gridspec(
            2 * len(panels), len(shares) + len(costs), height_ratios=[2.4, 1] * len(panels)
        )
        for i, (key, label, rows) in enumerate(panels):
            ks = sorted(rows.k.unique())
            null = drawing.having(grid, {**key, "token_set": "all"})
            for j, (metric, words) in enumerate({**shares, **costs}.items()):
                if metric in shares:
                    top = figure.add_subplot(spec[2 * i, j])
                    low = figure.add_subplot(spec[2 * i + 1, j])
                    drawing.log2_axis(top, ks, labels=False)
                else:
                    top = low = figure.add_subplot(spec[2 * i : 2 * i + 2, j])
                    low.set_yscale("log")
                _objective_lines(top, rows, metric, looks, metric in costs)
                _controls(low, null, metric, ks, metric in costs)
                low.margins(y=0.05 if low is top else 0.2)
                drawing.log2_axis(low, ks)
                low.set_xlabel("k")
                if metric in costs:
                    drawing.plain_log(low.yaxis)
                top.set_title(f"{label if j == 0 else ''}\n{words}", loc="left")
                if j == 0:
                    low.set_ylabel("controls")
        handles = [
            Line2D([], [], color=colour, marker=marker, label=name)
            for name, (colour, marker) in looks.items()
        ]
        handles += drawing.token_set_handles()
        handles.append(Line2D([], [], color=GREY, marker="o", label="untrained SAE"))
        handles.append(Line2D([], [], color=GREY, ls=":", label="mean ablation"))
        drawing.legend(figure, handles, 4)
    return figure


def leaderboard(table: pd.DataFrame, title: str = "") -> Figure:
    """Spearman correlation of every proxy with behaviour, best first.

    One column of panels a target, one row a token set. Filled markers are pooled over all SAEs,
    open ones within k; bars are the table's intervals, grey bars the interval of the same
    correlation with shuffled labels. The order is that of the first target, pooled. A proxy that
    has no correlation (it does not vary) is left out.

    Args:
        table: a study's ``leaderboard.csv``.
        title: text above the figure.

    Raises:
        StreamgaugeError: the table lacks a column or is empty.
    """
    values = ["spearman", "spearman_low", "spearman_high", "null_low", "null_high"]
    by = ["target", "token_set", "how", "proxy", "n", "n_clusters"]
    drawing.require(table, [*by, *values], "leaderboard")
    n_saes = int(table.n.max())
    table = table[table.spearman.notna()]
    if table.empty:
        return drawing.words(title, f"{n_saes} SAE(s): no proxy and behaviour vary together.")
    looks = {"pooled": (BLUE, "o", "pooled"), "within_k": (VERMILLION, "s", "within k")}
    sets = [name for name in TOKEN_SETS if (table.token_set == name).any()]
    orders = {name: _order(table[table.token_set == name]) for name in sets}
    with drawing.style():
        heights = [0.18 * len(order) + 0.6 for order in orders.values()]
        figure = drawing.figure(title, DOUBLE, sum(heights))
        axes = figure.subplots(
            len(sets), len(_TARGETS), squeeze=False, sharex=True, height_ratios=heights
        )
        for row, (token_set, order) in zip(axes, orders.items(), strict=True):
            for ax, (target, words) in zip(row, _TARGETS.items(), strict=True):
                own = drawing.having(table, {"target": target, "token_set": token_set})
                ax.axvline(0, color=GREY, lw=0.7, zorder=0)
                for i, (how, (colour, marker, _)) in enumerate(looks.items()):
                    part = own[own.how == how]
                    y = part.proxy.map(order.index) + 0.36 * i - 0.18
                    width = part.null_high - part.null_low
                    ax.barh(y, width, 0.3, part.null_low, color=PALE, zorder=0)
                    ends = part.spearman - part.spearman_low, part.spearman_high - part.spearman
                    ends = np.maximum(np.nan_to_num(ends), 0)
                    ax.errorbar(part.spearman, y, xerr=ends, fmt="none", ecolor=colour, lw=0.8)
                    mfc = "white" if i else colour
                    ax.plot(part.spearman, y, marker, color=colour, mfc=mfc)
                shown = [_PROXIES.get(proxy, proxy.replace("_", " ")) for proxy in order]
                ax.set_yticks(range(len(order)), shown if ax is row[0] else [])
                ax.set(xlim=(-1.05, 1.05), ylim=(len(order) - 0.4, -0.6))
                n, clusters = (int(own[name].max()) for name in ("n", "n_clusters"))
                about = f"{TOKEN_SETS[token_set]}; {n} SAEs, {clusters} clusters"
                ax.set_title(f"{words}\n{about}", loc="left")
        for ax in axes[-1]:
            ax.set_xlabel("Spearman correlation with behaviour")
        handles = [
            Line2D([], [], color=c, marker=m, mfc="white" if i else c, label=label)
            for i, (c, m, label) in enumerate(looks.values())
        ]
        handles.append(Line2D([], [], color=PALE, lw=4, label="shuffled labels"))
        drawing.legend(figure, handles, 3)
    return figure


def attention(table: pd.DataFrame, title: str = "") -> Figure:
    """JS divergence of the attention of every head, by layer: SAEs beside their untrained selves.

    One row of panels a patched layer, on one logarithmic colour scale. Shown are SAEs of the
    first seed, expansion and budget: of one objective those of the smallest and the largest k, of
    several objectives all at the smallest k. Layers up to the patched one, where the divergence is
    0 because nothing changes, are pale.

    Args:
        table: a study's ``attention.csv``.
        title: text above the figure.

    Raises:
        StreamgaugeError: the table lacks a column or is empty.
    """
    place = ["subject", "corpus", "hook_layer"]
    needed = [*place, *_SAE, "codec", "layer", "head", "js_nats"]
    drawing.require(table, needed, "attention table")
    above = table[(table.layer > table.hook_layer) & (table.js_nats > 0)]
    if above.empty:
        return drawing.words(title, "No attention above the patched layers differs.")
    rows = [(key, _shown(own)) for key, _, own in drawing.cells(above, place)]
    every = pd.concat([own for _, panels in rows for _, own in panels])
    # a head that ignores the patch must not take the colours from the others
    highest = every.js_nats.max()
    scale = LogNorm(max(every.js_nats.min(), highest / 1e3), highest)
    with drawing.style():
        widest = max(len(panels) for _, panels in rows)
        figure = drawing.figure(title, DOUBLE if widest > 2 else MIDDLE, 2.6 * len(rows))
        axes = figure.subplots(len(rows), widest, squeeze=False)
        for line, (key, panels) in zip(axes, rows, strict=True):
            n_layers = drawing.having(table, key).layer.max() + 1
            words = [key[name] for name in place[:2] if table[name].nunique() > 1]
            name = ", ".join([*words, f"patched after layer {key['hook_layer']}"])
            for ax, (label, own) in zip(line, panels, strict=False):
                cells = own.pivot(index="layer", columns="head", values="js_nats")
                image = np.full((n_layers, int(own["head"].max()) + 1), np.nan)
                image[np.ix_(cells.index, cells.columns)] = cells
                ax.axhspan(-0.5, key["hook_layer"] + 0.5, color=PALE, lw=0)
                edges = [np.arange(n + 1) - 0.5 for n in image.shape]
                mesh = ax.pcolormesh(*edges[::-1], image, norm=scale, cmap="cividis", lw=0)
                ax.set(xlim=edges[1][[0, -1]], ylim=edges[0][[0, -1]], xlabel="head")
                ax.set_title(f"{name if ax is line[0] else ''}\n{label}", loc="left")
                ax.tick_params(labelleft=ax is line[0])
                for axis in (ax.xaxis, ax.yaxis):
                    axis.get_major_locator().set_params(integer=True)
            line[0].set_ylabel("layer")
            for ax in line[len(panels) :]:
                ax.remove()
        extend = "min" if every.js_nats.min() < scale.vmin else "neither"
        bar = figure.colorbar(mesh, ax=axes, label="JS divergence, nats", extend=extend)
        bar.outline.set_visible(False)
        drawing.plain_log(bar.ax.yaxis)
        below = Line2D([], [], color=PALE, lw=4, label="not above the patch: exactly 0")
        drawing.legend(figure, [below], 1)
    return figure


def _error_looks(points: pd.DataFrame) -> dict[tuple[str, str], tuple[str, str, str]]:
    """(source, objective) -> colour, marker and words, in the order of `_SOURCES`."""
    pairs = points[["source", "objective"]].fillna("").drop_duplicates()
    objectives = [name for name in dict.fromkeys(pairs.objective) if name]
    several = len(objectives) > 1
    looks = {("synthetic", ""): (BLUE, "o", "synthetic errors")}
    for name, (colour, marker) in zip(objectives, SERIES[1:], strict=False):
        words = f"SAE, {name}" if several else "SAE errors"
        looks["sae", name] = (colour, marker, words)
        looks["untrained", name] = (GREY, "X", "untrained SAE")
    there = set(pairs.itertuples(index=False, name=None))
    return {key: look for key, look in looks.items() if key in there}


def _scatter(ax, rows, x, y, marker, floor, style) -> None:
    """Points; those a logarithmic axis cannot hold lie on its edge, as triangles."""
    values = rows[[x, y]].to_numpy(float)
    hidden = (values <= 0).any(1)
    values = np.maximum(values, floor * 1.1)
    ax.plot(*values[~hidden].T, marker=marker, **style)
    ax.plot(*values[hidden].T, marker="v", **style)


def _fit(rows: pd.DataFrame, source: str) -> str:
    """Slope and R² of all points of one source."""
    own = rows[rows.source == source]
    pooled = own[own.scale.isna() & own.k.isna()]
    # a source with a single error has no row for all of them
    fit = (pooled if len(pooled) else own).iloc[0]
    return f"{_SOURCES[source]}: log slope {fit.log_slope:.2f}, R² {fit.log_r2:.2f}"


def _ratios(ax, rows: pd.DataFrame) -> None:
    """Measured over predicted KL of synthetic errors by their size."""
    rows = rows.assign(seed=0)
    ax.axhline(1, color=GREY, ls=":", lw=0.9, zorder=0)
    for column, dashed in (("ratio", True), ("ratio_joint", False)):
        floor = drawing.lowest(rows[column])
        drawing.series(ax, rows, "scale", column, BLUE, "o", dashed=dashed, floor=floor)
    ax.set(xscale="log", yscale="log", xlabel="size of the error, |δ|/|h|")
    drawing.plain_log(ax.xaxis)


def _objective_lines(ax, rows, metric, looks, logarithmic) -> None:
    floor = drawing.lowest(rows[metric]) if logarithmic else None
    for i, (name, (colour, marker)) in enumerate(looks.items()):
        for m, token_set in enumerate(TOKEN_SETS):
            part = drawing.having(rows, {"objective": name, "token_set": token_set})
            dodge = drawing.sideways(2 * i + m - len(looks) + 0.5)
            look = {"dashed": m == 1, "dodge": dodge, "floor": floor}
            drawing.series(ax, part, "k", metric, colour, marker, **look)


def _controls(ax, null, metric, ks, logarithmic) -> None:
    floor = drawing.lowest(null[metric]) if logarithmic else None
    untrained = null[null.codec == "untrained"]
    drawing.series(ax, untrained, "k", metric, GREY, "o", floor=floor)
    for level in null.loc[null.codec == "mean", metric].dropna().unique():
        ax.axhline(level, color=GREY, ls=":", lw=0.9, zorder=0)


def _order(table: pd.DataFrame) -> list[str]:
    """Proxies by their pooled correlation with the first target that has any."""
    keys = {"how": ["pooled", "within_k"], "target": list(_TARGETS)}
    at = table.assign(**{name: table[name].map(order.index) for name, order in keys.items()})
    at = at.sort_values(["target", "how", "spearman"], ascending=[True, True, False])
    return list(dict.fromkeys(at.proxy))


def _shown(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Labels and rows of the panels of one patched layer."""
    for name in ("seed", "expansion", "tokens"):
        rows = rows[rows[name] == rows[name].iloc[0]]
    names, ks = list(dict.fromkeys(rows.objective)), sorted(rows.k.unique())
    ks = sorted({ks[0], ks[-1]}) if len(names) == 1 else ks[:1]
    found = []
    for k in ks:
        for name in names:
            own = drawing.having(rows, {"codec": "sae", "objective": name, "k": k})
            found.append((f"{name}, k = {k}" if len(names) > 1 else f"SAE, k = {k}", own))
    for k in ks:
        own = drawing.having(rows, {"codec": "untrained", "objective": names[0], "k": k})
        found.append((f"untrained, k = {k}", own))
    return [(label, own) for label, own in found if len(own)]
