"""Change one thing, and exactly what depends on it would run: the promise, row by row."""

import subprocess

import pytest

import pipeline
from messages import (
    ATTENTION,
    BELOW_SAES,
    BELOW_SCORES,
    CALIBRATION,
    COMPARISONS,
    FIGURES,
    VERDICTS,
    backward,
    baselines,
    calibrations,
    critics,
    harvests,
    saes,
    stores,
)
from pipeline import STUDY, planned
from source_edits import add_line


@pytest.fixture(scope="module")
def repository(finished):
    """The finished study under version control, as a user's would be."""
    (finished / ".gitignore").write_text("results\nlogs\ndone\n.snakemake\n__pycache__\n")
    git(finished, "init", "-q")
    git(finished, "add", ".")
    git(finished, "commit", "-qm", "start")
    return finished


@pytest.fixture
def project(repository):
    """The finished study; edits to tracked files are undone afterwards."""
    yield repository
    git(repository, "checkout", "-q", "start")
    git(repository, "checkout", "-q", "--", ".")


def git(folder, *arguments):
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=start")
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


def edit_grid(key, value):
    return lambda p: pipeline.write(p, {**STUDY, "grid": {**STUDY["grid"], key: value}})


def edit_block(block, **changes):
    return lambda p: pipeline.write(p, {**STUDY, block: {**STUDY.get(block, {}), **changes}})


def line(function):
    return lambda project: add_line(project, function)


def touch_everything(project):
    for path in project.rglob("*"):
        if path.is_file() and not {".git", ".snakemake"} & set(path.relative_to(project).parts):
            path.touch()


def touch_store(project):
    for path in (project / "results/tiny/prose/L01/activations-train.zarr").rglob("*"):
        path.touch()


def checkout(project):
    """Switch to a branch with other code and back: file times change, content does not."""
    git(project, "checkout", "-qb", "other")
    line("numerics/metrics.py:r_squared_from_totals")(project)
    git(project, "commit", "-qam", "other")
    git(project, "checkout", "-q", "start")
    git(project, "branch", "-qD", "other")


OWN = "results/tiny/prose/L01/sae/topk-x4-k2-t1024-mse-seed0"
IMPORT = {"path": OWN, "subject": "tiny", "corpus": "prose", "layer": 1}

ROWS = {
    "nothing": (lambda p: None, set()),
    "a k added": (edit_grid("k", [2, 4, 6]), saes(ks=(6,)) | BELOW_SAES),
    "a k dropped": (edit_grid("k", [2]), BELOW_SAES),
    "a seed added": (edit_grid("seeds", [0, 1]), saes(seeds=(1,)) | BELOW_SAES),
    "a layer added": (
        edit_grid("layers", {"tiny": [1, 2, 3]}),
        harvests(["03"])
        | baselines(["03"])
        | backward(["03"])
        | calibrations(["03"])
        | saes(layers=["03"])
        | BELOW_SAES
        | critics(["03"])
        | {"figure pr_canyon"},
    ),
    "the SAE learning rate": (edit_block("sae", **STUDY["sae"], lr=0.01), saes() | BELOW_SAES),
    "the number of resamples": (
        edit_block("statistics", resamples=300),
        saes(["score"]) | BELOW_SCORES | CALIBRATION | ATTENTION,
    ),
    "an objective added": (
        edit_grid("objectives", ["mse", "behavioral"]),
        stores(["probes"], splits=["train"]) | saes(objective="behavioral") | BELOW_SAES,
    ),
    "the number of probes": (
        edit_block("probes", count=4),
        backward(names=["probes"])
        | calibrations()
        | saes(["sensitivity", "score"])
        | BELOW_SCORES
        | CALIBRATION,
    ),
    "how gradients are stored": (
        edit_block("gradients", dtype="float32"),
        backward(names=["gradients"]) | saes(["sensitivity", "score"]) | BELOW_SCORES | CALIBRATION,
    ),
    "the sizes of the synthetic errors": (
        edit_block("calibration", scales=[0.01]),
        calibrations() | CALIBRATION,
    ),
    "the sequences attention is read on": (
        edit_block("attention", sequences=2),
        saes(["attention"]) | ATTENTION,
    ),
    "the steps of a critic": (edit_block("critics", **STUDY["critics"], lr=0.01), critics()),
    "the targets of k*": (edit_block("comparisons", targets=[0.5]), COMPARISONS),
    "the margin of a verdict": (edit_block("verdicts", margin=0.1), VERDICTS),
    "depths get names": (edit_grid("depths", ["early", "late"]), COMPARISONS),
    "how scratch models are pretrained": (edit_block("pretrain", tokens=1000), set()),
    "what a cluster is asked for": (edit_block("resources", mem_mb=1000), set()),
    "the number of parts a store is written in": (edit_block("scatter", harvest=16384), set()),
    "an SAE to audit": (
        edit_block("imports", theirs=IMPORT),
        {"import SAE theirs for tiny layer 01"}
        | {f"{verb} SAE tiny layer 01 theirs" for verb in ("evaluate", "sensitivity", "score")}
        | {"audit SAE tiny layer 01 theirs"},
    ),
    "a figure title": (
        edit_block("figures", pr_canyon={"title": "Another"}),
        {"figure pr_canyon"},
    ),
    "where it runs": (lambda p: pipeline.write(p, {**STUDY, "device": "auto"}), set()),
    "a line of a metric that passes sum": (
        line("numerics/metrics.py:cosine_per_token"),
        saes(["evaluate", "score"]) | baselines() | BELOW_SCORES | CALIBRATION,
    ),
    "a line of a metric of totals": (
        line("numerics/metrics.py:r_squared_from_totals"),
        saes(["score"]) | BELOW_SCORES,
    ),
    "a line of the harvest": (
        line("passes/harvest.py:harvest"),
        harvests() | baselines() | calibrations() | saes() | BELOW_SAES | critics(),
    ),
    "a line of every figure": (line("report/drawing.py:settle"), FIGURES),
    "a touched store": (touch_store, set()),
    "everything touched": (touch_everything, set()),
    "a git checkout": (checkout, set()),
}


@pytest.mark.parametrize("name", ROWS)
def test_exactly_what_depends_on_it(project, name):
    change, expected = ROWS[name]
    change(project)
    assert planned(project) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("studies/tiny/figures/pr_canyon.svg", {"figure pr_canyon"}),
        ("studies/tiny/grid.csv", BELOW_SCORES),
    ],
)
def test_what_is_deleted_is_made_again(project, name, expected):
    path = project / "results" / name
    kept = path.read_bytes()
    path.unlink()
    try:
        assert planned(project) == expected
    finally:
        path.write_bytes(kept)
