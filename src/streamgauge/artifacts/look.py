"""Look inside one artifact: what it is, from what, whether it is stale, what is in it."""

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from streamgauge.artifacts import catalogue, contents, manifest, verify
from streamgauge.artifacts.figures import FIGURES, drawer
from streamgauge.artifacts.stages import STAGES
from streamgauge.base import json_file
from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.wording import bytes_in_words

HASHED_BYTES = 256 * 2**20  # larger artifacts are left to `verify`


def describe(path: str | Path, root: Path | None = None, config: Mapping | str = "") -> str:
    """Everything `streamgauge inspect` prints about an artifact.

    Args:
        path: a store, table, manifest, figure, SAE or model directory, JSON or safetensors file,
            or a folder of artifacts.
        root: the checkout, to compare the spec with today's code.
        config: the validated config to compare the spec with; or in words why there is none.

    Returns:
        Lines of at most 96 columns, names and paths excepted.

    Raises:
        StreamgaugeError: there is nothing at `path`, or it cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise StreamgaugeError("does not exist", where=str(path), remedy=_near(path))
    own = catalogue.owner(path)
    if path.is_dir() and own is None:
        return "\n".join([str(path), *_folder(path, root, config)])
    lines = [str(path)]
    try:
        if own is not None:
            lines += _provenance(own, root, config)
        try:
            shown = list(_content(path, own))
        except StreamgaugeError as error:
            if own is None or not _known(own):
                raise
            # what it is and what became of it is the more wanted then
            shown = [contents.line("content", str(error))]
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise StreamgaugeError(
            f"holds what no artifact of its kind holds ({error!r:.80})", where=str(path)
        ) from error
    return "\n".join(lines + (["", *shown] if shown else []))


def _what(stage: str) -> str:
    return STAGES[stage].what if stage in STAGES else f"artifact of stage {stage}"


def _known(own: Path) -> bool:
    """Whether the manifest can be read, so that there is more to say than what is wrong."""
    try:
        return bool(catalogue.read(own))
    except StreamgaugeError:
        return False


# --- what and from what -------------------------------------------------------------------------
def _provenance(own: Path, root: Path | None, config: Mapping | str) -> Iterator[str]:
    try:
        record = catalogue.read(own)
    except StreamgaugeError as error:
        yield contents.line("state", f"{own.name}: {error.problem}. {error.remedy or ''}")
        return
    spec = record["spec"]
    yield contents.line("is", _what(spec["stage"]))
    yield contents.line("of", contents.flow(spec["wildcards"]))
    sources = [os.path.normpath(own.parent / name) for name in record["inputs"]]
    yield contents.line("from", ", ".join(sources) or "no other artifact")
    for name, block in spec["config"].items():
        yield contents.line("config", f"{name}: {contents.flow(block)}")
    scripts = [name for name in spec["code"] if name.endswith(".py")]
    yield contents.line(
        "code", f"{', '.join(scripts)} and {len(spec['code']) - len(scripts)} modules"
    )
    if record["files"]:
        size = bytes_in_words(catalogue.size(own))
        yield contents.line("files", f"{len(record['files'])}, {size}")
    yield contents.line("digest", str(record["digest"])[:16])
    yield from (contents.line("state", text) for text in _state(own, root, config))
    # a scorecard's scores have their own table below, a study's findings their own page
    facts = {k: v for k, v in record["facts"].items() if k not in ("scores", "blocks")}
    if spec["stage"] == "patching":
        facts["verdict"] = facts["verdict"]["sentence"]
    if facts:
        yield contents.line("facts", contents.flow(facts))


def _state(own: Path, root: Path | None, config: Mapping | str) -> Iterator[str]:
    """Stale or not, in sentences."""
    large = catalogue.size(own) > HASHED_BYTES
    found = []
    if isinstance(config, str) or root is None:
        yield f"spec not compared: {config or 'no checkout'}"
    else:
        stale = verify.differences(catalogue.read(own)["spec"], root, config)
        if stale is None:
            yield verify.UNDESCRIBED
        found += stale or []
    if not large:
        found += manifest.problems(own)
    if not found and not large:
        yield "its files and inputs are as they were written"
    if not found and isinstance(config, Mapping) and stale is not None:
        yield "up to date: config and code are those it was made with"
    yield from (f"STALE: {problem}" for problem in found)
    if large:
        yield f"files not read (large): streamgauge verify {own}"
    elif found:
        yield f"to make it anew: rm -f {own} && snakemake {own}"


def _folder(path: Path, root: Path | None, config: Mapping | str) -> Iterator[str]:
    """The artifacts below a folder, one line each."""
    if (path / "config.json").is_file():
        yield from contents.model(path)
        return
    found = list(catalogue.find(path))
    if not found:
        raise StreamgaugeError(
            "holds no artifact", where=str(path), remedy="Give a folder of results."
        )
    yield f"{len(found)} artifacts (files are not read here: streamgauge verify {path})"
    for own in found:
        try:
            spec = catalogue.read(own)["spec"]
        except StreamgaugeError:
            state = "no manifest" if not own.exists() else "DAMAGED"
        else:
            state = "not compared"
            if root is not None and not isinstance(config, str):
                stale = verify.differences(spec, root, config)
                state = "not in config" if stale is None else "STALE" if stale else "spec fits"
        name = own.relative_to(path).as_posix()
        yield f"  {state:<13} {bytes_in_words(catalogue.size(own)):>10}  {name}"


# --- what is in it ------------------------------------------------------------------------------
def _content(path: Path, own: Path | None) -> Iterator[str]:
    if path.suffix == ".json" and path == own:
        store = path.with_suffix(".zarr")
        tables = [path.with_suffix(suffix) for suffix in (".csv", ".parquet")]
        if store.is_dir():
            yield from contents.store(store)
        for table in tables:
            if table.is_file():
                yield from contents.table(table)
        if path.name == "scores.json":
            yield from contents.scores(manifest.read(path))
        elif path.name == "sae.json":
            yield from contents.sae(path.parent)
    elif path.suffix == ".zarr":
        yield from contents.store(path)
    elif path.is_dir():
        yield from contents.sae(path) if (path / "cfg.json").is_file() else contents.model(path)
    elif path.suffix in (".csv", ".parquet"):
        yield from contents.table(path)
    elif path.suffix == ".safetensors":
        yield from contents.tensors(path)
    elif path.suffix == ".json":
        try:
            value = json_file.loads(path.read_bytes())
        except ValueError as error:
            raise StreamgaugeError(f"not JSON ({error})", where=str(path)) from error
        for key, item in value.items() if isinstance(value, dict) else [("content", value)]:
            yield contents.line(key, contents.flow(item))
    elif own is None:
        raise StreamgaugeError(
            f"a {path.suffix or 'nameless'} file is no artifact",
            where=str(path),
            remedy="Known are stores, tables, manifests, JSON, safetensors and figures.",
        )


def _near(path: Path) -> str:
    names = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"Did you mean {path.parent / near[0]}?" if near else "Run snakemake to make it."


# --- a picture ----------------------------------------------------------------------------------
def picture(path: str | Path):
    """What `streamgauge inspect --plot` draws, by kind of artifact.

    Score, spectra and training tables become the figures of the report; other tables and stores
    become histograms of (a sample of) their columns or arrays.

    Returns:
        A Matplotlib figure.

    Raises:
        StreamgaugeError: there is no picture for this kind.
    """
    from streamgauge.base.tables import read_csv
    from streamgauge.report import score_figures

    path = Path(path)
    own = catalogue.owner(path)
    if path.suffix == ".json" or path.is_dir():
        path = _pictured(path if own is None else own)
    if path.suffix == ".zarr":
        return _histograms(path.name, _arrays(path))
    drawn = [n for n, figure in FIGURES.items() if figure.files == (path.stem,)]
    if path.name == "spectra.csv":
        drawn = ["pr_canyon"]
    # tables of a layer, which bear the names of some of a study's, are none of theirs
    if path.suffix == ".csv" and drawn and not re.fullmatch(r"L\d+", path.parent.name):
        return drawer(drawn[0])(read_csv(path), str(path))
    if path.name == "training.csv" and own is not None and own.exists():
        return score_figures.loss_curves(
            score_figures.read_histories([path], [catalogue.read(own)]), path.parent.name
        )
    if path.suffix in (".csv", ".parquet"):
        return _histograms(path.name, _columns(path))
    raise StreamgaugeError(
        "no picture for this kind",
        where=str(path),
        remedy="Stores, CSV and Parquet tables and SAE directories have one.",
    )


def _pictured(own: Path) -> Path:
    """The file of an artifact worth drawing."""
    names = {"sae.json": "training.csv"}
    store = own.with_suffix(".zarr")
    candidates = [own.with_name(names.get(own.name, own.name)), *map(own.with_suffix, _TABLES)]
    return next((path for path in [*candidates[1:], store] if path.exists()), candidates[0])


_TABLES = (".csv", ".parquet")
# tables with a figure of their own; Matplotlib is imported only to draw one


def _arrays(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    from streamgauge.stores import layer_stores

    opened = layer_stores.Store(path)
    for name in opened.names:
        array = opened.array(name)
        if array.ndim and not contents.is_coordinate(array, name):
            values = np.concatenate([part.ravel() for part in contents.sample(opened, name)])
            if values.dtype.kind in "iuf":
                unit = array.attrs.get("units", "1")
                yield name if unit == "1" else f"{name}, {unit}", values


def _columns(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    from streamgauge.base.tables import pieces

    first = next(pieces(path))
    for name in first:
        if first[name].dtype.kind in "iuf" and first[name].nunique() > 1:
            yield name, first[name].to_numpy()


def _histograms(title: str, items: Iterator[tuple[str, np.ndarray]]):
    from streamgauge.report import drawing

    items = [(name, values[np.isfinite(values)]) for name, values in items][:12]
    if not items:
        raise StreamgaugeError("nothing to draw in it", where=title)
    with drawing.style():
        wide = min(3, len(items))
        rows = -(-len(items) // wide)
        figure = drawing.figure(title, drawing.DOUBLE, 1.8 * rows)
        axes = figure.subplots(rows, wide, squeeze=False).ravel()
        for ax, (name, values) in zip(axes, items, strict=False):
            ax.hist(values, bins=60, color=drawing.BLUE)
            # a few massive values must stay visible beside millions of small ones
            ax.set(xlabel=name, yscale="log", ylabel="count")
        for ax in axes[len(items) :]:
            ax.remove()
    return figure
