"""Gradients of the summed next-token loss by the residual stream of one layer, into a store.

docs/definitions.md, "Sensitivity": g_t = ∂(Σ_t' CE_t')/∂h_t at the clean activation, the loss
*summed* over the positions 0..T−2 that have a next token, in nats; so g at position T−1 is zero.
The graph begins at the hook point: blocks below it run without gradients, once, to give the clean
activation. The derivative of the loss by the logits, p − e_label, is written down instead of being
differentiated.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from streamgauge.base.errors import StreamgaugeError
from streamgauge.models import hooks
from streamgauge.stores import layer_stores, shard_writer

DTYPES = ("bfloat16", "float16", "float32")
# a stored token may lose this share of its non-zero elements to zero
_FLUSHED_SHARE = 0.01


def computed_in(dtype: str) -> str:
    """The type in which a subject of `dtype` is opened for backward passes.

    float32 for float16, whose cotangents vanish below 6e-8; else `dtype` itself: bfloat16 has
    float32's range.
    """
    return "float32" if dtype == "float16" else dtype


class Pullback:
    """The clean logits of a batch, and how their cotangents pull back to the hook point.

    Args:
        subject: a `subjects.Subject`.
        ids: token ids (batch, position).
        layer: the hook point.

    Attributes:
        logits: (batch, position, vocabulary), without gradients; may be set to None once used,
            which frees them: the graph does not need the values.
        dtype: in which cotangents are formed: that of the logits, at least float32.

    Raises:
        StreamgaugeError: the logits do not depend on the residual stream in a way autograd sees.
    """

    def __init__(self, subject, ids: Tensor, layer: int):
        self._layer = layer
        with torch.no_grad():
            h = subject.residuals(ids, [layer])[layer]
        self._h = h.detach().requires_grad_()
        with torch.enable_grad():
            logits = subject.logits_from(ids, layer, self._h)
        if not logits.requires_grad:
            raise self._no_path()
        self._edge = torch.autograd.graph.get_gradient_edge(logits)
        self._logits_dtype = logits.dtype
        self.dtype = torch.promote_types(logits.dtype, torch.float32)
        self.logits: Tensor | None = logits.detach()

    def __call__(self, cotangent: Tensor, last: bool = False) -> Tensor:
        """Jᵀ `cotangent`: one backward pass.

        Args:
            cotangent: (batch, position, vocabulary).
            last: no further call will come; frees the graph on the way.

        Returns:
            (batch, position, d_model), in `dtype`.
        """
        given = cotangent.to(self._logits_dtype)
        (pulled,) = torch.autograd.grad(
            self._edge, self._h, given, retain_graph=not last, allow_unused=True
        )
        if pulled is None:
            raise self._no_path()
        return pulled.to(self.dtype)

    def _no_path(self) -> StreamgaugeError:
        return StreamgaugeError(
            "no gradient path leads from the logits back to this hook point",
            where=hooks.hook_name(self._layer),
            remedy="The model detaches or quantises what follows; choose a later layer or another"
            " subject.",
        )


def probabilities(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """softmax over the vocabulary, (batch, position, vocabulary); 0 at the last position.

    The last position has no next token, so nothing is counted there.
    """
    p = torch.empty_like(logits, dtype=dtype)
    flat, rows = p.flatten(0, 1), logits.flatten(0, 1)
    for at in hooks.logits_slices(flat, len(flat)):
        torch.softmax(rows[at].to(dtype), -1, out=flat[at])
    p[:, -1] = 0
    return p


def of_summed_loss(subject, ids: Tensor, layer: int) -> Tensor:
    """g of every token: ∂(Σ CE)/∂h in nats per unit of activation, (batch, position, d_model).

    Args:
        subject: a `subjects.Subject`.
        ids: token ids (batch, position), at least two positions, on the subject's device.
        layer: the hook point.

    Raises:
        StreamgaugeError: there is no gradient path from the logits to the hook point.
    """
    pull = Pullback(subject, ids, layer)
    cotangent, pull.logits = probabilities(pull.logits, pull.dtype), None
    predicted, labels = cotangent[:, :-1], ids[:, 1:, None]
    predicted.scatter_(-1, labels, predicted.gather(-1, labels) - 1)
    return pull(cotangent, last=True)


def harvest(
    subject,
    tokens,
    layer: int,
    scratch: Path | str,
    *,
    dtype: str = "bfloat16",
    batch_size: int = 8,
    part: tuple[int, int] = (0, 1),
    progress: bool = True,
) -> None:
    """Write the gradients of a part of the store that `scratch` does not hold yet.

    Any number of processes may harvest parts into one `scratch`, which `gather.gradients` checks; a
    shard's bytes depend on its own rows and the batch size only.

    Args:
        subject: a `subjects.Subject` in `computed_in` of its dtype.
        tokens: token ids, (n_sequences, n_positions), anything that slices to an array.
        layer: gradients by the residual stream at ``blocks.{layer}.hook_resid_post``.
        scratch: directory given by `layer_stores.scratch`.
        dtype: stored as ``bfloat16``, ``float16`` or ``float32``.
        batch_size: sequences in one pass.
        part: (i, n), the i-th of n ranges of shards, counted from 0.
        progress: print progress lines with tokens/s.

    Raises:
        StreamgaugeError: rows of one token; the subject computes in float16; the layer, the part
            or a token id does not exist; no gradient path; a gradient is not finite, or does not
            fit `dtype`, above or below (naming sequence, position and layer); the store cannot be
            written. Finished shards stay and are skipped by the next attempt.
    """
    n_sequences, n_positions = check_request(subject, tokens, layer, dtype, "gradients")
    layer_stores.create_gradients(
        scratch,
        n_sequences=n_sequences,
        n_positions=n_positions,
        d_model=subject.d_model,
        dtype=dtype,
        layer=layer,
        hook_name=hooks.hook_name(layer),
        computed_in=dtype_of(subject),
    )

    def make(at: int, upto: int) -> dict[str, Tensor]:
        g = of_summed_loss(subject, subject.ids(np.asarray(tokens[at:upto], np.int64)), layer)
        check_fits(g, dtype, at, layer, "the gradient", "gradients")
        return {"gradients": g}

    shard_writer.write_shards(
        layer_stores.Store(scratch, writable=True),
        ["gradients"],
        make,
        batch_size=batch_size,
        part=part,
        label=f"gradients L{layer:02d}" if progress else None,
        pinned=torch.device(subject.device).type == "cuda",
    )


def dtype_of(subject) -> str:
    """The name of the type a subject computes in."""
    return str(subject.model.dtype).removeprefix("torch.")


def check_request(subject, tokens, layer: int, dtype: str, block: str) -> tuple[int, int]:
    """Sequences and positions of `tokens`, once a backward pass over them makes sense.

    Args:
        block: the config block that asks for it, named in errors.

    Raises:
        StreamgaugeError: as `harvest` says.
    """
    n_sequences, n_positions = shard_writer.shape_of(tokens)
    hooks.check_layers([layer], subject.n_layers)
    if n_positions < 2:
        raise StreamgaugeError(
            f"no next token to predict in token rows of shape {(n_sequences, n_positions)}",
            remedy="Use a context length of at least 2.",
        )
    if dtype not in DTYPES:
        raise StreamgaugeError(
            f"dtype {dtype!r} is not one of {', '.join(DTYPES)}", where=f"{block}.dtype"
        )
    if computed_in(dtype_of(subject)) != dtype_of(subject):
        raise StreamgaugeError(
            "the model computes in float16, in which cotangents below 6e-8 vanish",
            where=str(subject.directory),
            remedy=f"Open it in {computed_in(dtype_of(subject))} for backward passes.",
        )
    return n_sequences, n_positions


def check_fits(
    x: Tensor,
    dtype: str,
    first: int,
    layer: int,
    what: str,
    block: str,
    positions: Tensor | None = None,
) -> None:
    """Raise for the first token whose vectors are not finite or are lost when stored in `dtype`.

    A token is lost where more than 1 % of its non-zero elements would become zero.

    Args:
        x: (sequence, position, ...).
        first: index of the first sequence.
        what: begins the message, e.g. ``"the gradient"``.
        block: the config block, named in the remedy.
        positions: (sequence, sample), the positions of `x` where it does not hold all of them.

    Raises:
        StreamgaugeError: naming sequence, position, layer and remedy.
    """
    x = x.flatten(2)
    stored = x.to(getattr(torch, dtype))
    nonzero = x != 0
    flushed = (nonzero & (stored == 0)).sum(-1)
    lost = flushed > _FLUSHED_SHARE * nonzero.sum(-1)
    infinite = ~stored.isfinite().all(-1)
    if not (lost | infinite).any():
        return
    i, j = (lost | infinite).nonzero()[0].tolist()
    largest = x[i, j].abs().max().item()
    remedy = f"Set `{block}.dtype: bfloat16` (or float32) and run again."
    if not x[i, j].isfinite().all():
        problem = "is not finite"
        remedy = "Run the model in float32 (`subjects: dtype`), or check its weights."
    elif infinite[i, j]:
        problem = f"reaches {largest:,.0f}, beyond the range of {dtype}"
    else:
        share = flushed[i, j].item() / nonzero[i, j].sum().item()
        problem = f"is at most {largest:.1e}: {share:.0%} of it underflows to zero in {dtype}"
    position = j if positions is None else int(positions[i, j])
    raise StreamgaugeError(
        f"{what} of sequence {first + i}, position {position} {problem}",
        where=hooks.hook_name(layer),
        remedy=remedy,
    )
