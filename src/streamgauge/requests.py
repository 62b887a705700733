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
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from streamgauge import costs, provenance, shards
from streamgauge.costs import Shape

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
_F32 = 4  # bytes of a number that is computed with
_LOGITS_AT_ONCE = 1 << 24  # of an `e2e` step, which takes sequence after sequence


class _Held(NamedTuple):
    """Bytes held at once: on the host, and of what is computed where the device is."""

    host: int
    device: int = 0


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
        stage: as in `provenance.STAGES`.
        wildcards: of the job. A stage that is made in parts asks for one of them where there are
            ``part`` and ``parts``, and else for the gather, which runs no model.
        shape: ``d_model, n_layers, vocab_size`` of the subject, see `study.shape_of`; None counts
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
    if stage not in _HELD or (stage in _IN_PARTS and "part" not in wildcards):
        moved = costs.of(config, stage, wildcards, shape).disk_bytes if stage in _IN_PARTS else 0
        asked = {"mem_mb": SMALL, "runtime": _minutes(config, 0, 2 * moved)}
    else:
        own = {name: config["resources"][name] for name in ("mem_mb", "runtime")}
        asked = {
            "mem_mb": own["mem_mb"] or _memory(config, stage, wildcards, shape),
            "runtime": own["runtime"] or _runtime(config, stage, wildcards, shape),
        }
    return {name: value * attempt for name, value in asked.items()}


