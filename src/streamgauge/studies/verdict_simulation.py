"""How often verdicts err and how often they find what is there, in worlds that are known.

Studies are drawn at the level of what an evaluation writes, recovery by sequence and seed, are
summed up as `comparisons` does, and judged by the rules of `hypotheses`. No model is needed.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from streamgauge.base.progress import Progress
from streamgauge.numerics import inference
from streamgauge.studies import hypotheses, leaderboard, verdicts
from streamgauge.studies.hypotheses import OPEN, REJECTED, SUPPORTED

#: Cells of a simulated study: two depths at two k.
CELLS = 4
#: Standard deviation over sequences of a model's CE recovered. This and those below are assumed,
#: of the size that small models show; a study's own stand as standard errors in its deltas.csv.
SEQUENCE_SD = 0.1
#: Share of that variance that both models have in common; it cancels in paired differences.
SHARED = 0.8
#: Standard deviations over seeds of an SAE's CE recovered: of well trained SAEs, and of short runs.
SEED_SDS = (0.003, 0.01)
#: Standard deviation of what one seed does on one sequence.
INTERACTION_SD = 0.02
#: Worlds of H0 and H1: where the gap is, and whether the larger model's SAEs still change by all
#: that counts as converged.
WORLDS = {"one cell": (1, False), "every cell": (CELLS, False), "still training": (CELLS, True)}
#: Studies of H2: subjects and k (a cluster each), and Spearman's correlation of R² with behaviour.
SUBJECTS, KS, R2_CORRELATION = 3, 6, 0.5
#: Share of an SAE's quality that is its cluster's, not its seed's.
CLUSTER_SHARE = 0.8
#: What the proxy of H2 is better by, and what the departures of H3 correlate by (Spearman).
ADVANTAGES, CORRELATIONS = (0.0, 0.2, 0.4), (0.0, 0.3, 0.6, 0.9)
#: Depths of a study of H3; three subjects give three pairs at each.
DEPTHS = (2, 3, 6)
#: Resamples and shuffles in a study of H2 or H3, and the share of the trials H2 gets: each is slow.
RESAMPLES, H2_SHARE = 400, 4


def calibrate(
    *,
    trials: int,
    seeds: Sequence[int],
    sequences: Sequence[int],
    effects: Sequence[float],
    seed: int,
    rules: Mapping[str, Any],
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Rates of every verdict, by world, seeds, sequences and size of the effect.

    Args:
        trials: studies drawn for each row; a quarter for H2.
        seeds, sequences: training seeds and evaluation sequences of a study.
        effects: |ΔCE_rec| of the cells that have a gap.
        seed: of all draws.
        rules: the config block ``verdicts``.
        confidence: coverage the intervals aim at.

    Returns:
        One row a case: ``hypothesis``, ``world``, ``seeds``, ``sequences`` and ``seed_sd`` (empty
        where they do not matter), ``effect`` (H0, H1: |ΔCE_rec|; H2: advantage in Spearman's
        correlation; H3: Spearman's correlation), ``trials``, ``supported_is`` (``power`` where
        the hypothesis is true, ``false positive`` where it is not, an effect just at the margin
        included), ``supported``, ``rejected``, ``not_adjudicated`` (shares of the trials),
        ``coverage`` (of the interval over sequences and seeds, H0 and H1), ``margin``, ``alpha``
        and ``confidence``.
    """
    cases = [
        *_gap_cases(trials, seeds, sequences, effects, seed, rules, confidence),
        *_proxy_cases(trials, seeds, seed, rules, confidence),
        *_dimension_cases(trials, seed, rules, confidence),
    ]
    progress = Progress(len(cases), "cases", "simulation")
    rows = []
    for case in cases:
        rows += case()
        progress.update(1)
    progress.close()
    table = pd.DataFrame(rows).assign(alpha=rules["alpha"], confidence=confidence)
    whole = dict.fromkeys(("seeds", "sequences"), "Int64")
    return table.sort_values("hypothesis", kind="stable", ignore_index=True).astype(whole)


