"""MI critics against planted Gaussians, scipy and scikit-learn; resumption; the study's table."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

import tiny_models
from streamgauge.base.errors import StreamgaugeError
from streamgauge.models import subjects
from streamgauge.numerics import infonce, logit_components
from streamgauge.passes import critics
from streamgauge.stores import layer_stores
from streamgauge.studies import critics_table

QUICK = {"hidden": 32, "steps": 40, "batch_size": 32, "lr": 5e-3}


# --- a layer --------------------------------------------------------------------------------------
N, T, LAYER = 24, 12, 1
TOKENS = np.random.default_rng(0).integers(1, tiny_models.VOCAB, (N, T)).astype(np.int32)
RUN = {"sequences": 20, "components": 4, "widths": [1, 3], "seed": 0, **QUICK}


@pytest.fixture(scope="module")
def layer(tmp_path_factory):
    from streamgauge.passes import gather, harvest

    folder = tmp_path_factory.mktemp("layer")
    subject = subjects.load(tiny_models.tiny_gpt_neox(folder / "model"), "cpu")
    work = layer_stores.scratch(folder / "a.zarr", "spec")
    harvest.harvest(subject, TOKENS, LAYER, work, progress=False)
    gather.activations(work, progress=False)
    layer_stores.commit(work, folder / "a.zarr")
    return subject, layer_stores.ActivationStore(folder / "a.zarr")


def run(layer, scratch, **change):
    scratch.mkdir(exist_ok=True)
    subject, store = layer
    return critics.measure(subject, TOKENS, store, LAYER, scratch=scratch, **(RUN | change))


def test_a_layer_is_measured_without_its_sinks(layer, tmp_path):
    table, facts = run(layer, tmp_path)
    assert list(zip(table.critic, table.width, strict=True)) == [
        (critic, width) for critic in ("hybrid", "separable") for width in (1, 3)
    ]
    kept = int(layer[1].keep(0, 20).sum())
    assert facts["n_pairs"] == kept == table.n_pairs[0] <= 20 * (T - 1)
    assert facts["n_sequences"] == 20 and facts["n_held_out_sequences"] == 5
    assert 0 < facts["explained"] < 1
    json.dumps(facts, allow_nan=False)


def test_reduced_logits_are_those_of_the_model(layer, tmp_path):
    run(layer, tmp_path)
    subject, store = layer
    keep = store.keep(0, 20)
    logits = subject.logits(TOKENS[:20].astype(np.int64)).detach()[torch.as_tensor(keep)]
    stored = pd.read_parquet(tmp_path / "reduced.parquet").drop(columns="explained").to_numpy()
    fit = ~infonce.held_out(np.nonzero(keep)[0])
    expected = logit_components.reduced_logits(logits, logit_components.logit_basis(logits[fit], 4))
    # activations are stored in 16 bits
    assert np.abs(stored - expected.numpy()).max() < 0.02 * expected.abs().max()


def test_a_killed_run_goes_on_where_it_was(layer, tmp_path, monkeypatch):
    whole, _ = run(layer, tmp_path / "whole")
    at_width, calls = infonce.at_width, []

    def killed(*args, **kwargs):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(args[3:5])
        return at_width(*args, **kwargs)

    monkeypatch.setattr(infonce, "at_width", killed)
    with pytest.raises(KeyboardInterrupt):
        run(layer, tmp_path / "killed")
    monkeypatch.setattr(infonce, "at_width", at_width)
    monkeypatch.setattr(logit_components, "logit_basis", None)  # not to be computed again
    resumed, _ = run(layer, tmp_path / "killed")
    pd.testing.assert_frame_equal(resumed, whole, check_exact=True)
    assert resumed.to_csv() == whole.to_csv()


def test_tokens_of_other_rows_are_refused(layer, tmp_path):
    subject, store = layer
    with pytest.raises(StreamgaugeError, match="do not belong"):
        critics.measure(subject, TOKENS[:5], store, LAYER, scratch=tmp_path, **RUN)


def test_study_table_puts_the_participation_ratio_beside(layer, tmp_path):
    table, facts = run(layer, tmp_path)
    w = {"subject": "tiny", "corpus": "prose", "ell": "01"}
    pr = [("all", "centred", 0, 2.0), ("no_sink", "centred", 0, 3.0)]
    pr += [("all", "uncentred", 0, 9.0), ("all", "centred", 1, 9.0)]
    spectra = pd.DataFrame(pr, columns=["token_set", "centring", "deflate", "pr"])
    spectra = pd.concat([spectra.assign(layer=0, pr=8.0), spectra.assign(layer=1)])
    spectra = spectra.assign(subject="tiny", corpus="prose")
    record = {"spec": {"wildcards": w}, "facts": facts}
    found = critics_table.study_table([(record, table)], [({}, spectra)])
    assert ",".join(found.columns) == (
        "subject,corpus,layer,critic,width,mi_nats,shuffled_mi_nats,ceiling_nats,pinned,"
        "saturated_nats,k_star,censored,n_pairs,d_model,pr,pr_no_sink"
    )
    assert set(found.pr) == {2.0} and set(found.pr_no_sink) == {3.0}
    assert set(found.layer) == {1} and set(found.d_model) == {32}
