"""The documentation against the repository: links, configuration keys, artifacts, commands."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from streamgauge.config import load, load_schema, validate

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
STAGES = [page for page in PAGES if page.parent.name == "docs"]
SUFFIXES = {"zarr", "csv", "json", "parquet", "safetensors", "svg", "png", "html", "md", "yaml"}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
stages = pytest.mark.parametrize("page", STAGES, ids=lambda page: page.name)


def fenced(page, language):
    """The text of the fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def prose(page):
    """A page without its fenced code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)


def spans(page):
    """The inline code of a page."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def anchors(page):
    """The anchors that headings get when a page is rendered."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pages
def test_relative_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", path):
            continue
        there = page.parent / path if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def property_of(schema, key):
    """The schema of `key` in a mapping's schema, or None."""
    return schema.get("properties", {}).get(key)


def library_names(module):
    """What a module of the library defines at its top level."""
    home = ROOT / "src/streamgauge" / module
    path = next((p for p in (home.with_suffix(".py"), home / "__init__.py") if p.is_file()), None)
    body = ast.parse(path.read_text()).body if path else []
    return {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


@pages
def test_configuration_keys_exist(page):
    for span in spans(page):
        block, *keys = re.match(r"[\w.]*", span).group().split(".")
        schema = property_of(load_schema(), block)
        if not keys or not schema or keys[-1] in SUFFIXES or keys[0] in library_names(block):
            continue
        for key in keys:
            schema = property_of(schema, key)
            assert schema, span


def key_table(page):
    """Keys and shown defaults of a page's section "Configuration"."""
    section = page.read_text().partition("\n## Configuration\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| `(\w+\.\w+)` \| `?([^|`]*?)`? \|", section, re.M))


@stages
def test_defaults_are_those_of_the_schema(page):
    for name, shown in key_table(page).items():
        block, key = name.split(".")
        schema = load_schema()["properties"][block]["properties"][key]
        assert yaml.safe_load(shown) == schema["default"], name


@stages
def test_every_key_of_a_stage_has_a_row(page):
    rows = key_table(page)
    for block in {name.split(".")[0] for name in rows}:
        keys = load_schema()["properties"][block]["properties"]
        assert {f"{block}.{key}" for key in keys} <= rows.keys()


def test_every_stage_has_its_keys_documented():
    documented = {name.split(".")[0] for page in STAGES for name in key_table(page)}
    stages = ("harvest", "gradients", "probes", "calibration", "spectra", "sae", "evaluate")
    later = ("attention", "statistics", "pretrain", "critics", "comparisons", "verdicts")
    suite = ("crosslingual", "geometry", "states", "separation", "updates", "bridge")
    causal = ("patching", "ard", "dissociation", "simulation")
    assert documented == {*stages, *later, *suite, *causal}


@pages
def test_yaml_blocks_are_legal_overlays(page, tmp_path):
    for i, text in enumerate(fenced(page, "yaml")):
        path = tmp_path / f"{i}.yaml"
        path.write_text(text)
        validate(load([ROOT / "config.yaml", path]), where=f"{page.name}, block {i}")


@pages
def test_python_blocks_parse_and_import_what_exists(page):
    for text in fenced(page, "python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module == "streamgauge":
                for alias in node.names:
                    assert (ROOT / f"src/streamgauge/{alias.name}.py").is_file() or (
                        ROOT / f"src/streamgauge/{alias.name}/__init__.py"
                    ).is_file(), alias.name


@pages
def test_make_targets_exist(page):
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
    text = "\n".join([*spans(page), *fenced(page, "")])
    assert set(re.findall(r"\bmake ([a-z]+)", text)) <= set(targets)


def rule_outputs():
    """Output patterns of all rules below ``results/``, with `{sae}` for an SAE's folder."""
    text = "\n".join(path.read_text() for path in sorted((ROOT / "rules").glob("*.smk")))
    constants = dict(re.findall(r'^([A-Z]+) = f?"(.*)"$', text, re.M))
    tables = re.search(r"^CROSS_TABLES = \[(.*?)\]", text, re.M | re.S).group(1)
    found = set()
    for section in re.findall(r"^    output:(.*?)^    \w+:", text, re.M | re.S):
        for name in re.findall(r'figure\("(\w+)"', section):
            stem = f"results/studies/{{study}}/figures/{name}"
            found |= {f"{stem}.{suffix}" for suffix in ("svg", "png", "json")}
        if "table_of(" in section:
            stem = "results/studies/{study}/crosslingual"
            found |= {f"{stem}_{name}.csv" for name in re.findall(r'"(\w+)"', tables)}
        found |= set(re.findall(r'"((?:results|\{[A-Z]+\})/?[^"]*)"', section))
    for _ in range(5):  # constants are made of constants
        found = {re.sub(r"\{([A-Z]+)\}", lambda m: constants[m[1]], path) for path in found}
    return {pattern.replace("{{", "{").replace("}}", "}") for pattern in found}


def documented_artifacts():
    text = (ROOT / "docs/architecture.md").read_text()
    section = text.split("## Artifacts")[1].split("\n## ")[0]
    return {f"results/{path}" for path in re.findall(r"^\| `([^`]+)` \|", section, re.M)}


def test_documented_artifacts_are_made_by_rules():
    assert documented_artifacts() <= rule_outputs()


def test_every_artifact_is_documented():
    missing = rule_outputs() - documented_artifacts()
    assert {path for path in missing if "/figures/" not in path} == set()


def test_the_sae_folder_reads_as_documented():
    text = (ROOT / "docs/architecture.md").read_text()
    common = (ROOT / "rules/common.smk").read_text()
    pattern = re.search(r'^TRAINED = "(.*)"$', common, re.M).group(1)
    assert f"`{pattern}`" in text


def test_every_module_has_its_row_in_the_architecture():
    text = (ROOT / "docs/architecture.md").read_text()
    rows = re.findall(r"^\| [^|`]+ \| ((?:`\w+`(?:, )?)+) \|$", text, re.M)
    documented = re.findall(r"`(\w+)`", " ".join(rows))
    modules = {path.name.removesuffix(".py") for path in (ROOT / "src/streamgauge").glob("*.py")}
    packages = {path.parent.name for path in (ROOT / "src/streamgauge").glob("*/__init__.py")}
    assert sorted(documented) == sorted((modules | packages) - {"__init__"})


def test_commands_exist():
    parsers = re.findall(r'add_parser\(\s*"(\w+)"', (ROOT / "src/streamgauge/cli.py").read_text())
    used = set()
    for page in PAGES:
        text = "\n".join([*spans(page), *fenced(page, "")])
        used |= set(re.findall(r"\bstreamgauge ([a-z]+)", text))
    assert used and used <= set(parsers)
