"""Stream the residual stream of one layer into an activation store.

The forward pass ends at the hooked layer; `shard_writer` overlaps it with writing, keeps memory
from growing with the corpus, and makes a resumed harvest, or one spread over many processes, equal
an uninterrupted one bit for bit.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from streamgauge import hooks, shard_writer, stores
from streamgauge.errors import StreamgaugeError
from streamgauge.progress import Progress
from streamgauge.spectra import SINK_FACTOR

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
    start: int = 0,
    stop: int | None = None,
    progress: bool = True,
) -> None:
    """Write the shards of sequences ``[start, stop)`` that `scratch` does not hold yet.

    Any number of processes may harvest disjoint ranges into one `scratch`; `finish` completes it.

    Args:
        subject: a `subjects.Subject`.
        tokens: token ids, (n_sequences, n_positions), anything that slices to an array.
        layer: harvested at ``blocks.{layer}.hook_resid_post``.
        scratch: directory given by `stores.scratch`.
        dtype: stored as ``float16``, ``bfloat16`` or ``float32``. ``auto``: the model's own when
            it runs in 16 bits; else float16 if the first sequences use at most half its range,
            else bfloat16.
        batch_size: sequences in one forward pass.
        start, stop: range of sequences, on shard boundaries (`stores.rows_per_chunk_and_shard`)
            or the end; all by default.
        progress: print progress lines with tokens/s.

    Raises:
        StreamgaugeError: the layer, the range or a token id does not exist; an activation is not
            finite or does not fit `dtype` (naming sequence, position and layer); the store cannot
            be written. Finished shards stay and are skipped by the next attempt.
    """
    n_sequences, n_positions = shard_writer.shape_of(tokens)
    hooks.check_layers([layer], subject.n_layers)
    if dtype not in DTYPES:
        raise StreamgaugeError(
            f"dtype {dtype!r} is not one of {', '.join(DTYPES)}", where="harvest.dtype"
        )
    rows = stores.rows_per_chunk_and_shard(n_positions)[1]
    stop = n_sequences if stop is None else stop
    shard_writer.check_range(start, stop, n_sequences, rows, str(scratch))
    run = _Forward(subject, tokens, layer)
    first_batches = shard_writer.batches(0, rows, n_sequences, batch_size)
    first_batches = first_batches[: -(-_PROBE_SEQUENCES // batch_size)]
    stores.create_activations(
        scratch,
        n_sequences=n_sequences,
        n_positions=n_positions,
        d_model=subject.d_model,
        dtype=_choose_dtype(run, first_batches, scratch) if dtype == "auto" else dtype,
        layer=layer,
        hook_name=hooks.hook_name(layer),
    )
    store = stores.Store(scratch, writable=True)
    try:
        shard_writer.write_shards(
            store,
            ["activations"],
            lambda at, upto: {"activations": run(at, upto)},
            batch_size=batch_size,
            start=start,
            stop=stop,
            label=f"harvest L{layer:02d}" if progress else None,
            pinned=torch.device(subject.device).type == "cuda",
        )
    except shard_writer.NotFinite as fault:
        raise run.explain(fault, store.attributes["dtype"]) from None


def finish(scratch: Path | str, *, progress: bool = True) -> dict:
    """Complete a harvested store: norms, means, sink threshold. Run once, after every range.

    One pass over the activations, as stored; memory does not depend on their number. The median
    of the norms is exact.

    Returns:
        The manifest's facts: n_sequences, n_positions, d_model, dtype, layer, hook_name,
        median_norm, sink_threshold (10 × median_norm), n_sink (tokens that ``no_sink`` leaves
        out: position 0 and norms above the threshold), units.

    Raises:
        StreamgaugeError: a shard is missing (naming it), or no token is left in ``no_sink``.
    """
    store = stores.Store(scratch, writable=True)
    n, n_positions, d_model = store.array("activations").shape
    chunk, shard = store.array("norm").chunks[0], store.shard_rows("norm")
    label = f"summarise L{store.attributes['layer']:02d}"
    bar = Progress(n * n_positions, "tokens", label) if progress else None
    first = np.zeros(d_model)  # sum over position 0
    rest = np.zeros(d_model)
    for a in range(0, n, shard):
        norms = []
        for b in range(a, min(n, a + shard), chunk):
            x = stores.decode(store.read("activations", b, min(b + chunk, a + shard)))
            x = x.astype(np.float64)
            norms.append(np.sqrt(np.einsum("ntd,ntd->nt", x, x)).astype(np.float32))
            first += x[:, 0].sum(0)
            rest += x[:, 1:].sum((0, 1))
            if bar:
                bar.update(x.shape[0] * n_positions)
        store.write("norm", a, np.concatenate(norms))
    median = _median(lambda: (store.read("norm", a, a + shard) for a in range(0, n, shard)))
    threshold = SINK_FACTOR * median
    # sinks beyond position 0 are few: read their chunks again and take them out
    kept, no_sink = 0, rest.copy()
    for a in range(0, n, shard):
        keep = stores.no_sink(store.read("norm", a, a + shard), threshold)
        kept += int(keep.sum())
        dropped = ~keep
        dropped[:, 0] = False
        for b in range(0, len(keep), chunk):
            if dropped[b : b + chunk].any():
                x = stores.decode(store.read("activations", a + b, min(a + b + chunk, a + shard)))
                no_sink -= x[dropped[b : b + chunk]].astype(np.float64).sum(0)
    n_tokens = n * n_positions
    if not kept:
        raise StreamgaugeError(
            "every token is a sink (position 0, or a norm above 10 medians)",
            where=str(scratch),
            remedy="Use a context length of at least 2.",
        )
    store.write_all("mean", np.stack([(first + rest) / n_tokens, no_sink / kept]))
    store.write_all("median_norm", median)
    store.write_all("sink_threshold", threshold)
    if bar:
        bar.close()
    return {
        "n_sequences": n,
        "n_positions": n_positions,
        "d_model": d_model,
        **store.attributes,
        "median_norm": median,
        "sink_threshold": threshold,
        "n_sink": n_tokens - kept,
        "units": {"activations": "1", "norm": "1", "mean": "1"},
    }


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
        return stores.Store(scratch).attributes["dtype"]
    probed = [run.ahead(*batch) for batch in first_batches]
    if probed[0].dtype != torch.float32:
        return str(probed[0].dtype).removeprefix("torch.")
    largest = max(h.abs().max().item() for h in probed)
    # NaN compares false: such a model fails on its first batch, by the token's name
    return "bfloat16" if largest * _HEADROOM > torch.finfo(torch.float16).max else "float16"


def _median(blocks: Callable[[], Iterator[np.ndarray]]) -> float:
    """Exact median of non-negative float32 values that `blocks` gives anew on every call.

    Their bit patterns sort as they do, so two counts of 16 bits each find any rank.
    """
    high = np.zeros(1 << 16, np.int64)
    for block in blocks():
        high += np.bincount(block.ravel().view(np.uint32) >> 16, minlength=1 << 16)
    n = int(high.sum())
    middle = []
    for rank in ((n - 1) // 2, n // 2):
        top = int(np.searchsorted(high.cumsum(), rank, side="right"))
        low = np.zeros(1 << 16, np.int64)
        for block in blocks():
            bits = block.ravel().view(np.uint32)
            low += np.bincount(bits[bits >> 16 == top] & 0xFFFF, minlength=1 << 16)
        rank -= int(high[:top].sum())
        bottom = int(np.searchsorted(low.cumsum(), rank, side="right"))
        middle.append(np.array([top << 16 | bottom], np.uint32).view(np.float32)[0])
    return float(np.mean(middle, dtype=np.float64))
