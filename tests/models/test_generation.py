"""Greedy generation: against the plain uncached way, with and without patches."""

import numpy as np
import pytest
import torch

import tiny_models
from streamgauge.base.errors import StreamgaugeError
from streamgauge.models import generation, hooks, subjects
from streamgauge.models.generation import Patch

LAYER, NEW = 2, 12


MAKERS = {
    "llama": tiny_models.tiny_llama,
    "qwen2": tiny_models.tiny_qwen2,
    "gemma2": tiny_models.tiny_gemma2,
    "gemma3": tiny_models.tiny_gemma3,
    "gpt_neox": tiny_models.tiny_gpt_neox,
}


@pytest.fixture(scope="module", params=MAKERS)
def subject(request, tmp_path_factory):
    return subjects.load(MAKERS[request.param](tmp_path_factory.mktemp(request.param)), "cpu")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return subjects.load(tiny_models.tiny_llama(tmp_path_factory.mktemp("llama")), "cpu")


def prompts(header=11, spans=(9, 3, 14, 9, 1, 22), seed=0):
    """Rows that share a header, of different lengths."""
    rng = np.random.default_rng(seed)
    first = rng.integers(2, tiny_models.VOCAB, header)
    return [np.concatenate([first, rng.integers(2, tiny_models.VOCAB, n)]) for n in spans]


def basis(k, d, seed):
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((d, k)))
    return q.T


def patches(rows, header, d):
    """One of every kind, in turn; the last row is left alone."""
    rng = np.random.default_rng(1)
    found = []
    for i, row in enumerate(rows):
        span = rng.standard_normal((len(row) - header, d)) if i % 2 else rng.standard_normal(d)
        step = rng.standard_normal(d) if i != 1 else None
        matched = basis(6, d, 50) if i in (1, 2) else None
        found.append(Patch(2 * span, step, basis(0 if i == 3 else 4, d, i), i >= 2, matched))
    return [*found[:-1], None]


def plain(subject, row, header, patch, stop=(), new=NEW):
    """Every token from a forward pass over all that came before, formulas written out."""
    ids, eos = list(row), subject.tokenizer.eos_token_id

    def edit(h):
        h = h.clone()
        for t in range(header, len(ids)):
            source = patch.source if patch.source.ndim == 1 else None
            if t >= len(row):
                source = patch.step
            elif source is None:
                source = patch.source[t - header]
            if source is None:
                continue
            here, p = h[0, t].double().numpy(), patch.basis.T @ patch.basis
            rest = np.eye(len(p)) - p
            if patch.complement:
                new = p @ here + rest @ source
            else:
                new = rest @ here + p @ source
            if patch.norm_of is not None:
                size = np.linalg.norm(patch.norm_of @ (source - here))
                new = here + size * (new - here) / np.linalg.norm(new - here)
            h[0, t] = torch.from_numpy(new)
        return h

    for _ in range(new):
        with torch.no_grad():
            if patch is None:
                logits = subject.logits([ids])
            else:
                with hooks.edited(subject.model, LAYER, edit):
                    logits = subject.logits([ids])
        token = int(logits[0, -1].argmax())
        if token == eos:
            break
        ids.append(token)
        if any(s in subject.tokenizer.decode(ids[len(row) :]) for s in stop):
            break
    return [int(i) for i in ids[len(row) :]]


def ids_of(found):
    return [result.ids for result in found]


def test_cached_batches_equal_the_plain_way(subject):
    rows = prompts()
    found = generation.greedy(subject, rows, [11] * 6, max_new_tokens=NEW, batch_size=4)
    assert ids_of(found) == [plain(subject, row, 11, None) for row in rows]
    assert len({tuple(f.ids) for f in found}) > 1


def test_patched_batches_equal_the_plain_way(subject):
    rows = prompts()
    made = patches(rows, 11, subject.d_model)
    found = generation.greedy(
        subject, rows, [11] * 6, max_new_tokens=NEW, batch_size=6, layer=LAYER, patches=made
    )
    assert ids_of(found) == [plain(subject, r, 11, p) for r, p in zip(rows, made, strict=True)]
    untouched = generation.greedy(subject, rows, [11] * 6, max_new_tokens=NEW)
    assert sum(a.ids != b.ids for a, b in zip(found, untouched, strict=True)) >= 4


def test_patches_of_one_prompt_share_its_prefill(subject):
    """Below the patched layer one row is computed, above it one a patch."""
    row, d = prompts()[2], subject.d_model
    made = patches([row] * 6, 11, d)
    seen = []
    edited = hooks.edited

    def spy(model, layer, edit):
        return edited(model, layer, lambda h: seen.append(len(h)) or edit(h))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(hooks, "edited", spy)
        found = generation.greedy(
            subject, [row] * 6, [11] * 6, max_new_tokens=NEW, layer=LAYER, patches=made
        )
    assert seen[:2] == [1, 6]
    assert ids_of(found) == [plain(subject, row, 11, patch) for patch in made]


def test_a_shared_header_changes_nothing(llama):
    rows = prompts()
    made = patches(rows, 11, llama.d_model)
    options = {"max_new_tokens": NEW, "layer": LAYER, "patches": made, "batch_size": 3}
    shared = generation.greedy(llama, rows, [11] * 6, **options)
    generator = generation.Generator(llama, [], max_new_tokens=NEW)
    assert ids_of(generator(rows, [11] * 6, made, layer=LAYER)) == ids_of(shared)


