"""Does every artifact still hold what was written, and would today's config and code write it?"""

import functools
import json
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from streamgauge.artifacts import keys, manifest
from streamgauge.artifacts.stages import STAGES
from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.paths import WILDCARDS
from streamgauge.base.progress import Progress
from streamgauge.base.wording import bytes_in_words

UNDESCRIBED = "not described by this config"
_MOST = 5  # problems of one artifact told one by one


def find(folder: str | Path) -> Iterator[Path]:
    """Manifests below a folder, damaged ones included, and stores that lack theirs."""
    for path in sorted(Path(folder).iterdir()):
        if path.name.startswith("."):  # half-written work
            continue
        if path.is_dir():
            if path.suffix == ".zarr":
                if not path.with_suffix(".json").exists():
                    yield path.with_suffix(".json")
            elif path.name != "model":
                yield from find(path)
        elif path.suffix == ".json" and (_ours(path) or manifest.is_manifest(_json(path))):
            yield path


def _ours(path: Path) -> bool:
    """Whether a path below results is the manifest of some stage: damaged, if it is none."""
    parts = path.absolute().parts
    starts = [i for i, part in enumerate(parts) if part == "results"]
    return any(_manifests().fullmatch("/".join(parts[i:])) for i in starts)


@functools.cache
def _manifests() -> re.Pattern:
    """Every path that a manifest can have, from the registry."""
    return re.compile("|".join(map(_pattern, dict.fromkeys(s.path for s in STAGES.values()))))


def _pattern(path: str) -> str:
    """A path with wildcards as a regular expression."""
    parts = re.split(r"\{(\w+)\}", path)
    return "".join(
        f"(?:{WILDCARDS[part]})" if i % 2 else re.escape(part) for i, part in enumerate(parts)
    )


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes()) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None


def owner(path: str | Path) -> Path | None:
    """The manifest of an artifact, from the manifest itself or any file or folder of it."""
    path = Path(path)
    if path.suffix == ".json" and (_ours(path) or manifest.is_manifest(_json(path))):
        return path
    if path.suffix == ".zarr":
        return path.with_suffix(".json")
    if (path / "sae.json").is_file():
        return path / "sae.json"
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


def differences(recorded: Mapping[str, Any], root: Path, config: Mapping) -> list[str] | None:
    """How an artifact's spec differs from the one it would get today, in words.

    Args:
        recorded: the spec in its manifest.
        root: the folder that holds the Snakefile.
        config: the validated config.

    Returns:
        One sentence a difference; None when the config does not describe the artifact.
    """
    stage, wildcards = recorded["stage"], recorded["wildcards"]
    if wildcards.get("study", config["study"]) != config["study"]:
        return None
    try:
        today = json.loads(keys.spec(root, config, stage, wildcards))
    except KeyError:
        return None
    found = []
    for path, old, new in changes(recorded["config"], today["config"]):
        found.append(f"{path} was {old} and is {new} in the config")
    old, new = recorded["code"], today["code"]
    changed = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        found.append(f"its code has changed: {', '.join(changed[:3])}{more}")
    return found


