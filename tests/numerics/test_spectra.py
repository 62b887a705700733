"""Known spectra, and the one-pass sums against two-pass computations."""

import numpy as np
import pytest
import torch

from streamgauge.base.errors import StreamgaugeError
from streamgauge.numerics.spectra import (
    SinkAwareCovariance,
    StreamingCovariance,
    effective_rank,
    participation_ratio,
)


def test_participation_ratio_of_known_spectra():
    assert participation_ratio([4, 1, 1, 1]) == pytest.approx(49 / 19, abs=1e-15)
    assert participation_ratio([1, 1, 4, 1], deflate=1) == pytest.approx(3)
    assert participation_ratio(np.ones(10) * 1e200) == pytest.approx(10)
    assert np.isnan(participation_ratio([0, 0]))
    for deflate in (-1, 2):
        with pytest.raises(StreamgaugeError):
            participation_ratio([1, 1], deflate=deflate)


def test_effective_rank_of_known_spectra():
    assert effective_rank([3, 3, 3, 0]) == pytest.approx(3)
    assert effective_rank([5]) == 1
    p = np.array([0.5, 0.25, 0.25])
    assert effective_rank(7 * p) == pytest.approx(2**1.5)
    assert np.isnan(effective_rank([0, 0]))
    with pytest.raises(StreamgaugeError):
        effective_rank([1, -1])


def test_finite_samples_cap_the_participation_ratio():
    ratios = []
    for seed in range(20):
        covariance = StreamingCovariance(64)
        covariance.update(np.random.default_rng(seed).normal(size=(256, 64)))
        ratios.append(participation_ratio(covariance.eigenvalues()))
    assert np.mean(ratios) == pytest.approx(64 / (1 + 64 / 256), abs=0.3)  # 51.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_streaming_equals_numpy_on_the_whole(dtype):
    x = torch.randn(1000, 12, generator=torch.Generator().manual_seed(0)) @ torch.diag(
        torch.logspace(0, 2, 12)
    )
    x = (x + 300).to(dtype)
    whole = x.double().numpy()
    left, right = StreamingCovariance(12), StreamingCovariance(12)
    for part in x[:600].split([1, 250, 349]):
        left.update(part)
    right.update(x[600:].reshape(4, 100, 12))
    right.update(x[:0])
    left.merge(right)
    left.merge(StreamingCovariance(12))
    assert left.n == 1000
    np.testing.assert_allclose(left.mean, whole.mean(0), rtol=1e-13)
    expected = np.cov(whole.T, bias=True)
    np.testing.assert_allclose(left.covariance(), expected, rtol=1e-10, atol=1e-9)
    np.testing.assert_allclose(left.covariance(centred=False), whole.T @ whole / 1000, rtol=1e-12)
    np.testing.assert_allclose(left.eigenvalues(), np.linalg.eigvalsh(expected)[::-1], rtol=1e-8)


def test_a_large_mean_costs_no_digits():
    x = np.random.default_rng(0).normal(size=(4000, 5))
    plain, shifted = StreamingCovariance(5), StreamingCovariance(5)
    for part in np.split(x, 40):
        plain.update(part)
        shifted.update(part + 1e6)
    # a sum of raw squares would keep four digits here
    np.testing.assert_allclose(shifted.covariance(), plain.covariance(), atol=1e-9)


def test_an_empty_stream_is_an_error():
    with pytest.raises(StreamgaugeError):
        StreamingCovariance(3).eigenvalues()
    with pytest.raises(StreamgaugeError):
        SinkAwareCovariance(3).finish()


def residuals(seed=0, n=40, t=25, d=6):
    """Body tokens of norm about 2.5, sinks at position 0, and high norms on both sides of 10×."""
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(n, t, d, generator=generator)
    h[:, 0] *= 500
    scale = torch.ones(n, t)
    high = torch.rand(n, t, generator=generator) < 0.06
    scale[high] = torch.empty(int(high.sum())).uniform_(4, 60, generator=generator)
    return h * scale[..., None]


def two_pass(h):
    norms = h.double().norm(dim=-1).numpy()
    keep = norms <= 10 * np.median(norms)
    keep[:, 0] = False
    sets = {"all": h.flatten(0, 1).double().numpy(), "no_sink": h[torch.tensor(keep)].numpy()}
    return np.median(norms), {name: x.astype(np.float64) for name, x in sets.items()}


@pytest.mark.parametrize("batch,buffer", [(1, 4096), (8, 4096), (8, 12), (40, 12)])
def test_one_pass_separates_sinks_exactly(batch, buffer):
    h = residuals()
    one = SinkAwareCovariance(6, buffer=buffer)
    for part in h.split(batch):
        one.update(part)
    result = one.finish()
    median, expected = two_pass(h)
    assert one.median_norm == pytest.approx(median, rel=1e-14)
    assert one.sink_threshold == 10 * one.median_norm
    assert one.n_sink == 1000 - len(expected["no_sink"])
    assert 40 < one.n_sink < 110  # some high norms count as sinks, some do not
    for name, x in expected.items():
        assert result[name].n == len(x)
        np.testing.assert_allclose(result[name].mean, x.mean(0), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(
            result[name].covariance(), np.cov(x.T, bias=True), rtol=1e-9, atol=1e-9
        )


def test_a_first_batch_that_misleads_is_corrected_within_the_buffer():
    h = residuals()
    h[:2] *= 1.7  # the first estimate of the threshold is 1.7 times too high
    one = SinkAwareCovariance(6)
    for part in h.split(2):
        one.update(part)
    assert one.finish()["no_sink"].n == len(two_pass(h)[1]["no_sink"])


def test_a_drift_that_cannot_be_undone_is_an_error_not_a_wrong_number():
    h = residuals()
    h[:2] *= 1000
    one = SinkAwareCovariance(6, label="blocks.3.hook_resid_post")
    for part in h.split(2):
        one.update(part)
    with pytest.raises(StreamgaugeError, match=r"blocks\.3.*Shuffle"):
        one.finish()


def test_a_non_finite_activation_is_an_error():
    h = residuals()
    h[3, 4, 0] = torch.inf
    with pytest.raises(StreamgaugeError, match="not finite"):
        SinkAwareCovariance(6).update(h)
