"""Configurations, names, artifacts and texts from strangers: no code, no way out, no markup."""

import copy
import json
import os
import re

import pytest

import audit_data
import crosslingual_data
import patching_data
import pipeline
import saved_sae
from html_page import Page
from pipeline import ROOT
from streamgauge.artifacts import look, manifest, verify
from streamgauge.base import sealed, yaml_file
from streamgauge.base.errors import StreamgaugeError
from streamgauge.cli import audit, main
from streamgauge.crosslingual import patching, prompts
from streamgauge.crosslingual import tables as crosslingual
from streamgauge.planning import config
from streamgauge.report import findings_page, patching_page, verdict_page
from streamgauge.sae import files
from streamgauge.studies import audit_report
from verdict_data import advantages, judged

SCRIPT = "<script>alert(1)</script>"


# --- YAML ---------------------------------------------------------------------------------------
def programs(mark):
    """YAML files that make a file where something runs them."""
    touch = f"touch {mark}"
    return {
        "apply": f'study: !!python/object/apply:os.system ["{touch}"]\n',
        "new": f'study: !!python/object/new:os.system ["{touch}"]\n',
        "name": "study: !!python/name:os.system\n",
        "tuple": "study: !!python/tuple [a]\n",
        "template": f"__use_yte__: true\nstudy: ?__import__('os').system('{touch}')\n",
    }


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {k: v}\n" + "".join(
    f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 9)}]}}\n"
    for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize("name", [*programs(""), "laughs", "merges"])
def test_a_yaml_file_is_no_program_and_no_bomb(tmp_path, name, monkeypatch, capsys):
    mark, path = tmp_path / "exploded", tmp_path / "x.yaml"
    path.write_text({**programs(mark), "laughs": LAUGHS, "merges": MERGES}[name])
    for read in (yaml_file.read, prompts.read, lambda p: config.load([ROOT / "config.yaml", p])):
        with pytest.raises(StreamgaugeError) as caught:
            read(path)
        assert "x.yaml" in str(caught.value) and "\n" not in str(caught.value)
    monkeypatch.chdir(ROOT)
    # the way to look at a stranger's overlay before Snakemake reads it
    assert main.main(["estimate", "--configfile", str(path)]) == 2
    assert "x.yaml" in capsys.readouterr().err
    assert not mark.exists()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return pipeline.create(tmp_path_factory.mktemp("checkout"))


def stopped(checkout, *words):
    """What the real Snakemake prints when it has to stop."""
    done = pipeline.snakemake(checkout, "-n", *words, check=False)
    assert done.returncode != 0 and "Traceback" not in done.stdout, done.stdout[-3000:]
    return done.stdout


@pytest.mark.parametrize(
    "name",
    [
        "apply",
        pytest.param("new", marks=pytest.mark.cluster),
        pytest.param("name", marks=pytest.mark.cluster),
        pytest.param("laughs", marks=pytest.mark.cluster),
    ],
)
def test_snakemake_itself_runs_no_tag(checkout, name):
    mark = checkout / "exploded"
    (checkout / "x.yaml").write_text({**programs(mark), "laughs": LAUGHS}[name])
    said = stopped(checkout, "--configfile", "study.yaml", "x.yaml")
    assert "WorkflowError" in said and "Job stats" not in said
    assert not mark.exists()


# --- names --------------------------------------------------------------------------------------
NAMES = [
    "..",
    ".",
    "a/b",
    "/etc",
    "../x",
    ".hidden",
    "-x",
    "a\n",
    "a b",
    "",
    "a\\b",
    "é",
    "a*",
    "~",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["subjects", "corpora", "imports", "prompts", "study"])
def test_a_name_that_becomes_a_folder_has_no_path_in_it(kind, name):
    base = config.load([ROOT / "config.yaml"])
    entry = {"path": "x", "subject": "smollm2-135m", "corpus": "python-docs", "layer": 3}
    block = base[kind] | {"sound": entry} if kind == "imports" else base[kind]
    config.validate(base | {kind: block})
    spoiled = name if kind == "study" else {**block, name: next(iter(block.values()))}
    with pytest.raises(StreamgaugeError, match=kind):
        config.validate(base | {kind: spoiled})


