"""The shipped studies: the SAEs they ask for, and the answers of one small enough to run here."""

import copy
import re

import pandas as pd
import pytest

import pipeline
import tiny_models
from streamgauge.artifacts import manifest
from streamgauge.planning import config

STUDIES = pipeline.ROOT / "studies"
# name -> SAEs, and what every seed rule must come to
SAES = {"fast2": 36, "fast3": 12, "token_budget": 32}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return pipeline.create(tmp_path_factory.mktemp("studies"))


def load(name):
    return config.load([STUDIES / f"{name}.yaml"])


def swapped(folder, study):
    """The study with tiny random GPT-NeoX models and a text file in the place of its own."""
    study = copy.deepcopy(study)
    for i, (name, block) in enumerate(study["subjects"].items()):
        n_layers = block["expect"]["n_layers"]
        path = tiny_models.tiny_gpt_neox(folder / name, layers=n_layers, d_model=32 * (i + 1))
        study["subjects"][name] = {"source": "local", "path": path.name}
    for name in study["corpora"]:
        text = {**pipeline.STUDY["corpora"]["prose"], "train_sequences": 32}
        study["corpora"][name] = {**text, "eval_sequences": 4}
    grid = study["grid"]
    budgets = {str(tokens): 256 * (i + 1) for i, tokens in enumerate(grid["tokens"])}
    grid["tokens"] = list(budgets.values())
    grid["seeds_at"] = {
        str(budgets[tokens]): seeds for tokens, seeds in grid.get("seeds_at", {}).items()
    }
    for key in ("sae", "spectra", "critics", "statistics"):
        study[key] = pipeline.STUDY[key]
    return study | {"device": "cpu", "attention": {"sequences": 1}}


@pytest.mark.parametrize("name", SAES)
def test_a_shipped_study_asks_for_the_saes_it_names(checkout, name):
    arguments = ("saes", "--dry-run", "--configfile", f"studies/{name}.yaml")
    out = pipeline.snakemake(checkout, *arguments).stdout
    trained = re.findall(
        r"^Job \d+: train SAE (\S+) layer (\d+) topk-x32-k(\d+)-t(\d+)-mse", out, re.M
    )
    assert len(trained) == SAES[name]
    grid = load(name)["grid"]
    assert {(subject, int(layer)) for subject, layer, *_ in trained} == {
        (subject, layer) for subject in grid["subjects"] for layer in grid["layers"][subject]
    }
    assert {int(k) for *_, k, _ in trained} == set(grid["k"])


def test_the_token_sweep_has_the_published_number_of_seeds(checkout):
    arguments = ("saes", "--dry-run", "--configfile", "studies/token_budget.yaml")
    out = pipeline.snakemake(checkout, *arguments).stdout
    per_cell = pd.Series(re.findall(r"^Job \d+: train SAE pythia-70m .*-k8-t(\d+)-", out, re.M))
    assert per_cell.value_counts().to_dict() == {"10000000": 4, "50000000": 1, "100000000": 3}


def test_what_the_studies_share_is_shared_on_disk():
    """Equal blocks have equal specs: an SAE of fast2 serves fast3."""
    fast2, fast3 = load("fast2"), load("fast3")
    for key in ("corpora", "sae", "harvest", "evaluate", "probes", "gradients", "critics"):
        assert fast2[key] == fast3[key], key
    for name in fast2["subjects"]:
        assert fast2["subjects"][name] == fast3["subjects"][name]


@pytest.mark.study
@pytest.mark.parametrize("name", SAES)
def test_a_shipped_study_runs_with_its_subjects_swapped(tmp_path, name):
    """Minutes each: `pytest -m study`."""
    folder = pipeline.create(tmp_path)
    study = swapped(folder, load(name))
    pipeline.write(folder, study)
    pipeline.snakemake(folder, timeout=3600)
    answers = folder / f"results/studies/{study['study']}"
    grid = pd.read_csv(answers / "grid.csv")
    assert len(grid[(grid.codec == "sae") & (grid.token_set == "all")]) == SAES[name]
    deltas = pd.read_csv(answers / "deltas.csv")
    assert set(deltas.depth) == set(study["grid"]["depths"])
    assert set(deltas.k) == set(study["grid"]["k"])
    hypotheses = manifest.read(answers / "verdicts.json")["facts"]["hypotheses"]
    assert list(hypotheses) == ["H0", "H1", "H2", "H3"]


