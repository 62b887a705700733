"""RowMetric against dense linear algebra, and the states it must make impossible."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from streamgauge.base.errors import StreamgaugeError
from streamgauge.numerics import metrics
from streamgauge.numerics.row_metric import (
    RowMetric,
    check_blocks,
    check_factors,
    pack_probe_factors,
    unpack_probe_factors,
)

N, P, S, Q = 5, 6, 3, 2
FISHERS = (RowMetric.output_fisher, RowMetric.behavioral_fisher)


def rng(seed=0):
    return np.random.default_rng(seed)


def covariances(n=N, p=P):
    root = rng(7).normal(size=(n, p, 2 * p))
    return root @ root.swapaxes(1, 2)


def every_metric(n=N, p=P, s=S):
    packed = rng(1).normal(size=(n, p * s))
    return {
        "Euclidean": RowMetric.euclidean(n, p),
        "OutputFisher": RowMetric.output_fisher(packed, p),
        "BehavioralFisher": RowMetric.behavioral_fisher(packed, p),
        "WhitenedStructured": RowMetric.whitened_structured(covariances(n, p)),
    }


METRICS = every_metric()
WHITENS = {"BehavioralFisher", "WhitenedStructured"}


def dense(metric):
    if metric.factors is None:
        return np.broadcast_to(np.eye(metric.p), (metric.n, metric.p, metric.p))
    return metric.factors @ metric.factors.swapaxes(1, 2)


# --- packing ------------------------------------------------------------------------------------
def test_the_packing_of_the_definitions():
    packed = pack_probe_factors([[[1, 3], [2, 4]]])  # v0 = (1, 3), v1 = (2, 4)
    assert packed.tolist() == [[1, 2, 3, 4]]
    assert RowMetric.behavioral_fisher(packed, 2).quad_form([[1, 0]]).tolist() == [5]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 4), st.integers(0, 99))
def test_packing_is_row_major_and_inverts(n, p, s, seed):
    probes = rng(seed).normal(size=(n, s, p))
    packed = pack_probe_factors(probes)
    for row, i, k in np.ndindex(n, p, s):
        assert packed[row, i * s + k] == probes[row, k, i]
    factors = unpack_probe_factors(packed, p)
    assert np.array_equal(factors.swapaxes(1, 2), probes)
    assert np.array_equal(RowMetric.output_fisher(packed, p).factors, factors)


def test_factors_are_used_where_they_lie():
    packed = torch.randn(N, P * S, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert RowMetric.behavioral_fisher(packed, P).factors.data_ptr() == packed.data_ptr()


# --- against dense linear algebra ----------------------------------------------------------------
@pytest.mark.parametrize("name", METRICS)
def test_every_product_equals_the_dense_one(name):
    metric, W = METRICS[name], dense(METRICS[name])
    e, J = rng(2).normal(size=(N, P)), rng(3).normal(size=(N, P, Q))
    assert metric.provenance == name and (metric.n, metric.p) == (N, P)
    assert metric.s == {"Euclidean": 0, "WhitenedStructured": P}.get(name, S)
    quad = np.einsum("np,npq,nq->n", e, W, e)
    np.testing.assert_allclose(metric.quad_form(e), quad, rtol=1e-10)
    np.testing.assert_allclose(metric.apply(e), np.einsum("npq,nq->np", W, e), rtol=1e-9)
    np.testing.assert_allclose(metric.pullback(J), J.swapaxes(1, 2) @ W @ J, rtol=1e-9)
    np.testing.assert_allclose(metric.trace(), np.trace(W, axis1=1, axis2=2), rtol=1e-10)
    assert metric.whitens_likelihood == (name in WHITENS)
    whitened = metric.whiten_residual_row(e)
    if name in WHITENS:
        np.testing.assert_allclose((whitened**2).sum(1), quad, rtol=1e-10)
        np.testing.assert_allclose(metric.loss(e), quad.mean(), rtol=1e-10)
    else:
        assert np.array_equal(whitened, e)


def test_whitened_structured_is_the_mahalanobis_distance():
    covariance = covariances()
    metric = RowMetric.whitened_structured(covariance)
    np.testing.assert_allclose(dense(metric), np.linalg.inv(covariance), rtol=1e-8, atol=1e-10)
    # L⁻ᵀ: residuals with this covariance are white
    whitened = metric.factors.swapaxes(1, 2) @ covariance @ metric.factors
    np.testing.assert_allclose(whitened, np.broadcast_to(np.eye(P), whitened.shape), atol=1e-9)
    shared = RowMetric.whitened_structured(covariance[0], n=N)
    e = rng(4).normal(size=(N, P))
    expected = np.einsum("np,pq,nq->n", e, np.linalg.inv(covariance[0]), e)
    np.testing.assert_allclose(shared.quad_form(e), expected, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_short_floats_are_computed_with_in_float32(dtype):
    packed = torch.randn(N, P * S, generator=torch.Generator().manual_seed(1)).to(dtype)
    e = torch.randn(N, P, generator=torch.Generator().manual_seed(2))
    metric = RowMetric.behavioral_fisher(packed, P)
    exact = RowMetric.behavioral_fisher(packed.double(), P)
    assert metric.whiten_residual_row(e).dtype == torch.float32
    assert metric.quad_form(e).dtype == torch.float64
    torch.testing.assert_close(metric.quad_form(e), exact.quad_form(e), rtol=1e-5, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(np.float32, (4, 3), elements=st.floats(-1e9, 1e9, width=32)),
    hnp.arrays(np.float32, (4, 3), elements=st.floats(-1e9, 1e9, width=32)),
)
def test_euclidean_results_are_plain_mse_bit_for_bit(a, a_hat):
    metric, e = RowMetric.euclidean(*a.shape), a.astype(float) - a_hat.astype(float)
    assert np.array_equal(metric.quad_form(e), metrics.squared_error_per_token(a, a_hat))
    assert float(metric.loss(e)) / a.shape[1] == metrics.mse(a, a_hat)
    assert np.array_equal(metric.whiten_residual_row(e), e)
    assert np.array_equal(metric.apply(e), e)
    # a metric for the gauge alone leaves the likelihood Euclidean
    gauge = RowMetric.output_fisher(np.ones((4, 6)), 3)
    assert float(gauge.loss(e)) == float(metric.loss(e))


def test_identity_factors_cost_what_euclid_does():
    e = rng(5).normal(size=(N, P))
    packed = np.tile(np.eye(P).ravel(), (N, 1))
    metric = RowMetric.behavioral_fisher(packed, P)
    assert metric.loss(e) == RowMetric.euclidean(N, P).loss(e)


def test_rows_are_the_metric_of_those_rows():
    e = torch.as_tensor(rng(6).normal(size=(N, P)))
    for name, metric in METRICS.items():
        for index in (torch.tensor([3, 0]), slice(1, 4)):
            part = metric.rows(index)
            assert part.provenance == name and (part.n, part.p) == (len(e[index]), P)
            assert torch.equal(part.quad_form(e[index]), metric.quad_form(e)[index])


# --- the ridge ------------------------------------------------------------------------------------
@settings(max_examples=30, deadline=None)
@given(st.floats(1e-6, 1e3), st.integers(0, 99))
def test_the_ridge_is_in_the_solve_and_nowhere_else(ridge, seed):
    b = torch.as_tensor(rng(seed).normal(size=(N, P)))
    for metric in METRICS.values():
        before = metric.quad_form(b), metric.loss(b), metric.whiten_residual_row(b), metric.trace()
        x = metric.solve(b, ridge)
        W = dense(metric) + ridge * np.eye(P)
        expected = np.linalg.solve(W, b.numpy()[..., None])[..., 0]
        np.testing.assert_allclose(x, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
        after = metric.quad_form(b), metric.loss(b), metric.whiten_residual_row(b), metric.trace()
        for one, other in zip(before, after, strict=True):
            assert np.array_equal(one, other)


@pytest.mark.parametrize("ridge", [0, -1e-3, float("nan"), float("inf")])
def test_a_ridge_must_be_positive(ridge):
    with pytest.raises(StreamgaugeError, match="does not make a metric invertible"):
        METRICS["OutputFisher"].solve(np.ones((N, P)), ridge)


# --- likelihood and gauge cannot disagree ---------------------------------------------------------
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.sampled_from([n for n in METRICS if n in WHITENS]))
def test_the_likelihood_prices_a_step_as_the_gauge_does(seed, name):
    metric = METRICS[name]
    J, z = rng(seed).normal(size=(N, P, Q)), rng(seed + 1).normal(size=(N, Q))
    cost = np.einsum("nq,nqr,nr->n", z, metric.pullback(J), z)
    residual = np.einsum("npq,nq->np", J, z)
    np.testing.assert_allclose((metric.whiten_residual_row(residual) ** 2).sum(1), cost, rtol=1e-8)
    np.testing.assert_allclose(metric.quad_form(residual), cost, rtol=1e-8)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.floats(-3, 3))
def test_writing_into_the_factors_changes_every_consumer_alike(seed, value):
    metric = RowMetric.behavioral_fisher(rng(seed).normal(size=(N, P * S)), P)
    e = torch.as_tensor(rng(seed + 1).normal(size=(N, P)))
    metric.factors[seed % N, seed % P, seed % S] = value
    gauge = metric.pullback(e[..., None])[:, 0, 0]
    for cost in (
        metric.quad_form(e),
        (metric.whiten_residual_row(e) ** 2).sum(1),
        (metric.apply(e) * e).sum(1),
    ):
        torch.testing.assert_close(cost, gauge, rtol=1e-9, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(list(METRICS)),
    st.text(min_size=1, max_size=12)
    | st.sampled_from(
        [name for name in dir(RowMetric) if not name.startswith("__")] + list(RowMetric.__slots__)
    ),
)
def test_no_attribute_can_be_set_or_deleted(name, attribute):
    metric = METRICS[name]
    with pytest.raises(AttributeError, match="immutable"):
        setattr(metric, attribute, torch.zeros(N, P, S))
    with pytest.raises(AttributeError, match="immutable"):
        delattr(metric, attribute)


def test_there_is_one_factor_stack_and_no_way_around_the_constructors():
    # one slot holds the factors: there is no second place for those of another consumer
    holders = [
        slot
        for slot in RowMetric.__slots__
        if isinstance(getattr(METRICS["BehavioralFisher"], slot), torch.Tensor)
    ]
    assert holders == ["_factors"] and not hasattr(METRICS["Euclidean"], "__dict__")
    with pytest.raises(TypeError, match="is made by"):
        RowMetric()
    with pytest.raises(TypeError):
        RowMetric(np.ones((1, 2, 1)), "OutputFisher")
    with pytest.raises(TypeError, match="cannot be subclassed"):
        type("Divergent", (RowMetric,), {"whiten_residual_row": lambda self, r: r})
    for rebuild in (copy.deepcopy, lambda metric: pickle.loads(pickle.dumps(metric))):
        with pytest.raises(AttributeError, match="immutable"):
            rebuild(METRICS["OutputFisher"])
    # an object made without a constructor has no metric at all
    with pytest.raises(AttributeError):
        object.__new__(RowMetric).quad_form(np.ones((1, 2)))


def test_provenance_follows_from_the_constructor_and_whitening_from_the_provenance():
    packed = rng().normal(size=(N, P * S))
    one, other = (fisher(packed, P) for fisher in FISHERS)
    e = torch.as_tensor(rng(1).normal(size=(N, P)))
    assert torch.equal(one.quad_form(e), other.quad_form(e))  # the gauge is the same
    assert torch.equal(one.whiten_residual_row(e), e)
    assert other.whiten_residual_row(e).shape == (N, S)


# --- validation -----------------------------------------------------------------------------------
def test_blocks_within_tolerance_pass_and_others_name_their_row():
    good = dense(METRICS["OutputFisher"]).copy()  # rank 3 of 6: eigenvalues 0 up to rounding
    check_blocks(good)
    check_blocks(np.zeros((1, 2, 2)))
    check_blocks([[[1.0, 0.0], [0.0, -0.9e-10]]])
    check_blocks(good * 1e-250)
    with pytest.raises(StreamgaugeError, match="row 0 has a negative eigenvalue"):
        check_blocks([[[1.0, 0.0], [0.0, -1.1e-10]]])
    for change, message in (
        (lambda b: b.__setitem__((2, 1, 0), b[2, 1, 0] + 1e-3), "row 2 is not symmetric"),
        (lambda b: b.__setitem__((1, 3, 4), np.nan), "row 1 holds a value that is not finite"),
        (lambda b: b.__setitem__((4, 0, 0), np.inf), "row 4 holds a value that is not finite"),
        (lambda b: b.__setitem__(3, b[3] - 0.1 * np.eye(P)), "row 3 has a negative eigenvalue"),
    ):
        bad = good.copy()
        change(bad)
        with pytest.raises(StreamgaugeError, match=message):
            check_blocks(bad)
    with pytest.raises(StreamgaugeError, match="not \\(n, p, p\\)"):
        check_blocks(np.ones((2, 3)))


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.float64, (3, 4, 2), elements=st.floats(-1e140, 1e140)))
def test_any_finite_factors_are_a_metric(factors):
    check_factors(torch.as_tensor(factors))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 299), st.integers(0, P - 1), st.sampled_from([np.nan, np.inf, -np.inf]))
def test_a_value_that_is_not_finite_names_its_row(row, i, value):
    packed = np.ones((300, P * S), np.float32)
    packed[row, i * S] = value
    for fisher in FISHERS:
        with pytest.raises(StreamgaugeError, match=f"row {row} holds a value that is not finite"):
            fisher(packed, P)


def test_no_probes_wrong_shapes_and_singular_covariances_are_errors():
    for fisher in FISHERS:
        with pytest.raises(StreamgaugeError, match="row 0 have s = 0 probes"):
            fisher(np.ones((N, 0)), P)
        with pytest.raises(StreamgaugeError, match="do not hold rows of p = 6"):
            fisher(np.ones((N, P * S + 1)), P)
    with pytest.raises(StreamgaugeError, match="row 1 holds"):
        RowMetric.behavioral_fisher(np.array([[1e100, 0], [1e200, 0]]), 2)
    for metric in METRICS.values():
        with pytest.raises(StreamgaugeError, match="does not fit 5 rows of 6"):
            metric.quad_form(np.ones((N, P + 1)))
        with pytest.raises(StreamgaugeError, match="does not fit"):
            metric.pullback(np.ones((N, P)))
    singular = covariances()
    singular[3, 0] = singular[3, :, 0] = 0
    with pytest.raises(StreamgaugeError, match="row 3 is singular"):
        RowMetric.whitened_structured(singular)
    with pytest.raises(StreamgaugeError, match="number of rows"):
        RowMetric.whitened_structured(np.eye(3))
    with pytest.raises(StreamgaugeError, match="not \\(n, s, p\\)"):
        pack_probe_factors(np.ones((2, 3)))
    with pytest.raises(StreamgaugeError, match="no metric for"):
        RowMetric.euclidean(3, 0)


def test_a_row_of_zeros_is_legal_and_costs_nothing():
    packed = rng().normal(size=(N, P * S))
    packed[2] = 0
    e = rng(1).normal(size=(N, P))
    for fisher in FISHERS:
        metric = fisher(packed, P)
        assert metric.quad_form(e)[2] == 0 and metric.trace()[2] == 0
        assert (metric.quad_form(e)[:2] > 0).all()
        np.testing.assert_allclose(metric.solve(e, 0.5)[2], e[2] / 0.5)


def test_the_null_space_is_free():
    # a direction no probe sees costs nothing: nothing downstream reads it
    packed = pack_probe_factors(rng().normal(size=(N, S, P)) * (np.arange(P) > 0))
    e = np.zeros((N, P))
    e[:, 0] = 1e6
    assert RowMetric.behavioral_fisher(packed, P).loss(e) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_agrees_with_the_cpu():
    packed = torch.as_tensor(rng().normal(size=(N, P * S)), dtype=torch.float32)
    e = torch.as_tensor(rng(1).normal(size=(N, P)), dtype=torch.float32)
    here, there = (RowMetric.behavioral_fisher(x, P) for x in (packed, packed.cuda()))
    for name in ("quad_form", "apply", "whiten_residual_row", "loss"):
        found = getattr(there, name)(e.cuda())
        assert found.is_cuda
        torch.testing.assert_close(found.cpu(), getattr(here, name)(e), rtol=1e-5, atol=1e-6)
