"""Bad input, through the real Snakemake: one clear error, a non-zero exit, nothing lost."""

import shutil

import pytest
import torch

import pipeline
from pipeline import STUDY, snakemake


def refused(folder, study, *arguments):
    """Run a study that must fail; what was printed."""
    pipeline.write(folder, study)
    done = snakemake(folder, *arguments, check=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stdout, done.stdout[-3000:]
    return done.stdout


def grid(**changes):
    return {**STUDY, "grid": {**STUDY["grid"], **changes}}


@pytest.mark.parametrize(
    ("study", "said"),
    [
        (
            grid(seedz=[0], k=[0]),
            ["grid.seedz", "nearest: seeds", "grid.k[0] is 0", "≥ 1"],
        ),
        (
            {**grid(corpora=["proze"]), "sae": {**STUDY["sae"], "trainer": "natve"}},
            ["grid.corpora[0] is 'proze'", "nearest: prose", "sae.trainer", "native"],
        ),
        (
            grid(layers={"tiny": [1, 9]}, k=[2, 1000]),
            ["grid.layers.tiny[1] is 9", "layers 0 to 3", "grid.k[1] is 1000", "128 latents"],
        ),
    ],
    ids=["keys and numbers", "names", "the subject's shape"],
)
def test_every_fault_in_the_config_is_named_before_any_job(finished, study, said):
    out = refused(finished, study, "--dry-run")
    assert all(text in out for text in said), out
    assert "Job stats" not in out


@pytest.fixture(scope="module")
def troubled(tmp_path_factory):
    """One run, kept going, of a study whose subjects and corpora are each bad in their own way."""
    folder = pipeline.create(tmp_path_factory.mktemp("troubled"))
    shutil.copytree(folder / "model", folder / "pickled")
    (folder / "pickled/model.safetensors").unlink()
    torch.save({}, folder / "pickled/pytorch_model.bin")
    pipeline.prose(folder / "short.txt", paragraphs=3)
    study = grid(subjects=["tiny", "pickled"], layers={"tiny": [7], "pickled": [1]})
    study["grid"]["corpora"] = ["prose", "short"]
    study["subjects"] = {**STUDY["subjects"], "pickled": {"source": "local", "path": "pickled"}}
    study["corpora"] = {
        **STUDY["corpora"],
        "short": {**STUDY["corpora"]["prose"], "paths": ["short.txt"]},
    }
    # SAEs and spectra meet every fault; what lies above them would fail for want of them
    return folder, refused(folder, study, "--keep-going", "saes", "spectra")


@pytest.mark.parametrize(
    "said",
    [
        ["pytorch_model.bin", "safetensors"],
        ["short.txt", "train_sequences"],
        ["layer 7 does not exist", "layers 0 to 3", "grid.layers"],
    ],
    ids=["pickled weights", "corpus too short", "no such layer"],
)
def test_a_fault_found_by_a_job_is_one_line(troubled, said):
    _, out = troubled
    lines = [line for line in out.splitlines() if line.startswith("error: ")]
    assert any(all(text in line for text in said) for line in lines), lines


def test_what_was_computed_before_the_fault_stays(troubled):
    folder, _ = troubled
    for name in ("subject.json", "prose/tokens-train.json", "prose/spectra.json"):
        assert (folder / "results/tiny" / name).is_file()
