"""Generated configurations: nothing but a plan or one clear error, whatever is written."""

import copy
import json
import re
import shutil
import signal

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import config_fuzz as fuzz
import pipeline
from streamgauge.artifacts import keys
from streamgauge.artifacts.stages import STAGES
from streamgauge.base import sealed
from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.paths import sae_folder
from streamgauge.base.wording import named, shown
from streamgauge.planning import config, estimate, job_requests
from streamgauge.planning import grid as study
from streamgauge.planning import parts as scatter

ROOTS = set(fuzz.SCHEMA["properties"])
LONGEST_LINE = 900  # every key of the top level, as a fault there lists them
PARTS = ("harvest", "gradients", "probes")


def often(check):
    """Run `check` on some hundred examples, and on ten times as many with the marker `cluster`."""
    many = pytest.param(10, marks=pytest.mark.cluster)
    return pytest.mark.parametrize("times", [1, many])(check)


def examples(n, times):
    """Settings for n examples; a failing one is shown as it is, for shrinking takes minutes."""
    return settings(
        max_examples=n * times,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )


@pytest.fixture(scope="module")
def base():
    return config.load([fuzz.ROOT / "config.yaml"])


@pytest.fixture
def within():
    """A limit in seconds for what must not hang."""

    def out_of_time(*_):
        raise TimeoutError("took too long")

    before = signal.signal(signal.SIGALRM, out_of_time)
    yield signal.alarm
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def clear(error, *, where):
    """The faults of an error that a person can read: one line each, cut short, file first."""
    text = str(error)
    assert text.startswith(where) and text[len(where)] in ":", text
    first, *listed = text.split("\n")
    for line in (first, *(line.removeprefix("  - ") for line in listed)):
        assert line.isprintable() and 0 < len(line) <= LONGEST_LINE, repr(line)
        assert "object at 0x" not in line
    assert all(line.startswith("  - ") for line in listed)
    return [line.removeprefix("  - ") for line in listed] or [text.removeprefix(f"{where}: ")]


def names_a_key(fault, candidate):
    """Whether a fault begins with a key of the schema or of what was checked."""
    top = candidate if isinstance(candidate, dict) else ()
    keys = (named(key) if isinstance(key, str) else named(shown(key)) for key in top)
    roots = ROOTS | {re.split(r"[\s.:\[]", key)[0] for key in keys}
    return fault.startswith("the configuration") or re.split(r"[\s.:\[]", fault)[0] in roots


def checked(candidate, tmp_path):
    """Validate and plan; the valid configuration, or None where it was refused, clearly."""
    try:
        valid = config.validate(candidate)
    except StreamgaugeError as error:
        for fault in clear(error, where="config.yaml"):
            assert names_a_key(fault, candidate) or fault.startswith("and "), fault
        return None
    assert config.validate(valid) == valid
    plan(valid, tmp_path)
    return valid


def plan(valid, results):
    """Everything that is worked out from a configuration before a job starts."""
    assert json.loads(json.dumps(valid, allow_nan=False)) == valid
    try:
        study.check_grid(valid, results)
        shapes = estimate.shapes(valid, results)
        estimate.describe(estimate.estimate(valid, shapes, tflops=1.0), 1.0)
    except StreamgaugeError as error:
        clear(error, where=error.where)
    for stage, wildcards in cells(valid):
        text = keys.spec(fuzz.ROOT, valid, stage, wildcards)
        assert json.dumps(json.loads(text), sort_keys=True, allow_nan=False) == text
        parts = 1
        if stage in PARTS:
            split = wildcards.get("split", "eval")
            parts = scatter.n_parts(valid, stage, wildcards["corpus"], split)
            wildcards = {**wildcards, "part": "0", "parts": str(parts)}
        shape = known_shape(valid, wildcards, results)
        asked = job_requests.job(valid, stage, wildcards, shape) if "subject" in wildcards else {}
        assert all(type(n) is int and n > 0 for n in (parts, *asked.values())), (stage, asked)


def known_shape(valid, wildcards, results):
    name = wildcards.get("subject")
    return name and study.shape_of(name, valid["subjects"][name], results)


