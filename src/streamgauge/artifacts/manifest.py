"""Manifests: what lies beside every artifact and says what it is and from what it was made.

A manifest is a JSON file with the keys

- ``spec``: what the artifact depends on (see `keys`);
- ``files``: the artifact's files and their sha256; a store's files one by one;
- ``checksums``: of files that are read in pieces, what `stores.vouched` compares;
- ``inputs``: the manifests it was made from, relative to this one, and their digests;
- ``facts``: counts, units, small results;
- ``digest``: sha256 over ``files`` and ``facts``;
- ``seal``: sha256 over all of that, see `base.sealed`. Whoever makes a sealed artifact has held
  every byte that it read against the manifests of its inputs.

It holds no time, host or commit, so an identical rebuild is identical, byte for byte. Manifests of
earlier versions have no ``checksums`` and no ``seal``.
"""

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from streamgauge.base import sealed, whole_file
from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.wording import remade
from streamgauge.stores import vouched

KEYS = frozenset({"spec", "files", "inputs", "facts", "digest"})
SEALED = KEYS | {"checksums", sealed.SEAL}
# folders whose files may be links: to the weights a model was prepared from
LINKED = frozenset({"model"})
# written into output directories by the workflow engine; no part of an artifact
IGNORED = frozenset({".snakemake_timestamp"})


def write(
    path: str | Path,
    spec: str,
    files: Sequence[str | Path],
    inputs: Sequence[str | Path] = (),
    facts: Mapping[str, Any] | None = None,
    *,
    lying: Mapping[Path, Path] | None = None,
    commit: Callable[[], object] | None = None,
) -> dict[str, Any]:
    """Write the manifest of a finished artifact, last and atomically.

    Args:
        path: the manifest's own path; `files` must lie in its folder or below.
        spec: the artifact's spec.
        files: the artifact's files; a folder stands for every file in it.
        inputs: manifests of what it was made from.
        facts: anything JSON can hold without loss.
        lying: where members of `files` lie until `commit` has moved them.
        commit: called once all that takes long or may fail for want of space is done: files are
            hashed, the manifest's bytes are on disk and have only to be renamed.

    Returns:
        The manifest.

    Raises:
        StreamgaugeError: it cannot be written.
    """
    path = Path(path)
    hashes, checksums, members = {}, {}, []
    for top in sorted(map(Path, files)):
        now = (lying or {}).get(top, top)
        was, named = (Path(os.path.relpath(x, path.parent)).as_posix() for x in (now, top))
        found = [(named + name.removeprefix(was), x) for name, x in _walk(path.parent, [now])]
        members += [file for _, file in found]
        _share(file for _, file in found)
        hashes |= {name: sealed.sha256(file) for name, file in found}
        if top.suffix == ".zarr":
            checksums |= {f"{named}/{name}": x for name, x in vouched.checksums(now).items()}
    facts = dict(facts or {})
    record = sealed.sealed(
        {
            "spec": json.loads(spec),
            "files": hashes,
            "checksums": checksums,
            "inputs": _inputs(path, inputs),
            "facts": facts,
            "digest": _digest(hashes, facts),
        }
    )
    text = sealed.text(record)

    def put(temporary: Path) -> None:
        temporary.write_text(text)
        # the manifest gets its name last: what it lists has to be on disk before, names included
        folders = {folder for file in [path, *members] for folder in file.parents}
        whole_file.flush(temporary, *members, *folders)
        if commit:
            commit()

    whole_file.replace(path, put)
    return record


def under(path: str | Path, spec: str) -> str:
    """What a manifest would say under another spec: the same artifact, which today's code makes.

    Raises:
        StreamgaugeError: there is no manifest at `path`.
    """
    path = Path(path)
    record = read(path) | {"spec": json.loads(spec), "checksums": {}}
    for top in {name.split("/")[0] for name in record["files"] if "/" in name}:
        found = vouched.checksums(path.parent / top)
        record["checksums"] |= {f"{top}/{name}": x for name, x in found.items()}
    return sealed.text(record)


def replace(path: str | Path, text: str) -> None:
    """Put `text` in the place of a manifest whose artifact is the same, with its file times.

    To whoever goes by file times nothing has changed, and there is no moment at which it has.

    Raises:
        StreamgaugeError: it cannot be written.
    """
    before = os.stat(path)

    def put(temporary: Path) -> None:
        temporary.write_text(text)
        shutil.copymode(path, temporary)
        os.utime(temporary, ns=(before.st_atime_ns, before.st_mtime_ns))

    whole_file.replace(path, put)


def identity(spec: str, inputs: Sequence[str | Path]) -> str:
    """What unfinished work belongs to: its spec and the digests of what it is made from.

    Work left by a killed job may be continued only where this string is the same.

    Args:
        spec: the artifact's spec.
        inputs: manifests of what it is made from.
    """
    digests = [read(source)["digest"] for source in inputs]
    return json.dumps({"spec": json.loads(spec), "inputs": digests}, sort_keys=True)