def test_headers_that_differ_share_what_they_can():
    rows = [np.array([5, 6, 7, 8, 1]), np.array([5, 6, 9, 8]), np.array([5, 6, 7, 2])]
    assert generation.shared_header(rows, [4, 3, 3]).tolist() == [5, 6]
    assert generation.shared_header(rows[:1], [4]).tolist() == [5, 6, 7, 8]
    assert generation.shared_header(rows, [1, 2, 3]).tolist() == [5]
    assert len(generation.shared_header([], [])) == 0


def test_batches_group_equal_rows():
    def found(numbers, size):
        return generation.batches([np.full(n // 10, n % 10) for n in numbers], size)

    assert found([50, 30, 50, 30, 50, 30], 4) == [[1, 3, 5], [0, 2, 4]]
    assert found([50, 30, 40, 60, 90], 4) == [[1, 2], [0, 3], [4]]
    assert found([31, 31, 32, 32, 31], 4) == [[0, 1], [2, 3], [4]]
    assert found([20] * 5, 2) == [[0, 1], [2, 3], [4]]
    assert found([], 4) == []


def test_stop_strings_and_end_tokens_end_a_row(llama):
    rows = prompts()
    free = generation.greedy(llama, rows, [11] * 6, max_new_tokens=NEW, eos=[])
    text = free[0].text
    stop = llama.tokenizer.decode(free[0].ids[4:6])
    cut = generation.greedy(llama, rows, [11] * 6, max_new_tokens=NEW, eos=[], stop=[stop])
    assert cut[0].text == text[: text.index(stop)]
    assert len(cut[0].ids) <= 6 and stop in llama.tokenizer.decode(cut[0].ids)
    for a, b in zip(cut, free, strict=True):
        assert a.ids == b.ids[: len(a.ids)] and stop not in a.text
    last = free[1].ids[3]
    ended = generation.greedy(llama, rows, [11] * 6, max_new_tokens=NEW, eos=[last])
    for a, b in zip(ended, free, strict=True):
        end = b.ids.index(last) if last in b.ids else NEW
        assert a.ids == b.ids[:end]


def test_the_models_end_tokens_are_found(llama):
    eos = llama.tokenizer.eos_token_id
    assert generation.end_tokens(llama) == {eos}
    llama.model.generation_config.eos_token_id = [eos, 7]
    assert generation.end_tokens(llama) == {eos, 7}
    llama.model.generation_config.eos_token_id = eos


def test_sampling_and_penalties_of_the_model_stay_out(llama):
    rows = prompts()
    expected = ids_of(generation.greedy(llama, rows, [11] * 6, max_new_tokens=NEW))
    settings = llama.model.generation_config
    settings.repetition_penalty, settings.do_sample, settings.temperature = 5.0, True, 9.0
    assert ids_of(generation.greedy(llama, rows, [11] * 6, max_new_tokens=NEW)) == expected


def test_full_replacement_and_none(llama):
    """A basis without rows: its complement is everything, itself nothing."""
    rows, d = prompts(), llama.d_model
    vector = np.random.default_rng(3).standard_normal(d)
    options = {"max_new_tokens": NEW, "layer": LAYER}
    full = [Patch(vector, vector, np.zeros((0, d)), True)] * 6
    none = [Patch(vector, vector, np.zeros((0, d)), False)] * 6
    found = generation.greedy(llama, rows, [11] * 6, patches=full, **options)
    expected = [plain(llama, row, 11, full[0]) for row in rows]
    assert ids_of(found) == expected
    found = generation.greedy(llama, rows, [11] * 6, patches=none, **options)
    assert ids_of(found) == ids_of(generation.greedy(llama, rows, [11] * 6, max_new_tokens=NEW))


def test_finished_rows_are_counted(llama):
    counts = []
    generation.greedy(
        llama, prompts(), [11] * 6, max_new_tokens=2, batch_size=4, tick=counts.append
    )
    assert sum(counts) == 6


def test_errors(llama):
    row, d = np.arange(2, 12), llama.d_model
    zero = np.zeros(d)
    with pytest.raises(StreamgaugeError, match="nothing is left"):
        generation.greedy(llama, [row], [10], max_new_tokens=2)
    with pytest.raises(StreamgaugeError, match="exceed the model's context of 256"):
        generation.greedy(llama, [row], [1], max_new_tokens=250)
    with pytest.raises(StreamgaugeError, match="layer 9 does not exist"):
        patch = Patch(zero, zero, np.zeros((1, d)))
        generation.greedy(llama, [row], [1], max_new_tokens=2, layer=9, patches=[patch])
    with pytest.raises(StreamgaugeError, match="source of a patch has shape"):
        patch = Patch(np.zeros((3, d)), zero, np.zeros((1, d)))
        generation.greedy(llama, [row], [1], max_new_tokens=2, layer=1, patches=[patch])
    with pytest.raises(StreamgaugeError, match="not finite"):
        patch = Patch(np.full(d, np.inf), zero, np.zeros((0, d)), True)
        generation.greedy(llama, [row], [1], max_new_tokens=2, layer=1, patches=[patch])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_as_on_the_cpu(llama):
    rows = prompts()
    made = patches(rows, 11, llama.d_model)
    options = {"max_new_tokens": NEW, "layer": LAYER, "patches": made}
    expected = generation.greedy(llama, rows, [11] * 6, **options)
    there = subjects.load(llama.directory, "cuda")
    assert generation.greedy(there, rows, [11] * 6, **options) == expected
