"""Configurations as people write them and as nobody should: strategies for `test_fuzz`."""

import copy
import datetime
import re
from pathlib import Path

import yaml
from hypothesis import strategies as st

from streamgauge.artifacts.figures import FIGURES
from streamgauge.planning.schema import load_schema

ROOT = Path(__file__).resolve().parents[2]
FILES = [ROOT / "config.yaml", *sorted((ROOT / "studies").glob("*.yaml"))]
SCHEMA = load_schema()
LARGEST = 2**64

# names that the schema allows, the odd ones among them
NAMES = ["tiny", "m2", "model.b", "A_3", "0", "L01", "logs", "sae", "x" * 100]
LOWER = ["math", "m", "basis", "a_b-c"]
TEXTS = st.sampled_from(["a", "x.txt", "dir/ü.json", "$x$", "中文", "~", "1e-4"]) | st.text(
    st.characters(exclude_categories=["C"], exclude_characters="{}"), min_size=1, max_size=20
)
# blocks that refer to others; `studies` makes them fit together
JOINED = {"study", "grid", "subjects", "corpora", "imports", "crosslingual", "prompts", "scatter"}


# --- what is legal ------------------------------------------------------------------------------
def legal(schema):
    """A strategy for values that `schema` allows, numbers in any of the forms YAML gives them."""
    if "$ref" in schema:
        return legal(SCHEMA["$defs"][schema["$ref"].rsplit("/", 1)[1]])
    for key in ("anyOf", "allOf"):
        if key in schema:
            return st.one_of([legal(option.get("then", option)) for option in schema[key]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "const" in schema:
        return st.just(schema["const"])
    return _KINDS[schema["type"]](schema)


def _integers(schema):
    lowest, highest = schema.get("minimum", 0), schema.get("maximum", LARGEST)
    large = [n for n in (1000, 2**31 - 1, 10**15, 2**53 + 1, LARGEST) if lowest <= n <= highest]
    numbers = st.integers(lowest, min(lowest + 40, highest))
    exact = st.one_of(numbers.map(float), numbers.map(str), numbers.map(lambda n: f"{n}.0"))
    return st.one_of(numbers, numbers, exact, st.sampled_from(large))


def _floats(schema):
    low, high = (
        schema.get(key, schema.get(f"exclusive{key.title()}")) for key in ("minimum", "maximum")
    )
    bounds = {
        "exclude_min": "exclusiveMinimum" in schema,
        "exclude_max": "exclusiveMaximum" in schema,
    }
    usual = st.floats(
        low, high, allow_nan=False, allow_infinity=False,
        **{key: on for key, on in bounds.items() if on},
    )  # fmt: skip
    return usual | usual.map(repr)


def _strings(schema):
    if "pattern" in schema:
        fits = [name for name in NAMES if re.search(schema["pattern"], name)]
        return st.sampled_from([name for name in fits if len(name) <= schema["maxLength"]])
    if "maxLength" in schema:
        return st.just("") | TEXTS
    return TEXTS


def form(value):
    """The one form that equal settings have."""
    try:
        return float(value)
    except ValueError:
        return value


def _lists(schema):
    return st.lists(
        legal(schema["items"]), min_size=schema.get("minItems", 0), max_size=3, unique_by=form
    )


def _mappings(schema):
    if "patternProperties" in schema:
        ((pattern, child),) = schema["patternProperties"].items()
        keys = [key for key in (*NAMES, *LOWER, "7") if re.search(pattern, key)]
        return st.dictionaries(st.sampled_from(keys), legal(child), max_size=2)
    fields = {key: legal(child) for key, child in schema["properties"].items()}
    needed = {key: fields.pop(key) for key in schema.get("required", ())}
    made = st.fixed_dictionaries(needed, optional=fields)
    return made.map(_one_way) if "oneOf" in schema else made


def _one_way(block):
    """A GGUF file by path, or by package and file."""
    if "path" in block:
        return {key: value for key, value in block.items() if key not in ("package", "file")}
    return {**block, "package": "p", "file": "f"}


_KINDS = {
    "integer": _integers,
    "number": _floats,
    "string": _strings,
    "boolean": lambda schema: st.booleans(),
    "null": lambda schema: st.none(),
    "array": _lists,
    "object": _mappings,
}
_BLOCKS = {key: legal(child) for key, child in SCHEMA["properties"].items() if key not in JOINED}
# which figures there are is not for the schema to say
(_FIGURE,) = SCHEMA["properties"]["figures"]["patternProperties"].values()
_BLOCKS["figures"] = st.dictionaries(st.sampled_from(list(FIGURES)), legal(_FIGURE), max_size=2)
_REST = st.fixed_dictionaries({}, optional=_BLOCKS)
_OF = {key: legal(SCHEMA["$defs"][key]) for key in ("subject", "corpus", "counts", "names")}
_GRID = SCHEMA["properties"]["grid"]["properties"]
_SUITE = SCHEMA["properties"]["crosslingual"]["properties"]
_SEEDS = legal(_GRID["seeds"])
_LISTS = st.fixed_dictionaries(
    {key: legal(_GRID[key]) for key in ("expansion", "k")},
    optional={"objectives": legal(_GRID["objectives"]), "seeds": _SEEDS},
)
_SUITE_LISTS = {key: legal(_SUITE[key]) for key in ("k_sub", "sources", "penalties")}
_LAYERS = legal(
    _GRID["layers"]["patternProperties"][next(iter(_GRID["layers"]["patternProperties"]))]
)
_SCATTER = legal(SCHEMA["properties"]["scatter"])


@st.composite
def studies(draw):
    """A configuration that must be accepted: every cross-reference holds."""
    few = {"min_size": 1, "max_size": 2}
    names = st.sampled_from(NAMES)
    config = draw(_REST)
    subjects = draw(st.dictionaries(names, _OF["subject"], **few))
    corpora = draw(st.dictionaries(names, _OF["corpus"], **few))
    chosen = draw(st.lists(st.sampled_from(list(subjects)), unique=True, **few))
    layers = {name: draw(_LAYERS) for name in chosen}
    depths = None
    if len({len(of) for of in layers.values()}) == 1 and draw(st.booleans()):
        depths = NAMES[: len(layers[chosen[0]])]
    sae = config.setdefault("sae", {})
    least = number(sae.get("batch_size", 4096))
    sae["pool_tokens"] = min(least * draw(st.integers(1, 3)), LARGEST)
    budgets = st.integers(least, min(least + 9, LARGEST))
    tokens = draw(st.lists(budgets, unique=True, **few))
    grid = draw(_LISTS)
    if sae.get("trainer") == "saelens":
        grid["objectives"] = ["mse"]
    seeds_at = draw(st.dictionaries(st.sampled_from([str(n) for n in tokens]), _SEEDS))
    grid |= {"subjects": chosen, "corpora": list(corpora), "layers": layers, "tokens": tokens}
    config |= {"study": draw(names), "grid": grid | {"seeds_at": seeds_at, "depths": depths}}
    _pretrainable(config, subjects, corpora)
    if draw(st.booleans()):
        config["imports"] = {
            draw(names): {
                "path": draw(TEXTS), "layer": draw(st.integers(0, 5)),
                "subject": draw(st.sampled_from(list(subjects))), "corpus": next(iter(corpora)),
            }
        }  # fmt: skip
    if draw(st.booleans()):
        pairs = {"path": draw(TEXTS), "target": "en", "source": "zh"}
        config["prompts"] = {draw(st.sampled_from(LOWER)): pairs}
        suite = draw(st.fixed_dictionaries({}, optional=_SUITE_LISTS))
        suite |= {"subjects": chosen, "layers": layers, "prompts": list(config["prompts"])}
        config["crosslingual"] = suite
    return config | {"scatter": draw(_SCATTER), "subjects": subjects, "corpora": corpora}


def number(value):
    """The whole number that a setting stands for."""
    return value if isinstance(value, int) else int(float(value))


def _pretrainable(config, subjects, corpora):
    """Models that the pipeline pretrains have a legal width, a corpus and a context long enough."""
    for block in subjects.values():
        if block["source"] == "scratch":
            block["n_heads"] = min(number(block["n_heads"]), 1000)
            block["d_model"] = 8 * block["n_heads"] * min(number(block["d_model"]), 1000)
    longest = max(number(block["context_length"]) for block in corpora.values())
    config.setdefault("pretrain", {}).update(corpus=next(iter(corpora)), context_length=longest)


# --- what is not --------------------------------------------------------------------------------
def _nested(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


_endless: list = []
_endless.append({"a": _endless})
SCALARS = [
    *(None, True, False, -1, 0, 1, 2**63, 2**64, 2**64 + 1, -(10**19), 10**400),
    *(-0.0, 0.5, 1e300, -1e300, 5e-324, float("nan"), float("inf"), float("-inf")),
    *("", " ", "a\nb", "\x00", "\x1b[31m", "\ud800", "\u202e", "é" * 70, "a" * 5000, "..", "../x"),
    *(
        "a/b",
        "/",
        "{x}",
        "{subject}",
        "1e999",
        "1e300",
        "1_000",
        "0x10",
        "null",
        "auto",
        "٣",
        "9" * 5000,
    ),
    *(datetime.date(2020, 1, 1), datetime.datetime(2020, 1, 1), b"\xff"),
]
COLLECTIONS = [
    *([], {}, [[]], [None], [{}], [1, [1]], [1, 1.0, "1"], ["a", 1, None], list(range(60))),
    *([0] * 3, list(range(10_001)), _nested(60), _endless, {1, 2}, (1,)),
    *(
        {"a": None},
        {1: 2},
        {None: 1},
        {"": 1},
        {"a b": 1},
        {"k\nk": 1},
        {"\ud800": 1},
        {16**9999: 1},
    ),
    *({"source": "local"}, {"source": ["gguf"]}, {"x" * 300: {}}, {"9" * 5000: [0]}, {(1, 2): 3}),
]
nasty = st.sampled_from(SCALARS) | st.sampled_from(COLLECTIONS)


def places(node, path=()):
    """The path of every value below `node`."""
    if isinstance(node, dict | list) and len(path) < 8:
        for key, child in list(node.items()) if isinstance(node, dict) else list(enumerate(node)):
            yield (*path, key)
            yield from places(child, (*path, key))


def at(node, path):
    """The value at `path`."""
    for key in path:
        node = node[key]
    return node


@st.composite
def mutants(draw, originals):
    """A mapping of `originals` with one to three of its values spoilt."""
    config = copy.deepcopy(draw(originals))
    for _ in range(draw(st.sampled_from([1, 1, 2, 3]))):
        paths = list(places(config))
        if paths:
            draw(st.sampled_from(_CHANGES))(draw, config, draw(st.sampled_from(paths)))
    return config


def _replace(draw, config, path):
    at(config, path[:-1])[path[-1]] = copy.deepcopy(draw(nasty))


def _delete(draw, config, path):
    del at(config, path[:-1])[path[-1]]


def _double(draw, config, path):
    parent = at(config, path[:-1])
    if isinstance(parent, list):
        parent.append(parent[path[-1]])
    else:
        parent[draw(st.sampled_from([*NAMES, "", "copy", 7]))] = parent[path[-1]]


def _nudge(draw, config, path):
    """Another number, or another of the schema's words."""
    parent = at(config, path[:-1])
    if isinstance(parent[path[-1]], int | float) and abs(parent[path[-1]]) < 1e300:
        parent[path[-1]] *= draw(st.sampled_from([0, 0.5, 2, 1000, 10**9, -1]))
    else:
        parent[path[-1]] = draw(st.sampled_from(["auto", "mse", "e2e", "float32", "cuda", "local"]))


def _retype(draw, config, path):
    parent = at(config, path[:-1])
    turned = draw(
        st.sampled_from([repr, lambda v: [v], lambda v: {"a": v}, lambda v: [v, v], bool])
    )
    parent[path[-1]] = turned(parent[path[-1]])


def _misplace(draw, config, path):
    """Move a value into another mapping, as a slip of indentation does."""
    value = at(config, path[:-1])[path[-1]]
    homes = [config, *(at(config, p) for p in places(config) if p[: len(path)] != path)]
    home = draw(st.sampled_from([home for home in homes if isinstance(home, dict)]))
    home[str(path[-1])] = value
    if at(config, path[:-1]) is not home:
        _delete(draw, config, path)


_CHANGES = [_replace, _replace, _delete, _double, _retype, _misplace, *[_nudge] * 4]
_LOADED = {path.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in FILES}
written = st.sampled_from(sorted(_LOADED)).map(_LOADED.get)


# --- text ---------------------------------------------------------------------------------------
# fmt: off
_PIECES = [
    "a", "b: ", ": ", "- ", "\n", "\n  ", "\n\t", "  ", "\t", "{", "}", "[", "]", ", ", "? ",
    "|\n", ">-\n", "&a ", "*a", "&b ", "*b", "<<: *a", "<<: [*a, *b]", "<<: 5", "!!set ",
    "!!python/name:os.system ", "!x ", "'", '"', "\\", "\\ud800", "#", "%YAML 1.2\n---\n",
    "---\n", "...\n", "=", "~", "null", "yes", "@", "`", "0x_", "0b_", "0xff", "0777", "1:1",
    "1:1:1.5", "1:" * 300 + "1.5", "9" * 5000, "? 0x" + "f" * 5000, "2020-99-99", "2020-01-01",
    "2001-12-31T23:59:59+99:99", ".nan", "-.inf", "1e999", "\ufeff", "\x00", "\x85", "\u2028",
    "\ud7ff", "é", "study: ", "grid: ", "sae: {lr: ", "{a: " * 40, "[" * 400, "<<",
]
# fmt: on
_BEFORE = ["", "a: ", "b: ", "study: ", "sae: &a ", "c: *a", "d: '"]
_STUDIES = [path.read_text(encoding="utf-8") for path in FILES[1:]]


@st.composite
def texts(draw):
    """Bytes that might be a YAML file: loose pieces, odd values, a study with pieces set in."""
    made = draw(st.sampled_from(["loose", "values", "study"]))
    if made == "loose":
        text = "".join(draw(st.lists(st.sampled_from(_PIECES), max_size=12)))
    elif made == "values":
        pairs = st.tuples(st.sampled_from(_BEFORE), st.sampled_from(_PIECES))
        lines = draw(st.lists(pairs, min_size=1, max_size=2))
        text = "\n".join(f"{before}{piece}" for before, piece in lines)
    else:
        text = draw(st.sampled_from(_STUDIES))
        for _ in range(draw(st.integers(1, 3))):
            start = draw(st.integers(0, len(text)))
            cut = draw(st.sampled_from([0, 1, 1, 5, 40]))
            text = text[:start] + draw(st.sampled_from(["", *_PIECES])) + text[start + cut :]
    encoding = draw(st.sampled_from(["utf-8"] * 8 + ["utf-16", "utf-8-sig", "latin-1"]))
    return text.encode(encoding, "replace") + draw(st.sampled_from([b""] * 9 + [b"\xff\x00"]))
