"""Token rows on disk: ids, and which document each token comes from."""

import hashlib
from pathlib import Path

import numpy as np

from streamgauge.stores.shards import rows_per_chunk_and_shard
from streamgauge.stores.unfinished import scratch
from streamgauge.stores.zarr_store import Array, Store, commit, create


def store_tokens(final: Path | str, spec: str, tokens: np.ndarray, document: np.ndarray) -> dict:
    """Write a token store: ``tokens`` and ``document``, both int32 (sequence, position).

    Returns:
        The manifest's facts: n_sequences, n_positions, n_documents, units, and tokens_sha256 of
        the ids alone: subjects that read the same ids can be compared sequence by sequence.
    """
    tokens, document = np.asarray(tokens), np.asarray(document)
    n_positions = tokens.shape[1]
    # token ids are a thousand times smaller than activations: larger chunks, same idea
    chunk, shard = (32 * rows for rows in rows_per_chunk_and_shard(n_positions))
    dims, rows = ("sequence", "position"), {"chunk": chunk, "shard": shard}
    work = scratch(final, spec)
    create(
        work,
        [
            Array("tokens", dims, tokens.shape, "int32", "token id", "token ids", **rows),
            Array("document", dims, tokens.shape, "int32", "1", "index of the source text", **rows),
        ],
        {"sequence": range(tokens.shape[0]), "position": range(n_positions)},
    )
    store = Store(work, writable=True)
    store.write("tokens", 0, tokens)
    store.write("document", 0, document)
    commit(work, final)
    return {
        "n_sequences": tokens.shape[0],
        "n_positions": n_positions,
        "n_documents": len(np.unique(document[document >= 0])),
        "tokens_sha256": hashlib.sha256(tokens.astype("<i4").tobytes()).hexdigest(),
        "units": {"tokens": "token id", "document": "1"},
    }


def open_tokens(path: Path | str) -> "TokenTable":
    """The token ids of a token store, read as they are sliced."""
    return TokenTable(path)


class TokenTable:
    """Token ids on disk, int32 (n_sequences, n_positions): ``table[i]`` and ``table[a:b]`` read.

    Attributes:
        shape: (n_sequences, n_positions).

    Raises:
        StreamgaugeError: no token store at `path`; when sliced, a shard is missing or damaged.
    """

    def __init__(self, path: Path | str):
        self._store = Store(path)
        self.shape = self._store.array("tokens").shape

    def __getitem__(self, rows: int | slice) -> np.ndarray:
        if not isinstance(rows, slice):
            return self._store.read("tokens", rows, rows + 1)[0]
        start, stop, step = rows.indices(self.shape[0])
        if step != 1:
            raise ValueError("rows are read in their order, without gaps")
        return self._store.read("tokens", start, stop)


def read_tokens(path: Path | str) -> tuple[np.ndarray, np.ndarray]:
    """``(tokens, document)`` of a token store, both int32 (n_sequences, n_positions)."""
    store = Store(path)
    return store.read("tokens"), store.read("document")
