"""How many jobs write one store: from the configuration, before anything is computed."""

from collections.abc import Mapping
from typing import Any

from streamgauge.artifacts import blocks
from streamgauge.stores import shards


def n_parts(config: Mapping[str, Any], stage: str, corpus: str, split: str) -> int:
    """Parts that a store of `stage` is written in, each by a job of its own.

    As many as parts of ``scatter.{stage}`` tokens, rounded up to whole shards, take; one where
    that is null.

    Args:
        config: the validated configuration.
        stage: ``harvest``, ``gradients`` or ``probes``.
        corpus: name of a block under ``corpora``.
        split: ``train`` or ``eval``.
    """
    rows = config["corpora"][corpus]
    per_token = 1
    if stage == "probes":
        probes = blocks.probes(config, {"split": split})["probes"]
        per_token = probes["count"] + probes["diagonal"]
    return shards.n_parts(
        rows[f"{split}_sequences"], rows["context_length"], config["scatter"][stage], per_token
    )
