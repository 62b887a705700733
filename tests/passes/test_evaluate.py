"""Patched losses against a plain hook, SAELens' evaluator, and an interrupted run."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import small_disk
import tiny_models
from streamgauge.base.errors import StreamgaugeError
from streamgauge.models import hooks, subjects
from streamgauge.numerics import metrics
from streamgauge.passes import controls, evaluate
from streamgauge.passes.evaluate import TOKEN_SETS

LAYER, N, T, D, M, K = 1, 7, 24, 32, 96, 4
TOKENS = np.random.default_rng(0).integers(1, tiny_models.VOCAB, (N, T)).astype(np.int32)
TOKENS[:, 0] = 0


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny_models.tiny_gpt_neox(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def subject(directory):
    return subjects.load(directory, "cpu")


@pytest.fixture(scope="module")
def setup(subject):
    """Codecs, means and a threshold that makes some tokens beyond position 0 sinks."""
    with torch.no_grad():
        h = subject.residuals(torch.as_tensor(TOKENS), [LAYER])[LAYER]
    norm = h.norm(dim=-1)
    threshold = float(norm.quantile(0.9))
    keep = norm <= threshold
    keep[:, 0] = False
    mean = {"all": h.double().mean((0, 1)).numpy(), "no_sink": h[keep].double().mean(0).numpy()}
    codecs = {
        "sae": controls.untrained(D, M, K, seed=1, b_dec=mean["all"]),
        "identity": lambda x: (x, None),
        **controls.ablations(mean),
    }
    return h, keep, mean, threshold, codecs


@pytest.fixture(scope="module")
def tables(subject, setup):
    _, _, mean, threshold, codecs = setup
    return evaluate.evaluate(subject, TOKENS, LAYER, codecs, mean, threshold, batch_size=3)


def plain(subject, h_new, i):
    """Log-probabilities of sequence i with the residual replaced by an ordinary forward hook."""
    block = hooks.blocks(subject.model)[LAYER]

    def replace(_module, _arguments, output):
        return (h_new[None], *output[1:]) if isinstance(output, tuple) else h_new[None]

    handle = block.register_forward_hook(replace)
    try:
        with torch.no_grad():
            return (
                subject.model(torch.as_tensor(TOKENS[i : i + 1]).long()).logits[0].log_softmax(-1)
            )
    finally:
        handle.remove()


@pytest.mark.parametrize("s", TOKEN_SETS)
def test_rows_equal_a_plain_computation(subject, setup, tables, s):
    h, no_sink, mean, _, codecs = setup
    rows = tables[0].set_index(["sequence", "codec"])
    assert 0 < (~no_sink).sum() - N < N * T / 4
    for i in range(N):
        keep = no_sink[i] if s == "no_sink" else torch.ones(T, dtype=torch.bool)
        predicted = keep[:-1]
        labels = torch.as_tensor(TOKENS[i, 1:]).long()
        clean = plain(subject, h[i], i)[:-1]
        for name, codec in codecs.items():
            a_hat, z = (codec[s] if isinstance(codec, dict) else codec)(h[i])
            patched = plain(subject, torch.where(keep[:, None], a_hat, h[i]), i)[:-1]
            ce = torch.nn.functional.nll_loss(patched, labels, reduction="none")[predicted]
            ce_clean = torch.nn.functional.nll_loss(clean, labels, reduction="none")[predicted]
            kl = (clean.exp() * (clean - patched)).sum(-1)[predicted]
            a, b = h[i][keep].double(), a_hat[keep].double()
            expected = {
                "n_tokens": int(keep.sum()),
                "n_predicted": int(predicted.sum()),
                "l_orig_nats": ce_clean.mean(),
                "l_recon_nats": ce.mean(),
                "kl_nats": kl.mean(),
                "sse": (a - b).square().sum(),
                "sst": (a - torch.as_tensor(mean[s])).square().sum(),
                "squared_norm_sum": a.square().sum(),
                "dot_sum": (a * b).sum(),
                "cosine_sum": metrics.cosine(a, b) * len(a),
                "relative_error_sum": metrics.relative_error(a, b) * len(a),
                "l0_sum": np.nan if z is None else float((z[keep] != 0).sum()),
            }
            row = rows.loc[(i, name)]
            for key, value in expected.items():
                found = row[f"{key}_{s}"]
                assert found == pytest.approx(float(value), rel=1e-5, abs=1e-6, nan_ok=True), key


def test_the_identity_costs_nothing(tables):
    rows = tables[0][tables[0].codec == "identity"]
    for s in TOKEN_SETS:
        assert (rows[f"sse_{s}"] == 0).all() and (rows[f"kl_nats_{s}"] == 0).all()
        assert (rows[f"l_recon_nats_{s}"] == rows[f"l_orig_nats_{s}"]).all()


def test_the_mean_scores_zero_in_both_sets(tables):
    rows = tables[0][tables[0].codec == "mean"]
    for s in TOKEN_SETS:
        assert rows[f"sse_{s}"].sum() == pytest.approx(rows[f"sst_{s}"].sum(), rel=1e-6)


def test_latents_are_counted_where_they_fire(setup, tables):
    h, keep, _, _, codecs = setup
    fired = codecs["sae"](h.flatten(0, 1))[1].reshape(N, T, M) != 0
    latents = tables[1]
    assert set(latents.codec) == {"sae"}  # the others have none
    dense = np.zeros((2, N, M), int)
    dense[:, latents.sequence, latents.latent] = latents[["n_all", "n_no_sink"]].T
    np.testing.assert_array_equal(dense[0], fired.sum(1))
    np.testing.assert_array_equal(dense[1], (fired & keep[..., None]).sum(1))
    assert (latents.n_all > 0).all()


def test_the_cut_into_batches_and_chunks_does_not_show(subject, setup, tables, monkeypatch):
    _, _, mean, threshold, codecs = setup
    monkeypatch.setitem(hooks.LOGITS_AT_ONCE, "cpu", 5 * tiny_models.VOCAB)
    monkeypatch.setattr(evaluate, "TOKENS_AT_ONCE", 2 * T)
    other = evaluate.evaluate(subject, TOKENS, LAYER, codecs, mean, threshold, batch_size=7)
    for one, two in zip(tables, other, strict=True):
        pd.testing.assert_frame_equal(one, two, rtol=1e-5, atol=1e-6)


def test_the_last_layer_and_a_sequence_of_sinks_only(subject, setup):
    mean = setup[2]
    codecs = controls.ablations(mean)
    rows, latents = evaluate.evaluate(subject, TOKENS[:2], 3, codecs, mean, 0.0, batch_size=2)
    assert (rows.n_predicted_no_sink == 0).all() and rows.l_recon_nats_no_sink.isna().all()
    assert (rows.kl_nats_all > 0).all() and len(latents) == 0


def written_by(subject, n):
    """Sequences sampled from the model, which ablation therefore costs something on."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.zeros(n, 1, dtype=torch.long)
    for _ in range(T - 1):
        with torch.no_grad():
            p = (2 * subject.logits(ids)[:, -1, 1:]).softmax(-1)
        ids = torch.cat([ids, 1 + torch.multinomial(p, 1, generator=generator)], dim=1)
    return ids


