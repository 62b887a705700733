"""`streamgauge adopt`: take over outdated artifacts that today's code would make again.

Snakemake says what is made from what, with which files and parameters. Its record of what a file
was made with is written anew together with the manifest (see `artifacts.adopt`).
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from snakemake.api import SnakemakeApi
from snakemake.exceptions import WorkflowError
from snakemake.settings.types import (
    ConfigSettings,
    DAGSettings,
    ExecutionSettings,
    OutputSettings,
    Quietness,
    RemoteExecutionSettings,
    ResourceSettings,
)
from snakemake.utils import available_cpu_count

from streamgauge.artifacts import adopt, catalogue, manifest, verify
from streamgauge.artifacts.adopt import Sample
from streamgauge.artifacts.worker import Worker
from streamgauge.base import project
from streamgauge.base.errors import StreamgaugeError
from streamgauge.planning import grid, job_requests

RESULTS = Path("results")
_MOST = 5  # reasons of one artifact told one by one


class Outcome(NamedTuple):
    """What became of an outdated artifact: its sample, and why it stays stale, if it does."""

    path: str
    sample: Sample | None
    reasons: list[str]
    seconds: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the subcommand."""
    parser.add_argument("paths", nargs="*", metavar="PATH", help="artifacts or folders (results)")
    parser.add_argument(
        "--whole",
        type=float,
        default=1.0,
        metavar="MINUTES",
        help="make anew as a whole what should take no longer, a sample of the rest (%(default)g)",
    )
    parser.add_argument(
        "--at-most",
        type=float,
        default=60.0,
        metavar="MINUTES",
        help="leave stale what should take longer, its sample alone (%(default)g)",
    )
    parser.add_argument(
        "--cores",
        type=int,
        default=available_cpu_count(),
        metavar="N",
        help="as snakemake had them: jobs get half as many threads, on which bytes depend (all)",
    )
    parser.add_argument("--json", action="store_true", help="print the account as JSON")


def run(
    options: argparse.Namespace, root: Path, config: Mapping[str, Any], overlays: Sequence[str]
) -> int:
    """Take over what can be, and give an account.

    Args:
        options: of `add_arguments`.
        root: the folder that holds the Snakefile.
        config: the validated configuration.
        overlays: config files laid over config.yaml.

    Returns:
        Exit status: 0, or 1 where an artifact stays stale.

    Raises:
        StreamgaugeError: a path that is no artifact below ``results``; a workflow that this library
            does not belong to; a run of Snakemake in this folder, or jobs that it cannot plan.
    """
    if project.own() != root:
        raise StreamgaugeError(
            "is not the workflow that this library belongs to",
            where=str(root),
            remedy=f"Set PYTHONPATH={root / 'src'} for this command.",
        )
    started = time.monotonic()
    tops = map(Path, options.paths or [RESULTS])
    asked = {_below_results(path) for top in tops for path in verify.below(top)}
    specs = {str(path): _spec(path) for path in catalogue.find(RESULTS)}
    described = {
        path
        for path, spec in specs.items()
        if spec and verify.differences(spec, root, config) is not None
    }
    damaged = [path for path in sorted(asked) if specs.get(path) is None]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that Snakemake's lock is removed
    with _workflow(root, overlays, described, options.cores) as workflow:
        with adopt.scratch(RESULTS) as folder, Worker() as worker:
            adoption = _Adoption(workflow, root, config, options, folder, worker)
            outcomes = []
            for outcome in itertools.chain(map(_damaged, damaged), adoption.outcomes(asked)):
                outcomes.append(outcome)
                if not options.json:
                    print("\n".join(_words(outcome)), flush=True)
    seconds, strangers = time.monotonic() - started, len(asked - described) - len(damaged)
    if options.json:
        account = {
            "artifacts": [o._asdict() | {"sample": o.sample and o.sample.words} for o in outcomes],
            "up_to_date": adoption.up_to_date,
            "not_described": strangers,
            "seconds": round(seconds, 1),
        }
        print(json.dumps(account, indent=1))
    else:
        print(_numbers(outcomes, adoption.up_to_date, strangers, seconds))
    return int(any(outcome.reasons for outcome in outcomes))


