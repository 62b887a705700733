"""Zarr stores that are written shard by shard, resumed, and renamed when whole.

Every store is a Zarr v3 group with named dimensions, coordinates and units, uncompressed, with
consolidated metadata, so that ``xarray.open_zarr(path)`` opens it as it lies. Large arrays are
cut along their first dimension only: chunks (what is read at once) inside shards (one file, what
is written at once). Every chunk carries a checksum (crc32c) that every read compares.

A shard file appears under its own name only when it is whole, and replaces what lay there at once:
resuming is skipping, and of any number of processes writing the same shards, readers see one.
"""

import json
import math
import os
import shutil
import uuid
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import zarr
from zarr.buffer import cpu
from zarr.codecs import Crc32cCodec
from zarr.storage import MemoryStore

from streamgauge.base import whole_file
from streamgauge.base.errors import StreamgaugeError
from streamgauge.stores import vouched, zarr_trust
from streamgauge.stores.unfinished import SPEC, is_scratch, remove_siblings, writing

_OTHER = "not what its manifest describes: damaged, or of another store"
_BFLOAT16 = {
    "stored_as": "bfloat16",
    "decoding": "bit patterns as uint16; shifted left by 16 they are the float32 values",
}
_COORDINATE_ATTRIBUTES = {
    "sequence": {"units": "row", "long_name": "row of token ids"},
    "position": {"units": "token", "long_name": "position in the row"},
    "token_set": {"long_name": "tokens counted: all, or without position 0 and norm sinks"},
}


@dataclass(frozen=True)
class Array:
    """One array of a store.

    Attributes:
        name: its name in the group.
        dims: dimension names, one for each axis.
        shape: sizes.
        dtype: a NumPy name, or ``"bfloat16"`` (kept as uint16 bit patterns).
        units: e.g. ``"1"`` for numbers without a unit.
        description: shown as ``long_name``.
        chunk: rows of the first axis in a chunk; None means one chunk for everything.
        shard: rows of the first axis in a shard, a multiple of `chunk`; None means no shards.
    """

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    units: str
    description: str
    chunk: int | None = None
    shard: int | None = None
    attributes: Mapping = field(default_factory=dict)


def create(
    path: Path | str,
    arrays: Sequence[Array],
    coordinates: Mapping[str, Sequence],
    attributes: Mapping | None = None,
) -> None:
    """Declare a store: metadata and coordinates, no data. Safe to repeat and to race.

    Args:
        path: the store's directory (a scratch directory).
        arrays: the data arrays.
        coordinates: values of the named dimensions that have any.
        attributes: of the group, JSON values.

    Raises:
        StreamgaugeError: `path` already declares something else, or cannot be written.
    """
    path = Path(path)
    # built in memory first: the same bytes whoever writes them, and each file whole at once
    files = {}
    group = zarr.create_group(MemoryStore(files), attributes=dict(attributes or {}))
    for array in arrays:
        stored = "uint16" if array.dtype == "bfloat16" else array.dtype
        extra = _BFLOAT16 if array.dtype == "bfloat16" else {}
        group.create_array(
            array.name,
            shape=array.shape,
            chunks=_grid(array, array.chunk),
            shards=_grid(array, array.shard) if array.shard else None,
            dtype=stored,
            compressors=[Crc32cCodec()],
            dimension_names=array.dims,
            attributes={
                "units": array.units,
                "long_name": array.description,
                **extra,
                **array.attributes,
            },
        )
    for name, values in coordinates.items():
        text = isinstance(values[0], str)
        values = np.asarray(values, dtype=object if text else np.int32)
        group.create_array(
            name,
            shape=values.shape,
            chunks=values.shape,
            dtype="string" if text else "int32",
            compressors=[Crc32cCodec()],
            config={"write_empty_chunks": True},
            dimension_names=(name,),
            attributes=_COORDINATE_ATTRIBUTES.get(name, {}),
        )[:] = values
    with warnings.catch_warnings():
        # zarr says that consolidated metadata is an extension of the v3 format; it is what lets
        # xarray open the store silently and without listing foreign files lying in it
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(group.store)
    with writing(path):
        for key in sorted(files):
            data = files[key].to_bytes()
            if key.endswith("zarr.json"):
                data = json.dumps(json.loads(data), indent=1, sort_keys=True).encode()
            target = path / key
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                _replace(target, data)
            elif target.read_bytes() != data:
                raise StreamgaugeError(
                    "was begun with a different layout",
                    where=str(path),
                    remedy="Delete that directory and run again.",
                )


