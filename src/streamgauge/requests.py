"""What a job asks a cluster for: memory and minutes, estimated from the configuration.

Arithmetic on shapes, generous on purpose: a job that asks for too little is killed, one that asks
for too much waits a little longer. Every further attempt asks for that much more again.

- Memory is what the libraries take, plus what the stage holds at once: weights, tables of logits,
  graphs, shards in the making, optimiser states. On a GPU the model and its tables are not the
  host's, but its weights pass through.
- Minutes are `START` plus the FLOPs of `costs` at a rate assumed for the device, `SLACK` times.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from streamgauge import costs
from streamgauge.costs import Shape

#: 10¹² FLOP/s sustained: a GPU, and each thread of a CPU.
GPU_TFLOPS, THREAD_TFLOPS = 20.0, 0.05
#: Threads of a job on a cluster.
THREADS = 8
#: A subject that nothing tells the shape of yet: about 1.5·10⁹ parameters.
UNKNOWN = Shape(2048, 24, 65536)
#: Minutes for starting, loading and writing; how much slower than assumed a job may be.
START, SLACK = 10, 3
# MB: torch and transformers in memory; CUDA's share of the host; jobs without a model
_LIBRARIES, _CUDA, _SMALL = 1500, 3000, 2000
_MARGIN = 1.5  # times what is held at once, for what the allocator keeps
_MB = 1 << 20
# a prompt and what is said about it, in tokens; prompts of a file that is not read here
_PROMPT, _PROBLEMS = 128, 100
_F32 = 4  # bytes of a number that is computed with


class _Held(NamedTuple):
    """Bytes held at once: on the host whatever the device, and where the model runs."""

    host: float
    device: float


def job(
    config: Mapping[str, Any],
    stage: str,
    wildcards: Mapping[str, str],
    shape: Mapping[str, Any] | None,
    attempt: int = 1,
) -> dict[str, int]:
    """What an attempt at one job asks for.

    Args:
        config: the validated configuration; ``resources.mem_mb`` and ``resources.runtime`` replace
            the estimates of every stage that runs a model or trains.
        stage: as in `provenance.STAGES`.
        wildcards: of the job. A stage that is made in parts asks for a part where there are
            ``part`` and ``parts``, and else for the gather, which runs no model.
        shape: ``d_model, n_layers, vocab_size`` of the subject, see `study.shape_of`; None counts
            as `UNKNOWN`.
        attempt: from 1.

    Returns:
        ``mem_mb`` (MB) and ``runtime`` (minutes), whole numbers.
    """
    shape = costs.shape(config, shape) if shape else UNKNOWN
    gathers = stage in _IN_PARTS and "part" not in wildcards.keys()
    if stage not in _HELD or gathers:
        return {"mem_mb": _SMALL * attempt, "runtime": START * attempt}
    asked = config["resources"]
    work = costs.of(config, stage, wildcards, shape)
    share = int(wildcards["parts"]) if stage in _IN_PARTS else 1
    seconds = SLACK * work.flops / share / _flops_a_second(config) if work else 0
    minutes = asked["runtime"] or START + math.ceil(seconds / 60)
    held = _HELD[stage](config, wildcards, shape)
    cuda = config["device"] == "cuda"
    needed = held.host + (0 if cuda else held.device)
    memory = _LIBRARIES + cuda * _CUDA + math.ceil(_MARGIN * needed / _MB / 100) * 100
    return {"mem_mb": (asked["mem_mb"] or memory) * attempt, "runtime": minutes * attempt}


def threads(config: Mapping[str, Any], cores: int | None) -> int:
    """CPU threads of a job that runs a model or trains.

    Args:
        config: the validated configuration; ``resources.threads`` wins.
        cores: of this machine; None where jobs run elsewhere.
    """
    return config["resources"]["threads"] or (max(1, cores // 2) if cores else THREADS)


def _flops_a_second(config) -> float:
    asked = config["resources"]
    assumed = THREAD_TFLOPS * threads(config, None)
    return 1e12 * (asked["tflops"] or (GPU_TFLOPS if config["device"] == "cuda" else assumed))


def _weights(shape: Shape) -> int:
    return _F32 * shape.parameters


def _pass(config, w, shape: Shape, batch_size: int, tables: int, depth: int = 1) -> float:
    """Bytes of one batch in a model: `tables` of logits, and the graph of `depth` blocks."""
    tokens = batch_size * config["corpora"][w["corpus"]]["context_length"]
    # a block keeps about 20 vectors of width d a token, the four-fold ones counted
    return _F32 * tokens * (tables * shape.vocab_size + 20 * shape.d_model * max(1, depth))


def _modelled(block: str, tables: int, graph: bool = False, host: Callable | None = None):
    """A stage that runs the model over rows: weights, one batch, and what else the host holds."""

    def held(config, w, shape) -> _Held:
        layer = int(w["ell"]) if "ell" in w.keys() else 0
        depth = shape.n_layers - layer if graph else 1
        batch = _pass(config, w, shape, config[block]["batch_size"], tables, depth)
        more = host(config, w, shape) if host else 0
        return _Held(_weights(shape) + more, _weights(shape) + batch)

    return held


_TOKENS_PER_SHARD = 16384


def _shards(config, w, shape) -> float:
    # two in the making and one being encoded, in the type it is computed in
    return 3 * _F32 * _TOKENS_PER_SHARD * shape.d_model


def _covariances(config, w, shape) -> float:
    return 8 * 3 * shape.d_model**2 * shape.n_layers


def _sae_bytes(config, w, shape) -> float:
    return _F32 * 2 * shape.d_model * costs.sae(config, w, shape.d_model).d_sae


def _evaluated(config, w, shape) -> float:
    # SAE, control and one batch of pre-activations of each
    tokens = config["evaluate"]["batch_size"] * config["corpora"][w["corpus"]]["context_length"]
    codes = 2 * _F32 * tokens * costs.sae(config, w, shape.d_model).d_sae
    return 3 * _sae_bytes(config, w, shape) + codes


def _sensitivity(config, w, shape) -> _Held:
    tokens = 2048 * (1 + config["probes"]["count"])
    return _Held(_evaluated(config, w, shape) + _F32 * tokens * shape.d_model, 0)


def _training(probed: bool = False, model: bool = False) -> Callable:
    def held(config, w, shape) -> _Held:
        block, d = config["sae"], shape.d_model
        # weights, gradient, Adam's two, and a checkpoint of all of them being written
        states = 8 * _sae_bytes(config, w, shape)
        codes = 4 * _F32 * block["batch_size"] * costs.sae(config, w, d).d_sae
        vector = _F32 * d
        if probed:
            vector += costs.BYTES[config["probes"]["dtype"]] * d * config["probes"]["count"]
        # two pools in turn, and one being cut into batches
        pools = 3 * block["pool_tokens"] * vector
        if not model:
            return _Held(states + codes + pools, 0)
        rows = math.ceil(block["batch_size"] / config["corpora"][w["corpus"]]["context_length"])
        depth = shape.n_layers - int(w["ell"])
        batch = _pass(config, w, shape, rows, 4, depth)
        return _Held(states + codes + pools + _weights(shape), _weights(shape) + batch)

    return held


def _prepared(config, w, shape) -> _Held:
    # as read, as written, and in float32 between
    return _Held(3 * _weights(shape), 0)


def _pretrained(config, w, shape) -> _Held:
    block = config["pretrain"]
    tokens = block["batch_size"] * block["context_length"]
    batch = _F32 * tokens * (4 * shape.vocab_size + 40 * shape.d_model * shape.n_layers)
    return _Held(6 * _weights(shape), batch)


def _tokenised(config, w, shape) -> _Held:
    return _Held(24 * costs.positions(config, w["corpus"], w["split"]), 0)


def _weighed(config, w, shape) -> _Held:
    # singular vectors of one layer's weights in float64
    return _Held(_weights(shape) + 8 * 24 * shape.d_model**2, 0)


def _critics(config, w, shape) -> _Held:
    block = config["critics"]
    rows = block["sequences"] * config["corpora"][w["corpus"]]["context_length"]
    pairs = _F32 * 8 * block["batch_size"] ** 2 * block["hidden"]
    vectors = 3 * _F32 * rows * shape.d_model
    return _Held(_weights(shape) + vectors + pairs, _weights(shape) + 3 * 2048 * shape.vocab_size)


def _prompted(config, w) -> int:
    """Prompts of a file, and tokens of each."""
    block = config["prompts"][w["prompts"]]
    return block["limit"] or _PROBLEMS, _PROMPT * (1 + block["shots"])


def _states(config, w, shape) -> _Held:
    problems, length = _prompted(config, w)
    tokens = config["states"]["batch_size"] * length
    batch = 3 * _F32 * tokens * shape.d_model * shape.n_layers
    return _Held(_weights(shape) + 4 * _F32 * problems * length * shape.d_model + batch, batch)


def _patching(config, w, shape) -> _Held:
    problems, length = _prompted(config, w)
    block = config["patching"]
    rows, tokens = block["batch_size"], length + block["max_new_tokens"]
    # keys and values of every block, held twice while rows are dropped
    cache = 2 * 2 * _F32 * rows * tokens * shape.d_model * shape.n_layers
    logits = _F32 * rows * length * shape.vocab_size
    states = 4 * _F32 * problems * length * shape.d_model
    return _Held(_weights(shape) + states, _weights(shape) + cache + logits)


def _ard(config, w, shape) -> _Held:
    problems, length = _prompted(config, w)
    return _Held(16 * 8 * problems * length * shape.d_model, 0)


_IN_PARTS = ("harvest", "gradients", "probes")
_HELD: dict[str, Callable[..., _Held]] = {
    "subject": _prepared,
    "pretrain": _pretrained,
    "tokens": _tokenised,
    "spectra": _modelled("spectra", 0, host=_covariances),
    "harvest": _modelled("harvest", 0, host=_shards),
    "gradients": _modelled("gradients", 3, graph=True, host=_shards),
    "probes": _modelled("probes", 4, graph=True, host=_shards),
    "calibration": _modelled("calibration", 4),
    "baseline": _modelled("evaluate", 4),
    "train_sae": _training(),
    "train_behavioral": _training(probed=True),
    "train_e2e": _training(model=True),
    "evaluate": _modelled("evaluate", 4, host=_evaluated),
    "sensitivity": _sensitivity,
    "attention": _modelled("attention", 1, host=_evaluated),
    "critics": _critics,
    "geometry": _weighed,
    "basis": _weighed,
    "states": _states,
    "patching": _patching,
    "ard": _ard,
}
