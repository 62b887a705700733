"""Share of a training step that reading its shuffled batch costs.

Writes a float16 activations store, then measures in turn, in every round, drawing an epoch of
batches in CPU-seconds of all threads, where reading ahead hides nothing, and training on a running
stream, where the wall time of waiting for a batch is what reading adds. Shares are medians over
rounds of the ratio to a step in the same round.

    python benchmarks/stream.py --out stream.json [--d-sae 4608]
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from streamgauge.sae import topk
from streamgauge.sae.step import Step
from streamgauge.sae.stream import Stream
from streamgauge.stores import layer_stores

STEPS = 4  # a round


def write_store(path: Path, n_sequences: int, n_positions: int, d_model: int):
    """An activations store of Gaussian numbers."""
    layer_stores.create_activations(
        path,
        n_sequences=n_sequences,
        n_positions=n_positions,
        d_model=d_model,
        dtype="float16",
        layer=0,
        hook_name="blocks.0.hook_resid_post",
    )
    store, rng = layer_stores.Store(path, writable=True), np.random.default_rng(0)
    rows = store.shard_rows("activations")
    for start in range(0, n_sequences, rows):
        shape = (min(rows, n_sequences - start), n_positions, d_model)
        store.write("activations", start, rng.standard_normal(shape, np.float32).astype("f2"))
    store.write("norm", 0, np.full((n_sequences, n_positions), d_model**0.5, np.float32))
    store.write_all("median_norm", d_model**0.5)
    store.write_all("sink_threshold", 10 * d_model**0.5)
    return layer_stores.ActivationStore(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, help="JSON file with the numbers")
    parser.add_argument("--sequences", type=int, default=2048)
    parser.add_argument("--positions", type=int, default=128)
    parser.add_argument("--d-model", type=int, default=576)
    parser.add_argument("--d-sae", type=int, default=4608)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "activations.zarr"
        store = write_store(path, args.sequences, args.positions, args.d_model)
        stream = Stream(store, batch_size=args.batch)
        step = Step(topk.init(args.d_model, args.d_sae, args.k, 0), steps=10**9, lr=1e-4)
        per_epoch = stream.tokens_per_epoch // args.batch
        reading, training, waiting, stepping = [], [], [], []
        running = stream.batches(0, STEPS * args.rounds + 1)
        next(running)  # the first pool is in memory
        for _ in range(args.rounds):
            start = time.process_time()
            for _ in stream.batches(0, per_epoch):
                pass
            reading.append((time.process_time() - start) / per_epoch)
            waited, began, cpu = 0.0, time.perf_counter(), time.process_time()
            for _ in range(STEPS):
                start = time.perf_counter()
                x = next(running)
                waited += time.perf_counter() - start
                step.step(x)
            waiting.append(waited / STEPS)
            stepping.append((time.perf_counter() - began - waited) / STEPS)
            training.append((time.process_time() - cpu) / STEPS)

    def share(parts, wholes):
        return statistics.median(p / w for p, w in zip(parts, wholes, strict=True))

    result = {
        "arguments": vars(args),
        "read_cpu_seconds_per_batch": statistics.median(reading),
        "step_cpu_seconds": statistics.median(training),
        "cpu_share_of_step": share(reading, training),
        "wait_seconds_per_batch": statistics.median(waiting),
        "step_seconds": statistics.median(stepping),
        "wait_share_of_step": share(waiting, stepping),
    }
    print("| reading shuffled batches | ms a batch | ms a step | share of a step |")
    print("| --- | --: | --: | --: |")
    for name, read, whole, part in (
        ("CPU time, all threads", "read_cpu_seconds_per_batch", "step_cpu_seconds", "cpu_share"),
        ("wall time waited", "wait_seconds_per_batch", "step_seconds", "wait_share"),
    ):
        numbers = f"{1e3 * result[read]:.1f} | {1e3 * result[whole]:.1f}"
        print(f"| {name} | {numbers} | {result[part + '_of_step']:.1%} |")
    Path(args.out).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
