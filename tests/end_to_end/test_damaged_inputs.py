"""Damage never becomes a result: every job refuses every damaged input, and says what to do."""

import contextlib
import random
import re
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import yaml

import damages
import pipeline
import planned_jobs
from streamgauge.artifacts import catalogue, manifest, verify
from streamgauge.artifacts.stages import STAGES
from streamgauge.artifacts.worker import Worker
from streamgauge.base.paths import LAYER, SUBJECT, sae_folder
from streamgauge.planning import config

L01 = Path(LAYER.format(subject="tiny", corpus="prose", ell="01"))
MODEL = Path(SUBJECT.format(subject="tiny")) / "model"
K2, K4 = (
    L01 / "sae" / sae_folder(expansion=4, k=k, tokens=1024, objective="mse", seed=0) for k in (2, 4)
)


@pytest.fixture(scope="module")
def project(finished):
    """The finished study, as the working directory."""
    with contextlib.chdir(finished):
        yield finished


# --- the scenario, step by step ------------------------------------------------------------------
def flip_weights():
    """One bit of the weights."""
    weights = K2 / "sae_weights.safetensors"
    weights.write_bytes(damages.spoilt(weights.read_bytes(), "flip", random.Random(1)))
    return again(K2 / "per_sequence.json")


def swap_weights():
    """Those of two sparsities."""
    damages.exchange(*(folder / "sae_weights.safetensors" for folder in (K2, K4)))
    return again(*(folder / "per_sequence.json" for folder in (K2, K4)))


def swap_folders():
    """Two SAEs, manifests and scores included."""
    damages.exchange(K2, K4)
    return again(K2 / "per_sequence.json")


def forget_the_tokenizer():
    """Without its configuration a tokenizer gives other tokens."""
    (MODEL / "tokenizer_config.json").unlink()
    return again(Path("results/tiny/prose/tokens-eval.json"))


def again(*manifests):
    """Remove them; what to ask for, so that they and all that needs them is looked at again."""
    for path in manifests:
        path.unlink()
    return [*map(str, manifests), "all"]


def remedies(text):
    """The lines of jobs about damage, and the commands that they give."""
    lines = {line for line in text.splitlines() if "Make it anew: " in line}
    found = [re.search(r"Make it anew: (rm -r?f .+), then run snakemake again", x) for x in lines]
    return lines, {match.group(1) for match in found}


def launder(project, damage, named, maker):
    """Damage, run, obey what is printed until all is made: nothing but the original is left."""
    before = pipeline.digests(project)
    asked = damage()
    damaged = pipeline.digests(project)
    first = pipeline.snakemake(project, *asked, check=False)
    lines, commands = remedies(first.stdout)
    assert first.returncode and "Traceback" not in first.stdout, first.stdout
    assert any(f"{named}: " in x and f"rule {maker} " in x for x in lines), first.stdout
    assert f"rm -f {named}" in commands
    # of what is there nothing has changed: no number has come out of it
    after = pipeline.digests(project)
    assert {path: damaged.get(path) for path in after} == after
    for _ in range(6):
        for command in commands:
            assert pipeline.shell(project, command).returncode == 0
        done = pipeline.snakemake(project, *asked, check=False)
        if done.returncode == 0:
            break
        commands = remedies(done.stdout)[1]
        assert commands, done.stdout
    return before


def all_is_well(project):
    """What `verify` says, but the last line, if all is well."""
    valid = config.validate(config.load([project / "config.yaml", project / "study.yaml"]))
    said = []
    flags = ["--configfile", "study.yaml"]
    return verify.verify(["results"], project, valid, said.append, flags), said


def test_a_flipped_bit_is_not_laundered(project):
    before = launder(project, flip_weights, K2 / "sae.json", "train_sae")
    assert pipeline.digests(project) == before
    well, said = all_is_well(project)
    assert well, said


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("damage", "named", "maker"),
    [
        (swap_weights, K2 / "sae.json", "train_sae"),
        (swap_folders, K2 / "sae.json", "train_sae"),
        (forget_the_tokenizer, MODEL.with_name("subject.json"), "subject"),
    ],
)
def test_nothing_damaged_is_laundered(project, damage, named, maker):
    before = launder(project, damage, named, maker)
    for _ in range(2):  # what no job has read is found by `verify`
        well, said = all_is_well(project)
        for line in [x for x in said if x.startswith("Remedy for")] or said[:-1]:
            done = pipeline.shell(project, line.partition("emedy: ")[2] or "true")
            assert done.returncode == 0, done.stdout
    assert well, said
    assert pipeline.digests(project) == before


