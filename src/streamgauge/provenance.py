"""What an artifact depends on, written down: its *spec*, one canonical JSON string.

A spec holds the stage, the stage's own config block, the wildcards of the artifact's path and a
hash of every source file its script imports. The workflow hands it to a job as its only parameter,
the job writes it into the artifact's manifest, and `streamgauge verify` computes it again.
"""

import ast
import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from streamgauge.errors import StreamgaugeError


class Stage(NamedTuple):
    """How one kind of artifact is made.

    Attributes:
        script: file name under ``workflow/scripts``.
        block: picks from (config, wildcards) what the artifact depends on, and nothing else:
            lists in ``grid`` say *which* artifacts exist and belong to no spec.
        gather: the script that finishes what jobs of `script` have written in parts.
    """

    script: str
    block: Callable[[Mapping, Mapping], dict[str, Any]]
    gather: str | None = None

    @property
    def scripts(self) -> list[str]:
        """Every script that makes such an artifact."""
        return [self.script, *filter(None, [self.gather])]


def _tokens(config: Mapping, w: Mapping) -> dict:
    corpus = dict(config["corpora"][w["corpus"]])
    # the other split's size changes nothing in this one
    wanted = {split: corpus.pop(f"{split}_sequences") for split in ("train", "eval")}
    return {"corpus": corpus, "sequences": wanted[w["split"]]}


def _probes(config: Mapping, w: Mapping) -> dict:
    probes = dict(config["probes"])
    if w["split"] == "train":
        # training reads the downstream probes alone
        probes |= {"same_positions": 0, "diagonal": 0}
    return {"probes": probes}


def _pretrain(config: Mapping, w: Mapping) -> dict:
    corpus = dict(config["corpora"][config["pretrain"]["corpus"]])
    # the family reads as many rows as it needs, and has a length of its own
    for name in ("train_sequences", "eval_sequences", "context_length"):
        del corpus[name]
    subject = config["subjects"][w["subject"]]
    return {"subject": subject, "pretrain": config["pretrain"], "corpus": corpus}


def _comparisons(config: Mapping, w: Mapping) -> dict:
    return {
        "statistics": config["statistics"],
        "comparisons": config["comparisons"],
        "depths": depths(config["grid"]),
    }


def _blocks(*names: str) -> Callable[[Mapping, Mapping], dict]:
    return lambda config, w: {name: config[name] for name in names}


def _figure(name: str) -> Stage:
    return Stage(f"figure_{name}.py", lambda c, w: {"figure": c["figures"][name]})


STAGES: dict[str, Stage] = {
    "subject": Stage("subject.py", lambda c, w: {"subject": c["subjects"][w["subject"]]}),
    "pretrain": Stage("pretrain.py", _pretrain),
    "tokens": Stage("tokens.py", _tokens),
    "spectra": Stage("spectra.py", _blocks("spectra")),
    "harvest": Stage("harvest.py", _blocks("harvest"), "gather_activations.py"),
    "gradients": Stage("gradients.py", _blocks("gradients"), "gather_gradients.py"),
    "probes": Stage("probes.py", _probes, "gather_probes.py"),
    "calibration": Stage("calibration.py", _blocks("calibration")),
    "baseline": Stage("baseline.py", _blocks("evaluate")),
    "train_sae": Stage("train_sae.py", _blocks("sae")),
    "train_behavioral": Stage("train_behavioral.py", _blocks("sae")),
    "train_e2e": Stage("train_e2e.py", _blocks("sae")),
    "evaluate": Stage("evaluate.py", _blocks("evaluate")),
    "sensitivity": Stage("sensitivity.py", lambda c, w: {}),
    "attention": Stage("attention.py", _blocks("attention")),
    "score": Stage("score.py", _blocks("statistics")),
    "import_sae": Stage("import_sae.py", lambda c, w: {"import": c["imports"][w["sae"]]}),
    "critics": Stage("critics.py", _blocks("critics")),
    "comparisons": Stage("comparisons.py", _comparisons),
    "verdicts": Stage("verdicts.py", _blocks("verdicts", "statistics")),
    "simulation": Stage("simulation.py", _blocks("simulation", "verdicts", "statistics")),
    "prompts": Stage("prompts.py", lambda c, w: {"prompts": c["prompts"][w["prompts"]]}),
    "states": Stage("states.py", _blocks("states")),
    "patching": Stage("patching.py", _blocks("patching", "dissociation", "statistics")),
    **{
        name: Stage(f"{name}.py", _blocks(name, "statistics"))
        for name in ("geometry", "separation", "updates", "bridge", "ard")
    },
    **{
        name: Stage(f"{name}.py", lambda c, w: {})
        for name in (
            *("grid", "depth_profile_table", "critics_table", "published"),
            *("basis", "crosslingual_tables", "crosslingual_page"),
        )
    },
    **{
        name: Stage(f"{name}.py", _blocks("statistics"))
        for name in ("leaderboard", "calibration_table", "attention_table", "audit")
    },
    **{
        f"figure_{name}": _figure(name)
        for name in (
            *("proxy_gap", "rate_distortion", "pr_canyon", "loss_curves"),
            *("calibration", "objectives", "leaderboard", "attention"),
            *("deltas", "budgets", "kstar", "depth_profile", "critics", "verdict_calibration"),
            *(f"crosslingual_{name}" for name in ("geometry", "updates", "patching")),
            *(f"crosslingual_{name}" for name in ("ard", "spectrum", "bridge")),
        )
    },
}


