"""Scores against the metrics on whole arrays, intervals against direct bootstraps."""

import json

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from streamgauge.base.errors import StreamgaugeError
from streamgauge.numerics import metrics
from streamgauge.numerics.inference import bootstrap
from streamgauge.studies import score_card as scores

N, T, D, M, K = 9, 12, 6, 40, 3
SETTINGS = {"d_sae": M, "k": K, "resamples": 400, "confidence": 0.9, "seed": 1}


class Made:
    """Activations, reconstructions, latents and losses of every codec, and `evaluate`'s tables."""

    def __init__(self, seed=0, n=N):
        rng = np.random.default_rng(seed)
        self.a = rng.normal(size=(n, T, D)) * rng.gamma(3, 1, size=(n, 1, 1)) + 1
        self.keep = {"all": np.ones((n, T), bool), "no_sink": rng.random((n, T)) < 0.8}
        self.keep["no_sink"][:, 0] = False
        self.ce = {"orig": rng.gamma(9, 0.3, (n, T - 1))}
        self.a_hat, self.z, self.kl, rows, latents = {}, {}, {}, [], []
        self.dot, self.quad, self.same, costs = {}, {}, {}, []
        self.traces = rng.gamma(2, 1, (2, n, T))
        self.sampled = rng.random((n, T)) < 0.3
        for codec, noise in (("sae", 0.3), ("untrained", 1.0), ("zero", None), ("mean", None)):
            mean = {s: self.a[k].mean(0) for s, k in self.keep.items()}
            self.a_hat[codec] = {
                s: self.a + noise * rng.normal(size=self.a.shape)
                if noise
                else np.broadcast_to(mean[s] * (codec == "mean"), self.a.shape)
                for s in self.keep
            }
            fires = rng.random((n, T, M)) < (0.05 if codec == "sae" else 0.01)
            self.z[codec] = fires & (rng.random((n, 1, M)) < 0.4) if noise else None
            self.ce[codec] = self.ce["orig"] + rng.gamma(2, noise or 2.0, (n, T - 1)) / 4
            self.kl[codec] = rng.gamma(2, noise or 2.0, (n, T - 1))
            row = {"sequence": np.arange(n), "codec": codec, "d_model": D}
            for s, keep in self.keep.items():
                a, a_hat, at = self.a, self.a_hat[codec][s], keep[:, :-1]
                per_token = {
                    "n_tokens": np.ones((n, T)),
                    "sse": metrics.squared_error_per_token(a, a_hat),
                    "sst": metrics.squared_error_per_token(a, mean[s]),
                    "cosine_sum": metrics.cosine_per_token(a, a_hat),
                    "relative_error_sum": metrics.relative_error_per_token(a, a_hat),
                    "l0_sum": self.z[codec].sum(-1) if noise else np.full((n, T), np.nan),
                }
                row |= {f"{k}_{s}": np.where(keep, x, 0 * x).sum(1) for k, x in per_token.items()}
                row[f"n_predicted_{s}"] = at.sum(1)
                for name, x in (
                    ("l_orig", self.ce["orig"]),
                    ("l_recon", self.ce[codec]),
                    ("kl", self.kl[codec]),
                ):
                    row[f"{name}_nats_{s}"] = (x * at).sum(1) / at.sum(1)
            rows.append(pd.DataFrame(row))
            if noise:
                counts = {s: (self.z[codec] & k[..., None]).sum(1) for s, k in self.keep.items()}
                sequence, latent = np.nonzero(counts["all"])
                columns = {"sequence": sequence, "codec": codec, "latent": latent}
                columns |= {f"n_{s}": c[sequence, latent] for s, c in counts.items()}
                latents.append(pd.DataFrame(columns))
            self.dot[codec] = rng.normal(size=(n, T)) * (noise or 2.0)
            self.quad[codec] = rng.gamma(2, noise or 2.0, (n, T))
            self.same[codec] = self.quad[codec] * rng.random((n, T))
            cost = {"sequence": np.arange(n), "codec": codec}
            for s, keep in self.keep.items():
                at = keep & self.sampled
                per_token = {
                    "n_tokens": (np.ones((n, T)), keep),
                    "n_predicted": (np.ones((n, T - 1)), keep[:, :-1]),
                    "swd_sum": (self.dot[codec] ** 2, keep),
                    "gradient_dot_abs_sum": (abs(self.dot[codec]), keep),
                    "gradient_dot_sum": (self.dot[codec], keep),
                    "quad_sum": (self.quad[codec], keep),
                    "joint_quad": (self.quad[codec] * 1.5, keep),
                    "diagonal_quad_sum": (self.quad[codec] * 2, keep),
                    "n_same": (np.ones((n, T)), at),
                    "same_quad_sum": (self.same[codec], at),
                    "downstream_at_same_sum": (self.quad[codec], at),
                    "trace_squared_sum": (self.traces[0], keep),
                    "trace_of_square_sum": (self.traces[1], keep),
                }
                cost |= {f"{k}_{s}": (x * mask).sum(1) for k, (x, mask) in per_token.items()}
            costs.append(pd.DataFrame(cost))
        self.rows, self.latents = pd.concat(rows, ignore_index=True), pd.concat(latents)
        self.costs = pd.concat(costs, ignore_index=True)

    def scores(self, **changes):
        return scores.scores(self.rows, self.latents, self.costs, **(SETTINGS | changes))


