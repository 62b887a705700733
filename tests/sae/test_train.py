"""Training: alone and together, killed and resumed, both trainers, what is refused."""

import dataclasses
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch

import training_runs
from sae_data import activations, write_store
from streamgauge.base.errors import StreamgaugeError
from streamgauge.sae import files, from_store, topk
from streamgauge.sae.start import geometric_median
from streamgauge.sae.train import Run, Settings, train
from streamgauge.stores import checkpoints
from training_runs import RUNS, SETTINGS, D, M


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("store") / "a.zarr", activations(100, 64, D))


@pytest.fixture(scope="module")
def together(store, tmp_path_factory):
    return train(store, RUNS, SETTINGS, tmp_path_factory.mktemp("together"))


def assert_same(a, b):
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert torch.equal(getattr(a.sae, name), getattr(b.sae, name)), name
    assert a.history.equals(b.history)
    assert a.facts == b.facts


def test_together_equals_alone(store, together, tmp_path):
    for number, run in enumerate(RUNS):
        (alone,) = train(store, [run], SETTINGS, tmp_path / str(number))
        assert_same(alone, together[number])


def test_what_comes_out(store, together):
    x = torch.from_numpy(store.read(0, store.n_sequences)[:, 1:].reshape(-1, D))
    for run, made in zip(RUNS, together, strict=True):
        sae, history, facts = made.sae, made.history, made.facts
        steps = run.tokens // 256
        assert (sae.k, sae.d_sae) == (run.k, run.d_sae)
        assert list(history.step) == list(range(1, steps + 1))
        assert list(history.columns) == [
            "step", "tokens", "loss", "fvu", "auxk_loss", "dead", "lr", "l0",
        ]  # fmt: skip
        assert history.tokens.iloc[-1] == facts["tokens_seen"] == steps * 256
        assert facts["epochs"] == steps * 256 / 6400
        assert 0 < history.l0.iloc[-1] <= run.k
        torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(run.d_sae))
        # better than the untrained SAE that the facts describe, on plain activations
        untrained = topk.init(D, run.d_sae, run.k, run.seed, torch.tensor(facts["b_dec_init"]))
        errors = [(codec(x)[0] - x).square().sum().item() for codec in (sae, untrained)]
        assert errors[0] < 0.85 * errors[1]
    # the scale gives tokens that are no sinks a mean norm of about sqrt(d)
    assert facts["scale"] * x.norm(dim=1).mean() == pytest.approx(math.sqrt(D), rel=0.02)
    # auto learning rate
    assert Run(4, 4096, 0, 1).peak_lr(Settings()) == pytest.approx(4e-4)
    assert together[1].history.lr.max() == 1e-3


def test_a_cell_of_the_grid(store, tmp_path):
    """Its files, and the manifest's facts."""
    place = {"subject": "s", "corpus": "c", "expansion": 4, "k": 4, "seed": 0}
    place |= {"tokens": RUNS[0].tokens, "objective": "mse"}
    settings = dataclasses.asdict(SETTINGS)
    facts = from_store.fit(store.path, tmp_path, place, settings, tmp_path / "unfinished")
    sae, config = files.load(tmp_path)
    assert {
        "d_model": D,
        "d_sae": M,
        "k": 4,
        "seed": 0,
        "objective": "mse",
    }.items() <= facts.items()
    assert config["metadata"]["objective"] == "mse"
    assert config["metadata"]["hook_name"] == "blocks.3.hook_resid_post"
    assert (sae.k, sae.d_sae) == (4, M)
    assert len(pd.read_csv(tmp_path / "training.csv")) == facts["steps"] == 40
    assert facts["reference_loss"] == facts["variance"]


def test_history_is_thinned(store, tmp_path, monkeypatch):
    from streamgauge.sae import train as module

    monkeypatch.setattr(module, "HISTORY_ROWS", 10)
    (made,) = train(store, RUNS[:1], SETTINGS, tmp_path)
    assert list(made.history.step) == [1, *range(4, 41, 4)]


SCRIPT = """
import sys
from streamgauge.sae.train import train
from streamgauge.stores.layer_stores import ActivationStore
from training_runs import RUNS, SETTINGS
train(ActivationStore(sys.argv[1]), RUNS, SETTINGS, sys.argv[2],
      checkpoint_seconds=float(sys.argv[3]))
"""


