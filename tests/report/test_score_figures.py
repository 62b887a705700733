"""Figures: what is drawn is what the table says, controls included, the same bytes every time."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from figure_checks import check_layout, check_refusals, check_same_bytes, lines
from grid_data import grid_table
from streamgauge.base.errors import StreamgaugeError
from streamgauge.report import drawing, score_figures


def spectra_table(subjects=("small",), layers=6, d_model=64, n_tokens=256):
    rows = []
    for subject in subjects:
        for layer in range(layers):
            for token_set in ("all", "no_sink"):
                for deflate in (0, 1, 10):
                    for centring in ("centred", "uncentred"):
                        pr = 2.0 + layer + deflate + 20 * (token_set == "no_sink")
                        row = dict(subject=subject, corpus="texts", layer=layer, deflate=deflate)
                        row |= dict(token_set=token_set, centring=centring, d_model=d_model)
                        row |= dict(n_tokens=n_tokens - 4 * (token_set == "no_sink"), pr=pr)
                        rows.append(row | {"pr": pr if centring == "centred" else 0.5})
    return pd.DataFrame(rows)


def histories(ks=(8, 32), layers=(3, 5), seeds=(0,), objectives=("mse",)):
    rows = []
    cells = itertools.product(layers, objectives, ks, seeds)
    for layer, objective, k, seed in cells:
        tokens = 100 * np.arange(1, 60)
        row = dict(subject="small", corpus="texts", objective=objective, layer=layer)
        row |= dict(expansion=8, k=k, seed=seed, budget=6000, tokens=tokens)
        rows.append(
            pd.DataFrame(row | {"fvu": 3.0 / k + 20 / tokens, "loss": 90 / k + 20 / tokens})
        )
    return pd.concat(rows, ignore_index=True)


OBJECTIVES = ("mse", "behavioral", "e2e")
DRAWN = {
    "proxy_gap": lambda: score_figures.proxy_gap(grid_table(), "A title"),
    "proxy_gap_one": lambda: score_figures.proxy_gap(grid_table((3,), (8,))),
    "proxy_gap_many": lambda: score_figures.proxy_gap(
        grid_table((1, 2), seeds=(0, 1), subjects="ab")
    ),
    "rate_distortion": lambda: score_figures.rate_distortion(grid_table(), "A title"),
    "rate_distortion_one": lambda: score_figures.rate_distortion(grid_table((3,), (8,))),
    "rate_distortion_many": lambda: score_figures.rate_distortion(grid_table(subjects="ab")),
    "pr_canyon": lambda: score_figures.pr_canyon(spectra_table(), "A title", {"small": [2, 4]}),
    "pr_canyon_many": lambda: score_figures.pr_canyon(spectra_table(("a", "b", "c"))),
    "loss_curves": lambda: score_figures.loss_curves(histories(), "A title"),
    "loss_curves_three": lambda: score_figures.loss_curves(histories(objectives=OBJECTIVES)),
    "loss_curves_one": lambda: score_figures.loss_curves(histories((8,), (3,), (0, 1))),
}


# --- every figure -------------------------------------------------------------------------------
@pytest.mark.parametrize("name", DRAWN)
def test_text_fits_and_nothing_covers_the_axes(name):
    check_layout(DRAWN[name]())


@pytest.mark.parametrize("name", ["proxy_gap", "rate_distortion", "pr_canyon", "loss_curves"])
def test_same_table_same_bytes(name, tmp_path):
    check_same_bytes(DRAWN[name], tmp_path)


@pytest.mark.parametrize(
    ("draw", "table", "column"),
    [
        (score_figures.proxy_gap, grid_table, "ce_rec_mean_of_ratios"),
        (score_figures.rate_distortion, grid_table, "rate_bits"),
        (score_figures.pr_canyon, spectra_table, "n_tokens"),
        (score_figures.loss_curves, histories, "fvu"),
    ],
)
def test_unusable_tables(draw, table, column):
    check_refusals(draw, table(), column)


def test_a_grid_of_controls_only_is_refused():
    table = grid_table()
    for draw in (score_figures.proxy_gap, score_figures.rate_distortion):
        with pytest.raises(StreamgaugeError, match="nothing to draw"):
            draw(table[table.codec != "sae"])


# --- each figure --------------------------------------------------------------------------------
def test_proxy_gap_shows_the_table_and_its_controls():
    table = grid_table((10,), (8, 32))
    top, low = score_figures.proxy_gap(table).axes
    trained = table[(table.codec == "sae") & (table.token_set == "all")]
    solid, dashed = lines(top, drawing.BLUE)
    np.testing.assert_allclose(solid.get_ydata(), trained.r2)
    assert solid.get_linestyle() == "-" and dashed.get_linestyle() == "--"
    filled, opened = (line for line in lines(top, drawing.VERMILLION, "s"))
    np.testing.assert_allclose(filled.get_ydata(), trained.ce_rec_mean_of_ratios)
    assert to_hex(opened.get_markerfacecolor()) == "#ffffff"
    (untrained,) = [line for line in lines(low, drawing.GREY, "o") if len(line.get_ydata()) == 2]
    np.testing.assert_allclose(untrained.get_ydata(), [-0.3, -0.5])
    dotted = [line for line in lines(low, drawing.GREY) if line.get_linestyle() == ":"]
    assert [line.get_ydata()[0] for line in dotted] == [0.0, -0.7]
    assert not lines(top, drawing.GREY)


def test_intervals_are_the_tables():
    table = grid_table((10,), (8,))
    top, _ = score_figures.proxy_gap(table).axes
    bars = [segment for c in top.collections for segment in c.get_segments()]
    spans = sorted(tuple(segment[:, 1]) for segment in bars)
    rows = table[table.codec == "sae"]
    wanted = sorted(
        (row[f"{m}_low"], row[f"{m}_high"])
        for m in ("r2", "ce_rec_mean_of_ratios")
        for _, row in rows.iterrows()
    )
    np.testing.assert_allclose(spans, wanted)


def test_every_seed_has_its_point_and_the_line_joins_means():
    table = grid_table((10,), (8, 32), seeds=(0, 1, 2))
    top, _ = score_figures.proxy_gap(table).axes
    trained = table[(table.codec == "sae") & (table.token_set == "all")]
    points = lines(top, drawing.BLUE, "o")[0]
    assert len(points.get_ydata()) == 6
    means = trained.groupby("k").r2.mean()
    np.testing.assert_allclose(lines(top, drawing.BLUE)[0].get_ydata(), means)


def test_panels_follow_the_table_and_share_their_scale():
    table = grid_table((2, 1), subjects=("pythia-70m", "pythia-160m"))
    drawn = score_figures.proxy_gap(table)
    titles = [ax.get_title(loc="left") for ax in drawn.axes if ax.get_title(loc="left")]
    assert titles[0] == "pythia-70m, layer 2" and len(titles) == 4
    tops = [ax for ax in drawn.axes if ax.get_title(loc="left")]
    assert len({ax.get_ylim() for ax in tops}) == 1


def test_rate_distortion_flips_and_keeps_what_a_log_axis_cannot_hold():
    table = grid_table((10,), (8, 32))
    perfect = (table.codec == "sae") & (table.k == 32) & (table.token_set == "all")
    table.loc[perfect, "ce_rec_mean_of_ratios"] = 1.02
    left, right, cost = score_figures.rate_distortion(table).axes
    trained = table[(table.codec == "sae") & (table.token_set == "all")]
    points = lines(left, drawing.BLUE, "o")[0]
    np.testing.assert_allclose(points.get_ydata(), 1 - trained.r2)
    np.testing.assert_allclose(points.get_xdata(), trained.rate_bits)
    triangles = [line for line in lines(right, drawing.BLUE, "v") if len(line.get_ydata())]
    assert len(triangles) == 1
    others = [y for line in lines(right, drawing.BLUE, "o") for y in line.get_ydata()]
    assert 0 < triangles[0].get_ydata()[0] < min(others)
    levels = [line for line in lines(right, drawing.GREY) if line.get_linestyle() == ":"]
    np.testing.assert_allclose(levels[0].get_ydata(), 1.7)
    (kl, *_) = lines(cost, drawing.BLUE, "o")
    np.testing.assert_allclose(kl.get_ydata(), trained.kl_nats)
    spans = np.array([part[:, 1] for c in cost.collections for part in c.get_segments()])
    np.testing.assert_allclose(spans[:, 1] / spans[:, 0], 1.2 / 0.9)
    levels = [line for line in lines(cost, drawing.GREY) if line.get_linestyle() == ":"]
    np.testing.assert_allclose(levels[0].get_ydata(), 5)
    assert cost.get_yscale() == "log" and cost.get_ylabel() == "KL, nats"


def test_pr_canyon_draws_the_ceiling_prints_n_and_marks_hooked_layers():
    (ax,) = score_figures.pr_canyon(spectra_table(), hooked={"small": [2, 4]}).axes
    ceiling = [line for line in lines(ax, drawing.GREY) if line.get_linestyle() == ":"]
    np.testing.assert_allclose(ceiling[0].get_ydata(), 64 / (1 + 64 / 256))
    assert "d = 64, n = 256 tokens, 252 without sinks" in ax.get_title(loc="left")
    marks = [line.get_xdata()[0] for line in lines(ax, drawing.PALE)]
    assert marks == [2, 4]
    raw, _ = lines(ax, drawing.BLUE, "o")
    np.testing.assert_allclose(raw.get_ydata(), [2, 3, 4, 5, 6, 7])  # centred only
    assert ax.get_yscale() == "log"


def test_loss_curves_are_means_over_bins_of_tokens():
    table = histories((8,), (3,))
    (ax,) = score_figures.loss_curves(table).axes
    (line,) = lines(ax, drawing.BLUE)
    bins = np.floor(20 * np.log10(table.tokens))
    np.testing.assert_allclose(line.get_ydata(), table.fvu.groupby(bins).mean())
    assert lines(ax, drawing.GREY)[0].get_ydata() == [1.0, 1.0]


def test_losses_of_several_objectives_are_in_their_own_units():
    table = histories((8,), objectives=OBJECTIVES)
    drawn = score_figures.loss_curves(table).axes
    units = ["squared error / variance", "½ δᵀGδ, nats/token", "KL, nats/position"]
    assert [ax.get_ylabel() for ax in drawn] == units * 2
    titles = [ax.get_title(loc="left") for ax in drawn]
    assert titles[:3] == [f"layer 3, {objective}" for objective in OBJECTIVES]
    for ax, objective in zip(drawn, OBJECTIVES, strict=False):
        own = table[(table.objective == objective) & (table.layer == 3)]
        values = own["fvu" if objective == "mse" else "loss"]
        bins = np.floor(20 * np.log10(own.tokens))
        (line,) = lines(ax, drawing.BLUE)
        np.testing.assert_allclose(line.get_ydata(), values.groupby(bins).mean())
        assert bool(lines(ax, drawing.GREY)) == (objective == "mse")
    for top, below in zip(drawn[:3], drawn[3:], strict=True):
        assert top.get_ylim() == below.get_ylim()
    assert drawn[0].get_ylim() != drawn[1].get_ylim()


def test_read_histories_adds_what_the_spec_says(tmp_path):
    tables, records = [], []
    for k in (8, 32):
        folder = tmp_path / str(k)
        folder.mkdir()
        pd.DataFrame({"step": [0], "tokens": [64], "fvu": [0.5], "loss": [9.0]}).to_csv(
            folder / "training.csv"
        )
        place = {"subject": "s", "corpus": "c", "ell": "03"}
        wildcards = place | {"sae": f"topk-x8-k{k}-t1000-mse-seed0"}
        tables.append(folder / "training.csv")
        records.append({"spec": {"wildcards": wildcards}})
    found = score_figures.read_histories(tables, records)
    assert list(found.k) == [8, 32] and list(found.layer) == [3, 3]
    assert list(found.tokens) == [64, 64] and list(found.budget) == [1000, 1000]
    score_figures.loss_curves(found)
