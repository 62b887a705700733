"""What a study's grid asks for, held against what its subjects are."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from streamgauge.artifacts import manifest
from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.wording import refuse
from streamgauge.planning import parts

_SHAPE = ("d_model", "n_layers", "vocab_size")
# cells of a study, and parts of one store, that a scheduler can plan
_MOST_CELLS, _MOST_PARTS = 100_000, 10_000


def check_grid(config: Mapping, results: str | Path) -> None:
    """Refuse what a subject cannot have, and more than can be planned, before any job starts.

    Layers, sparsities and subspaces are held against the shapes of the subjects.

    Subjects whose shape nothing tells yet are not checked; the first job that needs the layer says
    the same.

    Args:
        config: the validated configuration.
        results: the folder of artifacts.

    Raises:
        StreamgaugeError: naming the faults.
    """
    faults = list(too_many(config))
    for name in config["grid"]["subjects"]:
        shape = shape_of(name, config["subjects"][name], results)
        if shape:
            faults += _faults(name, config["grid"], shape)
    suite = config["crosslingual"]
    for name in suite["subjects"]:
        shape = shape_of(name, config["subjects"][name], results)
        if shape:
            faults += _suite_faults(name, suite, shape, config["ard"]["k_sub"])
    for name, block in config["imports"].items():
        shape = shape_of(block["subject"], config["subjects"][block["subject"]], results)
        if shape and block["layer"] >= shape["n_layers"]:
            faults.append(
                f"imports.{name}.layer is {block['layer']}, but {block['subject']} has the layers"
                f" 0 to {shape['n_layers'] - 1}"
            )
    refuse(faults, "config.yaml")


def shape_of(name: str, block: Mapping, results: str | Path) -> Mapping | None:
    """``d_model``, ``n_layers``, ... of a subject; None where nothing tells yet.

    Args:
        name: the subject's.
        block: its block of the configuration: ``expect``, or the shape of a ``scratch`` model.
        results: the folder of artifacts; ``subject.json`` tells once the subject is prepared.

    Raises:
        StreamgaugeError: ``subject.json`` is no manifest of a model.
    """
    path = Path(results) / name / "subject.json"
    if path.is_file():
        facts = manifest.read(path)["facts"]
        sizes = [facts.get(key) for key in _SHAPE] if isinstance(facts, Mapping) else [None]
        if not all(type(size) is int and size > 0 for size in sizes):
            raise StreamgaugeError(
                "says no shape of a model",
                where=str(path),
                remedy=f"Remove {path} and run snakemake again.",
            )
        return facts
    return block if block["source"] == "scratch" else block.get("expect")


def too_many(config: Mapping) -> Iterator[str]:
    """What a study asks for beyond what a scheduler can plan: cells, and parts of one store."""
    grid, suite = config["grid"], config["crosslingual"]
    runs = sum(len(grid["seeds_at"].get(str(budget), grid["seeds"])) for budget in grid["tokens"])
    layers = sum(len(grid["layers"][name]) for name in grid["subjects"])
    lists = (grid[key] for key in ("corpora", "expansion", "k", "objectives"))
    saes = layers * runs * math.prod(map(len, lists))
    patched = (
        suite["layers"][name] + suite["ard_layers"].get(name, []) for name in suite["subjects"]
    )
    lists = (suite[key] for key in ("prompts", "k_sub", "sources", "penalties"))
    cells = sum(map(len, patched)) * math.prod(map(len, lists))
    for count, block in ((saes, "grid"), (cells, "crosslingual")):
        if count > _MOST_CELLS:
            yield f"{block} asks for {count:,} combinations; allowed: at most {_MOST_CELLS:,}"
    for stage, tokens in config["scatter"].items():
        for corpus in grid["corpora"]:
            n = max(parts.n_parts(config, stage, corpus, split) for split in ("train", "eval"))
            if n > _MOST_PARTS:
                yield (
                    f"scatter.{stage} is {tokens}, which cuts a store of {corpus} into {n:,} parts;"
                    f" allowed: at most {_MOST_PARTS:,}"
                )


def _suite_faults(name: str, suite: Mapping, facts: Mapping, ard_k_sub: int) -> Iterator[str]:
    for key in ("layers", "ard_layers"):
        for layer in suite[key].get(name, ()):
            if layer >= facts["n_layers"]:
                yield (
                    f"crosslingual.{key}.{name} has {layer}, but {name} has the layers 0 to"
                    f" {facts['n_layers'] - 1}"
                )
    sizes = {f"crosslingual.k_sub[{i}]": k for i, k in enumerate(suite["k_sub"])}
    for key, k_sub in {**sizes, "ard.k_sub": ard_k_sub}.items():
        if k_sub >= facts["d_model"]:
            yield f"{key} is {k_sub}, no smaller than the d_model of {name}, {facts['d_model']}"


def _faults(name: str, grid: Mapping, facts: Mapping) -> Iterator[str]:
    n_layers, d_model = facts["n_layers"], facts["d_model"]
    for i, layer in enumerate(grid["layers"][name]):
        if layer >= n_layers:
            yield (
                f"grid.layers.{name}[{i}] is {layer}, but {name} has the layers 0 to {n_layers - 1}"
            )
    expansion = min(grid["expansion"])
    for i, k in enumerate(grid["k"]):
        if k > expansion * d_model:
            yield (
                f"grid.k[{i}] is {k}, more than the {expansion * d_model} latents of an SAE"
                f" on {name} (expansion {expansion} x d_model {d_model})"
            )
