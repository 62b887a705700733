"""What one job of a study costs: tokens, FLOPs and bytes on disk, from shapes alone.

Per token, with d = d_model, m = d_sae, V words and L blocks of 12 d² parameters each (attention
4 d², a four-fold MLP 8 d²):

- a forward pass costs 2 FLOPs a parameter it meets: 24 d² a block and 2 d V for the logits;
- a backward pass costs the same again where weights are frozen, twice that where they learn;
- a step of the native trainer costs 2 d m for the encoder and 8 d k for everything else, one of
  SAELens' trainer 12 d m; `behavioral` adds 6 d s for s probes, `e2e` three passes above the hook.

Attention scores, softmaxes, Adam, AuxK, reading and writing are left out. Of MI critics and of the
cross-lingual suite only the order of magnitude is counted.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from streamgauge.artifacts import blocks
from streamgauge.base.paths import cell

#: bytes a stored number takes; ``auto`` is one of the 16-bit types
BYTES = {"auto": 2, "float16": 2, "bfloat16": 2, "float32": 4}
# SAE and untrained control; zero and mean ablation. Each is patched in once a token set.
_SAES, _ABLATIONS, _TOKEN_SETS = 2, 2, 2
# a file of prompts is not looked into: problems, tokens of a problem and of a worked example
_PROBLEMS, _PROBLEM, _EXAMPLE = 100, 64, 128
# an SAE somebody else trained is not looked into: as wide as they usually come
_IMPORTED = {"expansion": 32, "k": 64}


class Shape(NamedTuple):
    """A model's shape, and what passes through it cost in FLOPs a token."""

    d_model: int
    n_layers: int
    vocab_size: int

    @property
    def parameters(self) -> int:
        """Blocks, embedding and unembedding."""
        return 12 * self.d_model**2 * self.n_layers + 2 * self.d_model * self.vocab_size

    def blocks(self, n: int) -> int:
        """Forward through n blocks."""
        return 24 * self.d_model**2 * n

    def above(self, layer: int) -> int:
        """Forward from the residual after block `layer` to the logits."""
        return self.blocks(self.n_layers - layer - 1) + 2 * self.d_model * self.vocab_size

    def forward(self) -> int:
        """Forward through everything."""
        return self.above(-1)


class Work(NamedTuple):
    """Positions read, FLOPs, and bytes that stay on disk."""

    tokens: int
    flops: int
    disk_bytes: int


class Sae(NamedTuple):
    """An SAE's sizes: d_sae, latents a token, training tokens."""

    d_sae: int
    k: int
    tokens: int


def shape(config: Mapping[str, Any], known: Mapping[str, Any]) -> Shape:
    """A `Shape` from what `grid.shape_of` knows of a subject."""
    # a model pretrained here has the family's tokenizer
    known = {"vocab_size": config["pretrain"]["vocab_size"], **known}
    return Shape(**{name: known[name] for name in Shape._fields})


def sae(config: Mapping[str, Any], wildcards: Mapping[str, str], d_model: int) -> Sae:
    """Sizes of the SAE that `wildcards` name, as its folder tells; usual ones for an import."""
    sizes = _IMPORTED | {"tokens": 0} | cell(wildcards)
    return Sae(sizes["expansion"] * d_model, sizes["k"], sizes["tokens"])


def positions(
    config: Mapping[str, Any], corpus: str, split: str, at_most: int | None = None
) -> int:
    """Positions of a split's rows, or of the first `at_most` of them."""
    block = config["corpora"][corpus]
    rows = block[f"{split}_sequences"]
    return block["context_length"] * (rows if at_most is None else min(rows, at_most))


def prompted(config: Mapping[str, Any], prompts: str) -> tuple[int, int, int]:
    """Problems of a block of prompts; tokens of a problem, and of one with its worked examples."""
    block = config["prompts"][prompts]
    return block["limit"] or _PROBLEMS, _PROBLEM, _PROBLEM + block["shots"] * _EXAMPLE


def subject(config, w, shape) -> Work:
    """Preparing a model: the weights it leaves on disk."""
    # the weights of a `local` subject are links
    source = config["subjects"][w["subject"]]["source"]
    return Work(0, 0, 0 if source == "local" else 4 * shape.parameters)


def pretrain(config, w, shape) -> Work:
    """Pretraining a model of the family."""
    learnt = config["pretrain"]["tokens"]
    return Work(learnt, 3 * shape.forward() * learnt, 4 * shape.parameters)


def tokens(config, w, shape) -> Work:
    """Token rows of a split."""
    written = positions(config, w["corpus"], w["split"])
    # two int32 a token: its id and its document
    return Work(written, 0, 8 * written)


def spectra(config, w, shape) -> Work:
    """One forward pass and a covariance a layer."""
    seen = positions(config, w["corpus"], "train", config["spectra"]["sequences"])
    covariances = 2 * shape.d_model**2 * shape.n_layers
    return Work(seen, (shape.blocks(shape.n_layers) + covariances) * seen, 0)


def harvest(config, w, shape) -> Work:
    """A forward pass up to the layer, and the store."""
    n = positions(config, w["corpus"], w["split"])
    # beside each activation its norm, in float32
    stored = shape.d_model * BYTES[config["harvest"]["dtype"]] + 4
    return Work(n, shape.blocks(w["layer"] + 1) * n, stored * n)


def gradients(config, w, shape) -> Work:
    """A forward pass and one backward pass down to the layer."""
    n = positions(config, w["corpus"], "eval")
    stored = shape.d_model * BYTES[config["gradients"]["dtype"]]
    return Work(n, (shape.forward() + shape.above(w["layer"])) * n, stored * n)


