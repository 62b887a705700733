"""Read, merge and check the configuration.

The schema (`workflow/schemas/config.schema.yaml`) says what is legal; this module turns whatever
is wrong into one error that names every fault: the key, the value, what is allowed and, for a
misspelt word, the nearest legal one. Cross-references between keys, which a schema cannot state,
are checked here too.
"""

import copy
import difflib
import math
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from streamgauge.errors import StreamgaugeError

SCHEMA = Path("workflow/schemas/config.schema.yaml")
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")
_DEEPEST = 50


# --- reading ------------------------------------------------------------------------------------
class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses what hides mistakes: a key given twice, an explicit tag."""

    def compose_node(self, parent, index):
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError(
                problem=f"the tag {event.tag} is not allowed", problem_mark=event.start_mark
            )
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key.value} is given twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return node


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
        merged = _merge(merged, _read(Path(path)))
    return merged


def _read(path: Path) -> dict:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise StreamgaugeError(f"cannot be read ({reason})", where=str(path)) from error
    try:
        data = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise StreamgaugeError(
            f"not a usable configuration: {problem}", where=f"{path}{line}"
        ) from error
    except (ValueError, RecursionError) as error:  # e.g. the date 2020-99-99; very deep nesting
        raise StreamgaugeError(f"not a usable configuration: {error}", where=str(path)) from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise StreamgaugeError(
            f"holds {_kind(data)} at the top",
            where=str(path),
            remedy="A configuration is a mapping of keys to values.",
        )
    return data


def _merge(base: dict, overlay: dict) -> dict:
    merged = dict(base)
    for key, value in overlay.items():
        both = isinstance(merged.get(key), dict) and isinstance(value, dict)
        merged[key] = _merge(merged[key], value) if both else value
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
        StreamgaugeError: naming every fault found.
    """
    faults = list(_unreadable(config, ""))
    if faults:
        _refuse(faults, where)
    schema = load_schema()
    config = _normalised(copy.deepcopy(config), schema)
    errors = list(_validator().iter_errors(config))
    faults = [text for error in errors for text in _worded(error, config)]
    if isinstance(config, dict):
        config = _filled(config, schema)
        faulty = {error.absolute_path[0] if error.absolute_path else None for error in errors}
        missing = {key for key in schema["required"] if key not in config}
        faults += _cross_checks(config, faulty | missing)
    if faults:
        _refuse(faults, where)
    return config


@cache
def load_schema() -> dict:
    """The configuration's JSON schema, from this checkout or the working directory."""
    for root in (Path(__file__).resolve().parents[2], Path.cwd()):
        if (root / SCHEMA).is_file():
            return yaml.safe_load((root / SCHEMA).read_text(encoding="utf-8"))
    raise StreamgaugeError(
        "the configuration's schema is not here",
        where=str(SCHEMA),
        remedy="Run from the root of a streamgauge checkout.",
    )


@cache
def _validator():
    from jsonschema import Draft202012Validator

    return Draft202012Validator(load_schema())


def _refuse(faults: list[str], where: str) -> None:
    faults = list(dict.fromkeys(faults))
    if len(faults) == 1:
        raise StreamgaugeError(faults[0], where=where)
    listed = "".join(f"\n  - {fault}" for fault in faults)
    raise StreamgaugeError(f"{len(faults)} faults{listed}", where=where)


def _unreadable(value: Any, path: str, above: tuple = ()) -> Iterator[str]:
    """Faults that no JSON value can have, and that would trip a schema validator."""
    if len(above) > _DEEPEST or any(value is other for other in above):
        yield f"{path} is nested without end"
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                yield f"{_join(path, repr(key))}: a key must be text; put {key!r} in quotes"
            else:
                yield from _unreadable(item, _join(path, key), (*above, value))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _unreadable(item, f"{path}[{i}]", (*above, value))
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{path} is {value}, not a finite number"
    elif isinstance(value, int) and abs(value) > int(sys.float_info.max):
        yield f"{path} is larger than any number a setting can be"
    elif value is not None and not isinstance(value, str | int | float | bool):
        yield f"{path} is {_shown(value)} ({_kind(value)}), not text, a number or a list"


def _node(schema: dict, value: Any) -> dict:
    """The schema that governs `value`: references followed, the branch chosen by `source`."""
    if "$ref" in schema:
        return _node(load_schema()["$defs"][schema["$ref"].rsplit("/", 1)[1]], value)
    source = value.get("source") if isinstance(value, dict) else None
    for arm in schema.get("allOf", ()):
        if arm["if"]["properties"]["source"]["const"] == source:
            return _node(arm["then"], value)
    return schema


def _child(node: dict, key: str) -> dict | None:
    """The schema of one key of a mapping, or None for a key that does not belong."""
    if key in node.get("properties", {}):
        return node["properties"][key]
    for pattern, schema in node.get("patternProperties", {}).items():
        if re.search(pattern, key):
            return schema
    return None


def _normalised(value: Any, schema: dict) -> Any:
    node = _node(schema, value)
    if isinstance(value, dict):
        pairs = ((key, item, _child(node, key)) for key, item in value.items())
        return {k: v if child is None else _normalised(v, child) for k, v, child in pairs}
    if isinstance(value, list):
        return [_normalised(item, node["items"]) for item in value] if "items" in node else value
    if isinstance(value, bool):
        return value
    types = {option.get("type") for option in node.get("anyOf", (node,))}
    if isinstance(value, str) and types & {"number", "integer"} and _NUMBER.fullmatch(value):
        number = float(value)
        value = number if math.isfinite(number) else value
    if isinstance(value, float) and "integer" in types and value.is_integer():
        return int(value)
    if isinstance(value, int) and "number" in types:
        return float(value)
    return value


