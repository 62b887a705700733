"""``streamgauge audit``: an SAE, a model and a corpus in; a page out.

The command writes a configuration with one entry under ``imports`` and lets the workflow do the
rest, so that an audit is resumed, cached and checked as every other artifact is.
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import yaml

from streamgauge.base import project
from streamgauge.base.errors import StreamgaugeError
from streamgauge.planning import config
from streamgauge.sae import formats

_HUB = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
EVAL_FRACTION = 0.9  # of the documents: nothing is trained on the others


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command; `run` takes what they parse to."""
    parser.add_argument("sae", metavar="SAE", help="directory of the SAE (see docs/audit.md)")
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="repository of the Hugging Face hub, directory, GGUF file, or a name under subjects "
        "in config.yaml (default: what the SAE names)",
    )
    parser.add_argument(
        "--corpus",
        nargs="+",
        metavar="CORPUS",
        help="python-docs, files (txt, jsonl, parquet), or hf:REPO (default: what the SAE names)",
    )
    parser.add_argument(
        "--layer", type=int, help="block after which it sits, from 0 (default: what the SAE names)"
    )
    parser.add_argument("--name", help="what to call it (default: its directory and a digest)")
    parser.add_argument("--format", default="auto", choices=["auto", *formats.LAYOUTS])
    parser.add_argument("--context-length", type=int, default=128, metavar="TOKENS")
    parser.add_argument("--eval-sequences", type=int, default=64, metavar="N")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    parser.add_argument("--cores", default="all", metavar="N", help="CPU cores (all)")
    parser.add_argument(
        "--replace",
        action="store_true",
        help="make anew what another audit or study uses with other settings",
    )
    parser.add_argument("--out", metavar="FILE", help="also write the page there")


def run(options: argparse.Namespace) -> int:
    """Audit one SAE and print the page.

    Args:
        options: see `add_arguments`.

    Returns:
        0.

    Raises:
        StreamgaugeError: the SAE cannot be read; model, corpus or layer are neither given nor
            named by the SAE; the workflow stopped.
    """
    root, home = project.pipeline(), project.home()
    overlay, page = command(options, config.load([root / "config.yaml"]))
    (name,) = overlay["imports"]
    path = home / "results/audits" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(overlay, sort_keys=True, allow_unicode=True), encoding="utf-8")
    config.validate(config.load([root / "config.yaml", path]), where=str(path))
    workflow = [sys.executable, "-m", "snakemake", page, "--cores", options.cores]
    workflow += ["--config", "replace=true"] if options.replace else []
    workflow += project.flags(root / "Snakefile", [path])
    # what the workflow prints goes to stderr: stdout is for the page
    done = subprocess.run(workflow, cwd=home, stdout=sys.__stderr__, check=False)
    if done.returncode:
        raise StreamgaugeError(
            "the audit stopped; the lines above say why",
            where=str(path),
            remedy="Give the same command again: finished steps are kept.",
        )
    text = (home / page).read_text(encoding="utf-8")
    if options.out:
        Path(options.out).write_text(text, encoding="utf-8")
    print(text, end="")
    return 0


