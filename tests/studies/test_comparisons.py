"""A study's comparisons on planted per-sequence tables, against direct resampling and SciPy."""

import itertools

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from comparison_data import (
    DEPTHS,
    SETTINGS,
    TOKENS,
    WIDTH,
    N,
    both_codecs,
    cells,
    compare,
    planted,
    record,
    rows,
)
from streamgauge.base.errors import StreamgaugeError
from streamgauge.numerics import inference
from streamgauge.studies import comparisons, score_card
from streamgauge.studies.paired import CELL, Draws, intervals

SETS = ("all", "no_sink")


def pick(table, **wanted):
    own = np.logical_and.reduce([table[name] == value for name, value in wanted.items()])
    assert own.sum() == 1
    return table[own].iloc[0]


def ends(row, name, over=""):
    return [row[name], row[f"{name}_{over}low"], row[f"{name}_{over}high"]]


def test_the_tables_are_complete_and_in_order():
    found = planted()
    for name, columns in comparisons.COLUMNS.items():
        assert list(getattr(found, name).columns) == columns
    # token sets, depths, k, budgets; every seed and all of them
    assert len(found.deltas) == 2 * 2 * 3 * 2 * 4
    assert len(found.budgets) == 2 * 4 * 3 * 2
    # pooled, within k and each of three k; two depths and all
    assert len(found.correlations) == 2 * 2 * 3 * 5
    assert len(found.kstar) == 2 * 4 * 2 * 2
    assert found.facts == {"refused": [], "missing": []}
    assert set(found.deltas.small) == {"small"} and set(found.deltas.big) == {"big"}
    for name in ("d_r2", "gap", "untrained_gap"):
        assert found.deltas[name].notna().all()


@pytest.mark.parametrize("s", SETS)
def test_differences_are_those_of_direct_paired_resampling(s):
    at = {"depth": "late", "k": 4, "tokens": 1000}
    one, other = rows("big", 5, 4, 1000, 1), rows("small", 2, 4, 1000, 1)

    def boot(columns, statistic):
        table = np.stack([x for t in (one, other) for x in columns(t)], 1)
        return list(inference.bootstrap(table, statistic, **SETTINGS))

    row = pick(planted().deltas, **at, seed="1", token_set=s)
    ratio = boot(
        lambda t: (t[f"sse_{s}"], t[f"sst_{s}"]),
        lambda x: x[..., 2] / x[..., 3] - x[..., 0] / x[..., 1],
    )
    assert ends(row, "d_r2") == pytest.approx(ratio, rel=1e-9)
    mean = boot(
        lambda t: [2 - t[f"l_recon_nats_{s}"] / t[f"l_orig_nats_{s}"]],
        lambda x: (x[..., 0] - x[..., 1]) / N,
    )
    assert ends(row, "d_ce_rec") == pytest.approx(mean, rel=1e-9)
    totals = boot(
        lambda t: (t[f"l_recon_nats_{s}"], t[f"l_orig_nats_{s}"]),
        lambda x: x[..., 2] / x[..., 3] - x[..., 0] / x[..., 1],
    )
    assert ends(row, "d_ce_rec_totals") == pytest.approx(totals, rel=1e-9)
    kl = boot(lambda t: [t[f"kl_nats_{s}"]], lambda x: (x[..., 0] - x[..., 1]) / N)
    assert ends(row, "d_kl_nats") == pytest.approx(kl, rel=1e-9)
    assert row.gap == pytest.approx(row.d_r2 - row.d_ce_rec)
    assert (row.n_seeds, row.n_sequences) == (1, N)
    assert np.isnan([row.d_r2_seed_low, row.d_r2_both_high, row.d_r2_se_seeds]).all()


def test_measures_are_those_of_the_scores():
    cell = ("big", 3, 4, 1000, 0)
    controls = [rows(*cell, codec=name) for name in ("zero", "mean")]
    latents = pd.DataFrame(columns=["sequence", "codec", "latent", "n_all", "n_no_sink"])
    scored = score_card.scores(
        pd.concat([rows(*cell), *controls]), latents, d_sae=32, k=4, **SETTINGS
    )
    found = compare([cell])
    names = {"r2": "r2", "ce_rec": "ce_rec_mean_of_ratios", "kl_nats": "kl_nats"}
    for s, (ours, theirs) in itertools.product(SETS, names.items()):
        entry = scored["sae"][s][theirs]
        row = pick(found.budgets, token_set=s)
        expected = [entry["value"], entry["low"], entry["high"]]
        assert ends(row, ours) == pytest.approx(expected, rel=1e-9)


