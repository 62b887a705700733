"""The paths of artifacts below the results: how they are made, and how they are read back."""

import re
from collections.abc import Mapping
from typing import Any

# Patterns of folders. Rules and the registry of stages build every path from these.
SUBJECT = "results/{subject}"
CORPUS = f"{SUBJECT}/{{corpus}}"
LAYER = f"{CORPUS}/L{{ell}}"
SAE = f"{LAYER}/sae/{{sae}}"
STUDY = "results/studies/{study}"
FIGURES = f"{STUDY}/figures"
# the cross-lingual suite: a subject's Z of a layer, and what is made of it with paired prompts
CROSS = f"{SUBJECT}/crosslingual"
PROMPTS = f"{CROSS}/{{prompts}}"
BASIS = f"{CROSS}/basis/L{{ell}}-k{{k_sub}}"
SUBSPACE = f"{PROMPTS}/L{{ell}}-k{{k_sub}}"
PATCHING = f"{SUBSPACE}/patching-{{source}}"
ARD = f"{PROMPTS}/L{{ell}}/ard-{{penalty}}"

#: What each wildcard of those patterns may be, as a regular expression.
WILDCARDS = {
    **dict.fromkeys(("subject", "corpus", "study", "sae"), r"[A-Za-z0-9][A-Za-z0-9._-]*"),
    "ell": r"\d\d+",
    "split": "train|eval",
    "part": r"\d+",
    "parts": r"\d+",
    "prompts": r"[a-z][a-z0-9_-]*",
    "k_sub": r"\d+",
    "source": "mean|ot",
    "penalty": r"\d[\d.e+-]*",
}

# the folder of an SAE that a study trains says how; the name of its recipe only where it has one
_TRAINED = "topk-x{expansion}-k{k}-t{tokens}-{objective}-seed{seed}"
_PARTS = {
    **dict.fromkeys(("expansion", "k", "tokens", "seed"), r"\d+"),
    "objective": "[a-z0-9]+",
}
_RECIPE = "(?:-(?P<recipe>[a-z0-9_]+))?"
_READ = re.compile(_TRAINED.format(**{k: f"(?P<{k}>{v})" for k, v in _PARTS.items()}) + _RECIPE)

# wildcard, its name in tables, its type
_CELL = [
    *((name, name, str) for name in ("subject", "corpus", "prompts")),
    *(("ell", "layer", int), ("k_sub", "k_sub", int)),
    *(("source", "source", str), ("penalty", "penalty", float)),
]


def sae_folder(recipe: str = "", **how: object) -> str:
    """The name of the folder of an SAE that a study trains.

    Args:
        recipe: name of the settings, where they have one (``sae.recipe``).
        how: ``expansion, k, tokens, objective, seed``.
    """
    return _TRAINED.format(**how) + (f"-{recipe}" if recipe else "")


def trained_for(objective: str, recipe: str = "") -> str:
    """A regular expression of the folders of SAEs trained for `objective` by `recipe`."""
    return sae_folder(recipe, **(_PARTS | {"objective": objective}))


def cell(wildcards: Mapping[str, str]) -> dict[str, Any]:
    """Which subject, layer, SAE or subspace the wildcards of a path name.

    Args:
        wildcards: of the path, all or some of ``subject``, ``corpus`` or ``prompts``, ``ell``,
            ``k_sub``, ``source``, ``penalty`` and, for an SAE, ``sae``, its folder.

    Returns:
        What there is of ``subject``, ``corpus``, ``prompts``, ``layer``, ``k_sub``, ``source``,
        ``penalty``; for an SAE also ``sae``, and for one that a study trained what its folder's
        name holds: ``expansion``, ``k``, ``tokens`` (the budget), ``objective``, ``seed``, and
        ``recipe`` where it names one. Counts are ints, a penalty is a float.
    """
    found = {new: kind(wildcards[old]) for old, new, kind in _CELL if old in wildcards.keys()}
    if "sae" in wildcards.keys():
        found["sae"] = wildcards["sae"]
        parts = _READ.fullmatch(wildcards["sae"])
        for name, text in parts.groupdict().items() if parts else ():
            if text is not None:
                found[name] = int(text) if _PARTS.get(name) == r"\d+" else text
    return found


def cell_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The `cell` that a manifest belongs to."""
    return cell(record["spec"]["wildcards"])
