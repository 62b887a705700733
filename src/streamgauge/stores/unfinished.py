"""Where unfinished work lies, and what an operating system's refusal to write there means.

A scratch directory's name carries what it was begun for: jobs for different specs never touch each
other's work, and jobs that share one may start together.
"""

import contextlib
import hashlib
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from streamgauge.base import whole_file
from streamgauge.base.ends import remedy_of
from streamgauge.base.errors import StreamgaugeError

SPEC = "spec.json"


@contextlib.contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Turn an operating system's refusal to write below `path` into one readable error."""
    try:
        yield
    except OSError as error:
        raise StreamgaugeError(
            f"cannot write: {error.strerror or error}",
            where=str(error.filename or path),
            remedy=f"{remedy_of(error, path)}; what was already written below {path} is kept "
            "and resumed.",
        ) from error


def scratch(final: Path | str, spec: str) -> Path:
    """The directory in which `final` is being made: ``.{name}.{hash of spec}.partial`` beside it.

    An earlier attempt's directory for the same `spec` (the canonical JSON string of the artifact)
    is gone on with. Where there is none, those of other specs are removed. Any number of processes
    may call this at once.

    Raises:
        StreamgaugeError: the directory cannot be made.
    """
    final = Path(final)
    digest = hashlib.sha256(spec.encode()).hexdigest()[:8]
    path = final.with_name(f".{final.name}.{digest}.partial")
    with writing(path):
        if not path.is_dir():
            remove_siblings(final, path)
            # appears with its spec in it, for people who look what lies there
            begun = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
            begun.mkdir(parents=True)
            try:
                (begun / SPEC).write_text(spec)
                whole_file.flush(begun / SPEC, begun)
                begun.rename(path)
            except OSError:
                shutil.rmtree(begun, ignore_errors=True)
                if not path.is_dir():
                    raise
        # or all that is going to be kept there were lost with a folder above it
        whole_file.flush(*path.parents)
    return path


@contextlib.contextmanager
def working(final: Path | str, spec: str) -> Iterator[Path]:
    """A `scratch` directory for work that leaves no store: removed once the work has succeeded.

    A killed job's process may live on and work in the same directory. Whoever is done first
    removes it; to the other it is gone at once, never half there.
    """
    work = scratch(final, spec)
    yield work
    gone = work.with_name(f"{work.name}.{uuid.uuid4().hex}")
    with contextlib.suppress(FileNotFoundError):
        work.rename(gone)
    remove_siblings(Path(final))


def is_scratch(path: Path) -> bool:
    """Whether a directory's name says that it holds unfinished work."""
    return re.fullmatch(r"\..+\.[0-9a-f]{8}\.partial", path.name) is not None


def remove_siblings(final: Path, keep: Path | None = None) -> None:
    """Remove the scratch directories of `final`, but `keep` and what is on its way to be `keep`.

    What cannot be removed stays: it is in nobody's way.
    """
    name = re.compile(rf"\.{re.escape(final.name)}\.[0-9a-f]{{8}}\.partial(\.[0-9a-f]{{32}})?")
    for sibling in final.parent.glob(".*.partial*"):
        # a process that starts together with this one may be about to rename its own
        kept = keep and sibling.name.startswith(keep.name)
        if name.fullmatch(sibling.name) and not kept:
            shutil.rmtree(sibling, ignore_errors=True)
