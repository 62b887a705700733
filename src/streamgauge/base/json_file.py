"""JSON files as strangers write them: one mapping, of a size that settings have."""

import json
from pathlib import Path
from typing import Any

from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.wording import named

TOO_DEEP = "nested without end"
DEEPEST = 64  # mappings and lists inside each other
LARGEST_HEADER = 100_000_000  # bytes of a safetensors header, as its own reader has it
LARGEST = 1 << 20  # bytes; the settings of a model or an SAE have some thousand


def read(path: str | Path, *, largest: int = LARGEST, remedy: str | None = None) -> dict[str, Any]:
    """The mapping in a JSON file.

    Args:
        path: the file; it may be reached through links, as in the caches of downloads.
        largest: bytes that it may have.
        remedy: what was wanted there.

    Raises:
        StreamgaugeError: there is no such file, or it is a pipe or a device, larger than `largest`,
            no JSON, nested without end, or no mapping, or gives a key twice.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # a device would be read without end
            raise ValueError("no regular file")
        if path.stat().st_size > largest:
            raise ValueError(f"{path.stat().st_size:,} bytes, which settings never have")
        found = loads(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StreamgaugeError(
            f"no readable {path.name} ({reason})", where=str(path.parent), remedy=remedy
        ) from error
    if not isinstance(found, dict):
        raise StreamgaugeError("holds no mapping", where=str(path), remedy=remedy)
    return found


def loads(data: str | bytes) -> Any:
    """What a JSON text stands for.

    Raises:
        ValueError: it is no JSON, is nested without end, or gives a key of a mapping twice, of
            which other readers take the first or the last.
    """
    try:
        found = json.loads(data, object_pairs_hook=_mapping)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    level = [found]
    for _ in range(DEEPEST):
        level = [
            part
            for value in level
            if isinstance(value, dict | list)
            for part in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return found
    raise ValueError(TOO_DEEP)


def header(path: str | Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and the place at which its data begin.

    Raises:
        ValueError: it has none, or gives a tensor twice.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(LARGEST_HEADER, Path(path).stat().st_size):
            raise ValueError(f"a header of {length:,} bytes")
        found = loads(file.read(length))
    if not isinstance(found, dict):
        raise ValueError("its header holds no mapping")
    return found, 8 + length


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {named(twice)} is given twice")
    return found
