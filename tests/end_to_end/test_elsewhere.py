"""The workflow away from its checkout: another folder, another workflow, an installed wheel."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

import pipeline

SAE = "results/tiny/prose/L01/sae/topk-x4-k2-t1024-mse-seed0"
CURVES = "results/studies/tiny/figures/loss_curves"
PROMPTS = "results/tiny/crosslingual/planted"
# what is trained, what is drawn, and what is made of a file that ships with the workflow
TARGETS = [f"{SAE}/sae.json", f"{CURVES}.svg", f"{PROMPTS}/prompts.json"]
PAIRS = {"path": "resources/prompts/planted.yaml", "target": "en", "source": "zh", "shots": 0}
STUDY = {
    **pipeline.STUDY,
    "grid": {**pipeline.STUDY["grid"], "layers": {"tiny": [1]}, "k": [2]},
    "prompts": {"planted": {**PAIRS, "limit": None}},
}
PARENT = """
configfile: "mine.yaml"

module streamgauge:
    snakefile: "{snakefile}"
    config: config

use rule * from streamgauge as streamgauge_*

rule mine:
    default_target: True
    input: {targets}
    output: "mine.txt"
    shell: "wc -c {{input:q}} > {{output}}"
"""


def run(words, folder, python=sys.executable, check=True, stderr=subprocess.PIPE, **variables):
    """Run a command without this process' view of the library; the completed process."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **variables}
    env["PATH"] = os.pathsep.join([str(Path(python).parent), env["PATH"]])
    done = subprocess.run(
        [str(word) for word in words],
        cwd=folder,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=stderr,
        timeout=1200,
    )
    assert not check or done.returncode == 0, f"{done.stdout[-3000:]}{done.stderr or ''}"
    return done


def snakemake(*words, folder, python=sys.executable, **kwargs):
    command = [python, "-m", "snakemake", "--cores", "2", *words]
    return run(command, folder, python, stderr=subprocess.STDOUT, **kwargs)


def planned(done):
    """Whether a dry run plans any job."""
    return "Nothing to be done" not in done.stdout


