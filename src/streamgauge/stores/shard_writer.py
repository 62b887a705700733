"""Compute a store shard by shard while a second thread writes.

Two buffers of one shard each: a shard is checked and written while the next is computed, so memory
does not grow with the corpus. Batches are aligned to shards: a shard's bytes depend on its own rows
and the batch size only, so a resumed pass, or one spread over many processes, equals an
uninterrupted one bit for bit.
"""

import queue
import threading
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.progress import Progress
from streamgauge.stores import layer_stores, shards


class NotFinite(Exception):
    """A stored value is not finite: (sequence, position)."""


def shape_of(tokens) -> tuple[int, int]:
    """Sequences and positions of a token table.

    Raises:
        StreamgaugeError: it is empty or has another number of axes.
    """
    shape = tuple(tokens.shape)
    if len(shape) != 2 or 0 in shape:
        raise StreamgaugeError(
            f"tokens have shape {shape} instead of (sequences, positions)",
            remedy="Check the corpus: it gave no rows.",
        )
    return shape


def batches(shard: int, rows: int, n_sequences: int, batch_size: int) -> list[tuple[int, int]]:
    """The batches ``[at, upto)`` of a shard of `rows` rows: none straddles its edges."""
    end = min(n_sequences, (shard + 1) * rows)
    return [(at, min(end, at + batch_size)) for at in range(shard * rows, end, batch_size)]


def write_shards(
    store: layer_stores.Store,
    names: Sequence[str],
    make: Callable[[int, int], Mapping[str, Tensor]],
    *,
    batch_size: int,
    part: tuple[int, int],
    label: str | None,
    pinned: bool,
) -> None:
    """Write the shards of a part of `store` that it does not hold yet.

    Args:
        store: open for writing; its arrays `names` share their shards.
        names: arrays that `make` gives, the first of shape (sequence, position, ...).
        make: (at, upto) -> array name -> rows ``[at, upto)``.
        batch_size: rows asked for at once.
        part: (i, n), see `shards.of_part`.
        label: of the progress lines; None for none.
        pinned: use page-locked buffers, for a model on CUDA.

    Raises:
        NotFinite: a value is not finite as stored. Shards already whole are kept.
        StreamgaugeError: there is no such part; the store cannot be written.
    """
    n_sequences, n_positions = store.array(names[0]).shape[:2]
    rows = store.shard_rows(names[0])
    mine = shards.of_part(part, store.n_shards(names[0]))
    missing = {shard for name in names for shard in store.missing(name)}
    todo = [shard for shard in mine if shard in missing]
    bar = None
    if label:
        whole, rest = (
            sum(min(n_sequences, (shard + 1) * rows) - shard * rows for shard in some)
            for some in (mine, todo)
        )
        done = (whole - rest) * n_positions
        bar = Progress(whole * n_positions, "tokens", label, done=done)
    with _Writer(store, names, min(rows, n_sequences), pinned) as writer:
        for shard in todo:
            first, end = shard * rows, min(n_sequences, (shard + 1) * rows)
            buffer = writer.buffer()
            for at, upto in batches(shard, rows, n_sequences, batch_size):
                writer.add(buffer, first, end, at, upto, make(at, upto))
                if bar:
                    bar.update((upto - at) * n_positions)
    if bar:
        bar.close()


class _Writer:
    """Checks and writes shards in a thread of its own, from two buffers.

    `buffer` blocks until one is free. An error in the thread is raised by the next call.
    """

    def __init__(self, store: layer_stores.Store, names: Sequence[str], rows: int, pinned: bool):
        self._store, self._pinned = store, pinned
        self._error: BaseException | None = None
        self._free: queue.Queue = queue.Queue()
        self._filled: queue.Queue = queue.Queue()
        for _ in range(2):
            self._free.put({name: self._empty(name, rows) for name in names})
        self._thread = threading.Thread(target=self._run, name="shard writer", daemon=True)

    def _empty(self, name: str, rows: int) -> Tensor:
        array = self._store.array(name)
        # integers are stored as they are; floats as the store says (bfloat16 is no NumPy type)
        dtype = "int32" if array.dtype == "int32" else self._store.attributes["dtype"]
        shape = (rows, *array.shape[1:])
        return torch.empty(shape, dtype=getattr(torch, dtype), pin_memory=self._pinned)

    def __enter__(self) -> "_Writer":
        self._thread.start()
        return self

    def __exit__(self, kind, *_) -> None:
        # also after an error elsewhere: shards already complete are still written
        self._filled.put(None)
        self._thread.join()
        if kind is None:
            self._check()

    def buffer(self) -> dict[str, Tensor]:
        """A free buffer for one shard."""
        buffer = self._free.get()
        self._check()
        return buffer

    def add(self, buffer, first: int, end: int, at: int, upto: int, values) -> None:
        """Put the rows ``[at, upto)`` of the shard ``[first, end)`` into its buffer."""
        self._check()
        for name, x in values.items():
            into = buffer[name][at - first : upto - first]
            into.copy_(x.to(into.dtype), non_blocking=self._pinned)
        copied = None
        if self._pinned:
            copied = torch.cuda.Event()
            copied.record()
        self._filled.put((buffer, first, end, at, upto, copied))

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while (item := self._filled.get()) is not None:
                buffer, first, end, at, upto, copied = item
                if copied is not None:
                    copied.synchronize()
                for x in buffer.values():
                    _require_finite(x[at - first : upto - first], at)
                if upto == end:
                    for name, x in buffer.items():
                        whole = x[: end - first]
                        bits = whole.view(torch.uint16) if x.dtype == torch.bfloat16 else whole
                        self._store.write(name, first, bits.numpy())
                    self._free.put(buffer)
        except BaseException as error:
            self._error = error
            self._free.put(None)  # wake whoever waits for a buffer


def _require_finite(x: Tensor, first: int) -> None:
    """Raise for the first token of `x` (sequence, position, ...) that is not finite.

    A value too large for the dtype of `x` has become infinite in it.
    """
    # one sum per sequence is many times faster than isfinite on 16-bit floats; sums that
    # overflow by themselves only cost the closer look
    for sequence, row in enumerate(x, first):
        if not row.float().sum().isfinite():
            finite = row.isfinite().flatten(1).all(-1)
            if not finite.all():
                raise NotFinite(sequence, int(finite.to(torch.uint8).argmin()))
