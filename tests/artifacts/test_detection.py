"""`verify` finds every damage, puts it at the right artifact, and accuses nothing healthy."""

import contextlib
import random
import shlex
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zarr

import damages
from streamgauge.artifacts import verify
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


def verified(folder, paths=("results",)):
    """Whether all is well, and the lines that say what is not."""
    said = []
    well = verify.verify(paths, folder, settings(folder), said.append)
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
    while drawn:
        taken, owners = [], set()
        for one in drawn:
            if not owners & one.owners:
                taken.append(one)
                owners |= one.owners
        yield taken
        drawn = [one for one in drawn if one not in taken]


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