def environment(folder, wheel=None):
    """The Python of a new virtual environment with the packages of this one, and a wheel."""
    run([sys.executable, "-m", "venv", "--without-pip", folder], folder.parent)
    python = folder / "bin/python"
    packages = next((folder / "lib").glob("python*/site-packages"))
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    if wheel:
        install = ["-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index"]
        run([sys.executable, *install, wheel], folder.parent)
    return python


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return pipeline.checkout(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def elsewhere(checkout, tmp_path_factory):
    """A folder with results of the checkout's workflow, started from a third folder."""
    folder = pipeline.fill(tmp_path_factory.mktemp("elsewhere"), STUDY)
    words = ["-s", checkout / "Snakefile", "-d", folder, "--configfile", folder / "study.yaml"]
    snakemake(*TARGETS, *words, folder=tmp_path_factory.mktemp("started from here"))
    return folder


@pytest.fixture
def user(elsewhere, tmp_path):
    """A new folder with what the study needs and no results."""
    for name in ("prose.txt", "study.yaml"):
        shutil.copy2(elsewhere / name, tmp_path)
    shutil.copytree(elsewhere / "model", tmp_path / "model", copy_function=shutil.copy2)
    return tmp_path


@pytest.fixture(scope="module")
def installed(built_wheel, tmp_path_factory):
    """The Python of an environment with the wheel in it."""
    return environment(tmp_path_factory.mktemp("installed") / "venv", built_wheel)


# --- another folder -----------------------------------------------------------------------------
def test_all_that_is_written_lies_in_the_other_folder(checkout, elsewhere):
    assert all((elsewhere / target).is_file() for target in TARGETS)
    assert (elsewhere / "logs/tiny/subject.log").is_file() and (elsewhere / ".snakemake").is_dir()
    assert not {"results", "logs", ".snakemake"} & {path.name for path in checkout.iterdir()}


def test_nothing_is_made_again_there(checkout, elsewhere, tmp_path):
    """The workflow's profile is found: a script that is newer than results means nothing."""
    for script in (checkout / "workflow/scripts").iterdir():
        script.touch()
    words = ["-s", checkout / "Snakefile", "-d", elsewhere]
    words += ["--configfile", elsewhere / "study.yaml"]
    assert not planned(snakemake("-n", *TARGETS, *words, folder=tmp_path))


# --- another workflow ---------------------------------------------------------------------------
@pytest.fixture
def parent(checkout, user):
    """A workflow of the user's own that has this one as a module."""

    def write(targets, more=""):
        text = PARENT.format(snakefile=checkout / "Snakefile", targets=targets)
        text = text.replace("    config: config\n", f"    config: config\n{more}")
        (user / "Snakefile").write_text(text)
        return user

    (user / "study.yaml").rename(user / "mine.yaml")
    return write


def test_a_module_fills_in_the_defaults_and_makes_the_same(parent, elsewhere):
    folder = parent(", ".join(map(repr, TARGETS)))
    done = snakemake(folder=folder)
    assert "rules that are not present" not in done.stdout
    assert f"{SAE}/sae.json" in (folder / "mine.txt").read_text()
    assert pipeline.manifests(folder) == pipeline.manifests(elsewhere)


def test_a_modules_rules_and_targets_have_its_name(parent):
    folder = parent("rules.streamgauge_figures.input")
    listed = snakemake("--list-rules", folder=folder).stdout.split()
    assert {"streamgauge_all", "streamgauge_train_sae", "streamgauge_verify", "mine"} <= set(listed)
    assert "streamgauge_train_sae" in snakemake("-n", folder=folder).stdout


@pytest.mark.parametrize("how", ["prefix: 'sub'", "replace_prefix: {'results/': 'mine/'}"])
def test_a_module_with_a_prefix_is_refused(parent, how):
    done = snakemake("-n", folder=parent("[]", f"    {how}\n"), check=False)
    assert done.returncode == 1 and "streamgauge as a module takes no prefix" in done.stdout


def test_a_modules_configuration_is_checked(parent):
    folder = parent("[]")
    mine = yaml.safe_load((folder / "mine.yaml").read_text()) | {"sea": {"lr": 1}}
    (folder / "mine.yaml").write_text(yaml.safe_dump(mine))
    done = snakemake("-n", folder=folder, check=False)
    assert done.returncode == 1 and "sea is not a key" in done.stdout


def test_the_catalogues_workflow_is_the_installed_one(installed, user):
    pipe = installed.parent.parent.glob("lib/*/site-packages/streamgauge/pipeline")
    words = ["-s", next(pipe) / "workflow/Snakefile", "--configfile", "study.yaml"]
    done = snakemake("-n", *words, folder=user, python=installed)
    assert "train_sae" in done.stdout


# --- an installed wheel -------------------------------------------------------------------------
def test_the_wheel_runs_the_study_and_its_commands(installed, user, elsewhere):
    def streamgauge(*words, **kwargs):
        return run([installed.parent / "streamgauge", *words], user, installed, **kwargs).stdout

    snakefile = Path(streamgauge("--snakefile").strip())
    assert snakefile.is_file() and installed.parent.parent in snakefile.parents
    overlay = ["--configfile", "study.yaml"]
    workflow = ["-s", snakefile, *overlay]
    snakemake(*TARGETS, *workflow, folder=user, python=installed)
    assert pipeline.manifests(user) == pipeline.manifests(elsewhere)

    assert "study tiny" in streamgauge("estimate", *overlay)
    assert "up to date" in streamgauge("inspect", SAE, *overlay)
    assert streamgauge("verify", *overlay).endswith("all is well\n")
    (user / f"{SAE}/training.csv").write_text("other\n")
    found = streamgauge("verify", *overlay, check=False).splitlines()
    assert found[-1].endswith("1 problem")
    # the remedy works where it is given
    remedy = found[0].partition("Remedy: ")[2].replace("&& snakemake", "&& python -m snakemake")
    run(["bash", "-c", remedy], user, installed)
    assert streamgauge("verify", *overlay).endswith("all is well\n")
    assert not planned(snakemake("-n", *TARGETS, *workflow, folder=user, python=installed))


def test_an_audit_by_the_wheel(installed, user, elsewhere):
    words = ["audit", elsewhere / SAE, "--model", "model", "--corpus", "prose.txt", "--layer", "1"]
    words += ["--context-length", "16", "--eval-sequences", "4", "--device", "cpu", "--name", "it"]
    done = run([installed.parent / "streamgauge", *words], user, installed)
    assert "R²" in done.stdout
    assert {path.name for path in (user / "results").iterdir()} > {"audits"}


# --- folders with odd names ---------------------------------------------------------------------
@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A checkout below a folder with a space and an apostrophe, its environment inside."""
    folder = tmp_path_factory.mktemp("odd") / "it's a dir/streamgauge"
    folder.mkdir(parents=True)
    pipeline.fill(pipeline.checkout(folder), STUDY)
    environment(folder / ".venv")
    return folder


def test_a_folder_with_a_space_and_an_apostrophe(odd):
    python = odd / ".venv/bin/python"
    done = snakemake(
        "results/tiny/subject.json", "--configfile", "study.yaml", folder=odd, python=python
    )
    assert "1 of 1 steps" in done.stdout
    command = [python, "-m", "streamgauge.cli.main", "verify", "--configfile", "study.yaml"]
    assert "all is well" in run(command, odd, python, PYTHONPATH=str(odd / "src")).stdout


def test_an_environment_that_jobs_cannot_be_started_with_is_refused(odd, tmp_path):
    words = ["-n", "-s", odd / "Snakefile", "-d", tmp_path]
    words += ["--configfile", odd / "study.yaml"]
    done = snakemake(*words, folder=tmp_path, python=odd / ".venv/bin/python", check=False)
    assert done.returncode == 1 and "make env VENV=" in done.stdout


# --- snakemake verify ---------------------------------------------------------------------------
def test_verify_checks_every_time_and_fails_with_what_it_finds(finished_once, tmp_path):
    folder = tmp_path / "it's a copy"
    shutil.copytree(finished_once, folder, symlinks=True)
    for _ in range(2):
        done = pipeline.snakemake(folder, "verify")
        assert "all is well" in done.stdout
    weights = next((folder / "results").rglob("sae_weights.safetensors"))
    before = weights.stat()
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    done = pipeline.snakemake(folder, "verify", check=False)
    assert done.returncode == 1
    said = (folder / "logs/verify.log").read_text()
    assert "sae_weights.safetensors has changed" in said and said in done.stdout
