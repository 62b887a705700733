"""What a job asks a cluster for: memory and minutes, estimated from the configuration.

Arithmetic on shapes, generous on purpose: a job that asks for too little is killed, one that asks
for too much waits a little longer. Every further attempt asks for that much more again.

- Memory is what the libraries take, plus `MARGIN` times what the stage holds at once: weights,
  tables of logits, graphs, shards in the making, optimiser states. Where a GPU computes, tables and
  graphs are not the host's.
- Minutes are `START`, plus `SLACK` times the FLOPs and bytes of `costs` at rates assumed for the
  device and the disk.
"""

import math
from collections.abc import Mapping
from typing import Any

from streamgauge.artifacts import costs
from streamgauge.artifacts.costs import Shape
from streamgauge.artifacts.stages import STAGES

#: A subject that nothing tells the shape of yet: about 1.5·10⁹ parameters.
UNKNOWN = Shape(2048, 24, 65536)
#: Threads of a job on a cluster.
THREADS = 8
#: Rates, sustained: 10¹² FLOP/s of a GPU and of a CPU's thread, MB/s of the disk.
GPU_TFLOPS, THREAD_TFLOPS, DISK = 20.0, 0.05, 100
#: Minutes for starting and loading; how much slower than assumed a job may be.
START, SLACK = 10, 3
#: The most minutes asked for; beyond it a scheduler cannot count.
LONGEST = 2**31 - 1 - START
#: MB of torch and transformers, of CUDA on the host, and of a job without a model.
LIBRARIES, CUDA, SMALL = 1000, 3000, 2000
#: For what the allocator keeps.
MARGIN = 1.5


def job(
    config: Mapping[str, Any],
    stage: str,
    wildcards: Mapping[str, str],
    shape: Mapping[str, Any] | None,
    attempt: int = 1,
) -> dict[str, int]:
    """What an attempt at one job asks for.

    Args:
        config: the validated configuration. Numbers in ``resources`` replace the estimates for
            every stage that runs a model or trains.
        stage: as in `stages.STAGES`.
        wildcards: of the job. A stage that is made in parts asks for one of them where there are
            ``part`` and ``parts``, and else for the gather, which runs no model.
        shape: ``d_model, n_layers, vocab_size`` of the subject, see `grid.shape_of`; None counts
            as `UNKNOWN`.
        attempt: from 1.

    Returns:
        ``mem_mb`` (MB) and ``runtime`` (minutes), whole numbers, `attempt` times those of the
        first attempt.
    """
    wildcards = dict(wildcards)
    shape = costs.shape(config, shape) if shape else UNKNOWN
    # a model unknown as yet may be deeper; one that lacks the layer is refused by the job itself
    shape = shape._replace(n_layers=max(shape.n_layers, int(wildcards.get("ell", 0)) + 1))
    asking = STAGES[stage]
    if not asking.memory or (asking.in_parts and "part" not in wildcards):
        moved = asking.cost(config, wildcards, shape).disk_bytes if asking.in_parts else 0
        asked = {"mem_mb": SMALL, "runtime": _minutes(config, 0, 2 * moved)}
    else:
        own = {name: config["resources"][name] for name in ("mem_mb", "runtime")}
        asked = {
            "mem_mb": own["mem_mb"] or _memory(config, asking, wildcards, shape),
            "runtime": own["runtime"] or _runtime(config, asking, wildcards, shape),
        }
    return {name: value * attempt for name, value in asked.items()}


def threads(config: Mapping[str, Any], cores: int | None) -> int:
    """CPU threads of a job that runs a model or trains.

    Args:
        config: the validated configuration; ``resources.threads`` wins.
        cores: of this machine; None where jobs run elsewhere.
    """
    return config["resources"]["threads"] or (max(1, cores // 2) if cores else THREADS)


def seconds(
    config: Mapping[str, Any],
    stage: str,
    wildcards: Mapping[str, str],
    shape: Mapping[str, Any] | None,
    cores: int | None,
) -> float:
    """What computing one artifact whole takes at the assumed rates; 0 where `costs` counts none.

    Args:
        config, stage, wildcards, shape: as for `job`.
        cores: of this machine.
    """
    shape = costs.shape(config, shape) if shape else UNKNOWN
    flops = STAGES[stage].cost(config, wildcards, shape).flops
    return flops / (_tflops(config, cores) * 1e12)


def _runtime(config, stage, w, shape) -> int:
    work = stage.cost(config, w, shape)
    share = int(w["parts"]) if stage.in_parts else 1
    # a store is written once, and a training reads what it is of as often as its budget says
    read = stage.reads(config, w, shape) if stage.reads else 0
    moved = work.disk_bytes / share + read
    return _minutes(config, work.flops / share, moved)


def _minutes(config, flops: float, moved: float) -> int:
    seconds = flops / (_tflops(config, None) * 1e12) + moved / (DISK * 1e6)
    return START + math.ceil(min(SLACK * seconds / 60, LONGEST))


def _tflops(config, cores: int | None) -> float:
    assumed = THREAD_TFLOPS * threads(config, cores)
    if config["device"] == "cuda":
        assumed = GPU_TFLOPS
    return config["resources"]["tflops"] or assumed


def _memory(config, stage, w, shape) -> int:
    held = stage.memory(config, w, shape)
    cuda = config["device"] == "cuda"
    needed = MARGIN * (held.host + (0 if cuda else held.device))
    return LIBRARIES + cuda * CUDA + math.ceil(needed / 1e8) * 100
