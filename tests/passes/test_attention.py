"""Attention-plan divergence against closed forms and a plain forward pass with a hook."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

import tiny_models
from streamgauge.base.errors import StreamgaugeError
from streamgauge.models import hooks, subjects
from streamgauge.passes import attention, controls
from streamgauge.studies import attention_by_head

LAYER, N, T, D = 1, 5, 12, 32
TOKENS = np.random.default_rng(0).integers(1, tiny_models.VOCAB, (N, T)).astype(np.int32)
TOKENS[:, 0] = 0


def tiny_bloom(directory):
    from transformers import BloomConfig

    config = BloomConfig(
        vocab_size=tiny_models.VOCAB, hidden_size=D, n_layer=4, n_head=4, initializer_range=0.15
    )
    return tiny_models.save(directory, config, tiny_models.tiny_tokenizer())


def tiny_gptj(directory):
    from transformers import GPTJConfig

    config = GPTJConfig(
        vocab_size=tiny_models.VOCAB, n_embd=D, n_layer=4, n_head=4, n_positions=64, rotary_dim=4
    )
    return tiny_models.save(directory, config, tiny_models.tiny_tokenizer())


def tiny_mamba(directory):
    from transformers import MambaConfig

    config = MambaConfig(
        vocab_size=tiny_models.VOCAB,
        hidden_size=D,
        state_size=4,
        num_hidden_layers=2,
        time_step_rank=4,
    )
    config.num_attention_heads = 4
    return tiny_models.save(directory, config, tiny_models.tiny_tokenizer())


MODELS = {
    "gpt_neox": tiny_models.tiny_gpt_neox,
    "llama": tiny_models.tiny_llama,
    "qwen2": tiny_models.tiny_qwen2,
    "gpt2": tiny_models.tiny_gpt2,
    "gemma2": tiny_models.tiny_gemma2,
    "bloom": tiny_bloom,
    "gptj": tiny_gptj,
}
CODECS = {
    "sae": controls.untrained(D, 96, 4, seed=1, b_dec=np.zeros(D)),
    "identity": lambda h: (h, None),
    **controls.ablations({"all": np.full(D, 0.1), "no_sink": np.full(D, 9.0)}),
}


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return subjects.load(tiny_models.tiny_gpt_neox(tmp_path_factory.mktemp("model")), "cpu")


@pytest.fixture(scope="module")
def rows(subject):
    return attention.measure(subject, TOKENS, LAYER, CODECS, sequences=N, batch_size=2)


# --- the pass -----------------------------------------------------------------------------------
def plain(model, ids, replaced=None):
    """Attention of a plain forward pass, layer -> (head, T, T); `replaced`: h after LAYER."""

    def hook(_module, _arguments, output):
        return (replaced, *output[1:]) if isinstance(output, tuple) else replaced

    handles = []
    if replaced is not None:
        handles = [hooks.blocks(model)[LAYER].register_forward_hook(hook)]
    with torch.no_grad():
        found = model(ids, output_attentions=True, use_cache=False).attentions
    for handle in handles:
        handle.remove()
    return [layer[0].double().numpy() for layer in found]


def causal_kl(p, q):
    """Sum over queries 1.. of KL over the entries a query may see, (head,)."""
    rows = range(p.shape[1])
    return sum(entropy(p[:, t, : t + 2], q[:, t, : t + 2], axis=-1) for t in rows)


@pytest.mark.parametrize("name", MODELS)
def test_equals_a_plain_patched_forward(name, tmp_path):
    subject = subjects.load(MODELS[name](tmp_path / "model"), "cpu")
    own = subject.model.config._attn_implementation
    found = attention.measure(subject, TOKENS, LAYER, CODECS, sequences=2, batch_size=2)
    assert subject.model.config._attn_implementation == own
    found = found.set_index(["sequence", "codec", "layer", "head"])
    assert len(found) == 2 * len(CODECS) * 4 * 4 and (found.n_rows == T - 1).all()
    subject.model.set_attn_implementation("eager")
    for i in range(2):
        ids = torch.as_tensor(TOKENS[i : i + 1]).long()
        with torch.no_grad():
            h = subject.residuals(ids, [LAYER])[LAYER]
        clean = plain(subject.model, ids)
        for codec, function in CODECS.items():
            function = function["all"] if isinstance(function, dict) else function
            with torch.no_grad():
                patched = plain(subject.model, ids, function(h[0])[0][None])
            for layer in range(LAYER + 1, 4):
                p, q = clean[layer][:, 1:], patched[layer][:, 1:]
                row = found.loc[i, codec, layer]
                js = (jensenshannon(p, q, axis=-1) ** 2).sum(-1)
                np.testing.assert_allclose(row.js_sum_nats, js, rtol=1e-3, atol=1e-6)
                np.testing.assert_allclose(row.kl_sum_nats, causal_kl(p, q), rtol=1e-3, atol=1e-6)


def test_layers_up_to_the_hook_are_zero_and_those_above_are_not(rows):
    sums = rows[["kl_sum_nats", "js_sum_nats"]]
    assert (sums[rows.layer <= LAYER] == 0).all(axis=None)
    above = (rows.layer > LAYER) & (rows.codec != "identity")
    assert (sums[above] > 0).all(axis=None)
    assert (rows.js_sum_nats <= rows.n_rows * math.log(2)).all()
    assert sums[rows.codec == "identity"].max(axis=None) < 1e-9


def test_the_last_layer_has_nothing_above_it(subject):
    found = attention.measure(subject, TOKENS, 3, CODECS, sequences=2, batch_size=2)
    assert (found[["kl_sum_nats", "js_sum_nats"]] == 0).all(axis=None)
    assert list(found.layer.unique()) == [0, 1, 2, 3]


def test_batches_do_not_show_and_sequences_are_the_first_ones(subject, rows):
    other = attention.measure(subject, TOKENS, LAYER, CODECS, sequences=99, batch_size=4)
    pd.testing.assert_frame_equal(rows, other, rtol=1e-5, atol=1e-9)
    first = attention.measure(subject, TOKENS, LAYER, CODECS, sequences=2, batch_size=2)
    pd.testing.assert_frame_equal(rows[rows.sequence < 2], first)


def test_finished_batches_are_read_again(subject, rows, tmp_path):
    calls = []

    def counting(h):
        calls.append(len(h))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return CODECS["sae"](h)

    codecs = {**CODECS, "sae": counting}
    run = {"sequences": N, "batch_size": 2, "scratch": tmp_path / "scratch"}
    with pytest.raises(KeyboardInterrupt):
        attention.measure(subject, TOKENS, LAYER, codecs, **run)
    resumed = attention.measure(subject, TOKENS, LAYER, codecs, **run)
    assert len(calls) == 4  # two whole batches, the one that was cut short, and its repetition
    pd.testing.assert_frame_equal(rows, resumed)


def test_a_patched_weight_rounded_to_zero_leaves_kl_finite():
    clean, patched = torch.zeros(2, 1, 3, 3, dtype=torch.float16)
    clean[0] = torch.tensor([[1, 0, 0], [0.5, 0.5, 0], [0.5, 0.25, 0.25]])
    patched[0] = torch.tensor([[1, 0, 0], [1, 0, 0], [0.5, 0.25, 0.25]])
    ((kl, js),) = attention._compare(torch.stack([clean, patched]))[:, 0]
    least = 2.0**-24
    assert kl == pytest.approx(0.5 * math.log(0.5) + 0.5 * math.log(0.5 / least), rel=1e-6)
    assert js == pytest.approx(jensenshannon([0.5, 0.5], [1, 0]) ** 2, rel=1e-5)


# --- the table ----------------------------------------------------------------------------------
def test_table_is_the_mean_over_rows_with_paired_intervals(rows):
    found = attention_by_head.table(rows, resamples=200, seed=3)
    assert list(found) == [
        *("codec", "layer", "head", "n_rows"),
        *("kl_nats", "kl_low", "kl_high", "js_nats", "js_low", "js_high"),
    ]
    assert len(found) == len(CODECS) * 4 * 4 and list(found.codec.unique()) == list(CODECS)
    drawn = np.random.default_rng(3).integers(0, N, (200, N))
    for (codec, layer, head), own in rows.groupby(["codec", "layer", "head"], observed=True):
        row = found[(found.codec == codec) & (found.layer == layer) & (found["head"] == head)]
        means = own.js_sum_nats.to_numpy() / (T - 1)
        assert row.n_rows.item() == N * (T - 1)
        assert row.js_nats.item() == pytest.approx(means.mean())
        ends = np.quantile(means[drawn].mean(1), [0.025, 0.975])
        np.testing.assert_allclose(row[["js_low", "js_high"]].to_numpy()[0], ends, atol=1e-15)


def test_one_sequence_has_no_interval(rows):
    found = attention_by_head.table(rows[rows.sequence == 0], resamples=10)
    assert found[["kl_low", "kl_high", "js_low", "js_high"]].isna().all(axis=None)
    assert found.js_nats.notna().all()


def test_a_study_says_which_sae_a_row_is(rows):
    w = {"subject": "s", "corpus": "c", "ell": "01"}
    names = [f"topk-x8-k{k}-t1000-mse-seed0" for k in (8, 32)]
    parts = [({"spec": {"wildcards": {**w, "sae": name}}}, rows) for name in names]
    found = attention_by_head.study_table(parts, resamples=10)
    assert list(found.k.unique()) == [8, 32] and (found.hook_layer == 1).all()
    assert list(found)[:9] == [
        *("subject", "corpus", "hook_layer", "expansion", "k", "tokens", "objective", "seed"),
        "codec",
    ]
    own = found[found.k == 32].iloc[:, 8:].reset_index(drop=True)
    pd.testing.assert_frame_equal(own, attention_by_head.table(rows, resamples=10))


# --- what cannot be measured --------------------------------------------------------------------
def test_a_model_without_attention_is_refused_in_one_line(tmp_path):
    subject = subjects.load(tiny_mamba(tmp_path / "model"), "cpu")
    with pytest.raises(StreamgaugeError, match=r"Mamba.* exposes no attention weights"):
        attention.measure(subject, TOKENS, 0, CODECS, sequences=1, batch_size=1)


def test_unusable_arguments(subject):
    def run(tokens=TOKENS, layer=LAYER, codecs=CODECS):
        attention.measure(subject, tokens, layer, codecs, sequences=2, batch_size=2)

    with pytest.raises(StreamgaugeError, match="no attention to compare"):
        run(tokens=TOKENS[:, :1])
    with pytest.raises(StreamgaugeError, match="layer 9 does not exist"):
        run(layer=9)
    broken = {"sae": lambda h: (h * torch.nan, None)}
    with pytest.raises(StreamgaugeError, match="'sae' patched in is not finite at sequence 0"):
        run(codecs=broken)
    assert subject.model.config._attn_implementation != "eager"
