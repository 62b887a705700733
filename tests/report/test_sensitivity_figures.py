"""Figures of sensitivity: what is drawn is what the tables say, beside their nulls."""

import functools
import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_hex

from figure_checks import check_layout, check_refusals, check_same_bytes, lines
from grid_data import grid_table
from streamgauge.base.errors import StreamgaugeError
from streamgauge.report import drawing, sensitivity_figures
from streamgauge.studies import kl_calibration, leaderboard

PLACE = {"subject": "small", "corpus": "texts"}
SAE = {"expansion": 8, "tokens": 1000}


def points(layers=(3, 5), objectives=("mse",), ks=(8, 32), token_sets=("all", "no_sink")):
    """Points whose measured KL is 0.9 times the joint prediction, with some scatter."""
    rng, rows = np.random.default_rng(0), []
    for layer, token_set in itertools.product(layers, token_sets):
        place = {**PLACE, "layer": layer, "token_set": token_set, "n_predicted": 63}
        errors = [({"source": "synthetic", "scale": a}, a**2) for a in (0.001, 0.01, 0.1)]
        for source, factor in (("sae", 1.0), ("untrained", 30.0)):
            for objective in objectives:
                for k in ks:
                    sae = {**SAE, "objective": objective, "k": k, "seed": 0}
                    errors.append(({"source": source, **sae}, factor / k))
        for error, size in errors:
            for sequence in range(4):
                joint = size * rng.uniform(0.8, 1.2)
                row = {"predicted_nats": 1.3 * joint, "joint_nats": joint}
                row |= {"measured_nats": 0.9 * joint, "sequence": sequence}
                rows.append({**place, **error, **row})
    return pd.DataFrame(rows)


@functools.cache
def calibrated(layers=(3, 5), objectives=("mse",), token_sets=("all", "no_sink")):
    found = points(layers, objectives, token_sets=token_sets)
    return kl_calibration.table(found, resamples=10), found


def objective_table(objectives=("mse", "behavioral", "e2e"), quad=True, **shape):
    """A grid table of several objectives; costs in nats fall with k."""
    parts = []
    for i, objective in enumerate(objectives):
        table = grid_table(**shape).assign(objective=objective)
        level = table.codec.map({"sae": 0.5, "untrained": 5.0, "zero": 9.0, "mean": 7.0})
        for name, factor in (("kl_nats", 1.0), ("quad_nats", 1.5)):
            table[name] = factor * level / (i + 1) / (1 if name == "mean" else table.k**0.5)
            table[f"{name}_low"], table[f"{name}_high"] = 0.9 * table[name], 1.2 * table[name]
        parts.append(table if quad else table.drop(columns=["quad_nats"]))
    return pd.concat(parts, ignore_index=True)


@functools.cache
def leaderboard_table():
    return leaderboard.leaderboard(objective_table(seeds=(0, 1)), resamples=50)


def attention_table(hooked=(1, 3), objectives=("mse",), ks=(8, 32, 128), seeds=(0, 1), layers=6):
    rng, rows = np.random.default_rng(0), []
    for hook_layer in hooked:
        for objective in objectives:
            for k in ks:
                for seed in seeds:
                    cell = {**PLACE, "hook_layer": hook_layer, **SAE, "objective": objective}
                    cell |= {"k": k, "seed": seed}
                    for codec, size in (("sae", 0.01), ("untrained", 0.3), ("mean", 0.5)):
                        for layer in range(layers):
                            for head in range(4):
                                js = size * rng.uniform(0.5, 1) * (layer > hook_layer)
                                row = {"codec": codec, "layer": layer, "head": head}
                                rows.append({**cell, **row, "js_nats": js})
    return pd.DataFrame(rows)


FIGURES = sensitivity_figures
THREE = ("mse", "behavioral", "e2e")
DRAWN = {
    "calibration": lambda: FIGURES.calibration(*calibrated(), "A title"),
    "calibration_one": lambda: FIGURES.calibration(*calibrated((3,), THREE, ("all",))),
    "calibration_three": lambda: FIGURES.calibration(*calibrated((1, 2, 3), ("mse",), ("all",))),
    "objectives": lambda: FIGURES.objectives(objective_table(), "A title"),
    "objectives_one": lambda: FIGURES.objectives(objective_table(("mse",), quad=False)),
    "objectives_seeds": lambda: FIGURES.objectives(
        objective_table(layers=(3,), ks=(32,), seeds=(0, 1, 2))
    ),
    "leaderboard": lambda: FIGURES.leaderboard(leaderboard_table(), "A title"),
    "attention": lambda: FIGURES.attention(attention_table(), "A title"),
    "attention_one": lambda: FIGURES.attention(attention_table((3,), ks=(8,))),
    "attention_three": lambda: FIGURES.attention(attention_table((1,), THREE)),
}


# --- every figure -------------------------------------------------------------------------------
@pytest.mark.parametrize("name", DRAWN)
def test_text_fits_and_nothing_covers_the_axes(name):
    check_layout(DRAWN[name]())


