"""Language models with weights set by hand: the source ``planted``.

Two bilingual models in which it is known, dimension by dimension, where answers and language are
carried, as ground truth for the cross-lingual stages (docs/planted.md). They differ in what the
keys of the patched layer read and in how easily the language switches, and in nothing else.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streamgauge.base.errors import StreamgaugeError
from streamgauge.models.quiet import quiet

D_MODEL, N_LAYERS, K_SUB = 64, 4, 16
#: the layer whose residual is patched, and whose keys read Z
LAYER = 1
N_PROBLEMS, N_WORDS, N_ANSWERS = 40, 7, 8
CARRIES = ("answer", "nothing")
LANGUAGES = ("en", "zh")

# what each dimension of the residual stream holds at `LAYER`
CIRCLE = slice(0, 2)
SHARED = slice(2, 16)
LANGUAGE = slice(16, 20)
_ENTITY, _START = 20, 21
_SCRIPT = slice(22, 48)
_NOISE = slice(48, 64)
_FORM = slice(22, 64)
# from block 2 on some dimensions of the script hold large values: counts, evidence, outputs
_COUNTS, _EVIDENCE, _OUTPUTS = (22, 23), 24, 25

# sizes at `LAYER`; docs/planted.md says why they are far enough apart
_RADIUS, _MEANING, _FEATURE, _SHIFT, _FORM_SD, _BOS = 1.5, 0.4, 0.8, 0.12, 0.08, 100.0
# the source language holds an answer this share of a step further round the circle
_TURN = 0.75
# how far the way from one language to the other each language feature must have gone
_THRESHOLD = {"answer": 0.9, "nothing": 0.33}
# how far that way on the circle the target language's reading changes
_ANSWER_THRESHOLD = 0.85

_HEADS, _KV_HEADS, _D_HEAD, _D_MLP = 4, 2, 16, 24
_THETA, _STEP_PAIR = 1e4, 2  # rotary pair 2 of 8 turns by 0.1 a token
_SEED_SIZE = 0.05  # of the code in the first word's embedding; block 0 adds it twentyfold
_STAGE = 500.0  # what a stage that is not on takes from a gate: more than any evidence
_SURE = 4.0  # evidence at which the two languages are even
_SPECIAL = ["<bos>", "<eos>", "<unk>"]
_ASK, _SAY = ("?", "？"), ("answer", "答案")
_SUFFIXES = ("abcdefg", "甲乙丙丁戊己庚")


@dataclass(frozen=True)
class Truth:
    """What a planted model is known to do.

    Attributes:
        layer: the patched layer.
        basis: (16, 64) float64, orthonormal rows spanning Z of that layer.
        circle, shared, language: dimensions of the residual stream at that layer: answers (turned
            between the languages), meanings (the same in both, token by token), language.
        bridge: (16, 16) float64 orthogonal W with Z_zh = Z_en W in rows of `basis`; None where
            there is none.
        answers: problem id -> its answer.
    """

    layer: int
    basis: np.ndarray
    circle: tuple[int, ...]
    shared: tuple[int, ...]
    language: tuple[int, ...]
    bridge: np.ndarray | None
    answers: Mapping[str, int]


def truth(carries: str) -> Truth:
    """The known truth of a planted model.

    Args:
        carries: ``answer``: Z holds answers and meanings and no language. ``nothing``: Z holds
            noise that nothing reads.

    Raises:
        StreamgaugeError: neither of these.
    """
    _check(carries)
    bridge = None
    if carries == "answer":
        bridge, turn = np.eye(K_SUB), _TURN * _step()
        cos, sin = math.cos(turn), math.sin(turn)
        bridge[CIRCLE, CIRCLE] = [[cos, sin], [-sin, cos]]
    return Truth(
        layer=LAYER,
        basis=np.eye(D_MODEL)[_z(carries)],
        circle=_dimensions(CIRCLE),
        shared=_dimensions(SHARED),
        language=_dimensions(LANGUAGE),
        bridge=bridge,
        answers={_name(i): _answer(i) + 1 for i in range(N_PROBLEMS)},
    )


def prompt_pairs() -> dict[str, Any]:
    """The problems that planted models can solve: contents of resources/prompts/planted.yaml."""
    prompts = {
        code: {"prompt": f"{{problem}} {ask}"} for code, ask in zip(LANGUAGES, _ASK, strict=True)
    }
    names = dict(zip(LANGUAGES, ("English", "Chinese"), strict=True))
    pairs = [
        {"id": _name(i), "category": f"answer-{_answer(i) + 1}"}
        | {code: " ".join(_words(i, which)) for which, code in enumerate(LANGUAGES)}
        | {"answer": _answer(i) + 1}
        for i in range(N_PROBLEMS)
    ]
    return {
        "languages": {code: {"name": names[code]} | prompts[code] for code in LANGUAGES},
        "stop": ["\n"],
        "pairs": pairs,
    }


def write(block: Mapping[str, Any], directory: Path) -> str:
    """Write a planted model as a Hugging Face directory: a Llama with a word-level tokenizer.

    Args:
        block: an entry of ``subjects`` with ``carries``, see `truth`.
        directory: an existing directory.

    Returns:
        A line that says where the model came from.

    Raises:
        StreamgaugeError: as for `truth`.
    """
    carries = block["carries"]
    _check(carries)
    vocabulary = _vocabulary()
    tokenizer, model = _tokenizer(vocabulary), _blank_model(len(vocabulary))
    rng = np.random.default_rng(0)
    weights = {name: np.zeros(tuple(p.shape)) for name, p in model.named_parameters()}
    ids = {word: i for i, word in enumerate(vocabulary)}
    _embed(weights, ids, rng)
    for layer in range(N_LAYERS):
        _fill(weights, layer, rng)
    _copy_content(weights)
    _read_z(weights, carries, rng)
    _count_tokens(weights)
    _weigh_language(weights, _THRESHOLD[carries])
    _speak(weights, ids)
    _store(model, weights)
    with quiet():
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    return f"planted, Z carries {carries}"


def _check(carries: str) -> None:
    if carries not in CARRIES:
        raise StreamgaugeError(
            f"a planted model cannot carry {carries!r}",
            where="config subjects",
            remedy=f"Choose carries from {', '.join(CARRIES)}.",
        )


def _z(carries: str) -> slice:
    return slice(CIRCLE.start, SHARED.stop) if carries == "answer" else _NOISE


def _dimensions(part: slice) -> tuple[int, ...]:
    return tuple(range(part.start, part.stop))


# --- problems -----------------------------------------------------------------------------------
def _name(i: int) -> str:
    return f"p{i:02d}"


def _answer(i: int) -> int:
    # no problem's successor has an answer that the turned circle would turn into its own
    return 3 * i % N_ANSWERS


def _words(i: int, which: int) -> list[str]:
    """The words of a problem in a language; the first one names it, and no word is used twice."""
    return [f"{('w', '词')[which]}{i:02d}{suffix}" for suffix in _SUFFIXES[which]]


def _vocabulary() -> list[str]:
    numbers = [str(answer + 1) for answer in range(N_ANSWERS)]
    words = [w for i in range(N_PROBLEMS) for which in (0, 1) for w in _words(i, which)]
    return [*_SPECIAL, *_ASK, *_SAY, *numbers, *words]


def _tokenizer(vocabulary: list[str]):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    bos, eos, unk = _SPECIAL
    ids = {word: i for i, word in enumerate(vocabulary)}
    words = Tokenizer(models.WordLevel(ids, unk_token=unk))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token=bos,
        eos_token=eos,
        unk_token=unk,
        clean_up_tokenization_spaces=False,
    )


# --- the model ----------------------------------------------------------------------------------
def _blank_model(vocab_size: int):
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=D_MODEL,
            num_hidden_layers=N_LAYERS,
            num_attention_heads=_HEADS,
            num_key_value_heads=_KV_HEADS,
            head_dim=_D_HEAD,
            intermediate_size=_D_MLP,
            max_position_embeddings=128,
            rope_parameters={"rope_type": "default", "rope_theta": _THETA},
            # so large that the normalisation, with its gain, multiplies by one
            rms_norm_eps=1e12,
            attention_bias=True,
            mlp_bias=True,
            bos_token_id=_SPECIAL.index("<bos>"),
            eos_token_id=_SPECIAL.index("<eos>"),
            tie_word_embeddings=False,
        )
    )


def _store(model, weights: Mapping[str, np.ndarray]) -> None:
    import torch

    for name, parameter in model.named_parameters():
        gain = 1e6 if "norm" in name else 0.0
        parameter.data = torch.tensor(weights[name] + gain, dtype=torch.float32)


def _matrix(weights: Mapping[str, np.ndarray], layer: int, name: str) -> np.ndarray:
    """Weight or bias of a projection, such as ``q_proj.weight``."""
    part = "self_attn" if name[1:].startswith("_proj") else "mlp"
    return weights[f"model.layers.{layer}.{part}.{name}"]


def _step() -> float:
    return 2 * math.pi / N_ANSWERS


def _on_circle(steps: float) -> np.ndarray:
    return np.array([math.cos(steps * _step()), math.sin(steps * _step())])


def _embed(weights, ids: Mapping[str, int], rng: np.random.Generator) -> None:
    """Tokens: meaning (that of a word and of its translation is one), form, language, code."""
    table = weights["model.embed_tokens.weight"]
    meaning = rng.normal(0, _MEANING, (N_PROBLEMS, N_WORDS, SHARED.stop - SHARED.start))
    table[len(_SPECIAL) :, _FORM] = rng.normal(0, _FORM_SD, table[len(_SPECIAL) :, _FORM].shape)
    table[ids["<bos>"], _START] = _BOS
    for which, side in enumerate((-0.5, 0.5)):
        for i in range(N_PROBLEMS):
            words = [ids[word] for word in _words(i, which)]
            table[words, SHARED] = meaning[i]
            table[words[0], _ENTITY] = 1
            code = _on_circle(_answer(i) + _TURN * which)
            table[words[0], CIRCLE] = _SEED_SIZE * _RADIUS * code
        marked = [ids[w] for i in range(N_PROBLEMS) for w in _words(i, which)]
        marked += [ids[_ASK[which]], ids[_SAY[which]]]
        table[marked, LANGUAGE] += side * _FEATURE
        table[marked, _SCRIPT] += side * _SHIFT


def _fill(weights, layer: int, rng: np.random.Generator) -> None:
    """Small random weights where nothing follows from them, so that every layer has a geometry."""
    for name in ("q_proj", "gate_proj", "up_proj"):
        matrix = _matrix(weights, layer, f"{name}.weight")
        matrix[:] = rng.normal(0, 0.01, matrix.shape)
    keys = _matrix(weights, layer, "k_proj.weight")
    # of the second key head; the first one is for what the layer does, see below
    keys[_D_HEAD:] = rng.normal(0, 0.01, (_D_HEAD, D_MODEL))


def _copy_content(weights) -> None:
    """Block 0: every token attends to the problem's first word and adds its code."""
    slowest = _D_HEAD // 2 - 1
    _matrix(weights, 0, "q_proj.bias")[slowest] = 16
    _matrix(weights, 0, "k_proj.weight")[slowest, _ENTITY] = 8
    _matrix(weights, 0, "v_proj.weight")[[0, 1], _dimensions(CIRCLE)] = 1
    _matrix(weights, 0, "o_proj.weight")[_dimensions(CIRCLE), [0, 1]] = 1 / _SEED_SIZE


