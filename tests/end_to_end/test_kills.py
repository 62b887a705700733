"""Kill -9 at random moments, and processes that outlive their job: the same bytes in the end."""

import shutil
from functools import partial

import numpy as np
import pytest

import killing
import pipeline
from killing import LAYER, N_SHARDS
from streamgauge.base.errors import StreamgaugeError
from streamgauge.stores import checkpoints

pytestmark = pytest.mark.cluster

STEP_TOKENS = killing.STUDY["sae"]["batch_size"]
PARTS = 3


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """Stores and SAEs made in one go, every store in one part."""
    folder = killing.create(tmp_path_factory.mktemp("untouched"))
    for stage, store in (("harvest", "activations"), ("probes", "probes")):
        killing.finish(folder, killing.part(stage, store, 0, 1))
        killing.finish(folder, killing.gather(stage, store, 1))
    return folder


def copy(folder, target, *but):
    """A copy of a folder in which the files and folders of these names are yet to be made."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("log.txt", *but))
    return target


def assert_same(made, expected, job):
    """All that a job leaves, byte for byte, and nothing else of it."""
    for path in job["output"].values():
        one, other = made / path, expected / path
        if other.is_dir():
            assert pipeline.tree_digest(one) == pipeline.tree_digest(other), path
        else:
            assert one.read_bytes() == other.read_bytes(), path
    left = {str(path.relative_to(made)) for path in (made / "results").rglob(".*")}
    assert {path for path in left if ".part-" not in path} == set()


def assert_spread(kills, total):
    """Kills at the beginning, in the middle and at the end, none of them after the end."""
    thirds = np.histogram(kills, bins=3, range=(0, total))[0]
    assert sum(thirds) == len(kills) and min(thirds) >= len(kills) // 10, (thirds, kills)


def shards_done(folder):
    """Shards of the unfinished activations that are there to stay."""
    return sum(1 for _ in (folder / LAYER).glob(".activations-*.partial/activations/c/*/0/0"))


def test_a_harvest_killed_in_all_its_parts_and_in_the_gather(untouched, tmp_path):
    rng, parts, gathers = killing.draws(0), [], []
    gather = killing.gather("harvest", "activations", PARTS)
    for attempt in range(50):  # a fast machine needs more of them
        folder = copy(untouched, tmp_path / str(attempt), "L01")
        for i in range(PARTS):
            job = killing.part("harvest", "activations", i, PARTS)
            parts += killing.kill(folder, job, partial(shards_done, folder), rng, 3, 0.5)
        gathers += kill_a_gather(folder, gather, rng)
        assert_same(folder, untouched, gather)
        if len(parts) >= 30 and len(gathers) >= 5:
            break
    print(f"{len(parts)} kills of parts, {len(gathers)} of gathers, {attempt + 1} stores")
    assert len(parts) >= 30 and len(gathers) >= 5
    assert_spread(parts, N_SHARDS)


def kill_a_gather(folder, gather, rng):
    """Kill a gather until it ends first; what unfinished work it left at every kill."""
    found = []
    while True:
        process = killing.start(folder, gather)
        # it begins anew every time: ever later, so that a slow machine comes to an end too
        process.join(rng.uniform(0, 0.2 * 1.5 ** len(found)))
        process.kill()
        process.join()
        if process.exitcode == 0:
            return found
        found.append(shards_done(folder))
        # the store too, if it was committed; what it was made of is still there
        killing.remove_outputs(folder, gather)


def steps_done(folder, job):
    """Steps in the checkpoint of a training, which can be read at any moment."""
    folder = (folder / job["output"]["manifest"]).parent
    found = list(folder.glob(".*.partial/checkpoint.safetensors"))
    try:
        return int(checkpoints.load(found[0])[0]["0.done"][0]) if found else 0
    except StreamgaugeError:
        assert not found[0].exists()  # the training has come to its end
        return 0


@pytest.mark.parametrize(
    ("objective", "steps", "least"), [("mse", 1024, 30), ("behavioral", 100, 5), ("e2e", 100, 5)]
)
def test_a_training_killed(untouched, tmp_path, objective, steps, least):
    rng, kills = killing.draws(1), []
    job = killing.training(objective, steps * STEP_TOKENS)
    killing.finish(untouched, job)
    for attempt in range(50):  # a fast machine needs more of them
        folder = copy(untouched, tmp_path / str(attempt), "sae")
        progress = partial(steps_done, folder, job)
        kills += killing.kill(folder, job, progress, rng, steps // 16, 0.5)
        assert_same(folder, untouched, job)
        if len(kills) >= least:
            break
    print(f"{objective}: {len(kills)} kills, {attempt + 1} SAEs")
    assert len(kills) >= least
    assert_spread(kills, steps)


def test_two_processes_train_the_same_sae(untouched, tmp_path):
    """One outlived its job, the other is its successor: both end, with the same weights."""
    job = killing.training("mse", 512 * STEP_TOKENS)
    killing.finish(untouched, job)
    folder = copy(untouched, tmp_path / "copy", "sae")
    orphan = killing.start(folder, job)
    while not steps_done(folder, job):
        assert orphan.is_alive()
    both, seen = [orphan, killing.start(folder, job)], set()
    while any(process.is_alive() for process in both):
        seen.add(steps_done(folder, job))
    assert [process.exitcode for process in both] == [0, 0], (folder / "log.txt").read_text()
    assert len(seen) > 10
    assert_same(folder, untouched, job)
