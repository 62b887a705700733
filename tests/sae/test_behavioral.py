"""The objective `behavioral`: gradients, the identity metric, the order of data, what it buys."""

import dataclasses

import numpy as np
import pytest
import torch

from sae_data import activations, write_probes, write_store
from streamgauge.base.errors import StreamgaugeError
from streamgauge.numerics.row_metric import RowMetric
from streamgauge.sae import topk
from streamgauge.sae.behavioral import Behavioral, InMetric
from streamgauge.sae.start import Start
from streamgauge.sae.step import Step
from streamgauge.sae.stream import Stream
from streamgauge.sae.train import Run, Settings, train

N, T, D, M = 60, 64, 12, 96
SETTINGS = Settings(
    batch_size=256, warmup_steps=5, lr=2e-3, dead_tokens=300, k_aux=8, pool_tokens=2048
)
RUN = Run(k=2, d_sae=M, seed=0, tokens=40 * 256)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_same(a, b, history=True):
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert torch.equal(getattr(a.sae, name), getattr(b.sae, name)), name
    if history:
        assert a.history.equals(b.history) and a.facts == b.facts


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("store") / "a.zarr", activations(N, T, D))


@pytest.fixture(scope="module")
def factors():
    """Two costly directions common to all tokens, and noise; sinks and last positions are free."""
    common = 3 * draw(D, 2, seed=1)
    factors = common @ draw(N, T, 2, 4, seed=2) + 0.2 * draw(N, T, D, 4, seed=3)
    factors[:, [0, -1]] = 0
    return factors / 2


@pytest.fixture(scope="module")
def probes(factors, tmp_path_factory):
    return write_probes(tmp_path_factory.mktemp("probes") / "probes-train.zarr", factors).path


@pytest.fixture(scope="module")
def behavioral(store, probes, tmp_path_factory):
    scratch = tmp_path_factory.mktemp("behavioral")
    return train(store, [RUN], SETTINGS, scratch, objective=Behavioral(probes))[0]


# --- gradients ----------------------------------------------------------------------------------
@pytest.mark.parametrize("dead", [None, [0, 3, 4, 17, 40, 41, 42, 95]])
@pytest.mark.parametrize("k_aux", [4, 256])
def test_gradients_equal_autograd_of_the_dense_loss(dead, k_aux):
    n, k, s, scale, variance, reference = 50, 6, 4, 0.3, 17.0, 2.5
    sae = topk.init(D, M, k, seed=0, b_dec=0.2 * draw(D))
    sae = dataclasses.replace(sae, W_enc=sae.W_enc + 0.1 * draw(D, M), b_enc=0.1 * draw(M, seed=5))
    x, U = draw(n, D, seed=1) + 0.3, draw(n, D, s, seed=2)
    U[7] = 0
    metric = RowMetric.behavioral_fisher(U.flatten(1), D)
    nats, c = 0.5 / scale**2, 0.5
    step = Step(
        sae, steps=1, lr=1e-3, k_aux=k_aux, auxk_coefficient=c, variance=variance, dead_tokens=100
    )
    if dead:
        step.tokens = 1000
        step.tokens_since_fired[dead] = 101
    losses, _ = step.gradients(x, InMetric(metric, nats, variance * nats / reference))

    p = [t.double().requires_grad_() for t in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)]
    W_enc, b_enc, W_dec, b_dec = p
    x, U = x.double(), U.double()

    def cost(e):
        return torch.einsum("nds,nd->ns", U, e).square().sum(-1).mean()

    pre = (x - b_dec) @ W_enc + b_enc
    values, ids = pre.topk(k, dim=-1)
    x_hat = torch.zeros_like(pre).scatter(-1, ids, values.relu()) @ W_dec + b_dec
    loss = 0.5 * cost((x_hat - x) / scale)  # nats, of unscaled errors
    total, auxk = variance * nats / reference * cost(x_hat - x), torch.zeros(())
    torch.testing.assert_close(total, variance * loss / reference)
    if dead:
        residual = (x - x_hat).detach()
        values, ids = pre[:, dead].topk(min(k_aux, len(dead)), dim=-1)
        z = torch.zeros_like(pre[:, dead]).scatter(-1, ids, values.relu())
        auxk = cost(z @ W_dec[dead] - residual) / cost(residual - residual.mean(0))
    (total + c * variance * auxk).backward()

    assert losses.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert losses.mse.item() == pytest.approx((x_hat - x).square().sum(-1).mean().item(), rel=1e-5)
    assert losses.auxk.item() == pytest.approx(auxk.item(), rel=1e-4)
    encoder = step.encoder.grad
    grads = [encoder[:, :D].T, encoder[:, D], step.W_dec.grad, step.b_dec.grad]
    for got, want in zip(grads, p, strict=True):
        torch.testing.assert_close(got, want.grad.float(), rtol=1e-4, atol=1e-4)


