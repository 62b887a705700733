"""Costs of errors, first and second order, in closed form."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamgauge.numerics import sensitivity


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def factor(logits, **options):
    """The matrix whose columns are the factor applied to unit vectors."""
    eye = torch.eye(len(logits), dtype=torch.float64)
    return sensitivity.fisher_factor_apply(logits.expand(len(eye), -1), eye, **options).T


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 7), st.integers(0, 99))
def test_the_factor_is_a_square_root_of_the_fisher(v, seed):
    logits = torch.as_tensor(3 * normal(v, seed=seed)).double()
    p = logits.softmax(0)
    fisher = p.diag() - torch.outer(p, p)
    one = torch.ones(v, dtype=torch.float64)
    root = factor(logits)
    torch.testing.assert_close(root @ root.T, fisher)
    torch.testing.assert_close(root, p.sqrt().diag() - torch.outer(p, p.sqrt()))
    # adding one number to all logits is free for F, and costs the diagonal variant 1
    assert float((root.T @ one).square().sum()) == pytest.approx(0, abs=1e-12)
    diagonal = factor(logits, diagonal=True)
    torch.testing.assert_close(diagonal @ diagonal.T, p.diag())
    assert float((diagonal.T @ one).square().sum()) == pytest.approx(1)
    # through any Jacobian the variant exceeds G by JᵀppᵀJ
    J = torch.as_tensor(normal(v, 3, seed=seed + 1)).double()
    excess = J.T @ (diagonal @ diagonal.T - root @ root.T) @ J
    torch.testing.assert_close(excess, torch.outer(J.T @ p, J.T @ p))


def test_swd_by_hand_and_its_scale():
    g, delta = np.array([[1.0, 0], [0, 2]]), np.array([[3.0, 5], [1, -1]])
    assert sensitivity.swd(g, delta) == (3**2 + 2**2) / 2
    # gradients of a mean loss over N = 2 positions would give SWD / N²
    assert sensitivity.swd(g / 2, delta) == sensitivity.swd(g, delta) / 4
    assert sensitivity.swd(torch.tensor(g)[None], torch.tensor(delta)[None]) == 6.5


def probes_of(root, n, s, seed=0):
    """s probes with second moment ``root rootᵀ`` of n tokens, (n, d, s)."""
    return np.einsum("dr,nrs->nds", root, normal(n, root.shape[1], s, seed=seed)) / np.sqrt(s)


@pytest.mark.parametrize("d", [2, 8, 50])
def test_the_deviation_of_rank_one_is_exact(d):
    probes = probes_of(normal(d, 1), 20, 4, seed=1)
    assert sensitivity.fisher_euclidean_deviation(probes) == pytest.approx(1 - 1 / d, rel=1e-5)


@pytest.mark.parametrize("s", [2, 8])
def test_the_deviation_of_isotropic_and_partial_rank(s):
    d, n = 8, 20_000
    for rank in (d, d // 2):
        root = 3.7 * np.eye(d)[:, :rank]
        found = sensitivity.fisher_euclidean_deviation(probes_of(root, n, s))
        assert found == pytest.approx(1 - rank / d, abs=0.03)


def test_the_traces_are_unbiased_and_need_two_probes():
    root = normal(6, 6, seed=3)
    G = root.astype(float) @ root.T
    squared_trace, trace_of_square = (
        x.mean() for x in sensitivity.squared_trace_and_trace_of_square(probes_of(root, 40_000, 3))
    )
    assert float(squared_trace) == pytest.approx(np.trace(G) ** 2, rel=0.03)
    assert float(trace_of_square) == pytest.approx(np.trace(G @ G), rel=0.03)
    # products of a probe with itself would be far too large
    assert np.isnan(sensitivity.fisher_euclidean_deviation(normal(5, 4, 1)))
