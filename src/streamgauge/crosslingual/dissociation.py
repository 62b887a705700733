"""Does Z carry answers and its complement language? Outcomes, rates and verdict of patched runs.

Definitions are those of docs/definitions.md, "Patching". The verdict compares a patch of Z with the
same patch of random subspaces of equal size, without which none can be made.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from streamgauge.base.errors import StreamgaugeError
from streamgauge.numerics import exact_tests, nulls
from streamgauge.numerics.exact_tests import Contrast

DOUBLE, PARTIAL, NULL, OPEN = "double dissociation", "partial", "null", "not adjudicated"
#: above this share of degenerate outputs, of Z's patch and of its complement's, nothing is read
NEARLY_ALL = 0.9
_NEEDED = ["condition", "draw", "problem", "category", "answer", "extracted"]
_NEEDED += ["language", "degenerate", "correct"]
# rates over the problems whose baseline has a number, a language
_RATES = {"answer": ("changed", "preserved", "lost"), "language": ("kept", "switched")}


def other_problem(problems: Sequence[str], answers: Sequence[float]) -> dict[str, str]:
    """The other problem whose content stands in as a control for each problem.

    Args:
        problems: ids in their fixed order.
        answers: the true answer of each.

    Returns:
        For each problem the next one in cyclic order whose answer differs from its own.

    Raises:
        StreamgaugeError: all answers are equal, so that no problem can stand in for another.
    """
    n, found = len(problems), {}
    for i, problem in enumerate(problems):
        following = ((i + step) % n for step in range(1, n))
        other = next((j for j in following if not _same(answers[j], answers[i])), None)
        if other is None:
            raise StreamgaugeError(
                f"no problem has another answer than {problem!r}",
                remedy="Give the prompts problems with different answers.",
            )
        found[problem] = problems[other]
    return found


def outcomes(table: pd.DataFrame) -> pd.DataFrame:
    """What each patched run did to its problem's own unpatched run.

    Args:
        table: one row a condition, draw and problem, as patching writes it; of its columns
            `condition`, `draw`, `problem`, `category`, `answer`, `extracted`, `language`,
            `degenerate` and `correct` are read. Condition ``none`` gives the problems' order.

    Returns:
        A row for each of its rows, in its order: `condition`, `draw`, `problem`, `category`;
        `has_answer` (the unpatched run is not degenerate and gave a number), `has_language` (it is
        not degenerate and has letters), `baseline_correct`; `changed`, `preserved`, `lost`, exactly
        one of which is true where `has_answer`; `kept`, `switched`, false unless `has_language`;
        `degenerate`, `correct`; `transferred`: the number is the true answer of `other_problem`.
        A degenerate output is never changed, preserved, kept, switched or transferred.

    Raises:
        StreamgaugeError: a column is missing, there is no unpatched run, or a condition lacks
            problems.
    """
    missing = sorted(set(_NEEDED) - set(table.columns))
    if missing:
        raise StreamgaugeError(f"patched outputs have no column {missing[0]!r}")
    base = table[table.condition == "none"].set_index("problem")
    for (condition, draw), problems in table.groupby(["condition", "draw"]).problem:
        if sorted(problems) != sorted(base.index):
            raise StreamgaugeError(
                f"condition {condition!r} (draw {draw}) and the unpatched runs do not have the"
                " same problems, each once",
                remedy="Run every condition on every problem.",
            )
    own = base.loc[table.problem]
    answer_of = base.answer.to_dict()
    others = other_problem(list(answer_of), list(answer_of.values()))
    foreign = np.array([answer_of[others[problem]] for problem in table.problem], np.float64)

    degenerate = table.degenerate.to_numpy(bool)
    number = np.where(degenerate, np.nan, table.extracted.to_numpy(np.float64))
    spoilt = own.degenerate.to_numpy(bool)
    own_number = np.where(spoilt, np.nan, own.extracted.to_numpy(np.float64))
    language, own_language = table.language.to_numpy(object), own.language.to_numpy(object)
    has_answer = np.isfinite(own_number)
    has_language = ~spoilt & (own_language != "none")
    same, lost = _same(number, own_number), has_answer & ~np.isfinite(number)
    kept = has_language & ~degenerate & (language == own_language)
    found = table[["condition", "draw", "problem", "category"]].reset_index(drop=True)
    return found.assign(
        has_answer=has_answer,
        has_language=has_language,
        baseline_correct=own.correct.to_numpy(bool) & ~spoilt,
        changed=has_answer & ~lost & ~same,
        preserved=has_answer & same,
        lost=lost,
        kept=kept,
        switched=has_language & ~degenerate & (language != "none") & ~kept,
        degenerate=degenerate,
        correct=table.correct.to_numpy(bool) & ~degenerate,
        transferred=_same(number, foreign),
    )


def _same(x, y):
    """Whether two numbers are equal but for rounding; NaN equals nothing."""
    return np.isclose(x, y, rtol=1e-9, atol=1e-12)


def rates(outcomes: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """How often each condition changes answers and languages.

    Args:
        outcomes: see `outcomes`.
        confidence: of the Clopper-Pearson intervals, exact for independent problems.

    Returns:
        Two rows a condition and draw, `over` all problems and over those whose unpatched answer is
        right. `answer_changed`, `answer_preserved` and `answer_lost` are shares of `n_with_answer`,
        `language_kept` and `language_switched` of `n_with_language`, `degenerate` and `correct` of
        `n`; NaN where there is no such problem. Columns ending in `_low` and `_high` are intervals.
    """
    rows = []
    for (condition, draw), every in outcomes.groupby(["condition", "draw"], sort=False):
        for over, part in {"all": every, "baseline_correct": every[every.baseline_correct]}.items():
            row = {"condition": condition, "draw": draw, "over": over, "n": len(part)}
            row |= {f"n_with_{of}": int(part[f"has_{of}"].sum()) for of in _RATES}
            for of, names in _RATES.items():
                for name in names:
                    row |= _rate(f"{of}_{name}", part[name], row[f"n_with_{of}"], confidence)
            row |= _rate("degenerate", part.degenerate, len(part))
            row |= _rate("correct", part.correct, len(part))
            rows.append(row)
    return pd.DataFrame(rows)


def _rate(name, hits, n, confidence=None):
    """A share, with its exact interval where a confidence is given."""
    hits = int(hits.sum())
    found = {name: hits / n if n else math.nan}
    if confidence is None or name == "answer_lost":
        return found
    low = high = math.nan
    if n:
        low, high = stats.binomtest(hits, n).proportion_ci(confidence, method="exact")
    return found | {f"{name}_low": float(low), f"{name}_high": float(high)}


class _Runs:
    """Outcomes as arrays ``(draws, problems)``."""

    def __init__(self, outcomes: pd.DataFrame):
        self.names = set(outcomes.condition)
        values = [c for c in outcomes.columns if outcomes[c].dtype == bool]
        self._wide = outcomes.pivot(index=["condition", "draw"], columns="problem", values=values)

    def __call__(self, condition: str, column: str) -> np.ndarray:
        return self._wide.loc[condition, column].to_numpy(bool)


def verdict(outcomes: pd.DataFrame, *, alpha: float, fewest: int) -> dict[str, Any]:
    """Adjudicate whether Z and its complement dissociate answers and language.

    Half ``answer``: patching Z changes the answer, patching its complement preserves it. Half
    ``language``: patching the complement switches the language, patching Z keeps it. A half holds
    where both p of `exact_tests.exact_tests`, that of the rank and the paired one, are ≤ alpha. It
    is open, neither true nor false,

    - where fewer than `fewest` problems have a baseline to compare with,
    - where the draws are too few for any rank to reach alpha,
    - where more than `NEARLY_ALL` of Z's outputs and of its complement's are degenerate,
    - where it fails, but would hold if every degenerate output, those of random subspaces
      included, had been a success instead of a failure.

    Args:
        outcomes: see `outcomes`; conditions ``none``, ``z``, ``z_perp``, ``random`` and
            ``random_perp`` are needed, the other controls are compared where they are there.
        alpha: level of each test.
        fewest: problems a half needs.

    Returns:
        Plain values for JSON: `verdict` (one of `DOUBLE`, `PARTIAL`: one half holds, `NULL`:
        neither does, `OPEN`), `reason`, `halves`, `controls`, `n_problems`, `n_baseline_number`,
        `n_baseline_language`, `n_baseline_correct`, `n_random`, `alpha`, `fewest` and `sentence`,
        which states the finding and its null.

    Raises:
        StreamgaugeError: the random subspaces, or Z's own conditions, are missing.
    """
    runs = _Runs(outcomes)
    if not {"random", "random_perp"} <= runs.names:
        raise exact_tests.no_null()
    if not {"none", "z", "z_perp"} <= runs.names:
        raise StreamgaugeError("the outcomes of none, z and z_perp are needed for a verdict")
    halves = {name: _half(runs, name, alpha, fewest) for name in ("answer", "language")}
    decided = [half["holds"] for half in halves.values()]
    if all(decided):
        found = DOUBLE
    elif any(decided):
        found = PARTIAL
    else:
        found = OPEN if None in decided else NULL
    base = outcomes[outcomes.condition == "none"]
    return {
        "verdict": found,
        "reason": " ".join(f"{name.capitalize()}: {h['reason']}." for name, h in halves.items()),
        "halves": halves,
        "controls": _controls(runs),
        "n_problems": len(base),
        "n_baseline_number": int(base.has_answer.sum()),
        "n_baseline_language": int(base.has_language.sum()),
        "n_baseline_correct": int(base.baseline_correct.sum()),
        "n_random": len(runs("random", "changed")),
        "alpha": alpha,
        "fewest": fewest,
        "sentence": f"{found.capitalize()}: {'; '.join(_stated(n, halves[n]) for n in halves)}.",
    }


# half: (condition, outcome) of what is gained, and of what must not fail
_HALVES = {
    "answer": (("z", "changed"), ("z_perp", "preserved")),
    "language": (("z_perp", "switched"), ("z", "kept")),
}
_NULL_OF = {"z": "random", "z_perp": "random_perp"}


def _half(runs, name, alpha, fewest):
    """One half, read strictly and with degenerate outputs in its favour."""
    (gaining, gain), (keeping, keep) = _HALVES[name]
    asked = runs("none", f"has_{name}")[0]

    def read(condition, outcome, generous):
        found = runs(condition, outcome)
        return (found | runs(condition, "degenerate") if generous else found)[:, asked]

    def tested(generous):
        return exact_tests.exact_tests(
            Contrast(
                read(gaining, gain, generous)[0],
                ~read(keeping, keep, generous)[0],
                read(_NULL_OF[gaining], gain, generous),
                ~read(_NULL_OF[keeping], keep, generous),
            )
        )

    strict, generous = tested(False), tested(True)
    n, n_random = int(asked.sum()), len(strict.random)
    spoilt = {c: _share(runs(c, "degenerate")[0, asked]) for c in ("z", "z_perp")}
    holds, reason = None, None
    if n < fewest:
        reason = f"open, an unpatched {name} in {n} of the {fewest} problems that are needed"
    elif 1 / (1 + n_random) > alpha:
        needed = math.ceil(1 / alpha) - 1
        reason = (
            f"open, {n_random} random subspaces cannot reach p = {alpha:g}, {needed} are needed"
        )
    elif min(spoilt.values()) > NEARLY_ALL:
        reason = "open, nearly all outputs of Z and of its complement are degenerate"
    elif strict.holds(alpha):
        holds, reason = True, "holds"
    elif generous.holds(alpha):
        own, rest = map(_percent, spoilt.values())
        reason = f"open, degenerate outputs decide it: {own} of Z's and {rest} of its complement's"
    else:
        failed = []
        if strict.p_rank > alpha:
            failed.append("random subspaces do as much")
        if strict.p_paired > alpha:
            failed.append("Z and its complement do not differ so over problems")
        holds, reason = False, f"does not hold, {' and '.join(failed)}"
    return {
        "holds": holds,
        "reason": reason,
        "n": n,
        "gain": _share(read(gaining, gain, False)[0]),
        "keep": _share(read(keeping, keep, False)[0]),
        "degenerate": spoilt,
        **_plain(strict),
        "generous": _plain(generous),
    }


def _plain(tested):
    """A test as JSON has it: no NaN."""
    found = tested._asdict() | {"random": [float(v) for v in tested.random]}
    found |= {"discordant": list(tested.discordant), "n_random": len(tested.random)}
    if math.isnan(tested.statistic):
        found |= {"statistic": None, "random": []}
    return found


def _percent(share):
    return f"{100 * share:.0f} %"


def _share(hits):
    return float(np.mean(hits)) if len(hits) else 0.0


_WORDS = {
    "answer": ("patching Z changed the answer", "patching its complement preserved it"),
    "language": ("patching the complement of Z switched the language", "patching Z kept it"),
}


def _stated(name, half):
    """A half in words, the null in the same sentence."""
    if half["statistic"] is None:
        return f"{name}: {half['reason']}"
    gain, keep = _WORDS[name]
    gain, keep = f"{gain} in {_percent(half['gain'])}", f"{keep} in {_percent(half['keep'])}"
    null = f"{min(half['random']):+.2f} to {max(half['random']):+.2f}"
    return (
        f"{gain} and {keep} of {half['n']} problems, contrast {half['statistic']:+.2f} against"
        f" {null} for {half['n_random']} random subspaces (rank {half['rank']} of"
        f" {1 + half['n_random']}, p = {half['p_rank']:.2g}; Z against its complement, paired,"
        f" p = {half['p_paired']:.2g}): {half['reason']}"
    )


# what a patch is for: its outcome, and which problems have one
_EFFECTS = {"z": ("changed", "has_answer"), "z_perp": ("switched", "has_language")}


def _controls(runs):
    """The effect of Z, and of its complement, beside every control that was run."""
    found = []
    for patched, (effect, has) in _EFFECTS.items():
        asked = runs("none", has)[0]
        if not asked.any():
            continue
        own = runs(patched, effect)[0, asked]
        about = {"of": patched, "effect": effect, "n": len(own), "value": _share(own)}
        for control in [_NULL_OF[patched]] + ["norm_matched"] * (patched == "z"):
            if control in runs.names:
                drawn = runs(control, effect)[:, asked]
                found.append({"control": control, **about, **_among(own, drawn)})
        for control in [f"{patched}_wrong", f"{patched}_same", f"{patched}_self"]:
            if control in runs.names:
                other = runs(control, effect)[0, asked]
                row = {"control": control, **about, "control_value": _share(other)}
                row["p_paired"] = exact_tests.paired(own, other)
                if not control.endswith("_self"):
                    row |= _transfer(runs, patched, control)
                found.append(row)
    return found


def _among(own, drawn):
    """A share of Z's among those of random draws."""
    rank = nulls.rank_from_top(own.sum(), drawn.sum(1))
    values = [_share(draw) for draw in drawn]
    return {
        "random": values,
        "rank": rank,
        "n_random": len(drawn),
        "p_rank": rank / (1 + len(drawn)),
    }


def _transfer(runs, patched, control):
    """How often another problem's content brings its answer; the null is the problem's own."""
    asked = runs("none", "has_answer")[0]
    other, own = (runs(c, "transferred")[0, asked] for c in (control, patched))
    return {
        "transferred": _share(other),
        "transferred_null": _share(own),
        "p_transferred": exact_tests.paired(other, own),
    }
