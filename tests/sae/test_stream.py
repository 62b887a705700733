"""Shuffled batches: every token once an epoch, batch i a fixed set, memory bounded."""

import numpy as np
import pytest
import torch

from sae_data import activations, write_store
from streamgauge.base.errors import StreamgaugeError
from streamgauge.sae.stream import Stream

N, T = 100, 64  # chunks of 32 sequences, the last of 4


class Numbered:
    """A store whose activations are their own token number; counts what is read."""

    n_sequences, n_positions, d_model, chunk_sequences = N, T, 1, 8

    def __init__(self):
        self.reads = []

    def read(self, start, stop):
        self.reads.append((start, stop))
        number = np.arange(start * T, stop * T, dtype=np.float32)
        return number.reshape(stop - start, T, 1)

    def keep(self, start, stop):
        keep = np.ones((stop - start, T), bool)
        keep[:, 0] = False
        return keep


def numbers(batches):
    return [b.squeeze(1).int().tolist() for b in batches]


def test_every_token_once_an_epoch_and_epochs_differ():
    stream = Stream(Numbered(), batch_size=50, pool_tokens=1500)  # 128 batches an epoch
    tokens = np.concatenate(numbers(stream.batches(0, 256)))
    first, second = tokens[: N * T], tokens[N * T :]
    for epoch in (first, second):
        assert np.array_equal(np.sort(epoch), np.arange(N * T))
    assert not np.array_equal(first, second)
    # neighbours in a batch come from several sequences
    assert len({t // T for t in first[:50]}) > 10


def test_batches_run_across_pools_and_epochs():
    stream = Stream(Numbered(), batch_size=999, pool_tokens=1500)
    batches = numbers(stream.batches(0, 20))
    assert {len(b) for b in batches} == {999}
    seen = np.bincount(np.concatenate(batches), minlength=N * T)
    assert set(seen) == {3, 4}  # 19,980 of 3.12 epochs


@pytest.mark.parametrize("start", [0, 1, 7, 31, 64, 130])
def test_batch_number_i_is_always_the_same(start):
    stream = Stream(Numbered(), batch_size=100, pool_tokens=1500, seed=3)
    whole = numbers(stream.batches(0, 140))
    assert numbers(stream.batches(start, 140)) == whole[start:]


def test_resumed_at_its_end_nothing_is_read():
    """Also where the end is that of a pool or of an epoch."""
    store = Numbered()
    stream = Stream(store, batch_size=64, pool_tokens=1024)
    assert N * T % 64 == 0
    for end in range(2 * N * T // 64):
        assert list(stream.batches(end, end)) == []
    assert store.reads == []


def test_resuming_reads_no_more_than_the_pools_it_needs():
    store = Numbered()
    stream = Stream(store, batch_size=100, pool_tokens=1024)  # two chunks a pool
    list(stream.batches(60, 61))
    assert len(store.reads) <= 4


def test_seed_decides_the_order():
    def order(seed):
        return numbers(Stream(Numbered(), batch_size=64, seed=seed).batches(0, 3))

    assert order(1) == order(1) != order(2)


def test_excluded_sinks_never_come():
    stream = Stream(Numbered(), batch_size=90, exclude_sinks=True, pool_tokens=1500)
    assert stream.tokens_per_epoch == N * (T - 1)
    tokens = np.concatenate(numbers(stream.batches(0, 70)))
    assert np.array_equal(np.sort(tokens), [t for t in range(N * T) if t % T])


def test_at_most_one_pool_is_read_ahead():
    store = Numbered()
    stream = Stream(store, batch_size=64, pool_tokens=1024)
    batches = stream.batches(0, 100)
    next(batches)
    batches.close()  # waits for the reader
    assert len(store.reads) == 4


def test_real_store_scaled(tmp_path):
    x = activations(N, T, 12)
    store = write_store(tmp_path / "a.zarr", x)
    stream = Stream(store, batch_size=640, scale=0.5, pool_tokens=2048)
    got = torch.cat(list(stream.batches(0, 10))).numpy()
    want = 0.5 * x.reshape(-1, 12)

    def sort(a):
        return a[np.lexsort(a.T)]

    assert np.array_equal(sort(got), sort(want))
    assert stream.head(10**6).shape == (N * T, 12)


def test_nothing_to_train_on():
    class Empty(Numbered):
        def keep(self, start, stop):
            return np.zeros((stop - start, T), bool)

    with pytest.raises(StreamgaugeError, match="no token to train on"):
        Stream(Empty(), batch_size=4, exclude_sinks=True)
