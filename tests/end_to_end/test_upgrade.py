"""After an upgrade: what today's code would make again is taken over, everything else is not."""

import ast
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

import pipeline

# minutes; the samples themselves are tested in tests/artifacts/test_adopt.py
pytestmark = pytest.mark.cluster

LAYER = "results/tiny/prose/L01"
SAE = f"{LAYER}/sae/topk-x4-k2-t1024-mse-seed0"
STUDY = "results/studies/tiny"
TEXT = {"capture_output": True, "text": True}

# functions that stages of every kind reach, and that do nothing new
TOUCHED = {
    "models/corpora.py": "token_rows",
    "passes/harvest.py": "_Forward.__call__",
    "passes/gather.py": "activations",
    "passes/gradients.py": "of_summed_loss",
    "passes/critics.py": "measure",
    "numerics/metrics.py": "kl_per_position",
    "sae/step.py": "Step.gradients",
    "studies/score_card.py": "scorecard",
    "report/score_figures.py": "pr_canyon",
}


def command(*arguments):
    words = [sys.executable, "-m", "streamgauge.cli.main", "adopt", *arguments]
    return [*words, "--cores", "2", "--configfile", "study.yaml"]


def environment(folder):
    return {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(folder / "src")}


def adopt(folder, *arguments):
    """(paths adopted, path -> reasons of what stays stale), from the account."""
    words = command("--json", *arguments)
    done = subprocess.run(words, cwd=folder, env=environment(folder), **TEXT)
    assert done.returncode in (0, 1), done.stderr[-3000:]
    account = json.loads(done.stdout)
    taken = [item["path"] for item in account["artifacts"] if not item["reasons"]]
    left = {item["path"]: item["reasons"] for item in account["artifacts"] if item["reasons"]}
    assert done.returncode == bool(left)
    assert all(item["sample"] for item in account["artifacts"] if not item["reasons"])
    assert not list((folder / "results").glob(".adopt*"))
    return taken, left


def do_nothing_new(folder, module, name):
    """Add an assignment that nobody reads to the beginning of a function of the library."""
    path = folder / "src/streamgauge" / module
    lines = path.read_text().splitlines(keepends=True)
    found = ast.parse("".join(lines))
    for part in name.split("."):
        found = next(node for node in found.body if getattr(node, "name", None) == part)
    first = found.body[bool(ast.get_docstring(found))]
    lines.insert(first.lineno - 1, " " * first.col_offset + "unread = 0\n")
    path.write_text("".join(lines))


def change(folder, module, old, new):
    path = folder / "src/streamgauge" / module
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} is there once"
    path.write_text(text.replace(old, new))


def files(folder):
    """What tells a file of the results from another, by path; of manifests only the time."""
    manifests = set(pipeline.manifests(folder))
    found = {}
    for path in (path for path in (folder / "results").rglob("*") if not path.is_dir()):
        name, state = str(path.relative_to(folder / "results")), path.lstat()
        found[name] = (state.st_mtime_ns, name not in manifests and state.st_ino)
    return found


def verify(folder):
    words = [sys.executable, "-m", "streamgauge.cli.main", "verify", "--configfile", "study.yaml"]
    done = subprocess.run(words, cwd=folder, env=environment(folder), **TEXT)
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def upgraded(finished):
    """The study after an upgrade that changed no number and an adoption that was killed once.

    With what was there before, and what the second adoption took over.
    """
    # made again alone: newer than what was made from it, and equal
    (finished / f"{LAYER}/critics.json").unlink()
    pipeline.snakemake(finished, f"{LAYER}/critics.json")
    assert not pipeline.planned(finished)
    before = files(finished)
    for module, name in TOUCHED.items():
        do_nothing_new(finished, module, name)
    stale = pipeline.planned(finished)
    with subprocess.Popen(
        command(), cwd=finished, env=environment(finished), stdout=subprocess.PIPE, text=True
    ) as first:
        said = [first.stdout.readline() for _ in range(12)]
        first.send_signal(signal.SIGKILL)
    assert all(line.startswith("adopted: ") for line in said)
    refused = subprocess.run(command(), cwd=finished, env=environment(finished), **TEXT)
    assert refused.returncode == 2 and "locked" in refused.stderr
    pipeline.snakemake(finished, "--unlock")
    taken, left = adopt(finished, "--whole", "0")
    assert not left
    assert not {line.split()[1] for line in said[:-1]} & set(taken)
    return finished, before, stale, taken


def test_what_is_equal_is_taken_over_and_nothing_else_is_touched(upgraded):
    folder, before, stale, taken = upgraded
    assert len(stale) > 40
    assert len(taken) > 10
    assert not pipeline.planned(folder)
    assert verify(folder)[-1].endswith("all is well")
    assert files(folder) == before


