"""Gradient and probe harvests against the backward passes they need, and peak memory.

    python benchmarks/probes.py [--model DIRECTORY] [--layers 10 25] [--out probes.json]

The floor of a probe is one backward pass from the hook point with a cotangent that is already
there; the floor of a gradient is the forward pass and one such backward. Contenders run in turn in
one process, in changing order; figures are medians over rounds of ratios within a round, of wall
time and of CPU-seconds (all threads), which other load on the machine hardly moves. The probe
harvest's own forward passes, which its s probes share, are timed inside it and taken off. Also
compared: a loop of backward passes, torch's batched VJP and torch.func. Without --model, a Llama
of SmolLM2-135M's shape with random weights is used: its speed is the same.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from harvest import clocks, draw_tokens, random_smollm2

from streamgauge.models import subjects
from streamgauge.passes import gradients, probes
from streamgauge.stores import layer_stores


class Timed:
    """A subject that adds up the wall and CPU seconds its forward passes take."""

    def __init__(self, subject):
        self._subject, self.seconds = subject, np.zeros(2)

    def __getattr__(self, name):
        return getattr(self._subject, name)

    def residuals(self, *arguments):
        return self._timed(self._subject.residuals, *arguments)

    def logits_from(self, *arguments):
        return self._timed(self._subject.logits_from, *arguments)

    def _timed(self, call, *arguments):
        found, seconds = clock(self._subject, call, *arguments)
        self.seconds += seconds
        return found


def clock(subject, call, *arguments, **options):
    """What a call gives, and the wall and CPU seconds it took."""
    cuda = torch.device(subject.device).type == "cuda"
    if cuda:
        torch.cuda.synchronize()
    started = clocks()
    found = call(*arguments, **options)
    if cuda:
        torch.cuda.synchronize()
    return found, clocks() - started


def harvested(module, subject, tokens, layer: int, **options) -> None:
    """A harvest to a fresh store that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        work = layer_stores.scratch(Path(folder) / "made.zarr", "{}")
        module.harvest(subject, tokens, layer, work, progress=False, **options)


def bare_gradients(subject, tokens, layer: int, batch_size: int, cotangent) -> None:
    """Forward and one backward from the hook point over all `tokens`."""
    for at in range(0, len(tokens), batch_size):
        ids = subject.ids(np.asarray(tokens[at : at + batch_size], np.int64))
        with torch.no_grad():
            h = subject.residuals(ids, [layer])[layer]
        h = h.detach().requires_grad_()
        torch.autograd.grad(subject.logits_from(ids, layer, h), h, cotangent[: len(ids)])


def measure_speed(subject, options, layer: int) -> dict:
    size, s = options.batch_size, options.count
    tokens = draw_tokens(subject, 2 * size, options.positions)
    ids = subject.ids(np.asarray(tokens[:size], np.int64))
    with torch.no_grad():
        h = subject.residuals(ids, [layer])[layer]
    h = h.detach().requires_grad_()
    logits = subject.logits_from(ids, layer, h)
    cotangent = torch.randn_like(logits)

    def floor():
        for _ in range(s):
            torch.autograd.grad(logits, h, cotangent, retain_graph=True)

    def probe():
        timed = Timed(subject)
        options_ = {"count": s, "batch_size": size}
        _, seconds = clock(subject, harvested, probes, timed, tokens[:size], layer, **options_)
        return seconds - timed.seconds

    def bare():
        bare_gradients(subject, tokens, layer, size, cotangent)

    def gradient():
        harvested(gradients, subject, tokens, layer, batch_size=size)

    floor()
    rounds = []
    for i in range(options.rounds):
        times = {}
        for call in (floor, probe, bare, gradient)[:: 1 if i % 2 else -1]:
            given, seconds = clock(subject, call)
            times[call.__name__] = seconds if given is None else given
        rounds.append(times)
        shown = (f"{name} {wall:.2f} s (CPU {cpu:.2f})" for name, (wall, cpu) in times.items())
        print(f"layer {layer}, round {i + 1}: " + "  ".join(shown), flush=True)
    wall, cpu = (
        {name: np.array([times[name][clock] for times in rounds]) for name in rounds[0]}
        for clock in (0, 1)
    )
    return {
        "layer": layer,
        "batch": [size, options.positions],
        "count": s,
        "device": str(subject.device),
        "rounds": [{name: list(t) for name, t in times.items()} for times in rounds],
        "backward_tokens_per_s": float(s * ids.numel() / np.median(wall["floor"])),
        "probe_ratio": float(np.median(wall["probe"] / wall["floor"])),
        "probe_cpu_ratio": float(np.median(cpu["probe"] / cpu["floor"])),
        "gradient_tokens_per_s": float(tokens.size / np.median(wall["gradient"])),
        "gradient_ratio": float(np.median(wall["gradient"] / wall["bare"])),
        "gradient_cpu_ratio": float(np.median(cpu["gradient"] / cpu["bare"])),
    }


