"""Checkpoints: whole or not there, and continued only by the work that wrote them."""

import pytest
import torch

from streamgauge import checkpoints
from streamgauge.errors import StreamgaugeError


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
