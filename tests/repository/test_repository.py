"""Guards on the repository itself: rules tied to the registry, thin scripts, packages in order."""

import ast
import re
from pathlib import Path

import pytest
from snakemake.api import SnakemakeApi
from snakemake.settings.types import OutputSettings, ResourceSettings

from streamgauge.artifacts.stages import STAGES

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "workflow/scripts").glob("*.py"))
MODULES = sorted((ROOT / "src/streamgauge").rglob("*.py"))
# packages from the ground up: one imports from itself and from those before it
PACKAGES = [
    *("base", "numerics", "stores", "models", "sae", "passes"),
    *("studies", "crosslingual", "report", "artifacts", "planning", "cli"),
]
# their lists of files are in their config block
LISTED_IN_SPEC = {"pretrain", "tokens"}


@pytest.fixture(scope="module")
def workflow(tmp_path_factory):
    """The workflow as Snakemake reads it, with every study's rules."""
    with pytest.MonkeyPatch.context() as patch, SnakemakeApi(OutputSettings()) as api:
        patch.chdir(tmp_path_factory.mktemp("nowhere"))
        made = api.workflow(ResourceSettings(cores=1), snakefile=ROOT / "Snakefile")._workflow
        if not list(made.rules):
            made.include(made.main_snakefile, overwrite_default_target=True)
        yield made


def rules(workflow):
    """Every rule that makes something."""
    return [rule for rule in workflow.rules if rule.script]


def pattern(path):
    """An output of a rule without the constraints of its wildcards."""
    return re.sub(r"\{(\w+),[^{}]*(?:\{[^{}]*\}[^{}]*)*\}", r"{\1}", str(path))


def test_every_stage_has_its_rule_and_every_rule_its_stage(workflow):
    made = {}
    for rule in rules(workflow):
        stage = rule.params.spec.stage
        made.setdefault(stage, []).append(rule)
        named = dict(rule.output.items())
        if "part" in rule.wildcard_names:
            assert STAGES[stage].in_parts and not named
            assert Path(rule.script).name == "part.py"
        else:
            assert pattern(named["manifest"]) == STAGES[stage].path, rule.name
            assert Path(rule.script).name == STAGES[stage].script, rule.name
        assert rule.log and rule.benchmark, rule.name
    assert made.keys() == STAGES.keys()
    for stage, found in made.items():
        assert len(found) == 1 + STAGES[stage].in_parts, stage


def test_scripts_hold_the_functions_of_their_stages():
    held = {path.name: functions(path) for path in SCRIPTS}
    wanted = {name: set() for name in held}
    for name, stage in STAGES.items():
        wanted[stage.script].add(stage.function or name)
        if stage.in_parts:
            wanted["part.py"].add(name)
    for script, names in wanted.items():
        assert names <= held[script], script
        # what else a script holds is shared by its functions
        text = (ROOT / "workflow/scripts" / script).read_text()
        for helper in held[script] - names:
            assert text.count(f"{helper}(") > 1, f"{script}: {helper} is used once"


def functions(path):
    return {node.name for node in ast.parse(path.read_text()).body if hasattr(node, "name")}


def test_rules_that_read_lists_of_files_say_which(workflow):
    """Snakemake's own trigger for another set of inputs is off, see the profiles."""
    for file in sorted((ROOT / "rules").glob("*.smk")):
        parts = re.split(r"^ *rule(?: (\w+))?:\n", file.read_text(), flags=re.M)
        for name, text in zip(parts[1::2], parts[2::2], strict=True):
            reads_lists = re.search(r"\b(grid|layers|corpora|suite|imports|own_files)\(", text)
            assert bool(reads_lists) == ("members=" in text) or name in LISTED_IN_SPEC, name


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_hold_no_logic(path):
    tree = ast.parse(path.read_text())
    logic = (
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
    assert len(path.read_text().splitlines()) <= 150
    assert "snakemake.config" not in path.read_text()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_packages_import_only_from_those_below(path):
    own = path.relative_to(ROOT / "src/streamgauge").parts[0]
    if own == "__init__.py":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            # the command line may start Snakemake; the library knows nothing of it
            assert own == "cli" or not name.startswith("snakemake"), f"{own} imports {name}"
            if name.startswith("streamgauge.") and name != "streamgauge.__version__":
                below = name.split(".")[1]
                assert PACKAGES.index(below) <= PACKAGES.index(own), f"{own} imports {name}"


def test_no_module_grows_by_accumulation():
    folders = (ROOT / "src", ROOT / "rules", ROOT / "workflow/scripts")
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    long = {
        path.name: n
        for path in files
        if path.suffix in (".py", ".smk") and (n := len(path.read_text().splitlines())) > 400
    }
    assert not long, long


def test_public_functions_have_docstrings():
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name}"


def test_tables_are_read_and_written_in_one_place():
    """Where damage, bombs and formulas are met: `base.tables`."""
    calls = {"read_csv", "to_csv", "read_parquet", "to_parquet", "ParquetFile", "ParquetWriter"}
    seen = set()
    for path in {*MODULES, *SCRIPTS} - {ROOT / "src/streamgauge/base/tables.py"}:
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.Attribute) and node.attr in calls), path
            if isinstance(node, ast.ImportFrom):
                names = {alias.name for alias in node.names}
                assert not names & calls or node.module == "streamgauge.base.tables", path
                seen |= names & calls
    assert seen == {"read_csv", "read_parquet"}


def test_nothing_tracked_is_machine_bound():
    banned = re.compile(r"/(work|root|home|farm)/|https?://(?!json-schema\.org)[^\s]*pypi")
    for folder in ("src", "workflow", "rules", "docs", "benchmarks"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".py", ".md", ".smk", ".yaml", ".rst"}:
                assert not banned.search(path.read_text()), path