# --- the workflow as it is planned ---------------------------------------------------------------
def everything():
    """An overlay with a job of every stage of the registry."""
    base, cross = dict(pipeline.STUDY), yaml.safe_load(pipeline.PLANTED.read_text())
    grid = base["grid"] | {
        "subjects": ["tiny", "scratch"],
        "layers": {"tiny": [1, 2], "scratch": [1]},
        "objectives": ["mse", "behavioral", "e2e"],
    }
    small = {"source": "scratch", "d_model": 16, "n_layers": 2, "n_heads": 2}
    subjects = base["subjects"] | cross["subjects"] | {"scratch": small}
    theirs = {"path": "theirs", "subject": "tiny", "corpus": "prose", "layer": 1}
    more = {name: block for name, block in cross.items() if name not in ("study", "subjects")}
    more |= {"grid": grid, "subjects": subjects, "imports": {"theirs": theirs}}
    return base | more | {"pretrain": {"corpus": "prose"}}


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """All jobs of a study that has one of every kind; nothing of it is made."""
    folder = pipeline.create(tmp_path_factory.mktemp("planned"))
    pipeline.write(folder, everything())
    (folder / "theirs").mkdir()
    return planned_jobs.jobs(folder, "all", "verdict_calibration")


def test_every_stage_is_planned(planned):
    assert {job.stage for job in planned} == STAGES.keys()


def test_every_input_is_vouched_for_by_a_manifest_of_the_same_job(planned):
    """What no manifest describes is the user's own, or what another job is still writing."""
    described = {file: job.outputs[0] for job in planned for file in job.outputs}
    for job in planned:
        assert all(name in described for name in job.inputs if name.startswith("results/"))
        for name in job.inputs:
            path = Path(name)
            if name.startswith("results/") and not path.name.startswith("."):
                assert described[name] in job.inputs, f"{job.rule} reads {name}"
                assert catalogue.at_manifest(described[name])


def test_a_rule_writes_what_the_registry_says(planned):
    for job in planned:
        stage, at = STAGES[job.stage], job.wildcards
        if "part" in at:
            (receipt,) = job.outputs
            assert stage.in_parts and Path(receipt).name.startswith(".")
        else:
            expected = [path.format(**at) for path in (stage.path, *stage.paths())]
            assert sorted(job.outputs) == sorted(expected), job.rule
            assert job.output["manifest"] == job.outputs[0] == expected[0]


# --- every job and every input -------------------------------------------------------------------
@pytest.fixture(scope="module")
def worker(project, tmp_path_factory):
    with warm_worker(tmp_path_factory.mktemp("imports")) as found:
        yield found


@contextlib.contextmanager
def warm_worker(folder):
    """Runs scripts of the workflow; what they import is there already."""
    imports = folder / "imports.py"
    lines = {
        line
        for script in (pipeline.ROOT / "workflow/scripts").glob("*.py")
        for line in script.read_text().splitlines()
        if line.startswith(("import ", "from ")) and not line.endswith("(")
    }
    imports.write_text("\n".join(sorted(lines)))
    nothing = {"input": {}, "output": {}, "wildcards": {}, "params": {}, "resources": {}}
    with Worker() as found:
        log = imports.with_suffix(".log")
        assert found.run(str(imports), nothing | {"threads": 1}, log) == 0, log.read_text()
        yield found


