"""What each null is, and that it is null."""

import numpy as np
import torch

from streamgauge.numerics import metrics
from streamgauge.passes import controls
from streamgauge.sae.topk import init

H = torch.randn(50, 16, generator=torch.Generator().manual_seed(0)) + 2


def test_zero_and_mean_ablation():
    h_hat, z = controls.zero_ablation()(H)
    assert z is None and h_hat.shape == H.shape and not h_hat.any()
    h_hat, z = controls.mean_ablation(H.double().mean(0).numpy())(H)
    assert z is None and h_hat.dtype == H.dtype
    assert abs(metrics.r_squared(H, h_hat)) < 1e-12


def test_each_token_set_is_ablated_to_its_own_mean():
    mean = {"all": np.zeros(16), "no_sink": np.ones(16)}
    found = controls.ablations(mean)
    assert list(found) == ["zero", "mean"]
    assert (found["mean"]["no_sink"](H)[0] == 1).all()


def test_the_untrained_sae_is_the_start_of_training_in_the_units_of_the_stream():
    scale = 0.03
    b_dec = H.mean(0)
    # training starts on scaled input with a scaled bias; the export folds the scale away
    start = init(16, 64, 4, seed=5, b_dec=scale * b_dec).for_unscaled_input(scale)
    null = controls.untrained(16, 64, 4, seed=5, b_dec=b_dec)
    torch.testing.assert_close(null(H), start(H))
    assert ((null(H)[1] != 0).sum(-1) <= 4).all()


def test_the_control_of_a_trained_sae_is_built_from_its_facts():
    trained = init(16, 64, 4, seed=9)
    facts = {"seed": 5, "b_dec_init": H.mean(0).tolist()}
    null = controls.untrained_like(trained, facts)
    expected = controls.untrained(16, 64, 4, seed=5, b_dec=H.mean(0))
    assert torch.equal(null(H)[0], expected(H)[0])
