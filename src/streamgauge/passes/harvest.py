"""Stream the residual stream of one layer into an activation store.

The forward pass ends at the hooked layer; `shard_writer` overlaps it with writing, keeps memory
from growing with the corpus, and makes a resumed harvest, or one spread over many processes, equal
an uninterrupted one bit for bit.
"""

from pathlib import Path

import numpy as np
import torch

from streamgauge.base.errors import StreamgaugeError
from streamgauge.models import hooks
from streamgauge.stores import layer_stores, shard_writer

DTYPES = ("auto", "float16", "bfloat16", "float32")
# `dtype: auto` looks at this many first sequences, and wants this much room above what it sees
_PROBE_SEQUENCES = 8
_HEADROOM = 2.0


def harvest(
    subject,
    tokens,
    layer: int,
    scratch: Path | str,
    *,
    dtype: str = "auto",
    batch_size: int = 8,
    part: tuple[int, int] = (0, 1),
    progress: bool = True,
) -> None:
    """Write the shards of a part of the store that `scratch` does not hold yet.

    Any number of processes may harvest parts into one `scratch`; `gather.activations` completes it.

    Args:
        subject: a `subjects.Subject`.
        tokens: token ids, (n_sequences, n_positions), anything that slices to an array.
        layer: harvested at ``blocks.{layer}.hook_resid_post``.
        scratch: directory given by `layer_stores.scratch`.
        dtype: stored as ``float16``, ``bfloat16`` or ``float32``. ``auto``: the model's own when
            it runs in 16 bits; else float16 if the first sequences use at most half its range,
            else bfloat16.
        batch_size: sequences in one forward pass.
        part: (i, n), the i-th of n ranges of shards, counted from 0.
        progress: print progress lines with tokens/s.

    Raises:
        StreamgaugeError: the layer, the part or a token id does not exist; an activation is not
            finite or does not fit `dtype` (naming sequence, position and layer); the store cannot
            be written. Finished shards stay and are skipped by the next attempt.
    """
    n_sequences, n_positions = shard_writer.shape_of(tokens)
    hooks.check_layers([layer], subject.n_layers)
    if dtype not in DTYPES:
        raise StreamgaugeError(
            f"dtype {dtype!r} is not one of {', '.join(DTYPES)}", where="harvest.dtype"
        )
    rows = layer_stores.rows_per_chunk_and_shard(n_positions)[1]
    run = _Forward(subject, tokens, layer)
    first_batches = shard_writer.batches(0, rows, n_sequences, batch_size)
    first_batches = first_batches[: -(-_PROBE_SEQUENCES // batch_size)]
    layer_stores.create_activations(
        scratch,
        n_sequences=n_sequences,
        n_positions=n_positions,
        d_model=subject.d_model,
        dtype=_choose_dtype(run, first_batches, scratch) if dtype == "auto" else dtype,
        layer=layer,
        hook_name=hooks.hook_name(layer),
    )
    store = layer_stores.Store(scratch, writable=True)
    try:
        shard_writer.write_shards(
            store,
            ["activations"],
            lambda at, upto: {"activations": run(at, upto)},
            batch_size=batch_size,
            part=part,
            label=f"harvest L{layer:02d}" if progress else None,
            pinned=torch.device(subject.device).type == "cuda",
        )
    except shard_writer.NotFinite as fault:
        raise run.explain(fault, store.attributes["dtype"]) from None


class _Forward:
    """The truncated forward pass over rows of a token table."""

    def __init__(self, subject, tokens, layer: int):
        self._subject, self._tokens, self._layer = subject, tokens, layer
        self._ahead: dict[tuple[int, int], torch.Tensor] = {}

    def ahead(self, start: int, stop: int) -> torch.Tensor:
        """Activations of sequences ``[start, stop)``, kept for the next call that wants them."""
        self._ahead[start, stop] = self(start, stop)
        return self._ahead[start, stop]

    def __call__(self, start: int, stop: int) -> torch.Tensor:
        """Activations (sequence, position, d_model) of sequences ``[start, stop)``."""
        if (start, stop) in self._ahead:
            return self._ahead.pop((start, stop))
        ids = np.asarray(self._tokens[start:stop])
        if ids.min() < 0 or ids.max() >= self._subject.vocab_size:
            raise StreamgaugeError(
                f"sequences {start} to {stop - 1} hold token ids outside the model's vocabulary of"
                f" {self._subject.vocab_size}",
                remedy="Tokenise the corpus with this model's own tokenizer.",
            )
        ids = torch.from_numpy(ids.astype(np.int64)).to(self._subject.device)
        with torch.inference_mode():
            return self._subject.residuals(ids, [self._layer])[self._layer]

    def explain(self, fault: shard_writer.NotFinite, dtype: str) -> StreamgaugeError:
        """Was the activation itself not finite, or only too large for `dtype`?"""
        sequence, position = fault.args
        # alone instead of in its batch: rounding may differ, which does not matter here
        value = self(sequence, sequence + 1)[0, position].float().abs().max().item()
        token = f"sequence {sequence}, position {position}"
        where = hooks.hook_name(self._layer)
        if torch.finfo(getattr(torch, dtype)).max < value < np.inf:
            return StreamgaugeError(
                f"the activation of {token} reaches {value:,.0f}, beyond the range of {dtype}",
                where=where,
                remedy="Set `harvest.dtype: bfloat16` and run again.",
            )
        return StreamgaugeError(
            f"the activation of {token} is not finite",
            where=where,
            remedy="Run the model in float32 (`subjects: dtype`), or check its weights.",
        )


def _choose_dtype(run: _Forward, first_batches: list[tuple[int, int]], scratch: Path | str) -> str:
    if (Path(scratch) / "zarr.json").exists():
        # settled by an earlier attempt or another process
        return layer_stores.Store(scratch).attributes["dtype"]
    probed = [run.ahead(*batch) for batch in first_batches]
    if probed[0].dtype != torch.float32:
        return str(probed[0].dtype).removeprefix("torch.")
    largest = max(h.abs().max().item() for h in probed)
    # NaN compares false: such a model fails on its first batch, by the token's name
    return "bfloat16" if largest * _HEADROOM > torch.finfo(torch.float16).max else "float16"