def cells(valid):
    """Stages and the wildcards of one artifact of each."""
    grid = valid["grid"]
    subject, corpus = grid["subjects"][-1], grid["corpora"][-1]
    how = {name: grid[name][-1] for name in ("expansion", "k", "tokens")}
    how |= {"objective": grid["objectives"][-1], "seed": grid["seeds"][-1]}
    sae = sae_folder(valid["sae"]["recipe"], **how)
    layer = {"subject": subject, "corpus": corpus, "ell": f"{grid['layers'][subject][-1]:02d}"}
    of_layer = {"gradients", "baseline", "calibration", "critics", "spectra"}
    of_subject = {"subject", "pretrain"}
    of_sae = {"train_sae", "train_behavioral", "train_e2e", "evaluate", "sensitivity", "attention"}
    suite = {"states", "separation", "updates", "bridge", "patching", "ard"}
    asked = valid["crosslingual"]
    for stage in STAGES:
        scratch = valid["subjects"][subject]["source"] == "scratch"
        if stage == ("subject" if scratch else "pretrain"):
            continue
        if stage == "import_sae":
            for name, block in valid["imports"].items():
                yield stage, {**layer, "subject": block["subject"], "sae": name}
        elif stage in suite | {"prompts", "basis", "geometry"}:
            for name in asked["subjects"]:
                yield (
                    stage,
                    {
                        **{"subject": name, "prompts": asked["prompts"][-1]},
                        **{
                            "ell": f"{asked['layers'][name][-1]:02d}",
                            "k_sub": str(asked["k_sub"][-1]),
                        },
                        **{"source": asked["sources"][-1], "penalty": str(asked["penalties"][-1])},
                    },
                )
        elif stage in of_layer:
            yield stage, layer
        elif stage in of_subject:
            yield stage, {"subject": subject}
        elif stage in of_sae or stage in ("score", "audit"):
            yield stage, {**layer, "sae": sae}
        elif stage in ("tokens", "harvest", "probes"):
            for split in ("train", "eval"):
                yield stage, {**layer, "split": split}
        else:
            yield stage, {"study": valid["study"]}


# --- generated ----------------------------------------------------------------------------------
@often
def test_a_legal_study_is_accepted_and_planned(tmp_path, times):
    """However its numbers are written, and with nothing of it changed."""

    @examples(90, times)
    @given(fuzz.studies())
    def check(candidate):
        before = copy.deepcopy(candidate)
        valid = config.validate(candidate)
        assert candidate == before
        assert config.validate(valid) == valid
        plan(valid, tmp_path)

    check()


@often
def test_a_legal_study_survives_being_written_down(tmp_path, times):
    @examples(30, times)
    @given(fuzz.studies())
    def check(candidate):
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(candidate, allow_unicode=True))
        loaded = config.load([tmp_path / "c.yaml"])
        assert config.validate(loaded) == config.validate(candidate)

    check()


@often
def test_a_spoilt_study_is_accepted_or_refused(tmp_path, times):
    outcomes = []

    @examples(150, times)
    @given(fuzz.mutants(fuzz.studies()))
    def check(candidate):
        outcomes.append(checked(candidate, tmp_path) is None)

    check()
    assert 0.3 < sum(outcomes) / len(outcomes) < 0.99  # both happen


@often
def test_a_spoilt_file_is_accepted_or_refused(base, tmp_path, times):
    outcomes = []

    @examples(300, times)
    @given(fuzz.mutants(fuzz.written))
    def check(overlay):
        try:
            candidate = config.merge(base, overlay)
        except RecursionError:  # such an overlay cannot be written down
            return
        outcomes.append(checked(candidate, tmp_path) is None)

    check()
    assert 0.3 < sum(outcomes) / len(outcomes) < 0.99


@often
def test_any_text_is_a_configuration_or_refused(base, tmp_path, within, times):
    path = tmp_path / "c.yaml"
    outcomes = []

    @examples(300, times)
    @given(fuzz.texts())
    def check(content):
        path.write_bytes(content)
        within(20)
        try:
            loaded = config.load([path, path])
        except StreamgaugeError as error:
            outcomes.append("unreadable")
            assert str(error).startswith(str(path))
            clear(error, where=error.where)
            return
        valid = checked(config.merge(base, loaded), tmp_path)
        outcomes.append("refused" if valid is None else "valid")

    check()
    assert set(outcomes) == {"unreadable", "refused", "valid"}


@often
def test_a_fault_is_found_where_it_was_planted(base, times):
    """A value of a kind that no setting has: refused, and its place is named."""
    leaves = [path for path in fuzz.places(base) if not isinstance(path[-1], int)]

    @examples(100, times)
    @given(st.sampled_from(leaves))
    def check(path):
        candidate = copy.deepcopy(base)
        whole = isinstance(fuzz.at(base, path), dict)
        fuzz.at(candidate, path[:-1])[path[-1]] = 5 if whole else {"bad": 1}
        with pytest.raises(StreamgaugeError) as caught:
            config.validate(candidate)
        faults = clear(caught.value, where="config.yaml")
        assert any(fault.startswith(".".join(path)) for fault in faults), faults

    check()


