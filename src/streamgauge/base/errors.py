"""The one exception a user is meant to read."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

# torch on CPU and GPU, C++ in libraries, the dynamic linker
_NO_MEMORY = (
    "can.?t allocate memory|cannot allocate memory|bad_alloc|out of memory|ALLOC_FAILED"
    "|failed to map segment"
)


class StreamgaugeError(Exception):
    """Something a user can put right: what is wrong, where, and what to do about it.

    Args:
        problem: one sentence without a final stop, e.g. ``"layer 40 does not exist"``.
        where: the file, config key or artifact concerned.
        remedy: what to do, as a sentence.
    """

    def __init__(self, problem: str, *, where: str | None = None, remedy: str | None = None):
        self.problem, self.where, self.remedy = problem, where, remedy
        text = f"{where}: {problem}." if where else f"{problem}."
        super().__init__(f"{text} {remedy}" if remedy else text)

    def __reduce__(self):
        # keyword-only arguments survive a trip between processes
        return (_rebuild, (self.problem, self.where, self.remedy))


def _rebuild(problem, where, remedy):
    return StreamgaugeError(problem, where=where, remedy=remedy)


@contextmanager
def one_line(where: str, problem: str) -> Iterator[None]:
    """Turn whatever a library raises about a user's files into one readable line."""
    try:
        yield
    except StreamgaugeError:
        raise
    except Exception as error:  # hostile files make libraries raise anything, TypeError included
        if out_of_memory(error):
            raise  # which is no fault of the files
        raise StreamgaugeError(f"{problem} ({first_line(error)})", where=where) from error


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that there was no memory, in the words of whatever library."""
    if isinstance(error, StreamgaugeError):
        return False
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or re.search(_NO_MEMORY, str(error), re.IGNORECASE) is not None
    )


def first_line(error: BaseException) -> str:
    """What an exception says, as far as it fits into a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".: ") if lines else type(error).__name__
