"""The attention subspace Z and what lies in it, against closed forms and dense algebra."""

import numpy as np
import pytest
from scipy import linalg, stats

from streamgauge.base.errors import StreamgaugeError
from streamgauge.numerics import subspace


def orthonormal(d, k, seed):
    return subspace.random_subspace(d, k, seed)


def dense(w_q, w_k):
    """A_h of every head, formed in full."""
    shared = len(w_q) // len(w_k)
    return [w_q[h].T @ w_k[h // shared] for h in range(len(w_q))]


def projector(v):
    return v.T @ v


@pytest.fixture
def weights():
    rng = np.random.default_rng(0)
    return rng.standard_normal((6, 5, 24)), rng.standard_normal((3, 5, 24))


def planted(values, d, seed):
    """One head whose kernel has the given singular values; its right singular vectors."""
    n = len(values)
    left, right = orthonormal(d, n, [seed, 0]), orthonormal(d, n, [seed, 1])
    mixed = np.random.default_rng([seed, 2]).standard_normal((n, n))
    # (M⁻ᵀ diag(s) left)ᵀ (M right) = leftᵀ diag(s) right, whatever M is
    return np.linalg.solve(mixed.T, np.diag(values) @ left)[None], (mixed @ right)[None], right


# --- Z ------------------------------------------------------------------------------------------


def test_one_head_gives_its_planted_right_singular_vectors_in_order():
    w_q, w_k, right = planted([9.0, 4.0, 2.0, 1.0], 20, 3)
    np.testing.assert_allclose(
        subspace.kernel_singular_values(w_q, w_k), [[9, 4, 2, 1]], rtol=1e-12
    )
    for k_sub in (1, 2, 3):
        found = subspace.attention_subspace(w_q, w_k, k_sub)
        np.testing.assert_allclose(projector(found.basis), projector(right[:k_sub]), atol=1e-12)
        np.testing.assert_allclose(found.singular_values, 1)


def test_it_is_the_key_side():
    w_q, w_k, right = planted([3.0, 1.0], 12, 5)
    swapped = subspace.attention_subspace(w_k, w_q, 2).basis
    assert subspace.similarity(subspace.attention_subspace(w_q, w_k, 2).basis, right, 2) > 0.999
    assert subspace.similarity(swapped, right, 2) < 0.9


def test_each_query_head_reads_the_key_head_of_its_group():
    d, one, other = 16, np.zeros((4, 16)), np.zeros((4, 16))
    one[:, :4], other[:, 4:8] = np.eye(4), np.eye(4)
    w_k = np.stack([one, other])
    w_q = np.random.default_rng(1).standard_normal((4, 4, d))
    w_q[2:] = 0  # whoever reads the second key head
    found = subspace.attention_subspace(w_q, w_k, 4)
    np.testing.assert_allclose(np.diag(projector(found.basis)), [1] * 4 + [0] * 12, atol=1e-12)
    w_q[:2], w_q[2:] = 0, np.random.default_rng(2).standard_normal((2, 4, d))
    found = subspace.attention_subspace(w_q, w_k, 4)
    np.testing.assert_allclose(np.diag(projector(found.basis))[4:8], 1)


def test_factors_agree_with_dense_svd(weights):
    k_sub = 4
    rows, values = [], []
    for a in dense(*weights):
        _, s, vt = linalg.svd(a)
        rows.append(vt[:k_sub])
        values.append(s[:5])
    _, stacked, vt = linalg.svd(np.concatenate(rows))
    found = subspace.attention_subspace(*weights, k_sub)
    np.testing.assert_allclose(projector(found.basis), projector(vt[:k_sub]), atol=1e-10)
    np.testing.assert_allclose(found.singular_values, stacked[:k_sub], rtol=1e-12)
    np.testing.assert_allclose(subspace.kernel_singular_values(*weights), values, rtol=1e-10)


def test_singular_values_count_the_heads_that_share_a_direction(weights):
    w_q, w_k = weights
    same = subspace.attention_subspace(w_q[:1].repeat(4, 0), w_k[:1], 3)
    np.testing.assert_allclose(same.singular_values**2, 4)
    assert (subspace.attention_subspace(w_q, w_k, 3).singular_values ** 2 <= 6).all()


def test_heads_as_wide_as_the_model_and_wider(weights):
    rng = np.random.default_rng(4)
    w_q, w_k = rng.standard_normal((2, 9, 6)), rng.standard_normal((1, 9, 6))
    assert subspace.kernel_singular_values(w_q, w_k).shape == (2, 6)
    np.testing.assert_allclose(
        projector(subspace.attention_subspace(w_q, w_k, 6).basis), np.eye(6), atol=1e-12
    )


def test_k_sub_beyond_a_heads_width_takes_all_that_heads_have(weights):
    found = subspace.attention_subspace(*weights, 12)
    np.testing.assert_allclose(found.basis @ found.basis.T, np.eye(12), atol=1e-12)


@pytest.mark.parametrize("k_sub", [0, 16, 25])
def test_more_dimensions_than_the_keys_read_are_refused(weights, k_sub):
    # three key heads of 5 read 15 of 24
    with pytest.raises(StreamgaugeError, match=rf"no subspace of {k_sub} dimensions"):
        subspace.attention_subspace(*weights, k_sub)


def test_directions_a_kernel_does_not_read_never_fill_up_z():
    """Singular vectors of singular value 0 are arbitrary: no head may contribute them."""
    w_q, w_k, right = planted([2.0, 1.0, 0.0, 0.0], 20, 7)
    np.testing.assert_allclose(
        projector(subspace.attention_subspace(w_q, w_k, 2).basis),
        projector(right[:2]),
        atol=1e-10,
    )
    with pytest.raises(StreamgaugeError, match="keys read 2 of 20 directions"):
        subspace.attention_subspace(w_q, w_k, 3)


def test_rounding_of_float32_weights_is_not_read_for_directions():
    z, rng = orthonormal(48, 6, 11), np.random.default_rng(0)
    w_q = rng.standard_normal((4, 8, 48)).astype(np.float32)
    w_k = (rng.standard_normal((2, 8, 6)) @ z).astype(np.float32)
    found = subspace.attention_subspace(w_q, w_k, 6).basis
    np.testing.assert_allclose(projector(found), projector(z), atol=1e-5)
    with pytest.raises(StreamgaugeError, match="keys read 6 of 48 directions"):
        subspace.attention_subspace(w_q, w_k, 7)


def test_bad_weights_are_refused(weights):
    w_q, w_k = weights
    with pytest.raises(StreamgaugeError, match="do not fit together"):
        subspace.attention_subspace(w_q, w_k[:, :, :20], 2)
    with pytest.raises(StreamgaugeError, match="do not fit together"):
        subspace.attention_subspace(w_q[:4], w_k, 2)
    w_q[0, 0, 0] = np.nan
    with pytest.raises(StreamgaugeError, match="not finite"):
        subspace.attention_subspace(w_q, w_k, 2)


# --- subspaces ----------------------------------------------------------------------------------


def test_random_subspaces_are_orthonormal_repeatable_and_uniform():
    v = subspace.random_subspace(30, 7, [0, 3])
    np.testing.assert_allclose(v @ v.T, np.eye(7), atol=1e-12)
    np.testing.assert_array_equal(v, subspace.random_subspace(30, 7, [0, 3]))
    assert abs(v - subspace.random_subspace(30, 7, [0, 4])).max() > 0.1
    first = [(subspace.random_subspace(8, 3, [1, j])[:, 0] ** 2).sum() for j in range(400)]
    assert stats.kstest(first, stats.beta(1.5, 2.5).cdf).pvalue > 0.01
    with pytest.raises(StreamgaugeError, match="no subspace of 9 dimensions in 8"):
        subspace.random_subspace(8, 9, 0)


def test_projection_and_complement_split_a_vector():
    v, x = orthonormal(12, 4, 0), np.random.default_rng(0).standard_normal((3, 5, 12))
    inside = subspace.project(v, x)
    np.testing.assert_allclose(subspace.project(v, inside), inside, atol=1e-12)
    np.testing.assert_allclose((x - inside) @ v.T, 0, atol=1e-12)


def test_similarity_agrees_with_principal_angles_of_scipy():
    one, other = orthonormal(15, 6, 1), orthonormal(15, 8, 2)
    angles = linalg.subspace_angles(one[:4].T, other[:4].T)
    assert subspace.similarity(one, other, 4) == pytest.approx((np.cos(angles) ** 2).mean())
    assert subspace.similarity(one, one[::-1], 6) == pytest.approx(1)
    halves = np.eye(10)
    assert subspace.similarity(halves[:4], halves[2:6], 4) == pytest.approx(0.5)
    with pytest.raises(StreamgaugeError, match="no 7 leading rows"):
        subspace.similarity(one, other, 7)


def test_similarity_of_random_subspaces_is_top_over_d():
    found = [
        subspace.similarity(orthonormal(40, 6, [0, j]), orthonormal(40, 6, [1, j]), 6)
        for j in range(300)
    ]
    assert np.mean(found) == pytest.approx(6 / 40, abs=4 * np.std(found) / 300**0.5)


def test_ffn_alignment_of_planted_weights():
    v, w = np.eye(20)[:5], np.zeros((7, 20))
    w[:, :5] = 1
    assert subspace.ffn_alignment(w, v) == pytest.approx(4)  # all in Z: d / k
    w[:, 5:] = 1
    assert subspace.ffn_alignment(w, v) == pytest.approx(1)
    w[:, :5] = 0
    assert subspace.ffn_alignment(w, v) == 0
    assert np.isnan(subspace.ffn_alignment(0 * w, v))
    dense_w = np.random.default_rng(0).standard_normal((30, 20))
    u = orthonormal(20, 3, 0)
    share = np.linalg.norm(dense_w @ projector(u)) ** 2 / np.linalg.norm(dense_w) ** 2
    assert subspace.ffn_alignment(dense_w, u) == pytest.approx(share / (3 / 20))


# --- separation ---------------------------------------------------------------------------------


def test_separation_by_hand():
    """Three problems on a line inside Z; the language is a constant outside it."""
    target = np.zeros((3, 4))
    target[:, 0] = [0, 3, 6]
    source = target + np.array([0, 0, 2, 0])
    found = subspace.separation(target, source, np.eye(4)[:2])
    # problems lie 3, 3, 6 apart in both languages: 4 on average
    assert found == pytest.approx(
        {"ratio_z": 0, "ratio_z_perp": np.nan, "ratio_full": 0.5, "e_z": 0}, nan_ok=True
    )
    found = subspace.separation(target, source, np.eye(4)[[2, 3]])
    assert found["e_z"] == 1 and found["ratio_z_perp"] == 0 and np.isnan(found["ratio_z"])


def test_separation_agrees_with_plain_loops():
    rng = np.random.default_rng(0)
    x, y, v = rng.standard_normal((7, 9)), rng.standard_normal((7, 9)), orthonormal(9, 3, 1)
    parts = {"ratio_z": projector(v), "ratio_z_perp": np.eye(9) - projector(v)}
    parts["ratio_full"] = np.eye(9)
    found = subspace.separation(x, y, v)
    for name, p in parts.items():
        across = np.mean([np.linalg.norm(p @ (y[i] - x[i])) for i in range(7)])
        within = [
            np.mean([np.linalg.norm(p @ (z[i] - z[j])) for i in range(7) for j in range(i)])
            for z in (x, y)
        ]
        assert found[name] == pytest.approx(across / np.mean(within))
    share = [np.linalg.norm(v @ delta) ** 2 / np.sum(delta**2) for delta in y - x]
    assert found["e_z"] == pytest.approx(np.mean(share))
    swapped = subspace.separation(y, x, v)
    assert swapped == pytest.approx(found)


def test_equal_pairs_have_no_direction_and_one_problem_no_distance():
    x = np.random.default_rng(0).standard_normal((4, 6))
    assert np.isnan(subspace.separation(x, x, np.eye(6)[:2])["e_z"])
    with pytest.raises(StreamgaugeError, match="no distance from one another"):
        subspace.separation(x[:1], x[:1] + 1, np.eye(6)[:2])
    with pytest.raises(StreamgaugeError, match="do not fit together"):
        subspace.separation(x, x[:, :5], np.eye(6)[:2])


def test_energy_chance_is_that_of_isotropic_vectors():
    mean, low, high = subspace.energy_chance(30, 4, 0.9)
    delta = np.random.default_rng(0).standard_normal((20000, 30))
    share = (delta[:, :4] ** 2).sum(1) / (delta**2).sum(1)
    assert share.mean() == pytest.approx(mean, abs=0.002) and mean == 4 / 30
    np.testing.assert_allclose(np.quantile(share, [0.05, 0.95]), [low, high], atol=0.004)
    assert subspace.energy_chance(5, 5) == (1, 1, 1)


# --- updates ------------------------------------------------------------------------------------


def test_update_ratio_by_hand():
    v = np.eye(4)[:2]
    delta = np.array([[3.0, 4, 0, 5], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(subspace.update_ratio(delta, v), [1, 0, np.inf, np.nan])


def test_update_ratio_chance_is_the_published_one_and_exact():
    assert subspace.update_ratio_chance(2048, 50) == pytest.approx(0.1575, abs=5e-5)
    # not what the expected energies would give
    assert abs(subspace.update_ratio_chance(2048, 50) - (50 / 1998) ** 0.5) > 5e-4
    # χ_1 and χ_2 by hand: sqrt(2/π) times sqrt(π/2)
    assert subspace.update_ratio_chance(3, 1) == pytest.approx(1)
    assert subspace.update_ratio_chance(5, 4) == np.inf
    delta = np.random.default_rng(0).standard_normal((40000, 24))
    found = subspace.update_ratio(delta, orthonormal(24, 6, 0))
    assert found.mean() == pytest.approx(
        subspace.update_ratio_chance(24, 6), abs=4 * found.std() / 200
    )


def test_problems_that_differ_by_rounding_alone_have_no_ratio():
    """The last token may be the same in all problems, but for the float32 of the forward pass."""
    rng = np.random.default_rng(0)
    target = np.tile([3.0, 1.0, 0.0, 0.0], (5, 1))
    target[:, 0] += 1e-7 * rng.standard_normal(5)
    source = target + np.array([0.0, 1.0, 0.0, 0.0])
    found = subspace.separation(target, source, np.eye(4)[:2])
    assert np.isnan(found["ratio_z"]) and np.isnan(found["ratio_full"])
    assert found["e_z"] == 1
