"""The page on clusters says what the profile and the requests say."""

from pathlib import Path

import yaml

from streamgauge import config, requests

ROOT = Path(__file__).resolve().parents[1]
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
    said = [
        f"{requests.GPU_TFLOPS:g} TFLOP/s on a GPU or {requests.THREAD_TFLOPS:g} TFLOP/s a CPU",
        f"bytes at {requests.DISK} MB/s, {['', '', 'two', 'three'][requests.SLACK]} times that",
        f"and {requests.START} minutes for starting",
        f"`resources.threads` | null | CPU threads of a job; null is {requests.THREADS} |",
    ]
    for sentence in said:
        assert sentence in PAGE


def test_rules_that_the_page_names_exist():
    rules = "\n".join(path.read_text() for path in (ROOT / "rules").glob("*.smk"))
    for rule in ("train_sae", "harvest"):
        assert f"{rule}:runtime=" in PAGE and f"\nrule {rule}:\n" in rules
    grouped = PROFILE["groups"].keys()
    assert "Stores are never grouped" in PAGE and not grouped & {"harvest", "gradients", "probes"}


def test_keys_have_the_defaults_of_the_schema():
    keys = config.load_schema()["properties"]["resources"]["properties"]
    for key, schema in keys.items():
        assert schema["default"] is None and f"| `resources.{key}` | null |" in PAGE
