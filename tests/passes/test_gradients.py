"""Gradients equal autograd's and finite differences; what cannot be stored is refused by name."""

import numpy as np
import pytest
import torch

import tiny_models
from pipeline import tree_digest
from streamgauge.base.errors import StreamgaugeError
from streamgauge.models import hooks, subjects
from streamgauge.passes import gather, gradients
from streamgauge.stores import layer_stores

T, LAYER, VOCABULARY = 8, 1, 40
MAKERS = {
    "llama": tiny_models.tiny_llama,
    "neox": tiny_models.tiny_gpt_neox,
    "gpt2": tiny_models.tiny_gpt2,
    "gemma2": tiny_models.tiny_gemma2,
}


@pytest.fixture(scope="module", params=MAKERS)
def exact(request, tmp_path_factory):
    """Small models in float64."""
    directory = tmp_path_factory.mktemp(request.param) / "model"
    maker = MAKERS[request.param]
    subject = subjects.load(maker(directory, d_model=16, vocab_size=VOCABULARY), device="cpu")
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
    return np.random.default_rng(0).integers(0, tiny_models.VOCAB, (140, 128), dtype=np.int32)


def draw_ids(n=2, length=T):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, VOCABULARY, (n, length), generator=generator)


def summed_loss(subject, ids, h):
    """Σ CE of every sequence, from the residual stream after LAYER."""
    log_q = subject.logits_from(ids, LAYER, h)[:, :-1].log_softmax(-1)
    return -log_q.gather(-1, ids[:, 1:, None]).sum((1, 2))


def clean(subject, ids):
    with torch.no_grad():
        return subject.residuals(ids, [LAYER])[LAYER]


def make(subject, tokens, final, **options):
    work = layer_stores.scratch(final, "{}")
    options = {"batch_size": 24, "progress": False} | options
    gradients.harvest(subject, tokens, LAYER, work, **options)
    facts = gather.gradients(work)
    layer_stores.commit(work, final)
    return facts


def test_central_differences_of_the_summed_loss(exact):
    ids = draw_ids()
    g = gradients.of_summed_loss(exact, ids, LAYER)
    # RMS norms round to float32 inside, which small steps would magnify
    rounds = exact.model.config.model_type in {"llama", "gemma2"}
    step, tolerance = (3e-3, 1e-3) if rounds else (1e-5, 1e-6)
    h = clean(exact, ids)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for position in range(T):
            direction = torch.zeros_like(h)
            direction[:, position] = torch.from_numpy(rng.standard_normal(h.shape[-1]))
            rise = summed_loss(exact, ids, h + step * direction)
            rise = rise - summed_loss(exact, ids, h - step * direction)
            along = (g * direction).sum((1, 2))
            torch.testing.assert_close(
                rise / (2 * step), along, rtol=tolerance, atol=tolerance / 10
            )


def test_autograd_through_the_loss_agrees(exact):
    ids = draw_ids()
    h = clean(exact, ids).requires_grad_()
    (expected,) = torch.autograd.grad(summed_loss(exact, ids, h).sum(), h)
    g = gradients.of_summed_loss(exact, ids, LAYER)
    torch.testing.assert_close(g, expected, rtol=1e-10, atol=1e-12)
    assert (g[:, -1] == 0).all() and (g[:, :-1] != 0).any(-1).all()


def test_no_contribution_from_earlier_logits(exact):
    """g at t is that of the losses at t and later: changing the earlier labels changes nothing."""
    ids = draw_ids()
    h = clean(exact, ids).requires_grad_()
    log_q = exact.logits_from(ids, LAYER, h)[:, :-1].log_softmax(-1)
    losses = -log_q.gather(-1, ids[:, 1:, None])[..., 0]
    g = gradients.of_summed_loss(exact, ids, LAYER)
    for t in range(T - 1):
        (later,) = torch.autograd.grad(losses[:, t:].sum(), h, retain_graph=True)
        torch.testing.assert_close(later[:, t], g[:, t], rtol=1e-5, atol=1e-6)


