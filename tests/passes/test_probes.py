"""Probes are unbiased for the pulled-back output Fisher, by dense Jacobians, KL and a peer."""

import warnings

import numpy as np
import pytest
import torch

import tiny_models
from pipeline import tree_digest
from streamgauge.base.errors import StreamgaugeError
from streamgauge.models import hooks, subjects
from streamgauge.passes import gather, gradients, probes
from streamgauge.stores import layer_stores

T, LAYER, D, VOCABULARY = 5, 1, 8, 24
COPIES, COUNT = 150, 20
MANY = COPIES * COUNT  # probes of a token; a quadratic form of them is q·chi²/MANY, ± 2.6 %
FIVE_ERRORS = 5 * (2 / MANY) ** 0.5


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """A small model in float64."""
    directory = tmp_path_factory.mktemp("gpt2") / "model"
    subject = subjects.load(
        tiny_models.tiny_gpt2(directory, d_model=D, vocab_size=VOCABULARY), device="cpu"
    )
    subject.model.double()
    return subject


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny_models.tiny_llama(tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture
def subject(directory):
    return subjects.load(directory, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(0, tiny_models.VOCAB, (20, 128), dtype=np.int32)


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, VOCABULARY, (2, T), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def dense(exact, ids):
    """(J, p): Jacobian (sequence, t', vocabulary, t, d) and probabilities, positions 0..T−2."""
    with torch.no_grad():
        h = exact.residuals(ids, [LAYER])[LAYER]
        p = exact.logits(ids).softmax(-1)[:, :-1]
    jacobians = [
        torch.autograd.functional.jacobian(
            lambda x, row=row: exact.logits_from(row, LAYER, x)[0, :-1], h[i : i + 1]
        )[:, :, 0]
        for i, row in enumerate(ids[:, None])
    ]
    return torch.stack(jacobians), p


@pytest.fixture(scope="module")
def many(exact, ids):
    """Arrays of MANY probes: those of copies of the sequences, side by side."""
    rows = ids.repeat(COPIES, 1)
    made = probes.draw(
        exact,
        rows,
        LAYER,
        range(len(rows)),
        count=COUNT,
        same_positions=T - 1,
        diagonal=COUNT,
        seed=3,
    )
    joined = {
        name: torch.cat(made[name].split(2), -1) / COPIES**0.5
        for name in ("probes", "same_position", "shift")
    }
    return joined | {"sampled_position": made["sampled_position"][:2]}


def fisher(p):
    return torch.diag_embed(p) - p[..., :, None] * p[..., None, :]


def downstream(dense):
    return torch.einsum("nuvtd,nuvw,nuwte->ntde", dense[0], fisher(dense[1]), dense[0])


def same_position(dense):
    own = torch.einsum("ntvtd->ntvd", dense[0][..., : T - 1, :])
    return torch.einsum("ntvd,ntvw,ntwe->ntde", own, fisher(dense[1]), own)


def directions(*shape):
    return torch.from_numpy(np.random.default_rng(5).standard_normal(shape))


def test_exact_factors_equal_the_dense_pullback(exact, ids, dense):
    u = probes.exact_factors(exact, ids, LAYER)
    assert u.shape == (2, T, D, D) and u.dtype == torch.float64
    torch.testing.assert_close(u @ u.mT, downstream(dense), rtol=1e-8, atol=1e-12)
    assert (u[:, -1] == 0).all()
    u = probes.exact_factors(exact, ids, LAYER, "same_position")
    expected = same_position(dense)
    torch.testing.assert_close((u @ u.mT)[:, :-1], expected, rtol=1e-8, atol=1e-12)
    # at the last predicted position no later logits count; elsewhere they only add
    torch.testing.assert_close(downstream(dense)[:, T - 2], expected[:, -1], rtol=1e-8, atol=1e-12)
    surplus = torch.linalg.eigvalsh(downstream(dense)[:, :-1] - expected)
    assert surplus.min() > -1e-10 * surplus.max()
    with pytest.raises(StreamgaugeError, match="scope 'both' is not one of downstream"):
        probes.exact_factors(exact, ids, LAYER, "both")


def test_many_probes_give_the_dense_quadratic(dense, many):
    """Also fixes the scale: without 1/√s the ratio would be s."""
    e = directions(5, 2, T, D)
    got = torch.einsum("rntd,ntdi->rnti", e, many["probes"]).square().sum(-1)[..., :-1]
    expected = torch.einsum("rntd,ntde,rnte->rnt", e, downstream(dense), e)[..., :-1]
    assert ((got / expected - 1).abs() < FIVE_ERRORS).all()
    assert abs((got / expected).mean() - 1) < FIVE_ERRORS / 5
    assert (many["probes"][:, -1] == 0).all()


def test_same_position_probes_see_their_own_logits_only(dense, many):
    positions = many["sampled_position"]
    assert positions.dtype == torch.int32
    assert positions.tolist() == [list(range(T - 1))] * 2  # all there are, without replacement
    e = directions(5, 2, T - 1, D)
    got = torch.einsum("rntd,ntdi->rnti", e, many["same_position"]).square().sum(-1)
    expected = torch.einsum("rntd,ntde,rnte->rnt", e, same_position(dense), e)
    assert ((got / expected - 1).abs() < FIVE_ERRORS).all()
    # one u for both kinds: where no later logits count they are the same vectors
    torch.testing.assert_close(
        many["probes"][:, T - 2], many["same_position"][:, T - 2], rtol=1e-9, atol=1e-12
    )


def test_shift_probes_make_up_the_diagonal_variant(dense, many):
    jacobian, p = dense
    diagonal = torch.einsum("nuvtd,nuv,nuvte->ntde", jacobian, p, jacobian)
    e = directions(5, 2, T, D)
    quadratic = torch.einsum("rntd,ntde,rnte->rnt", e, diagonal, e)[..., :-1]
    plain, shift = (
        torch.einsum("rntd,ntdi->rnti", e, many[name]).square().sum(-1)[..., :-1]
        for name in ("probes", "shift")
    )
    assert (((plain + shift) / quadratic - 1).abs() < FIVE_ERRORS).all()
    excess = torch.einsum("nuvtd,nuv,rntd->rnut", jacobian, p, e).square().sum(2)[..., :-1]
    assert ((shift / excess - 1).abs() < FIVE_ERRORS).all()


def test_joint_quadratic_is_the_second_order_kl_of_patching_everything(exact, ids, dense, many):
    delta = directions(2, T, D)
    moved = torch.einsum("nuvtd,ntd->nuv", dense[0], delta)
    expected = torch.einsum("nuv,nuvw,nuw->n", moved, fisher(dense[1]), moved) / 2
    step = 1e-4
    with torch.no_grad():
        h = exact.residuals(ids, [LAYER])[LAYER]
        log_p, log_q = (
            exact.logits_from(ids, LAYER, x)[:, :-1].log_softmax(-1) for x in (h, h + step * delta)
        )
    kl = (log_p.exp() * (log_p - log_q)).sum((1, 2))
    torch.testing.assert_close(kl / step**2, expected, rtol=1e-3, atol=0)
    got = torch.einsum("ntd,ntdi->ni", delta, many["probes"]).square().sum(-1) / 2
    assert ((got / expected - 1).abs() < FIVE_ERRORS).all()


def test_draws_depend_on_seed_sequence_and_probe_only(exact, ids, monkeypatch):
    def scaled(rows, sequences, count, **options):
        made = probes.draw(exact, rows, LAYER, sequences, count=count, **options)
        return made["probes"] * count**0.5

    base = scaled(ids, [7, 8], 3)
    torch.testing.assert_close(scaled(ids, [7, 8], 5)[..., :3], base, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(scaled(ids[1:], [8], 3), base[1:], rtol=1e-9, atol=1e-12)
    extras = scaled(ids, [7, 8], 3, same_positions=2, diagonal=2)
    torch.testing.assert_close(extras, base, rtol=0, atol=0)
    assert (scaled(ids, [7, 8], 3, seed=1) != base)[:, :-1].all()
    assert (scaled(ids[:1], [8], 3) != base[:1])[:, :-1].all()
    assert (base[..., 0] != base[..., 1])[:, :-1].all()
    monkeypatch.setitem(hooks.LOGITS_AT_ONCE, "cpu", 3 * VOCABULARY)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    torch.testing.assert_close(scaled(ids, [7, 8], 3), base, rtol=0, atol=0)


def make(subject, tokens, final, **options):
    work = layer_stores.scratch(final, "{}")
    options = {"count": 4, "batch_size": 8, "progress": False} | options
    probes.harvest(subject, tokens, LAYER, work, **options)
    facts = gather.probes(work)
    layer_stores.commit(work, final)
    return facts


@pytest.mark.parametrize("dtype, tolerance", [("bfloat16", 2**-8), ("float32", 1e-5)])
def test_the_store_holds_what_was_drawn(subject, tokens, tmp_path, dtype, tolerance):
    facts = make(
        subject, tokens, tmp_path / "p.zarr", dtype=dtype, same_positions=3, diagonal=2, seed=5
    )
    rows = subject.ids(tokens.astype(np.int64))
    expected = probes.draw(
        subject, rows, LAYER, range(20), count=4, same_positions=3, diagonal=2, seed=5
    )
    store = layer_stores.ProbeStore(tmp_path / "p.zarr")
    close = {"rtol": tolerance, "atol": 1e-6}
    np.testing.assert_allclose(store.read(0, 20), expected["probes"], **close)
    np.testing.assert_allclose(store.shift(0, 20), expected["shift"], **close)
    positions, same = store.same_position(0, 20)
    np.testing.assert_array_equal(positions, expected["sampled_position"])
    np.testing.assert_allclose(same, expected["same_position"], **close)
    assert store.tensor(2, 5).dtype == getattr(torch, dtype)
    np.testing.assert_array_equal(store.tensor(2, 5).float(), store.read(2, 5))
    assert (store.n_probes, facts["n_probes"], facts["seed"]) == (4, 4, 5)
    assert (facts["n_sampled_positions"], facts["n_shift_probes"]) == (3, 2)
    assert facts["hook_name"] == store.hook_name == "blocks.1.hook_resid_post"
    assert set(facts["scope"]) == set(facts["units"]) == {"probes", "same_position", "shift"}
    assert facts["units"]["probes"] == "sqrt(nats) per unit of activation"


def test_plain_probes_have_no_further_arrays(subject, tokens, tmp_path):
    facts = make(subject, tokens[:2], tmp_path / "p.zarr")
    store = layer_stores.ProbeStore(tmp_path / "p.zarr")
    assert store.same_position(0, 2) is None and store.shift(0, 2) is None
    assert facts["n_sampled_positions"] == facts["n_shift_probes"] == 0
    import xarray

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = xarray.open_zarr(tmp_path / "p.zarr")
    assert dict(opened.sizes) == {"sequence": 2, "position": 128, "d_model": 32, "probe": 4}


def test_resumed_and_spread_harvests_are_bit_identical(subject, tokens, tmp_path):
    options = {"count": 8, "batch_size": 8, "same_positions": 2, "diagonal": 1, "progress": False}
    make(subject, tokens, tmp_path / "whole.zarr", **options)
    work = layer_stores.scratch(tmp_path / "again.zarr", "{}")
    probes.harvest(subject, tokens, LAYER, work, part=(1, 2), **options)
    with pytest.raises(StreamgaugeError, match="lacks 1 of 2 shards"):
        layer_stores.commit(work, tmp_path / "again.zarr")
    (work / "sampled_position/c/1/0").write_bytes(b"half")  # cut short on its way to the disk
    probes.harvest(subject, tokens, LAYER, work, **options)
    layer_stores.commit(work, tmp_path / "again.zarr")
    assert tree_digest(tmp_path / "again.zarr") == tree_digest(tmp_path / "whole.zarr")


def test_work_of_another_seed_is_not_continued(subject, tokens, tmp_path):
    work = layer_stores.scratch(tmp_path / "p.zarr", "{}")
    probes.harvest(subject, tokens[:2], LAYER, work, count=1, progress=False)
    with pytest.raises(StreamgaugeError, match="begun with a different layout"):
        probes.harvest(subject, tokens[:2], LAYER, work, count=1, seed=1, progress=False)


def test_underflow_in_the_store_is_refused(subject, tokens, tmp_path):
    class Faint:
        def __getattr__(self, name):
            return getattr(subject, name)

        def logits_from(self, ids, layer, h):
            return subject.logits_from(ids, layer, h) * 1e-8

    with pytest.raises(StreamgaugeError) as caught:
        make(Faint(), tokens[:2], tmp_path / "p.zarr", dtype="float16")
    text = str(caught.value)
    assert text.startswith("blocks.1.hook_resid_post: a probe of sequence 0, position 0 is at most")
    assert "underflows to zero in float16" in text and "`probes.dtype: bfloat16`" in text
    make(Faint(), tokens[:2], tmp_path / "b.zarr", dtype="bfloat16")


def test_a_sampled_position_is_named_by_its_place():
    x = torch.full((1, 2, 4, 3), 1e-9)
    x[0, 0] = 1
    with pytest.raises(StreamgaugeError, match="sequence 5, position 41"):
        gradients.check_fits(x, "float16", 5, LAYER, "a probe", "probes", torch.tensor([[17, 41]]))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"count": 0}, r"probes\.count: 0 probes of a token measure nothing"),
        ({"diagonal": -1}, r"probes\.diagonal: -1 is no number"),
        ({"same_positions": 128}, "128 positions cannot be sampled from the 127 predicted ones"),
        ({"same_positions": -1}, r"probes\.same_positions: -1 positions"),
        ({"dtype": "auto"}, r"probes\.dtype: dtype 'auto' is not one of bfloat16"),
        ({"part": (2, 2)}, "no part 2 of 2"),
        ({"layer": 4}, "layer 4 does not exist"),
        ({"tokens": np.zeros((3, 1), np.int32)}, r"no next token .* shape \(3, 1\)"),
    ],
)
def test_bad_requests_are_named(subject, tokens, tmp_path, change, message):
    given = {"tokens": tokens, "layer": LAYER} | change
    work = layer_stores.scratch(tmp_path / "p.zarr", "{}")
    with pytest.raises(StreamgaugeError, match=message):
        probes.harvest(subject, scratch=work, **given)


