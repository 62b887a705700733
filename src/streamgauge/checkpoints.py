"""Checkpoints of long work: tensors and JSON facts in one safetensors file, whole or not there."""

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from streamgauge.errors import StreamgaugeError


def save(path: Path | str, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors, of any shapes, and facts (JSON values) as one file.

    Raises:
        StreamgaugeError: it cannot be written.
    """
    held = {"facts": json.dumps(dict(facts))}
    replace(path, lambda temporary: save_file(dict(tensors), temporary, held))


def load(path: Path | str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(tensors, facts) of a checkpoint.

    Raises:
        StreamgaugeError: the file is no readable checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
            return {name: file.get_tensor(name) for name in file.keys()}, facts
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise StreamgaugeError(
            f"unreadable checkpoint ({error})",
            where=str(path),
            remedy="Delete it; training starts again from the first step.",
        ) from error


def resume(path: Path | str, facts: Mapping[str, Any]) -> dict[str, torch.Tensor] | None:
    """The tensors of a checkpoint written with these very facts; None where there is none.

    Raises:
        StreamgaugeError: the file is no readable checkpoint.
    """
    if not Path(path).exists():
        return None
    tensors, found = load(path)
    return tensors if found == json.loads(json.dumps(dict(facts))) else None


def replace(path: Path | str, write: Callable[[Path], None]) -> None:
    """Let `write` write beside `path`, then rename: a reader never sees half a file.

    Raises:
        StreamgaugeError: it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise StreamgaugeError(
            f"cannot be written ({error})",
            where=str(path),
            remedy="Check free space and permissions; a second start continues the work.",
        ) from error
