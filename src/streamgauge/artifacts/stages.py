"""The registry: every stage of the pipeline, declared once.

A stage is a kind of artifact. Rules, keys, estimates, cluster requests, `verify`, `inspect`,
`adopt` and the table of artifacts in the documentation read it here. To add one, see
docs/extending/stage.md; for a figure, docs/extending/figure.md.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from streamgauge.artifacts import blocks, costs, figures, memory
from streamgauge.artifacts.blocks import Block, one, whole
from streamgauge.base.entry import ARCHITECTURES, SOURCE
from streamgauge.base.paths import (
    ARD,
    BASIS,
    CORPUS,
    CROSS,
    FIGURES,
    LAYER,
    PATCHING,
    PROMPTS,
    SAE,
    STUDY,
    SUBJECT,
    SUBSPACE,
    cell,
)


class Stage(NamedTuple):
    """One kind of artifact.

    Attributes:
        what: what such an artifact is, in the words of `inspect`.
        path: its manifest, with wildcards.
        script: file below ``workflow/scripts``; the function of the stage's name there makes it.
        keys: the blocks of the configuration that it depends on, as its rule shows them.
        config: picks from (config, wildcards) what it depends on, and nothing else; the blocks
            `keys` as they stand where it is not given.
        function: name of the function in `script`, where it is not the stage's own.
        code: from (config, wildcards) further entry points that compute it,
            ``"package.module:name"``: what is found by name at run time, see `base.entry`.
        in_parts: a store that several jobs write (``part.py``) and one gathers (`script`).
        sample: what `adopt` repeats of one that is dear: some ``shards`` of a store in parts, the
            first batch of ``sequences``, the first ``steps`` of a training; else the ``whole``.
        work: what one costs, see `costs`; None where no model runs and nothing is trained.
        reads: bytes that one reads from stores, where that takes time.
        memory: what its job holds at once, see `memory`; None for a small job.
        made_for: whether a study makes one, from (config, wildcards).
    """

    what: str
    path: str
    script: str
    keys: tuple[str, ...] = ()
    config: Block | None = None
    function: str | None = None
    code: Callable[[Mapping, Mapping], Iterable[str]] = lambda config, w: ()
    in_parts: bool = False
    sample: str = "whole"
    work: Callable | None = None
    reads: Callable | None = None
    memory: Callable | None = None
    made_for: Callable[[Mapping, Mapping], bool] = lambda config, w: True

    def block(self, config: Mapping, wildcards: Mapping) -> dict[str, Any]:
        """The part of the configuration that an artifact depends on."""
        return (self.config or whole(*self.keys))(config, wildcards)

    def entries(self, stage: str, config: Mapping, wildcards: Mapping) -> list[str]:
        """Where the code that computes an artifact of `stage` starts, see `code.closure`."""
        scripts = [self.script, "part.py"] if self.in_parts else [self.script]
        own = [f"{script}:{self.function or stage}" for script in scripts]
        return [*own, *self.code(config, wildcards)]

    def cost(self, config: Mapping, wildcards: Mapping, shape: costs.Shape) -> costs.Work:
        """Tokens, FLOPs and bytes of one; nothing where no model runs and nothing is trained."""
        if self.work is None:
            return costs.Work(0, 0, 0)
        return self.work(config, cell(wildcards) | dict(wildcards), shape)


def _scratch(config: Mapping, w: Mapping) -> bool:
    return config["subjects"][w["subject"]]["source"] == "scratch"


def _imported(config: Mapping, w: Mapping) -> bool:
    return w["sae"] in config["imports"]


def _architectures(config: Mapping, w: Mapping) -> list[str]:
    # what is trained here is TopK, as its untrained control is
    return [] if "objective" in cell(w) else [ARCHITECTURES]


def _probed(config: Mapping, w: Mapping) -> bool:
    return w["split"] == "eval" or "behavioral" in config["grid"]["objectives"]


def _train(objective: str, what: str, more: Callable, **kwargs) -> Stage:
    return Stage(
        f"TopK sparse autoencoder {what}in SAELens layout",
        f"{SAE}/sae.json",
        "sae.py",
        ("sae",),
        blocks.sae,
        sample="steps",
        work=costs.training(more),
        made_for=lambda config, w: cell(w).get("objective") == objective,
        **kwargs,
    )


def _figure(name: str, figure: figures.Figure) -> Stage:
    # one without a table has inputs, and a function, of its own
    return Stage(
        f"figure: {figure.title}",
        f"{FIGURES}/{name}.json",
        "figure.py",
        ("figures",),
        lambda config, w: {"figure": {"title": figure.title} | config["figures"].get(name, {})},
        function="figure" if figure.table else name,
        code=lambda config, w: [figures.entry(name)],
    )


def _of_z(what: str, name: str) -> Stage:
    return Stage(what, f"{SUBSPACE}/{name}.json", "crosslingual.py", (name, "statistics"))


def _table(what: str, name: str, *keys: str, config: Block | None = None) -> Stage:
    return Stage(what, f"{STUDY}/{name}.json", "table.py", keys, config)


STAGES: dict[str, Stage] = {
    # models and texts
    "subject": Stage(
        "language model, as a Hugging Face directory",
        f"{SUBJECT}/subject.json",
        "subject.py",
        ("subjects",),
        one("subject", "subjects", "subject"),
        code=lambda config, w: [SOURCE.format(**config["subjects"][w["subject"]])],
        work=costs.subject,
        memory=memory.prepared,
        made_for=lambda config, w: not _scratch(config, w),
    ),
    "pretrain": Stage(
        "language model pretrained here, as a Hugging Face directory",
        f"{SUBJECT}/subject.json",
        "subject.py",
        ("subjects", "pretrain", "corpora"),
        blocks.pretrain,
        work=costs.pretrain,
        memory=memory.pretrained,
        made_for=_scratch,
    ),
    "tokens": Stage(
        "token rows of one split of a corpus",
        f"{CORPUS}/tokens-{{split}}.json",
        "text.py",
        ("corpora",),
        blocks.tokens,
        work=costs.tokens,
        memory=memory.tokenised,
    ),
    # what a model holds at a layer
    "spectra": Stage(
        "eigen-spectra of the residual stream at every layer",
        f"{CORPUS}/spectra.json",
        "evaluate.py",
        ("spectra",),
        work=costs.spectra,
        memory=memory.passes("spectra", 0, more=memory.covariances),
    ),
    "harvest": Stage(
        "activations of one layer over one split",
        f"{LAYER}/activations-{{split}}.json",
        "gather.py",
        ("harvest",),
        in_parts=True,
        sample="shards",
        work=costs.harvest,
        memory=memory.passes("harvest", 0, more=memory.shards_in_hand),
    ),
    "gradients": Stage(
        "gradients of the summed loss at one layer over one split",
        f"{LAYER}/gradients-eval.json",
        "gather.py",
        ("gradients",),
        in_parts=True,
        sample="shards",
        work=costs.gradients,
        memory=memory.passes("gradients", 4, graph=True, more=memory.shards_in_hand),
    ),
    "probes": Stage(
        "output-Fisher probes of one layer over one split",
        f"{LAYER}/probes-{{split}}.json",
        "gather.py",
        ("probes",),
        blocks.probes,
        in_parts=True,
        sample="shards",
        work=costs.probes,
        memory=memory.probed,
        made_for=_probed,
    ),
    "calibration": Stage(
        "predicted and measured cost of synthetic errors at one layer",
        f"{LAYER}/calibration.json",
        "evaluate.py",
        ("calibration",),
        sample="sequences",
        work=costs.calibration,
        reads=costs.read_errors,
        memory=memory.passes("calibration", 4),
    ),
    "baseline": Stage(
        "losses and errors of the zero and mean ablations, per sequence",
        f"{LAYER}/baseline.json",
        "evaluate.py",
        ("evaluate",),
        sample="sequences",
        work=costs.baseline,
        memory=memory.passes("evaluate", 4),
    ),
    "critics": Stage(
        "mutual information of activations and logits at one layer, by critic",
        f"{LAYER}/critics.json",
        "evaluate.py",
        ("critics",),
        work=costs.critics,
        memory=memory.critics,
    ),
    # SAEs
    "train_sae": _train(
        "mse", "", lambda c, w, shape: 0, reads=costs.read_training(), memory=memory.training()
    ),
    "train_behavioral": _train(
        "behavioral",
        "trained in nats, ",
        lambda c, w, shape: 6 * shape.d_model * c["probes"]["count"],
        reads=costs.read_training(probed=True),
        memory=memory.training(probed=True),
    ),
    "train_e2e": _train(
        "e2e",
        "trained end to end, ",
        lambda c, w, shape: 3 * shape.above(w["layer"]),
        reads=costs.read_training(),
        memory=memory.training(model=True),
    ),
    "import_sae": Stage(
        "sparse autoencoder somebody else trained, in SAELens layout",
        f"{SAE}/sae.json",
        "sae.py",
        ("imports",),
        one("import", "imports", "sae"),
        code=_architectures,
        memory=memory.imported,
        made_for=_imported,
    ),
    "evaluate": Stage(
        "losses and errors of one SAE and its untrained control, per sequence",
        f"{SAE}/per_sequence.json",
        "evaluate.py",
        ("evaluate",),
        code=_architectures,
        sample="sequences",
        work=costs.evaluate,
        memory=memory.passes("evaluate", 4, more=memory.coded("evaluate")),
    ),
    "sensitivity": Stage(
        "what the errors of one SAE and its controls cost, per sequence",
        f"{SAE}/sensitivity.json",
        "evaluate.py",
        code=_architectures,
        sample="sequences",
        work=costs.sensitivity,
        reads=costs.read_errors,
        memory=memory.sensitivity,
    ),
    "attention": Stage(
        "attention rows after patching one SAE and its controls, per sequence",
        f"{SAE}/attention.json",
        "evaluate.py",
        ("attention",),
        code=_architectures,
        sample="sequences",
        work=costs.attention,
        memory=memory.passes("attention", 1, more=memory.coded("attention")),
        made_for=lambda config, w: not _imported(config, w),
    ),
    "score": Stage(
        "scores of one SAE beside its controls, with intervals",
        f"{SAE}/scores.json",
        "table.py",
        ("statistics",),
    ),
    "audit": Stage(
        "whether R² misleads about one SAE",
        f"{SAE}/audit.json",
        "page.py",
        ("statistics",),
        made_for=_imported,
    ),
    # tables and pages of a study
    "grid": _table("score table of a study", "grid"),
    "comparisons": _table(
        "scales, budgets and sparsities of a study compared",
        "comparisons",
        *("comparisons", "statistics", "grid"),
        config=blocks.comparisons,
    ),
    "depth_profile_table": _table(
        "dimension of every layer of a study beside its scores", "depth_profile"
    ),
    "critics_table": _table("mutual information and dimension of a study's layers", "critics"),
    "leaderboard": _table(
        "which proxies order the SAEs of a study as behaviour does", "leaderboard", "statistics"
    ),
    "calibration_table": _table(
        "predicted against measured KL of a study", "calibration", "statistics"
    ),
    "attention_table": _table(
        "attention after patching of every SAE of a study, by head", "attention", "statistics"
    ),
    "published": _table("published cells beside a study's own", "published"),
    "simulation": _table(
        "how often the verdicts are wrong in simulated worlds",
        "verdict_calibration",
        *("simulation", "verdicts", "statistics"),
    ),
    "verdicts": Stage(
        "the hypotheses of a study, adjudicated in order",
        f"{STUDY}/verdicts.json",
        "page.py",
        ("verdicts", "statistics"),
    ),
    # the cross-lingual suite
    "geometry": Stage(
        "attention kernels and subspaces of every layer, from the weights",
        f"{CROSS}/geometry.json",
        "crosslingual.py",
        ("geometry", "statistics"),
        work=costs.weights,
        memory=memory.decomposed,
    ),
    "basis": Stage(
        "attention subspace Z of one layer",
        f"{BASIS}.json",
        "crosslingual.py",
        work=costs.weights,
        memory=memory.decomposed,
    ),
    "prompts": Stage(
        "paired problems in two languages, tokenised",
        f"{PROMPTS}/prompts.json",
        "text.py",
        ("prompts",),
        one("prompts", "prompts", "prompts"),
    ),
    "states": Stage(
        "residual stream of every prompt at every layer",
        f"{PROMPTS}/states.json",
        "crosslingual.py",
        ("states",),
        work=costs.states,
        memory=memory.states,
    ),
    "separation": _of_z("distances between languages inside and outside Z", "separation"),
    "updates": _of_z("what every block writes inside and outside Z", "updates"),
    "bridge": _of_z("linear map between the languages inside Z", "bridge"),
    "patching": Stage(
        "generations with Z, its complement and the controls patched",
        f"{PATCHING}.json",
        "crosslingual.py",
        ("patching", "dissociation", "statistics"),
        work=costs.patching,
        memory=memory.patching,
    ),
    "ard": Stage(
        "lengthscales learnt by ARD-MMD at one layer",
        f"{ARD}.json",
        "crosslingual.py",
        ("ard", "statistics"),
        work=costs.ard,
        memory=memory.ard,
    ),
    "crosslingual_tables": _table("cross-lingual tables of a study", "crosslingual"),
    "crosslingual_page": Stage(
        "cross-lingual findings of a study, as a page",
        f"{STUDY}/crosslingual_page.json",
        "page.py",
    ),
    **{f"figure_{name}": _figure(name, figure) for name, figure in figures.FIGURES.items()},
}