@pytest.mark.parametrize(
    "target",
    [
        "results/../x/subject.json",
        pytest.param("../x/subject.json", marks=pytest.mark.cluster),
        pytest.param("/etc/subject.json", marks=pytest.mark.cluster),
        pytest.param("results/tiny/prose/L01/sae/../sae.json", marks=pytest.mark.cluster),
        pytest.param("results/a b/subject.json", marks=pytest.mark.cluster),
        pytest.param("results/$(touch x)/subject.json", marks=pytest.mark.cluster),
        pytest.param("results/other/subject.json", marks=pytest.mark.cluster),
    ],
)
def test_a_target_outside_the_results_is_nobodys(checkout, target):
    said = stopped(checkout, "--configfile", "study.yaml", "--", target)
    assert "No rule to produce" in said and "Job stats" not in said


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("model_name", "../private"),
        ("model_name", "/etc"),
        ("model_name", "."),
        ("model_name", "private/model"),
        ("dataset_path", "private/model"),
        ("dataset_path", "../private"),
        ("dataset_path", "/etc/passwd"),
        ("dataset_path", "a b"),
    ],
)
def test_an_sae_names_no_path_of_this_machine(tmp_path, monkeypatch, key, name):
    (tmp_path / "private/model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    metadata = {**saved_sae.METADATA, "model_name": "gpt2", "dataset_path": "some/data"}
    base, words = config.load([ROOT / "config.yaml"]), [str(tmp_path / "sae")]
    files.save(saved_sae.random_sae(), tmp_path / "sae", metadata)
    overlay, _ = audit.command(audit_data.options(*words), base)
    (model,), (texts,) = overlay["subjects"].values(), overlay["corpora"].values()
    assert model == {"source": "huggingface", "repo": "gpt2"} and texts["repo"] == "some/data"
    files.save(saved_sae.random_sae(), tmp_path / "sae", {**metadata, key: name})
    with pytest.raises(StreamgaugeError, match="not by a name of the hub"):
        audit.command(audit_data.options(*words), base)


# --- artifacts ----------------------------------------------------------------------------------
def leaves(value, path=()):
    """Where the values of a JSON document are."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from leaves(item, (*path, key))


def changed(value, path, new):
    """A copy with one value replaced."""
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return value


SPEC = {"stage": "grid", "config": {}, "wildcards": {"study": "theirs"}, "code": {}}


@pytest.fixture
def artifact(tmp_path, monkeypatch):
    """A small artifact in a folder of its own, beside a file that is not its own."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/key.txt").write_text("secret")
    folder = tmp_path / "results/tiny"
    folder.mkdir(parents=True)
    (folder / "scores.csv").write_text("a,b\n1,2\n")
    facts = {"scores": {"sae": {"all": {"r2": {"value": 1.0, "low": 0.5, "high": 1.0}}}}}
    manifest.write(folder / "scores.json", json.dumps(SPEC), [folder / "scores.csv"], facts=facts)
    monkeypatch.chdir(ROOT)
    return folder / "scores.json"


def run(capsys, *words):
    status = main.main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert status in (0, 1, 2) and "Traceback" not in err
    return status, out + err


def test_any_value_in_a_manifest_ends_in_a_line(artifact):
    valid = config.validate(config.load([ROOT / "config.yaml"]))
    sound, said, ends = json.loads(artifact.read_text()), [], []
    assert verify.verify([artifact], ROOT, valid, said.append)
    for path in leaves(sound):
        for odd in (None, 5, "x\x1b[2J", [1], {"a": {"b": 1}}):
            artifact.write_text(json.dumps(changed(sound, path, odd)))
            ends.append(verify.verify([artifact], ROOT, valid, said.append))
            try:
                said.append(look.describe(artifact, ROOT, valid))
            except StreamgaugeError as error:
                said.append(str(error))
    assert ends.count(False) > 60 and not any("\x1b" in text for text in said)


