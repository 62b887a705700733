"""Patching: sources, conditions, the table of outputs, what texts say, the page."""

import math
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch

import tiny_models
from patching_data import planted
from streamgauge.base.errors import StreamgaugeError
from streamgauge.crosslingual import output_text, patching
from streamgauge.crosslingual.output_text import classify_language, extract_answer
from streamgauge.models import generation, subjects
from streamgauge.numerics import subspace
from streamgauge.numerics.transport import transport_source
from streamgauge.report import patching_page

LAYER, K_SUB, D = 2, 6, 32
SETTINGS = {
    "max_new_tokens": 6,
    "batch_size": 7,
    "positions": "all",
    "random": 3,
    "norm_matched": 2,
    "seed": 4,
    "stop": ["\n"],
}
JUDGING = {"confidence": 0.95, "alpha": 0.05, "fewest": 2}


class FakeStates:
    """States in memory, as `states.States` gives them."""

    languages, d_model, n_layers = ("en", "zh"), D, 4

    def __init__(self, residuals, problems):
        self.residuals, self.problems = residuals, problems
        roles = ("target", "source")
        self.n_tokens = np.array([[len(residuals[p, r]) for r in roles] for p in problems])

    def tokens(self, layer, problem, language):
        assert layer == LAYER
        return self.residuals[problem, language]


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return subjects.load(tiny_models.tiny_llama(tmp_path_factory.mktemp("llama")), "cpu")


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(0)
    rows = []
    for problem in range(3):
        for role, language in (("target", "en"), ("source", "zh")):
            header = [0] + [5 + ord(language[0]) % 7] * 4
            ids = header + list(map(int, rng.integers(40, 200, 4 + problem + (role == "source"))))
            rows.append(
                {
                    "problem": f"p{problem}",
                    "category": "counting",
                    "language": language,
                    "role": role,
                    "answer": float(problem),
                    "text": "",
                    "ids": ids,
                    "header": len(header),
                }
            )
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def states(subject, prompts):
    found = {}
    for row in prompts.itertuples():
        with torch.no_grad():
            h = subject.residuals([row.ids], [LAYER])[LAYER][0, row.header :]
        found[row.problem, row.role] = h.numpy()
    return FakeStates(found, list(prompts.problem[::2]))


@pytest.fixture(scope="module")
def basis():
    return subspace.random_subspace(D, K_SUB, 99)


def run(subject, prompts, states, basis, folder, source="mean", **changes):
    folder.mkdir(exist_ok=True)
    settings = SETTINGS | changes
    return patching.run(subject, prompts, states, basis, LAYER, source, scratch=folder, **settings)


@pytest.fixture(scope="module")
def outputs(subject, prompts, states, basis, tmp_path_factory):
    return run(subject, prompts, states, basis, tmp_path_factory.mktemp("parts"))


def by_hand(subject, prompts, problem, patch):
    row = prompts[(prompts.problem == problem) & (prompts.role == "target")].iloc[0]
    return generation.greedy(
        subject,
        [row.ids],
        [row.header],
        max_new_tokens=SETTINGS["max_new_tokens"],
        stop=SETTINGS["stop"],
        layer=LAYER,
        patches=[patch],
    )[0].text


def text_of(outputs, condition, problem, draw=-1):
    chosen = outputs[(outputs.condition == condition) & (outputs.problem == problem)]
    return chosen[chosen.draw == draw].text.item()


# --- conditions and outputs --------------------------------------------------------------------


def test_every_condition_and_control_is_there():
    names = [(c.condition, c.draw) for c in patching.conditions("mean", 2, 1)]
    assert names == [
        *(("none", -1), ("full", -1), ("z", -1), ("z_perp", -1)),
        *(("z_wrong", -1), ("z_perp_wrong", -1), ("z_same", -1), ("z_perp_same", -1)),
        *(("z_self", -1), ("z_perp_self", -1)),
        *(("random", 0), ("random", 1), ("random_perp", 0), ("random_perp", 1)),
        ("norm_matched", 0),
    ]
    without = [c.condition for c in patching.conditions("ot", 1, 1)]
    assert "z_self" not in without and "z_same" in without
    assert {c.condition for c in patching.conditions("mean", 1, 1)} == set(patching_page.NAMES)


