"""How long `snakemake --dry-run` takes when there is nothing to do, for a study of many SAEs.

The study's artifacts are stand-ins of the right names and ages, so the time is Snakemake's and
the specs' alone. Run it from the repository's root.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]


def study(n_saes: int) -> dict:
    """An overlay of `n_saes` cells: 10 layers x 10 sparsities x seeds."""
    return {
        "study": "many",
        "grid": {
            "layers": {"smollm2-135m": list(range(10))},
            "tokens": [200000],
            "k": [2**i for i in range(10)],
            "seeds": list(range(n_saes // 100)),
        },
    }


def snakemake(folder: Path, *arguments: str) -> tuple[float, str]:
    """Seconds that one Snakemake call takes in `folder`, and what it printed."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
    command += ["--workflow-profile", str(ROOT / "profiles/default"), *arguments]
    command += ["--configfile", str(ROOT / "config.yaml"), str(folder / "many.yaml")]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(done.stdout[-2000:] + done.stderr[-2000:])
    return seconds, done.stdout + done.stderr


def stand_in(path: Path) -> None:
    """A file or store of the right name; a subject also says how large it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name == "model" or path.suffix == ".zarr":
        path.mkdir()
    elif path.name == "subject.json":
        facts = {"n_layers": 30, "d_model": 576}
        manifest = {"spec": {}, "files": {}, "inputs": {}, "facts": facts, "digest": ""}
        path.write_text(json.dumps(manifest))
    else:
        path.touch()


def finish(folder: Path) -> None:
    """Put every output in place, then let Snakemake record each as made by today's spec."""
    summary = snakemake(folder, "--summary")[1]
    for line in summary.splitlines():
        if line.startswith("results/"):
            stand_in(folder / line.split("\t")[0])
    snakemake(folder, "--touch", "--forceall", "--quiet", "all")


def main() -> None:
    """Time the dry run and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--saes", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", help="JSON file with the numbers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.yaml").write_text((ROOT / "config.yaml").read_text())
        (folder / "many.yaml").write_text(yaml.safe_dump(study(options.saes)))
        finish(folder)
        rounds = [snakemake(folder, "--dry-run") for _ in range(options.rounds)]
    if not all("Nothing to be done" in said for _, said in rounds):
        sys.exit("the stand-ins do not satisfy Snakemake; this would time something else")
    seconds = [taken for taken, _ in rounds]
    found = {"saes": options.saes, "seconds": seconds, "median_seconds": statistics.median(seconds)}
    print("| SAEs | rounds | median wall time |\n|---|---|---|")
    print(f"| {options.saes} | {options.rounds} | {found['median_seconds']:.1f} s |")
    if options.out:
        Path(options.out).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
