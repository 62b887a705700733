"""The simulation of verdicts: extremes, error rates, and that it judges as `verdicts` does."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats

import figure_checks
from streamgauge.base.errors import StreamgaugeError
from streamgauge.numerics import inference
from streamgauge.report import drawing, verdict_figures
from streamgauge.studies import verdict_simulation, verdicts
from verdict_data import RULES, budgets, deltas

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"trials": 200, "seeds": [1, 2, 12], "sequences": [16, 300], "seed": 0, "rules": RULES}


@pytest.fixture(scope="module")
def table():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verdict_simulation, "RESAMPLES", 60)
        patch.setattr(verdict_simulation, "H2_SHARE", 10)
        patch.setattr(verdict_simulation, "DEPTHS", (2, 6))
        return verdict_simulation.calibrate(**SETTINGS, effects=[0.0, 0.02, 0.2])


def rate(table, hypothesis, column="supported", **key):
    (found,) = drawing.having(table, {"hypothesis": hypothesis, **key})[column]
    return found


BEST = {"seeds": 12, "sequences": 300, "seed_sd": 0.003}


def test_extremes(table):
    assert rate(table, "H0", world="one cell", effect=0.0, **BEST) > 0.98
    for world in ("one cell", "every cell"):
        assert rate(table, "H1", world=world, effect=0.2, **BEST) > 0.98
        assert rate(table, "H0", world=world, effect=0.2, **BEST) == 0
        assert rate(table, "H0", "rejected", world=world, effect=0.2, **BEST) > 0.98
    assert rate(table, "H3", world="18 points", effect=0.9) > 0.9


def test_one_seed_never_decides(table):
    own = table[(table.seeds == 1) & table.hypothesis.isin(["H0", "H1"])]
    assert len(own) == 2 * 2 * 2 * 3 * 3 and (own.not_adjudicated == 1).all()
    assert own.coverage.isna().all()


def test_false_positives_stay_below_the_level(table):
    """Up to what 200 trials can say: three standard errors of a rate of 5 %."""
    wrong = table[table.supported_is == "false positive"]
    room = 3 * np.sqrt(0.05 * 0.95 / wrong.trials)
    assert (wrong.supported <= 0.05 + room).all()
    assert set(wrong.hypothesis) == {"H0", "H1", "H2", "H3"}
    assert set(wrong.world[wrong.hypothesis == "H1"]) == set(verdict_simulation.WORLDS)


def test_what_counts_as_false(table):
    truth = {
        (row.hypothesis, row.world, row.effect): row.supported_is == "power"
        for row in table.itertuples()
    }
    for world in verdict_simulation.WORLDS:
        assert truth["H0", world, 0.0] and not truth["H1", world, 0.0]
        assert not truth["H0", world, 0.02] and not truth["H1", world, 0.02]  # at the margin
        assert truth["H1", world, 0.2] == (world != "still training")
    assert not truth["H2", "18 clusters", 0.0] and truth["H3", "6 points", 0.3]


def test_coverage_of_the_interval(table):
    own = table[(table.hypothesis == "H0") & (table.seeds == 12)]
    assert own.coverage.between(0.92, 0.98).all()


def test_the_three_shares_are_all(table):
    shares = table[["supported", "rejected", "not_adjudicated"]]
    assert np.allclose(shares.sum(1), 1) and (shares >= 0).all(axis=None)


def test_equal_seeds_give_equal_tables():
    small = {**SETTINGS, "trials": 4, "seeds": [2], "sequences": [16], "effects": [0.0]}
    one, two = (verdict_simulation.calibrate(**small) for _ in range(2))
    pd.testing.assert_frame_equal(one, two, check_exact=True)


# --- the simulated studies --------------------------------------------------------------------
def test_standard_errors_are_those_of_the_comparisons():
    """`_summed_up` against the bootstrap and the t interval that a study's tables come from."""
    x = np.random.default_rng(0).normal(0.01, 0.1, (1, 1, 4, 50)) + np.arange(4)[:, None] / 100
    made = verdict_simulation._summed_up(x)
    counts = inference.resample_counts(50, 5000, 0)
    replicates = counts @ x[0, 0].mean(0) / 50
    se_seeds = x[0, 0].mean(1).std(ddof=1) / 2
    se = inference.standard_error(replicates, 50)
    expected = inference.combined(x.mean(), se, 49, se_seeds, 3)
    assert made.value[0, 0] == pytest.approx(x.mean())
    assert made.se[0, 0] == pytest.approx(expected.se, rel=0.02)
    assert made.df[0, 0] == pytest.approx(expected.df, rel=0.05)


