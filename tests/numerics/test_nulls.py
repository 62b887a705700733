"""Shuffles, and the place of a value among draws: exact p-values that are valid under the null."""

import numpy as np
import pytest
import scipy.stats

from streamgauge.numerics.nulls import central, one_sided_p, rank_among, rank_from_top, shuffles


def test_shuffles_stay_within_groups_and_reach_every_order():
    groups = [1, 2, 1, 1, 2]
    order = shuffles(groups, 2000, seed=0)
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(5), (2000, 1)))
    np.testing.assert_array_equal(np.array(groups)[order], np.tile(groups, (2000, 1)))
    found, times = np.unique(order, axis=0, return_counts=True)
    assert len(found) == 6 * 2
    assert scipy.stats.chisquare(times).pvalue > 1e-3
    np.testing.assert_array_equal(order, shuffles(groups, 2000, seed=0))


def test_rank_and_exact_p():
    null = np.arange(1.0, 20)  # 19 draws
    assert rank_among(0.5, null) == (1, pytest.approx(0.1))
    assert rank_among(99, null) == (20, pytest.approx(0.1))
    assert rank_among(10.5, null) == (11, 1)
    assert rank_among(1, null) == (1, pytest.approx(0.2))  # a tie counts against it
    assert rank_among(1, np.ones(19)).p == 1
    assert np.isnan(rank_among(np.nan, null).p)


def test_p_is_valid_under_the_null():
    draws = np.random.default_rng(0).standard_normal((4000, 40))
    p = np.array([rank_among(row[0], row[1:]).p for row in draws])
    for level in (0.05, 0.1, 0.5):
        assert (p <= level).mean() == pytest.approx(level, abs=4 * (level / 4000) ** 0.5)


def test_rank_from_the_top():
    drawn = np.arange(1.0, 20)
    assert (rank_from_top(99, drawn), one_sided_p(99, drawn)) == (1, 1 / 20)
    assert (rank_from_top(0.5, drawn), one_sided_p(0.5, drawn)) == (20, 1)
    # ties, also by rounding alone, and draws without a value count against it
    assert rank_from_top(19, drawn) == rank_from_top(19 + 1e-14, drawn) == 2
    assert rank_from_top(99, [np.nan, 1, 2]) == 2


def test_the_one_sided_p_is_valid_under_the_null():
    draws = np.random.default_rng(1).standard_normal((4000, 40))
    p = np.array([one_sided_p(row[0], row[1:]) for row in draws])
    for level in (0.05, 0.1, 0.5):
        assert (p <= level).mean() == pytest.approx(level, abs=4 * (level / 4000) ** 0.5)


def test_the_central_share_is_of_quantiles():
    draws = np.random.default_rng(0).normal(size=(50, 3))
    np.testing.assert_array_equal(central(draws, 0.9), np.quantile(draws, [0.05, 0.95], axis=0))