def test_a_sequence_without_predicted_positions_counts_nowhere():
    def emptied(*cell):
        table = both_codecs(*cell)
        first = table.sequence == 0
        losses = [f"{name}_nats_no_sink" for name in ("l_orig", "l_recon", "kl")]
        table.loc[first, losses] = np.nan
        table.loc[first, "n_predicted_no_sink"] = 0
        return table

    row = pick(compare([("big", 3, 4, 1000, 0)], read=emptied).budgets, token_set="no_sink")
    kept = rows("big", 3, 4, 1000, 0)[1:]
    expected = 2 - kept.l_recon_nats_no_sink / kept.l_orig_nats_no_sink
    assert row.ce_rec == pytest.approx(expected.mean()) and np.isfinite(row.ce_rec_low)


def test_seeds_have_t_intervals_and_both_errors_are_combined():
    deltas = planted().deltas
    at = (deltas.token_set == "all") & (deltas.depth == "early")
    part = deltas[at & (deltas.k == 16) & (deltas.tokens == 4000)]
    seeds, row = part[part.seed != "all"], part[part.seed == "all"].iloc[0]
    for name in ("d_r2", "d_ce_rec", "gap"):
        test = scipy.stats.ttest_1samp(seeds[name], 0)
        expected = test.confidence_interval(SETTINGS["confidence"])
        assert ends(row, name, "seed_") == pytest.approx([seeds[name].mean(), *expected])
        errors = row[f"{name}_se_sequences"], N - 1, row[f"{name}_se_seeds"], 2
        both = inference.combined(row[name], *errors).interval(SETTINGS["confidence"])
        assert ends(row, name, "both_") == pytest.approx([row[name], *both])
    assert row.n_seeds == 3
    assert row.mismatch_rate == pytest.approx(seeds.mismatch.mean())


def test_mismatch_is_strict_and_resolved_asks_every_interval():
    draws = np.tile(np.linspace(0.9, 1.1, 41), (2, 1))
    tight = intervals("d_r2", Draws(draws, 10), 0.9)
    wide = intervals("d_ce_rec", Draws(draws * [[-1], [-8]], 10), 0.9)
    assert comparisons._resolved(tight, "d_r2")
    # resolved over sequences, but two seeds that differ so much say nothing
    assert wide["d_ce_rec_high"] < 0 < wide["d_ce_rec_seed_high"]
    assert not comparisons._resolved(wide, "d_ce_rec")
    alone = intervals("d_r2", Draws(draws[:1], 1), 0.9)
    assert not comparisons._resolved(alone, "d_r2")  # one sequence, one seed: no interval


def test_identical_models_differ_by_nothing_and_are_no_mismatch():
    def same(subject, layer, *cell):
        return both_codecs("small", 1, *cell).assign(d_model=WIDTH[subject])

    found = compare(cells(seeds=(0, 1)), read=same).deltas
    named = [f"d_{name}{end}" for name in ("r2", "ce_rec") for end in ("", "_low", "_both_high")]
    assert (found.loc[found.seed == "all", named] == 0).all(axis=None)
    assert not found.mismatch.any() and not found.resolved.any()
    assert (found.untrained_gap == 0).all()
    # MSE is per dimension, and there are twice as many
    assert (found.d_mse < 0).all()


