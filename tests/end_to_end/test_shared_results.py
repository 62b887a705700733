"""Two checkouts whose results are one folder, and two real Snakemakes that start as they like."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import killing
import pipeline
import small_disk
import tiny_models
from streamgauge.artifacts import claim_file, claims

TOKENS = "results/tiny/prose/tokens-eval.json"
# a subject, tokens, a part of a store, its gather, a training: every way of writing
SAE = "results/tiny/prose/L01/sae/topk-x4-k2-t1024-mse-seed0/sae.json"


class Run:
    """A Snakemake at work in a checkout."""

    def __init__(self, folder, *targets):
        self.folder, self.log = folder, folder / "said.txt"
        command = [sys.executable, "-m", "snakemake", "--cores", "2", *targets]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [*command, "--configfile", "study.yaml"],
                cwd=folder,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(folder / "src")},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def said(self):
        return self.log.read_text()

    def kill(self):
        """End it and its jobs, where the test ends first."""
        for pid in [self.process.pid, *jobs_of(self.folder)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def has_said(self, text, seconds=600):
        """Wait for a line."""
        end = time.monotonic() + seconds
        while text not in self.said:
            assert time.monotonic() < end and self.process.poll() is None, self.said[-3000:]
            time.sleep(0.01)

    def ends_well(self):
        assert self.process.wait(900) == 0, self.said[-3000:]
        assert "Traceback" not in self.said


def jobs_of(folder):
    """The processes of a checkout's jobs."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if len(words) > 1 and words[1].startswith(f"{folder}/.snakemake/scripts/"):
            found.append(int(process.name))
    return found


@pytest.fixture
def start():
    """Starts a `Run`, which ends with the test."""
    runs = []

    def one(*arguments):
        runs.append(Run(*arguments))
        return runs[-1]

    yield one
    for run in runs:
        run.kill()


def checkouts(folder):
    """Two checkouts of one study, whose results are one folder."""
    made, shared = [], folder / "shared"
    shared.mkdir()
    for name in ("one", "two"):
        (folder / name).mkdir()
        made.append(pipeline.create(folder / name))
        (made[-1] / "results").symlink_to(shared)
    return (*made, shared)


def contents(results):
    """Every file but the record of the study, which says what was asked for."""
    return {
        str(path.relative_to(results)): path.read_bytes()
        for path in results.rglob("*")
        if path.is_file() and path.name not in ("study.json", ".snakemake_timestamp")
    }


def states(results):
    """Inode and time of every file of every finished artifact."""
    return {
        path: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in results.rglob("*")
        if path.is_file() and ".runs" not in path.parts and path.name != "study.json"
    }


def left_over(results):
    """What a run should not leave: claims, scratch, receipts."""
    return [p for p in results.rglob(".*") if p.name != ".snakemake_timestamp"]


def same_as_alone(results, finished):
    """Whether what lies there is, as far as it was asked for, what one run alone has made."""
    made, expected = contents(results), contents(finished / "results")
    assert made.keys() <= expected.keys() and left_over(results) == []
    assert [name for name in made if made[name] != expected[name]] == []
    return made


def test_two_that_start_together_make_it_once(tmp_path, start, finished_once):
    one, two, shared = checkouts(tmp_path)
    runs = [start(folder, TOKENS) for folder in (one, two)]
    for run in runs:
        run.ends_well()
        assert "not present when the DAG was created" not in run.said
    made = same_as_alone(shared, finished_once)
    assert "tiny/prose/tokens-eval.json" in made and "tiny/model/config.json" in made
    jobs = sorted(run.said.count("Finished jobid") for run in runs)
    assert jobs == [0, 2]
    (waiting,) = [run for run in runs if "streamgauge: waiting for " in run.said]
    assert "Nothing to be done" in waiting.said and "run of " in waiting.said


@pytest.mark.cluster
def test_studies_that_share_only_what_is_finished_run_side_by_side(tmp_path, start, finished_once):
    one, two, shared = checkouts(tmp_path)
    shutil.copytree(finished_once / "results", shared, dirs_exist_ok=True)
    for file in [*one.glob("model/*"), *two.glob("model/*"), *tmp_path.glob("*/prose.txt")]:
        os.utime(file, (1, 1))  # older than what is made of it
    scores = Path(SAE.replace("-k2-", "-k4-")).with_name("scores.json")
    (one / scores).unlink()
    first = start(one, str(scores))
    while not any(
        '"narrowed": true' in p.read_text() for p in shared.glob(".runs/run-*/claim.json")
    ):
        assert first.process.poll() is None, first.said
        time.sleep(0.01)
    first.process.send_signal(signal.SIGSTOP)
    grid = pipeline.STUDY["grid"] | {"layers": {"tiny": [1]}, "k": [2]}
    pipeline.write(two, {**pipeline.STUDY, "study": "other", "grid": grid})
    second = start(two, "results/studies/other/grid.json")
    second.ends_well()
    assert "waiting" not in second.said and (shared / "studies/other/grid.csv").exists()
    first.process.send_signal(signal.SIGCONT)
    first.ends_well()
    assert left_over(shared) == []


