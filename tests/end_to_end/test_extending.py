"""Every page under docs/extending, performed on a finished study: exactly the new things run.

Beside it what code that counts, and wording that does not, makes run again.
"""

import os
import shutil
import subprocess
import sys
from collections import Counter

import pandas as pd
import pytest

import extending
import pipeline
from messages import (
    ATTENTION,
    BELOW_SAES,
    BELOW_SCORES,
    CALIBRATION,
    LEADERBOARD,
    VERDICTS,
    saes,
)
from pipeline import STUDY, planned
from small_study import study
from source_edits import add_line, reworded
from streamgauge.artifacts import keys

ADVANTAGE = "results/studies/tiny/advantage.csv"
TWIN = "results/twin/subject.json"
WITH_TWIN = {
    **STUDY,
    "subjects": {**STUDY["subjects"], "twin": {"source": "untrained", "path": "model"}},
}


@pytest.fixture(scope="module")
def repository(finished):
    """The finished study with the documentation, which some steps edit too."""
    shutil.copytree(pipeline.ROOT / "docs", finished / "docs")
    return finished


@pytest.fixture
def project(repository, tmp_path):
    """The finished study; what happens to its code and its configuration is undone afterwards."""
    folders = ("src", "workflow", "rules", "docs")
    for name in folders:
        shutil.copytree(repository / name, tmp_path / name)
    yield repository
    for name in folders:
        shutil.rmtree(repository / name)
        shutil.copytree(tmp_path / name, repository / name)
    pipeline.write(repository, STUDY)


PAGES = {
    "figure": {"figure alive"},
    "metric": saes(["score"]) | BELOW_SCORES,
    "proxy": LEADERBOARD | VERDICTS,
    "subject-source": set(),
    "sae-architecture": set(),
    "stage": set(),
}


def test_every_page_is_performed_here():
    assert {page.stem for page in extending.PAGES} == PAGES.keys()
    for page in extending.PAGES:
        assert extending.edits(page.stem) and "**4.**" not in page.read_text()


@pytest.mark.parametrize("page", PAGES)
def test_exactly_the_new_things_run(project, page):
    extending.perform(project, page)
    assert planned(project) == PAGES[page]


def test_what_is_asked_for_by_name_is_all_that_a_new_stage_or_source_runs(project):
    for page in ("stage", "subject-source"):
        extending.perform(project, page)
    pipeline.write(project, WITH_TWIN)
    new = {"advantage of proxies in study tiny", "subject twin: weights to safetensors"}
    assert planned(project, "all", ADVANTAGE, TWIN) == new


def test_a_new_architecture_counts_for_imported_saes_alone(project):
    imports = {"theirs": {"path": "theirs", "subject": "tiny", "corpus": "prose", "layer": 1}}
    config = study(STUDY, {"imports": imports})
    place = {"subject": "tiny", "corpus": "prose", "ell": "01"}
    trained, imported = "topk-x4-k2-t1024-mse-seed0", "theirs"

    def specs(sae):
        stages = ("evaluate", "sensitivity", "attention", "score")
        made_of = [*stages, "import_sae" if sae == imported else "train_sae"]
        keys.code.cache_clear()
        return {s: keys.spec(project, config, s, place | {"sae": sae}) for s in made_of}

    before = {sae: specs(sae) for sae in (trained, imported)}
    extending.perform(project, "sae-architecture")
    after = {sae: specs(sae) for sae in (trained, imported)}
    assert after[trained] == before[trained]
    changed = {s for s in after[imported] if after[imported][s] != before[imported][s]}
    assert changed == {"import_sae", "evaluate", "sensitivity", "attention"}


READ = """
import torch
from foreign_saes import M, dictionary_learning
from safetensors.torch import load_file, save_file
from sae_lens import SAE
from sae_lens.saes.abstopk_sae import AbsTopKSAE, AbsTopKSAEConfig
from streamgauge.sae import files, formats

x = torch.randn(40, 24, generator=torch.Generator().manual_seed(9))

# as dictionary_learning saves and computes it
weights = dictionary_learning(folder / "batch", "BatchTopKSAE", dict_class="BatchTopKSAE")
weights["b_dec"], threshold = weights.pop("bias"), 0.2
save_file(weights | {"threshold": torch.tensor(threshold)}, folder / "batch/ae.safetensors")
sae, known = formats.read(folder / "batch")
assert known["activation"] == "jumprelu" and sae.d_sae == M
z = torch.relu((x - weights["b_dec"]) @ weights["encoder.weight"].T + weights["encoder.bias"])
z = z * (z > threshold)
assert 0 < (z > 0).float().mean() < 0.5
torch.testing.assert_close(sae(x)[0], z @ weights["decoder.weight"].T + weights["b_dec"])

# as SAELens saves it, to us and back
theirs = AbsTopKSAE(AbsTopKSAEConfig(d_in=24, d_sae=48, k=5))
theirs.W_enc.data.normal_(generator=torch.Generator().manual_seed(3))
theirs.save_model(folder / "theirs")
sae, known = formats.read(folder / "theirs")
files.save(sae, folder / "ours", {"hook_name": "blocks.1.hook_resid_post"})
again = SAE.load_from_disk(folder / "ours")
assert known["activation"] == again.cfg.architecture() == "abstopk"
assert (sae.encode(x) < 0).any()
for other in (sae, again):
    assert torch.equal(other.encode(x), theirs.encode(x))
"""


def test_new_architectures_are_read_as_their_libraries_compute(project, tmp_path):
    extending.perform(project, "sae-architecture")
    paths = f"{project / 'src'}:{pipeline.ROOT / 'tests/support'}"
    program = f"from pathlib import Path\nfolder = Path({str(tmp_path)!r})\n{READ}"
    subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": paths}, check=True
    )


CODE = {
    "sae/step.py:top_latents": saes() | BELOW_SAES,
    "numerics/inference.py:percentile_interval": (
        saes(["score"]) | BELOW_SCORES | CALIBRATION | ATTENTION
    ),
}


@pytest.mark.parametrize("function", CODE)
def test_a_line_runs_what_computes_with_it(project, function):
    add_line(project, function)
    assert planned(project) == CODE[function]


def test_words_and_unused_functions_in_every_module_run_nothing(project):
    count = Counter()
    modules = [*(project / "src").rglob("*.py"), *(project / "workflow/scripts").glob("*.py")]
    for path in modules:
        path.write_bytes(reworded(path.read_text(), count))
    assert len(modules) > 80 and min(count.values()) > 5, count
    assert planned(project) == set()


def test_what_the_pages_add_works(project):
    """All of it in one run, for real; last, as its results are not undone."""
    for page in PAGES:
        extending.perform(project, page)
    pipeline.write(project, WITH_TWIN)
    results = project / "results/studies/tiny"
    drawn = [results / f"figures/alive.{suffix}" for suffix in ("svg", "png", "json")]
    wanted = [results / "grid.csv", results / "leaderboard.csv", project / ADVANTAGE, *drawn]
    targets = [str(path.relative_to(project)) for path in wanted]
    pipeline.snakemake(project, *targets, TWIN)
    assert all(path.stat().st_size for path in wanted)
    grid = pd.read_csv(results / "grid.csv")
    own = grid[grid.codec == "sae"]
    assert (own.perplexity_ratio > 1).any() and own.perplexity_ratio_low.notna().all()
    assert "downstream_over_same_position" in set(pd.read_csv(results / "leaderboard.csv").proxy)
    assert (pd.read_csv(project / ADVANTAGE).proxy != "r2").all()
    assert "untrained model, seed 0" in (project / TWIN).read_text()
