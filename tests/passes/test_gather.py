"""Stores made in parts: how they are cut, and what the gather finds, removes and commits."""

import errno
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipeline
from lookup import SPEC, WORK, Lookup, N, T, close, run, scratch_of
from pipeline import tree_digest
from streamgauge.artifacts import commit, manifest
from streamgauge.base.errors import StreamgaugeError
from streamgauge.passes import gather
from streamgauge.stores import layer_stores, receipts, shards

N_SHARDS = 5


def test_parts_by_hand():
    # 600 rows of 128 tokens: shards of 128 rows, 16,384 tokens
    assert layer_stores.n_parts(600, 128, None) == layer_stores.n_parts(600, 128, 10**9) == 1
    assert layer_stores.n_parts(600, 128, 16384) == N_SHARDS
    assert layer_stores.n_parts(600, 128, 1) == N_SHARDS  # a job writes a shard at least
    assert layer_stores.n_parts(600, 128, 2 * 16384) == 3
    assert layer_stores.n_parts(600, 128, 2 * 16384 - 1) == N_SHARDS
    # with 8 vectors a token a shard is one chunk of 16 rows
    assert layer_stores.n_parts(600, 128, 4 * 2048, per_token=8) == 10
    assert [list(shards.of_part((i, 3), N_SHARDS)) for i in range(3)] == [[0], [1, 2], [3, 4]]