def test_outputs_are_what_each_condition_says(outputs, subject, prompts, states, basis):
    """Each condition against a patch made by hand for one problem."""
    en, zh = (
        lambda p, r=r: states.residuals[p, r].mean(0, dtype=float) for r in ("target", "source")
    )
    other = {"p0": "p1", "p1": "p2", "p2": "p0"}
    drawn = [subspace.random_subspace(D, K_SUB, [4, draw]) for draw in range(3)]
    for problem in states.problems:
        made = {
            ("full", -1): (zh(problem), np.zeros((0, D)), True, None),
            ("z", -1): (zh(problem), basis, False, None),
            ("z_perp", -1): (zh(problem), basis, True, None),
            ("z_wrong", -1): (zh(other[problem]), basis, False, None),
            ("z_perp_same", -1): (en(other[problem]), basis, True, None),
            ("z_perp_self", -1): (en(problem), basis, True, None),
            ("random", 2): (zh(problem), drawn[2], False, None),
            ("random_perp", 1): (zh(problem), drawn[1], True, None),
            ("norm_matched", 1): (zh(problem), drawn[1], False, basis),
        }
        for (condition, draw), (source, rows, complement, norm) in made.items():
            patch = generation.Patch(source, source, rows, complement, norm)
            expected = by_hand(subject, prompts, problem, patch)
            assert text_of(outputs, condition, problem, draw) == expected, condition
        assert text_of(outputs, "none", problem) == by_hand(subject, prompts, problem, None)
    assert outputs[outputs.condition.isin(["none", "full", "z_perp"])].text.nunique() >= 5


def test_the_table_is_whole_and_in_order(outputs):
    assert list(outputs.columns) == [
        *("condition", "draw", "problem", "category", "answer", "text", "n_tokens"),
        *("number_first", "number_cued", "extracted", "language", "degenerate", "correct"),
    ]
    expected = [(c.condition, c.draw) for c in patching.conditions("mean", 3, 2)]
    assert list(zip(outputs.condition, outputs.draw, strict=True))[::3] == expected
    assert list(outputs.problem) == ["p0", "p1", "p2"] * len(expected)
    assert list(outputs.answer[:3]) == [0.0, 1.0, 2.0]
    assert set(outputs.language) <= {"en", "zh", "mixed", "none"}


def test_positions_prompt_leaves_generated_tokens_alone(subject, prompts, states, basis, tmp_path):
    found = run(subject, prompts, states, basis, tmp_path / "a", positions="prompt")
    source = states.residuals["p1", "source"].mean(0, dtype=float)
    patch = generation.Patch(source, None, basis, True)
    assert text_of(found, "z_perp", "p1") == by_hand(subject, prompts, "p1", patch)


def test_transported_sources(subject, prompts, states, basis, tmp_path):
    found = run(subject, prompts, states, basis, tmp_path / "a", "ot")
    moved = transport_source(*(states.residuals["p1", r] for r in ("source", "target")))
    patch = generation.Patch(moved, moved[-1], basis, True)
    assert text_of(found, "z_perp", "p1") == by_hand(subject, prompts, "p1", patch)
    assert "z_self" not in set(found.condition)


def test_a_killed_run_goes_on_and_ends_the_same(
    outputs, subject, prompts, states, basis, tmp_path, monkeypatch
):
    called = []

    def dying(self, *arguments, **options):
        called.append(1)
        if len(called) == 4:
            raise KeyboardInterrupt
        return real(self, *arguments, **options)

    real = generation.Generator.__call__
    monkeypatch.setattr(generation.Generator, "__call__", dying)
    with pytest.raises(KeyboardInterrupt):
        run(subject, prompts, states, basis, tmp_path / "a")
    again = run(subject, prompts, states, basis, tmp_path / "a")
    pd.testing.assert_frame_equal(again, outputs)
    n_batches = len(list((tmp_path / "a").glob("*.parquet")))
    assert len(called) == n_batches + 1  # three before the kill, none of them twice


def test_what_does_not_belong_together_is_an_error(subject, prompts, states, basis, tmp_path):
    with pytest.raises(StreamgaugeError, match="other problems"):
        run(subject, prompts[prompts.problem != "p1"], states, basis, tmp_path / "a")
    with pytest.raises(StreamgaugeError, match="do not fit a model of 32"):
        run(subject, prompts, states, basis[:, :20], tmp_path / "a")
    longer = prompts.assign(header=prompts.header - 1)
    with pytest.raises(StreamgaugeError, match="not made from these prompts"):
        run(subject, longer, states, basis, tmp_path / "a")
    states_de = FakeStates(states.residuals, states.problems)
    states_de.languages = ("en", "de")
    with pytest.raises(StreamgaugeError, match="both written in LATIN"):
        run(subject, prompts, states_de, basis, tmp_path / "a")
    with pytest.raises(StreamgaugeError, match="no problem has another answer"):
        run(subject, prompts.assign(answer=1.0), states, basis, tmp_path / "a")


