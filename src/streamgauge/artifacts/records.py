"""The record of a study, ``results/studies/{study}/study.json``: what its runs have asked for.

It is no artifact: it has no manifest, and nothing is made from it. It is sealed as manifests are.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from streamgauge.artifacts import manifest
from streamgauge.base import sealed, whole_file
from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.paths import STUDY

RECORD = f"{STUDY}/study.json"
_KEYS = {"config", "artifacts"}


def write(path: Path, config: Mapping[str, Any], artifacts: Iterable[str]) -> None:
    """Write a record, whole or not at all.

    Args:
        path: of the record.
        config: the validated configuration.
        artifacts: paths of the manifests that runs have asked for.

    Raises:
        StreamgaugeError: it cannot be written.
    """
    text = sealed.text({"config": dict(config), "artifacts": sorted(artifacts)})
    whole_file.replace(path, lambda new: new.write_text(text, encoding="utf-8"))


def read(path: Path) -> dict[str, Any]:
    """``config`` and ``artifacts`` of a record.

    Raises:
        FileNotFoundError: there is none.
        StreamgaugeError: it is not as it was written.
    """
    record = sealed.read(path)
    if record.keys() - {sealed.SEAL} != _KEYS or not isinstance(record["artifacts"], list):
        raise StreamgaugeError("not the record of a study", where=str(path))
    return record


def problems(folders: Iterable[Path], manifests: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """Records that are damaged or gone, and what is wrong.

    Args:
        folders: below which records are looked at.
        manifests: artifacts that were found there. A study whose own artifacts bear a seal has left
            a record; of earlier versions some did not.
    """
    studies = {path.parent for path in manifests if _is_study(path.parent) and _sealed(path)}
    known = {file.parent for folder in folders for file in folder.rglob("study.json")}
    for folder in sorted(studies | {folder for folder in known if _is_study(folder)}):
        path = folder / "study.json"
        try:
            if path.is_symlink():
                raise StreamgaugeError("a link, which was a file when it was written")
            read(path)
        except FileNotFoundError:
            yield path, "is missing: without it another study may replace what this one uses"
        except (StreamgaugeError, OSError) as error:
            yield path, getattr(error, "problem", str(error))


def _is_study(folder: Path) -> bool:
    return folder.absolute().parent.name == "studies"


def _sealed(path: Path) -> bool:
    try:
        return sealed.SEAL in manifest.read(path)
    except (StreamgaugeError, OSError):
        return False