def says(path: str | Path, spec: str, inputs: Sequence[str | Path]) -> bool:
    """Whether there is a manifest at `path`, of an artifact of `spec` made from `inputs`."""
    try:
        record = read(path)
    except StreamgaugeError:
        return False
    return record["spec"] == json.loads(spec) and record["inputs"] == _inputs(Path(path), inputs)


def read(path: str | Path) -> dict[str, Any]:
    """Read a manifest.

    Raises:
        StreamgaugeError: it is missing, is no manifest, or is not as it was written.
    """
    try:
        record = sealed.read(path)
    except (FileNotFoundError, NotADirectoryError):
        raise StreamgaugeError(
            "no such manifest", where=str(path), remedy="Run snakemake to make it."
        ) from None
    except StreamgaugeError as error:
        problem = f"not a manifest: {error.problem}"
        raise StreamgaugeError(problem, where=str(path), remedy=remade(path)) from None
    if not is_manifest(record):
        raise StreamgaugeError("not a manifest", where=str(path), remedy=remade(path))
    return record


def is_manifest(record: Any) -> bool:
    """Whether a decoded JSON value has a manifest's keys."""
    return isinstance(record, dict) and record.keys() in (KEYS, SEALED)


def problems(
    path: str | Path, tick: Callable[[int], None] | None = None, *, contents: bool = True
) -> list[str]:
    """Compare an artifact with its manifest, reading every byte, and with what it was made from.

    Args:
        path: the manifest.
        tick: called with the number of bytes of every file read, for progress.
        contents: read the files; else only their names are compared.

    Returns:
        One sentence each for a changed, missing or unexpected file and an input that is gone or
        has been made anew since. Empty when all is well.

    Raises:
        StreamgaugeError: the manifest itself cannot be read.
    """
    path = Path(path)
    record = read(path)
    found = changed(path, record, tick, contents=contents)
    for source, digest in record["inputs"].items():
        try:
            if read(path.parent / source)["digest"] != digest:
                found.append(f"{source} has been made anew since")
        except StreamgaugeError:
            found.append(f"its input {source} is missing or unreadable")
    return found


def changed(
    path: Path,
    record: Mapping[str, Any],
    tick: Callable[[int], None] | None = None,
    *,
    contents: bool = True,
) -> list[str]:
    """Compare the files of an artifact with its manifest, see `problems`."""
    recorded = record["files"]
    found = []
    if record["digest"] != _digest(recorded, record["facts"]):
        found.append("edited by hand: its digest does not fit its content")
    tops = sorted({name.split("/")[0] for name in recorded})
    present = dict(_walk(path.parent, [path.parent / top for top in tops]))
    for name in recorded:
        if name not in present:
            found.append(f"{name} is missing")
        elif present[name].is_symlink() and name.split("/")[0] not in LINKED:
            found.append(f"{name} is a link, which was a file when it was written")
        elif contents:
            if sealed.sha256(present[name]) != recorded[name]:
                found.append(f"{name} has changed since it was written")
            if tick:
                tick(present[name].stat().st_size)
    return found + [f"{name} does not belong to it" for name in present if name not in recorded]


def _inputs(path: Path, inputs: Sequence[str | Path]) -> dict[str, str]:
    """The digests of `inputs`, by their paths relative to a manifest."""
    return {
        Path(os.path.relpath(source, path.parent)).as_posix(): read(source)["digest"]
        for source in inputs
    }


def _walk(folder: Path, files: Sequence[str | Path]) -> Iterator[tuple[str, Path]]:
    """Name (relative to `folder`) and path of every file, folders opened, in sorted order."""
    for top in sorted(Path(file) for file in files):
        below = (file for file in top.rglob("*") if file.is_file()) if top.is_dir() else [top]
        for file in sorted(below):
            if file.name not in IGNORED and file.is_file():
                yield Path(os.path.relpath(file, folder)).as_posix(), file


def files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Name in it and path of every file of a folder that counts."""
    return _walk(folder, [folder])


def _share(files: Iterable[Path]) -> None:
    """Give files the permissions the user's umask asks for; safetensors writes them private.

    Not files that lie elsewhere too: those are not this artifact's alone.
    """
    umask = os.umask(0)
    os.umask(umask)
    for file in files:
        found = file.lstat()
        own = stat.S_ISREG(found.st_mode) and found.st_nlink == 1
        if own and found.st_mode & 0o777 != 0o666 & ~umask:
            file.chmod(0o666 & ~umask)


def _digest(files: Mapping[str, str], facts: Mapping[str, Any]) -> str:
    body = json.dumps({"files": dict(files), "facts": facts}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(body.encode()).hexdigest()
