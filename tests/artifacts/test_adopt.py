"""Samples of artifacts, made by the real scripts and held against what is stored."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

import pipeline
import tiny_models
from streamgauge.artifacts import adopt, keys, manifest
from streamgauge.artifacts.adopt import Rule, Sample
from streamgauge.artifacts.stages import STAGES
from streamgauge.artifacts.worker import Worker
from streamgauge.base import sealed
from streamgauge.planning import config
from streamgauge.stores.zarr_store import Store

SUBJECT = {"subject": "results/tiny/subject.json", "model": "results/tiny/model"}
CORPUS, LAYER = "results/tiny/prose", "results/tiny/prose/L01"
SAE = "topk-x4-k4-t1024-mse-seed0"
AT = {"subject": "tiny", "corpus": "prose", "ell": "01"}


def study():
    """Two shards to train on, three batches to evaluate, 64 steps of training."""
    overlaid = config.load([pipeline.ROOT / "config.yaml"])
    changes = pipeline.STUDY | {"evaluate": {"batch_size": 2}}
    changes |= {"sae": {**pipeline.STUDY["sae"], "batch_size": 16}}
    for name, value in changes.items():
        overlaid[name] = overlaid[name] | value if isinstance(value, dict) else value
    return config.validate(overlaid)


CONFIG = study()


def rule(stage, inputs, outputs, at, part=None):
    script = "part.py" if "part" in at else STAGES[stage].script
    named = {name: value for name, value in at.items() if name not in ("part", "parts")}
    spec = keys.spec(pipeline.ROOT, CONFIG, stage, named)
    script = str(pipeline.ROOT / "workflow/scripts" / script)
    return Rule(script, inputs, outputs, at, spec, "cpu", 1, part)


def store(split):
    """The rule that gathers the activations of a split, with that of its only part."""
    tokens = f"{CORPUS}/tokens-{split}"
    inputs = SUBJECT | {"tokens": f"{tokens}.json", "token_store": f"{tokens}.zarr"}
    receipt = f"{LAYER}/.activations-{split}.part-0-of-1"
    at = AT | {"split": split}
    part = rule("harvest", inputs, {0: receipt}, at | {"part": "0", "parts": "1"})
    outputs = {"manifest": f"{LAYER}/activations-{split}.json"}
    outputs |= {"store": f"{LAYER}/activations-{split}.zarr"}
    return rule("harvest", inputs | {"parts": [receipt]}, outputs, at, part)


def activations(split):
    made = store(split).output
    return {"activations": made["manifest"], "store": made["store"]}


def rules():
    """All that is made here, by name, in order."""
    prepared = {"manifest": SUBJECT["subject"], "model": SUBJECT["model"]}
    found = {"subject": rule("subject", {}, prepared, {"subject": "tiny"})}
    for split in ("train", "eval"):
        outputs = {"manifest": f"{CORPUS}/tokens-{split}.json"}
        outputs |= {"store": f"{CORPUS}/tokens-{split}.zarr"}
        at = {"subject": "tiny", "corpus": "prose", "split": split}
        found[f"tokens {split}"] = rule("tokens", SUBJECT, outputs, at)
    found["store"] = store("train")
    found["eval"] = store("eval")
    rows = {"tokens": f"{CORPUS}/tokens-eval.json", "token_store": f"{CORPUS}/tokens-eval.zarr"}
    outputs = {"manifest": f"{LAYER}/baseline.json", "table": f"{LAYER}/baseline.parquet"}
    found["table"] = rule("baseline", SUBJECT | rows | activations("eval"), outputs, AT)
    names = {"manifest": "sae.json", "cfg": "cfg.json", "weights": "sae_weights.safetensors"}
    names |= {"history": "training.csv"}
    outputs = {name: f"{LAYER}/sae/{SAE}/{file}" for name, file in names.items()}
    found["training"] = rule("train_sae", activations("train"), outputs, AT | {"sae": SAE})
    return found


RULES = rules()


@pytest.fixture(scope="module")
def worker():
    with Worker() as found:
        yield found


@pytest.fixture(scope="module")
def made(tmp_path_factory, worker):
    """A folder in which all of `RULES` has been made, as the working directory."""
    folder = tmp_path_factory.mktemp("made")
    tiny_models.tiny_llama(folder / "model")
    pipeline.prose(folder / "prose.txt")
    before = os.getcwd()
    os.chdir(folder)
    for each in RULES.values():
        for one in filter(None, [each.part, each]):
            job = {"input": one.input, "output": one.output, "wildcards": one.wildcards}
            job |= {"params": {"spec": one.spec}, "resources": {"device": "cpu"}, "threads": 1}
            for path in one.output.values():
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            status = worker.run(one.script, job, Path("log"))
            assert status == 0, Path("log").read_text()[-2000:]
    yield folder
    os.chdir(before)


@pytest.fixture
def results(made):
    """The results, put back as they were."""
    shutil.copytree("results", "kept", symlinks=True)
    yield Path("results")
    shutil.rmtree("results")
    os.rename("kept", "results")


def sampled(name, worker, sample=None):
    """The differences of a sample, the smallest there is, and its folder's remains."""
    path = Path(RULES[name].output["manifest"])
    sample = sample or adopt.choose(path, CONFIG, whole=False)
    with adopt.scratch(Path("results")) as folder:
        found = adopt.differences(RULES[name], sample, folder, worker)
        assert not list(folder.iterdir())
    return found


