"""Outcomes, rates and verdicts of patched runs whose truth is known."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from streamgauge.base.errors import StreamgaugeError
from streamgauge.crosslingual import dissociation
from streamgauge.numerics import exact_tests
from streamgauge.numerics.exact_tests import Contrast

NAN = np.nan
DRAWN = ("random", "random_perp", "norm_matched")
RULE = {"alpha": 0.05, "fewest": 15}
# what a run says about problem i, whose answer is i % 8, as (number, language)
RIGHT, WRONG, CHINESE = (
    lambda i: (i % 8, "en"),
    lambda i: (i % 8 + 1, "en"),
    lambda i: (i % 8, "zh"),
)
SILENT, LOOP = (lambda i: (NAN, "en")), None


def runs(conditions, n=20, draws=19):
    """A table of patched outputs, with the same behaviour on every problem of a condition."""
    rows = []
    for condition, says in ({"none": RIGHT} | conditions).items():
        for draw in range(draws) if condition in DRAWN else [-1]:
            for i in range(n):
                said = says(draw, i) if condition in DRAWN and callable(says) else says
                said = said(i) if callable(said) else said
                number, language = said or (3.0, "zh")
                rows.append(
                    {
                        "condition": condition,
                        "draw": draw,
                        "problem": f"p{i:02d}",
                        "category": "sums",
                        "answer": float(i % 8),
                        "extracted": float(number),
                        "language": language,
                        "degenerate": said is None,
                        "correct": number == i % 8,
                    }
                )
    return pd.DataFrame(rows)


def drawn(says):
    """The same behaviour in every draw of a condition."""
    return lambda draw, i: says(i) if says else None


def judged(conditions, n=20, draws=19, **rule):
    table = runs(conditions, n, draws)
    return dissociation.verdict(dissociation.outcomes(table), **RULE | rule)


# random subspaces change nothing, and their complements break the output
NULL = {"random": drawn(RIGHT), "random_perp": drawn(LOOP)}
TRUE = {"z": WRONG, "z_perp": CHINESE, **NULL}


def test_each_outcome_is_read_as_defined():
    said = {
        "full": lambda i: [(i % 8, "en"), (9, "mixed"), (NAN, "zh"), (7, "none"), None][i % 5],
        **TRUE,
    }
    found = dissociation.outcomes(runs(said))
    full = found[found.condition == "full"].head(5)
    expected = pd.DataFrame(
        {
            "changed": [False, True, False, True, False],
            "preserved": [True, False, False, False, False],
            "lost": [False, False, True, False, True],
            "kept": [True, False, False, False, False],
            "switched": [False, True, True, False, False],
        }
    )
    pd.testing.assert_frame_equal(full[expected.columns].reset_index(drop=True), expected)
    assert (found[["changed", "preserved", "lost"]].sum(axis=1) == found.has_answer).all()
    assert not found[["changed", "preserved", "kept", "switched"]][found.degenerate].any(axis=None)


def test_a_problem_without_a_baseline_counts_nowhere():
    table = runs(TRUE)
    base = table.condition == "none"
    table.loc[base & (table.problem == "p00"), "extracted"] = NAN
    table.loc[base & (table.problem == "p01"), "degenerate"] = True
    table.loc[base & (table.problem == "p02"), "language"] = "none"
    found = dissociation.outcomes(table).set_index("problem")
    answers, languages = ["changed", "preserved", "lost"], ["kept", "switched"]
    assert not found.loc[["p00", "p01"], answers].any(axis=None)
    assert not found.loc[["p01", "p02"], languages].any(axis=None)
    assert found.loc["p00", languages].any(axis=None)
    assert found.loc["p02", answers].any(axis=None)
    assert not found.loc["p01", "baseline_correct"].any()


def test_numbers_are_equal_up_to_rounding():
    table = runs(TRUE)
    table.loc[table.condition == "z", "extracted"] = table.answer * (1 + 1e-12)
    found = dissociation.outcomes(table)
    assert found[found.condition == "z"].preserved.all()


def test_the_other_problem_is_the_next_with_another_answer():
    assert dissociation.other_problem(["a", "b", "c", "d"], [1, 1, 2, 1]) == {
        "a": "c",
        "b": "c",
        "c": "d",
        "d": "c",
    }
    with pytest.raises(StreamgaugeError, match="another answer"):
        dissociation.other_problem(["a", "b"], [1, 1.0])


def test_rates_are_shares_of_what_could_be_read():
    table = runs(TRUE)
    base = table.condition == "none"
    table.loc[base & table.problem.isin(["p00", "p01"]), ["extracted", "correct"]] = [9.0, False]
    table.loc[base & (table.problem == "p02"), ["extracted", "correct"]] = [NAN, False]
    table.loc[(table.condition == "z") & (table.problem == "p03"), "degenerate"] = True
    found = dissociation.rates(dissociation.outcomes(table), 0.9).set_index(["condition", "over"])
    z = found.loc["z"]
    assert list(z.n) == [20, 17]
    assert list(z.n_with_answer) == [19, 17]
    assert list(z.n_with_language) == [20, 17]
    np.testing.assert_allclose(z.answer_changed, [18 / 19, 16 / 17])
    np.testing.assert_allclose(z.answer_lost, [1 / 19, 1 / 17])
    np.testing.assert_allclose(z.language_kept, [19 / 20, 16 / 17])
    np.testing.assert_allclose(z.degenerate, [1 / 20, 1 / 17])
    low, high = stats.binomtest(18, 19).proportion_ci(0.9, method="exact")
    np.testing.assert_allclose(
        z.loc["all", ["answer_changed_low", "answer_changed_high"]], [low, high]
    )
    assert (found.loc["none"].answer_preserved == 1).all()
    assert len(found.loc["random"]) == 2 * 19


def test_rates_over_nothing_are_missing():
    table = runs(TRUE).assign(correct=False)
    found = dissociation.rates(dissociation.outcomes(table))
    assert found[found.over == "baseline_correct"].answer_changed.isna().all()


def contrast(own, drawn):
    """Contrasts with the given differences, each −1, 0 or 1."""
    own, drawn = np.asarray(own), np.asarray(drawn)
    return Contrast(own > 0, own < 0, drawn > 0, drawn < 0)


def test_rank_counts_ties_against_z():
    drawn = np.zeros((19, 10), int)
    drawn[:3, :4] = 1
    found = exact_tests.exact_tests(contrast([1, 1, 1, 1, 1, -1, 0, 0, 0, 0], drawn))
    assert (found.rank, found.p_rank) == (4, 4 / 20)
    assert found.statistic == pytest.approx(0.4)
    np.testing.assert_allclose(found.random, drawn.mean(1))


def test_the_paired_test_is_the_binomial_of_discordant_pairs():
    own = [1] * 9 + [-1] * 2 + [0] * 7
    found = exact_tests.exact_tests(contrast(own, np.zeros((1, 18), int)))
    assert found.discordant == (9, 2)
    assert found.p_paired == pytest.approx(stats.binomtest(9, 11, alternative="greater").pvalue)
    assert exact_tests.paired(np.zeros(3, bool), np.zeros(3, bool)) == 1


def test_p_within_problems_is_the_enumeration():
    values = np.random.default_rng(0).integers(-1, 2, (4, 5))
    sums = [
        sum(values[s, i] for i, s in enumerate(pick))
        for pick in itertools.product(range(4), repeat=5)
    ]
    expected = np.mean(np.array(sums) >= values[0].sum())
    assert exact_tests.exact_tests(contrast(values[0], values[1:])).p_within == pytest.approx(
        expected
    )


@pytest.mark.parametrize("null", [np.zeros((0, 5)), np.zeros(5), np.zeros((3, 4))])
def test_no_contrast_without_its_null(null):
    with pytest.raises(StreamgaugeError, match="without its null"):
        contrast(np.ones(5), null)


@pytest.mark.parametrize("left_out", ["random", "random_perp"])
def test_no_verdict_without_random_subspaces(left_out):
    with pytest.raises(StreamgaugeError, match="without its null"):
        judged({name: says for name, says in TRUE.items() if name != left_out})


def test_what_every_verdict_needs():
    with pytest.raises(StreamgaugeError, match="z and z_perp are needed"):
        judged({"z": WRONG, **NULL})
    with pytest.raises(StreamgaugeError, match="do not have the same problems"):
        dissociation.outcomes(runs(TRUE).iloc[:-1])
    with pytest.raises(StreamgaugeError, match="no column 'extracted'"):
        dissociation.outcomes(runs(TRUE).drop(columns="extracted"))


def test_a_double_dissociation():
    found = judged(TRUE)
    assert found["verdict"] == dissociation.DOUBLE
    for half in found["halves"].values():
        assert half["holds"]
        assert half["statistic"] == 1
        assert (half["rank"], half["p_rank"], len(half["random"])) == (1, 0.05, 19)
        assert half["p_paired"] == pytest.approx(0.5**20)
    assert found["n_baseline_number"] == found["n_baseline_correct"] == 20
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_the_sentence_holds_finding_and_null():
    sentence = judged(TRUE)["sentence"]
    assert sentence.startswith("Double dissociation: patching Z changed the answer in 100 % and")
    assert sentence.count("19 random subspaces (rank 1 of 20, p = 0.05") == 2
    assert sentence.count(": holds") == 2
    assert ". " not in sentence


@pytest.mark.parametrize(
    "conditions, verdict, holds",
    [
        # Z changes answers; its complement changes nothing
        ({"z": WRONG, "z_perp": RIGHT}, "partial", (True, False)),
        ({"z": RIGHT, "z_perp": CHINESE}, "partial", (False, True)),
        ({"z": RIGHT, "z_perp": RIGHT}, "null", (False, False)),
        # the complement changes answers as well
        ({"z": WRONG, "z_perp": WRONG}, "null", (False, False)),
        # any subspace would do
        ({"random": drawn(WRONG), "random_perp": drawn(CHINESE)}, "null", (False, False)),
        # any complement holds the language, but Z alone the answer
        ({"random_perp": drawn(CHINESE)}, "partial", (True, False)),
        # readable text without a number is no answer preserved
        ({"z_perp": SILENT}, "null", (False, False)),
        # what the complement of nothing breaks decides nothing
        ({"z": RIGHT, "z_perp": LOOP}, "null", (False, False)),
        # Z does change answers, but what its complement says cannot be read
        ({"z_perp": LOOP}, "not adjudicated", (None, False)),
        ({"z": LOOP, "z_perp": LOOP}, "not adjudicated", (None, None)),
        ({"z": LOOP, "z_perp": LOOP, "random": drawn(LOOP)}, "not adjudicated", (None, None)),
    ],
)
def test_verdicts(conditions, verdict, holds):
    found = judged(TRUE | conditions)
    assert found["verdict"] == verdict, found["sentence"]
    assert tuple(half["holds"] for half in found["halves"].values()) == holds
    assert found["reason"]


def test_too_little_to_adjudicate():
    few = judged(TRUE, n=14)
    assert few["verdict"] == dissociation.OPEN
    assert "open, an unpatched answer in 14 of the 15 problems that are needed" in few["reason"]
    coarse = judged(TRUE, draws=18)
    assert coarse["verdict"] == dissociation.OPEN
    assert "18 random subspaces cannot reach p = 0.05, 19 are needed" in coarse["reason"]
    assert judged(TRUE, draws=9, alpha=0.1)["verdict"] == dissociation.DOUBLE


def test_a_model_that_gives_no_numbers_is_not_adjudicated():
    found = judged({**TRUE, "none": SILENT, "z": SILENT})
    assert found["n_baseline_number"] == 0
    assert found["halves"]["answer"]["statistic"] is None
    assert "an unpatched answer in 0 of the" in found["sentence"]
    # languages can still be told
    assert found["verdict"] == dissociation.PARTIAL
    json.dumps(found, allow_nan=False)


def test_controls_stand_beside():
    next_answer = [1, 2, 3, 4, 5, 6, 7, 0]
    found = judged(
        {
            **TRUE,
            "z_wrong": lambda i: (next_answer[i % 8] if i < 19 else 0, "en"),
            "z_self": RIGHT,
            "z_perp_same": RIGHT,
            "norm_matched": lambda draw, i: WRONG(i) if draw == 0 else RIGHT(i),
        }
    )
    controls = {(c["control"], c["of"]): c for c in found["controls"]}
    assert set(controls) == {
        *(("random", "z"), ("norm_matched", "z"), ("z_wrong", "z"), ("z_self", "z")),
        *(("random_perp", "z_perp"), ("z_perp_same", "z_perp")),
    }
    position = controls["z_self", "z"]
    assert (position["value"], position["control_value"]) == (1, 0)
    assert position["p_paired"] == pytest.approx(0.5**20)
    matched = controls["norm_matched", "z"]
    assert (matched["rank"], matched["p_rank"]) == (2, 0.1)
    foreign = controls["z_wrong", "z"]
    # the last problem, of answer 3, is followed by the first, of answer 0
    assert foreign["transferred"] == 1
    assert foreign["p_paired"] == 1
    # Z itself says the next number, which is the other problem's but where that is 0
    assert foreign["transferred_null"] == pytest.approx(17 / 20)


def simulate(rng, n, draws, gain, cost, random_gain, random_cost, spread=0.7):
    """A contrast whose rates vary by subspace (log odds, sd `spread`) and by problem (sd 1)."""

    def hits(rates, spread=spread):
        odds = stats.logistic.ppf(np.array(rates))[:, None] + spread * rng.standard_normal(
            (len(rates), 1)
        )
        return rng.random((len(rates), n)) < stats.logistic.cdf(odds + rng.standard_normal(n))

    gains, costs = hits([gain] + [random_gain] * draws), hits([cost] + [random_cost] * draws)
    return Contrast(gains[0], costs[0], gains[1:], costs[1:])


#: gain and cost of Z, gain and cost of random subspaces
WORLDS = {
    "a subspace like any other": (0.6, 0.1, 0.6, 0.1),
    "Z like its complement": (0.5, 0.5, 0.05, 0.9),
    "nothing at all": (0.03, 0.03, 0.03, 0.03),
    "an effect of 0.2": (0.3, 0.1, 0.05, 0.3),
    "an effect of 0.4": (0.5, 0.1, 0.05, 0.3),
    "an effect of 0.6": (0.7, 0.1, 0.05, 0.3),
    "an effect of 0.8": (0.9, 0.1, 0.05, 0.3),
}


def calibrated(world, n, draws=19, trials=400, alpha=0.05, seed=0):
    """Share of trials in which a half holds, and in which p_within alone is ≤ alpha."""
    rng = np.random.default_rng([seed, n, draws])
    # between Z and its complement a subspace's own rates are given, not drawn
    spread = 0 if world == "Z like its complement" else 0.7
    tested = [
        exact_tests.exact_tests(simulate(rng, n, draws, *WORLDS[world], spread=spread))
        for _ in range(trials)
    ]
    return np.mean([[t.holds(alpha), t.p_within <= alpha] for t in tested], axis=0)


@pytest.mark.parametrize("world", list(WORLDS)[:3])
def test_a_half_holds_by_chance_no_more_often_than_the_level(world):
    holds, _ = calibrated(world, 40, trials=300)
    assert holds <= stats.binom.ppf(0.999, 300, 0.05) / 300


def test_a_large_effect_is_found():
    assert calibrated("an effect of 0.8", 20, trials=100)[0] > 0.8
    # the test within problems takes subspaces that differ as wholes for an effect
    assert calibrated("a subspace like any other", 40, trials=100)[1] > 0.15
