"""Every end is one line: no memory, no threads, no room, interrupts at any moment, faults of ours.

Real processes, real limits of the system, real signals.
"""

import resource
import signal
import subprocess
import sys
import time

import pytest

import script_jobs
import small_disk
import tiny_models

MEMORY = "out of memory"
GO_ON = "run the same again to go on."
COMPARE = "model,d_model,k,r2,ce_rec\na,8,2,0.5,0.5\nb,16,2,0.6,0.4\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_models.tiny_llama(tmp_path_factory.mktemp("llama") / "llama")


def run(words, cwd, limit=None, **limits):
    """A process to its end, within limits of the system."""

    def limited():
        for name, value in limits.items():
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))

    return subprocess.run(
        words, cwd=cwd, preexec_fn=limited, capture_output=True, text=True, timeout=120
    )


def cli(*words):
    return [sys.executable, "-m", "streamgauge.cli", *words]


def one_line(done, prefix, *says, status=(1, 2)):
    """The last line of stderr; all others are progress."""
    lines = done.stderr.splitlines()
    assert done.returncode in status and "Traceback" not in done.stderr, done.stderr[-2000:]
    faults = [line for line in lines if not line.startswith("[")]
    assert len(faults) == 1 and faults[0].startswith(f"{prefix}: "), done.stderr[-2000:]
    assert all(text in faults[0] for text in says), faults[0]
    return faults[0]


# --- no memory ----------------------------------------------------------------------------------
@pytest.mark.parametrize("mib", [400, pytest.param(900, marks=pytest.mark.cluster)])
def test_a_job_without_memory(tmp_path, request, mib):
    """While it imports its libraries, and while it works, it ends alike."""
    source = request.getfixturevalue("model") if mib == 900 else tmp_path / "not met"
    done = run(script_jobs.subject(tmp_path, source), tmp_path, AS=mib << 20)
    line = one_line(done, "error", MEMORY, GO_ON)
    assert (tmp_path / "job.log").read_text().splitlines()[-1] == line
    assert not (tmp_path / "model").exists() and not (tmp_path / "subject.json").exists()


COMMAND = """
import re, resource, sys
import streamgauge.studies.proxy_gap
from streamgauge.cli.main import main
size = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (size + (int(sys.argv[1]) << 20),) * 2)
sys.exit(main(["compare", "rows.csv", "--out", "out"]))
"""


@pytest.mark.parametrize("mib", [0, 8, 64])
def test_a_command_without_memory(tmp_path, mib):
    """More and less than what it asks for, once its libraries are there: they may ask for ever."""
    (tmp_path / "rows.csv").write_text(COMPARE + "a,8,2,0.5,0.5\n" * (1 << 21))
    done = run([sys.executable, "-c", COMMAND, str(mib)], tmp_path)
    one_line(done, "streamgauge", MEMORY, status=[2])
    assert not (tmp_path / "out").exists()


WORK = """
import sys
from streamgauge.base import ends, job_log
with job_log.job(sys.argv[1]):
    {work}
"""
NO_MEMORY = {
    "numpy": "import numpy; numpy.ones(1 << 50)",
    "python": "bytearray(1 << 60)",
    "arrow": "import pyarrow; pyarrow.allocate_buffer(1 << 50)",
    "torch": "import torch; torch.empty(1 << 50)",
}
ENDS = {
    "threads": ("import _thread, time\n    while True: _thread.start_new_thread(time.sleep, (9,))",
                "starts no more threads"),
    "space": ("open('/dev/full', 'w', buffering=1).write('x\\n')", "No space left on device. Free"),
    "file size": ("open('big', 'wb').write(bytes(1 << 21))", "Raise the file size limit"),
    "files": ("kept = [open('/dev/null') for _ in range(999)]", "Raise the limit of open files"),
}  # fmt: skip


@pytest.mark.parametrize("library", NO_MEMORY)
def test_no_memory_in_the_words_of_every_library(tmp_path, library):
    words = [sys.executable, "-c", WORK.format(work=NO_MEMORY[library]), "job.log"]
    done = run(words, tmp_path)
    line = one_line(done, "error", MEMORY, GO_ON, status=[1])
    assert (tmp_path / "job.log").read_text() == f"{line}\n"


