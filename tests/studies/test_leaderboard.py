"""The proxy leaderboard on planted tables, against SciPy and direct resampling."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from streamgauge.base.errors import StreamgaugeError
from streamgauge.numerics.inference import clustered_counts, resample_counts
from streamgauge.studies import leaderboard

SETTINGS = {"resamples": 400, "confidence": 0.9, "seed": 3}


def planted(subjects=("a", "b"), ks=(8, 16, 32), seeds=5):
    """A grid table in which some proxies are behaviour itself and others are noise."""
    rng = np.random.default_rng(0)
    rows = []
    for subject in subjects:
        for k in ks:
            for seed in range(seeds):
                for token_set in ("all", "no_sink"):
                    q = rng.uniform(0.1, 0.5) + k / 20
                    row = {"subject": subject, "k": k, "seed": seed, "token_set": token_set}
                    row |= {"ce_rec_mean_of_ratios": q, "kl_nats": 3 - q + rng.normal() / 20}
                    row |= {"r2": q + rng.normal() / 8, "nmse": -(q**3), "l0": k, "swd": 1 / q}
                    row |= {"rate_bits": 1.1 * k, "alive": 0.1, "gradient_dot": (-1) ** seed / q}
                    row |= {name: rng.normal() for name in ("cosine", "quad_nats", "mse")}
                    rows.append(row)
    saes = pd.DataFrame(rows).assign(codec="sae", diagonal_quad_nats=np.nan)
    # what is not an SAE must not count
    return pd.concat([saes, saes.assign(codec="untrained", r2=-saes.r2)], ignore_index=True)


GRID = planted()
BOARD = leaderboard.leaderboard(GRID, **SETTINGS)


def entry(proxy, target="ce_rec_mean_of_ratios", token_set="all", how="pooled", board=BOARD):
    own = (board.target == target) & (board.token_set == token_set) & (board.how == how)
    found = board[own & (board.proxy == proxy)]
    assert len(found) == 1
    return found.iloc[0]


def columns(x, y, how, token_set="all"):
    part = GRID[(GRID.codec == "sae") & (GRID.token_set == token_set)]
    part = part.assign(x=x(part), y=y(part))
    if how == "within_k":
        part[["x", "y"]] -= part.groupby("k")[["x", "y"]].transform("mean")
    return part


def test_the_table_is_complete():
    assert len(BOARD) == 2 * 2 * 2 * len(leaderboard.PROXIES)
    assert list(BOARD.columns) == [
        *("target", "token_set", "how", "proxy", "n", "n_clusters"),
        *("pearson", "pearson_low", "pearson_high", "spearman", "spearman_low", "spearman_high"),
        *("null_low", "null_high", "p_value", "rank"),
    ]
    assert set(BOARD.n[BOARD.spearman.notna()]) == {30}
    assert set(BOARD.n_clusters[BOARD.spearman.notna()]) == {6}


@pytest.mark.parametrize("how", leaderboard.HOWS)
@pytest.mark.parametrize("token_set", ["all", "no_sink"])
def test_correlations_are_scipys(how, token_set):
    turned = {
        "r2": lambda t: t.r2,
        "l0": lambda t: t.l0,
        "mse": lambda t: -t.mse,
        "quad_nats": lambda t: -t.quad_nats,
        "gradient_dot": lambda t: 1 / t.gradient_dot.abs(),
    }
    for target, y in (
        ("ce_rec_mean_of_ratios", lambda t: t.ce_rec_mean_of_ratios),
        ("kl_nats", lambda t: -t.kl_nats),
    ):
        for proxy, x in turned.items():
            row, made = entry(proxy, target, token_set, how), columns(x, y, how, token_set)
            if proxy == "l0" and how == "within_k":
                assert np.isnan([row.pearson, row.spearman, row.p_value]).all()
                continue
            expected = scipy.stats.pearsonr(made.x, made.y)[0]
            assert row.pearson == pytest.approx(expected, abs=1e-12)
            expected = scipy.stats.spearmanr(made.x, made.y)[0]
            assert row.spearman == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("how", leaderboard.HOWS)
def test_a_proxy_that_is_the_target_comes_first_and_noise_lies_in_its_null(how):
    for proxy in ("swd", "gradient_dot", "nmse"):
        row = entry(proxy, how=how)
        if how == "pooled" or proxy != "nmse":  # a cube keeps its order until means are taken off
            assert row.spearman == pytest.approx(1) and row["rank"] == 1
            assert row.spearman_low == pytest.approx(1) == row.spearman_high
        assert row.p_value == 1 / 401  # no shuffle did as well
    assert entry("swd", how=how).pearson == pytest.approx(1)
    for proxy in ("cosine", "quad_nats", "mse"):
        row = entry(proxy, how=how)
        assert row.null_low < row.spearman < row.null_high and row.p_value > 0.05
        assert row.null_low == pytest.approx(-row.null_high, abs=0.1)
        assert row["rank"] > entry("r2", how=how)["rank"]


def test_demeaning_takes_away_what_k_alone_explains():
    assert entry("l0").spearman > 0.9 and entry("rate_bits").spearman > 0.9
    for proxy in ("l0", "rate_bits"):  # 1.1 k less its mean over equal k is rounding only
        row = entry(proxy, how="within_k")
        assert np.isnan(row.spearman) and pd.isna(row["rank"]) and row.n == 30
    assert 0.2 < entry("r2", how="within_k").spearman < entry("r2").spearman < 1


@pytest.mark.parametrize("how", leaderboard.HOWS)
def test_intervals_are_those_of_resampled_clusters(how):
    made = columns(lambda t: t.r2, lambda t: t.ce_rec_mean_of_ratios, "pooled")
    clusters = [part for _, part in made.groupby(["subject", "k"], sort=False)]
    replicates = []
    for counts in resample_counts(len(clusters), SETTINGS["resamples"], SETTINGS["seed"]):
        drawn = pd.concat([p for p, c in zip(clusters, counts, strict=True) for _ in range(int(c))])
        if how == "within_k":
            drawn[["x", "y"]] -= drawn.groupby("k")[["x", "y"]].transform("mean")
        replicates.append(
            [scipy.stats.pearsonr(drawn.x, drawn.y)[0], scipy.stats.spearmanr(drawn.x, drawn.y)[0]]
        )
    expected = np.quantile(replicates, [0.05, 0.95], axis=0)
    row = entry("r2", how=how)
    assert [row.pearson_low, row.pearson_high] == pytest.approx(expected[:, 0], abs=1e-9)
    assert [row.spearman_low, row.spearman_high] == pytest.approx(expected[:, 1], abs=1e-9)


def test_missing_constant_and_partly_missing_proxies():
    for proxy in ("joint_quad_nats", "diagonal_quad_nats"):  # no such column; an empty one
        row = entry(proxy)
        assert row.n == 0 and row[6:].isna().all()
    assert entry("alive").n == 30 and np.isnan(entry("alive").pearson)
    some = GRID.copy()
    lost = some.index[(some.codec == "sae") & (some.token_set == "all")][:7]
    some.loc[lost, "cosine"] = np.nan
    board = leaderboard.leaderboard(some, **SETTINGS)
    row = entry("cosine", board=board)
    kept = columns(lambda t: t.cosine, lambda t: t.ce_rec_mean_of_ratios, "pooled").drop(lost)
    assert row.n == 23 and row.spearman == pytest.approx(scipy.stats.spearmanr(kept.x, kept.y)[0])
    for other in ("r2", "swd"):
        pd.testing.assert_series_equal(
            entry(other, board=board).drop("rank"), entry(other).drop("rank"), check_names=False
        )


def test_too_little_for_an_interval():
    two = leaderboard.leaderboard(planted(["a"], [8, 16], 1), **SETTINGS)
    row = entry("swd", board=two)
    assert (row.n, row.n_clusters, row.spearman) == (2, 2, pytest.approx(1))
    assert np.isnan([row.spearman_low, row.pearson_high]).all() and row.p_value > 0.3
    one = entry("swd", board=leaderboard.leaderboard(planted(["a"], [8], 6), **SETTINGS))
    assert (one.n, one.n_clusters) == (6, 1) and np.isnan(one.spearman_low)
    alone = entry("swd", board=leaderboard.leaderboard(planted(["a"], [8], 1), **SETTINGS))
    assert alone.n == 1 and np.isnan(alone.spearman)


def test_resamples_without_a_correlation_are_left_out():
    # four clusters of one SAE: one resample in 64 draws a single SAE four times
    grid = planted(["a"], [8, 16, 32, 64], 1)
    counts = clustered_counts([8, 16, 32, 64], SETTINGS["resamples"], SETTINGS["seed"])
    assert (counts.max(1) == 4).any()
    row = entry("r2", board=leaderboard.leaderboard(grid, **SETTINGS))
    assert row.spearman_low <= row.spearman <= row.spearman_high
    # demeaned within k nothing is left of them
    row = entry("r2", how="within_k", board=leaderboard.leaderboard(grid, **SETTINGS))
    assert np.isnan(row.spearman) and row.n == 4


def test_the_order_of_rows_does_not_change_values_and_numbers_repeat():
    again = leaderboard.leaderboard(GRID, **SETTINGS)
    pd.testing.assert_frame_equal(again, BOARD, check_exact=True)
    shuffled = leaderboard.leaderboard(GRID.sample(frac=1, random_state=0), **SETTINGS)
    for row in shuffled.itertuples():
        same = entry(row.proxy, row.target, row.token_set, row.how)
        assert row.spearman == pytest.approx(same.spearman, nan_ok=True)


def test_a_table_that_cannot_be_ranked_is_an_error():
    with pytest.raises(StreamgaugeError, match="no column 'kl_nats'"):
        leaderboard.leaderboard(GRID.drop(columns="kl_nats"), **SETTINGS)
    with pytest.raises(StreamgaugeError, match="no SAE"):
        leaderboard.leaderboard(GRID[GRID.codec == "untrained"], **SETTINGS)
