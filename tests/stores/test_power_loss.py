"""Power cuts: what jobs do to the file system is recorded, and every moment of it played back.

Whatever a cut leaves: a manifest that is found describes what is there, a file under its own name
is whole, a job that had ended is done, and the jobs run again end in the same bytes. Each flush is
needed: without any one of them a cut does damage.
"""

import errno
import hashlib
import json
import os
import pickle
import random
import re
import shutil
from functools import cache
from pathlib import PurePosixPath
from typing import NamedTuple

import pytest

import killing
import power_cut
from streamgauge.artifacts import manifest

SPECTRA = "results/tiny/prose/spectra"
CANYON = "results/studies/tiny/figures/pr_canyon"
MANIFEST = killing.SUBJECT["subject"]
GROWN = "results/grown/subject.json"
HARVEST = [killing.part("harvest", "activations", i, 2) for i in (0, 1)]
HARVEST.append(killing.gather("harvest", "activations", 2))
JOBS = {
    "subject": [
        killing.job(
            "subject",
            {},
            {"manifest": killing.SUBJECT["subject"], "model": killing.SUBJECT["model"]},
            {"subject": "tiny"},
        )
    ],
    "pretrain": [
        killing.job(
            "pretrain",
            {},
            {"manifest": GROWN, "model": "results/grown/model"},
            {"subject": "grown"},
        )
    ],
    "harvest": HARVEST,
    "harvest without links": HARVEST,
    "training": [killing.training("mse", 6 * killing.STUDY["sae"]["batch_size"])],
    "table": [
        killing.job(
            "spectra",
            killing.SOURCE,
            {"manifest": f"{SPECTRA}.json", "store": f"{SPECTRA}.zarr", "table": f"{SPECTRA}.csv"},
            killing.WORDS,
        )
    ],
    # what it draws is written in place, by a library that flushes nothing
    "figure": [
        killing.job(
            "figure_pr_canyon",
            {"manifest": [f"{SPECTRA}.json"], "tables": [f"{SPECTRA}.csv"], "hooked": []},
            {"manifest": f"{CANYON}.json", "svg": f"{CANYON}.svg", "png": f"{CANYON}.png"},
            {"study": "tiny"},
        )
    ],
    "adopt": [],
}
# outputs that are written in place: whole only once a manifest names them
LOOSE = (".csv", ".parquet", ".svg", ".png", ".html")
TEMPORARY = re.compile(r"[0-9a-f]{32}")
RECEIPT = re.compile(r".*/\.[^/]+\.part-\d+-of-\d+")
WHOLE = re.compile(rf".*/model|{RECEIPT.pattern}")  # folders that are whole or not there
SCRATCH = re.compile(r".*/\.[^/]+\.[0-9a-f]{8}\.partial")


class Record(NamedTuple):
    """What was done to the results, and what came of it."""

    kinds: list
    steps: list
    final: dict


# ---- recording -----------------------------------------------------------------------------------


def record(folder, name, jobs, out):
    """Run jobs in this process and write down what they do."""
    if name.startswith("harvest"):
        shutil.rmtree(folder / killing.LAYER, ignore_errors=True)
    if name == "harvest without links":
        os.link = refused
    recorder = power_cut.Recorder(folder / "results")
    for i, job in enumerate(jobs):
        recorder.steps.append(("removes", i, None))
        for path in job["output"].values():
            remove(folder / path)
        killing.run_few(folder, job)
        recorder.look()
        recorder.steps.append(("ended", i, None))
    if name == "adopt":
        adopt(folder)
        recorder.look()
    disk = played(recorder.kinds, recorder.steps)
    out.write_bytes(pickle.dumps(Record(recorder.kinds, recorder.steps, disk.now())))


def keyed(name):
    return [killing.keyed(job) for job in JOBS[name]]


def refused(*_, **__):
    raise OSError(errno.EPERM, "no links here")


def adopt(folder):
    path = folder / f"{SPECTRA}.json"
    spec = manifest.read(path)["spec"] | {"code": "of today"}
    manifest.replace(path, manifest.under(path, json.dumps(spec)))


