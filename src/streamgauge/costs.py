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

from streamgauge import provenance

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
    """A `Shape` from what `study.shape_of` knows of a subject."""
    # a model pretrained here has the family's tokenizer
    known = {"vocab_size": config["pretrain"]["vocab_size"], **known}
    return Shape(**{name: known[name] for name in Shape._fields})


def of(config: Mapping[str, Any], stage: str, wildcards: Mapping[str, str], shape: Shape) -> Work:
    """The cost of the artifact that `wildcards` name.

    Args:
        config: the validated configuration.
        stage: as in `provenance.STAGES`.
        wildcards: of the artifact's path.
        shape: of its subject.

    Returns:
        Nothing at all for a stage that runs no model and trains none.
    """
    count = _STAGES.get(stage)
    if not count:
        return Work(0, 0, 0)
    return count(config, provenance.cell(wildcards) | dict(wildcards), shape)


def sae(config: Mapping[str, Any], wildcards: Mapping[str, str], d_model: int) -> Sae:
    """Sizes of the SAE that `wildcards` name, as its folder tells; usual ones for an import."""
    cell = _IMPORTED | {"tokens": 0} | provenance.cell(wildcards)
    return Sae(cell["expansion"] * d_model, cell["k"], cell["tokens"])


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


def _subject(config, w, shape) -> Work:
    # the weights of a `local` subject are links
    source = config["subjects"][w["subject"]]["source"]
    return Work(0, 0, 0 if source == "local" else 4 * shape.parameters)


def _pretrain(config, w, shape) -> Work:
    learnt = config["pretrain"]["tokens"]
    return Work(learnt, 3 * shape.forward() * learnt, 4 * shape.parameters)


def _tokens(config, w, shape) -> Work:
    written = positions(config, w["corpus"], w["split"])
    # two int32 a token: its id and its document
    return Work(written, 0, 8 * written)


def _spectra(config, w, shape) -> Work:
    seen = positions(config, w["corpus"], "train", config["spectra"]["sequences"])
    covariances = 2 * shape.d_model**2 * shape.n_layers
    return Work(seen, (shape.blocks(shape.n_layers) + covariances) * seen, 0)


def _harvest(config, w, shape) -> Work:
    n = positions(config, w["corpus"], w["split"])
    # beside each activation its norm, in float32
    stored = shape.d_model * BYTES[config["harvest"]["dtype"]] + 4
    return Work(n, shape.blocks(w["layer"] + 1) * n, stored * n)


def _gradients(config, w, shape) -> Work:
    n = positions(config, w["corpus"], "eval")
    stored = shape.d_model * BYTES[config["gradients"]["dtype"]]
    return Work(n, (shape.forward() + shape.above(w["layer"])) * n, stored * n)


def _probes(config, w, shape) -> Work:
    probes = provenance.STAGES["probes"].block(config, w)["probes"]
    count, same, diagonal = (probes[name] for name in ("count", "same_positions", "diagonal"))
    n = positions(config, w["corpus"], w["split"])
    width = shape.d_model * BYTES[probes["dtype"]]
    rows = config["corpora"][w["corpus"]][f"{w['split']}_sequences"]
    passes = count + count * same + diagonal
    stored = width * ((count + diagonal) * n + count * same * rows)
    return Work(n, (shape.forward() + passes * shape.above(w["layer"])) * n, stored)


def _calibration(config, w, shape) -> Work:
    used = positions(config, w["corpus"], "eval", config["calibration"]["sequences"])
    passes = _TOKEN_SETS * len(config["calibration"]["scales"])
    return Work(used, (shape.forward() + passes * shape.above(w["layer"])) * used, 0)


def _baseline(config, w, shape) -> Work:
    n = positions(config, w["corpus"], "eval")
    passes = _ABLATIONS * _TOKEN_SETS
    return Work(n, (shape.forward() + passes * shape.above(w["layer"])) * n, 0)