def test_it_agrees_with_saelens(subject, setup, tables):
    """On the same batches: losses, ce_loss_score and KL, unmasked and with an ignored BOS."""
    from sae_lens import TopKSAE, TopKSAEConfig
    from sae_lens.evals import get_downstream_reconstruction_metrics, get_recons_loss
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.training.activation_scaler import ActivationScaler

    _, _, mean, _, codecs = setup
    name = hooks.hook_name(LAYER)
    theirs = TopKSAE(TopKSAEConfig(d_in=D, d_sae=M, k=K, metadata=SAEMetadata(hook_name=name)))
    ours = codecs["sae"]
    theirs.load_state_dict({p: getattr(ours, p) for p in ("W_enc", "b_enc", "W_dec", "b_dec")})
    model, tokens = subject.bridge(), written_by(subject, 6)

    class Batches:
        def __init__(self):
            self.batches = iter(tokens.split(3))

        def get_batch_tokens(self, n):
            return next(self.batches)

    # without a threshold the only sinks are the BOS tokens, which SAELens can be told to ignore
    rows = evaluate.evaluate(subject, tokens, LAYER, codecs, mean, np.inf, batch_size=3)[0]
    sae, zero = rows[rows.codec == "sae"], rows[rows.codec == "zero"]
    with torch.no_grad():
        for s, ignored in (("all", None), ("no_sink", [0])):
            expected = get_downstream_reconstruction_metrics(
                theirs, model, Batches(), ActivationScaler(), True, True, 2, 3, ignored
            )
            losses = {
                "ce_loss_with_sae": sae[f"l_recon_nats_{s}"].mean(),
                "ce_loss_without_sae": sae[f"l_orig_nats_{s}"].mean(),
            }
            if s == "all":  # SAELens' ablation hook knows no mask
                losses["ce_loss_with_ablation"] = zero.l_recon_nats_all.mean()
                losses["ce_loss_score"] = metrics.ce_loss_score(
                    sae.l_orig_nats_all, sae.l_recon_nats_all, zero.l_recon_nats_all
                )
            # SAELens averages KL over the last position too, where nothing is predicted here
            parts = [
                get_recons_loss(theirs, model, ActivationScaler(), b, True, False, ignored)
                for b in tokens.split(3)
            ]
            kl = torch.cat([p["kl_div_with_sae"] for p in parts])[:, ignored is not None : -1]
            expected["kl"], losses["kl"] = float(kl.mean()), sae[f"kl_nats_{s}"].mean()
            for key, found in losses.items():
                print(f"{s} {key}: {found - expected[key]:.1e}")
                assert found == pytest.approx(expected[key], abs=1e-5), key


