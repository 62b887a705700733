"""The configuration's schema, and what breaking it means in the configuration's own words."""

import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import yaml

from streamgauge.base import project
from streamgauge.base.wording import join, nearest, shown

SCHEMA = "workflow/schemas/config.schema.yaml"


@cache
def load_schema() -> dict:
    """The configuration's JSON schema."""
    return yaml.safe_load((project.own() / SCHEMA).read_text(encoding="utf-8"))


def node_of(schema: dict, value: Any) -> dict:
    """The schema that governs `value`: references followed, the branch chosen by `source`."""
    if "$ref" in schema:
        return node_of(load_schema()["$defs"][schema["$ref"].rsplit("/", 1)[1]], value)
    source = value.get("source") if isinstance(value, dict) else None
    for arm in schema.get("allOf", ()):
        if arm["if"]["properties"]["source"]["const"] == source:
            return node_of(arm["then"], value)
    return schema


def child_of(node: dict, key: str) -> dict | None:
    """The schema of one key of a mapping, or None for a key that does not belong."""
    if key in node.get("properties", {}):
        return node["properties"][key]
    for pattern, schema in node.get("patternProperties", {}).items():
        if re.search(pattern, key):
            return schema
    return None


def worded(error, config: Any) -> Iterator[str]:
    """What a jsonschema error means, in this configuration's own words."""
    path = _path(error.absolute_path)
    value, rule, schema = error.instance, error.validator, error.schema
    here = path or "the configuration"
    steps = list(error.absolute_schema_path)
    if "allOf" in steps and "properties" not in steps[steps.index("allOf") :]:
        if not isinstance(value, dict):
            return  # what is no block at all lacks no keys of any kind of block
    if rule == "additionalProperties":
        for key in value:
            if child_of(schema, key) is None:
                yield _unknown_key(key, path, schema)
    elif rule == "required":
        for key in error.validator_value:
            if key not in value:
                child = child_of(schema, key) or {}
                says = child.get("description", "").rstrip(".")
                yield f"{join(path, key)} is missing; allowed: {_allowed(child)} ({says})"
    elif rule == "not":  # a reserved name
        yield f"{join(path, str(value))}: the name {shown(value)} is taken by the layout of results"
    elif rule == "oneOf":
        ways = " or ".join(f"({option['title']})" for option in error.validator_value)
        yield f"{here} needs exactly one of {ways}"
    elif rule == "dependentRequired":
        for key, needed in error.validator_value.items():
            yield from (
                f"{join(path, other)} is missing: {key} needs it"
                for other in needed
                if key in value and other not in value
            )
    elif rule == "uniqueItems":
        twice = next(item for i, item in enumerate(value) if item in value[:i])
        yield f"{here} lists {shown(twice)} twice"
    elif rule in ("minItems", "minProperties"):
        yield f"{here} is empty; allowed: at least one entry"
    else:
        words = schema.get("enum") or [o["const"] for o in schema.get("anyOf", ()) if "const" in o]
        hint = nearest(value, words) if isinstance(value, str) else ""
        yield f"{here} is {shown(value)}; allowed: {_allowed(schema)}{hint}"


def _unknown_key(key: str, path: str, schema: dict) -> str:
    if schema.get("patternProperties"):
        name = load_schema()["$defs"]["name"]
        named_freely = name["pattern"] in schema["patternProperties"]
        allowed = (name if named_freely else schema)["description"].rstrip(".")
        return f"{path}: {shown(key)} is not a usable name; allowed: {allowed}"
    valid = list(schema["properties"])
    hint = nearest(key, valid)
    if not hint:
        homes = [home or "the top level" for home, keys in _keys(load_schema(), "") if key in keys]
        hint = f" ({key} belongs to {' or '.join(homes)})" if homes else ""
    return f"{join(path, key)} is not a key; allowed: {', '.join(valid)}{hint}"


def _keys(schema: dict, path: str) -> Iterator[tuple[str, set[str]]]:
    """Each fixed mapping of the schema with its keys."""
    properties = schema.get("properties", {})
    yield path, set(properties)
    for key, child in properties.items():
        yield from _keys(child, join(path, key))


def _allowed(schema: dict) -> str:
    """What a schema admits, as words."""
    schema = node_of(schema, None)
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


def _path(parts: Iterable[str | int]) -> str:
    path = ""
    for part in parts:
        path = f"{path}[{part}]" if isinstance(part, int) else join(path, part)
    return path
