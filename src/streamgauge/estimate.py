"""What a study will cost, from its configuration: tokens, FLOPs, GPU hours and disk.

Arithmetic on shapes, nothing is measured. Per token, with d = d_model, m = d_sae, V words and L
blocks of 12 d² parameters each (attention 4 d², a four-fold MLP 8 d²):

- a forward pass costs 2 FLOPs a parameter it meets: 24 d² a block and 2 d V for the logits;
- a backward pass costs the same again where weights are frozen, twice that where they learn;
- a step of the native trainer costs 2 d m for the encoder and 8 d k for everything else, one of
  SAELens' trainer 12 d m; `behavioral` adds 6 d s for s probes, `e2e` three passes above the hook.

Attention scores, softmaxes, Adam, AuxK, reading and writing are left out, and so are jobs that run
no model (scores, tables, figures) or a small one (MI critics).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from streamgauge import contents, study, verify
from streamgauge.errors import StreamgaugeError

STAGES = (
    *("subject", "pretrain", "tokens", "spectra", "harvest", "gradients", "probes"),
    *("calibration", "train", "baseline", "evaluate", "sensitivity", "attention"),
)
_BYTES = {"auto": 2, "float16": 2, "bfloat16": 2, "float32": 4}
# SAE and untrained control; zero and mean ablation. Each is patched in once a token set.
_SAES, _ABLATIONS, _TOKEN_SETS = 2, 2, 2


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


class _Work(NamedTuple):
    """One kind of job: its stage, how many, and tokens, FLOPs and bytes of all of them."""

    stage: str
    jobs: int
    tokens: int
    flops: int
    disk_bytes: int


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
    study.check_grid(config, results)
    found = {}
    for name in config["grid"]["subjects"]:
        known = study.shape_of(name, config["subjects"][name], results)
        if not known:
            raise StreamgaugeError(
                "the model's shape is not known before it is prepared",
                where=f"subjects.{name}",
                remedy="Set expect: {d_model, n_layers, vocab_size}, or run `snakemake"
                f" results/{name}/subject.json` first.",
            )
        # a model pretrained here has the family's tokenizer
        known = {"vocab_size": config["pretrain"]["vocab_size"], **known}
        found[name] = Shape(**{key: known[key] for key in Shape._fields})
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
        One row for each of `STAGES` that the study has and a last row ``total``: ``stage, jobs,
        tokens`` (positions read by the stage's jobs together), ``flops``, ``gpu_hours`` =
        flops / rate, ``disk_bytes`` (what stays on disk; weights of `local` subjects are links
        and count 0, those of all others 4 bytes a parameter).

    Raises:
        StreamgaugeError: the rate is not positive.
    """
    if not 0 < tflops < float("inf"):
        raise StreamgaugeError(f"{tflops} TFLOP/s is no rate", remedy="Give a positive number.")
    work = pd.DataFrame(_work(config, shapes), columns=list(_Work._fields))
    # beyond 10¹⁸, which a large study has, whole numbers overflow
    work["flops"] = work.flops.astype(float)
    found = work.groupby("stage").sum().reindex(STAGES).dropna()
    found.loc["total"] = found.sum()
    whole = ["jobs", "tokens", "disk_bytes"]
    found = found.astype(dict.fromkeys(whole, "int64")).reset_index()
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
            verify.bytes_in_words(row.disk_bytes),
        ]
        for row in table.itertuples()
    ]
    header = ["stage", "jobs", "tokens", "FLOPs", "GPU hours", "disk"]
    notes = (
        f"GPU hours are FLOPs at {tflops:g} TFLOP/s sustained: arithmetic, not a measurement.",
        "Reading, writing and starting jobs come on top. Disk is weights and stores.",
    )
    return "\n".join([*contents.grid(header, rows), "", *notes])


def _work(config, shapes) -> Iterator[_Work]:
    grid = config["grid"]
    for name in grid["subjects"]:
        shape, source = shapes[name], config["subjects"][name]["source"]
        weights = 0 if source == "local" else 4 * shape.parameters
        if source == "scratch":
            learnt = config["pretrain"]["tokens"]
            yield _Work("pretrain", 1, learnt, 3 * shape.forward() * learnt, weights)
        else:
            yield _Work("subject", 1, 0, 0, weights)
        for corpus in (config["corpora"][key] for key in grid["corpora"]):
            yield from _all_layers(config, corpus, shape)
            for layer in grid["layers"][name]:
                yield from _one_layer(config, corpus, shape, layer)
                for sae in _saes(grid):
                    yield from _one_sae(config, corpus, shape, layer, sae)