@pytest.mark.parametrize("where", ["activation", "reconstruction"])
def test_what_is_not_finite_is_named(directory, setup, where):
    mean, threshold = setup[2:4]
    subject = subjects.load(directory, "cpu")
    codec = controls.zero_ablation()
    if where == "activation":
        with torch.no_grad():
            subject.model.get_input_embeddings().weight[TOKENS[5, 6]] = torch.inf
        # masked attention has spread it to earlier positions: 0 · inf is NaN
        first = np.argwhere(TOKENS == TOKENS[5, 6])[0, 0]
        expected = rf"activation is not finite at sequence {first}, position \d+"
    else:
        expected = "'bad' is not finite at sequence 0, position 0"

        def codec(h):
            return h * torch.nan, None

    with pytest.raises(StreamgaugeError, match=expected) as error:
        evaluate.evaluate(subject, TOKENS, LAYER, {"bad": codec}, mean, threshold, batch_size=3)
    assert "blocks.1.hook_resid_post" in str(error.value)


def test_tokens_without_a_successor_are_an_error(subject, setup):
    mean, threshold, codecs = setup[2:]
    with pytest.raises(StreamgaugeError, match="no next token"):
        evaluate.evaluate(subject, TOKENS[:, :1], LAYER, codecs, mean, threshold, batch_size=3)


RUN = """
import os, pickle, signal, sys
import numpy as np
from streamgauge.models import subjects
from streamgauge.passes import evaluate
with open(sys.argv[1], "rb") as file:
    directory, tokens, sae, mean, threshold, scratch = pickle.load(file)
calls = 0
def codec(h):
    global calls
    calls += 1
    if calls == 3:  # two batches are finished, the third is under way
        os.kill(os.getpid(), signal.SIGKILL)
    return sae(h)
codecs = {"sae": codec}
evaluate.evaluate(
    subjects.load(directory, "cpu"), tokens, 1, codecs, mean, threshold,
    batch_size=2, scratch=scratch,
)
"""


def test_a_killed_run_continues_to_the_same_tables(subject, directory, setup, tmp_path):
    import pickle

    _, _, mean, threshold, codecs = setup
    scratch = tmp_path / "scratch"
    arguments = (directory, TOKENS, codecs["sae"], mean, threshold, scratch)
    (tmp_path / "run.pickle").write_bytes(pickle.dumps(arguments))
    command = [sys.executable, "-c", RUN, str(tmp_path / "run.pickle")]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    finished = {p.name: p.stat().st_mtime_ns for p in Path(scratch).glob("rows-*")}
    assert len(finished) == 2
    arguments = (subject, TOKENS, LAYER, {"sae": codecs["sae"]}, mean, threshold)
    resumed = evaluate.evaluate(*arguments, batch_size=2, scratch=scratch)
    whole = evaluate.evaluate(*arguments, batch_size=2)
    for one, two in zip(resumed, whole, strict=True):
        pd.testing.assert_frame_equal(one, two, check_exact=True)
    after = {p.name: p.stat().st_mtime_ns for p in Path(scratch).glob("rows-*")}
    assert len(after) == 4 and after.items() >= finished.items()


def test_a_full_disk_keeps_the_finished_batches(subject, setup, tmp_path):
    _, _, mean, threshold, codecs = setup
    arguments = (subject, TOKENS, LAYER, {"sae": codecs["sae"]}, mean, threshold)
    whole = evaluate.evaluate(*arguments, batch_size=1, scratch=tmp_path / "whole")
    sizes = [file.stat().st_size for file in (tmp_path / "whole").iterdir()]
    with small_disk.mounted(tmp_path / "disk", 1) as disk:
        filler = small_disk.fill(disk, 3 * max(sizes))
        with pytest.raises(StreamgaugeError, match=r"parquet: cannot be written .*No space left"):
            evaluate.evaluate(*arguments, batch_size=1, scratch=disk)
        finished = set(disk.glob("*.parquet"))
        assert {path.name for path in disk.iterdir()} == {p.name for p in finished} | {"filler"}
        assert any(path.name.startswith("rows") for path in finished) and len(finished) < 2 * N
        filler.unlink()
        resumed = evaluate.evaluate(*arguments, batch_size=1, scratch=disk)
    for one, two in zip(resumed, whole, strict=True):
        pd.testing.assert_frame_equal(one, two, check_exact=True)
