"""A key holds what an artifact depends on, and nothing else."""

import json
import shutil
from pathlib import Path

import pytest

from streamgauge.artifacts import blocks, keys

ROOT = Path(__file__).resolve().parents[2]

CONFIG = {
    "corpora": {"c": {"source": "text", "train_sequences": 5, "eval_sequences": 2}},
    "subjects": {"a": {"source": "local"}, "b": {"source": "gguf"}},
    "grid": {"k": [8]},
}


def test_a_spec_holds_only_its_own_block():
    spec = keys.spec(ROOT, CONFIG, "subject", {"subject": "a"})
    assert keys.settings(spec, "subject") == {"source": "local"}
    assert "gguf" not in spec and "grid" not in json.loads(spec)["config"]
    other = {**CONFIG, "grid": {"k": [8, 16]}}
    assert keys.spec(ROOT, other, "subject", {"subject": "a"}) == spec


def test_the_size_of_one_split_leaves_the_other_alone():
    larger = {"corpora": {"c": {**CONFIG["corpora"]["c"], "eval_sequences": 3}}}
    for split, same in (("train", True), ("eval", False)):
        w = {"subject": "a", "corpus": "c", "split": split}
        specs = [keys.spec(ROOT, config, "tokens", w) for config in (CONFIG, larger)]
        assert (specs[0] == specs[1]) is same


def test_own_files(tmp_path):
    for name in ("config.json", "model.safetensors", "notes.txt"):
        shutil.copy(__file__, tmp_path / name)
    local = blocks.own_files({"source": "local", "path": str(tmp_path)})
    assert [Path(path).name for path in local] == ["config.json", "model.safetensors"]
    assert blocks.own_files({"source": "text", "paths": ["a.txt"]}) == ["a.txt"]
    assert blocks.own_files({"source": "gguf", "path": "m.gguf"}) == ["m.gguf"]
    assert blocks.own_files({"source": "gguf", "package": "p", "file": "m.gguf"}) == []
    assert blocks.own_files({"source": "python-docs"}) == []


def test_depths_are_places_in_the_lists_of_layers():
    grid = {"subjects": ["a", "b"], "layers": {"a": [1, 3], "b": [4, 12]}, "depths": None}
    assert blocks.depths(grid) == {"a": {"1": "1", "3": "2"}, "b": {"4": "1", "12": "2"}}
    named = blocks.depths({**grid, "depths": ["early", "mid"]})
    assert named["b"] == {"4": "early", "12": "mid"}


def test_a_key_names_its_stage_and_the_modules_that_compute_it():
    spec = keys.spec(ROOT, CONFIG, "subject", {"subject": "a"})
    assert keys.stage(spec) == "subject"
    code = json.loads(spec)["code"]
    assert {"subject.py", "streamgauge.models.subjects", "streamgauge.base"} <= code.keys()
    assert code["streamgauge.base"].isdigit()  # transport counts by its FORMAT alone


def test_the_name_of_a_recipe_is_in_the_path_and_not_in_the_settings():
    folders = {"": "topk-x8-k32-t50000-mse-seed1", "slow": "topk-x8-k32-t50000-mse-seed1-slow"}
    configs = {recipe: {"sae": {"lr": 1, "recipe": recipe}} for recipe in folders}
    one, other = (blocks.sae(configs[name], {"sae": folders[name]}) for name in folders)
    assert one == other == {"sae": {"lr": 1}}
    for name, stranger in (("", "slow"), ("slow", "")):
        with pytest.raises(KeyError):  # no SAE of this configuration
            keys.spec(ROOT, configs[name], "train_sae", {"sae": folders[stranger]})
