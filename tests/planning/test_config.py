"""The configuration: what is legal, what each fault is called, and that nothing else escapes."""

import copy
import dataclasses
import re

import pytest
import yaml

from streamgauge.base.errors import StreamgaugeError
from streamgauge.planning import config
from streamgauge.planning import grid as study

STAGES = [
    *("harvest", "gradients", "probes", "calibration", "spectra", "sae", "evaluate"),
    *("attention", "critics", "comparisons", "verdicts", "simulation", "statistics", "figures"),
    *("pretrain", "imports", "resources", "scatter", "prompts", "crosslingual", "geometry"),
    *("states", "separation", "updates", "bridge", "patching", "ard", "dissociation"),
]


@pytest.fixture(scope="module")
def base(request):
    return config.load([request.config.rootpath / "config.yaml"])


@pytest.fixture
def written(tmp_path):
    def write(text, name="c.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


SCRATCH_SUBJECT = (
    "grid: {subjects: [x], layers: {x: [0]}}\nsubjects: {x: {source: scratch, d_model: 32,"
    " n_layers: 2"
)


def overlaid(base, text):
    return config.merge(base, yaml.safe_load(text))


def mappings(schema, path=""):
    """Every mapping schema that lists its keys, with where it is."""
    if isinstance(schema, dict):
        if schema.get("type") == "object" and "allOf" not in schema:
            yield path, schema
        for key, child in schema.items():
            yield from mappings(child, f"{path}/{key}")


# --- schema and config.yaml agree ---------------------------------------------------------------
def test_default_config_is_valid_and_complete(base):
    """Filling in defaults adds nothing: config.yaml shows every key at its default."""
    valid = config.validate(base)
    for stage in STAGES:
        assert set(valid[stage]) == set(base[stage]), stage
    assert valid == config.validate(valid)
    assert set(valid) == set(base) == set(config.load_schema()["properties"])


# What config.yaml sets for the demo's small budget; everything else shows the schema's default.
DEMO_SIZED = {"sae": {"batch_size", "lr", "warmup_steps", "dead_tokens", "pool_tokens"}}


@pytest.mark.parametrize("stage", STAGES)
def test_defaults_equal_config_yaml(base, stage):
    """A study without the block is the study config.yaml shows, but for the demo's budget."""
    without = {key: value for key, value in base.items() if key != stage}
    shown, default = (config.validate(c)[stage] for c in (base, without))
    assert {key for key in shown if shown[key] != default[key]} == DEMO_SIZED.get(stage, set())


def test_the_shipped_study_undoes_the_demos_budget(base, request):
    """studies/pythia_70m.yaml trains with the schema's defaults."""
    study = request.config.rootpath / "studies/pythia_70m.yaml"
    merged = config.validate(config.load([request.config.rootpath / "config.yaml", study]))
    without = {key: value for key, value in base.items() if key != "sae"}
    assert merged["sae"] == config.validate(without)["sae"]


def test_the_sae_block_is_what_the_trainer_takes(base):
    """Same keys, same defaults: nothing in the block is ignored, nothing is settable elsewhere."""
    from streamgauge.sae.train import Settings

    own = dataclasses.asdict(Settings()) | {"recipe": ""}  # which is a name and no setting
    assert config.validate(base)["sae"].keys() == own.keys()
    without = {key: value for key, value in base.items() if key != "sae"}
    assert config.validate(without)["sae"] == own


def test_commented_alternatives_are_valid(base, request):
    """The examples in config.yaml's comments are legal blocks as they stand."""
    text = (request.config.rootpath / "config.yaml").read_text()
    comments = re.findall(r"^  # (?: *)(.*)$", text, re.M)
    joined = "\n".join(comments)
    found = {name: body for name, body in re.findall(r"([a-z0-9-]+): (\{[^{}]*\})", joined)}
    assert set(found) == {"pythia-70m", "mine", "small", "built", "notes", "pile", "theirs"}
    overlay = {"subjects": {}, "corpora": {}, "imports": {}}
    for name, body in found.items():
        block = yaml.safe_load(body)
        kind = "imports" if "layer" in block else "subjects"
        overlay["corpora" if "context_length" in block else kind][name] = block
    config.validate(config.merge(base, overlay))


def test_schema_is_strict_and_documented():
    from jsonschema import Draft202012Validator

    schema = config.load_schema()
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"].endswith("2020-12/schema")
    for path, mapping in mappings(schema):
        assert mapping.get("additionalProperties") is False, path
        for key, child in mapping.get("properties", {}).items():
            described = child.get("description") or "$ref" in child
            assert described, f"{path}/{key} has no description"


# --- reading and merging ------------------------------------------------------------------------
def test_overlays_merge_mappings_and_replace_lists(written):
    first = written("grid: {k: [8, 32], seeds: [0]}\nsae: {lr: auto}\n", "a.yaml")
    second = written("grid: {k: [64]}\nsae: {clip: 1.0}\n", "b.yaml")
    assert config.load([first, second]) == {
        "grid": {"k": [64], "seeds": [0]},
        "sae": {"lr": "auto", "clip": 1.0},
    }
    assert config.load([written("", "empty.yaml")]) == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sae: {lr: 1, clip: 2, lr: 3}", r"c\.yaml:1: .*key lr is given twice"),
        ("a: 1\nb: 2\na: 3\n", r"c\.yaml:3: .*key a is given twice"),
        ("a: !!python/object/apply:os.system [echo]", r"c\.yaml:1: .*tag .* is not allowed"),
        ("a: !!set {b}", "tag .* is not allowed"),
        ("a: [1, 2", "not usable"),
        ("a: 2020-99-99", "not usable"),
        ("- a\n- b\n", "holds a list at the top"),
        ("[" * 5000, "not usable"),
        ("? [a]\n: b", "not usable"),
    ],
)
def test_unusable_files_are_one_clear_error(written, text, says):
    with pytest.raises(StreamgaugeError, match=says):
        config.load([written(text)])


