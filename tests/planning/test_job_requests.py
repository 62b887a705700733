"""What jobs ask a cluster for: by hand, growing with the work, and against real jobs."""

import copy
import multiprocessing
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_models
from streamgauge.artifacts import costs
from streamgauge.artifacts.stages import STAGES
from streamgauge.planning import config, job_requests

ROOT = Path(__file__).resolve().parents[2]
BASE = config.load([ROOT / "config.yaml"])
D, L, V = 512, 8, 32000
SHAPE = {"d_model": D, "n_layers": L, "vocab_size": V, "n_ctx": 128}
WEIGHTS = 4 * (12 * D * D * L + 2 * D * V)
AT = {
    **{"subject": "smollm2-135m", "corpus": "python-docs", "ell": "05", "split": "train"},
    **{"sae": "topk-x8-k32-t50000-mse-seed0", "part": "1", "parts": "4"},
    **{"prompts": "math", "k_sub": "20", "source": "mean", "penalty": "0.01"},
}
# stages that run a model or train
COMPUTE = (
    *("subject", "pretrain", "tokens", "spectra", "harvest", "gradients", "probes"),
    *("calibration", "baseline", "train_sae", "train_behavioral", "train_e2e", "evaluate"),
    *("sensitivity", "attention", "critics", "import_sae"),
    *("geometry", "basis", "states", "patching", "ard"),
)


def study(**blocks):
    changed = copy.deepcopy(BASE)
    for name, block in blocks.items():
        changed[name] = {**changed[name], **block} if isinstance(block, dict) else block
    return config.validate(changed)


def corpus(**keys):
    return {"python-docs": {**BASE["corpora"]["python-docs"], **keys}}


def asked(study, stage, at=AT, shape=SHAPE, attempt=1):
    return job_requests.job(study, stage, at, shape, attempt)


