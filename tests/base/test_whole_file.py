"""Files appear whole or not at all, whatever other writers, kills and full disks do."""

import multiprocessing
import os
import signal

import pytest

import small_disk
from streamgauge.base import whole_file
from streamgauge.base.errors import StreamgaugeError

PROCESSES = multiprocessing.get_context("forkserver")
SIZE = 1 << 20


def fill(letter, path):
    """Write many bytes in small pieces, so that others see it half done."""
    with open(path, "wb") as file:
        for _ in range(64):
            file.write(letter * (SIZE // 64))


def write_often(path, letter):
    for _ in range(60):
        whole_file.replace(path, lambda temporary: fill(letter, temporary))


def killed_half_way(path):
    def write(temporary):
        (temporary.parent / ".of-a-library").write_text("half")
        temporary.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    whole_file.replace(path, write)


def kill_one(path):
    process = PROCESSES.Process(target=killed_half_way, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_writers_at_the_same_time_never_show_half_a_file(tmp_path):
    path = tmp_path / "x.bin"
    whole_file.replace(path, lambda temporary: fill(b"0", temporary))
    writers = [PROCESSES.Process(target=write_often, args=(path, n)) for n in (b"1", b"2")]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        data = path.read_bytes()
        assert len(data) == SIZE
        seen |= set(data)
        assert len(set(data)) == 1
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen >= set(b"12")
    assert names(tmp_path) == ["x.bin"]


@pytest.mark.parametrize("name", ["x.json", "x[1].json"])
def test_what_a_killed_writer_left_goes_with_the_next_one(tmp_path, name):
    path = tmp_path / name
    path.write_text("old")
    kill_one(path)
    assert path.read_text() == "old" and len(names(tmp_path)) == 2
    work = tmp_path / f".{name}.0a1b2c3d.partial"  # a job's unfinished work looks much like it
    work.mkdir()
    kill_one(tmp_path / "other.json")
    whole_file.replace(path, lambda temporary: temporary.write_text("new"))
    assert path.read_text() == "new"
    left = names(tmp_path)
    assert len(left) == 3 and {work.name, name} < set(left)
    assert [n for n in left if n.startswith(".other.json.")]


def test_a_writer_overtaken_by_another_writes_again(tmp_path):
    path, calls = tmp_path / "x", []

    def slow(temporary):
        calls.append(temporary)
        temporary.write_text("slow")
        if len(calls) == 1:
            whole_file.replace(path, lambda quick: quick.write_text("quick"))

    whole_file.replace(path, slow)
    assert path.read_text() == "slow" and len(set(calls)) == 2
    assert names(tmp_path) == ["x"]


def test_a_writer_whose_work_was_cleared_away_writes_again(tmp_path):
    path, calls = tmp_path / "work" / "x", []

    def slow(temporary):
        calls.append(temporary)
        temporary.write_text("slow")
        if len(calls) == 1:
            (tmp_path / "work").rename(tmp_path / "cleared away")

    whole_file.replace(path, slow)
    assert path.read_text() == "slow" and len(calls) == 2 and names(path.parent) == ["x"]


def test_a_fault_of_the_writer_is_its_own(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")

    def fails(temporary):
        temporary.write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        whole_file.replace(path, fails)
    assert path.read_text() == "old" and names(tmp_path) == ["x"]


def test_a_full_disk_is_named_and_leaves_what_was_there(tmp_path):
    with small_disk.mounted(tmp_path / "disk", 2) as disk:
        path = disk / "x"
        path.write_text("old")
        with pytest.raises(StreamgaugeError, match="No space left on device") as caught:
            whole_file.replace(path, lambda temporary: temporary.write_bytes(bytes(3 * SIZE)))
        assert caught.value.where == str(path) and "\n" not in str(caught.value)
        assert path.read_text() == "old" and names(disk) == ["x"]
        small_disk.enlarge(disk, 8)
        whole_file.replace(path, lambda temporary: temporary.write_bytes(bytes(3 * SIZE)))
        assert path.stat().st_size == 3 * SIZE
