"""Nothing that another study uses is replaced by other settings in silence.

Every run leaves a record of its study, ``results/studies/{study}/study.json``: its validated
configuration and the manifests that its runs have asked for. Before any work a run is held against
the records of the other studies and against what lies there. A record is no artifact: it has no
manifest, and nothing is made from it.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from streamgauge.artifacts import catalogue, costs, manifest, records, verify
from streamgauge.artifacts.records import RECORD
from streamgauge.artifacts.stages import STAGES
from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.paths import cell
from streamgauge.base.wording import bytes_in_words, refuse
from streamgauge.planning import cells, config, grid
from streamgauge.planning.job_requests import GPU_TFLOPS

_MOST = 3  # differences of one artifact told one by one
# what a record that no schema fits may hold instead
_MALFORMED = (
    *(StreamgaugeError, OSError, ArithmeticError, AttributeError),
    *(LookupError, TypeError, ValueError),
)


class Study(NamedTuple):
    """A study: its name, its configuration, and stage and wildcards of all it shares, by path."""

    name: str
    config: Mapping[str, Any]
    asked: Mapping[str, tuple[str, cells.Place]]

    def settings(self, path: str) -> dict[str, Any]:
        """The stage of an artifact, and the part of the configuration that it depends on."""
        stage, place = self.asked[path]
        return {"stage": stage, **STAGES[stage].block(self.config, place)}


class _Reason(NamedTuple):
    """Why an artifact would be replaced: whose settings differ (its own as a rule), and how."""

    path: str
    differs: list[str]


def leave_record(valid: Mapping[str, Any], files: Iterable[str], folder: str | Path = ".") -> None:
    """Write the record of a study, whole or not at all.

    Args:
        valid: the validated configuration; `replace` speaks of one run and is left out.
        files: what the jobs of this run write, done or not, below `folder`. What earlier runs of
            the study asked for stays in the record while the configuration asks for it.
        folder: the one that holds ``results``.

    Raises:
        StreamgaugeError: it cannot be written.
    """
    path = Path(folder) / RECORD.format(study=valid["study"])
    asked = set(files)
    with contextlib.suppress(*_MALFORMED):
        asked.update(records.read(path)["artifacts"])
    kept = {key: value for key, value in valid.items() if key != "replace"}
    records.write(path, kept, asked & _asked(valid).keys())


def mend_record(valid: Mapping[str, Any], folder: str | Path = ".") -> None:
    """Write the record of a study anew where it is damaged or gone, from what lies there.

    Raises:
        StreamgaugeError: it cannot be written.
    """
    folder = Path(folder)
    path = folder / RECORD.format(study=valid["study"])
    if not path.parent.is_dir():
        return
    try:
        records.read(path)
    except _MALFORMED:
        leave_record(valid, [made for made in _asked(valid) if (folder / made).is_file()], folder)


def others(
    valid: Mapping[str, Any], folder: str | Path = ".", say: Callable[[str], None] | None = None
) -> list[Study]:
    """The other studies, whose artifacts a run may not replace: none where `replace` is set.

    Args:
        valid: the validated configuration.
        folder: the one that holds ``results``.
        say: takes a line about each record that cannot be used; stderr by default.
    """
    if valid["replace"]:
        return []
    records = sorted(Path(folder).glob(RECORD.format(study="*")))
    found = [_recorded(p, say or _to_stderr) for p in records if p.parent.name != valid["study"]]
    return [study for study in found if study]


def check(
    valid: Mapping[str, Any],
    others: Iterable[Study],
    folder: str | Path = ".",
    asked: Mapping[str, tuple[str, cells.Place]] | None = None,
) -> None:
    """Refuse a run that would replace what another study uses.

    Another study uses an artifact that its record lists and that was made with the settings of that
    record. Manifests are read only where the two studies want different settings.

    Args:
        valid: the validated configuration.
        others: see `others`.
        folder: the one that holds ``results``.
        asked: stage and wildcards of what the run asks for, by path of the manifest; by default
            all that the configuration asks for.

    Raises:
        StreamgaugeError: naming one such artifact, what differs, who uses it, what is at stake and
            what to do.
    """
    if not others:
        return
    folder = Path(folder)
    today = Study(valid["study"], valid, _asked(valid) if asked is None else asked)
    reasons: dict[str, _Reason] = {}
    users: dict[str, list[Study]] = {}
    for other in others:
        for lost, reason in _replaced(today, other, folder):
            reasons.setdefault(lost, reason)
            users.setdefault(lost, []).append(other)
    if users:
        raise _refusal(today, reasons, users, folder)


def _to_stderr(line: str) -> None:
    print(f"streamgauge: {line}", file=sys.stderr)


def _asked(of: Mapping[str, Any]) -> dict[str, tuple[str, cells.Place]]:
    refuse(grid.too_many(of), "config.yaml")
    return {STAGES[stage].path.format(**at): (stage, at) for stage, at in cells.artifacts(of)}


def _recorded(path: Path, say: Callable[[str], None]) -> Study | None:
    """The study of a record; None, and a line about it, where the record cannot be used."""
    name = path.parent.name
    try:
        record = records.read(path)
        found, own = record["config"], set(record["artifacts"])
        try:
            found = config.validate(found, where=str(path))
            study = Study(name, found, _asked(found))
        except StreamgaugeError as error:
            # written by another version: its keys and blocks may still be those of today's stages
            study = Study(name, found, _asked(found))
            for artifact in study.asked:
                study.settings(artifact)
            fault = str(error).splitlines()[0]
            say(f"{path} is of another version and is compared as it stands ({fault})")
    except _MALFORMED:
        say(f"{path} cannot be read: what study {name} uses may be replaced")
        return None
    return study._replace(asked={path: at for path, at in study.asked.items() if path in own})


def _replaced(today: Study, other: Study, folder: Path) -> Iterator[tuple[str, _Reason]]:
    """What `today` would replace of what `other` uses, by path of its manifest, and why."""
    shared = [path for path in today.asked if path in other.asked]
    differing = {path for path in shared if today.settings(path) != other.settings(path)}
    gone = {path for path in differing if not (folder / path).is_file()}
    for path in shared:
        if path in differing - gone:
            wanted, used = today.settings(path), other.settings(path)
            was = _made_with(folder / path, used)
            if was != wanted and _agree(was, used):
                yield path, _Reason(path, _words(was, wanted))
        elif gone and path not in gone and (folder / path).is_file():
            for source in sorted(gone & _sources(path, folder)):
                words = _words(other.settings(source), today.settings(source))
                gone_from = f"{source}, from which it was made, is gone"
                yield path, _Reason(source, [gone_from, *words])
                break


def _made_with(path: Path, used: dict[str, Any]) -> dict[str, Any]:
    """Stage and settings in a manifest; in a damaged one are taken to be those it should have."""
    try:
        spec = catalogue.read(path)["spec"]
    except (StreamgaugeError, OSError):
        return used
    return {"stage": spec["stage"], **spec["config"]}


def _agree(was: Mapping, used: Mapping) -> bool:
    """Whether settings are the same where both have them: a later version has other keys."""
    return all("absent" in (old, new) for _, old, new in verify.changes(was, used))


def _words(was: Mapping, wanted: Mapping) -> list[str]:
    return [f"{key} was {old} and is {new}" for key, old, new in verify.changes(was, wanted)]


def _sources(path: str, folder: Path) -> set[str]:
    """The manifests that an artifact was made from, as the paths of `Study.asked`."""
    try:
        inputs = manifest.read(folder / path)["inputs"]
    except (StreamgaugeError, OSError):
        return set()
    return {Path(os.path.normpath(Path(path).parent / name)).as_posix() for name in inputs}


# --- what to say --------------------------------------------------------------------------------
def _refusal(today: Study, reasons: Mapping, users: Mapping, folder: Path) -> StreamgaugeError:
    first = next(path for path in today.asked if path in users)
    differs = reasons[first].differs
    more = len(differs) - _MOST
    told = ", ".join(differs[:_MOST]) + (f" and {more} more" if more > 0 else "")
    names = ", ".join(study.name for study in users[first])
    some = "another study uses it" if len(users[first]) == 1 else "other studies use it"
    every = _following(users, folder)
    more = len(every) - 1
    more = f"with {more} more artifact{'s' * (more != 1)} that it takes along, " if more else ""
    names_of_its_own = _names(today, [reason.path for reason in reasons.values()])
    return StreamgaugeError(
        f"{some} ({names}), and this run would make it anew with other settings: {told}; {more}"
        f"that is {_price(every, folder)}",
        where=first,
        remedy=f"Give the new settings a name of their own ({names_of_its_own}), or let it all "
        "be replaced: --config replace=true.",
    )


def _following(users: Mapping[str, list[Study]], folder: Path) -> dict[str, Study]:
    """What `users` would lose, and all that lies there for them and was made from it."""
    studies = {study.name: study for some in users.values() for study in some}.values()
    there = {path for study in studies for path in study.asked if (folder / path).is_file()}
    made = {path: _sources(path, folder) for path in there}
    found = {}
    for study in studies:
        lost, own = users.keys() & study.asked.keys(), there & study.asked.keys()
        while new := {path for path in own if made[path] & lost} - lost:
            lost |= new
        found |= dict.fromkeys(lost, study)
    return found


def _price(of: Mapping[str, Study], folder: Path) -> str:
    """What artifacts take on disk, and what they took to make."""
    flops = 0
    for path, study in of.items():
        stage, place = study.asked[path]
        name = place["subject"]
        with contextlib.suppress(StreamgaugeError):  # the model's manifest is damaged
            if known := grid.shape_of(name, study.config["subjects"][name], folder / "results"):
                shape = costs.shape(study.config, known)
                flops += STAGES[stage].cost(study.config, place, shape).flops
    size = bytes_in_words(sum(catalogue.size(folder / path) for path in of))
    hours = f"{flops / (GPU_TFLOPS * 1e12) / 3600:.2g} GPU hours at {GPU_TFLOPS:g} TFLOP/s"
    return f"{size} on disk" + (f" and {flops:.1e} FLOPs ({hours})" if flops else "")


# wildcard of a path, and where the configuration names it; the widest first
_NAMED = {"subject": "subjects", "corpus": "corpora", "prompts": "prompts", "sae": "imports"}


def _names(today: Study, lost: Iterable[str]) -> str:
    """Which names have to be others for the new artifacts to lie elsewhere."""
    places = [today.asked[path][1] for path in lost]
    renamed: dict[tuple[str, str], str] = {}
    for wildcard, block in _NAMED.items():
        for place in places:
            narrowest = [name for name in _NAMED if name in place][-1]
            # below a subject or corpus of another name everything lies elsewhere already
            if wildcard == narrowest and not renamed.keys() & place.items():
                key = (
                    f"another key for {block}.{place[wildcard]}, there and where the study lists it"
                )
                trained = "k" in cell(place)
                renamed[wildcard, place[wildcard]] = "another sae.recipe" if trained else key
    return "; ".join(dict.fromkeys(renamed.values()))
