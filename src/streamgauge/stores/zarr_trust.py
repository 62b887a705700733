"""What a store may say of itself, checked before anything is read from it.

Stores come from colleagues and downloads as well as from this pipeline. Zarr's metadata can name
codecs that run code (pickles, in format 2), members outside the store, and shapes that fill the
memory; a chunk can be a link to somewhere else. None of that is needed here: a store holds arrays
of numbers, uncompressed, in plain files below its own directory, so that the size of a file bounds
what reading it takes.
"""

import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from streamgauge.base import json_file
from streamgauge.base.errors import StreamgaugeError

LARGEST_METADATA = 1 << 22  # bytes of a zarr.json; the pipeline's own have some thousand
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_BYTES = {
    **{"bool": 1, "int8": 1, "int16": 2, "int32": 4, "int64": 8},
    **{"uint8": 1, "uint16": 2, "uint32": 4, "uint64": 8},
    **{"float16": 2, "float32": 4, "float64": 8},
}
_LARGEST_SIDE = 1 << 40  # of an array, along any axis
_LARGEST_PIECE = 1 << 36  # bytes of a chunk or shard, which are read or written at once
_MOST_CHUNKS = 1 << 20  # of a shard
_MOST_TEXTS = 1 << 20  # of an array of text, whose files have no size to be checked by


class _Refused(Exception):
    """What is wrong with the metadata, in words."""


def check(path: Path | str) -> None:
    """Refuse a store whose metadata asks for anything but plain arrays in its own directory.

    Args:
        path: the store's directory, which may itself be reached through links.

    Raises:
        OSError, ValueError: there is no metadata at `path`, or none that is JSON of a group.
        StreamgaugeError: another format than Zarr 3; a member that is no array or has a path for a
            name; a codec, a type or a layout of files that this pipeline does not write; a size
            that no store has; metadata too large or too deep; a link where metadata or the
            directory of an array should lie.
    """
    path = Path(path)
    try:
        root = _metadata(path)
        for name, entry in _members(root):
            _check_array(name, entry)
            if any(map(os.path.islink, (path / name, path / name / "c"))):
                raise _Refused(f"array '{name}' is a symbolic link")
    except _Refused as refused:
        raise StreamgaugeError(
            f"this store is not trusted: {refused}",
            where=str(path),
            remedy="Make it again with this pipeline, or get it anew from where it was made.",
        ) from None


def plain(store: Path, file: Path) -> bool:
    """Whether an existing `file` is a regular file that no link below `store` leads to."""
    steps = (file, *file.parents[: len(file.relative_to(store).parts) - 1])
    return stat.S_ISREG(file.stat().st_mode) and not any(map(os.path.islink, steps))


def _metadata(path: Path) -> Mapping[str, Any]:
    """The decoded zarr.json of a group."""
    file = path / "zarr.json"
    if not file.exists() and any((path / name).exists() for name in (".zgroup", ".zarray")):
        raise _Refused("it is of Zarr format 2, whose codecs can run code")
    size = file.stat().st_size
    if not plain(path, file):
        raise _Refused("its zarr.json is a link, or no regular file")
    if size > LARGEST_METADATA:
        raise _Refused(f"its zarr.json has {size:,} bytes")
    try:
        root = json_file.loads(file.read_bytes())
    except ValueError as error:
        if str(error) != json_file.TOO_DEEP:
            raise
        raise _Refused(f"its zarr.json is {error}") from None
    if not isinstance(root, dict):
        raise ValueError("zarr.json holds no mapping")
    return root


