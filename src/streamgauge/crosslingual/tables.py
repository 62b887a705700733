"""A study of the cross-lingual suite: its tables, and the level of the specification it reaches.

A level says what was done, and for gold also what came out; what was found is said by
`findings`, every sentence with its null.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from streamgauge.base.paths import cell_of
from streamgauge.base.tables import read_csv, write_csv
from streamgauge.crosslingual import findings as crosslingual_findings
from streamgauge.crosslingual.dissociation import DOUBLE

_CELL = ["subject", "prompts"]
_SUBSPACE = [*_CELL, "layer", "k_sub"]
#: table of a study -> the artifact it comes from, and what its rows are told apart by
TABLES = {
    "heads": ("geometry", ["subject"]),
    "layers": ("geometry", ["subject"]),
    "similarity": ("geometry", ["subject"]),
    "separation": ("separation", _SUBSPACE),
    "updates": ("updates", [*_CELL, "basis_layer", "k_sub"]),
    "bridge": ("bridge", _SUBSPACE),
    "bridge_spectra": ("bridge", _SUBSPACE),
    "patching": ("patching", [*_SUBSPACE, "source"]),
    "ard": ("ard", [*_CELL, "layer", "penalty"]),
}
LEVELS = ("minimum", "strong", "gold")
#: a patching table counts from this many problems with a number in the unpatched run
FEWEST = 15
#: the same verdict is asked of this many layers
LAYERS = 2
#: a bridge is approximately orthogonal from this leave-one-out R² on ...
BRIDGE_R2 = 0.8
#: ... and up to this root mean square of σ² − 1 over the singular values σ of W
BRIDGE_RMS = 0.25

Cells = Iterable[tuple[Mapping[str, Any], pd.DataFrame]]


class Criterion(NamedTuple):
    """One thing a level asks for.

    Attributes:
        level: one of `LEVELS`.
        asks: what is asked, in words.
        met: whether it is there.
        there: what there is, in words.
    """

    level: str
    asks: str
    met: bool
    there: str


def paired(
    records: Mapping[str, Sequence[Mapping]], paths: Mapping[str, Sequence[str | Path]]
) -> dict[str, Cells]:
    """Manifests and tables of all cells of a study.

    Args:
        records: for every artifact of `TABLES` its manifests.
        paths: under ``{table}_tables`` the CSV files of each table, in the same order.

    Returns:
        For every name of `TABLES` its pairs of a manifest and a table.
    """
    return {
        name: list(zip(records[artifact], map(read_csv, paths[f"{name}_tables"]), strict=True))
        for name, (artifact, _) in TABLES.items()
    }


def tables(cells: Mapping[str, Cells]) -> dict[str, pd.DataFrame]:
    """The tables of a study: all cells of a kind below each other.

    Args:
        cells: for every name of `TABLES` pairs of a manifest and the cell's table.

    Returns:
        Name -> table. Columns that tell cells apart stand in front (in ``updates`` the layer whose
        Z it is stands as ``basis_layer``, for ``layer`` is where the update happens); cells are
        sorted by them, rows within a cell keep their order. A kind without cells gives a table
        that has these columns and no row.
    """
    found = {}
    for name, (_, keys) in TABLES.items():
        parts = []
        for record, table in cells[name]:
            cell = cell_of(record)
            own = {key: cell[key.removeprefix("basis_")] for key in keys}
            parts.append((tuple(own.values()), table.assign(**own)[[*own, *table.columns]]))
        parts.sort(key=lambda part: part[0])
        whole = [table for _, table in parts]
        found[name] = pd.concat(whole, ignore_index=True) if whole else pd.DataFrame(columns=keys)
    return found


def write(tables: Mapping[str, pd.DataFrame], paths: Mapping[str, str | Path]) -> list[str]:
    """Write every table of a study as CSV.

    Args:
        tables: result of `tables`.
        paths: the file of each; other keys are passed over.

    Returns:
        The files, in the order of `TABLES`.
    """
    for name in TABLES:
        write_csv(tables[name], paths[name])
    return [str(paths[name]) for name in TABLES]


def read(paths: Mapping[str, str | Path]) -> dict[str, pd.DataFrame]:
    """The tables that `write` wrote, from the same `paths`."""
    return {name: read_csv(paths[name]) for name in TABLES}


def verdicts(cells: Cells) -> list[dict[str, Any]]:
    """The verdict of every patching cell with what tells the cell apart in front.

    Args:
        cells: the pairs ``patching`` of `paired`; a manifest's facts hold ``verdict``, the
            result of `dissociation.verdict`.

    Returns:
        One dict a cell, sorted as the tables are.
    """
    keys = TABLES["patching"][1]
    found = []
    for record, _ in cells:
        cell = cell_of(record)
        found.append({key: cell[key] for key in keys} | record["facts"]["verdict"])
    return sorted(found, key=lambda verdict: tuple(verdict[key] for key in keys))


def findings(
    tables: Mapping[str, pd.DataFrame], verdicts: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What a study reached and what it found, for every subject and prompts.

    Args:
        tables: result of `tables`.
        verdicts: result of `verdicts`.

    Returns:
        Plain JSON: ``rules``, the thresholds in words; ``blocks``, one for each subject and
        prompts with ``level`` (None below minimum), ``next`` (what the next level lacks),
        ``criteria`` (see `Criterion`), ``findings`` (see `findings.Finding`) and
        ``verdicts``.

    Raises:
        StreamgaugeError: a finding lacks its null.
    """
    blocks = []
    pairs = {
        pair
        for name, (_, keys) in TABLES.items()
        if "prompts" in keys
        for pair in tables[name][_CELL].itertuples(index=False, name=None)
    }
    for subject, prompts in sorted(pairs):
        own = {}
        for name, (_, keys) in TABLES.items():
            rows = tables[name][tables[name].subject == subject]
            own[name] = rows[rows.prompts == prompts] if "prompts" in keys else rows
        said = [v for v in verdicts if (v["subject"], v["prompts"]) == (subject, prompts)]
        asked = criteria(own, said)
        reached, lacking = level(asked)
        blocks.append(
            {
                "subject": subject,
                "prompts": prompts,
                "level": reached,
                "next": lacking,
                "criteria": [criterion._asdict() for criterion in asked],
                "findings": crosslingual_findings.found(own, said),
                "verdicts": said,
            }
        )
    return {"rules": _rules(), "blocks": blocks}


