"""Two studies that share a cell, in one folder: neither replaces the other's work in silence."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest
import yaml

import pipeline
from pipeline import STUDY

FOLDER = "results/tiny/prose/L01/sae/topk-x4-k2-t1024-mse-seed0"
TABLE = "results/studies/other/grid.csv"
SMALLER = {"sae": {**STUDY["sae"], "batch_size": 32}}
TEXT = STUDY["corpora"]["prose"]


def run(folder, *arguments, check=True, **changes):
    """Snakemake on a second study, of one SAE that the first study trains too."""
    cell = {**STUDY["grid"], "layers": {"tiny": [1]}, "k": [2]}
    study = {**STUDY, "study": "other", "grid": cell, **changes}
    (folder / "other.yaml").write_text(yaml.safe_dump(study))
    return pipeline.snakemake(folder, *arguments, "--configfile", "other.yaml", check=check)


def record(folder, study):
    return folder / f"results/studies/{study}/study.json"


def test_a_run_leaves_its_record_once_before_its_first_job(finished_once):
    own = record(finished_once, "tiny")
    made = json.loads(own.read_text())
    assert made["config"]["study"] == "tiny" and f"{FOLDER}/sae.json" in made["artifacts"]
    # jobs are Snakemakes too, and leave none
    first = min((finished_once / path).stat().st_mtime_ns for path in made["artifacts"])
    assert own.stat().st_mtime_ns < first


@pytest.mark.parametrize(
    ("changes", "named", "says"),
    [
        (SMALLER, f"{FOLDER}/sae.json", "sae.batch_size was 64 and is 32"),
        ({"harvest": {"dtype": "float32"}}, "activations-train.json", "harvest.dtype was"),
        (
            {"corpora": {"prose": {**TEXT, "train_sequences": 1200}}},
            "results/tiny/prose/tokens-train.json",
            "sequences was 1100 and is 1200",
        ),
    ],
    ids=["sae", "harvest", "corpus"],
)
@pytest.mark.parametrize("how", [(), ("--dry-run",)], ids=["run", "dry"])
def test_other_settings_stop_before_any_work(finished, changes, named, says, how):
    before = pipeline.manifests(finished)
    done = run(finished, TABLE, *how, check=False, **changes)
    assert done.returncode and "Building DAG" not in done.stdout
    assert f"{named}: another study uses it (tiny)" in done.stdout and says in done.stdout
    assert "--config replace=true" in done.stdout and "Traceback" not in done.stdout
    assert pipeline.manifests(finished) == before and not record(finished, "other").exists()


def test_a_target_that_no_grid_asks_for_is_not_replaced_either(finished):
    grid = {**STUDY["grid"], "layers": {"tiny": [1]}, "k": [6]}
    done = run(finished, f"{FOLDER}/sae.json", check=False, **SMALLER, grid=grid)
    assert done.returncode and f"{FOLDER}/sae.json: another study uses it (tiny)" in done.stdout
    # nor one of another recipe
    named = {"sae": {**SMALLER["sae"], "recipe": "small"}}
    done = run(finished, f"{FOLDER}/sae.json", check=False, **named)
    assert done.returncode and "No rule to produce" in done.stdout
    assert not record(finished, "other").exists()


def test_a_dry_run_leaves_no_record(finished):
    run(finished, TABLE, "--dry-run")
    assert not record(finished, "other").exists()


def test_two_recipes_of_one_cell_lie_side_by_side(finished):
    weights = (finished / FOLDER / "sae_weights.safetensors").read_bytes()
    small = {"sae": {**SMALLER["sae"], "recipe": "small"}}
    out = run(finished, TABLE, **small).stdout
    assert f"train SAE tiny layer 01 {FOLDER.rpartition('/')[2]}-small" in out
    assert (finished / FOLDER / "sae_weights.safetensors").read_bytes() == weights
    assert (finished / f"{FOLDER}-small/sae_weights.safetensors").read_bytes() != weights
    assert record(finished, "other").exists()
    # neither has anything left to do, and both are whole
    assert pipeline.planned(finished) == set()
    assert "Nothing to be done" in run(finished, TABLE, "--dry-run", **small).stdout
    done = subprocess.run(
        [sys.executable, "-m", "streamgauge.cli.main", "verify", "--configfile", "other.yaml"],
        cwd=finished,
        env={**os.environ, "PYTHONPATH": str(finished / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "all is well" in done.stdout, done.stdout
    tables = [pd.read_csv(finished / f"results/studies/{s}/grid.csv") for s in ("tiny", "other")]
    assert list(tables[0]) == list(tables[1])


def test_what_is_said_to_be_replaced_is_and_then_the_first_study_is_stopped(finished):
    weights = (finished / FOLDER / "sae_weights.safetensors").read_bytes()
    run(finished, "saes", "--config", "replace=true", **SMALLER)
    assert (finished / FOLDER / "sae_weights.safetensors").read_bytes() != weights
    assert "Nothing to be done" in run(finished, "saes", "--dry-run", **SMALLER).stdout
    done = pipeline.snakemake(finished, "--dry-run", check=False)
    assert done.returncode and f"{FOLDER}/sae.json: another study uses it (other)" in done.stdout
    assert "sae.batch_size was 32 and is 64" in done.stdout
    planned = pipeline.planned(finished, "saes", "--config", "replace=true")
    assert planned == {f"train SAE tiny layer 01 {FOLDER.rpartition('/')[2]}"}
