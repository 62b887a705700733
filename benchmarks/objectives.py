"""Cost of a training step of the objective `behavioral`, in steps of `mse`.

Writes activations and 16-bit probes, then measures in turn, in every round: an optimiser step
alone, on one batch in memory; drawing batches, in CPU-seconds of all threads, so that reading
ahead hides nothing; and drawing and stepping together. One process, one thread, rotating order;
ratios are medians over rounds of the ratio within a round.

    python benchmarks/objectives.py --out objectives.json [--probes 8]
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
from streamgauge.sae.behavioral import Behavioral
from streamgauge.sae.objective import SquaredError
from streamgauge.sae.runs import Settings
from streamgauge.sae.start import measure
from streamgauge.sae.step import Step
from streamgauge.stores import layer_stores

STEPS = 4  # of a turn that reads: a pool
PARTS = ("step alone", "reading alone", "reading and step")


def write_stores(folder: Path, shape: tuple[int, int, int], n_probes: int):
    """Gaussian activations (sequence, position, d_model), float16, and probes, bfloat16."""
    names = dict(zip(("n_sequences", "n_positions", "d_model"), shape, strict=True))
    layer = {"layer": 0, "hook_name": "blocks.0.hook_resid_post"}
    paths = folder / "activations-train.zarr", folder / "probes-train.zarr"
    layer_stores.create_activations(paths[0], **names, **layer, dtype="float16")
    layer_stores.create_probes(paths[1], **names, **layer, dtype="bfloat16", n_probes=n_probes)
    generator = torch.Generator().manual_seed(0)
    activations, probes = (layer_stores.Store(path, writable=True) for path in paths)
    rows = activations.shard_rows("activations")
    for start in range(0, shape[0], rows):
        part = (min(rows, shape[0] - start), *shape[1:])
        x = torch.randn(part, generator=generator)
        activations.write("activations", start, x.half().numpy())
    rows = probes.shard_rows("probes")
    for start in range(0, shape[0], rows):
        part = (min(rows, shape[0] - start), *shape[1:], n_probes)
        v = torch.randn(part, generator=generator).bfloat16()
        probes.write("probes", start, v.view(torch.uint16).numpy())
    activations.write("norm", 0, np.full(shape[:2], shape[2] ** 0.5, np.float32))
    activations.write_all("median_norm", shape[2] ** 0.5)
    activations.write_all("sink_threshold", 10 * shape[2] ** 0.5)
    return paths


class Contender:
    """One objective, its stream and its SAE in training."""

    def __init__(self, objective: SquaredError, store, args):
        settings = Settings(batch_size=args.batch, pool_tokens=STEPS * args.batch)
        self.objective = objective
        self.stream = objective.stream(store, settings, 0, torch.device("cpu"))
        self.start = objective.start(self.stream, measure(self.stream, "mean"))
        self.stream.scale = self.start.scale
        sae = topk.init(args.d_model, args.d_sae, args.k, 0, self.start.b_dec)
        self.step = Step(sae, steps=10**9, lr=1e-4, variance=self.start.variance)
        self.batch = next(self.stream.batches(0, 1))

    def take(self, batch) -> None:
        self.step.step(*self.objective.pull(self.stream, batch, self.start))

    def turn(self, part: str, number: int) -> float:
        """CPU-seconds a step of turn `number`."""
        first = STEPS * (number + 1)
        start = time.process_time()
        for i in range(first, first + STEPS):
            if part == "step alone":
                self.take(self.batch)
            elif i == first:
                for batch in self.stream.batches(first, first + STEPS):
                    if part == "reading and step":
                        self.take(batch)
        return (time.process_time() - start) / STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, help="JSON file with the numbers")
    parser.add_argument("--probes", type=int, default=8)
    parser.add_argument("--positions", type=int, default=128)
    parser.add_argument("--d-model", type=int, default=576)
    parser.add_argument("--d-sae", type=int, default=4608)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory() as folder:
        rows = 2 * STEPS * args.batch // args.positions  # two pools
        shape = (rows, args.positions, args.d_model)
        activations, probes = write_stores(Path(folder), shape, args.probes)
        store = layer_stores.ActivationStore(activations)
        contenders = [
            Contender(objective, store, args) for objective in (SquaredError(), Behavioral(probes))
        ]
        names = [contender.objective.name for contender in contenders]
        times = {part: {name: [] for name in names} for part in PARTS}
        for i in range(-1, args.rounds):  # round -1 warms up
            for part in PARTS:
                for contender in contenders[:: 1 if i % 2 else -1]:
                    seconds = contender.turn(part, i + 1)
                    if i >= 0:
                        times[part][contender.objective.name].append(seconds)

    result = {"arguments": vars(args), "torch": torch.__version__}
    print("| one thread, CPU time | mse, ms | behavioral, ms | behavioral / mse |")
    print("| --- | --: | --: | --: |")
    for part in PARTS:
        mse, behavioral = (times[part][name] for name in names)
        result[part] = {
            "mse_seconds": statistics.median(mse),
            "behavioral_seconds": statistics.median(behavioral),
            "ratio": statistics.median(b / m for b, m in zip(behavioral, mse, strict=True)),
        }
        a, b, ratio = result[part].values()
        print(f"| {part} | {1e3 * a:.1f} | {1e3 * b:.1f} | {ratio:.2f} |", flush=True)
    Path(args.out).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