def _read_z(weights, carries: str, rng: np.random.Generator) -> None:
    """Block 1: both key heads read all of Z and nothing else; the block writes a little noise."""
    keys = _matrix(weights, LAYER, "k_proj.weight")
    keys[:] = 0
    spread = np.geomspace(2, 0.5, _D_HEAD)
    for head in range(_KV_HEADS):
        turned = np.linalg.qr(rng.standard_normal((_D_HEAD, K_SUB)))[0]
        keys[head * _D_HEAD : (head + 1) * _D_HEAD, _z(carries)] = spread[:, None] * turned
    queries = _matrix(weights, LAYER, "q_proj.weight")
    queries[:] = rng.normal(0, 0.1, queries.shape)
    # outside either Z, so that there is an update to measure
    down = _matrix(weights, LAYER, "down_proj.weight")
    down[_SCRIPT] = rng.normal(0, 1, down[_SCRIPT].shape)


def _count_tokens(weights) -> None:
    """Block 2: two heads find BOS only as far as 8 and 9 tokens back, so they know the position.

    BOS is never patched: whatever is done to the prompt, the model goes on word by word.
    """
    speed = _THETA ** (-2 * _STEP_PAIR / _D_HEAD)
    sharpness, pair = 160.0, [_STEP_PAIR, _STEP_PAIR + _D_HEAD // 2]
    for head, last in enumerate((N_WORDS + 1, N_WORDS + 2)):
        # half the attention is on BOS where its score is the logarithm of the others' number
        even = last + 0.5
        angle = math.acos(math.log(even) / sharpness) - even * speed
        turned = 0.5 * sharpness * np.array([math.cos(angle), math.sin(angle)])
        _matrix(weights, 2, "q_proj.bias")[[head * _D_HEAD + i for i in pair]] = turned
        _matrix(weights, 2, "o_proj.weight")[_COUNTS[head], head * _D_HEAD] = _STAGE
    _matrix(weights, 2, "k_proj.weight")[_STEP_PAIR, _START] = 2 * math.sqrt(_D_HEAD) / _BOS
    _matrix(weights, 2, "v_proj.weight")[0, _START] = 1 / _BOS


def _weigh_language(weights, threshold: float) -> None:
    """Block 2: each language feature short of the threshold is evidence of the target language."""
    gain = 100.0
    for unit, axis in enumerate(_dimensions(LANGUAGE)):
        gate = _matrix(weights, 2, "gate_proj.weight")
        gate[unit], gate[unit, axis] = 0, -gain / _FEATURE
        _matrix(weights, 2, "gate_proj.bias")[unit] = gain * (threshold - 0.5)
        _constant_up(weights, 2, unit)
        _matrix(weights, 2, "down_proj.weight")[_EVIDENCE, unit] = 1


def _constant_up(weights, layer: int, unit: int) -> None:
    _matrix(weights, layer, "up_proj.weight")[unit] = 0
    _matrix(weights, layer, "up_proj.bias")[unit] = 1


def _speak(weights, ids: Mapping[str, int]) -> None:
    """Block 3: a word of the language, then the number it reads on the circle, then the end."""
    # the target language reads up to its threshold on the way to the source's code; the source
    # language reads both codes as the same answer
    centres = (_ANSWER_THRESHOLD * _TURN - 0.5, _TURN / 2)
    gate = _matrix(weights, 3, "gate_proj.weight")
    bias = _matrix(weights, 3, "gate_proj.bias")
    up = _matrix(weights, 3, "up_proj.weight")
    down = _matrix(weights, 3, "down_proj.weight")
    outputs = [*_SAY, *(str(a + 1) for a in range(N_ANSWERS)), "<eos>"]
    for place, word in enumerate(outputs):
        weights["lm_head.weight"][ids[word], _OUTPUTS + place] = 1

    units = iter(range(_D_MLP))
    for which, side in enumerate((1, -1)):
        unit = next(units)
        gate[unit] = 0
        gate[unit, [_EVIDENCE, _COUNTS[0]]] = side, 1
        bias[unit] = -side * _SURE - _STAGE
        _constant_up(weights, 3, unit)
        down[_OUTPUTS + which, unit] = 30
        for answer in range(N_ANSWERS):
            unit = next(units)
            gate[unit] = up[unit] = 0
            gate[unit, [_EVIDENCE, *_COUNTS]] = side, -1, 1
            bias[unit] = -side * _SURE - _STAGE
            up[unit, CIRCLE] = _on_circle(answer + centres[which])
            down[_OUTPUTS + 2 + answer, unit] = 30
    unit = next(units)
    gate[unit] = 0
    gate[unit, _COUNTS[1]] = -1
    bias[unit] = _STAGE / 2
    _constant_up(weights, 3, unit)
    down[_OUTPUTS + len(outputs) - 1, unit] = 30