def megabytes(n):
    """What is held at once, half as much again, in hundreds of MB, beside the libraries."""
    return 1000 + -(-n * 1.5 // 1e8) * 100


# --- by hand ------------------------------------------------------------------------------------
def test_a_training_by_hand():
    small = study(sae={"batch_size": 1000, "pool_tokens": 50_000})
    at = AT | {"sae": "topk-x64-k16-t1000000000-mse-seed0"}
    m = 64 * D
    # seven copies of two matrices, four batches of latents, three pools; in float32
    held = 4 * (7 * 2 * D * m + 4 * 1000 * m + 3 * 50_000 * D)
    # 8 threads at 0.05 TFLOP/s, and 16-bit activations read at 100 MB/s; three times that
    seconds = 1e9 * (2 * D * m + 8 * D * 16) / 0.4e12 + 1e9 * 2 * D / 1e8
    minutes = 10 + -(-3 * seconds // 60)
    assert asked(small, "train_sae", at) == {"mem_mb": megabytes(held), "runtime": minutes}
    assert asked(small, "train_sae", at)["runtime"] > 300


def test_a_part_of_a_harvest_by_hand():
    large = study(corpora=corpus(context_length=128, train_sequences=4_000_000))
    tokens = 128 * 4_000_000
    # weights, three shards of 16,384 tokens, and one batch of 8 rows in one block
    held = WEIGHTS + 4 * 3 * 16384 * D + 4 * 8 * 128 * 20 * D
    flops, written = 24 * D * D * 6 * tokens / 4, (2 * D + 4) * tokens / 4
    minutes = 10 + -(-3 * (flops / 0.4e12 + written / 1e8) // 60)
    assert asked(large, "harvest") == {"mem_mb": megabytes(held), "runtime": minutes}
    whole = {name: value for name, value in AT.items() if name not in ("part", "parts")}
    # the gather reads the store and runs no model
    gather = {"mem_mb": 2000, "runtime": 10 + -(-3 * 2 * 4 * written / 1e8 // 60)}
    assert asked(large, "harvest", whole) == gather


def test_an_evaluation_by_hand():
    valid = study(evaluate={"batch_size": 4}, corpora=corpus(context_length=100, eval_sequences=9))
    m = 8 * D
    held = WEIGHTS + 4 * (2 * 2 * D * m + 4 * 400 * m) + 4 * 400 * (4 * V + 20 * D)
    assert asked(valid, "evaluate")["mem_mb"] == megabytes(held)
    above = 24 * D * D * 2 + 2 * D * V
    flops = 900 * (24 * D * D * L + 2 * D * V + 4 * (2 * D * m + 2 * D * 32 + above))
    assert asked(valid, "evaluate")["runtime"] == 10 + -(-3 * flops / 0.4e12 // 60)


def test_a_gpu_takes_the_tables_and_the_work():
    on_cpu, on_gpu = study(device="cpu"), study(device="cuda")
    for stage in ("gradients", "probes", "train_e2e"):
        tokens = AT | {"sae": "topk-x8-k32-t100000000-e2e-seed0"}
        cpu, gpu = asked(on_cpu, stage, tokens), asked(on_gpu, stage, tokens)
        assert gpu["runtime"] <= cpu["runtime"]
    wide = (
        study(device="cuda", probes={"batch_size": 8}),
        study(device="cuda", probes={"batch_size": 64}),
    )
    assert asked(wide[0], "probes") == asked(wide[1], "probes")
    host = 1000 + 3000 + -(-1.5 * (WEIGHTS + 4 * 3 * 16384 * D) // 1e8) * 100
    assert asked(wide[0], "probes")["mem_mb"] == host
    # a long training is 50 times faster there
    long = AT | {"sae": "topk-x8-k32-t10000000000-e2e-seed0"}
    assert (
        asked(on_gpu, "train_e2e", long)["runtime"]
        < asked(on_cpu, "train_e2e", long)["runtime"] / 20
    )


def test_explicit_numbers_win_and_grow_with_the_attempt():
    own = study(resources={"mem_mb": 7777, "runtime": 33})
    for stage in COMPUTE:
        assert asked(own, stage) == {"mem_mb": 7777, "runtime": 33}
        assert asked(own, stage, attempt=3) == {"mem_mb": 3 * 7777, "runtime": 99}
    # they are for jobs that run a model or train
    assert asked(own, "verdicts") == {"mem_mb": 2000, "runtime": 10}


def test_one_number_given_leaves_the_other_estimated():
    estimated = asked(study(), "evaluate")
    assert asked(study(resources={"runtime": 99}), "evaluate") == estimated | {"runtime": 99}


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_asks_and_asks_for_more(stage):
    first, second = (asked(study(), stage, shape=None, attempt=n) for n in (1, 2))
    assert first.keys() == {"mem_mb", "runtime"}
    for name, value in first.items():
        assert isinstance(value, int) and value > 0
        assert second[name] == 2 * value
    assert (first["mem_mb"] != job_requests.SMALL) == (stage in COMPUTE)


def test_rates_come_from_the_config():
    at = AT | {"sae": "topk-x8-k32-t1000000000-mse-seed0"}

    def minutes(**resources):
        return asked(study(resources=resources), "train_sae", at)["runtime"] - job_requests.START

    reading = 3 * 1e9 * 2 * D / 1e8 / 60
    computing = minutes() - reading
    assert minutes(threads=16) - reading == pytest.approx(computing / 2, abs=2)
    assert minutes(tflops=4) - reading == pytest.approx(computing / 10, abs=2)
    # a rate that is given is the job's, whatever its threads
    assert minutes(tflops=4, threads=1) == minutes(tflops=4)


def test_threads():
    assert job_requests.threads(study(), 12) == 6
    assert job_requests.threads(study(), 1) == 1
    assert job_requests.threads(study(), None) == job_requests.THREADS
    assert job_requests.threads(study(resources={"threads": 3}), 12) == 3
    assert job_requests.threads(study(resources={"threads": 3}), None) == 3


def test_an_unknown_subject_counts_as_a_large_one():
    large = job_requests.UNKNOWN
    assert 1e9 < large.parameters < 2e9
    for stage in COMPUTE:
        assert asked(study(), stage, shape=None) == asked(study(), stage, shape=large._asdict())


def test_a_scratch_model_has_the_familys_vocabulary():
    block = {"source": "scratch", "d_model": D, "n_layers": L, "n_heads": 8}
    valid = study(pretrain={"vocab_size": V})
    assert asked(valid, "harvest", shape=block) == asked(valid, "harvest")


def test_an_imported_sae_counts_as_a_wide_one():
    theirs, own = AT | {"sae": "theirs"}, AT | {"sae": "topk-x32-k64-t1-mse-seed0"}
    for stage in ("evaluate", "sensitivity", "attention"):
        assert asked(study(), stage, theirs) == asked(study(), stage, own)
    assert costs.sae(study(), theirs, D) == (32 * D, 64, 0)


# --- more work never asks for less --------------------------------------------------------------
# every quantity a request may depend on: where it is, and its smallest value
QUANTITIES = {
    **{("shape", name): 2 for name in costs.Shape._fields},
    **{("corpus", name): 2 for name in ("context_length", "train_sequences", "eval_sequences")},
    **{("sae cell", name): 1 for name in ("expansion", "k", "tokens")},
    **{
        (block, "batch_size"): 1
        for block in (
            *("harvest", "spectra", "gradients", "probes", "calibration", "evaluate"),
            *("attention", "critics", "states", "patching", "pretrain", "sae"),
        )
    },
    ("sae", "pool_tokens"): 1,
    **{("probes", name): 1 for name in ("count", "same_positions", "diagonal")},
    **{(block, "sequences"): 1 for block in ("spectra", "calibration", "attention", "critics")},
    **{("critics", name): 1 for name in ("hidden", "steps")},
    **{("pretrain", name): 8 for name in ("tokens", "context_length")},
    ("patching", "max_new_tokens"): 1,
    ("patching", "random"): 10,
    ("ard", "steps"): 1,
    ("ard", "permutations"): 4,
    ("prompt", "limit"): 1,
    ("prompt", "shots"): 0,
}


def at_quantities(values):
    """Config, wildcards and shape that the values of `QUANTITIES` describe; not validated."""
    changed, at, shape = copy.deepcopy(BASE), dict(AT), dict(SHAPE)
    places = {
        "shape": shape,
        "corpus": changed["corpora"]["python-docs"],
        "prompt": changed["prompts"]["math"],
    }
    cell = {"expansion": 8, "k": 32, "tokens": 50_000}
    for (place, name), value in values.items():
        (cell if place == "sae cell" else places.get(place) or changed[place])[name] = value
    changed["device"] = values.get("device", "cpu")
    at["sae"] = "topk-x{expansion}-k{k}-t{tokens}-behavioral-seed0".format(**cell)
    return changed, at, shape


def every_request(values):
    """What every stage that computes asks for, on both splits; 7 parts of a store."""
    changed, at, shape = at_quantities(values)
    return {
        (stage, split): job_requests.job(changed, stage, at | {"split": split, "parts": "7"}, shape)
        for stage in COMPUTE
        for split in ("train", "eval")
    }


@settings(max_examples=15)
@given(
    st.fixed_dictionaries({key: st.integers(low, low + 3000) for key, low in QUANTITIES.items()}),
    st.integers(1, 10_000),
)
def test_more_work_never_asks_for_less(values, more):
    values[("shape", "n_layers")] += 6  # the layer must be there
    before = every_request(values)
    for quantity, value in values.items():
        after = every_request({**values, quantity: value + more})
        for stage, asked_before in before.items():
            for name, amount in asked_before.items():
                assert after[stage][name] >= amount, (stage, name, quantity)


def test_every_quantity_counts_somewhere():
    """None of them is forgotten: far more of it changes what some stage asks for."""
    start = {key: 40 + low for key, low in QUANTITIES.items()} | {("shape", "d_model"): 1024}
    # rows enough for any number of `sequences`
    start |= {("corpus", f"{split}_sequences"): 10**8 for split in ("train", "eval")}
    before = every_request(start)
    for quantity, value in start.items():
        assert every_request({**start, quantity: 100_000 * value}) != before, quantity


def test_more_parts_ask_for_less_each():
    large = study(corpora=corpus(train_sequences=10**7))
    for stage in ("harvest", "probes"):
        minutes = [asked(large, stage, AT | {"parts": n})["runtime"] for n in ("1", "10", "100")]
        assert minutes[0] > 5 * minutes[1] > 5 * minutes[2]


# --- against real jobs --------------------------------------------------------------------------
LENGTH, ROWS, LAYER, EXPANSION = 128, 1024, 3, 8
SAE = {"batch_size": 1024, "pool_tokens": 65536}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model whose weights and tables of logits take more than a little."""
    from transformers import GPTNeoXConfig

    shape = GPTNeoXConfig(
        vocab_size=V,
        hidden_size=D,
        num_hidden_layers=L,
        num_attention_heads=8,
        intermediate_size=4 * D,
        max_position_embeddings=2 * LENGTH,
    )
    return tiny_models.save(
        tmp_path_factory.mktemp("neox") / "model", shape, tiny_models.tiny_tokenizer()
    )


class Activations:
    """As many as a store of all rows holds, made as they are read."""

    n_sequences, n_positions, d_model, chunk_sequences = ROWS, LENGTH, D, 16

    def read(self, start, stop):
        draws = np.random.default_rng(start)
        return draws.standard_normal((stop - start, LENGTH, D), np.float32)


def work(stage, model, scratch):
    """Do what a job of `stage` does; the peak of this process' memory, in MB."""
    from streamgauge.models import subjects
    from streamgauge.passes import evaluate, gradients, harvest, probes
    from streamgauge.sae import runs, topk, train
    from streamgauge.stores import layer_stores

    if stage == "train_sae":
        run = runs.Run(d_sae=EXPANSION * D, k=32, tokens=64 * LENGTH, seed=0)
        how = runs.Settings(**SAE)
        train.train(Activations(), [run], how, scratch, device="cpu", checkpoint_seconds=0.1)
    else:
        subject = subjects.load(model, "cpu")
        tokens = np.random.default_rng(0).integers(0, 300, (48, LENGTH), dtype=np.int32)
        if stage == "evaluate":
            codecs = {name: topk.init(D, EXPANSION * D, 32, seed=0) for name in ("sae", "control")}
            mean = dict.fromkeys(("all", "no_sink"), np.zeros(D, np.float32))
            evaluate.evaluate(subject, tokens[:16], LAYER, codecs, mean, 1e9, batch_size=8)
        else:
            module = {"harvest": harvest, "gradients": gradients, "probes": probes}[stage]
            rows = tokens if stage == "harvest" else tokens[:16]
            store = layer_stores.scratch(Path(scratch) / "store.zarr", "{}")
            options = {"count": 2} if stage == "probes" else {}
            module.harvest(subject, rows, LAYER, store, batch_size=8, progress=False, **options)
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1000


@pytest.mark.cluster
@pytest.mark.parametrize("stage", ["harvest", "gradients", "probes", "train_sae", "evaluate"])
def test_a_real_job_takes_less_than_it_asked_for(stage, model, tmp_path):
    """And not so much less that a node stands empty."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        peak = pool.apply(work, (stage, model, tmp_path))
    valid = study(
        device="cpu",
        corpora=corpus(context_length=LENGTH, train_sequences=ROWS),
        sae=SAE,
        probes={"count": 2, "same_positions": 0, "diagonal": 0},
    )
    at = AT | {"ell": f"{LAYER:02d}", "sae": f"topk-x{EXPANSION}-k32-t1-mse-seed0"}
    request = asked(valid, stage, at)["mem_mb"]
    print(f"{stage}: peak {peak:.0f} MB, {request} MB asked for")
    assert request / 10 < peak < request
