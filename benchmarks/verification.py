"""What it costs that a job compares what it reads with the manifests of whoever made it.

A store is streamed with and without its manifest beside it, in turn; a model's files are hashed and
the model is loaded and run, in turn. Ratios are medians over rounds.

    python benchmarks/verification.py --out verification.json [--model DIR]
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from transformers import AutoConfig, AutoModelForCausalLM

from streamgauge.artifacts import manifest
from streamgauge.base import sealed
from streamgauge.models import subjects
from streamgauge.stores import layer_stores

SPEC = json.dumps({"stage": "harvest", "config": {}, "wildcards": {}, "code": {}})
SHAPE = {"n_sequences": 1024, "n_positions": 128, "d_model": 576}  # 151 MB
TOKENS = 4096  # what a short job runs through a model


def write_store(path: Path) -> None:
    """An activations store of Gaussian numbers, in eight shards."""
    layer = {"layer": 0, "hook_name": "h", "dtype": "float16"}
    layer_stores.create_activations(path, **SHAPE, **layer)
    store = layer_stores.Store(path, writable=True)
    values = np.random.default_rng(0).standard_normal(tuple(SHAPE.values()), np.float32)
    store.write("activations", 0, values.astype(np.float16))
    store.write("norm", 0, np.linalg.norm(values, axis=2))
    store.write_all("mean", values.mean((0, 1))[None].repeat(2, 0))
    for name in ("median_norm", "sink_threshold"):
        store.write_all(name, 1.0)


def stream(path: Path) -> None:
    """Open a store and read it from its first row to its last."""
    store = layer_stores.ActivationStore(path)
    for start in range(0, store.n_sequences, store.chunk_sequences):
        store.read(start, start + store.chunk_sequences)


def small_model(path: Path) -> None:
    """A Llama of 60 million parameters with random weights."""
    config = AutoConfig.for_model(
        "llama", hidden_size=512, intermediate_size=1536, num_hidden_layers=12, vocab_size=16_000
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(path)


def run(path: Path) -> None:
    """Load a model and run a few rows through all its layers."""
    subject = subjects.load(path, "cpu")
    ids = np.random.default_rng(0).integers(0, 1000, (8, TOKENS // 32))
    for _ in range(4):
        subject.residuals(ids, [subject.n_layers - 1])


def seconds(call, *arguments) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        loose, kept = Path(folder, "loose.zarr"), Path(folder, "kept.zarr")
        write_store(loose)
        write_store(kept)
        manifest.write(kept.with_suffix(".json"), SPEC, [kept])
        model = options.model or Path(folder, "model")
        if not options.model:
            small_model(model)
        own = manifest.write(model.with_name(f"{model.name}.json"), SPEC, [model])
        reads, loads = [], []
        for _ in range(10 * options.rounds):  # a tenth of a second each
            reads.append((seconds(stream, loose), seconds(stream, kept)))
        for _ in range(options.rounds):
            hashing = seconds(lambda: [sealed.sha256(f) for _, f in manifest.files(model)])
            loads.append((hashing, seconds(run, model)))
        model.with_name(f"{model.name}.json").unlink()
    ratio = statistics.median(after / before for before, after in reads)
    share = statistics.median(hashing / (hashing + work) for hashing, work in loads)
    hashed, worked = (statistics.median(times) for times in zip(*loads, strict=True))
    found = {
        "store with manifest / without, wall (target ≤ 1.02)": f"{ratio:.3f}",
        f"hashing the {len(own['files'])} files of a model": f"{hashed:.2f} s",
        f"loading it and running {TOKENS:,} tokens": f"{worked:.1f} s",
        "hashing, share of both (target ≤ 2 %)": f"{share:.1%}",
    }
    print("| measure | value |\n|---|---|")
    for name, value in found.items():
        print(f"| {name} | {value} |")
    options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
