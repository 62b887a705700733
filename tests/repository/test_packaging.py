"""What leaves the repository: the wheel, the recipes of environments, the catalogue's files."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import streamgauge
from streamgauge.cli import main
from streamgauge.planning import config

ROOT = Path(__file__).resolve().parents[2]
# what the workflow needs beside the library
WORKFLOW = ["Snakefile", "config.yaml", "profiles", "resources", "rules", "studies", "workflow"]
HASHED = (ROOT / "constraints-hashed.txt").read_text()
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))


def python(*arguments, **kwargs):
    """What Python prints, run on the checkout's library from the root of the repository."""
    command = [sys.executable, *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=ROOT, env=env, text=True, capture_output=True, **kwargs)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def names(wheel):
    """The files of a wheel, without its metadata."""
    found = zipfile.ZipFile(wheel).namelist()
    return {name for name in found if ".dist-info/" not in name}


def files(folder):
    """The files below a folder of the repository, or the file itself."""
    found = folder.rglob("*") if folder.is_dir() else [folder]
    return {path for path in found if path.is_file() and "__pycache__" not in path.parts}


def test_every_pin_has_the_digests_of_its_files():
    """What `make env` installs is compared with them; torch is as many files as hardware."""
    digests = r"(?: \\\n    --hash=sha256:[0-9a-f]{64})+"
    found = dict(re.findall(rf"^([\w.-]+)==(\S+){digests}$", HASHED, re.M))
    assert found == {name: pin for name, pin in PINS.items() if name != "torch"}
    assert "--require-hashes -r constraints-hashed.txt" in (ROOT / "Makefile").read_text()


def test_the_wheel_holds_the_library_and_the_workflow(built_wheel):
    library = {path.relative_to(ROOT / "src") for path in files(ROOT / "src/streamgauge")}
    workflow = {path.relative_to(ROOT) for name in WORKFLOW for path in files(ROOT / name)}
    below = {Path("streamgauge/pipeline") / path for path in workflow}
    assert names(built_wheel) == {path.as_posix() for path in library | below}
    assert "streamgauge/py.typed" in names(built_wheel)


def test_an_editable_install_copies_nothing(tmp_path):
    build = "from hatchling.build import build_editable; import sys; build_editable(sys.argv[1])"
    python("-c", build, tmp_path)
    (wheel,) = tmp_path.iterdir()
    assert names(wheel) == {"_streamgauge.pth"}
    assert zipfile.ZipFile(wheel).read("_streamgauge.pth").decode() == str(ROOT / "src")


def test_the_version_is_the_same_everywhere(built_wheel, capsys):
    version = streamgauge.__version__
    assert built_wheel.name.startswith(f"streamgauge-{version}-")
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    changes = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert changes[0] == version
    with pytest.raises(SystemExit) as ended:
        main.main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"streamgauge {version}\n"


def test_importing_the_library_loads_nothing_heavy():
    heavy = "{'numpy', 'torch', 'pandas', 'matplotlib', 'transformers'}"
    assert python("-c", f"import streamgauge, sys; print({heavy} & set(sys.modules))") == "set()\n"


# --- environments -------------------------------------------------------------------------------
def test_every_direct_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    wanted = {
        re.match(r"[\w-]+", name)[0]
        for names in [project["dependencies"], *extras]
        for name in names
    }
    assert {plain(name) for name in wanted - {"streamgauge"}} <= {plain(name) for name in PINS}


def plain(name):
    return name.lower().replace("_", "-")


def test_conda_installs_what_make_installs():
    text = (ROOT / "environment.yaml").read_text()
    by_pip = yaml.safe_load(text)["dependencies"][-1]["pip"]
    assert by_pip == ["--constraint constraints.txt", "--editable .[test]"]
    pins = re.findall(r"([\w.-]+)==(\S+)", text)
    assert pins and all(PINS[name] == version for name, version in pins)


@pytest.mark.parametrize("recipe", ["Dockerfile", "streamgauge.def"])
def test_containers_are_given_all_that_a_build_reads(recipe):
    text = (ROOT / "containers" / recipe).read_text()
    if recipe == "Dockerfile":
        lines = re.findall(r"^COPY (.*) (\S+)$", text, re.M)
        given = {name: to for many, to in lines for name in many.split()}
        assert all(to == "/build/" or to == f"/build/{name}" for name, to in given.items())
    else:
        part = text.partition("%files\n")[2].partition("\n%")[0]
        given = dict(line.split() for line in part.splitlines() if line)
        assert all(to == f"/build/{name}" for name, to in given.items())
    built_from = ["pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "src"]
    assert given.keys() == {"constraints.txt", *built_from, *WORKFLOW}


def test_both_containers_run_the_same_commands():
    docker = (ROOT / "containers/Dockerfile").read_text()
    apptainer = (ROOT / "containers/streamgauge.def").read_text()
    run = re.search(r"^RUN (.*?)\n\n", docker, re.M | re.S).group(1)
    post = apptainer.partition("%post\n")[2].partition("\n%")[0]
    commands = [line.strip() for line in post.splitlines() if line and "#" not in line]
    assert [part.strip() for part in run.replace("\\\n", "").split("&&")] == commands
    base = re.search(r"^FROM (\S+)$", docker, re.M).group(1)
    assert f"From: {base}\n" in apptainer


# --- Snakemake's workflow catalogue -------------------------------------------------------------
def test_the_catalogue_finds_what_it_asks_for():
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert usage.keys() == {"mandatory-flags", "software-stack-deployment", "report"}
    assert usage["mandatory-flags"].keys() == {"desc", "flags"}
    assert (ROOT / "workflow/Snakefile").is_file()  # a folder `workflow` without one is passed over
    readme = (ROOT / "README.md").read_text().lower()
    assert "snakemake" in readme and "workflow" in readme


def test_the_configuration_page_shows_a_legal_overlay(tmp_path):
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "config/README.md").read_text(), re.S)
    (tmp_path / "config.yaml").write_text(block)
    config.validate(config.load([ROOT / "config.yaml", tmp_path / "config.yaml"]))
