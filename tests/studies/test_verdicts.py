"""Verdicts on made-up studies whose truth is known; the rules against SciPy and `inference`."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from comparison_data import planted
from html_page import Page
from streamgauge.base.errors import StreamgaugeError
from streamgauge.numerics import inference, nulls
from streamgauge.report import drawing, verdict_page
from streamgauge.studies import hypotheses, leaderboard, verdicts
from verdict_data import RULES, advantages, budgets, critics, deltas, judged

SUPPORTED, REJECTED, OPEN = "supported", "rejected", "not adjudicated"


def said(facts, name):
    return facts["hypotheses"][name]["verdict"]


# --- H0 and H1 ----------------------------------------------------------------------------------
def test_no_gap_supports_h0_and_rejects_h1():
    facts = judged(0.005)
    assert [said(facts, name) for name in ("H0", "H1")] == [SUPPORTED, REJECTED]
    assert facts["path"][:3] == ["q_data", "q_equal", "h0"]
    reason = facts["hypotheses"]["H0"]["reason"]
    assert "within ±0.02 in all 4 cells at 2,000 tokens" in reason and "any budget" not in reason
    assert "no gap at any budget" in judged(0.005, first=0.0)["hypotheses"]["H0"]["reason"]


def test_a_residual_gap_supports_h1_and_rejects_h0():
    facts = judged(lambda depth, k: 0.08 if (depth, k) == ("late", 8) else 0.0)
    assert [said(facts, name) for name in ("H0", "H1")] == [REJECTED, SUPPORTED]
    assert facts["path"][:4] == ["q_data", "q_equal", "q_gap", "h1"]
    fact = facts["hypotheses"]["H1"]
    assert fact["reason"].endswith("in 1 of 4 cells: depth late, k 8")
    assert fact["statistic"]["value"] == 0.08 and fact["margin"] == 0.02
    assert fact["null"]["value"] == -0.3  # untrained SAEs of the same cell
    states = {cell["label"]: cell["state"] for cell in fact["cells"]}
    assert states["depth late, k 8"] == "beyond the margin, converged"
    assert states["depth early, k 8"] == "within the margin"


def test_a_negative_gap_counts_as_well():
    assert said(judged(-0.08), "H1") == SUPPORTED


@pytest.mark.parametrize("moving", ["s", "l"])
def test_saes_that_still_change_leave_h1_open(moving):
    facts = judged(0.08, lambda subject: 0.05 if subject == moving else 0.0)
    assert {said(facts, name) for name in verdicts.ORDER} == {OPEN}
    assert facts["path"] == ["q_data", "q_equal", "q_gap", "open_gap"]
    assert "have not converged in depth early, k 8" in facts["hypotheses"]["H1"]["reason"]


def test_budgets_that_share_one_seed_cannot_show_convergence():
    changes = budgets().assign(change_n_seeds=1, change_ce_rec_se_seeds=np.nan)
    facts = verdicts.adjudicate(deltas(0.08), changes, None, None, **RULES)
    assert said(facts, "H1") == OPEN
    reason = facts["hypotheses"]["H1"]["reason"]
    assert "convergence has no interval" in reason and "have not converged" not in reason


def test_an_interval_across_the_margin_is_open_and_says_what_would_help():
    for se, more in (((0.02, 0.002), "sequences"), ((0.002, 0.02), "seeds")):
        facts = judged(0.02, se=se)
        assert said(facts, "H0") == said(facts, "H1") == OPEN
        assert f"more {more} would help" in facts["hypotheses"]["H0"]["reason"]


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ({"n_seeds": 1}, "two training seeds are needed"),
        ({"budgets": (1000,)}, "two budgets are needed; there is one, 1,000 tokens"),
    ],
)
def test_too_small_a_study_is_not_adjudicated(shape, reason):
    for gap in (0.0, 0.5):
        facts = judged(gap, **shape)
        assert {said(facts, name) for name in verdicts.ORDER} == {OPEN}
        assert facts["path"] == ["q_data", "open_data"]
        assert facts["hypotheses"]["H0"]["reason"].startswith(reason)
        assert len(facts["hypotheses"]["H0"]["cells"]) == 4  # observed all the same


def test_one_seed_has_no_interval():
    statistic = judged(0.5, n_seeds=1)["hypotheses"]["H1"]["statistic"]
    assert statistic["low"] is statistic["high"] is statistic["p_value"] is None


def test_no_pair_of_models_names_why(tmp_path):
    for name, table in (("deltas", deltas()), ("budgets", budgets())):
        table.iloc[:0].to_csv(tmp_path / f"{name}.csv", index=False)
    empty = [pd.read_csv(tmp_path / f"{name}.csv") for name in ("deltas", "budgets")]
    why = ["s, l: tokens differ"]
    facts = verdicts.adjudicate(*empty, None, None, refused=why, **RULES)
    assert facts["not_compared"] == why and facts["path"] == ["q_data", "open_data"]
    assert "s, l: tokens differ" in facts["hypotheses"]["H0"]["reason"]
    assert said(facts, "H1") == OPEN and not facts["hypotheses"]["H0"]["cells"]


def test_a_cell_without_the_largest_budget_is_named_and_blocks_h0():
    table = deltas(0.0)
    lost = (table.k == 32) & (table.depth == "late") & (table.tokens == 2000)
    facts = verdicts.adjudicate(table[~lost], budgets(table=table), None, None, **RULES)
    assert said(facts, "H0") == OPEN
    assert (
        "No SAEs at the largest budget in depth late, k 32" in (facts["hypotheses"]["H0"]["reason"])
    )


def test_only_the_smallest_and_the_largest_model_and_one_token_set_count():
    table = deltas(0.0, subjects=("s", "m", "l"))
    middle = (table.small == "m") | (table.big == "m")
    table.loc[middle | (table.token_set == "no_sink"), "d_ce_rec"] = 0.5
    facts = verdicts.adjudicate(table, budgets(table=table), None, None, **RULES)
    assert said(facts, "H0") == SUPPORTED
    other = RULES | {"token_set": "no_sink"}
    facts = verdicts.adjudicate(table, budgets(table=table), None, None, **other)
    assert said(facts, "H1") == SUPPORTED


def test_a_table_without_its_null_is_refused():
    table = deltas()
    with pytest.raises(StreamgaugeError, match="without its null"):
        verdicts.adjudicate(
            table.assign(untrained_d_ce_rec=np.nan), budgets(table=table), None, None, **RULES
        )
    with pytest.raises(StreamgaugeError, match="lacks the columns untrained_gap"):
        verdicts.adjudicate(
            table.drop(columns="untrained_gap"), budgets(table=table), None, None, **RULES
        )
    with pytest.raises(StreamgaugeError, match="budgets table lacks the columns change_ce_rec"):
        verdicts.adjudicate(
            table, budgets(table=table).drop(columns="change_ce_rec"), None, None, **RULES
        )


def test_the_tables_of_comparisons_are_read(tmp_path):
    """What `comparisons` makes, written as CSV and read again, can be judged."""
    made = planted()
    for name in ("deltas", "budgets"):
        getattr(made, name).to_csv(tmp_path / f"{name}.csv", index=False)
    tables = [pd.read_csv(tmp_path / f"{name}.csv") for name in ("deltas", "budgets")]
    facts = verdicts.adjudicate(*tables, None, None, **RULES, **made.facts)
    cells = facts["hypotheses"]["H0"]["cells"]
    assert len(cells) == 6 and {cell["tokens"] for cell in cells} == {4000}
    for cell in cells:
        key = {"token_set": "all", "tokens": 4000, "k": cell["k"], "subject": "big"}
        row = drawing.having(tables[1], key | {"layer": cell["big_layer"]}).iloc[0]
        assert cell["change_big"] == row.change_ce_rec
        assert (cell["p_equal"] < 0.05) == (cell["state"] == "within the margin")


# --- H2 and H3 ----------------------------------------------------------------------------------
def test_h2_and_h3_stay_closed_while_h0_and_h1_are_open():
    facts = judged(0.02, ranked=advantages(), read=critics(lambda s, layer: layer))
    for name in ("H2", "H3"):
        fact = facts["hypotheses"][name]
        assert fact["verdict"] == OPEN and fact["reason"].startswith("closed until H0 and H1")
        assert fact["statistic"] is fact["null"] is None
    assert facts["exploratory"] == [] and "0.9" not in json.dumps(facts["hypotheses"]["H2"])


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        ({}, SUPPORTED),
        ({"p_value": 0.2}, OPEN),
        ({"low": -0.1}, OPEN),
        ({"advantage": -0.2, "low": -0.4, "high": 0.05, "p_value": 0.9}, REJECTED),
        ({"proxy": "gradient_dot"}, OPEN),
        ({"advantage": np.nan, "p_value": np.nan}, OPEN),
    ],
)
def test_h2(row, verdict):
    facts = judged(0.0, ranked=advantages(**row))
    assert said(facts, "H2") == verdict
    assert facts["path"][3:5] == ["q_proxy", f"h2_{'open' if verdict == OPEN else verdict}"]
    assert facts["exploratory"][0]["proxy"] == "quad_nats"
    assert all(found["advantage"] != -1.0 for found in facts["exploratory"])  # pooled


def of_points(slope, depths=("1", "2", "3", "4", "5"), **changed):
    """A study of three models whose |Gap| is `slope` times the departure of k* from PR."""
    departure = {name: (i + 1) * 0.7 for i, name in enumerate(("s", "m", "l"))}

    def of(subject, layer):
        return departure[subject] + 0.31 * layer

    def gap(small, big, depth):
        both = of(small, depths.index(depth)) + of(big, depths.index(depth))
        return 0.5 + slope * both / 2

    read = critics(of, ("s", "m", "l"), len(depths)).assign(**changed)
    return judged(0.0, read=read, subjects=("s", "m", "l"), depths=depths, proxy_gap=gap)


def test_h3_is_supported_where_gap_follows_the_departure():
    fact = of_points(0.1)["hypotheses"]["H3"]
    assert fact["verdict"] == SUPPORTED and fact["statistic"]["value"] == pytest.approx(1)
    assert "15 pairs" in fact["statistic"]["name"]
    assert fact["null"]["low"] < 0 < fact["null"]["high"] < 1
    assert of_points(-0.1)["hypotheses"]["H3"]["verdict"] == REJECTED


def test_h3_leaves_out_censored_and_pinned_points():
    for changed in ({"censored": ">k_max"}, {"pinned": True}):
        fact = of_points(0.1, **changed)["hypotheses"]["H3"]
        assert fact["verdict"] == OPEN and fact["reason"].startswith("0 pairs")
    assert of_points(0.0)["hypotheses"]["H3"]["verdict"] == OPEN  # a gap that does not vary


def test_departures_are_distances_in_octaves_and_read_the_token_sets_own_pr():
    read = critics(lambda subject, layer: -layer)
    read = read.assign(censored=read.layer.map({1: "<=k_min"}))
    table = deltas(depths=("early", "late", "last"), proxy_gap=lambda s, b, depth: -0.25)
    own = table[(table.seed == "all") & (table.token_set == "all")]
    points = verdicts.departures(own, read, "all")
    assert list(points.depth) == ["early", "last"] and list(points.gap) == [0.25, 0.25]
    assert list(points.small_departure) == list(points.big_departure) == [0, 2]
    points = verdicts.departures(own, read, "no_sink")
    assert list(points.small_departure) == [1, 3]


def test_association_is_scipys_and_its_null_shuffles_units():
    rng = np.random.default_rng(0)
    units = np.array([[i, j] for i in range(6) for j in range(i)])
    y = rng.normal(size=6)
    x = y[units].mean(1) + rng.normal(size=len(units)) / 4
    orders = nulls.shuffles([None] * 6, 300, 0)
    found = hypotheses.association(x, y, units, orders, 0.95)
    value = scipy.stats.spearmanr(x, y[units].mean(1))[0]
    assert found.statistic.value == pytest.approx(value)
    null = np.array([scipy.stats.spearmanr(x, y[o][units].mean(1))[0] for o in orders])
    assert found.null.p_value == (1 + (null >= value - 1e-9).sum()) / 301
    assert [found.null.low, found.null.high] == pytest.approx(
        list(np.quantile(null, [0.025, 0.975]))
    )
    assert found.statistic.low < value < found.statistic.high
    assert hypotheses.association(x[:3], y, units[:3], orders, 0.95) is None
    assert hypotheses.association(np.ones(15), y, units, orders, 0.95) is None


# --- the rules ----------------------------------------------------------------------------------
def test_p_beyond_is_uniform_at_the_edge_of_the_margin():
    """Drawn at the edge of the margin, a level of 5 % is kept, and nearly used up."""
    rng = np.random.default_rng(2)
    n = 20000
    draws = rng.normal(0.02, 0.01 * 3, (n, 9))
    made = inference.Mean(draws.mean(1), draws.std(1, ddof=1) / 3, np.full(n, 8.0))
    still = inference.Mean(np.zeros(n), np.full(n, 1e-9), np.full(n, 8.0))
    parts = [x[:, None] for x in made], [x[:, None] for x in still]
    gap = hypotheses.Gap(inference.Mean(*parts[0]), np.zeros((n, 1)))
    found = hypotheses.residual_gap(
        gap, *[inference.Mean(*parts[1])] * 2, margin=0.02, convergence=0.02, alpha=0.05
    )
    assert found.residual.mean() == pytest.approx(0.05, abs=0.008)


def test_holm_corrects_over_cells():
    """Adjusted by hand: sorted 0.01, 0.02, 0.04 times 3, 2, 1, never falling."""
    df, se = np.full(3, 1e9), np.full(3, 0.01)
    p = np.array([0.04, 0.01, 0.02])
    value = 0.02 + 0.01 * scipy.stats.norm.isf(p)
    still = inference.Mean(np.zeros(3), np.full(3, 1e-9), df)
    gap = hypotheses.Gap(inference.Mean(value, se, df), np.zeros(3))
    found = hypotheses.residual_gap(gap, still, still, margin=0.02, convergence=0.02, alpha=0.035)
    assert found.p_beyond == pytest.approx(p, rel=0.02)
    assert found.p_residual == pytest.approx([0.04, 0.03, 0.04], rel=0.02)
    assert found.residual


def test_no_statistic_without_its_null():
    estimate = inference.Estimate(0.3, 0.1, 0.5)
    for null in (None, hypotheses.Null("shuffled", -1, 1, np.nan)):
        with pytest.raises(StreamgaugeError, match="without its null"):
            hypotheses.Evidence(estimate, null)
    with pytest.raises(TypeError):
        hypotheses.Evidence(estimate)
    with pytest.raises(StreamgaugeError, match="without its null"):
        hypotheses.fact(SUPPORTED, "", margin=0, statistic={"value": 1})


# --- the page -----------------------------------------------------------------------------------
@pytest.mark.parametrize(("gap", "end"), [(0.0, "h2_supported"), (0.08, "h1"), (0.02, "open_gap")])
def test_the_page_is_whole_and_marks_the_path(gap, end):
    facts = judged(gap, ranked=advantages(), missing=["l lacks k 64"])
    text = verdict_page.page(facts, "demo <1>")
    assert "<li>l lacks k 64</li>" in text
    page = Page(text)
    assert page.open == [] and "demo &lt;1&gt;" in text and "nan" not in text.lower()
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    assert "http" not in text
    nodes = {attrs["id"]: attrs for tag, attrs in page.tags if tag == "g"}
    taken = [name for name, attrs in nodes.items() if attrs.get("class") == "taken"]
    assert sorted(taken) == sorted(facts["path"]) and end in taken
    marks = {
        attrs["class"].split()[1]
        for tag, attrs in page.tags
        if "mark" in attrs.get("class", "").split()
    }
    assert marks == {"observed", "hypothesis", "test"}
    words = " ".join(page.words)
    for name in verdicts.ORDER:
        assert f"{name}:  {said(facts, name)}" in words
    assert "ΔR²" in words and "untrained" in words and "cannot reach 0" in words
    assert ("quad_nats" in words) == (gap != 0.02)


def test_every_path_lies_on_the_tree():
    ends = [judged(gap, ranked=advantages())["path"] for gap in (0.0, 0.08, 0.02)]
    edges = {(start, end) for start, end, _ in verdict_page.EDGES}
    for path in [*ends, judged(n_seeds=1)["path"]]:
        assert set(path) <= verdict_page.NODES.keys()
        for start, end in itertools.pairwise(path):
            assert (start, end) in edges or start.startswith("h2_")


def test_facts_are_json_and_repeat():
    facts = judged(0.08, ranked=advantages(), read=critics(lambda s, layer: layer))
    text = json.dumps(facts, allow_nan=False, sort_keys=True)
    again = judged(0.08, ranked=advantages(), read=critics(lambda s, layer: layer))
    assert text == json.dumps(again, allow_nan=False, sort_keys=True)
    assert facts["order"] == ["H0", "H1", "H2", "H3"]
    assert set(facts["legend"]) == {"observed", "hypothesis", "test"}


# --- the advantage of a proxy ---------------------------------------------------------------------
def grid(seed=0):
    rng = np.random.default_rng(seed)
    rows = pd.DataFrame(
        [{"subject": s, "k": k} for s in "abcd" for k in (8, 16, 32) for _ in range(3)]
    )
    q = rng.normal(size=len(rows))
    rows = rows.assign(codec="sae", token_set="all", ce_rec_mean_of_ratios=q, swd=np.exp(-q))
    return rows.assign(r2=rng.normal(size=len(rows)), nmse=-q, cosine=q + rng.normal(size=len(q)))


def test_advantage_is_the_difference_of_scipys_correlations():
    table = leaderboard.advantage(grid(), resamples=200)
    rows = grid()
    for proxy, x in (("swd", 1 / rows.swd), ("cosine", rows.cosine)):
        row = table[(table.proxy == proxy) & (table.how == "pooled") & (table.token_set == "all")]
        row = row.iloc[0]
        own = scipy.stats.spearmanr(x, rows.ce_rec_mean_of_ratios)[0]
        other = scipy.stats.spearmanr(rows.r2, rows.ce_rec_mean_of_ratios)[0]
        assert row.advantage == pytest.approx(own - other)
        assert (row.spearman, row.spearman_over) == pytest.approx((own, other))
        assert row.advantage_low <= row.advantage <= row.advantage_high
        assert row.null_low < 0 < row.null_high
    assert (table.proxy != "r2").all() and table.p_value[table.proxy == "swd"].min() < 0.01


def test_a_proxy_that_orders_as_r2_does_has_no_advantage():
    table = leaderboard.advantage(grid().assign(cosine=lambda t: t.r2), resamples=100)
    row = table[(table.proxy == "cosine") & (table.token_set == "all")].iloc[0]
    assert row.advantage == row.advantage_low == row.advantage_high == 0 and row.p_value == 1
    few = leaderboard.advantage(grid().iloc[:2], resamples=50)
    assert few.advantage.isna().all()
    with pytest.raises(StreamgaugeError, match="no column 'r2'"):
        leaderboard.advantage(grid().drop(columns="r2"))
