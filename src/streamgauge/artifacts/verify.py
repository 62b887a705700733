"""Does every artifact still hold what was written, and would today's config and code write it?

What is wrong is put where it is. A damaged artifact is named, and not what was made from it: the
job that made that has compared every byte with the manifest. Only where none did (a manifest
without a seal, of an earlier version), or where an artifact was made from another one than lies
there now, what was made from it is named too, with all that was made from that: they are made again
as a set.
"""

import json
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from streamgauge.artifacts import catalogue, keys, manifest, records
from streamgauge.base import sealed
from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.progress import Progress
from streamgauge.base.wording import bytes_in_words

UNDESCRIBED = "not described by this config"
_MOST = 5  # problems of one artifact told one by one


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


class Finding(NamedTuple):
    """What is wrong with one artifact, one sentence a problem.

    Attributes:
        damaged: it is not as it was written.
        stale: config or code are others now.
        tainted: it was made from something that its maker does not vouch for.
        described: whether the config describes it; if not, its spec was not compared.
    """

    damaged: list[str]
    stale: list[str]
    tainted: list[str]
    described: bool = True


def check(
    path: Path,
    root: Path,
    config: Mapping,
    tick: Callable[[int], None] | None = None,
    *,
    contents: bool = True,
) -> Finding:
    """Everything wrong with one artifact but what it was made from.

    Args:
        path: its manifest.
        root: the folder that holds the Snakefile.
        config: the validated config.
        tick: called with the number of bytes of every file read.
        contents: read the files; else only their names are compared.
    """
    try:
        if path.is_symlink():
            return Finding(["a link, which was a file when it was written"], [], [])
        if not path.exists():
            return Finding(["has no manifest: unfinished, or it was deleted"], [], [])
        record = catalogue.read(path)
        damaged = manifest.changed(path, record, tick, contents=contents)
    except StreamgaugeError as error:
        return Finding([error.problem], [], [])
    except (OSError, ValueError) as error:
        return Finding([f"cannot be read: {error}"], [], [])
    stale = differences(record["spec"], root, config)
    return Finding(damaged, stale or [], [], stale is not None)


def taint(found: Mapping[Path, Finding]) -> dict[Path, Finding]:
    """`found` with what is missing, and with all that was made from what nobody vouches for.

    Args:
        found: by manifest, see `check`.

    Returns:
        The same with ``tainted`` filled in, and with missing inputs as artifacts of their own.
    """
    found = dict(found)
    made_from = {path: _inputs(path) for path in found}
    for path, inputs in list(made_from.items()):
        for source in inputs:
            if source not in found and not os.path.lexists(source):
                found[source] = Finding([f"is missing, and {path} was made from it"], [], [])
    reasons = {path: list(_reasons(path, made_from[path], found)) for path in made_from}
    spread = [path for path in reasons if reasons[path]]
    followers = _followers(made_from)
    while spread:
        source = spread.pop()
        for path in followers.get(source, ()):
            if not reasons[path]:
                reasons[path].append(f"was made from {source}, which has to be made again")
                spread.append(path)
    return {path: one._replace(tainted=reasons.get(path, [])) for path, one in found.items()}


def _reasons(
    path: Path, inputs: Mapping[Path, str], found: Mapping[Path, Finding]
) -> Iterator[str]:
    """Why an artifact was made from something that its maker does not vouch for."""
    for source, digest in inputs.items():
        try:
            record = catalogue.read(source)
        except (StreamgaugeError, OSError):
            continue  # it is that manifest which is wrong; made again it is what it was
        if record["digest"] != digest:
            yield f"{source} has been made anew since"
        elif source in found and found[source].damaged and not _sealed(path):
            yield f"{source} is damaged, and a version that did not look made this from it"


def _inputs(path: Path) -> dict[Path, str]:
    """What an artifact was made from: manifests and their digests; nothing where it is damaged."""
    try:
        inputs = catalogue.read(path)["inputs"]
    except (StreamgaugeError, OSError):
        return {}
    return {Path(os.path.normpath(path.parent / name)): x for name, x in inputs.items()}


def _sealed(path: Path) -> bool:
    return sealed.SEAL in catalogue.read(path)