# --- G = I --------------------------------------------------------------------------------------
class InEuclid(Behavioral):
    """Any probes, taken for none."""

    def metric(self, factors):
        return RowMetric.euclidean(*factors.shape[:2])


@pytest.fixture(scope="module")
def identity(tmp_path_factory):
    path = tmp_path_factory.mktemp("identity") / "probes-train.zarr"
    return write_probes(path, torch.eye(D).expand(N, T, D, D), "bfloat16").path


@pytest.mark.parametrize("exclude_sinks", [False, True])
@pytest.mark.parametrize("kind", [Behavioral, InEuclid])
def test_identity_reproduces_mse_bit_for_bit(store, identity, tmp_path, kind, exclude_sinks):
    settings = dataclasses.replace(SETTINGS, exclude_sinks=exclude_sinks, clip=1.0)
    (mse,) = train(store, [RUN], settings, tmp_path / "mse")
    (made,) = train(store, [RUN], settings, tmp_path / "b", objective=kind(identity))
    assert mse.history.dead.max() > 0  # so that AuxK took part
    assert_same(made, mse, history=False)
    # the loss alone is in another unit: nats
    nats = 0.5 / mse.facts["scale"] ** 2
    np.testing.assert_allclose(made.history.loss, nats * mse.history.loss, rtol=1e-6)
    columns = ["fvu", "auxk_loss", "dead", "lr", "l0"]
    assert made.history[columns].equals(mse.history[columns])
    assert made.facts["reference_loss"] == nats * mse.facts["variance"]
    assert (made.facts["objective"], mse.facts["objective"]) == ("behavioral", "mse")


# --- the stream ---------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("exclude_sinks", [False, True])
def test_factors_come_with_their_tokens_in_the_order_of_mse(store, tmp_path, dtype, exclude_sinks):
    x = torch.from_numpy(store.read(0, N))
    probes = write_probes(tmp_path / "p.zarr", x[..., None] * torch.tensor([0.5, -2.0]), dtype)
    options = dict(batch_size=200, seed=4, pool_tokens=1500, exclude_sinks=exclude_sinks)
    plain = Stream(store, **options, scale=0.25)
    paired = Stream(store, **options, scale=0.25, probes=probes)
    assert torch.equal(plain.head(500), paired.head(500))
    for start, stop in ((0, 30), (17, 22)):
        batches = zip(plain.batches(start, stop), paired.batches(start, stop), strict=True)
        for want, (got, factors) in batches:
            assert torch.equal(got, want)
            assert factors.dtype == getattr(torch, dtype)  # not widened on the way
            expected = (4 * want[..., None] * torch.tensor([0.5, -2.0])).to(factors.dtype)
            assert torch.equal(factors, expected)


def test_at_most_one_pool_is_read_ahead(store, factors, tmp_path):
    class Counted:
        dtype, n_probes, reads = "float32", factors.shape[-1], 0

        def tensor(self, start, stop):
            self.reads += 1
            return factors[start:stop]

    probes = Counted()
    batches = Stream(store, batch_size=64, pool_tokens=64 * 32, probes=probes).batches(0, 500)
    next(batches)
    batches.close()  # waits for the reader
    assert probes.reads == 2  # one chunk a pool


# --- training -----------------------------------------------------------------------------------
def mean_cost(sae, store, factors):
    """Mean of ½ eᵀGe over all tokens, nats."""
    x = torch.from_numpy(store.read(0, N)).flatten(0, 1)
    e = sae(x)[0] - x
    return 0.5 * torch.einsum("nds,nd->ns", factors.flatten(0, 1), e).square().sum(1).mean().item()


def test_it_lowers_the_cost_that_mse_does_not_see(store, factors, behavioral, tmp_path):
    (mse,) = train(store, [RUN], SETTINGS, tmp_path)
    costs = [mean_cost(made.sae, store, factors) for made in (behavioral, mse)]
    assert costs[0] < 0.75 * costs[1]
    assert behavioral.history.fvu.iloc[-1] > mse.history.fvu.iloc[-1]
    # the same start: what differs is the objective alone
    for fact in ("scale", "variance", "b_dec_init", "tokens_seen", "data_seed"):
        assert behavioral.facts[fact] == mse.facts[fact]
    # the untrained SAE does a little better than the reference, which knows nothing of the token
    assert 0.2 < behavioral.history.loss.iloc[0] / behavioral.facts["reference_loss"] < 1


