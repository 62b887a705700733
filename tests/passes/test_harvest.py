"""Harvested activations are the model's own; summaries and spectra equal direct computation."""

import shutil
import warnings

import numpy as np
import pytest
import torch

import tiny_models
from pipeline import tree_digest
from streamgauge.base.errors import StreamgaugeError
from streamgauge.models import subjects
from streamgauge.passes import gather, harvest, layer_spectra
from streamgauge.stores import layer_stores

N, T, LAYER = 300, 128, 1  # three shards of 128 sequences, the last one short
SINK, HUGE, BROKEN = 7, 8, 9  # token ids whose embeddings the tests change


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tiny_models.tiny_llama(tmp_path_factory.mktemp("llama") / "model")
    return path


@pytest.fixture
def subject(directory):
    subject = subjects.load(directory, device="cpu", dtype="float32")
    with torch.no_grad():
        embedding = subject.model.get_input_embeddings().weight
        embedding[SINK] *= 1000
        embedding[HUGE] *= 1e6
    return subject


class Broken:
    """A model whose activations are not finite on the tokens BROKEN."""

    def __init__(self, subject):
        self._subject = subject

    def __getattr__(self, name):
        return getattr(self._subject, name)

    def residuals(self, ids, layers):
        found = self._subject.residuals(ids, layers)
        for h in found.values():
            h[ids == BROKEN, 5] = torch.nan
        return found


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(10, tiny_models.VOCAB, (N, T), dtype=np.int32)


def truth(subject, tokens, layer):
    """Hidden states by Hugging Face's own way; a non-final layer's are the hooked ones."""
    with torch.no_grad():
        rows = torch.from_numpy(tokens.astype(np.int64)).split(32)
        states = [subject.model(r, output_hidden_states=True).hidden_states for r in rows]
    return torch.cat([s[layer + 1] for s in states]).numpy()


def make(subject, tokens, final, **options):
    work = layer_stores.scratch(final, "{}")
    options = {"dtype": "auto", "batch_size": 24, "progress": False} | options
    harvest.harvest(subject, tokens, LAYER, work, **options)
    facts = gather.activations(work, progress=False)
    layer_stores.commit(work, final)
    return facts


@pytest.mark.parametrize(
    "dtype, tolerance", [("float16", 2e-3), ("bfloat16", 1e-2), ("float32", 1e-5)]
)
def test_activations_are_the_models_own(subject, tokens, tmp_path, dtype, tolerance):
    tokens = tokens[:140]
    facts = make(subject, tokens, tmp_path / "a.zarr", dtype=dtype)
    store = layer_stores.ActivationStore(tmp_path / "a.zarr")
    np.testing.assert_allclose(
        store.read(0, 140), truth(subject, tokens, LAYER), rtol=tolerance, atol=tolerance
    )
    assert store.dtype == facts["dtype"] == dtype
    assert (store.layer, store.hook_name) == (LAYER, f"blocks.{LAYER}.hook_resid_post")