# --- by hand ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('grid: {seeds_at: {"' + "1" * 90 + '": [0]}}', "grid.seeds_at.'1111.* no such budget"),
        ('grid: {seeds_at: {"01": [0]}}', "grid.seeds_at: '01' .* a number from tokens"),
        ("imports: {" + "x" * 101 + ": {}}", "at most 100 characters"),
        ("a: " + "1:" * 300 + "1.5", r"c\.yaml:1: .* is no value"),
        ("a: 0x_", "'0x_' is no value"),
        ("a: *" + "a" * 5000, r"undefined alias 'a+\.\.\."),
        ("? 0x" + "f" * 5000 + "\n: 1", "a key must be text"),
        ("sae: &s {lr: *s}", "nested without end"),
        ('? "a\\nb"\n: 1\n? "a\\nb"\n: 2', r"the key 'a\\nb' is given twice"),
        ("a: !<x%0Ay> b", r"the tag 'x\\ny' is not allowed"),
        ('sae: {"x\\nerror: y": 1}', r"sae\.'x\\nerror: y' is not a key"),
        ("sae: {'': 1}", r"sae\.'' is not a key"),
        ('study: "\\0"', "a character that no text can hold"),
        ('figures: {deltas: {title: "\\ud800"}}', r"title is '\\ud800', which has a character"),
        ("grid: {tokens: [1e300]}", r"grid\.tokens\[0\] is larger than any number"),
        ("subjects: {x: null}", "config.yaml: subjects.x is null; allowed: a mapping[^\n]*$"),
        ("prompts: {math: {path: '{x}'}}", r"prompts\.math\.path is '\{x\}'; braces"),
        ("prompts: {math: {path: " + "x/" * 5000 + "}}", "too long for a file's name"),
    ],
)
def test_what_once_ended_badly_is_one_clear_line(base, tmp_path, text, says):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(StreamgaugeError, match=says) as caught:
        config.validate(config.merge(base, config.load([path, path])))
    clear(caught.value, where=caught.value.where)


@pytest.mark.parametrize("merge", [False, True])
def test_aliases_that_stand_for_billions_are_refused_at_once(base, tmp_path, within, merge):
    within(20)
    levels = ["a0: &a0 {x: 1}"]
    for i in range(10):
        tenfold = f"[{', '.join([f'*a{i}'] * 10)}]"
        levels.append(f"a{i + 1}: &a{i + 1} {f'{{<<: {tenfold}}}' if merge else tenfold}")
    path = tmp_path / "c.yaml"
    path.write_text("\n".join(levels))
    with pytest.raises(StreamgaugeError, match="more than 100000 values, aliases counted"):
        config.load([path])
    # as another loader hands them over, shared and not copied
    laughs = [1] * 10
    for _ in range(10):
        laughs = [laughs] * 10
    with pytest.raises(StreamgaugeError, match="holds more than 10000 values"):
        config.validate({**base, "a": laughs})


def test_no_rate_makes_a_request_endless(base):
    """At 10⁻³⁰⁰ operations a second a job takes for ever; it asks for what can be asked."""
    slow = config.validate(config.merge(base, {"resources": {"tflops": 5e-324}}))
    at = {"subject": "smollm2-135m", "corpus": "python-docs", "ell": "20"}
    assert job_requests.job(slow, "baseline", at, None)["runtime"] == 2**31 - 1


@pytest.mark.parametrize("known", [True, False])
def test_no_layer_makes_a_request_negative(base, known):
    shape = {"d_model": 64, "n_layers": 4, "vocab_size": 99} if known else None
    at = {"subject": "smollm2-135m", "corpus": "python-docs", "ell": "99"}
    asked = [job_requests.job(base, stage, at, shape) for stage in ("baseline", "calibration")]
    assert all(value > 0 for job in asked for value in job.values())


def test_faults_without_number_are_listed_to_fifty(base):
    spoilt = {**base, "sae": {f"k{i}": 1 for i in range(80)}}
    with pytest.raises(StreamgaugeError) as caught:
        config.validate(spoilt)
    assert str(caught.value).startswith("config.yaml: 80 faults\n")
    assert str(caught.value).count("\n  - ") == 51 and "and 30 more" in str(caught.value)


def test_no_negative_zero(base):
    """It equals zero, and would be another folder."""
    valid = config.validate(
        config.merge(
            base, {"crosslingual": {"penalties": [-0.0]}, "sae": {"auxk_coefficient": "-0"}}
        )
    )
    assert (
        str(valid["crosslingual"]["penalties"][0]) == str(valid["sae"]["auxk_coefficient"]) == "0.0"
    )


