"""What another study uses is not replaced by other settings without a word."""

import itertools
import json
import re

import pytest
import yaml

from pipeline import ROOT, STUDY
from small_study import study
from streamgauge.artifacts import catalogue, manifest, verify
from streamgauge.artifacts.stages import STAGES
from streamgauge.base import sealed
from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.paths import CORPUS, LAYER, SAE, SUBJECT
from streamgauge.planning import cells, config, replacing

# what some stages are made from: enough to follow a change downwards
SOURCES = {
    "tokens": [f"{SUBJECT}/subject.json"],
    "harvest": [f"{SUBJECT}/subject.json", f"{CORPUS}/tokens-{{split}}.json"],
    "train_sae": [f"{LAYER}/activations-train.json"],
    "evaluate": [f"{SAE}/sae.json"],
    "score": [f"{SAE}/per_sequence.json"],
}
FACTS = {"d_model": 16, "n_layers": 4, "vocab_size": 100}
FIRST = "results/tiny/prose/L01/sae/topk-x4-k2-t1024-mse-seed0/sae.json"
TEXT = STUDY["corpora"]["prose"]
SUITE = {"subjects": ["tiny"], "prompts": ["math"], "layers": {"tiny": [1]}, "k_sub": [4]}
IMPORT = {"theirs": {"path": "theirs", "subject": "tiny", "corpus": "prose", "layer": 1}}


def paths(valid):
    return [STAGES[stage].path.format(**place) for stage, place in cells.artifacts(valid)]


def make(folder, valid, record=True):
    """Everything that a study asks for, 1000 bytes each, and the record that its run leaves."""
    for stage, place in cells.artifacts(valid):
        path = folder / STAGES[stage].path.format(**place)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".bin").write_bytes(bytes(1000))
        block = STAGES[stage].block(valid, place)
        spec = {"stage": stage, "config": block, "wildcards": place, "code": {}}
        inputs = [folder / source.format(**place) for source in SOURCES.get(stage, ())]
        facts = FACTS if stage == "subject" else {}
        manifest.write(path, json.dumps(spec), [path.with_suffix(".bin")], inputs, facts)
    if record:
        replacing.leave_record(valid, paths(valid), folder)


@pytest.fixture
def first(tmp_path):
    """The folder of a finished study."""
    make(tmp_path, study(STUDY))
    return tmp_path


def other(**overlay):
    return study(STUDY, {"study": "other", **overlay})


def refused(valid, folder):
    """What a run is told; nothing if it may go on."""
    try:
        replacing.check(valid, replacing.others(valid, folder), folder)
    except StreamgaugeError as error:
        return str(error)
    return ""


# --- the record ---------------------------------------------------------------------------------
def test_a_record_is_the_configuration_and_what_was_asked_for(tmp_path):
    valid = study(STUDY, {"replace": True})
    replacing.leave_record(valid, [*paths(valid), "results/studies/tiny/grid.json"], tmp_path)
    record = json.loads((tmp_path / "results/studies/tiny/study.json").read_text())
    assert config.validate(record["config"]) == valid | {"replace": False}
    assert record["artifacts"] == sorted(paths(valid))
    assert "replace" not in record["config"]


def test_what_earlier_runs_asked_for_stays_while_the_study_asks_for_it(tmp_path):
    both, one = study(STUDY), study(STUDY, {"grid": {**STUDY["grid"], "k": [2]}})
    replacing.leave_record(both, paths(both), tmp_path)
    replacing.leave_record(one, ["results/tiny/subject.json"], tmp_path)
    record = json.loads((tmp_path / "results/studies/tiny/study.json").read_text())
    assert record["artifacts"] == sorted(paths(one)) and len(paths(one)) < len(paths(both))


def test_a_record_is_no_artifact(first):
    own = first / "results/studies/tiny/study.json"
    assert set(catalogue.find(first / "results")) == {first / path for path in paths(study(STUDY))}
    assert catalogue.owner(own) is None
    with pytest.raises(StreamgaugeError, match="no artifact"):
        verify.verify([own], ROOT, study(STUDY), say=print)


# --- what is refused ----------------------------------------------------------------------------
def test_the_error_names_all_that_a_user_has_to_know(first):
    said = refused(other(sae={**STUDY["sae"], "batch_size": 32, "lr": 0.5}), first)
    assert said.startswith(f"{FIRST}: another study uses it (tiny), and")
    assert "sae.batch_size was 64 and is 32, sae.lr was 0.002 and is 0.5;" in said
    # four SAEs, each with its evaluation and its scores
    assert "with 11 more artifacts that it takes along, that is 12.0 kB on disk" in said
    assert re.search(r"and [\d.e+]+ FLOPs \([\d.e-]+ GPU hours at 20 TFLOP/s\)\.", said)
    assert said.endswith(
        "Give the new settings a name of their own (another sae.recipe), or let it all be replaced:"
        " --config replace=true."
    )


