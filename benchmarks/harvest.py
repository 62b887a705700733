"""Harvest against the bare forward pass to the same layer, and peak memory against corpus size.

    python benchmarks/harvest.py [--model DIRECTORY] [--layer 10] [--out harvest.json]

Both loops run in turn in one process, in changing order, so that other load on the machine hits
both alike; the figure to read is the median of the ratios of the rounds. The ratio of CPU-seconds
(all threads) is given too, which counts what overlaps, and the ratio of a harvest to the forward
passes inside that same harvest, which no other load can blur, but which leaves out what the writer
takes from the forward pass. Without --model, a Llama of SmolLM2-135M's shape with random weights is
used: its speed is the same.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from streamgauge.models import subjects
from streamgauge.passes import gather, harvest
from streamgauge.stores import layer_stores


def random_smollm2(directory: Path, seed: int = 0) -> Path:
    """A Hugging Face directory with SmolLM2-135M's configuration and random weights."""
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    vocabulary = Tokenizer(models.WordLevel({"<s>": 0}, unk_token="<s>"))
    PreTrainedTokenizerFast(tokenizer_object=vocabulary, bos_token="<s>").save_pretrained(directory)
    return directory


def clocks() -> np.ndarray:
    """Wall clock and CPU clock of this process, seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def bare_forward(subject, tokens, layer: int, batch_size: int) -> np.ndarray:
    """Wall and CPU seconds of the truncated forward pass alone over all `tokens`."""
    started = clocks()
    for at in range(0, len(tokens), batch_size):
        ids = torch.from_numpy(tokens[at : at + batch_size].astype(np.int64)).to(subject.device)
        with torch.inference_mode():
            subject.residuals(ids, [layer])
    if torch.device(subject.device).type == "cuda":
        torch.cuda.synchronize()
    return clocks() - started


def harvested(subject, tokens, layer: int, batch_size: int, dtype: str) -> tuple:
    """Wall and CPU seconds of the harvest to a fresh store, and of completing the store."""
    with tempfile.TemporaryDirectory() as folder:
        work = layer_stores.scratch(Path(folder) / "activations.zarr", "{}")
        started = clocks()
        harvest.harvest(
            subject, tokens, layer, work, dtype=dtype, batch_size=batch_size, progress=False
        )
        between = clocks()
        gather.activations(work, progress=False)
        return between - started, clocks() - between


class Timed:
    """A subject that adds up the wall seconds its forward passes take."""

    def __init__(self, subject):
        self._subject, self.seconds = subject, 0.0

    def __getattr__(self, name):
        return getattr(self._subject, name)

    def residuals(self, ids, layers):
        started = time.perf_counter()
        found = self._subject.residuals(ids, layers)
        if found[layers[0]].is_cuda:
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - started
        return found


def draw_tokens(subject, sequences: int, positions: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, subject.vocab_size, (sequences, positions), dtype=np.int32)


def measure_speed(options) -> dict:
    subject = subjects.load(options.model, device=options.device, dtype="float32")
    tokens = draw_tokens(subject, options.sequences, options.positions)
    bare_forward(subject, tokens[: options.batch_size], options.layer, options.batch_size)
    rounds = []
    for i in range(options.rounds):
        times = {}
        for what in ("bare", "harvest")[:: 1 if i % 2 else -1]:
            if what == "bare":
                times[what] = bare_forward(subject, tokens, options.layer, options.batch_size)
            else:
                times[what], times["finish"] = harvested(
                    subject, tokens, options.layer, options.batch_size, options.dtype
                )
        rounds.append(times)
        shown = (f"{name} {wall:.2f} s (CPU {cpu:.2f})" for name, (wall, cpu) in times.items())
        print(f"round {i + 1}: " + "  ".join(shown), flush=True)
    timed = Timed(subject)
    whole, _ = harvested(timed, tokens, options.layer, options.batch_size, options.dtype)
    n_tokens = tokens.size
    wall, cpu = (
        {name: np.array([times[name][clock] for times in rounds]) for name in rounds[0]}
        for clock in (0, 1)
    )
    return {
        "tokens": n_tokens,
        "layer": options.layer,
        "d_model": subject.d_model,
        "batch": [options.batch_size, options.positions],
        "dtype": options.dtype,
        "device": str(subject.device),
        "rounds": [{name: list(t) for name, t in times.items()} for times in rounds],
        "bare_tokens_per_s": float(n_tokens / np.median(wall["bare"])),
        "harvest_tokens_per_s": float(n_tokens / np.median(wall["harvest"])),
        "ratio": float(np.median(wall["harvest"] / wall["bare"])),
        "ratio_with_finish": float(np.median((wall["harvest"] + wall["finish"]) / wall["bare"])),
        "ratio_to_own_forward": float(whole[0] / timed.seconds),
        "cpu_ratio": float(np.median(cpu["harvest"] / cpu["bare"])),
        "cpu_ratio_with_finish": float(np.median((cpu["harvest"] + cpu["finish"]) / cpu["bare"])),
    }


def measure_memory(options) -> dict:
    """Peak resident memory of processes harvesting N and 4 N tokens of layer 0."""
    sequences = 2 * layer_stores.rows_per_chunk_and_shard(options.positions)[1]
    result = {}
    for factor in (1, 4):
        given = ["--model", options.model, "--device", options.device]
        given += ["--batch-size", options.batch_size, "--positions", options.positions]
        given += ["--threads", options.threads, "--peak", factor * sequences]
        done = subprocess.run(
            [sys.executable, __file__, *map(str, given)], check=True, capture_output=True, text=True
        )
        result[str(factor * sequences * options.positions)] = float(done.stdout.split()[-1])
    return result


def peak(options) -> None:
    subject = subjects.load(options.model, device=options.device, dtype="float32")
    harvested(
        subject,
        draw_tokens(subject, options.peak, options.positions),
        0,
        options.batch_size,
        "auto",
    )
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def table(result: dict) -> str:
    speed, memory = result["speed"], result["peak_MiB"]
    lines = [
        "| measure | value |",
        "|---|---|",
        f"| bare forward to layer {speed['layer']} | {speed['bare_tokens_per_s']:,.0f} tokens/s |",
        f"| harvest | {speed['harvest_tokens_per_s']:,.0f} tokens/s |",
        f"| harvest / bare forward, wall (target ≤ 1.05) | {speed['ratio']:.3f} |",
        f"| same with the closing pass | {speed['ratio_with_finish']:.3f} |",
        f"| harvest / forward passes inside it, wall | {speed['ratio_to_own_forward']:.3f} |",
        f"| harvest / bare forward, CPU-seconds | {speed['cpu_ratio']:.3f} |",
        f"| same with the closing pass | {speed['cpu_ratio_with_finish']:.3f} |",
    ]
    lines += [f"| peak memory, {int(n):,} tokens | {mib:,.0f} MiB |" for n, mib in memory.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="Hugging Face directory; default: random SmolLM2-135M")
    parser.add_argument("--layer", type=int, default=10)
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--positions", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="JSON file for the measurements")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        options.model = options.model or random_smollm2(Path(folder) / "model")
        if options.peak:
            return peak(options)
        result = {
            "benchmark": "harvest",
            "machine": {"cpu": platform.processor() or platform.machine()},
            "threads": options.threads,
            "speed": measure_speed(options),
            "peak_MiB": {} if options.no_memory else measure_memory(options),
        }
    print("\n" + table(result))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
