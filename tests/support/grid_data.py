"""The grid table of a made-up study, for the tests of figures."""

import numpy as np
import pandas as pd

from streamgauge.numerics import metrics


def grid_table(layers=(10, 20), ks=(8, 32, 128), seeds=(0,), subjects=("small",), d_model=64):
    """A grid table whose numbers follow simple formulas of k and layer."""
    rows = []
    for subject in subjects:
        for layer in layers:
            for k in ks:
                for seed in seeds:
                    for token_set in ("all", "no_sink"):
                        shift = 0.01 * seed - 0.1 * (token_set == "no_sink")
                        trained = 1 - 1 / (1 + np.log2(k)) + shift
                        values = {
                            "sae": (trained, trained - 0.05 - layer / 1000, 9 / k),
                            "untrained": (-0.1 * np.log2(k), -0.9, 6.0),
                            "zero": (-0.3, -1.5, 8.0),
                            "mean": (0.0, -0.7, 5.0),
                        }
                        for codec, (r2, ce_rec, kl) in values.items():
                            sparse = codec in ("sae", "untrained")
                            row = {
                                "subject": subject,
                                "corpus": "texts",
                                "layer": layer,
                                "expansion": 8,
                                "k": k,
                                "tokens": 1000,
                                "objective": "mse",
                                "seed": seed,
                                "codec": codec,
                                "token_set": token_set,
                                "rate_bits": metrics.rate_bits_per_token(8 * d_model, k)
                                if sparse
                                else np.nan,
                            }
                            row |= {"kl_nats": kl}
                            row |= {"kl_nats_low": 0.9 * kl, "kl_nats_high": 1.2 * kl}
                            scores = {"r2": r2, "ce_rec_mean_of_ratios": ce_rec}
                            for name, value in scores.items():
                                row |= {name: value, f"{name}_low": value - 0.04}
                                row |= {f"{name}_high": value + 0.02}
                            rows.append(row)
    return pd.DataFrame(rows)