@pytest.fixture
def study(upgraded, tmp_path):
    """A copy of the adopted study, to be changed."""
    folder = tmp_path / "copy"
    shutil.copytree(upgraded[0], folder, symlinks=True)
    return folder


PLANTED = {
    "harvest": (
        *("passes/harvest.py", "[self._layer])[self._layer]", "[self._layer])[self._layer] * 1.01"),
        *(f"{LAYER}/activations-eval.json", "activations-eval.zarr/activations/c/0/0/0 differs"),
    ),
    "gather": (
        *("numerics/token_sets.py", "SINK_FACTOR = 10.0", "SINK_FACTOR = 9.0"),
        *(f"{LAYER}/activations-train.json", "sink_threshold"),
    ),
    "gradients": (
        *("passes/gradients.py", 'return {"gradients": g}', 'return {"gradients": g * 1.01}'),
        *(f"{LAYER}/gradients-eval.json", "gradients-eval.zarr/gradients/c/0/0/0 differs"),
    ),
    "evaluation": (
        *("passes/evaluate.py", '"dot_sum": metrics.dot', '"dot_sum": 1.01 * metrics.dot'),
        *(f"{SAE}/per_sequence.json", "per_sequence.parquet differs"),
    ),
    "training": (
        *("sae/step.py", "direction.sum(0).mul_(2 / n)", "direction.sum(0).mul_(2.01 / n)"),
        *(f"{SAE}/sae.json", "training.csv differs"),
    ),
    "trained": (
        *("sae/topk.py", "b_enc=self.b_enc / scale", "b_enc=self.b_enc / (1.01 * scale)"),
        *(f"{SAE}/sae.json", "sae_weights.safetensors differs"),
    ),
    "table": (
        *(
            "numerics/metrics.py",
            "k: int, bits_per_value: float = 8",
            "k: int, bits_per_value: float = 9",
        ),
        *(f"{SAE}/scores.json", "rate_bits"),
    ),
    "figure": (
        *("report/score_figures.py", "color=PALE, lw=4, zorder=0", "color=PALE, lw=5, zorder=0"),
        *(f"{STUDY}/figures/pr_canyon.json", "pr_canyon.svg differs"),
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_number_that_changes_is_found(study, name):
    module, old, new, path, reason = PLANTED[name]
    before, manifests = files(study), pipeline.manifests(study)
    change(study, module, old, new)
    taken, left = adopt(study, path)
    assert not taken and list(left) == [path]
    assert any(reason in line for line in left[path]), left
    assert (files(study), pipeline.manifests(study)) == (before, manifests)


def test_what_is_made_from_a_stale_artifact_waits_for_it(study):
    do_nothing_new(study, "studies/score_card.py", "grid_table")
    change(study, "numerics/metrics.py", *PLANTED["table"][1:3])
    before, manifests = pipeline.planned(study), pipeline.manifests(study)
    taken, left = adopt(study, STUDY, f"{SAE}/scores.json")
    assert not taken
    assert left[f"{STUDY}/grid.json"] == [f"it is made from {SAE}/scores.json, which stays stale"]
    assert pipeline.planned(study) == before
    assert pipeline.manifests(study) == manifests


def test_other_settings_are_not_adopted(study):
    do_nothing_new(study, "passes/evaluate.py", "_Batch.tables")
    pipeline.write(study, {**pipeline.STUDY, "evaluate": {"batch_size": 4}})
    taken, left = adopt(study, f"{LAYER}/baseline.json")
    assert not taken
    assert "evaluate.batch_size was 8 and is 4 in the config" in left[f"{LAYER}/baseline.json"]


@pytest.mark.parametrize(
    ("module", "function", "path", "file", "reason"),
    [
        (
            *("studies/score_card.py", "grid_table", f"{STUDY}/grid.json"),
            *("grid.csv", "grid.csv has changed since it was written"),
        ),
        (
            *("passes/gather.py", "activations", f"{LAYER}/activations-train.json"),
            *("activations-train.zarr/activations/c/1/0/0", "shard 1 of array 'activations'"),
        ),
        (
            *("passes/gather.py", "activations", f"{LAYER}/activations-train.json"),
            *("activations-train.zarr/norm/c/0/0", "activations-train.zarr/norm/c/0/0 differs"),
        ),
    ],
    ids=["table", "shard", "norms"],
)
def test_a_damaged_artifact_is_not_adopted(study, module, function, path, file, reason):
    do_nothing_new(study, module, function)
    damaged = (study / path).with_name(file.split("/")[0]).parent / file
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    taken, left = adopt(study, path, "--whole", "0")
    assert not taken
    assert any(reason in line for line in left[path]), left
    assert damaged.read_bytes() == content


def test_what_would_take_too_long_stays_stale(study):
    do_nothing_new(study, "passes/critics.py", "measure")
    path = f"{LAYER}/critics.json"
    taken, left = adopt(study, path, "--at-most", "0")
    assert not taken and "--at-most" in left[path][0]
