"""The jobs of a study as Snakemake plans them and hands them to scripts; nothing is run."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from streamgauge.artifacts.worker import Worker


class Planned(NamedTuple):
    """One job.

    Attributes:
        rule: its name.
        stage: of its artifact.
        inputs, outputs: all files.
        input, output, wildcards, spec, threads, device: as its script finds them.
        script: path.
    """

    rule: str
    stage: str
    inputs: list[str]
    outputs: list[str]
    input: dict[str, Any]
    output: dict[str, str]
    wildcards: dict[str, str]
    spec: str
    threads: int
    device: str
    script: str

    def run(self, worker: Worker, into: Path, log: Path, **changes: Any) -> int:
        """Run the script, its outputs below `into`; the exit status.

        Args:
            changes: of ``input``, by name.
        """
        output = dict(self.output) or {0: self.outputs[0]}
        output = {name: str(into / path) for name, path in output.items()}
        for path in output.values():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        job = {
            "input": self.input | changes,
            "output": output,
            "wildcards": self.wildcards,
            "params": {"spec": self.spec},
            "resources": {"device": self.device},
            "threads": self.threads,
        }
        return worker.run(self.script, job, log)


def jobs(folder: Path, *targets: str) -> list[Planned]:
    """All jobs behind `targets`, whether they would run now or not, in the order they are made in.

    Args:
        folder: of `pipeline.create`, with its overlay; finished or not.
    """
    done = subprocess.run(
        [sys.executable, __file__, *targets],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder / "src")},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [Planned(**found) for found in json.loads(done.stdout.splitlines()[-1])]


def _plan(targets: set[str]) -> list[Planned]:
    from streamgauge.cli.adopt import _workflow

    found = []
    with _workflow(Path.cwd(), ["study.yaml"], targets, 2) as workflow:
        for level in workflow.dag.toposorted():
            for job in sorted(level, key=lambda job: sorted(job.output)):
                if not job.rule.script:
                    continue
                found.append(
                    Planned(
                        rule=job.rule.name,
                        stage=json.loads(job.params.spec)["stage"],
                        inputs=list(map(str, job.input)),
                        outputs=list(map(str, job.output)),
                        input={
                            name: str(files) if isinstance(files, str) else list(map(str, files))
                            for name, files in job.input.items()
                        },
                        output={name: str(file) for name, file in job.output.items()},
                        wildcards=dict(job.wildcards_dict),
                        spec=job.params.spec,
                        threads=job.threads,
                        device=job.resources.get("device", "cpu"),
                        script=str(Path("workflow/scripts").resolve() / Path(job.rule.script).name),
                    )
                )
    return found


if __name__ == "__main__":
    print(json.dumps([job._asdict() for job in _plan(set(sys.argv[1:]))]))