# --- what a text says --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "first", "cued"),
    [
        ("The answer is 1,234.", 1234, 1234),
        ("3 + 4 = 7", 3, 7),
        ("答案是12。", 12, 12),
        ("答案是-5", -5, -5),
        ("答案：１２．５。", 12.5, 12.5),
        ("1 + 1 + 1 = 2 + 1 = 3", 1, 3),
        ("= 4, so the Answer: −5", 4, -5),
        ("the probability is 3/4", 0.75, math.nan),
        (r"\frac{3}{4} of it", 0.75, math.nan),
        ("7 is the answer", 7, math.nan),
        ("a - 5", 5, math.nan),
        ("10-3", 10, math.nan),
        ("x2 + .5", 0.5, math.nan),
        ("2.", 2, math.nan),
        ("1/0", 1, math.nan),
        ("twelve", math.nan, math.nan),
        ("", math.nan, math.nan),
    ],
)
def test_numbers(text, first, cued):
    found = extract_answer(text)
    expected = first if math.isnan(cued) else cued
    np.testing.assert_allclose(found, (first, cued, expected))


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The answer is 7.", "en"),
        ("答案是 7。", "zh"),
        ("答案是 x = 7", "zh"),
        ("答案 is the answer, 是七", "mixed"),
        ("7", "none"),
        ("x = 7", "none"),
        ("Ответ: 7", "mixed"),
    ],
)
def test_languages(text, language):
    assert classify_language(text) == language


def test_other_languages():
    assert classify_language("Ответ: 7", "ru", "ja") == "ru"
    assert classify_language("答えは7です", "ru", "ja") == "ja"
    with pytest.raises(StreamgaugeError, match="both written in CJK"):
        classify_language("7", "zh", "ja")
    with pytest.raises(StreamgaugeError, match="script 'xx' is written"):
        classify_language("7", "en", "xx")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        (" \n…!", True),
        ("7", False),
        ("1000000", False),
        ("7 7 7 7 7 7", True),
        ("答案是是是是是是是是", True),
        ("the answer the answer the answer the", True),
        ("the answer the answer is 7", False),
        ("1 + 1 + 1 + 1 + 1 + 1 = 6", False),
        ("a long sentence of many words that goes on and then says so so so so so so", False),
    ],
)
def test_degenerate(text, expected):
    assert output_text.degenerate(text) is expected


# --- the page ----------------------------------------------------------------------------------


class _Page(HTMLParser):
    """Rows of every table, and every tag."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.tags = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_data(self, data):
        if self.tables and self.tables[-1] and self.tables[-1][-1]:
            self.tables[-1][-1][-1] += data


def test_the_page_shows_one_problem_a_row_and_the_nulls():
    table = planted()
    rates, verdict = patching.judged(table, confidence=0.95, alpha=0.05, fewest=15)
    assert verdict["verdict"] == "double dissociation"
    texts = {f"p{i}": f"What is {i} <plus> 0?" for i in range(20)}
    cell = {"subject": "s", "prompts": "math", "ell": "02", "k_sub": "6", "source": "mean"}
    page = patching_page.page(table, rates, verdict, texts, cell)
    assert verdict["sentence"] in page.replace("&#x27;", "'")
    read = _Page(page)
    assert not read.tags & {"script", "link", "img", "iframe"} and "http" not in page
    all_rates, correct_rates, main, controls = read.tables
    assert len(main) == len(controls) == 21 and len(main[0]) == 5
    assert main[3] == [
        "p2\nWhat is 2 <plus> 0?\n→ 2",
        *("The answer is 2\n→ 2, en", "The answer is 3\n→ 3, en"),
        *("答案是 2\n→ 2, zh", "答案是 3\n→ 3, zh"),
    ]
    by_name = {row[0]: row[1:] for row in all_rates[1:]}
    assert by_name["Z patched"][0] == "100 [83, 100]"
    assert by_name["null: 19 random subspaces, lowest to highest"][0] == "0 to 0"
    assert by_name["Z⊥ patched"][4] == "100 [83, 100]"
    assert len(by_name) == 13 and len(correct_rates) == 14


def test_the_page_of_real_outputs(outputs, prompts, subject):
    rates, verdict = patching.judged(outputs, **JUDGING)
    texts = patching.problem_texts(prompts, subject.tokenizer)
    first = prompts.iloc[0]
    assert texts["p0"] == subject.tokenizer.decode(first.ids[first.header :])
    cell = {"subject": "s", "prompts": "math", "ell": "02", "k_sub": "6", "source": "mean"}
    read = _Page(patching_page.page(outputs, rates, verdict, texts, cell))
    assert [len(table) for table in read.tables] == [14, 14, 4, 4]
