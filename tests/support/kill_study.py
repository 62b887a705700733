"""A study with an artifact of every kind, and the jobs that made it, to be run one by one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pipeline

STUDY = {
    **pipeline.STUDY,
    "grid": {
        **pipeline.STUDY["grid"],
        "layers": {"tiny": [1]},
        "objectives": ["mse", "behavioral", "e2e"],
        "k": [2],
    },
    "subjects": {
        **pipeline.STUDY["subjects"],
        "grown": {"source": "scratch", "d_model": 16, "n_layers": 2, "n_heads": 2},
        "built": {"source": "planted", "carries": "answer"},
    },
    "pretrain": {
        "corpus": "prose",
        "vocab_size": 300,
        "context_length": 16,
        "tokens": 10_240,
        "batch_size": 8,
        "lr": 0.01,
    },
    "probes": {"count": 2},
    "prompts": {
        "planted": {
            "path": "resources/prompts/planted.yaml",
            "target": "en",
            "source": "zh",
            "shots": 0,
            "limit": 8,
        }
    },
    "crosslingual": {
        "subjects": ["built"],
        "prompts": ["planted"],
        "layers": {"built": [1]},
        "k_sub": [16],
        "sources": ["mean"],
        "penalties": [0.01],
    },
    "geometry": {"k_sub": 16, "top": 8, "random": 10},
    "separation": {"random": 10},
    "updates": {"random": 10},
    "bridge": {"random": 10, "permutations": 20},
    "patching": {"max_new_tokens": 2, "random": 19, "norm_matched": 19, "batch_size": 80},
    "ard": {"k_sub": 16, "steps": 40, "permutations": 4},
    "simulation": {"trials": 2, "sequences": [16], "seeds": [1, 2], "effects": [0.0, 0.04]},
}
TARGETS = ["all", "crosslingual", "verdict_calibration", "results/grown/subject.json"]

# Snakemake's own plan, as JSON
_PLAN = """
import json, sys
from pathlib import Path
from streamgauge.base import project
from streamgauge.cli import adopt

def named(files):
    found = {k: v if isinstance(v, str) else list(map(str, v)) for k, v in files.items()}
    return found or dict(enumerate(map(str, files)))

targets = {str(path) for path in Path("results").rglob("*.json")} & set(sys.argv[1:])
with adopt._workflow(project.own(), ["study.yaml"], targets, 2) as workflow:
    for job in workflow.dag.jobs:
        if job.rule.script:
            print(json.dumps({
                "stage": json.loads(job.params.spec)["stage"],
                "rule": job.rule.name,
                "script": Path(job.rule.script).name,
                "input": named(job.input),
                "output": named(job.output),
                "wildcards": dict(job.wildcards_dict),
                "spec": job.params.spec,
            }))
"""


def create(folder: Path) -> Path:
    """The study, finished, in a folder that is made."""
    folder.mkdir()
    pipeline.fill(pipeline.checkout(folder), STUDY)
    pipeline.snakemake(folder, *TARGETS)
    return folder


def jobs(folder: Path) -> list[dict]:
    """The jobs of a finished study that made what is there, as `killing.run` takes them."""
    done = subprocess.run(
        [sys.executable, "-c", _PLAN, *map(str, _manifests(folder))],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(folder / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def _manifests(folder: Path) -> list[str]:
    return [f"results/{path}" for path in pipeline.manifests(folder)]