def test_summaries_equal_numpys(subject, tokens, tmp_path):
    tokens = tokens.copy()
    tokens[[3, 3, 200], [50, 90, 11]] = SINK
    tokens[4, 0] = SINK
    facts = make(subject, tokens, tmp_path / "a.zarr", dtype="float16")
    store = layer_stores.ActivationStore(tmp_path / "a.zarr")
    x = store.read(0, N).astype(np.float64)
    norm = np.linalg.norm(x, axis=-1)
    np.testing.assert_allclose(store.norm(0, N), norm, rtol=1e-6)
    assert facts["median_norm"] == store.median_norm == np.median(store.norm(0, N).astype(float))
    assert facts["sink_threshold"] == store.sink_threshold == 10 * facts["median_norm"]
    keep = norm <= store.sink_threshold
    keep[:, 0] = False
    assert not keep[3, 50] and not keep[3, 90] and not keep[200, 11]
    assert facts["n_sink"] == N + 3 == (~keep).sum()
    np.testing.assert_array_equal(store.keep(0, N), keep)
    np.testing.assert_allclose(store.mean("all"), x.mean((0, 1)), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(store.mean("no_sink"), x[keep].mean(0), rtol=1e-7, atol=1e-10)
    assert {k: facts[k] for k in ("n_sequences", "n_positions", "d_model", "layer")} == {
        "n_sequences": N,
        "n_positions": T,
        "d_model": 32,
        "layer": LAYER,
    }


def test_finished_shards_are_skipped_and_batches_stay_aligned(subject, tokens, tmp_path):
    make(subject, tokens, tmp_path / "whole.zarr")
    work = layer_stores.scratch(tmp_path / "again.zarr", "{}")
    options = {"dtype": "auto", "batch_size": 24, "progress": False}
    harvest.harvest(subject, tokens, LAYER, work, part=(2, 3), **options)
    before = (work / "activations/c/2/0/0").stat().st_mtime_ns
    harvest.harvest(subject, tokens, LAYER, work, part=(0, 3), **options)
    # a shard cut short on its way to the disk is made anew
    (work / "activations/c/1/0").mkdir(parents=True)
    (work / "activations/c/1/0/0").write_bytes(b"half")
    harvest.harvest(subject, tokens, LAYER, work, **options)
    assert (work / "activations/c/2/0/0").stat().st_mtime_ns == before
    gather.activations(work, progress=False)
    shutil.rmtree(work / "mean/c")
    gather.activations(work, progress=False)  # repeated, as after a kill
    layer_stores.commit(work, tmp_path / "again.zarr")
    assert tree_digest(tmp_path / "again.zarr") == tree_digest(tmp_path / "whole.zarr")


def test_tokens_may_lie_on_disk(subject, tokens, tmp_path):
    layer_stores.store_tokens(tmp_path / "tokens.zarr", "{}", tokens[:140], tokens[:140])
    lazy = layer_stores.open_tokens(tmp_path / "tokens.zarr")
    make(subject, lazy, tmp_path / "lazy.zarr")
    make(subject, tokens[:140], tmp_path / "eager.zarr")
    assert tree_digest(tmp_path / "lazy.zarr") == tree_digest(tmp_path / "eager.zarr")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"part": (3, 3)}, "no part 3 of 3"),
        ({"part": (-1, 3)}, "no part -1 of 3"),
        ({"layer": 4}, "layer 4 does not exist"),
        ({"dtype": "int8"}, "'int8' is not one of auto, float16"),
        ({"tokens": np.zeros((0, T), np.int32)}, r"shape \(0, 128\)"),
        ({"tokens": np.full((2, T), tiny_models.VOCAB)}, "outside the model's vocabulary of 384"),
    ],
)
def test_bad_requests_are_named(subject, tokens, tmp_path, change, message):
    given = {"tokens": tokens, "layer": LAYER, "dtype": "auto", "batch_size": 8} | change
    work = layer_stores.scratch(tmp_path / "a.zarr", "{}")
    with pytest.raises(StreamgaugeError, match=message):
        harvest.harvest(subject, scratch=work, **given)


def test_auto_chooses_the_dtype_that_fits(subject, tokens, directory, tmp_path):
    def chosen(subject, tokens, name):
        return make(subject, tokens, tmp_path / name)["dtype"]

    tokens = tokens[:140].copy()
    assert chosen(subject, tokens, "plain.zarr") == "float16"
    tokens[3, 5] = HUGE
    assert chosen(subject, tokens, "huge.zarr") == "bfloat16"
    half = subjects.load(directory, device="cpu", dtype="bfloat16")
    assert chosen(half, tokens, "half.zarr") == "bfloat16"


def test_a_value_too_large_names_token_layer_and_remedy(subject, tokens, tmp_path):
    tokens = tokens.copy()
    tokens[135, 17] = HUGE  # beyond what auto looks at, in the second shard
    with pytest.raises(StreamgaugeError) as caught:
        make(subject, tokens, tmp_path / "a.zarr")
    text = str(caught.value)
    assert text.startswith("blocks.1.hook_resid_post: the activation of sequence 135, position 17 ")
    assert "beyond the range of float16" in text and "`harvest.dtype: bfloat16`" in text
    work = layer_stores.scratch(tmp_path / "a.zarr", "{}")
    assert layer_stores.Store(work).missing("activations") == [1, 2]
    assert make(subject, tokens, tmp_path / "b.zarr", dtype="bfloat16")["dtype"] == "bfloat16"


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float32"])
def test_a_non_finite_activation_is_named(subject, tokens, tmp_path, dtype):
    tokens = tokens[:40].copy()
    tokens[2, 30] = BROKEN
    with pytest.raises(StreamgaugeError, match=r"sequence 2, position 30 is not finite") as caught:
        make(Broken(subject), tokens, tmp_path / "a.zarr", dtype=dtype)
    assert caught.value.where == "blocks.1.hook_resid_post"