def commit(scratch: Path | str, final: Path | str) -> None:
    """Give a whole store its final name.

    Removes what a killed writer left behind (``*.partial``) and the spec, replaces whatever lay
    at `final`.

    Raises:
        StreamgaugeError: a shard is missing or short, naming array and shard; or `final` cannot
            be written.
    """
    scratch, final = Path(scratch), Path(final)
    store = Store(scratch)
    for name in store.names:
        missing = store.missing(name)
        if missing:
            raise StreamgaugeError(
                f"array '{name}' lacks {len(missing)} of {store.n_shards(name)} shards, the first"
                f" of them shard {missing[0]}",
                where=str(scratch),
                remedy="Run the stage again: it writes the missing shards only.",
            )
    with writing(final):
        if final.exists():
            shutil.rmtree(final)
        os.replace(scratch, final)
        # only now is the directory gone to a writer that is still at it
        sweep(final)
        whole_file.flush(final.parent)
    remove_siblings(final)


def sweep(path: Path) -> None:
    """Remove from a store what is no part of it: the spec, and what killed writers left behind."""
    for stray in [path / SPEC, *path.rglob("*.partial")]:
        stray.unlink(missing_ok=True)


class Store:
    """A store on disk, whole or being written.

    One with a manifest beside it gives out what that vouches for and nothing else, see `vouched`.

    Args:
        path: its directory.
        writable: open for `write` too.

    Raises:
        StreamgaugeError: there is no readable store at `path`, or one that `zarr_trust` refuses; or
            its metadata is not what the manifest beside it describes.
    """

    def __init__(self, path: Path | str, writable: bool = False):
        self.path = Path(path)
        try:
            self._check()
            self._group = zarr.open_group(self.path, mode="r+" if writable else "r", zarr_format=3)
            self.names = sorted(self._group.metadata.consolidated_metadata.metadata)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            problem = (
                "is not a readable store" if self.path.exists() else "this store does not exist"
            )
            raise StreamgaugeError(problem, where=str(path), remedy=_remake(self.path)) from error
        self._vouched = None if writable or is_scratch(self.path) else vouched.of(self.path)
        if self._vouched and not self._vouched.good(self.path / "zarr.json"):
            raise StreamgaugeError(
                f"zarr.json is {_OTHER}", where=str(path), remedy=_remake(self.path)
            )
        self._arrays = {}
        self.attributes = dict(self._group.attrs)

    def _check(self) -> None:
        try:
            zarr_trust.check(self.path)
        except StreamgaugeError as error:
            own = vouched.has_manifest(self.path) and _remake(self.path)
            raise StreamgaugeError(
                error.problem, where=str(self.path), remedy=own or error.remedy
            ) from None

    def array(self, name: str) -> zarr.Array:
        """The Zarr array `name`, whose reads are unchecked (see `read`)."""
        if name not in self._arrays:
            if name not in self.names:
                raise StreamgaugeError(
                    f"has no array '{name}'", where=str(self.path), remedy=_remake(self.path)
                )
            # shards of zeros are written too, so that a file's absence means "not done"
            self._arrays[name] = self._group[name].with_config({"write_empty_chunks": True})
        return self._arrays[name]

    def shard_rows(self, name: str) -> int:
        """Rows of the first axis in one file of array `name`."""
        array = self.array(name)
        return (array.shards or array.chunks or (1,))[0]

    def n_shards(self, name: str) -> int:
        """Number of files that make up array `name`."""
        shape = self.array(name).shape
        return -(-shape[0] // self.shard_rows(name)) if shape else 1

    def file(self, name: str, shard: int) -> Path:
        """The file of a shard of array `name`, there or not."""
        ndim = self.array(name).ndim
        key = [str(shard), *["0"] * (ndim - 1)] if ndim else []
        return self.path.joinpath(name, "c", *key)

    def missing(self, name: str) -> list[int]:
        """Shards of array `name` that are absent or short of their size."""
        return [i for i in range(self.n_shards(name)) if self._fault(name, i)]

    def write(self, name: str, start: int, values: np.ndarray) -> None:
        """Write rows ``[start, start + len(values))`` of array `name`: whole shards only.

        Raises:
            ValueError: the rows do not fill whole shards.
            StreamgaugeError: the file system refuses, and shards written before stay; or another
                process has finished or removed this work meanwhile.
        """
        array, rows = self.array(name), self.shard_rows(name)
        stop = start + len(values)
        if start % rows or (stop % rows and stop != array.shape[0]):
            raise ValueError(f"rows {start}:{stop} do not fill whole shards of {rows} rows")
        for first in range(start, stop, rows):
            last = min(stop, first + rows)
            self._write(name, slice(first, last), values[first - start : last - start])

    def write_all(self, name: str, values) -> None:
        """Write the whole of array `name` (any shape, also a scalar).

        Raises:
            StreamgaugeError: as for `write`.
        """
        self._write(name, ..., values)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows ``[start, stop)`` of array `name` as stored; a scalar array gives its value.

        Raises:
            StreamgaugeError: a shard in that range is missing, truncated or unreadable, or a
                checksum in it is wrong.
        """
        array = self.array(name)
        if not array.shape:
            shards = range(1)
        else:
            stop = array.shape[0] if stop is None else min(stop, array.shape[0])
            rows = self.shard_rows(name)
            shards = range(start // rows, -(-stop // rows)) if stop > start else range(0)
        # zarr gives zeros for a missing shard, so look before reading
        for i in shards:
            fault = self._fault(name, i)
            if fault:
                raise self._broken(name, i, fault)
        try:
            return array[start:stop] if array.shape else array[()]
        except (OSError, ValueError, KeyError, IndexError, RuntimeError) as error:
            if len(shards) > 1:
                for i in shards:  # the damaged one speaks up
                    self.read(name, max(start, i * rows), min(stop, (i + 1) * rows))
            problem = f"is damaged ({error})"
            if "checksum" in str(error):
                problem = "is damaged (its bytes do not fit their checksum)"
            raise self._broken(name, shards[0], problem) from error

    def remove(self, name: str, shard: int) -> None:
        """Remove a shard of array `name`, so that it counts as not made."""
        with writing(self.path):
            self.file(name, shard).unlink(missing_ok=True)

    def _write(self, name: str, at, values) -> None:
        array, files = self.array(name), {}
        # put together in memory: what lies there, whole or damaged, is neither read nor touched
        # until the new file replaces it
        declared = array.metadata.to_buffer_dict(cpu.buffer_prototype)
        files.update(declared)
        made = zarr.open_array(MemoryStore(files), mode="r+")
        made.with_config({"write_empty_chunks": True})[at] = values
        with writing(self.path):
            for key in sorted(files.keys() - declared.keys()):
                self._place(self.path / name / key, files.pop(key))

    def _place(self, file: Path, content) -> None:
        above = file.relative_to(self.path).parents
        try:
            # never the store itself: it may have got its final name meanwhile
            for folder in reversed(above[:-1]):
                (self.path / folder).mkdir(exist_ok=True)
            _replace(file, content.as_buffer_like())
        except FileNotFoundError:
            raise StreamgaugeError(
                "this work has been finished or removed by another process",
                where=str(self.path),
                remedy="Where no other job makes the same store, run again.",
            ) from None

    def _fault(self, name: str, shard: int) -> str | None:
        array, file = self.array(name), self.file(name, shard)
        try:
            size, plain = file.stat().st_size, zarr_trust.plain(self.path, file)
        except (FileNotFoundError, NotADirectoryError):
            return "is missing"
        if not plain:
            return "is no file of this store, but a link or a device"
        expected = self._expected_size(array, shard)
        if expected is not None and size != expected:
            return f"is damaged ({size} bytes instead of {expected})"
        if self._vouched and not self._vouched.good(file):
            return f"is {_OTHER}"
        return None

    @staticmethod
    def _expected_size(array: zarr.Array, shard: int) -> int | None:
        if array.dtype.kind not in "iuf":
            return None
        if any(codec != Crc32cCodec() for codec in array.compressors):
            return None
        chunk = math.prod(array.chunks) * array.dtype.itemsize + 4 * len(array.compressors)
        if array.shards is None:
            return chunk
        rows = min(array.shards[0], array.shape[0] - shard * array.shards[0])
        # a shard is its chunks, each with its checksum, then an index of two uint64 a chunk
        # with its own
        return -(-rows // array.chunks[0]) * chunk + 16 * array.shards[0] // array.chunks[0] + 4

    def _broken(self, name: str, shard: int, fault: str) -> StreamgaugeError:
        return StreamgaugeError(
            f"shard {shard} of array '{name}' {fault}",
            where=str(self.path),
            remedy=_remake(self.path),
        )


def _grid(array: Array, rows: int | None) -> tuple[int, ...]:
    return array.shape if rows is None else (rows, *array.shape[1:])


def _replace(path: Path, data) -> None:
    """Write a file under its name only when it is whole."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        temporary.write_bytes(data)
        whole_file.flush(temporary)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _remake(path: Path) -> str:
    return "Delete that directory and run again." if is_scratch(path) else vouched.remedy(path)
