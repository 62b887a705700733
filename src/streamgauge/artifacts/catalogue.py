"""What lies below results: which artifact a path belongs to, which the registry knows by name."""

import functools
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from streamgauge.artifacts import manifest
from streamgauge.artifacts.stages import STAGES
from streamgauge.base import sealed
from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.paths import WILDCARDS
from streamgauge.base.wording import remade


def find(folder: str | Path) -> Iterator[Path]:
    """Manifests of all artifacts below a folder: damaged ones too, and missing ones of files there.

    Files and stores that no stage of the registry writes are somebody else's and left alone.
    """
    found = dict.fromkeys(_find(Path(folder), set()))
    yield from sorted(found)


def _find(folder: Path, above: set[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in above:  # a link that leads up
        return
    for path in folder.iterdir():
        if path.name.startswith("."):  # half-written work
            continue
        if at_manifest(path):
            yield path
        elif owned := _owned(path):
            yield owned
        elif path.is_dir():
            if path.suffix != ".zarr":
                yield from _find(path, above | {real})
        elif path.suffix == ".json" and manifest.is_manifest(_json(path)):
            yield path


def owner(path: str | Path) -> Path | None:
    """The manifest of an artifact, from the manifest itself or any file or folder of it."""
    path = Path(path)
    if at_manifest(path) or (path.suffix == ".json" and manifest.is_manifest(_json(path))):
        return path
    if (path / "sae.json").is_file():
        return path / "sae.json"
    for top in (path, *path.parents):
        if owned := _owned(top):
            return owned
    for folder in path.absolute().parents:
        for other in sorted(folder.glob("*.json")):
            record = _json(other)
            if manifest.is_manifest(record) and isinstance(record["files"], dict):
                own = path.absolute().relative_to(folder).as_posix()
                if any(name == own or name.startswith(own + "/") for name in record["files"]):
                    return path.parent / other.name if folder == path.absolute().parent else other
        if folder.name == "results":
            break
    return None


def misshapen(path: Path) -> list[Path]:
    """Files of an artifact that are links or folders, and folders that are something else.

    They lie where the artifact is to be written again, and are to be removed before.

    Args:
        path: its manifest.
    """
    own = path.absolute().as_posix()
    tops = [
        path.parent / top.rsplit("/", 1)[1].format(**found.groupdict())
        for stage in STAGES.values()
        if (found := re.search(f"(?:^|/){_pattern(stage.path, named=True)}$", own))
        for top in stage.paths()
    ]
    return [top for top in dict.fromkeys(tops) if os.path.lexists(top) and not _shaped(top)]


def _shaped(top: Path) -> bool:
    folder = top.suffix == ".zarr" or top.name == "model"
    return top.is_dir() == folder and (folder or not top.is_symlink())


def at_manifest(path: str | Path) -> bool:
    """Whether a path below results is that of the manifest of some stage."""
    return any(_patterns()[0].fullmatch(part) for part in _below_results(path))


def makers(path: str | Path) -> list[str]:
    """The stages that write a manifest at a path below results."""
    return [
        name
        for name, stage in STAGES.items()
        if any(re.fullmatch(_pattern(stage.path, named=False), x) for x in _below_results(path))
    ]


def _owned(path: Path) -> Path | None:
    """The manifest of the artifact that a file or folder belongs to by its name."""
    for part in _below_results(path):
        for pattern, manifest_ in _patterns()[1]:
            if found := pattern.fullmatch(part):
                return path.parent / manifest_.format(**found.groupdict()).rsplit("/", 1)[1]
    return None


@functools.cache
def _patterns() -> tuple[re.Pattern, list[tuple[re.Pattern, str]]]:
    """Every path that a manifest can have; every path of its files, and the manifest."""
    manifests = dict.fromkeys(stage.path for stage in STAGES.values())
    files = {path: stage.path for stage in STAGES.values() for path in stage.paths()}
    return re.compile("|".join(_pattern(path, named=False) for path in manifests)), [
        (re.compile(_pattern(path, named=True)), owner) for path, owner in files.items()
    ]


def _pattern(path: str, named: bool) -> str:
    """A path with wildcards as a regular expression."""
    parts = re.split(r"\{(\w+)\}", path)
    group = "(?P<{0}>{1})" if named else "(?:{1})"
    return "".join(
        group.format(part, WILDCARDS[part]) if i % 2 else re.escape(part)
        for i, part in enumerate(parts)
    )


def _below_results(path: str | Path) -> Iterator[str]:
    """What there is of a path from a folder ``results`` on."""
    parts = Path(path).absolute().parts
    return ("/".join(parts[i:]) for i, part in enumerate(parts) if part == "results")


def read(path: Path) -> dict[str, Any]:
    """A manifest whose every part has the type it should have, of the artifact that lies here.

    Raises:
        StreamgaugeError: it is missing, is no JSON or no manifest, or that of another artifact.
    """
    record = manifest.read(path)
    if not _well_formed(record):
        raise StreamgaugeError(
            "not a manifest (edited by hand)", where=str(path), remedy=remade(path)
        )
    stage, at = record["spec"]["stage"], record["spec"]["wildcards"]
    if stage in STAGES and at_manifest(path):
        try:
            own = STAGES[stage].path.format(**at)
        except LookupError:
            own = f"an unnamed {stage}"
        if own not in _below_results(path):
            raise StreamgaugeError(
                f"not the manifest of what lies here, but of {own}",
                where=str(path),
                remedy=remade(path),
            )
    return record


def _well_formed(record: Mapping[str, Any]) -> bool:
    spec = record["spec"]
    return (
        isinstance(record["facts"], dict)
        and isinstance(record["digest"], str)
        and isinstance(spec, dict)
        and spec.keys() == {"stage", "config", "wildcards", "code"}
        and isinstance(spec["stage"], str)
        and all(isinstance(spec[key], dict) for key in ("config", "wildcards", "code"))
        and all(
            isinstance(record.get(key, {}), dict)
            and all(isinstance(item, str) for item in record.get(key, {}).values())
            for key in ("files", "inputs", "checksums")
        )
        and all(map(_beside, record["files"]))
        and not any(map(os.path.isabs, record["inputs"]))
    )


def _beside(name: str) -> bool:
    """Whether a file of an artifact lies beside its manifest or below."""
    return not os.path.isabs(name) and ".." not in Path(name).parts


def size(path: Path) -> int:
    """Bytes of an artifact's files that are there, from its manifest."""
    record = _json(path)
    if not manifest.is_manifest(record) or not isinstance(record["files"], dict):
        return 0
    files = (path.parent / name for name in record["files"])
    return sum(file.stat().st_size for file in files if file.is_file())


def _json(path: Path) -> Any:
    try:
        small = path.is_file() and path.stat().st_size <= sealed.LARGEST
        return json.loads(path.read_bytes()) if small else None
    except (OSError, ValueError, RecursionError):
        return None
