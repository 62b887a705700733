"""That a part of a store is written: a directory beside the store, with hard links to its shards.

Whoever runs the jobs removes the outputs of a job that he did not see end, such as those of a
gather that committed a moment after his own death, or on another machine. The links keep the bytes
until he has seen it, for no space on disk: a gather that is begun again starts from them.
"""

import errno
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

from streamgauge.base import whole_file
from streamgauge.stores import shards
from streamgauge.stores.unfinished import SPEC, writing
from streamgauge.stores.zarr_store import Store

# of file systems without hard links, and with all that a file can have
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK}


def leave(receipt: Path | str, scratch: Path | str, part: tuple[int, int]) -> None:
    """Say that a part is written, in a directory that is whole or not there.

    Where the file system has no hard links the directory stays without them: it says the same, but
    nothing can be restored from it.

    Args:
        receipt: the directory to make; one that lies there is replaced.
        scratch: the directory of the store.
        part: (i, n), the i-th of n parts, counted from 0.

    Raises:
        StreamgaugeError: there is no readable store in `scratch`, or the directory cannot be made.
    """
    receipt, scratch = Path(receipt), Path(scratch)
    store = Store(scratch)
    files = [scratch / SPEC, *scratch.glob("**/zarr.json")]
    for name in store.names:
        files += [store.file(name, i) for i in shards.of_part(part, store.n_shards(name))]
    begun = receipt.with_name(f"{receipt.name}.{uuid.uuid4().hex}")
    with writing(receipt):
        withdraw(receipt)
        try:
            begun.mkdir(parents=True)
            names = [file.relative_to(scratch) for file in files if file.exists()]
            for name in names:
                _link(scratch / name, begun / name)
            folders = {folder for name in names for folder in name.parents}
            # where there are no links, the names in the store alone say that its shards are there
            whole_file.flush(*(top / folder for top in (scratch, begun) for folder in folders))
            begun.rename(receipt)
        except OSError:
            shutil.rmtree(begun, ignore_errors=True)
            if not receipt.is_dir():  # another process was first
                raise
        whole_file.flush(receipt.parent)


def restore(scratch: Path | str, receipts: Sequence[Path | str]) -> None:
    """Link back what receipts hold and the store in `scratch` lacks; of another spec, nothing.

    Raises:
        StreamgaugeError: `scratch` cannot be written.
    """
    scratch = Path(scratch)
    spec = scratch / SPEC
    for receipt in map(Path, receipts):
        theirs = receipt / SPEC
        if not (spec.exists() and theirs.exists() and theirs.read_bytes() == spec.read_bytes()):
            continue
        files = [receipt / "zarr.json", *receipt.glob("*/**/*")]
        with writing(scratch):
            for file in filter(Path.is_file, files):
                target = scratch / file.relative_to(receipt)
                if not target.exists():
                    _link(file, target)


def withdraw(receipt: Path | str) -> None:
    """Say no longer that a part is written."""
    shutil.rmtree(receipt, ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileExistsError:
        pass  # another process was first
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