def measure_ways(subject, layer: int, rounds: int, batch=(8, 128), count: int = 2) -> dict:
    """CPU-seconds for `count` given cotangents by torch's ways, over the loop's; no forward."""
    ids = subject.ids(np.asarray(draw_tokens(subject, *batch), np.int64))
    with torch.no_grad():
        h = subject.residuals(ids, [layer])[layer]
    h = h.detach().requires_grad_()
    logits = subject.logits_from(ids, layer, h)
    cotangents = torch.randn(count, *logits.shape, dtype=logits.dtype, device=logits.device)
    _, pullback = torch.func.vjp(lambda x: subject.logits_from(ids, layer, x), h.detach())
    ways = {
        "loop": lambda: [torch.autograd.grad(logits, h, c, retain_graph=True) for c in cotangents],
        "is_grads_batched": lambda: torch.autograd.grad(
            logits, h, cotangents, retain_graph=True, is_grads_batched=True
        ),
        "torch.func vjp + vmap": lambda: torch.func.vmap(pullback)(cotangents),
    }
    times = {name: [] for name in ways}
    for i in range(rounds):
        for name in list(ways)[:: 1 if i % 2 else -1]:
            times[name].append(clock(subject, ways[name])[1][1])
    loop = np.array(times["loop"])
    return {name: float(np.median(np.array(seconds) / loop)) for name, seconds in times.items()}


def measure_memory(options) -> dict:
    """Peak resident MiB of processes that harvest N and 4 N tokens of a small model."""
    result = {}
    for what in ("gradients", "probes"):
        for factor in (1, 4):
            given = ["--threads", options.threads, "--device", options.device]
            given += ["--peak", what, "--sequences", 256 * factor]
            command = [sys.executable, __file__, *map(str, given)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            tokens = 256 * factor * options.positions
            result[f"{what}, {tokens:,} tokens"] = float(done.stdout.split()[-1])
    return result


def small_model():
    """A Llama that harvests many tokens in seconds."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=128,
    )
    return AutoModelForCausalLM.from_config(config)


def peak(options) -> None:
    with tempfile.TemporaryDirectory() as folder:
        small_model().save_pretrained(folder)
        subject = subjects.load(folder, device=options.device)
        tokens = draw_tokens(subject, options.sequences, options.positions)
        module = {"gradients": gradients, "probes": probes}[options.peak]
        harvested(module, subject, tokens, 0, batch_size=8)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def table(result: dict) -> str:
    lines = ["| measure | value |", "|---|---|"]
    for at in result["layers"]:
        layer = f"layer {at['layer']}"
        lines += [
            f"| {layer}: one backward from the hook point |"
            f" {at['backward_tokens_per_s']:,.0f} tokens/s |",
            f"| {layer}: probe harvest / that, a token-probe, wall (target ≤ 1.2) |"
            f" {at['probe_ratio']:.3f} |",
            f"| {layer}: the same in CPU-seconds | {at['probe_cpu_ratio']:.3f} |",
            f"| {layer}: gradient harvest | {at['gradient_tokens_per_s']:,.0f} tokens/s |",
            f"| {layer}: gradient harvest / bare forward and backward, wall (target ≤ 1.15) |"
            f" {at['gradient_ratio']:.3f} |",
            f"| {layer}: the same in CPU-seconds | {at['gradient_cpu_ratio']:.3f} |",
        ]
    lines += [
        f"| backward by {name} / by loop, CPU-seconds | {x:.3f} |"
        for name, x in result["ways"].items()
    ]
    lines += [f"| peak memory, {name} | {x:,.0f} MiB |" for name, x in result["peak_MiB"].items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="Hugging Face directory; default: random SmolLM2-135M")
    parser.add_argument("--layers", type=int, nargs="+", default=[10, 25])
    parser.add_argument("--positions", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--count", type=int, default=8, help="probes of a token")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="JSON file for the measurements")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory")
    parser.add_argument("--peak", choices=["gradients", "probes"], help=argparse.SUPPRESS)
    parser.add_argument("--sequences", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        return peak(options)
    # while this process is small: a new one begins with the peak of the one that started it
    memory = {} if options.no_memory else measure_memory(options)
    with tempfile.TemporaryDirectory() as folder:
        options.model = options.model or random_smollm2(Path(folder) / "model")
        subject = subjects.load(options.model, device=options.device, dtype="float32")
        result = {
            "benchmark": "probes",
            "machine": {"cpu": platform.processor() or platform.machine()},
            "threads": options.threads,
            "layers": [measure_speed(subject, options, layer) for layer in options.layers],
            "ways": measure_ways(subject, options.layers[-1], options.rounds),
            "peak_MiB": memory,
        }
    print("\n" + table(result))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
