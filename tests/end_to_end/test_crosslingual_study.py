"""The cross-lingual suite from the command, on two models whose subspaces are known."""

import re

import numpy as np
import pandas as pd
import pytest
import yaml

import pipeline
from streamgauge.artifacts import manifest
from streamgauge.models import planted
from streamgauge.stores import layer_stores

STUDY = pipeline.ROOT / "studies/cross_lingual_planted.yaml"
SUBJECTS = {"planted-answer": "double dissociation", "planted-nothing": "null"}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The shipped study of both planted models, finished."""
    folder = pipeline.create(tmp_path_factory.mktemp("crosslingual"))
    pipeline.write(folder, yaml.safe_load(STUDY.read_text()))
    pipeline.snakemake(folder, "crosslingual")
    return folder


@pytest.fixture
def study(project):
    """The study; its overlay is put back afterwards."""
    yield project
    pipeline.write(project, yaml.safe_load(STUDY.read_text()))


def cells(project, subject):
    return project / f"results/{subject}/crosslingual/planted"


def answers(project, name):
    return pd.read_csv(project / f"results/studies/cross_lingual_planted/crosslingual_{name}.csv")


@pytest.mark.parametrize("source", ["mean", "ot"])
@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_verdict_is_what_was_planted(project, subject, source):
    path = cells(project, subject) / f"L01-k16/patching-{source}"
    verdict = manifest.read(path.with_suffix(".json"))["facts"]["verdict"]
    assert verdict["verdict"] == SUBJECTS[subject], verdict["reason"]
    assert verdict["n_baseline_correct"] == verdict["n_problems"] == planted.N_PROBLEMS
    assert verdict["n_random"] == 19
    answer = verdict["halves"]["answer"]
    assert (answer["rank"] == 1) == (subject == "planted-answer")


def test_every_output_is_kept_and_readable(project):
    path = cells(project, "planted-answer") / "L01-k16/patching-mean"
    table = pd.read_parquet(path.with_suffix(".parquet"))
    runs = table.groupby(["condition", "draw"])
    assert (runs.size() == planted.N_PROBLEMS).all()
    assert {"none", "full", "z", "z_perp", "random", "random_perp", "norm_matched"} <= set(
        table.condition
    )
    assert runs.ngroups == 2 + 2 + 6 + 3 * 19
    page = path.with_suffix(".html").read_text()
    assert table[table.condition == "z"].text.iloc[0].strip() in page
    assert "double dissociation" in page.lower() and "<script" not in page


def test_the_basis_is_the_planted_subspace(project):
    for subject, carries in zip(SUBJECTS, planted.CARRIES, strict=True):
        store = layer_stores.Store(project / f"results/{subject}/crosslingual/basis/L01-k16.zarr")
        truth, basis = planted.truth(carries).basis, store.array("basis")[:]
        np.testing.assert_allclose(basis.T @ basis, truth.T @ truth, atol=1e-5)


def test_the_bridge_is_the_planted_rotation(project):
    table = answers(project, "bridge").query("method == 'least_squares'").set_index("subject")
    carries, nothing = (table.loc[subject] for subject in SUBJECTS)
    assert carries.r2_loo > 0.999 and carries.orthogonality_error < 0.01
    assert carries.r2_loo > max(carries.permuted_high, carries.random_high)
    assert nothing.r2_loo < 0.2 and nothing.p_permuted > 0.05


def test_ard_tells_shared_dimensions_from_those_of_language(project):
    truth = planted.truth("answer")
    store = layer_stores.Store(cells(project, "planted-answer") / "L01/ard-0.01.zarr")
    log_lengthscale, shared = store.array("log_lengthscale")[:], store.array("z")[:].astype(bool)
    assert log_lengthscale[list(truth.shared)].max() < log_lengthscale[list(truth.language)].min()
    assert shared[list(truth.shared)].all() and not shared[list(truth.language)].any()


def test_findings_name_both_models_and_state_their_nulls(project):
    folder = project / "results/studies/cross_lingual_planted"
    page = (folder / "crosslingual.html").read_text()
    text = re.sub(r"<[^>]+>", " ", page)
    for subject in SUBJECTS:
        assert subject in text
    for word in ("double dissociation", "random", "minimum", "strong", "gold"):
        assert word in text.lower(), word


def test_nothing_runs_again_and_one_change_reruns_what_depends_on_it(study):
    assert pipeline.planned(study, "crosslingual") == set()
    base = yaml.safe_load(STUDY.read_text())
    page = {
        "cross-lingual tables of study cross_lingual_planted",
        "cross-lingual findings of study cross_lingual_planted",
    }
    figures = {
        f"figure crosslingual_{name}"
        for name in ("geometry", "updates", "patching", "ard", "bridge")
    }
    where = "planted layer 01"

    def rerun(**changes):
        pipeline.write(study, {**base, **changes})
        return pipeline.planned(study, "crosslingual")

    assert rerun(patching={**base["patching"], "max_new_tokens": 5}) == page | figures | {
        f"patching Z ({source}), {subject} {where} k_sub 16"
        for subject in SUBJECTS
        for source in ("mean", "ot")
    }
    assert rerun(bridge={"ridge": 0.1}) == page | figures | {
        f"bridge inside Z, {subject} {where} k_sub 16" for subject in SUBJECTS
    }
    suite = {**base["crosslingual"], "subjects": ["planted-answer"]}
    fewer = rerun(crosslingual=suite)
    assert fewer == page | figures | {"figure crosslingual_spectrum"}
    more = rerun(crosslingual={**suite, "k_sub": [16, 8]})
    assert more == fewer | {
        "basis of Z, planted-answer layer 01 k_sub 8",
        f"separation in Z, planted-answer {where} k_sub 8",
        f"updates inside Z, planted-answer {where} k_sub 8",
        f"bridge inside Z, planted-answer {where} k_sub 8",
        f"patching Z (mean), planted-answer {where} k_sub 8",
        f"patching Z (ot), planted-answer {where} k_sub 8",
    }


def test_the_target_says_when_there_is_nothing_to_make(study):
    pipeline.write(study, pipeline.STUDY)
    done = pipeline.snakemake(study, "crosslingual", "--dry-run", check=False)
    assert done.returncode and "crosslingual.subjects is empty" in done.stdout