def test_finish_names_the_missing_shard(subject, tokens, tmp_path):
    work = layer_stores.scratch(tmp_path / "a.zarr", "{}")
    harvest.harvest(subject, tokens, LAYER, work, part=(0, 3), progress=False)
    with pytest.raises(StreamgaugeError, match="shard 1 of array 'activations' is missing"):
        gather.activations(work, progress=False)


def test_progress_shows_rate_and_resumption(subject, tokens, tmp_path, capsys):
    work = layer_stores.scratch(tmp_path / "a.zarr", "{}")
    harvest.harvest(subject, tokens, LAYER, work, part=(0, 3), progress=False)
    assert capsys.readouterr().err == ""
    harvest.harvest(subject, tokens, LAYER, work)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "[harvest L01] resuming at 16,384 of 38,400 tokens"
    assert "tokens/s" in lines[-1]


@pytest.mark.parametrize("n", [1, 2, 7, 1000])
def test_median_is_exact(n):
    rng = np.random.default_rng(n)
    norms = np.exp(rng.normal(0, 10, n)).astype(np.float32)
    norms[: n // 4] = 1.0  # ties
    blocks = np.array_split(norms, 3)
    assert gather._median(lambda: iter(blocks)) == np.median(norms.astype(np.float64))


def test_spectra_equal_a_direct_decomposition(subject, tokens, tmp_path):
    tokens = tokens[:20].copy()
    tokens[3, 50] = SINK
    result = layer_spectra.spectra(subject, tokens, batch_size=8, deflate=3, progress=False)
    assert result.eigenvalues.shape == (4, 2, 2, 32)
    x = truth(subject, tokens, LAYER).astype(np.float64)
    norm = np.linalg.norm(x, axis=-1)
    keep = norm <= 10 * np.median(norm)
    keep[:, 0] = False
    for s, mask in enumerate([np.ones_like(keep), keep]):
        rows = x[mask]
        assert result.n_tokens[LAYER, s] == len(rows)
        direct = np.linalg.eigvalsh(np.cov(rows.T, bias=True))[::-1]
        np.testing.assert_allclose(
            result.eigenvalues[LAYER, s, 0], direct, rtol=1e-4, atol=1e-6 * direct[0]
        )
        direct = np.linalg.eigvalsh(rows.T @ rows / len(rows))[::-1]
        np.testing.assert_allclose(
            result.eigenvalues[LAYER, s, 1], direct, rtol=1e-4, atol=1e-6 * direct[0]
        )
    table = result.table
    assert len(table) == 4 * 2 * 2 * 3
    row = table.query("layer == 1 and token_set == 'no_sink' and centring == 'centred'")
    assert list(row.deflate) == [0, 1, 3]
    values = result.eigenvalues[1, 1, 0]
    for _, r in row.iterrows():
        left = values[r.deflate :]
        assert r.pr == pytest.approx(left.sum() ** 2 / (left**2).sum())
        assert r.top_share == pytest.approx(left[0] / left.sum())
        assert r.pr_over_d == pytest.approx(r.pr / 32)
        p = left / left.sum()
        assert r.effective_rank == pytest.approx(np.exp(-(p * np.log(p)).sum()))
    layer_spectra.write(tmp_path / "spectra.zarr", "{}", result)
    import xarray

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ds = xarray.open_zarr(tmp_path / "spectra.zarr")
    chosen = ds.eigenvalues.sel(layer=1, token_set="no_sink", centring="centred")
    np.testing.assert_array_equal(chosen, values)


def test_spectra_refuse_what_leaves_nothing(subject, tokens):
    with pytest.raises(StreamgaugeError, match="deflate 32 leaves no component of 32"):
        layer_spectra.spectra(subject, tokens[:2], deflate=32)
    broken = np.full((1, T), BROKEN)
    with pytest.raises(StreamgaugeError, match="not finite"):
        layer_spectra.spectra(Broken(subject), broken, progress=False)