def probes(config, w, shape) -> Work:
    """A backward pass a probe, and those of the sampled positions."""
    probes = blocks.probes(config, w)["probes"]
    count, same, diagonal = (probes[name] for name in ("count", "same_positions", "diagonal"))
    n = positions(config, w["corpus"], w["split"])
    width = shape.d_model * BYTES[probes["dtype"]]
    rows = config["corpora"][w["corpus"]][f"{w['split']}_sequences"]
    passes = count + count * same + diagonal
    stored = width * ((count + diagonal) * n + count * same * rows)
    return Work(n, (shape.forward() + passes * shape.above(w["layer"])) * n, stored)


def calibration(config, w, shape) -> Work:
    """Patched passes of every scale and token set."""
    used = positions(config, w["corpus"], "eval", config["calibration"]["sequences"])
    passes = _TOKEN_SETS * len(config["calibration"]["scales"])
    return Work(used, (shape.forward() + passes * shape.above(w["layer"])) * used, 0)


def baseline(config, w, shape) -> Work:
    """Patched passes of both ablations."""
    n = positions(config, w["corpus"], "eval")
    passes = _ABLATIONS * _TOKEN_SETS
    return Work(n, (shape.forward() + passes * shape.above(w["layer"])) * n, 0)


def training(extra: Callable) -> Callable:
    """Training an SAE, with `extra` FLOPs a token."""

    def count(config, w, shape) -> Work:
        d, (m, k, tokens) = shape.d_model, sae(config, w, shape.d_model)
        saelens = config["sae"]["trainer"] == "saelens"
        step = 12 * d * m if saelens else 2 * d * m + 8 * d * k
        return Work(tokens, (step + extra(config, w, shape)) * tokens, 4 * (2 * d * m + m + d))

    return count


def _code(config, w, shape) -> int:
    d, (m, k, _) = shape.d_model, sae(config, w, shape.d_model)
    return 2 * d * m + 2 * d * k


def evaluate(config, w, shape) -> Work:
    """Patched passes of an SAE and its untrained control."""
    n = positions(config, w["corpus"], "eval")
    patched = _SAES * _TOKEN_SETS * (_code(config, w, shape) + shape.above(w["layer"]))
    return Work(n, (shape.forward() + patched) * n, 0)


def sensitivity(config, w, shape) -> Work:
    """Coding the evaluation rows; everything else is read."""
    n = positions(config, w["corpus"], "eval")
    return Work(n, _SAES * _code(config, w, shape) * n, 0)


def attention(config, w, shape) -> Work:
    """The blocks above the hook for every patched copy."""
    used = positions(config, w["corpus"], "eval", config["attention"]["sequences"])
    # the clean run and every patched copy, without the logits
    upper = shape.blocks(shape.n_layers - w["layer"] - 1)
    flops = shape.blocks(shape.n_layers) + (_SAES + _ABLATIONS) * upper
    return Work(used, (flops + _SAES * _code(config, w, shape)) * used, 0)


def critics(config, w, shape) -> Work:
    """The logits of the pairs, and training the critics."""
    block = config["critics"]
    used = positions(config, w["corpus"], "train", block["sequences"])
    # both critics and their nulls at every width, forward and backward
    n, hidden = block["batch_size"], block["hidden"]
    steps = 2 * 2 * len(block["widths"]) * block["steps"]
    trained = 6 * steps * n * hidden * (shape.d_model + n)
    return Work(used, shape.forward() * used + trained, 0)


def weights(config, w, shape) -> Work:
    """Decomposing the attention kernels of every layer."""
    # singular values of every layer's stacked kernels
    return Work(0, 20 * shape.d_model**3 * shape.n_layers, 0)


def states(config, w, shape) -> Work:
    """A forward pass of every prompt."""
    problems, own, length = prompted(config, w["prompts"])
    tokens = 2 * problems * length
    stored = 4 * shape.d_model * shape.n_layers * 2 * problems * own
    return Work(tokens, shape.blocks(shape.n_layers) * tokens, stored)


def patching(config, w, shape) -> Work:
    """Generation under every condition and control."""
    problems, _, length = prompted(config, w["prompts"])
    block = config["patching"]
    # nothing and everything patched; Z and its complement from four runs; the random controls
    conditions = 2 + 8 + 2 * block["random"] + block["norm_matched"]
    rows = problems * conditions
    flops = shape.blocks(shape.n_layers) * length + shape.forward() * block["max_new_tokens"]
    return Work(rows * (length + block["max_new_tokens"]), flops * rows, 0)


def ard(config, w, shape) -> Work:
    """Every fit of the lengthscales."""
    problems, own, _ = prompted(config, w["prompts"])
    fits = 2 + config["ard"]["permutations"]
    # distances of all pairs of a problem's tokens, forward and backward
    step = 6 * problems * (2 * own) ** 2 * shape.d_model
    return Work(2 * problems * own, fits * config["ard"]["steps"] * step, 0)


def read_training(probed: bool = False) -> Callable:
    """Bytes that training reads: activations, and probes where it is `probed`, token by token."""

    def count(config, w, shape) -> int:
        harvested, probes = _stored(config, shape)
        each = harvested + (probes if probed else 0)
        return each * sae(config, w, shape.d_model).tokens

    return count


def read_errors(config, w, shape) -> int:
    """Bytes of the activations, gradients and probes of the evaluation split."""
    harvested, probes = _stored(config, shape)
    return (harvested + 2 * probes) * positions(config, w["corpus"], "eval")


def _stored(config, shape) -> tuple[int, int]:
    """Bytes that a token's activation takes in its store, and its probes in theirs."""
    probes = config["probes"]
    harvested = BYTES[config["harvest"]["dtype"]] * shape.d_model
    return harvested, BYTES[probes["dtype"]] * shape.d_model * probes["count"]
