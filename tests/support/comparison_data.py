"""Planted per-sequence tables of two models, and what `comparisons` makes of them."""

import functools
import itertools

import numpy as np
import pandas as pd

from streamgauge.studies import comparisons
from streamgauge.studies.paired import CELL

SETTINGS = {"resamples": 200, "confidence": 0.9, "seed": 3}
N = 20
WIDTH = {"small": 4, "big": 8}
DEPTHS = {"small": {"1": "early", "2": "late"}, "big": {"3": "early", "5": "late"}}
TOKENS = {("small", "texts"): "a", ("big", "texts"): "a"}
L_ORIG = np.random.default_rng(9).uniform(2, 3, N)


def record(subject, layer, k, tokens, seed, corpus="texts"):
    sae = f"topk-x4-k{k}-t{tokens}-mse-seed{seed}"
    place = {"subject": subject, "corpus": corpus, "ell": f"{layer:02d}", "sae": sae}
    return {"spec": {"wildcards": place}}


def rows(subject, layer, k, tokens, seed, codec="sae", n=N):
    """One codec's per-sequence rows: better with k and budget, noise by sequence and seed."""
    which = [subject == "big", layer, k, tokens, seed, codec == "sae"]
    rng = np.random.default_rng([int(x) for x in which])
    quality = (1 - 1 / k**0.5) * (0.9 if tokens > 1000 else 0.8) * (codec == "sae")
    quality += 0.01 * rng.normal()
    table = {"sequence": np.arange(n), "codec": codec, "d_model": WIDTH[subject]}
    for s, count in (("all", 10), ("no_sink", 9)):
        noise = 1 + 0.05 * rng.normal(size=n)
        sst = rng.gamma(20, 1, n)
        table |= {f"n_tokens_{s}": count, f"n_predicted_{s}": count - 1, f"sst_{s}": sst}
        table[f"sse_{s}"] = sst * (1.2 - quality - 0.1 * (subject == "big")) * noise
        table[f"cosine_sum_{s}"] = count * quality * noise
        table[f"l_orig_nats_{s}"] = L_ORIG[:n]
        table[f"l_recon_nats_{s}"] = L_ORIG[:n] * (2 - quality * noise)
        table[f"kl_nats_{s}"] = (1 - quality) * noise
        table |= {f"relative_error_sum_{s}": 1.0, f"l0_sum_{s}": np.nan}
    return pd.DataFrame(table)


def both_codecs(*cell):
    return pd.concat([rows(*cell), rows(*cell, codec="untrained")], ignore_index=True)


def cells(ks=(2, 4, 16), tokens=(1000, 4000), seeds=(0, 1, 2), subjects=("small", "big")):
    for subject in subjects:
        layers = map(int, DEPTHS[subject])
        for layer, k, budget, seed in itertools.product(layers, ks, tokens, seeds):
            yield subject, layer, k, budget, seed


def compare(wanted, tokens=TOKENS, depths=DEPTHS, read=both_codecs, targets=(0.5, 0.7)):
    wanted = list(wanted)
    grid = pd.DataFrame(
        [(s, "texts", layer, 4, "mse", k, b, seed) for s, layer, k, b, seed in wanted], columns=CELL
    ).assign(codec="sae", token_set="all", alive=lambda t: 0.5 + 0.1 * t.seed)
    saes = ((record(*cell), read(*cell)) for cell in wanted)
    return comparisons.tables(saes, grid, tokens, depths, targets=targets, **SETTINGS)


@functools.cache
def planted():
    return compare(cells())
