"""`verify` finds every damage, puts it at the right artifact, and accuses nothing healthy."""

import contextlib
import json
import os
import random
import re
import shlex
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zarr

import damages
import pipeline
from streamgauge.artifacts import catalogue, manifest, verify
from streamgauge.base.paths import CORPUS, LAYER, sae_folder
from streamgauge.cli import main
from streamgauge.planning import config

FOREIGN = ["foreign.zarr", "notes.json", "tiny/foreign.csv", "tiny/page.html", "tiny/other.zarr"]


def leave_foreign_files(results):
    """What somebody else has put there: stores without a manifest, tables, notes, a page."""
    (results / "tiny").mkdir(exist_ok=True)
    for name in ("foreign.zarr", "tiny/other.zarr"):
        group = zarr.create_group(results / name)
        group.create_array("x", data=np.arange(12.0))
    (results / "tiny/other.json").write_text('{"files": ["a"], "x": 1}')
    (results / "notes.json").write_text('{"note": "mine"}')
    pd.DataFrame({"a": [1]}).to_csv(results / "tiny/foreign.csv")
    (results / "tiny/page.html").write_text("<html></html>")


@pytest.fixture(scope="module")
def project(finished):
    """The finished study with foreign files in it, as the working directory."""
    leave_foreign_files(finished / "results")
    with contextlib.chdir(finished):
        yield finished


def settings(folder):
    return config.validate(config.load([folder / "config.yaml", folder / "study.yaml"]))


def verified(folder, paths=("results",), flags=()):
    """Whether all is well, and the lines that say what is not."""
    said = []
    well = verify.verify(paths, folder, settings(folder), said.append, flags)
    return well, [line for line in said[:-1] if verify.UNDESCRIBED not in line]


def named(lines):
    """The artifacts that lines accuse, and what their remedies remove and make.

    Every line has a remedy, of its own or that of the set.
    """
    accused, removed, made = set(), set(), set()
    for line in lines:
        head, _, remedy = line.partition("emedy")
        if not line.startswith("Remedy"):
            accused.add(Path(head.split(": ")[0]))
        assert remedy or any(other.startswith("Remedy for what") for other in lines), line
        if remedy:
            removal, making = remedy.split(": ", 1)[1].split(" && ")
            removed |= {Path(x) for x in shlex.split(removal)[2:]}
            made |= {Path(x) for x in shlex.split(making)[1:]}
    return accused, removed, made


class Table:
    """Damages by kind of file: done, found, put at the right artifact; healthy ones accused."""

    def __init__(self):
        self.counts, self.faults = defaultdict(Counter), []

    def add(self, damage, accused):
        count = self.counts[damage.kind]
        count["damages"] += 1
        count["found"] += bool(accused & damage.owners)
        count["right"] += damage.owners <= accused
        if not damage.owners <= accused:
            self.faults.append(f"not found: {damage}")

    def check(self):
        total = sum(self.counts.values(), Counter())
        print(f"\n{'kind':60} damages  found  right")
        for kind, count in [*sorted(self.counts.items()), ("all", total)]:
            print(f"{kind:60} {count['damages']:7} {count['found']:6} {count['right']:6}")
        print(f"{len(self.counts)} kinds, {len(self.faults)} faults")
        assert not self.faults, "\n".join(self.faults[:20])
        assert total["damages"] == total["right"] > 0


