"""What a manifest vouches for in a store, compared as the store is read, without a second pass.

Zarr compares the checksum of every chunk that is read, but a chunk of another store has a good one
too. So a manifest holds, beside the sha256 of every file, a digest of the *checksums* of each
sharded file: its size, its index and the crc32c behind every chunk. They are a few bytes a
chunk. Together with what Zarr does they tie every value that is read to the manifest. Files without
shards are small, or are read whole, and their sha256 is compared.
"""

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from streamgauge.base import sealed
from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.wording import remade

FILES, CHECKSUMS = "files", "checksums"
_CRC = 4  # bytes of a crc32c, behind every chunk and behind the index of a shard
_NONE = 2**64 - 1  # of a chunk that a shard does not hold


def checksums(store: Path) -> dict[str, str]:
    """File of a store, by its path in it -> digest of its chunks' checksums, where it is sharded.

    Args:
        store: a directory with the metadata that this pipeline writes.
    """
    found = {}
    for array, n_chunks in sorted(_sharded(store).items()):
        for file in sorted((store / array / "c").rglob("*")):
            if file.is_file():
                found[file.relative_to(store).as_posix()] = _of(file, n_chunks)
    return found


def _sharded(store: Path) -> dict[str, int]:
    """Arrays of a store that are cut into shards, with the number of chunks in one."""
    try:
        root = json.loads((store / "zarr.json").read_bytes())
        members = root["consolidated_metadata"]["metadata"].items()
        return dict(_chunks_of_shards(members))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}  # not of this pipeline, or damaged: all its files are hashed


def _chunks_of_shards(members) -> Iterator[tuple[str, int]]:
    for name, array in members:
        if array["codecs"][0]["name"] == "sharding_indexed":
            outer = array["chunk_grid"]["configuration"]["chunk_shape"]
            inner = array["codecs"][0]["configuration"]["chunk_shape"]
            yield name, math.prod(outer) // math.prod(inner)


def _of(file: Path, n_chunks: int) -> str:
    """The digest of the checksums in a shard; of a damaged one, some other."""
    with open(file, "rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        tail = 16 * n_chunks + _CRC
        if size < tail:
            return "too short"
        index = os.pread(opened.fileno(), tail, size - tail)
        digest = hashlib.sha256(struct.pack("<Q", size) + index)
        for at, length in struct.iter_unpack("<QQ", index[:-_CRC]):
            if at != _NONE:
                end = at + length
                if not _CRC <= end <= size:
                    return "not in it"
                digest.update(os.pread(opened.fileno(), _CRC, end - _CRC))
    return digest.hexdigest()[:16]


class Vouched:
    """The files of one store as its manifest has them."""

    def __init__(self, store: Path, record: dict):
        self._store = store

        def own(key: str) -> dict[str, str]:
            start = f"{store.name}/"
            names = record.get(key, {}).items()
            return {name.removeprefix(start): x for name, x in names if name.startswith(start)}

        self._files, self._checksums = own(FILES), own(CHECKSUMS)
        self._n_chunks = _sharded(store)
        self._good: set[Path] = set()

    def good(self, file: Path) -> bool:
        """Whether a file that is there is the one that the manifest describes."""
        if file not in self._good:
            name = file.relative_to(self._store).as_posix()
            if name in self._checksums:
                n_chunks = self._n_chunks.get(name.split("/")[0], 0)
                same = _of(file, n_chunks) == self._checksums[name]
            else:
                same = name in self._files and sealed.sha256(file) == self._files[name]
            if not same:
                return False
            self._good.add(file)
        return True


def manifest_of(store: Path) -> Path:
    """Where the manifest of a store lies."""
    return store.with_suffix(".json")


def of(store: Path) -> Vouched | None:
    """What the manifest beside a store says of it; None where there is none, as of others' stores.

    Raises:
        StreamgaugeError: there is one, and it is damaged.
    """
    path = manifest_of(store)
    try:
        record = sealed.read(path)
    except FileNotFoundError:
        return None
    except StreamgaugeError as error:
        if _foreign(path):
            return None
        raise StreamgaugeError(error.problem, where=str(path), remedy=remade(path)) from None
    return Vouched(store, record) if isinstance(record.get(FILES), dict) else None


def has_manifest(store: Path) -> bool:
    """Whether a manifest lies beside a store, damaged or not."""
    try:
        return of(store) is not None
    except StreamgaugeError:
        return True


def remedy(store: Path) -> str:
    """What to do about a damaged store."""
    if has_manifest(store):
        return remade(manifest_of(store))
    return "It has no manifest: make it again, or get it anew from where it was made."


def _foreign(path: Path) -> bool:
    """Whether a file is JSON of something else."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    # damage that leaves it JSON leaves most keys
    ours = {FILES, "spec", "inputs", "facts", "digest"}
    return not (isinstance(found, dict) and len(found.keys() & ours) > 2)
