"""Run `snakemake --lint` and fail on every kind of hint we have not decided against.

Accepted hints, with the reason:
- no conda environment or container: one pinned virtual environment serves every rule.
"""

import json
import subprocess
import sys

ACCEPTED = {"No conda environment or container"}


def hints() -> list[str]:
    """The hints that remain, one line each."""
    command = [sys.executable, "-m", "snakemake", "--lint", "json"]
    done = subprocess.run(command, capture_output=True, text=True)
    found = json.loads(done.stdout)
    lines = []
    for rule in found.get("rules", []):
        for hint in rule["lints"]:
            if not any(hint["title"].startswith(title) for title in ACCEPTED):
                lines.append(f"rule {rule['for']['rule']}: {hint['title']}")
    for source in found.get("snakefiles", []):
        for hint in source["lints"]:
            lines.append(f"{source['for']['snakefile']}: {hint['title']}")
    return lines


if __name__ == "__main__":
    remaining = hints()
    print("\n".join(remaining) or "snakemake --lint: nothing beyond the accepted hints")
    sys.exit(bool(remaining))
