"""Who writes what below one folder of results: any number of runs, in any number of checkouts.

Whoever is about to write leaves a claim, ``results/.runs/{kind}-{32 hex digits}/claim.json``: who
it is, since when, and which artifacts. A ``run`` is Snakemake with all it will make, a ``job`` one
artifact. Jobs of a run that was killed live on: runs wait for runs and such jobs, jobs for jobs.

Order is kept by tickets, as at a baker's: with its claim in place, a newcomer takes a number
above all that it sees, and waits for every overlapping claim with a smaller one, or none yet. No
file is written by two, none is locked, and one of a dead process can be removed by anybody. It
needs only that a folder lists what was put there before, as network file systems do.

A dead process is known at once on its own machine. Elsewhere its claim stays quiet: a living
process gives the file a new time every few seconds, and only *that* it changes counts, over what
the waiting process has slept. No clock is compared with another.
"""

import atexit
import contextlib
import datetime
import json
import os
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from streamgauge.artifacts import claim_file, processes
from streamgauge.artifacts.claim_file import Other
from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.wording import named

FOLDER = ".runs"
#: In the environment of jobs: the run that started them.
RUN = "STREAMGAUGE_RUN"
BEAT, QUIET = 10.0, 120.0  # seconds between two signs of life, and without any until taken for dead
_SOON, _LATER, _WATCH = 0.05, 2.0, 0.5  # seconds between two looks
_SILENT, _AGAIN = 0.5, 300.0  # seconds of waiting before the first line, and between two


class Claim:
    """That this process writes some artifacts; see `acquire`.

    Attributes:
        id: names this claim.
        waited: whether it had to wait for another.
    """

    def __init__(self, results: Path | str, kind: str, writes: Iterable[str], beat, quiet):
        self._results, self._quiet, self._beat = str(results), quiet, beat
        self.id, self.waited = f"{kind}-{uuid.uuid4().hex}", False
        self._who = processes.myself() | {"run": os.environ.get(RUN, "")}
        self._since = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
        self._writes, self._reads, self._narrowed = frozenset(writes), frozenset(), False
        self._ticket: int | None = None
        self._still: dict[str, tuple[tuple, float]] = {}
        self._ended = threading.Event()
        # what is meant is where a link points, and stays so wherever this process goes
        self._folder = Path(os.path.realpath(results)) / FOLDER
        self._path = self._folder / self.id
        atexit.register(self.release)
        try:
            with _writing(self._results):
                self._make()
            self._leave()
        except BaseException:
            self.release()
            raise
        threading.Thread(target=self._show_life, daemon=True).start()

    def narrow(self, writes: Iterable[str], reads: Iterable[str] = ()) -> None:
        """Claim what is really written, and say what is read, once that is known.

        Args:
            writes: what is written; what is more than was claimed must not be claimed by others.
            reads: what is read and not written.

        Raises:
            StreamgaugeError: another run reads or writes what this one would write, or writes what
                this one would read; or the claim cannot be written.
        """
        self._writes, self._narrowed = frozenset(writes), True
        self._reads = frozenset(reads) - self._writes
        self._leave()
        seen: dict[str, tuple] = {}
        # of two that narrow at once, the second to write sees the first
        while clash := next(self._clashes(_WATCH if seen else 0.0), None):
            other, name = clash
            # one that may be dead, elsewhere, is watched until it moves or is taken for dead
            if processes.lives(other.who) or seen.setdefault(other.id, other.stamp) != other.stamp:
                raise StreamgaugeError(
                    f"is in use by {claim_file.words(other)}",
                    where=os.path.join(self._results, named(name)),
                    remedy="Run again when that has ended.",
                )
            time.sleep(_WATCH)

    def release(self) -> None:
        """Give up the claim, and clear away what dead processes have left."""
        if self._ended.is_set() or os.getpid() != self._who["pid"]:  # a fork has none
            return
        self._ended.set()
        atexit.unregister(self.release)
        claim_file.remove(self._path)
        with contextlib.suppress(OSError):
            list(self._living(0.0))
            self._folder.rmdir()

    @property
    def _kind(self) -> str:
        return self.id.partition("-")[0]

    def _enter(self, say: Callable[[str], None]) -> None:
        """Take a ticket, and wait until nobody who overlaps is ahead."""
        self._ticket = 1 + max((other.ticket or 0 for other in self._others()), default=0)
        self._leave()
        pause, slept, told, to = 0.0, 0.0, 0.0, None
        while ahead := self._ahead(pause):
            self.waited |= any(other.who for other in ahead)
            first = min(ahead, key=lambda other: (other.ticket or 0, other.id))
            if slept >= _SILENT and (first.id != to or slept - told >= _AGAIN):
                told, to = slept, first.id
                say(self._waiting_for(first))
            pause = min(max(_SOON, pause * 1.5), _LATER)
            time.sleep(pause)
            slept += pause

    def _ahead(self, slept: float) -> list[Other]:
        return [
            other
            for other in self._living(slept)
            if other.overlaps(self._writes)
            # a job that overlaps with a run about to plan belongs to none that is alive
            and (
                other.kind != self._kind
                or not other.ticket
                or (other.ticket, other.id) < (self._ticket, self.id)
            )
        ]

    def _clashes(self, slept: float) -> Iterator[tuple[Other, str]]:
        for other in self._living(slept):
            if other.kind == self._kind and other.narrowed:
                both = other.writes & (self._writes | self._reads) | other.reads & self._writes
                if both:
                    yield other, min(both)

    def _others(self) -> Iterator[Other]:
        # to a job, the long claims of runs mean nothing
        kinds = ("run-", "job-") if self._kind == "run" else ("job-",)
        for name in sorted(os.listdir(self._folder)):
            if name != self.id and name.startswith(kinds):
                other = claim_file.read(self._folder / name)
                if other and not other.is_of(self._who):
                    yield other

    def _living(self, slept: float) -> Iterator[Other]:
        """The claims of the living, as far as one can tell having `slept` since the last look."""
        for other in self._others():
            alive = processes.lives(other.who) if other.who else None
            if alive is None and self._of_own_run(other):
                alive = False
            if alive is None:
                stamp, still = self._still.get(other.id, (None, 0.0))
                still = still + slept if stamp == other.stamp else 0.0
                self._still[other.id] = (other.stamp, still)
                alive = still < self._quiet
            if alive:
                yield other
            else:
                claim_file.remove(other.path)

    def _of_own_run(self, other: Other) -> bool:
        """Whether it is a job of this run that has ended, on another machine.

        A run makes an artifact in one job at a time, and when it ends it has no jobs left.
        """
        if other.kind != "job" or not other.who or not other.who.get("run"):
            return False
        if self._kind == "run":
            return self._ended.is_set() and other.who["run"] == self.id
        return other.who["run"] == self._who["run"] and other.overlaps(self._writes)

    def _waiting_for(self, other: Other) -> str:
        # an artifact rather than the record of a study
        what = sorted(other.writes & self._writes, key=lambda name: (name.count("/study."), name))
        more = f" and {len(what) - 1} more" if len(what) > 1 else ""
        what = os.path.join(self._results, named(what[0])) + more if what else str(other.path)
        return f"waiting for {what}: {claim_file.words(other)}; Ctrl-C ends only the waiting"

    # --- writing ----------------------------------------------------------------------------
    def _make(self) -> None:
        while True:
            self._folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # the last to leave has removed it
                return self._path.mkdir()

    def _leave(self) -> None:
        record = {
            "who": self._who,
            "since": self._since,
            "ticket": self._ticket,
            "narrowed": self._narrowed,
            "writes": sorted(self._writes),
            "reads": sorted(self._reads),
        }
        new = self._path / "new"
        with _writing(self._results):
            new.write_text(json.dumps(record))
            new.replace(self._path / claim_file.NAME)

    def _show_life(self) -> None:
        while not self._ended.wait(self._beat):
            try:
                before = os.stat(self._path / claim_file.NAME).st_mtime_ns
                # later than before, whatever has become of the clock; some count 2 seconds
                after = max(time.time_ns(), before + 2 * 10**9)
                os.utime(self._path / claim_file.NAME, ns=(after, after))
            except FileNotFoundError:
                if self._kind == "run" and not self._ended.is_set():
                    self._end()
                return
            except OSError:
                pass  # a server that is away for a while: all wait for it

    def _end(self) -> None:
        """Stop this process as a kill would: another may hold what it would clear away."""
        _to_stderr(
            f"{self._path} is gone: this run was stopped for so long that another took it for dead,"
            " or somebody has removed the folder. It ends here and touches nothing; snakemake"
            " --unlock, then run again."
        )
        os._exit(1)