def spec(root: str | Path, config: Mapping, stage: str, wildcards: Mapping[str, str]) -> str:
    """The canonical JSON string of everything, and only what, one artifact depends on.

    Args:
        root: the repository (the folder holding ``src`` and ``workflow``).
        config: the validated study configuration.
        stage: a key of `STAGES`.
        wildcards: the wildcards of the artifact's path.

    Returns:
        ``{"code", "config", "stage", "wildcards"}`` as JSON with sorted keys.

    Raises:
        KeyError: the config does not describe such an artifact (no such subject, say).
    """
    wildcards = dict(wildcards)
    root, code = Path(root).resolve(), {}
    for script in STAGES[stage].scripts:
        code |= closure(root, f"workflow/scripts/{script}")
    return json.dumps(
        {
            "stage": stage,
            "config": STAGES[stage].block(config, wildcards),
            "wildcards": wildcards,
            "code": code,
        },
        sort_keys=True,
    )


def settings(spec_: str, block: str) -> dict[str, Any]:
    """The config block named `block` inside a spec."""
    return json.loads(spec_)["config"][block]


_TRAINED = re.compile(
    r"topk-x(?P<expansion>\d+)-k(?P<k>\d+)-t(?P<tokens>\d+)-(?P<objective>[a-z0-9]+)-seed(?P<seed>\d+)"
)

# wildcard, its name in tables, its type
_CELL = [
    *((name, name, str) for name in ("subject", "corpus", "prompts")),
    *(("ell", "layer", int), ("k_sub", "k_sub", int)),
    *(("source", "source", str), ("penalty", "penalty", float)),
]


def cell(wildcards: Mapping[str, str]) -> dict[str, Any]:
    """Which subject, layer, SAE or subspace the wildcards of a path name.

    Args:
        wildcards: of the path, all or some of ``subject``, ``corpus`` or ``prompts``, ``ell``,
            ``k_sub``, ``source``, ``penalty`` and, for an SAE, ``sae``, its folder.

    Returns:
        What there is of ``subject``, ``corpus``, ``prompts``, ``layer``, ``k_sub``, ``source``,
        ``penalty``; for an SAE also ``sae``, and for one that a study trained what its folder's
        name holds: ``expansion``, ``k``, ``tokens`` (the budget), ``objective``, ``seed``. Counts
        are ints, a penalty is a float.
    """
    found = {new: kind(wildcards[old]) for old, new, kind in _CELL if old in wildcards.keys()}
    if "sae" in wildcards.keys():
        found["sae"] = wildcards["sae"]
        parts = _TRAINED.fullmatch(wildcards["sae"])
        for name, text in parts.groupdict().items() if parts else ():
            found[name] = text if name == "objective" else int(text)
    return found


def depths(grid: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Which layers of different subjects are compared: those at the same place in their lists.

    Args:
        grid: the config block: ``layers``, and ``depths``, the names of the places, where given.

    Returns:
        subject -> layer (as text) -> name of its depth; numbers from "1" where there are no names.
    """
    found = {}
    for subject in grid["subjects"]:
        layers = grid["layers"][subject]
        names = grid["depths"] or [str(i) for i in range(1, len(layers) + 1)]
        found[subject] = {str(layer): name for layer, name in zip(layers, names, strict=True)}
    return found


def own_files(block: Mapping[str, Any]) -> list[str]:
    """The user's own files that a block of subjects, corpora or imports names.

    Args:
        block: one entry of ``subjects``, ``corpora`` or ``imports``.

    Returns:
        Paths as written in the config; empty for sources that are not files of the user's.
    """
    source, path = block.get("source", "local"), block.get("path")
    if source == "text":
        return list(block["paths"])
    if source == "gguf" and path:
        return [path]
    if source == "local":
        return sorted(str(file) for file in Path(path).glob("*") if file.suffix in _MODEL_SUFFIXES)
    return []


_MODEL_SUFFIXES = {".safetensors", ".json"}


@functools.cache
def closure(root: Path, script: str) -> dict[str, str]:
    """Every file under ``root/src`` that `script` imports, directly or not, with its code's hash.

    The hash is of the syntax tree without docstrings: comments, layout and file times never count.
    Imports inside functions are followed; imports by computed name are not seen.

    Args:
        root: the repository.
        script: path of a Python file below `root`.

    Returns:
        path below `root` -> first 12 hex digits of the sha256 of its code.
    """
    source = root / "src"
    found: dict[Path, str] = {}
    queue = [root / script]
    while queue:
        path = queue.pop()
        if path in found:
            continue
        found[path], names = _read(path, source)
        for name in names:
            parts = name.split(".")
            for depth in range(1, len(parts) + 1):
                module = source.joinpath(*parts[:depth])
                candidates = (module.with_suffix(".py"), module / "__init__.py")
                queue += [file for file in candidates if file.is_file()]
    return {str(path.relative_to(root)): digest for path, digest in sorted(found.items())}


@functools.cache
def _read(path: Path, source: Path) -> tuple[str, frozenset[str]]:
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError as error:
        raise StreamgaugeError(
            f"not valid Python (line {error.lineno}: {error.msg})",
            where=str(path),
            remedy="Mend the file; artifacts depend on its code.",
        ) from None
    names = frozenset(_imported(path, source, tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Pass()]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:12], names


def _imported(path: Path, source: Path, tree: ast.AST) -> Iterator[str]:
    package = path.relative_to(source).parts[:-1] if source in path.parents else ()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            yield ".".join(base)
            yield from (".".join([*base, alias.name]) for alias in node.names)
