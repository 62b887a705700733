"""Check and complete a store whose parts are written, before it is committed.

Every shard is read, so that each is known to be there, of its size and with the checksums it was
written with. What is missing or damaged is removed together with the receipts of the parts it
belongs to: running again makes exactly those shards. No model is needed, nor torch.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.progress import Progress
from streamgauge.numerics.arrays import decode
from streamgauge.numerics.token_sets import no_sink, sink_threshold
from streamgauge.stores import layer_stores, shards
from streamgauge.stores.receipts import restore, withdraw

FACTOR = "diag(sqrt(p)) - p sqrt(p)^T"


def activations(
    scratch: Path | str, receipts: Sequence[Path | str] = (), *, progress: bool = True
) -> dict:
    """Complete an activation store: norms, means, sink threshold.

    One pass over the activations, as stored; memory does not depend on their number. The median
    of the norms is exact.

    Args:
        scratch: directory that `harvest.harvest` has written the parts into.
        receipts: directories that say which parts are done (`receipts.leave`), in the order of
            the parts; what `scratch` lacks is taken from there.
        progress: print progress lines with tokens/s.

    Returns:
        The manifest's facts: n_sequences, n_positions, d_model, dtype, layer, hook_name,
        median_norm, sink_threshold (10 × median_norm), n_sink (tokens that ``no_sink`` leaves
        out: position 0 and norms above the threshold), units.

    Raises:
        StreamgaugeError: shards are missing or damaged (naming the first), or no token is left in
            ``no_sink``.
    """
    store = _open(scratch, receipts)
    n, n_positions, d_model = store.array("activations").shape
    shard = store.shard_rows("norm")
    first = np.zeros(d_model)  # sum over position 0
    rest = np.zeros(d_model)
    norms = []

    def add(_, start: int, stored: np.ndarray) -> None:
        x = _float64(stored)
        norms.append(np.sqrt(np.einsum("ntd,ntd->nt", x, x)).astype(np.float32))
        np.add(first, x[:, 0].sum(0), out=first)
        np.add(rest, x[:, 1:].sum((0, 1)), out=rest)
        if (start + len(x)) % shard == 0 or start + len(x) == n:
            whole = np.concatenate(norms)
            store.write("norm", start + len(x) - len(whole), whole)
            norms.clear()

    _read(store, ["activations"], receipts, add, progress)
    median = _median(lambda: (store.read("norm", a, a + shard) for a in range(0, n, shard)))
    threshold = sink_threshold(median)
    # sinks beyond position 0 are few: read their chunks again and take them out
    kept, usual, chunk = 0, rest.copy(), store.array("norm").chunks[0]
    for a in range(0, n, shard):
        keep = no_sink(store.read("norm", a, a + shard), threshold)
        kept += int(keep.sum())
        dropped = ~keep
        dropped[:, 0] = False
        for b in range(0, len(keep), chunk):
            if dropped[b : b + chunk].any():
                x = _float64(store.read("activations", a + b, min(a + b + chunk, a + shard)))
                usual -= x[dropped[b : b + chunk]].sum(0)
    n_tokens = n * n_positions
    if not kept:
        raise StreamgaugeError(
            "every token is a sink (position 0, or a norm above 10 medians)",
            where=str(scratch),
            remedy="Use a context length of at least 2.",
        )
    store.write_all("mean", np.stack([(first + rest) / n_tokens, usual / kept]))
    store.write_all("median_norm", median)
    store.write_all("sink_threshold", threshold)
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


def gradients(
    scratch: Path | str, receipts: Sequence[Path | str] = (), *, progress: bool = True
) -> dict:
    """Check a gradient store.

    Args, errors: as for `activations`.

    Returns:
        The manifest's facts: n_sequences, n_positions, d_model, dtype, layer, hook_name,
        computed_in, units.
    """
    store = _open(scratch, receipts)
    _read(store, ["gradients"], receipts, lambda *_: None, progress)
    shape = store.array("gradients").shape
    sizes = dict(zip(("n_sequences", "n_positions", "d_model"), shape, strict=True))
    return sizes | store.attributes | {"units": {"gradients": layer_stores.GRADIENT_UNITS}}


def probes(
    scratch: Path | str, receipts: Sequence[Path | str] = (), *, progress: bool = True
) -> dict:
    """Check a probe store.

    Args, errors: as for `activations`.

    Returns:
        The manifest's facts: n_sequences, n_positions, d_model, n_probes, n_sampled_positions,
        n_shift_probes, dtype, layer, hook_name, computed_in, seed, factor (of the Fisher
        information), scale, scope (of every array) and units.
    """
    store = _open(scratch, receipts)
    n_sequences, n_positions, d_model, n_probes = store.array("probes").shape
    scope = {
        "probes": "downstream: the logits of this and all later positions",
        "same_position": "same_position: the logits of the sampled position",
        "shift": "downstream; what diag(p) has beyond the Fisher information",
    }
    scope = {name: text for name, text in scope.items() if name in store.names}
    by_sample = ["sampled_position"] if "same_position" in scope else []
    _read(store, [*scope, *by_sample], receipts, lambda *_: None, progress)
    return {
        "n_sequences": n_sequences,
        "n_positions": n_positions,
        "d_model": d_model,
        "n_probes": n_probes,
        "n_sampled_positions": store.array("same_position").shape[1] if by_sample else 0,
        "n_shift_probes": store.array("shift").shape[-1] if "shift" in scope else 0,
        **store.attributes,
        "factor": FACTOR,
        "scale": "1/sqrt(n_probes)",
        "scope": scope,
        "units": dict.fromkeys(scope, layer_stores.PROBE_UNITS),
    }


def _open(scratch: Path | str, receipts: Sequence[Path | str]) -> layer_stores.Store:
    restore(scratch, receipts)
    try:
        return layer_stores.Store(scratch, writable=True)
    except StreamgaugeError:
        # nothing there can be gone on with
        for receipt in receipts:
            withdraw(receipt)
        raise


def _read(
    store: layer_stores.Store,
    names: Sequence[str],
    receipts: Sequence[Path | str],
    use: Callable[[str, int, np.ndarray], None],
    progress: bool,
) -> None:
    """Read the arrays `names`, which share their shards, chunk by chunk.

    Args:
        use: given name, first row and stored values of a chunk, in order; of no further one once
            a shard was found damaged.

    Raises:
        StreamgaugeError: shards are missing or damaged; they and their receipts are removed.
    """
    n, n_positions = store.array(names[0]).shape[:2]
    rows, chunk = store.shard_rows(names[0]), store.array(names[0]).chunks[0]
    label = f"check L{store.attributes['layer']:02d}"
    bar = Progress(n * n_positions, "tokens", label) if progress else None
    faults: dict[int, StreamgaugeError] = {}
    for shard in range(store.n_shards(names[0])):
        first, end = shard * rows, min(n, (shard + 1) * rows)
        for name in names:
            for start in range(first, end, chunk):
                try:
                    values = store.read(name, start, min(start + chunk, end))
                except StreamgaugeError as fault:
                    faults.setdefault(shard, fault)
                    store.remove(name, shard)
                    break
                if not faults:
                    use(name, start, values)
        if bar:
            bar.update((end - first) * n_positions)
    if bar:
        bar.close()
    if not faults:
        return
    for i, receipt in enumerate(receipts):
        part = shards.of_part((i, len(receipts)), store.n_shards(names[0]))
        if faults.keys() & set(part):
            withdraw(receipt)
    first = faults[min(faults)]
    many = f" ({len(faults)} shards are missing or damaged)" if len(faults) > 1 else ""
    raise StreamgaugeError(
        first.problem + many,
        where=first.where,
        remedy="What was damaged is removed; run again: exactly those shards are made anew.",
    )


def _float64(stored: np.ndarray) -> np.ndarray:
    """Stored vectors as float64, by way of float32, exactly."""
    # numpy's own conversion is fast enough here, and importing torch would take longer
    return (stored if stored.dtype == np.float16 else decode(stored)).astype(np.float64)


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