@pytest.mark.parametrize("seconds", ["0", "0.05"])
def test_killed_and_resumed_gives_the_same_bits(store, together, tmp_path, seconds):
    support = os.path.dirname(training_runs.__file__)
    checkpoint = tmp_path / "checkpoint.safetensors"
    env = {**os.environ, "PYTHONPATH": support, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", SCRIPT, str(store.path), str(tmp_path), seconds]
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    steps_done = checkpoints.load(checkpoint)[0]["0.done"][0]
    assert 0 < steps_done < 40
    resumed = train(store, RUNS, SETTINGS, tmp_path, checkpoint_seconds=0.01)
    for a, b in zip(resumed, together, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("stop", [1, 17, 26, 39])
def test_interrupted_at_any_step_gives_the_same_bits(store, together, tmp_path, stop, monkeypatch):
    from streamgauge.sae import train as module

    class Killed(Exception):
        pass

    advance, calls = module.Training.advance, []

    def until(self, x, pull):
        calls.append(self)
        if self is calls[0] and calls.count(self) > stop:
            raise Killed
        advance(self, x, pull)

    with monkeypatch.context() as patch:
        patch.setattr(module.Training, "advance", until)
        with pytest.raises(Killed):
            train(store, RUNS, SETTINGS, tmp_path, checkpoint_seconds=0)
    resumed = train(store, RUNS, SETTINGS, tmp_path)
    for a, b in zip(resumed, together, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("steps", [40, 25])  # in the middle of a pool, and where an epoch ends
def test_a_finished_training_is_not_repeated(store, tmp_path, capfd, steps):
    tokens = steps * 256
    runs = [dataclasses.replace(RUNS[0], tokens=tokens)]
    (first,) = train(store, runs, SETTINGS, tmp_path)
    before = (tmp_path / "checkpoint.safetensors").stat().st_mtime_ns
    (again,) = train(store, runs, SETTINGS, tmp_path)
    assert (tmp_path / "checkpoint.safetensors").stat().st_mtime_ns == before
    assert_same(first, again)
    assert f"resuming at {tokens:,} of {tokens:,} tokens" in capfd.readouterr().err


def test_a_checkpoint_of_other_settings_is_not_continued(store, tmp_path):
    other = dataclasses.replace(SETTINGS, lr=5e-4)
    (fresh,) = train(store, RUNS[:1], other, tmp_path / "fresh")
    train(store, RUNS[:1], SETTINGS, tmp_path / "used")
    (used,) = train(store, RUNS[:1], other, tmp_path / "used")
    assert_same(fresh, used)


def test_a_checkpoint_that_cannot_be_written_is_one_clear_error(store, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StreamgaugeError, match=r"checkpoint\.safetensors: cannot be written"):
        train(store, RUNS[:1], SETTINGS, tmp_path / "file")


def test_auxk_acts_on_dead_latents(store, tmp_path):
    (made,) = train(store, RUNS[2:], SETTINGS, tmp_path)
    assert made.history.dead.max() > 0
    assert (made.history.auxk_loss[made.history.dead > 0] > 0).all()
    assert (made.history.auxk_loss[made.history.dead == 0] == 0).all()


def test_exclude_sinks_trains_without_them(store, tmp_path):
    settings = dataclasses.replace(SETTINGS, exclude_sinks=True, b_dec_init="mean")
    (made,) = train(store, RUNS[:1], settings, tmp_path)
    x = store.read(0, store.n_sequences)[store.keep(0, store.n_sequences)]
    assert made.facts["epochs"] == 40 * 256 / len(x)
    np.testing.assert_allclose(made.facts["b_dec_init"], x.mean(0), rtol=1e-3, atol=1e-4)


def test_geometric_median():
    # three corners of a triangle: the point that sees every side at 120 degrees
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 3**0.5 / 2]])
    torch.testing.assert_close(geometric_median(x), x.mean(0), rtol=1e-5, atol=1e-6)
    x = torch.cat([torch.zeros(60, 2), torch.full((40, 2), 1e4)])
    assert geometric_median(x).norm() < 1.0


