"""The bootstrap against SciPy's, and what it must refuse to say."""

import numpy as np
import pytest
import scipy.stats

from streamgauge.errors import StreamgaugeError
from streamgauge.statistics import bootstrap, percentile_interval, resample_counts

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
