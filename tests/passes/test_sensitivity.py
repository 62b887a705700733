"""Costs of errors: closed forms, explicit loops, exact divergences of a small model."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import tiny_models
from streamgauge.base.errors import StreamgaugeError
from streamgauge.models import hooks, subjects
from streamgauge.numerics import metrics
from streamgauge.numerics.sensitivity import fisher_factor_apply, swd
from streamgauge.numerics.token_sets import TOKEN_SETS
from streamgauge.passes import controls, sensitivity
from streamgauge.sae import files
from streamgauge.stores import layer_stores

EPS = 1e-3  # size of an error for which the orders above the second do not count


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def factor(logits):
    """F^½ of one distribution, as a matrix."""
    eye = torch.eye(len(logits), dtype=torch.float64)
    return fisher_factor_apply(logits.expand(len(eye), -1), eye).T


# --- refusals -----------------------------------------------------------------------------------
STORE = SimpleNamespace(path="L03/activations-eval.zarr", hook_name=hooks.hook_name(3), d_model=4)


def test_an_sae_of_another_layer_or_width_is_refused(tmp_path):
    sae = controls.untrained(4, 8, 2, 0, np.zeros(4))
    files.save(sae, tmp_path, {"hook_name": hooks.hook_name(3)})
    loaded, config = files.load(tmp_path)
    sensitivity.check_matches(config, loaded, STORE)
    old = {"hook_name": hooks.hook_name(3)}  # where older SAEs have it
    sensitivity.check_matches(old, sae, STORE)
    where = tmp_path / "cfg.json"
    with pytest.raises(StreamgaugeError) as error:
        sensitivity.check_matches({"metadata": {"hook_name": "blocks.2.x"}}, sae, STORE, where)
    for words in (str(where), "metadata.hook_name is blocks.2.x", STORE.path, "Use an SAE"):
        assert words in str(error.value)
    with pytest.raises(StreamgaugeError, match=r"metadata\.hook_name is None"):
        sensitivity.check_matches({}, sae, STORE)
    with pytest.raises(StreamgaugeError, match=r"d_in is 5, but .* holds 4"):
        sensitivity.check_matches(config, controls.untrained(5, 8, 2, 0, np.zeros(5)), STORE)


# --- explicit loops -----------------------------------------------------------------------------
class Fake:
    """Stores with the readers of `layer_stores`, in memory; nothing larger than a chunk is read."""

    n_sequences, n_positions, d_model, chunk_sequences = 5, 6, 4, 2
    layer, hook_name = 2, hooks.hook_name(2)

    def __init__(self, path, **arrays):
        self.path, self.arrays = path, arrays

    def _rows(self, name, start, stop):
        assert 0 < stop - start <= self.chunk_sequences
        return None if name not in self.arrays else self.arrays[name][start:stop].copy()

    def read(self, start, stop):
        return self._rows("main", start, stop)

    def keep(self, start, stop):
        return self._rows("keep", start, stop)

    def shift(self, start, stop):
        return self._rows("shift", start, stop)

    def same_position(self, start, stop):
        positions = self._rows("positions", start, stop)
        return None if positions is None else (positions, self._rows("same", start, stop))


def fakes(**replaced):
    n, T, d, s, R, m = 5, 6, 4, 3, 2, 2
    generator = np.random.default_rng(9)
    keep = generator.random((n, T)) < 0.7
    keep[:, 0] = False
    g, v, w = normal(n, T, d, seed=2), normal(n, T, d, s, seed=3), normal(n, T, d, R, seed=4)
    for vectors in (g, v, w):
        vectors[:, -1] = 0  # nothing is predicted there
    made = {
        "activations": Fake("a.zarr", main=normal(n, T, d, seed=1), keep=keep),
        "gradients": Fake("g.zarr", main=g),
        "probes": Fake(
            "p.zarr",
            main=v,
            shift=w,
            same=normal(n, m, d, s, seed=5),
            positions=np.argsort(generator.random((n, T - 1)), 1)[:, :m].astype(np.int32),
        ),
    }
    return made | replaced


MEAN = {"all": normal(4, seed=6), "no_sink": normal(4, seed=7)}
CODECS = {"sae": lambda h: (h * 0.9 + 0.1, None), **controls.ablations(MEAN)}


def by_loops(made, name, s):
    """The columns of one codec and token set, token by token."""
    a, probes = made["activations"].arrays, made["probes"].arrays
    h = a["main"].astype(float)
    keep = a["keep"] if s == "no_sink" else np.ones(h.shape[:2], bool)
    a_hat = {"sae": h * 0.9 + 0.1, "zero": 0 * h, "mean": 0 * h + MEAN[s]}[name]
    rows = []
    for i in range(len(h)):
        row = dict.fromkeys(
            [
                *("n_tokens", "n_predicted", "swd_sum", "gradient_dot_abs_sum"),
                *("gradient_dot_sum", "quad_sum", "joint_quad", "diagonal_quad_sum", "n_same"),
                *("same_quad_sum", "downstream_at_same_sum", "trace_squared_sum"),
                "trace_of_square_sum",
            ],
            0.0,
        )
        together = np.zeros(probes["main"].shape[-1])
        for t in np.flatnonzero(keep[i]):
            delta = a_hat[i, t] - h[i, t]
            U, W = probes["main"][i, t].astype(float), probes["shift"][i, t].astype(float)
            dot = made["gradients"].arrays["main"][i, t] @ delta
            quad = delta @ U @ U.T @ delta / 2
            row["n_tokens"] += 1
            row["n_predicted"] += t < h.shape[1] - 1
            row["swd_sum"] += dot**2
            row["gradient_dot_abs_sum"] += abs(dot)
            row["gradient_dot_sum"] += dot
            row["quad_sum"] += quad
            row["diagonal_quad_sum"] += quad + delta @ W @ W.T @ delta / 2
            together += delta @ U
            for j, position in enumerate(probes["positions"][i]):
                if position == t:
                    V = probes["same"][i, j].astype(float)
                    row["n_same"] += 1
                    row["same_quad_sum"] += delta @ V @ V.T @ delta / 2
                    row["downstream_at_same_sum"] += quad
            s = U.shape[1]
            for k, l in np.ndindex(s, s):  # noqa: E741
                if k != l:
                    norms = (U[:, k] @ U[:, k]) * (U[:, l] @ U[:, l])
                    row["trace_squared_sum"] += s / (s - 1) * norms
                    row["trace_of_square_sum"] += s / (s - 1) * (U[:, k] @ U[:, l]) ** 2
        row["joint_quad"] = together @ together / 2
        rows.append(row)
    return pd.DataFrame(rows)


def test_every_column_equals_explicit_loops():
    made = fakes()
    table = sensitivity.measure(**made, codecs=CODECS)
    assert list(table.codec.cat.categories) == ["sae", "zero", "mean"]
    assert table.sequence.tolist() == [i for i in range(5) for _ in CODECS]
    for name in CODECS:
        own = table[table.codec == name]
        for s in TOKEN_SETS:
            expected = by_loops(made, name, s)
            found = own[[f"{column}_{s}" for column in expected]].to_numpy()
            np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-5)
    n_columns = 2 + 2 * len(expected.columns)
    assert len(table.columns) == n_columns and not table.isna().any(axis=None)


def test_chunks_do_not_show():
    whole = fakes()
    for store in whole.values():
        store.chunk_sequences = 5
    one, other = (sensitivity.measure(**made, codecs=CODECS) for made in (fakes(), whole))
    pd.testing.assert_frame_equal(one, other, rtol=1e-6)


def test_what_was_not_harvested_is_nan():
    full = sensitivity.measure(**fakes(), codecs=CODECS)
    made = fakes(probes=Fake("p.zarr", main=fakes()["probes"].arrays["main"]))
    table = sensitivity.measure(**made, codecs=CODECS)
    missing = ["diagonal_quad_sum", "same_quad_sum", "downstream_at_same_sum"]
    missing = [f"{column}_{s}" for column in missing for s in TOKEN_SETS]
    assert table[missing].isna().all(axis=None)
    assert (table[["n_same_all", "n_same_no_sink"]] == 0).all(axis=None)
    others = table.columns.difference([*missing, "n_same_all", "n_same_no_sink"])
    pd.testing.assert_frame_equal(table[others], full[others])
    single = fakes(probes=Fake("p.zarr", main=made["probes"].arrays["main"][..., :1]))
    table = sensitivity.measure(**single, codecs=CODECS)
    assert table.trace_squared_sum_all.isna().all() and table.quad_sum_all.notna().all()


def test_stores_that_do_not_belong_together_are_refused_before_a_read():
    for field, value in (("layer", 3), ("n_sequences", 4), ("d_model", 5), ("n_positions", 7)):
        for name in ("gradients", "probes"):
            made = {key: Fake(f"{key}.zarr") for key in fakes()}  # without arrays: any read fails
            setattr(made[name], field, value)
            with pytest.raises(StreamgaugeError) as error:
                sensitivity.measure(**made, codecs=CODECS)
            text = str(error.value)
            assert text.startswith(f"{name}.zarr: {field} is {value}") and "Harvest both" in text


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("activations", "main", "the activation is not finite at sequence 3, position 2"),
        ("gradients", "main", "the gradient is not finite at sequence 3, position 2"),
        ("probes", "main", "the probe is not finite at sequence 3, position 2"),
        ("probes", "shift", "the shift probe is not finite at sequence 3, position 2"),
        ("probes", "same", "the same-position probe is not finite at sequence 3, sample 1"),
    ],
)
def test_a_stored_value_that_is_not_finite_is_named(name, array, words):
    made = fakes()
    made[name].arrays[array][3, 1 if array == "same" else 2, 1] = np.nan
    with pytest.raises(StreamgaugeError, match=words) as error:
        sensitivity.measure(**made, codecs=CODECS)
    assert str(error.value).startswith(made[name].path)


def test_a_reconstruction_that_is_not_finite_is_named():
    def broken(h):
        return torch.where(torch.arange(len(h))[:, None] == 8, torch.inf, h), None

    with pytest.raises(StreamgaugeError, match=r"by 'sae' is not finite at sequence 1, position 2"):
        sensitivity.measure(**fakes(), codecs={"sae": broken})


def test_one_token_by_hand():
    """T = 2, V = d = 2, logits = h: p = σ(h₀ − h₁), G = p(1 − p)[[1, −1], [−1, 1]]."""
    h = np.array([[[1.0, 0.0], [0.5, 0.25]]], np.float32)
    p = 1 / (1 + np.exp(-1.0))
    logits = torch.tensor(h[0, 0])
    g, v = np.zeros_like(h), np.zeros((1, 2, 2, 2), np.float32)
    g[0, 0] = [p - 1, 1 - p]  # the label is 0
    v[0, 0] = factor(logits.double())  # all probes there are: exact
    w = np.zeros((1, 2, 2, 1), np.float32)
    w[0, 0, :, 0] = [p, 1 - p]
    made = {
        "activations": Fake("a.zarr", main=h, keep=np.array([[False, True]])),
        "gradients": Fake("g.zarr", main=g),
        "probes": Fake("p.zarr", main=v, shift=w),
    }
    for store in made.values():
        store.n_sequences, store.n_positions, store.d_model = h.shape
    x, y = 0.3, -0.2
    codec = {"c": lambda h: (h + torch.tensor([x, y]), None)}
    row = sensitivity.measure(**made, codecs=codec).iloc[0]
    dot, quad = (p - 1) * (x - y), p * (1 - p) * (x - y) ** 2 / 2
    assert row.gradient_dot_sum_all == pytest.approx(dot, rel=1e-6)
    assert row.gradient_dot_abs_sum_all == pytest.approx(-dot, rel=1e-6)
    assert row.swd_sum_all == pytest.approx(dot**2, rel=1e-6)
    assert row.quad_sum_all == row.joint_quad_all == pytest.approx(quad, rel=1e-6)
    shift = (p * x + (1 - p) * y) ** 2 / 2
    assert row.diagonal_quad_sum_all == pytest.approx(quad + shift, rel=1e-6)
    assert (row.n_tokens_all, row.n_predicted_all) == (2, 1)
    # the only token of no_sink is the last: it predicts nothing and costs nothing
    assert (row.n_tokens_no_sink, row.n_predicted_no_sink) == (1, 0)
    assert row.quad_sum_no_sink == row.swd_sum_no_sink == 0


# --- a small model, real stores -----------------------------------------------------------------
LAYER, T, D, V = 1, 6, 16, 24
IDS = torch.tensor(np.random.default_rng(3).integers(1, V, (2, T)))


class World:
    """A float64 model; stores with its gradients and all factors of its Fisher, by dense algebra.

    The probes are J_{t't}ᵀ F_{t'}^½ e_j for every later position t' and unit vector e_j: what
    random probes estimate, exactly.
    """

    def __init__(self, folder):
        model = tiny_models.tiny_llama(folder / "model", layers=3, d_model=D, vocab_size=V)
        self.subject = subjects.load(model, "cpu")
        self.subject.model.double()
        with torch.no_grad():
            h = self.subject.residuals(IDS, [LAYER])[LAYER].float()
        self.h = h.double()
        g, v, same, shift, self.J = [], [], [], [], []
        for i in range(len(IDS)):
            J = torch.autograd.functional.jacobian(  # t' V t d
                lambda x, i=i: self.logits(x[None], i)[0], self.h[i]
            )
            logits = self.logits(self.h[i][None], i)[0]
            p = logits.softmax(-1)
            root = torch.stack([factor(row) for row in logits])
            pulled = torch.einsum("avtd,avj->tdaj", J, root)
            g.append(torch.einsum("avtd,av->td", J, p - torch.eye(V)[IDS[i, 1:]].double()))
            v.append(pulled.flatten(2))
            own = torch.zeros_like(pulled[:1])
            own[0, :, 0] = pulled[3, :, 3]  # position 3 is the sampled one
            same.append(own.flatten(2))
            shift.append(torch.einsum("avtd,av->tda", J, p))
            self.J.append(J)
        n = len(IDS)
        size = {"n_sequences": n, "n_positions": T, "d_model": D, "dtype": "float32"}
        size |= {"layer": LAYER, "hook_name": hooks.hook_name(LAYER)}
        norm = h.norm(dim=-1).numpy()
        self.stores = [
            self._store(
                folder / "activations.zarr",
                lambda path: layer_stores.create_activations(path, **size),
                activations=h.numpy(),
                norm=norm,
                mean=np.zeros((2, D)),
                median_norm=1.0,
                sink_threshold=1e9,
            ),
            self._store(
                folder / "gradients.zarr",
                lambda path: layer_stores.create_gradients(path, **size),
                gradients=torch.stack(g).numpy(),
            ),
            self._store(
                folder / "probes.zarr",
                lambda path: layer_stores.create_probes(
                    path, n_probes=v[0].shape[-1], same_positions=1, diagonal=T - 1, **size
                ),
                probes=torch.stack(v).numpy(),
                same_position=torch.stack(same).numpy(),
                sampled_position=np.full((n, 1), 3),
                shift=torch.stack(shift).numpy(),
            ),
        ]

    @staticmethod
    def _store(path, create, **arrays):
        work = layer_stores.scratch(path, "{}")
        create(work)
        store = layer_stores.Store(work, writable=True)
        for name, values in arrays.items():
            store.write_all(name, values)
        layer_stores.commit(work, path)
        return path

    def logits(self, h, i):
        """Logits of the predicted positions, (1, T − 1, V), with the residuals replaced by h."""
        return self.subject.logits_from(IDS[i][None], LAYER, h)[:, :-1]

    def measure(self, codec):
        kinds = (layer_stores.ActivationStore, layer_stores.GradientStore, layer_stores.ProbeStore)
        opened = (kind(path) for kind, path in zip(kinds, self.stores, strict=True))
        return sensitivity.measure(*opened, {"c": codec})

    def after(self, codec, i):
        """Σ CE and Σ KL(clean‖·) over the predicted positions, patched minus clean."""
        patched = codec(self.h[i].float())[0].double()
        with torch.no_grad():
            log_p, log_q = (
                metrics.log_probabilities(self.logits(x[None], i)[0]) for x in (self.h[i], patched)
            )
        ce = [metrics.cross_entropy_per_position(x, IDS[i, 1:]).sum() for x in (log_p, log_q)]
        return float(ce[1] - ce[0]), float(metrics.kl_per_position(log_p, log_q).sum())

    def delta(self, codec, i):
        h = self.h[i].float()
        return (codec(h)[0] - h).double()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"))


def error(size, only=None):
    """A codec with errors of this size; the same for every sequence, at one position or all."""
    e = torch.as_tensor(normal(T, D, seed=11)) * size
    if only is not None:
        e = e * (torch.arange(T) == only)[:, None]
    return lambda h: (h + e.repeat(len(h) // T, 1), None)


def test_first_order_is_the_finite_difference_of_the_loss(world):
    table = world.measure(error(EPS))
    for i in range(len(IDS)):
        # central: the second order cancels
        difference = (world.after(error(EPS), i)[0] - world.after(error(-EPS), i)[0]) / 2
        assert table.gradient_dot_sum_all[i] == pytest.approx(difference, rel=1e-3)


def test_the_joint_quadratic_is_the_divergence_of_patching_everywhere(world):
    table = world.measure(error(EPS))
    for i in range(len(IDS)):
        kl = world.after(error(EPS), i)[1]
        assert table.joint_quad_all[i] == pytest.approx(kl, rel=5e-3)
        # token by token the cross terms are missing
        assert abs(table.quad_sum_all[i] / kl - 1) > 0.02


@pytest.mark.parametrize("t", range(T))
def test_the_quadratic_of_a_token_is_the_divergence_of_patching_it(world, t):
    codec = error(EPS, only=t)
    table = world.measure(codec)
    for i in range(len(IDS)):
        kl = world.after(codec, i)[1]
        assert table.quad_sum_all[i] == pytest.approx(kl, rel=5e-3, abs=1e-15)
        assert table.joint_quad_all[i] == pytest.approx(table.quad_sum_all[i], rel=1e-6)
    if t == T - 1:
        assert (table.quad_sum_all == 0).all() and (table.gradient_dot_sum_all == 0).all()


def test_same_position_sees_the_tokens_own_logits_only(world):
    codec = error(EPS, only=3)
    table = world.measure(codec)
    for i in range(len(IDS)):
        patched = codec(world.h[i].float())[0].double()
        with torch.no_grad():
            log_p, log_q = (
                metrics.log_probabilities(world.logits(x[None], i)[0, 3])
                for x in (world.h[i], patched)
            )
        kl = float(metrics.kl_per_position(log_p, log_q))
        assert table.same_quad_sum_all[i] == pytest.approx(kl, rel=5e-3)
        assert table.downstream_at_same_sum_all[i] > table.same_quad_sum_all[i]
    assert (table.n_same_all == 1).all()


def test_the_diagonal_variant_is_the_dense_one(world):
    codec = error(EPS)
    table = world.measure(codec)
    for i in range(len(IDS)):
        p = world.logits(world.h[i][None], i)[0].softmax(-1).detach()
        delta = world.delta(codec, i)
        moved = torch.einsum("avtd,td->tav", world.J[i], delta)  # logits moved by each token alone
        diagonal = (moved**2 * p).sum() / 2
        fisher = diagonal - ((moved * p).sum(-1) ** 2).sum() / 2
        assert table.quad_sum_all[i] == pytest.approx(float(fisher), rel=1e-4)
        assert table.diagonal_quad_sum_all[i] == pytest.approx(float(diagonal), rel=1e-4)
        assert diagonal > fisher


def test_swd_of_the_table_is_that_of_the_formula(world):
    table = world.measure(error(0.5))
    opened = layer_stores.GradientStore(world.stores[1])
    g = opened.read(0, len(IDS))
    deltas = torch.stack([world.delta(error(0.5), i) for i in range(len(IDS))]).numpy()
    expected = swd(g, deltas)
    assert table.swd_sum_all.sum() / table.n_tokens_all.sum() == pytest.approx(expected, rel=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_agrees_with_the_cpu():
    here, there = (sensitivity.measure(**fakes(), codecs=CODECS, device=d) for d in ("cpu", "cuda"))
    pd.testing.assert_frame_equal(here, there, rtol=1e-5)
