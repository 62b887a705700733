"""`verify` knows every artifact of the registry, by its path alone."""

import re

import pytest

import pipeline
from streamgauge.artifacts import catalogue, verify
from streamgauge.artifacts.stages import STAGES
from streamgauge.base import paths
from streamgauge.planning import config

NAMES = {
    **{"subject": "s", "corpus": "c", "ell": "03", "split": "eval", "sae": "topk-x1-k2"},
    **{"prompts": "math", "k_sub": "20", "source": "ot", "penalty": "0.5", "study": "demo"},
}


@pytest.mark.parametrize("stage", STAGES)
def test_what_bears_a_manifests_path_and_is_none_is_damaged(tmp_path, monkeypatch, stage):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / STAGES[stage].path.format(**NAMES)
    path.parent.mkdir(parents=True)
    path.write_text("{")
    assert list(catalogue.find("results")) == [path.relative_to(tmp_path)]
    (found,) = verify.check(path, pipeline.ROOT, {}).damaged
    assert "not JSON" in found


def test_every_wildcard_of_the_registry_has_a_constraint():
    for stage in STAGES.values():
        assert set(re.findall(r"\{(\w+)\}", stage.path)) <= paths.WILDCARDS.keys(), stage.path


def test_every_truncated_manifest_and_overwritten_table_of_a_study_is_found(finished):
    """The whole of a finished study, one artifact after the other."""
    valid = config.validate(config.load([finished / "config.yaml", finished / "study.yaml"]))
    for name, text in pipeline.manifests(finished).items():
        path = finished / "results" / name
        path.write_bytes(text[: len(text) // 2])
        said = []
        assert not verify.verify([path], finished, valid, said.append), name
        assert name in said[0]
        path.write_bytes(text)
    tables = [p for p in (finished / "results").rglob("*") if p.suffix in (".csv", ".parquet")]
    assert len(tables) > 10
    for table in tables:
        kept = table.read_bytes()
        table.write_bytes(kept[:-1] + b"x")
        said = []
        assert not verify.verify([table], finished, valid, said.append), table
        assert table.name in said[0] and "changed" in said[0]
        table.write_bytes(kept)
