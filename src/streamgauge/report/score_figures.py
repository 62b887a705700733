"""Figures of a study: tables in, one Matplotlib figure out, the same bytes every time.

Colours are Okabe and Ito's, and every colour comes with its own marker or line style, so that the
figures read in grey and to the colour-blind. Controls are grey throughout. Filled markers on solid
lines are all tokens; open markers on dashed lines leave the attention sinks out.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from streamgauge.base.paths import cell_of
from streamgauge.base.tables import read_csv
from streamgauge.report import drawing
from streamgauge.report.drawing import (
    BLUE,
    DOUBLE,
    GREY,
    MIDDLE,
    PALE,
    SINGLE,
    TOKEN_SETS,
    VERMILLION,
)

_SAE = ["layer", "expansion", "tokens", "objective"]
_CELL = ["subject", "corpus", *_SAE]
# objective -> column of the training history, and its unit
_LOSSES = {
    "mse": ("fvu", "squared error / variance"),
    "behavioral": ("loss", "½ δᵀGδ, nats/token"),
    "e2e": ("loss", "KL, nats/position"),
}
_DASHES = ["-", (0, (4, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (1, 1))]


def proxy_gap(table: pd.DataFrame, title: str = "") -> Figure:
    """R² and CE recovered over k, one panel a cell of the grid.

    The upper axes hold the SAEs; the lower ones, on a scale of their own, the controls over all
    tokens: the untrained SAE of the same shape and mean ablation. Bars are the table's intervals;
    with several seeds every seed has its point and the line joins their means.

    Args:
        table: a study's grid table (``grid.csv``).
        title: text above the figure.

    Raises:
        StreamgaugeError: the table lacks a column or has no SAE in it.
    """
    metrics = {"r2": ("R²", BLUE, "o"), "ce_rec_mean_of_ratios": ("CE recovered", VERMILLION, "s")}
    drawing.require(table, [*_CELL, "k", "seed", "codec", "token_set", *metrics], "grid table")
    trained = table[table.codec == "sae"]
    drawing.require(trained, [], "grid table")
    with drawing.style():
        panels = drawing.cells(trained, _CELL)
        wide, n_rows = drawing.arrange(len(panels), 3)
        figure = drawing.figure(title, DOUBLE if wide > 1 else SINGLE, 2.8 * n_rows)
        heights = [2.4, 1] * n_rows
        axes = figure.subplots(2 * n_rows, wide, squeeze=False, height_ratios=heights)
        tops, lows = axes[::2].ravel(), axes[1::2].ravel()
        for top, low, (key, label, rows) in zip(tops, lows, panels, strict=False):
            ks = sorted(rows.k.unique())
            controls = drawing.having(table, {**key, "token_set": "all"})
            for j, (metric, (_, colour, marker)) in enumerate(metrics.items()):
                for m, token_set in enumerate(TOKEN_SETS):
                    part = rows[rows.token_set == token_set]
                    look = {"dashed": m == 1, "dodge": drawing.sideways(2 * m + j - 1.5)}
                    drawing.series(top, part, "k", metric, colour, marker, **look)
                untrained, dodge = (
                    controls[controls.codec == "untrained"],
                    drawing.sideways(j - 0.5),
                )
                drawing.series(low, untrained, "k", metric, GREY, marker, dodge=dodge)
                level = controls.loc[controls.codec == "mean", metric].mean()
                low.axhline(level, color=GREY, ls=":")
                left = ks[0] * 2**-0.35
                low.plot(left, level, color=GREY, marker=marker, mfc="white", ls="none")
            top.set_title(label, loc="left")
            low.set_xlabel("k, latents per token")
            drawing.log2_axis(top, ks, labels=False)
            drawing.log2_axis(low, ks)
        for ax in [*tops[len(panels) :], *lows[len(panels) :]]:
            ax.remove()
        drawing.share_y(tops[: len(panels)], wide, "R², CE recovered")
        drawing.share_y(lows[: len(panels)], wide, "controls")
        figure.align_ylabels()
        handles = [
            Line2D([], [], color=c, marker=s, label=f"{name}, {words}", **drawing.look(m == 1))
            for m, words in enumerate(TOKEN_SETS.values())
            for name, c, s in metrics.values()
        ]
        grey = {"color": GREY, "marker": "o"}
        handles.append(Line2D([], [], label="untrained SAE (○ R², □ CE)", **grey))
        handles.append(Line2D([], [], label="mean ablation", mfc="white", ls=":", **grey))
        drawing.legend(figure, handles, 3 if wide > 1 else 1)
    return figure


def rate_distortion(table: pd.DataFrame, title: str = "") -> Figure:
    """1 − R², 1 − CE recovered and KL in nats against the rate; lower left is better.

    One row of panels a subject and corpus, one line a layer (and expansion, budget, objective
    where several), k along it. Untrained SAEs are grey, mean ablation (rate 0) the dotted level,
    both over all tokens. A distortion of zero or less, which a logarithmic axis cannot hold, sits
    on the lower edge as a triangle.

    Args:
        table: a study's grid table (``grid.csv``).
        title: text above the figure.

    Raises:
        StreamgaugeError: the table lacks a column or has no SAE in it.
    """
    metrics = {"r2": "1 − R²", "ce_rec_mean_of_ratios": "1 − CE recovered", "kl_nats": "KL, nats"}
    needed = [*_CELL, "k", "seed", "codec", "token_set", "rate_bits", *metrics]
    drawing.require(table, needed, "grid table")
    trained = table[table.codec == "sae"]
    drawing.require(trained, [], "grid table")
    with drawing.style():
        lines = drawing.cells(trained, _SAE)
        panels = drawing.cells(trained, ["subject", "corpus"], told=())
        columns = min(4, max(2, -(-len(lines) // 2) + 2))
        figure = drawing.figure(title, DOUBLE, 2.4 * len(panels))
        axes = figure.subplots(len(panels), len(metrics), squeeze=False, sharex=True, sharey="col")
        for column, (metric, label) in enumerate(metrics.items()):
            costs = _distortion(table, metric)
            floor = drawing.lowest(costs.loc[costs.codec == "sae", "value"])
            for ax, (place, name, _) in zip(axes[:, column], panels, strict=True):
                for (key, _, _), (colour, marker) in zip(
                    lines, drawing.cycle(len(lines)), strict=True
                ):
                    own = drawing.having(costs, {**place, **key})
                    null = own[own.token_set == "all"]
                    untrained = null[null.codec == "untrained"]
                    drawing.series(ax, untrained, "rate_bits", "value", GREY, marker, floor=floor)
                    for level in null.loc[null.codec == "mean", "value"].unique():
                        ax.axhline(max(level, floor), color=GREY, ls=":", lw=0.9, zorder=0)
                    for m, token_set in enumerate(TOKEN_SETS):
                        part = own[(own.codec == "sae") & (own.token_set == token_set)]
                        of = {"dashed": m == 1, "floor": floor}
                        drawing.series(ax, part, "rate_bits", "value", colour, marker, **of)
                ax.set(xscale="log", yscale="log", ylabel=label)
                ax.set_title(name if column == 0 else "", loc="left")
            axes[-1, column].set_xlabel("rate, bits/token")
        rates = trained.rate_bits
        for ax in axes.flat:
            ax.set_xlim(rates.min() / 1.25, rates.max() * 1.25)
            drawing.plain_log(ax.xaxis)
            drawing.plain_log(ax.yaxis)
        handles = [
            Line2D([], [], color=colour, marker=marker, label=label)
            for (_, label, _), (colour, marker) in zip(
                lines, drawing.cycle(len(lines)), strict=True
            )
        ]
        handles += drawing.token_set_handles()
        handles.append(Line2D([], [], color=GREY, marker="o", label="untrained SAE"))
        handles.append(Line2D([], [], color=GREY, ls=":", label="mean ablation (rate 0)"))
        drawing.legend(figure, handles, columns)
    return figure


def pr_canyon(
    table: pd.DataFrame, title: str = "", hooked: Mapping[str, Sequence[int]] | None = None
) -> Figure:
    """Participation ratio of the centred covariance by layer, one panel a subject and corpus.

    Args:
        table: rows of ``spectra.csv``, of one or several subjects.
        title: text above the figure.
        hooked: subject -> layers with SAEs, marked by grey bars.

    Raises:
        StreamgaugeError: the table lacks a column or has no centred row.
    """
    needed = ["subject", "layer", "token_set", "centring", "deflate", "n_tokens", "d_model", "pr"]
    drawing.require(table, needed, "spectra table")
    table = table[table.centring == "centred"]
    drawing.require(table, [], "spectra table")
    by = [name for name in ("subject", "corpus") if name in table]
    with drawing.style():
        panels = drawing.cells(table, by, told=by)
        wide, n_rows = drawing.arrange(len(panels), 2)
        figure = drawing.figure(title, DOUBLE if wide > 1 else MIDDLE, 2.6 * n_rows)
        axes = figure.subplots(n_rows, wide, squeeze=False, sharey=True).ravel()
        depths = sorted(table.deflate.unique())
        looks = list(zip(depths, drawing.cycle(len(depths)), strict=True))
        for ax, (key, name, rows) in zip(axes, panels, strict=False):
            for layer in (hooked or {}).get(key["subject"], ()):
                ax.axvline(layer, color=PALE, lw=4, zorder=0)
            for depth, (colour, marker) in looks:
                for m, token_set in enumerate(TOKEN_SETS):
                    part = drawing.having(rows, {"deflate": depth, "token_set": token_set})
                    part = part.sort_values("layer")
                    style = {"color": colour, "marker": marker, "ms": 3.2, **drawing.look(m == 1)}
                    ax.plot(part.layer, part.pr, **style)
            counts = rows.groupby("token_set").n_tokens.max()
            n, kept = (int(counts.get(token_set, 0)) for token_set in TOKEN_SETS)
            d = int(rows.d_model.max())
            ax.axhline(d * n / (n + d), color=GREY, ls=":")
            ax.set_title(f"{name}\nd = {d}, n = {n:,} tokens, {kept:,} without sinks", loc="left")
            ax.set(yscale="log", xlabel="layer")
            ax.xaxis.get_major_locator().set_params(integer=True)
        for i, ax in enumerate(axes):
            drawing.plain_log(ax.yaxis)
            if i % wide == 0:
                ax.set_ylabel("participation ratio")
            if i >= len(panels):
                ax.remove()
        words = {0: "raw", 1: "top 1 removed"}
        handles = [
            Line2D([], [], color=c, marker=s, label=words.get(depth, f"top {depth} removed"))
            for depth, (c, s) in looks
        ]
        handles += drawing.token_set_handles()
        handles.append(Line2D([], [], color=GREY, ls=":", label="ceiling d/(1 + d/n)"))
        if hooked:
            handles.append(Line2D([], [], color=PALE, lw=4, label="layer with SAEs"))
        drawing.legend(figure, handles, 3)
    return figure


def loss_curves(histories: pd.DataFrame, title: str = "") -> Figure:
    """Training loss by tokens, one line an SAE, one panel a layer and objective.

    The squared error is shown over the variance of its batch (FVU), other objectives in their own
    nats; panels of one unit share their scale. Points are means over twentieths of a decade of
    tokens.

    Args:
        histories: training histories with the SAE's own columns (see `read_histories`).
        title: text above the figure.

    Raises:
        StreamgaugeError: the table lacks a column or is empty.
    """
    by = [name for name in _CELL if name != "tokens"]
    needed = [*by, "k", "seed", "budget", "tokens", "fvu", "loss"]
    drawing.require(histories, needed, "training history")
    with drawing.style():
        panels = drawing.cells(histories, by)
        wide, n_rows = drawing.arrange(len(panels), 3)
        figure = drawing.figure(title, DOUBLE if wide > 1 else SINGLE, 2.2 * n_rows)
        several = histories.objective.nunique() > 1
        share = {"sharex": True, "sharey": not several}
        axes = figure.subplots(n_rows, wide, squeeze=False, **share).ravel()
        ks = sorted(histories.k.unique())
        looks = {
            k: {"color": colour, "ls": _DASHES[i % len(_DASHES)]}
            for i, (k, (colour, _)) in enumerate(zip(ks, drawing.cycle(len(ks)), strict=True))
        }
        by_unit: dict[str, list] = {}
        for i, (ax, (key, label, rows)) in enumerate(zip(axes, panels, strict=False)):
            column, unit = _LOSSES[key["objective"]]
            by_unit.setdefault(unit, []).append(ax)
            if column == "fvu":
                ax.axhline(1.0, color=GREY, ls=":", lw=0.9, zorder=0)
            for (k, _, _), run in rows.groupby(["k", "seed", "budget"]):
                run = run[(run.tokens > 0) & (run[column] > 0)]
                bins = np.floor(20 * np.log10(run.tokens))
                smooth = run[["tokens", column]].groupby(bins).mean()
                ax.plot(smooth.tokens, smooth[column], **looks[k])
            ax.set(xscale="log", yscale="log")
            ax.set_title(label, loc="left")
            if i % wide == 0 or several:
                ax.set_ylabel(unit)
        for alike in by_unit.values():
            ends = np.array([ax.get_ylim() for ax in alike])
            for ax in alike:
                ax.set_ylim(ends[:, 0].min(), ends[:, 1].max())
        for i, ax in enumerate(axes):
            drawing.plain_log(ax.xaxis)
            drawing.plain_log(ax.yaxis)
            if several:  # labels on every panel leave room for decades only
                ax.xaxis.get_major_locator().set_params(subs=(1,))
            if i >= len(panels) - wide:
                ax.set_xlabel("training tokens")
                ax.xaxis.set_tick_params(labelbottom=True)
            if i >= len(panels):
                ax.remove()
        handles = [Line2D([], [], label=f"k = {k}", **looks[k]) for k in ks]
        if "mse" in set(histories.objective):
            handles.append(Line2D([], [], color=GREY, ls=":", lw=0.9, label="predicting the mean"))
        drawing.legend(figure, handles, min(len(handles), 5 if wide > 1 else 2))
    return figure


def hooked_layers(records: Iterable[Mapping]) -> dict[str, list[int]]:
    """subject -> layers, of the manifests of harvested stores."""
    found: dict[str, set[int]] = {}
    for record in records:
        cell = cell_of(record)
        found.setdefault(cell["subject"], set()).add(cell["layer"])
    return {subject: sorted(layers) for subject, layers in found.items()}


def read_histories(tables: Iterable[str | Path], records: Iterable[Mapping]) -> pd.DataFrame:
    """Training histories of several SAEs in one table.

    Args:
        tables: ``training.csv`` files.
        records: the SAEs' manifests, in the same order; their specs say which SAE it is.

    Returns:
        Every table's rows, with the columns subject, corpus, objective, layer, expansion, k, seed
        and budget (the SAE's token budget) in front.
    """
    found = []
    for table, record in zip(tables, records, strict=True):
        cell = cell_of(record)
        own = {name: cell[name] for name in ("subject", "corpus", "objective", "layer")}
        own |= {"budget": cell["tokens"]}
        own |= {name: cell[name] for name in ("expansion", "k", "seed")}
        history = read_csv(table)
        found.append(history.assign(**own)[[*own, *history.columns]])
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def save(figure: Figure, *paths: str | Path) -> None:
    """Write a figure to each path; the suffix says the format. Equal figures give equal bytes."""
    with drawing.style():
        drawing.settle(figure)
    for path in map(Path, paths):
        # no dates and no program versions, so that a rebuilt figure is the same file
        metadata = {"Software": None} if path.suffix == ".png" else {"Date": None, "Creator": None}
        with drawing.style():
            figure.savefig(path, metadata=metadata)


def _distortion(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The table with ``value``, a distortion with its interval: KL itself, or 1 − the metric."""
    value, *ends = (table.get(f"{metric}{end}", table[metric]) for end in ("", "_low", "_high"))
    if metric != "kl_nats":
        value, *ends = (1 - item for item in (value, *reversed(ends)))
    return table.assign(value=value, value_low=ends[0], value_high=ends[1])