def draw_gaps(
    trials: int, seeds: int, sequences: int, seed_sd: float, seed: int
) -> dict[str, inference.Mean]:
    """Estimates in a world without any gap or change; a true effect just moves their values.

    CE recovered of model, budget, seed and sequence varies by sequence (much of it common to both
    models, the rest kept from one budget to the next), by seed, and by both.

    Returns:
        ``gap`` (big less small, larger budget) and ``small``, ``big`` (changes from the smaller
        budget), shape ``(trials, CELLS)``.
    """
    rng = np.random.default_rng([seed, seeds, sequences])
    # axes: trial, cell, model, budget, seed, sequence
    shape = (trials, CELLS, 2, 2, seeds, sequences)
    x = rng.normal(0, INTERACTION_SD, shape)
    x += rng.normal(0, seed_sd, (*shape[:5], 1))
    x += rng.normal(0, SEQUENCE_SD * np.sqrt(1 - SHARED), (*shape[:3], 1, 1, sequences))
    small, big = x[:, :, 0], x[:, :, 1]
    parts = {"gap": big[:, :, 1] - small[:, :, 1]}
    parts |= {"small": small[:, :, 1] - small[:, :, 0], "big": big[:, :, 1] - big[:, :, 0]}
    return {name: _summed_up(part) for name, part in parts.items()}


def _summed_up(x) -> inference.Mean:
    """Mean over seeds and sequences (the last two axes), with both errors."""
    seeds, sequences = x.shape[-2:]
    over_sequences, over_seeds = x.mean(-2), x.mean(-1)
    se_sequences = over_sequences.std(-1, ddof=1) / np.sqrt(sequences)
    # one seed has no standard deviation
    spread = over_seeds.std(-1, ddof=1) if seeds > 1 else np.nan
    value = over_seeds.mean(-1)
    se_seeds = spread / np.sqrt(seeds)
    return inference.combined(value, se_sequences, sequences - 1, se_seeds, seeds - 1)


def judge_gaps(drawn: Mapping[str, inference.Mean], gaps, change, rules) -> tuple:
    """H0 and H1 of every trial, as `verdicts.adjudicate` decides them.

    Args:
        drawn: result of `draw_gaps`.
        gaps: true ΔCE_rec, shape ``(CELLS,)``.
        change: true change of the larger model's SAEs.
        rules: margin, convergence, alpha.

    Returns:
        Two arrays of bool, shape ``(trials,)``: H0 supported, H1 supported.
    """
    moved = drawn["gap"]._replace(value=drawn["gap"].value + gaps)
    gap = hypotheses.Gap(moved, np.zeros_like(moved.value))
    big = drawn["big"]._replace(value=drawn["big"].value + change)
    names = ("margin", "alpha")
    h0 = hypotheses.equivalence(gap, **{name: rules[name] for name in names}).equivalent
    settings = {name: rules[name] for name in (*names, "convergence")}
    return h0, ~h0 & hypotheses.residual_gap(gap, drawn["small"], big, **settings).residual


def _gap_cases(trials, seeds, sequences, effects, seed, rules, confidence) -> Iterator:
    margin = rules["margin"]

    def case(n_seeds, n_sequences, seed_sd):
        drawn = draw_gaps(trials, n_seeds, n_sequences, seed_sd, seed)
        low, high = drawn["gap"].interval(confidence)
        covered = float(((low <= 0) & (high >= 0)).mean()) if n_seeds > 1 else np.nan
        for (world, (cells, moving)), effect in itertools.product(WORLDS.items(), effects):
            gaps = np.where(np.arange(CELLS) < cells, effect, 0.0)
            h0, h1 = judge_gaps(drawn, gaps, moving * rules["convergence"], rules)
            truth = {"H0": effect < margin, "H1": effect > margin and not moving}
            for name, yes, no in (("H0", h0, h1), ("H1", h1, h0)):
                key = {"hypothesis": name, "world": world, "seeds": n_seeds}
                key |= {"sequences": n_sequences, "effect": effect, "trials": trials}
                key |= {"seed_sd": seed_sd}
                found = _rates(truth[name], yes.mean(), no.mean())
                yield key | found | {"coverage": covered, "margin": margin}

    for setting in itertools.product(seeds, sequences, SEED_SDS):
        yield lambda setting=setting: list(case(*setting))


