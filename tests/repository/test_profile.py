"""The SLURM profile: what every job of a study would ask a cluster for, by Snakemake's own plan.

Only plans are made here; jobs run on a real SLURM in test_slurm.py.
"""

import importlib.util
import logging
import os
import re
import subprocess
import sys
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import yaml

import pipeline
from streamgauge.artifacts.figures import FIGURES
from streamgauge.planning import grid, job_requests
from streamgauge.planning.config import load, validate

SETTINGS = yaml.safe_load((pipeline.ROOT / "profiles/slurm/config.yaml").read_text())
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("snakemake_executor_plugin_slurm") is None,
    reason="Snakemake's plugin is not installed: pip install snakemake-executor-plugin-slurm",
)

# every rule: three objectives, stores in parts, an import, the cross-lingual suite
STUDY = {
    **pipeline.STUDY,
    "grid": {
        **pipeline.STUDY["grid"],
        "subjects": ["tiny", "own"],
        "layers": {"tiny": [1], "own": [0]},
        "objectives": ["mse", "behavioral", "e2e"],
    },
    "subjects": {
        **pipeline.STUDY["subjects"],
        "own": {"source": "scratch", "d_model": 512, "n_layers": 6, "n_heads": 8},
    },
    "pretrain": {"corpus": "prose"},
    "corpora": {"prose": {**pipeline.STUDY["corpora"]["prose"], "train_sequences": 40_000}},
    "scatter": {"harvest": 300_000, "probes": 100_000},
    "imports": {"theirs": {"path": "theirs", "subject": "tiny", "corpus": "prose", "layer": 1}},
    "crosslingual": {"subjects": ["tiny"], "layers": {"tiny": [1]}, "k_sub": [4]},
    "ard": {"k_sub": 4},
    "resources": {"threads": 6},
}
# rules that run a model or train, and may hold a GPU
COMPUTE = {
    *("pretrain", "eigenspectra", "harvest_part", "gradients_part", "probes_part", "calibration"),
    *("train_sae", "train_behavioral", "train_e2e", "baseline", "evaluate", "sensitivity"),
    *("attention", "critics", "states", "patching", "ard"),
}
# rules that prepare: on CPUs, with estimates of their own
PREPARE = {"subject", "tokens", "geometry", "basis", "import_sae"}
# rules that finish what parts have written
GATHER = {"harvest", "gradients", "probes"}
# the stage of a rule where it has another name
STAGE = {"eigenspectra": "spectra", **{f"{name}_part": name for name in GATHER}}
# rules whose jobs are short and alone all the same: hardly anything is ready when they are
ALONE = {"prompts", "simulation", "figure_pr_canyon", "figure_loss_curves"}


class Job(NamedTuple):
    rule: str
    wildcards: dict
    threads: int
    asked: dict


class Plan:
    """What Snakemake would hand to SLURM, at an attempt, with the profile and nothing else."""

    def __init__(self, folder, device, attempt):
        self.device, self.attempt = device, attempt
        (folder / f"{device}.yaml").write_text(yaml.safe_dump({**STUDY, "device": device}))
        self.config = validate(load([folder / "config.yaml", folder / f"{device}.yaml"]))
        command = [sys.executable, "-m", "snakemake", "all", "verdict_calibration"]
        # a plan shows no more threads than cores, and without the word there is one
        command += ["-n", "--cores", "6", "--attempt", str(attempt)]
        command += ["--workflow-profile", "profiles/slurm", "--configfile", f"{device}.yaml"]
        self._process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder / "src")},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def jobs(self):
        out = self._process.communicate(timeout=300)[0]
        assert self._process.returncode == 0, out[-3000:]
        blocks = re.findall(r"^ *(?:local)?rule (\w+):\n((?: +\w+: .*\n)+)", out, re.M)
        return [self._job(rule, block) for rule, block in blocks]

    @staticmethod
    def _job(rule, block):
        found = dict(re.findall(r"^ +(\w+): (.*)$", block, re.M))

        def pairs(key):
            return dict(x.split("=", 1) for x in found.get(key, "").split(", ") if x)

        threads = int(found.get("threads", 1))
        return Job(rule, pairs("wildcards"), threads, pairs("resources"))


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """The plan for GPUs at the first attempt, and for CPUs at the second, each with its jobs."""
    folder = pipeline.create(tmp_path_factory.mktemp("profile"))
    # a rule with a message says that and nothing else
    with (folder / "Snakefile").open("a") as file:
        file.write("\nfor each in workflow.rules:\n    each.message = None\n")
    made = [Plan(folder, "cuda", 1), Plan(folder, "cpu", 2)]
    return [(plan, plan.jobs()) for plan in made]


def test_every_rule_is_planned(plans):
    rules = set(re.findall(r"^rule (\w+):", _source(), re.M)) - {"verify"}
    for _, jobs in plans:
        assert {job.rule for job in jobs} >= rules - _targets()
        assert {job.rule for job in jobs} >= COMPUTE | PREPARE | GATHER