def command(options: argparse.Namespace, base: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The configuration of an audit, and the page it is asked for.

    Args:
        options: see `add_arguments`.
        base: ``config.yaml``; its subjects can be named as the model.

    Returns:
        An overlay on `base` with one entry each under ``subjects``, ``corpora`` and ``imports``,
        and the page's path below `project.home`. Names end in a digest of what they stand for, so
        that two audits share what is the same and nothing else. It is a study of its own, whose
        grid asks for nothing of anybody else's.

    Raises:
        StreamgaugeError: see `run`.
    """
    directory = Path(options.sae).expanduser().absolute()
    _, known = formats.read(directory, options.format)
    ours = {*base["subjects"], "python-docs"}
    named = {key: _public(known[key], ours) for key in ("model", "corpus")}
    subject, model = _subject(_given(options, "model", named["model"]), base)
    words = options.corpus or _named_corpus(named["corpus"])
    corpus, texts = _corpus(_given(options, "corpus", words))
    texts |= {
        "context_length": options.context_length,
        "train_sequences": 1,
        "eval_sequences": options.eval_sequences,
        "eval_fraction": EVAL_FRACTION,
    }
    corpus = _name(corpus, texts)
    layer = options.layer
    if layer is None:
        layer = formats.layer_of(_given(options, "layer", known["hook_name"]))
    formats.check_layer(known, layer, str(directory))
    entry = {
        "path": str(directory),
        "subject": subject,
        "corpus": corpus,
        "layer": layer,
        "format": known["format"],
    }
    # names beginning with topk-x are those of a study's own SAEs
    name = options.name or _name(directory.name.removeprefix("topk-"), entry)
    grid = {"subjects": [subject], "corpora": [corpus], "layers": {subject: [layer]}}
    overlay = {
        "study": f"audit-{name}",
        "device": options.device,
        "grid": grid | {"expansion": [1], "k": [1], "objectives": ["mse"], "depths": None},
        "crosslingual": {"subjects": []},
        "subjects": {subject: model},
        "corpora": {corpus: texts},
        "imports": {name: entry},
    }
    return overlay, f"results/{subject}/{corpus}/L{layer:02d}/sae/{name}/audit.md"


def _given(options: argparse.Namespace, name: str, default: Any) -> Any:
    value = getattr(options, name)
    value = default if value is None else value
    if value is None:
        raise StreamgaugeError(
            f"the SAE does not say which {name} it belongs to, or not by a name of the hub",
            where=str(options.sae),
            remedy=f"Give --{name}.",
        )
    return value


def _public(name: str | None, ours: Set[str]) -> str | None:
    """A name that an SAE gives, if it is one of `ours` or of the hub: no path into this machine."""
    if name is None or name in ours:
        return name
    return name if _HUB.fullmatch(name) and not Path(name).exists() else None


def _subject(model: str, base: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and block of a model."""
    if model in base["subjects"]:
        return model, base["subjects"][model]
    path = Path(model).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        block = {"source": "gguf", "path": str(path.absolute())}
    elif path.is_dir():
        block = {"source": "local", "path": str(path.absolute())}
    elif path.suffix == ".gguf" or path.is_absolute() or model.startswith("."):
        raise StreamgaugeError(
            "no such model",
            where=model,
            remedy="--model takes a repository of the hub, a directory or a GGUF file.",
        )
    else:
        block = {"source": "huggingface", "repo": model}
    return _name(path.stem if path.suffix == ".gguf" else path.name, block), block


def _named_corpus(corpus: str | None) -> list[str] | None:
    """As --corpus would give it: the SAE names a data set of the hub, or the one built in."""
    if corpus is None:
        return None
    return [corpus if corpus == "python-docs" else f"hf:{corpus}"]


def _corpus(words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """A label for a corpus, and the part of its block that says where the text comes from."""
    if list(words) == ["python-docs"]:
        return "python-docs", {"source": "python-docs"}
    if len(words) == 1 and words[0].startswith("hf:"):
        repo = words[0].removeprefix("hf:")
        return repo.split("/")[-1], {"source": "huggingface", "repo": repo}
    paths = [Path(word).expanduser().absolute() for word in words]
    for path in paths:
        if not path.is_file():
            raise StreamgaugeError(
                "no such file",
                where=str(path),
                remedy="--corpus takes python-docs, files, or hf: and a data set of the hub.",
            )
    return paths[0].stem, {"source": "text", "paths": [str(path) for path in paths]}


def _name(label: str, block: Mapping[str, Any]) -> str:
    """A name that may be a directory: the label, and six digits of what it stands for."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", label).strip("-._")[:60] or "unnamed"
    digest = hashlib.sha256(json.dumps(block, sort_keys=True).encode()).hexdigest()
    return f"{readable}-{digest[:6]}"
