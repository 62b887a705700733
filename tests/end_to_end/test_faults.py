"""What goes wrong while harvesting costs no finished work: kills, full disks, refused writes."""

import errno
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import small_disk
from lookup import WORK, Lookup, close, rows, run, run_whole, scratch_of
from pipeline import tree_digest
from streamgauge.artifacts import commit, manifest
from streamgauge.base.errors import StreamgaugeError
from streamgauge.numerics.subspace import Subspace
from streamgauge.numerics.token_sets import TOKEN_SETS
from streamgauge.passes import gather, harvest, layer_spectra
from streamgauge.stores import basis_store, layer_stores


def test_kill_9_at_any_moment_then_resume_gives_the_same_bytes(tmp_path, processes, whole):
    final = tmp_path / "a.zarr"
    moments = np.random.default_rng(3).uniform(0.05, 1.2, 6)
    kills = 0
    for moment in moments:
        process = processes.Process(target=run_whole, args=(final, 0.03))
        process.start()
        deadline = time.monotonic() + 20
        work = scratch_of(final)
        while not (work / "zarr.json").exists() and not final.exists():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(moment)
        if final.exists():
            process.join()
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    assert kills
    if not final.exists():
        run_whole(final)
    assert tree_digest(final) == whole


def test_kills_while_writing_leave_nothing_half_done(tmp_path, processes, whole):
    """Killed as soon as any new file of the store appears: at its most delicate."""
    final, work = tmp_path / "a.zarr", scratch_of(tmp_path / "a.zarr")
    for count in (1, 3, 7, 9, 12, 15):
        process = processes.Process(target=run_whole, args=(final,))
        process.start()
        while process.is_alive() and sum(1 for p in work.rglob("*") if p.is_file()) < count + 6:
            pass
        process.kill()
        process.join()
        if final.exists():
            break
    if not final.exists():
        run_whole(final)
    assert tree_digest(final) == whole


def test_a_failing_disk_stops_the_work_at_once_and_loses_nothing(tmp_path, monkeypatch, whole):
    final = tmp_path / "a.zarr"
    write, subject = layer_stores.Store.write, Lookup(seconds=0.02)

    def fails(self, name, start, values):
        if start == 256:
            with layer_stores.writing(self.path):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, name, start, values)

    monkeypatch.setattr(layer_stores.Store, "write", fails)
    with pytest.raises(StreamgaugeError) as caught:
        run(final, subject=subject)
    text = str(caught.value)
    assert f"{scratch_of(final)}: cannot write: No space left on device. Free space" in text
    # the third shard's 6 batches are handed over, at most a few of the fourth's are computed
    assert subject.calls <= 3 * 6 + 3
    assert layer_stores.Store(scratch_of(final)).missing("activations") == [2, 3, 4]
    monkeypatch.undo()
    resumed = Lookup()
    run(final, subject=resumed)
    assert resumed.calls == 6 + 6 + 4
    close(final)
    assert tree_digest(final) == whole


@pytest.fixture
def disk(tmp_path):
    """A file system of 3 MiB."""
    with small_disk.mounted(tmp_path / "disk", 3) as folder:
        yield folder


FULL = "No space left on device. Free space"


def test_a_really_full_disk(disk, whole):
    final = disk / "a.zarr"
    with pytest.raises(StreamgaugeError, match=FULL):
        run(final)
    assert 0 < len(layer_stores.Store(scratch_of(final)).missing("activations")) < 5
    small_disk.enlarge(disk, 20)
    run_whole(final)
    assert tree_digest(final) == whole


def test_a_disk_full_of_activations_keeps_them_for_the_gather(disk, whole):
    """Norms, means and the manifest need room too; nothing that is written is lost for them."""
    small_disk.enlarge(disk, 20)
    final, path = disk / "a.zarr", disk / "a.json"
    run(final)
    filler, work = small_disk.fill(disk), scratch_of(final)
    with pytest.raises(StreamgaugeError, match=FULL):
        gather.activations(work, progress=False)
    filler.unlink()
    facts = gather.activations(work, progress=False)
    layer_stores.sweep(work)  # the room of what it removes would do for so small a manifest
    filler = small_disk.fill(disk)
    with pytest.raises(StreamgaugeError, match="No space left on device") as caught:
        commit.commit(work, final, path, "{}", [], facts)
    assert caught.value.where == str(path)
    # the workflow engine removes the outputs of a failed job: there is none
    assert not final.exists() and not path.exists()
    filler.unlink()
    commit.commit(work, final, path, "{}", [], facts)
    assert tree_digest(final) == whole
    assert manifest.problems(path) == [] and json.loads(path.read_text())["facts"] == facts
    assert not work.exists()