@pytest.mark.parametrize(
    "name", ["calibration_one", "objectives_seeds", "leaderboard", "attention_one"]
)
def test_same_table_same_bytes(name, tmp_path):
    check_same_bytes(DRAWN[name], tmp_path)


@pytest.mark.parametrize(
    ("draw", "table", "column"),
    [
        (lambda t: FIGURES.calibration(t, points()), lambda: calibrated()[0], "log_slope"),
        (lambda t: FIGURES.calibration(calibrated()[0], t), points, "joint_nats"),
        (FIGURES.objectives, objective_table, "kl_nats"),
        (FIGURES.leaderboard, leaderboard_table, "null_low"),
        (FIGURES.attention, attention_table, "js_nats"),
    ],
)
def test_unusable_tables(draw, table, column):
    check_refusals(draw, table(), column)


# --- each figure --------------------------------------------------------------------------------
def test_calibration_shows_points_identity_slope_and_ratio():
    table, found = calibrated((3,))
    top, other, below, _ = FIGURES.calibration(table, found).axes
    assert other.get_title(loc="left").startswith("layer 3, without sinks\n")
    table, found = (rows[rows.token_set == "all"] for rows in (table, found))
    for source, colour, marker in (
        ("synthetic", drawing.BLUE, "o"),
        ("sae", drawing.VERMILLION, "s"),
        ("untrained", drawing.GREY, "X"),
    ):
        own = found[found.source == source]
        drawn = [line for line in lines(top, colour, marker) if len(line.get_xdata())]
        tokens, joint = drawn
        np.testing.assert_allclose(joint.get_xdata(), own.joint_nats)
        np.testing.assert_allclose(joint.get_ydata(), own.measured_nats)
        np.testing.assert_allclose(tokens.get_xdata(), own.predicted_nats)
        assert to_hex(joint.get_markerfacecolor()) == colour.lower()
        assert tokens.get_markerfacecolor() == "none"
    (identity,) = lines(top, drawing.GREY)
    np.testing.assert_array_equal(identity.get_xdata(), identity.get_ydata())
    assert top.get_xlim() == top.get_ylim()
    title = top.get_title(loc="left").splitlines()
    assert title[1] == "synthetic: log slope 1.00, R² 1.00" and len(title) == 4
    rows = table[(table.source == "synthetic") & table.scale.notna()]
    dashed, solid = lines(below, drawing.BLUE)
    np.testing.assert_allclose(solid.get_xdata(), rows.scale)
    np.testing.assert_allclose(solid.get_ydata(), rows.ratio_joint)
    np.testing.assert_allclose(solid.get_ydata(), 0.9)
    np.testing.assert_allclose(dashed.get_ydata(), 0.9 / 1.3)
    assert lines(below, drawing.GREY)[0].get_ydata()[0] == 1


def test_calibration_keeps_what_a_log_axis_cannot_hold():
    table, found = calibrated((3,))
    found = found.assign(measured_nats=found.measured_nats.where(found.index > 0, -1e-9))
    top = FIGURES.calibration(table, found).axes[0]
    triangles = [line for line in lines(top, drawing.BLUE, "v") if len(line.get_xdata())]
    assert len(triangles) == 2  # one for each prediction
    assert top.get_ylim()[0] < triangles[0].get_ydata()[0] < 2 * top.get_ylim()[0]


def test_calibration_names_objectives_once_and_one_null():
    drawn = DRAWN["calibration_one"]()
    words = [text.get_text() for text in drawn.legends[0].get_texts()]
    assert words[:3] == ["synthetic errors", "SAE, mse", "untrained SAE"]
    assert words.count("untrained SAE") == 1 and "SAE, e2e" in words


def test_objectives_show_scores_seeds_and_controls():
    table = objective_table(layers=(3,), ks=(8, 32), seeds=(0, 1))
    ce, ce_low, r2, r2_low, kl, quad = FIGURES.objectives(table).axes
    assert [ax.get_title(loc="left") for ax in (ce, r2, kl, quad)] == [
        "layer 3\nCE recovered",
        "\nR²",
        "\nKL, nats",
        "\n½ δᵀGδ, nats",
    ]
    for (objective, marker), colour in zip(
        (("mse", "o"), ("behavioral", "s"), ("e2e", "D")),
        (drawing.BLUE, drawing.VERMILLION, "#009E73"),
        strict=True,
    ):
        own = drawing.having(table, {"codec": "sae", "objective": objective, "token_set": "all"})
        for ax, metric in ((ce, "ce_rec_mean_of_ratios"), (r2, "r2"), (kl, "kl_nats")):
            seeds = lines(ax, colour, marker)[0]
            assert len(seeds.get_ydata()) == 4
            means = own.groupby("k")[metric].mean()
            np.testing.assert_allclose(lines(ax, colour)[0].get_ydata(), means)
    null = table[(table.codec == "untrained") & (table.token_set == "all")]
    assert set(lines(r2_low, drawing.GREY, "o")[0].get_ydata()) == set(null.r2)
    assert not lines(r2, drawing.GREY)
    assert kl.get_yscale() == "log" and len(lines(kl, drawing.GREY, "o")[0].get_ydata())
    assert ce_low.get_ylabel() == "controls"


