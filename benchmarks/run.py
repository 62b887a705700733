"""Run every benchmark and write what it measured to docs/performance.md.

Ratios are taken side by side in one process, in rounds; nothing here is a test with a deadline.
"""

import argparse
import os
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

SECTIONS = {
    "harvest": (
        "Harvest",
        "Wall time of a harvest beside the bare forward pass to the same layer, alternated in "
        "rounds, and peak memory for N and 4 N tokens. Target: at most 1.05.",
    ),
    "sae_step": (
        "SAE training step",
        "Tokens per CPU-second at d_model 576, k 32, batch 2048, one thread, contenders "
        "interleaved. Targets: at least 4 times a plain dense autograd loop with default Adam and "
        "6 times SAELens' trainer, at both widths.",
    ),
    "stream": (
        "Reading shuffled batches",
        "Share of a training step spent on reading. Target: at most 5 %.",
    ),
    "probes": (
        "Gradients and probes",
        "A gradient harvest beside the bare forward and backward pass it needs; a probe beside one "
        "backward pass from the hook point, by three ways of taking several; peak memory. Targets: "
        "at most 1.15 and 1.2.",
    ),
    "objectives": (
        "Training objectives",
        "A step of the objective behavioral beside one of mse, at d_model 576, d_sae 4608, k 32, "
        "8 probes, one thread. Target: at most 2.",
    ),
    "ard": (
        "ARD-MMD",
        "Value and gradient of one step of a fit over 40 pairs, one thread, against loops over the "
        "pairs. Target: at least 5 times the plain loop.",
    ),
    "verification": (
        "Comparing what is read",
        "What a job pays for holding its inputs against their manifests: a store streamed with and "
        "without one, a model hashed beside loading and running it. Target: at most 2 %.",
    ),
    "dry_run": (
        "Dry run with nothing to do",
        "Wall time of `snakemake --dry-run` for a finished study. Target: at most 10 s for 500 "
        "SAEs.",
    ),
}

# benchmarks of a real model, given by --model
WITH_MODEL = ("harvest", "probes", "verification")

REMARKS = "## Reading these numbers\n"

HEAD = """# Performance

What `make bench` measured, on the machine described here. Ratios are medians over rounds taken
side by side in one run; on a machine that does other work too, single numbers move, ratios less.
"""


def machine() -> str:
    """The processor, cores, memory, accelerator and library versions, as a Markdown list."""
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":")[1].strip() if names else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return (
        f"- processor: {cpu}, {os.cpu_count()} cores, {memory:.0f} GiB\n"
        f"- accelerator: {gpu}\n"
        f"- Python {platform.python_version()}, torch {torch.__version__}, "
        f"{platform.system()}\n- date: {date.today().isoformat()}\n"
    )


def measure(name: str, options: list[str], out: Path) -> str:
    """Run one benchmark, show its output as it comes, and return its Markdown."""
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *options]
    command += ["--out", str(out / f"{name}.json")]
    lines = []
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        sys.exit(f"benchmark {name} failed with exit status {process.returncode}")
    return "".join(line for line in lines if line.startswith("|"))


def main() -> None:
    """Run the benchmarks asked for and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a Hugging Face directory for harvest and probes")
    parser.add_argument("--out", type=Path, default=ROOT / "results/benchmarks")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    page = [HEAD, machine()]
    for name, (title, text) in SECTIONS.items():
        extra = ["--model", options.model] if name in WITH_MODEL and options.model else []
        page.append(f"## {title}\n\n{text}\n\n{measure(name, extra, options.out)}")
    target = ROOT / "docs/performance.md"
    # what people wrote about the numbers stays, for them to bring up to date
    _, heading, remarks = target.read_text().partition(REMARKS)
    target.write_text("\n".join([*page, heading + remarks]))


if __name__ == "__main__":
    main()
