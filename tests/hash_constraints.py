"""Write constraints-hashed.txt: the pins of constraints.txt with the digests of their files.

    python tests/hash_constraints.py INDEX

INDEX is the address of a package index that speaks JSON (PEP 691).
"""

import json
import re
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAD = """\
# The pins of constraints.txt with the sha256 of every file that may be installed for them, on
# CPython 3.11 to 3.13. Written by tests/hash_constraints.py. torch is not here: which of its builds
# a pin means, for which hardware, is up to the index it comes from.
"""
BUILDS = {"torch"}
# wheels of these interpreters and systems, and source archives
_WANTED = re.compile(
    r"(-(cp3(1[0-3]|\d)|py3|py2\.py3)-.*(any|manylinux\w*|macosx\w*)[\w.]*\.whl|\.tar\.gz|\.zip)$"
)


def pins(path):
    """Name and version of every pin."""
    lines = (line.strip() for line in path.read_text().splitlines())
    return [line.split("==") for line in lines if line and not line.startswith("#")]


def digests(index, name, version):
    """The digests of the files of one version."""
    address = f"{index.rstrip('/')}/{re.sub(r'[-_.]+', '-', name).lower()}/"
    accept = {"Accept": "application/vnd.pypi.simple.v1+json"}
    with urllib.request.urlopen(urllib.request.Request(address, headers=accept)) as answer:
        files = json.load(answer)["files"]
    start = re.compile(re.sub(r"[-_.]+", "[-_.]+", re.escape(name).replace(r"\-", "-")), re.I)
    return {
        file["hashes"]["sha256"]
        for file in files
        if (own := start.match(file["filename"]))
        and re.match(rf"-{re.escape(version)}(-|\.tar\.gz|\.zip)", file["filename"][own.end() :])
        and _WANTED.search(file["filename"])
    }


def main(index):
    found = {}
    wanted = [pin for pin in pins(ROOT / "constraints.txt") if pin[0] not in BUILDS]
    with ThreadPoolExecutor(8) as pool:
        for pin, own in zip(wanted, pool.map(lambda p: digests(index, *p), wanted), strict=True):
            found[tuple(pin)] = own
    missing = [name for (name, _), own in found.items() if not own]
    if missing:
        sys.exit(f"no file for {', '.join(missing)}")
    lines = [
        " \\\n".join([f"{name}=={version}", *(f"    --hash=sha256:{x}" for x in sorted(own))])
        for (name, version), own in found.items()
    ]
    (ROOT / "constraints-hashed.txt").write_text(HEAD + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