def test_unreadable_files(tmp_path):
    with pytest.raises(StreamgaugeError, match=r"nowhere\.yaml: cannot be read"):
        config.load([tmp_path / "nowhere.yaml"])
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(StreamgaugeError, match="not UTF-8"):
        config.load([tmp_path / "bytes.yaml"])


def test_anchors_may_be_shared_but_not_circular(base, written):
    shared = config.load([written("x: &a {k: 1}\ny: *a\nz: {<<: *a, l: 2}")])
    assert shared["z"] == {"k": 1, "l": 2}
    circular = config.merge(base, config.load([written("sae: &s {lr: *s}")]))
    with pytest.raises(StreamgaugeError, match="nested without end"):
        config.validate(circular)


# --- each fault is named ------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("overlay", "says"),
    [
        ("sae: {lrr: 1}", ["sae.lrr is not a key", "warmup_steps", "nearest: lr"]),
        ("lr: 3", ["lr is not a key", "lr belongs to pretrain or sae or critics"]),
        ("grid: {objective: [mse]}", ["grid.objective", "nearest: objectives"]),
        ("figures: {pr_canyn: {}}", ["figures", "'pr_canyn'", "nearest: pr_canyon"]),
        ("sae: {trainer: nativ}", ["sae.trainer is 'nativ'", "native, saelens", "nearest: native"]),
        ("grid: {objectives: [behavioural]}", ["grid.objectives[0]", "nearest: behavioral"]),
        (
            "{grid: {objectives: [mse, e2e]}, sae: {trainer: saelens}}",
            ["grid.objectives[1] is e2e, which sae.trainer saelens cannot train"],
        ),
        ("probes: {count: 0}", ["probes.count is 0", "≥ 1"]),
        ("calibration: {scales: [0]}", ["calibration.scales[0] is 0.0", "> 0"]),
        ("device: gpu", ["device is 'gpu'", "auto, cpu, cuda, mps"]),
        ("grid: {k: [8, 0]}", ["grid.k[1] is 0", "≥ 1"]),
        ("grid: {k: [8, true]}", ["grid.k[1] is true", "a whole number"]),
        ("grid: {k: [8, 8.0]}", ["grid.k lists 8 twice"]),
        ("grid: {k: []}", ["grid.k is empty"]),
        ("grid: {k: 8}", ["grid.k is 8", "a list"]),
        ("grid: {layers: {smollm2-135m: [-1]}}", ["grid.layers.smollm2-135m[0] is -1", "≥ 0"]),
        ("grid: {layers: {smollm: [1]}}", ["grid.layers.smollm", "subjects does not define"]),
        ("grid: {subjects: [smollm2-135]}", ["grid.subjects[0]", "nearest: smollm2-135m"]),
        ("grid: {corpora: [pile]}", ["grid.corpora[0] is 'pile'", "corpora does not define"]),
        ("grid: {tokens: [200000, 100]}", ["grid.tokens[1] is 100", "sae.batch_size"]),
        ("sae: {pool_tokens: 128}", ["sae.pool_tokens is 128", "sae.batch_size"]),
        ("sae: {lr: 0}", ["sae.lr is 0.0", "auto or a number > 0"]),
        ("sae: {lr: Auto}", ["sae.lr is 'Auto'", "nearest: auto"]),
        ("sae: {lr: .nan}", ["sae.lr is nan", "finite"]),
        ("sae: null", ["sae is null", "a mapping"]),
        ("sae: {clip: 2020-01-01}", ["sae.clip", "date"]),
        ("sae: {1: 2}", ["sae.1", "put 1 in quotes"]),
        ("statistics: {confidence: 95}", ["statistics.confidence is 95.0", "> 0 and < 1"]),
        ("study: ../up", ["study is '../up'", "beginning with a letter or a digit"]),
        ('study: "demo\\n"', ["study is 'demo\\n'"]),
        ("subjects: {a/b: {source: gguf}}", ["subjects: 'a/b' is not a usable name"]),
        ("subjects: {.x: {source: gguf}}", ["subjects: '.x' is not a usable name"]),
        ("subjects: {studies: {source: local, path: p}}", ["subjects.studies", "taken"]),
        ("corpora: {model: {source: text}}", ["corpora.model: the name", "taken"]),
        ("subjects: {x: {}}", ["subjects.x.source is missing", "huggingface, local, gguf"]),
        ("subjects: {x: {source: ggf}}", ["subjects.x.source is 'ggf'", "nearest: gguf"]),
        ("subjects: {x: {source: local}}", ["subjects.x.path is missing"]),
        ("subjects: {x: {source: local, path: p, repo: r}}", ["subjects.x.repo is not a key"]),
        ("subjects: {x: {source: gguf}}", ["subjects.x needs exactly one of (path) or (package"]),
        ("subjects: {x: {source: gguf, package: p}}", ["subjects.x.file is missing"]),
        (
            "corpora: {x: {source: text, paths: [a], context_length: 8, train_sequences: 4,"
            " eval_sequences: 2, eval_fraction: 1}}",
            ["corpora.x.eval_fraction is 1.0", "> 0 and < 1"],
        ),
        ('grid: {seeds_at: {"7": [1]}}', ["grid.seeds_at.7", "no such budget"]),
        ("grid: {depths: [mid]}", ["grid.layers.smollm2-135m has 2 layers", "names 1 places"]),
        (f"{SCRATCH_SUBJECT}, n_heads: 3}}}}", ["subjects.x.d_model is 32", "8 n_heads", "24"]),
        (
            f"{SCRATCH_SUBJECT}, n_heads: 4}}}}\npretrain: {{context_length: 32}}",
            ["corpora.python-docs.context_length is 64", "x is pretrained for 32"],
        ),
        (
            f"{SCRATCH_SUBJECT}, n_heads: 4}}}}\npretrain: {{corpus: pyton-docs}}",
            ["pretrain.corpus is 'pyton-docs'", "nearest: python-docs"],
        ),
        (
            "imports: {a: {path: p, subject: smollm, corpus: python-docs, layer: 1}}",
            ["imports.a.subject is 'smollm'", "nearest: smollm2-135m"],
        ),
        ("imports: {topk-x8: {}}", ["imports.topk-x8"]),
        (
            "crosslingual: {subjects: [smollm], layers: {smollm: [1]}}",
            ["crosslingual.subjects", "'smollm'", "nearest: smollm2-135m"],
        ),
        (
            "crosslingual: {subjects: [smollm2-135m]}",
            ["crosslingual.layers.smollm2-135m is missing"],
        ),
        ("crosslingual: {prompts: [maths]}", ["'maths'", "nearest: math"]),
        ("crosslingual: {sources: [median]}", ["crosslingual.sources[0] is 'median'", "mean"]),
        ("crosslingual: {penalties: [-1]}", ["crosslingual.penalties[0]", "-1"]),
        ("prompts: {math: {target: zh}}", ["prompts.math: target and source are both 'zh'"]),
        ("prompts: {Math: {path: p, target: en, source: zh}}", ["prompts", "'Math'"]),
        ("patching: {random: 5}", ["patching.random is 5"]),
        ("ard: {permutations: 3}", ["ard.permutations is 3"]),
        ("subjects: {x: {source: planted}}", ["subjects.x.carries is missing"]),
    ],
)
def test_fault_is_named(base, overlay, says):
    with pytest.raises(StreamgaugeError) as caught:
        config.validate(overlaid(base, overlay), where="studies/mine.yaml")
    text = str(caught.value)
    assert text.startswith("studies/mine.yaml: ")
    for words in says:
        assert words in text, text


