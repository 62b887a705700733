"""The objective `e2e`: gradients through a model, batches of sequences, what it buys, resuming."""

import dataclasses

import numpy as np
import pytest
import torch

from sae_data import write_store
from streamgauge.base.errors import StreamgaugeError
from streamgauge.models import subjects
from streamgauge.numerics import metrics
from streamgauge.sae import e2e, topk
from streamgauge.sae.e2e import EndToEnd, Sequences
from streamgauge.sae.start import Start
from streamgauge.sae.step import Step
from streamgauge.sae.train import Run, Settings, train
from streamgauge.stores import layer_stores
from tiny_models import tiny_gpt2, tiny_llama

N, T, D, M, LAYER = 24, 16, 32, 96, 3  # the layer `write_store` writes: the last of four
SETTINGS = Settings(
    batch_size=70, warmup_steps=2, lr=4e-3, dead_tokens=300, k_aux=8, b_dec_init="mean"
)
RUN = Run(k=3, d_sae=M, seed=0, tokens=40 * 64)  # 70 tokens are four sequences of 16


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return subjects.load(tiny_llama(tmp_path_factory.mktemp("model"), layers=6), "cpu")


@pytest.fixture(scope="module")
def ids():
    return np.random.default_rng(0).integers(2, 380, (N, T)).astype(np.int32)


@pytest.fixture(scope="module")
def store(subject, ids, tmp_path_factory):
    with torch.no_grad():
        h = subject.residuals(ids, [LAYER])[LAYER].numpy()
    return write_store(tmp_path_factory.mktemp("store") / "activations-train.zarr", h)


@pytest.fixture(scope="module")
def tokens(ids, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens") / "tokens-train.zarr"
    layer_stores.store_tokens(path, "{}", ids, np.zeros_like(ids))
    return path


@pytest.fixture(scope="module")
def trained(store, subject, tokens, tmp_path_factory):
    objective = EndToEnd(subject, tokens)
    return train(store, [RUN], SETTINGS, tmp_path_factory.mktemp("e2e"), objective=objective)[0]


def assert_same(a, b):
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert torch.equal(getattr(a.sae, name), getattr(b.sae, name)), name
    assert a.history.equals(b.history) and a.facts == b.facts


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- gradients ----------------------------------------------------------------------------------
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("at_once", [1, e2e.LOGITS_AT_ONCE])
@pytest.mark.parametrize("dead", [None, [0, 5, 17, 95]])
def test_gradients_equal_autograd_of_the_model(subject, ids, monkeypatch, dead, at_once, sinks):
    monkeypatch.setattr(e2e, "LOGITS_AT_ONCE", at_once)
    rows, k, scale, variance, reference, c = torch.from_numpy(ids[:3]), 5, 0.4, 30.0, 0.7, 0.5
    with torch.no_grad():
        h = subject.residuals(rows, [1])[1]
    keep = torch.ones(3, T, dtype=bool)
    if sinks:
        keep[:, 0] = keep[1, 7] = False
    sae = topk.init(D, M, k, seed=0, b_dec=scale * h.flatten(0, 1).mean(0))
    sae = dataclasses.replace(sae, b_enc=0.1 * draw(M, seed=5))
    step = Step(sae, steps=1, lr=1e-3, auxk_coefficient=c, variance=variance, dead_tokens=100)
    if dead:
        step.tokens = 1000
        step.tokens_since_fired[dead] = 101
    start = Start(scale, variance, sae.b_dec, 1, reference)
    x = h[keep] * scale
    losses, _ = step.gradients(x, e2e.Patched(subject, 1, rows, h, keep, start))

    p = [t.clone().requires_grad_() for t in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)]
    W_enc, b_enc, W_dec, b_dec = p
    pre = (x - b_dec) @ W_enc + b_enc
    values, latents = pre.topk(k, dim=-1)
    x_hat = torch.zeros_like(pre).scatter(-1, latents, values.relu()) @ W_dec + b_dec
    patched = h.clone().masked_scatter(keep[..., None].expand_as(h), x_hat / scale)
    log_p = subject.logits_from(rows, 1, h).log_softmax(-1)
    log_q = subject.logits_from(rows, 1, patched).log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)[:, :-1]
    loss = kl[keep[:, :-1]].mean()
    total = variance * loss / reference
    if dead:
        residual = (x - x_hat).detach()
        spread = (residual - residual.mean(0)).square().sum(-1).mean()
        auxk = (pre[:, dead].relu() @ W_dec[dead] - residual).square().sum(-1).mean() / spread
        total = total + c * variance * auxk
    total.backward()

    assert losses.loss.item() == pytest.approx(loss.item(), rel=1e-4)
    assert losses.mse.item() == pytest.approx((x_hat - x).square().sum(-1).mean().item(), rel=1e-4)
    encoder = step.encoder.grad
    grads = [encoder[:, :D].T, encoder[:, D], step.W_dec.grad, step.b_dec.grad]
    for got, want in zip(grads, p, strict=True):
        torch.testing.assert_close(got, want.grad, rtol=1e-3, atol=1e-4 * want.grad.abs().max())


