"""What an artifact depends on, written down: its key, one canonical JSON string.

A key, called ``spec`` in manifests, holds the stage, the stage's part of the configuration, the
wildcards of the artifact's path and a digest of the code that computes it. The workflow hands it to
a job as a parameter, the job writes it into the manifest, and `verify` computes it again.
"""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamgauge.artifacts.code import closure
from streamgauge.artifacts.stages import STAGES


def spec(root: str | Path, config: Mapping, stage: str, wildcards: Mapping[str, str]) -> str:
    """The canonical JSON string of everything, and only what, one artifact depends on.

    Args:
        root: the folder that holds the Snakefile.
        config: the validated study configuration.
        stage: a key of `STAGES`.
        wildcards: the wildcards of the artifact's path.

    Returns:
        ``{"code", "config", "stage", "wildcards"}`` as JSON with sorted keys.

    Raises:
        KeyError: the config does not describe such an artifact (no such subject, say).
    """
    wildcards = dict(wildcards)
    record = {
        "stage": stage,
        "config": STAGES[stage].block(config, wildcards),
        "wildcards": wildcards,
        "code": code(Path(root), *STAGES[stage].entries(stage, config, wildcards)),
    }
    return json.dumps(record, sort_keys=True)


@functools.cache
def code(root: Path, *entries: str) -> dict[str, str]:
    """The modules that `entries` reach, with a digest of what is reached in each."""
    source = root / "src/streamgauge"
    sources = {"source": source} if source.is_dir() else {}
    return closure(entries, root=root / "workflow/scripts", **sources)


def settings(spec_: str, block: str) -> dict[str, Any]:
    """The config block named `block` inside a spec."""
    return json.loads(spec_)["config"][block]


def stage(spec_: str) -> str:
    """The stage inside a spec."""
    return json.loads(spec_)["stage"]