def test_budgets_change_over_the_seeds_they_share():
    wanted = [cell for cell in cells() if cell[3:] != (4000, 2)]
    found = compare(wanted).budgets
    at = {"subject": "big", "layer": 3, "k": 4, "token_set": "all"}
    small, large = (pick(found, **at, tokens=tokens) for tokens in (1000, 4000))
    assert np.isnan(small.change_ce_rec) and pd.isna(small.previous_tokens)
    assert (small.n_seeds, large.n_seeds, large.previous_tokens) == (3, 2, 1000)
    means = [
        [2 - (t.l_recon_nats_all / t.l_orig_nats_all).mean() for t in tables]
        for tables in ([rows("big", 3, 4, b, seed) for seed in (0, 1)] for b in (4000, 1000))
    ]
    changes = np.subtract(*means)
    assert large.change_n_seeds == 2 and large.change_ce_rec == pytest.approx(changes.mean())
    expected = np.std(changes, ddof=1) / 2**0.5
    assert large.change_ce_rec_se_seeds == pytest.approx(expected)
    assert small.alive == pytest.approx(0.6) and large.alive == pytest.approx(0.55)
    # latents' shares are known in the token set of the grid rows given
    assert pick(found, **at | {"token_set": "no_sink"}, tokens=1000).isna().alive


def test_k_star_of_a_curve_and_its_ends():
    found = planted().kstar
    at = {"subject": "small", "layer": 2, "tokens": 4000, "token_set": "all"}
    budgets = planted().budgets
    curve = budgets[np.logical_and.reduce([budgets[name] == x for name, x in at.items()])]
    for target in (0.5, 0.7):
        row = pick(found, **at, target=target)
        expected = inference.k_star(curve.k.astype(float), curve.ce_rec, target)
        assert (row.k_star, row.censored) == expected
        assert row.k_star_low <= row.k_star <= row.k_star_high
        assert (row.untrained_k_star, row.untrained_censored) == (16, ">k_max")
    low, high = comparisons._extremes(np.array([-np.inf, 2, 3, np.inf]), 5, 0.9)
    assert (low, high) == (-np.inf, np.inf)
    # nothing is interpolated between a finite and an infinite replicate
    low, high = comparisons._extremes(np.array([*range(20), np.inf]), 5, 0.8)
    assert (low, high) == (2, 18)
    assert np.isnan(comparisons._extremes(np.array([1.0, 2.0]), 1, 0.9)).all()


def test_correlations_are_scipys_over_seed_means():
    found, budgets = planted().correlations, planted().budgets
    own = budgets[(budgets.token_set == "all") & (budgets.tokens == 4000)]
    at = {"token_set": "all", "tokens": 4000, "depth": "all"}
    pooled = pick(found, **at, how="pooled")
    assert pooled.pearson == pytest.approx(scipy.stats.pearsonr(own.r2, own.ce_rec)[0])
    assert (pooled.n, pooled.n_subjects) == (12, 2)
    assert pooled.pearson_low < pooled.pearson < pooled.pearson_high
    # k drives both: no shuffle comes near
    assert pooled.p_value == 1 / (1 + SETTINGS["resamples"])
    assert pooled.null_low < 0 < pooled.null_high < pooled.pearson
    less = own[["r2", "ce_rec"]] - own.groupby("k")[["r2", "ce_rec"]].transform("mean")
    within = pick(found, **at, how="within_k")
    assert within.pearson == pytest.approx(scipy.stats.pearsonr(less.r2, less.ce_rec)[0])
    alone = own[own.k == 4]
    per_k = pick(found[found.k == 4], **at, how="per_k")
    assert per_k.pearson == pytest.approx(scipy.stats.pearsonr(alone.r2, alone.ce_rec)[0])
    assert per_k.n == 4
    # two SAEs always lie on a line
    one = found[(found.depth == "early") & (found.how == "per_k")]
    assert (one.n == 2).all() and one.pearson.isna().all() and one.p_value.isna().all()


def test_what_cannot_be_compared_is_refused_with_its_reason():
    few = list(cells(ks=(2, 4), tokens=(1000,), seeds=(0,)))
    found = compare(few, tokens=TOKENS | {("big", "texts"): "b"})
    assert found.deltas.empty and list(found.deltas.columns) == comparisons.COLUMNS["deltas"]
    assert "small and big on texts: the token ids" in found.facts["refused"][0]
    # points of one subject alone are left for correlations
    assert set(found.correlations.n_subjects) == {1}
    found = compare(few, read=lambda *c: both_codecs(*c)[lambda t: t.sequence >= (c[0] == "big")])
    assert "evaluated on other sequences" in found.facts["refused"][0]
    found = compare(few, depths=DEPTHS | {"big": {"3": "early", "5": "mid"}})
    assert found.deltas.empty and "cannot be matched" in found.facts["refused"][0]
    found = compare(few, read=lambda *cell: both_codecs(*cell).assign(d_model=4))
    assert "both are 4 wide" in found.facts["refused"][0]
    assert len(compare([cell for cell in few if cell[0] == "big"]).facts["refused"]) == 0