@given(
    n_sequences=st.integers(1, 10**6),
    n_positions=st.integers(1, 4096),
    tokens_per_job=st.integers(1, 10**9),
    per_token=st.integers(1, 20),
)
def test_parts_cover_every_shard_once_and_keep_to_their_size(
    n_sequences, n_positions, tokens_per_job, per_token
):
    n = layer_stores.n_parts(n_sequences, n_positions, tokens_per_job, per_token)
    rows = layer_stores.rows_per_chunk_and_shard(n_positions, per_token)[1]
    n_shards = -(-n_sequences // rows)
    assert 1 <= n <= n_shards
    ends = [shards.of_part((i, n), n_shards) for i in {0, n // 2, n - 1}]
    assert shards.of_part((0, n), n_shards).start == 0
    assert shards.of_part((n - 1, n), n_shards).stop == n_shards
    for i in range(max(0, n // 2 - 3), min(n - 1, n // 2 + 3)):
        assert shards.of_part((i, n), n_shards).stop == shards.of_part((i + 1, n), n_shards).start
    for part in ends:
        assert 0 < len(part)
        assert len(part) == 1 or len(part) * rows * n_positions <= tokens_per_job


@pytest.mark.parametrize("n", [2, 3, 5, 7])
def test_the_number_of_parts_changes_no_byte(tmp_path, whole, n):
    final = tmp_path / "a.zarr"
    for i in reversed(range(n)):  # in any order; with 7, two parts are empty
        run(final, part=(i, n))
    close(final)
    assert tree_digest(final) == whole


@pytest.fixture
def made(tmp_path):
    """A store written in three parts, shards 0 | 1, 2 | 3, 4, and their receipts."""
    final = tmp_path / "a.zarr"
    paths = [tmp_path / f".a.part-{i}-of-3" for i in range(3)]
    for i, path in enumerate(paths):
        run(final, part=(i, 3))
        receipts.leave(path, scratch_of(final), (i, 3))
    return final, paths


def damage(file, how):
    data = bytearray(file.read_bytes())
    if how == "removed":
        file.unlink()
    elif how == "cut short":
        file.write_bytes(data[:-1])
    else:
        data[len(data) // 2] ^= 4
        file.write_bytes(data)


@pytest.mark.parametrize("how", ["removed", "cut short", "a flipped bit"])
def test_running_again_makes_exactly_the_damaged_shards(made, whole, how):
    final, paths = made
    work = scratch_of(final)
    files = [work / f"activations/c/{i}/0/0" for i in range(N_SHARDS)]
    inodes = [file.stat().st_ino for file in files]
    damage(files[1], how)
    if how == "removed":
        damage(paths[1] / "activations/c/1/0/0", how)
    with pytest.raises(StreamgaugeError) as caught:
        gather.activations(work, paths, progress=False)
    text = str(caught.value)
    assert text.startswith(f"{work}: shard 1 of array 'activations' is ") and "\n" not in text
    assert text.endswith("run again: exactly those shards are made anew.")
    # the receipt of the part that holds it, and nothing else
    assert [path.exists() for path in paths] == [True, False, True]
    assert [file.exists() for file in files] == [True, False, True, True, True]
    subject = Lookup()
    run(final, part=(1, 3), subject=subject)
    assert subject.calls == 6  # batches of one shard
    assert [file.stat().st_ino for i, file in enumerate(files) if i != 1] == [
        inode for i, inode in enumerate(inodes) if i != 1
    ]
    close(final)
    assert tree_digest(final) == whole


def test_all_damaged_shards_are_found_at_once(made):
    final, paths = made
    work = scratch_of(final)
    damage(work / "activations/c/0/0/0", "a flipped bit")
    damage(work / "activations/c/4/0/0", "cut short")
    with pytest.raises(StreamgaugeError, match=r"shard 0 .*\(2 shards are missing or damaged\)"):
        gather.activations(work, paths, progress=False)
    assert [path.exists() for path in paths] == [False, True, False]
    assert layer_stores.Store(work).missing("activations") == [0, 4]


def test_receipts_without_a_store_are_removed(made):
    final, paths = made
    work = scratch_of(final)
    (work / "zarr.json").write_text("{")
    with pytest.raises(StreamgaugeError, match=r"not a readable store\. Delete that directory"):
        gather.activations(work, paths, progress=False)
    assert not any(path.exists() for path in paths)


@pytest.mark.parametrize("name", ["probes", "same_position", "sampled_position", "shift"])
def test_every_array_of_probes_is_checked(tmp_path, name):
    work = layer_stores.scratch(tmp_path / "p.zarr", "{}")
    layer = {"n_sequences": 40, "n_positions": 128, "d_model": 4, "layer": 0, "hook_name": "h"}
    options = {"n_probes": 6, "same_positions": 2, "diagonal": 2, "dtype": "float16"}
    layer_stores.create_probes(work, **layer, **options)
    store = layer_stores.Store(work, writable=True)
    for array in ("probes", "same_position", "sampled_position", "shift"):
        store.write(array, 0, np.ones(store.array(array).shape, store.array(array).dtype))
    assert gather.probes(work, progress=False)["n_shift_probes"] == 2
    file = next((work / name / "c/2").rglob("0"))
    damage(next(p for p in [file, *file.rglob("*")] if p.is_file()), "a flipped bit")
    with pytest.raises(StreamgaugeError, match=f"shard 2 of array '{name}' is damaged"):
        gather.probes(work, progress=False)
    assert store.missing(name) == [2]


def test_gradients_are_checked(tmp_path):
    work = layer_stores.scratch(tmp_path / "g.zarr", "{}")
    layer = {"n_sequences": 300, "n_positions": 128, "d_model": 4, "layer": 0, "hook_name": "h"}
    layer_stores.create_gradients(work, dtype="bfloat16", **layer)
    layer_stores.Store(work, writable=True).write("gradients", 0, np.ones((300, 128, 4), np.uint16))
    assert gather.gradients(work, progress=False)["dtype"] == "bfloat16"
    damage(work / "gradients/c/1/0/0", "a flipped bit")
    with pytest.raises(StreamgaugeError, match="shard 1 of array 'gradients' is damaged"):
        gather.gradients(work, progress=False)


def test_commit_leaves_a_manifest_that_fits_and_no_work(made, whole):
    final, mine = made
    work, path = scratch_of(final), final.with_suffix(".json")
    # what processes that were killed left behind
    (work / "activations/c/0/0/0.0123.partial").write_bytes(b"half")
    final.with_name(f"{work.name}.{'0' * 32}").mkdir()
    # the receipt of another number of parts, begun and given up
    final.with_name(".a.part-0-of-9").mkdir()
    facts = gather.activations(work, progress=False)
    commit.commit(work, final, path, SPEC, [], facts, mine)
    record = json.loads(path.read_text())
    assert manifest.problems(path) == [] and record["facts"] == facts
    assert {name.split("/")[0] for name in record["files"]} == {"a.zarr"}
    assert tree_digest(final) == whole
    left = {p.name for p in final.parent.iterdir()}
    assert left == {"a.zarr", "a.json", *(p.name for p in mine)}
    # the same as a manifest that is written afterwards
    again = manifest.write(path.with_name("b.json"), SPEC, [final], [], facts)
    assert again == record


def test_a_store_that_was_removed_after_its_commit_is_there_again(made, whole):
    """By a workflow engine that did not see its gather end."""
    final, paths = made
    path = final.with_suffix(".json")
    records = []
    for _ in range(2):
        work = layer_stores.scratch(final, WORK)
        facts = gather.activations(work, paths, progress=False)
        commit.commit(work, final, path, SPEC, [], facts, paths)
        assert tree_digest(final) == whole
        records.append(path.read_bytes())
        shutil.rmtree(final)
        path.unlink()
    assert records[0] == records[1]


def test_a_gather_that_comes_too_late_leaves_the_store_alone(made, whole):
    """It has been made by another process, in the middle of this one's work."""
    final, paths = made
    path = final.with_suffix(".json")
    rest = (final, path, SPEC, [], paths)
    seen = []

    def late(work, receipts):
        commit.finish(gather.activations, *rest)
        seen.append((path.stat().st_ino, final.stat().st_ino))
        shutil.rmtree(receipts[0])  # as who runs the jobs may have done
        return gather.activations(work, receipts)

    commit.finish(late, *rest)
    assert seen == [(path.stat().st_ino, final.stat().st_ino)]
    assert tree_digest(final) == whole and manifest.problems(path) == []
    assert not list(final.parent.glob("*.partial"))


def test_a_gather_that_begins_too_late_leaves_the_store_alone(made):
    final, paths = made
    rest = (final, final.with_suffix(".json"), SPEC, [], paths)
    commit.finish(gather.activations, *rest)
    before = {path: path.stat().st_ino for path in final.parent.rglob("*")}
    commit.finish(gather.activations, *rest)
    assert {path: path.stat().st_ino for path in final.parent.rglob("*")} == before


@pytest.mark.parametrize("other", [None, '{"stage": "another"}'])
def test_a_damaged_store_is_an_error_whatever_else_was_made(made, other):
    final, paths = made
    path = final.with_suffix(".json")
    if other:
        final.mkdir()
        manifest.write(path, other, [final])
    damage(scratch_of(final) / "activations/c/1/0/0", "a flipped bit")
    with pytest.raises(StreamgaugeError, match="shard 1 of array 'activations' is damaged"):
        commit.finish(gather.activations, final, path, SPEC, [], paths)


def test_what_receipts_hold_takes_no_space_and_each_holds_its_own(made):
    final, paths = made
    for i, path in enumerate(paths):
        files = sorted((path / "activations/c").glob("*/0/0"))
        assert [int(file.parts[-3]) for file in files] == list(shards.of_part((i, 3), N_SHARDS))
        for file in files:
            assert file.samefile(scratch_of(final) / file.relative_to(path))


def test_nothing_is_restored_from_the_receipts_of_another_spec(made):
    final, paths = made
    work = layer_stores.scratch(final, '{"seed": 1}')
    with pytest.raises(StreamgaugeError, match="not a readable store"):
        gather.activations(work, paths, progress=False)
    assert not any(path.exists() for path in paths)


def test_a_damaged_shard_is_not_restored_again(made, whole):
    final, paths = made
    shutil.rmtree(scratch_of(final))
    damage(paths[2] / "activations/c/3/0/0", "a flipped bit")
    work = layer_stores.scratch(final, WORK)
    with pytest.raises(StreamgaugeError, match="shard 3 of array 'activations' is damaged"):
        gather.activations(work, paths, progress=False)
    assert [path.exists() for path in paths] == [True, True, False]
    subject = Lookup()
    run(final, part=(2, 3), subject=subject)
    assert subject.calls == 6  # batches of one shard
    receipts.leave(paths[2], work, (2, 3))
    gather.activations(work, paths, progress=False)
    layer_stores.commit(work, final)
    assert tree_digest(final) == whole


def test_without_hard_links_a_receipt_says_no_more_than_that(made, whole, monkeypatch):
    def refuse(source, target):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported", str(source), None, str(target))

    final, paths = made
    work = scratch_of(final)
    with monkeypatch.context() as patched:
        patched.setattr(os, "link", refuse)
        receipts.leave(paths[0], work, (0, 3))
        assert not [file for file in paths[0].rglob("*") if file.is_file()]
        gather.activations(work, paths, progress=False)
    layer_stores.commit(work, final)
    assert tree_digest(final) == whole
    shutil.rmtree(final)
    with pytest.raises(StreamgaugeError, match="shard 0 of array 'activations' is missing"):
        gather.activations(layer_stores.scratch(final, WORK), paths, progress=False)


GATHER = """
import sys
from streamgauge.artifacts import commit, manifest
from streamgauge.passes import gather
from streamgauge.stores import layer_stores as stores
from streamgauge.base.job_log import job
for work in sys.argv[1:]:
    gather.activations(work, progress=False)
heavy = {"torch", "transformers", "pandas", "matplotlib"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""


def test_a_gather_needs_no_torch(tmp_path):
    """It runs once for every store, often for a second: its imports would be most of it."""
    works = []
    for dtype in ("float16", "bfloat16", "float32"):
        works.append(layer_stores.scratch(tmp_path / f"{dtype}.zarr", "{}"))
        layer = {"n_sequences": N, "n_positions": T, "d_model": 2, "layer": 0, "hook_name": "h"}
        layer_stores.create_activations(works[-1], dtype=dtype, **layer)
        kind = "uint16" if dtype == "bfloat16" else dtype
        layer_stores.Store(works[-1], writable=True).write(
            "activations", 0, np.full((N, T, 2), 3, kind)
        )
    ran = subprocess.run(
        [sys.executable, "-c", GATHER, *works], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.cluster
def test_snakemake_makes_the_damaged_part_anew(tmp_path):
    """Between the parts and the gather a bit flips: one run says so, the next makes one part."""
    folder = pipeline.create(tmp_path)
    pipeline.write(folder, {**pipeline.STUDY, "scatter": {"harvest": 1}})
    layer = folder / "results/tiny/prose/L01"
    target = "results/tiny/prose/L01/activations-train.json"
    pipeline.snakemake(folder, target)
    record = (folder / target).read_bytes()
    for path in (folder / target, layer / "activations-train.zarr"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    pipeline.snakemake(folder, target, "--until", "harvest_part", "--notemp")
    (work,) = layer.glob(".activations-train.zarr.*.partial")
    n = layer_stores.Store(work).n_shards("activations")
    paths = [layer / f".activations-train.part-{i}-of-{n}" for i in range(n)]
    assert n > 1 and all(path.exists() for path in paths)
    damage(work / "activations/c/1/0/0", "a flipped bit")
    done = pipeline.snakemake(folder, target, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stdout
    assert "shard 1 of array 'activations' is damaged" in done.stdout
    part = f"harvest tiny layer 01, train, part {{}} of {n}"
    assert pipeline.planned(folder, target) == {part.format(1), "harvest tiny layer 01, train"}
    pipeline.snakemake(folder, target)
    assert (folder / target).read_bytes() == record
    assert manifest.problems(folder / target) == []
    assert not [path for path in layer.iterdir() if path.name.startswith(".activations")]
