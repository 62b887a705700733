"""Take over what code from before an upgrade made, where a sample made by today's code is equal.

An artifact is *outdated* when its spec differs from today's in the code alone. The scripts of its
rule then make a part of it anew (see `Sample`), below a scratch folder of the same file system, and
what they write is compared with what is stored: files byte for byte, rows of tables exactly. Where
all is equal the manifest gets today's spec; no other file of the artifact is touched.
"""

import filecmp
import json
import os
import random
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from streamgauge.artifacts import manifest, verify
from streamgauge.artifacts.stages import STAGES
from streamgauge.artifacts.worker import Worker
from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.tables import read_parquet
from streamgauge.stores.unfinished import SPEC

SCRATCH = ".adopt-"
#: kinds of samples, see `Sample`, in words
KINDS = {
    "whole": "all of it",
    "shards": "some shards",
    "sequences": "a batch of sequences",
    "steps": "first steps",
}
# rows at the beginning of a training's history that are made anew
_ROWS = 20
# of a training's facts, those that count what was done
_COUNTED = {"tokens_seen", "epochs"}


class Rule(NamedTuple):
    """What the workflow would run to make an artifact.

    Attributes:
        script: path.
        input, output: files by name.
        wildcards: of the artifact's path.
        spec: the artifact's key today.
        device, threads: what its job gets.
        part: the rule that writes one part of it, for a store written in parts.
    """

    script: str
    input: Mapping[str, Any]
    output: Mapping[str, Any]
    wildcards: Mapping[str, str]
    spec: str
    device: str
    threads: int
    part: "Rule | None" = None


class Sample(NamedTuple):
    """How much of an artifact is made anew.

    Attributes:
        kind: as `Stage.sample`: ``whole``; ``shards``: some of them, and all that the gather makes
            of the stored ones; ``sequences``: the first batch; ``steps``: the first of a training.
        words: the same, for people.
        share: of the work that the whole takes.
        shards: which of how many; all of them, as one part, unless some are chosen.
        steps: how many.
    """

    kind: str
    words: str
    share: float = 1.0
    shards: tuple[tuple[int, int], ...] = ((0, 1),)
    steps: int = 0


_WHOLE = Sample("whole", "whole")


def outdated(recorded: Mapping[str, Any], spec: str) -> bool:
    """Whether a recorded spec differs from `spec` in the code, and in nothing else."""
    today = json.loads(spec)
    return recorded != today and {**recorded, "code": today["code"]} == today


def choose(path: Path, config: Mapping[str, Any], whole: bool) -> Sample:
    """Which sample of an artifact is made.

    Args:
        path: its manifest.
        config: the validated configuration.
        whole: make all of it, whatever its kind.

    Returns:
        The sample, of an artifact without `damage`.
    """
    record = manifest.read(path)
    stage = STAGES[record["spec"]["stage"]]
    if stage.in_parts:
        n = _n_shards(record)
        # the first, from which much is decided, and one that nobody can foresee
        some = sorted({0, random.Random(f"shard of {record['digest']}").randrange(n)})
        if whole or len(some) == n:
            return _WHOLE
        named = " and ".join(map(str, some))
        words = f"shard{'s' * (len(some) > 1)} {named} of {n}, and what the gather adds"
        return Sample("shards", words, len(some) / n, tuple((i, n) for i in some))
    if whole or stage.sample == "whole":
        return _WHOLE
    if stage.sample == "sequences":
        block = config[stage.keys[0]] if stage.keys else {}
        rows = config["corpora"][record["spec"]["wildcards"]["corpus"]]["eval_sequences"]
        share = block.get("batch_size", 1) / min(rows, block.get("sequences", rows))
        words = "the first batch of sequences"
        return Sample("sequences", words, share) if share < 1 else _WHOLE
    steps, taken = record["facts"]["steps"], _steps(path.parent / "training.csv")
    words = f"steps 1 to {taken} of {steps}"
    return Sample("steps", words, taken / steps, steps=taken) if taken < steps else _WHOLE


def _n_shards(record: Mapping[str, Any]) -> int:
    """Number of files of the array that has most of them."""
    parts = (PurePosixPath(name).parts for name in record["files"])
    return max(Counter(part[1] for part in parts if "c" in part).values())


def _steps(history: Path) -> int:
    rows = history.read_text().splitlines()[1 : _ROWS + 1]
    return int(rows[-1].split(",")[0])