def _sources(manifests: Sequence[Path]) -> dict[Path, bool]:
    """All that artifacts were made from and that is not among them, where it is there.

    Returns:
        Manifest -> whether its files have to be read: an artifact without a seal was made from it.
    """
    made_from = {path: _inputs(path) for path in manifests}
    queue = list(manifests)
    while queue:
        for source in made_from[queue.pop()]:
            if source not in made_from and os.path.lexists(source):
                made_from[source] = _inputs(source)
                queue.append(source)
    doubted = {
        x for path, inputs in made_from.items() if inputs and not _sealed(path) for x in inputs
    }
    return {path: path in doubted for path in list(made_from)[len(manifests) :]}


def _followers(made_from: Mapping[Path, Iterable[Path]]) -> dict[Path, list[Path]]:
    found: dict[Path, list[Path]] = {}
    for path, inputs in made_from.items():
        for source in inputs:
            found.setdefault(source, []).append(path)
    return found


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
    sizes = {path: catalogue.size(path) for path in manifests}
    whole = dict.fromkeys(manifests, True) | _sources(manifests)
    megabytes = _Megabytes(sum(map(catalogue.size, filter(whole.get, whole))))
    everything = taint(
        {path: check(path, root, config, megabytes.tick, contents=whole[path]) for path in whole}
    )
    # and of what they were made from, what no other call would name
    found = {
        path: one
        for path, one in everything.items()
        if path in sizes or path not in whole or (one.damaged and not catalogue.at_manifest(path))
    }
    for path, one in found.items():
        if not one.described:
            say(f"{path}: {UNDESCRIBED}; its files were checked, its spec was not")
        alone = one.damaged + one.stale
        for problem in _few(alone):
            say(f"{path}: {problem}. Remedy: {_remedy([path], flags)}")
        for problem in _few(one.tainted):
            say(f"{path}: {problem}")
    damaged = [path for path, one in found.items() if one.damaged]
    if damaged[1:]:  # each by itself, one may need another that is damaged too
        say(f"Remedy for all that is damaged: {_remedy(sorted(damaged), flags)}")
    again = [path for path, one in everything.items() if one.tainted]
    if again:
        # what they were made from comes first where it is damaged: its own line says so too
        sources = {source for path in again for source in _inputs(path)}
        again += [path for path in sources if everything[path].damaged and path not in again]
        say(f"Remedy for what was made from it: {_remedy(sorted(again), flags)}")
    lost = list(records.problems(filter(Path.is_dir, map(Path, paths)), manifests))
    for path, problem in lost:
        say(f"{path}: {problem}. Remedy: {_remedy([path], flags, make=False)}")
    n_problems = len(lost) + sum(len(o.damaged + o.stale + o.tainted) for o in found.values())
    strangers = sum(not one.described for one in found.values())
    artifacts = f"{len(found)} artifact{'s' * (len(found) != 1)}"
    outside = f", {strangers} {UNDESCRIBED}" if strangers else ""
    verdict = f"{n_problems} problem{'s' * (n_problems != 1)}" if n_problems else "all is well"
    say(f"{artifacts}, {bytes_in_words(sum(sizes.values()))}{outside}: {verdict}")
    return not n_problems


def _few(problems: Sequence[str]) -> Iterator[str]:
    yield from problems[:_MOST]
    if len(problems) > _MOST:
        yield f"and {len(problems) - _MOST} problems more"


def _remedy(paths: Sequence[Path], flags: Sequence[str], make: bool = True) -> str:
    """Remove manifests and run Snakemake, for these or as it always runs."""
    gone = [*paths, *(top for path in paths for top in catalogue.misshapen(path))]
    remove = ["rm", "-rf" if any(map(_is_folder, gone)) else "-f", *map(str, gone)]
    targets = map(str, paths) if make else ()
    return f"{shlex.join(remove)} && {shlex.join(['snakemake', *targets, *flags])}"


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def below(path: Path) -> list[Path]:
    """The manifests of a path: of the artifact that it is or belongs to, else of all below it.

    Raises:
        StreamgaugeError: it does not exist, or there is none.
    """
    own = catalogue.owner(path) if os.path.lexists(path) or catalogue.at_manifest(path) else None
    if own is not None:
        return [own]
    if not path.exists():
        raise StreamgaugeError(
            "does not exist", where=str(path), remedy="Run snakemake to make artifacts."
        )
    if path.is_dir():
        found = list(catalogue.find(path))
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
