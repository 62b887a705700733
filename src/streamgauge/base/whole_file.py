"""Files that are whole or not there: for any number of writers, any of which may be killed.

A file is written under its own name in a hidden folder of this writer alone, beside its place, and
renamed. Two writers of one file never meet, and a library that makes temporary files of its own
makes them in that folder. A killed writer leaves its folder behind; whoever finishes the file next
removes it. A live writer whose folder went that way, or together with all the work around it,
writes again.

After a power cut a file may have any earlier content unless it was flushed, and a name may be there
or not unless its folder was. So contents are flushed before they get their name, and the name is
flushed before anything relies on it.
"""

import contextlib
import errno
import glob
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from streamgauge.base.errors import StreamgaugeError

_HEX = "[0-9a-f]" * 32
# of file systems that do not flush folders, and of folders that others do not let us open
_UNFLUSHED = {
    errno.EINVAL,
    errno.ENOTSUP,
    errno.EBADF,
    errno.EISDIR,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
}


def flush(*paths: Path | str) -> None:
    """Have on disk what files hold, and which names lie in folders (not below them).

    Where a file system does not flush folders, it is left to it when their names are on disk.

    Raises:
        OSError: there is no such file or folder, or it cannot be written.
    """
    for path in paths:
        try:
            opened = os.open(path, os.O_RDONLY)
            try:
                os.fsync(opened)
            finally:
                os.close(opened)
        except OSError as error:
            if error.errno not in _UNFLUSHED or not os.path.isdir(path):
                raise


def replace(path: Path | str, write: Callable[[Path], object]) -> None:
    """Let `write` write a file, and only then let it appear as `path`, on disk and whole.

    Args:
        path: of the file; folders above it are made.
        write: called with the path to write to, which has the same name; called again when
            another process, having finished, removed the folder that path lies in.

    Raises:
        StreamgaugeError: it cannot be written; what lay at `path` stays.
    """
    path = Path(path)
    try:
        while not _written(path, write):
            pass
        # gone where another process, having finished, cleared all the work away
        with contextlib.suppress(FileNotFoundError):
            flush(path.parent)
    except OSError as error:
        raise StreamgaugeError(
            f"cannot be written ({error})",
            where=str(path),
            remedy="Check free space and permissions; a second start continues the work.",
        ) from error
    remove_leftovers(path)


def _written(path: Path, write: Callable[[Path], object]) -> bool:
    """Write once; False when another process, having finished, removed our folder."""
    with beside(path) as temporary:
        try:
            write(temporary)
            flush(temporary)
            os.replace(temporary, path)
        except Exception:
            if temporary.parent.exists():
                raise
            return False
    return True


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A path of the same name in a new folder ``.{name}.{32 hex digits}.tmp`` beside `path`.

    The folder and all that is left in it are removed at the end.
    """
    folder = _folder(path)
    folder.mkdir(parents=True)
    try:
        yield folder / path.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(path: Path) -> None:
    """Remove the folders that other writers of `path` left beside it; call once it is whole."""
    for folder in path.parent.glob(f".{glob.escape(path.name)}.{_HEX}.tmp"):
        taken = _folder(path)
        # renamed first: to a writer that is alive after all, it is gone at once and altogether
        with contextlib.suppress(OSError):
            folder.rename(taken)
            shutil.rmtree(taken)


def _folder(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