def test_float16_models_are_refused(directory, tokens, tmp_path):
    half = subjects.load(directory, device="cpu", dtype="float16")
    with pytest.raises(StreamgaugeError, match="below 6e-8 vanish"):
        make(half, tokens[:2], tmp_path / "p.zarr")


def test_gamfit_finds_the_same_output_fisher(exact, ids):
    """Its factors cover every position's logits: give it the sequence without the last token."""
    peer = pytest.importorskip("gamfit.torch.harvest")

    class Logits(torch.nn.Module):
        def forward(self, ids):
            return exact.model(ids, use_cache=False).logits

    before = exact.model.config._attn_implementation
    exact.model.set_attn_implementation("eager")  # the peer differentiates forwards too
    try:
        module = hooks.blocks(exact.model)[LAYER]
        for name, scope in (
            ("harvest_downstream_output_fisher_factors", "downstream"),
            ("harvest_output_fisher_factors", "same_position"),
        ):
            found = getattr(peer, name)(Logits(), module, ids[:1, :-1], rank=D)
            u = torch.as_tensor(found.U, dtype=torch.float64)
            mine = probes.exact_factors(exact, ids[:1], LAYER, scope)[0, :-1]
            size = (mine @ mine.mT).abs().amax((1, 2), keepdim=True)
            assert ((u @ u.mT - mine @ mine.mT) / size).abs().max() < 1e-5
    finally:
        exact.model.set_attn_implementation(before)
