"""What the error of a codec costs the model, to first and second order, from stored vectors.

Gradients and output-Fisher probes are harvested once a layer; here every codec is measured against
them, sequence by sequence, with no model loaded. Definitions are those of docs/definitions.md,
"Sensitivity"; everything is in nats.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.progress import Progress
from streamgauge.numerics import metrics
from streamgauge.numerics.arrays import float64
from streamgauge.numerics.row_metric import RowMetric
from streamgauge.numerics.sensitivity import (
    joint_quadratic,
    quadratic,
    squared_trace_and_trace_of_square,
)
from streamgauge.numerics.token_sets import TOKEN_SETS
from streamgauge.passes.evaluate import Codec


# --- what belongs together ----------------------------------------------------------------------
def check_matches(config: Mapping, sae, store, where: str | Path | None = None) -> None:
    """Refuse an SAE of another hook point or width than the store's.

    Args:
        config: the SAE's ``cfg.json``.
        sae: the SAE.
        store: an opened activation, gradient or probe store.
        where: path of the ``cfg.json``, for the message.

    Raises:
        StreamgaugeError: they do not match, naming file, field and remedy.
    """
    hook_name = config.get("metadata", {}).get("hook_name", config.get("hook_name"))
    for field, found, wanted in (
        ("metadata.hook_name", hook_name, store.hook_name),
        ("d_in", sae.d_model, store.d_model),
    ):
        if found != wanted:
            raise StreamgaugeError(
                f"{field} is {found}, but {store.path} holds {wanted}",
                where=str(where or "cfg.json"),
                remedy="Use an SAE trained on this layer of this model, or the store of its layer.",
            )


def check_stores(activations, *others) -> None:
    """Refuse stores of another layer or shape than the activations'.

    Raises:
        StreamgaugeError: naming the store, what differs and the remedy.
    """
    for other in others:
        for field in ("layer", "hook_name", "n_sequences", "n_positions", "d_model"):
            found, wanted = getattr(other, field), getattr(activations, field)
            if found != wanted:
                raise StreamgaugeError(
                    f"{field} is {found}, but {wanted} in {activations.path}",
                    where=str(other.path),
                    remedy="Harvest both for the same layer and split.",
                )


# --- the pass -----------------------------------------------------------------------------------
@torch.no_grad()
def measure(
    activations,
    gradients,
    probes,
    codecs: Mapping[str, Codec | Mapping[str, Codec]],
    *,
    device: str | torch.device = "cpu",
    chunks: int | None = None,
    label: str | None = None,
) -> pd.DataFrame:
    """First- and second-order costs of every codec's error δ = â − a on every sequence.

    One chunk of sequences is in memory at a time. As in `evaluate`, in ``no_sink`` sinks keep
    their activation (δ = 0) and are not counted.

    Args:
        activations: `layer_stores.ActivationStore` of the evaluation split.
        gradients: `layer_stores.GradientStore` of the same layer and split.
        probes: `layer_stores.ProbeStore` of the same layer and split.
        codecs: name -> callable as in `evaluate`, or name -> one callable for each token set.
        device: where the codecs live and the products are formed.
        chunks: how many chunks of sequences, the first ones; all of them when not given.
        label: shown in progress lines.

    Returns:
        One row for each sequence and codec: ``sequence, codec`` and for each token set ``s``

        - ``n_tokens_s``, ``n_predicted_s``: tokens in the set; those of them at 0..T−2;
        - ``swd_sum_s``, ``gradient_dot_abs_sum_s``, ``gradient_dot_sum_s``: Σ(g·δ)², Σ|g·δ|, Σg·δ;
        - ``quad_sum_s``: Σ_t ½δᵀGδ = Σ_t ½Σ_i(v_i·δ)², each token's error alone;
        - ``joint_quad_s``: ½Σ_i(Σ_t v_i·δ)², the errors of all tokens together;
        - ``diagonal_quad_sum_s``: Σ_t ½δᵀGδ with diag(p) for F; NaN without shift probes;
        - ``n_same_s``, ``same_quad_sum_s``, ``downstream_at_same_sum_s``: number of tokens with
          same-position probes, Σ½δᵀGδ over them with those and with the downstream probes; the
          sums are NaN where no such probes were harvested;
        - ``trace_squared_sum_s``, ``trace_of_square_sum_s``: see
          `squared_trace_and_trace_of_square`; the same for every codec.

    Raises:
        StreamgaugeError: stores that do not belong together; a vector that is not finite.
    """
    check_stores(activations, gradients, probes)
    n, length = activations.n_sequences, activations.n_positions
    if chunks is not None:
        n = min(n, chunks * activations.chunk_sequences)
    progress = Progress(
        n * length * len(codecs), "tokens", label or f"sensitivity L{activations.layer:02d}"
    )
    tables = []
    for start in range(0, n, activations.chunk_sequences):
        stop = min(start + activations.chunk_sequences, n)
        chunk = _Chunk(activations, gradients, probes, start, stop, device)
        for name, codec in codecs.items():
            tables.append(chunk.table(name, codec))
            progress.update((stop - start) * length)
    progress.close()
    table = pd.concat(tables).astype({"codec": pd.CategoricalDtype(list(codecs))})
    return table.sort_values("sequence", kind="stable", ignore_index=True)


class _Chunk:
    """The stored vectors of sequences ``[start, stop)``, and codecs measured against them."""

    def __init__(self, activations, gradients, probes, start, stop, device):
        def read(stored):
            return torch.from_numpy(stored).to(device)

        self.start, self.device, self.where = start, device, activations.path
        self.h = read(activations.read(start, stop))
        self.g = read(gradients.read(start, stop))
        self._check(self.h, "the activation", activations.path)
        self._check(self.g, "the gradient", gradients.path)
        self.keep = {
            "all": np.ones(self.h.shape[:2], bool),
            "no_sink": activations.keep(start, stop),
        }
        vectors = read(probes.read(start, stop))
        self.metric = self._metric(vectors, "the probe", probes.path)
        self.traces = [
            x.view(self.h.shape[:2]).cpu().numpy()
            for x in squared_trace_and_trace_of_square(vectors.flatten(0, 1))
        ]
        shift = probes.shift(start, stop)
        if shift is not None:
            shift = self._metric(read(shift), "the shift probe", probes.path)
        self.excess = shift
        sampled = probes.same_position(start, stop)
        if sampled is None:
            self.positions = np.zeros((stop - start, 0), np.int64)
        else:
            self.positions = sampled[0].astype(np.int64)
            what = "the same-position probe"
            self.same = self._metric(read(sampled[1]), what, probes.path, "sample")

    def _metric(self, vectors, what, path, unit="position"):
        """The metric of probes (n, positions, d, s), a row for each position."""
        self._check(vectors.flatten(2), what, path, unit)
        packed = vectors.flatten(0, 1).flatten(1)
        return RowMetric.behavioral_fisher(packed, vectors.shape[2])

    def table(self, name, codec) -> pd.DataFrame:
        """The rows of one codec."""
        by_set = codec if isinstance(codec, Mapping) else dict.fromkeys(TOKEN_SETS, codec)
        row = {"sequence": np.arange(len(self.h), dtype=np.int32) + self.start, "codec": name}
        made = {}
        for s in TOKEN_SETS:
            key = id(by_set[s])
            if key not in made:
                made[key] = self._costs(name, by_set[s])
            row |= {f"{column}_{s}": x for column, x in self._sums(self.keep[s], *made[key])}
        return pd.DataFrame(row)

    def _costs(self, name, codec):
        """Of every token g·δ (n, T), v_i·δ (n, T, s), and the second-order terms beside it."""
        reconstruction = codec(self.h.flatten(0, 1))[0].view(self.h.shape)
        self._check(reconstruction, f"the reconstruction by {name!r}", self.where)
        delta = reconstruction - self.h
        shape, rows = self.h.shape[:2], delta.flatten(0, 1)
        projected = self.metric.whiten_residual_row(rows)
        projected = float64(projected).view(*shape, -1).cpu().numpy()
        excess = np.full(shape, np.nan)
        if self.excess is not None:
            excess = self.excess.quad_form(rows).view(shape).cpu().numpy() / 2
        same = np.full(self.positions.shape, np.nan)
        if same.size:
            at = torch.as_tensor(self.positions, device=self.device)
            sampled = delta.gather(1, at[..., None].expand(-1, -1, delta.shape[-1]))
            same = self.same.quad_form(sampled.flatten(0, 1)).view(same.shape).cpu().numpy() / 2
        return metrics.dot_per_token(self.g, delta).cpu().numpy(), projected, excess, same

    def _sums(self, keep, dot, projected, excess, same):
        """(column, value of every sequence), without the suffix of the token set."""
        quad = quadratic(projected)
        joint = joint_quadratic(projected * keep[..., None])
        counted = np.take_along_axis(keep, self.positions, 1)
        downstream = np.take_along_axis(quad, self.positions, 1)

        def total(x, mask=keep):
            return np.where(mask, x, 0 * x).sum(1)

        def sampled(x):
            return total(x, counted) if x.size else np.full(len(x), np.nan)

        yield "n_tokens", keep.sum(1, dtype=np.int32)
        yield "n_predicted", keep[:, :-1].sum(1, dtype=np.int32)
        yield "swd_sum", total(dot**2)
        yield "gradient_dot_abs_sum", total(np.abs(dot))
        yield "gradient_dot_sum", total(dot)
        yield "quad_sum", total(quad)
        yield "joint_quad", joint
        yield "diagonal_quad_sum", total(quad + excess)
        yield "n_same", counted.sum(1, dtype=np.int32)
        yield "same_quad_sum", sampled(same)
        yield "downstream_at_same_sum", sampled(downstream)
        yield "trace_squared_sum", total(self.traces[0])
        yield "trace_of_square_sum", total(self.traces[1])

    def _check(self, x, what, where, unit="position"):
        """Raise for the first token where `x`, (n, T, ...), is not finite."""
        # the sum tells in one pass; one that only overflowed finds nothing bad below
        if torch.isfinite(x.sum()):
            return
        bad = ~torch.isfinite(x).all(-1)
        if bad.any():
            i, j = bad.nonzero()[0].tolist()
            raise StreamgaugeError(
                f"{what} is not finite at sequence {self.start + i}, {unit} {j}",
                where=str(where),
                remedy="Harvest the layer again in float32, or leave this sequence out.",
            )
