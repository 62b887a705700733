"""Claims on artifacts: real processes that meet in one folder, die there, and leave damage."""

import contextlib
import fcntl
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

import small_disk
from streamgauge.artifacts import claim_file, claims, processes
from streamgauge.base.errors import StreamgaugeError

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["streamgauge.artifacts.claims"])
QUIET = 0.4
AT_ONCE = 5.0  # seconds, on a busy machine; a claim is quiet after 60 where nothing else is said


def acquire(results, *names, kind="run", **how):
    return claims.acquire(results, names, kind, **{"say": print, "quiet": 60.0, **how})


def left(results):
    """What lies in the folder of claims."""
    folder = results / claims.FOLDER
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@contextlib.contextmanager
def seconds(least=0.0, most=AT_ONCE):
    started = time.monotonic()
    yield
    assert least <= time.monotonic() - started <= most


def hold(results, names, here, go, kind="run"):
    claim = acquire(results, *names, kind=kind)
    here.put((time.monotonic(), claim.waited))
    go.wait()
    here.put((time.monotonic(), claim.waited))
    claim.release()


class Holder:
    """A process that claims, until it is told to go."""

    def __init__(self, results, *names, kind="run"):
        self.results = results
        self.here, self.go = PROCESSES.Queue(), PROCESSES.Event()
        self.process = PROCESSES.Process(
            target=hold, args=(results, names, self.here, self.go, kind), daemon=True
        )
        self.process.start()

    def asks(self, n):
        """Once there are n claims, and time enough to be let in."""
        while len(left(self.results)) < n:
            time.sleep(0.01)
        time.sleep(0.2)
        return self

    def arrived(self):
        return self.here.get(timeout=30)

    def end(self):
        self.go.set()
        left = self.here.get(timeout=30)
        self.process.join()
        return left


def elsewhere(results, *names, ticket=1, age=0, **more):
    """The claim of a process on another machine; gives its file."""
    who = processes.myself() | {"machine": "another", "host": "far", "run": ""} | more
    folder = results / claims.FOLDER / f"{more.get('kind', 'run')}-{0:032x}"
    folder.mkdir(parents=True)
    record = {"who": who, "since": "noon", "ticket": ticket, "narrowed": True}
    file = folder / claim_file.NAME
    file.write_text(json.dumps(record | {"writes": names, "reads": ["read.json"]}))
    os.utime(file, (time.time() - age,) * 2)
    return file


# --- who waits for whom --------------------------------------------------------------------------
def test_who_claims_the_same_waits_its_turn_and_others_do_not(tmp_path):
    first = Holder(tmp_path, "a.json", "b.json")
    first.arrived()
    second = Holder(tmp_path, "b.json", "c.json").asks(2)
    third = Holder(tmp_path, "c.json").asks(3)  # overlaps with the one that waits
    with seconds():
        claim = acquire(tmp_path, "d.json")
    assert not claim.waited
    claim.release()
    assert second.here.empty() and third.here.empty()
    ends = []
    for one, waiting in ((first, second), (second, third)):
        ends.append(one.end()[0])
        arrived, waited = waiting.arrived()
        assert waited and arrived >= ends[-1]
    third.end()
    assert left(tmp_path) == []


def test_the_user_is_told_who_holds_what_since_when(tmp_path):
    holder, said = Holder(tmp_path, "a.json", "b.json", "z.json"), []
    holder.arrived()
    threading.Timer(1.2, holder.go.set).start()
    acquire(tmp_path, "b.json", "z.json", "x.json", say=said.append).release()
    (line,) = said
    assert line.startswith(f"waiting for {tmp_path}/b.json and 1 more: run of ")
    assert f"process {holder.process.pid}, since 2" in line and "\n" not in line


def test_jobs_do_not_wait_for_runs_but_runs_for_jobs_that_live_on(tmp_path):
    run = Holder(tmp_path, "a.json")
    run.arrived()
    job = Holder(tmp_path, "a.json", kind="job")
    assert job.arrived()[1] is False
    run.end()
    later = Holder(tmp_path, "a.json", "b.json").asks(2)
    assert later.here.empty()
    job.end()
    assert later.arrived()[1] is True
    later.end()


