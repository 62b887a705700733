"""Run scripts of the workflow as Snakemake runs them, a process each, but without starting anew.

What a script imports takes longer than many a script. `Worker` keeps a process that has imported
it, with the environment Snakemake gives to jobs of so many threads, and runs every script in a fork
of that process. A script that may use a GPU gets a process that has imported nothing: a fork cannot
use CUDA that its parent has touched.
"""

import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from streamgauge.artifacts.job import Names

# numerical libraries read these when they are imported
_THREADS = ("OMP", "GOTO", "OPENBLAS", "MKL", "NUMEXPR")


class Worker:
    """Runs scripts, one at a time.

    Use as a context manager: the processes end with it, and with the process that made it.
    """

    def __init__(self):
        self._servers: dict[tuple[int, bool], subprocess.Popen] = {}

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_) -> None:
        for server in self._servers.values():
            server.stdin.close()
            server.wait()

    def run(self, script: str, job: Mapping[str, Any], log: Path) -> int:
        """Run a script; what it says, and a traceback of what goes wrong, is appended to `log`.

        Args:
            script: its path.
            job: ``input``, ``output``, ``wildcards``, ``params`` and ``resources`` by name, and
                ``threads``: what the script finds in ``snakemake``.
            log: a file in a folder that is there.

        Returns:
            Exit status; negative, the signal that ended it.
        """
        fork = job["resources"].get("device", "cpu") == "cpu"
        server = self._server(job["threads"], fork)
        values = {key: _pairs(value) for key, value in job.items()}
        try:
            _say((str(script), values, str(log), fork), server.stdin)
            return json.loads(server.stdout.readline())
        except (ValueError, OSError):  # an empty line: the server is gone
            return server.wait() or 1

    def _server(self, threads: int, fork: bool) -> subprocess.Popen:
        key = (threads, fork)
        if key not in self._servers or self._servers[key].poll() is not None:
            limits = {f"{name}_NUM_THREADS": str(threads) for name in _THREADS}
            self._servers[key] = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **limits, "VECLIB_MAXIMUM_THREADS": str(threads)},
            )
        return self._servers[key]


def _say(what: Any, to) -> None:
    """Write a line of JSON."""
    to.write(json.dumps(what).encode() + b"\n")
    to.flush()


def _pairs(value: Any) -> Any:
    """A mapping as pairs, because the keys of JSON are text and an output may have a number."""
    return list(value.items()) if isinstance(value, Mapping) else value


def serve() -> None:
    """Answer one `Worker` until it is gone."""
    requests, replies = (os.fdopen(os.dup(i), mode) for i, mode in ((0, "rb"), (1, "wb")))
    quiet = os.open(os.devnull, os.O_RDWR)  # what scripts print is in their logs
    for i in range(3):
        os.dup2(quiet, i)
    while True:
        request = requests.readline()
        if not request:
            return
        script, job, log, fork = json.loads(request)
        with tempfile.TemporaryFile() as imported:
            child = os.fork()
            if not child:
                os._exit(_run(script, job, log, imported))
            status = _wait(child, requests)
            imported.seek(0)
            names = imported.read().decode().split() if fork else ()
        for name in names:  # the next script has them at hand
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        _say(status, replies)


def _wait(child: int, requests) -> int:
    """The exit status of `child`, which ends with whoever asked for it."""
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        # nobody asks for a second thing meanwhile: there is only the end to be read
        if select.select([requests], [], [], 0.02)[0]:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            sys.exit(1)


def _run(script: str, job: Mapping[str, Any], log: str, imported) -> int:
    before = set(sys.modules)
    named = {key: Names(dict(value)) for key, value in job.items() if isinstance(value, list)}
    try:
        runpy.run_path(
            script, {"snakemake": SimpleNamespace(**named, threads=job["threads"], log=[log])}
        )
    except SystemExit as end:
        return 1 if end.code else 0
    except BaseException:
        with open(log, "a") as file:
            traceback.print_exc(file=file)
        return 1
    imported.write(" ".join(sys.modules.keys() - before).encode())
    imported.flush()
    return 0


if __name__ == "__main__":
    serve()