class Jobs:
    """Runs jobs of a finished study beside it, and counts how they end."""

    def __init__(self, folder, worker, aside, *targets):
        self.worker, self.aside = worker, aside
        self.results = Path("results")
        self.files = damages.files(self.results)
        self.kind_of = {file: kind for kind, files in self.files.items() for file, _ in files}
        self.owner_of = {file: own for files in self.files.values() for file, own in files}
        self.all = planned_jobs.jobs(folder, *targets)
        self.counts, self.faults = defaultdict(Counter), []

    def one_of_each_kind(self, rng):
        """A job of every rule, drawn."""
        kinds = defaultdict(list)
        for job in self.all:
            kinds[job.rule].append(job)
        return [rng.choice(jobs) for _, jobs in sorted(kinds.items())]

    def inputs(self, job):
        """Files that a job gets, below results: by the path of the input that holds them."""
        found = {}
        for name in map(Path, job.inputs):
            files = [file for file in self.owner_of if name in (file, *file.parents)]
            if files:
                found[name] = sorted(files)
        return found

    def damage(self, job, file, how, rng):
        """Run a job on a damaged input, and note how it ends."""
        kind = self.kind_of[file]
        damage = damages.draw(kind, how, (file, self.owner_of[file]), self.files[kind], rng)
        into = self.aside / f"made-{rng.getrandbits(64):x}"
        log = self.aside / "log"
        changes = self._parts(job, into)
        with damages.done(damage, rng, self.aside, other_bytes=True):
            status = job.run(self.worker, into, log, **changes)
        said = log.read_text() if log.exists() else ""
        log.unlink(missing_ok=True)
        end, fault = self._end(job, damage, status, said, into)
        self.counts[job.rule][end] += 1
        if fault:
            self.faults.append(f"{job.rule}, {damage.how} of {file}: {fault}\n{said[-1500:]}")
        shutil.rmtree(into, ignore_errors=True)

    def _end(self, job, damage, status, said, into):
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        made = [path for path in into.rglob("*.json") if catalogue.at_manifest(path)]
        if "Traceback" in said:
            return "traceback", "a traceback"
        if status == 0:
            return ("unread", "") if self._equal(job, into) else ("wrong", "a wrong result")
        if len(errors) != 1 or made:
            return "refused", f"{len(errors)} lines, {made} made"
        if damage.how == "delete" and damage.file in damage.owners:
            remedies = ["Run snakemake to make it."]
        else:
            in_the_way = damage.how == "folder" and any(
                damage.file.parent == own.parent for own in damage.owners
            )
            flags = ["-rf"] if in_the_way else ["-f", "-rf"]
            remedies = [f"rm {flag} {own}" for own in damage.owners for flag in flags]
        if not any(f"{own}" in errors[0] for own in damage.owners):
            return "refused", "another artifact is named"
        if not any(remedy in errors[0] for remedy in remedies):
            return "refused", "no remedy, or not the right one"
        return "refused", ""

    def _parts(self, job, into):
        """The receipts that a gather gets, which its healthy parts leave."""
        receipts = job.input.get("parts", [])
        for receipt in receipts:
            (part,) = (other for other in self.all if receipt in other.outputs)
            log = self.aside / "part.log"
            assert part.run(self.worker, into, log) == 0, log.read_text()
        return {"parts": [str(into / receipt) for receipt in receipts]} if receipts else {}

    def _equal(self, job, into):
        """Whether a job has made what lies in the results."""
        for name in job.outputs:
            made, stored = into / name, Path(name)
            if "part" in job.wildcards:
                stem = made.name.removeprefix(".").rsplit(".part-", 1)[0]
                stored = stored.with_name(f"{stem}.zarr")
                names = [file.relative_to(made) for file in made.rglob("c/**/*") if file.is_file()]
                if not names:
                    return False
            elif catalogue.at_manifest(name):
                one, other = manifest.read(made), manifest.read(stored)
                if (one["digest"], one["files"]) != (other["digest"], other["files"]):
                    return False
                continue
            else:
                names = [file.relative_to(made) for file in [made, *made.rglob("*")]]
                names = [file for file in names if (made / file).is_file()]
            if any((made / file).read_bytes() != (stored / file).read_bytes() for file in names):
                return False
        return True

    def check(self):
        """Print the table; nothing but refusals, and equal results of what was not read."""
        ends = ("refused", "unread", "wrong", "traceback")
        total = sum(self.counts.values(), Counter())
        print(f"\n{'job':32}" + "".join(f"{end:>10}" for end in ends))
        for rule, count in [*sorted(self.counts.items()), ("all", total)]:
            print(f"{rule:32}" + "".join(f"{count[end]:10}" for end in ends))
        assert not self.faults, f"{len(self.faults)} faults\n" + "\n".join(self.faults[:8])
        assert total["refused"] > total["unread"]


def test_a_job_of_every_kind_refuses_a_damaged_input(project, worker, tmp_path):
    rng = random.Random(131)
    jobs = Jobs(project, worker, tmp_path, "all")
    for job in jobs.one_of_each_kind(rng):
        if found := jobs.inputs(job):
            file = rng.choice(rng.choice(list(found.values())))
            jobs.damage(job, file, rng.choice(damages.KINDS), rng)
    jobs.check()


def every_input(jobs, rng):
    """Every kind of file of every input of a job of every kind, each damaged in some way."""
    for job in jobs.one_of_each_kind(rng):
        kinds = {(name, jobs.kind_of[f]): f for name, fs in jobs.inputs(job).items() for f in fs}
        for file in kinds.values():
            jobs.damage(job, file, rng.choice(damages.KINDS), rng)
    jobs.check()


@pytest.mark.cluster
def test_every_job_refuses_every_damaged_input(project, worker, tmp_path):
    every_input(Jobs(project, worker, tmp_path, "all"), random.Random(132))


@pytest.mark.cluster
def test_every_job_of_the_crosslingual_suite_does(crosslingual_once, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(crosslingual_once, folder, symlinks=True)
    with contextlib.chdir(folder), warm_worker(tmp_path) as worker:
        every_input(Jobs(folder, worker, tmp_path, "crosslingual"), random.Random(133))
