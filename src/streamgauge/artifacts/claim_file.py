"""One claim as others read it: a folder with a file of JSON, which anybody may have damaged."""

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from streamgauge.base import json_file
from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.wording import shown

NAME = "claim.json"
_LARGEST = 1 << 27  # bytes: those of the most SAEs that can be planned
_LONGEST = 60  # characters of a name, or of a time, that are repeated
_WHO = {"host": str, "user": str, "pid": int, "machine": str, "started": int, "run": str}


class Other(NamedTuple):
    """A claim that lies there; see `claims` for what its parts mean.

    Attributes:
        path: its folder.
        stamp: changes with every sign of life.
        who: of `processes.myself`, and the ``run`` that a job belongs to; None where the claim
            cannot be read: then it stands for everything.
    """

    path: Path
    stamp: tuple[int, int]
    who: dict[str, Any] | None = None
    since: str = "?"
    ticket: int | None = None
    narrowed: bool = False
    writes: frozenset[str] = frozenset()
    reads: frozenset[str] = frozenset()

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def kind(self) -> str:
        return self.id.partition("-")[0]

    def overlaps(self, names: frozenset[str]) -> bool:
        """Whether it is about one of `names`."""
        return self.who is None or not self.writes.isdisjoint(names)

    def is_of(self, who: Mapping[str, Any]) -> bool:
        """Whether it is this process' own."""
        same = ("host", "pid", "machine", "started")
        return self.who is not None and all(self.who[key] == who[key] for key in same)


def read(path: Path) -> Other | None:
    """The claim in a folder; None where it has gone meanwhile."""
    with contextlib.suppress(StreamgaugeError, OSError, LookupError, TypeError):
        record = json_file.read(path / NAME, largest=_LARGEST)
        found = os.stat(path / NAME)
        return Other(
            path,
            (found.st_mtime_ns, found.st_size),
            {key: _checked(record["who"][key], kind) for key, kind in _WHO.items()},
            _checked(record["since"], str),
            _checked(record["ticket"], int | None),
            _checked(record["narrowed"], bool),
            frozenset(map(str, _checked(record["writes"], list))),
            frozenset(map(str, _checked(record["reads"], list))),
        )
    with contextlib.suppress(OSError):
        found = os.lstat(path)
        return Other(path, (found.st_mtime_ns, found.st_size))
    return None


def remove(path: Path) -> None:
    """Remove a claim; one that cannot be removed stays, and counts for nothing."""
    with contextlib.suppress(OSError):
        path.unlink()  # no folder; given a pipe, rmtree would wait for somebody to write
        return
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)


def words(other: Other) -> str:
    """Who it is, and since when."""
    if not other.who:
        return "a claim that cannot be read, and is removed if it stays as it is"
    user, host, since = (
        text if text.isprintable() and len(text) <= _LONGEST else shown(text)
        for text in (other.who["user"], other.who["host"], other.since)
    )
    return f"{other.kind} of {user} on {host}, process {other.who['pid']}, since {since}"


def _checked(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError
    return value
