"""What a study's grid asks for, held against what its subjects are."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from streamgauge import manifest
from streamgauge.errors import StreamgaugeError


def check_grid(config: Mapping, results: str | Path) -> None:
    """Refuse layers, sparsities and subspaces that a subject cannot have, before any job starts.

    Subjects whose shape nothing tells yet are not checked; the first job that needs the layer says
    the same.

    Args:
        config: the validated configuration.
        results: the folder of artifacts.

    Raises:
        StreamgaugeError: naming every fault.
    """
    faults = []
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
    if faults:
        raise StreamgaugeError("; ".join(faults), where="config.yaml")


def shape_of(name: str, block: Mapping, results: str | Path) -> Mapping | None:
    """``d_model``, ``n_layers``, ... of a subject; None where nothing tells yet.

    Args:
        name: the subject's.
        block: its block of the configuration: ``expect``, or the shape of a ``scratch`` model.
        results: the folder of artifacts; ``subject.json`` tells once the subject is prepared.
    """
    path = Path(results) / name / "subject.json"
    if path.is_file():
        return manifest.read(path)["facts"]
    return block if block["source"] == "scratch" else block.get("expect")


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
    for expansion in grid["expansion"]:
        for i, k in enumerate(grid["k"]):
            if k > expansion * d_model:
                yield (
                    f"grid.k[{i}] is {k}, more than the {expansion * d_model} latents of an SAE"
                    f" on {name} (expansion {expansion} x d_model {d_model})"
                )
