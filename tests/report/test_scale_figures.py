"""Figures of several models: what is drawn is what the tables say, beside their nulls."""

import functools
import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from figure_checks import check_layout, check_refusals, check_same_bytes, lines
from streamgauge.report import drawing
from streamgauge.report import scale_figures as figures

CELL = {"corpus": "texts", "expansion": 8, "objective": "mse"}
MODELS = {"pythia-70m": 512, "pythia-160m": 768, "pythia-410m": 1024}
DEPTHS = ("early", "mid", "late")
SETS = ("all", "no_sink")


def interval(name, value, half, seeds):
    """A value with intervals over sequences and, of several seeds, over seeds and both."""
    made = {name: value, f"{name}_low": value - half, f"{name}_high": value + half}
    for kind, factor in (("seed", 2), ("both", 3)):
        wide = factor * half if seeds > 1 else np.nan
        made |= {f"{name}_{kind}_low": value - wide, f"{name}_{kind}_high": value + wide}
    return made


def deltas_table(models=3, depths=DEPTHS, ks=(8, 16, 32, 64), budgets=(10**7,), seeds=3):
    """ΔR² > 0 everywhere; ΔCE recovered < 0 at small k, resolved at the smallest only."""
    rows = []
    pairs = itertools.combinations(list(MODELS)[:models], 2)
    for (small, big), tokens, depth, k in itertools.product(pairs, budgets, depths, ks):
        layer = 3 * depths.index(depth) + 1
        for token_set, seed in itertools.product(SETS, [*map(str, range(seeds)), "all"]):
            shift = 0.0 if seed == "all" else 0.01 * (int(seed) - (seeds - 1) / 2)
            d_r2 = 0.5 / k**0.5 + shift - 0.02 * (token_set == "no_sink")
            d_ce = -0.5 / k + 0.02 + shift
            row = {**CELL, "tokens": tokens, "small": small, "big": big, "depth": depth}
            row |= {"k": k, "token_set": token_set, "seed": seed, "small_layer": layer}
            row |= {"big_layer": 2 * layer, "n_seeds": seeds, "n_sequences": 64}
            of = seeds if seed == "all" else 1
            row |= interval("d_r2", d_r2, 0.01, of) | interval("d_ce_rec", d_ce, 0.012, of)
            row |= {"mismatch": int(d_r2 > 0 > d_ce), "resolved": k == ks[0]}
            rows.append(row | {"untrained_d_r2": 0.01 * k, "untrained_d_ce_rec": -2 / k})
    return pd.DataFrame(rows)


def budgets_table(models=3, depths=("1", "2"), ks=(8, 32), budgets=(10**7, 5 * 10**7, 10**8)):
    rows = []
    names = list(MODELS)[:models]
    cells = itertools.product(depths, ks, budgets, enumerate(names), SETS)
    for depth, k, tokens, (i, subject), token_set in cells:
        row = {**CELL, "subject": subject, "d_model": MODELS[subject], "depth": depth, "k": k}
        row |= {"tokens": tokens, "token_set": token_set, "layer": 3, "n_seeds": 3}
        grown = np.log10(tokens / 10**6) / 4
        shift = 0.05 * i + 0.03 * (token_set == "no_sink")
        row |= interval("ce_rec", 1 - 3 / k**0.8 + grown / 3 - shift, 0.02, 3)
        row |= interval("r2", 0.7 + 0.05 * i + grown / 5 - shift, 0.01, 3)
        alive = 0.5 + grown / 2 - 0.05 * i
        row |= {"alive": alive, "alive_seed_low": alive - 0.02, "alive_seed_high": alive + 0.02}
        rows.append(row | {"untrained_ce_rec": -0.9 - 0.1 * i, "untrained_r2": -0.2 * (i + 1)})
    return pd.DataFrame(rows)


def kstar_table(models=3, depths=DEPTHS, targets=(0.85, 0.9), budgets=(10**7,)):
    """k* grows with target and model; the widest model never reaches the highest target early."""
    rows = []
    names = list(MODELS)[:models]
    cells = itertools.product(budgets, depths, enumerate(names), targets, SETS)
    for tokens, depth, (i, subject), target, token_set in cells:
        row = {**CELL, "tokens": tokens, "depth": depth, "subject": subject, "layer": 3}
        row |= {"d_model": MODELS[subject], "target": target, "token_set": token_set}
        value = 20 * (1 + i) * (target / 0.8) ** 4 * (0.8 if token_set == "no_sink" else 1)
        over = value > 100
        low, high = 0.8 * value, 1.5 * value
        row |= {"k_star": 128.0 if over else value, "censored": ">k_max" if over else ""}
        row |= {"k_star_low": min(low, 128), "censored_low": ""}
        row |= {"k_star_high": min(high, 128), "censored_high": ">k_max" if high > 128 else ""}
        rows.append(row | {"untrained_k_star": 128.0, "untrained_censored": ">k_max"})
    return pd.DataFrame(rows)


