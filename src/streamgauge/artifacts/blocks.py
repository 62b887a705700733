"""Which part of the configuration an artifact depends on, and nothing more.

Lists in ``grid`` say *which* artifacts exist and belong to none. Every function takes the validated
configuration and the wildcards of the artifact's path.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from streamgauge.base.paths import cell

Block = Callable[[Mapping, Mapping], dict[str, Any]]

_MODEL_SUFFIXES = {".safetensors", ".json"}


def whole(*names: str) -> Block:
    """The blocks `names` as they stand."""
    return lambda config, w: {name: config[name] for name in names}


def one(name: str, section: str, wildcard: str) -> Block:
    """The entry of `section` that a wildcard names, under `name`."""
    return lambda config, w: {name: config[section][w[wildcard]]}


def tokens(config: Mapping, w: Mapping) -> dict:
    """The corpus, and how many sequences of this split."""
    corpus = dict(config["corpora"][w["corpus"]])
    # the other split's size changes nothing in this one
    wanted = {split: corpus.pop(f"{split}_sequences") for split in ("train", "eval")}
    return {"corpus": corpus, "sequences": wanted[w["split"]]}


def probes(config: Mapping, w: Mapping) -> dict:
    """The probes of a split."""
    settings = dict(config["probes"])
    if w["split"] == "train":
        # training reads the downstream probes alone
        settings |= {"same_positions": 0, "diagonal": 0}
    return {"probes": settings}


def pretrain(config: Mapping, w: Mapping) -> dict:
    """A subject pretrained here, the family's settings and its corpus."""
    corpus = dict(config["corpora"][config["pretrain"]["corpus"]])
    # the family reads as many rows as it needs, and has a length of its own
    for name in ("train_sequences", "eval_sequences", "context_length"):
        del corpus[name]
    subject = config["subjects"][w["subject"]]
    return {"subject": subject, "pretrain": config["pretrain"], "corpus": corpus}


def sae(config: Mapping, w: Mapping) -> dict:
    """How an SAE is trained. The recipe's name is in its path.

    Raises:
        KeyError: the SAE's folder names another recipe than the configuration.
    """
    if cell(w).get("recipe", "") != config["sae"]["recipe"]:
        raise KeyError("recipe")
    return {"sae": {key: value for key, value in config["sae"].items() if key != "recipe"}}


def comparisons(config: Mapping, w: Mapping) -> dict:
    """Targets, statistics and which layers of different subjects are compared."""
    return {**whole("statistics", "comparisons")(config, w), "depths": depths(config["grid"])}


def depths(grid: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Which layers of different subjects are compared: those at the same place in their lists.

    Args:
        grid: the config block: ``layers``, and ``depths``, the names of the places, where given.

    Returns:
        subject -> layer (as text) -> name of its depth; numbers from "1" where there are no names.
    """
    found = {}
    for subject in grid["subjects"]:
        layers = grid["layers"][subject]
        names = grid["depths"] or [str(i) for i in range(1, len(layers) + 1)]
        found[subject] = {str(layer): name for layer, name in zip(layers, names, strict=True)}
    return found


def own_files(block: Mapping[str, Any]) -> list[str]:
    """The user's own files that a block of subjects, corpora or imports names.

    Args:
        block: one entry of ``subjects``, ``corpora`` or ``imports``.

    Returns:
        Paths as written in the config; empty for sources that are not files of the user's.
    """
    paths = block.get("paths", [block["path"]] if "path" in block else [])
    if block.get("source", "local") != "local" and not any(Path(path).is_dir() for path in paths):
        return list(paths)
    # of a directory what a model in it is read from
    inside = (file for path in paths for file in Path(path).glob("*"))
    return sorted(str(file) for file in inside if file.suffix in _MODEL_SUFFIXES)