def test_every_study_that_uses_it_is_named(first):
    make(first, study(STUDY, {"study": "second"}))
    said = refused(other(sae={**STUDY["sae"], "batch_size": 32}), first)
    assert "other studies use it (second, tiny)" in said and "with 11 more" in said


CORPUS_KEY = "(another key for corpora.prose, there and where the study lists it)"
LARGER = {"prose": {**TEXT, "train_sequences": 2000}}


@pytest.mark.parametrize(
    ("overlay", "names", "says"),
    [
        ({"corpora": LARGER}, "prose/tokens-train.json", CORPUS_KEY),
        ({"harvest": {"dtype": "float32"}}, "prose/L01/activations-train.json", CORPUS_KEY),
        ({"spectra": {"sequences": 8}}, "prose/spectra.json", CORPUS_KEY),
        ({"attention": {"sequences": 1}}, "mse-seed0/attention.json", "(another sae.recipe)"),
        (
            {"attention": {"sequences": 1}, "harvest": {"dtype": "float32"}},
            "prose/L01/activations-train.json",
            CORPUS_KEY,
        ),
        (
            {"subjects": {"tiny": {"source": "local", "path": "model", "dtype": "float16"}}},
            "tiny/subject.json",
            "(another key for subjects.tiny, there and where the study lists it)",
        ),
        (
            {"prompts": {"math": {"path": "other.yaml", "target": "en", "source": "zh"}}},
            "tiny/crosslingual/math/prompts.json",
            "(another key for prompts.math, there and where the study lists it)",
        ),
        (
            {"imports": {"theirs": {**IMPORT["theirs"], "path": "elsewhere"}}},
            "sae/theirs/sae.json",
            "(another key for imports.theirs, there and where the study lists it)",
        ),
        (
            {"sae": {"lr": 0.1}, "separation": {"seed": 1}},
            "mse-seed0/sae.json",
            "key for prompts.math, there and where the study lists it; another sae.recipe)",
        ),
    ],
)
def test_the_remedy_is_the_name_that_leads_elsewhere(tmp_path, overlay, names, says):
    more = {"crosslingual": SUITE, "imports": IMPORT, "ard": {"k_sub": 4}}
    make(tmp_path, study(STUDY, more))
    said = refused(study(STUDY, more, {"study": "other", **overlay}), tmp_path)
    assert names in said.partition(":")[0] and says in said


def test_what_would_be_made_from_other_settings_since_its_source_is_gone(first):
    """A store is removed to save space; the SAEs made from it are still in use."""
    (first / "results/tiny/prose/L01/activations-train.json").unlink()
    changed = other(harvest={"dtype": "float32"}, grid={**STUDY["grid"], "layers": {"tiny": [1]}})
    (first / "results/tiny/prose/L01/activations-eval.json").unlink()
    said = refused(changed, first)
    assert said.startswith(FIRST) and CORPUS_KEY in said
    assert "activations-train.json, from which it was made, is gone, harvest.dtype was" in said
    assert not refused(other(), first)


def test_a_damaged_manifest_is_taken_for_what_it_should_be(first):
    (first / FIRST).write_text("{")
    said = refused(other(sae={**STUDY["sae"], "batch_size": 32}), first)
    assert said.startswith(FIRST) and "sae.batch_size was 64 and is 32" in said


def test_a_key_that_came_with_a_later_version_is_no_difference_between_studies(first):
    record = json.loads((first / FIRST).read_text())
    del record["spec"]["config"]["sae"]["clip"]
    (first / FIRST).write_text(json.dumps(record))
    assert not refused(other(), first)
    assert refused(other(sae={**STUDY["sae"], "batch_size": 32}), first).startswith(FIRST)


# --- what is not --------------------------------------------------------------------------------
SMALLER = {**STUDY["sae"], "batch_size": 32}


@pytest.mark.parametrize(
    "overlay",
    [
        {},
        {"sae": SMALLER, "replace": True},
        {"sae": {**SMALLER, "recipe": "small"}},
        {"study": "tiny", "sae": SMALLER},
        {"statistics": {"resamples": 900}, "grid": {**STUDY["grid"], "k": [6]}},
        {"corpora": {"more": LARGER["prose"]}, "grid": {**STUDY["grid"], "corpora": ["more"]}},
        {"device": "auto", "scatter": {"harvest": 1000}, "resources": {"mem_mb": 1}},
        {"comparisons": {"targets": [0.5]}, "verdicts": {"margin": 0.5}},
    ],
)
def test_other_runs_go_on(first, overlay):
    assert not refused(other(**overlay), first)