def _below_results(path: Path) -> str:
    """A path as Snakemake knows it."""
    try:
        found = path.absolute().relative_to(Path.cwd())
        found.relative_to(RESULTS)
    except ValueError:
        raise StreamgaugeError(
            f"does not lie below {RESULTS.absolute()}",
            where=str(path),
            remedy="Run adopt in the folder that snakemake runs in.",
        ) from None
    return str(found)


def _spec(path: Path) -> dict[str, Any] | None:
    """What a manifest says its artifact depends on; None where it cannot be read."""
    try:
        return catalogue.read(path)["spec"]
    except (StreamgaugeError, OSError):
        return None


def _damaged(path: str) -> Outcome:
    return Outcome(path, None, ["its manifest is missing or damaged"], 0.0)


@contextlib.contextmanager
def _workflow(root: Path, overlays: Sequence[str], targets: set[str], cores: int) -> Iterator:
    """The workflow and its jobs for `targets`, locked against runs of Snakemake."""
    try:
        with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
            flow = api.workflow(
                resource_settings=ResourceSettings(cores=cores),
                # nothing is replaced here, so that nobody need be asked
                config_settings=ConfigSettings(
                    config={"replace": True}, configfiles=[Path(name) for name in overlays]
                ),
                snakefile=root / "Snakefile",
            )
            flow.dag(DAGSettings(targets=targets))
            workflow = flow._workflow
            workflow.execution_settings = ExecutionSettings()
            workflow.remote_execution_settings = RemoteExecutionSettings()
            workflow._prepare_dag(forceall=False, ignore_incomplete=True, lock_warn_only=False)
            workflow._build_dag()
            workflow.iocache.deactivate()
            with workflow.persistence.lock():
                yield workflow
    except WorkflowError as error:
        raise StreamgaugeError(f"snakemake says: {error}", where=str(root / "Snakefile")) from error


