"""MI critics against planted Gaussians, scipy and scikit-learn."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import logsumexp

from streamgauge.base.errors import StreamgaugeError
from streamgauge.numerics import infonce

RHO, SHARED = 0.9, 3
PLANTED = -SHARED / 2 * math.log(1 - RHO**2)  # 2.491 nats
QUICK = {"hidden": 32, "steps": 40, "batch_size": 32, "lr": 5e-3}
FULL = {"hidden": 64, "steps": 300, "batch_size": 64, "lr": 3e-3}


def planted(n, rho=RHO, seed=0):
    """Pairs that share three Gaussian dimensions of correlation rho."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, SHARED))
    return x, rho * x + math.sqrt(1 - rho**2) * rng.standard_normal((n, SHARED))


def best_critic(x, y):
    """log p(y|x)/p(y) of every pair, but for what does not depend on y."""
    c = 1 - RHO**2
    return RHO * x @ y.T / c - RHO**2 * (y**2).sum(1) / (2 * c)


@pytest.fixture(scope="module")
def profile():
    parts = [
        infonce.profile(*planted(4000), widths, critics=[critic], **FULL)
        for critic, widths in (("separable", [3, 4, 5]), ("hybrid", [2, 3, 4]))
    ]
    return pd.concat(parts)


# --- the bound -----------------------------------------------------------------------------------
def test_infonce_is_a_cross_entropy():
    scores = np.random.default_rng(0).normal(size=(7, 7))
    expected = np.mean(np.diag(scores) - logsumexp(scores, axis=1)) + math.log(7)
    assert infonce.infonce(torch.as_tensor(scores)).item() == pytest.approx(expected, abs=1e-12)


def test_infonce_of_equal_scores_is_zero_and_of_certainty_the_ceiling():
    assert infonce.infonce(torch.full((5, 5), 3.0)).item() == pytest.approx(0, abs=1e-6)
    assert infonce.infonce(1e3 * torch.eye(5)).item() == pytest.approx(math.log(5))


def test_the_best_critic_stays_below_the_information():
    values = [
        infonce.infonce(torch.as_tensor(best_critic(*planted(512, seed=s)))).item()
        for s in range(20)
    ]
    assert PLANTED == pytest.approx(2.491, abs=5e-4)
    assert PLANTED - 0.15 < np.mean(values) < PLANTED


# --- planted information --------------------------------------------------------------------------
def test_hybrid_saturates_at_three_and_separable_at_four(profile):
    found = profile.groupby("critic")[["k_star", "censored"]].first()
    assert found.k_star.to_dict() == {"hybrid": 3, "separable": 4}
    assert set(found.censored) == {""}


def test_value_is_that_of_the_best_critic(profile):
    # of 64 pairs at a time, which keeps the best critic itself below the information
    x, y = planted(4000)
    exact = [
        infonce.infonce(torch.as_tensor(best_critic(x[i : i + 64], y[i : i + 64]))).item()
        for i in range(3000, 3940, 64)
    ]
    saturated = profile.groupby("critic").saturated_nats.first()
    assert np.abs(saturated - np.mean(exact)).max() < 0.2
    assert (profile.mi_nats < PLANTED).all()


def test_value_nears_the_information_when_many_pairs_are_told_apart():
    found = infonce.profile(
        *planted(6000), [4], critics=["separable"], **FULL | {"batch_size": 512}
    )
    assert found.mi_nats.item() == pytest.approx(PLANTED, abs=0.2)


def test_shuffled_pairs_hold_nothing(profile):
    assert profile.shuffled_mi_nats.abs().max() < 0.03
    assert np.allclose(profile.ceiling_nats, math.log(64)) and not profile.pinned.any()


def test_independent_pairs_hold_nothing():
    table = infonce.profile(*planted(2000, rho=0.0), [1, 2], **QUICK)
    assert table.mi_nats.abs().max() < 0.03
    assert table.k_star.isna().all() or (table.saturated_nats < 0.03).all()


