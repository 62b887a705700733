"""Known answers of the definitions, and oracles written by others."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import r2_score

from streamgauge import metrics
from streamgauge.errors import StreamgaugeError

A = np.array([[2.0, 0.0], [0.0, 4.0]])
A_HAT = np.array([[2.0, 1.0], [0.0, 3.0]])


@pytest.mark.parametrize("make", [np.asarray, torch.tensor], ids=["numpy", "torch"])
def test_the_worked_example(make):
    a, a_hat = make(A), make(A_HAT)
    assert float(metrics.squared_error_per_token(a, a_hat).sum()) == 2
    assert float(metrics.squared_error_per_token(a, a.mean(0)).sum()) == 10
    assert metrics.r_squared(a, a_hat) == pytest.approx(0.8, abs=1e-15)
    assert metrics.nmse(a, a_hat) == pytest.approx(0.2, abs=1e-15)
    assert metrics.mse(a, a_hat) == 0.5
    assert metrics.cosine(a, a_hat) == pytest.approx((2 / math.sqrt(5) + 1) / 2)
    assert metrics.relative_error(a, a_hat) == pytest.approx((1 / 2 + 1 / 4) / 2)


def test_predicting_the_mean_scores_zero_however_large_the_mean():
    a = np.random.default_rng(0).normal(size=(500, 8)) + 1e4
    assert abs(metrics.r_squared(a, np.broadcast_to(a.mean(0), a.shape))) < 1e-12


def test_a_constant_bias_is_not_forgiven():
    a = np.random.default_rng(0).normal(size=(500, 8))
    assert metrics.r_squared(a, a + 3) < -7


def test_r_squared_is_the_variance_weighted_r2_of_scikit_learn():
    rng = np.random.default_rng(1)
    a = rng.normal(size=(300, 6)) * np.arange(1, 7) + rng.normal(size=6) * 5
    a_hat = a + rng.normal(size=a.shape)
    expected = r2_score(a, a_hat, multioutput="variance_weighted")
    assert metrics.r_squared(a, a_hat) == pytest.approx(expected, abs=1e-13)
    assert abs(expected - r2_score(a, a_hat)) > 0.05  # the coordinate average is another number


def test_low_precision_input_is_summed_in_float64():
    a = torch.full((1 << 16, 4), 100.0, dtype=torch.float16)
    assert metrics.mse(a, torch.zeros_like(a)) == 1e4  # overflows float16, loses bits in float32


def test_zero_vectors_have_cosine_zero_and_finite_relative_error():
    a, zero = np.ones((3, 4)), np.zeros((3, 4))
    assert metrics.cosine(a, zero) == 0
    assert metrics.relative_error(a, zero) == pytest.approx(1)
    assert metrics.relative_error(zero, zero) == 0


def test_shapes_that_do_not_match_are_an_error():
    with pytest.raises(StreamgaugeError, match="do not match"):
        metrics.r_squared(np.ones((4, 3)), np.ones((4, 1)))


def test_ce_rec():
    assert metrics.ce_rec([1, 4], [3, 4]) == 0.0
    assert metrics.ce_rec([1, 4], [3, 4], how="ratio_of_totals") == pytest.approx(0.6, abs=1e-15)
    totals = metrics.ce_rec([1, 4], [3, 4], how="ratio_of_totals", weights=[10, 30])
    assert totals == pytest.approx(2 - 150 / 130)
    with pytest.raises(StreamgaugeError, match="median"):
        metrics.ce_rec([1], [1], how="median")


def test_ce_loss_score():
    assert metrics.ce_loss_score(3.0, 3.5, 11.0) == pytest.approx(7.5 / 8)
    assert metrics.ce_loss_score([2, 4], [2, 4], [9, 9]) == 1
    assert metrics.ce_loss_score([2, 4], [9, 9], [9, 9]) == 0
    weighted = metrics.ce_loss_score([2, 4], [3, 6], [9, 9], weights=[1, 3])
    assert weighted == pytest.approx((9 - 5.25) / (9 - 3.5))


def test_rate():
    assert metrics.rate_bits_per_token(16384, 8) == pytest.approx(160.70, abs=0.005)
    assert metrics.rate_bits_per_token(4, 2, bits_per_value=0) == pytest.approx(math.log2(6))
    log_comb = math.lgamma(131073) - math.lgamma(257) - math.lgamma(131072 - 256 + 1)
    expected = log_comb / math.log(2) + 8 * 256
    assert metrics.rate_bits_per_token(131072, 256) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(StreamgaugeError):
        metrics.rate_bits_per_token(4, 5)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_entropy_rate_is_the_sum_of_scipys_binary_entropies(p):
    expected = sum(scipy.stats.entropy([x, 1 - x], base=2) for x in p) + 8 * sum(p)
    assert metrics.entropy_rate_bits(p) == pytest.approx(expected, abs=1e-9)


def test_entropy_rate_of_uniform_supports_exceeds_the_primary_rate():
    p = np.full(1000, 8 / 1000)
    # k of m chosen uniformly: its entropy is log2 C(m, k), below the sum of its marginals
    assert metrics.entropy_rate_bits(p) > metrics.rate_bits_per_token(1000, 8)
    assert metrics.entropy_rate_bits(np.stack([p, p])).shape == (2,)


def test_kl_and_cross_entropy_against_scipy():
    rng = np.random.default_rng(2)
    logits, patched = rng.normal(size=(2, 7, 50)) * 3
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (logits, patched))
    expected = scipy.stats.entropy(p, q, axis=-1)
    assert metrics.kl_from_logits(logits, patched) == pytest.approx(expected.mean(), rel=1e-12)
    single = metrics.kl_from_logits(logits.astype("float32"), patched.astype("float32"))
    assert single == pytest.approx(expected.mean(), rel=1e-5)
    assert metrics.kl_from_logits(logits, logits) == 0
    labels = torch.tensor(rng.integers(50, size=7))
    nats = metrics.cross_entropy_per_position(metrics.log_probabilities(patched), labels)
    np.testing.assert_allclose(nats, -np.log(q[np.arange(7), labels]), rtol=1e-12)


def test_kl_of_impossible_tokens_is_not_nan():
    p, q = torch.tensor([[0.0, 0.0, -math.inf]]), torch.tensor([[0.0, 1.0, -math.inf]])
    expected = scipy.stats.entropy([0.5, 0.5], (np.exp([0, 1]) / np.exp([0, 1]).sum()))
    assert metrics.kl_from_logits(p, q) == pytest.approx(expected, rel=1e-5)
