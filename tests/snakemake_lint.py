"""Run `snakemake --lint` and fail on every kind of hint we have not decided against.

Accepted hints, with the reason:
- no conda environment or container: one pinned virtual environment serves every rule;
- PYTHONPATH is used but not asserted: it is extended where set, and need not be.
"""

import subprocess
import sys

ACCEPTED = (
    "Specify a conda environment or container for each rule",
    "Environment variable PYTHONPATH used but not asserted",
)


def hints() -> list[str]:
    """The hints that remain, one line each."""
    command = [sys.executable, "-m", "snakemake", "--lint"]
    done = subprocess.run(command, capture_output=True, text=True)
    subject, remaining = "", []
    for line in (done.stdout + done.stderr).splitlines():
        if line.startswith("Lints for "):
            subject = line.removeprefix("Lints for ").rstrip(":")
        elif line.startswith("    * ") and not line[6:].startswith(ACCEPTED):
            remaining.append(f"{subject}: {line[6:]}")
    if not subject and "Congratulations" not in done.stdout + done.stderr:
        remaining.append(f"snakemake --lint said something unexpected: {done.stderr[-500:]}")
    return remaining


if __name__ == "__main__":
    remaining = hints()
    print("\n".join(remaining) or "snakemake --lint: nothing beyond the accepted hints")
    sys.exit(bool(remaining))
