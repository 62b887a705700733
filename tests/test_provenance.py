"""Specs change with what an artifact depends on, and with nothing else."""

import json
import shutil
from pathlib import Path

import pytest

from streamgauge import provenance
from streamgauge.errors import StreamgaugeError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def project(tmp_path):
    """A repository of three modules: a script imports `one`, which imports `two` lazily."""
    (tmp_path / "src/lib/sub").mkdir(parents=True)
    (tmp_path / "workflow/scripts").mkdir(parents=True)
    files = {
        "src/lib/__init__.py": '"""A library."""\n',
        "src/lib/one.py": "def f():\n    from .sub import two\n    return two.g()\n",
        "src/lib/sub/__init__.py": "",
        "src/lib/sub/two.py": '"""Two."""\n\ndef g():\n    """Doc."""\n    return 1  # why\n',
        "src/lib/three.py": "x = 1\n",
        "workflow/scripts/s.py": "from lib import one\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def closure(project):
    provenance.closure.cache_clear()
    provenance._read.cache_clear()
    return provenance.closure(project, "workflow/scripts/s.py")


def edit(project, name, old, new):
    path = project / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_closure_follows_imports_and_nothing_else(project):
    assert set(closure(project)) == {
        "src/lib/__init__.py",
        "src/lib/one.py",
        "src/lib/sub/__init__.py",
        "src/lib/sub/two.py",
        "workflow/scripts/s.py",
    }


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("src/lib/sub/two.py", "# why", "# because"),
        ("src/lib/sub/two.py", '"""Doc."""', '"""Another."""'),
        ("src/lib/sub/two.py", "return 1", "return  (1)"),
        ("src/lib/three.py", "x = 1", "x = 2"),
    ],
)
def test_comments_docstrings_layout_and_strangers_do_not_count(project, name, old, new):
    before = closure(project)
    edit(project, name, old, new)
    assert closure(project) == before


def test_code_counts_and_the_changed_file_is_named(project):
    before = closure(project)
    edit(project, "src/lib/sub/two.py", "return 1", "return 2")
    after = closure(project)
    assert {name for name in after if after[name] != before[name]} == {"src/lib/sub/two.py"}


def test_a_broken_module_is_named(project):
    (project / "src/lib/one.py").write_text("def f(:\n")
    with pytest.raises(StreamgaugeError, match=r"one\.py.*line 1"):
        closure(project)


CONFIG = {
    "corpora": {"c": {"source": "text", "train_sequences": 5, "eval_sequences": 2}},
    "subjects": {"a": {"source": "local"}, "b": {"source": "gguf"}},
    "grid": {"k": [8]},
}


def test_a_spec_holds_only_its_own_block():
    spec = provenance.spec(ROOT, CONFIG, "subject", {"subject": "a"})
    assert provenance.settings(spec, "subject") == {"source": "local"}
    assert "gguf" not in spec and "grid" not in json.loads(spec)["config"]
    other = {**CONFIG, "grid": {"k": [8, 16]}}
    assert provenance.spec(ROOT, other, "subject", {"subject": "a"}) == spec


def test_the_size_of_one_split_leaves_the_other_alone():
    larger = {"corpora": {"c": {**CONFIG["corpora"]["c"], "eval_sequences": 3}}}
    for split, same in (("train", True), ("eval", False)):
        w = {"subject": "a", "corpus": "c", "split": split}
        specs = [provenance.spec(ROOT, config, "tokens", w) for config in (CONFIG, larger)]
        assert (specs[0] == specs[1]) is same


def test_every_stage_has_its_script_and_every_script_its_stage():
    scripts = {path.name for path in (ROOT / "workflow/scripts").glob("*.py")}
    assert {name for stage in provenance.STAGES.values() for name in stage.scripts} == scripts


def test_own_files(tmp_path):
    for name in ("config.json", "model.safetensors", "notes.txt"):
        shutil.copy(__file__, tmp_path / name)
    local = provenance.own_files({"source": "local", "path": str(tmp_path)})
    assert [Path(path).name for path in local] == ["config.json", "model.safetensors"]
    assert provenance.own_files({"source": "text", "paths": ["a.txt"]}) == ["a.txt"]
    assert provenance.own_files({"source": "gguf", "path": "m.gguf"}) == ["m.gguf"]
    assert provenance.own_files({"source": "gguf", "package": "p", "file": "m.gguf"}) == []
    assert provenance.own_files({"source": "python-docs"}) == []


def test_the_folder_of_a_trained_sae_says_how_it_was_trained():
    place = {"subject": "s", "corpus": "c", "ell": "03"}
    layer = {"subject": "s", "corpus": "c", "layer": 3}
    assert provenance.cell(place) == layer
    name = "topk-x8-k32-t50000-e2e-seed1"
    found = provenance.cell({**place, "sae": name})
    how = {"expansion": 8, "k": 32, "tokens": 50000, "objective": "e2e", "seed": 1}
    assert found == {**layer, "sae": name, **how}
    assert provenance.cell({**place, "sae": "theirs"}) == {**layer, "sae": "theirs"}


def test_depths_are_places_in_the_lists_of_layers():
    grid = {"subjects": ["a", "b"], "layers": {"a": [1, 3], "b": [4, 12]}, "depths": None}
    assert provenance.depths(grid) == {"a": {"1": "1", "3": "2"}, "b": {"4": "1", "12": "2"}}
    named = provenance.depths({**grid, "depths": ["early", "mid"]})
    assert named["b"] == {"4": "early", "12": "mid"}
