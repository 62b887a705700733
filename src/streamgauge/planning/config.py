"""Read, merge and check the configuration.

The schema (`workflow/schemas/config.schema.yaml`) says what is legal; this module turns whatever
is wrong into one error that names every fault: the key, the value, what is allowed and, for a
misspelt word, the nearest legal one. Cross-references between keys, which a schema cannot state,
are checked here too.
"""

import copy
import math
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from streamgauge.artifacts.figures import FIGURES
from streamgauge.base import yaml_file
from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.wording import join, kind_of, nearest, refuse, shown
from streamgauge.planning.schema import child_of, load_schema, node_of, worded

_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # all but tab and new line
# what a configuration can hold: levels of nesting, values, whole numbers, characters of a key
_DEEPEST, _MOST, _LARGEST, _LONGEST_KEY = 50, 10_000, 2**64, 100


# --- reading ------------------------------------------------------------------------------------
def load(paths: Iterable[str | Path]) -> dict:
    """Read YAML files and merge each into those before it: mappings merge, all else replaces.

    Nothing is checked against the schema; see :func:`validate`.

    Args:
        paths: configuration files, the base first.

    Returns:
        The merged mapping.

    Raises:
        StreamgaugeError: a file cannot be read, is not YAML, is not a mapping, gives a key twice,
            or carries a YAML tag.
    """
    merged: dict = {}
    for path in paths:
        try:
            merged = merge(merged, yaml_file.read(path))
        except RecursionError:
            raise StreamgaugeError("nested without end", where=str(path)) from None
    return merged


