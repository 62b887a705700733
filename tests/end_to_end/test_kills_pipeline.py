"""A whole study under kill -9: random processes of its jobs, at random moments, all the way."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pytest

import killing
import pipeline

pytestmark = pytest.mark.cluster

# rows enough for stores of several shards, of about 16,384 tokens or as many probe vectors
PROSE = {"context_length": 64, "train_sequences": 520, "eval_sequences": 64}
STUDY = {
    **pipeline.STUDY,
    "corpora": {"prose": {**pipeline.STUDY["corpora"]["prose"], **PROSE}},
    "probes": {"count": 4},
}
SCATTER = {"scatter": {"harvest": 16384, "probes": 2048}}


def create(folder, study):
    folder.mkdir()
    pipeline.create(folder)
    pipeline.prose(folder / "prose.txt", 1200)
    pipeline.write(folder, study)
    return folder


class Killer(threading.Thread):
    """Kills the processes of jobs, about half of them, each at a moment drawn for it.

    Half of the moments are counted from the start of the process, where it still loads its
    libraries, and half from the start of its work, when it opens its log.
    """

    def __init__(self, folder):
        super().__init__(daemon=True)
        self.scripts = f"{folder}/.snakemake/scripts/"
        self.rng = killing.draws(0)
        self.kills, self.at_work, self.over = Counter(), 0, False

    def run(self):
        moments = {}
        while not self.over:
            for pid, rule in self.processes():
                if pid not in moments:
                    chosen, working = self.rng.random() < 0.6, self.rng.random() < 0.5
                    delay = self.rng.uniform(0, 1 if working else 3)
                    moments[pid] = [chosen, working, delay, None]
                chosen, working, delay, since = moments[pid]
                if chosen and since is None and (not working or self.has_log(pid)):
                    moments[pid][3] = since = time.monotonic()
                if chosen and since is not None and time.monotonic() >= since + delay:
                    moments[pid][0] = False
                    working = self.has_log(pid)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        self.kills[rule] += 1
                        self.at_work += working
            time.sleep(0.02)

    def processes(self):
        """Process and rule's script of every job of this study that is running."""
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if len(command) > 1 and command[1].startswith(self.scripts):
                yield int(folder.name), command[1].split(".")[-2]

    def has_log(self, pid):
        try:
            files = [os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            return False
        return any("/logs/" in file for file in files)


def contents(folder):
    """Digest of every file of the results but the study's record, which says how it was run."""
    return {
        str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest()
        for path in (folder / "results").rglob("*")
        if path.is_file() and path.name != "study.json"
    }


def test_a_study_whose_jobs_are_killed_is_the_study_left_alone(tmp_path):
    alone, killed = create(tmp_path / "alone", STUDY), create(tmp_path / "killed", STUDY | SCATTER)
    pipeline.snakemake(alone, timeout=3000)
    killer = Killer(killed)
    killer.start()
    runs = []
    while not runs or runs[-1].returncode:  # what a user does: run it again
        assert len(runs) < 5, runs[-1].stdout[-4000:]
        arguments = ("--retries", "10", "--keep-going")
        runs.append(pipeline.snakemake(killed, *arguments, check=False, timeout=3000))
    killer.over = True
    killer.join()
    said = "".join(run.stdout for run in runs)
    (tmp_path / "output.txt").write_text(said)
    restarted = len(re.findall("^Trying to restart job", said, re.M))
    made, expected = contents(killed), contents(alone)
    print(f"{killer.kills.total()} kills, {killer.at_work} at work; {restarted} restarts")
    print(f"{len(runs)} runs; {len(expected)} files; by script: {killer.kills.most_common()}")
    assert killer.kills.total() >= 30 and restarted >= 25
    assert made == expected
    verify = subprocess.run(
        [sys.executable, "-m", "streamgauge.cli.main", "verify", "--configfile", "study.yaml"],
        cwd=killed,
        env={**os.environ, "PYTHONPATH": str(killed / "src")},
        text=True,
        capture_output=True,
    )
    assert verify.returncode == 0, verify.stdout + verify.stderr
    assert "part 2 of 3" in said
