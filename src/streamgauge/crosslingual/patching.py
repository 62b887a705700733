"""Patching Z and its complement: what is put where, every condition and control, all outputs.

Definitions are those of docs/definitions.md, "Patching". A problem's run in the target language is
generated anew with a part of its residual stream at one layer replaced by the states of another
run: of the same problem in the source language, or of a control.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.progress import Progress
from streamgauge.base.tables import read_parquet, write_parquet
from streamgauge.crosslingual import dissociation, output_text
from streamgauge.crosslingual.output_text import classify_language, extract_answer
from streamgauge.models import generation
from streamgauge.models.generation import Patch
from streamgauge.numerics import subspace
from streamgauge.numerics.transport import transport_source

#: whose states are put in: suffix of the condition -> (language role, whether of another problem)
SOURCES = {
    "": ("source", False),
    "_wrong": ("source", True),
    "_same": ("target", True),
    "_self": ("target", False),
}


class Run(NamedTuple):
    """One condition, for every problem.

    Attributes:
        condition, draw: see `run`.
        kind: suffix of the condition, a key of `SOURCES`; None where nothing is patched.
        subspace: ``z``, ``none`` (a subspace of no dimensions) or the draw of a random one.
        complement: whether what lies outside the subspace is replaced.
        matched: whether the change has the norm of the change in Z.
    """

    condition: str
    draw: int
    kind: str | None
    subspace: str | int
    complement: bool
    matched: bool = False


def conditions(source: str, random: int, norm_matched: int) -> list[Run]:
    """Every condition in its order (see `run` for what they are).

    Args:
        source: ``mean`` or ``ot``. A transported copy of a run is that run, so that under ``ot``
            there is no self-patch.
        random: random subspaces, each with its complement.
        norm_matched: random subspaces whose change is scaled.
    """
    found = [Run("none", -1, None, "none", False), Run("full", -1, "", "none", True)]
    for kind in SOURCES:
        if kind != "_self" or source == "mean":
            for name, complement in (("z", False), ("z_perp", True)):
                found.append(Run(f"{name}{kind}", -1, kind, "z", complement))
    for name, complement in (("random", False), ("random_perp", True)):
        found += [Run(name, draw, "", draw, complement) for draw in range(random)]
    matched = [Run("norm_matched", draw, "", draw, False, True) for draw in range(norm_matched)]
    return found + matched


def run(
    subject,
    prompts: pd.DataFrame,
    states,
    basis: np.ndarray,
    layer: int,
    source: str,
    *,
    max_new_tokens: int,
    batch_size: int,
    positions: str,
    random: int,
    norm_matched: int,
    seed: int,
    stop: Sequence[str],
    scratch: str | Path,
    label: str | None = None,
) -> pd.DataFrame:
    """Generate every problem's answer under every condition (docs/definitions.md, "Patching").

    ``none``: not patched. ``full``: everything replaced. ``z``, ``z_perp``: Z, its complement.
    These take the states of the same problem in the source language; with ``_wrong`` those of
    another problem, with ``_same`` another problem's in the target language, with ``_self`` the
    mean of the very run that is patched. ``random``, ``random_perp``: subspaces drawn at random and
    their complements. ``norm_matched``: a random subspace, the change at every token scaled to the
    norm of the change in Z. The other problem is `dissociation.other_problem`.

    Args:
        subject: a `subjects.Subject`.
        prompts: from `prompts.tokenise`; rows of the role ``target`` are generated from.
        states: their `states.States`.
        basis: of Z, (k_sub, d_model), orthonormal rows.
        layer: where the residual stream is patched, h(layer).
        source: ``mean``: the mean over the source's tokens, at every position. ``ot``: every token
            of the problem gets its own `transport_source`, and generated tokens the last one's.
        max_new_tokens: most tokens generated.
        batch_size: rows generated together.
        positions: ``all``: the problem's tokens and every generated one; ``prompt``: not those.
        random, norm_matched: number of draws; draw j is the random subspace of seed [seed, j].
        seed: of the random subspaces.
        stop: strings that end an answer.
        scratch: directory for finished batches, owned by this very call's arguments.
        label: shown in progress lines.

    Returns:
        A row a condition, draw (−1 where nothing is drawn) and problem, in this order:
        ``condition, draw, problem, category, answer`` (the true one), ``text`` (what was
        generated), ``n_tokens``, ``number_first, number_cued, extracted`` (`extract_answer`; NaN
        where there is none), ``language`` (`classify_language`), ``degenerate``
        (`output_text.degenerate`), ``correct`` (the extracted number is the true answer).

    Raises:
        StreamgaugeError: a layer that does not exist, states of other problems or another model,
            two languages of one script, a prompt too long, logits that are not finite.
    """
    target = prompts[prompts.role == "target"].reset_index(drop=True)
    _check(subject, target, states, basis, layer)
    output_text.scripts(*states.languages)
    scratch, label = Path(scratch), label or f"patching L{layer:02d} {source}"
    others = dissociation.other_problem(list(target.problem), list(target.answer))
    contents = _Contents(states, layer, source, others, positions == "all")
    draws = max(random, norm_matched)
    drawn = subspace.random_subspaces(states.d_model, len(basis), seed, draws)
    bases = {
        "z": np.asarray(basis, np.float64),
        "none": np.zeros((0, states.d_model)),
        **dict(enumerate(drawn)),
    }
    rows = [np.asarray(ids, np.int64) for ids in target.ids]
    headers = [int(n) for n in target.header]
    generator = generation.Generator(
        subject,
        generation.shared_header(rows, headers),
        max_new_tokens=max_new_tokens,
        stop=stop,
    )
    runs = conditions(source, random, norm_matched)
    # patches of one problem side by side: they share what lies below the patched layer
    tasks = [(i, c) for i in range(len(target)) for c in range(len(runs))]
    batches = generation.batches([rows[i] for i, _ in tasks], batch_size)
    parts = [scratch / f"{number:06d}.parquet" for number in range(len(batches))]
    done = sum(len(batch) for batch, part in zip(batches, parts, strict=True) if part.exists())
    progress = Progress(len(tasks), "generations", label, done=done)
    for batch, part in zip(batches, parts, strict=True):
        if part.exists():
            continue
        chosen = [tasks[j] for j in batch]
        patches = [contents.patch(target.problem[i], runs[c], bases) for i, c in chosen]
        generated = generator(
            [rows[i] for i, _ in chosen], [headers[i] for i, _ in chosen], patches, layer=layer
        )
        found = [
            (c, i, result.text, len(result.ids))
            for (i, c), result in zip(chosen, generated, strict=True)
        ]
        write_parquet(pd.DataFrame(found, columns=["run", "row", "text", "n_tokens"]), part)
        progress.update(len(batch))
    progress.close()
    table = pd.concat([read_parquet(part) for part in parts]).sort_values(["run", "row"])
    return _described(table, target, runs, states.languages)


def judged(
    outputs: pd.DataFrame, *, confidence: float, alpha: float, fewest: int
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Rates and verdict of a table of outputs: `dissociation.rates`, `dissociation.verdict`.

    Args:
        outputs: from `run`.
        confidence: of the rates' intervals.
        alpha, fewest: see `dissociation.verdict`.
    """
    found = dissociation.outcomes(outputs)
    verdict = dissociation.verdict(found, alpha=alpha, fewest=fewest)
    return dissociation.rates(found, confidence), verdict