def _members(root: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name and metadata of the arrays, as the consolidated metadata of the group gives them."""
    if root.get("zarr_format") != 3 or root.get("node_type") != "group":
        raise ValueError("zarr.json is not that of a group of Zarr format 3")
    held = root.get("consolidated_metadata")
    entries = held.get("metadata") if isinstance(held, dict) else None
    if not isinstance(entries, dict) or not isinstance(root.get("attributes", {}), dict):
        raise ValueError("zarr.json lacks consolidated metadata")
    for name, entry in entries.items():
        if not _NAME.fullmatch(name):
            raise _Refused(f"it has a member called {name!r:.60}")
        if not isinstance(entry, dict) or (entry.get("zarr_format"), entry.get("node_type")) != (
            3,
            "array",
        ):
            raise _Refused(f"its member '{name:.60}' is no array of Zarr format 3")
        yield name, entry


def _check_array(name: str, entry: Mapping[str, Any]) -> None:
    kind = entry.get("data_type")
    shape = _sizes(entry.get("shape"), 0, name, "shape")
    shard = _sizes(_set(entry, "chunk_grid", "regular", name).get("chunk_shape"), 1, name, "chunks")
    keys = _set(entry, "chunk_key_encoding", "default", name)
    codecs = entry.get("codecs")
    if len(shard) != len(shape):
        raise _Refused(f"chunks of array '{name}' do not fit its shape")
    if keys.get("separator", "/") != "/" or entry.get("storage_transformers"):
        raise _Refused(f"array '{name}' spreads its files in another way than this pipeline")
    if kind == "string":
        if _names(codecs, name) not in (["vlen-utf8"], ["vlen-utf8", "crc32c"]):
            raise _Refused(f"array '{name}' has codecs that this pipeline does not use")
        if math.prod(shape) > _MOST_TEXTS or math.prod(shard) > _MOST_TEXTS:
            raise _Refused(f"array '{name}' claims {math.prod(shape):,} texts")
        return
    if not isinstance(kind, str) or kind not in _BYTES:
        raise _Refused(f"array '{name}' is of type {kind!r:.60}")
    if math.prod(shard) * _BYTES[kind] > _LARGEST_PIECE:
        raise _Refused(
            f"a chunk of array '{name}' claims {math.prod(shard) * _BYTES[kind]:,} bytes"
        )
    if _names(codecs, name) != ["sharding_indexed"]:
        _check_codecs(codecs, name)
        return
    inner = codecs[0].get("configuration")
    inner = inner if isinstance(inner, dict) else {}
    chunk = _sizes(inner.get("chunk_shape"), 1, name, "chunks")
    if len(chunk) != len(shape) or math.prod(shard) > _MOST_CHUNKS * math.prod(chunk):
        raise _Refused(f"chunks of array '{name}' do not fit its shape")
    _check_codecs(inner.get("codecs"), name)
    _check_codecs(inner.get("index_codecs"), name)


def _check_codecs(codecs: Any, name: str) -> None:
    """Only numbers as they are, perhaps with a checksum: nothing unpacks to more than it was."""
    if _names(codecs, name) not in (["bytes"], ["bytes", "crc32c"]):
        raise _Refused(
            f"array '{name}' is stored by {', '.join(_names(codecs, name)) or 'no codec'}"
            f" instead of as plain numbers"
        )


def _names(codecs: Any, name: str) -> list[str]:
    if not isinstance(codecs, list) or not all(isinstance(codec, dict) for codec in codecs):
        raise _Refused(f"array '{name}' has no list of codecs")
    return [f"{codec.get('name')!s:.60}" for codec in codecs]


def _set(entry: Mapping[str, Any], key: str, wanted: str, name: str) -> Mapping[str, Any]:
    """The configuration of an extension point, which must be the one `wanted`."""
    value = entry.get(key)
    if not isinstance(value, dict) or value.get("name") != wanted:
        raise _Refused(f"{key} of array '{name}' is not {wanted}")
    settings = value.get("configuration", {})
    if not isinstance(settings, dict):
        raise _Refused(f"{key} of array '{name}' has no settings")
    return settings


def _sizes(value: Any, fewest: int, name: str, what: str) -> list[int]:
    """A list of whole numbers of a sensible size."""
    fine = isinstance(value, list) and len(value) <= 16
    if not fine or not all(type(n) is int and fewest <= n <= _LARGEST_SIDE for n in value):
        raise _Refused(f"{what} of array '{name}' claims {value!r:.60}")
    return value