def _training(extra: Callable) -> Callable:
    def count(config, w, shape) -> Work:
        d, (m, k, tokens) = shape.d_model, sae(config, w, shape.d_model)
        saelens = config["sae"]["trainer"] == "saelens"
        step = 12 * d * m if saelens else 2 * d * m + 8 * d * k
        return Work(tokens, (step + extra(config, w, shape)) * tokens, 4 * (2 * d * m + m + d))

    return count


def _code(config, w, shape) -> int:
    d, (m, k, _) = shape.d_model, sae(config, w, shape.d_model)
    return 2 * d * m + 2 * d * k


def _evaluate(config, w, shape) -> Work:
    n = positions(config, w["corpus"], "eval")
    patched = _SAES * _TOKEN_SETS * (_code(config, w, shape) + shape.above(w["layer"]))
    return Work(n, (shape.forward() + patched) * n, 0)


def _sensitivity(config, w, shape) -> Work:
    n = positions(config, w["corpus"], "eval")
    return Work(n, _SAES * _code(config, w, shape) * n, 0)


def _attention(config, w, shape) -> Work:
    used = positions(config, w["corpus"], "eval", config["attention"]["sequences"])
    # the clean run and every patched copy, without the logits
    upper = shape.blocks(shape.n_layers - w["layer"] - 1)
    flops = shape.blocks(shape.n_layers) + (_SAES + _ABLATIONS) * upper
    return Work(used, (flops + _SAES * _code(config, w, shape)) * used, 0)


def _critics(config, w, shape) -> Work:
    block = config["critics"]
    used = positions(config, w["corpus"], "train", block["sequences"])
    # both critics and their nulls at every width, forward and backward
    n, hidden = block["batch_size"], block["hidden"]
    steps = 2 * 2 * len(block["widths"]) * block["steps"]
    trained = 6 * steps * n * hidden * (shape.d_model + n)
    return Work(used, shape.forward() * used + trained, 0)


def _weights(config, w, shape) -> Work:
    # singular values of every layer's stacked kernels
    return Work(0, 20 * shape.d_model**3 * shape.n_layers, 0)


def _states(config, w, shape) -> Work:
    problems, own, length = prompted(config, w["prompts"])
    tokens = 2 * problems * length
    stored = 4 * shape.d_model * shape.n_layers * 2 * problems * own
    return Work(tokens, shape.blocks(shape.n_layers) * tokens, stored)


def _patching(config, w, shape) -> Work:
    problems, _, length = prompted(config, w["prompts"])
    block = config["patching"]
    # nothing and everything patched; Z and its complement from four runs; the random controls
    conditions = 2 + 8 + 2 * block["random"] + block["norm_matched"]
    rows = problems * conditions
    flops = shape.blocks(shape.n_layers) * length + shape.forward() * block["max_new_tokens"]
    return Work(rows * (length + block["max_new_tokens"]), flops * rows, 0)


def _ard(config, w, shape) -> Work:
    problems, own, _ = prompted(config, w["prompts"])
    fits = 2 + config["ard"]["permutations"]
    # distances of all pairs of a problem's tokens, forward and backward
    step = 6 * problems * (2 * own) ** 2 * shape.d_model
    return Work(2 * problems * own, fits * config["ard"]["steps"] * step, 0)


_STAGES = {
    "subject": _subject,
    "pretrain": _pretrain,
    "tokens": _tokens,
    "spectra": _spectra,
    "harvest": _harvest,
    "gradients": _gradients,
    "probes": _probes,
    "calibration": _calibration,
    "train_sae": _training(lambda c, w, shape: 0),
    "train_behavioral": _training(lambda c, w, shape: 6 * shape.d_model * c["probes"]["count"]),
    "train_e2e": _training(lambda c, w, shape: 3 * shape.above(w["layer"])),
    "baseline": _baseline,
    "evaluate": _evaluate,
    "sensitivity": _sensitivity,
    "attention": _attention,
    "critics": _critics,
    "geometry": _weights,
    "basis": _weights,
    "states": _states,
    "patching": _patching,
    "ard": _ard,
}