def _saes(grid) -> Iterator[dict[str, Any]]:
    """Every SAE of a layer."""
    for tokens in grid["tokens"]:
        n_seeds = len(grid["seeds_at"].get(str(tokens), grid["seeds"]))
        for expansion in grid["expansion"]:
            for k in grid["k"]:
                for objective in grid["objectives"]:
                    sae = {"expansion": expansion, "k": k, "tokens": tokens}
                    yield from [sae | {"objective": objective}] * n_seeds


def _tokens(corpus, split, at_most=None) -> int:
    """Positions of a split's rows, or of the first `at_most` of them."""
    rows = corpus[f"{split}_sequences"]
    return corpus["context_length"] * (rows if at_most is None else min(rows, at_most))


def _all_layers(config, corpus, shape) -> Iterator[_Work]:
    written = _tokens(corpus, "train") + _tokens(corpus, "eval")
    yield _Work("tokens", 2, written, 0, 4 * written)
    seen = _tokens(corpus, "train", config["spectra"]["sequences"])
    covariances = 2 * shape.d_model**2 * shape.n_layers
    yield _Work("spectra", 1, seen, (shape.blocks(shape.n_layers) + covariances) * seen, 0)


def _one_layer(config, corpus, shape, layer) -> Iterator[_Work]:
    d, evaluated = shape.d_model, _tokens(corpus, "eval")
    above = shape.above(layer)
    for split in ("train", "eval"):
        n = _tokens(corpus, split)
        # beside each activation its norm, in float32
        stored = (d * _BYTES[config["harvest"]["dtype"]] + 4) * n
        yield _Work("harvest", 1, n, shape.blocks(layer + 1) * n, stored)
    flops = (shape.forward() + above) * evaluated
    stored = d * _BYTES[config["gradients"]["dtype"]] * evaluated
    yield _Work("gradients", 1, evaluated, flops, stored)

    probes = config["probes"]
    count, width = probes["count"], d * _BYTES[probes["dtype"]]
    passes = count + count * probes["same_positions"] + probes["diagonal"]
    stored = width * (count + probes["diagonal"]) * evaluated
    stored += width * count * probes["same_positions"] * corpus["eval_sequences"]
    flops = (shape.forward() + passes * above) * evaluated
    yield _Work("probes", 1, evaluated, flops, stored)
    if "behavioral" in config["grid"]["objectives"]:
        n = _tokens(corpus, "train")
        yield _Work("probes", 1, n, (shape.forward() + count * above) * n, width * count * n)

    used = _tokens(corpus, "eval", config["calibration"]["sequences"])
    passes = _TOKEN_SETS * len(config["calibration"]["scales"])
    yield _Work("calibration", 1, used, (shape.forward() + passes * above) * used, 0)
    flops = (shape.forward() + _ABLATIONS * _TOKEN_SETS * above) * evaluated
    yield _Work("baseline", 1, evaluated, flops, 0)


def _one_sae(config, corpus, shape, layer, sae) -> Iterator[_Work]:
    d, k, evaluated = shape.d_model, sae["k"], _tokens(corpus, "eval")
    m, above = sae["expansion"] * d, shape.above(layer)
    step = 12 * d * m if config["sae"]["trainer"] == "saelens" else 2 * d * m + 8 * d * k
    extra = {"mse": 0, "behavioral": 6 * d * config["probes"]["count"], "e2e": 3 * above}
    flops = (step + extra[sae["objective"]]) * sae["tokens"]
    yield _Work("train", 1, sae["tokens"], flops, 4 * (2 * d * m + m + d))

    code = 2 * d * m + 2 * d * k
    flops = (shape.forward() + _SAES * _TOKEN_SETS * (code + above)) * evaluated
    yield _Work("evaluate", 1, evaluated, flops, 0)
    yield _Work("sensitivity", 1, evaluated, _SAES * code * evaluated, 0)
    used = _tokens(corpus, "eval", config["attention"]["sequences"])
    # the clean run and every patched copy, without the logits
    upper = shape.blocks(shape.n_layers - layer - 1)
    flops = shape.blocks(shape.n_layers) + (_SAES + _ABLATIONS) * upper + _SAES * code
    yield _Work("attention", 1, used, flops * used, 0)