def test_two_claims_of_one_process_do_not_wait_for_each_other(tmp_path):
    """A workflow may take ours as a module twice."""
    with seconds():
        one, two = acquire(tmp_path, "a.json"), acquire(tmp_path, "a.json")
    one.release()
    two.release()


def test_a_narrowed_claim_lets_others_pass(tmp_path):
    claim = acquire(tmp_path, "a.json", "b.json")
    other = Holder(tmp_path, "a.json").asks(2)
    assert other.here.empty()
    claim.narrow(["b.json"], ["a.json", "b.json"])
    other.arrived()
    other.end()
    claim.release()


@pytest.mark.parametrize(
    ("writes", "reads", "refused"),
    [("x", "", "x"), ("", "x", "x"), ("read", "", "read"), ("", "read", None), ("y", "z", None)],
)
def test_what_turns_up_late_is_refused_where_it_is_in_use(tmp_path, writes, reads, refused):
    """A target outside the configuration, or a file that another run reads."""
    file = elsewhere(tmp_path, "x.json")
    beats = Beats(file)
    claim = acquire(tmp_path, "a.json")
    with pytest.raises(StreamgaugeError) if refused else contextlib.nullcontext() as found:
        claim.narrow(*([f"{name}.json"] if name else [] for name in (writes, reads)))
    if refused:
        assert str(found.value).startswith(f"{tmp_path}/{refused}.json: is in use by run of ")
    claim.release()
    beats.end()


def test_a_dead_run_elsewhere_refuses_nothing_for_long(tmp_path):
    elsewhere(tmp_path, "x.json")
    claim = acquire(tmp_path, "a.json", quiet=QUIET)
    claim.narrow(["x.json"])
    claim.release()
    assert left(tmp_path) == []


# --- who is dead ---------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["run", "job"])
def test_a_killed_process_is_known_at_once(tmp_path, kind):
    holder = Holder(tmp_path, "a.json", kind=kind)
    holder.arrived()
    os.kill(holder.process.pid, signal.SIGKILL)  # and stays a zombie: nobody has asked for it
    with seconds():
        acquire(tmp_path, "a.json", kind=kind).release()
    assert left(tmp_path) == []
    holder.process.join()


def test_a_stopped_process_is_alive(tmp_path):
    holder = Holder(tmp_path, "a.json")
    holder.arrived()
    os.kill(holder.process.pid, signal.SIGSTOP)
    threading.Timer(3 * QUIET, os.kill, (holder.process.pid, signal.SIGCONT)).start()
    threading.Timer(3 * QUIET, holder.go.set).start()
    with seconds(3 * QUIET):
        acquire(tmp_path, "a.json", quiet=QUIET).release()


def test_an_id_that_is_used_again_is_another_process(tmp_path):
    me = processes.myself()
    elsewhere(tmp_path, "a.json", machine=me["machine"], started=me["started"] - 1)
    with seconds():
        acquire(tmp_path, "a.json").release()
    assert left(tmp_path) == []


@pytest.mark.parametrize("age", [0, 10**8, -(10**8)], ids=["now", "long ago", "to come"])
def test_a_process_elsewhere_is_dead_when_it_has_been_quiet(tmp_path, age):
    """What its file's time is does not matter: clocks differ, and jump."""
    elsewhere(tmp_path, "a.json", age=age)
    with seconds(QUIET):
        acquire(tmp_path, "a.json", quiet=QUIET).release()
    assert left(tmp_path) == []


class Beats(threading.Thread):
    """Signs of life of a process elsewhere, whose clock runs backwards."""

    def __init__(self, file):
        super().__init__(daemon=True)
        self.file, self.over = file, threading.Event()
        self.start()

    def run(self):
        now = time.time()
        while not self.over.wait(QUIET / 8):
            now -= 1000
            with contextlib.suppress(FileNotFoundError):
                os.utime(self.file, (now, now))

    def end(self):
        self.over.set()
        self.join()


def test_a_process_elsewhere_lives_as_long_as_its_claim_changes(tmp_path):
    beats = Beats(elsewhere(tmp_path, "a.json"))
    threading.Timer(3 * QUIET, beats.over.set).start()
    with seconds(4 * QUIET):
        acquire(tmp_path, "a.json", quiet=QUIET).release()


