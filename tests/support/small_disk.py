"""A file system of a few MiB, to be filled."""

import contextlib
import os
import subprocess

import pytest


@contextlib.contextmanager
def mounted(folder, mib):
    """Mount one at `folder`, which is made; skips the test for users who may not."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)], capture_output=True
    )
    if made.returncode:
        pytest.skip("mounting a file system needs privileges this user lacks")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def enlarge(folder, mib):
    """Give it another size; what it holds stays."""
    subprocess.run(["mount", "-o", f"remount,size={mib}m", str(folder)], check=True)


def fill(folder, free=0):
    """Leave at most `free` bytes; gives the file to remove."""
    filler = folder / "filler"
    with pytest.raises(OSError), open(filler, "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    os.truncate(filler, filler.stat().st_size - free)
    return filler