@pytest.mark.parametrize("name", ["../../secret/key.txt", "../../secret", "/etc/passwd", ".."])
def test_a_manifest_names_no_file_elsewhere(artifact, capsys, name):
    record = json.loads(artifact.read_text())
    for key in ("files", *(["inputs"] if name.startswith("/") else [])):
        spoiled = record | {key: {name: "0" * 64}}
        spoiled["digest"] = manifest._digest(spoiled["files"], spoiled["facts"])
        artifact.write_text(json.dumps(spoiled))
        status, said = run(capsys, "verify", artifact)
        assert status == 1 and "not a manifest" in said and "key.txt" not in said
        assert "not a manifest" in run(capsys, "inspect", artifact)[1]


def test_a_pipe_among_the_artifacts_holds_nothing_up(artifact, capsys):
    record = json.loads(artifact.read_text())
    os.mkfifo(artifact.parent / "grid.json")  # read, it would never end
    os.mkfifo(artifact.parent / "notes.json")
    record["inputs"] = {"notes.json": "0" * 64}
    artifact.write_text(sealed.text(record))
    status, said = run(capsys, "verify", artifact.parent)
    assert status == 1 and re.search(r"notes\.json: .*no regular file", said)
    run(capsys, "inspect", artifact.parent)


# --- pages --------------------------------------------------------------------------------------
def spoiled(page, facts, least):
    """Make a page again and again, each time with markup in place of one of its texts."""
    shown = 0
    # one of the entries of every list stands for all
    kinds = {tuple(k for k in path if isinstance(k, str)): path for path in leaves(facts)}
    for path in kinds.values():
        value = facts
        for key in path:
            value = value[key]
        if not isinstance(value, str):
            continue
        try:
            text = page(changed(facts, path, SCRIPT))
        except (KeyError, ValueError, StreamgaugeError):
            continue  # a word with a meaning, not a text
        read = Page(text)
        assert "script" not in {tag for tag, _ in read.tags}, path
        assert SCRIPT in "".join(read.words) or "script" not in text, path
        shown += "&lt;script" in text
    assert shown >= least


def test_the_verdicts_have_no_markup_of_others():
    facts = judged(0.08, ranked=advantages(), missing=["l lacks k 64"])
    spoiled(lambda f: verdict_page.page(f, SCRIPT), facts, 10)


def test_the_crosslingual_page_has_no_markup_of_others():
    tables, said = crosslingual_data.study(subjects=("a",))
    facts = crosslingual.findings(tables, said)
    spoiled(lambda f: findings_page.page(f, tables, SCRIPT), facts, 10)
    cells = crosslingual_data.cells(subjects=(SCRIPT,))
    tables, said = crosslingual.tables(cells), crosslingual.verdicts(cells["patching"])
    page = Page(findings_page.page(crosslingual.findings(tables, said), tables))
    assert "script" not in {tag for tag, _ in page.tags} and SCRIPT in "".join(page.words)


def test_generated_text_is_text_on_the_page():
    table = patching_data.planted()
    table.loc[table.condition == "z", "text"] = f"{SCRIPT}<img src=x onerror=alert(1)> 3"
    rates, verdict = patching.judged(table, confidence=0.95, alpha=0.05, fewest=15)
    texts = {f"p{i}": f"{SCRIPT} & 'quoted' {i}" for i in range(20)}
    cell = {"subject": SCRIPT, "prompts": SCRIPT, "ell": "02", "k_sub": "6", "source": "mean"}
    page = Page(patching_page.page(table, rates, verdict, texts, cell))
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    words = "".join(page.words)
    assert words.count(f"{SCRIPT}<img src=x onerror=alert(1)> 3") == 20
    assert f"{SCRIPT} & 'quoted' 7" in words


def test_what_an_sae_says_of_itself_is_no_markdown():
    made = audit_data.tables(0.9, 0.6)
    judged = audit_report.judge(*made, **audit_data.STATISTICS)
    evil = f"x` {SCRIPT} ![a](http://b/c)\n\n# d"
    facts = {"d_model": 8, "d_sae": 16, "k": 3, "format": "saelens", "activation": "topk"}
    facts |= {"source": evil, "trained_on": {"model": evil, "corpus": None}}
    page = audit_report.page("mine", facts, audit_data.scorecard(*made), judged)
    lines = [line for line in page.splitlines() if "script" in line]
    assert len(lines) == 2 and not any(line.startswith("# d") for line in page.splitlines())
    for line in lines:
        code = line.split("`")
        assert len(code) == 3 and "script" in code[1] and "http" in code[1]
