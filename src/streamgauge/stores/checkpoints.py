"""Checkpoints of long work: tensors and JSON facts in one safetensors file, whole or not there.

Each tensor, and the facts, carry a sha256 that every read compares: work is not resumed from bytes
that were never written.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from streamgauge.base import sealed, whole_file
from streamgauge.base.errors import StreamgaugeError

_OTHER = "its bytes are not those that were written"
_UNREADABLE = (SafetensorError, RuntimeError, OSError, KeyError, TypeError, ValueError)


def save(path: Path | str, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors, of any shapes, and facts (JSON values) as one file.

    Raises:
        StreamgaugeError: it cannot be written.
    """
    digests = {name: _sha256(tensor) for name, tensor in tensors.items()}
    held = sealed.text({"facts": dict(facts), "sha256": digests})
    save_tensors(path, tensors, {"held": held})


def load(path: Path | str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(tensors, facts) of a checkpoint.

    Raises:
        StreamgaugeError: the file is no readable checkpoint, or holds others than were written.
    """
    while True:
        before, problem = _which(path), None
        try:
            with safe_open(path, framework="pt") as file:
                facts, digests = _held(file)
                tensors = {name: _tensor(file, name, digests) for name in sorted(digests)}
        except _UNREADABLE as error:
            problem = error
        # opened twice by its name, for header and for tensors: they must be of the same file,
        # though another process may write checkpoints of the same work
        if _which(path) == before:
            break
    if problem:
        raise _unreadable(path, problem)
    return tensors, facts


def tensor(path: Path | str, name: str) -> torch.Tensor:
    """One tensor of a checkpoint that no other process writes any more.

    Raises:
        StreamgaugeError: as for `load`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return _tensor(file, name, _held(file)[1])
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def _held(file) -> tuple[dict[str, Any], dict[str, str]]:
    """Facts, and the digests of the tensors, which are those in the file and no others."""
    held = sealed.decoded(file.metadata()["held"].encode())
    if sealed.SEAL not in held or held["sha256"].keys() != set(file.keys()):
        raise ValueError(_OTHER)
    return held["facts"], held["sha256"]


def _tensor(file, name: str, digests: Mapping[str, str]) -> torch.Tensor:
    found = file.get_tensor(name)
    if _sha256(found) != digests[name]:
        raise ValueError(_OTHER)
    return found


def _sha256(x: torch.Tensor) -> str:
    data = x.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{data.dtype} {tuple(data.shape)} ".encode())
    digest.update(data.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _unreadable(path: Path | str, problem: Exception) -> StreamgaugeError:
    return StreamgaugeError(
        f"unreadable checkpoint ({problem})",
        where=str(path),
        remedy="Delete it; its work starts again from the first step.",
    )


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