def write_again(name):
    """The manifest of what lies there now."""
    path = Path(RULES[name].output["manifest"])
    record = manifest.read(path)
    files = [file for key, file in RULES[name].output.items() if key != "manifest"]
    inputs = [path.parent / source for source in record["inputs"]]
    manifest.write(path, json.dumps(record["spec"]), files, inputs, record["facts"])


# --- what is made anew --------------------------------------------------------------------------
def test_outdated_is_what_differs_in_the_code_alone():
    recorded = {"stage": "s", "config": {"a": 1}, "wildcards": {}, "code": {"m": "1"}}
    assert adopt.outdated(recorded, json.dumps(recorded | {"code": {"m": "2"}}))
    assert not adopt.outdated(recorded, json.dumps(recorded))
    other = recorded | {"config": {"a": 2}}
    assert not adopt.outdated(recorded, json.dumps(other))
    assert not adopt.outdated(recorded, json.dumps(other | {"code": {"m": "2"}}))


def test_a_part_of_what_is_dear_is_made_anew(made):
    paths = {name: Path(each.output["manifest"]) for name, each in RULES.items()}
    chosen = {name: adopt.choose(path, CONFIG, whole=False) for name, path in paths.items()}
    assert chosen["subject"].kind == chosen["tokens eval"].kind == "whole"
    assert chosen["eval"].kind == "whole"  # it has one shard
    assert chosen["table"].kind == "sequences" and chosen["table"].share == 1 / 3
    assert chosen["training"].kind == "steps" and chosen["training"].steps == 20
    assert chosen["training"].words == "steps 1 to 20 of 64"
    for path in paths.values():
        assert adopt.choose(path, CONFIG, whole=True).kind == "whole"


def test_the_shards_are_the_first_and_one_that_the_digest_draws(made, results):
    path = Path(RULES["store"].output["manifest"])
    record = manifest.read(path)
    shards = [f"activations-train.zarr/activations/c/{i}/0/0" for i in range(1000)]
    drawn = set()
    for digest in "abcdef":
        found = record | {"files": record["files"] | dict.fromkeys(shards, ""), "digest": digest}
        path.write_text(sealed.text(found))
        sample = adopt.choose(path, CONFIG, whole=False)
        assert sample == adopt.choose(path, CONFIG, whole=False)
        assert sample.shards[0] == (0, 1000) and len(sample.shards) == 2
        drawn.add(sample.shards[1])
    assert len(drawn) > 3


# --- and held against what is stored ------------------------------------------------------------
SECOND = Sample("shards", "", shards=((1, 2),))


@pytest.mark.parametrize("name", ["tokens eval", "store", "table", "training"])
def test_what_today_s_code_made_is_equal(results, worker, name):
    assert sampled(name, worker, SECOND if name == "store" else None) == []
    whole = adopt.choose(Path(RULES[name].output["manifest"]), CONFIG, whole=True)
    assert sampled(name, worker, whole) == []


def alter_shard(number):
    """Another value in a shard of the activations, with the checksum it should have."""
    store = Store(f"{LAYER}/activations-train.zarr", writable=True)
    rows = store.shard_rows("activations")
    values = store.read("activations", number * rows, (number + 1) * rows)
    values[3, 5, 7] *= 2
    store.write("activations", number * rows, values)
    write_again("store")


@pytest.mark.parametrize(
    ("shard", "file"), [(1, "activations/c/1/0/0"), (0, "norm/c/0/0"), (0, "mean/c/0/0")]
)
def test_another_value_in_a_store_is_found(results, worker, shard, file):
    alter_shard(shard)
    found = sampled("store", worker, SECOND)
    assert f"activations-train.zarr/{file} differs" in found


def test_the_shards_of_a_store_are_not_touched(results, worker):
    folder = results / "tiny/prose/L01/activations-train.zarr"
    before = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
    os.chmod(next(iter(before)), 0o444)
    assert sampled("store", worker, SECOND) == []
    for path, was in before.items():
        now = path.stat()
        assert (now.st_ino, now.st_mtime_ns, now.st_nlink) == (was.st_ino, was.st_mtime_ns, 1)
    assert next(iter(before)).stat().st_mode & 0o777 == 0o444