@pytest.mark.cluster
def test_two_whole_studies_that_start_together(tmp_path, start, finished_once):
    one, two, shared = checkouts(tmp_path)
    runs = [start(folder) for folder in (one, two)]
    for run in runs:
        run.ends_well()
        assert "not present when the DAG was created" not in run.said
    assert same_as_alone(shared, finished_once).keys() == contents(finished_once / "results").keys()


@pytest.mark.cluster
@pytest.mark.parametrize("seed", range(5))
def test_one_that_starts_later_removes_nothing(tmp_path, start, finished_once, seed):
    """At a moment drawn: after some of the jobs, and up to three seconds more."""
    one, two, shared = checkouts(tmp_path)
    rng = np.random.default_rng(seed)
    first = start(one, SAE)
    n = int(rng.integers(1, 5))
    first.has_said(f"\n{n} of ")
    time.sleep(rng.uniform(0, 3))
    second = start(two, SAE)
    first.ends_well()
    before = states(shared)
    second.ends_well()
    assert {path: state for path, state in states(shared).items() if path in before} == before
    same_as_alone(shared, finished_once)


@pytest.mark.cluster
@pytest.mark.parametrize(
    "rule", ["subject tiny", "harvest tiny layer 01, train, part", "train SAE"]
)
def test_one_that_starts_when_the_first_was_killed(tmp_path, start, finished_once, rule):
    """The jobs of the first live on, and nobody takes note of their end."""
    one, two, shared = checkouts(tmp_path)
    first = start(one, SAE)
    first.has_said(f": {rule}")
    # its jobs have said who they are, and are at work
    while not list(shared.glob(f"{claims.FOLDER}/job-*/*.json")):
        assert first.process.poll() is None
        time.sleep(0.01)
    orphans = jobs_of(one)
    assert orphans
    first.process.send_signal(signal.SIGKILL)
    before = states(shared)
    second = start(two, SAE)
    second.ends_well()
    first.process.wait()
    finished = {path for path in before if path.suffix == ".json" and is_manifest(path)}
    assert {p: states(shared)[p] for p in finished} == {p: before[p] for p in finished}
    same_as_alone(shared, finished_once)


def is_manifest(path):
    others = ("cfg.json", "zarr.json", "spec.json", "study.json", claim_file.NAME)
    return path.parent.name != "model" and path.name not in others


@pytest.mark.cluster
def test_a_run_waits_for_an_orphan_and_takes_what_it_made(tmp_path, start, finished_once):
    """The model's folder, which a job gives its name in one step, is neither lost nor mixed."""
    one, two, shared = checkouts(tmp_path)
    first = start(one, "results/tiny/subject.json")
    while not (jobs := list(shared.glob(f"{claims.FOLDER}/job-*/*.json"))):
        assert first.process.poll() is None, first.said
        time.sleep(0.005)
    (orphan,) = jobs_of(one)
    os.kill(orphan, signal.SIGSTOP)
    first.process.kill()
    second = start(two, "results/tiny/subject.json")
    second.has_said("streamgauge: waiting for results/tiny/subject.json: job of ")
    assert jobs[0].exists() and f"process {orphan}" in second.said
    os.kill(orphan, signal.SIGCONT)
    second.ends_well()
    first.process.wait()
    # the orphan has made it, and nothing is left to do
    assert "Nothing to be done" in second.said
    assert "tiny/model/config.json" in same_as_alone(shared, finished_once)


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (lambda folder: None, 0),
        (lambda folder: (folder / "model/config.json").unlink(), 1),
        (lambda folder: shutil.rmtree(folder / "model"), 1),
        (lambda folder: (folder / "subject.json").unlink(), 1),
    ],
    ids=["whole", "file gone", "folder gone", "no manifest"],
)
def test_a_job_waits_for_another_and_takes_what_is_whole(tmp_path, change, again):
    """An engine may have removed outputs while the other still wrote: then they are made anew."""
    tiny_models.tiny_llama(tmp_path / "model")
    outputs = {"manifest": killing.SUBJECT["subject"], "model": killing.SUBJECT["model"]}
    job = killing.job("subject", {}, outputs, {"subject": "tiny"})
    killing.finish(tmp_path, job)
    folder, log = tmp_path / "results/tiny", tmp_path / "log.txt"
    alone = contents(folder)
    other = claims.acquire(tmp_path / "results", ["tiny/subject.json"], "job")
    process = killing.start(tmp_path, job)
    while "waiting for results/tiny/subject.json: job of " not in log.read_text():
        assert process.is_alive()
        time.sleep(0.01)
    change(folder)
    other.release()
    process.join()
    assert process.exitcode == 0
    assert contents(folder) == alone and left_over(tmp_path / "results") == []
    assert log.read_text().count("hashing the weights") == 1 + again


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    with small_disk.mounted(tmp_path / "disk", 4) as disk:
        folder = tmp_path / "one"
        folder.mkdir()
        pipeline.create(folder)
        (folder / "results").symlink_to(disk)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        done = pipeline.snakemake(folder, TOKENS, check=False)
        assert done.returncode and "Building DAG" not in done.stdout
        assert "results: cannot be written (Read-only file system)." in done.stdout
        assert "make it writable" in done.stdout and "Traceback" not in done.stdout
        # what writes nothing is not kept from it
        assert pipeline.planned(folder, TOKENS)