def test_the_cross_lingual_studies_ask_for_what_they_name(checkout):
    """Every combination of layers, k_sub and sources; ARD at its own layers and penalties."""
    wanted = {"cross_lingual_qwen": (8, 30), "cross_lingual_gemma": (4, 2)}
    for name, counts in wanted.items():
        arguments = ("crosslingual", "--dry-run", "--configfile", f"studies/{name}.yaml")
        out = pipeline.snakemake(checkout, *arguments).stdout
        kinds = ("patching Z", "ARD-MMD")
        assert tuple(len(re.findall(rf"^Job \d+: {kind}", out, re.M)) for kind in kinds) == counts


@pytest.mark.study
def test_the_qwen_study_runs_on_a_tiny_random_qwen(tmp_path):
    """All of it, with the model and the patience swapped: `pytest -m study`."""
    folder = pipeline.create(tmp_path)
    study = load("cross_lingual_qwen")
    (name,) = study["subjects"]
    n_layers = study["subjects"][name]["expect"]["n_layers"]
    tiny_models.tiny_qwen2(folder / "tiny", layers=n_layers, d_model=128, n_ctx=4096)
    study["subjects"][name] = {"source": "local", "path": "tiny"}
    study["prompts"]["math"]["limit"] = 16
    study |= {"device": "cpu", "resources": {}, "ard": {"steps": 40, "permutations": 4}}
    study["patching"]["max_new_tokens"] = 8
    pipeline.write(folder, study)
    pipeline.snakemake(folder, "crosslingual", timeout=3600)
    answers = folder / "results/studies/cross_lingual_qwen"
    patching = pd.read_csv(answers / "crosslingual_patching.csv")
    cells = patching[["layer", "k_sub", "source"]].drop_duplicates()
    assert len(cells) == 8 and (patching[patching.over == "all"].n == 16).all()
    ard = pd.read_csv(answers / "crosslingual_ard.csv")
    assert len(ard) == 30 and set(ard.layer) == set(study["crosslingual"]["ard_layers"][name])
    # random weights know nothing: no half of a double dissociation may hold
    findings = manifest.read(answers / "crosslingual.json")["facts"]
    (block,) = findings["blocks"]
    assert "double dissociation" not in {v["verdict"] for v in block["verdicts"]}


# two models of one family, two budgets, two seeds: the smallest study that can compare scales
FAMILY = {
    **pipeline.STUDY,
    "study": "family",
    "grid": {
        **pipeline.STUDY["grid"],
        "subjects": ["small", "big"],
        "layers": {"small": [0], "big": [0]},
        "k": [2],
        "tokens": [256, 1024],
        "seeds": [0, 1],
    },
    "subjects": {
        "small": {"source": "scratch", "d_model": 16, "n_layers": 2, "n_heads": 2},
        "big": {"source": "scratch", "d_model": 32, "n_layers": 2, "n_heads": 2},
    },
    "pretrain": {
        "corpus": "prose",
        "vocab_size": 300,
        "context_length": 16,
        "tokens": 40000,
        "batch_size": 32,
        "lr": 0.01,
    },
}


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    folder = pipeline.create(tmp_path_factory.mktemp("family"))
    pipeline.write(folder, FAMILY)
    pipeline.snakemake(folder, "verdict")
    return folder


def test_a_family_pretrained_here_is_compared_across_scale(family):
    results = family / "results"
    for name in ("small", "big"):
        facts = manifest.read(results / name / "subject.json")["facts"]
        assert facts["eval_loss_nats"] < facts["unigram_entropy_nats"]
    tokens = [
        manifest.read(results / name / "prose/tokens-eval.json")["facts"]["tokens_sha256"]
        for name in ("small", "big")
    ]
    assert tokens[0] == tokens[1]
    deltas = pd.read_csv(results / "studies/family/deltas.csv", dtype={"seed": str})
    assert len(deltas) == 2 * 2 * 3  # budgets x token sets x (two seeds and their mean)
    assert (deltas.small == "small").all() and (deltas.big == "big").all()
    assert abs(deltas.gap - (deltas.d_r2 - deltas.d_ce_rec)).max() < 1e-12
    over = deltas.seed == "all"
    assert deltas.loc[over, "d_ce_rec_seed_low"].notna().all()
    assert deltas.loc[~over, "d_ce_rec_seed_low"].isna().all()


def test_its_verdicts_are_adjudicated_in_order(family):
    facts = manifest.read(family / "results/studies/family/verdicts.json")["facts"]
    verdicts = {name: facts["hypotheses"][name]["verdict"] for name in facts["order"]}
    assert list(verdicts) == ["H0", "H1", "H2", "H3"]
    assert all(facts["hypotheses"][name]["reason"] for name in verdicts)
    if "not adjudicated" in (verdicts["H0"], verdicts["H1"]):
        assert verdicts["H2"] == verdicts["H3"] == "not adjudicated"
    page = (family / "results/studies/family/verdicts.html").read_text()
    assert "not adjudicated" in page or "supported" in page
