"""Records of the pipeline's own: canonical JSON that carries a seal over all that it says.

A flipped bit that leaves a record readable would change what is believed of an artifact. A record
is therefore good only where its text is, byte for byte, what its values are written as, and its
seal is that of all other values. Records of earlier versions have no seal: of these the text is
compared and nothing else.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamgauge.base.errors import StreamgaugeError

SEAL = "seal"
LARGEST = 1 << 30  # bytes; the manifest of a store of a million shards has a third of it


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """`record` with its seal, which replaces one that it has.

    Raises:
        ValueError: it holds what JSON cannot hold without loss.
    """
    rest = {key: value for key, value in record.items() if key != SEAL}
    return rest | {SEAL: hashlib.sha256(_text(rest).encode()).hexdigest()}


def text(record: Mapping[str, Any]) -> str:
    """What the file of a record holds, sealed."""
    return _text(sealed(record))


def read(path: str | Path) -> dict[str, Any]:
    """The record in a file.

    Raises:
        FileNotFoundError: there is none.
        StreamgaugeError: a folder, a pipe or a device; no JSON of a mapping; or something in it is
            not as it was written.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a pipe or a device would be read without end
        raise _damaged(path, "no regular file")
    if path.stat().st_size > LARGEST:
        raise _damaged(path, f"{path.stat().st_size:,} bytes")
    try:
        return decoded(path.read_bytes())
    except ValueError as error:
        raise _damaged(path, str(error)) from None


def decoded(data: bytes) -> dict[str, Any]:
    """The record that bytes hold.

    Raises:
        ValueError: they are no JSON of a mapping; or something is not as it was written.
    """
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(record, dict):
        raise ValueError("no mapping")
    # deep enough to be read is not always deep enough to be written
    with contextlib.suppress(ValueError, RecursionError):
        if (text(record) if SEAL in record else _text(record)).encode() == data:
            return record
    raise ValueError("its seal does not fit its content")


def sha256(path: Path) -> str:
    """The digest of a file, as records hold it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _text(record: Mapping[str, Any]) -> str:
    return json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n"


def _damaged(path: Path, how: str) -> StreamgaugeError:
    return StreamgaugeError(f"edited by hand or damaged ({how})", where=str(path))
