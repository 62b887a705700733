"""The pipeline's own scripts in processes of their own, to be killed with -9 and begun again."""

import functools
import multiprocessing
import os
import runpy
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from snakemake.iocontainers import InputFiles, OutputFiles, Wildcards

import pipeline
import tiny_models
from streamgauge.artifacts import claims, keys
from streamgauge.artifacts.stages import STAGES
from streamgauge.planning import config
from streamgauge.sae import train
from streamgauge.stores import shards

# a server with the imports done starts a process in a moment
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["killing", "transformers.models.llama.modeling_llama", "streamgauge.passes.gather", "pandas"]
)

ROWS, POSITIONS, TOKENS_PER_SHARD = 480, 64, 512
N_SHARDS = ROWS * POSITIONS // TOKENS_PER_SHARD
CHECKPOINT_SECONDS = 0.02
LAYER = "results/tiny/prose/L01"
TOKENS = "results/tiny/prose/tokens-train"
WORDS = {"subject": "tiny", "corpus": "prose"}
WHERE, ROW = {**WORDS, "ell": "01"}, {**WORDS, "split": "train"}
SUBJECT = {"subject": "results/tiny/subject.json", "model": "results/tiny/model"}
SOURCE = {**SUBJECT, "tokens": f"{TOKENS}.json", "token_store": f"{TOKENS}.zarr"}
STUDY = {
    **pipeline.STUDY,
    "corpora": {
        "prose": {
            **pipeline.STUDY["corpora"]["prose"],
            "context_length": POSITIONS,
            "train_sequences": ROWS,
        }
    },
    "subjects": {
        **pipeline.STUDY["subjects"],
        "grown": {"source": "scratch", "d_model": 16, "n_layers": 2, "n_heads": 2},
    },
    "pretrain": {
        "corpus": "prose",
        "vocab_size": 300,
        "context_length": 16,
        "tokens": 10_240,
        "batch_size": 8,
        "lr": 0.01,
    },
    "harvest": {"batch_size": 2},
    "probes": {"count": 2, "batch_size": 8},
}


def create(folder: Path) -> Path:
    """A folder with the model and the tokens of a study; its other artifacts are yet to be made."""
    tiny_models.tiny_llama(folder / "model")
    pipeline.prose(folder / "prose.txt", 3000)
    outputs = {"manifest": SUBJECT["subject"], "model": SUBJECT["model"]}
    finish(folder, job("subject", {}, outputs, {"subject": "tiny"}))
    outputs = {"manifest": SOURCE["tokens"], "store": SOURCE["token_store"]}
    finish(folder, job("tokens", SUBJECT, outputs, ROW))
    return folder


def job(stage, inputs, outputs, wildcards) -> dict:
    """What Snakemake would hand to a script."""
    return {
        "stage": stage,
        "script": "part.py" if "part" in wildcards else STAGES[stage].script,
        "input": inputs,
        "output": outputs,
        "wildcards": wildcards,
    }


def part(stage, store, i, n) -> dict:
    """The job that writes part `i` of `n` of a store."""
    receipt = {"receipt": f"{LAYER}/.{store}-train.part-{i}-of-{n}"}
    numbered = {**WHERE, "split": "train", "part": str(i), "parts": str(n)}
    return job(stage, SOURCE, receipt, numbered)


def gather(stage, store, n) -> dict:
    """The job that gathers the `n` parts of a store."""
    receipts = [part(stage, store, i, n)["output"]["receipt"] for i in range(n)]
    outputs = {"manifest": f"{LAYER}/{store}-train.json", "store": f"{LAYER}/{store}-train.zarr"}
    at = {**WHERE, "split": "train"}
    return job(stage, {**SOURCE, "parts": receipts}, outputs, at)


def training(objective, tokens) -> dict:
    """The job that trains an SAE for an objective."""
    name = f"topk-x4-k4-t{tokens}-{objective}-seed0"
    inputs = {"activations": f"{LAYER}/activations-train.json"}
    inputs |= {"store": f"{LAYER}/activations-train.zarr"}
    if objective == "behavioral":
        inputs |= {"probes": f"{LAYER}/probes-train.json"}
        inputs |= {"probe_store": f"{LAYER}/probes-train.zarr"}
    files = {"manifest": "sae.json", "cfg": "cfg.json", "weights": "sae_weights.safetensors"}
    files |= {"history": "training.csv"}
    outputs = {key: f"{LAYER}/sae/{name}/{file}" for key, file in files.items()}
    stage = "train_sae" if objective == "mse" else f"train_{objective}"
    return job(stage, SOURCE | inputs, outputs, {**WHERE, "sae": name})


