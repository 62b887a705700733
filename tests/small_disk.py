"""A file system of a few MiB, to be filled."""

import contextlib
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