def rounds(files, each, rng):
    """Damages of every kind of file, in groups that meet no artifact twice."""
    drawn = []
    for kind, members in sorted(files.items()):
        some = rng.sample(damages.KINDS * -(-each // len(damages.KINDS)), each)
        drawn += [damages.draw(kind, how, rng.choice(members), members, rng) for how in some]
    rng.shuffle(drawn)
    # one without files that is gone is known only by what was made from it, which has to be sound
    alone = [one for one in drawn if one.how == "delete" and one.file.name == "scores.json"]
    yield from ([one] for one in alone)
    drawn = [one for one in drawn if one not in alone]
    while drawn:
        taken, later, owners = [], [], set()
        for one in drawn:
            if owners & one.owners:
                later.append(one)
            else:
                taken.append(one)
                owners |= one.owners
        yield taken
        drawn = later


def damage_everything(folder, each, rng, aside):
    """Damage every kind of file of a finished study and look what `verify` says."""
    assert verified(folder)[0]
    table = Table()
    for group in rounds(damages.files(Path("results")), each, rng):
        damaged = frozenset().union(*(one.owners for one in group))
        with contextlib.ExitStack() as stack:
            for one in group:
                stack.enter_context(damages.done(one, rng, aside))
            well, lines = verified(folder)
            accused, removed, made = named(lines)
            assert not well
            for one in group:
                table.add(one, accused)
            for what, found in (("accused", accused), ("removed", removed), ("made", made)):
                healthy = {
                    path
                    for path in found - damaged
                    if not any(path == one.file and one.how in ("folder", "link") for one in group)
                }
                table.faults += [f"{path} is healthy and was {what}" for path in healthy]
            assert removed >= damaged and not any(name in f"{lines}" for name in FOREIGN), lines
    assert verified(folder)[0]
    table.check()


def test_every_damage_is_put_where_it_is(project, tmp_path):
    damage_everything(project, 2, random.Random(13), tmp_path)


@pytest.mark.cluster
def test_every_one_of_many_damages_is(project, tmp_path):
    damage_everything(project, 20, random.Random(14), tmp_path)


@pytest.mark.cluster
def test_every_one_of_many_damages_of_the_crosslingual_suite_is(crosslingual_once, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(crosslingual_once, folder, symlinks=True)
    leave_foreign_files(folder / "results")
    with contextlib.chdir(folder):
        damage_everything(folder, 20, random.Random(15), tmp_path)


def obey(folder):
    """Carry out what `verify` prints, to the letter, until it says that all is well."""
    for _ in range(4):  # a job refuses what is damaged above, which has a remedy of its own
        well, lines = verified(folder, flags=["--configfile", "study.yaml"])
        if well:
            return
        done = [
            pipeline.shell(folder, x.partition("emedy")[2].split(": ", 1)[1])
            for x in lines
            if "emedy" in x
        ]
        assert any(one.returncode == 0 for one in done), done[0].stdout
    raise AssertionError(lines)


@pytest.mark.cluster
@pytest.mark.parametrize("seed", range(3))
def test_the_printed_remedies_lead_to_the_original_bytes(project, tmp_path, seed):
    before, rng = pipeline.digests(project), random.Random(seed)
    found, drawn, owners = damages.files(Path("results")), [], set()
    for how in damages.KINDS:
        kind = rng.choice(sorted(found.keys() - {"record of a study"}))
        one = damages.draw(kind, how, rng.choice(found[kind]), found[kind], rng)
        if not owners & one.owners:
            drawn.append(one)
            owners |= one.owners
    with contextlib.ExitStack() as stack:
        for one in drawn:
            stack.enter_context(damages.done(one, rng, tmp_path))
        assert pipeline.digests(project) != before
        obey(project)
        assert pipeline.digests(project) == before, drawn
        for one in drawn:
            if one.other:  # both have been made again
                damages.exchange(one.file, one.other)


@pytest.mark.parametrize("name", FOREIGN)
def test_nobody_is_told_to_remove_what_is_not_ours(project, capsys, name):
    """Neither whole nor damaged."""
    path = Path("results") / name
    parts = [file for file in [path, *path.rglob("*")] if file.is_file()]
    for spoil in (False, True):
        for file in parts if spoil else []:
            file.write_bytes(file.read_bytes()[:-5])
        main.main(["inspect", str(path)])
        said = "".join(capsys.readouterr())
        assert said and not re.search(r"\brm\b|[Dd]elete|[Rr]emove", said), said
    assert verified(project) == (True, [])


# --- what was made from what nobody vouches for ---------------------------------------------------
WEIGHTS = Path(
    LAYER.format(subject="tiny", corpus="prose", ell="01"),
    "sae",
    sae_folder(expansion=4, k=2, tokens=1024, objective="mse", seed=0),
    "sae_weights.safetensors",
)
TOKENS = Path(CORPUS.format(subject="tiny", corpus="prose"), "tokens-eval.json")


def inputs():
    """Every manifest of the study -> the manifests that it was made from."""
    return {
        path: {Path(os.path.normpath(path.parent / name)) for name in manifest.read(path)["inputs"]}
        for path in catalogue.find(Path("results"))
    }


def made_from(*sources):
    """All that was made from artifacts, and from that."""
    found, above = set(), inputs()
    while more := {p for p, made in above.items() if made & (found | set(sources))} - found:
        found |= more
    return found


def unseal(*paths):
    """Give manifests the form that earlier versions wrote."""
    for path in paths:
        record = {key: x for key, x in manifest.read(path).items() if key in manifest.KEYS}
        path.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


@pytest.fixture
def study(project):
    """The study; its manifests are put back afterwards, and the weights."""
    kept = {path: path.read_bytes() for path in [*catalogue.find(Path("results")), WEIGHTS]}
    yield project
    for path, data in kept.items():
        path.write_bytes(data)


def damage_weights():
    WEIGHTS.write_bytes(damages.spoilt(WEIGHTS.read_bytes(), "flip", random.Random(3)))


def earlier_version(*unsealed):
    """Weights damaged under a study whose manifests `unsealed`, or all, have no seal."""
    own = WEIGHTS.with_name("sae.json")
    followers = made_from(own)
    some = followers & {WEIGHTS.with_name(f"{name}.json") for name in unsealed}
    unseal(*(some or catalogue.find(Path("results"))))
    damage_weights()
    return {own}, some | made_from(*some) if some else followers


def made_anew():
    """Tokens made anew, which are others: nothing is damaged."""
    record = manifest.read(TOKENS)
    sources = [TOKENS.parent / name for name in record["inputs"]]
    facts = record["facts"] | {"note": 1}
    manifest.write(
        TOKENS, json.dumps(record["spec"]), [TOKENS.with_suffix(".zarr")], sources, facts
    )
    return set(), made_from(TOKENS)


TAINTED = {
    "sealed": lambda: (damage_weights() or {WEIGHTS.with_name("sae.json")}, set()),
    "all of an earlier version": earlier_version,
    "one of an earlier version": lambda: earlier_version("per_sequence"),
    "its end of an earlier version": lambda: earlier_version("scores"),
    "two of an earlier version": lambda: earlier_version("sensitivity", "attention"),
    "made anew": made_anew,
}


@pytest.mark.parametrize("how", TAINTED)
def test_what_nobody_vouches_for_is_made_again_as_a_set(study, how):
    damaged, tainted = TAINTED[how]()
    well, lines = verified(study)
    accused, removed, made = named(lines)
    assert not well and accused == removed == made == damaged | tainted
    sets = [line for line in lines if line.startswith("Remedy for what")]
    assert len(sets) == bool(tainted)
    # of one artifact `verify` says what it says of it among all
    some = random.Random(how).sample(list(catalogue.find(Path("results"))), 8)
    for path in [*some, *sorted(tainted)[:4]]:
        alone, lines = verified(study, [path])
        accused, removed, made = named(lines)
        assert alone == (path not in damaged | tainted) and accused == (set() if alone else {path})
        assert removed == made <= damaged | tainted and (alone or path in removed)


@pytest.mark.cluster
@pytest.mark.parametrize("how", ["one of an earlier version", "made anew"])
def test_the_remedy_of_the_set_leads_to_all_is_well(study, how):
    before = pipeline.digests(study)
    damaged, tainted = TAINTED[how]()
    obey(study)
    after = pipeline.digests(study)
    changed = {path for path in before if after[path] != before[path]}
    assert before.keys() == after.keys()
    # tokens made anew have another digest, which what is made from them holds; no number differs
    assert changed <= ({f"{path}" for path in {TOKENS, *tainted}} if not damaged else set())