def test_a_sequence_does_not_depend_on_its_batch(exact):
    ids = draw_ids(3)
    whole = gradients.of_summed_loss(exact, ids, LAYER)
    alone = torch.cat([gradients.of_summed_loss(exact, row[None], LAYER) for row in ids])
    torch.testing.assert_close(whole, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("skips", [True, False])
def test_the_graph_begins_at_the_hook_point(exact, monkeypatch, skips):
    """Also where lower blocks cannot be skipped: they run, and build no graph."""
    if not skips:
        monkeypatch.setattr(hooks, "_skippable", lambda model: None)
    pull = gradients.Pullback(exact, draw_ids(), LAYER)
    seen, todo, leaves = set(), [pull._edge.node], []
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            leaves += [node.variable] if hasattr(node, "variable") else []
            todo += [parent for parent, _ in node.next_functions]
    assert [leaf is pull._h for leaf in leaves] == [True]


def test_temporaries_over_the_vocabulary_are_cut(exact, monkeypatch):
    ids = draw_ids()
    whole = gradients.of_summed_loss(exact, ids, LAYER)
    monkeypatch.setitem(hooks.LOGITS_AT_ONCE, "cpu", 3 * VOCABULARY)
    torch.testing.assert_close(gradients.of_summed_loss(exact, ids, LAYER), whole, rtol=0, atol=0)


@pytest.mark.parametrize(
    "dtype, tolerance", [("bfloat16", 2**-8), ("float16", 2**-10), ("float32", 1e-6)]
)
def test_the_store_holds_the_gradients(subject, tokens, tmp_path, dtype, tolerance):
    facts = make(subject, tokens[:20], tmp_path / "g.zarr", dtype=dtype)
    store = layer_stores.GradientStore(tmp_path / "g.zarr")
    ids = subject.ids(tokens[:20].astype(np.int64))
    expected = gradients.of_summed_loss(subject, ids, LAYER).numpy()
    np.testing.assert_allclose(store.read(0, 20), expected, rtol=tolerance, atol=1e-6)
    assert (store.dtype, store.layer) == (facts["dtype"], facts["layer"]) == (dtype, LAYER)
    assert facts["hook_name"] == store.hook_name == f"blocks.{LAYER}.hook_resid_post"
    assert facts["computed_in"] == "float32"
    assert facts["units"] == {"gradients": "nats per unit of activation"}


def test_resumed_and_spread_harvests_are_bit_identical(subject, tokens, tmp_path):
    make(subject, tokens, tmp_path / "whole.zarr")
    work = layer_stores.scratch(tmp_path / "again.zarr", "{}")
    options = {"batch_size": 24, "progress": False}
    gradients.harvest(subject, tokens, LAYER, work, part=(1, 2), **options)
    with pytest.raises(StreamgaugeError, match="'gradients' lacks 1 of 2 shards"):
        layer_stores.commit(work, tmp_path / "again.zarr")
    # a shard cut short on its way to the disk is made anew
    (work / "gradients/c/0/0").mkdir(parents=True)
    (work / "gradients/c/0/0/0").write_bytes(b"half")
    gradients.harvest(subject, tokens, LAYER, work, **options)
    layer_stores.commit(work, tmp_path / "again.zarr")
    assert tree_digest(tmp_path / "again.zarr") == tree_digest(tmp_path / "whole.zarr")


class Faint:
    """A model whose logits hardly depend on the residual stream."""

    def __init__(self, subject, factor):
        self._subject, self._factor = subject, factor

    def __getattr__(self, name):
        return getattr(self._subject, name)

    def logits_from(self, ids, layer, h):
        return self._subject.logits_from(ids, layer, h) * self._factor


def test_underflow_in_the_store_is_refused(subject, tokens, tmp_path):
    faint = Faint(subject, 1e-8)
    with pytest.raises(StreamgaugeError) as caught:
        make(faint, tokens[:4], tmp_path / "g.zarr", dtype="float16")
    text = str(caught.value)
    assert text.startswith("blocks.1.hook_resid_post: the gradient of sequence 0, position 0 is")
    assert "underflows to zero in float16" in text and "`gradients.dtype: bfloat16`" in text
    make(faint, tokens[:4], tmp_path / "b.zarr", dtype="bfloat16")
    assert (layer_stores.GradientStore(tmp_path / "b.zarr").read(0, 4)[:, :-1] != 0).any(-1).all()


def test_a_value_too_large_or_not_finite_is_refused(subject, tokens, tmp_path):
    with pytest.raises(StreamgaugeError, match=r"sequence 0, position 0 reaches .* of float16"):
        make(Faint(subject, 1e7), tokens[:4], tmp_path / "g.zarr", dtype="float16")
    with pytest.raises(StreamgaugeError, match="sequence 0, position 0 is not finite"):
        make(Faint(subject, torch.nan), tokens[:4], tmp_path / "h.zarr")


def test_float16_models_are_promoted_or_refused(directory, tokens, tmp_path):
    assert gradients.computed_in("float16") == "float32"
    assert gradients.computed_in("bfloat16") == "bfloat16"
    half = subjects.load(directory, device="cpu", dtype="float16")
    with pytest.raises(StreamgaugeError, match=r"below 6e-8 vanish\. Open it in float32"):
        make(half, tokens[:4], tmp_path / "g.zarr")
    brain = subjects.load(directory, device="cpu", dtype="bfloat16")
    assert make(brain, tokens[:4], tmp_path / "b.zarr")["computed_in"] == "bfloat16"
    single = subjects.load(directory, device="cpu", dtype="float32")
    expected = gradients.of_summed_loss(single, single.ids(tokens[:4].astype(np.int64)), LAYER)
    got = torch.from_numpy(layer_stores.GradientStore(tmp_path / "b.zarr").read(0, 4))
    assert torch.nn.functional.cosine_similarity(got, expected, -1)[:, :-1].median() > 0.99


@pytest.mark.parametrize("how", ["detached", "constant"])
def test_no_gradient_path_is_named(subject, tokens, tmp_path, how):
    class Blind(Faint):
        def logits_from(self, ids, layer, h):
            z = self._subject.logits_from(ids, layer, h).detach()
            return z if how == "detached" else z + torch.zeros(1, requires_grad=True)

    with pytest.raises(StreamgaugeError, match="no gradient path") as caught:
        make(Blind(subject, 1), tokens[:4], tmp_path / "g.zarr")
    assert caught.value.where == "blocks.1.hook_resid_post"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"part": (2, 2)}, "no part 2 of 2"),
        ({"layer": 4}, "layer 4 does not exist"),
        ({"dtype": "auto"}, "gradients.dtype: dtype 'auto' is not one of bfloat16"),
        ({"tokens": np.zeros((3, 1), np.int32)}, r"no next token .* shape \(3, 1\)"),
        ({"tokens": np.zeros((0, 9), np.int32)}, r"shape \(0, 9\)"),
        ({"tokens": np.full((2, 9), tiny_models.VOCAB)}, "outside the model's vocabulary of 384"),
    ],
)
def test_bad_requests_are_named(subject, tokens, tmp_path, change, message):
    given = {"tokens": tokens, "layer": LAYER} | change
    work = layer_stores.scratch(tmp_path / "g.zarr", "{}")
    with pytest.raises(StreamgaugeError, match=message):
        gradients.harvest(subject, scratch=work, **given)