def problem_texts(prompts: pd.DataFrame, tokenizer) -> dict[str, str]:
    """Each problem's own text in the target language, without its header.

    Args:
        prompts: from `prompts.tokenise`.
        tokenizer: the one they were made with.
    """
    target = prompts[prompts.role == "target"]
    return {
        row.problem: tokenizer.decode(list(row.ids)[row.header :]) for row in target.itertuples()
    }


def _check(subject, target, states, basis, layer) -> None:
    """Raise StreamgaugeError where prompts, states, subspace and model do not belong together."""
    if list(target.problem) != list(states.problems):
        raise StreamgaugeError(
            "the states are of other problems than the prompts",
            remedy="Run snakemake again to make them anew.",
        )
    if {subject.d_model, states.d_model} != {np.shape(basis)[1]}:
        raise StreamgaugeError(
            f"a subspace of {np.shape(basis)[1]} dimensions and states of {states.d_model} do not "
            f"fit a model of {subject.d_model}"
        )
    lengths = [len(row.ids) - row.header for row in target.itertuples()]
    if list(states.n_tokens[:, 0]) != lengths or states.n_layers != subject.n_layers:
        raise StreamgaugeError(
            "the states were not made from these prompts by this model",
            remedy="Run snakemake again to make them anew.",
        )


class _Contents:
    """The states that are put in, made when first asked for."""

    def __init__(self, states, layer, source, others, steps: bool):
        self.states, self.layer, self.source = states, layer, source
        self.others, self.steps = others, steps
        self.held: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}

    def patch(self, problem: str, run_: Run, bases) -> Patch | None:
        """The patch of one problem's run; None where it is left alone."""
        if run_.kind is None:
            return None
        key = problem, run_.kind
        if key not in self.held:
            self.held[key] = self._content(*key)
        span, step = self.held[key]
        return Patch(
            span,
            step if self.steps else None,
            bases[run_.subspace],
            run_.complement,
            bases["z"] if run_.matched else None,
        )

    def _content(self, problem: str, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """What the problem's tokens get, and what generated tokens get."""
        role, of_another = SOURCES[kind]
        giver = self.others[problem] if of_another else problem
        h = self.states.tokens(self.layer, giver, role)
        if self.source == "mean":
            mean = h.mean(0, dtype=np.float64)
            return mean, mean
        moved = transport_source(h, self.states.tokens(self.layer, problem, "target"))
        return moved, moved[-1]


def _described(table, target, runs: Sequence[Run], languages) -> pd.DataFrame:
    """The finished table: conditions, problems and what every text says."""
    of = target.iloc[table["row"]].reset_index(drop=True)
    run_of = [runs[c] for c in table["run"]]
    texts = list(table["text"])
    numbers = [extract_answer(text) for text in texts]
    extracted = np.array([number.extracted for number in numbers])
    return pd.DataFrame(
        {
            "condition": [run_.condition for run_ in run_of],
            "draw": [run_.draw for run_ in run_of],
            "problem": of.problem,
            "category": of.category,
            "answer": of.answer,
            "text": texts,
            "n_tokens": table["n_tokens"].to_numpy(),
            "number_first": [number.first for number in numbers],
            "number_cued": [number.cued for number in numbers],
            "extracted": extracted,
            "language": [classify_language(text, *languages) for text in texts],
            "degenerate": [output_text.degenerate(text) for text in texts],
            "correct": np.isclose(extracted, of.answer, rtol=1e-6, atol=1e-9),
        }
    )