MADE = Made()
FOUND = MADE.scores()


@pytest.mark.parametrize("s", scores.TOKEN_SETS)
@pytest.mark.parametrize("codec", ["sae", "untrained", "zero", "mean"])
def test_values_equal_the_metrics_on_all_tokens(codec, s):
    keep, at = MADE.keep[s], MADE.keep[s][:, :-1]
    a, a_hat = MADE.a[keep], MADE.a_hat[codec][s][keep]
    orig, recon = MADE.ce["orig"][at], MADE.ce[codec][at]
    rows = MADE.rows[MADE.rows.codec == codec]
    expected = {
        "r2": metrics.r_squared(a, a_hat),
        "nmse": metrics.nmse(a, a_hat),
        "mse": metrics.mse(a, a_hat),
        "sse_per_token": metrics.mse(a, a_hat) * D,
        "sst_per_token": a.var(0).sum(),
        "cosine": metrics.cosine(a, a_hat),
        "relative_error": metrics.relative_error(a, a_hat),
        "ce_rec_mean_of_ratios": metrics.ce_rec(
            rows[f"l_orig_nats_{s}"], rows[f"l_recon_nats_{s}"]
        ),
        "ce_rec_ratio_of_totals": 2 - recon.sum() / orig.sum(),
        "ce_loss_score_zero": metrics.ce_loss_score(orig, recon, MADE.ce["zero"][at]),
        "ce_loss_score_mean": metrics.ce_loss_score(orig, recon, MADE.ce["mean"][at]),
        "kl_nats": MADE.kl[codec][at].mean(),
        "l_orig_nats": orig.mean(),
        "l_recon_nats": recon.mean(),
        "n_sequences": N,
        "n_tokens": keep.sum(),
        "n_predicted": at.sum(),
    }
    dot, quad, sampled = MADE.dot[codec], MADE.quad[codec], keep & MADE.sampled
    expected |= {
        "delta_l_nats": (recon - orig).mean(),
        "first_order_nats": dot[keep].sum() / at.sum(),
        "quad_nats": quad[keep].sum() / at.sum(),
        "joint_quad_nats": 1.5 * quad[keep].sum() / at.sum(),
        "diagonal_quad_nats": 2 * quad[keep].sum() / at.sum(),
        "swd": (dot[keep] ** 2).mean(),
        "gradient_dot_abs": abs(dot[keep]).mean(),
        "gradient_dot": dot[keep].mean(),
        "same_position_quad_nats": MADE.same[codec][sampled].mean(),
        "downstream_over_same_position": quad[sampled].sum() / MADE.same[codec][sampled].sum(),
        "fisher_deviation": 1 - MADE.traces[0][keep].sum() / (D * MADE.traces[1][keep].sum()),
    }
    z = MADE.z[codec]
    if z is not None:
        p = z[keep].mean(0)
        expected |= {
            "alive": (p > 0).mean(),
            "l0": z[keep].sum(-1).mean(),
            "rate_bits": metrics.rate_bits_per_token(M, K),
            "entropy_rate_bits": scipy.stats.entropy([p, 1 - p], base=2).sum() + 8 * p.sum(),
        }
    found = FOUND[codec][s]
    assert tuple(found) == tuple(scores.METRICS)
    for key, entry in found.items():
        if key in expected:
            assert entry["value"] == pytest.approx(expected[key], rel=1e-10, abs=1e-10), key
        else:
            assert z is None and set(entry.values()) == {None}, key


def test_nulls_are_null():
    assert FOUND["mean"]["no_sink"]["r2"]["value"] == pytest.approx(0, abs=1e-12)
    assert FOUND["zero"]["all"]["ce_loss_score_zero"] == {"value": 0, "low": 0, "high": 0}
    assert FOUND["zero"]["all"]["cosine"]["value"] == 0


def test_intervals_are_those_of_a_direct_bootstrap():
    rows = MADE.rows[MADE.rows.codec == "sae"]
    columns = rows[["sse_no_sink", "sst_no_sink"]].to_numpy()
    settings = {key: SETTINGS[key] for key in ("resamples", "confidence", "seed")}
    expected = bootstrap(columns, lambda t: 1 - t[..., 0] / t[..., 1], **settings)
    found = FOUND["sae"]["no_sink"]["r2"]
    assert (found["value"], found["low"], found["high"]) == pytest.approx(expected, rel=1e-12)
    assert found["low"] < found["value"] < found["high"]


