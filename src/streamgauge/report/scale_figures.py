"""Figures of a study of several models: differences, budgets, k*, depth profile, MI critics.

In the style of `score_figures`: a colour always comes with a marker of its own, nulls are grey, and
equal tables give equal bytes. A study too small for a question gets a figure that says so.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from streamgauge.report import drawing
from streamgauge.report.drawing import BLUE, DOUBLE, GREY, MIDDLE, PALE, TOKEN_SETS, VERMILLION

_CELL = ["corpus", "expansion", "objective"]
_DELTAS = {"d_r2": ("ΔR²", BLUE, "o"), "d_ce_rec": ("ΔCE recovered", VERMILLION, "s")}
_CRITICS = {"hybrid": (BLUE, "o"), "separable": (VERMILLION, "s")}
_ARROWS = {"<=k_min": "<", ">k_max": ">"}
# values of a k* table and what says that they lie outside the grid
_K_STARS = {
    "k_star": "censored",
    "k_star_low": "censored_low",
    "k_star_high": "censored_high",
    "untrained_k_star": "untrained_censored",
}


def deltas(table: pd.DataFrame, title: str = "") -> Figure:
    """ΔR² and ΔCE recovered of every pair of models over k, one column a depth.

    The larger model less the smaller, means over their common seeds with the widest interval the
    table has; with several seeds each has a small point of its own. Crosses at the top edge mark a
    mismatch (ΔR² > 0 and ΔCE recovered < 0), stars one that is resolved. The lower axes hold the
    same differences between the untrained SAEs.

    Args:
        table: a study's ``deltas.csv``; empty where no two models can be compared.
        title: text above the figure.

    Raises:
        StreamgaugeError: the table lacks a column.
    """
    if table.empty:
        return drawing.words(title, "No two models of different width can be compared.")
    place = [*_CELL, "tokens", "small", "big", "depth", "small_layer", "big_layer"]
    needed = [*place, "k", "seed", "token_set", *_DELTAS, "mismatch", "resolved"]
    drawing.require(table, [*needed, *(f"untrained_{name}" for name in _DELTAS)], "deltas table")
    table = _by_layer(table.assign(pair=table.big + " − " + table.small), "small_layer")
    for name in _DELTAS:
        table = _widest(table, name)
    one = table.seed.astype(str) != "all"
    seeds, table = table[one], table[~one]
    several = seeds.seed.nunique() > 1
    with drawing.style():
        lines = drawing.lines_of_panels(table, [*_CELL, "tokens", "pair"], ["pair"], "depth")
        figure, grid = drawing.stack(title, lines, [2.4, 1], 2.6)
        for i, (label, panels) in enumerate(lines):
            for j, (depth, rows) in enumerate(panels):
                top, low = grid[i, :, j]
                ks, first = sorted(rows.k.unique()), rows.iloc[0]
                own = drawing.having(seeds, {name: first[name] for name in place})
                for n, (name, (_, colour, marker)) in enumerate(_DELTAS.items()):
                    for m, token_set in enumerate(TOKEN_SETS):
                        look = {"dashed": m == 1, "dodge": drawing.sideways(2 * m + n - 1.5)}
                        part = rows[rows.token_set == token_set]
                        drawing.series(top, part, "k", name, colour, marker, **look)
                        null = f"untrained_{name}"
                        drawing.series(low, part, "k", null, GREY, marker, **look)
                        if several:
                            points = own[own.token_set == token_set]
                            at = points.k * look["dodge"] * drawing.sideways(0.5)
                            top.plot(at, points[name], "o", color=colour, ms=1.6)
                for ax in (top, low):
                    ax.axhline(0, color=GREY, lw=0.7, zorder=0)
                    drawing.log2_axis(ax, ks, labels=ax is low)
                _mark_mismatches(top, rows)
                layers = f"L{first.big_layer} − L{first.small_layer}"
                top.set_title(f"{'' if j else label}\n{depth}, {layers}".lstrip(), loc="left")
                low.set_xlabel("k")
        drawing.share_storeys(grid, lines, ["ΔR², ΔCE recovered", "untrained"])
        words = {words: look for words, *look in _DELTAS.values()}
        handles = drawing.series_handles(words) + drawing.token_set_handles()
        handles.append(Line2D([], [], color=GREY, marker="o", label="untrained SAEs"))
        if several:
            handles.append(drawing.dot("black", "o", "single seeds", ms=1.6))
        handles.append(drawing.dot("black", "X", "mismatch"))
        handles.append(drawing.dot("black", "*", "mismatch, resolved", ms=6))
        drawing.legend(figure, handles, 4 if grid.shape[2] > 1 else 3)
    return figure


def budgets(table: pd.DataFrame, title: str = "") -> Figure:
    """CE recovered, R² and alive latents over training tokens, one line a model.

    One row of panels a depth, one column a k. Means over seeds with the widest interval the table
    has. The lowest axes hold the untrained SAEs over all tokens: CE recovered solid, R² dotted.

    Args:
        table: a study's ``budgets.csv``.
        title: text above the figure.

    Raises:
        StreamgaugeError: the table lacks a column or is empty.
    """
    metrics = {"ce_rec": "CE recovered", "r2": "R²", "alive": "alive share"}
    nulls = {"untrained_ce_rec": "-", "untrained_r2": ":"}
    by = [*_CELL, "depth"]
    needed = [*by, "layer", "subject", "d_model", "k", "tokens", "token_set", *metrics, *nulls]
    drawing.require(table, needed, "budgets table")
    if table.tokens.nunique() < 2:
        return drawing.words(title, "One token budget: nothing can be followed over tokens.")
    table = _by_layer(table.assign(seed="all").sort_values("k", kind="stable"), "layer")
    for name in metrics:
        table = _widest(table, name)
    subjects = _subjects(table)
    with drawing.style():
        lines = drawing.lines_of_panels(table, by, ["depth"], "k")
        figure, grid = drawing.stack(title, lines, [2, 2, 1.2, 1], 4.6)
        for i, (label, panels) in enumerate(lines):
            for j, (k, rows) in enumerate(panels):
                axes = grid[i, :, j]
                steps = sorted(rows.tokens.unique())
                for n, (subject, (colour, marker)) in enumerate(subjects.items()):
                    own = rows[rows.subject == subject]
                    for m, token_set in enumerate(TOKEN_SETS):
                        part = own[own.token_set == token_set]
                        dodge = drawing.sideways(2 * n + m - len(subjects) + 0.5)
                        look = {"dashed": m == 1, "dodge": dodge}
                        for ax, name in zip(axes, metrics, strict=False):
                            drawing.series(ax, part, "tokens", name, colour, marker, **look)
                    null = own[own.token_set == "all"].sort_values("tokens")
                    for name, ls in nulls.items():
                        style = {"color": GREY, "marker": marker, "ms": 3, "ls": ls}
                        axes[-1].plot(null.tokens, null[name], **style)
                for ax in axes:
                    drawing.log2_axis(ax, steps, labels=ax is axes[-1])
                _label_tokens(axes[-1], steps)
                axes[0].set_title(f"{'' if j else label}\nk = {k}".lstrip(), loc="left")
                axes[-1].set_xlabel("training tokens")
        drawing.share_storeys(grid, lines, [*metrics.values(), "untrained"])
        handles = drawing.series_handles(subjects) + drawing.token_set_handles()
        for ls, words in (("-", "CE recovered"), (":", "R²")):
            handles.append(Line2D([], [], color=GREY, ls=ls, label=f"untrained SAE, {words}"))
        drawing.legend(figure, handles, 4 if grid.shape[2] > 1 else 2)
    return figure


def kstar(table: pd.DataFrame, title: str = "") -> Figure:
    """k* of every model, the k that reaches a target of CE recovered; one column a depth.

    Bars are the table's intervals. A value outside the grid of k is an arrow on that edge, and a
    bar whose end lies outside runs to the edge. Grey: the untrained SAEs.

    Args:
        table: a study's ``kstar.csv``.
        title: text above the figure.

    Raises:
        StreamgaugeError: the table lacks a column.
    """
    if table.empty:
        return drawing.words(title, "No targets of CE recovered are asked for.")
    by = [*_CELL, "tokens"]
    needed = [*by, "depth", "layer", "subject", "d_model", "token_set", "target"]
    drawing.require(table, [*needed, *_K_STARS, *_K_STARS.values()], "k* table")
    table = _by_layer(table.fillna(dict.fromkeys(_K_STARS.values(), "")), "layer")
    targets = sorted(table.target.unique())
    looks = dict(zip(targets, drawing.cycle(len(targets)), strict=True))
    names = list(_subjects(table))
    values = table[list(_K_STARS)]
    edges = values.min(axis=None) / 1.5, values.max(axis=None) * 1.5
    powers = np.arange(*np.ceil(np.log2(edges)))
    ticks = 2.0 ** powers[:: 1 + len(powers) // 7]
    lanes = [(target, token_set) for target in targets for token_set in TOKEN_SETS]
    with drawing.style():
        lines = drawing.lines_of_panels(table, by, (), "depth")
        figure, grid = drawing.stack(title, lines, [1], 0.8 + 0.13 * len(lanes) * len(names))
        for i, (label, panels) in enumerate(lines):
            for j, (depth, rows) in enumerate(panels):
                ax = grid[i, 0, j]
                drawing.log2_axis(ax, ticks)
                ax.set(xlim=edges, ylim=(len(names) - 0.5, -0.5), xlabel="k*")
                for _, row in rows.iterrows():
                    colour, marker = looks[row.target]
                    lane = (lanes.index((row.target, row.token_set)) + 0.5) / len(lanes)
                    y = names.index(row.subject) + 0.84 * (lane - 0.5)
                    style = {"mfc": drawing.look(row.token_set != "all")["mfc"]}
                    at = {name: _at(row[name], row[flag], edges) for name, flag in _K_STARS.items()}
                    ax.plot([at["k_star_low"], at["k_star_high"]], [y, y], color=colour, lw=0.8)
                    for name, place in (("untrained_k_star", y + 0.25 / len(lanes)), ("k_star", y)):
                        style["color"] = colour if name == "k_star" else GREY
                        style["marker"] = _ARROWS.get(row[_K_STARS[name]], marker)
                        ax.plot(at[name], place, clip_on=False, **style)
                for y in range(1, len(names)):
                    ax.axhline(y - 0.5, color=PALE, lw=0.7, zorder=0)
                ax.set_yticks(range(len(names)), names if j == 0 else [])
                ax.set_title(f"{'' if j else label}\n{depth}".lstrip(), loc="left")
        words = {f"CE recovered ≥ {target:g}": look for target, look in looks.items()}
        handles = drawing.series_handles(words) + drawing.token_set_handles()
        handles.append(drawing.dot(GREY, "o", "untrained SAE"))
        handles.append(drawing.dot("black", ">", "outside the grid of k"))
        drawing.legend(figure, handles, 3 if grid.shape[2] > 1 else 2)
    return figure


def depth_profile(table: pd.DataFrame, title: str = "") -> Figure:
    """Participation ratio over relative depth, and R² − CE recovered where SAEs are.

    Above: raw and with the largest component removed, with the ceiling of isotropic noise. Below:
    R² − CE recovered at the smallest and the largest k of the grid, and of the untrained SAE at
    the smallest k, each on a scale of its own.

    Args:
        table: a study's ``depth_profile.csv``.
        title: text above the figure.

    Raises:
        StreamgaugeError: the table lacks a column or is empty.
    """
    spectra = {"pr": "PR", "pr_deflated1": "PR, top 1 removed"}
    needed = ["subject", "corpus", "layer", "token_set", *spectra, "n_tokens", "d_model"]
    needed += ["k_min", "r2_k_min", "ce_rec_k_min", "k_max", "r2_k_max", "ce_rec_k_max"]
    needed += ["untrained_r2_k_min", "untrained_ce_rec_k_min"]
    drawing.require(table, needed, "depth profile")
    last = table.groupby("subject").layer.transform("max")
    table = table.assign(depth=table.layer / last.clip(lower=1))
    subjects = _subjects(table)
    smallest, largest = f"smallest k{_ks(table.k_min)}", f"largest k{_ks(table.k_max)}"
    gaps = {"k_min": smallest, "k_max": largest, "untrained": f"untrained, {smallest}"}
    table = table.assign(
        gap_k_min=table.r2_k_min - table.ce_rec_k_min,
        gap_k_max=table.r2_k_max - table.ce_rec_k_max,
        gap_untrained=table.untrained_r2_k_min - table.untrained_ce_rec_k_min,
    )
    if not (table.k_min < table.k_max).any():
        del gaps["k_max"]
    wide = 6 // len(gaps)
    with drawing.style():
        panels = drawing.cells(table, ["corpus"], told=())
        figure = drawing.figure(title, DOUBLE, 4.4 * len(panels))
        spec = figure.add_gridspec(2 * len(panels), 6, height_ratios=[1.3, 1] * len(panels))
        for i, (_, label, rows) in enumerate(panels):
            for j, (name, words) in enumerate(spectra.items()):
                ax = figure.add_subplot(spec[2 * i, 3 * j : 3 * j + 3])
                _over_depth(ax, rows, name, subjects)
                for subject, (_, marker) in subjects.items():
                    own = rows[(rows.subject == subject) & (rows.token_set == "all")]
                    ceiling = (own.d_model / (1 + own.d_model / own.n_tokens)).max()
                    ax.axhline(ceiling, color=GREY, ls=":", zorder=0)
                    ax.plot(1.04, ceiling, marker, color=GREY, ms=3)
                ax.set(yscale="log", ylabel="" if j else "participation ratio")
                drawing.plain_log(ax.yaxis)
                ax.set_title(f"{'' if j else label}\n{words}".lstrip(), loc="left")
            for j, (name, words) in enumerate(gaps.items()):
                ax = figure.add_subplot(spec[2 * i + 1, wide * j : wide * (j + 1)])
                ax.axhline(0, color=GREY, lw=0.7, zorder=0)
                grey = GREY if name == "untrained" else None
                _over_depth(ax, rows, f"gap_{name}", subjects, grey)
                ax.set_ylabel("" if j else "R² − CE recovered")
                ax.set_title(words, loc="left")
        handles = drawing.series_handles(subjects) + drawing.token_set_handles()
        handles.append(Line2D([], [], color=GREY, marker="o", label="untrained SAE"))
        handles.append(Line2D([], [], color=GREY, ls=":", label="ceiling d/(1 + d/n)"))
        drawing.legend(figure, handles, 4)
    return figure


def critics(table: pd.DataFrame, title: str = "") -> Figure:
    """Mutual information over the width of the critic's bottleneck, one panel a layer.

    Open markers are pinned at the ceiling log N (dotted). Grey: the same with shuffled pairs. k*,
    where the information saturates, is a dashed line in its critic's colour (an arrow at the edge
    where no width saturates it); the wide grey bar is the participation ratio.

    Args:
        table: a study's ``critics.csv``.
        title: text above the figure.

    Raises:
        StreamgaugeError: the table lacks a column or is empty.
    """
    by = ["subject", "corpus", "layer"]
    needed = [*by, "critic", "width", "mi_nats", "shuffled_mi_nats", "ceiling_nats", "pinned"]
    drawing.require(table, [*needed, "k_star", "censored", "pr", "pr_no_sink"], "critics table")
    with drawing.style():
        panels = drawing.cells(table, by)
        wide, n_rows = drawing.arrange(len(panels), 3)
        figure = drawing.figure(title, DOUBLE if wide > 1 else MIDDLE, 2.5 * n_rows)
        axes = figure.subplots(n_rows, wide, squeeze=False, sharey=True).ravel()
        for i, (ax, (_, label, rows)) in enumerate(zip(axes, panels, strict=False)):
            widths = sorted(rows.width.unique())
            drawing.log2_axis(ax, widths)
            for name, (colour, marker) in _CRITICS.items():
                own = rows[rows.critic == name].sort_values("width")
                if len(own):
                    _profile(ax, own, colour, marker)
            first = rows.iloc[0]
            low, high = ax.get_xlim()
            for ratio, ls in ((first.pr, "-"), (first.pr_no_sink, (0, (1, 0.6)))):
                if low <= ratio <= high:
                    ax.axvline(ratio, color=PALE, lw=4, ls=ls, zorder=-1)
            ratios = f"PR {first.pr:.3g}, {first.pr_no_sink:.3g} without sinks"
            ax.set_title(f"{label}\n{ratios}", loc="left")
            ax.set_xlabel("width of the bottleneck")
            if i % wide == 0:
                ax.set_ylabel("mutual information, nats")
        for ax in axes[len(panels) :]:
            ax.remove()
        handles = drawing.series_handles({f"{name} critic": c for name, c in _CRITICS.items()})
        handles.append(drawing.dot("black", "o", "pinned at the ceiling", mfc="white"))
        handles.append(Line2D([], [], color=GREY, marker="o", label="shuffled pairs"))
        handles.append(Line2D([], [], color=GREY, ls=":", label="ceiling log N"))
        handles.append(Line2D([], [], color="black", ls="--", lw=0.8, label="k*"))
        handles.append(Line2D([], [], color=PALE, lw=4, label="PR (broken: without sinks)"))
        drawing.legend(figure, handles, 3 if wide > 1 else 2)
    return figure


def _widest(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The table with the widest interval it has of a column, over sequences, seeds or both."""
    made = {}
    for end, outer in (("low", "min"), ("high", "max")):
        kinds = [f"{name}_{kind}{end}" for kind in ("", "seed_", "both_")]
        made[f"{name}_{end}"] = table.reindex(columns=kinds).agg(outer, axis=1)
    return table.assign(**made)


