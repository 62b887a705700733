"""Does the quadratic of the probes predict the KL that an error really costs?

½ δᵀGδ is the KL of patching an error in to second order (DEFINITIONS.md, "Sensitivity"). `measure`
holds it against the measured KL on synthetic errors of known relative size, which must agree as
they shrink; `points` and `table` put the errors of real SAEs beside them. KL is in nats.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from streamgauge import evaluate, hooks, manifest, metrics, statistics
from streamgauge.errors import StreamgaugeError
from streamgauge.progress import Progress
from streamgauge.stores import TOKEN_SETS, no_sink

_SAE = ["expansion", "k", "tokens", "objective", "seed"]
_PLACE = ["subject", "corpus", "layer", "token_set", "source"]
_CELL = [*_PLACE, "scale", *_SAE]
_WHOLE = dict.fromkeys(("layer", "expansion", "k", "tokens", "seed"), "Int64")
#: codecs of the per-sequence tables that are compared, the `source` of their points
CODECS = ("sae", "untrained")


@torch.no_grad()
def measure(
    subject,
    tokens,
    layer: int,
    activations,
    probes,
    *,
    scales: Sequence[float],
    sequences: int,
    batch_size: int,
    seed: int,
    scratch: str | Path | None = None,
) -> pd.DataFrame:
    """Measured and predicted KL of synthetic errors patched in at all positions together.

    The error of token t is δ_t = a·‖h_t‖·ξ_t: ξ_t a random unit vector, independent for every
    token and the same for every scale a and token set, drawn from (seed, sequence). In ``all``
    every token gets one. In ``no_sink`` sinks keep their clean activation: a sink's norm can be a
    hundred times the usual, and then its error costs more than those of all others.

    Args:
        subject: a `subjects.Subject`.
        tokens: token ids, shape ``(N, T)``, T ≥ 2; array or zarr.
        layer: hook point ``blocks.{layer}.hook_resid_post``.
        activations: `stores.ActivationStore` of these tokens and this layer, for the threshold
            above which a token is a sink.
        probes: `stores.ProbeStore` of the same; its s probes estimate G.
        scales: relative sizes a of the errors, each > 0.
        sequences: rows of `tokens` used, the first ones; all of them where there are fewer.
        batch_size: sequences in a forward pass.
        seed: of the errors.
        scratch: directory for finished batches, owned by this very call's arguments; a later
            call with the same one continues there.

    Returns:
        One row for each sequence, token set and scale: ``sequence, token_set, scale,
        n_predicted`` (tokens of the set at positions 0..T−2) and, in nats,

        - ``kl_sum_nats``: Σ KL(clean‖patched) over positions 0..T−2, from the model's logits in
          float64, so that only their own rounding limits it;
        - ``quad_sum_nats``: Σ_t ½ Σ_i (v_i,t·δ_t)², each token's error priced alone. It leaves
          the cross terms between positions out; for independent errors these are 0 on average;
        - ``joint_quad_nats``: ½ Σ_i (Σ_t v_i,t·δ_t)², the whole error at once: an unbiased
          estimate of the KL to second order, of relative variance 2/s (Gaussian probes).

        δ is what the model sees, after rounding to the type it runs in.

    Raises:
        StreamgaugeError: unusable scales or tokens; stores of another layer, width or number of
            tokens; a KL that is not finite, naming sequence and scale.
    """
    _check(subject, tokens, layer, activations, probes, scales, sequences)
    n, length = min(tokens.shape[0], sequences), tokens.shape[1]
    threshold = activations.sink_threshold
    scratch = Path(scratch) if scratch else None
    if scratch:
        scratch.mkdir(parents=True, exist_ok=True)
    progress = Progress(n * length, "tokens", f"calibrate L{layer:02d}")
    parts = []
    for start in range(0, n, batch_size):
        stop = min(start + batch_size, n)
        path = scratch / f"rows-{start:08d}-{stop:08d}.parquet" if scratch else None
        if path and path.exists():
            parts.append(pd.read_parquet(path))
        else:
            ids = subject.ids(torch.as_tensor(np.asarray(tokens[start:stop], np.int64)))
            parts.append(_batch(subject, ids, layer, start, threshold, probes, scales, seed))
            if path:
                evaluate.write_whole(parts[-1], path)
        progress.update((stop - start) * length)
    progress.close()
    table = pd.concat(parts).astype({"token_set": str})
    return table.sort_values(["sequence", "token_set", "scale"], ignore_index=True)


def _check(subject, tokens, layer, activations, probes, scales, sequences):
    if tokens.shape[1] < 2 or tokens.shape[0] < 1 or sequences < 1:
        raise StreamgaugeError(
            f"no next token to predict in {sequences} of the token rows of shape"
            f" {tuple(tokens.shape)}"
        )
    if not len(scales) or not all(np.isfinite(a) and a > 0 for a in scales):
        raise StreamgaugeError(
            f"{list(scales)} are no relative sizes of errors",
            remedy="Give calibration.scales one or more positive numbers.",
        )
    wanted = (hooks.hook_name(layer), *tokens.shape, subject.d_model)
    for store in (activations, probes):
        found = (store.hook_name, store.n_sequences, store.n_positions, store.d_model)
        if found != wanted:
            raise StreamgaugeError(
                "holds {}, {} x {} tokens of width {}, not".format(*found)
                + " {}, {} x {} tokens of width {}".format(*wanted),
                where=str(store.path),
                remedy="Harvest it again for these tokens, this model and this layer.",
            )


def _batch(subject, ids, layer, start, sink_threshold, probes, scales, seed) -> pd.DataFrame:
    """The rows of the sequences `ids`, the first of which is number `start`."""
    h = subject.residuals(ids, [layer])[layer]
    clean = subject.logits_from(ids, layer, h)
    norm = h.float().norm(dim=-1).cpu().numpy()
    keep = {"all": np.ones_like(norm, bool), "no_sink": no_sink(norm, sink_threshold)}
    a = metrics.float64(h)
    unit = torch.as_tensor(_directions(seed, start, a.shape)).to(a)
    error = a.norm(dim=-1, keepdim=True) * unit
    v = torch.as_tensor(probes.read(start, start + len(ids))).to(a.device)
    parts = []
    for token_set, scale in itertools.product(TOKEN_SETS, scales):
        mask = torch.as_tensor(keep[token_set]).to(a.device)[..., None]
        patched = torch.where(mask, a + scale * error, a).to(h.dtype)
        delta = metrics.float64(patched) - a
        # one sequence at a time: the probes of a batch in float64 can be gigabytes
        projected = torch.stack(
            [
                torch.einsum("td,tds->ts", d, metrics.float64(w))
                for d, w in zip(delta, v, strict=True)
            ]
        )
        kl = _kl_sums(clean, subject.logits_from(ids, layer, patched))
        bad = np.flatnonzero(~np.isfinite(kl))
        if len(bad):
            raise StreamgaugeError(
                f"the KL of an error of relative size {scale} is not finite at sequence"
                f" {start + bad[0]}",
                where=hooks.hook_name(layer),
                remedy="Run the model in float32, or leave this scale out.",
            )
        columns = {
            "sequence": np.arange(start, start + len(ids), dtype=np.int32),
            "token_set": token_set,
            "scale": float(scale),
            "n_predicted": keep[token_set][:, :-1].sum(1).astype(np.int32),
            "kl_sum_nats": kl,
            "quad_sum_nats": projected.square().sum((1, 2)).cpu().numpy() / 2,
            "joint_quad_nats": projected.sum(1).square().sum(1).cpu().numpy() / 2,
        }
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts)


def _directions(seed, start, shape) -> np.ndarray:
    """Random unit vectors (n, T, d), those of each sequence from (seed, its number)."""
    drawn = [
        np.random.default_rng((seed, start + i)).standard_normal(shape[1:]) for i in range(shape[0])
    ]
    drawn = np.stack(drawn)
    return drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)


def _kl_sums(clean, patched) -> np.ndarray:
    """Σ KL(clean‖patched) over positions 0..T−2 of each sequence, (n,), nats.

    In float64, unlike the KL of an evaluation: rounding a log softmax to float32 leaves about
    1e-7 nats, more than a small error costs. A few positions at a time, as there.
    """
    n, length, _ = clean.shape
    sums = np.zeros(n)
    for i in range(n):
        for at in hooks.logits_slices(clean, length - 1):
            pair = (metrics.log_probabilities(metrics.float64(x[i, at])) for x in (clean, patched))
            sums[i] += float(metrics.kl_per_position(*pair).sum())
    return sums


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
        found.append(made.rename(columns=names).assign(source="synthetic", **manifest.cell(record)))
    predictions = {_identity(record): made for record, made in sensitivity}
    for record, measured in per_sequence:
        predicted = predictions.get(_identity(record))
        if predicted is None:
            raise StreamgaugeError(f"no sensitivity table of the SAE {_identity(record)}")
        own = manifest.cell(record)
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
    return tuple(manifest.cell(record).values())


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
        resamples, confidence, seed: see `statistics.bootstrap`; ratios and fits of one row share
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
            estimate = statistics.bootstrap(sums, statistic, **settings)
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
