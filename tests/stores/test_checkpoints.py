"""Checkpoints: whole or not there, and continued only by the work that wrote them."""

import multiprocessing

import pytest
import torch

import small_disk
from sae_data import activations, write_store
from streamgauge.base.errors import StreamgaugeError
from streamgauge.sae.train import CHECKPOINT, Run, Settings, train
from streamgauge.stores import checkpoints


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    checkpoints.save(path, {"a": torch.ones(3)}, {"n": 1})

    def full(tensors, target, metadata=None):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(StreamgaugeError, match="No space left"):
        checkpoints.save(path, {"a": torch.zeros(3)}, {"n": 2})
    tensors, facts = checkpoints.load(path)
    assert tensors["a"].tolist() == [1, 1, 1] and facts == {"n": 1}
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_checkpoint_is_continued_by_its_own_work_only(tmp_path):
    path, tensors = tmp_path / "new" / "c.safetensors", {"a": torch.arange(3), "b": torch.ones(())}
    facts = {"work": "this", "sizes": (1, 2)}
    assert checkpoints.resume(path, facts) is None
    checkpoints.save(path, tensors, facts)
    assert [file.name for file in path.parent.iterdir()] == ["c.safetensors"]
    found = checkpoints.resume(path, facts)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert checkpoints.resume(path, facts | {"work": "other"}) is None
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(StreamgaugeError, match="unreadable checkpoint"):
        checkpoints.load(path)
    with pytest.raises(StreamgaugeError, match="cannot be written"):
        checkpoints.save(path / "below a file", tensors, facts)


def save_often(path):
    for n in range(150):
        rows = torch.full((1 + 64 * (n % 7),), float(n))
        checkpoints.save(path, {"history": rows, "weights": torch.full((999,), float(n))}, {"n": n})


def test_a_checkpoint_replaced_while_it_is_read_is_of_one_piece(tmp_path):
    """Tensors before the weights change their sizes: those of another file would be shifted."""
    path = tmp_path / "c.safetensors"
    checkpoints.save(path, {"history": torch.zeros(1), "weights": torch.zeros(999)}, {"n": 0})
    writer = multiprocessing.get_context("forkserver").Process(target=save_often, args=(path,))
    writer.start()
    seen = set()
    while writer.is_alive():
        tensors, facts = checkpoints.load(path)
        values = set(torch.cat(list(tensors.values())).tolist())
        assert values == {float(facts["n"])}
        seen |= values
    writer.join()
    assert writer.exitcode == 0 and len(seen) > 10


def test_a_disk_that_fills_while_training_loses_no_checkpoint(tmp_path):
    store = write_store(tmp_path / "a.zarr", activations(40, 64, 16))
    runs = [Run(k=4, d_sae=256, seed=0, tokens=10 * 256)]
    settings = Settings(batch_size=256, warmup_steps=2, lr=2e-3, dead_tokens=700, pool_tokens=2048)
    (whole,) = train(store, runs, settings, tmp_path / "whole", checkpoint_seconds=0)
    size = (tmp_path / "whole" / CHECKPOINT).stat().st_size
    with small_disk.mounted(tmp_path / "disk", 4) as disk:
        # room for one checkpoint, not for the next beside it
        filler = small_disk.fill(disk, size * 3 // 2)
        with pytest.raises(StreamgaugeError, match=r"cannot be written .*No space left") as caught:
            train(store, runs, settings, disk, checkpoint_seconds=0)
        assert caught.value.where == str(disk / CHECKPOINT) and "\n" not in str(caught.value)
        assert sorted(path.name for path in disk.iterdir()) == [CHECKPOINT, "filler"]
        assert checkpoints.load(disk / CHECKPOINT)[0]["0.done"][0] == 1
        filler.unlink()
        (resumed,) = train(store, runs, settings, disk, checkpoint_seconds=0)
    assert torch.equal(resumed.sae.W_dec, whole.sae.W_dec)
    assert resumed.history.equals(whole.history) and resumed.facts == whole.facts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_a_flipped_bit_of_a_checkpoint_is_found(tmp_path, dtype):
    """Anywhere: in the values, which safetensors never looks at, or in what is said of them."""
    path = tmp_path / "c.safetensors"
    tensors = {"a": torch.ones(5, 3).to(dtype), "b": torch.zeros(()).to(dtype)}
    checkpoints.save(path, tensors, {"n": 1})
    assert torch.equal(checkpoints.tensor(path, "a"), tensors["a"])
    data = path.read_bytes()
    for at in range(8, len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        if data[at : at + 1] == b" ":  # what pads the header says nothing
            continue
        with pytest.raises(StreamgaugeError, match="unreadable checkpoint"):
            checkpoints.load(path)
