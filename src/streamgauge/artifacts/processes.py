"""Whether a process that left its name in a file is still alive, as far as one can tell from here.

A process id means something on its own machine only, until the next boot, inside one namespace of
ids; and ids are used again, so the time at which the process started goes with it.
"""

import contextlib
import getpass
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def myself() -> dict[str, Any]:
    """This process: ``host``, ``user``, ``pid``, ``machine``, ``started``.

    ``machine`` names boot and namespace, and is empty where the system does not tell (no Linux);
    ``started`` counts the clock ticks since boot.
    """
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # an id without a name, as in containers
        user = f"user {os.getuid()}"
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "user": user,
        "pid": pid,
        "machine": _machine(),
        "started": _status(pid)[1],
    }


def lives(who: Mapping[str, Any]) -> bool | None:
    """Whether the process that `myself` described lives; None where that cannot be told here."""
    if not who["machine"] or who["machine"] != _machine():
        return None
    try:
        os.kill(who["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's
    except (OverflowError, TypeError):  # no process id
        return None
    state, started = _status(who["pid"])
    if not state:  # hidden from other users; or it has ended this moment, and is asked for again
        return None
    return state not in "ZX" and started == who["started"]


def _machine() -> str:
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _status(pid: int) -> tuple[str, int]:
    """State, a letter, and start of a process; empty and 0 where they cannot be read."""
    try:
        # the name, in parentheses, may hold anything
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, IndexError, ValueError):
        return "", 0
