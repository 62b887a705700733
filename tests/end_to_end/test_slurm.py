"""On a real SLURM: the small study end to end, and what happens when something dies.

The cluster is private to these tests (`slurm_cluster`). Every scenario ends in the same question:
is what was made, byte for byte, what this machine makes when nothing goes wrong?
"""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
import yaml

import pipeline
import slurm_cluster
from pipeline import tree_digest
from slurm_cluster import wait_until
from streamgauge.planning import job_requests
from streamgauge.planning.config import validate

PLUGIN = importlib.util.find_spec("snakemake_executor_plugin_slurm")
LACKING = slurm_cluster.missing()
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        bool(LACKING),
        reason=f"SLURM is not installed (no {', '.join(LACKING)}): "
        f"apt-get install {slurm_cluster.PACKAGES}",
    ),
    pytest.mark.skipif(
        PLUGIN is None,
        reason="Snakemake's plugin is not installed: pip install snakemake-executor-plugin-slurm",
    ),
]

LAYER = "results/tiny/prose/L01"
MANIFEST = f"{LAYER}/activations-train.json"
STORE = f"{LAYER}/activations-train.zarr"
SECONDS = 300  # for what takes a few on a machine that does nothing else
SHARDS = 3  # 1,024 sequences each
# one SAE; stores of several shards
STUDY = {
    **pipeline.STUDY,
    "grid": {**pipeline.STUDY["grid"], "layers": {"tiny": [1]}, "k": [2]},
    "corpora": {
        "prose": {
            **pipeline.STUDY["corpora"]["prose"],
            "train_sequences": 1024 * SHARDS - 100,
            "eval_sequences": 1024 + 100,
        }
    },
    # small batches keep the harvest busy long enough to be interrupted
    "harvest": {"batch_size": 4},
    **{stage: {"batch_size": 64} for stage in ("gradients", "probes", "evaluate")},
    "resources": {"threads": 1},
}
SCATTER = {"harvest": 16384, "gradients": 16384, "probes": 6144}
# what is scattered, and into how many parts
PARTS = {
    "harvest tiny layer 01, train": 3,
    "harvest tiny layer 01, eval": 2,
    "gradients tiny layer 01, eval": 2,
    "probes tiny layer 01, eval": 3,
}
# rules that are told to ask for a GPU, for want of a device that would make them
ON_GPU = ("harvest_part", "train_sae")


class Controller:
    """Snakemake on the cluster, in a session of its own."""

    def __init__(self, cluster, folder: Path, *arguments: str):
        """Start it in `folder`, a study made by `pipeline.create`."""
        self.folder, self.out = folder, folder / f"controller-{len(os.listdir(folder))}.txt"
        command = [sys.executable, "-m", "snakemake", *arguments, "--configfile", "study.yaml"]
        command += ["--workflow-profile", "profiles/slurm", "--jobs", "6"]
        # a job's end is noticed by polling, and there is no accounting to ask
        command += ["--slurm-init-seconds-before-status-checks", "2"]
        command += ["--slurm-status-command", "squeue"]
        env = {**cluster.env, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(folder / "src")}
        with open(self.out, "w") as out:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                # whoever runs the tests in the background may have it ignored
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )

    def said(self) -> str:
        """Its output until now."""
        return self.out.read_text()

    def run_id(self) -> str:
        """The name of all its jobs."""
        return wait_until(
            lambda: re.search(r"SLURM run ID: (\S+)", self.said()), SECONDS, "no run ID"
        )[1]

    def end(self, seconds: float = 1800) -> str:
        """Wait for it, expect success, return its output."""
        code = self.process.wait(timeout=seconds)
        assert code == 0, self.said()[-6000:]
        return self.said()


def jobs_of(cluster, controller: Controller) -> list[dict[str, str]]:
    """SLURM's records of a controller's jobs."""
    return [job for job in cluster.jobs() if job["JobName"] == controller.run_id()]


def unfinished(cluster, controller: Controller) -> set[str]:
    """Those of a controller's jobs that wait or run."""
    return {job["JobId"] for job in jobs_of(cluster, controller)} & set(cluster.queue())