def remove(path):
    """As a workflow engine removes outputs: it does not wait for the disk."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def played(kinds, steps):
    disk = power_cut.Disk(kinds)
    for step in steps:
        if step[0] not in ("removes", "ended"):
            disk.play(step)
    return disk


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A folder with all that the jobs need, and all that they make."""
    folder = killing.create(tmp_path_factory.mktemp("study"))
    for name in ("pretrain", "table"):
        for job in JOBS[name]:
            killing.finish(folder, job)
    return folder


@pytest.fixture(scope="module")
def records(study, tmp_path_factory):
    """name -> what those jobs do, recorded."""
    made = {}
    for name in JOBS:
        out = tmp_path_factory.mktemp("record") / "record"
        process = killing.PROCESSES.Process(target=record, args=(study, name, keyed(name), out))
        process.start()
        process.join()
        assert process.exitcode == 0, (study / "log.txt").read_text()[-2000:]
        made[name] = pickle.loads(out.read_bytes())
    return made


# ---- what must hold ------------------------------------------------------------------------------


@cache
def sha256(content):
    return hashlib.sha256(content).hexdigest()


def files_below(state, folder):
    return {p: c for p, c in state.items() if p.startswith(f"{folder}/") and c is not None}


def faults_of_manifests(state):
    """Manifests that describe what is not there."""
    for path, content in state.items():
        if TEMPORARY.search(path):
            continue
        if not (path.endswith(".json") and isinstance(content, bytes) and content[:1] == b"{"):
            continue
        try:
            said = json.loads(content)
        except ValueError:
            continue
        if not manifest.is_manifest(said):
            continue
        at = PurePosixPath(path).parent
        for name, digest in said["files"].items():
            found = state.get(str(at / name))
            if found is None or (isinstance(found, bytes) and sha256(found) != digest):
                yield f"{path} lists {name}"
        for top in {name.split("/")[0] for name in said["files"]}:
            for below in files_below(state, at / top):
                if str(PurePosixPath(below).relative_to(at)) not in said["files"]:
                    yield f"{path} does not list {below}"


def faults_of_names(state, now, seen, final):
    """Files and folders under their own names that are not whole."""
    for path, content in state.items():
        if TEMPORARY.search(path):
            continue
        if isinstance(content, bytes) and not path.endswith(LOOSE) and content not in seen[path]:
            yield f"{path} is not whole"
        if content is None and WHOLE.fullmatch(path):
            if files_below(state, path) != files_below(final, path):
                yield f"{path} is half there"
        if content is None and SCRATCH.fullmatch(path):
            spec = f"{path}/spec.json"
            if spec in now and spec not in state:
                yield f"{path} does not say what it was begun for"


def faults_of_the_finished(state, now, outputs):
    """What jobs that had ended have lost."""
    for output in outputs:
        output = output.removeprefix("results/")
        if files_below(state, output) != files_below(now, output):
            yield f"{output} is lost"
        if state.get(output) != now.get(output):
            yield f"{output} is lost"


def faults_of_kept_work(disk, now, least):
    """Scratch folders with work in them that was flushed, in a folder that was not."""
    for path in now:
        if SCRATCH.fullmatch(path) and disk.lasting(path) - {"spec.json"} and path not in least:
            yield f"{path} is lost with all that is in it"


def cuts(record, jobs, mixtures, without=None):
    """Every state that a cut may leave after every step: (state, faults), each state once.

    Args:
        mixtures: random ones of each moment.
        without: who does not flush.
    """
    disk, seen, outputs, known = power_cut.Disk(record.kinds), {}, [], set()
    draw = random.Random(0)
    at_work = False
    for what, inode, value in record.steps:
        # removing what was there is not yet a job's work: it begins with its first flush
        at_work = at_work and what != "removes"
        at_work = at_work or (what == "flush" and value != "before")
        if what == "ended":
            outputs += jobs[inode]["output"].values()
        elif what != "removes" and (what != "flush" or value != without):
            disk.play((what, inode, value))
        if not at_work and what != "removes":
            continue
        now = disk.now()
        for path, content in now.items():
            seen.setdefault(path, set()).add(content)
        if not at_work:
            continue
        least = disk.least()
        changes = disk.pending()
        states = [now, least, disk.empty(), *(disk.mixed(draw) for _ in range(mixtures))]
        # one change that came before the cut, or that came too late
        for i, change in enumerate(changes if what != "bytes" else ()):
            if change[0] in disk.flushed_names:
                states.append(disk.with_some([change]))
                states.append(disk.with_some(changes[:i] + changes[i + 1 :]))
        kept = list(faults_of_kept_work(disk, now, least))
        for state in states:
            key = len(outputs), hash(frozenset(state.items()))
            if key not in known:
                known.add(key)
                found = [
                    *kept,
                    *faults_of_manifests(state),
                    *faults_of_names(state, now, seen, record.final),
                    *faults_of_the_finished(state, now, outputs),
                ]
                yield state, found