def threads(config: Mapping[str, Any], cores: int | None) -> int:
    """CPU threads of a job that runs a model or trains.

    Args:
        config: the validated configuration; ``resources.threads`` wins.
        cores: of this machine; None where jobs run elsewhere.
    """
    return config["resources"]["threads"] or (max(1, cores // 2) if cores else THREADS)


def _runtime(config, stage, w, shape) -> int:
    work = costs.of(config, stage, w, shape)
    share = int(w["parts"]) if stage in _IN_PARTS else 1
    # a store is written once, and a training reads what it is of as often as its budget says
    moved = work.disk_bytes / share + _read(config, stage, w, shape)
    return _minutes(config, work.flops / share, moved)


def _minutes(config, flops: float, moved: float) -> int:
    assumed = THREAD_TFLOPS * threads(config, None)
    if config["device"] == "cuda":
        assumed = GPU_TFLOPS
    tflops = config["resources"]["tflops"] or assumed
    seconds = flops / (tflops * 1e12) + moved / (DISK * 1e6)
    return START + math.ceil(min(SLACK * seconds / 60, LONGEST))


def _read(config, stage, w, shape) -> int:
    """Bytes that a job reads from stores, where that takes time."""
    harvested = costs.BYTES[config["harvest"]["dtype"]] * shape.d_model
    probes = config["probes"]
    probed = costs.BYTES[probes["dtype"]] * shape.d_model * probes["count"]
    if stage.startswith("train_"):
        each = harvested + (probed if stage == "train_behavioral" else 0)
        return each * costs.sae(config, w, shape.d_model).tokens
    if stage in ("sensitivity", "calibration"):
        return (harvested + 2 * probed) * costs.positions(config, w["corpus"], "eval")
    return 0


def _memory(config, stage, w, shape) -> int:
    held = _HELD[stage](config, w, shape)
    cuda = config["device"] == "cuda"
    needed = MARGIN * (held.host + (0 if cuda else held.device))
    return LIBRARIES + cuda * CUDA + math.ceil(needed / 1e8) * 100


def _weights(shape: Shape) -> int:
    return _F32 * shape.parameters


def _pass(tokens: int, shape: Shape, tables: int, depth: int = 1) -> int:
    """Bytes of `tokens` in a model: `tables` of logits, and the graph of `depth` blocks."""
    # a block keeps about 20 vectors of width d a token, the four-fold ones counted
    return _F32 * tokens * (tables * shape.vocab_size + 20 * shape.d_model * depth)


def _passes(block: str, tables: int, graph: bool = False, more: Callable | None = None) -> Callable:
    """A stage that takes a corpus' rows through the model, and what `more` the host holds."""

    def held(config, w, shape) -> _Held:
        tokens = config[block]["batch_size"] * config["corpora"][w["corpus"]]["context_length"]
        depth = max(1, shape.n_layers - int(w["ell"])) if graph else 1
        host = _weights(shape) + (more(config, w, shape) if more else 0)
        return _Held(host, _pass(tokens, shape, tables, depth))

    return held


def _probed(config, w, shape) -> _Held:
    probes = provenance.STAGES["probes"].block(config, w)["probes"]
    host, device = _passes("probes", 5, graph=True, more=_shards)(config, w, shape)
    # every probe of a batch, as pulled back and as stacked
    tokens = probes["batch_size"] * config["corpora"][w["corpus"]]["context_length"]
    vectors = probes["count"] + probes["diagonal"]
    return _Held(host, device + 3 * _F32 * tokens * shape.d_model * vectors)


def _shards(config, w, shape) -> int:
    # two in the making and one on its way to the disk
    return 3 * _F32 * shards.TOKENS_PER_SHARD * shape.d_model


def _covariances(config, w, shape) -> int:
    # float64, every layer's; and one being decomposed
    return 8 * shape.d_model**2 * (shape.n_layers + 4)


def _sae(config, w, shape) -> int:
    return _F32 * 2 * shape.d_model * costs.sae(config, w, shape.d_model).d_sae


def _coded(block: str) -> Callable:
    def more(config, w, shape) -> int:
        # SAE and control, and a batch of latents of each before and after
        tokens = config[block]["batch_size"] * config["corpora"][w["corpus"]]["context_length"]
        d_sae = costs.sae(config, w, shape.d_model).d_sae
        return 2 * _sae(config, w, shape) + 4 * _F32 * tokens * d_sae

    return more


def _sensitivity(config, w, shape) -> _Held:
    # one row's tokens, each with its factors
    length = config["corpora"][w["corpus"]]["context_length"]
    factors = 4 * _F32 * length * shape.d_model * (2 + 2 * config["probes"]["count"])
    return _Held(_coded("evaluate")(config, w, shape) + factors)


def _training(probed: bool = False, model: bool = False) -> Callable:
    def held(config, w, shape) -> _Held:
        block, length = config["sae"], config["corpora"][w["corpus"]]["context_length"]
        # weights, gradient, Adam's two, and what a checkpoint is written from
        states = 7 * _sae(config, w, shape)
        latents = 4 * _F32 * block["batch_size"] * costs.sae(config, w, shape.d_model).d_sae
        token = _F32 * shape.d_model
        if probed:
            probes = config["probes"]
            token += costs.BYTES[probes["dtype"]] * shape.d_model * probes["count"]
        # two pools in turn, and what is cut from them
        host = states + latents + 3 * token * block["pool_tokens"]
        if not model:
            return _Held(host)
        tokens = max(block["batch_size"], length)
        graph = _pass(tokens, shape, 0, max(1, shape.n_layers - int(w["ell"])))
        at_once = max(_LOGITS_AT_ONCE, length * shape.vocab_size)
        tables = 4 * _F32 * min(tokens * shape.vocab_size, at_once)
        return _Held(host + _weights(shape), graph + tables)

    return held


def _prepared(config, w, shape) -> _Held:
    # as read and as written
    return _Held(2 * _weights(shape))


def _pretrained(config, w, shape) -> _Held:
    tokens = config["pretrain"]["batch_size"] * config["pretrain"]["context_length"]
    # weights, gradient, Adam's two, and a checkpoint
    return _Held(7 * _weights(shape), _pass(tokens, shape, 4, 2 * shape.n_layers))


def _tokenised(config, w, shape) -> _Held:
    # ids as read, packed and written
    return _Held(24 * costs.positions(config, w["corpus"], w["split"]))


def _imported(config, w, shape) -> _Held:
    return _Held(3 * _sae(config, w, shape))


def _decomposed(config, w, shape) -> _Held:
    # a layer's attention and MLP in float64, with their singular vectors
    return _Held(_weights(shape) + 2 * 8 * 12 * shape.d_model**2)


def _critics(config, w, shape) -> _Held:
    block = config["critics"]
    used = costs.positions(config, w["corpus"], "train", block["sequences"])
    scores = 6 * _F32 * block["batch_size"] ** 2 * block["hidden"]
    # the logits whose components are found, in float64
    logits = 4 * 8 * 512 * shape.vocab_size
    return _Held(_weights(shape) + 4 * _F32 * used * shape.d_model, scores + logits)


def _states(config, w, shape) -> _Held:
    problems, own, length = costs.prompted(config, w["prompts"])
    batch = 3 * _F32 * config["states"]["batch_size"] * length * shape.d_model * shape.n_layers
    layer = 2 * _F32 * 2 * problems * own * shape.d_model
    return _Held(_weights(shape) + layer + batch)


def _patching(config, w, shape) -> _Held:
    problems, own, length = costs.prompted(config, w["prompts"])
    rows, tokens = config["patching"]["batch_size"], length + config["patching"]["max_new_tokens"]
    # keys and values of every block, twice while finished rows are dropped
    cache = 2 * 2 * _F32 * rows * tokens * shape.d_model * shape.n_layers
    logits = 4 * _F32 * rows * shape.vocab_size
    prefill = _pass(rows * length, shape, 0)
    layer = 4 * _F32 * problems * own * shape.d_model
    return _Held(_weights(shape) + layer, cache + logits + prefill)


def _ard(config, w, shape) -> _Held:
    problems, own, _ = costs.prompted(config, w["prompts"])
    # tokens of a layer in float64, and a problem's kernels with their gradients
    return _Held(4 * 8 * 2 * problems * own * shape.d_model, 16 * 8 * (2 * own) ** 2)


_IN_PARTS = ("harvest", "gradients", "probes")
_HELD: dict[str, Callable[..., _Held]] = {
    "subject": _prepared,
    "pretrain": _pretrained,
    "tokens": _tokenised,
    "import_sae": _imported,
    "spectra": _passes("spectra", 0, more=_covariances),
    "harvest": _passes("harvest", 0, more=_shards),
    "gradients": _passes("gradients", 4, graph=True, more=_shards),
    "probes": _probed,
    "calibration": _passes("calibration", 4),
    "baseline": _passes("evaluate", 4),
    "train_sae": _training(),
    "train_behavioral": _training(probed=True),
    "train_e2e": _training(model=True),
    "evaluate": _passes("evaluate", 4, more=_coded("evaluate")),
    "sensitivity": _sensitivity,
    "attention": _passes("attention", 1, more=_coded("attention")),
    "critics": _critics,
    "geometry": _decomposed,
    "basis": _decomposed,
    "states": _states,
    "patching": _patching,
    "ard": _ard,
}
