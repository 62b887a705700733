"""Shuffled training batches from an activations store.

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

from streamgauge.errors import StreamgaugeError


class Stream:
    """Batches of an activations store in shuffled order, for any number of epochs.

    Memory in use is two pools, the one in use and the next, which a thread reads ahead; it does
    not depend on the size of the store.

    Args:
        store: a `stores.ActivationStore`, or anything with its ``n_sequences``, ``n_positions``,
            ``d_model``, ``chunk_sequences``, ``read(start, stop)`` and ``keep(start, stop)``.
        batch_size: tokens a batch.
        seed: of the order.
        pool_tokens: tokens shuffled together in memory, float32; at least one chunk.
        exclude_sinks: leave out the tokens that ``store.keep`` does not keep.
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
        scale: float = 1.0,
        device: str | torch.device = "cpu",
    ):
        self.store, self.batch_size, self.seed = store, batch_size, seed
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

    def batches(self, start: int, stop: int) -> Iterator[torch.Tensor]:
        """Batches number `start` to `stop` - 1, each (batch_size, d_model) float32 on the device.

        Raises:
            StreamgaugeError: what reading the store raises.
        """
        pieces, held = [], 0
        for piece in self._pieces(start * self.batch_size, stop * self.batch_size):
            pieces.append(piece)
            held += len(piece)
            if held == self.batch_size:
                yield pieces[0] if len(pieces) == 1 else torch.cat(pieces)
                pieces, held = [], 0

    def head(self, tokens: int) -> torch.Tensor:
        """The first tokens of the stream, (tokens, d_model), at most one epoch: a random sample."""
        return torch.cat(list(self._pieces(0, min(tokens, self.tokens_per_epoch))))

    def _pieces(self, first: int, last: int) -> Iterator[torch.Tensor]:
        """Tokens [first, last) of the stream, cut at the ends of batches and of pools."""
        room = self.batch_size - first % self.batch_size
        for pool, order in self._pools(first, last):
            while len(order):
                take, order = order[:room], order[room:]
                room = room - len(take) or self.batch_size
                yield pool.index_select(0, take)

    def _pools(self, first: int, last: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The pools holding tokens [first, last), each with its order, read one ahead."""
        # two buffers in turn: faulting in fresh pages would cost as much as reading them full
        size = self._chunks_per_pool * self.store.chunk_sequences * self.store.n_positions
        shape = (min(size, self.tokens_per_epoch), self.store.d_model)
        buffers = itertools.cycle([np.empty(shape, np.float32), np.empty(shape, np.float32)])
        plan = self._plan(first, last)
        with ThreadPoolExecutor(1, thread_name_prefix="activations") as reader:
            chunks, order = next(plan)
            ahead = reader.submit(self._read, chunks, next(buffers))
            while ahead:
                pool, current = ahead.result().to(self.device), order
                chunks, order = next(plan, (None, None))
                ahead = None
                if chunks is not None:
                    ahead = reader.submit(self._read, chunks, next(buffers))
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

    def _read(self, chunks: np.ndarray, buffer: np.ndarray) -> torch.Tensor:
        """The tokens of some chunks, (n, d_model) float32, scaled, in `buffer`."""
        filled = 0
        for chunk in chunks:
            start, stop = int(self._starts[chunk]), int(self._stops[chunk])
            x = self.store.read(start, stop)
            x = (
                x[self.store.keep(start, stop)]
                if self.exclude_sinks
                else x.reshape(-1, x.shape[-1])
            )
            np.multiply(x, np.float32(self.scale), out=buffer[filled : filled + len(x)])
            filled += len(x)
        return torch.from_numpy(buffer[:filled])
