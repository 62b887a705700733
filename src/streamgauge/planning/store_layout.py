"""How the stores of a study lie on disk, and how many reads of one pay for writing it.

Arithmetic on shapes, nothing is measured: bytes and FLOPs from `costs`, files from how
`layer_stores` cuts arrays into shards, parts from the block ``scatter``.
"""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from streamgauge.artifacts import blocks, contents, costs
from streamgauge.artifacts.stages import STAGES
from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.wording import bytes_in_words
from streamgauge.planning import parts
from streamgauge.stores import layer_stores

# the stage and the split of every store
_STORES = {
    "activations-train": ("harvest", "train"),
    "activations-eval": ("harvest", "eval"),
    "gradients-eval": ("gradients", "eval"),
    "probes-eval": ("probes", "eval"),
    "probes-train": ("probes", "train"),
}


def layout(
    config: Mapping[str, Any],
    shapes: Mapping[str, costs.Shape],
    *,
    tflops: float,
    gb_per_s: float,
) -> pd.DataFrame:
    """Size, files, parts and reads of every store of the study's layers.

    Args:
        config: the validated configuration.
        shapes: of the study's subjects, by name.
        tflops: sustained rate of one accelerator in 10¹² FLOPs a second.
        gb_per_s: rate at which one job reads, and writes, a store, in 10⁹ bytes a second.

    Returns:
        One row a store: ``store`` (its path below the results), ``tokens``, ``disk_bytes``,
        ``shard_bytes`` (of its largest array), ``shards`` (of one array), ``files`` (all of
        them), ``parts`` (jobs that write it), ``reads`` (how often the study's SAEs read it
        through, in training or in scoring) and ``pays_from``, see `pays_from`.

    Raises:
        StreamgaugeError: a rate is not positive.
    """
    rows = []
    for subject in config["grid"]["subjects"]:
        shape = shapes[subject]
        for corpus in config["grid"]["corpora"]:
            for layer in config["grid"]["layers"][subject]:
                place = {"subject": subject, "corpus": corpus, "ell": f"{layer:02d}"}
                for name, (stage, split) in _STORES.items():
                    if name == "probes-train" and "behavioral" not in config["grid"]["objectives"]:
                        continue
                    work = STAGES[stage].cost(config, {**place, "split": split}, shape)
                    row = {
                        "store": f"{subject}/{corpus}/L{layer:02d}/{name}",
                        "tokens": work.tokens,
                        "disk_bytes": work.disk_bytes,
                        **_files(config, stage, corpus, split, shape.d_model),
                        "parts": parts.n_parts(config, stage, corpus, split),
                        "reads": _reads(config["grid"], name, work.tokens),
                        "pays_from": pays_from(
                            work.flops / work.tokens,
                            work.disk_bytes / work.tokens,
                            tflops=tflops,
                            gb_per_s=gb_per_s,
                        ),
                    }
                    rows.append(row)
    return pd.DataFrame(rows)


def pays_from(
    flops_per_token: float, bytes_per_token: float, *, tflops: float, gb_per_s: float
) -> float:
    """The number of reads from which on a store takes less time than doing without it.

    With t seconds to compute a token and r to read or write one, n reads take t + r + n r with
    the store, and n t where every reader runs the model itself; nothing overlaps.

    Returns:
        The smallest whole n for which the store is faster; infinity where reading a token takes
        as long as computing it, or longer.

    Raises:
        StreamgaugeError: a rate is not positive.
    """
    for rate, unit in ((tflops, "TFLOP/s"), (gb_per_s, "GB/s")):
        if not 0 < rate < float("inf"):
            raise StreamgaugeError(f"{rate} {unit} is no rate", remedy="Give a positive number.")
    computed = flops_per_token / (tflops * 1e12)
    moved = bytes_per_token / (gb_per_s * 1e9)
    if computed <= moved:
        return math.inf
    return math.floor((computed + moved) / (computed - moved)) + 1


def describe(table: pd.DataFrame, tflops: float, gb_per_s: float) -> str:
    """What `layout` found, in columns, and what its last two mean."""
    rows = [
        [
            row.store,
            f"{row.tokens:,}",
            bytes_in_words(row.disk_bytes),
            bytes_in_words(row.shard_bytes),
            f"{row.shards:,}",
            f"{row.files:,}",
            f"{row.parts:,}",
            f"{row.reads:,.3g}",
            f"{row.pays_from:,.0f}" if math.isfinite(row.pays_from) else "never",
        ]
        for row in table.itertuples()
    ]
    header = ["store", "tokens", "disk", "a shard", "shards", "files", "parts", "reads"]
    notes = (
        "reads: how often the study's SAEs read the store through. pays from: the number of reads",
        f"from which on it takes less time than the model at {tflops:g} TFLOP/s every time, read",
        f"and written at {gb_per_s:g} GB/s.",
    )
    return "\n".join([*contents.grid([*header, "pays from"], rows), "", *notes])


def _files(config, stage, corpus, split, d_model) -> dict[str, int]:
    """Bytes of a shard of the main array, shards of an array and files of the whole store."""
    rows = config["corpora"][corpus]
    positions, sequences = rows["context_length"], rows[f"{split}_sequences"]
    arrays, single, vectors, per_token = 1, 2, 1, 1  # coordinates: sequence and position
    if stage == "harvest":
        # norms; means, their coordinate, median norm and threshold
        arrays, single = 2, 6
    if stage == "probes":
        probes = blocks.probes(config, {"split": split})["probes"]
        vectors, per_token = probes["count"], probes["count"] + probes["diagonal"]
        arrays += 2 * bool(probes["same_positions"]) + bool(probes["diagonal"])
    shard = min(sequences, layer_stores.rows_per_chunk_and_shard(positions, per_token)[1])
    shards = -(-sequences // shard)
    width = costs.BYTES[config[stage]["dtype"]] * d_model * vectors
    return {
        "shard_bytes": width * positions * shard,
        "shards": shards,
        # every array has its metadata, and so has the group
        "files": 1 + arrays * (1 + shards) + 2 * single,
    }


def _reads(grid, name, tokens) -> float:
    """Scoring reads a store of evaluation rows once an SAE; training reads what its budget says."""
    codes = len(grid["expansion"]) * len(grid["k"])
    codes *= 1 if name == "probes-train" else len(grid["objectives"])
    runs = {
        budget: codes * len(grid["seeds_at"].get(str(budget), grid["seeds"]))
        for budget in grid["tokens"]
    }
    if name.endswith("eval"):
        return float(sum(runs.values()))
    return sum(budget * n for budget, n in runs.items()) / tokens
