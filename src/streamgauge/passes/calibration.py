"""Does the quadratic of the probes predict the KL that an error really costs?

½ δᵀGδ is the KL of patching an error in to second order (docs/definitions.md, "Sensitivity").
`measure` holds it against the measured KL on synthetic errors of known relative size, which must
agree as they shrink; `points` and `table` put the errors of real SAEs beside them. KL is in nats.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.progress import Progress
from streamgauge.base.tables import read_parquet, write_parquet
from streamgauge.models import hooks
from streamgauge.numerics import metrics, sensitivity
from streamgauge.numerics.arrays import float64
from streamgauge.numerics.token_sets import TOKEN_SETS, masks


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
        activations: `layer_stores.ActivationStore` of these tokens and this layer, for the
            threshold above which a token is a sink.
        probes: `layer_stores.ProbeStore` of the same; its s probes estimate G.
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
            parts.append(read_parquet(path))
        else:
            ids = subject.ids(torch.as_tensor(np.asarray(tokens[start:stop], np.int64)))
            parts.append(_batch(subject, ids, layer, start, threshold, probes, scales, seed))
            if path:
                write_parquet(parts[-1], path)
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
    keep = masks(norm, sink_threshold)
    a = float64(h)
    unit = torch.as_tensor(_directions(seed, start, a.shape)).to(a)
    error = a.norm(dim=-1, keepdim=True) * unit
    v = torch.as_tensor(probes.read(start, start + len(ids))).to(a.device)
    parts = []
    for token_set, scale in itertools.product(TOKEN_SETS, scales):
        mask = torch.as_tensor(keep[token_set]).to(a.device)[..., None]
        patched = torch.where(mask, a + scale * error, a).to(h.dtype)
        delta = float64(patched) - a
        # one sequence at a time: the probes of a batch in float64 can be gigabytes
        projected = torch.stack(
            [torch.einsum("td,tds->ts", d, float64(w)) for d, w in zip(delta, v, strict=True)]
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
            "quad_sum_nats": sensitivity.quadratic(projected.flatten(1)).cpu().numpy(),
            "joint_quad_nats": sensitivity.joint_quadratic(projected).cpu().numpy(),
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
            pair = (metrics.log_probabilities(float64(x[i, at])) for x in (clean, patched))
            sums[i] += float(metrics.kl_per_position(*pair).sum())
    return sums