class _Adoption:
    """One walk through the jobs of a workflow, from what is made first to what is made of it.

    Attributes:
        up_to_date: how many of the artifacts asked for are.
    """

    def __init__(
        self, workflow, root: Path, config: Mapping, options, folder: Path, worker: Worker
    ):
        self.workflow, self.root, self.config, self.options = workflow, root, config, options
        self.folder, self.worker = folder, worker
        self.up_to_date = 0
        self._anew: set[str] = set()  # manifests that the next run of Snakemake makes anew

    def outcomes(self, asked: set[str]) -> Iterator[Outcome]:
        """What becomes of every artifact of `asked` that is not up to date."""
        for level in self.workflow.dag.toposorted():
            for job in sorted(level, key=lambda job: sorted(job.output)):
                path = str(dict(job.output.items()).get("manifest", ""))
                if not path:
                    continue
                recorded = _spec(Path(path))
                above = [f"{f}" for f in job.input if f in self._anew and not f.is_ancient]
                if recorded == json.loads(job.params.spec) and not above:
                    self.up_to_date += path in asked
                elif path in asked and recorded and recorded != json.loads(job.params.spec):
                    yield self._outcome(job, path, recorded, above)
                else:
                    self._anew.add(path)

    def _outcome(self, job, path: str, recorded: Mapping, above: Sequence[str]) -> Outcome:
        started = time.monotonic()
        sample = None
        if not adopt.outdated(recorded, job.params.spec):
            reasons = verify.differences(recorded, self.root, self.config)
        elif above:
            reasons = [f"it is made from {above[0]}, which stays stale"]
        else:
            sample, reasons = self._sampled(job, Path(path))
        if reasons:
            self._anew.add(path)
        else:
            self._take_over(job, Path(path))
        return Outcome(path, sample, reasons, round(time.monotonic() - started, 1))

    def _sampled(self, job, path: Path) -> tuple[Sample | None, list[str]]:
        """The sample of an artifact, and how it differs from what is stored."""
        damage = adopt.damage(path)
        if damage:
            return None, damage
        minutes = self._minutes(job)
        sample = adopt.choose(path, self.config, minutes <= self.options.whole)
        minutes *= sample.share
        if minutes > self.options.at_most:
            return sample, [f"not sampled, which may take {minutes:.0f} minutes (see --at-most)"]
        return sample, adopt.differences(self._rule(job), sample, self.folder, self.worker)

    def _minutes(self, job) -> float:
        """What the whole artifact takes to compute, by estimate."""
        stage, at = json.loads(job.params.spec)["stage"], job.wildcards_dict
        shape = None
        if "subject" in at:
            subject = self.config["subjects"][at["subject"]]
            shape = grid.shape_of(at["subject"], subject, RESULTS)
        return job_requests.seconds(self.config, stage, at, shape, self.options.cores) / 60

    def _rule(self, job) -> adopt.Rule:
        """What Snakemake would hand to the script of a job."""
        return adopt.Rule(
            script=str(self.root / "workflow/scripts" / Path(job.rule.script).name),
            input={
                name: str(found) if isinstance(found, str) else list(map(str, found))
                for name, found in job.input.items()
            },
            output={name: str(found) for name, found in job.output.items()},
            wildcards=dict(job.wildcards_dict),
            spec=job.params.spec,
            device=job.resources.get("device", "cpu"),
            threads=job.threads,
            part=next(map(self._rule, self._parts(job)), None),
        )

    def _parts(self, job) -> list:
        """The jobs that write the parts of the store that a job gathers."""
        receipts = set(dict(job.input.items()).get("parts", ()))
        jobs = self.workflow.dag.dependencies[job]
        return [part for part in jobs if not receipts.isdisjoint(part.output)]

    def _take_over(self, job, path: Path) -> None:
        """Give an artifact its key of today; in Snakemake's records first, for the case of a kill.

        An artifact that its manifest says to be outdated is then looked at again.
        """
        persistence = self.workflow.persistence
        text = manifest.under(path, job.params.spec)
        for made in [job, *self._parts(job)]:
            self.workflow.async_run(persistence.finished(made))
        # an input that is newer by its time is none if it has the checksum noted then
        was, now = (hashlib.sha256(t).hexdigest() for t in (path.read_bytes(), text.encode()))
        for file in (file for other in self.workflow.dag.depending[job] for file in other.output):
            record = persistence.metadata(file)
            noted = record and record.input_checksums and record.input_checksums.get(str(path))
            if noted and noted.removeprefix("sha256:") == was:
                record.input_checksums[str(path)] = f"sha256:{now}"
                persistence._write_record(persistence._get_key(file), record)
        manifest.replace(path, text)


def _words(outcome: Outcome) -> Iterator[str]:
    """The account of one artifact."""
    how = f" ({outcome.sample.words}, {outcome.seconds:.1f} s)" if outcome.sample else ""
    yield f"{'stale' if outcome.reasons else 'adopted'}: {outcome.path}{how}"
    yield from (f"    {reason}" for reason in outcome.reasons[:_MOST])
    if len(outcome.reasons) > _MOST:
        yield f"    and {len(outcome.reasons) - _MOST} more"


def _numbers(
    outcomes: Sequence[Outcome], up_to_date: int, not_described: int, seconds: float
) -> str:
    """The end of the account."""
    kinds = Counter(outcome.sample.kind for outcome in outcomes if not outcome.reasons)
    how = ", ".join(f"{n} by {adopt.KINDS[kind]}" for kind, n in kinds.items())
    stale = sum(bool(outcome.reasons) for outcome in outcomes)
    others = f", {not_described} {verify.UNDESCRIBED}" if not_described else ""
    return (
        f"{kinds.total()} adopted{how and f' ({how})'}, {stale} stale, {up_to_date} up to date"
        f"{others}; {seconds:.0f} s"
    )