def test_who_has_no_ticket_yet_may_have_looked_before_we_came(tmp_path):
    beats = Beats(elsewhere(tmp_path, "a.json", ticket=None))
    threading.Timer(3 * QUIET, beats.over.set).start()
    with seconds(4 * QUIET):
        acquire(tmp_path, "a.json", quiet=QUIET).release()


def test_signs_of_life_go_on_when_the_clock_is_set_back(tmp_path):
    claim = acquire(tmp_path, "a.json", beat=0.05)
    (folder,) = (tmp_path / claims.FOLDER).iterdir()
    file, seen = folder / claim_file.NAME, set()
    os.utime(file, (4e9, 4e9))  # what it left before
    while len(seen) < 4:
        seen.add(file.stat().st_mtime)
        time.sleep(0.02)
    assert min(seen) >= 4e9
    claim.release()


def test_an_earlier_job_of_the_same_run_is_over(tmp_path, monkeypatch):
    """A job is tried again on another machine after the first was killed on its own."""
    monkeypatch.setenv(claims.RUN, "run-1")
    elsewhere(tmp_path, "a.json", kind="job", run="run-1")
    with seconds():
        acquire(tmp_path, "a.json", kind="job").release()
    assert left(tmp_path) == []
    elsewhere(tmp_path, "a.json", kind="job", run="run-2")
    with seconds(QUIET):
        acquire(tmp_path, "a.json", kind="job", quiet=QUIET).release()


def test_a_run_leaves_no_claim_of_its_own_jobs(tmp_path):
    claim = acquire(tmp_path, "a.json")
    elsewhere(tmp_path, "a.json", kind="job", run=claim.id)
    claim.release()
    assert left(tmp_path) == []