def draws(number: int) -> np.random.Generator:
    """Random moments, the same on every run; others where STREAMGAUGE_SEED is set."""
    return np.random.default_rng([int(os.environ.get("STREAMGAUGE_SEED", "0")), number])


def start(folder: Path, job: dict):
    """Start a job in a process of its own."""
    process = PROCESSES.Process(target=run, args=(folder, keyed(job)))
    process.start()
    return process


def keyed(job: dict) -> dict:
    """A job with the key of its artifact, as `run` wants it."""
    at = {name: value for name, value in job["wildcards"].items() if name not in ("part", "parts")}
    return {"spec": _spec(job["stage"], tuple(at.items())), **job}


def finish(folder: Path, job: dict) -> None:
    """Run a job to its end, undisturbed."""
    process = start(folder, job)
    process.join()
    assert process.exitcode == 0, (folder / "log.txt").read_text()[-2000:]


def kill(folder: Path, job: dict, progress, rng, step: int, seconds: float) -> list[int]:
    """Kill a job at random moments and begin it again, until it ends before its moment comes.

    Args:
        progress: called for what is done and cannot be lost.
        rng: draws the moments: after up to `step` more of it, and up to `seconds` more.

    Returns:
        What was done at each of the kills.
    """
    kills = []
    while True:
        goal, pause = progress() + rng.integers(step + 1), rng.uniform(0, seconds)
        process = start(folder, job)
        while process.is_alive() and progress() < goal:
            time.sleep(0.001)
        process.join(pause)
        process.kill()
        process.join()
        if process.exitcode != -signal.SIGKILL:
            assert process.exitcode == 0, (folder / "log.txt").read_text()[-2000:]
            return kills
        kills.append(progress())


def remove_outputs(folder: Path, job: dict) -> None:
    """What Snakemake does after a job that failed."""
    for path in job["output"].values():
        shutil.rmtree(folder / path, ignore_errors=True)
        (folder / path).unlink(missing_ok=True)


def run_few(folder: Path, job: dict) -> None:
    """`run` with stores of four shards, and a checkpoint after every step."""
    global TOKENS_PER_SHARD, CHECKPOINT_SECONDS
    TOKENS_PER_SHARD, CHECKPOINT_SECONDS = 8192, 0.0
    run(folder, job)


@functools.cache
def _spec(stage: str, wildcards: tuple) -> str:
    overlaid = config.load([pipeline.ROOT / "config.yaml"])
    for name, value in STUDY.items():
        overlaid[name] = overlaid[name] | value if isinstance(value, dict) else value
    return keys.spec(pipeline.ROOT, config.validate(overlaid), stage, dict(wildcards))


def run(folder: Path, job: dict, small: bool = True) -> None:
    """Run a job in this process, which from then on works in `folder`.

    Args:
        small: with small shards and frequent checkpoints: much to resume in little time.

    Raises:
        SystemExit: it failed.
    """
    os.chdir(folder)
    for path in job["output"].values():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    snakemake = SimpleNamespace(
        input=InputFiles(fromdict=job["input"]),
        output=OutputFiles(fromdict=job["output"]),
        wildcards=Wildcards(fromdict=job["wildcards"]),
        params=SimpleNamespace(spec=job["spec"]),
        resources=SimpleNamespace(device="cpu"),
        log=["log.txt"],
        threads=1,
    )
    if small:
        shards.TOKENS_PER_SHARD, shards.TOKENS_PER_CHUNK = TOKENS_PER_SHARD, TOKENS_PER_SHARD // 2
        train.train.__kwdefaults__["checkpoint_seconds"] = CHECKPOINT_SECONDS
        claims.QUIET = 0.3  # what a cut leaves half written is not waited for long
    script = pipeline.ROOT / "workflow/scripts" / job["script"]
    runpy.run_path(str(script), {"snakemake": snakemake})
