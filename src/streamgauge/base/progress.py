"""Progress lines, with a rate and the time left where they are known; for terminals and logs."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Progress:
    """Report how far a piece of work is, at most once every few seconds.

    Lines rather than a redrawn bar: jobs run side by side and are logged to files.

    Args:
        total: amount of work, in `unit`.
        unit: what is counted, e.g. ``"tokens"``.
        label: what is being done, e.g. ``"harvest L10 train"``.
        done: work already finished by an earlier attempt; not counted in the rate.
        every: seconds between lines.
    """

    def __init__(self, total: int, unit: str, label: str, done: int = 0, every: float = 2.0):
        self.total, self.unit, self.label, self.every = total, unit, label, every
        self.done = self.before = done
        self.started = self.printed = time.monotonic()
        if done:
            self._line(f"resuming at {done:,} of {total:,} {unit}")

    def update(self, n: int, **facts) -> None:
        """Count `n` more units done; `facts` are shown behind the line."""
        self.done += n
        now = time.monotonic()
        if now - self.printed >= self.every and self.done < self.total:
            self.printed = now
            rate = self.rate
            left = (self.total - self.done) / rate if rate else 0.0
            shown = "".join(f"  {k} {_short(v)}" for k, v in facts.items())
            self._line(
                f"{100 * self.done // self.total:3d} %  {self.done:,}/{self.total:,} {self.unit}"
                f"  {rate:,.0f} {self.unit}/s  {_clock(left)} left{shown}"
            )

    @property
    def rate(self) -> float:
        """Units a second since this attempt began."""
        seconds = time.monotonic() - self.started
        return (self.done - self.before) / seconds if seconds > 0 else 0.0

    def close(self, **facts) -> None:
        """Print the closing line."""
        seconds = time.monotonic() - self.started
        shown = "".join(f"  {k} {_short(v)}" for k, v in facts.items())
        self._line(
            f"done  {self.done:,} {self.unit}  {self.rate:,.0f} {self.unit}/s"
            f"  {_clock(seconds)}{shown}"
        )

    def _line(self, text: str) -> None:
        print(f"[{self.label}] {text}", file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _short(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


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