def rule_of(job: dict[str, str]) -> str:
    """The rule of a job, from the comment it was submitted with."""
    return re.sub(r"_wildcards_.*|^rule_", "", job["Comment"])


def minutes(job: dict[str, str]) -> float:
    """The time limit of a job."""
    hours, minutes, seconds = map(int, job["TimeLimit"].split(":"))
    return 60 * hours + minutes + seconds / 60


def span(job: dict[str, str]) -> tuple[datetime, datetime]:
    """When a finished job started and ended."""
    return tuple(datetime.fromisoformat(job[key]) for key in ("StartTime", "EndTime"))


def overlapping(jobs: list[dict[str, str]]) -> list[tuple[str, str]]:
    """Pairs of jobs of which one started before the other had ended."""
    ordered = sorted(jobs, key=span)
    return [
        (rule_of(a), rule_of(b))
        for i, a in enumerate(ordered)
        for b in ordered[i + 1 :]
        if span(b)[0] < span(a)[1]
    ]


def workers(folder: Path, script: str = "part") -> list[int]:
    """Processes that run a script in `folder`."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes().decode().split("\0")
            here = os.readlink(path / "cwd") == str(folder)
        except OSError:
            continue
        if here and command[-2:-1] and command[-2].endswith(f".{script}.py"):
            found.append(int(path.name))
    return found


def shards(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every shard of the store, scratch or committed."""
    return {
        path.parent.parent.name: (path.stat().st_ino, path.stat().st_mtime_ns)
        for root in [folder / STORE, *(folder / LAYER).glob(".activations-train.*.partial")]
        for path in root.glob("activations/c/*/0/0")
    }


def freeze(controller: Controller) -> tuple[int, dict[str, tuple[int, int]]]:
    """Stop the one process that harvests, when it has written a shard and not all; its shards."""
    folder = controller.folder

    def begun() -> bool:
        assert controller.process.poll() is None, controller.said()[-6000:]
        return bool(shards(folder))

    wait_until(begun, SECONDS, "no shard is written", every=0.01)
    (pid,) = workers(folder)
    os.kill(pid, signal.SIGSTOP)
    assert 0 < len(shards(folder)) < SHARDS, "stopped too late: make the harvest slower"
    return pid, shards(folder)


def kept(before: dict, folder: Path) -> bool:
    """Whether every shard of `before` is there as it was, and all are there."""
    now = shards(folder)
    return len(now) == SHARDS and before.items() <= now.items()


def same_bytes(folder: Path, reference: Path) -> bool:
    """Whether the store and its manifest equal the reference's, with nothing left beside them."""
    left = list((folder / LAYER).glob(".activations-train*"))
    assert left == [], left
    return (folder / MANIFEST).read_bytes() == (reference / MANIFEST).read_bytes() and (
        tree_digest(folder / STORE) == tree_digest(reference / STORE)
    )


def create(folder: Path, scatter: dict | None) -> Path:
    """The study in an empty folder."""
    folder.mkdir()
    pipeline.create(folder)
    pipeline.prose(folder / "prose.txt", paragraphs=4000)
    pipeline.write(folder, {**STUDY, "scatter": scatter or {}})
    return folder


@pytest.fixture(scope="module")
def cluster():
    with slurm_cluster.running() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def both(cluster, tmp_path_factory):
    """The study made on the cluster in many parts, and meanwhile on this machine in one each."""
    base = tmp_path_factory.mktemp("slurm")
    here = create(base / "here", None)
    there = create(base / "there", SCATTER)
    gpus = [f"{rule}:gpu=1" for rule in ON_GPU]
    controller = Controller(cluster, there, "--set-resources", *gpus)
    pipeline.snakemake(here, timeout=1800)
    controller.end()
    return here, controller


@pytest.fixture(scope="module")
def reference(both):
    """The folder of the study made on this machine."""
    return both[0]


@pytest.fixture
def unharvested(reference, tmp_path):
    """A copy of the finished study that lacks one store."""
    return without_store(reference, tmp_path / "copy")


def without_store(reference: Path, folder: Path) -> Path:
    shutil.copytree(reference, folder, symlinks=True)
    shutil.rmtree(folder / STORE)
    (folder / MANIFEST).unlink()
    return folder


