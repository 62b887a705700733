"""What a script of the workflow has: the files of its rule, its settings, its manifest to write."""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from streamgauge.base import script_start  # noqa: F401 - before all that takes time

# isort: split
from streamgauge.artifacts import claims, inputs, keys, manifest
from streamgauge.artifacts.stages import STAGES
from streamgauge.base import job_log, whole_file
from streamgauge.base.errors import StreamgaugeError
from streamgauge.stores import receipts, unfinished


class Names(dict):
    """Files, wildcards or settings by their names, as the workflow hands them to a script."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Job:
    """One job: plain values, so that it can be run without Snakemake too.

    Its inputs are those that their manifests describe, or it is not begun, see `inputs.check`.

    Attributes:
        source, out: the rule's named inputs and outputs.
        at: the wildcards.
        spec: the key of the artifact, see `keys.spec`.
        stage: its stage.
        device: what a model is asked to run on.
        seen: files of its inputs, see `inputs.unchanged`.
        sample: None; or, where `adopt` asks for a part of the work, how many ``steps`` of a
            training, and of passes over sequences their first batch.
    """

    def __init__(self, snakemake, sample: Mapping[str, int] | None = None):
        self.source, self.out = snakemake.input, snakemake.output
        self.at, self.spec = snakemake.wildcards, snakemake.params.spec
        self.stage = keys.stage(self.spec)
        self.device = getattr(snakemake.resources, "device", "cpu")
        self.sample = sample
        named = (paths for _, paths in self.source.items())
        self.seen = inputs.check(_flat(named), getattr(snakemake, "threads", 1))

    def settings(self, block: str) -> Any:
        """The block of the configuration named `block`, as the key holds it.

        Of a sample, a number of ``sequences`` is a batch.
        """
        found = keys.settings(self.spec, block)
        if self.sample and {"sequences", "batch_size"} <= found.keys():
            found = found | {"sequences": min(found["sequences"], found["batch_size"])}
        return found

    def record(self, name: str) -> dict[str, Any]:
        """The manifest that is the input `name`."""
        return manifest.read(getattr(self.source, name))

    def records(self, name: str) -> list[dict[str, Any]]:
        """The manifests that are the input `name`."""
        return [manifest.read(path) for path in getattr(self.source, name)]

    def pairs(self, records: str, tables: str, read: Callable[[str], Any]) -> Iterator[tuple]:
        """The manifests that are one input, each with its table, which is read when it is due."""
        return zip(self.records(records), map(read, getattr(self.source, tables)), strict=True)

    def facts(self, name: str) -> dict[str, Any]:
        """The facts in the manifest that is the input `name`."""
        return self.record(name)["facts"]

    def identity(self, *made_from: str) -> str:
        """What unfinished work belongs to: the key, and the digests of the inputs it names."""
        return manifest.identity(self.spec, self._paths(made_from))

    def working(self, output: str, *made_from: str):
        """A folder for finished pieces beside an output, see `unfinished.working`."""
        return unfinished.working(getattr(self.out, output), self.identity(*made_from))

    def write(
        self, files: Sequence[str], made_from: Sequence[str] = (), facts: Mapping | None = None
    ) -> None:
        """Write the manifest, the last of all outputs.

        Args:
            files: names of the outputs it describes.
            made_from: names of the inputs that are manifests.
            facts: see `manifest.write`.
        """
        inputs.unchanged(self.seen)
        made = [getattr(self.out, name) for name in files]
        manifest.write(self.out.manifest, self.spec, made, self._paths(made_from), facts)

    def text(self, output: str, text: str) -> None:
        """Write an output that is a page."""
        Path(getattr(self.out, output)).write_text(text, encoding="utf-8")

    def few(self, rows, batch_size: int):
        """Rows of tokens, or the first batch of them where a sample is asked for."""
        return rows[:batch_size] if self.sample else rows

    def _paths(self, names: Sequence[str]) -> list[str]:
        return _flat(getattr(self.source, name) for name in names)


def _flat(items: Iterable) -> list[str]:
    """Paths, and lists of them, one after another."""
    return [path for item in items for path in ([item] if isinstance(item, str) else item)]


@contextlib.contextmanager
def part_of(job: Job, *made_from: str) -> Iterator[tuple[Path, tuple[int, int]]]:
    """Where one part of a store is written, and which part it is: (number, of how many).

    The output of such a job is the part's receipt, ``.{store}.part-{i}-of-{n}``.
    """
    receipt, part = Path(job.out[0]), (int(job.at.part), int(job.at.parts))
    store = receipt.name.removeprefix(".").rsplit(".part-", 1)[0]
    scratch = unfinished.scratch(receipt.with_name(f"{store}.zarr"), job.identity(*made_from))
    yield scratch, part
    inputs.unchanged(job.seen)
    receipts.leave(receipt, scratch, part)


def run(snakemake, functions: Mapping[str, Callable[[Job], None]]) -> None:
    """Run the job of a rule: the function of its stage, with a log, and alone.

    Another job that makes the same lives on from a run that was killed. It is waited for, and what
    it has made is taken.

    Args:
        snakemake: what Snakemake gives a script.
        functions: of the script, by name.
    """
    with job_log.job(snakemake.log[0], snakemake.threads):
        own = snakemake.output.get("manifest") or snakemake.output[0]
        with claims.held(own) as waited:
            job = Job(snakemake, getattr(snakemake.params, "sample", None))
            if waited and _made(job):
                return
            # an older manifest was removed for this one: a power cut must not bring it back to
            # describe the files that are written now
            whole_file.flush(Path(own).parent)
            functions[STAGES[job.stage].function or job.stage](job)


def _made(job: Job) -> bool:
    """Whether the artifact of a job lies there, with all its files; never so for a part."""
    path = job.out.get("manifest")
    try:
        return (
            path is not None
            and manifest.read(path)["spec"] == json.loads(job.spec)
            # a workflow engine may have removed files of it before it started this job
            and not manifest.problems(path, contents=False)
        )
    except StreamgaugeError:
        return False
