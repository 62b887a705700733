"""Bridges with planted maps, against scikit-learn and explicit refits."""

import numpy as np
import pytest
from scipy.stats import ortho_group
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.model_selection import LeaveOneOut, cross_val_predict

from streamgauge.base.errors import StreamgaugeError
from streamgauge.numerics import bridge


def penalty(x, ridge):
    return ridge * np.mean(np.linalg.svd(x, compute_uv=False) ** 2)


def refitted(x, y, alpha=0.0):
    """Pooled leave-one-out R² the long way."""
    press = total = 0.0
    for i in range(len(x)):
        others = np.arange(len(x)) != i
        gram = x[others].T @ x[others] + alpha * np.eye(x.shape[1])
        w = np.linalg.pinv(gram, rcond=1e-12, hermitian=True) @ x[others].T @ y[others]
        press += ((y[i] - x[i] @ w) ** 2).sum()
        total += ((y[i] - y[others].mean(0)) ** 2).sum()
    return 1 - press / total


def test_a_rotation_is_found_exactly():
    rng = np.random.default_rng(0)
    x, rotation = rng.standard_normal((200, 20)), ortho_group.rvs(20, random_state=1)
    found = bridge.fit(x, x @ rotation)
    np.testing.assert_allclose(found.w, rotation, atol=1e-12)
    np.testing.assert_allclose(found.singular_values, 1, atol=1e-12)
    np.testing.assert_allclose([found.r2_in_sample, found.r2_loo, found.condition], 1, atol=1e-12)
    assert found.orthogonality_error < 1e-12
    assert found.informative


def test_stretching_shows_in_the_spectrum():
    rng = np.random.default_rng(0)
    x, stretch = rng.standard_normal((50, 4)), np.diag([4.0, 2.0, 1.0, 0.5])
    found = bridge.fit(x, x @ stretch)
    np.testing.assert_allclose(found.singular_values, [4, 2, 1, 0.5])
    assert found.condition == pytest.approx(8)
    # squares less 1 are 15, 3, 0 and −0.75
    assert found.orthogonality_error == pytest.approx(np.sqrt(15**2 + 3**2 + 0.75**2) / 4)


def test_a_map_without_full_rank_has_no_condition():
    x = np.random.default_rng(0).standard_normal((30, 3))
    assert bridge.fit(x, x @ np.diag([1.0, 1.0, 0.0])).condition == np.inf
    assert bridge.fit(x[:2], x[:2]).condition == np.inf


@pytest.mark.parametrize("ridge", [0.0, 0.01, 3.0])
def test_agrees_with_scikit_learn(ridge):
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((2, 40, 6))
    y += x @ rng.standard_normal((6, 6))
    alpha = penalty(x, ridge)
    model = Ridge(alpha, fit_intercept=False) if ridge else LinearRegression(fit_intercept=False)
    found = bridge.fit(x, y, ridge)
    np.testing.assert_allclose(found.w, model.fit(x, y).coef_.T, atol=1e-10)
    left_out = cross_val_predict(model, x, y, cv=LeaveOneOut())
    apart = sum(((y[i] - np.delete(y, i, 0).mean(0)) ** 2).sum() for i in range(len(y)))
    assert found.r2_loo == pytest.approx(1 - ((y - left_out) ** 2).sum() / apart)
    sse, sst = ((y - model.predict(x)) ** 2).sum(), ((y - y.mean(0)) ** 2).sum()
    assert found.r2_in_sample == pytest.approx(1 - sse / sst)


@pytest.mark.parametrize("ridge", [0.0, 0.01])
@pytest.mark.parametrize("n, k", [(30, 5), (12, 12), (13, 12), (8, 20)])
def test_left_out_pairs_are_predicted_by_refits(n, k, ridge):
    rng = np.random.default_rng([n, k])
    x, y = rng.standard_normal((2, n, k))
    y += x
    expected = refitted(x, y, penalty(x, ridge))
    assert bridge.fit(x, y, ridge).r2_loo == pytest.approx(expected, rel=1e-6)


def test_a_pair_that_alone_holds_a_direction_is_refitted():
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((2, 20, 4))
    x[1:, 0] = 0
    found = bridge.fit(x, y)
    assert np.isfinite(found.r2_loo)
    assert found.r2_loo == pytest.approx(refitted(x, y), rel=1e-6)


def test_as_many_dimensions_as_pairs_fit_anything():
    x, y = np.random.default_rng(4).standard_normal((2, 20, 20))
    found = bridge.fit(x, y)
    assert found.r2_in_sample == pytest.approx(1)
    assert not found.informative
    assert found.r2_loo < 0
    assert bridge.fit(x[:, :19], y[:, :19]).informative


def test_the_solution_of_least_norm():
    x, y = np.random.default_rng(5).standard_normal((2, 6, 10))
    np.testing.assert_allclose(bridge.fit(x, y).w, np.linalg.lstsq(x, y, rcond=None)[0], atol=1e-12)


def test_what_does_not_vary_has_no_r2():
    x = np.random.default_rng(6).standard_normal((10, 3))
    found = bridge.fit(x, np.full((10, 3), 0.1))
    assert np.isnan(found.r2_loo)
    assert np.isnan(found.r2_in_sample)


@pytest.mark.parametrize(
    "x, y, ridge, message",
    [
        (np.ones((1, 3)), np.ones((1, 3)), 0, "one pair of prompts is not enough"),
        (np.ones((4, 3)), np.ones((5, 3)), 0, "are no pairs"),
        (np.ones((4, 3)), np.full((4, 3), np.nan), 0, "not finite"),
        (np.ones((4, 3)), np.ones((4, 3)), -1, "negative"),
    ],
)
def test_what_cannot_be_fitted_is_named(x, y, ridge, message):
    with pytest.raises(StreamgaugeError, match=message):
        bridge.fit(x, y, ridge)


def test_permuted_pairs_are_fits_of_permuted_rows():
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((2, 12, 5))
    orders = np.array([rng.permutation(12) for _ in range(4)])
    for ridge in (0.0, 0.1):
        expected = [bridge.fit(x, y[order], ridge).r2_loo for order in orders]
        np.testing.assert_array_equal(bridge.permuted_r2(x, y, orders, ridge), expected)
