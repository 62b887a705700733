"""Prompt pairs: every answer computed again, what files may say, and tokens."""

import fractions
import itertools
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import sympy

import tiny_models
from streamgauge.base.errors import StreamgaugeError
from streamgauge.crosslingual import prompts

MATH = Path(__file__).parents[2] / "resources/prompts/math.yaml"
CATEGORIES = {
    *("arithmetic", "algebra", "number-theory", "combinatorics", "probability"),
    *("geometry", "sequences", "calculus", "linear-algebra", "counting"),
}
NAMES = {
    "math": math,
    "Fraction": fractions.Fraction,
    "x": sympy.Symbol("x"),
    **{name: getattr(itertools, name) for name in ("count", "product", "permutations")},
    "combinations": itertools.combinations,
    **{name: getattr(sympy, name) for name in ("diff", "integrate", "limit", "solve")},
    **{name: getattr(sympy, name) for name in ("Matrix", "nextprime")},
}
PAIRS = prompts.read(MATH)
SMALL = """
languages:
  en: {name: English, prompt: "Q: {problem} A:", answer: " It is {answer}."}
  zh: {name: Chinese, prompt: "问：{problem}答：", answer: "是{answer}。"}
examples:
  - {en: "1 + 1?", zh: "1 加 1？", answer: 2}
pairs:
  - {id: a, category: sums, en: "1 + 2?", zh: "1 加 2？", answer: 3}
  - {id: b, category: sums, en: "half of {1}?", zh: "{1} 的一半？", answer: 0.5, check: "1 / 2"}
"""


def own(tmp_path, old="", new=""):
    """A small file of pairs, with one thing in it changed."""
    assert old in SMALL
    path = tmp_path / "own.yaml"
    path.write_text(SMALL.replace(old, new) if old else SMALL, encoding="utf-8")
    return path


# --- the shipped pairs --------------------------------------------------------------------------
@pytest.mark.parametrize("pair", [*PAIRS.problems, *PAIRS.examples], ids=lambda p: p.text["en"])
def test_every_answer_is_what_its_check_computes(pair):
    assert not re.fullmatch(r"[\d.\s]*", pair.check), "a check computes, it does not repeat"
    assert sympy.nsimplify(eval(pair.check, dict(NAMES))) == sympy.nsimplify(pair.answer)


@pytest.mark.parametrize("pair", [*PAIRS.problems, *PAIRS.examples], ids=lambda p: p.text["en"])
def test_both_languages_and_the_check_speak_of_the_same_numbers(pair):
    numbers = [re.findall(r"\d+", pair.text[code]) for code in ("en", "zh")]
    assert sorted(numbers[0]) == sorted(numbers[1])
    # a check may add constants (100 percent, 180 degrees), and must use the problem's numbers
    unused = set(numbers[0]) - set(re.findall(r"\d+", pair.check))
    # in a sequence the last numbers decide
    assert not unused or pair.category in ("sequences", None), unused


def test_there_are_enough_pairs_of_every_category():
    count = Counter(pair.category for pair in PAIRS.problems)
    assert len(PAIRS.problems) >= 44
    assert set(count) == CATEGORIES
    assert min(count.values()) >= 4
    # `limit` keeps the categories balanced
    assert {pair.category for pair in PAIRS.problems[:10]} == CATEGORIES
    assert set(Counter(p.category for p in PAIRS.problems[:40]).values()) == {4}


def test_worked_examples_are_no_pairs_and_no_text_comes_twice():
    for code in PAIRS.languages:
        texts = [pair.text[code] for pair in (*PAIRS.problems, *PAIRS.examples)]
        assert len(texts) == len(set(texts))
    assert len(PAIRS.examples) >= 6
    assert len({example.answer for example in PAIRS.examples}) == len(PAIRS.examples)


def test_languages_can_be_told_apart_by_their_letters():
    for pair in (*PAIRS.problems, *PAIRS.examples):
        assert not re.search("[\u4e00-\u9fff]", pair.text["en"])
        assert re.search("[\u4e00-\u9fff]", pair.text["zh"])
        assert not re.search("[A-Za-z]{2,}", pair.text["zh"].replace("cm", ""))