def level(criteria: Iterable[Criterion]) -> tuple[str | None, list[str]]:
    """The highest level whose criteria, and those of all levels below it, are met.

    Returns:
        The level, None below minimum; and what the next level asks for that is not there.
    """
    reached, criteria = None, list(criteria)
    for name in LEVELS:
        lacking = [c.asks for c in criteria if c.level == name and not c.met]
        if lacking:
            return reached, lacking
        reached = name
    return reached, []


def criteria(
    tables: Mapping[str, pd.DataFrame], verdicts: Sequence[Mapping[str, Any]]
) -> list[Criterion]:
    """What each level asks of one subject and prompts, and what there is.

    Args:
        tables: result of `tables`, the rows of one subject and prompts.
        verdicts: their verdicts.
    """
    patching, updates, ard, bridge = (tables[x] for x in ("patching", "updates", "ard", "bridge"))
    answered = patching.n_with_answer.max() if len(patching) else 0
    rates = crosslingual_findings.rates(patching)
    transitions = updates.layer.nunique() if len(updates) else 0
    overlap = ard.overlap_flat.notna().sum() if len(ard) else 0
    r2 = bridge.r2_loo.notna().sum() if len(bridge) else 0
    sources = sorted(set(patching.source))
    return [
        Criterion(
            "minimum",
            f"a patching table with at least {FEWEST} problems whose unpatched run gave a number",
            bool(answered >= FEWEST),
            _count(int(answered), "such problem"),
        ),
        Criterion(
            "minimum",
            "the rates of answers and languages under Z and Z⊥ beside random subspaces",
            bool(rates),
            _count(len(rates), "sentence"),
        ),
        Criterion("minimum", "R(ℓ) over layers", transitions > 0, _count(transitions, "update")),
        Criterion(
            "strong", "a spectrum of ARD lengthscales", len(ard) > 0, _count(len(ard), "fit")
        ),
        Criterion(
            "strong", "the overlap of ARD dimensions with Z", bool(overlap), _count(overlap, "fit")
        ),
        Criterion("strong", "a leave-one-out R² of the bridge", bool(r2), _count(r2, "bridge")),
        _double_at_layers(verdicts),
        Criterion(
            "gold",
            "patching with sources aligned by optimal transport",
            "ot" in sources,
            f"sources {', '.join(sources) or 'none'}",
        ),
        _orthogonal(bridge),
    ]


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _double_at_layers(verdicts) -> Criterion:
    """The same verdict at several layers, all else equal."""
    layers: dict[tuple, set[int]] = {}
    for verdict in verdicts:
        if verdict["verdict"] == DOUBLE:
            layers.setdefault((verdict["k_sub"], verdict["source"]), set()).add(verdict["layer"])
    most = max(map(len, layers.values()), default=0)
    where = [
        f"k_sub {k_sub}, {source}: layers {', '.join(map(str, sorted(at)))}"
        for (k_sub, source), at in sorted(layers.items())
    ]
    return Criterion(
        "gold",
        f"a double dissociation at {LAYERS} or more layers with the same k_sub and source",
        most >= LAYERS,
        f"{'; '.join(where) or 'none'}, of {len(verdicts)} verdicts",
    )