@contextmanager
def scratch(results: Path) -> Iterator[Path]:
    """A folder of our own below `results`; those of killed processes are removed."""

    def sweep() -> None:
        for folder in results.glob(f"{SCRATCH}*"):
            shutil.rmtree(folder, ignore_errors=True)

    sweep()
    folder = results / f"{SCRATCH}{uuid.uuid4().hex}"
    folder.mkdir()
    try:
        yield folder
    finally:
        sweep()


def damage(path: Path) -> list[str]:
    """What is wrong with an artifact before anything is compared, see `manifest.problems`.

    The files of a store that is written in parts are not read yet: `differences` reads them all.
    """
    stage = STAGES[manifest.read(path)["spec"]["stage"]]
    return manifest.problems(path, contents=not stage.in_parts)


def differences(rule: Rule, sample: Sample, folder: Path, worker: Worker) -> list[str]:
    """Make a sample of an artifact anew and compare it with what is stored.

    Args:
        rule: what makes the artifact.
        sample: of `choose`.
        folder: of `scratch`; what is written there is removed.
        worker: runs the scripts.

    Returns:
        One line for each thing that is not equal, or why no sample could be made; empty where all
        is equal.
    """
    job = _Job(rule, sample, folder, worker)
    path, made = Path(rule.output["manifest"]), folder / rule.output["manifest"]
    try:
        found = job.parts() if rule.part else job.run(rule)
        if found:
            return found
        stored, anew = manifest.read(path), manifest.read(made)
        sources = (_sources(at, record) for at, record in ((path, stored), (made, anew)))
        if len(set(map(tuple, sources))) > 1:
            found.append("it is made from other artifacts now, or from these made anew")
        names = stored["files"].keys() ^ anew["files"].keys()
        found += [f"{name} belongs to one of the two only" for name in sorted(names)]
        return found or _COMPARE[sample.kind](path.parent, stored, made.parent, anew)
    except StreamgaugeError as error:
        return [f"could not be sampled: {error.problem}"]
    except (OSError, ValueError) as error:
        return [f"could not be sampled: {error}"]
    finally:
        shutil.rmtree(folder)
        folder.mkdir()


class _Job:
    """One sample in the making."""

    def __init__(self, rule: Rule, sample: Sample, folder: Path, worker: Worker):
        self.rule, self.sample, self.folder, self.worker = rule, sample, folder, worker
        self.linked: set[Path] = set()

    def run(self, rule: Rule) -> list[str]:
        """Run the script of a rule, its outputs below our folder; why it failed, if it did."""
        output = {name: str(self.folder / path) for name, path in rule.output.items()}
        log = self.folder / "log"
        for path in map(Path, output.values()):
            path.parent.mkdir(parents=True, exist_ok=True)
        some = self.sample.kind in ("sequences", "steps")
        job = {
            "input": rule.input,
            "output": output,
            "wildcards": rule.wildcards,
            "params": {"spec": rule.spec, "sample": {"steps": self.sample.steps} if some else None},
            "resources": {"device": rule.device},
            "threads": rule.threads,
        }
        status = self.worker.run(rule.script, job, log)
        if not status:
            return []
        said = log.read_text().splitlines() if log.exists() else []
        errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
        return [f"could not be sampled: {(errors or said or [f'exit status {status}'])[-1]}"]

    def parts(self) -> list[str]:
        """Make shards anew, hold them against the stored ones, and gather them with those."""
        store = Path(self.rule.output["store"])
        receipts = []
        for i, n in self.sample.shards:
            receipts.append(str(store.with_name(f".{store.stem}.part-{i}-of-{n}")))
            at = {**self.rule.wildcards, "part": str(i), "parts": str(n)}
            part = self.rule.part._replace(wildcards=at, output={0: receipts[-1]})
            if failed := self.run(part):
                return failed
        (unfinished,) = (self.folder / store.parent).glob(f".{store.name}.*.partial")
        names = [file.relative_to(unfinished) for file in unfinished.rglob("*") if file.is_file()]
        names.remove(Path(SPEC))
        found = _other_bytes(store, unfinished, names)
        if found:
            return found
        self._link(store, unfinished, {name.parts[0] for name in names if "c" in name.parts})
        receipts = [str(self.folder / receipt) for receipt in receipts]
        failed = self.run(self.rule._replace(input={**self.rule.input, "parts": receipts}))
        gathered = self.folder / store
        loose = [file.relative_to(gathered) for file in gathered.rglob("*") if file.is_file()]
        return failed or _other_bytes(
            store, gathered, [name for name in loose if name not in self.linked]
        )

    def _link(self, store: Path, into: Path, arrays: set[str]) -> None:
        """The stored shards of what parts write, beside those that were made anew."""
        record = manifest.read(self.rule.output["manifest"])
        for name in (Path(name).relative_to(store.name) for name in record["files"]):
            if name.parts[0] in arrays and "c" in name.parts and not (into / name).exists():
                (into / name).parent.mkdir(parents=True, exist_ok=True)
                os.link(store / name, into / name)
                self.linked.add(name)


