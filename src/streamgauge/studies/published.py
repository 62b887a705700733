"""Published scores of SAEs beside those of a study, for the cells both have.

The published cells are `resources/published/cells.csv`. A row puts two numbers side by side and
says in words how their settings differ; it is no reproduction of the published one.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from streamgauge.base.errors import StreamgaugeError

_HUB = "huggingface "
_SAE = ["subject", "corpus", "layer", "expansion", "k", "tokens", "objective", "seed"]
#: metric of the published cells -> column of the grid table, where the names differ
_GRID_NAMES = {"ce_rec": "ce_rec_mean_of_ratios"}
_CELLS = (
    *("source", "table", "model", "layer", "k", "tokens", "metric", "value", "low", "high"),
    *("d_sae_expansion", "eval_sequences", "context_length", "seeds", "corpus", "note"),
)
COLUMNS = (
    *("source", "table", "model", *_SAE, "metric"),
    *("published", "published_low", "published_high"),
    *("measured", "measured_low", "measured_high", "untrained", "difference", "setting"),
)


def side_by_side(
    grid: pd.DataFrame, subjects: Iterable[Mapping[str, Any]], cells: pd.DataFrame
) -> pd.DataFrame:
    """Published and measured scores of the cells that a study has.

    A cell is the same when the model comes from the same repository of the Hugging Face hub and
    layer, k and training tokens are equal. A cell whose layer was not printed meets every layer
    of its model. Only SAEs trained on the squared error count, over all tokens.

    Args:
        grid: a study's grid table.
        subjects: manifests of the study's subjects; their facts name the repositories.
        cells: the published cells, one number a row.

    Returns:
        One row for each published number and each SAE of the study in its cell, with the columns
        `COLUMNS`: ``measured`` with the interval of the grid table (over evaluation sequences),
        ``untrained`` the same score of the untrained control, ``difference`` = measured −
        published, ``setting`` how the two differ, in words. No rows when no cell is shared.

    Raises:
        StreamgaugeError: the cells lack a column.
    """
    missing = [name for name in _CELLS if name not in cells]
    if missing:
        raise StreamgaugeError(f"the published cells have no column '{missing[0]}'")
    sources = {
        record["spec"]["wildcards"]["subject"]: record["facts"]["source"] for record in subjects
    }
    rows = grid[(grid.token_set == "all") & (grid.objective == "mse")]
    trained = rows[rows.codec == "sae"]
    untrained = rows[rows.codec == "untrained"].set_index(_SAE)
    repos = trained.subject.map(lambda name: _repo(sources[name]))
    found = []
    for cell in cells.to_dict("records"):
        same = (repos == cell["model"]) & (trained.tokens == cell["tokens"])
        same &= trained.k == cell["k"]
        if pd.notna(cell["layer"]):
            same &= trained.layer == cell["layer"]
        for sae in trained[same].to_dict("records"):
            null = untrained.loc[tuple(sae[name] for name in _SAE)]
            found.append(_row(cell, sae, null))
    return pd.DataFrame(found, columns=list(COLUMNS))


def _repo(source: str) -> str | None:
    """The hub's repository in what a subject's manifest says of its source; None for others."""
    return source.removeprefix(_HUB).rpartition("@")[0] if source.startswith(_HUB) else None


def _row(cell: Mapping, sae: Mapping, untrained: Mapping) -> dict[str, Any]:
    name = _GRID_NAMES.get(cell["metric"], cell["metric"])
    return {
        **{key: cell[key] for key in ("source", "table", "model", "metric")},
        **{key: sae[key] for key in _SAE},
        **{f"published{end}": cell[key] for end, key in _ends("value")},
        **{f"measured{end}": sae[key] for end, key in _ends(name, f"{name}_")},
        "untrained": untrained[name],
        "difference": sae[name] - cell["value"],
        "setting": "; ".join(_differences(cell, sae)),
    }


def _ends(value: str, prefix: str = "") -> Iterator[tuple[str, str]]:
    yield from (("", value), ("_low", f"{prefix}low"), ("_high", f"{prefix}high"))


def _differences(cell: Mapping, sae: Mapping) -> Iterator[str]:
    """What is not the same in the two runs, or cannot be known to be."""
    pairs = {
        "corpus": (sae["corpus"], cell["corpus"]),
        "d_sae / d_model": (sae["expansion"], cell["d_sae_expansion"]),
        "evaluation sequences": (sae["n_sequences"], cell["eval_sequences"]),
        "tokens a sequence": (sae["n_tokens"] / sae["n_sequences"], cell["context_length"]),
    }
    for what, (here, there) in pairs.items():
        if pd.isna(there) or here != there:
            yield f"{what}: {_shown(here)} here, {_shown(there)} there"
    yield f"seed: {sae['seed']} here, {_shown(cell['seeds'])} seed there, its number not printed"
    yield cell["note"]


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "not printed" if np.isnan(value) else f"{value:g}"
