"""The documentation against the repository: links, configuration keys, artifacts, commands.

`python tests/repository/test_docs.py` writes the table of artifacts anew.
"""

import ast
import re
from pathlib import Path

import pytest
import yaml
from test_repository import PACKAGES

from streamgauge.artifacts.stages import STAGES
from streamgauge.base import paths
from streamgauge.planning.config import load, load_schema, validate
from streamgauge.studies.leaderboard import PROXIES
from streamgauge.studies.score_card import METRICS

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS]
# what their blocks add to the repository is performed in test_extending.py
EXTENDING = sorted((ROOT / "docs/extending").glob("*.md"))
SUFFIXES = {
    "zarr",
    "csv",
    "json",
    "parquet",
    "safetensors",
    "svg",
    "png",
    "html",
    "md",
    "yaml",
    "py",
    "smk",
}

every = pytest.mark.parametrize("page", [*PAGES, *EXTENDING], ids=lambda page: page.name)
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
docs = pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)


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


@every
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


def defined(path):
    """What a module of the library binds at its top level."""
    body = ast.parse(path.read_text()).body
    targets = [t for node in body for t in getattr(node, "targets", [getattr(node, "target", 0)])]
    return {getattr(node, "name", getattr(node, "id", None)) for node in [*body, *targets]}


def library_names(module):
    """What modules of the library with this name define at their top level."""
    found = (ROOT / "src/streamgauge").rglob(f"{module}.py")
    return set().union(*map(defined, found))


@every
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


@docs
def test_defaults_are_those_of_the_schema(page):
    for name, shown in key_table(page).items():
        block, key = name.split(".")
        schema = load_schema()["properties"][block]["properties"][key]
        assert yaml.safe_load(shown) == schema["default"], name


@docs
def test_every_key_of_a_stage_has_a_row(page):
    rows = key_table(page)
    for block in {name.split(".")[0] for name in rows}:
        keys = load_schema()["properties"][block]["properties"]
        assert {f"{block}.{key}" for key in keys} <= rows.keys()


def test_every_stage_has_its_keys_documented():
    documented = {name.split(".")[0] for page in DOCS for name in key_table(page)}
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
            if isinstance(node, ast.ImportFrom) and node.module.startswith("streamgauge"):
                home = ROOT / "src" / node.module.replace(".", "/")
                for alias in node.names:
                    there = (home / alias.name, home / f"{alias.name}.py")
                    held = (home.with_suffix(".py"), home / "__init__.py")
                    assert any(path.exists() for path in there) or any(
                        alias.name in defined(path) for path in held if path.is_file()
                    ), f"{node.module}.{alias.name}"


@every
def test_make_targets_exist(page):
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
    text = "\n".join([*spans(page), *fenced(page, "")])
    assert set(re.findall(r"\bmake ([a-z]+)", text)) <= set(targets)


# --- the table of artifacts, from the registry ----------------------------------------------------
ARCHITECTURE = ROOT / "docs/architecture.md"
BEGIN = "<!-- written by `python tests/repository/test_docs.py` from the registry of stages -->\n\n"
END = "\n<!-- the end -->\n"


def artifact_table():
    """A row a stage; figures, of which there are many and of one kind, share one."""
    rows = [
        (stage.path.removeprefix("results/"), f"`{name}`", stage.what, stage.script)
        for name, stage in STAGES.items()
        if not name.startswith("figure_")
    ]
    path = paths.FIGURES.removeprefix("results/")
    rows.append((f"{path}/{{figure}}.json", "`figure_{figure}`", "figure", "figure.py"))
    lines = [f"| `{path}` | {name} | {what} | `{script}` |" for path, name, what, script in rows]
    return "\n".join(
        ["| manifest | stage | what it is | script |", "|---|---|---|---|", *lines, ""]
    )


def written(text):
    """The page with today's table."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + artifact_table() + END + rest.split(END)[1]


def test_the_table_of_artifacts_is_that_of_the_registry():
    text = ARCHITECTURE.read_text()
    assert text == written(text), "run python tests/repository/test_docs.py"


def test_the_sae_folder_reads_as_documented():
    names = ("expansion", "k", "tokens", "objective", "seed")
    pattern = paths.sae_folder(**{name: f"{{{name}}}" for name in names})
    assert f"`{pattern}`" in ARCHITECTURE.read_text()


def test_the_packages_are_in_the_order_that_is_held():
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \|$", ARCHITECTURE.read_text(), re.M)
    assert rows == PACKAGES


def test_what_can_be_found_is_there():
    section = ARCHITECTURE.read_text().split("**Where do I find…**")[1].split("\n## ")[0]
    found = re.findall(r"`([\w/]+\.py)`: `(\w+)`", section)
    assert len(found) > 12
    for file, name in found:
        assert name in defined(ROOT / "src/streamgauge" / file), f"{file}: {name}"


def test_scripts_are_named_by_kind():
    text = ARCHITECTURE.read_text().split("**Scripts by kind.**")[1].split("\n\n")[0]
    scripts = {path.name for path in (ROOT / "workflow/scripts").glob("*.py")}
    assert set(re.findall(r"`(\w+\.py)`", text)) == scripts


def named(*names):
    """What the first columns of the tables of some pages name."""
    text = "\n".join((ROOT / f"docs/{name}.md").read_text() for name in names)
    return set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`[^|]+) \|", text, re.M))))


def test_every_score_and_every_proxy_is_defined():
    assert METRICS.keys() <= named("evaluation", "sensitivity")
    assert PROXIES.keys() <= named("calibration-and-leaderboard")


@docs
def test_every_module_that_a_page_names_exists(page):
    folders = ("src", "tests", "workflow", "rules", "benchmarks")
    files = {f"/{path.relative_to(ROOT)}" for name in folders for path in (ROOT / name).rglob("*")}
    for span in spans(page):
        if re.fullmatch(r"[\w./-]+/[\w-]+\.(py|smk)", span):
            assert any(file.endswith(f"/{span}") for file in files), span


def test_commands_exist():
    parsers = re.findall(
        r'add_parser\(\s*"(\w+)"', (ROOT / "src/streamgauge/cli/main.py").read_text()
    )
    used = set()
    for page in (*PAGES, *EXTENDING):
        text = "\n".join([*spans(page), *fenced(page, "")])
        used |= set(re.findall(r"\bstreamgauge ([a-z]+)", text))
    assert used and used <= set(parsers)


if __name__ == "__main__":
    ARCHITECTURE.write_text(written(ARCHITECTURE.read_text()))
