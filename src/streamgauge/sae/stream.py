"""Shuffled training batches from an activations store, and what lies beside it.

The tokens of an epoch are visited in an order that depends only on (seed, epoch): the store's
chunks are permuted, consecutive chunks fill a pool in memory, and the tokens of a pool are
permuted. Epochs follow one another without a seam and batches are cut from the result, so batch
number i is a fixed set of tokens: to continue after an interruption is to ask for batch i.
"""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from streamgauge.base.errors import StreamgaugeError


class Stream:
    """Batches of an activations store in shuffled order, for any number of epochs.

    Memory in use is two pools, the one in use and the next, which a thread reads ahead; it does
    not depend on the size of the store. A token of a pool takes 4 * d_model bytes, and with
    `probes` of 16 bits another 2 * d_model * n_probes.

    Args:
        store: a `layer_stores.ActivationStore`, or anything with its ``n_sequences``,
            ``n_positions``, ``d_model``, ``chunk_sequences``, ``read(start, stop)`` and
            ``keep(start, stop)``.
        batch_size: tokens a batch.
        seed: of the order.
        pool_tokens: tokens shuffled together in memory, float32; at least one chunk.
        exclude_sinks: leave out the tokens that ``store.keep`` does not keep.
        probes: a `layer_stores.ProbeStore` of the same tokens, whose probes come along; the order
            of the tokens does not depend on it.
        scale: factor applied to every activation; may be set until batches are drawn.
        device: where the batches are put.

    Raises:
        StreamgaugeError: no token to train on.
    """

    def __init__(
        self,
        store,
        *,
        batch_size: int,
        seed: int = 0,
        pool_tokens: int = 524_288,
        exclude_sinks: bool = False,
        probes=None,
        scale: float = 1.0,
        device: str | torch.device = "cpu",
    ):
        self.store, self.probes, self.batch_size, self.seed = store, probes, batch_size, seed
        self.scale, self.device, self.exclude_sinks = scale, torch.device(device), exclude_sinks
        size = store.chunk_sequences
        self._starts = np.arange(0, store.n_sequences, size)
        stops = np.minimum(self._starts + size, store.n_sequences)
        if exclude_sinks:
            spans = zip(self._starts, stops, strict=True)
            self._tokens = np.array([store.keep(a, b).sum() for a, b in spans], dtype=np.int64)
        else:
            self._tokens = (stops - self._starts) * store.n_positions
        self._stops = stops
        self._chunks_per_pool = max(1, pool_tokens // (size * store.n_positions))
        if not self._tokens.sum():
            raise StreamgaugeError(
                "the activations store holds no token to train on",
                where=self.name,
                remedy="Raise train_sequences of the corpus, or set sae.exclude_sinks to false.",
            )

    @property
    def name(self) -> str:
        """The store, for messages."""
        return str(getattr(self.store, "path", "activations"))

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens the store offers."""
        return int(self._tokens.sum())

    def batches(self, start: int, stop: int) -> Iterator[torch.Tensor | tuple[torch.Tensor, ...]]:
        """Batches number `start` to `stop` - 1, each (batch_size, d_model) float32 on the device.

        With `probes` each is a pair, the second (batch_size, d_model, n_probes) as stored.

        Raises:
            StreamgaugeError: what reading the store raises.
        """
        pieces, held = [], 0
        for piece in self._pieces(start * self.batch_size, stop * self.batch_size, self.probes):
            pieces.append(piece)
            held += len(piece[0])
            if held == self.batch_size:
                parts = zip(*pieces, strict=True)
                batch = tuple(p[0] if len(p) == 1 else torch.cat(p) for p in parts)
                yield batch if self.probes else batch[0]
                pieces, held = [], 0

    def head(self, tokens: int) -> torch.Tensor:
        """The first tokens of the stream, (tokens, d_model), at most one epoch: a random sample."""
        return torch.cat([x for (x,) in self._pieces(0, min(tokens, self.tokens_per_epoch), None)])

    def _pieces(self, first: int, last: int, probes) -> Iterator[tuple[torch.Tensor, ...]]:
        """Tokens [first, last) of the stream, cut at the ends of batches and of pools."""
        room = self.batch_size - first % self.batch_size
        for pool, order in self._pools(first, last, probes):
            while len(order):
                take, order = order[:room], order[room:]
                room = room - len(take) or self.batch_size
                yield tuple(part.index_select(0, take) for part in pool)

    def _pools(self, first: int, last: int, probes) -> Iterator[tuple[tuple, torch.Tensor]]:
        """The pools holding tokens [first, last), each with its order, read one ahead."""
        if first == last:  # resumed at its end
            return
        # two buffers in turn: faulting in fresh pages would cost as much as reading them full
        size = self._chunks_per_pool * self.store.chunk_sequences * self.store.n_positions
        shape = (min(size, self.tokens_per_epoch), self.store.d_model)
        parts = [(shape, torch.float32)]
        if probes:
            parts.append(((*shape, probes.n_probes), getattr(torch, probes.dtype)))
        buffers = itertools.cycle([[torch.empty(s, dtype=t) for s, t in parts] for _ in range(2)])
        plan = self._plan(first, last)
        with ThreadPoolExecutor(1, thread_name_prefix="activations") as reader:
            chunks, order = next(plan)
            ahead = reader.submit(self._read, chunks, next(buffers), probes)
            while ahead:
                pool, current = tuple(p.to(self.device) for p in ahead.result()), order
                chunks, order = next(plan, (None, None))
                ahead = None
                if chunks is not None:
                    ahead = reader.submit(self._read, chunks, next(buffers), probes)
                yield pool, current.to(self.device)

    def _plan(self, first: int, last: int) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Chunks of each pool holding tokens [first, last), and which of its tokens in order."""
        epoch = first // self.tokens_per_epoch
        begin = epoch * self.tokens_per_epoch
        while begin < last:
            chunks = np.random.default_rng([self.seed, epoch]).permutation(len(self._starts))
            cuts = range(self._chunks_per_pool, len(chunks), self._chunks_per_pool)
            for number, pool in enumerate(np.split(chunks, cuts)):
                tokens = int(self._tokens[pool].sum())
                if begin < last and begin + tokens > first:
                    order = np.random.default_rng([self.seed, epoch, number]).permutation(tokens)
                    yield pool, torch.from_numpy(order[max(0, first - begin) : last - begin])
                begin += tokens
            epoch += 1

    def _read(self, chunks: np.ndarray, buffers: list[torch.Tensor], probes) -> tuple:
        """The tokens of some chunks in `buffers`: scaled (n, d_model) float32, and their probes."""
        filled = 0
        for chunk in chunks:
            start, stop = int(self._starts[chunk]), int(self._stops[chunk])
            keep = self.store.keep(start, stop) if self.exclude_sinks else None
            x = _tokens(self.store.read(start, stop), keep)
            part = slice(filled, filled + len(x))
            np.multiply(x, np.float32(self.scale), out=buffers[0][part].numpy())
            if probes:
                buffers[1][part] = _tokens(probes.tensor(start, stop), keep)
            filled += len(x)
        return tuple(buffer[:filled] for buffer in buffers)


def _tokens(rows, keep: np.ndarray | None):
    """The tokens of (n, n_positions, ...) that are to be kept, or all, as (tokens, ...)."""
    return rows.reshape(-1, *rows.shape[2:]) if keep is None else rows[keep]
