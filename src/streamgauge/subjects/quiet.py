"""Other libraries' output, waits and errors, made fit for a log."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from streamgauge.errors import StreamgaugeError


@contextmanager
def busy(label: str, doing: str, every: float = 3.0) -> Iterator[None]:
    """Say what is being done, and that it still is, while a library works in silence.

    Args:
        label: what it is done for.
        doing: what is done.
        every: seconds between lines.
    """
    start, over = time.monotonic(), threading.Event()

    def say(text: str) -> None:
        print(f"[{label}] {text}", file=sys.stderr, flush=True)

    def remind() -> None:
        while not over.wait(every):
            say(f"{doing}: {time.monotonic() - start:.0f} s so far")

    say(doing)
    thread = threading.Thread(target=remind, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' bars and advice out of the log, for as long as this lasts."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def one_line(where: str, problem: str) -> Iterator[None]:
    """Turn whatever a library raises about a user's files into one readable line."""
    try:
        yield
    except StreamgaugeError:
        raise
    except Exception as error:  # hostile files make libraries raise anything, TypeError included
        raise StreamgaugeError(f"{problem} ({first_line(error)})", where=where) from error


def first_line(error: BaseException) -> str:
    """What an exception says, as far as it fits into a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".: ") if lines else type(error).__name__