@pytest.mark.parametrize("trainer", ["native", "saelens"])
def test_a_run_that_stops_begins_as_the_whole_run(store, tmp_path, trainer):
    settings = dataclasses.replace(SETTINGS, trainer=trainer, decay_fraction=0.5)
    (whole,) = train(store, RUNS[:1], settings, tmp_path / "whole")
    (begun,) = train(store, RUNS[:1], settings, tmp_path / "begun", stop_after=25)
    assert begun.history.equals(whole.history.head(25))  # the rate already falls
    assert {key: begun.facts[key] for key in ("steps", "scale", "lr")} == {
        key: whole.facts[key] for key in ("steps", "scale", "lr")
    }
    assert not list(tmp_path.glob("begun/*"))


def test_saelens_backend(store, tmp_path, together):
    """The same stream: with SAELens' hard-wired choices on our side, the same losses."""
    same = dataclasses.replace(SETTINGS, unit_norm=False, eps=1e-8, clip=1.0, auxk_coefficient=0.0)
    (ours,) = train(store, RUNS[:1], same, tmp_path)
    state = torch.random.get_rng_state()
    (theirs,) = train(store, RUNS[:1], dataclasses.replace(same, trainer="saelens"), tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)
    np.testing.assert_allclose(theirs.history.loss, ours.history.loss, rtol=1e-5)
    np.testing.assert_allclose(theirs.history.l0, ours.history.l0, rtol=1e-3)
    np.testing.assert_allclose(theirs.history.lr, ours.history.lr)
    assert theirs.facts == {**ours.facts, "trainer": "saelens"}
    torch.testing.assert_close(theirs.sae.W_dec, ours.sae.W_dec, rtol=0, atol=1e-4)


def test_saelens_backend_with_decoder_norms_folded(store, tmp_path):
    settings = dataclasses.replace(SETTINGS, trainer="saelens")
    (made,) = train(store, RUNS[:1], settings, tmp_path)
    torch.testing.assert_close(made.sae.W_dec.norm(dim=1), torch.ones(M))
    assert made.history.fvu.iloc[-1] < 0.8 * made.history.fvu.iloc[0]


@pytest.mark.parametrize(
    ("run", "settings", "message"),
    [
        (Run(k=65, d_sae=64, seed=0, tokens=5000), SETTINGS, "k = 65 is outside"),
        (Run(k=4, d_sae=64, seed=0, tokens=255), SETTINGS, "less than one batch of 256"),
        (RUNS[0], dataclasses.replace(SETTINGS, trainer="other"), "sae.trainer: 'other'"),
        (RUNS[0], dataclasses.replace(SETTINGS, b_dec_init="x"), "sae.b_dec_init: 'x'"),
    ],
)
def test_bad_requests(store, tmp_path, run, settings, message):
    with pytest.raises(StreamgaugeError, match=message):
        train(store, [run], settings, tmp_path)


@pytest.mark.parametrize("trainer", ["native", "saelens"])
def test_divergence_names_the_step(store, tmp_path, trainer):
    settings = dataclasses.replace(SETTINGS, lr=1e30, unit_norm=False, warmup_steps=0)
    settings = dataclasses.replace(settings, trainer=trainer)
    with pytest.raises(StreamgaugeError, match=r"step \d+: the loss is not finite.*sae\.clip"):
        train(store, RUNS[:1], settings, tmp_path)


def test_a_non_finite_activation_is_named(tmp_path):
    x = activations(100, 64, D)
    x[50, 20, 3] = np.inf
    store = write_store(tmp_path / "a.zarr", x)
    with pytest.raises(StreamgaugeError, match=r"a\.zarr.*an activation is not finite.*bfloat16"):
        train(store, RUNS[:1], SETTINGS, tmp_path / "scratch")


def test_a_non_finite_activation_outside_the_sample_names_its_step(tmp_path, monkeypatch):
    from streamgauge.sae import start

    monkeypatch.setattr(start, "SAMPLE_TOKENS", 64)
    x = activations(100, 64, D)
    x[50, 20, 3] = np.inf
    store = write_store(tmp_path / "a.zarr", x)
    with pytest.raises(StreamgaugeError, match=r"training step \d+: an activation is not finite"):
        train(store, RUNS[:1], SETTINGS, tmp_path / "scratch")
