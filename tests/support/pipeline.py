"""A small study in a copy of the repository, run by the real Snakemake in a process of its own."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

import tiny_models

ROOT = Path(__file__).resolve().parents[2]
# a cross-lingual study of two models whose answers are known
PLANTED = ROOT / "studies/cross_lingual_planted.yaml"

# two layers, two sparsities: every stage and every kind of fan-out, in seconds
STUDY = {
    "study": "tiny",
    "device": "cpu",
    "grid": {
        "subjects": ["tiny"],
        "corpora": ["prose"],
        "layers": {"tiny": [1, 2]},
        "expansion": [4],
        "k": [2, 4],
        "tokens": [1024],
        "objectives": ["mse"],
        "seeds": [0],
    },
    "subjects": {"tiny": {"source": "local", "path": "model"}},
    "corpora": {
        "prose": {
            "source": "text",
            "paths": ["prose.txt"],
            "context_length": 16,
            "train_sequences": 1100,  # two shards
            "eval_sequences": 6,
            "eval_fraction": 0.3,
        }
    },
    "spectra": {"sequences": 16},
    "sae": {"batch_size": 64, "warmup_steps": 2, "pool_tokens": 512, "dead_tokens": 512},
    "critics": {"sequences": 16, "components": 4, "widths": [1, 2], "steps": 40, "batch_size": 32},
    "statistics": {"resamples": 200},
}


def tree_digest(path: Path | str) -> str:
    """One digest of every file below `path`, names and bytes."""
    h = hashlib.sha256()
    for f in sorted(p for p in Path(path).rglob("*") if p.is_file()):
        h.update(str(f.relative_to(path)).encode() + b"\0" + f.read_bytes())
    return h.hexdigest()


def manifests(folder: Path) -> dict[str, bytes]:
    """Path below results -> bytes, of every manifest of a study."""
    results = folder / "results"
    return {
        str(path.relative_to(results)): path.read_bytes()
        for path in sorted(results.rglob("*.json"))
        if path.parent.name != "model" and path.name not in ("cfg.json", "zarr.json", "study.json")
    }


def prose(path: Path, paragraphs: int = 900) -> Path:
    """Distinct paragraphs of English made from the test sentences."""
    text, n = tiny_models.TEXT, len(tiny_models.TEXT)
    path.write_text(
        "\n\n".join(
            f"{i}. {text[i % n]} {text[(i * i + 1) % n]} {text[(i // n) % n]}"
            for i in range(paragraphs)
        )
    )
    return path


def create(folder: Path) -> Path:
    """A copy of what a checkout holds, with what the study needs."""
    return fill(checkout(folder))


def checkout(folder: Path) -> Path:
    """A copy of what a checkout holds, in a folder that is there."""
    for name in ("Snakefile", "config.yaml"):
        shutil.copy2(ROOT / name, folder / name)
    for name in ("rules", "workflow", "profiles", "src", "resources", "studies"):
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    return folder


def fill(folder: Path, study: dict = STUDY) -> Path:
    """A model, a corpus and the overlay `study.yaml`."""
    tiny_models.tiny_llama(folder / "model")
    prose(folder / "prose.txt")
    write(folder, study)
    return folder


def write(folder: Path, study: dict) -> None:
    """Write the overlay."""
    (folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))


def snakemake(folder: Path, *arguments: str, check: bool = True, timeout: int = 1800, **kwargs):
    """Run Snakemake on the overlay in `folder`; the completed process, output captured."""
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
    if "--configfile" not in arguments:
        command += ["--configfile", "study.yaml"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(folder / "src")}
    done = subprocess.run(
        command,
        cwd=folder,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout,
        **kwargs,
    )
    assert not check or done.returncode == 0, done.stdout[-6000:]
    return done


def planned(folder: Path, *arguments: str) -> set[str]:
    """The messages of the jobs that would run now."""
    out = snakemake(folder, "--dry-run", *arguments).stdout
    found = re.findall(r"^Job \d+: (.*)$", out, re.M)
    assert len(found) == len(set(found)), "every message names one job"
    return set(found)


def shell(folder: Path, command: str):
    """Run a command that was printed, as a user would: in a shell, in the folder of the study."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PATH": path, "PYTHONPATH": str(folder / "src")}
    out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.run(["sh", "-c", command], cwd=folder, env=env, text=True, **out)


def digests(folder: Path) -> dict[str, str]:
    """Path -> digest of every file below the results of a study."""
    files = (file for file in (folder / "results").rglob("*") if file.is_file())
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.name != ".snakemake_timestamp"
    }
