"""Fixtures that several files share."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
import yaml
from filelock import FileLock
from hypothesis import settings

import lookup
import pipeline

# the same examples on every run
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

# a process that may not keep byte code compiles every library anew: most of a small job's time
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# started in the background, a shell has this process and all below it ignore interrupts
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# files whose studies take minutes: first, so that no worker is left alone with one at the end,
# and in an order in which nobody waits for the study that the first of them makes
LONG = [
    "reruns",
    "crosslingual_study",
    "end_to_end",
    "studies",
    "bad_input",
    "upgrade",
    "extending",
]


def pytest_configure(config):
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # pytest-xdist would start with the most tests


def pytest_collection_modifyitems(items):
    rank = {f"test_{name}": i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory, worker_id):
    """A small study that Snakemake has run to the end; made once, however many workers there are.

    Read it, or take a copy (`finished`); never change it.
    """
    return _once(tmp_path_factory, worker_id, "finished", pipeline.STUDY)


@pytest.fixture(scope="session")
def crosslingual_once(tmp_path_factory, worker_id):
    """The shipped cross-lingual study of both planted models, likewise."""
    study = yaml.safe_load(pipeline.PLANTED.read_text())
    return _once(tmp_path_factory, worker_id, "crosslingual", study, "crosslingual")


def _once(tmp_path_factory, worker_id, name, study, *targets):
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent
    folder = shared / name
    with FileLock(shared / f"{name}.lock"):
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            pipeline.create(folder)
            pipeline.write(folder, study)
            (folder / "done").write_text(pipeline.snakemake(folder, *targets).stdout)
    return folder


@pytest.fixture(scope="module")
def finished(finished_once, tmp_path_factory):
    """A copy of the finished study, file times and all, for one test file to change."""
    folder = tmp_path_factory.mktemp("study") / "copy"
    shutil.copytree(finished_once, folder, symlinks=True)
    return folder


@pytest.fixture(scope="session")
def built_wheel(tmp_path_factory):
    """The wheel of this checkout, built with the build backend that is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", str(folder), str(pipeline.ROOT)], check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """Digest of an uninterrupted harvest of `lookup`."""
    final = tmp_path_factory.mktemp("whole") / "a.zarr"
    lookup.run_whole(final)
    return pipeline.tree_digest(final)


@pytest.fixture(scope="session")
def processes():
    """Starts processes that harvest by `lookup`."""
    return lookup.processes()