def test_what_no_record_asks_for_may_be_replaced(tmp_path):
    make(tmp_path, study(STUDY), record=False)
    assert not refused(other(sae=SMALLER), tmp_path)
    # asked for, and as yet not made with the settings of the one that asks
    made_otherwise = study(STUDY, {"study": "second", "sae": {**SMALLER, "batch_size": 16}})
    replacing.leave_record(made_otherwise, paths(made_otherwise), tmp_path)
    assert not refused(other(sae=SMALLER), tmp_path)


def test_a_study_uses_what_its_runs_have_asked_for_and_no_more(tmp_path):
    """The grid of a study that only ever ran its cross-lingual suite is nobody's."""
    make(tmp_path, study(STUDY), record=False)
    valid = study(STUDY, {"study": "suite", "crosslingual": SUITE, "ard": {"k_sub": 4}})
    replacing.leave_record(valid, ["results/tiny/subject.json"], tmp_path)
    assert not refused(other(sae=SMALLER), tmp_path)


def test_a_target_outside_the_grid_is_held_against_the_records_too(first):
    valid = other(sae=SMALLER, grid={**STUDY["grid"], "k": [6]})
    assert not refused(valid, first)
    at = {"subject": "tiny", "corpus": "prose", "ell": "01", "sae": FIRST.split("/")[-2]}
    with pytest.raises(StreamgaugeError, match="batch_size was 64 and is 32"):
        others = replacing.others(valid, first)
        replacing.check(valid, others, first, {FIRST: ("train_sae", at)})


def test_once_replaced_it_is_the_other_study_that_is_refused(first):
    replaced = other(sae=SMALLER, replace=True)
    make(first, replaced)
    assert not refused(other(sae=SMALLER), first)
    said = refused(study(STUDY), first)
    assert "another study uses it (other)" in said and "sae.batch_size was 32 and is 64" in said


# --- records that today's version cannot read ---------------------------------------------------
def read(folder, text):
    """The first study as its record tells it after an edit, and what is said of that."""
    (folder / "results/studies/tiny/study.json").write_text(text)
    said = []
    return replacing.others(other(), folder, said.append), said


def test_a_record_of_another_version_is_compared_as_it_stands(first):
    record = json.loads((first / "results/studies/tiny/study.json").read_text())
    record["config"]["sae"]["momentum"] = 0.9
    record["config"]["novelty"] = {"a": 1}
    others, said = read(first, sealed.text(record))
    assert len(said) == 1 and "study.json is of another version" in said[0]
    replacing.check(other(sae={**SMALLER, "recipe": "small"}), others, first)
    with pytest.raises(StreamgaugeError, match="another study uses it"):
        replacing.check(other(sae=SMALLER), others, first)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"config": {}, "artifacts": []}',
        '{"config": 3, "artifacts": []}',
        '{"config": {"grid": {"subjects": ["a"]}}, "artifacts": [{}]}',
        "[" * 100_000,
    ],
)
def test_a_record_that_cannot_be_read_stops_no_run(first, text):
    others, (line,) = read(first, text)
    assert others == []
    assert "study.json cannot be read: what study tiny uses may be replaced" in line


def test_a_record_of_more_than_can_be_planned_is_not_worked_out(first):
    record = json.loads((first / "results/studies/tiny/study.json").read_text())
    for key in ("k", "expansion", "seeds", "tokens"):
        record["config"]["grid"][key] = list(range(1000, 3000))
    others, (line,) = read(first, json.dumps(record))
    assert others == [] and "cannot be read" in line


# --- what ships ---------------------------------------------------------------------------------
def shipped():
    """Every study that ships, and the README's, by name."""
    overlays = [{}, *(yaml.safe_load(p.read_text()) for p in sorted(ROOT.glob("studies/*.yaml")))]
    blocks = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    overlays += map(yaml.safe_load, blocks)
    base = config.load([ROOT / "config.yaml"])
    valid = [config.validate(config.merge(base, overlay)) for overlay in overlays]
    return {one["study"]: one for one in valid}


def test_no_study_that_ships_replaces_what_another_makes():
    blocks = {
        name: {
            STAGES[stage].path.format(**place): (stage, STAGES[stage].block(valid, place))
            for stage, place in cells.artifacts(valid)
        }
        for name, valid in shipped().items()
    }
    assert {"demo", "large", "scratch", "objectives", "fast2"} <= blocks.keys()
    for one, two in itertools.combinations(blocks, 2):
        for path in blocks[one].keys() & blocks[two].keys():
            assert blocks[one][path] == blocks[two][path], (one, two, path)