def test_objectives_work_with_one_objective_and_without_predictions():
    drawn = DRAWN["objectives_one"]()
    titles = [ax.get_title(loc="left").strip() for ax in drawn.axes]
    assert "KL, nats" in titles and not any("δ" in title for title in titles)
    with pytest.raises(StreamgaugeError, match="nothing to draw"):
        table = objective_table()
        FIGURES.objectives(table[table.codec != "sae"])


def test_leaderboard_is_sorted_and_shows_interval_and_null():
    table = leaderboard_table()
    drawn = FIGURES.leaderboard(table)
    ce, kl, *_ = drawn.axes
    assert ce.get_title(loc="left").startswith("CE recovered\nall tokens; 36 SAEs, 3 clusters")
    assert kl.get_title(loc="left").startswith("KL\n")
    own = table[(table.token_set == "all") & table.spearman.notna()]
    key = {"target": "ce_rec_mean_of_ratios", "how": "pooled"}
    pooled = drawing.having(own, key)
    best_first = pooled.sort_values("spearman", ascending=False).spearman
    (points_,) = lines(ce, drawing.BLUE, "o")
    by_place = np.argsort(points_.get_ydata())
    np.testing.assert_allclose(points_.get_xdata()[by_place], best_first)
    assert ce.yaxis_inverted()
    within = drawing.having(own, {**key, "how": "within_k"})
    (opened,) = lines(ce, drawing.VERMILLION, "s")
    assert to_hex(opened.get_markerfacecolor()) == "#ffffff"
    np.testing.assert_allclose(sorted(opened.get_xdata()), sorted(within.spearman))
    bars = [patch for patch in ce.patches if to_hex(patch.get_facecolor()) == "#d9d9d9"]
    found = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in bars)
    wanted = pd.concat([pooled, within])
    wanted = sorted(zip(wanted.null_low, wanted.null_high, strict=True))
    np.testing.assert_allclose(found, wanted)
    labels = [label.get_text() for label in ce.get_yticklabels()]
    assert "R²" in labels and "½ δᵀGδ" in labels
    assert not any(label.get_text() for label in kl.get_yticklabels())


def test_attention_shows_first_seed_smallest_and_largest_k_and_the_null():
    table = attention_table((1,))
    drawn = FIGURES.attention(table)
    panels = [ax for ax in drawn.axes if ax.get_xlabel() == "head"]
    titles = [ax.get_title(loc="left").splitlines()[-1] for ax in panels]
    assert titles == ["SAE, k = 8", "SAE, k = 128", "untrained, k = 8", "untrained, k = 128"]
    assert panels[0].get_title(loc="left").startswith("patched after layer 1\n")
    meshes = [next(c for c in ax.collections if isinstance(c, QuadMesh)) for ax in panels]
    assert len({(m.norm.vmin, m.norm.vmax) for m in meshes}) == 1
    own = drawing.having(table, {"codec": "untrained", "k": 128, "seed": 0})
    wanted = own.pivot(index="layer", columns="head", values="js_nats").to_numpy()
    image = np.ma.filled(meshes[3].get_array(), np.nan).reshape(wanted.shape)
    np.testing.assert_allclose(image[2:], wanted[2:])
    assert np.isnan(image[:2]).all()  # up to the patched layer: pale, not coloured


def test_attention_of_several_objectives_at_equal_k():
    titles = [ax.get_title(loc="left").splitlines() for ax in DRAWN["attention_three"]().axes[:4]]
    wanted = ["mse, k = 8", "behavioral, k = 8", "e2e, k = 8", "untrained, k = 8"]
    assert [title[-1] for title in titles] == wanted


def test_one_outlying_head_does_not_take_the_colours():
    table = attention_table((1,))
    at = (table.layer == 4) & (table["head"] == 2) & (table.codec == "sae")
    table.loc[at, "js_nats"] = 1e-9
    drawn = FIGURES.attention(table)
    mesh = next(c for c in drawn.axes[0].collections if isinstance(c, QuadMesh))
    assert mesh.norm.vmax / mesh.norm.vmin == pytest.approx(1e3)


def test_a_study_too_small_for_a_question_says_so():
    """One SAE cannot be ranked, and nothing lies above the last layer: no reason to fail."""
    one = FIGURES.leaderboard(leaderboard_table().assign(n=1, spearman=np.nan), "A title")
    assert [text.get_text() for text in one.texts if "1 SAE" in text.get_text()]
    last = FIGURES.attention(attention_table((1,)).assign(js_nats=0.0), "A title")
    assert [text.get_text() for text in last.texts if "No attention" in text.get_text()]