@pytest.mark.parametrize("name", JOBS)
def test_no_cut_leaves_a_lie(records, name):
    states = 0
    for _, found in cuts(records[name], JOBS[name], mixtures=3):
        assert not found, found[:4]
        states += 1
    print(f"{name}: {len(records[name].steps)} steps, {states} states")
    assert states >= 5


def flushes(record):
    return {value for what, _, value in record.steps if what == "flush"} - {"before"}


def test_every_flush_is_needed(records):
    """Each is left out in turn, wherever it is done."""
    needless = {}
    for name, record in sorted(records.items(), key=lambda item: len(item[1].steps)):
        for who in flushes(record):
            found = (bool(found) for _, found in cuts(record, JOBS[name], 0, without=who))
            needless[who] = needless.get(who, True) and not any(found)
    print(sorted(needless))
    assert len(needless) >= 10
    assert not {who for who, never in needless.items() if never}


# ---- and the jobs run again ----------------------------------------------------------------------


def again(folder, name, jobs):
    """What a user does after the cut: jobs without all of their outputs are run, each once."""
    for job in jobs:
        outputs = [folder / path for path in job["output"].values()]
        if not all(path.exists() for path in outputs):
            for path in outputs:
                remove(path)
            killing.run_few(folder, job)
    if name == "adopt":
        adopt(folder)


def assert_made_again(state, final, study, name, folder):
    power_cut.lay(state, folder / "results")
    for source in ("prose.txt", "model"):
        (folder / source).symlink_to(study / source)
    process = killing.PROCESSES.Process(target=again, args=(folder, name, keyed(name)))
    process.start()
    process.join()
    assert process.exitcode == 0, (folder / "log.txt").read_text()[-2000:]
    for job in JOBS[name]:
        for path in job["output"].values():
            if not RECEIPT.fullmatch(path):
                assert on_disk(folder, path) == made(final, path), path
        assert manifest.problems(folder / job["output"].get("manifest", MANIFEST)) == []
    shutil.rmtree(folder)


def made(final, path):
    path = path.removeprefix("results/")
    found = {path: final[path], **files_below(final, path)}
    return {name: content for name, content in found.items() if isinstance(content, bytes)}


def on_disk(folder, path):
    results = folder / "results"
    files = [folder / path, *(folder / path).rglob("*")]
    files = (file for file in files if file.is_file() and not file.is_symlink())
    return {str(file.relative_to(results)): file.read_bytes() for file in files}


def some(items, count):
    """`count` of them, evenly spread."""
    items = list(items)
    return items[:: max(1, len(items) // count)]


@pytest.mark.parametrize("name", JOBS)
def test_after_a_cut_the_jobs_end_in_the_same_bytes(records, study, tmp_path, name):
    states = [state for state, _ in cuts(records[name], JOBS[name], mixtures=1)]
    for i, state in enumerate(some(states, 3)):
        assert_made_again(state, records[name].final, study, name, tmp_path / str(i))


@pytest.mark.cluster
@pytest.mark.parametrize("name", JOBS)
def test_after_every_cut_the_jobs_end_in_the_same_bytes(records, study, tmp_path, name):
    states = [state for state, _ in cuts(records[name], JOBS[name], mixtures=2)]
    for i, state in enumerate(some(states, 12)):
        assert_made_again(state, records[name].final, study, name, tmp_path / str(i))