# --- reading ------------------------------------------------------------------------------------
def test_a_file_is_read_as_written(tmp_path):
    found = prompts.read(own(tmp_path))
    assert [(p.id, p.category, p.answer, p.check) for p in found.problems] == [
        ("a", "sums", 3.0, None),
        ("b", "sums", 0.5, "1 / 2"),
    ]
    assert found.problems[0].text == {"en": "1 + 2?", "zh": "1 加 2？"}
    assert (found.separator, found.stop) == ("\n\n", ("\n",))
    assert found.header("en", 1) == "Q: 1 + 1? A: It is 2.\n\n"
    assert found.header("zh", 0) == ""
    assert found.problem("zh", found.problems[1]) == "问：{1} 的一半？答："


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (', zh: "1 加 2？"', "", r"pairs\[0\] \(a\) has no counterpart in zh"),
        (', en: "1 + 1?"'[2:] + ", ", "", r"examples\[0\] has no counterpart in en"),
        ("answer: 3}", "answer: three}", r"\(a\)\.answer is 'three', not a finite number"),
        ("answer: 3}", "answer: true}", r"\(a\)\.answer is True, not a finite number"),
        ("answer: 3}", "answer: .nan}", r"\(a\)\.answer is nan, not a finite number"),
        ("answer: 3}", f"answer: {10**400}" + "}", r"\(a\)\.answer is 10+, not a finite number"),
        (", answer: 3}", "}", r"\(a\)\.answer is None, not a finite number"),
        ("id: b", "id: a", r"the id 'a' is given to 2 pairs"),
        ("id: b, ", "", r"pairs\[1\] has no id"),
        ("id: b", "id: 7", r"pairs\[1\]\.id is not text"),
        ("id: b, category: sums", "id: b", r"pairs\[1\] \(b\) has no category"),
        ("category: sums, en", "categry: sums, en", r"unknown key categry \(nearest: category\)"),
        ('"1 + 2?"', '" "', r"\(a\)\.en is not text"),
        ('zh: "1 加 2？"', "zh: 12", r"\(a\)\.zh is not text"),
        ('"Q: {problem} A:"', '"Q:"', r"languages\.en\.prompt is no text with one \{problem\}"),
        ("It is {answer}", "It is so", r"languages\.en\.answer is no text with one \{answer\}"),
        ("name: English, ", "", r"languages\.en has no name"),
        ("answer: 3}", "answer: !!python/object/apply:os.getcwd []}", "the tag .* is not allowed"),
        ("examples:", "stop: 3\nexamples:", "stop is no list of texts"),
        ("examples:", "separator: 3\nexamples:", "separator is not text"),
        ("examples:", "extra: 3\nexamples:", "the file has the unknown key extra"),
        ("  en: {name", "  no: {name", "the language False is not text"),
        ("  en: {name", "  answer: {name", "a language cannot be called answer"),
    ],
)
def test_a_faulty_file_is_one_clear_line(tmp_path, old, new, message):
    path = own(tmp_path, old, new)
    with pytest.raises(StreamgaugeError, match=message) as caught:
        prompts.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy or "tag" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "languages is no mapping"),
        ("- 1", "holds a list at the top"),
        (SMALL.split("pairs:")[0], "there are no pairs"),
        (SMALL.split("pairs:")[0] + "pairs: 3", "pairs is no list"),
        (SMALL.split("pairs:")[0] + "pairs: [3]", r"pairs\[0\] is no mapping"),
        ("languages: {en: {name: English, prompt: '{problem}'}}", "1 languages are described"),
        ("languages: {en: 3}", r"languages\.en is no mapping"),
    ],
)
def test_a_file_that_lacks_what_it_needs(tmp_path, text, message):
    path = tmp_path / "own.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(StreamgaugeError, match=message):
        prompts.read(path)


# --- tokens -------------------------------------------------------------------------------------
@pytest.mark.parametrize("bos", ["<|bos|>", None])
@pytest.mark.parametrize("shots", [0, 2])
def test_prompts_are_header_and_problem(bos, shots):
    tokenizer = tiny_models.tiny_tokenizer(bos)
    table = prompts.tokenise(PAIRS, tokenizer, "en", "zh", shots, limit=5)
    first = [] if bos is None else [tokenizer.bos_token_id]
    assert list(table["problem"][::2]) == [pair.id for pair in PAIRS.problems[:5]]
    assert list(table["role"]) == ["target", "source"] * 5
    assert list(table["language"]) == ["en", "zh"] * 5
    assert table["answer"].dtype == np.float64
    for row in table.itertuples():
        pair = next(pair for pair in PAIRS.problems if pair.id == row.problem)
        header, problem = PAIRS.header(row.language, shots), PAIRS.problem(row.language, pair)
        assert row.text == header + problem
        assert tokenizer.decode(row.ids[len(first) :]) == row.text
        assert tokenizer.decode(row.ids[row.header :]) == problem
        assert list(row.ids[: len(first)]) == first
        assert row.header == len(first) + len(tokenizer(header)["input_ids"])
    for _, rows in table.groupby("language"):
        headers = {tuple(ids[:n]) for ids, n in zip(rows["ids"], rows["header"], strict=True)}
        assert len(headers) == 1