def _subjects(table: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Colour and marker of every model, narrowest first."""
    names = list(dict.fromkeys(table.sort_values(["d_model", "subject"]).subject))
    return dict(zip(names, drawing.cycle(len(names)), strict=True))


def _by_layer(table: pd.DataFrame, layer: str) -> pd.DataFrame:
    """The table from shallow to deep; depths without names of their own are numbered."""
    words = [f"depth {name}" if name.isdigit() else name for name in table.depth.astype(str)]
    return table.assign(depth=words).sort_values(layer, kind="stable")


def _mark_mismatches(ax, rows: pd.DataFrame) -> None:
    """Crosses along the upper edge; stars where the mismatch is resolved."""
    for m, token_set in enumerate(TOKEN_SETS):
        own = rows[(rows.token_set == token_set) & (rows.mismatch == 1)]
        at = own.k * drawing.sideways(2 * m - 1)
        style = {"color": "black", "ls": "none", "transform": ax.get_xaxis_transform()}
        style["mfc"] = drawing.look(m == 1)["mfc"]
        resolved = own.resolved.astype(bool)
        for kind, marker, size in ((resolved, "*", 6), (~resolved, "X", 4)):
            if kind.any():  # an empty line that is not clipped has no extent to lay out
                ax.plot(at[kind], at[kind] ** 0, marker=marker, ms=size, clip_on=False, **style)


def _label_tokens(ax, steps: Sequence[int]) -> None:
    """Budgets as 50k or 10M, without those that would run into the next."""
    room, shown = 0.22 * np.log(steps[-1] / steps[0]), [steps[-1]]
    for step in reversed(steps[:-1]):
        if np.log(shown[-1] / step) > room:
            shown.append(step)
    words = {step: f"{step / 1e6:g}M" if step >= 1e6 else f"{step / 1e3:g}k" for step in shown}
    ax.xaxis.set_major_formatter(FuncFormatter(lambda step, _: words.get(step, "")))


def _at(value: float, censored: str, edges: tuple[float, float]) -> float:
    """Where a k* is drawn: one outside the grid of k lies on the edge."""
    return {"<=k_min": edges[0], ">k_max": edges[1]}.get(censored, value)


def _ks(values: pd.Series) -> str:
    """`` = 8`` where the grid's end is the same everywhere."""
    found = values.dropna().unique()
    return f" = {found[0]:g}" if len(found) == 1 else ""


def _over_depth(ax, rows, name, subjects, colour=None) -> None:
    """A line a model and token set over relative depth."""
    for subject, (own_colour, marker) in subjects.items():
        for m, token_set in enumerate(TOKEN_SETS):
            part = rows[(rows.subject == subject) & (rows.token_set == token_set)]
            part = part.dropna(subset=[name]).sort_values("depth")
            style = {"color": colour or own_colour, "marker": marker, "ms": 3}
            ax.plot(part.depth, part[name], **style, **drawing.look(m == 1))
    ax.set(xlim=(-0.06, 1.08), xticks=[0, 0.5, 1], xlabel="relative depth")


def _profile(ax, rows: pd.DataFrame, colour: str, marker: str) -> None:
    """One critic: information over width, its null, its ceiling and k*."""
    ax.plot(rows.width, rows.shuffled_mi_nats, marker=marker, color=GREY, ms=3)
    ax.plot(rows.width, rows.ceiling_nats, color=GREY, ls=":")
    ax.plot(rows.width, rows.mi_nats, color=colour)
    pinned = rows.pinned.astype(bool)
    for kind, face in ((~pinned, colour), (pinned, "white")):
        ax.plot(rows.width[kind], rows.mi_nats[kind], marker, color=colour, mfc=face)
    first = rows.iloc[0]
    ax.axvline(first.k_star, color=colour, ls=drawing.look(True)["ls"], lw=0.8, zorder=0)
    if first.censored in _ARROWS:
        style = {"transform": ax.get_xaxis_transform(), "clip_on": False}
        ax.plot(first.k_star, 1, _ARROWS[first.censored], color=colour, **style)