@pytest.mark.parametrize("s", scores.TOKEN_SETS)
def test_alive_and_entropy_are_resampled_as_resampled_tokens(s, monkeypatch):
    monkeypatch.setattr(scores, "LATENTS_AT_ONCE", 7)  # several blocks
    found = MADE.scores()["sae"][s]
    alive, bits, rng = [], [], np.random.default_rng(SETTINGS["seed"])
    for drawn in rng.integers(0, N, (SETTINGS["resamples"], N)):
        p = MADE.z["sae"][drawn][MADE.keep[s][drawn]].mean(0)
        alive.append((p > 0).mean())
        bits.append(metrics.entropy_rate_bits(p))
    for key, replicates in (("alive", alive), ("entropy_rate_bits", bits)):
        expected = np.quantile(replicates, [0.05, 0.95])
        assert [found[key]["low"], found[key]["high"]] == pytest.approx(expected, rel=1e-10)
    assert found["alive"]["high"] <= found["alive"]["value"] < 1


def test_the_difference_to_the_untrained_sae_is_paired():
    for s in scores.TOKEN_SETS:
        sae, null = FOUND["sae"][s], FOUND["untrained"][s]
        difference = FOUND["sae_minus_untrained"][s]
        for key in ("r2", "kl_nats", "alive", "ce_rec_mean_of_ratios"):
            value = sae[key]["value"] - null[key]["value"]
            assert difference[key]["value"] == pytest.approx(value, abs=1e-12)
            assert difference[key]["low"] <= value <= difference[key]["high"] or key == "alive"
        assert difference["l_orig_nats"] == {"value": 0, "low": 0, "high": 0}
        assert difference["n_tokens"] == sae["n_tokens"]
    # what both share does not widen it
    tables = [MADE.rows[MADE.rows.codec == c] for c in ("sae", "untrained")]
    same = pd.concat([tables[0], tables[0].assign(codec="untrained"), *_ablations()])
    latents = MADE.latents[MADE.latents.codec == "sae"]
    latents = pd.concat([latents, latents.assign(codec="untrained")])
    costs = MADE.costs[MADE.costs.codec == "sae"]
    costs = pd.concat([costs, costs.assign(codec="untrained")])
    found = scores.scores(same, latents, costs, **SETTINGS)["sae_minus_untrained"]["all"]
    for key, entry in found.items():
        assert key.startswith("n_") or entry == {"value": 0, "low": 0, "high": 0}, key


def _ablations():
    return [MADE.rows[MADE.rows.codec == c] for c in ("zero", "mean")]


def test_row_order_and_categories_do_not_matter_and_bytes_repeat():
    rows = MADE.rows.sample(frac=1, random_state=0).astype({"codec": "category"})
    costs = MADE.costs.sample(frac=1, random_state=0).astype({"codec": "category"})
    latents = MADE.latents.sample(frac=1, random_state=0)
    again = scores.scores(rows, latents, costs, **SETTINGS)
    for codec, by_set in FOUND.items():
        assert json.dumps(by_set, allow_nan=False) == json.dumps(again[codec], allow_nan=False)


def test_one_sequence_has_values_and_no_intervals():
    found = Made(n=1).scores()
    for by_set in found.values():
        for by_metric in by_set.values():
            assert by_metric["r2"]["value"] is not None
            assert all(e["low"] is None and e["high"] is None for e in by_metric.values())


def test_an_empty_token_set_scores_nothing():
    made = Made()
    made.rows.loc[:, [c for c in made.rows if c.endswith("_no_sink")]] = 0
    made.rows.loc[:, [c for c in made.rows if c.endswith("nats_no_sink")]] = np.nan
    found = made.scores()["sae"]
    assert found["no_sink"]["r2"]["value"] is None
    assert found["no_sink"]["n_tokens"]["value"] == 0
    assert found["all"] == FOUND["sae"]["all"]


def test_a_missing_baseline_and_other_sequences_are_errors():
    rows = MADE.rows
    with pytest.raises(StreamgaugeError, match="no rows of the zero ablation"):
        scores.scores(rows[rows.codec != "zero"], MADE.latents, **SETTINGS)
    with pytest.raises(StreamgaugeError, match="same sequences"):
        short = rows[(rows.codec != "sae") | (rows.sequence > 0)]
        scores.scores(short, MADE.latents, **SETTINGS)
    with pytest.raises(StreamgaugeError, match="same sequences"):
        scores.scores(pd.concat([rows, rows]), MADE.latents, **SETTINGS)
    with pytest.raises(StreamgaugeError, match="latent counts"):
        scores.scores(rows, MADE.latents, **(SETTINGS | {"d_sae": M - 30}))


