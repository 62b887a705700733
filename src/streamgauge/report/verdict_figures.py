"""Figure of how often verdicts err and how often they find what is there."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from streamgauge.report import drawing
from streamgauge.report.drawing import DOUBLE, GREY, PALE

_HEADS = {"H0": "H0: no gap is left", "H1": "H1: a gap is left"}
_EFFECTS = {"H2": "advantage over R²", "H3": "correlation"}


def verdict_calibration(table: pd.DataFrame, title: str = "") -> Figure:
    """Share of simulated studies in which each hypothesis is supported, over the true effect.

    H0 and H1 (world ``one cell``) have a row of panels each, a panel for each number of sequences
    and two lines for each number of seeds, dashed where seeds differ more. Below them stand H2 by
    seeds, H3 by points, and the coverage of the interval over sequences and seeds. Where a
    hypothesis is false, so that its support is a false positive, the panel is shaded; the dotted
    line is the level.

    Args:
        table: result of `verdict_simulation.calibrate`.
        title: text above the figure.

    Raises:
        StreamgaugeError: the table lacks a column or is empty.
    """
    needed = [
        "hypothesis",
        "world",
        "seeds",
        "sequences",
        "seed_sd",
        "effect",
        "supported",
        "supported_is",
    ]
    drawing.require(table, [*needed, "coverage", "alpha", "confidence"], "verdict calibration")
    gaps = table[table.world == "one cell"]
    sequences, seeds = (
        [int(n) for n in sorted(gaps[name].unique())] for name in ("sequences", "seeds")
    )
    spreads = sorted(gaps.seed_sd.unique())
    points = list(table.world[table.hypothesis == "H3"].unique())
    alpha, confidence = table.alpha.iloc[0], table.confidence.iloc[0]
    by_seeds = dict(zip(seeds, drawing.cycle(len(seeds)), strict=True))
    with drawing.style():
        figure = drawing.figure(title, DOUBLE, 6.2)
        top, bottom = figure.subfigures(2, 1, height_ratios=[2, 1.15])
        rows = top.subplots(2, len(sequences), squeeze=False, sharex=True, sharey=True)
        for axes, (name, head) in zip(rows, _HEADS.items(), strict=True):
            for ax, n in zip(axes, sequences, strict=True):
                own = gaps[(gaps.hypothesis == name) & (gaps.sequences == n)]
                for m, spread in enumerate(spreads):
                    _lines(ax, own[own.seed_sd == spread], "seeds", by_seeds, m > 0)
                _false(ax, own, alpha)
                ax.set_title(f"{head}\n{n} sequences", loc="left")
            axes[0].set_ylabel("supported")
        for ax in rows[-1]:
            ax.set_xlabel("true |ΔCE_rec|")
        last = bottom.subplots(1, 3)
        by_points = dict(zip(points, drawing.cycle(len(points)), strict=True))
        for ax, name, column, looks in (
            (last[0], "H2", "seeds", by_seeds),
            (last[1], "H3", "world", by_points),
        ):
            own = table[table.hypothesis == name]
            _lines(ax, own, column, looks)
            _false(ax, own, alpha)
            words = "the proxy is better" if name == "H2" else "dimensions depart"
            ax.set_title(f"{name}: {words}", loc="left")
            ax.set_xlabel(f"true {_EFFECTS[name]}")
        last[0].set_ylabel("supported")
        own = gaps[(gaps.hypothesis == "H0") & gaps.coverage.notna()]
        own = own.drop_duplicates(["seeds", "sequences", "seed_sd"]).sort_values("sequences")
        for n, (colour, marker) in by_seeds.items():
            for m, spread in enumerate(spreads):
                part = drawing.having(own, {"seeds": n, "seed_sd": spread})
                style = {"color": colour, "marker": marker, **drawing.look(m > 0)}
                last[2].plot(part.sequences.astype(float), part.coverage, **style)
        last[2].axhline(confidence, color=GREY, ls=":")
        last[2].set_title("coverage of the interval", loc="left")
        last[2].set(xlabel="sequences", xscale="log")
        drawing.plain_log(last[2].xaxis)
        handles = [
            Line2D([], [], color=c, marker=m, label=f"{n} seed{'s' if n > 1 else ''}")
            for n, (c, m) in by_seeds.items()
        ]
        handles += [
            Line2D([], [], color=c, marker=m, mfc="white", label=f"H3: {words}")
            for words, (c, m) in by_points.items()
        ]
        handles += [
            Line2D([], [], color="black", label=f"sd over seeds {x:g}", **drawing.look(m > 0))
            for m, x in enumerate(spreads)
        ]
        handles.append(Line2D([], [], color=GREY, ls=":", label="level; aim"))
        handles.append(Line2D([], [], color=PALE, lw=6, label="hypothesis false"))
        drawing.legend(figure, handles, 4)
    return figure


def _lines(ax, rows, column, looks, dashed=False) -> None:
    """Rate over the effect, a line for each value of `column`."""
    for value, (colour, marker) in looks.items():
        part = rows[rows[column] == value].sort_values("effect")
        style = {"color": colour, "marker": marker, **drawing.look(dashed)}
        if column == "world":
            style |= {"mfc": "white"}
        ax.plot(part.effect, part.supported, **style)
    ax.set_ylim(-0.04, 1.04)


def _false(ax, rows, alpha) -> None:
    """Shade the effects at which the hypothesis is false, and draw the level."""
    wrong = sorted(rows.effect[rows.supported_is == "false positive"].unique())
    every = sorted(rows.effect.unique())
    half = (every[-1] - every[0]) / 60 if len(every) > 1 else 0.5
    if wrong:
        ax.axvspan(wrong[0] - half, wrong[-1] + half, color=PALE, alpha=0.5, zorder=0, lw=0)
    ax.axhline(alpha, color=GREY, ls=":")