def _filled(value: Any, schema: dict) -> Any:
    node = _node(schema, value)
    if isinstance(value, dict):
        value = dict(value)
        for key, child in node.get("properties", {}).items():
            if key not in value and "default" in child:
                value[key] = copy.deepcopy(child["default"])
        for key, item in value.items():
            child = _child(node, key)
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
                yield f"grid.{kind}[{i}] is {name!r}, which {kind} does not define" + _hint(
                    name, config[kind]
                )
    for name in grid.get("subjects", ()):
        if name not in grid["layers"]:
            yield f"grid.layers.{name} is missing: the layers to hook, e.g. {name}: [3]"
    if "subjects" not in faulty:
        for name in grid.get("layers", ()):
            if name not in config["subjects"]:
                yield f"grid.layers.{name}: subjects does not define {name!r}" + _hint(
                    name, config["subjects"]
                )
    if "sae" in faulty:
        return
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


# --- wording ------------------------------------------------------------------------------------
def _worded(error, config: Any) -> Iterator[str]:
    """What a jsonschema error means, in this configuration's own words."""
    path = _path(error.absolute_path)
    value, rule, schema = error.instance, error.validator, error.schema
    here = path or "the configuration"
    if rule == "additionalProperties":
        for key in value:
            if _child(schema, key) is None:
                yield _unknown_key(key, path, schema)
    elif rule == "required":
        for key in error.validator_value:
            if key not in value:
                child = _child(schema, key) or {}
                says = child.get("description", "").rstrip(".")
                yield f"{_join(path, key)} is missing; allowed: {_allowed(child)} ({says})"
    elif rule == "not":  # a reserved name
        yield f"{_join(path, str(value))}: the name {value!r} is taken by the layout of results"
    elif rule == "oneOf":
        ways = " or ".join(f"({option['title']})" for option in error.validator_value)
        yield f"{here} needs exactly one of {ways}"
    elif rule == "dependentRequired":
        for key, needed in error.validator_value.items():
            yield from (
                f"{_join(path, other)} is missing: {key} needs it"
                for other in needed
                if key in value and other not in value
            )
    elif rule == "uniqueItems":
        twice = next(item for i, item in enumerate(value) if item in value[:i])
        yield f"{here} lists {_shown(twice)} twice"
    elif rule in ("minItems", "minProperties"):
        yield f"{here} is empty; allowed: at least one entry"
    else:
        words = schema.get("enum") or [o["const"] for o in schema.get("anyOf", ()) if "const" in o]
        hint = _hint(value, words) if isinstance(value, str) else ""
        yield f"{here} is {_shown(value)}; allowed: {_allowed(schema)}{hint}"


def _unknown_key(key: str, path: str, schema: dict) -> str:
    if schema.get("patternProperties"):
        allowed = load_schema()["$defs"]["name"]["description"].rstrip(".")
        return f"{path}: {_shown(key)} is not a usable name; allowed: {allowed}"
    valid = list(schema["properties"])
    hint = _hint(key, valid)
    if not hint:
        homes = [home or "the top level" for home, keys in _keys(load_schema(), "") if key in keys]
        hint = f" ({key} belongs to {' or '.join(homes)})" if homes else ""
    return f"{_join(path, key)} is not a key; allowed: {', '.join(valid)}{hint}"


def _keys(schema: dict, path: str) -> Iterator[tuple[str, set[str]]]:
    """Each fixed mapping of the schema with its keys."""
    properties = schema.get("properties", {})
    yield path, set(properties)
    for key, child in properties.items():
        yield from _keys(child, _join(path, key))


def _allowed(schema: dict) -> str:
    """What a schema admits, as words."""
    schema = _node(schema, None)
    if "anyOf" in schema:
        return " or ".join(_allowed(option) for option in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(str(item) for item in schema["enum"])
    if "const" in schema:
        return str(schema["const"])
    words = {
        "integer": "a whole number",
        "number": "a number",
        "string": "text",
        "boolean": "true or false",
        "null": "null",
        "array": "a list",
        "object": "a mapping",
    }[schema["type"]]
    if schema["type"] == "array":
        return f"{words}, each entry {_allowed(schema['items'])}"
    if schema["type"] == "object" and "properties" in schema:
        return f"{words} with {', '.join(schema['properties'])}"
    if "pattern" in schema:
        return schema["description"].rstrip(".")
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[key]}" for key, sign in bounds.items() if key in schema]
    if "maxLength" in schema:
        limits.append(f"of at most {schema['maxLength']} characters")
    if schema.get("minLength"):
        limits.append("that is not empty")
    return " ".join([words, " and ".join(limits)]) if limits else words


def _hint(word: str, valid: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(valid), n=1, cutoff=0.6)
    return f" (nearest: {near[0]})" if near else ""


def _path(parts: Iterable[str | int]) -> str:
    path = ""
    for part in parts:
        path = f"{path}[{part}]" if isinstance(part, int) else _join(path, part)
    return path


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _shown(value: Any) -> str:
    """A value as YAML writes it, cut short."""
    words = {"None": "null", "True": "true", "False": "false"}
    text = words.get(repr(value), repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."


def _kind(value: Any) -> str:
    return {dict: "a mapping", list: "a list", str: "text"}.get(type(value), type(value).__name__)
