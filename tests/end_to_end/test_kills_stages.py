"""A job of every kind, killed with -9 at random moments and begun again: the same bytes.

STREAMGAUGE_SEED draws other moments, so that several runs add up.
"""

import os
import shutil
import time
from collections import Counter

import pytest

import failing
import kill_study
import killing
from streamgauge.artifacts.stages import STAGES

pytestmark = pytest.mark.cluster

KILLS = int(os.environ.get("STREAMGAUGE_KILLS", "4"))  # of every kind of job
# what an SAE that somebody else trained is made of
IMPORTED = {"import_sae", "audit"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The study, left alone."""
    return kill_study.create(tmp_path_factory.mktemp("finished") / "study")


def start(folder, job):
    process = killing.PROCESSES.Process(target=killing.run, args=(folder, job, False))
    process.start()
    return process


def finish(folder, job):
    """Run a job to its end; the seconds it takes, and how many of them it is at work."""
    (folder / "log.txt").unlink(missing_ok=True)
    process, since = start(folder, job), time.monotonic()
    wait_for_work(folder, process)
    at_work = time.monotonic()
    process.join()
    assert process.exitcode == 0, (folder / "log.txt").read_text()[-2000:]
    return time.monotonic() - since, time.monotonic() - at_work


def wait_for_work(folder, process):
    """Wait until a job opens its log, which it does before its work."""
    while process.is_alive() and not (folder / "log.txt").exists():
        time.sleep(0.001)


def kill(folder, job, rng):
    """Kill a job `KILLS` times, then let it end: how many of the kills met it at work."""
    killing.remove_outputs(folder, job)
    (seconds, working), kills, at_work = finish(folder, job), 0, 0
    killing.remove_outputs(folder, job)
    while kills < KILLS:
        (folder / "log.txt").unlink(missing_ok=True)
        process = start(folder, job)
        if kills % 3:  # two of three while it works, however short that is
            wait_for_work(folder, process)
            process.join(rng.uniform(0, working))
        else:
            process.join(rng.uniform(0, seconds))
        process.kill()
        process.join()
        if process.exitcode == -9:
            kills += 1
            at_work += (folder / "log.txt").exists()
        else:
            assert process.exitcode == 0, (folder / "log.txt").read_text()[-2000:]
        # a workflow engine removes the outputs of a job that was killed, unless it was killed too
        if process.exitcode == 0 or rng.random() < 0.5:
            killing.remove_outputs(folder, job)
    finish(folder, job)
    return at_work


def test_a_job_of_every_kind_is_killed_again_and_again(finished, tmp_path):
    jobs, rng, at_work = kill_study.jobs(finished), killing.draws(2), Counter()
    by_output = {path: job for job in jobs for path in job["output"].values()}
    kinds = {job["rule"]: job for job in sorted(jobs, key=str)}
    folder, expected = tmp_path / "killed", failing.contents(finished)
    shutil.copytree(finished, folder, symlinks=True)
    for rule, job in kinds.items():
        if "part" in job["wildcards"]:
            continue  # killed with the gather of its store
        parts = [by_output[receipt] for receipt in job["input"].get("parts", [])]
        for one in (*parts, job):
            if parts:
                killing.remove_outputs(folder, job)
            at_work[one["rule"]] += kill(folder, one, rng)
        for part in parts:
            killing.remove_outputs(folder, part)
        made = failing.contents(folder)
        differing = [name for name in made | expected if made.get(name, 0) != expected.get(name, 0)]
        assert not differing, (rule, differing)
    total = KILLS * len(at_work)
    print(f"{total} kills of {len(at_work)} kinds of jobs, {at_work.total()} at work")
    print(f"at work: {at_work.most_common()}")
    assert {job["stage"] for job in jobs} == set(STAGES) - IMPORTED
    assert total >= 200 and at_work.total() >= total // 2