def test_a_copy_is_pinned_at_the_ceiling():
    x = np.random.default_rng(0).standard_normal((3000, 8))
    settings = {"hidden": 64, "steps": 900, "batch_size": 4, "lr": 5e-3}
    found = infonce.information(x[:2400], x[:2400], x[2400:], x[2400:], "separable", 8, **settings)
    assert found.pinned and found.mi_nats <= found.ceiling_nats == math.log(4)


def test_units_and_offsets_of_the_inputs_do_not_matter():
    x, y = planted(800)
    plain = infonce.profile(x, y, [2], critics=["separable"], **QUICK)
    moved = infonce.profile(1000 * x + 5, y * 1e-3 - 7, [2], critics=["separable"], **QUICK)
    assert np.allclose(plain.mi_nats, moved.mi_nats, atol=1e-3)


def test_a_column_that_never_varies_is_left_out():
    x, y = planted(800)
    widened = np.hstack([x, np.full((800, 1), 0.1)])
    found = infonce.profile(widened, y, [2], critics=["separable"], **QUICK)
    assert found.mi_nats.item() > 0.3


@pytest.mark.parametrize("critic", infonce.CRITICS)
def test_same_seed_same_value_and_another_seed_another(critic):
    x, y = planted(400)
    runs = [infonce.profile(x, y, [2], critics=[critic], seed=s, **QUICK) for s in (0, 0, 1)]
    pd.testing.assert_frame_equal(runs[0], runs[1], check_exact=True)
    assert runs[0].mi_nats.item() != runs[2].mi_nats.item()


def test_every_step_is_counted():
    done = []
    x, y = planted(400)
    infonce.profile(x, y, [2], tick=done.append, **(QUICK | {"steps": 300}))
    assert sum(done) == 2 * 2 * 300


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_gives_the_same_values():
    x, y = planted(2000)
    here, there = (infonce.profile(x, y, [3], device=d, **QUICK) for d in ("cpu", "cuda"))
    assert np.allclose(here.mi_nats, there.mi_nats, atol=0.02)


# --- saturation -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("widths", "values", "k_star", "censored"),
    [
        ([1, 2, 4], [0.5, 1.95, 2.0], 2, ""),
        ([1, 2, 4], [0.5, 1.0, 2.0], 4, ">k_max"),
        ([2, 4, 8], [1.99, 2.0, 1.9], 2, "<=k_min"),
        ([1, 2, 4], [2.0, 2.0, 2.0], 1, ""),  # fewer than one number there is not
        ([1, 2, 4], [0.0, 0.01, 0.0], math.nan, ""),
    ],
)
def test_saturation(widths, values, k_star, censored):
    found = infonce.saturation(widths, values, [0.02, 0.0, 0.0])
    assert found.saturated_nats == max(values)
    assert found.k_star == pytest.approx(k_star, nan_ok=True) and found.censored == censored


# --- the split ------------------------------------------------------------------------------------
def test_pairs_of_one_sequence_stay_together():
    sequence = np.repeat(np.arange(8), 5)
    test = infonce.held_out(sequence)
    assert set(sequence[test]) == {6, 7} and set(sequence[~test]) == set(range(6))


def test_one_sequence_is_refused():
    with pytest.raises(StreamgaugeError, match=r"critics\.sequences"):
        infonce.held_out(np.zeros(9))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"critic": "linear"}, "no critic 'linear'"),
        ({"width": 0}, "width 0"),
        ({"y_train": np.zeros((3, 2))}, "differ in length"),
        ({"x_test": np.full((20, 2), np.nan)}, "finite"),
        ({"x_train": np.zeros((3, 2)), "y_train": np.zeros((3, 2))}, "too few"),
    ],
)
def test_unusable_pairs_are_refused(change, message):
    sides = ("x_train", "y_train", "x_test", "y_test")
    good = {name: np.ones((20, 2)) for name in sides} | {"critic": "hybrid", "width": 2}
    with pytest.raises(StreamgaugeError, match=message):
        infonce.information(**(good | change))
