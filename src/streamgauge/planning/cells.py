"""Which artifacts a study asks for, as wildcards of paths: its grid, its imports, its suite."""

import itertools
import string
from collections.abc import Iterator, Mapping
from typing import Any

from streamgauge.artifacts.stages import STAGES
from streamgauge.base.paths import STUDY, sae_folder

Place = dict[str, str]


def corpora(config: Mapping[str, Any]) -> list[Place]:
    """Every subject with every corpus of the grid."""
    grid = config["grid"]
    pairs = itertools.product(grid["subjects"], grid["corpora"])
    return [{"subject": subject, "corpus": corpus} for subject, corpus in pairs]


def layers(config: Mapping[str, Any]) -> list[Place]:
    """Every hooked layer of the grid."""
    return [
        place | {"ell": ell(layer)}
        for place in corpora(config)
        for layer in config["grid"]["layers"][place["subject"]]
    ]


def saes(config: Mapping[str, Any]) -> list[Place]:
    """Every SAE that the study trains."""
    grid = config["grid"]
    folders = [
        sae_folder(
            config["sae"]["recipe"],
            expansion=expansion,
            k=k,
            tokens=tokens,
            objective=objective,
            seed=seed,
        )
        for expansion, k, tokens, objective in itertools.product(
            *(grid[name] for name in ("expansion", "k", "tokens", "objectives"))
        )
        for seed in grid["seeds_at"].get(str(tokens), grid["seeds"])
    ]
    return [place | {"sae": sae} for place in layers(config) for sae in folders]


def imports(config: Mapping[str, Any]) -> list[Place]:
    """Every SAE somebody else trained."""
    return [
        {
            "subject": block["subject"],
            "corpus": block["corpus"],
            "ell": ell(block["layer"]),
            "sae": name,
        }
        for name, block in config["imports"].items()
    ]


def suite(config: Mapping[str, Any], key: str = "layers") -> list[Place]:
    """Every combination that the cross-lingual suite runs, at its ``layers`` or ``ard_layers``."""
    asked = config["crosslingual"]
    return [
        {
            "subject": subject,
            "prompts": prompts,
            "ell": ell(layer),
            "k_sub": f"{k_sub}",
            "source": source,
            "penalty": f"{penalty}",
        }
        for subject in asked["subjects"]
        for prompts, layer, k_sub, source, penalty in itertools.product(
            asked["prompts"],
            asked[key].get(subject, asked["layers"][subject]),
            *(asked[name] for name in ("k_sub", "sources", "penalties")),
        )
    ]


def ell(layer: int) -> str:
    """A layer as paths write it."""
    return f"{layer:02d}"


def artifacts(config: Mapping[str, Any]) -> Iterator[tuple[str, Place]]:
    """Stage and wildcards of everything a study makes that other studies may use too.

    That is all but its own tables, pages and figures.
    """
    # an imported SAE's layer, and the Z of the ARD fits, are none of the grid's or the suite's
    imported, arded = imports(config), suite(config, "ard_layers")
    arded_basis = [place | {"k_sub": f"{config['ard']['k_sub']}"} for place in arded]
    places = [*saes(config), *imported, *layers(config), *corpora(config)]
    of_stage = {
        "ard": arded,
        "basis": [*suite(config), *arded_basis],
        **{key: [*suite(config), *arded] for key in ("geometry", "prompts", "states")},
    }
    for name, stage in STAGES.items():
        if stage.path.startswith(STUDY):
            continue
        wanted = [field for _, field, *_ in string.Formatter().parse(stage.path) if field]
        whole = of_stage.get(name, suite(config) if "crosslingual" in stage.path else places)
        if wanted == ["subject"]:
            whole = [*whole, *suite(config), *arded]
        # some stages have two splits, the others are of one that needs no name
        splits = [{"split": split} for split in ("train", "eval")] if "split" in wanted else [{}]
        found = {
            tuple((key, (place | split)[key]) for key in wanted): None
            for place in whole
            for split in splits
            if set(wanted) <= (place | split).keys()
        }
        for place in map(dict, found):
            if stage.made_for(config, place):
                yield name, place