# --- damage --------------------------------------------------------------------------------------
GOOD = {"since": "", "ticket": 1, "narrowed": False, "writes": ["a.json"], "reads": []}
WHO = {"host": "h", "user": "u", "pid": 1, "machine": "m", "started": 1, "run": ""}
DAMAGED = {
    "empty": "",
    "cut": '{"who": {"host"',
    "list": "[]",
    "deep": "[" * 100_000,
    "no who": json.dumps(GOOD),
    "who without a process": json.dumps(GOOD | {"who": {}}),
    "process no number": json.dumps(GOOD | {"who": WHO | {"pid": "1"}}),
    "process a huge number": json.dumps(GOOD | {"who": WHO | {"pid": 10**30}}),
    "ticket no number": json.dumps(GOOD | {"who": WHO, "ticket": "1"}),
    "writes no list": json.dumps(GOOD | {"who": WHO, "writes": 7}),
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_claim_counts_until_it_has_been_quiet(tmp_path, text):
    folder = tmp_path / claims.FOLDER / "run-1"
    folder.mkdir(parents=True)
    (folder / claim_file.NAME).write_text(text)
    with seconds(0.1):
        acquire(tmp_path, "a.json", quiet=0.1).release()
    assert left(tmp_path) == []


def fifo(folder):
    folder.mkdir()
    os.mkfifo(folder / claim_file.NAME)


def huge(folder):
    folder.mkdir()
    (folder / claim_file.NAME).touch()
    os.truncate(folder / claim_file.NAME, 1 << 40)


def endless(folder):
    folder.mkdir()
    (folder / claim_file.NAME).symlink_to("/dev/zero")


def elsewhere_linked(folder):
    kept = folder.parent.parent / "kept"
    kept.mkdir()
    (kept / "precious").touch()
    folder.symlink_to(kept)


@pytest.mark.parametrize(
    "make",
    [
        *(fifo, huge, endless, elsewhere_linked, os.mkdir, os.mkfifo),
        lambda path: path.touch(),
        lambda path: (path / claim_file.NAME).mkdir(parents=True),
    ],
    ids=["fifo", "huge", "endless", "link", "no file", "is fifo", "is file", "folder"],
)
def test_what_is_no_file_is_not_read_and_goes(tmp_path, make):
    (tmp_path / claims.FOLDER).mkdir()
    make(tmp_path / claims.FOLDER / "run-1")
    with seconds(0.1):
        acquire(tmp_path, "a.json", quiet=0.1).release()
    assert left(tmp_path) == []
    assert make is not elsewhere_linked or (tmp_path / "kept/precious").exists()


def test_what_others_keep_there_is_left_alone(tmp_path):
    (tmp_path / claims.FOLDER / "notes").mkdir(parents=True)
    with seconds():
        acquire(tmp_path, "a.json").release()
    assert left(tmp_path) == ["notes"]


# --- how it ends ---------------------------------------------------------------------------------
SCRIPT = """
import signal, sys, time
from streamgauge.artifacts import claims
claims.acquire({results!r}, ["a.json"], say=print, beat=0.05)
print("here", flush=True)
{then}
"""
ENDS = {
    "end": ("", None, 0),
    "error": ("1 / 0", None, 1),
    "exit": ("sys.exit(3)", None, 3),
    "interrupt": ("time.sleep(60)", signal.SIGINT, -signal.SIGINT),
    "fork": ("import os\nif not os.fork(): sys.exit()\nos.wait()\ntime.sleep(60)", "held", 0),
    "removed": ("time.sleep(60)", "removed", 1),
}


@pytest.mark.parametrize("how", ENDS)
def test_a_claim_goes_with_its_process_and_a_process_with_its_claim(tmp_path, how):
    then, what, status = ENDS[how]
    script = SCRIPT.format(results=str(tmp_path), then=then)
    words = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", script], **words) as process:
        assert process.stdout.readline() == "here\n"
        if what == "held":
            time.sleep(1)
            assert len(left(tmp_path)) == 1
            process.send_signal(signal.SIGKILL)
            process.wait()
            return
        if what == "removed":
            claim_file.remove(next((tmp_path / claims.FOLDER).iterdir()))
        elif what:
            process.send_signal(what)
        said = process.stderr.read()
        assert process.wait() == status, said
    assert left(tmp_path) == []
    assert what != "removed" or ("another took it for dead" in said and "Traceback" not in said)


@pytest.mark.parametrize("what", ["read-only", "full"])
def test_what_cannot_be_written_is_said_in_one_line(tmp_path, what):
    with small_disk.mounted(tmp_path / "disk", 1) as disk:
        results = disk / "results"
        results.mkdir()
        if what == "full":
            small_disk.fill(disk)
        else:
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(StreamgaugeError, match="cannot be written") as found:
            acquire(results, *(f"{i}.json" for i in range(10_000)))
        assert str(found.value).startswith(f"{results}: ") and "\n" not in str(found.value)
        assert left(results) == []
        if what == "read-only":
            with pytest.raises(StreamgaugeError, match="make it writable"):
                claims.writable(results)


def test_a_folder_that_is_a_link_is_where_it_points(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "shared")
    claim = acquire(tmp_path / "link", "a.json")
    other = Holder(tmp_path / "shared", "a.json").asks(2)
    assert other.here.empty()
    claim.release()
    other.arrived()
    other.end()


# --- many ----------------------------------------------------------------------------------------
NAMES = [f"{i}.json" for i in range(6)]


def worker(results, seed, rounds, found):
    """Claim again and again; a lock of the system's own on every artifact says who was there."""
    rng = random.Random(seed)
    if rng.random() < 0.4:
        threading.Timer(rng.uniform(0.0, 1.0), os.kill, (os.getpid(), signal.SIGKILL)).start()
    for _ in range(rounds):
        names = rng.sample(NAMES, rng.randint(1, 3))
        kind = rng.choice(["run", "run", "job"])
        # one killed while it put down its claim left an unreadable one
        claim = acquire(results, *names, kind=kind, quiet=1.0)
        with contextlib.ExitStack() as stack:
            for name in names:
                file = stack.enter_context(open(results / f"{kind}-{name}", "w"))
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    found.write_text(f"{name} twice")
            time.sleep(rng.uniform(0, 0.005))
        claim.release()


def test_many_processes_that_are_killed_at_random_never_overlap(tmp_path):
    found = tmp_path / "found"
    running, exits = [], []
    for seed in range(20):
        running.append(PROCESSES.Process(target=worker, args=(tmp_path, seed, 8, found)))
        running[-1].start()
        while sum(process.is_alive() for process in running) >= 8:
            time.sleep(0.01)
    for process in running:
        process.join(120)
        exits.append(process.exitcode)
    assert not found.exists(), found.read_text()
    assert set(exits) == {0, -signal.SIGKILL} and exits.count(0) >= 8
    acquire(tmp_path, *NAMES, quiet=QUIET).release()
    assert left(tmp_path) == []
