"""Checkpoints of long work: tensors and JSON facts in one safetensors file, whole or not there."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from streamgauge.base import whole_file
from streamgauge.base.errors import StreamgaugeError


def save(path: Path | str, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors, of any shapes, and facts (JSON values) as one file.

    Raises:
        StreamgaugeError: it cannot be written.
    """
    save_tensors(path, tensors, {"facts": json.dumps(dict(facts))})


def load(path: Path | str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(tensors, facts) of a checkpoint.

    Raises:
        StreamgaugeError: the file is no readable checkpoint.
    """
    while True:
        before, problem = _which(path), None
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads(file.metadata()["facts"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, RuntimeError, OSError, KeyError, TypeError, ValueError) as error:
            problem = error
        # opened twice by its name, for header and for tensors: they must be of the same file,
        # though another process may write checkpoints of the same work
        if _which(path) == before:
            break
    if problem:
        raise StreamgaugeError(
            f"unreadable checkpoint ({problem})",
            where=str(path),
            remedy="Delete it; training starts again from the first step.",
        ) from problem
    return tensors, facts


def _which(path: Path | str) -> tuple[int, int, int] | None:
    """What tells a file from one that took its place."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def resume(path: Path | str, facts: Mapping[str, Any]) -> dict[str, torch.Tensor] | None:
    """The tensors of a checkpoint written with these very facts; None where there is none.

    Raises:
        StreamgaugeError: the file is no readable checkpoint.
    """
    if not Path(path).exists():
        return None
    tensors, found = load(path)
    return tensors if found == json.loads(json.dumps(dict(facts))) else None


def save_tensors(
    path: Path | str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors, of any shapes, as one safetensors file: whole, or not there.

    Raises:
        StreamgaugeError: it cannot be written.
    """

    def write(temporary: Path) -> None:
        try:
            save_file(dict(tensors), temporary, metadata)
        except SafetensorError as error:  # what it makes of a refusal by the file system
            raise OSError(str(error)) from error

    whole_file.replace(path, write)