def test_history_is_in_nats(store, factors, behavioral):
    last = behavioral.history.loss.iloc[-5:].mean()
    assert last == pytest.approx(mean_cost(behavioral.sae, store, factors), rel=0.5)


def test_null_directions_are_free(store, tmp_path):
    """Where no probe looks, the SAE does not learn: decoder rows only leave the null space."""
    factors = torch.zeros(N, T, D, 3)
    factors[:, 1:-1, :4] = draw(N, T - 2, 4, 3)
    objective = Behavioral(write_probes(tmp_path / "p.zarr", factors).path)
    settings = dataclasses.replace(SETTINGS, unit_norm=False, b_dec_init="mean")
    (made,) = train(store, [RUN], settings, tmp_path / "b", objective=objective)
    start = topk.init(D, M, RUN.k, RUN.seed)
    assert torch.equal(made.sae.W_dec[:, 4:], start.W_dec[:, 4:])
    assert not torch.isclose(made.sae.W_dec[:, :4], start.W_dec[:, :4]).any(1).all()
    assert mean_cost(made.sae, store, factors) < 0.8 * made.facts["reference_loss"]
    assert made.history.fvu.iloc[-1] > 0.4  # what costs nothing is not reconstructed


def test_interrupted_and_resumed_gives_the_same_bits(
    store, probes, behavioral, tmp_path, monkeypatch
):
    from streamgauge.sae import train as module

    advance = module.Training.advance

    def until(self, x, pull):
        if self.step.done == 17:
            raise KeyboardInterrupt
        advance(self, x, pull)

    with monkeypatch.context() as patch:
        patch.setattr(module.Training, "advance", until)
        with pytest.raises(KeyboardInterrupt):
            train(
                store, [RUN], SETTINGS, tmp_path, objective=Behavioral(probes), checkpoint_seconds=0
            )
    monkeypatch.setattr(Behavioral, "start", None)  # taken from the checkpoint, not measured again
    (made,) = train(store, [RUN], SETTINGS, tmp_path, objective=Behavioral(probes))
    assert_same(made, behavioral)


def test_a_checkpoint_of_another_objective_is_not_continued(store, probes, behavioral, tmp_path):
    train(store, [RUN], SETTINGS, tmp_path)
    (made,) = train(store, [RUN], SETTINGS, tmp_path, objective=Behavioral(probes))
    assert_same(made, behavioral)


# --- what is refused ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": 4}, "layer is 4, but that of the activations in .*a.zarr is 3"),
        ({"shape": (N - 1, T, D, 2)}, "n_sequences is 59"),
        ({"shape": (N, T // 2, D, 2)}, "n_positions is 32"),
        ({"shape": (N, T, D + 1, 2)}, "d_model is 13"),
        ({"shape": (N, T, D, 2), "value": 0.0}, "the probes of .* 3840 tokens are all zero"),
        (
            {"shape": (N, T, D, 2), "value": np.nan},
            "in a batch of training, .*not finite",
        ),
    ],
)
def test_probes_that_do_not_fit(store, tmp_path, change, message):
    shape, value = change.get("shape", (N, T, D, 2)), change.get("value", 1.0)
    probes = write_probes(
        tmp_path / "probes-train.zarr", np.full(shape, value, "f4"), layer=change.get("layer", 3)
    )
    with pytest.raises(StreamgaugeError, match=rf"probes-train\.zarr: {message}"):
        train(store, [RUN], SETTINGS, tmp_path / "s", objective=Behavioral(probes.path))


def test_saelens_trains_mse_only(store, probes, tmp_path):
    settings = dataclasses.replace(SETTINGS, trainer="saelens")
    with pytest.raises(StreamgaugeError, match="SAELens' trainer knows no objective"):
        train(store, [RUN], settings, tmp_path, objective=Behavioral(probes))


def test_the_metric_is_of_unscaled_activations():
    start = Start(0.1, 10.0, torch.zeros(3), 1, reference=5.0)
    objective = Behavioral.__new__(Behavioral)
    factors = torch.ones(1, 3, 1, dtype=torch.bfloat16)
    _, pull = objective.pull(None, (torch.zeros(1, 3), factors), start)
    # scaled error (1, 0, 0) is (10, 0, 0): ½ 10² nats; direction V / reference times 1/0.1² / 2
    loss, direction = pull(torch.tensor([[1.0, 0, 0]]))
    assert loss.item() == pytest.approx(50)
    torch.testing.assert_close(direction, torch.full((1, 3), 10.0 / 5.0 * 50))