def _other_bytes(stored: Path, made: Path, names: Sequence[Path]) -> list[str]:
    """A line for each of the files `names` that has other bytes."""
    return [
        f"{stored.name}/{name.as_posix()} differs"
        for name in sorted(names)
        if not ((stored / name).is_file() and filecmp.cmp(stored / name, made / name, False))
    ]


def _sources(path: Path, record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The manifests something was made from, and their digests."""
    folder = str(path.parent)
    found = record["inputs"].items()
    return sorted((os.path.abspath(os.path.join(folder, name)), digest) for name, digest in found)


# --- what is compared, by kind of sample --------------------------------------------------------
def _facts(stored: Mapping, made: Mapping, but: set[str] = frozenset()) -> list[str]:
    old, new = ({k: v for k, v in of["facts"].items() if k not in but} for of in (stored, made))
    return [f"{key} was {was:.40} and is {now:.40}" for key, was, now in verify.changes(old, new)]


def _whole(folder: Path, stored: Mapping, anew: Path, made: Mapping) -> list[str]:
    found = _facts(stored, made)
    for name, digest in stored["files"].items():
        if digest == made["files"][name]:
            continue
        if not name.endswith(".parquet"):
            found.append(f"{name} differs")
            continue
        # its rows count: earlier versions wrote pages without checksums
        part, table = read_parquet(anew / name), read_parquet(folder / name)
        if not part.equals(table):
            found.append(f"{name} differs: {_first(part, table)}")
    return found


def _sequences(folder: Path, stored: Mapping, anew: Path, made: Mapping) -> list[str]:
    both = [(read_parquet(anew / name), read_parquet(folder / name)) for name in made["files"]]
    last = max(part.sequence.max() for part, _ in both if len(part))
    found = _facts(stored, made)
    for name, (part, table) in zip(made["files"], both, strict=True):
        rows = table[table.sequence <= last].reset_index(drop=True)
        if not part.equals(rows):
            found.append(f"{name} differs: {_first(part, rows)}")
    return found


def _first(part, rows) -> str:
    """Where two tables differ first."""
    if part.shape != rows.shape or list(part.columns) != list(rows.columns):
        return f"{part.shape} rows and columns instead of {rows.shape}"
    for name in part.columns:
        was, now = rows[name].astype(object), part[name].astype(object)
        unequal = ((was != now) & ~(was.isna() & now.isna())).to_numpy()
        if unequal.any():
            at = unequal.argmax()
            return f"row {at}, {name} was {was[at]} and is {now[at]}"
    return "types of columns"


def _beginning(folder: Path, stored: Mapping, anew: Path, made: Mapping) -> list[str]:
    found = _facts(stored, made, _COUNTED)
    for name in made["files"]:
        old, new = folder / name, anew / name
        if name.endswith(".csv"):
            was, now = _lines(old), _lines(new)
            row = next((i for i, line in enumerate(now) if was[i : i + 1] != [line]), None)
            if row is not None:
                found.append(f"{name} differs in row {row}")
        elif name.endswith(".json"):
            if _lines(old) != _lines(new):
                found.append(f"{name} differs")
        elif old.stat().st_size != new.stat().st_size:
            found.append(f"{name} has another size")
    return found


def _lines(file: Path) -> list[str]:
    """Lines of a text, but those that count what was done."""
    return [line for line in file.read_text().splitlines() if "training_tokens" not in line]


_COMPARE = {"whole": _whole, "shards": _whole, "sequences": _sequences, "steps": _beginning}