def test_the_last_position_pulls_nowhere(subject, ids):
    rows = torch.from_numpy(ids[:2])
    with torch.no_grad():
        h = subject.residuals(rows, [LAYER])[LAYER]
    keep = torch.ones(2, T, dtype=bool)
    loss, gradient = e2e.divergence(subject, LAYER, rows, h, h + 0.1 * draw(*h.shape), keep)
    assert loss > 0 and not gradient[:, -1].any() and gradient[:, :-1].any(-1).all()
    loss, gradient = e2e.divergence(subject, LAYER, rows, h, h, keep)
    assert loss == 0 and not gradient.any()  # nothing changed: exactly nothing to pull


# --- batches ------------------------------------------------------------------------------------
def test_every_sequence_once_an_epoch_with_its_own_tokens(store, ids):
    stream = Sequences(store, ids, batch_size=5 * T, seed=3, scale=0.5)
    seen, where = [], {row.tobytes(): i for i, row in enumerate(ids)}
    for x, rows, h, keep in stream.batches(0, 10):  # 50 of 2 x 24 + 2 sequences
        order = [where[row.numpy().astype(np.int32).tobytes()] for row in rows]
        assert torch.equal(h, torch.from_numpy(np.stack([store.read(i, i + 1)[0] for i in order])))
        assert torch.equal(x, 0.5 * h.flatten(0, 1)) and keep.all()
        seen += order
    assert sorted(seen[:N]) == sorted(seen[N : 2 * N]) == list(range(N))
    assert seen[:N] != seen[N : 2 * N]
    later = [rows for _, rows, _, _ in stream.batches(7, 10)]
    assert [where[r.numpy().astype(np.int32).tobytes()] for b in later for r in b] == seen[35:]


def test_excluded_sinks_stay_in_their_sequence(store, ids):
    stream = Sequences(store, ids, batch_size=2 * T, exclude_sinks=True)
    x, rows, h, keep = next(stream.batches(0, 1))
    assert rows.shape == keep.shape == (2, T) and not keep[:, 0].any()
    assert torch.equal(x, h[keep])


# --- training -----------------------------------------------------------------------------------
def mean_divergence(subject, store, ids, sae):
    """Nats a predicted position, by the definition."""
    h = torch.from_numpy(store.read(0, N))
    x_hat = sae(h.flatten(0, 1))[0].reshape(h.shape)
    with torch.no_grad():
        clean = subject.logits_from(ids, LAYER, h)[:, :-1]
        return metrics.kl_from_logits(clean, subject.logits_from(ids, LAYER, x_hat)[:, :-1])


def test_it_lowers_the_divergence_below_that_of_mse(store, subject, ids, trained, tmp_path):
    (mse,) = train(store, [RUN], dataclasses.replace(SETTINGS, batch_size=64), tmp_path)
    ours, theirs = (mean_divergence(subject, store, ids, made.sae) for made in (trained, mse))
    assert ours < 0.9 * theirs
    assert trained.history.fvu.iloc[-1] > mse.history.fvu.iloc[-1]
    # the same start, by other ways through the data
    for fact in ("scale", "variance", "b_dec_init", "tokens_seen", "steps", "epochs"):
        assert trained.facts[fact] == mse.facts[fact]
    assert trained.facts["objective"] == "e2e"


def test_history_is_in_nats_a_predicted_position(store, subject, ids, trained):
    last = trained.history.loss.iloc[-6:].mean()  # an epoch
    assert last == pytest.approx(mean_divergence(subject, store, ids, trained.sae), rel=0.2)
    # the reference: everything replaced by the initial b_dec
    b_dec = torch.tensor(trained.facts["b_dec_init"]).float()
    constant = mean_divergence(subject, store, ids, lambda x: (b_dec.expand_as(x), None))
    assert trained.facts["reference_loss"] == pytest.approx(constant, rel=1e-4)