def test_the_suite_asks_for_no_layer_or_subspace_that_a_subject_cannot_have(base, tmp_path):
    """Known beforehand from `expect`, so that no job has to find out."""
    overlay = (
        "subjects: {small: {source: local, path: p, expect: {d_model: 32, n_layers: 4,"
        " vocab_size: 9}}}\n"
        "crosslingual: {subjects: [small], layers: {small: [3, 4]}, ard_layers: {small: [7]},"
        " k_sub: [16, 50]}"
    )
    with pytest.raises(StreamgaugeError) as caught:
        study.check_grid(config.validate(overlaid(base, overlay)), tmp_path)
    for words in ("layers.small has 4", "ard_layers.small has 7", "k_sub[1] is 50", "ard.k_sub"):
        assert words in str(caught.value), words


def test_missing_layers_entry(base):
    broken = copy.deepcopy(base)
    broken["subjects"]["other"] = {"source": "local", "path": "p"}
    broken["grid"]["subjects"].append("other")
    with pytest.raises(StreamgaugeError, match=r"grid\.layers\.other is missing"):
        config.validate(broken)


def test_all_faults_are_listed_at_once(base):
    overlay = "{sae: {lrr: 1, eps: -1}, grid: {subjects: [nobody]}, device: tpu}"
    with pytest.raises(StreamgaugeError) as caught:
        config.validate(overlaid(base, overlay))
    text = str(caught.value)
    assert text.count("\n  - ") == 5  # the subject is undefined and has no layers: two
    for words in ("sae.lrr", "sae.eps is -1.0", "grid.subjects[0]", "device is 'tpu'"):
        assert words in text


