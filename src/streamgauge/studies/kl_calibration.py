"""Predicted against measured KL of a study: points, ratios and fits, with intervals."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.paths import cell_of
from streamgauge.numerics import inference
from streamgauge.numerics.token_sets import TOKEN_SETS

_SAE = ["expansion", "k", "tokens", "objective", "seed"]
_PLACE = ["subject", "corpus", "layer", "token_set", "source"]
_CELL = [*_PLACE, "scale", *_SAE]
_WHOLE = dict.fromkeys(("layer", "expansion", "k", "tokens", "seed"), "Int64")
#: codecs of the per-sequence tables that are compared, the `source` of their points
CODECS = ("sae", "untrained")


def points(
    synthetic: Iterable[tuple[Mapping, pd.DataFrame]],
    per_sequence: Iterable[tuple[Mapping, pd.DataFrame]],
    sensitivity: Iterable[tuple[Mapping, pd.DataFrame]],
) -> pd.DataFrame:
    """Predicted and measured KL of every sequence and error of a study.

    Args:
        synthetic: manifest and table of `measure` for every layer.
        per_sequence: manifest and table of `evaluate` for every SAE.
        sensitivity: manifest and sensitivity table of every SAE, with the predictions.

    Returns:
        ``subject, corpus, layer, token_set, source`` (``synthetic``, ``sae`` or ``untrained``),
        ``scale`` (synthetic only), ``expansion, k, tokens, objective, seed`` (SAEs only),
        ``sequence, n_predicted``, and in nats per predicted position: ``predicted_nats`` (each
        token's error alone), ``joint_nats`` (all at once), ``measured_nats``. Sequences without a
        predicted position in a token set are left out there.

    Raises:
        StreamgaugeError: an SAE has only one of its two tables, or they hold other sequences.
    """
    found = []
    for record, made in synthetic:
        names = {"kl_sum_nats": "kl", "quad_sum_nats": "quad", "joint_quad_nats": "joint"}
        found.append(made.rename(columns=names).assign(source="synthetic", **cell_of(record)))
    predictions = {_identity(record): made for record, made in sensitivity}
    for record, measured in per_sequence:
        predicted = predictions.get(_identity(record))
        if predicted is None:
            raise StreamgaugeError(f"no sensitivity table of the SAE {_identity(record)}")
        own = cell_of(record)
        cell = {name: own[name] for name in ("subject", "corpus", "layer", *_SAE)}
        for s in TOKEN_SETS:
            columns = {"kl": f"kl_nats_{s}", "n_predicted": f"n_predicted_{s}"}
            both = _of_codecs(measured, **columns)
            columns = {"quad": f"quad_sum_{s}", "joint": f"joint_quad_{s}", "n": f"n_predicted_{s}"}
            both = both.join(_of_codecs(predicted, **columns), how="outer")
            if both[["n_predicted", "n"]].isna().any(axis=None):
                raise StreamgaugeError(
                    f"the two tables of the SAE {_identity(record)} hold different sequences",
                    remedy="Make both from the same tokens.",
                )
            both = both[(both.n_predicted > 0) & (both.n > 0)]
            # a norm at the threshold may be a sink in the rounded store and none in the model
            per_position = {"kl": both.kl * both.n_predicted}
            per_position |= {x: both[x] * both.n_predicted / both.n for x in ("quad", "joint")}
            both = both.assign(**per_position)
            found.append(both.reset_index(names=["source", "sequence"]).assign(token_set=s, **cell))
    table = pd.concat(found, ignore_index=True)
    table = table[table.n_predicted > 0]
    for name, column in (("predicted", "quad"), ("joint", "joint"), ("measured", "kl")):
        table[f"{name}_nats"] = table[column] / table.n_predicted
    values = ["predicted_nats", "joint_nats", "measured_nats"]
    table = table.reindex(columns=[*_CELL, "sequence", "n_predicted", *values])
    numbers = {name: pd.to_numeric(table[name]).astype(kind) for name, kind in _WHOLE.items()}
    return table.assign(**numbers).reset_index(drop=True)


def _identity(record) -> tuple:
    return tuple(cell_of(record).values())


def _of_codecs(made, **columns) -> pd.DataFrame:
    """Columns of the rows of `CODECS`, renamed, indexed by codec and sequence."""
    made = made.astype({"codec": str})
    made = made[made.codec.isin(CODECS)].set_index(["codec", "sequence"])
    return pd.DataFrame({name: made[column] for name, column in columns.items()})


def table(
    points: pd.DataFrame, *, resamples: int = 5000, confidence: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """Ratios, slopes and R² of measured against predicted KL, with intervals over sequences.

    Args:
        points: what `points` returned, or its CSV.
        resamples, confidence, seed: see `inference.bootstrap`; ratios and fits of one row share
            the resamples.

    Returns:
        For every error (a scale, or a codec of an SAE) one row, and behind those of one
        ``subject, corpus, layer, token_set, source`` one of all its points, with ``scale`` and the
        columns of an SAE empty:

        - ``n_sequences, n_points``; ``predicted_nats, joint_nats, measured_nats``: totals per
          predicted position;
        - ``ratio`` = measured/predicted, ``ratio_joint`` = measured/joint: ratios of totals;
        - ``slope``, ``r2``: least squares of measured on joint over the points;
          ``log_slope``, ``log_r2``: the same for log10 of both, points at or below 0 left out;
          ``slope_per_token`` and so on: on predicted instead of joint.

        Ratios and slopes have ``_low`` and ``_high``. NaN where a number does not exist.
    """
    rows = []
    settings = {"resamples": resamples, "confidence": confidence, "seed": seed}
    for place, own in points.groupby(_PLACE, sort=False):
        for key, part in own.groupby(_CELL, sort=False, dropna=False):
            rows.append(dict(zip(_CELL, key, strict=True)) | _row(part, settings))
        rows.append(dict(zip(_PLACE, place, strict=True)) | _row(own, settings))
    found = pd.DataFrame(rows)
    return found[[*_CELL, *(name for name in found if name not in _CELL)]].astype(_WHOLE)


def _row(part, settings) -> dict:
    """The numbers of one row, from its points."""
    n = part.n_predicted.to_numpy(np.float64)
    sequence = pd.factorize(part.sequence)[0]
    predicted, joint, measured = (
        part[f"{name}_nats"].to_numpy(np.float64) for name in ("predicted", "joint", "measured")
    )
    row = {"n_sequences": int(sequence.max()) + 1, "n_points": len(part)}
    for name, x in (("predicted", predicted), ("joint", joint), ("measured", measured)):
        row[f"{name}_nats"] = (x * n).sum() / n.sum()

    def add(name, columns, statistic):
        """Value and interval of a function of sums over points, resampled by sequence."""
        sums = np.stack([np.bincount(sequence, c) for c in columns], axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            estimate = inference.bootstrap(sums, statistic, **settings)
        row[name], row[f"{name}_low"], row[f"{name}_high"] = estimate

    for suffix, x in (("", predicted), ("_joint", joint)):
        add(f"ratio{suffix}", (measured * n, x * n), lambda s: s[..., 0] / s[..., 1])
    for suffix, x in (("", joint), ("_per_token", predicted)):
        positive = (x > 0) & (measured > 0)
        logs = (np.log10(np.where(positive, v, 1)) for v in (x, measured))
        counted = np.ones(len(x), bool)
        for prefix, used, pair in (("", counted, (x, measured)), ("log_", positive, logs)):
            columns = _moments(*pair, used)
            add(f"{prefix}slope{suffix}", columns, lambda s: _slope(*np.moveaxis(s, -1, 0)))
            row[f"{prefix}r2{suffix}"] = float(_r2(*(c.sum() for c in columns)))
    return row


def _moments(x, y, used) -> tuple[np.ndarray, ...]:
    """What the sums of a least-squares fit are made of, (1, x, y, x², xy, y²) of every point."""
    # about the mean, which a slope does not depend on, so that squares lose no digits
    x, y = (np.where(used, v - v[used].mean() if used.any() else v, 0) for v in (x, y))
    return used.astype(np.float64), x, y, x * x, x * y, y * y


def _slope(n, x, y, xx, xy, yy):
    with np.errstate(divide="ignore", invalid="ignore"):
        return (n * xy - x * y) / (n * xx - x * x)


def _r2(n, x, y, xx, xy, yy):
    with np.errstate(divide="ignore", invalid="ignore"):
        return (n * xy - x * y) ** 2 / ((n * xx - x * x) * (n * yy - y * y))
