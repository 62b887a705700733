"""Where the Snakefile, rules, scripts, schema and resources lie, and where results do."""

import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def pipeline(*starts: str | Path) -> Path:
    """The folder that holds the Snakefile.

    The checkout above one of `starts` or the working directory; else the checkout that this library
    lies in; else what was installed with it.
    """
    return next(filter(None, map(_checkout_above, [*starts, Path.cwd()])), None) or own()


@cache
def own() -> Path:
    """The folder that holds the Snakefile that belongs to this library."""
    checkout = _PACKAGE.parents[1]
    return checkout if _is_checkout(checkout) else _PACKAGE / "pipeline"


def home() -> Path:
    """The folder that holds the results: the checkout around the working directory, or that."""
    return _checkout_above(Path.cwd()) or Path.cwd()


def flags(snakefile: str | Path, overlays: Iterable[str | Path] = ()) -> list[str]:
    """The words after the targets that make Snakemake run `snakefile` with `overlays`."""
    elsewhere = Path(snakefile).parent.resolve() != home()
    files = ["--configfile", *map(str, overlays)]
    return (["-s", str(snakefile)] if elsewhere else []) + (files if files[1:] else [])


def resource(path: str | Path) -> Path:
    """A file that a configuration names: the user's own, else one that ships with the pipeline."""
    shipped = own() / path
    return shipped if not os.path.exists(path) and shipped.is_file() else Path(path)


def _checkout_above(start: str | Path) -> Path | None:
    start = Path(start).resolve()
    return next(filter(_is_checkout, [start, *start.parents]), None)


def _is_checkout(folder: Path) -> bool:
    return (folder / "workflow/scripts").is_dir() and (folder / "src/streamgauge").is_dir()
