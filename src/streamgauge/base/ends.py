"""How a program ends that cannot go on: one line that says what is wrong and how to go on.

Imports nothing that takes time, so that it can be there before everything else.
"""

import contextlib
import errno
import os
import re
import signal
import sys
import traceback
from types import FrameType

from streamgauge.base.errors import StreamgaugeError, first_line, out_of_memory

KEPT = "What is finished is kept; run the same again to go on."
INTERRUPTED = 130  # exit status, as shells give it
#: What to do about an operating system's refusal.
REMEDIES = {
    errno.ENOSPC: "Free space on that file system and run again",
    errno.EDQUOT: "Free space within the quota and run again",
    errno.EFBIG: "Raise the file size limit (ulimit -f) and run again",
    errno.EACCES: "Make the directory writable for this user and run again",
    errno.EPERM: "Make the directory writable for this user and run again",
    errno.EROFS: "Write to a file system that is not read-only and run again",
    errno.ENOTDIR: "Move away the file that lies where a directory belongs and run again",
    errno.EEXIST: "Move away the file that lies where a directory belongs and run again",
    errno.EMFILE: "Raise the limit of open files (ulimit -n) and run again",
    errno.EIO: "Look at the health of that disk and run again",
}
_OURS = (
    "this is a fault of streamgauge, not of what it was given. Please report it with the lines "
    f"above. {KEPT}"
)


def remedy_of(error: OSError, path: os.PathLike | str | None = None) -> str:
    """What to do about a refusal, as a sentence without its stop."""
    if error.errno == errno.ENOSPC and _no_files_left(error.filename or path):
        return "Remove files on that file system, which can hold no more of them, and run again"
    return REMEDIES.get(error.errno, "Put that right and run again")


def line_of(error: BaseException) -> str | None:
    """What an exception comes to for a user, in one line; None where it is a fault of ours."""
    if isinstance(error, StreamgaugeError):
        return str(error)
    if out_of_memory(error):
        return (
            f"out of memory ({first_line(error)}). Give it more memory, or lower batch sizes. "
            f"{KEPT}"
        )
    if isinstance(error, RuntimeError | BlockingIOError) and re.search(
        "start new thread|Resource temporarily unavailable", str(error)
    ):
        return (
            "the system starts no more threads or processes. Raise their limit (ulimit -u, the "
            f"container's pids) or run fewer jobs at once. {KEPT}"
        )
    if isinstance(error, KeyboardInterrupt):
        return f"{str(error) or 'interrupted'}. {KEPT}"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}. {remedy_of(error)}. {KEPT}"
    if type(error).__name__ == "PanicException":  # of a library in Rust; no Exception
        return (
            f"a library gave up on what it was given ({first_line(error)}). Look at the files "
            f"that the lines above name. {KEPT}"
        )
    return None


def tell(error: BaseException, prefix: str) -> int:
    """Say on stderr what `line_of` says; with a traceback in front where it is a fault of ours.

    Returns:
        The exit status: `INTERRUPTED`, else 1.
    """
    said = line_of(error)
    with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
        if said is None:
            traceback.print_exception(error)
        print(f"{prefix}: {said or _OURS}", file=sys.stderr, flush=True)
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1


def at_once(prefix: str, log: os.PathLike | str | None = None) -> None:
    """For a program's start: whatever ends it while it imports its libraries ends in one line.

    An interrupt then ends the process where it stands: raised amid an import it could be taken
    for a fault of the library, and nothing has been begun that would be tidied up.

    Args:
        prefix: in front of the line.
        log: a file that gets the line too.
    """

    def told(kind: type[BaseException], error: BaseException, _) -> int:
        status = tell(error, prefix)
        with contextlib.suppress(OSError):
            if log:
                with open(log, "a", encoding="utf-8") as file:
                    print(f"{prefix}: {line_of(error) or repr(error)}", file=file)
        return status

    def stop(number: int, _: FrameType | None) -> None:
        os._exit(told(KeyboardInterrupt, KeyboardInterrupt(_named(number)), None))

    sys.excepthook = told
    _handle(stop)


def by_raising() -> None:
    """From here on an interrupt is an exception, so that what is under way is tidied up."""

    def stop(number: int, _: FrameType | None) -> None:
        raise KeyboardInterrupt(_named(number))

    _handle(stop)


def _handle(stop) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        # ignored by whoever started this, as nohup and shells in the background do
        if signal.getsignal(number) is not signal.SIG_IGN:
            with contextlib.suppress(ValueError):  # not the main thread: its handlers stay
                signal.signal(number, stop)


def _named(number: int) -> str:
    return "interrupted" if number == signal.SIGINT else "stopped by a signal (SIGTERM)"


def _no_files_left(path: os.PathLike | str | None) -> bool:
    try:
        found = os.statvfs(os.path.dirname(os.path.abspath(path or ".")))
    except OSError:
        return False
    return found.f_files > 0 and not found.f_favail and found.f_bavail > 0
