"""The page on clusters says what the profile and the requests say."""

from pathlib import Path

import yaml

from streamgauge.planning import config, job_requests

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/cluster.md").read_text()
PROFILE = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text())


def test_numbers_of_the_profile():
    said = [
        f"`jobs: {PROFILE['jobs']}`",
        f"waits `latency-wait` seconds for it, {PROFILE['latency-wait']} in the profile",
        f"a job is tried again, {PROFILE['retries']} times",
        f"comes after {PROFILE['slurm-init-seconds-before-status-checks']} seconds",
        f"`{PROFILE['slurm-logdir']}/rule_",
    ]
    for sentence in said:
        assert sentence in PAGE


def test_numbers_of_the_requests():
    slack = ["", "", "two", "three"][job_requests.SLACK]
    said = [
        f"{job_requests.GPU_TFLOPS:g} TFLOP/s on a GPU",
        f"or {job_requests.THREAD_TFLOPS:g} TFLOP/s a CPU",
        f"bytes at {job_requests.DISK} MB/s, {slack} times that",
        f"and {job_requests.START} minutes for starting",
        f"`resources.threads` | null | CPU threads of a job; null is {job_requests.THREADS} |",
    ]
    for sentence in said:
        assert sentence in PAGE


def test_rules_that_the_page_names_exist():
    rules = "\n".join(path.read_text() for path in (ROOT / "rules").glob("*.smk"))
    for rule in ("train_sae", "harvest"):
        assert f"{rule}:runtime=" in PAGE and f"\nrule {rule}:\n" in rules
    assert "Stores are never grouped" in PAGE


def test_keys_have_the_defaults_of_the_schema():
    keys = config.load_schema()["properties"]["resources"]["properties"]
    for key, schema in keys.items():
        assert schema["default"] is None and f"| `resources.{key}` | null |" in PAGE
