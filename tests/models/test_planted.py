"""Planted models do what their truth says: plain forward passes with a hook, nothing else.

The cross-lingual stages are not used here, but for the geometry of Z: this is what they are tested
against.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from streamgauge.base.errors import StreamgaugeError
from streamgauge.models import hooks, planted, subjects
from streamgauge.models.projections import projections
from streamgauge.numerics.subspace import attention_subspace, random_subspace, similarity

PROMPTS = Path(__file__).parents[2] / "resources/prompts/planted.yaml"
PAIRS = planted.prompt_pairs()
SPAN = slice(1, None)  # behind BOS
DRAWS = 19


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    for carries in planted.CARRIES:
        subjects.prepare({"source": "planted", "carries": carries}, folder / carries)
    return {carries: subjects.load(folder / carries, "cpu") for carries in planted.CARRIES}


def ids_of(subject, language):
    template = PAIRS["languages"][language]["prompt"]
    texts = [template.replace("{problem}", pair[language]) for pair in PAIRS["pairs"]]
    ids = subject.tokenizer(texts)["input_ids"]
    return torch.tensor([[subject.bos_token_id, *row] for row in ids])


def states_of(subject, language):
    """Residual stream of every problem's own tokens at the patched layer, (problem, token, d)."""
    ids = ids_of(subject, language)
    return subject.residuals(ids, [planted.LAYER])[planted.LAYER][:, SPAN].double()


def said(subject, language, content=None, projector=None, tokens=4):
    """What the model says after each problem, h replaced by P content + (1 - P) h behind BOS."""
    ids = ids_of(subject, language)
    prompt = ids.shape[1]

    def patch(_module, _inputs, output):
        h = output[0] if isinstance(output, tuple) else output
        h[:, SPAN] += (content[:, None] - h[:, SPAN]) @ projector
        return output

    handles = []
    if content is not None:
        content, projector = content.float(), torch.as_tensor(projector, dtype=torch.float32)
        block = hooks.blocks(subject.model)[planted.LAYER]
        handles.append(block.register_forward_hook(patch))
    try:
        with torch.inference_mode():
            for _ in range(tokens):
                logits = subject.model(ids, use_cache=False).logits[:, -1]
                ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
    finally:
        for handle in handles:
            handle.remove()
    texts = [subject.tokenizer.decode(row[prompt:]) for row in ids]
    return [text.partition(" <eos>")[0] for text in texts]


def sentences(word, shift=0):
    return [f"{word} {(pair['answer'] - 1 + shift) % 8 + 1}" for pair in PAIRS["pairs"]]


def other(content):
    """The content of each problem's successor."""
    return content.roll(-1, 0)


def projector_of(carries, complement=False):
    basis = planted.truth(carries).basis
    inside = basis.T @ basis
    return np.eye(len(inside)) - inside if complement else inside


def test_the_file_of_prompts_is_what_the_model_knows():
    assert yaml.safe_load(PROMPTS.read_text("utf-8")) == PAIRS
    answers = [pair["answer"] for pair in PAIRS["pairs"]]
    assert len(answers) >= 24 and len(set(answers)) >= 8
    assert {pair["id"]: pair["answer"] for pair in PAIRS["pairs"]} == planted.truth(
        "nothing"
    ).answers
    # a successor's content is never read as the problem's own answer, in either language
    for mine, following in zip(answers, [*answers[1:], answers[0]], strict=True):
        assert (following - mine) % 8 not in (0, 7)


@pytest.mark.parametrize("carries", planted.CARRIES)
def test_both_languages_are_answered(models, carries):
    subject = models[carries]
    assert said(subject, "en") == sentences("answer")
    assert said(subject, "zh") == sentences("答案")


@pytest.mark.parametrize("carries", planted.CARRIES)
def test_every_prompt_has_as_many_tokens_and_comes_back_from_the_tokenizer(models, carries):
    subject = models[carries]
    for language in planted.LANGUAGES:
        ids = ids_of(subject, language)
        assert ids.shape == (40, 9)
        assert subject.tokenizer.unk_token_id not in ids
        assert subject.tokenizer.decode(ids[3, SPAN]) == PAIRS["languages"][language][
            "prompt"
        ].replace("{problem}", PAIRS["pairs"][3][language])


@pytest.mark.parametrize("carries", planted.CARRIES)
def test_z_of_the_weights_is_the_planted_subspace(models, carries):
    truth = planted.truth(carries)
    weights = projections(models[carries].model, truth.layer)
    found = attention_subspace(weights.w_q, weights.w_k, planted.K_SUB).basis
    np.testing.assert_allclose(found.T @ found, truth.basis.T @ truth.basis, atol=1e-6)
    assert similarity(found, truth.basis, top=planted.K_SUB) == pytest.approx(1)


def test_the_models_differ_in_the_keys_of_one_layer_and_in_one_threshold(models):
    parameters = [dict(subject.model.named_parameters()) for subject in models.values()]
    differ = [name for name, value in parameters[0].items() if (value != parameters[1][name]).any()]
    assert differ == [
        "model.layers.1.self_attn.k_proj.weight",
        "model.layers.2.mlp.gate_proj.bias",
    ]