def _proxy_cases(trials, seeds, seed, rules, confidence) -> Iterator:
    trials = max(1, trials // H2_SHARE)
    rule = {"smallest": rules["advantage"], "alpha": rules["alpha"]}
    drawn = {"hows": [verdicts.HOW], "resamples": RESAMPLES, "confidence": confidence}

    def case(n_seeds, advantage):
        rng = np.random.default_rng([seed, n_seeds])
        found = []
        for trial in range(trials):
            table = leaderboard.advantage(draw_grid(rng, n_seeds, advantage), **drawn, seed=trial)
            found.append(_verdict(verdicts.proxy_evidence(table.iloc[0]), rule))
        key = {"hypothesis": "H2", "world": f"{SUBJECTS * KS} clusters", "seeds": n_seeds}
        key |= {"effect": advantage, "trials": trials, "margin": rules["advantage"]}
        return [key | _shares(advantage > 0, found)]

    for pair in itertools.product(seeds, ADVANTAGES):
        yield lambda pair=pair: case(*pair)


def draw_grid(rng: np.random.Generator, seeds: int, advantage: float) -> pd.DataFrame:
    """A grid table whose ``swd`` orders SAEs better than R² by `advantage` (Spearman, within k)."""
    cells = list(itertools.product(range(SUBJECTS), range(KS), range(seeds)))
    subject, k, _ = np.transpose(cells)

    def quality():
        of_cluster = rng.normal(size=(SUBJECTS, KS))[subject, k]
        own = rng.normal(size=len(cells))
        return np.sqrt(CLUSTER_SHARE) * of_cluster + np.sqrt(1 - CLUSTER_SHARE) * own

    behaviour = quality()
    r2, score = (
        _related(behaviour, quality(), rho) for rho in (R2_CORRELATION, R2_CORRELATION + advantage)
    )
    table = {"subject": subject, "k": 2**k, "codec": "sae", "token_set": "all"}
    # swd counts as 1/swd
    table |= {"ce_rec_mean_of_ratios": behaviour + k, "r2": r2 + k, "swd": np.exp(-score - k)}
    return pd.DataFrame(table)


def _dimension_cases(trials, seed, rules, confidence) -> Iterator:
    rule = {"smallest": rules["advantage"], "alpha": rules["alpha"]}
    drawn = {"resamples": RESAMPLES, "confidence": confidence}

    def case(depths, correlation):
        rng = np.random.default_rng([seed, depths])
        found = []
        for trial in range(trials):
            points = draw_points(rng, depths, correlation)
            evidence = verdicts.dimension_evidence(points, **drawn, seed=trial)
            found.append(_verdict(evidence, rule))
        key = {"hypothesis": "H3", "world": f"{3 * depths} points", "effect": correlation}
        key |= {"trials": trials, "margin": rules["advantage"]}
        return [key | _shares(correlation > 0, found)]

    for pair in itertools.product(DEPTHS, CORRELATIONS):
        yield lambda pair=pair: case(*pair)


def draw_points(rng: np.random.Generator, depths: int, correlation: float) -> pd.DataFrame:
    """Points of H3 (`verdicts.departures`): all pairs of three models at every depth."""
    departure = rng.normal(size=(depths, 3))
    pairs = list(itertools.product(range(depths), itertools.combinations(range(3), 2)))
    ends = np.array([[departure[depth, model] for model in pair] for depth, pair in pairs])
    # the mean of two standard normals, scaled to one
    gap = _related(ends.mean(1) * np.sqrt(2), rng.normal(size=len(pairs)), correlation)
    table = {"corpus": "texts", "depth": [depth for depth, _ in pairs], "gap": np.exp(gap)}
    for side, place in (("small", 0), ("big", 1)):
        table[side] = [pair[place] for _, pair in pairs]
        table |= {f"{side}_layer": table["depth"], f"{side}_departure": ends[:, place]}
    return pd.DataFrame(table)


def _related(x, noise, spearman):
    """A normal variable that correlates with x by `spearman`; x and noise standard normal."""
    pearson = 2 * np.sin(np.pi * spearman / 6)
    return pearson * x + np.sqrt(1 - pearson**2) * noise


def _verdict(evidence, rule) -> str:
    return hypotheses.ordering(evidence, **rule) if evidence else OPEN


def _shares(true, found: Sequence[str]) -> dict[str, Any]:
    n = len(found)
    return _rates(true, found.count(SUPPORTED) / n, found.count(REJECTED) / n)


def _rates(true, supported, rejected) -> dict[str, Any]:
    return {
        "supported_is": "power" if true else "false positive",
        "supported": float(supported),
        "rejected": float(rejected),
        "not_adjudicated": round(1 - float(supported) - float(rejected), 12),
    }
