"""Guards on the repository itself: every rule complete, every script thin, layers respected."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / "workflow/scripts").glob("*.py"))
MODULES = sorted((ROOT / "src/streamgauge").rglob("*.py"))

# a module may import from earlier rows and from its own
ROWS = [
    {"errors", "progress", "jobs", "wording", "yaml_file", "json_file", "whole_file"},
    {
        *("metrics", "spectra", "statistics", "row_metric", "critics"),
        *("subspace", "ard_mmd", "ard_sets", "bridge", "contrasts", "dissociation"),
    },
    {
        *("shards", "unfinished", "zarr_trust", "zarr_store", "receipts", "token_store", "stores"),
        *("manifest", "provenance", "checkpoints", "basis_store"),
    },
    {"subjects", "corpora", "hooks", "projections"},
    {
        *(
            "shard_writer",
            "gather",
            "harvest",
            "gradients",
            "probes",
            "depth_profile",
            "sae",
            "evaluate",
        ),
        *("sensitivity", "calibration", "attention", "critic_runs", "scores", "geometry"),
        *("prompts", "states", "separation", "updates", "generation", "answers", "patching"),
        "ard_runs",
    },
    {
        *("controls", "leaderboard", "proxy_gap", "paired", "comparisons", "published"),
        *("audit_report", "decisions", "gap_verdicts", "verdicts", "verdict_page", "simulation"),
        *("drawing", "figures", "sensitivity_figures", "study_figures", "verdict_figures"),
        *("pages", "patching_page"),
        *("crosslingual", "crosslingual_findings", "crosslingual_page"),
        *("crosslingual_figures", "ard_figures"),
    },
    {
        *("config", "study", "contents", "verify", "inspect", "estimate", "audit"),
        *("scatter", "costs", "layout", "requests"),
        "cli",
    },
]


# their lists of files are in their config block
LISTED_IN_SPEC = {"pretrain", "tokens"}


def rules():
    """Every rule's name and text."""
    for file in sorted((ROOT / "rules").glob("*.smk")):
        parts = re.split(r"^rule (\w+):\n", file.read_text(), flags=re.M)
        yield from zip(parts[1::2], parts[2::2], strict=True)


@pytest.mark.parametrize(("name", "text"), list(rules()))
def test_every_rule_has_log_benchmark_and_spec(name, text):
    assert re.search(r"^    log:", text, re.M)
    assert re.search(r"^    benchmark:", text, re.M)
    if name == "verify":  # makes nothing, so depends on nothing
        return
    params = re.findall(r"^    params:\s+(.*)$", text, re.M)
    assert len(params) == 1 and re.fullmatch(r'spec=spec\("\w+"\),?', params[0])
    # Snakemake's own trigger for another set of inputs is off, see the profiles
    reads_lists = re.search(r"\b(grid|layers|corpora|suite|imports|own_files)\(", text)
    assert bool(reads_lists) == ("members=" in text) or name in LISTED_IN_SPEC
    assert re.search(r"^    script:", text, re.M) and "shell:" not in text and "run:" not in text


def test_there_are_rules():
    assert len(list(rules())) > 10


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_hold_no_logic(path):
    tree = ast.parse(path.read_text())
    logic = (
        ast.FunctionDef,
        ast.ClassDef,
        ast.If,
        ast.IfExp,
        ast.While,
        ast.For,
        ast.BinOp,
        ast.Compare,
        ast.Try,
        ast.Lambda,
    )
    assert [node for node in ast.walk(tree) if isinstance(node, logic)] == []
    assert len(path.read_text().splitlines()) <= 40
    assert "snakemake.config" not in path.read_text()


def row(module: str) -> int:
    return next(i for i, names in enumerate(ROWS) if module in names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_modules_import_only_from_rows_above(path):
    inside = path.relative_to(ROOT / "src/streamgauge")
    if inside.name == "__init__.py":
        return
    own = inside.parts[0].removesuffix(".py")
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            assert not name.startswith("snakemake"), "the library knows nothing of Snakemake"
            if name.startswith("streamgauge."):
                assert row(name.split(".")[1]) <= row(own), f"{own} imports {name}"


def test_public_functions_have_docstrings():
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name}"


def test_nothing_tracked_is_machine_bound():
    banned = re.compile(r"/(work|root|home|farm)/|https?://(?!json-schema\.org)[^\s]*pypi")
    for folder in ("src", "workflow", "rules", "docs", "benchmarks"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".py", ".md", ".smk", ".yaml", ".rst"}:
                assert not banned.search(path.read_text()), path