def test_languages_change_places():
    tokenizer = tiny_models.tiny_tokenizer()
    one = prompts.tokenise(PAIRS, tokenizer, "en", "zh", 1, 3)
    other = prompts.tokenise(PAIRS, tokenizer, "zh", "en", 1, 3)
    assert list(one["text"][::2]) == list(other["text"][1::2])
    assert list(other["role"][:2]) == ["target", "source"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("en", "fr"), "the source language 'fr' is not among its languages"),
        (("de", "zh"), "the target language 'de' is not among its languages"),
        (("zh", "zh"), "target and source are both 'zh'"),
        (("en", "zh", 7), "shots is 7 and there are 6 examples"),
        (("en", "zh", -1), "shots is -1"),
        (("en", "zh", 0, 0), "limit is 0"),
        (("en", "zh", 0, None, 30), r"is a prompt of \d+ tokens, and the model's context is 30"),
    ],
)
def test_choices_that_cannot_be_served(arguments, message):
    with pytest.raises(StreamgaugeError, match=message):
        prompts.tokenise(PAIRS, tiny_models.tiny_tokenizer(), *arguments)


def test_worked_examples_need_an_answer_template(tmp_path):
    found = prompts.read(own(tmp_path, ', answer: "是{answer}。"', ""))
    assert len(prompts.tokenise(found, tiny_models.tiny_tokenizer(), "en", "zh")) == 4
    with pytest.raises(StreamgaugeError, match=r"languages\.zh has no answer"):
        prompts.tokenise(found, tiny_models.tiny_tokenizer(), "en", "zh", 1)


def test_worked_examples_show_their_work_where_the_answer_asks_for_it(tmp_path):
    shown = (' answer: "是{answer}。"', ' answer: "是 {work} = {answer}。"')
    with pytest.raises(StreamgaugeError, match=r"examples\[0\] has no work, which languages\.zh"):
        prompts.read(own(tmp_path, *shown))
    path = own(tmp_path, *shown)
    path.write_text(path.read_text("utf-8").replace("answer: 2}", 'answer: 2, work: "1 + 1"}'))
    found = prompts.read(path)
    assert found.header("zh", 1) == "问：1 加 1？答：是 1 + 1 = 2。\n\n"
    assert found.header("en", 1) == "Q: 1 + 1? A: It is 2.\n\n"


@pytest.mark.parametrize("example", PAIRS.examples, ids=lambda p: p.text["en"])
def test_the_work_that_is_shown_gives_the_answer(example):
    assert re.fullmatch(r"[\d+*/ -]+", example.work)
    assert eval(example.work, {"__builtins__": {}}) == example.answer


def words(normalizer=None, unknown="<unk>"):
    """A tokenizer that knows the English words and digits of the small file only."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    known = [*"q", ":", *"1234567890+-?{}.", "a", "half", "of", "it", "is", "Q", "A", "It", unknown]
    model = WordLevel({word: i for i, word in enumerate(known)}, unk_token=unknown)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation(), pre_tokenizers.Digits(True)]
    )
    if normalizer:
        tokenizer.normalizer = normalizer
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=unknown)


def test_a_tokenizer_that_cannot_encode_a_language_is_told_before_any_work(tmp_path):
    from tokenizers import normalizers

    found = prompts.read(own(tmp_path))
    with pytest.raises(StreamgaugeError, match=r"cannot encode zh: it loses .*加") as caught:
        prompts.tokenise(found, words(), "en", "zh")
    assert "Choose a subject trained on this language" in str(caught.value)
    # no unknown token, the characters just vanish
    strip = normalizers.Replace("加", "")
    byte_level = tiny_models.tiny_tokenizer()
    byte_level.backend_tokenizer.normalizer = strip
    with pytest.raises(StreamgaugeError, match="cannot encode zh: it loses 加"):
        prompts.tokenise(found, byte_level, "en", "zh")


def test_a_tokenizer_may_write_characters_in_another_form(tmp_path):
    from tokenizers import normalizers

    tokenizer = tiny_models.tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    table = prompts.tokenise(prompts.read(own(tmp_path)), tokenizer, "en", "zh")
    assert tokenizer.decode(table["ids"][1][1:]).startswith("问:1")


def test_a_block_gives_table_and_facts(tmp_path):
    block = {"path": "elsewhere", "target": "zh", "source": "en", "shots": 1, "limit": None}
    table, facts = prompts.prepare(own(tmp_path), block, tiny_models.tiny_tokenizer(), 256)
    header = {code: int(rows["header"].iloc[0]) for code, rows in table.groupby("language")}
    assert facts == {
        "n_problems": 2,
        "languages": ["zh", "en"],
        "shots": 1,
        "stop": ["\n"],
        "bos": 0,
        "header_tokens": {"zh": header["zh"], "en": header["en"]},
        "problem_tokens": facts["problem_tokens"],
    }
    lengths = [len(ids) - n for ids, n in zip(table["ids"], table["header"], strict=True)]
    assert facts["problem_tokens"]["zh"] == [min(lengths[::2]), max(lengths[::2])]
    table.to_parquet(tmp_path / "a.parquet")
    again, _ = prompts.prepare(own(tmp_path), block, tiny_models.tiny_tokenizer(), 256)
    again.to_parquet(tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