@pytest.mark.parametrize(
    ("overlay", "says"),
    [
        ({"grid": {"k": [*range(1, 401)], "seeds": [*range(400)]}}, "grid asks for 320,000"),
        (
            {
                "crosslingual": {
                    **{"subjects": ["smollm2-135m"], "layers": {"smollm2-135m": [1]}},
                    **{"k_sub": [*range(1, 401)], "penalties": [float(i) for i in range(400)]},
                }
            },
            "crosslingual asks for 160,000",
        ),
        (
            {"corpora": {"python-docs": {"train_sequences": 10**12}}, "scatter": {"harvest": 1}},
            "scatter.harvest is 1, which cuts a store of python-docs into 3,906,250,000 parts",
        ),
    ],
)
def test_more_than_can_be_planned_is_refused(base, tmp_path, within, overlay, says):
    within(20)
    with pytest.raises(StreamgaugeError, match=says):
        study.check_grid(config.validate(config.merge(base, overlay)), tmp_path)


@pytest.mark.parametrize(
    "facts", [5, None, [], {}, {"d_model": "x"}, {"d_model": 0}, {"d_model": True}]
)
def test_a_manifest_that_tells_no_shape_is_refused(tmp_path, facts):
    if isinstance(facts, dict) and facts:
        facts = {"n_layers": 2, "vocab_size": 9, **facts}
    (tmp_path / "m").mkdir()
    record = {"spec": {}, "files": {}, "inputs": {}, "digest": "", "facts": facts}
    (tmp_path / "m/subject.json").write_text(sealed.text(record | {"checksums": {}}))
    with pytest.raises(
        StreamgaugeError, match=r"subject\.json: says no shape.*Remove .*subject\.json"
    ):
        study.shape_of("m", {"source": "local"}, tmp_path)


# --- through the real Snakemake -----------------------------------------------------------------
@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pipeline.create(tmp_path_factory.mktemp("fuzzed"))


def text_corpus(*paths):
    sizes = {"context_length": 64, "train_sequences": 400, "eval_sequences": 16}
    block = {"source": "text", "paths": paths, **sizes}
    return json.dumps({"corpora": {"t": block}, "grid": {"corpora": ["t"]}})


slow = pytest.mark.cluster


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('sae: {"x\\nerror: y": 1, "\\e[31m": 2}', r"sae.'x\nerror: y' is not a key"),
        (text_corpus("a\nb", "c*?", "$x$"), "Missing input"),
        *(
            pytest.param(*case, marks=slow)
            for case in [
                ("grid: {tokens: [10000000000000000000]}", None),
                ("a: " + "[" * 400 + "]" * 400, "nested too deeply"),
                ("- a\n- b", "keys at top level"),
                ("grid:\n\tk: [1]", "not valid JSON or YAML"),
                ('study: !!python/object/apply:os.system ["touch run"]', "not valid JSON or YAML"),
                ('study: "a\\0b"', "a character that no text can hold"),
                ('grid: {seeds_at: {"' + "1" * 5000 + '": [0]}}', "not valid JSON or YAML"),
                ('{"sae": {"lr": NaN}, "study": "\\ud800"}', "sae.lr is nan, not a finite number"),
                ("2020-01-01: {a: 1}", "a key must be text"),
                ("grid: null", "grid is null; allowed: a mapping"),
                ("study: !!set {a}", "tag:yaml.org,2002:set is not allowed"),
                ("grid: {layers: {smollm2-135m: [1e19]}}", None),
                (text_corpus("{x}"), "braces"),
                ("crosslingual: {subjects: [smollm2-135m], layers: {smollm2-135m: [1]},"
                 " penalties: [-0.0, 1e22, 5e-324]}", None),
            ]
        ),
    ],
)  # fmt: skip
def test_snakemake_plans_or_refuses(folder, text, says):
    """Files that Snakemake's own reader can hand over; what it cannot read it says itself."""
    (folder / "study.yaml").write_text(text)
    done = pipeline.snakemake(folder, "--dry-run", "--quiet", "rules", check=False, timeout=300)
    assert "Traceback" not in done.stdout and not (folder / "run").exists()
    assert (done.returncode == 0) == (says is None), done.stdout[-2000:]
    assert says is None or says in done.stdout, done.stdout[-2000:]
    assert says is not None or "Job stats" in done.stdout or "would run" in done.stdout


def test_a_damaged_subject_is_named_by_snakemake(folder):
    (folder / "study.yaml").write_text("study: demo")
    path = folder / "results/smollm2-135m/subject.json"
    path.parent.mkdir(parents=True)
    record = {"spec": {}, "files": {}, "inputs": {}, "digest": "", "facts": 5}
    path.write_text(sealed.text(record | {"checksums": {}}))
    done = pipeline.snakemake(folder, "--dry-run", check=False)
    shutil.rmtree(path.parent)
    assert done.returncode != 0 and "Traceback" not in done.stdout
    assert "subject.json: says no shape of a model" in done.stdout
