"""Reduced logits against scikit-learn."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.decomposition import PCA

from streamgauge.base.errors import StreamgaugeError
from streamgauge.numerics.logit_components import logit_basis, reduced_logits


def test_reduced_logits_are_principal_components_of_centred_log_probabilities():
    logits = np.random.default_rng(0).normal(size=(60, 90)) * np.linspace(0.2, 3, 90)
    log_p = np.log(softmax(logits, axis=1))
    oracle = PCA(5, svd_solver="full").fit(log_p[:40] - log_p[:40].mean(1, keepdims=True))
    basis = logit_basis(logits[:40], 5)
    found = reduced_logits(logits[40:], basis)
    expected = oracle.transform(log_p[40:] - log_p[40:].mean(1, keepdims=True))
    assert np.allclose(np.abs(found), np.abs(expected), atol=1e-9)
    assert basis.explained == pytest.approx(oracle.explained_variance_ratio_.sum())
    # a constant added to all logits of a token changes no probability
    assert np.allclose(reduced_logits(logits[40:] + 3.0, basis), found)


def test_components_that_do_not_exist_are_refused():
    logits = np.random.default_rng(0).normal(size=(30, 4)) @ np.ones((4, 50)).cumsum(0)
    with pytest.raises(StreamgaugeError, match="of rank"):
        logit_basis(logits, 20)