def acquire(
    results: Path | str,
    writes: Iterable[str],
    kind: str = "run",
    say: Callable[[str], None] | None = None,
    *,
    beat: float = BEAT,
    quiet: float | None = None,
) -> Claim:
    """Claim artifacts, once nobody else holds one of them.

    Args:
        results: the folder; made where it is missing.
        writes: names of artifacts: paths of their manifests, relative to `results`.
        kind: ``run`` or ``job``.
        say: takes a line about who is waited for, now and then; stderr by default.
        beat: seconds between two signs of life.
        quiet: seconds without one after which a process on another machine counts as dead, and so
            does a claim that cannot be read (`QUIET`).

    Returns:
        The claim; released when the process ends, if not before.

    Raises:
        StreamgaugeError: `results` cannot be written.
    """
    claim = Claim(results, kind, writes, beat, QUIET if quiet is None else quiet)
    try:
        claim._enter(say or _to_stderr)
    except BaseException:
        claim.release()
        raise
    return claim


@contextlib.contextmanager
def held(path: Path | str) -> Iterator[bool]:
    """Be the only job that makes an artifact; gives whether another has been waited for.

    Args:
        path: of its manifest, or of the receipt of a part of it.

    Raises:
        StreamgaugeError: the folder cannot be written.
    """
    path = Path(path)
    top = path.parents[-2] if path.parts[0] == "results" else path.parent
    claim = acquire(top, [path.relative_to(top).as_posix()], "job")
    try:
        yield claim.waited
    finally:
        claim.release()


def writable(folder: Path | str) -> None:
    """See whether a folder can be written, or made where it is missing, before that is needed.

    Raises:
        StreamgaugeError: it cannot.
    """
    folder = Path(folder)
    with _writing(str(folder)):
        with tempfile.TemporaryFile(dir=folder if os.path.lexists(folder) else folder.parent):
            pass


@contextlib.contextmanager
def _writing(folder: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StreamgaugeError(
            f"cannot be written ({error.strerror or error})",
            where=folder,
            remedy="Every run writes there: make it writable, with space left, or let it be a link"
            " to such a folder, and run again.",
        ) from error


def _to_stderr(line: str) -> None:
    print(f"streamgauge: {line}", file=sys.stderr, flush=True)
