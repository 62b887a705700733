"""Ranks and correlations against SciPy's, of samples with and without repetitions."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from streamgauge.numerics.correlation import demeaned, ranks, standardised

RNG = np.random.default_rng(0)


def pearson(x, y, counts=None):
    """What `standardised` is for: of `ranks` it is Spearman's correlation."""
    return (standardised(x, counts) * standardised(y, counts)).sum(-1)


# few distinct values, so that there are ties, each with how often it occurs
repeated = st.lists(
    st.tuples(st.integers(-3, 3), st.integers(-3, 3), st.integers(0, 3)), min_size=2, max_size=9
).filter(lambda rows: sum(count for *_, count in rows))


@given(repeated)
def test_counted_ranks_and_correlations_are_those_of_the_repeated_sample(rows):
    x, y, counts = np.array(rows, float).T
    many = counts.astype(int)
    np.testing.assert_allclose(
        np.repeat(ranks(x, counts), many), scipy.stats.rankdata(np.repeat(x, many))
    )
    xs, ys = np.repeat(x, many), np.repeat(y, many)
    found = pearson(x, y, counts), pearson(ranks(x, counts), ranks(y, counts), counts)
    if np.ptp(xs) == 0 or np.ptp(ys) == 0:
        assert np.isnan(found).all()
    else:
        expected = (scipy.stats.pearsonr(xs, ys)[0], scipy.stats.spearmanr(xs, ys)[0])
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_ranks_and_correlations_work_on_rows_at_once():
    x, y = RNG.normal(size=(2, 4, 9)).round(1)
    counts = RNG.integers(0, 3, (5, 1, 9))
    for i in range(4):
        np.testing.assert_array_equal(ranks(x)[i], scipy.stats.rankdata(x[i]))
        for j in range(5):
            one = pearson(ranks(x[i], counts[j, 0]), y[i], counts[j, 0])
            assert pearson(ranks(x, counts), y, counts)[j, i] == pytest.approx(one)


def test_rounding_is_no_variation():
    # the mean of three times 0.1 is not 0.1
    assert np.isnan(pearson([0.1, 0.1, 0.1], [1, 2, 3]))
    assert np.isnan(pearson([1, 2, 3], [0, 0, 0]))
    assert pearson([1e6, 1e6 + 1e-3, 1e6], [1, 2, 1]) == pytest.approx(1)


def test_demeaning_leaves_exactly_nothing_of_groups_that_do_not_vary():
    groups = np.array([1, 2, 1, 2, 1])
    x = RNG.normal(size=(3, 5))
    found = demeaned(x, groups)
    for group in (1, 2):
        own = x[:, groups == group]
        np.testing.assert_allclose(found[:, groups == group], own - own.mean(1, keepdims=True))
    assert (demeaned([0.1, 7.0, 0.1, 7.0, 0.1], groups) == 0).all()


@given(repeated)
def test_counted_values_lose_the_mean_of_their_group_in_the_repeated_sample(rows):
    x, groups, counts = np.array(rows, float).T
    found = demeaned(x, groups, counts[None])[0]
    for group in np.unique(groups):
        own = groups == group
        if counts[own].any():
            mean = np.repeat(x[own], counts[own].astype(int)).mean()
            np.testing.assert_allclose(found[own], x[own] - mean, atol=1e-12)
        else:
            assert (found[own] == 0).all()
