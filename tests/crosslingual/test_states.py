"""Residual streams of prompt pairs: against single prompts, through a kill, and read back."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray

import tiny_models
from streamgauge.base.errors import StreamgaugeError
from streamgauge.crosslingual import prompts, states
from streamgauge.models import subjects

PAIRS = prompts.read(Path(__file__).parents[2] / "resources/prompts/math.yaml")
FAMILIES = {
    "llama": tiny_models.tiny_llama,
    "qwen2": tiny_models.tiny_qwen2,
    "gemma2": tiny_models.tiny_gemma2,
    "gpt_neox": tiny_models.tiny_gpt_neox,
}


@pytest.fixture(scope="module", params=FAMILIES)
def subject(request, tmp_path_factory):
    return subjects.load(FAMILIES[request.param](tmp_path_factory.mktemp("model")), "cpu")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return subjects.load(tiny_models.tiny_llama(tmp_path_factory.mktemp("model")), "cpu")


def table_of(subject, shots=0, limit=5):
    return prompts.tokenise(PAIRS, subject.tokenizer, "en", "zh", shots, limit, subject.n_ctx)


@torch.inference_mode()
def alone(subject, prompt, layer):
    """One prompt in a forward pass of its own: its problem's tokens."""
    return subject.residuals([list(prompt.ids)], [layer])[layer][0, prompt.header :].numpy()


