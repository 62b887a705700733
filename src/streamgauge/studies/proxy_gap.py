"""The proxy gap in any table of results: deltas across scale, correlations, k*.

Definitions are those of docs/definitions.md, "Comparisons across scale". A table has one row for
each SAE: ``model, d_model, k, r2, ce_rec`` and whatever else tells SAEs apart. There are no
sequences here, so nothing has an interval; `comparisons` does the same on a study's per-sequence
tables.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.tables import read_csv
from streamgauge.numerics import correlation, inference

REQUIRED = ("model", "d_model", "k", "r2", "ce_rec")
#: what is compared, where the table has it
MEASURES = ("r2", "ce_rec", "mse", "cosine", "kl_nats")
#: columns that must be equal for two SAEs to be compared, where the table has them
MATCHED = (
    *("corpus", "tokenizer", "token_set", "depth", "expansion", "objective"),
    *("k", "tokens", "seed"),
)
#: those of them in which two models without a common value can never be compared
SHARED = ("corpus", "tokenizer")
HOWS = ("pooled", "within_k", "per_k")
# names that other tables of results use
_ALIASES = {"cos": "cosine", "subject": "model", "ce_rec_mean_of_ratios": "ce_rec"}


def read_rows(path: str | Path) -> pd.DataFrame:
    """Read a table of results, or a study's ``grid.csv``.

    Args:
        path: a CSV file with the columns `REQUIRED`, and any of `MEASURES` and `MATCHED`. `cos`
            is read as `cosine`. Of a grid table the SAEs' rows of token set ``all`` are taken,
            `subject` as the model and ``ce_rec_mean_of_ratios`` as `ce_rec`. Where there is a
            `layer` and no `depth`, layers of different models are matched by their place among
            each model's own.

    Raises:
        StreamgaugeError: no such file, no CSV, a missing or duplicate column, a cell that is no
            number, no rows, models with different numbers of layers, two rows of the same SAE.
    """
    where = str(path)
    try:
        rows = read_csv(path, keep_default_na=True)
    except StreamgaugeError as error:
        raise StreamgaugeError(error.problem, where=where, remedy="Give a CSV file.") from None
    if "codec" in rows:
        rows = rows[rows.codec == "sae"]
        rows = rows[rows.token_set == "all"] if "token_set" in rows else rows
    rows = rows.rename(columns={a: b for a, b in _ALIASES.items() if b not in rows})
    try:
        return checked(rows)
    except StreamgaugeError as error:
        raise StreamgaugeError(error.problem, where=where, remedy=error.remedy) from None


def checked(rows: pd.DataFrame) -> pd.DataFrame:
    """The same rows with the columns this module needs, numbers as numbers.

    Raises:
        StreamgaugeError: see `read_rows`.
    """
    missing = [name for name in REQUIRED if name not in rows]
    if missing:
        raise StreamgaugeError(
            f"no column {', '.join(missing)}",
            remedy=f"A table of results has the columns {', '.join(REQUIRED)}.",
        )
    if rows.empty:
        raise StreamgaugeError("the table holds no SAE", remedy="Give one row for each SAE.")
    rows = rows.reset_index(drop=True)
    for name in ("d_model", "k", *MEASURES):
        if name in rows:
            numbers = pd.to_numeric(rows[name], errors="coerce")
            bad = ~np.isfinite(numbers) & (rows[name].notna() | (name in REQUIRED))
            if bad.any():
                raise StreamgaugeError(
                    f"'{rows[name][bad.idxmax()]}' in column {name}, row {bad.idxmax() + 1},"
                    " is no number",
                    remedy="Mend the row or leave it out.",
                )
            rows[name] = numbers
    if (rows.groupby("model").d_model.nunique() > 1).any():
        raise StreamgaugeError(
            "a model has two values of d_model", remedy="Give models of two sizes two names."
        )
    rows = _with_depth(rows)
    same = rows.duplicated(["model", *keys(rows)])
    if same.any():
        raise StreamgaugeError(
            f"two rows of the same SAE: {_named(rows.loc[same.idxmax()], ['model', *keys(rows)])}",
            remedy="Add the column in which they differ (depth, tokens, seed ...), or drop one.",
        )
    return rows


def keys(rows: pd.DataFrame) -> list[str]:
    """The columns of `MATCHED` that the table has."""
    return [name for name in MATCHED if name in rows]


def _with_depth(rows):
    if "layer" not in rows or "depth" in rows:
        return rows
    layers = {model: sorted(part.layer.unique()) for model, part in rows.groupby("model")}
    counts = {len(own) for own in layers.values()}
    if len(counts) > 1:
        shown = ", ".join(f"{model}: {len(own)}" for model, own in layers.items())
        raise StreamgaugeError(
            f"the models have different numbers of layers ({shown}), which cannot be matched",
            remedy="Add a column depth that says which belong together.",
        )
    place = [layers[model].index(at) + 1 for model, at in zip(rows.model, rows.layer, strict=True)]
    # a grid table has many columns, which pandas keeps in pieces until they are copied
    return rows.copy().assign(depth=[str(at) for at in place])


def _named(row, names) -> str:
    return ", ".join(f"{name} {row[name]}" for name in names)


def _pairs(rows) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
    """The rows of every two models that differ in d_model, the smaller first."""
    models = rows.drop_duplicates("model").sort_values(["d_model", "model"])
    for one, other in itertools.combinations(models.itertuples(), 2):
        if one.d_model < other.d_model:
            yield rows[rows.model == one.model], rows[rows.model == other.model]


def compare_scales(rows: pd.DataFrame) -> pd.DataFrame:
    """Differences, larger less smaller model, of every two models at otherwise equal settings.

    Args:
        rows: see `read_rows`; all pairs of models with different d_model are compared.

    Returns:
        One row for each pair and each setting that both have: the columns of `MATCHED` that the
        table has, ``small, big, small_d_model, big_d_model``, ``d_{x}`` for each of `MEASURES`
        there is, ``gap`` = ΔR² − ΔCE_rec, and ``mismatch``: 1 where ΔR² > 0 and ΔCE_rec < 0, both
        strictly, else 0. Settings that one model lacks: `missing_cells`.

    Raises:
        StreamgaugeError: two models share no corpus or no tokenizer, so that their losses are not
            of the same tokens; fewer than two sizes; see also `read_rows`.
    """
    rows = checked(rows)
    matched, measures = keys(rows), [name for name in MEASURES if name in rows]
    parts = []
    for small, big in _pairs(rows):
        names = small.model.iloc[0], big.model.iloc[0]
        for column in (name for name in SHARED if name in rows):
            ours, theirs = (sorted(map(str, part[column].unique())) for part in (small, big))
            if not set(ours) & set(theirs):
                raise StreamgaugeError(
                    f"{names[0]} and {names[1]} cannot be compared: {column}"
                    f" {', '.join(ours)} and {', '.join(theirs)}",
                    remedy="Compare models on the same tokens; leave one of the two out.",
                )
        both = small.merge(big, on=matched, suffixes=("_small", "_big"))
        table = both[matched].assign(small=names[0], big=names[1])
        for side in ("small", "big"):
            table[f"{side}_d_model"] = both[f"d_model_{side}"]
        for name in measures:
            table[f"d_{name}"] = both[f"{name}_big"] - both[f"{name}_small"]
        parts.append(table)
    if not parts:
        raise StreamgaugeError(
            "the table holds models of one size only, so there is no scale to compare",
            remedy="Add the rows of a model with another d_model.",
        )
    table = pd.concat(parts, ignore_index=True)
    table["gap"] = gap(table.d_r2, table.d_ce_rec)
    return table.assign(mismatch=mismatch(table.d_r2, table.d_ce_rec).astype(int))


def gap(d_r2, d_ce_rec):
    """Gap = ΔR² − ΔCE_rec, what R² claims across scale beyond what the model keeps."""
    return d_r2 - d_ce_rec


def mismatch(d_r2, d_ce_rec):
    """Whether R² rises and CE_rec falls with scale, both strictly."""
    return (d_r2 > 0) & (d_ce_rec < 0)


def missing_cells(rows: pd.DataFrame) -> list[str]:
    """What some model of the table has and another lacks, one sentence each.

    Args:
        rows: see `read_rows`; only `model` and columns of `MATCHED` are looked at.
    """
    names = keys(rows)
    cells = rows[names].drop_duplicates().sort_values(names)
    found = []
    for model in sorted(rows.model.unique()):
        own = rows.loc[rows.model == model, names]
        marked = cells.merge(own.drop_duplicates(), how="left", on=names, indicator="held")
        absent = marked[marked.held == "left_only"]
        found += [f"{model} has no SAE with {_named(row, names)}" for _, row in absent.iterrows()]
    return found


def correlations(rows: pd.DataFrame) -> pd.DataFrame:
    """Pearson correlation of R² and CE_rec over the SAEs of a table.

    Args:
        rows: see `read_rows`. SAEs that differ in nothing but the seed count as one, their mean.

    Returns:
        One row for each setting of the columns of `MATCHED` other than k and seed, and each

        - ``how``: ``pooled``; ``within_k``, both less their mean over the SAEs of equal k;
          ``per_k``, the SAEs of one ``k`` alone (empty for the others);
        - ``n``, ``n_models``; ``pearson``: NaN below 3 SAEs, where a line always fits, and where
          one of the two does not vary.
    """
    rows = checked(rows)
    found = []
    for setting, part in _settings(_seed_means(rows), but=("k",)):
        r2, ce_rec = (part[name].to_numpy(np.float64) for name in ("r2", "ce_rec"))
        for how, k, own in ways(part.k):
            r = pearson(r2[own], ce_rec[own], part.k.to_numpy()[own], how)
            counts = {"n": int(own.sum()), "n_models": part.model[own].nunique()}
            found.append(setting | {"how": how, "k": k} | counts | {"pearson": float(r)})
    return pd.DataFrame(found).astype({"k": "Int64"})


def ways(k) -> Iterator[tuple[str, int | None, np.ndarray]]:
    """Every ``how`` with its k (None but for ``per_k``) and which SAEs it takes, a mask."""
    k = np.asarray(k)
    for how in HOWS[:2]:
        yield how, None, np.ones(len(k), bool)
    for value in np.unique(k):
        yield HOWS[2], int(value), k == value


def pearson(r2, ce_rec, k, how: str) -> np.ndarray:
    """Correlation of R² and CE_rec along the last axis.

    Args:
        r2, ce_rec: shapes that broadcast to ``(..., n)``.
        k: sparsity of each SAE, shape ``(n,)``.
        how: ``within_k`` takes the mean over equal k off both first.

    Returns:
        Shape ``(...)``. NaN below 3 SAEs and where one of the two does not vary.
    """
    if len(k) < 3:
        shape = np.broadcast_shapes(np.shape(r2), np.shape(ce_rec))[:-1]
        return np.full(shape, np.nan)
    if how == "within_k":
        r2, ce_rec = (correlation.demeaned(x, k) for x in (r2, ce_rec))
    one, other = (correlation.standardised(x) for x in (r2, ce_rec))
    return np.clip((one * other).sum(-1), -1, 1)


def k_star_table(rows: pd.DataFrame, targets: Sequence[float]) -> pd.DataFrame:
    """The k at which CE_rec reaches each target, of every model.

    Args:
        rows: see `read_rows`; seeds are averaged first.
        targets: levels of CE_rec.

    Returns:
        One row for each model, setting of the columns of `MATCHED` other than k and seed, and
        target: ``k_star`` and ``censored`` as `inference.k_star`, ``k_min``, ``k_max``.
    """
    rows = checked(rows)
    found = []
    for setting, part in _settings(_seed_means(rows), but=("k",), first=("model",)):
        for target in targets:
            value, censored = inference.k_star(part.k, part.ce_rec, target)
            ends = {"k_min": part.k.min(), "k_max": part.k.max()}
            found.append(setting | {"target": target, "k_star": value, "censored": censored} | ends)
    return pd.DataFrame(found)


def _seed_means(rows):
    names = ["model", "d_model", *(name for name in keys(rows) if name != "seed")]
    return rows.groupby(names, as_index=False, dropna=False)[["r2", "ce_rec"]].mean()


def _settings(rows, but, first=()) -> Iterator[tuple[dict, pd.DataFrame]]:
    """The parts of the table with equal keys, `but` some, and these keys."""
    names = [*first, *(name for name in keys(rows) if name not in but)]
    if not names:
        yield {}, rows
        return
    for values, part in rows.groupby(names, dropna=False):
        yield dict(zip(names, values, strict=True)), part
