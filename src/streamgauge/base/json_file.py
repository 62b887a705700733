"""JSON files as strangers write them: one mapping, of a size that settings have."""

import json
from pathlib import Path
from typing import Any

from streamgauge.base.errors import StreamgaugeError

LARGEST = 1 << 20  # bytes; the settings of a model or an SAE have some thousand


def read(path: str | Path, *, largest: int = LARGEST, remedy: str | None = None) -> dict[str, Any]:
    """The mapping in a JSON file.

    Args:
        path: the file; it may be reached through links, as in the caches of downloads.
        largest: bytes that it may have.
        remedy: what was wanted there.

    Raises:
        StreamgaugeError: there is no such file, or it is a pipe or a device, larger than `largest`,
            no JSON, nested without end, or no mapping.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # a device would be read without end
            raise ValueError("no regular file")
        if path.stat().st_size > largest:
            raise ValueError(f"{path.stat().st_size:,} bytes, which settings never have")
        found = _decoded(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StreamgaugeError(
            f"no readable {path.name} ({reason})", where=str(path.parent), remedy=remedy
        ) from error
    if not isinstance(found, dict):
        raise StreamgaugeError("holds no mapping", where=str(path), remedy=remedy)
    return found


def _decoded(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError("not JSON") from error
