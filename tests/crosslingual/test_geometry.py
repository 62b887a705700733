"""Tables of weight geometry, separation and updates, and the store of Z."""

import numpy as np
import pandas as pd
import pytest

from streamgauge.base.errors import StreamgaugeError
from streamgauge.crosslingual import geometry, separation, updates
from streamgauge.models import subjects
from streamgauge.models.projections import projections
from streamgauge.numerics import subspace
from streamgauge.numerics.spectra import effective_rank
from streamgauge.stores import basis_store
from tiny_models import tiny_llama

ASKED = {"k_sub": 8, "top": 4, "random": 19, "seed": 0, "confidence": 0.95, "progress": False}
LAYERS, D = 4, 32


@pytest.fixture
def model(tmp_path):
    return subjects.load(tiny_llama(tmp_path / "llama", layers=LAYERS, d_model=D), "cpu").model


class Pooled:
    """Pooled states of pairs, (layer, role, problem, d): what the tables read of `States`."""

    languages = ("en", "zh")

    def __init__(self, h):
        self._h = h
        self.n_layers, _, self.n_problems, self.d_model = h.shape

    def pooled(self, pooling, layer):
        return tuple(self._h[layer])


# --- geometry -----------------------------------------------------------------------------------


def test_tables_hold_every_head_layer_and_pair(model):
    found = geometry.tables(model, **ASKED)
    assert list(found.heads) == ["layer", "head", "kv_head", "effective_rank", "top_share"]
    assert list(found.heads["kv_head"][:4]) == [0, 0, 1, 1]
    assert len(found.heads) == 4 * LAYERS and len(found.similarity) == LAYERS * (LAYERS - 1) / 2
    assert list(found.layers["layer"]) == list(range(LAYERS))
    assert (found.layers[["n_heads", "n_kv_heads", "d_head", "d_model"]] == [4, 2, 8, D]).all(None)
    assert found.facts == {"n_layers": LAYERS, "n_random": 19, "ffn": "gate", "without_z": []}
    again = geometry.tables(model, **ASKED)
    for one, other in zip(found[:3], again[:3], strict=True):
        pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_tables_agree_with_dense_kernels(model):
    found = geometry.tables(model, **ASKED)
    weights = projections(model, 2)
    kernels = [weights.w_q[h].T.astype(float) @ weights.w_k[h // 2] for h in range(4)]
    values = np.linalg.svd(kernels, compute_uv=False)
    own = found.heads[found.heads["layer"] == 2]
    ranks = [effective_rank(v[:8]) for v in values]
    np.testing.assert_allclose(own["effective_rank"], ranks, rtol=1e-6)
    np.testing.assert_allclose(own["top_share"], values[:, 0] / values.sum(1), rtol=1e-6)
    row = found.layers.loc[2]
    assert row["effective_rank_mean"] == pytest.approx(np.mean(ranks))
    assert row["effective_rank_sd"] == pytest.approx(np.std(ranks, ddof=1))
    assert row["effective_rank_cv"] == pytest.approx(np.std(ranks, ddof=1) / np.mean(ranks))
    z = [geometry.subspace_of(model, layer, 8).basis for layer in range(LAYERS)]
    assert row["ffn_alignment"] == subspace.ffn_alignment(weights.w_in, z[2])
    assert row["similarity_next"] == subspace.similarity(z[2], z[3], 4)
    assert np.isnan(found.layers.loc[LAYERS - 1, "similarity_next"])
    pair = found.similarity[(found.similarity["layer_a"] == 0) & (found.similarity["layer_b"] == 3)]
    assert pair["similarity"].item() == subspace.similarity(z[0], z[3], 4)
    assert pair["chance"].item() == 4 / D


def test_random_weights_lie_at_chance_and_planted_ones_do_not(model):
    blocks = model.model.layers
    z = subspace.random_subspace(D, 8, 99)
    for layer in (1, 2):  # two layers that read the same 8 directions, and an FFN that reads them
        keys = blocks[layer].self_attn.k_proj.weight.data
        keys.copy_(keys @ keys.new_tensor(z.T @ z))
        inputs = blocks[layer].mlp.gate_proj.weight.data
        inputs.copy_(inputs @ inputs.new_tensor(z.T @ z))
    layers = geometry.tables(model, **ASKED).layers
    assert layers.loc[1, "ffn_alignment"] == pytest.approx(D / 8, rel=1e-4)
    assert layers.loc[1, "ffn_alignment"] > layers.loc[1, "ffn_random_high"]
    np.testing.assert_allclose(
        subspace.similarity(z, geometry.subspace_of(model, 1, 8).basis, 8), 1
    )
    # null of what random weights give
    low, high = layers.loc[0, ["similarity_random_low", "similarity_random_high"]]
    assert low < 4 / D < high
    low, high = layers.loc[0, ["ffn_random_low", "ffn_random_high"]]
    assert low < 1 < high and low < layers.loc[0, "ffn_alignment"] < high


def test_a_layer_that_reads_too_little_has_no_z_and_the_others_do(model):
    model.model.layers[1].self_attn.q_proj.weight.data.zero_()
    found = geometry.tables(model, **ASKED)
    assert found.facts["without_z"] == [1]
    missing = found.layers["ffn_alignment"].isna()
    assert list(missing) == [False, True, False, False]
    assert set(found.similarity["layer_a"]) | set(found.similarity["layer_b"]) == {0, 2, 3}
    assert list(found.layers["similarity_next"].isna()) == [True, True, False, True]
    with pytest.raises(StreamgaugeError, match="attention of block 1: no subspace of 8"):
        geometry.subspace_of(model, 1, 8)


def test_impossible_requests_are_refused(model):
    with pytest.raises(StreamgaugeError, match=r"keys read 16 of 32 directions"):
        geometry.tables(model, **ASKED | {"k_sub": 17})
    with pytest.raises(StreamgaugeError, match=r"geometry\.top"):
        geometry.tables(model, **ASKED | {"top": 9})


# --- the store ----------------------------------------------------------------------------------


def test_basis_survives_the_store_as_a_projector(tmp_path):
    rng = np.random.default_rng(0)
    w_q, w_k = rng.standard_normal((4, 16, 256)), rng.standard_normal((2, 16, 256))
    found = subspace.attention_subspace(w_q, w_k, 20)
    facts = basis_store.write(tmp_path / "L00-k20.zarr", "{}", found)
    assert facts["k_sub"] == 20 and facts["d_model"] == 256
    v = basis_store.read(tmp_path / "L00-k20.zarr")
    p = (v.T @ v).astype(np.float32).astype(float)
    assert np.linalg.norm(p @ p - p) < 1e-5
    assert np.linalg.norm(v.T @ v @ v.T @ v - v.T @ v) == pytest.approx(facts["projector_error"])
    np.testing.assert_allclose(v, found.basis, atol=1e-7)


def test_a_basis_that_is_not_orthonormal_is_refused(tmp_path):
    skewed = subspace.Subspace(np.array([[1.0, 0, 0], [0.01, 1, 0]]), np.ones(2))
    with pytest.raises(StreamgaugeError, match="projector's error"):
        basis_store.write(tmp_path / "L00-k2.zarr", "{}", skewed)


# --- separation and updates ---------------------------------------------------------------------


@pytest.fixture
def pairs():
    """12 problems in 40 dimensions, alike in Z = the first 6, the language in dimensions 6 to 9."""
    rng = np.random.default_rng(0)
    h = rng.standard_normal((3, 2, 12, 40))
    h[:, 1, :, :6] = h[:, 0, :, :6] + 0.1 * rng.standard_normal((3, 12, 6))
    h[:, 1, :, 6:10] += 5
    return Pooled(h)


def test_separation_ranks_z_among_random_subspaces(pairs):
    found = separation.table(pairs, np.eye(40)[:6], 1, random=19, seed=0, confidence=0.95)
    assert len(found) == 3 * 20
    z, null = (found[(found["subspace"] == "z") == own] for own in (True, False))
    assert list(z["pooling"]) == ["mean", "mean_no_first", "last"]
    assert (z["ratio_z"] < 0.2).all() and (null["ratio_z"] > 0.5).all()
    assert (z["rank_ratio_z"] == 1).all() and np.allclose(z["p_ratio_z"], 0.1)
    assert (z["rank_e_z"] == 1).all() and (z["e_z"] < z["e_chance_low"]).all()
    assert null[["rank_ratio_z", "p_ratio_z", "rank_e_z", "p_e_z"]].isna().all(None)
    assert (found["ratio_full"] == found["ratio_full"][0]).all()
    assert (found[["n_pairs", "n_random"]] == [12, 19]).all(None)
    assert np.allclose(found["e_chance"], 6 / 40)
    third = subspace.separation(*pairs.pooled("mean", 1), subspace.random_subspace(40, 6, [0, 3]))
    assert found.set_index(["pooling", "subspace"]).loc[("mean", "random-3"), "e_z"] == third["e_z"]


def test_separation_in_a_subspace_that_is_not_special_is_unremarkable(pairs):
    basis = subspace.random_subspace(40, 6, 12345)
    found = separation.table(pairs, basis, 1, random=39, seed=0, confidence=0.95)
    assert (found.loc[found["subspace"] == "z", ["p_ratio_z", "p_e_z"]] > 0.05).all(None)


def test_updates_of_a_planted_transition():
    """Target writes 3 inside Z and 4 outside, source 4 and 3; then both write isotropically."""
    rng = np.random.default_rng(0)
    n, d, k = 400, 24, 6
    basis = subspace.random_subspace(d, k, 7)
    inside, outside = np.eye(d)[0] @ basis.T @ basis, np.eye(d)[0]
    outside = outside - inside
    inside, outside = inside / np.linalg.norm(inside), outside / np.linalg.norm(outside)
    h = np.zeros((3, 2, n, d))
    h[0] = rng.standard_normal((2, n, d))
    h[1] = h[0] + np.stack([3 * inside + 4 * outside, 4 * inside + 3 * outside])[:, None]
    h[2] = h[1] + rng.standard_normal((2, n, d))
    found = updates.table(Pooled(h), basis, random=19, seed=0, confidence=0.99)
    assert list(found["layer"]) == [0, 0, 1, 1] and list(found["language"]) == ["en", "zh"] * 2
    first, last = found[:2], found[2:]
    np.testing.assert_allclose(first["r"], [3 / 4, 4 / 3])
    np.testing.assert_allclose(first["asymmetry"], 3 / 4 - 4 / 3)
    np.testing.assert_allclose(first["r_low"], first["r_high"])
    np.testing.assert_allclose(found["r_over_chance"] * found["r_chance"], found["r"])
    assert ((last["r_low"] < last["r_chance"]) & (last["r_chance"] < last["r_high"])).all()
    assert ((last["r_random_low"] < last["r"]) & (last["r"] < last["r_random_high"])).all()
    assert ((last["asymmetry_low"] < 0) & (last["asymmetry_high"] > 0)).all()
    assert ((last["asymmetry_random_low"] < 0) & (last["asymmetry_random_high"] > 0)).all()
    assert (first["asymmetry"] < first["asymmetry_random_low"]).all()
    assert (found["n_prompts"] == n).all()


def test_a_block_that_writes_nothing_has_no_ratio(pairs):
    h = np.stack([np.stack(pairs.pooled("mean", 0))] * 2)
    found = updates.table(Pooled(h), np.eye(40)[:6], random=10, seed=0, confidence=0.95)
    assert found[["r", "r_low", "asymmetry"]].isna().all(None)