def test_a_study_made_by_many_jobs_is_the_one_made_here(both):
    here, controller = both
    made, expected = pipeline.manifests(controller.folder), pipeline.manifests(here)
    assert len(expected) > 25
    assert made == expected
    parts = re.findall(r"^Job \d+: (.*), part \d of (\d)$", controller.said(), re.M)
    assert sorted(parts) == sorted((store, str(n)) for store, n in PARTS.items() for _ in range(n))
    results = controller.folder / "results"
    left = [path for path in results.rglob(".*") if path.name != ".snakemake_timestamp"]
    assert left == []


def test_gpu_jobs_take_turns_and_cpu_jobs_stay_away(both, cluster):
    jobs = jobs_of(cluster, both[1])
    assert {job["JobState"] for job in jobs} == {"COMPLETED"}
    gpu = [job for job in jobs if "gpu" in job.get("TresPerJob", "")]
    others = [job for job in jobs if job not in gpu]
    assert sorted(rule_of(job) for job in gpu) == [*["harvest_part"] * 5, "train_sae"]
    assert {job["NodeList"] for job in gpu} == {"gpu1"}
    assert {job["NodeList"] for job in others} <= {"cpu1", "cpu2"}
    assert overlapping(gpu) == []
    assert overlapping(others) != []  # one at a time is not how this cluster works in general


def test_run_again_there_is_nothing_to_do(both, cluster):
    assert "Nothing to be done" in Controller(cluster, both[1].folder).end()


@pytest.fixture(scope="module")
def overdue(reference, cluster, tmp_path_factory):
    """A job that hangs after its first shard with a minute to go.

    Its controller, SLURM's record of it, and the shards it left.
    """
    folder = without_store(reference, tmp_path_factory.mktemp("overdue") / "copy")
    # on a node that no other test takes down
    controller = Controller(cluster, folder, MANIFEST, "--set-resources", "harvest_part:gpu=1")
    _, before = freeze(controller)
    (job,) = jobs_of(cluster, controller)
    # as if the estimate had been too low
    cluster.run("scontrol", "update", f"JobId={job['JobId']}", "TimeLimit=1")
    return controller, job, before


def test_a_job_asks_for_the_minutes_and_the_memory_estimated(overdue):
    controller, job, _ = overdue
    config = validate(yaml.safe_load((controller.folder / "config.yaml").read_text()) | STUDY)
    subject = json.loads((controller.folder / "results/tiny/subject.json").read_text())
    names = {"subject": "tiny", "corpus": "prose", "ell": "01", "split": "train"}
    part = {"part": "0", "parts": "1"}
    asked = job_requests.job(config, "harvest", names | part, subject["facts"])
    assert minutes(job) == asked["runtime"]
    assert job["MinMemoryNode"] == f"{asked['mem_mb']}M"


def test_a_node_set_down_in_mid_job(reference, unharvested, cluster):
    controller = Controller(cluster, unharvested, MANIFEST)
    pid, before = freeze(controller)
    (job,) = jobs_of(cluster, controller)
    number, node = job["JobId"], job["NodeList"]
    cluster.set_node(node, "DOWN")
    try:
        # a node nobody hears of may well go on working
        os.kill(pid, signal.SIGCONT)

        def requeued() -> bool:
            (job,) = jobs_of(cluster, controller)
            return (job["JobState"], job["Restarts"]) == ("PENDING", "1")

        wait_until(requeued, SECONDS, "the job is not requeued")
        # SLURM makes a requeued job wait for two minutes
        cluster.run("scontrol", "update", f"JobId={number}", "StartTime=now")
        controller.end()
    finally:
        cluster.set_node(node, "RESUME")
    part, gather = jobs_of(cluster, controller)
    assert (part["JobId"], part["JobState"], part["Restarts"]) == (number, "COMPLETED", "1")
    assert node not in (part["NodeList"], gather["NodeList"])
    assert kept(before, unharvested)
    assert same_bytes(unharvested, reference)