def test_another_value_in_a_table_is_found_in_its_first_batch_alone(results, worker):
    path = results / "tiny/prose/L01/baseline.parquet"
    table = pd.read_parquet(path)
    last = len(table) - 1
    table.loc[last, "sse_all"] += 1e-9
    table.to_parquet(path, index=False)
    write_again("table")
    assert sampled("table", worker) == []
    table.loc[2, "sse_all"] = 5.0
    table.to_parquet(path, index=False)
    write_again("table")
    (found,) = sampled("table", worker)
    assert found.startswith("baseline.parquet differs: row 2, sse_all was 5.0 and is ")


@pytest.mark.parametrize(
    ("file", "old", "new", "reason"),
    [
        ("training.csv", "\n7,112,", "\n7,112,1", "training.csv differs in row 7"),
        ("cfg.json", '"seed": 0', '"seed": 1', "cfg.json differs"),
        ("sae.json", '"scale": ', '"scale": 1', "scale was "),
    ],
)
def test_another_beginning_of_a_training_is_found(results, worker, file, old, new, reason):
    path = results / f"tiny/prose/L01/sae/{SAE}/{file}"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    if path.name == "sae.json":
        path.write_text(sealed.text(json.loads(path.read_text())))
    write_again("training")
    (found,) = sampled("training", worker)
    assert found.startswith(reason)


def test_other_inputs_are_found(results, worker):
    path = Path(RULES["table"].output["manifest"])
    record = manifest.read(path)
    record["inputs"].popitem()
    path.write_text(sealed.text(record))
    assert "made from other artifacts" in sampled("table", worker)[0]


def test_what_cannot_be_made_is_said(results, worker):
    shutil.rmtree(results / "tiny/model")
    (found,) = sampled("table", worker)
    assert found.startswith("could not be sampled: ") and "model" in found


# --- taking over --------------------------------------------------------------------------------
def test_a_manifest_changes_its_spec_and_nothing_else(results):
    path = Path(RULES["table"].output["manifest"])
    before, time = manifest.read(path), path.stat().st_mtime_ns
    os.chmod(path, 0o640)
    spec = json.dumps(before["spec"] | {"code": {"m": "1"}})
    manifest.replace(path, manifest.under(path, spec))
    assert manifest.read(path) == sealed.sealed(before | {"spec": json.loads(spec)})
    assert (path.stat().st_mtime_ns, path.stat().st_mode & 0o777) == (time, 0o640)
    assert manifest.problems(path) == []


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / ".adopt-0123/deep").mkdir(parents=True)
    with adopt.scratch(tmp_path) as folder:
        assert list(tmp_path.iterdir()) == [folder]
        (folder / "x").touch()
    assert not list(tmp_path.iterdir())


# --- the processes ------------------------------------------------------------------------------
def run(worker, tmp_path, text, threads=1, **job):
    script = tmp_path / "script.py"
    script.write_text(text)
    job = {key: {} for key in ("input", "wildcards", "params", "resources")} | job
    job |= {"output": {"x": str(tmp_path / "x")}, "threads": threads}
    return worker.run(str(script), job, tmp_path / "log")


def test_a_script_gets_what_snakemake_would_give_it(tmp_path, worker):
    text = """
import os
assert dict(snakemake.input.items()) == {"a": "b"} and snakemake.input.a == "b"
assert getattr(snakemake.resources, "device", "none") == "none"
assert os.environ["OMP_NUM_THREADS"] == str(snakemake.threads) == "2"
open(snakemake.output.x, "w").write(snakemake.log[0])
"""
    assert run(worker, tmp_path, text, threads=2, input={"a": "b"}) == 0, (
        tmp_path / "log"
    ).read_text()
    assert (tmp_path / "x").read_text() == str(tmp_path / "log")


def test_a_script_that_fails_is_nobody_else_s_trouble(tmp_path, worker):
    assert run(worker, tmp_path, "import sys; sys.exit(3)") == 1
    assert run(worker, tmp_path, "import os; os.kill(os.getpid(), 9)") == -9
    assert run(worker, tmp_path, "1 / 0") == 1
    assert "ZeroDivisionError" in (tmp_path / "log").read_text()
    assert run(worker, tmp_path, "pass") == 0


def test_a_script_ends_with_whoever_started_it(tmp_path):
    parent = """
import sys
from pathlib import Path
from streamgauge.artifacts.worker import Worker
from streamgauge.base import sealed
job = dict.fromkeys(("input", "output", "wildcards", "params", "resources"), {}) | {"threads": 1}
Worker().run(sys.argv[1], job, Path(sys.argv[2]))
"""
    script = tmp_path / "script.py"
    pid = tmp_path / "pid"
    script.write_text(
        f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    )
    words = [sys.executable, "-c", parent, str(script), str(tmp_path / "log")]
    with subprocess.Popen(words) as started:
        wait_for(lambda: pid.exists() and pid.read_text())
        started.kill()
    wait_for(lambda: not Path(f"/proc/{pid.read_text()}").exists())


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