SENSITIVITIES = list(scores.METRICS)[
    list(scores.METRICS).index("first_order_nats") : list(scores.METRICS).index("n_sequences")
]


def test_without_a_sensitivity_table_its_scores_are_none_and_the_others_stay():
    found = scores.scores(MADE.rows, MADE.latents, **SETTINGS)
    for codec, by_set in found.items():
        for s, by_metric in by_set.items():
            for key, entry in by_metric.items():
                if key in SENSITIVITIES:
                    assert set(entry.values()) == {None}, key
                else:
                    assert entry == FOUND[codec][s][key], key


def test_what_was_not_harvested_is_none():
    made = Made()
    for s in scores.TOKEN_SETS:
        made.costs[f"diagonal_quad_sum_{s}"] = np.nan
        made.costs[f"n_same_{s}"] = 0
        made.costs[[f"same_quad_sum_{s}", f"downstream_at_same_sum_{s}"]] = np.nan
    missing = {
        *("diagonal_quad_nats", "same_position_quad_nats", "downstream_over_same_position"),
    }
    for codec, by_set in made.scores().items():
        for s, by_metric in by_set.items():
            for key, entry in by_metric.items():
                wanted = dict.fromkeys(entry) if key in missing else FOUND[codec][s][key]
                assert entry == wanted, key


def test_sensitivities_have_paired_intervals():
    swd = {codec: FOUND[codec]["all"]["swd"] for codec in scores.CODECS}
    difference = swd["sae_minus_untrained"]
    assert difference["value"] == pytest.approx(swd["sae"]["value"] - swd["untrained"]["value"])
    columns = [
        MADE.costs[MADE.costs.codec == codec][key].to_numpy()
        for codec in ("sae", "untrained")
        for key in ("swd_sum_all", "n_tokens_all")
    ]
    settings = {key: SETTINGS[key] for key in ("resamples", "confidence", "seed")}
    expected = bootstrap(
        np.stack(columns, 1), lambda t: t[..., 0] / t[..., 1] - t[..., 2] / t[..., 3], **settings
    )
    assert tuple(difference.values()) == pytest.approx(expected, rel=1e-12)
    # the layer's deviation is the same for every codec
    deviation = FOUND["sae"]["no_sink"]["fisher_deviation"]
    assert deviation["low"] < deviation["value"] < deviation["high"]
    assert FOUND["zero"]["no_sink"]["fisher_deviation"] == deviation


def test_sensitivity_of_other_sequences_is_an_error():
    for costs in (MADE.costs[MADE.costs.sequence > 0], pd.concat([MADE.costs, MADE.costs])):
        with pytest.raises(StreamgaugeError, match=r"sensitivity of '\w+' was not measured on the"):
            scores.scores(MADE.rows, MADE.latents, costs, **SETTINGS)


def test_the_grid_table_has_one_row_for_each_codec_and_token_set():
    wildcards = {"subject": "s", "corpus": "c", "ell": "03"}
    records = [
        {
            "spec": {"wildcards": wildcards | {"sae": f"topk-x8-k3-t1000-mse-seed{seed}"}},
            "facts": {"d_model": 4, "d_sae": 32, "scores": found},
        }
        for seed, found in enumerate([FOUND, json.loads(json.dumps(FOUND, sort_keys=True))])
    ]
    table = scores.grid_table(records)
    assert len(table) == 2 * 5 * 2
    assert list(table.columns[:15]) == [
        *("subject", "corpus", "layer", "d_model", "d_sae", "expansion", "k", "tokens"),
        *("objective", "seed"),
        *("codec", "token_set", "r2", "r2_low", "r2_high"),
    ]
    assert "n_tokens_low" not in table and table.layer.eq(3).all()
    one = table[(table.codec == "sae") & (table.token_set == "no_sink") & (table.seed == 1)].iloc[0]
    assert one.kl_nats_high == FOUND["sae"]["no_sink"]["kl_nats"]["high"]
    assert table[table.codec == "zero"].rate_bits.isna().all()
    # manifests sort their keys: the table does not depend on it
    halves = [part.drop(columns="seed").reset_index(drop=True) for _, part in table.groupby("seed")]
    pd.testing.assert_frame_equal(*halves)


def test_without_k_there_is_no_rate():
    found = scores.scores(MADE.rows, MADE.latents, **{**SETTINGS, "k": None})
    assert found["sae"]["all"]["rate_bits"]["value"] is None
    assert found["sae"]["all"]["entropy_rate_bits"] == FOUND["sae"]["all"]["entropy_rate_bits"]