def tokens(final):
    table = np.random.default_rng(0).integers(0, 500, (4096, 128), dtype=np.int32)
    layer_stores.store_tokens(final, "{}", table, table)


def spectra(final):
    shape = (40, len(TOKEN_SETS), len(layer_spectra.CENTRINGS), 2304)
    values = np.random.default_rng(0).random(shape)
    layer_spectra.write(final, "{}", layer_spectra.Spectra(values, np.ones(shape[:2], int), None))


def basis(final):
    q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((2048, 400)))
    basis_store.write(final, "{}", Subspace(q.T, np.ones(400)))


@pytest.mark.parametrize("make", [tokens, spectra, basis])
def test_every_kind_of_store_meets_a_full_disk(disk, make):
    final, other = disk / "a.zarr", disk.parent / "other.zarr"
    filler = small_disk.fill(disk)
    with filler.open("r+b") as file:
        file.truncate(1 << 20)  # room for metadata, not for what it describes
    with pytest.raises(StreamgaugeError, match=FULL):
        make(final)
    assert not final.exists()
    filler.unlink()
    small_disk.enlarge(disk, 20)
    make(final)
    make(other)
    assert tree_digest(final) == tree_digest(other)


def limited(final):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, 1 << 19))
    try:
        run(final)
    except StreamgaugeError as error:
        (final.parent / "error.txt").write_text(str(error))
        sys.exit(1)


def test_a_file_size_limit_is_named(tmp_path, processes, whole):
    final = tmp_path / "a.zarr"
    process = processes.Process(target=limited, args=(final,))
    process.start()
    process.join()
    assert process.exitcode == 1
    assert "Raise the file size limit (ulimit -f)" in (tmp_path / "error.txt").read_text()
    assert not list(scratch_of(final).rglob("*.partial"))
    run_whole(final)
    assert tree_digest(final) == whole


def test_a_file_where_a_directory_belongs_is_named(tmp_path):
    blocker = tmp_path / "L10"
    blocker.write_text("")
    with pytest.raises(StreamgaugeError, match="cannot write: Not a directory") as caught:
        layer_stores.scratch(blocker / "a.zarr", "{}")
    assert str(blocker) in caught.value.where and "Move away the file" in str(caught.value)
    work = layer_stores.scratch(tmp_path / "b.zarr", WORK)
    (work / "activations").write_text("")
    with pytest.raises(StreamgaugeError, match="Move away the file"):
        run(tmp_path / "b.zarr")


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_read_only_directory_is_named(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    with pytest.raises(StreamgaugeError, match=r"Permission denied.*writable for this user"):
        layer_stores.scratch(tmp_path / "locked/a.zarr", "{}")


def as_nobody(directory):
    os.setgid(65534)
    os.setuid(65534)
    try:
        run(Path(directory) / "a.zarr")
    except StreamgaugeError as error:
        sys.exit(3 if "Make the directory writable for this user" in str(error) else 4)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_directory_of_someone_else_is_named(processes, tmp_path):
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    process = processes.Process(target=as_nobody, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 3


def peak(final, n, out):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work = layer_stores.scratch(final, "{}")
    harvest.harvest(Lookup(d_model=192), rows(n), 0, work, batch_size=16, progress=False)
    gather.activations(work, progress=False)
    out.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def test_memory_does_not_grow_with_the_number_of_tokens(tmp_path, processes):
    """4 and 24 shards of 6 MiB: kept, they would be 120 MiB more."""
    used = []
    for n in (512, 3072):
        out = processes.SimpleQueue()
        process = processes.Process(target=peak, args=(tmp_path / f"{n}.zarr", n, out))
        process.start()
        used.append(out.get() / 1024)
        process.join()
    # what the allocator keeps differs by a few shards from run to run
    assert used[1] - used[0] < 40, f"peak grew from {used[0]:.0f} to {used[1]:.0f} MiB"


def test_an_error_in_the_forward_pass_keeps_finished_shards(tmp_path, whole):
    class Fails(Lookup):
        def residuals(self, ids, layers):
            if self.calls == 13:  # two shards of 6 batches and one batch more
                raise RuntimeError("out of memory")
            return super().residuals(ids, layers)

    final = tmp_path / "a.zarr"
    with pytest.raises(RuntimeError, match="out of memory"):
        run(final, subject=Fails())
    assert layer_stores.Store(scratch_of(final)).missing("activations") == [2, 3, 4]
    run_whole(final)
    assert tree_digest(final) == whole