def test_numbers_take_one_form(base):
    """YAML 1.1 reads 1e-4 as text, and 5 and 5.0 must not give two specs."""
    overlay = "{sae: {lr: 1e-4, clip: 1, eps: '1e-8'}, grid: {tokens: [2e5, 300000.0]}}"
    valid = config.validate(overlaid(base, overlay))
    assert valid["sae"]["lr"] == 1e-4 and valid["sae"]["eps"] == 1e-8
    assert valid["sae"]["clip"] == 1.0 and isinstance(valid["sae"]["clip"], float)
    assert valid["grid"]["tokens"] == [200000, 300000]
    assert all(isinstance(tokens, int) for tokens in valid["grid"]["tokens"])


def test_digits_stay_text_where_text_is_asked_for(base):
    valid = config.validate(overlaid(base, "{study: '2024', figures: {pr_canyon: {title: '7'}}}"))
    assert valid["study"] == "2024" and valid["figures"]["pr_canyon"]["title"] == "7"


def test_validate_leaves_its_argument_alone(base):
    before = copy.deepcopy(base)
    given_config = overlaid(base, "sae: {lr: 1e-4}")
    kept = copy.deepcopy(given_config)
    config.validate(given_config)
    assert given_config == kept and base == before


def test_a_huge_round_number_is_refused_or_stays_valid(base):
    """1e19 is a whole number beyond 64 bits: what is accepted once is accepted again."""
    huge = copy.deepcopy(base)
    huge["grid"]["layers"]["smollm2-135m"] = [1e19]
    valid = config.validate(huge)
    assert config.validate(valid) == valid