def profile_table(models=3, corpora=("texts",), ks=(8, 64)):
    rows = []
    for corpus, (i, subject) in itertools.product(corpora, enumerate(list(MODELS)[:models])):
        n_layers = 6 * (i + 1)
        for layer, token_set in itertools.product(range(n_layers), SETS):
            sink = token_set == "all" and 0.2 < layer / n_layers < 0.8
            pr = 1.2 + i if sink else 60 + 4 * layer
            row = {"subject": subject, "corpus": corpus, "layer": layer, "token_set": token_set}
            row |= {"pr": pr, "pr_deflated1": 50.0 + 3 * layer, "pr_deflated": 90.0 + layer}
            row |= {"n_tokens": 4096, "d_model": MODELS[subject], "depth": ""}
            row |= {"k_min": np.nan, "k_max": np.nan}
            if layer in (n_layers // 6, n_layers // 2):
                row |= {"depth": "mid", "k_min": ks[0], "k_max": ks[-1]}
                row |= {"r2_k_min": 0.8, "ce_rec_k_min": 0.4 - 0.1 * i, "r2_k_max": 0.95}
                row |= {"ce_rec_k_max": 0.9 - 0.02 * i, "untrained_r2_k_min": -0.1}
                row |= {"untrained_ce_rec_k_min": -0.9 - 0.05 * i}
            rows.append(row)
    return pd.DataFrame(rows)


def critics_table(models=2, layers=(3, 5), widths=(1, 2, 4, 8, 16)):
    rows = []
    for subject, layer in itertools.product(list(MODELS)[:models], layers):
        for critic, half in (("hybrid", 2), ("separable", 4)):
            for width in widths:
                row = {"subject": subject, "corpus": "texts", "layer": layer, "critic": critic}
                mi = 4.0 * width / (width + half) + 0.4 * (critic == "hybrid")
                row |= {"width": width, "mi_nats": mi, "shuffled_mi_nats": -0.02 * layer}
                row |= {"ceiling_nats": np.log(64), "pinned": mi > 0.95 * np.log(64)}
                row |= {"saturated_nats": 3.9, "k_star": 4.0 if critic == "hybrid" else 16.0}
                row |= {"censored": "" if critic == "hybrid" else ">k_max", "n_pairs": 2000}
                rows.append(row | {"d_model": 512, "pr": 3.96, "pr_no_sink": 51.2})
    return pd.DataFrame(rows)


TABLES = {
    "deltas": deltas_table,
    "budgets": budgets_table,
    "kstar": kstar_table,
    "depth_profile": profile_table,
    "critics": critics_table,
}
SHAPES = {
    "deltas": {"depths": DEPTHS[:2]},
    "deltas two": {"models": 2, "depths": ("1",), "seeds": 1},
    "deltas budgets": {"models": 2, "depths": ("1", "2"), "budgets": (50_000, 200_000)},
    "deltas many": {"models": 2, "depths": tuple("123456"), "ks": (8,)},
    "budgets": {"depths": ("1",)},
    "budgets one": {"models": 1, "depths": ("mid",), "ks": (8,), "budgets": (50_000, 200_000)},
    "budgets many": {"models": 2, "depths": ("mid",), "ks": (4, 8, 16, 32, 64)},
    "kstar": {},
    "kstar one": {"models": 1, "depths": ("1",), "targets": (0.9,)},
    "kstar budgets": {"models": 2, "budgets": (50_000, 200_000), "targets": (0.8, 0.85, 0.9)},
    "depth_profile": {},
    "depth_profile one": {"models": 1, "corpora": ("a", "b"), "ks": (8,)},
    "critics": {},
    "critics one": {"models": 1, "layers": (3,)},
    "critics many": {"models": 3, "layers": (1, 3, 5)},
}


@functools.cache
def table(name):
    return TABLES[name.split()[0]](**SHAPES[name])


def drawn(name, title=""):
    return getattr(figures, name.split()[0])(table(name), title)


def texts(figure):
    return " ".join(text.get_text() for text in figure.texts)


# --- every figure -------------------------------------------------------------------------------
@pytest.mark.parametrize("name", SHAPES)
def test_text_fits_and_nothing_covers_the_axes(name):
    check_layout(drawn(name, "A title" if name in TABLES else ""))


@pytest.mark.parametrize("name", ["deltas two", "kstar one", "critics one"])
def test_same_table_same_bytes(name, tmp_path):
    check_same_bytes(lambda: drawn(name), tmp_path)


@pytest.mark.parametrize(
    ("name", "column", "empty"),
    [
        ("deltas", "untrained_d_r2", False),
        ("budgets", "alive", True),
        ("kstar", "censored_low", False),
        ("depth_profile", "pr_deflated1", True),
        ("critics", "shuffled_mi_nats", True),
    ],
)
def test_unusable_tables(name, column, empty):
    check_refusals(getattr(figures, name), table(name), column, empty)


def test_a_study_too_small_for_a_question_says_so():
    """One model has no differences, one budget no curve: no reason to fail."""
    one = figures.deltas(table("deltas").iloc[:0], "A title")
    assert "No two models" in texts(one) and not one.axes
    assert "No targets" in texts(figures.kstar(table("kstar").iloc[:0]))
    budget = figures.budgets(budgets_table(budgets=(10**7,)))
    assert "One token budget" in texts(budget)
    for figure in (one, budget):
        check_layout(figure)


# --- each figure --------------------------------------------------------------------------------
def spans(ax):
    """Vertical intervals drawn on the axes."""
    return [tuple(part[:, 1]) for c in ax.collections for part in c.get_segments()]


def test_deltas_show_means_the_widest_intervals_seeds_and_the_null():
    found = deltas_table(2, ("1",))
    top, low = figures.deltas(found).axes
    own = drawing.having(found, {"seed": "all", "token_set": "all"})
    for name, colour, marker in (
        ("d_r2", drawing.BLUE, "o"),
        ("d_ce_rec", drawing.VERMILLION, "s"),
    ):
        np.testing.assert_allclose(lines(top, colour)[0].get_ydata(), own[name])
        (null, *_) = lines(low, drawing.GREY, marker)
        np.testing.assert_allclose(null.get_ydata(), own[f"untrained_{name}"])
        wanted = set(zip(own[f"{name}_both_low"], own[f"{name}_both_high"], strict=True))
        assert all(any(np.allclose(span, end) for span in spans(top)) for end in wanted)
    points = [line for line in lines(top, drawing.BLUE, "o") if line.get_markersize() < 2]
    singles = drawing.having(found, {"token_set": "all"})
    singles = singles[singles.seed != "all"]
    np.testing.assert_allclose(sorted(points[0].get_ydata()), sorted(singles.d_r2))
    assert top.get_title(loc="left") == "pythia-160m − pythia-70m\ndepth 1, L2 − L1"


def test_deltas_mark_mismatches_and_what_is_resolved():
    found = deltas_table(2, ("mid",), seeds=1)
    figure = figures.deltas(found)
    top = figure.axes[0]
    (star, opened), (cross, _) = (lines(top, "#000000", marker) for marker in "*X")
    assert [round(line.get_xdata()[0]) for line in (star, opened)] == [8, 9]
    assert round(cross.get_xdata()[0]) == 15 and len(cross.get_xdata()) == 1  # left of 16
    assert to_hex(opened.get_markerfacecolor()) == "#ffffff"
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "single seeds" not in words and "mismatch, resolved" in words
    calm = figures.deltas(found.assign(mismatch=0)).axes[0]
    assert not [line for marker in "*X" for line in lines(calm, "#000000", marker)]


def test_panels_stand_from_shallow_to_deep_whatever_the_order_of_the_table():
    found = deltas_table(2).sort_values("depth")
    titles = [ax.get_title(loc="left") for ax in figures.deltas(found).axes[:3]]
    assert [title.splitlines()[-1].split(",")[0] for title in titles] == list(DEPTHS)


def test_budgets_show_every_model_its_interval_alive_latents_and_null():
    found = budgets_table(2, ("mid",), (8,))
    ce, r2, alive, null = figures.budgets(found).axes
    for subject, (colour, marker) in zip(list(MODELS)[:2], drawing.SERIES[:2], strict=True):
        own = drawing.having(found, {"subject": subject, "token_set": "all"})
        for ax, name in ((ce, "ce_rec"), (r2, "r2"), (alive, "alive")):
            np.testing.assert_allclose(lines(ax, colour)[0].get_ydata(), own[name])
        first = own.iloc[0]
        ends = first.ce_rec_both_low, first.ce_rec_both_high
        assert any(np.allclose(span, ends) for span in spans(ce))
        assert any(
            np.allclose(s, (first.alive_seed_low, first.alive_seed_high)) for s in spans(alive)
        )
        solid, dotted = lines(null, drawing.GREY, marker)
        np.testing.assert_allclose(solid.get_ydata(), own.untrained_ce_rec)
        np.testing.assert_allclose(dotted.get_ydata(), own.untrained_r2)
        assert dotted.get_linestyle() == ":"
    ticks = [label.get_text() for label in null.get_xticklabels() if label.get_text()]
    assert ticks == ["10M", "50M", "100M"]


def test_kstar_shows_values_intervals_and_arrows_outside_the_grid():
    found = kstar_table(3, ("mid",), (0.9,))
    (ax,) = figures.kstar(found).axes
    left, right = ax.get_xlim()
    assert left < 20 and right > 128
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == list(MODELS) and ax.yaxis_inverted()
    inside = found[found.censored == ""]
    dots = [line.get_xdata()[0] for line in lines(ax, drawing.BLUE, "o")]
    np.testing.assert_allclose(sorted(dots), sorted(inside.k_star))
    beyond = [line.get_xdata()[0] for line in lines(ax, drawing.BLUE, ">")]
    assert beyond == [right] * int((found.censored == ">k_max").sum())
    assert [line.get_xdata()[0] for line in lines(ax, drawing.GREY, ">")] == [right] * len(found)
    ends = [tuple(line.get_xdata()) for line in lines(ax, drawing.BLUE)]
    wanted = [
        (row.k_star_low, right if row.censored_high else row.k_star_high)
        for row in found.itertuples()
    ]
    np.testing.assert_allclose(ends, wanted)


def test_a_k_star_below_the_grid_points_left():
    found = kstar_table(1, ("mid",), (0.9,))
    found = found.assign(k_star=8.0, censored="<=k_min", k_star_low=8.0, censored_low="<=k_min")
    (ax,) = figures.kstar(found).axes
    (full, opened) = lines(ax, drawing.BLUE, "<")
    assert full.get_xdata()[0] == opened.get_xdata()[0] == ax.get_xlim()[0]


def test_depth_profile_shows_both_spectra_the_ceiling_and_the_gap():
    found = profile_table(2)
    raw, deflated, smallest, largest, null = figures.depth_profile(found).axes
    own = drawing.having(found, {"subject": "pythia-160m", "token_set": "all"})
    colour, marker = drawing.SERIES[1]
    for ax, name in ((raw, "pr"), (deflated, "pr_deflated1")):
        line = lines(ax, colour, marker)[0]
        np.testing.assert_allclose(line.get_ydata(), own[name])
        np.testing.assert_allclose(line.get_xdata(), own.layer / 11)
    ceilings = [line.get_ydata()[0] for line in lines(raw, drawing.GREY)]
    np.testing.assert_allclose(ceilings, [512 / (1 + 512 / 4096), 768 / (1 + 768 / 4096)])
    hooked = own.dropna(subset="k_min")
    line = lines(smallest, colour, marker)[0]
    np.testing.assert_allclose(line.get_ydata(), hooked.r2_k_min - hooked.ce_rec_k_min)
    line = lines(largest, colour, marker)[0]
    np.testing.assert_allclose(line.get_ydata(), hooked.r2_k_max - hooked.ce_rec_k_max)
    line = lines(null, drawing.GREY, marker)[0]
    wanted = hooked.untrained_r2_k_min - hooked.untrained_ce_rec_k_min
    np.testing.assert_allclose(line.get_ydata(), wanted)
    assert smallest.get_title(loc="left") == "smallest k = 8"
    assert len(figures.depth_profile(profile_table(1, ks=(8,))).axes) == 4  # one k: no largest


def test_critics_show_information_null_ceiling_k_star_and_participation_ratio():
    found = critics_table(1, (3,))
    (ax,) = figures.critics(found).axes
    for critic, colour, marker in (
        ("hybrid", drawing.BLUE, "o"),
        ("separable", drawing.VERMILLION, "s"),
    ):
        own = found[found.critic == critic]
        curve, k_star = lines(ax, colour)
        np.testing.assert_allclose(curve.get_ydata(), own.mi_nats)
        np.testing.assert_allclose(k_star.get_xdata(), own.k_star.iloc[0])
        (null,) = lines(ax, drawing.GREY, marker)
        np.testing.assert_allclose(null.get_ydata(), own.shuffled_mi_nats)
    _, opened = lines(ax, drawing.BLUE, "o")
    assert len(opened.get_xdata()) == 1 and to_hex(opened.get_markerfacecolor()) == "#ffffff"
    assert lines(ax, drawing.VERMILLION, ">")[0].get_xdata()[0] == 16  # wider may be needed
    assert not lines(ax, drawing.BLUE, ">")
    (ratio,) = lines(ax, drawing.PALE)  # 51.2 lies beyond the widths and is in the title alone
    np.testing.assert_allclose(ratio.get_xdata(), 3.96)
    assert ax.get_title(loc="left").endswith("PR 3.96, 51.2 without sinks")
    ceiling = lines(ax, drawing.GREY)[0]
    np.testing.assert_allclose(ceiling.get_ydata(), np.log(64))