def _source():
    files = [pipeline.ROOT / "Snakefile", *sorted((pipeline.ROOT / "rules").glob("*.smk"))]
    return "\n".join(file.read_text() for file in files)


def _groups():
    """Rule -> the group that its jobs share a SLURM job with."""
    named = r'^rule (\w+):\n(?:(?!rule ).*\n)*?    group: together\("(\w+)"\)'
    loop = {f"figure_{name}": "figures" for name, drawn in FIGURES.items() if drawn.table}
    return loop | dict(re.findall(named, _source(), re.M))


def _targets():
    """Rules that run on the login node: they only name what is to be made."""
    return set(re.findall(r"^rule (\w+):", (pipeline.ROOT / "Snakefile").read_text(), re.M))


def test_a_gpu_is_asked_for_by_what_computes_and_only_where_it_is_the_device(plans):
    for plan, jobs in plans:
        for job in jobs:
            wanted = int(plan.device == "cuda" and job.rule in COMPUTE)
            assert int(job.asked.get("gpu", 0)) == wanted, job
            assert not {"gres", "slurm_extra", "slurm_partition"} & job.asked.keys()


def test_every_job_asks_for_memory_and_minutes_and_for_more_when_tried_again(plans):
    light = SETTINGS["default-resources"]
    for plan, jobs in plans:
        for job in jobs:
            asked = {name: int(job.asked[name]) for name in ("mem_mb", "runtime")}
            if job.rule in COMPUTE | PREPARE | GATHER:
                subject = plan.config["subjects"][job.wildcards["subject"]]
                shape = grid.shape_of(job.wildcards["subject"], subject, "nowhere")
                at = {"split": "eval"} | job.wildcards
                stage = STAGE.get(job.rule, job.rule)
                estimated = job_requests.job(plan.config, stage, at, shape, plan.attempt)
                assert asked == estimated, job
            else:
                by_attempt = {name: eval(light[name], {"attempt": plan.attempt}) for name in asked}
                assert asked == by_attempt, job
                assert by_attempt["mem_mb"] == 2000 * plan.attempt


def test_estimates_follow_the_study(plans):
    _, jobs = plans[0]
    parts = {job.wildcards["parts"] for job in jobs if job.rule == "harvest_part"}
    assert parts == {"1", "3"}

    def memory(subject):
        return {job.asked["mem_mb"] for job in jobs if job.wildcards.get("subject") == subject}

    assert len(memory("own")) > 4
    # one has the shape that its block gives; the other's is not known yet and counts as large
    assert max(map(int, memory("own"))) < max(map(int, memory("tiny")))


def test_threads_are_asked_for_by_what_computes(plans):
    for _, jobs in plans:
        for job in jobs:
            assert job.threads == (6 if job.rule in COMPUTE | PREPARE else 1), job


# --- short jobs together; that no group waits for itself Snakemake checks as it plans -----------
def test_short_jobs_share_a_job_and_gpus_never_do(plans):
    groups = _groups()
    grouped = set(groups)
    for _, jobs in plans:
        rules = {job.rule for job in jobs}
        assert grouped <= rules
        # when a job fails, what the others of its group have made is removed
        assert not grouped & (COMPUTE | PREPARE | GATHER)
        assert rules - grouped - COMPUTE - PREPARE - GATHER - _targets() == ALONE
    assert set(SETTINGS["group-components"]) <= {*groups.values(), "crosslingual_figures"}


def test_a_group_takes_turns():
    """In a group one job runs at a time: it needs the largest memory, not the sum."""
    assert SETTINGS["default-resources"]["turn"] == SETTINGS["resources"]["turn"] == 1
    assert SETTINGS["set-resource-scopes"] == {"turn": "local"}


# --- settings -----------------------------------------------------------------------------------
def test_the_profile_agrees_with_the_default_one():
    default = yaml.safe_load((pipeline.ROOT / "profiles/default/config.yaml").read_text())
    for name in ("rerun-triggers", "rerun-incomplete", "show-failed-logs", "printshellcmds"):
        assert SETTINGS[name] == default[name], name


def test_partitions_are_read_from_the_profile_itself():
    from snakemake_executor_plugin_slurm.partitions import get_best_partition, read_partition_file

    assert SETTINGS["slurm-partition-config"] == "config.yaml"
    partitions = read_partition_file(pipeline.ROOT / "profiles/slurm/config.yaml")
    assert {partition.name for partition in partitions} == {"cpu", "gpu"}

    for gpu, partition in ((1, "gpu"), (0, "cpu")):
        asked = {"mem_mb": 100_000, "runtime": 6000, "gpu": gpu}
        job = SimpleNamespace(name="a job", threads=8, resources=asked)
        assert get_best_partition(partitions, job, logging.getLogger(__name__)) == partition
