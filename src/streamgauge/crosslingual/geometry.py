"""What attention reads, seen in the weights alone: every layer and head of a model.

Definitions: docs/definitions.md, "Attention subspace Z"; functions of arrays are in `subspace`.
"""

import itertools
from typing import NamedTuple

import numpy as np
import pandas as pd
from torch import nn

from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.progress import Progress
from streamgauge.models import hooks
from streamgauge.models.projections import Projections, projections
from streamgauge.numerics.nulls import central
from streamgauge.numerics.spectra import effective_rank, top_share
from streamgauge.numerics.subspace import (
    Subspace,
    attention_subspace,
    ffn_alignment,
    kernel_singular_values,
    random_subspaces,
    similarity,
)


class Geometry(NamedTuple):
    """Result of `tables`.

    Attributes:
        heads: one row a head: ``layer, head, kv_head, effective_rank, top_share``. Both are of
            the singular values of A_h: exp of their entropy, and the largest over their sum.
        layers: one row a layer: ``layer, d_model, d_head, n_heads, n_kv_heads``;
            ``effective_rank_mean, effective_rank_sd, effective_rank_cv`` (over heads; the sd with
            n − 1, the cv is sd/mean); ``k_sub``; ``ffn_alignment`` (1 is chance) and the interval
            of random subspaces, ``ffn_random_low, ffn_random_high``; ``similarity_next`` to the
            layer above, ``similarity_chance`` (top/d) and the interval of this layer's subspace
            with random ones, ``similarity_random_low, similarity_random_high``. NaN: alignment
            where the block has no single FFN, ``similarity_next`` at the last layer, and what
            needs Z where the heads read fewer than ``k_sub`` directions.
        similarity: one row for each two layers that have a Z: ``layer_a, layer_b, k_sub, top,
            similarity, chance``.
        facts: for the manifest: ``n_layers``, ``n_random``, ``ffn`` ("gate", "input" or "none"),
            ``without_z`` (layers whose heads read fewer than ``k_sub`` directions).
    """

    heads: pd.DataFrame
    layers: pd.DataFrame
    similarity: pd.DataFrame
    facts: dict


def tables(
    model: nn.Module,
    *,
    k_sub: int,
    top: int,
    random: int,
    seed: int,
    confidence: float,
    progress: bool = True,
) -> Geometry:
    """Kernel ranks, subspaces and FFN alignment of every layer, from the weights.

    Args:
        model: a Hugging Face causal language model, see `projections.projections`.
        k_sub: dimension of each layer's subspace.
        top: leading rows of two layers' bases that are compared.
        random: random subspaces of the null, the same ones for every layer.
        seed: random subspace j is ``random_subspace(d, k_sub, [seed, j])``.
        confidence: of the null's central interval.
        progress: print progress lines.

    Returns:
        Four tables. Memory: one layer's weights in float64, and the bases, (layer, k_sub, d).

    Raises:
        StreamgaugeError: no separate projections; `top` exceeds `k_sub`; no layer's heads read
            `k_sub` directions.
    """
    if top > k_sub:
        raise StreamgaugeError(
            f"{top} leading directions of {k_sub} cannot be compared",
            where="geometry.top",
            remedy=f"Choose at most geometry.k_sub, {k_sub}.",
        )
    d = model.config.get_text_config().hidden_size
    n_layers = len(hooks.blocks(model))
    null = random_subspaces(d, k_sub, seed, random)
    heads, rows = [], []
    bases: dict[int, np.ndarray] = {}
    bar = Progress(n_layers, "layers", "geometry") if progress else None
    for layer in range(n_layers):
        weights = projections(model, layer)
        heads.append(_heads(weights, layer))
        try:
            bases[layer] = _subspace(weights, k_sub, layer).basis
        except StreamgaugeError:
            # some layers may read little, e.g. one pruned to nothing; all of them is a mistake
            if layer == n_layers - 1 and not bases:
                raise
        rows.append(
            {
                "layer": layer,
                "d_model": d,
                "d_head": weights.w_q.shape[1],
                "n_heads": len(weights.w_q),
                "n_kv_heads": len(weights.w_k),
                **_spread(heads[-1]["effective_rank"]),
                "k_sub": k_sub,
                **_against_null(weights, bases.get(layer), null, top, confidence),
            }
        )
        if bar:
            bar.update(1)
    if bar:
        bar.close()
    alike = _similarities(bases, k_sub, top, d)
    following = alike[alike["layer_b"] == alike["layer_a"] + 1]
    layers = pd.DataFrame(rows)
    layers.loc[following["layer_a"], "similarity_next"] = following["similarity"].to_numpy()
    facts = {
        "n_layers": n_layers,
        "n_random": random,
        "ffn": "none" if weights.w_in is None else "gate" if weights.gated else "input",
        "without_z": [layer for layer in range(n_layers) if layer not in bases],
    }
    return Geometry(pd.concat(heads, ignore_index=True), layers, alike, facts)


def subspace_of(model: nn.Module, layer: int, k_sub: int) -> Subspace:
    """Z of one layer of a model, see `subspace.attention_subspace`.

    Raises:
        StreamgaugeError: as for `tables`.
    """
    return _subspace(projections(model, layer), k_sub, layer)


def _subspace(weights: Projections, k_sub: int, layer: int) -> Subspace:
    try:
        return attention_subspace(weights.w_q, weights.w_k, k_sub)
    except StreamgaugeError as error:
        raise StreamgaugeError(
            error.problem, where=f"attention of block {layer}", remedy=error.remedy
        ) from error


def _heads(weights: Projections, layer: int) -> pd.DataFrame:
    values = kernel_singular_values(weights.w_q, weights.w_k)
    shared = len(weights.w_q) // len(weights.w_k)
    return pd.DataFrame(
        {
            "layer": layer,
            "head": range(len(values)),
            "kv_head": np.arange(len(values)) // shared,
            "effective_rank": [effective_rank(v) for v in values],
            "top_share": [top_share(v) for v in values],
        }
    )


def _spread(ranks: pd.Series) -> dict[str, float]:
    mean, sd = ranks.mean(), ranks.std()
    return {
        "effective_rank_mean": mean,
        "effective_rank_sd": sd,
        "effective_rank_cv": sd / mean,
    }


def _against_null(weights: Projections, basis, null, top: int, confidence: float) -> dict:
    """A layer's columns that set Z beside random subspaces; `similarity_next` is still to come."""

    def interval(draws):
        return central(draws, confidence) if draws else (np.nan, np.nan)

    w = None if weights.w_in is None else weights.w_in.astype(np.float64)
    ffn = interval([ffn_alignment(w, v) for v in null] if w is not None else [])
    alike = interval([similarity(basis, v, top) for v in null] if basis is not None else [])
    known = w is not None and basis is not None
    return {
        "ffn_alignment": ffn_alignment(w, basis) if known else np.nan,
        "ffn_random_low": ffn[0],
        "ffn_random_high": ffn[1],
        "similarity_next": np.nan,
        "similarity_chance": top / weights.w_q.shape[-1],
        "similarity_random_low": alike[0],
        "similarity_random_high": alike[1],
    }


def _similarities(bases: dict[int, np.ndarray], k_sub: int, top: int, d: int) -> pd.DataFrame:
    pairs = [
        (a, b, k_sub, top, similarity(bases[a], bases[b], top), top / d)
        for a, b in itertools.combinations(bases, 2)
    ]
    columns = ["layer_a", "layer_b", "k_sub", "top", "similarity", "chance"]
    return pd.DataFrame(pairs, columns=columns)