@pytest.mark.parametrize("end", ENDS)
def test_what_the_system_refuses_is_one_line_with_its_remedy(tmp_path, end):
    work, says = ENDS[end]
    words = [sys.executable, "-c", WORK.format(work=work), "job.log"]
    limits = {"FSIZE": 1 << 20, "NOFILE": 64, "AS": 1 << 30 if end == "threads" else -1}
    line = one_line(run(words, tmp_path, **limits), "error", says, GO_ON, status=[1])
    assert (tmp_path / "job.log").read_text() == f"{line}\n"


def test_a_fault_of_ours_keeps_its_traceback_and_says_whose_it_is(tmp_path):
    done = run([sys.executable, "-c", WORK.format(work="1 / 0"), "job.log"], tmp_path)
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and lines[0].startswith("Traceback") and "Zero" in lines[-2]
    assert lines[-1].startswith("error: this is a fault of streamgauge") and GO_ON in lines[-1]
    assert (tmp_path / "job.log").read_text() == done.stderr


def test_a_file_system_that_holds_no_more_files(tmp_path):
    with small_disk.mounted(tmp_path / "disk", 4) as disk:
        subprocess.run(["mount", "-o", "remount,nr_inodes=3", str(disk)], check=True)
        work = "[open(f'{sys.argv[1]}{i}', 'w') for i in range(9)]"
        done = run([sys.executable, "-c", WORK.format(work=work), str(disk / "log")], tmp_path)
        one_line(done, "error", "Remove files on that file system", status=[1])


def test_a_log_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "logs").write_text("a file where a folder belongs")
    words = [sys.executable, "-c", WORK.format(work="pass"), "logs/job.log"]
    one_line(run(words, tmp_path), "error", "logs/job.log: Not a directory. Move away", status=[1])


# --- interrupts ---------------------------------------------------------------------------------
def interrupted(words, cwd, ready, moment, number):
    """A process that gets a signal `moment` seconds after `ready` is true."""
    with subprocess.Popen(words, cwd=cwd, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not ready() and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(moment)
        process.send_signal(number)
        err = process.communicate(timeout=60)[1]
    return subprocess.CompletedProcess(words, process.returncode, "", err)


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        *((0.1, signal.SIGINT), (0.3, signal.SIGTERM), (0.7, signal.SIGINT)),
        pytest.param(2.5, signal.SIGTERM, marks=pytest.mark.cluster),
    ],
)
def test_an_interrupt_of_a_job_is_one_line(tmp_path, request, moment, number):
    """Most moments fall into the imports; the last also into the work."""
    source = request.getfixturevalue("model") if moment > 1 else tmp_path / "not met"
    words = script_jobs.subject(tmp_path, source)
    done = interrupted(words, tmp_path, (tmp_path / "ready").exists, moment, number)
    said = "interrupted." if number == signal.SIGINT else "stopped by a signal (SIGTERM)."
    line = one_line(done, "error", said, GO_ON, status=[130])
    assert (tmp_path / "job.log").read_text().splitlines()[-1] == line
    left = {path.name for path in tmp_path.iterdir()} - {"job.py", "job.log", "ready"}
    assert not {name for name in left if not name.startswith(".")}


@pytest.mark.parametrize("moment", [0.05, 0.2, 0.6])
def test_an_interrupt_of_a_command_is_one_line(tmp_path, moment):
    """From the moment at which Python runs code of ours."""
    words = [sys.executable, "-X", "importtime", "-m", "streamgauge.cli", "audit", "--help"]
    with subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.endswith("streamgauge.base.ends\n"):
                break
        time.sleep(moment)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    said = [line for line in rest.splitlines() if not line.startswith("import time:")]
    assert process.returncode == 130 and len(said) == 1, said
    assert said[0].startswith("streamgauge: interrupted.") and GO_ON in said[0]