@pytest.mark.parametrize("shots", [0, 1])
def test_batches_equal_single_prompts_at_every_layer(subject, shots, tmp_path):
    table = table_of(subject, shots)
    facts = states.harvest(subject, table, tmp_path / "s.zarr", "{}", batch_size=4)
    found = states.States(tmp_path / "s.zarr")
    assert facts["n_tokens"] == found.n_tokens.sum()
    assert (found.n_layers, found.d_model) == (subject.n_layers, subject.d_model)
    for row, prompt in enumerate(table.itertuples()):
        for layer in range(subject.n_layers):
            h = found.tokens(layer, row // 2, prompt.role)
            assert h.dtype == np.float32
            np.testing.assert_allclose(h, alone(subject, prompt, layer), rtol=1e-4, atol=2e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_agrees_with_the_cpu(llama, tmp_path):
    table = table_of(llama)
    other = subjects.load(llama.directory, "cuda")
    for name, one in (("cpu", llama), ("cuda", other)):
        states.harvest(one, table, tmp_path / f"{name}.zarr", "{}", batch_size=3)
    on = {name: states.States(tmp_path / f"{name}.zarr") for name in ("cpu", "cuda")}
    for layer in range(llama.n_layers):
        h = {name: np.stack(found.pooled("mean", layer)) for name, found in on.items()}
        np.testing.assert_allclose(h["cuda"], h["cpu"], rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def stored(llama, tmp_path_factory):
    path = tmp_path_factory.mktemp("states") / "s.zarr"
    table = table_of(llama)
    states.harvest(llama, table, path, "{}", batch_size=4)
    return table, path


def test_pooled_vectors_are_means_over_the_problems_tokens(llama, stored):
    table, path = stored
    found = states.States(path)
    pooled = {pooling: found.pooled(pooling, 2) for pooling in states.POOLINGS}
    for row, prompt in enumerate(table.itertuples()):
        h = alone(llama, prompt, 2).astype(np.float64)
        expected = {"mean": h.mean(0), "mean_no_first": h[1:].mean(0), "last": h[-1]}
        for pooling, vector in expected.items():
            got = pooled[pooling][row % 2]
            assert got.shape == (5, llama.d_model)
            assert got.dtype == np.float64
            np.testing.assert_allclose(got[row // 2], vector, rtol=1e-4, atol=2e-5)


def test_problems_are_found_by_index_and_by_id(stored):
    table, path = stored
    found = states.States(path)
    assert found.problems == list(table["problem"][::2])
    assert found.languages == ("en", "zh")
    for i, name in enumerate(found.problems):
        for language in states.ROLES:
            by_id = found.tokens(1, name, language)
            assert np.array_equal(by_id, found.tokens(1, i, language))
            assert len(by_id) == found.n_tokens[i, states.ROLES.index(language)]


def test_the_store_opens_as_a_labelled_dataset(stored):
    table, path = stored
    data = xarray.open_zarr(path)
    assert data["residual"].dims == ("layer", "token", "d_model")
    spans = table["ids"].map(len) - table["header"]
    assert data["n_tokens"].sel(role="source").values.tolist() == spans[1::2].tolist()
    assert data.sizes["token"] == spans.sum()


def test_a_killed_harvest_goes_on_and_ends_the_same(llama, stored, tmp_path, monkeypatch):
    table, whole = stored
    calls = []
    plain = subjects.Subject.residuals

    def counted(self, ids, layers, stop=True):
        calls.append(len(ids))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(self, ids, layers, stop)

    monkeypatch.setattr(subjects.Subject, "residuals", counted)
    path = tmp_path / "s.zarr"
    with pytest.raises(KeyboardInterrupt):
        states.harvest(llama, table, path, "{}", batch_size=4)
    assert not path.exists()
    states.harvest(llama, table, path, "{}", batch_size=4)
    assert calls == [4, 4, 2, 2]
    files = [file.relative_to(whole) for file in whole.rglob("*") if file.is_file()]
    assert all((path / file).read_bytes() == (whole / file).read_bytes() for file in files)
    assert [file.name for file in tmp_path.iterdir()] == ["s.zarr"]


def test_work_begun_for_another_spec_is_not_continued(llama, stored, tmp_path, monkeypatch):
    table, _ = stored
    path = tmp_path / "s.zarr"
    with monkeypatch.context() as broken:
        broken.setattr(states, "_assemble", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            states.harvest(llama, table, path, "one", batch_size=4)
    table = table.iloc[::-1].iloc[:4].iloc[::-1].reset_index(drop=True)
    states.harvest(llama, table, path, "other", batch_size=4)
    found = states.States(path)
    h = alone(llama, table.iloc[0], 0)
    np.testing.assert_allclose(found.tokens(0, 0, "target"), h, rtol=1e-4, atol=2e-5)


def short(llama):
    """Two problems, the second of one token in the source language."""
    table = table_of(llama, limit=2)
    table["header"] = [*table["header"][:3], len(table["ids"][3]) - 1]
    return table


def test_a_problem_of_one_token_has_no_mean_without_its_first(llama, tmp_path):
    table = short(llama)
    states.harvest(llama, table, tmp_path / "s.zarr", "{}", batch_size=4)
    found = states.States(tmp_path / "s.zarr")
    assert found.n_tokens[1, 1] == 1
    for pooling in ("mean", "last"):
        assert np.isfinite(found.pooled(pooling, 0)[1]).all()
    with pytest.raises(StreamgaugeError, match="algebra-1 in zh has n < 2 tokens"):
        found.pooled("mean_no_first", 0)


def test_a_layer_that_does_not_exist(stored):
    found = states.States(stored[1])
    for layer in (-1, 4):
        with pytest.raises(StreamgaugeError, match=f"layer {layer} does not exist"):
            found.tokens(layer, 0, "target")


def test_states_that_are_not_finite_name_the_problem(llama, tmp_path, monkeypatch):
    table = table_of(llama, limit=3)
    plain = subjects.Subject.residuals

    def broken(self, ids, layers, stop=True):
        found = {layer: h.clone() for layer, h in plain(self, ids, layers, stop).items()}
        found[2][1, table["header"][1]] = torch.nan
        return found

    monkeypatch.setattr(subjects.Subject, "residuals", broken)
    with pytest.raises(StreamgaugeError, match=r"blocks\.2.*arithmetic-1 in zh is not finite"):
        states.harvest(llama, table, tmp_path / "s.zarr", "{}", batch_size=2)


def test_prompts_read_from_parquet_give_the_same_store(llama, stored, tmp_path):
    table, whole = stored
    table.to_parquet(tmp_path / "p.parquet")
    again = pd.read_parquet(tmp_path / "p.parquet")
    states.harvest(llama, again, tmp_path / "s.zarr", "{}", batch_size=4)
    one, other = (states.States(path) for path in (whole, tmp_path / "s.zarr"))
    for layer in range(llama.n_layers):
        for a, b in zip(one.pooled("mean", layer), other.pooled("mean", layer), strict=True):
            assert np.array_equal(a, b)
