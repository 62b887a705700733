"""What an artifact depends on, written down: its *spec*, one canonical JSON string.

A spec holds the stage, the stage's own config block, the wildcards of the artifact's path and a
hash of every source file its script imports. The workflow hands it to a job as its only parameter,
the job writes it into the artifact's manifest, and `streamgauge verify` computes it again.
"""

import ast
import functools
import hashlib
import json
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
    """

    script: str
    block: Callable[[Mapping, Mapping], dict[str, Any]]


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


def _figure(name: str) -> Stage:
    return Stage(f"figure_{name}.py", lambda c, w: {"figure": c["figures"][name]})


STAGES: dict[str, Stage] = {
    "subject": Stage("subject.py", lambda c, w: {"subject": c["subjects"][w["subject"]]}),
    "tokens": Stage("tokens.py", _tokens),
    "spectra": Stage("spectra.py", lambda c, w: {"spectra": c["spectra"]}),
    "harvest": Stage("harvest.py", lambda c, w: {"harvest": c["harvest"]}),
    "gradients": Stage("gradients.py", lambda c, w: {"gradients": c["gradients"]}),
    "probes": Stage("probes.py", _probes),
    "calibration": Stage("calibration.py", lambda c, w: {"calibration": c["calibration"]}),
    "baseline": Stage("baseline.py", lambda c, w: {"evaluate": c["evaluate"]}),
    "train_sae": Stage("train_sae.py", lambda c, w: {"sae": c["sae"]}),
    "train_behavioral": Stage("train_behavioral.py", lambda c, w: {"sae": c["sae"]}),
    "train_e2e": Stage("train_e2e.py", lambda c, w: {"sae": c["sae"]}),
    "evaluate": Stage("evaluate.py", lambda c, w: {"evaluate": c["evaluate"]}),
    "sensitivity": Stage("sensitivity.py", lambda c, w: {}),
    "attention": Stage("attention.py", lambda c, w: {"attention": c["attention"]}),
    "score": Stage("score.py", lambda c, w: {"statistics": c["statistics"]}),
    "grid": Stage("grid.py", lambda c, w: {}),
    **{
        name: Stage(f"{name}.py", lambda c, w: {"statistics": c["statistics"]})
        for name in ("leaderboard", "calibration_table", "attention_table")
    },
    **{
        f"figure_{name}": _figure(name)
        for name in (
            *("proxy_gap", "rate_distortion", "pr_canyon", "loss_curves"),
            *("calibration", "objectives", "leaderboard", "attention"),
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
    return json.dumps(
        {
            "stage": stage,
            "config": STAGES[stage].block(config, wildcards),
            "wildcards": wildcards,
            "code": closure(Path(root).resolve(), f"workflow/scripts/{STAGES[stage].script}"),
        },
        sort_keys=True,
    )


def settings(spec_: str, block: str) -> dict[str, Any]:
    """The config block named `block` inside a spec."""
    return json.loads(spec_)["config"][block]


def own_files(block: Mapping[str, Any]) -> list[str]:
    """The user's own files that a subject or corpus block names.

    Args:
        block: one entry of ``subjects`` or ``corpora``.

    Returns:
        Paths as written in the config; empty for sources that are not files of the user's.
    """
    source, path = block["source"], block.get("path")
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
