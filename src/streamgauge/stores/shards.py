"""How a store over tokens is cut: chunks, shards, and the parts that jobs of their own write.

Arrays over tokens are cut into chunks of about 2,048 tokens (what is read at once) inside shards
of about 16,384 (one file, what is written at once; fewer where a token carries many vectors), both
of whole sequences. Chunks of one layer's stores hold the same sequences. A part is a contiguous
range of whole shards.
"""

from streamgauge.base.errors import StreamgaugeError

TOKENS_PER_CHUNK = 2048
TOKENS_PER_SHARD = 16384


def rows_per_chunk_and_shard(n_positions: int, per_token: int = 1) -> tuple[int, int]:
    """Sequences in a chunk and in a shard, for rows of `n_positions` tokens.

    Chunks hold whole sequences, about 2,048 tokens; shards hold whole chunks, about 16,384 tokens
    divided by `per_token`, the number of vectors that a token carries.
    """
    chunk = max(1, TOKENS_PER_CHUNK // n_positions)
    return chunk, chunk * max(1, TOKENS_PER_SHARD // (chunk * n_positions * per_token))


def n_parts(
    n_sequences: int, n_positions: int, tokens_per_job: int | None, per_token: int = 1
) -> int:
    """Number of parts of a store, so that no job works on more than `tokens_per_job` tokens.

    A job writes whole shards, so it works on one shard at least.

    Args:
        n_sequences, n_positions: rows of the store, and tokens of a row.
        tokens_per_job: None for one part.
        per_token: number of vectors that a token carries.
    """
    if tokens_per_job is None:
        return 1
    rows = rows_per_chunk_and_shard(n_positions, per_token)[1]
    n_shards = -(-n_sequences // rows)
    return max(1, -(-n_shards // max(1, tokens_per_job // (rows * n_positions))))


def of_part(part: tuple[int, int], n_shards: int) -> range:
    """The shards of part (i, n), the i-th of n, counted from 0.

    Raises:
        StreamgaugeError: there is no such part.
    """
    i, n = part
    if not 0 <= i < n:
        raise StreamgaugeError(
            f"there is no part {i} of {n}", remedy="Parts are counted from 0 to one below n."
        )
    return range(i * n_shards // n, (i + 1) * n_shards // n)