def test_interrupted_it_leaves_nothing_queued_and_resumes(reference, unharvested, cluster):
    controller = Controller(cluster, unharvested, MANIFEST)
    _, before = freeze(controller)
    controller.process.send_signal(signal.SIGINT)
    assert controller.process.wait(timeout=SECONDS) == 1
    wait_until(lambda: not unfinished(cluster, controller), SECONDS, "jobs are still queued")
    assert workers(unharvested) == []
    Controller(cluster, unharvested, MANIFEST).end()
    assert kept(before, unharvested)
    assert same_bytes(unharvested, reference)


def test_a_killed_controller_and_the_documented_recovery(reference, unharvested, cluster):
    controller = Controller(cluster, unharvested, MANIFEST)
    _, before = freeze(controller)
    controller.process.kill()
    controller.process.wait()
    assert unfinished(cluster, controller)  # the job lives on
    again = Controller(cluster, unharvested, MANIFEST)
    assert again.process.wait(timeout=SECONDS) != 0 and "locked" in again.said()
    cluster.run("scancel", "--name", controller.run_id())
    wait_until(lambda: not unfinished(cluster, controller), SECONDS, "jobs are still queued")
    assert Controller(cluster, unharvested, "--unlock").process.wait(timeout=SECONDS) == 0
    Controller(cluster, unharvested, MANIFEST).end()
    assert kept(before, unharvested)
    assert same_bytes(unharvested, reference)


def test_a_killed_controller_and_a_hasty_recovery(reference, unharvested, cluster):
    """Unlocked while the old job lives: two jobs write the same store side by side."""
    controller = Controller(cluster, unharvested, MANIFEST)
    orphan, before = freeze(controller)
    controller.process.kill()
    controller.process.wait()
    assert Controller(cluster, unharvested, "--unlock").process.wait(timeout=SECONDS) == 0
    again = Controller(cluster, unharvested, MANIFEST)
    wait_until(lambda: len(workers(unharvested)) == 2, SECONDS, "no second job")
    os.kill(orphan, signal.SIGCONT)
    again.end()
    wait_until(lambda: not workers(unharvested), SECONDS, "the old job does not end")
    wait_until(lambda: not unfinished(cluster, controller), SECONDS, "the old job stays")
    assert kept(before, unharvested)
    assert same_bytes(unharvested, reference)


def test_a_gather_that_comes_too_late_leaves_the_store_alone(reference, unharvested, cluster):
    """Failing, it would make its Snakemake remove what another job has made."""
    controller = Controller(cluster, unharvested, MANIFEST)
    (orphan,) = wait_until(lambda: workers(unharvested, "gather"), SECONDS, "no gather", every=0.01)
    os.kill(orphan, signal.SIGSTOP)
    controller.process.kill()
    controller.process.wait()
    assert Controller(cluster, unharvested, "--unlock").process.wait(timeout=SECONDS) == 0
    Controller(cluster, unharvested, MANIFEST).end()
    assert same_bytes(unharvested, reference)
    os.kill(orphan, signal.SIGCONT)
    wait_until(lambda: not unfinished(cluster, controller), SECONDS, "the old job stays")
    assert same_bytes(unharvested, reference)
    assert "Nothing to be done" in Controller(cluster, unharvested, MANIFEST).end()


def test_a_second_user_waits_and_takes_what_was_made(reference, unharvested, cluster):
    first = Controller(cluster, unharvested, MANIFEST)
    pid, before = freeze(first)
    second = Controller(cluster, unharvested, MANIFEST)
    wait_until(lambda: "waiting for results/" in second.said(), SECONDS, "it does not wait")
    assert "SLURM run ID" not in second.said()  # it has come to no job
    assert shards(unharvested) == before
    os.kill(pid, signal.SIGCONT)
    first.end()
    assert "Nothing to be done" in second.end()
    assert kept(before, unharvested)
    assert same_bytes(unharvested, reference)


def test_over_its_time_limit_it_is_retried_with_more_time(overdue, reference, cluster):
    controller, first, before = overdue
    controller.end()
    jobs = [job for job in jobs_of(cluster, controller) if job["Comment"] == first["Comment"]]
    assert [job["JobState"] for job in jobs] == ["TIMEOUT", "COMPLETED"]
    assert minutes(jobs[1]) == 2 * minutes(first)
    assert kept(before, controller.folder)
    assert same_bytes(controller.folder, reference)