def merge(base: dict, overlay: dict) -> dict:
    """`overlay` laid over `base`, see :func:`load`; both are left as they are."""
    merged = dict(base)
    for key, value in overlay.items():
        both = isinstance(merged.get(key), dict) and isinstance(value, dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


# --- checking -----------------------------------------------------------------------------------
def validate(config: Any, where: str = "config.yaml") -> dict:
    """Check a configuration and fill in the defaults.

    Numbers are brought to one form so that equal settings have equal specs: `1e-4`, which YAML
    reads as text, becomes a number; `2.0` becomes 2 where a whole number is asked for, and 5
    becomes 5.0 where any number may stand.

    Args:
        config: the merged configuration, e.g. from :func:`load` or Snakemake's `config`.
        where: what errors call it.

    Returns:
        A new mapping with every default filled in; `config` is left as it is.

    Raises:
        StreamgaugeError: naming the faults found, at most fifty of them.
    """
    schema = load_schema()
    _refuse_unreadable(config, where)
    config = _normalised(copy.deepcopy(config), schema)
    _refuse_unreadable(config, where)  # 1e300 is a whole number by now where one is asked for
    errors = list(_validator().iter_errors(config))
    faults = [text for error in errors for text in worded(error, config)]
    if isinstance(config, dict):
        config = _filled(config, schema)
        faulty = {error.absolute_path[0] if error.absolute_path else None for error in errors}
        missing = {key for key in schema["required"] if key not in config}
        faults += _cross_checks(config, faulty | missing)
    refuse(faults, where)
    return config


@cache
def _validator():
    from jsonschema import Draft202012Validator

    return Draft202012Validator(load_schema())


def _refuse_unreadable(config: Any, where: str) -> None:
    """Refuse what no JSON value can be, and what would trip a schema validator."""
    faults = []
    for n, fault in enumerate(_values(config, "")):
        if n == _MOST:  # a few aliases of aliases stand for billions
            refuse([f"the configuration holds more than {_MOST} values"], where)
        faults += [fault] if fault else []
    refuse(faults, where)


def _values(value: Any, path: str, above: tuple = ()) -> Iterator[str | None]:
    """Every value of a configuration: what is wrong with it, or None."""
    here = path or "the configuration"
    fault = None
    if len(above) > _DEEPEST or any(value is other for other in above):
        fault = f"{here} is nested without end"
    elif isinstance(value, float) and not math.isfinite(value):
        fault = f"{here} is {value}, not a finite number"
    elif isinstance(value, int) and abs(value) > _LARGEST:
        fault = f"{here} is larger than any number a setting can be"
    elif isinstance(value, str) and _CONTROL.search(value):
        fault = f"{here} is {shown(value)}, which has a character that no text can hold"
    elif value is not None and not isinstance(value, dict | list | str | int | float):
        fault = f"{here} is {shown(value)} ({kind_of(value)}), not text, a number or a list"
    yield fault
    if fault:
        return
    for i, item in enumerate(value if isinstance(value, list) else ()):
        yield from _values(item, f"{path}[{i}]", (*above, value))
    for key, item in value.items() if isinstance(value, dict) else ():
        if not isinstance(key, str):
            yield f"{join(path, shown(key))}: a key must be text; put {shown(key)} in quotes"
        elif len(key) > _LONGEST_KEY:  # names become folders
            yield f"{join(path, key)}: a key is at most {_LONGEST_KEY} characters long"
        else:
            yield from _values(item, join(path, key), (*above, value))


def _normalised(value: Any, schema: dict) -> Any:
    node = node_of(schema, value)
    if isinstance(value, dict):
        pairs = ((key, item, child_of(node, key)) for key, item in value.items())
        return {k: v if child is None else _normalised(v, child) for k, v, child in pairs}
    if isinstance(value, list):
        return [_normalised(item, node["items"]) for item in value] if "items" in node else value
    if isinstance(value, bool):
        return value
    types = {option.get("type") for option in node.get("anyOf", (node,))}
    if "boolean" in types and value in ("true", "false"):  # as Snakemake's --config hands it on
        return value == "true"
    if isinstance(value, str) and types & {"number", "integer"} and _NUMBER.fullmatch(value):
        number = float(value)
        value = number if math.isfinite(number) else value
    if isinstance(value, float) and "integer" in types and value.is_integer():
        return int(value)
    if isinstance(value, int | float) and "number" in types:
        return float(value) + 0.0  # -0.0 is 0.0
    return value


def _filled(value: Any, schema: dict) -> Any:
    node = node_of(schema, value)
    if isinstance(value, dict):
        value = dict(value)
        for key, child in node.get("properties", {}).items():
            if key not in value and "default" in child:
                value[key] = copy.deepcopy(child["default"])
        for key, item in value.items():
            child = child_of(node, key)
            value[key] = item if child is None else _filled(item, child)
    return value


def _cross_checks(config: dict, faulty: set) -> Iterator[str]:
    """Faults between keys; blocks that are `faulty` on their own are left out."""
    grid = {} if "grid" in faulty else config["grid"]
    for kind in ("subjects", "corpora"):
        if kind in faulty:
            continue
        for i, name in enumerate(grid.get(kind, ())):
            if name not in config[kind]:
                yield f"grid.{kind}[{i}] is {name!r}, which {kind} does not define" + nearest(
                    name, config[kind]
                )
    for name in grid.get("subjects", ()):
        if name not in grid["layers"]:
            yield f"grid.layers.{name} is missing: the layers to hook, e.g. {name}: [3]"
    if "subjects" not in faulty:
        for name in grid.get("layers", ()):
            if name not in config["subjects"]:
                yield f"grid.layers.{name}: subjects does not define {name!r}" + nearest(
                    name, config["subjects"]
                )
        for name in grid.get("subjects", ()):
            block = config["subjects"].get(name, {})
            if block.get("source") == "scratch":
                yield from _scratch(name, block, config, faulty)
    yield from _between_lists(grid)
    yield from _references(config, faulty)
    yield from _paths(config, faulty)
    if "crosslingual" not in faulty:
        yield from _crosslingual(config, faulty)
    if "figures" not in faulty:
        for name in config["figures"].keys() - FIGURES.keys():
            yield f"figures: there is no figure {name!r}" + nearest(name, FIGURES)
    if "sae" in faulty:
        return
    trainer = config["sae"]["trainer"]
    for i, objective in enumerate(grid.get("objectives", ())):
        if trainer != "native" and objective != "mse":
            yield (
                f"grid.objectives[{i}] is {objective}, which sae.trainer {trainer} cannot train;"
                f" allowed: native"
            )
    batch = config["sae"]["batch_size"]
    for i, tokens in enumerate(grid.get("tokens", ())):
        if tokens < batch:
            yield (
                f"grid.tokens[{i}] is {tokens}, less than one step of {batch} tokens"
                f" (sae.batch_size)"
            )
    if config["sae"]["pool_tokens"] < batch:
        yield (
            f"sae.pool_tokens is {config['sae']['pool_tokens']}, less than one step of {batch}"
            f" tokens (sae.batch_size)"
        )


def _scratch(name: str, block: dict, config: dict, faulty: set) -> Iterator[str]:
    """Faults of one model that the pipeline pretrains."""
    if block["d_model"] % (8 * block["n_heads"]):
        yield (
            f"subjects.{name}.d_model is {block['d_model']}, no multiple of 8 n_heads, which is"
            f" {8 * block['n_heads']}"
        )
    if {"pretrain", "corpora"} & faulty:
        return
    longest = config["pretrain"]["context_length"]
    for corpus in config["grid"]["corpora"]:
        length = config["corpora"].get(corpus, {}).get("context_length", 0)
        if length > longest:
            yield (
                f"corpora.{corpus}.context_length is {length}, but {name} is pretrained for"
                f" {longest} (pretrain.context_length)"
            )


def _between_lists(grid: dict) -> Iterator[str]:
    """Faults between the lists of the grid."""
    for budget in grid.get("seeds_at", ()):
        if budget not in map(str, grid["tokens"]):
            yield f"{join('grid.seeds_at', budget)}: grid.tokens has no such budget"
    for name in grid.get("subjects", ()):
        layers = grid["layers"].get(name)
        if grid.get("depths") and layers and len(layers) != len(grid["depths"]):
            yield (
                f"grid.layers.{name} has {len(layers)} layers, but grid.depths names"
                f" {len(grid['depths'])} places"
            )


def _references(config: dict, faulty: set) -> Iterator[str]:
    """Names of subjects and corpora used outside the grid."""
    if not {"pretrain", "corpora", "subjects"} & faulty:
        scratch = any(block["source"] == "scratch" for block in config["subjects"].values())
        corpus = config["pretrain"]["corpus"]
        if scratch and corpus not in config["corpora"]:
            yield f"pretrain.corpus is {corpus!r}, which corpora does not define" + nearest(
                corpus, config["corpora"]
            )
    if "imports" in faulty:
        return
    for name, block in config["imports"].items():
        for key, kind in (("subject", "subjects"), ("corpus", "corpora")):
            if kind not in faulty and block[key] not in config[kind]:
                yield f"imports.{name}.{key} is {block[key]!r}, which {kind} does not define" + (
                    nearest(block[key], config[kind])
                )


def _paths(config: dict, faulty: set) -> Iterator[str]:
    """Paths that no file can have, or that mean something else to the workflow."""
    for kind in sorted({"subjects", "corpora", "imports", "prompts"} - faulty):
        for name, block in config[kind].items():
            listed = {f"paths[{i}]": path for i, path in enumerate(block.get("paths", ()))}
            if "path" in block:
                listed["path"] = block["path"]
            for key, path in listed.items():
                here = f"{kind}.{name}.{key} is {shown(path)}"
                if "{" in path or "}" in path:
                    yield f"{here}; braces name wildcards: give the file another name"
                if len(path) > 4095 or any(len(part.encode()) > 255 for part in path.split("/")):
                    yield f"{here}, which is too long for a file's name"


def _crosslingual(config: dict, faulty: set) -> Iterator[str]:
    """Names of subjects and prompts that the cross-lingual suite uses."""
    suite = config["crosslingual"]
    for key, kind in (
        ("subjects", "subjects"),
        ("prompts", "prompts"),
        ("layers", "subjects"),
        ("ard_layers", "subjects"),
    ):
        for name in () if kind in faulty else suite[key]:
            if name not in config[kind]:
                yield f"crosslingual.{key}: {kind} does not define {name!r}" + nearest(
                    name, config[kind]
                )
    for name in suite["subjects"]:
        if name not in suite["layers"]:
            yield f"crosslingual.layers.{name} is missing: where Z is patched, e.g. {name}: [3]"
    if "prompts" not in faulty:
        for name, block in config["prompts"].items():
            if block["target"] == block["source"]:
                yield f"prompts.{name}: target and source are both {block['target']!r}"
