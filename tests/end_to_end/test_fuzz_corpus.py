"""Every input that ever found a fault, replayed: one line, no program run, seconds, little memory.

`tests/fuzz_corpus` holds the small ones; what is no file, or too large for one, is made here.
Configurations that found faults of planning alone are in `test_fuzz`, whose messages they name.
"""

import json
import os
import subprocess
import sys

import pytest

from pipeline import ROOT

CORPUS = ROOT / "tests/fuzz_corpus"
MADE = {
    "pipe.yaml": os.mkfifo,
    "device.yaml": lambda path: path.symlink_to("/dev/zero"),
    "comments.yaml": lambda path: path.write_text("# x\n" * 12_000_000),
    "pipe.csv": os.mkfifo,
    "device.csv": lambda path: path.symlink_to("/dev/zero"),
    "pipe.parquet": os.mkfifo,
    "sparse.csv": lambda path: path.touch() or os.truncate(path, 1 << 40),
}
DRIVER = """
import contextlib, io, json, resource, sys, time
from streamgauge.cli.main import main
import pandas, pyarrow.parquet, torch, safetensors, streamgauge.studies.proxy_gap
for path in sys.argv[1:]:
    words = {"yaml": ["estimate", "--configfile", path], "csv": ["compare", path, "--out", "out"]}
    said, start = io.StringIO(), time.monotonic()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = main(words.get(path.rsplit(".", 1)[1], ["inspect", path]))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps([status, said.getvalue(), time.monotonic() - start, grown >> 10]))
"""


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for name, make in MADE.items():
        make(folder / name)
    paths = [*sorted(CORPUS.iterdir()), *(folder / name for name in MADE)]
    words = [sys.executable, "-c", DRIVER, *map(str, paths)]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not (folder / "run").exists() and not (folder / "out").exists()
    lines = map(json.loads, done.stdout.splitlines())
    return dict(zip((path.name for path in paths), lines, strict=True))


@pytest.mark.parametrize("name", [*sorted(path.name for path in CORPUS.iterdir()), *MADE])
def test_what_once_found_a_fault_is_one_line(ends, name):
    status, said, seconds, mib = ends[name]
    assert status in (1, 2), said
    assert said.startswith("streamgauge: ") and said.count("\n") == 1 and said.endswith("\n")
    assert "Traceback" not in said and len(said) < 1200 and said[:-1].isprintable(), said
    assert name in said or "config.yaml" in said or "grid" in said, said
    assert seconds < 30 and mib < 400
