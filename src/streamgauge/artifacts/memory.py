"""What a stage holds in memory at once, from shapes alone.

Weights, tables of logits, graphs, shards in the making, optimiser states.

Every function takes the validated configuration, the wildcards of the job and the subject's shape.
"""

from collections.abc import Callable
from typing import NamedTuple

from streamgauge.artifacts import blocks, costs
from streamgauge.artifacts.costs import Shape
from streamgauge.stores import shards

_F32 = 4  # bytes of a number that is computed with
_LOGITS_AT_ONCE = 1 << 24  # of an `e2e` step, which takes sequence after sequence


class Held(NamedTuple):
    """Bytes held at once: on the host, and of what is computed where the device is."""

    host: int
    device: int = 0


def _weights(shape: Shape) -> int:
    return _F32 * shape.parameters


def _pass(tokens: int, shape: Shape, tables: int, depth: int = 1) -> int:
    """Bytes of `tokens` in a model: `tables` of logits, and the graph of `depth` blocks."""
    # a block keeps about 20 vectors of width d a token, the four-fold ones counted
    return _F32 * tokens * (tables * shape.vocab_size + 20 * shape.d_model * depth)


def passes(block: str, tables: int, graph: bool = False, more: Callable | None = None) -> Callable:
    """A stage that takes a corpus' rows through the model, and what `more` the host holds."""

    def held(config, w, shape) -> Held:
        tokens = config[block]["batch_size"] * config["corpora"][w["corpus"]]["context_length"]
        depth = max(1, shape.n_layers - int(w["ell"])) if graph else 1
        host = _weights(shape) + (more(config, w, shape) if more else 0)
        return Held(host, _pass(tokens, shape, tables, depth))

    return held


def probed(config, w, shape) -> Held:
    """Probes: the graph, and every probe of a batch."""
    probes = blocks.probes(config, w)["probes"]
    host, device = passes("probes", 5, graph=True, more=shards_in_hand)(config, w, shape)
    # every probe of a batch, as pulled back and as stacked
    tokens = probes["batch_size"] * config["corpora"][w["corpus"]]["context_length"]
    vectors = probes["count"] + probes["diagonal"]
    return Held(host, device + 3 * _F32 * tokens * shape.d_model * vectors)


def shards_in_hand(config, w, shape) -> int:
    """Shards that a harvest holds."""
    # two in the making and one on its way to the disk
    return 3 * _F32 * shards.TOKENS_PER_SHARD * shape.d_model


def covariances(config, w, shape) -> int:
    """Covariances of every layer."""
    # float64, every layer's; and one being decomposed
    return 8 * shape.d_model**2 * (shape.n_layers + 4)


def _sae(config, w, shape) -> int:
    return _F32 * 2 * shape.d_model * costs.sae(config, w, shape.d_model).d_sae


def coded(block: str) -> Callable:
    """An SAE, its control and a batch of their latents."""

    def more(config, w, shape) -> int:
        # SAE and control, and a batch of latents of each before and after
        tokens = config[block]["batch_size"] * config["corpora"][w["corpus"]]["context_length"]
        d_sae = costs.sae(config, w, shape.d_model).d_sae
        return 2 * _sae(config, w, shape) + 4 * _F32 * tokens * d_sae

    return more


def sensitivity(config, w, shape) -> Held:
    """SAEs, and the factors of a row."""
    # one row's tokens, each with its factors
    length = config["corpora"][w["corpus"]]["context_length"]
    factors = 4 * _F32 * length * shape.d_model * (2 + 2 * config["probes"]["count"])
    return Held(coded("evaluate")(config, w, shape) + factors)


def training(probed: bool = False, model: bool = False) -> Callable:
    """Training an SAE; with stored probes, or through the model."""

    def held(config, w, shape) -> Held:
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
            return Held(host)
        tokens = max(block["batch_size"], length)
        graph = _pass(tokens, shape, 0, max(1, shape.n_layers - int(w["ell"])))
        at_once = max(_LOGITS_AT_ONCE, length * shape.vocab_size)
        tables = 4 * _F32 * min(tokens * shape.vocab_size, at_once)
        return Held(host + _weights(shape), graph + tables)

    return held


def prepared(config, w, shape) -> Held:
    """A model as read and as written."""
    # as read and as written
    return Held(2 * _weights(shape))


def pretrained(config, w, shape) -> Held:
    """A model in training."""
    tokens = config["pretrain"]["batch_size"] * config["pretrain"]["context_length"]
    # weights, gradient, Adam's two, and a checkpoint
    return Held(7 * _weights(shape), _pass(tokens, shape, 4, 2 * shape.n_layers))


def tokenised(config, w, shape) -> Held:
    """Token ids as read, packed and written."""
    # ids as read, packed and written
    return Held(24 * costs.positions(config, w["corpus"], w["split"]))


def imported(config, w, shape) -> Held:
    """Somebody else's SAE as read and as written."""
    return Held(3 * _sae(config, w, shape))


def decomposed(config, w, shape) -> Held:
    """A layer being decomposed."""
    # a layer's attention and MLP in float64, with their singular vectors
    return Held(_weights(shape) + 2 * 8 * 12 * shape.d_model**2)


def critics(config, w, shape) -> Held:
    """Pairs, critics and the logits they are fitted to."""
    block = config["critics"]
    used = costs.positions(config, w["corpus"], "train", block["sequences"])
    scores = 6 * _F32 * block["batch_size"] ** 2 * block["hidden"]
    # the logits whose components are found, in float64
    logits = 4 * 8 * 512 * shape.vocab_size
    return Held(_weights(shape) + 4 * _F32 * used * shape.d_model, scores + logits)


def states(config, w, shape) -> Held:
    """Residual streams of a batch of prompts."""
    problems, own, length = costs.prompted(config, w["prompts"])
    batch = 3 * _F32 * config["states"]["batch_size"] * length * shape.d_model * shape.n_layers
    layer = 2 * _F32 * 2 * problems * own * shape.d_model
    return Held(_weights(shape) + layer + batch)


def patching(config, w, shape) -> Held:
    """Generation: weights, caches and logits."""
    problems, own, length = costs.prompted(config, w["prompts"])
    rows, tokens = config["patching"]["batch_size"], length + config["patching"]["max_new_tokens"]
    # keys and values of every block, twice while finished rows are dropped
    cache = 2 * 2 * _F32 * rows * tokens * shape.d_model * shape.n_layers
    logits = 4 * _F32 * rows * shape.vocab_size
    prefill = _pass(rows * length, shape, 0)
    layer = 4 * _F32 * problems * own * shape.d_model
    return Held(_weights(shape) + layer, cache + logits + prefill)


def ard(config, w, shape) -> Held:
    """A layer's tokens and a problem's kernels."""
    problems, own, _ = costs.prompted(config, w["prompts"])
    # tokens of a layer in float64, and a problem's kernels with their gradients
    return Held(4 * 8 * 2 * problems * own * shape.d_model, 16 * 8 * (2 * own) ** 2)
