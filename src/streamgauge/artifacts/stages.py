"""The registry: every stage of the pipeline, declared once.

A stage is a kind of artifact. Rules, keys, estimates, cluster requests, `verify`, `inspect`,
`adopt` and the table of artifacts in the documentation read it here. To add one, see
docs/extending/stage.md; for a figure, docs/extending/figure.md.
"""

from collections.abc import Callable, Mapping

from streamgauge.artifacts import blocks, costs, figures, memory
from streamgauge.artifacts.blocks import Block, one
from streamgauge.artifacts.stage import Stage
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


def _scratch(config: Mapping, w: Mapping) -> bool:
    return config["subjects"][w["subject"]]["source"] == "scratch"


def _imported(config: Mapping, w: Mapping) -> bool:
    return w["sae"] in config["imports"]


def _architectures(config: Mapping, w: Mapping) -> list[str]:
    # what is trained here is TopK, as its untrained control is
    return [] if "objective" in cell(w) else [ARCHITECTURES]


def _probed(config: Mapping, w: Mapping) -> bool:
    return w["split"] == "eval" or "behavioral" in config["grid"]["objectives"]


#: The cross-lingual tables of a study, by name.
CROSS_TABLES = (
    *("heads", "layers", "similarity", "separation", "updates"),
    *("bridge", "bridge_spectra", "patching", "ard"),
)
_FITTED = ("cfg.json", "sae_weights.safetensors", "training.csv")


def _train(objective: str, what: str, more: Callable, **kwargs) -> Stage:
    return Stage(
        f"TopK sparse autoencoder {what}in SAELens layout",
        f"{SAE}/sae.json",
        "sae.py",
        ("sae",),
        config=blocks.sae,
        files=_FITTED,
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
        files=(".svg", ".png"),
        config=lambda config, w: {
            "figure": {"title": figure.title} | config["figures"].get(name, {})
        },
        function="figure" if figure.table else name,
        code=lambda config, w: [figures.entry(name)],
    )


def _of_z(what: str, name: str) -> Stage:
    files = (".csv", "bridge_spectra.csv") if name == "bridge" else (".csv",)
    path = f"{SUBSPACE}/{name}.json"
    return Stage(what, path, "crosslingual.py", (name, "statistics"), files)


def _table(
    what: str,
    name: str,
    *keys: str,
    files: tuple[str, ...] = (".csv",),
    config: Block | None = None,
) -> Stage:
    return Stage(what, f"{STUDY}/{name}.json", "table.py", keys, files, config)


STAGES: dict[str, Stage] = {
    # models and texts
    "subject": Stage(
        "language model, as a Hugging Face directory",
        f"{SUBJECT}/subject.json",
        "subject.py",
        ("subjects",),
        config=one("subject", "subjects", "subject"),
        files=("model",),
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
        config=blocks.pretrain,
        files=("model",),
        work=costs.pretrain,
        memory=memory.pretrained,
        made_for=_scratch,
    ),
    "tokens": Stage(
        "token rows of one split of a corpus",
        f"{CORPUS}/tokens-{{split}}.json",
        "text.py",
        ("corpora",),
        config=blocks.tokens,
        files=(".zarr",),
        work=costs.tokens,
        memory=memory.tokenised,
    ),
    # what a model holds at a layer
    "spectra": Stage(
        "eigen-spectra of the residual stream at every layer",
        f"{CORPUS}/spectra.json",
        "evaluate.py",
        ("spectra",),
        files=(".zarr", ".csv"),
        work=costs.spectra,
        memory=memory.passes("spectra", 0, more=memory.covariances),
    ),
    "harvest": Stage(
        "activations of one layer over one split",
        f"{LAYER}/activations-{{split}}.json",
        "gather.py",
        ("harvest",),
        files=(".zarr",),
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
        files=(".zarr",),
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
        config=blocks.probes,
        files=(".zarr",),
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
        files=(".parquet",),
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
        files=(".parquet",),
        sample="sequences",
        work=costs.baseline,
        memory=memory.passes("evaluate", 4),
    ),
    "critics": Stage(
        "mutual information of activations and logits at one layer, by critic",
        f"{LAYER}/critics.json",
        "evaluate.py",
        ("critics",),
        files=(".csv",),
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
        config=one("import", "imports", "sae"),
        files=_FITTED[:2],
        code=_architectures,
        memory=memory.imported,
        made_for=_imported,
    ),
    "evaluate": Stage(
        "losses and errors of one SAE and its untrained control, per sequence",
        f"{SAE}/per_sequence.json",
        "evaluate.py",
        ("evaluate",),
        files=("per_sequence.parquet", "latents.parquet"),
        code=_architectures,
        sample="sequences",
        work=costs.evaluate,
        memory=memory.passes("evaluate", 4, more=memory.coded("evaluate")),
    ),
    "sensitivity": Stage(
        "what the errors of one SAE and its controls cost, per sequence",
        f"{SAE}/sensitivity.json",
        "evaluate.py",
        files=(".parquet",),
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
        files=(".parquet",),
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
        files=(".md",),
        made_for=_imported,
    ),
    # tables and pages of a study
    "grid": _table("score table of a study", "grid"),
    "comparisons": _table(
        "scales, budgets and sparsities of a study compared",
        "comparisons",
        *("comparisons", "statistics", "grid"),
        files=("deltas.csv", "budgets.csv", "correlations.csv", "kstar.csv"),
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
        "predicted against measured KL of a study",
        *("calibration", "statistics"),
        files=(".csv", "calibration_points.csv"),
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
        files=(".html",),
    ),
    # the cross-lingual suite
    "geometry": Stage(
        "attention kernels and subspaces of every layer, from the weights",
        f"{CROSS}/geometry.json",
        "crosslingual.py",
        ("geometry", "statistics"),
        files=("heads.csv", "layers.csv", "similarity.csv"),
        work=costs.weights,
        memory=memory.decomposed,
    ),
    "basis": Stage(
        "attention subspace Z of one layer",
        f"{BASIS}.json",
        "crosslingual.py",
        files=(".zarr",),
        work=costs.weights,
        memory=memory.decomposed,
    ),
    "prompts": Stage(
        "paired problems in two languages, tokenised",
        f"{PROMPTS}/prompts.json",
        "text.py",
        ("prompts",),
        config=one("prompts", "prompts", "prompts"),
        files=(".parquet",),
    ),
    "states": Stage(
        "residual stream of every prompt at every layer",
        f"{PROMPTS}/states.json",
        "crosslingual.py",
        ("states",),
        files=(".zarr",),
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
        files=(".parquet", ".csv", ".html"),
        work=costs.patching,
        memory=memory.patching,
    ),
    "ard": Stage(
        "lengthscales learnt by ARD-MMD at one layer",
        f"{ARD}.json",
        "crosslingual.py",
        ("ard", "statistics"),
        files=(".zarr", ".csv"),
        work=costs.ard,
        memory=memory.ard,
    ),
    "crosslingual_tables": _table(
        "cross-lingual tables of a study",
        "crosslingual",
        files=tuple(f"crosslingual_{name}.csv" for name in CROSS_TABLES),
    ),
    "crosslingual_page": Stage(
        "cross-lingual findings of a study, as a page",
        f"{STUDY}/crosslingual_page.json",
        "page.py",
        files=("crosslingual.html",),
    ),
    **{f"figure_{name}": _figure(name, figure) for name, figure in figures.FIGURES.items()},
}
