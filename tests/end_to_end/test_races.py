"""Processes that write the same store at once, and one that goes on after it was finished."""

import time

import numpy as np
import pytest

from lookup import D, Lookup, N, T, close, run, run_whole, scratch_of
from pipeline import tree_digest
from streamgauge.base.errors import StreamgaugeError
from streamgauge.stores import layer_stores


def all_done(running):
    for process in running:
        process.join()
    return [process.exitcode for process in running] == [0] * len(running)


@pytest.mark.parametrize("parts", [[(2, 3), (0, 3), (1, 3)], [(0, 1), (0, 1), (0, 2)]])
def test_processes_share_a_store(tmp_path, processes, whole, parts):
    """Each its own part; or, as orphans do, parts that others are writing as well."""
    final = tmp_path / "a.zarr"
    running = [processes.Process(target=run, args=(final, part)) for part in parts]
    for process in running:
        process.start()
    assert all_done(running)
    close(final)
    assert tree_digest(final) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def write_again_and_again(work, times):
    store = layer_stores.Store(work, writable=True)
    for _ in range(times):
        store.write("activations", 128, np.full((128, T, D), 7, np.float16))


def test_a_reader_never_sees_a_gap(tmp_path, processes):
    """Two writers replace a shard all the time; it is whole at every moment."""
    work = layer_stores.scratch(tmp_path / "a.zarr", "{}")
    layer = {"d_model": D, "layer": 0, "hook_name": "h", "dtype": "float16"}
    layer_stores.create_activations(work, n_sequences=N, n_positions=T, **layer)
    write_again_and_again(work, 1)
    running = [processes.Process(target=write_again_and_again, args=(work, 60)) for _ in "ab"]
    for process in running:
        process.start()
    file, store, seen, reads = work / "activations/c/1/0/0", layer_stores.Store(work), set(), 0
    while any(process.is_alive() for process in running):
        assert (store.read("activations", 128, 256) == 7).all()
        seen.add(file.stat().st_mtime_ns)
        reads += 1
    assert all_done(running)
    assert len(seen) > 5 and reads > 5, "the shard was hardly replaced while it was read"
    assert not list(work.rglob("*.partial"))


class Waits(Lookup):
    """Stops in the middle of the third shard until something has happened."""

    def __init__(self, happened):
        super().__init__()
        self.happened = happened

    def residuals(self, ids, layers):
        if self.calls == 15:
            self.happened.wait()
        return super().residuals(ids, layers)


def orphan(final, happened, out):
    try:
        run(final, subject=Waits(happened))
    except StreamgaugeError as error:
        out.put(str(error))
    else:
        out.put("done")


@pytest.mark.parametrize("outcome", ["committed", "given up"])
def test_an_orphan_that_writes_on_harms_nothing(tmp_path, processes, whole, outcome):
    final, happened, out = tmp_path / "a.zarr", processes.Event(), processes.SimpleQueue()
    process = processes.Process(target=orphan, args=(final, happened, out))
    process.start()
    second = scratch_of(final) / "activations/c/1/0/0"
    while not second.exists():
        time.sleep(0.005)
    if outcome == "committed":
        run_whole(final)
    else:
        layer_stores.scratch(final, "another spec")
    happened.set()
    process.join()
    assert out.get() == (
        f"{scratch_of(final)}: this work has been finished or removed by another process. Where no"
        " other job makes the same store, run again."
    )
    assert not scratch_of(final).exists()
    if outcome == "committed":
        assert tree_digest(final) == whole
        assert layer_stores.ActivationStore(final).read(0, N).shape == (N, T, D)
