"""Bootstrap, ranks and correlations against SciPy's, and what they must refuse to say."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from streamgauge.errors import StreamgaugeError
from streamgauge.statistics import (
    bootstrap,
    clustered_counts,
    percentile_interval,
    ranks,
    resample_counts,
    shuffles,
    standardised,
)

RNG = np.random.default_rng(0)
TABLE = np.stack([RNG.gamma(2, 1, 30), RNG.gamma(5, 2, 30)], axis=1)


def ratio(sums):
    return 1 - sums[..., 0] / sums[..., 1]


def test_the_interval_of_a_ratio_is_scipys_to_rounding():
    ours = bootstrap(TABLE, ratio, resamples=2000, confidence=0.9, seed=7)
    theirs = scipy.stats.bootstrap(
        (TABLE[:, 0], TABLE[:, 1]),
        lambda x, y, axis: 1 - x.sum(axis) / y.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=2000,
        confidence_level=0.9,
        method="percentile",
        rng=np.random.default_rng(7),
    ).confidence_interval
    assert ours.value == pytest.approx(1 - TABLE[:, 0].sum() / TABLE[:, 1].sum())
    assert ours[1:] == pytest.approx(tuple(theirs), rel=1e-12)


def test_counts_are_resamples_and_depend_on_the_three_arguments_only():
    counts = resample_counts(9, 4000, seed=3)
    assert counts.shape == (4000, 9)
    assert (counts.sum(1) == 9).all()
    assert counts.mean(0) == pytest.approx(np.ones(9), abs=0.08)
    assert counts.var() == pytest.approx(1 - 1 / 9, rel=0.05)  # multinomial
    np.testing.assert_array_equal(counts, resample_counts(9, 4000, seed=3))
    assert (counts != resample_counts(9, 4000, seed=4)).any()


def test_differences_are_paired():
    noise = RNG.normal(size=50) * 10
    a, b = noise + 1.0, noise  # they differ by exactly 1 on every sequence
    table = np.stack([a, b, np.ones(50)], axis=1)
    difference = bootstrap(table, lambda s: (s[..., 0] - s[..., 1]) / s[..., 2])
    assert difference == pytest.approx((1, 1, 1))
    alone = bootstrap(table[:, [0, 2]], lambda s: s[..., 0] / s[..., 1])
    assert alone.high - alone.low > 4


def test_one_sequence_has_no_interval():
    estimate = bootstrap(TABLE[:1], ratio)
    assert np.isfinite(estimate.value)
    assert np.isnan(estimate.low) and np.isnan(estimate.high)


def test_a_replicate_without_a_value_leaves_no_interval():
    assert np.isnan(percentile_interval(1.0, [1.0, np.nan, 2.0], n=3).low)


def test_the_interval_covers_the_mean_about_as_often_as_it_says():
    covered = 0
    for seed in range(300):
        x = np.random.default_rng(seed).exponential(size=60)
        mean = bootstrap(
            np.stack([x, np.ones(60)], 1), lambda s: s[..., 0] / s[..., 1], resamples=400, seed=seed
        )
        covered += mean.low <= 1 <= mean.high
    assert 0.88 < covered / 300 < 0.98


def test_bad_arguments_are_errors():
    with pytest.raises(StreamgaugeError):
        resample_counts(0)
    with pytest.raises(StreamgaugeError, match="confidence"):
        bootstrap(TABLE, ratio, resamples=10, confidence=95)


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


def test_clusters_are_drawn_whole():
    clusters = ["a", "b", "a", "c", "c", "a"]
    counts = clustered_counts(clusters, 300, seed=1)
    np.testing.assert_array_equal(counts[:, [0, 1, 3]], resample_counts(3, 300, seed=1))
    np.testing.assert_array_equal(counts[:, 0], counts[:, 5])
    np.testing.assert_array_equal(counts[:, 3], counts[:, 4])


def test_shuffles_stay_within_groups_and_reach_every_order():
    groups = [1, 2, 1, 1, 2]
    order = shuffles(groups, 2000, seed=0)
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(5), (2000, 1)))
    np.testing.assert_array_equal(np.array(groups)[order], np.tile(groups, (2000, 1)))
    found, times = np.unique(order, axis=0, return_counts=True)
    assert len(found) == 6 * 2
    assert scipy.stats.chisquare(times).pvalue > 1e-3
    np.testing.assert_array_equal(order, shuffles(groups, 2000, seed=0))
