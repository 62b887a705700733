"""Known answers of the definitions, and oracles written by others."""

import ast
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import r2_score

from streamgauge.base.errors import StreamgaugeError
from streamgauge.numerics import metrics

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


def test_totals_give_what_whole_arrays_give():
    rng = np.random.default_rng(4)
    a, a_hat = rng.normal(size=(2, 40, 6))
    sse = metrics.squared_error_per_token(a, a_hat).sum()
    sst = metrics.squared_error_per_token(a, a.mean(0)).sum()
    assert metrics.r_squared_from_totals(sse, sst) == metrics.r_squared(a, a_hat)
    assert metrics.nmse_from_totals(sse, sst) == metrics.nmse(a, a_hat)
    assert metrics.mse_from_totals(sse, 40, 6) == metrics.mse(a, a_hat)


def test_where_nothing_varies_there_is_no_r_squared():
    a = np.ones((3, 2))
    assert np.isnan(metrics.r_squared(a, a)) and np.isnan(metrics.nmse(a, a + 1))
    found = metrics.r_squared_from_totals([0.0, 1.0, 1.0], [0.0, 0.0, 2.0])
    np.testing.assert_array_equal(found, [np.nan, np.nan, 0.5])
    assert np.isnan(metrics.mse_from_totals(0, 0, 6))


def test_nobody_else_forms_a_ratio_of_totals():
    """1 − x/y and 2 − x/y stand here and nowhere above: R², NMSE, CE recovered."""
    library = Path(metrics.__file__).parents[1]
    for path in library.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if path.parent.name == "numerics" or not isinstance(node, ast.BinOp):
                continue
            of_one = isinstance(node.left, ast.Constant) and node.left.value in (1, 2)
            ratio = isinstance(node.right, ast.BinOp) and isinstance(node.right.op, ast.Div)
            assert not (of_one and ratio and isinstance(node.op, ast.Sub)), (path, node.lineno)


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
    labels = rng.integers(50, size=7)
    nats = metrics.cross_entropy_per_position(metrics.log_probabilities(patched), labels)
    np.testing.assert_allclose(nats, -np.log(q[np.arange(7), labels]), rtol=1e-12)


def test_kl_of_impossible_tokens_is_not_nan():
    p, q = torch.tensor([[0.0, 0.0, -math.inf]]), torch.tensor([[0.0, 1.0, -math.inf]])
    expected = scipy.stats.entropy([0.5, 0.5], (np.exp([0, 1]) / np.exp([0, 1]).sum()))
    assert metrics.kl_from_logits(p, q) == pytest.approx(expected, rel=1e-5)


def test_divergences_of_two_entries_in_closed_form():
    a, b = 0.7, 0.2
    kl, js = metrics.divergence([a, 1 - a], [b, 1 - b])
    m = (a + b) / 2
    assert float(kl) == pytest.approx(a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b)))

    def h(x):
        return -x * math.log(x) - (1 - x) * math.log(1 - x)

    assert float(js) == pytest.approx(h(m) - (h(a) + h(b)) / 2)


def test_divergences_of_disjoint_supports_and_of_equal_rows():
    kl, js = metrics.divergence([[0.5, 0.5, 0, 0], [0.3, 0.7, 0, 0]], [[0, 0, 1, 0]] * 2)
    assert np.isinf(kl).all()
    np.testing.assert_allclose(js, math.log(2), rtol=1e-15)
    p = torch.rand(7, 9)
    kl, js = metrics.divergence(p, p)
    assert (kl == 0).all() and (js == 0).all()


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 9), st.floats(0.05, 30))
def test_divergences_are_those_of_scipy(seed, n, scale):
    rng = np.random.default_rng(seed)
    p, q = (np.exp(scale * rng.standard_normal((3, n))) for _ in range(2))
    kl, js = metrics.divergence(p, q)
    assert (kl >= 0).all() and (js >= 0).all() and (js <= math.log(2) + 1e-12).all()
    np.testing.assert_allclose(kl, scipy.stats.entropy(p, q, axis=-1), rtol=1e-9, atol=1e-12)
    distance = scipy.spatial.distance.jensenshannon(p, q, axis=-1)
    np.testing.assert_allclose(js, distance**2, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(js, metrics.divergence(q, p)[1], rtol=1e-12, atol=1e-15)