@pytest.mark.parametrize(("gap", "change"), [(0.0, 0.0), (0.05, 0.0), (0.03, 0.02)])
def test_trials_are_judged_as_a_study_is(gap, change):
    """The same estimates in a study's tables give the same verdicts."""
    trials, seeds, sequences = 6, 8, 200
    drawn = verdict_simulation.draw_gaps(trials, seeds, sequences, 0.008, 1)
    h0, h1 = verdict_simulation.judge_gaps(drawn, np.full(4, gap), change, RULES)
    table = deltas(n_seeds=seeds, n_sequences=sequences)
    runs = budgets(table=table)
    for trial in range(trials):
        table, runs = table.copy(), runs.copy()
        for i, (depth, k) in enumerate(itertools.product(("early", "late"), (8, 32))):
            own = (table.depth == depth) & (table.k == k) & (table.tokens == 2000)
            _put(table, own, "d_ce_rec", drawn["gap"], (trial, i), gap)
            layer = ("early", "late").index(depth)
            for subject, name, moved in (("s", "small", 0.0), ("l", "big", change)):
                own = (runs.subject == subject) & (runs.layer == layer) & (runs.k == k)
                _put(
                    runs,
                    own & (runs.tokens == 2000),
                    "change_ce_rec",
                    drawn[name],
                    (trial, i),
                    moved,
                )
        facts = verdicts.adjudicate(table, runs, None, None, **RULES)["hypotheses"]
        assert (facts["H0"]["verdict"] == "supported") == h0[trial]
        assert (facts["H1"]["verdict"] == "supported") == h1[trial]


def _put(table, rows, name, mean, at, moved):
    """Write an estimate into a study's table, its error split so that it is found again."""
    # with 8 seeds and 200 sequences: shares a, 1 − a of the variance give the wanted df
    se, df = mean.se[at], mean.df[at]
    a, b, c = 1 / 199 + 1 / 7, -2 / 7, 1 / 7 - 1 / df
    share = (-b - np.sqrt(max(b * b - 4 * a * c, 0))) / (2 * a)
    table.loc[rows, name] = mean.value[at] + moved
    table.loc[rows, f"{name}_se_sequences"] = se * np.sqrt(share)
    table.loc[rows, f"{name}_se_seeds"] = se * np.sqrt(1 - share)


def test_drawn_proxies_and_points_correlate_as_asked():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(300):
        grid = verdict_simulation.draw_grid(rng, 3, 0.4)
        assert list(grid.k.unique()) == [1, 2, 4, 8, 16, 32]
        power = np.log2(grid.k)
        y, x = grid.ce_rec_mean_of_ratios - power, grid.r2 - power
        swd = -np.log(grid.swd) - power
        found.append([scipy.stats.spearmanr(v, y)[0] for v in (x, swd)])
    assert np.mean(found, 0) == pytest.approx([0.5, 0.9], abs=0.04)
    points = [verdict_simulation.draw_points(rng, 40, 0.6) for _ in range(30)]
    rho = [scipy.stats.spearmanr(p.gap, p.small_departure + p.big_departure)[0] for p in points]
    assert np.mean(rho) == pytest.approx(0.6, abs=0.04) and len(points[0]) == 120


# --- the figure -------------------------------------------------------------------------------
def test_figure_draws_the_table(table, tmp_path):
    figure = verdict_figures.verdict_calibration(table, "Title")
    figure_checks.check_layout(figure)
    assert len(figure.axes) == 2 * 2 + 3
    ax = next(
        ax
        for ax in figure.axes
        if ax.get_title(loc="left").startswith("H1") and "300" in ax.get_title(loc="left")
    )
    own = drawing.having(table, {"hypothesis": "H1", "world": "one cell", **BEST})
    drawn = [line.get_ydata() for line in ax.get_lines()]
    assert any(np.array_equal(y, own.supported) for y in drawn)
    figure_checks.check_same_bytes(lambda: verdict_figures.verdict_calibration(table), tmp_path)
    with pytest.raises(StreamgaugeError, match="lacks the columns coverage"):
        verdict_figures.verdict_calibration(table.drop(columns="coverage"))


def test_the_documented_table_is_one_of_this_simulation(table):
    """Same columns and cases as made here, with the rates the page quotes."""
    documented = pd.read_csv(ROOT / "docs/verdict-calibration.csv")
    assert list(documented) == list(table)
    wrong = documented[documented.supported_is == "false positive"]
    assert wrong.supported.max() == 0.08
    key = {"world": "one cell", "seeds": 3, "sequences": 200, "seed_sd": 0.003}
    assert rate(documented, "H0", effect=0.0, **key) == 0.81
    assert rate(documented, "H1", effect=0.04, **key) == 0.5775
    assert rate(documented, "H1", effect=0.04, **key | {"world": "every cell"}) == 0.975
    calm = wrong[wrong.world != "still training"]
    assert calm.supported.max() == 0.06
