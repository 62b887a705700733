"""Per-sequence tables whose R² and loss score are planted, and the words of `streamgauge audit`."""

import argparse

import numpy as np
import pandas as pd

from streamgauge.cli import audit
from streamgauge.studies import score_card

STATISTICS = {"resamples": 500, "confidence": 0.9, "seed": 3}
SUMS = ("cosine_sum", "relative_error_sum", "l0_sum", "squared_norm_sum", "dot_sum")


def rows(codec, r2, score, noise=0.0, n=12, ablation=2.0, seed=0):
    """Per-sequence rows in which every sequence has this R² and this loss score, plus noise.

    The clean loss is 3 nats and mean ablation adds `ablation`, so the patched loss follows.
    """
    rng = np.random.default_rng(seed)
    sst = rng.uniform(50, 150, n)
    table = {"sequence": np.arange(n), "codec": codec, "d_model": 8}
    for s in ("all", "no_sink"):
        table |= {f"n_tokens_{s}": 10, f"n_predicted_{s}": 9}
        table |= {f"sst_{s}": sst, f"sse_{s}": (1 - r2 + noise * rng.standard_normal(n)) * sst}
        lost = 1 - score + noise * rng.standard_normal(n)
        table |= {f"l_orig_nats_{s}": 3.0, f"l_recon_nats_{s}": 3.0 + ablation * lost}
        table |= {f"kl_nats_{s}": 0.1, **{f"{name}_{s}": 1.0 for name in SUMS}}
    return pd.DataFrame(table)


def tables(r2, score, null=(0.3, 0.3), **options):
    sae = rows("sae", r2, score, **options)
    untrained = rows("untrained", *null, **options | {"seed": 1})
    baseline = [rows(c, 0, 0, **options | {"noise": 0.0}) for c in ("zero", "mean")]
    return pd.concat([sae, untrained]), pd.concat(baseline)


def scorecard(per_sequence, baseline):
    latents = pd.DataFrame({"sequence": [0], "codec": ["sae"], "latent": [0]})
    latents = latents.assign(n_all=1, n_no_sink=1)
    both = pd.concat([per_sequence, baseline])
    return score_card.scorecard(both, latents, d_model=8, d_sae=16, k=2, **STATISTICS)


def options(*words):
    parser = argparse.ArgumentParser()
    audit.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])