def test_excluded_sinks_do_not_train(store, subject, tokens, tmp_path):
    settings = dataclasses.replace(SETTINGS, exclude_sinks=True)
    objective = EndToEnd(subject, tokens)
    (made,) = train(store, [RUN], settings, tmp_path, objective=objective)
    kept = int(store.keep(0, N).sum())
    assert made.facts["tokens_seen"] == pytest.approx(made.facts["epochs"] * kept)
    assert made.facts["tokens_seen"] < RUN.tokens == 64 * made.facts["steps"]
    assert made.history.loss.iloc[-1] < made.history.loss.iloc[0]


def test_interrupted_and_resumed_gives_the_same_bits(
    store, subject, tokens, trained, tmp_path, monkeypatch
):
    from streamgauge.sae import train as module

    advance, objective = module.Training.advance, EndToEnd(subject, tokens)

    def until(self, x, pull):
        if self.step.done == 17:
            raise KeyboardInterrupt
        advance(self, x, pull)

    with monkeypatch.context() as patch:
        patch.setattr(module.Training, "advance", until)
        with pytest.raises(KeyboardInterrupt):
            train(store, [RUN], SETTINGS, tmp_path, objective=objective, checkpoint_seconds=0)
    monkeypatch.setattr(EndToEnd, "start", None)  # taken from the checkpoint, not measured again
    (made,) = train(store, [RUN], SETTINGS, tmp_path, objective=objective)
    assert_same(made, trained)


def test_a_batch_is_at_least_one_sequence(store, subject, tokens, tmp_path):
    settings = dataclasses.replace(SETTINGS, batch_size=5)
    run = dataclasses.replace(RUN, tokens=50)
    (made,) = train(store, [run], settings, tmp_path, objective=EndToEnd(subject, tokens))
    assert (made.facts["steps"], made.facts["tokens_seen"]) == (3, 48)
    with pytest.raises(StreamgaugeError, match="less than one batch of 16"):
        run = dataclasses.replace(RUN, tokens=15)
        train(store, [run], settings, tmp_path, objective=EndToEnd(subject, tokens))


# --- what is refused ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((N - 1, T), "n_sequences is 23, but that of the activations in .*is 24"),
        ((N, T + 1), "n_positions is 17"),
    ],
)
def test_token_rows_that_do_not_fit(store, subject, tmp_path, shape, message):
    path = tmp_path / "tokens-train.zarr"
    layer_stores.store_tokens(path, "{}", np.zeros(shape, np.int32), np.zeros(shape, np.int32))
    with pytest.raises(StreamgaugeError, match=rf"tokens-train\.zarr: {message}"):
        train(store, [RUN], SETTINGS, tmp_path, objective=EndToEnd(subject, path))


def test_a_model_that_does_not_fit(store, tokens, tmp_path):
    def fit(**shape):
        subject = subjects.load(tiny_gpt2(tmp_path / str(shape), **shape), "cpu")
        train(store, [RUN], SETTINGS, tmp_path, objective=EndToEnd(subject, tokens))

    with pytest.raises(StreamgaugeError, match="d_model is 16, but that of the activations"):
        fit(d_model=16)
    with pytest.raises(StreamgaugeError, match="layer 3 does not exist"):
        fit(layers=2)


def test_sequences_of_one_token(subject, tmp_path):
    store = write_store(tmp_path / "a.zarr", draw(N, 1, D).numpy())
    layer_stores.store_tokens(tmp_path / "t.zarr", "{}", np.ones((N, 1), int), np.ones((N, 1), int))
    objective = EndToEnd(subject, tmp_path / "t.zarr")
    with pytest.raises(StreamgaugeError, match=r"t\.zarr: sequences of one token predict nothing"):
        train(store, [RUN], SETTINGS, tmp_path, objective=objective)


def test_nothing_but_sinks_to_predict_from(subject, tmp_path):
    """At T = 2 the only predicted position is 0, a sink."""
    store = write_store(tmp_path / "a.zarr", draw(N, 2, D).numpy())
    layer_stores.store_tokens(tmp_path / "t.zarr", "{}", np.ones((N, 2), int), np.ones((N, 2), int))
    settings = dataclasses.replace(SETTINGS, exclude_sinks=True)
    with pytest.raises(StreamgaugeError, match="a divergence of nan nats"):
        objective = EndToEnd(subject, tmp_path / "t.zarr")
        train(store, [RUN], settings, tmp_path, objective=objective)
    stream = Sequences(store, np.ones((N, 2), int), batch_size=4, exclude_sinks=True)
    with pytest.raises(StreamgaugeError, match="a batch predicts nothing but what follows sinks"):
        next(stream.batches(0, 1))
