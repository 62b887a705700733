"""What a job reads, held against the manifests of whoever made it, before anything is made of it.

A damaged input becomes no result: the job stops with one line that names the damaged artifact.
Files and models are hashed before the work; stores compare every piece as it is read, see
`stores.vouched`.
"""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from streamgauge.artifacts import catalogue, manifest
from streamgauge.artifacts.stages import STAGES
from streamgauge.base import sealed
from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.wording import remade

#: Files that were read, and of each what changes when it is written again.
Seen = dict[Path, tuple[int, int, int]]


def check(paths: Iterable[str | Path], threads: int = 1) -> Seen:
    """Hold the inputs of a job against the manifests among them.

    Args:
        paths: manifests, tables, weights, models, stores. What no manifest among them describes is
            the user's own and is not compared.
        threads: files hashed at once.

    Returns:
        For `unchanged`.

    Raises:
        StreamgaugeError: naming the first artifact that is damaged, what made it and the remedy.
    """
    paths = [Path(path) for path in paths]
    manifests = [path for path in paths if catalogue.at_manifest(path)]
    expected: dict[Path, tuple[str, Path]] = {}  # file -> its digest, the manifest that has it
    for path in manifests:
        for name, digest in _read(path)["files"].items():
            expected[path.parent / name] = digest, path
    files = dict(item for path in paths for item in _files(path, expected))
    with ThreadPoolExecutor(max(1, threads)) as pool:
        problems = pool.map(lambda file: _problem(file, expected), files)
        for (file, own), problem in zip(files.items(), problems, strict=True):
            if problem:
                raise damaged(own, f"{os.path.relpath(file, own.parent)} {problem}")
    return {path: _stat(path) for path in [*manifests, *files]}


def unchanged(seen: Seen) -> None:
    """Refuse what was read where another process has written it meanwhile.

    Raises:
        StreamgaugeError: naming the file.
    """
    for file, stat in seen.items():
        if _stat(file) != stat:
            raise StreamgaugeError(
                "was written again while this job read it",
                where=str(file),
                remedy="Run again when nobody else writes there.",
            )


def damaged(path: Path, problem: str) -> StreamgaugeError:
    """The one line about a damaged artifact.

    Args:
        path: its manifest.
        problem: what is wrong with it.
    """
    stage = catalogue.read(path)["spec"]["stage"]
    what = f" ({STAGES[stage].what})" if stage in STAGES else ""
    return StreamgaugeError(
        f"{problem}; rule {stage} made it{what}",
        where=str(path),
        remedy=remade(path, *catalogue.misshapen(path)),
    )


def _read(path: Path) -> dict:
    """A manifest; of one that says nothing any more, its path says who made it."""
    try:
        return catalogue.read(path)
    except StreamgaugeError as error:
        made = f"{error.problem}; rule {' or '.join(catalogue.makers(path))} makes it"
        raise StreamgaugeError(made, where=str(path), remedy=error.remedy) from None


def _files(path: Path, expected: dict) -> Iterator[tuple[Path, Path]]:
    """What is compared now of one input, with its manifest: the files it should have, and has."""
    if path in expected:
        yield path, expected[path][1]
    elif path.suffix != ".zarr":  # a store is compared as it is read
        should = {file: own for file, (_, own) in expected.items() if path in file.parents}
        yield from should.items()
        for own in set(should.values()):
            yield from ((file, own) for _, file in manifest.files(path) if file not in should)


def _problem(file: Path, expected: dict) -> str:
    if file not in expected:
        return "does not belong to it"
    if not file.is_file():
        return "is missing"
    if sealed.sha256(file) != expected[file][0]:
        return "has changed since it was written"
    return ""


def _stat(file: Path) -> tuple[int, int, int]:
    found = os.stat(file)
    return found.st_ino, found.st_mtime_ns, found.st_size
