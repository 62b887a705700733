"""What a study's grid asks for, held against what its subjects turned out to be."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from streamgauge import manifest
from streamgauge.errors import StreamgaugeError


def check_grid(config: Mapping, results: str | Path) -> None:
    """Refuse layers and sparsities that a subject cannot have, before any job starts.

    Only subjects already prepared can be checked; for the others the first job that needs the
    layer says the same.

    Args:
        config: the validated configuration.
        results: the folder of artifacts.

    Raises:
        StreamgaugeError: naming every fault.
    """
    faults = []
    for name in config["grid"]["subjects"]:
        path = Path(results) / name / "subject.json"
        if path.is_file():
            faults += _faults(name, config["grid"], manifest.read(path)["facts"])
    if faults:
        raise StreamgaugeError("; ".join(faults), where="config.yaml")


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
