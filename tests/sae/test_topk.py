"""The codec and its initialisation."""

import pytest
import torch

from streamgauge.base.errors import StreamgaugeError
from streamgauge.sae import topk


def test_encode_keeps_the_k_largest_and_cuts_at_zero():
    sae = topk.TopKSAE(
        W_enc=torch.eye(3), b_enc=torch.zeros(3), W_dec=torch.eye(3), b_dec=torch.ones(3), k=2
    )
    x = torch.tensor([[4.0, 3.0, 2.0], [2.0, 0.0, -5.0]])
    # minus b_dec: (3, 2, 1) and (1, -1, -6); of the second row only one latent is positive
    assert sae.encode(x).tolist() == [[3, 2, 0], [1, 0, 0]]
    x_hat, z = sae(x)
    assert x_hat.tolist() == [[4, 3, 1], [2, 1, 1]]
    assert torch.equal(z, sae.encode(x))
    assert (sae.d_model, sae.d_sae) == (3, 3)


def test_init_is_seeded_tied_and_unit_norm():
    b_dec = torch.arange(5.0)
    state = torch.random.get_rng_state()
    sae = topk.init(5, 20, 3, seed=4, b_dec=b_dec)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(20))
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    assert torch.equal(sae.b_dec, b_dec) and not sae.b_enc.any()
    assert torch.equal(sae.W_dec, topk.init(5, 20, 3, seed=4).W_dec)
    assert not torch.equal(sae.W_dec, topk.init(5, 20, 3, seed=5).W_dec)
    assert topk.init(5, 20, 3, seed=4, b_dec=b_dec.tolist()).b_dec.dtype == torch.float32


def test_scale_folds_into_the_biases():
    g = torch.Generator().manual_seed(0)
    sae = topk.init(6, 24, 3, 0)
    scaled = topk.TopKSAE(
        sae.W_enc, torch.randn(24, generator=g), sae.W_dec, torch.randn(6, generator=g), 3
    )
    x, scale = torch.randn(50, 6, generator=g), 0.037
    plain = scaled.for_unscaled_input(scale)
    torch.testing.assert_close(plain(x)[0], scaled(x * scale)[0] / scale)
    torch.testing.assert_close(plain.encode(x), scaled.encode(x * scale) / scale)


@pytest.mark.parametrize("k", [0, 9])
def test_k_outside_the_width_is_refused(k):
    with pytest.raises(StreamgaugeError, match=f"k = {k}"):
        topk.init(4, 8, k, seed=0)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(StreamgaugeError, match=r"W_dec has shape \(4, 8\)"):
        topk.TopKSAE(torch.ones(4, 8), torch.ones(8), torch.ones(4, 8), torch.ones(4), k=2)
