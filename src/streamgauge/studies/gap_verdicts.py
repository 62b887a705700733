"""H0 and H1 from a study's tables: is a gap between models left, and have their SAEs converged?

The rules are those of `hypotheses`; here tables become cells, and decisions become facts with their
reasons.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from streamgauge.base.errors import StreamgaugeError
from streamgauge.numerics import inference
from streamgauge.studies import hypotheses as decisions
from streamgauge.studies.hypotheses import OPEN, REJECTED, SUPPORTED, fact

CELL = ["corpus", "small", "big", "expansion", "objective", "depth", "k"]
_DELTAS = [
    *(*CELL, "token_set", "tokens", "seed", "small_layer", "big_layer", "small_d_model"),
    *("big_d_model", "n_sequences", "n_seeds", "d_ce_rec_se_sequences", "d_ce_rec_se_seeds"),
    *("d_r2", "d_ce_rec", "gap", "untrained_d_r2", "untrained_d_ce_rec", "untrained_gap"),
]
_CHANGE = [
    *("change_ce_rec", "change_ce_rec_se_sequences", "change_ce_rec_se_seeds", "change_n_seeds"),
]
_BUDGETS = [
    *("corpus", "expansion", "objective", "k", "subject", "layer", "tokens", "n_sequences"),
    *_CHANGE,
]
_SHOWN = ["value", "low", "high"]
_WITHIN, _RESIDUAL = "within the margin", "beyond the margin, converged"
_MOVING, _CORRECTED = "beyond the margin, not converged", "beyond the margin before correction"
_UNTESTED = "beyond the margin, convergence untested"
_SPANS, _ONE_SEED = "undecided", "one seed or sequence"
_OPEN_WORDS = {
    _MOVING: "the gap is beyond the margin, but the SAEs have not converged in",
    _UNTESTED: "the gap is beyond the margin, but fewer than two seeds are shared by the last two"
    " budgets, so that convergence has no interval, in",
    _CORRECTED: "beyond the margin and converged, but not after correcting for all cells, in",
    _SPANS: "the interval reaches across the margin of {margin:g} in",
    _ONE_SEED: "no interval over seeds in",
}


def seed_means(deltas: pd.DataFrame, token_set: str) -> pd.DataFrame:
    """The rows of ``deltas.csv`` that are means over seeds, of one token set.

    Raises:
        StreamgaugeError: the table lacks a column.
    """
    _require(deltas, _DELTAS, "deltas")
    return deltas[(deltas.token_set == token_set) & (deltas.seed.astype(str) == "all")]


class Cells:
    """Smallest against largest model of each corpus at the largest budget: a row a cell.

    Args:
        own: result of `seed_means`.
        budgets: rows of ``budgets.csv`` of the same token set.

    Raises:
        StreamgaugeError: a table lacks a column, or a cell the null of untrained SAEs.
    """

    def __init__(self, own: pd.DataFrame, budgets: pd.DataFrame):
        _require(budgets, _BUDGETS, "budgets")
        ratio = own.big_d_model / own.small_d_model
        own = own[ratio == ratio.groupby(own.corpus).transform("max")]
        own = own.sort_values(CELL, ignore_index=True)
        self.budgets = sorted(own.tokens.unique())
        self.first = own[own.tokens == own.tokens.min()].reset_index(drop=True)
        self.last = own[own.tokens == own.tokens.max()].reset_index(drop=True)
        told = ["depth", "k", *(name for name in CELL[:5] if own[name].nunique() > 1)]
        every = own.drop_duplicates(CELL)[CELL].merge(self.last[CELL], how="left", indicator=True)
        self.missing = [_label(r, told) for _, r in every[every._merge == "left_only"].iterrows()]
        self.labels = [_label(row, told) for _, row in self.last.iterrows()]
        self.changes = {side: self._changes(budgets, side) for side in ("small", "big")}

    def _changes(self, budgets, side) -> inference.Mean:
        """Change of CE_rec over the last step of the budget, of one side's SAEs of every cell."""
        found = budgets.rename(columns={"subject": side, "layer": f"{side}_layer"})
        keys = ["corpus", "expansion", "objective", "k", "tokens", side, f"{side}_layer"]
        found = self.last[keys].merge(found[[*keys, "n_sequences", *_CHANGE]], on=keys, how="left")
        numbers = (found[name].to_numpy(np.float64) for name in ("n_sequences", *_CHANGE))
        sequences, value, se_sequences, se_seeds, seeds = numbers
        return inference.combined(value, se_sequences, sequences - 1, se_seeds, seeds - 1)

    def _gap(self, rows) -> decisions.Gap:
        """ΔCE_rec with its null."""
        over_sequences = rows.d_ce_rec_se_sequences, rows.n_sequences - 1
        over_seeds = rows.d_ce_rec_se_seeds, rows.n_seeds - 1
        trained = inference.combined(rows.d_ce_rec, *over_sequences, *over_seeds)
        return decisions.Gap(trained, rows.untrained_d_ce_rec.to_numpy())

    def _lacking(self, refused) -> str:
        """What a study is too small for, or nothing."""
        if self.last.empty:
            why = f" ({'; '.join(refused)})" if refused else ""
            return f"two comparable subjects of different d_model are needed{why}"
        if len(self.budgets) < 2:
            return f"two budgets are needed; there is one, {self.budgets[0]:,} tokens"
        if (self.last.n_seeds < 2).all():
            return "two training seeds are needed; there is one, and no interval over seeds"
        return ""

    def hypotheses(self, rules, refused) -> tuple[dict[str, dict], list[str]]:
        """Facts of H0 and H1, and the path through the decision tree up to them.

        Args:
            rules: margin, convergence, alpha.
            refused: why pairs of subjects could not be compared.
        """
        margin, alpha = rules["margin"], rules["alpha"]
        lacking = self._lacking(refused)
        if self.last.empty:
            facts = {name: fact(OPEN, lacking, margin=margin) for name in ("H0", "H1")}
            return facts, ["q_data", "open_data"]
        gap = self._gap(self.last)
        same = decisions.equivalence(gap, margin=margin, alpha=alpha)
        left = decisions.residual_gap(gap, *self.changes.values(), **rules)
        states = self._states(same, left, alpha)
        seen = {"margin": margin, "cells": self._shown(same, left, states)}
        p = {"H0": same.p_equal, "H1": left.p_residual}
        # a cell without a test is the furthest from either
        least = {name: np.nan_to_num(values, nan=1) for name, values in p.items()}
        at = {"H0": int(least["H0"].argmax()), "H1": int(least["H1"].argmin())}
        if lacking:
            verdicts, reasons, path = (OPEN, OPEN), (lacking, lacking), ["open_data"]
        elif same.equivalent and not self.missing:
            verdicts, path = (SUPPORTED, REJECTED), ["q_equal", "h0"]
            reasons = (self._none_left(margin, alpha), "H0 is supported: no gap is left")
        elif left.residual:
            verdicts, path = (REJECTED, SUPPORTED), ["q_equal", "q_gap", "h1"]
            reasons = ("H1 is supported: a gap is left", self._some_left(states, margin))
        else:
            verdicts, path = (OPEN, OPEN), ["q_equal", "q_gap", "open_gap"]
            reasons = (self._undecided(states, margin),) * 2
        return {
            name: fact(
                verdict, reason, **seen, **self._evidence(name, gap, at[name], p[name], alpha)
            )
            for name, verdict, reason in zip(("H0", "H1"), verdicts, reasons, strict=True)
        }, ["q_data", *path]

    def _none_left(self, margin, alpha) -> str:
        """Why H0 is supported."""
        start = decisions.equivalence(self._gap(self.first), margin=margin, alpha=alpha)
        already = bool(start.equivalent) and len(self.first) == len(self.last)
        cells = f"all {len(self.last)} cells" if len(self.last) > 1 else "the one cell"
        text = f"ΔCE_rec is within ±{margin:g} in {cells} at {self.budgets[-1]:,} tokens"
        return text + (", as at the smallest budget: no gap at any budget" if already else "")

    def _some_left(self, states, margin) -> str:
        """Why H1 is supported."""
        where = [label for label, s in zip(self.labels, states, strict=True) if s == _RESIDUAL]
        text = f"|ΔCE_rec| exceeds {margin:g} at {self.budgets[-1]:,} tokens and the SAEs of both"
        text += f" models have converged in {len(where)} of {len(states)} cells: "
        return text + _list(where)

    def _states(self, same, left, alpha) -> list[str]:
        """What the tests say of each cell."""
        p = zip(same.p_equal, left.p_residual, left.p_beyond, left.p_converged, strict=True)
        return [
            _ONE_SEED
            if not np.isfinite(equal)
            else _WITHIN
            if equal < alpha
            else _RESIDUAL
            if residual < alpha
            else _SPANS
            if not beyond < alpha
            else _UNTESTED
            if not np.isfinite(converged)
            else _CORRECTED
            if converged < alpha
            else _MOVING
            for equal, residual, beyond, converged in p
        ]

    def _undecided(self, states, margin) -> str:
        """What is missing for a verdict on H0 and H1."""
        seeds = (self.last.d_ce_rec_se_seeds > self.last.d_ce_rec_se_sequences).to_numpy()
        parts = [f"no SAEs at the largest budget in {_list(self.missing)}"] * bool(self.missing)
        for state, words in _OPEN_WORDS.items():
            at = [i for i, s in enumerate(states) if s == state]
            where = _list([self.labels[i] for i in at])
            if at and state == _SPANS:
                more = "seeds" if 2 * seeds[at].sum() > len(at) else "sequences"
                parts.append(f"{words.format(margin=margin)} {where}; more {more} would help most")
            elif at:
                parts.append(f"{words} {where}")
        return ". ".join(part[0].upper() + part[1:] for part in parts)

    def _evidence(self, name, gap, at, p, alpha) -> dict[str, Any]:
        """The cell that decides, with the interval its test reads, and the null."""
        confidence = 1 - 2 * alpha
        low, high = gap.trained.interval(confidence)
        which = {"H0": "furthest from equivalence", "H1": "with the clearest residual gap"}[name]
        values = dict(zip(_SHOWN, (gap.trained.value[at], low[at], high[at]), strict=True))
        null = np.asarray(gap.untrained)
        return {
            "statistic": {
                "name": f"ΔCE_rec, big less small, in the cell {which}: {self.labels[at]}",
                **values,
                "unit": "CE recovered",
                "p_value": p[at],
                "confidence": confidence,
            },
            "null": {
                "name": "the same difference between untrained SAEs; lowest and highest of cells",
                **dict(zip(_SHOWN, (null[at], null.min(), null.max()), strict=True)),
            },
        }

    def _shown(self, same, left, states) -> list[dict[str, Any]]:
        """Every cell in full: what was observed, its nulls, and what the tests say."""
        names = ["tokens", "small_layer", "big_layer", "n_sequences", "n_seeds"]
        for x in ("d_r2", "d_ce_rec", "gap"):
            ends = [f"{x}{kind}_{end}" for kind in ("", "_both") for end in ("low", "high")]
            names += [name for name in (x, *ends, f"untrained_{x}") if name in self.last]
        rows = self.last[[*CELL, *names]].to_dict("records")
        p = {name: getattr(left, name) for name in ("p_beyond", "p_converged", "p_residual")}
        p["p_equal"] = same.p_equal
        for i, (row, label, state) in enumerate(zip(rows, self.labels, states, strict=True)):
            row |= {"label": label, "state": state} | {name: x[i] for name, x in p.items()}
            row |= {f"change_{side}": self.changes[side].value[i] for side in self.changes}
        return rows


def _require(table, columns, what) -> None:
    missing = [name for name in columns if name not in table]
    if missing:
        raise StreamgaugeError(
            f"the {what} table lacks the columns {', '.join(missing)}",
            remedy="Remake the study's comparisons.",
        )


def _label(row, told) -> str:
    """A cell in words."""
    words = {
        "depth": "depth {}",
        "k": "k {}",
        "expansion": "×{}",
        "small": "from {}",
        "big": "to {}",
    }
    return ", ".join(words.get(name, "{}").format(row[name]) for name in CELL if name in told)


def _list(names: Sequence[str]) -> str:
    """The first names, and how many more."""
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return "; ".join(names[:6]) + more