def _orthogonal(bridge) -> Criterion:
    """A bridge that predicts pairs it has not seen and keeps lengths and angles."""
    asks = (
        f"an approximately orthogonal bridge: leave-one-out R² ≥ {BRIDGE_R2} and above permuted"
        f" pairs, root mean square of σ² − 1 ≤ {BRIDGE_RMS}, and an orthogonality error below the"
        " interval of random subspaces"
    )
    if bridge.empty:
        return Criterion("gold", asks, False, "no bridge")
    rms = bridge_rms(bridge)
    kept = (bridge.r2_loo >= BRIDGE_R2) & (bridge.r2_loo > bridge.permuted_high)
    kept &= (rms <= BRIDGE_RMS) & (bridge.orthogonality_error < bridge.random_orthogonality_low)
    there = f"{int(kept.sum())} of {len(bridge)} bridges"
    scored = bridge[kept] if kept.any() else bridge
    if scored.r2_loo.notna().any():
        best = scored.loc[scored.r2_loo.idxmax()]
        there += (
            f"; best leave-one-out R² {best.r2_loo:.3g} at layer {best.layer}, k_sub {best.k_sub},"
            f" {best.method}, with a root mean square of {rms[best.name]:.3g}"
        )
    return Criterion("gold", asks, bool(kept.any()), there)


def bridge_rms(bridge: pd.DataFrame) -> pd.Series:
    """Root mean square of σ² − 1 over the singular values of W: the error ‖WᵀW − I‖_F/k · √k.

    The error itself shrinks with k (W = 0 has 1/√k, which passes for small); this does not: W = 0
    has 1, a rotation 0.
    """
    return bridge.orthogonality_error * np.sqrt(bridge.k_sub)


def _rules() -> list[str]:
    return [
        f"Minimum: a patching table with {FEWEST} or more problems whose unpatched run gave a"
        " number, its rates beside those of random subspaces, and R(ℓ) over layers.",
        "Strong: also a spectrum of ARD lengthscales, the overlap of its dimensions with Z, and a"
        " leave-one-out R² of the bridge.",
        f"Gold: also a double dissociation at {LAYERS} or more layers with the same k_sub and"
        " source, patching with optimal transport, and a bridge that is approximately orthogonal:"
        f" leave-one-out R² of at least {BRIDGE_R2} and above permuted pairs, root mean square of"
        f" σ² − 1 of at most {BRIDGE_RMS} (W = 0 has 1, a rotation 0), and an orthogonality error"
        " below the interval of random subspaces.",
        "Minimum and strong say what was done, not what came out: a null result can reach them.",
    ]
