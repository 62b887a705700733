"""The SAEs of a study, measured on the same resamples of the evaluation sequences.

Any two numbers of one corpus are paired: replicate r of each comes from the same drawn sequences.
Definitions are those of docs/definitions.md, "Comparisons across scale".
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.paths import cell_of
from streamgauge.base.progress import Progress
from streamgauge.numerics import inference, metrics
from streamgauge.numerics.token_sets import TOKEN_SETS
from streamgauge.studies import proxy_gap, score_card

#: measures of an SAE
MEASURES = ("r2", "ce_rec", "ce_rec_totals", "mse", "cosine", "kl_nats")
#: those that are taken of its untrained control too
NULL_MEASURES = ("r2", "ce_rec", "kl_nats")
#: columns of a cell that say how an SAE was trained, the seed aside
RUN = ["expansion", "objective", "k", "tokens"]
CELL = ["subject", "corpus", "layer", *RUN, "seed"]
#: labels of the intervals in the names of columns: over sequences, over seeds, over both
INTERVALS = ("", "seed_", "both_")


class Draws(NamedTuple):
    """A number for each seed, on the data and in every resample of the sequences.

    Attributes:
        values: shape ``(seeds, 1 + resamples)``; column 0 is the data itself.
        n: sequences that were resampled.
    """

    values: np.ndarray
    n: int

    def __sub__(self, other: "Draws") -> "Draws":
        """The paired difference, seed by seed and resample by resample."""
        return Draws(self.values - other.values, self.n)

    @property
    def mean(self) -> np.ndarray:
        """Mean over seeds: shape ``(1 + resamples,)``."""
        return self.values.mean(0)


def intervals(name: str, draws: Draws, confidence: float, errors: bool = False) -> dict[str, float]:
    """Columns of one number: its mean over seeds and every interval there is.

    Args:
        name: of the columns.
        draws: the number for each seed.
        confidence: coverage of the intervals.
        errors: whether to give the standard errors too.

    Returns:
        ``{name}``, ``_low``, ``_high`` (percentile bootstrap over sequences), ``_seed_low``,
        ``_seed_high`` (t over seeds), ``_both_low``, ``_both_high`` (`inference.combined`), and
        ``_se_sequences``, ``_se_seeds``. NaN over seeds where there is one.
    """
    mean, seeds = draws.mean, len(draws.values)
    over_sequences = inference.percentile_interval(mean[0], mean[1:], draws.n, confidence)
    over_seeds = inference.t_interval(draws.values[:, 0], confidence)
    se_sequences = inference.standard_error(mean[1:], draws.n)
    spread = draws.values[:, 0].std(ddof=1) if seeds > 1 else np.nan
    se_seeds = float(spread / np.sqrt(seeds))
    both = inference.combined(mean[0], se_sequences, draws.n - 1, se_seeds, seeds - 1)
    found = {name: over_sequences.value}
    ends = (over_sequences[1:], over_seeds[1:], map(float, both.interval(confidence)))
    for label, (low, high) in zip(INTERVALS, ends, strict=True):
        found |= {f"{name}_{label}low": low, f"{name}_{label}high": high}
    if errors:
        found |= {f"{name}_se_sequences": se_sequences, f"{name}_se_seeds": se_seeds}
    return found


def interval_columns(name: str, errors: bool = True) -> list[str]:
    """The columns `intervals` makes."""
    ends = [f"{name}_{over}{end}" for over in INTERVALS for end in ("low", "high")]
    return [name, *ends, *([f"{name}_se_sequences", f"{name}_se_seeds"] if errors else [])]


def measure(table: pd.DataFrame, token_set: str, weights: np.ndarray) -> dict[str, np.ndarray]:
    """`MEASURES` of one codec for every row of weights, ratios anew in each.

    Args:
        table: one codec's rows of a per-sequence table, ``(sequences, ...)``.
        token_set: ``all`` or ``no_sink``.
        weights: how often each sequence counts, shape ``(resamples, sequences)``.

    Returns:
        measure -> shape ``(resamples,)``; NaN where nothing is left to take the mean of.
    """
    names = ("n_tokens", "n_predicted", "sse", "sst", "cosine_sum")
    columns = {name: table[f"{name}_{token_set}"] for name in names}
    columns |= {n: score_card.totals(table, n, token_set) for n in ("l_orig", "l_recon", "kl")}
    columns["ratio"], columns["counted"] = score_card.recovered(table, token_set)
    sums = weights @ pd.DataFrame(columns).to_numpy(np.float64)
    t = dict(zip(columns, sums.T, strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "r2": metrics.r_squared_from_totals(t["sse"], t["sst"]),
            "ce_rec": t["ratio"] / t["counted"],
            "ce_rec_totals": metrics.loss_recovered(t["l_orig"], t["l_recon"]),
            "mse": metrics.mse_from_totals(t["sse"], t["n_tokens"], table.d_model.iloc[0]),
            "cosine": t["cosine_sum"] / t["n_tokens"],
            "kl_nats": t["kl"] / t["n_predicted"],
        }


class Study:
    """All SAEs of a study, measured on the data and on every resample.

    Memory: 18 float64 numbers for each SAE and resample; the tables are read one at a time.

    Args:
        saes, tokens, depths: see `comparisons.tables`.
        total: number of SAEs, for the progress lines.
        resamples, confidence, seed: see `inference.bootstrap`.

    Attributes:
        cells: one row for each SAE: `CELL` and ``depth``, sorted.
        d_model: subject -> width.
        pairs: (corpus, small, big) of the subjects that can be compared.
        refused: the other pairs, each a sentence with the reason.

    Raises:
        StreamgaugeError: see `comparisons.tables`.
    """

    def __init__(
        self,
        saes: Iterable[tuple[Mapping, pd.DataFrame]],
        total: int,
        tokens: Mapping[tuple[str, str], str],
        depths: Mapping[str, Mapping[str, str]],
        *,
        resamples: int,
        confidence: float,
        seed: int,
    ):
        self.tokens, self.depths, self.confidence = tokens, depths, confidence
        self.resampling = {"resamples": resamples, "seed": seed}
        self.refused: set[str] = set()
        self.d_model: dict[str, int] = {}
        # (cell, token set, codec, measure) -> (1 + resamples,)
        self.values: dict[tuple, np.ndarray] = {}
        self.sequences: dict[tuple[str, str], list[int]] = {}
        cells, weights = [], {}
        progress = Progress(total, "SAEs", "comparisons")
        for record, table in saes:
            cells.append(self._measured(record, table, weights))
            progress.update(1)
        progress.close()
        if not cells:
            raise StreamgaugeError("there is no SAE to compare", remedy="Add one to the grid.")
        self.cells = pd.DataFrame(cells).sort_values(CELL, ignore_index=True)
        self.pairs = list(self._pairs())

    def _measured(self, record, table, weights) -> dict[str, Any]:
        """Measure one SAE and its control; its cell."""
        cell = cell_of(record)
        if "k" not in cell:
            raise StreamgaugeError(
                f"{cell.get('sae')} is no SAE of a grid: its folder does not say k and seed",
                remedy="Compare SAEs that the study trained.",
            )
        place = (cell["subject"], cell["corpus"])
        for codec in ("sae", "untrained"):
            own = table[table.codec == codec].sort_values("sequence")
            sequences = list(own.sequence)
            if sequences != self.sequences.setdefault(place, sequences) or not sequences:
                raise StreamgaugeError(
                    f"{codec} of {cell['sae']} was not run on the sequences of the other SAEs",
                    where=" ".join(place),
                    remedy="Evaluate all on the same token rows.",
                )
            n = len(sequences)
            if n not in weights:
                weights[n] = inference.data_and_resamples(n, **self.resampling)
            for token_set in TOKEN_SETS:
                for name, values in measure(own, token_set, weights[n]).items():
                    if codec == "sae" or name in NULL_MEASURES:
                        key = tuple(cell[part] for part in CELL)
                        self.values[(*key, token_set, codec, name)] = values
        self.d_model[cell["subject"]] = int(table.d_model.iloc[0])
        depth = self.depths.get(cell["subject"], {}).get(str(cell["layer"]), "")
        return {name: cell[name] for name in CELL} | {"depth": depth}

    def draws(self, cells: pd.DataFrame, token_set: str, name: str, codec: str = "sae") -> Draws:
        """One of `MEASURES` of SAEs, rows of `cells`, that differ in the seed only."""
        keys = cells[CELL].itertuples(index=False, name=None)
        values = [self.values[(*key, token_set, codec, name)] for key in keys]
        return Draws(np.stack(values), self.n_sequences(*cells[["subject", "corpus"]].iloc[0]))

    def n_sequences(self, subject: str, corpus: str) -> int:
        """How many evaluation sequences the subject was run on."""
        return len(self.sequences[subject, corpus])

    def _names(self, subject) -> list[str]:
        """Names of the subject's depths, in the order of its layers."""
        own = self.depths.get(subject, {})
        return [own[layer] for layer in sorted(own, key=int)]

    def _pairs(self) -> Iterator[tuple[str, str, str]]:
        """(corpus, small, big) for all that can be compared; the others go to `refused`."""
        subjects = sorted(self.d_model, key=lambda name: (self.d_model[name], name))
        for small, big in itertools.combinations(subjects, 2):
            shared = [c for s, c in sorted(self.sequences) if s == small]
            shared = [corpus for corpus in shared if (big, corpus) in self.sequences]
            if not shared:
                self.refused.add(f"{small} and {big}: no SAEs on the same corpus")
            for corpus in shared:
                reason = self._unlike(small, big, corpus)
                if reason is None and self.d_model[small] == self.d_model[big]:
                    reason = f"both are {self.d_model[big]} wide, so there is no scale to compare"
                if reason:
                    self.refused.add(f"{small} and {big} on {corpus}: {reason}")
                else:
                    yield corpus, small, big

    def _unlike(self, one, other, corpus) -> str | None:
        """Why numbers of two subjects are not of the same tokens and depths."""
        if self.tokens[one, corpus] != self.tokens[other, corpus]:
            return "the token ids of their evaluation rows differ (another tokenizer or other rows)"
        if self.sequences[one, corpus] != self.sequences[other, corpus]:
            return "they were evaluated on other sequences of it"
        names, others = self._names(one), self._names(other)
        if names != others:
            return f"layers at the depths {names} and {others} cannot be matched"
        return None

    def matched(self, subject: str, corpus: str) -> pd.DataFrame:
        """The cells of a subject on a corpus at layers that have a depth."""
        own = (self.cells.subject == subject) & (self.cells.corpus == corpus)
        return self.cells[own & (self.cells.depth != "")]

    def missing(self) -> set[str]:
        """SAEs that one of two compared subjects has and the other lacks."""
        named = self.cells.rename(columns={"subject": "model"})
        found = set()
        for corpus, *pair in self.pairs:
            own = named[(named.corpus == corpus) & named.model.isin(pair)]
            found |= set(proxy_gap.missing_cells(own))
        return found

    def alike(self, corpus: str) -> list[str]:
        """The largest set of subjects whose SAEs can be points of one correlation."""
        sets: dict[tuple, list[str]] = {}
        for subject in sorted(s for s, c in self.sequences if c == corpus):
            key = (self.tokens[subject, corpus], *self._names(subject))
            sets.setdefault(key, []).append(subject)
        # the first by name where several are as large
        return max(sets.values(), key=len)