def changes(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Where two blocks of a configuration differ: the key, its old and its new value in words."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            below = f"{path}.{key}" if path else key
            if key not in old or key not in new:
                yield below, _word(old, key), _word(new, key)
            else:
                yield from changes(old[key], new[key], below)
    elif json.dumps(old) != json.dumps(new):
        yield path, json.dumps(old), json.dumps(new)


def _word(mapping: Mapping, key: str) -> str:
    return json.dumps(mapping[key]) if key in mapping else "absent"


def check(
    path: Path, root: Path, config: Mapping, tick: Callable[[int], None] | None = None
) -> tuple[list[str], bool]:
    """Everything wrong with one artifact.

    Args:
        path: its manifest.
        root: the folder that holds the Snakefile.
        config: the validated config.
        tick: called with the number of bytes of every file read.

    Returns:
        One sentence a problem, and whether the config describes the artifact (if it does not,
        its spec was not compared).
    """
    if not path.exists() and path.with_suffix(".zarr").is_dir():
        return [f"{path.with_suffix('.zarr').name} has no manifest: it was not finished"], True
    try:
        record = read(path)
        found = manifest.problems(path, tick)
    except StreamgaugeError as error:
        return [error.problem], True
    except (OSError, ValueError) as error:
        return [f"cannot be read: {error}"], True
    stale = differences(record["spec"], root, config)
    return found + (stale or []), stale is not None


def read(path: Path) -> dict[str, Any]:
    """A manifest whose every part has the type it should have.

    Raises:
        StreamgaugeError: it is missing, is no JSON or no manifest.
    """
    record = manifest.read(path)
    if not _well_formed(record):
        raise StreamgaugeError("not a manifest (edited by hand)", where=str(path))
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
            isinstance(record[key], dict)
            and all(isinstance(item, str) for item in record[key].values())
            for key in ("files", "inputs")
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


def verify(
    paths: Sequence[str | Path],
    root: Path,
    config: Mapping,
    say: Callable[[str], None] = print,
    flags: Sequence[str] = (),
) -> bool:
    """Check artifacts and say what is wrong, one line a problem, with the remedy.

    Args:
        paths: folders (everything below), manifests, or files of an artifact.
        root: the folder that holds the Snakefile.
        config: the validated config.
        say: takes each line.
        flags: what Snakemake is given with this config, see `project.flags`.

    Returns:
        Whether all is well. Artifacts this config does not describe are counted; their files are
        checked, their specs cannot be.

    Raises:
        StreamgaugeError: a path does not exist or is no artifact.
    """
    manifests = list(dict.fromkeys(found for path in paths for found in below(Path(path))))
    sizes = [size(path) for path in manifests]
    megabytes = _Megabytes(sum(sizes))
    n_problems, strangers = 0, 0
    for path in manifests:
        found, described = check(path, root, config, megabytes.tick)
        n_problems += len(found)
        if not described:
            strangers += 1
            say(f"{path}: {UNDESCRIBED}; its files were checked, its spec was not")
        remedy = shlex.join(["rm", "-f", str(path)]) + " && "
        remedy += shlex.join(["snakemake", str(path), *flags])
        for problem in found[:_MOST]:
            say(f"{path}: {problem}. Remedy: {remedy}")
        if len(found) > _MOST:
            say(f"{path}: and {len(found) - _MOST} problems more. Remedy: {remedy}")
    artifacts = f"{len(manifests)} artifact{'s' * (len(manifests) != 1)}"
    outside = f", {strangers} {UNDESCRIBED}" if strangers else ""
    verdict = f"{n_problems} problem{'s' * (n_problems != 1)}" if n_problems else "all is well"
    say(f"{artifacts}, {bytes_in_words(sum(sizes))}{outside}: {verdict}")
    return not n_problems


def below(path: Path) -> list[Path]:
    """The manifests of a path: of the artifact that it is or belongs to, else of all below it.

    Raises:
        StreamgaugeError: it does not exist, or there is none.
    """
    if not path.exists():
        raise StreamgaugeError(
            "does not exist", where=str(path), remedy="Run snakemake to make artifacts."
        )
    own = owner(path)
    if own is not None:
        return [own]
    if path.is_dir():
        found = list(find(path))
        if found:
            return found
    raise StreamgaugeError(
        "no artifact and none below it (nothing with a manifest)",
        where=str(path),
        remedy="Give a folder of results, a store, a table or a manifest.",
    )


class _Megabytes:
    """Progress in whole megabytes from byte counts."""

    def __init__(self, n_bytes: int):
        self.read = 0
        self.progress = Progress(max(1, n_bytes // 10**6), "MB", "verify")

    def tick(self, n_bytes: int) -> None:
        before, self.read = self.read // 10**6, self.read + n_bytes
        self.progress.update(self.read // 10**6 - before)