def test_z_holds_answers_turned_and_meanings_shared(models):
    """z_zh = z_en W token by token, with the known rotation W; answers show on the circle only."""
    truth = planted.truth("answer")
    en, zh = (states_of(models["answer"], code).numpy() for code in planted.LANGUAGES)
    z_en, z_zh = en @ truth.basis.T, zh @ truth.basis.T
    np.testing.assert_allclose(z_zh, z_en @ truth.bridge, atol=1e-6)
    np.testing.assert_allclose(truth.bridge @ truth.bridge.T, np.eye(planted.K_SUB), atol=1e-12)
    np.testing.assert_array_equal(en[..., truth.shared], zh[..., truth.shared])
    # enough variation to tell W: pooled states of all 16 dimensions
    assert np.linalg.cond(z_en.mean(1)) < 30
    circle = en[:, -1, truth.circle]
    angles = np.arctan2(circle[:, 1], circle[:, 0]) / (2 * np.pi) * 8
    np.testing.assert_allclose((angles - list(truth.answers.values())) % 8, 7, atol=1e-4)


def test_language_is_outside_z_and_the_same_at_every_token(models):
    truth = planted.truth("answer")
    en, zh = (states_of(models["answer"], code).numpy() for code in planted.LANGUAGES)
    assert (np.ptp(en[..., truth.language], axis=(0, 1)) < 1e-6).all()
    np.testing.assert_allclose((zh - en)[..., truth.language], 0.8, atol=1e-6)
    for carries in planted.CARRIES:
        assert not planted.truth(carries).basis[:, truth.language].any()


def test_z_of_the_other_model_holds_neither_answers_nor_meanings(models):
    truth = planted.truth("nothing")
    assert not truth.basis[:, [*truth.circle, *truth.shared]].any()
    assert truth.bridge is None
    z = [states_of(models["nothing"], code).numpy() @ truth.basis.T for code in planted.LANGUAGES]
    words = [part[:, :-1].reshape(-1, planted.K_SUB) for part in z]
    correlations = np.corrcoef(*(part.T for part in words))[: planted.K_SUB, planted.K_SUB :]
    assert abs(correlations).max() < 5 / np.sqrt(len(words[0]))


def test_a_patch_of_z_changes_the_answer_and_of_its_complement_the_language(models):
    subject = models["answer"]
    en, zh = (states_of(subject, code).mean(1) for code in planted.LANGUAGES)
    z, z_perp = projector_of("answer"), projector_of("answer", complement=True)
    # English takes the turned code for the next answer
    assert said(subject, "en", zh, z) == sentences("answer", shift=1)
    assert said(subject, "en", zh, z_perp) == sentences("答案")
    assert said(subject, "en", zh, np.eye(64)) == sentences("答案")
    # controls: no effect of losing the positions, the content decides
    for part in (z, z_perp):
        assert said(subject, "en", en, part) == sentences("answer")
    theirs = [sentences("answer")[(i + 1) % 40] for i in range(40)]
    assert said(subject, "en", other(en), z) == theirs
    assert said(subject, "en", other(zh), z_perp) == sentences("答案")
    # and the other way about
    assert said(subject, "zh", en, z) == sentences("答案")
    assert said(subject, "zh", en, z_perp) == sentences("answer", shift=1)


def test_a_patch_of_z_that_carries_nothing_does_nothing(models):
    subject = models["nothing"]
    en, zh = (states_of(subject, code).mean(1) for code in planted.LANGUAGES)
    for content in (zh, en, other(zh), other(en)):
        assert said(subject, "en", content, projector_of("nothing")) == sentences("answer")
    z_perp = projector_of("nothing", complement=True)
    assert said(subject, "en", zh, z_perp) == sentences("答案")
    # of another problem it brings everything, the answer included
    theirs = [sentences("答案")[(i + 1) % 40] for i in range(40)]
    assert said(subject, "en", other(zh), z_perp) == theirs


@pytest.mark.parametrize("carries", planted.CARRIES)
def test_random_subspaces_change_no_answers(models, carries):
    """Outcomes of random subspaces, the null that both models are built for."""
    subject = models[carries]
    zh = states_of(subject, "zh").mean(1)
    switched, kept = [], []
    for draw in range(DRAWS):
        basis = random_subspace(64, planted.K_SUB, [0, draw])
        inside = basis.T @ basis
        texts = said(subject, "en", zh, inside)
        kept.append(np.mean(np.array(texts) == sentences("answer")))
        outside = said(subject, "en", zh, np.eye(64) - inside)
        switched.append(np.mean([text.startswith("答案") for text in outside]))
    assert np.mean(kept) > 0.95 and min(kept) > 0.5
    if carries == "answer":  # the complement of no random subspace holds all of the language
        assert max(switched) < 0.1
    else:  # as it does not take all of it here, Z is one of many
        assert np.median(switched) == 1


def test_the_position_is_known_whatever_is_patched(models):
    """Noise all over the residual stream changes what is said and never its form."""
    subject = models["answer"]
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 0.3, (40, 64)))
    noise[:, 21] = 0  # where BOS is known by
    for text in said(subject, "en", noise, np.eye(64)):
        word, number = text.split()
        assert word in ("answer", "答案") and number in "12345678"


def test_written_twice_it_is_the_same_model(models, tmp_path):
    facts = subjects.prepare({"source": "planted", "carries": "answer"}, tmp_path / "model")
    assert facts["source"] == "planted, Z carries answer"
    assert facts["weights_sha256"] == subjects.weights_digest(models["answer"].directory)
    assert (facts["d_model"], facts["n_layers"]) == (64, 4)


def test_what_a_model_cannot_carry(tmp_path):
    block = {"source": "planted", "carries": "tune"}
    with pytest.raises(StreamgaugeError, match=r"cannot carry 'tune'.*answer, nothing"):
        subjects.prepare(block, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    with pytest.raises(StreamgaugeError, match="cannot carry"):
        planted.truth("tune")