def test_missing_saes_are_named():
    wanted = [cell for cell in cells(seeds=(0, 1)) if cell != ("big", 5, 4, 1000, 1)]
    found = compare(wanted)
    text = "corpus texts, depth late, expansion 4, objective mse, k 4, tokens 1000, seed 1"
    assert found.facts["missing"] == [f"big has no SAE with {text}"]
    at = {"depth": "late", "k": 4, "tokens": 1000, "token_set": "all"}
    row = pick(found.deltas, **at, seed="all")
    assert row.n_seeds == 1 and np.isnan([row.d_r2_seed_low, row.d_r2_both_low]).all()


def test_bad_input_is_one_clear_error():
    cell = ("big", 3, 4, 1000, 0)
    with pytest.raises(StreamgaugeError, match="no SAE to compare"):
        compare([])
    with pytest.raises(StreamgaugeError, match="untrained of topk"):
        compare([cell], read=rows)
    with pytest.raises(StreamgaugeError, match="sequences of the other SAEs"):
        other = ("big", 5, 4, 1000, 0)
        compare([cell, other], read=lambda *c: both_codecs(*c)[lambda t: t.sequence > c[1]])
    imported = {"spec": {"wildcards": record(*cell)["spec"]["wildcards"] | {"sae": "theirs"}}}
    with pytest.raises(StreamgaugeError, match="theirs is no SAE of a grid"):
        grid = pd.DataFrame(columns=CELL)
        comparisons.tables([(imported, rows(*cell))], grid, TOKENS, DEPTHS, targets=[0.9])


def test_numbers_repeat_whatever_the_order_of_the_saes():
    wanted = list(cells(tokens=(1000,), seeds=(0, 1)))
    for one, other in zip(compare(wanted)[:4], compare(wanted[::-1])[:4], strict=True):
        pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_the_depth_profile_joins_every_layer_with_its_saes():
    spectra = pd.DataFrame(
        [
            {"subject": "small", "corpus": "texts", "layer": layer, "token_set": s, "centring": c}
            | {"deflate": r, "n_tokens": 100, "d_model": 4, "pr": layer + r / 10, "pr_over_d": 0.5}
            for layer, s, c, r in itertools.product(
                range(4), SETS, ("centred", "uncentred"), (0, 1, 10)
            )
        ]
    )
    spectra.loc[spectra.centring == "uncentred", "pr"] = np.nan
    table = comparisons.depth_profile(spectra, planted().budgets)
    assert len(table) == 4 * 2
    row = pick(table, layer=2, token_set="all")
    assert (row.pr, row.pr_deflated1, row.pr_deflated) == (2, 2.1, 3)
    assert (row.depth, row.k_min, row.k_max, row.tokens) == ("late", 2, 16, 4000)
    at = {"subject": "small", "layer": 2, "token_set": "all", "tokens": 4000}
    for k, end in ((2, "k_min"), (16, "k_max")):
        source = pick(planted().budgets, **at, k=k)
        assert (row[f"r2_{end}"], row[f"ce_rec_{end}"]) == (source.r2, source.ce_rec)
    assert row.untrained_r2_k_min == pick(planted().budgets, **at, k=2).untrained_r2
    bare = pick(table, layer=0, token_set="no_sink")
    assert bare.depth == "" and pd.isna(bare.k_min) and np.isnan(bare.r2_k_min)


def test_token_hashes_are_read_from_manifests():
    place = {"subject": "small", "corpus": "texts", "split": "eval"}
    made = {"spec": {"wildcards": place}, "facts": {"tokens_sha256": "a"}}
    assert comparisons.token_hashes([made]) == {("small", "texts"): "a"}
