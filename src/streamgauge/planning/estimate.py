"""What a study will cost, from its configuration: tokens, FLOPs, GPU hours and disk.

The arithmetic of `costs`, summed over a study's jobs: nothing is measured. Jobs that run no model
(scores, tables, figures) or a small one (MI critics) are left out, and so is the cross-lingual
suite.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from streamgauge.artifacts import contents, costs
from streamgauge.artifacts.costs import Shape
from streamgauge.artifacts.stages import STAGES, Stage
from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.wording import bytes_in_words
from streamgauge.planning import cells, grid

COUNTED = (
    *("subject", "pretrain", "tokens", "spectra", "harvest", "gradients", "probes"),
    *("calibration", "train", "baseline", "evaluate", "sensitivity", "attention"),
)
_LABELS = {f"train_{name}": "train" for name in ("sae", "behavioral", "e2e")}


def shapes(config: Mapping[str, Any], results: str | Path) -> dict[str, Shape]:
    """The shapes of a study's subjects, by name.

    A subject that is prepared is asked itself; for the others the configuration must say it:
    ``expect``, or the subject's own block where it is pretrained here.

    Args:
        config: the validated configuration.
        results: the folder of artifacts.

    Raises:
        StreamgaugeError: a subject's shape is not known; a layer or sparsity it cannot have.
    """
    grid.check_grid(config, results)
    found = {}
    for name in config["grid"]["subjects"]:
        known = grid.shape_of(name, config["subjects"][name], results)
        if not known:
            raise StreamgaugeError(
                "the model's shape is not known before it is prepared",
                where=f"subjects.{name}",
                remedy="Set expect: {d_model, n_layers, vocab_size}, or run `snakemake"
                f" results/{name}/subject.json` first.",
            )
        found[name] = costs.shape(config, known)
    return found


def estimate(
    config: Mapping[str, Any], shapes: Mapping[str, Shape], *, tflops: float
) -> pd.DataFrame:
    """Cost of every stage of a study, as if nothing were there yet.

    Args:
        config: the validated configuration.
        shapes: of the study's subjects, see `shapes`.
        tflops: sustained rate of one accelerator in 10¹² FLOPs a second.

    Returns:
        One row for each of `COUNTED` that the study has and a last row ``total``: ``stage, jobs,
        tokens`` (positions read by the stage's jobs together), ``flops``, ``gpu_hours`` =
        flops / rate, ``disk_bytes`` (what stays on disk; weights of `local` subjects are links
        and count 0, those of all others 4 bytes a parameter).

    Raises:
        StreamgaugeError: the rate is not positive.
    """
    if not 0 < tflops < float("inf"):
        raise StreamgaugeError(f"{tflops} TFLOP/s is no rate", remedy="Give a positive number.")
    jobs = (
        (label, 1, *stage.cost(config, at, shapes[at["subject"]]))
        for label, stage, at in _jobs(config)
    )
    # Python's whole numbers do not overflow, those of 64 bits do in a large study
    work = pd.DataFrame(jobs, columns=["stage", "jobs", *costs.Work._fields], dtype=object)
    found = work.groupby("stage").sum().reindex(COUNTED).dropna()
    found.loc["total"] = found.sum()
    found = found.astype({"flops": float}).infer_objects().reset_index()
    found.insert(4, "gpu_hours", found.flops / (tflops * 1e12) / 3600)
    return found


def describe(table: pd.DataFrame, tflops: float) -> str:
    """What `estimate` found, in columns, and in two lines what it is worth."""
    rows = [
        [
            row.stage,
            f"{row.jobs:,}",
            f"{row.tokens:,}",
            f"{row.flops:.1e}" if row.flops else "0",
            f"{row.gpu_hours:.2g}",
            bytes_in_words(row.disk_bytes),
        ]
        for row in table.itertuples()
    ]
    header = ["stage", "jobs", "tokens", "FLOPs", "GPU hours", "disk"]
    notes = (
        f"GPU hours are FLOPs at {tflops:g} TFLOP/s sustained: arithmetic, not a measurement.",
        "Reading, writing and starting jobs come on top. Disk is weights and stores.",
    )
    return "\n".join([*contents.grid(header, rows), "", *notes])


def _jobs(config) -> Iterator[tuple[str, Stage, dict[str, str]]]:
    """Label, stage and wildcards of every job that is counted."""
    alone = {**config, "imports": {}, "crosslingual": {**config["crosslingual"], "subjects": []}}
    for stage, place in cells.artifacts(alone):
        label = _LABELS.get(stage, stage)
        if label in COUNTED:
            yield label, STAGES[stage], place
