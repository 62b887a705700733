"""Jobs in which the n-th call fails, for every n: a fork for each, from a process that has imported
all that the job imports. Run as a script, with `failing.c` preloaded."""

import contextlib
import ctypes
import errno
import importlib
import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import killing
from streamgauge.artifacts import manifest

FILES, MEMORY = 1, 2
# what a part began and could not name; the gather removes it
BEGUN = re.compile(r"\.part-\d+-of-\d+\.[0-9a-f]{32}|\.partial\.[0-9a-f]{32}")
SECONDS = 60  # in which a job has to end
# a disk that is full stays full; a bad block or too many open files pass
ERRORS = [(errno.ENOSPC, True), (errno.EIO, False), (errno.EMFILE, False)]
_calls = ctypes.CDLL(None)


def contents(folder: Path) -> dict:
    """Path below the results -> bytes of every file; None for a folder."""
    results = folder / "results"
    return {
        str(path.relative_to(results)): None if path.is_dir() else path.read_bytes()
        for path in sorted(results.rglob("*"))
        if not BEGUN.search(str(path.relative_to(results))) and path.name not in manifest.IGNORED
    }


def fork(folder: Path, job: dict, kind=0, n=0, error=0, lasting=False, imported=None) -> tuple:
    """Run a job in a fork of this process: (exit status, calls counted)."""
    out, into = os.pipe()
    child = os.fork()
    if not child:
        os.close(out)
        os._exit(_run(folder, job, (kind, n, error, lasting), into, imported))
    os.close(into)
    deadline = time.monotonic() + SECONDS
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            ended = os.waitpid(child, 0)
            break
        time.sleep(0.002)
    counted = os.read(out, 20)
    os.close(out)
    return os.waitstatus_to_exitcode(ended[1]), int(counted or 0)


def _run(folder: Path, job: dict, fault: tuple, into: int, imported: Path | None) -> int:
    before, code = set(sys.modules), 1
    says = os.open(folder / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for i in (1, 2):
        os.dup2(says, i)
    try:
        _calls.fail_arm(*fault)
        killing.run_few(folder, job)
        code = 0
    except SystemExit as end:
        code = 1 if end.code else 0
    except BaseException as error:
        with contextlib.suppress(BaseException):
            print("Traceback outside of the job:", repr(error), flush=True)
    finally:
        count = _calls.fail_count()
        _calls.fail_arm(0, 0, 0, 0)
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    os.write(into, str(count).encode())
    if imported:
        imported.write_text(" ".join(sys.modules.keys() - before))
    return code


def how(code: int, said: str) -> str:
    """How a job ended, as far as a user sees."""
    if code <= 0:
        return "well" if not code else signal.Signals(-code).name
    if "Traceback" in said:
        last = [line for line in said.splitlines() if line and not line.startswith(" ")][-1]
        return f"traceback: {last[:100]}"
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    return "one line" if len(lines) == 1 else f"{len(lines)} lines"


def attempt(base: Path, job: dict, kind: int, n: int, expected: dict, known: list) -> dict:
    """One try: what happened, and what is wrong with what it left.

    Args:
        expected: what a job that meets no fault leaves.
        known: what failed jobs have left from which another ended well; it is added to.
    """
    folder = base.with_name("attempt")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder, symlinks=True)
    error, lasting = ERRORS[n % 3] if kind == FILES else (errno.ENOMEM, False)
    code, count = fork(folder, job, kind, n, error, lasting)
    end, wrong = how(code, (folder / "said.txt").read_text(errors="replace")), []
    for path in (folder / "results").rglob("*.json"):
        if not path.parent.name.startswith(".") and "/model/" not in str(path):
            with contextlib.suppress(ValueError):
                if manifest.is_manifest(json.loads(path.read_text())):
                    wrong += manifest.problems(path)
    if code:
        killing.remove_outputs(folder, job)
        left = contents(folder)
        if left in known:
            return {"n": n, "code": code, "end": end, "wrong": wrong, "met": count >= n}
        if fork(folder, job)[0]:
            wrong.append("does not end when run again: " + (folder / "said.txt").read_text()[-500:])
    made = contents(folder)
    wrong += [f"{name} differs" for name in made if made[name] != expected.get(name)]
    wrong += [f"{name} is lacking" for name in expected if name not in made]
    if code and not wrong:
        known.append(left)
    return {"n": n, "code": code, "end": end, "wrong": wrong, "met": count >= n}


def main(base: str, job: str, kind: str, tries: str, seed: str) -> None:
    """Print a line of JSON for every try, until the job ends without meeting the fault.

    Args:
        tries: about so many, evenly spread over the calls; 0 for one at every call.
        seed: which of the calls that makes, so that several runs add up to every call.
    """
    base, job, kind, tries = Path(base), json.loads(job), int(kind), int(tries)
    warm, names = base.with_name("warm"), base.with_name("names")
    for _ in range(2):  # the second is what a job does where all is imported
        shutil.rmtree(warm, ignore_errors=True)
        shutil.copytree(base, warm, symlinks=True)
        code, calls = fork(warm, job, kind, imported=names)
        assert not code, (warm / "said.txt").read_text()
        for name in names.read_text().split():
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    expected, known = contents(warm), []
    step = max(1, calls // tries) if tries else 1
    n = 1 + int(seed) % step
    while True:
        found = attempt(base, job, kind, n, expected, known)
        print(json.dumps(found), flush=True)
        if not found["met"]:
            return
        n += step


if __name__ == "__main__":
    main(*sys.argv[1:])
