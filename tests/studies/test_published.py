"""Published tables: what follows from them, as the documentation says; and beside a study's own."""

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from streamgauge.base import tables
from streamgauge.base.errors import StreamgaugeError
from streamgauge.cli import main
from streamgauge.numerics import inference
from streamgauge.studies import proxy_gap, published, score_card

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "resources/published"
PAGE = (ROOT / "docs/published.md").read_text()
D_MODEL = {"70M": 512, "160M": 768, "410M": 1024}


def source(name):
    return pd.read_csv(HERE / f"{name}.csv")


CELLS = source("cells")


def section(title):
    """The text under a heading of the page, up to the next one."""
    text = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", PAGE, re.M | re.S)
    return text.group(1)


def rows_of(title):
    """The table under a heading, its cells as text."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


# --- the data -----------------------------------------------------------------------------------
def test_every_table_is_described():
    readme = (HERE / "README.md").read_text()
    for path in HERE.glob("*.csv"):
        assert f"`{path.name}`" in readme or f"## {path.name}" in readme


PRINTED_AS = {"r2": "r2", "ce_rec": "ce_rec", "cosine": "cos", "alive": "alive", "mse": "mse_mean"}
PRINTED_AS |= {"relative_error": "rel_err", "sse_per_token": "sse_tok", "sst_per_token": "sst_tok"}


def test_cells_hold_what_the_tables_hold():
    """Every cell is in its table; every score of an SAE in those tables is in some cell."""
    for cell in CELLS.to_dict("records"):
        table = source(cell["table"])
        name = table["run" if "run" in table else "model"].str.extract(r"^(\d+M)", expand=False)
        own = table[("EleutherAI/pythia-" + name.str.lower()) == cell["model"]]
        if "k" in table:
            own = own[own.k == cell["k"]]
        if "tokens" in table:
            own = own[own.tokens == f"{cell['tokens'] // 10**6}M"]
        assert len(own) == 1
        assert own[PRINTED_AS[cell["metric"]]].item() == cell["value"]
        if np.isfinite(cell["low"]):
            assert (own.ce_lo.item(), own.ce_hi.item()) == (cell["low"], cell["high"])
    held = set(zip(CELLS.metric, CELLS.value, strict=True))
    for name in CELLS.table.unique():
        table = source(name)
        for metric, column in PRINTED_AS.items():
            assert {(metric, v) for v in table.get(column, ())} <= held


def test_layers_are_those_of_the_hookpoints():
    mid = source("s002_hookpoints").set_index("depth regime").loc["mid"]
    for size in ("70M", "410M"):
        own = CELLS[CELLS.model == f"EleutherAI/pythia-{size.lower()}"]
        assert set(own.layer) == {int(mid[f"{size} layer"][1:])}
    assert CELLS[CELLS.model == "EleutherAI/pythia-160m"].layer.isna().all()


# --- what follows from it -----------------------------------------------------------------------
def test_deltas_of_fast3():
    table = proxy_gap.compare_scales(proxy_gap.read_rows(HERE / "s002_fast3_rows.csv"))
    shown = [
        [
            *(str(row.k), row.small, row.big),
            *(f"{x:+.3f}" for x in (row.d_r2, row.d_ce_rec, row.gap)),
            str(row.mismatch),
        ]
        for row in table.itertuples()
    ]
    assert sorted(shown) == sorted(rows_of("Differences across scale"))
    assert table.mismatch.sum() == 10 and len(table) == 12
    for _, part in source("s002_fast3_rows").groupby("k"):
        assert part.ce_lo.max() < part.ce_hi.min()


def test_correlation_within_k_of_fast2():
    deltas, printed = source("s002_fast2_mid_delta"), source("s002_fast2_corr").set_index("depth")
    # two models, half a difference above and below the mean at every k
    rows = [
        {"model": m, "d_model": d, "k": row.k, "r2": sign * row.d_r2, "ce_rec": sign * row.d_ce}
        for row in deltas.itertuples()
        for m, d, sign in (("70M", 512, -0.5), ("410M", 1024, 0.5))
    ]
    table = proxy_gap.correlations(pd.DataFrame(rows)).set_index("how")
    r = table.pearson["within_k"]
    assert r == pytest.approx(printed.corr_within_k["mid"], abs=0.002)
    assert f"{r:.3f}" in section("Correlation within k")


def test_gap_over_training_tokens():
    shown = [
        [
            *(row.tokens, str(row.seeds)),
            *(f"{x:+.3f}" for x in (row.d_r2, row.d_ce, row.d_r2 - row.d_ce)),
        ]
        for row in source("s001_token_sweep_k8").itertuples()
    ]
    assert shown == rows_of("Training tokens")
    last = source("s001_token_sweep_k8").iloc[-1]
    assert f"{last.d_r2 / last.d_ce:.1f}" == "10.7" and "10.7" in section("What does not hold")


def unprinted():
    """CE_rec of Fast2's mid layers at k = 64, 128 and 256: {k: (70M, 410M)}."""
    mid = source("s002_kstar").query("depth == 'mid'").set_index("t")
    delta = source("s002_fast2_mid_delta").set_index("k").d_ce

    def line(k0, y0, k1, y1, k):
        return y0 + (y1 - y0) * (k - k0) / (k1 - k0)

    small = {k: line(mid.k70[0.85], 0.85, mid.k70[0.9], 0.9, k) for k in (64, 128)}
    big = {64: small[64] + delta[64]}
    big[128] = line(64, big[64], mid.k410[0.85], 0.85, 128)
    assert big[128] == pytest.approx(small[128] + delta[128], abs=2e-4)  # the other way
    big[256] = line(128, big[128], mid.k410[0.9], 0.9, 256)
    small[256] = big[256] - delta[256]
    return {k: (small[k], big[k]) for k in small}


def test_ce_rec_that_was_not_printed():
    derived = unprinted()
    headline, at_32 = source("s002_fast2_mid_k8_headline"), source("s002_100M_k32")
    found = {8: tuple(headline.ce_rec), 32: tuple(at_32.ce_rec[:2]), **derived}
    shown = [
        [str(k), f"{a:.3f}", f"{b:.3f}", f"{(1 - b) / (1 - a):.2f}"] for k, (a, b) in found.items()
    ]
    assert shown == [row[:4] for row in rows_of("CE_rec where it was not printed")]
    assert min(shown, key=lambda row: float(row[3]))[0] == "32"
    # with these, k_star gives back what was printed
    small, big = zip(*found.values(), strict=True)
    for row in source("s002_kstar").query("depth == 'mid'").itertuples():
        for ce_rec, printed in ((small, row.k70), (big, row.k410)):
            k_star = inference.k_star(list(found), ce_rec, row.t)
            assert k_star.value == pytest.approx(printed, abs=0.5) and k_star.censored == ""


def test_numbers_that_fit_each_other():
    for name in ("s002_fast2_mid_k8_headline", "s002_100M_k32"):
        table = source(name)
        np.testing.assert_allclose(2 - table.ce_rec, table.lratio, atol=1e-9)
    k_star = source("s002_kstar")
    half = 0.05  # of the last digit printed
    assert ((k_star.k410 - half) / (k_star.k70 + half) <= k_star.ratio + 0.005).all()
    assert ((k_star.k410 + half) / (k_star.k70 - half) >= k_star.ratio - 0.005).all()
    table = source("s002_fast2_mid_k8_sst")
    sse = table.mse_mean * table.model.map(D_MODEL)
    assert [f"{x:.1f}" for x in sse] == [f"{x:.1f}" for x in table.sse_tok]
    np.testing.assert_allclose(1 - table.sse_tok / table.sst_tok, table.r2, atol=5e-4)
    text = section("Numbers that fit each other")
    for x in (*k_star.ratio, *table.sse_tok, *table.r2):
        assert str(x) in text
    assert f"{table.sst_tok[1] / table.sst_tok[0]:.1f} times" in text


def test_r2_without_the_leading_direction():
    pr = source("s002_pr_canyon").query("model == '410M' and layer == 12").pr.item()
    r2 = source("s002_fast2_mid_k8_headline").set_index("model").r2["410M"]
    # share p of the largest eigenvalue: p² <= Σp² = 1/PR <= p² + (1-p)²
    low, high = (1 + math.sqrt(2 / pr - 1)) / 2, 1 / math.sqrt(pr)
    rest = [1 - (1 - r2) / (1 - share) for share in (high, low)]
    text = section("What does not hold")
    assert f"{low:.1%} to {high:.1%}".replace("%", " %") in text
    assert f"{rest[0]:.2f} to {rest[1]:.2f}" in text


def test_what_does_not_hold():
    text = section("What does not hold")
    at_8 = source("s002_fast3_mid_k8_cos_relerr").set_index("model")
    small, middle = at_8.loc["70M"], at_8.loc["160M"]
    assert middle.cos > small.cos and middle.rel_err < small.rel_err
    assert middle.ce_rec < small.ce_rec
    for name in ("cos", "rel_err", "ce_rec"):
        assert f"({small[name]:.3f} to {middle[name]:.3f})" in text
    fast2 = source("s002_fast2_mid_k8_headline").set_index("model").ce_rec
    for model in fast2.index:
        assert f"{at_8.ce_rec[model] - fast2[model]:.3f} ({model})" in text
    at_least_32 = source("s002_fast2_mid_delta").query("k >= 32").d_ce.abs()
    assert (at_least_32 < 0.034).mean() > 0.5


# --- beside a study's own -----------------------------------------------------------------------
def record(name, repository):
    return {"spec": {"wildcards": {"subject": name}}, "facts": {"source": repository}}


SUBJECTS = [
    record("small", "huggingface EleutherAI/pythia-70m@main"),
    record("mid", "huggingface EleutherAI/pythia-160m@abc"),
    record("other", "local /somewhere/pythia-70m"),
]


def a_grid(*saes, n_sequences=200, length=256):
    """Rows of a grid table: r2 0.8 for SAEs, 0.1 for untrained ones; sequences as given."""
    rows = []
    for sae, (codec, r2), token_set in itertools.product(
        saes, (("sae", 0.8), ("untrained", 0.1), ("zero", -1.0)), ("all", "no_sink")
    ):
        row = {"corpus": "pile", "expansion": 32, "objective": "mse", "seed": 0} | sae
        row |= {"codec": codec, "token_set": token_set}
        for metric in score_card.METRICS:
            row |= {metric: r2, f"{metric}_low": r2 - 0.1, f"{metric}_high": r2 + 0.1}
        row |= {"n_sequences": n_sequences, "n_tokens": n_sequences * length}
        rows.append(row)
    return pd.DataFrame(rows)


FAST2 = {"subject": "small", "layer": 3, "k": 8, "tokens": 10**7}


def test_a_shared_cell_is_shown_beside():
    table = published.side_by_side(a_grid(FAST2), SUBJECTS, CELLS)
    assert list(table.columns) == list(published.COLUMNS)
    mine = CELLS[(CELLS.model == "EleutherAI/pythia-70m") & (CELLS.k == 8)]
    assert len(table) == (mine.tokens == 10**7).sum() > 5
    row = table[(table.table == "s002_fast2_mid_k8_headline") & (table.metric == "ce_rec")].iloc[0]
    assert (row.published, row.published_low, row.published_high) == (0.34, 0.169, 0.469)
    assert (row.measured, row.measured_low, row.measured_high) == pytest.approx((0.8, 0.7, 0.9))
    assert row.untrained == 0.1 and row.difference == pytest.approx(0.8 - 0.34)
    assert row.setting.startswith("corpus: pile here, NeelNanda/pile-small-tokenized-2b there; ")
    assert "seed: 0 here, 1 seed there, its number not printed" in row.setting
    assert "batches" in row.setting and "evaluation sequences" not in row.setting


def test_differences_in_setting_are_named():
    grid = a_grid(FAST2 | {"expansion": 8, "seed": 3}, n_sequences=64, length=128)
    setting = published.side_by_side(grid, SUBJECTS, CELLS).setting[0]
    for words in (
        "d_sae / d_model: 8 here, 32 there",
        "evaluation sequences: 64 here, 200 there",
        "tokens a sequence: 128 here, 256 there",
        "seed: 3 here",
    ):
        assert words in setting
    longer = a_grid(FAST2 | {"tokens": 5 * 10**7})
    setting = published.side_by_side(longer, SUBJECTS, CELLS).setting[0]
    assert "d_sae / d_model: 32 here, not printed there" in setting


@pytest.mark.parametrize(
    "change",
    [
        {"subject": "other"},
        {"layer": 2},
        {"k": 128},
        {"tokens": 2 * 10**7},
        {"objective": "e2e"},
    ],
)
def test_other_cells_are_not_shown(change):
    table = published.side_by_side(a_grid(FAST2 | change), SUBJECTS, CELLS)
    assert table.empty and list(table.columns) == list(published.COLUMNS)


def test_a_layer_that_was_not_printed_meets_every_layer():
    saes = [{"subject": "mid", "layer": layer, "k": 16, "tokens": 10**7} for layer in (5, 6)]
    table = published.side_by_side(a_grid(*saes), SUBJECTS, CELLS)
    assert set(table.layer) == {5, 6}
    assert table.setting.str.contains("the layer is not printed").all()


def test_cells_without_a_column_are_refused():
    with pytest.raises(StreamgaugeError, match="no column 'metric'"):
        published.side_by_side(a_grid(FAST2), SUBJECTS, CELLS.drop(columns="metric"))


# --- streamgauge compare ------------------------------------------------------------------------
@pytest.fixture
def compare(tmp_path, capsys):
    def compare(rows, *words):
        path = tmp_path / "rows.csv"
        rows.to_csv(path, index=False)
        status = main.main(["compare", str(path), "--out", str(tmp_path / "out"), *words])
        out, err = capsys.readouterr()
        made = sorted((tmp_path / "out").glob("*.csv"))
        return status, out, err, {file.stem: pd.read_csv(file) for file in made}

    return compare


def test_compare_writes_three_tables(compare):
    status, out, err, made = compare(source("s002_fast3_rows"), "--targets", "0.5,0.7,0.9")
    assert status == 0 and err == "" and len(out.splitlines()) == 3
    assert set(made) == {"deltas", "correlations", "kstar"}
    assert len(made["deltas"]) == 12 and {"k", "small", "big", "gap"} <= set(made["deltas"])
    k_star = made["kstar"].set_index(["model", "target"])
    # 70M at 0.7: between k = 16 (0.580) and 32 (0.729)
    assert k_star.k_star["70M", 0.7] == pytest.approx(16 + 16 * 0.12 / 0.149)
    assert k_star.censored["70M", 0.9] == ">k_max"


def test_compare_hands_no_formula_on(compare, tmp_path):
    """A name that a spreadsheet would run comes out as a text, and is read back as it was."""
    formula = "=cmd|' /C calc'!A0"
    rows = source("s002_fast3_rows").replace(
        {"model": {"70M": formula, "160M": "@x", "410M": "-1"}}
    )
    status, _, _, made = compare(rows)
    assert status == 0
    for name, table in made.items():
        texts = table.select_dtypes("str").stack()
        assert not texts.str.startswith(("=", "+", "-", "@")).any() and len(texts) > 4, name
    again = tables.read_csv(tmp_path / "out/deltas.csv")
    assert {formula, "@x", "-1"} == {*again.small, *again.big}


def test_compare_names_missing_cells(compare):
    rows = source("s002_fast3_rows")
    gone = rows[~((rows.model == "160M") & (rows.k == 32))]
    status, _, err, made = compare(gone)
    assert status == 0 and len(made["deltas"]) == 10
    assert len(err.splitlines()) == 1
    assert "160M has no SAE with k 32" in err and err.startswith("streamgauge: ")


def test_compare_takes_a_grid_table(compare):
    saes = [{"subject": name, "layer": 3, "k": k} for name in ("a", "b") for k in (4, 8)]
    grid = a_grid(*(sae | {"tokens": 1000} for sae in saes))
    grid["d_model"] = grid.subject.map({"a": 64, "b": 128})
    status, _, err, made = compare(grid)
    assert status == 0 and err == ""
    assert list(made["deltas"].k) == [4, 8] and (made["deltas"].mismatch == 0).all()


@pytest.mark.parametrize(
    "change, words, says",
    [
        ({}, ["--targets", "high"], "--targets: 'high' is no list of numbers"),
        ({}, ["--targets", "0.8,nan"], "--targets: '0.8,nan' is no list of numbers"),
        ({"k": "eight"}, [], "no number"),
        ({"d_model": 512}, [], "one size only"),
        ({"corpus": ["a"] * 4 + ["b"] * 8}, [], "cannot be compared"),
    ],
)
def test_compare_refuses_in_one_line(compare, change, words, says):
    rows = source("s002_fast3_rows").sort_values("d_model").assign(**change)
    status, out, err, made = compare(rows, *words)
    assert status == 2 and out == "" and made == {}
    assert len(err.splitlines()) == 1 and err.startswith("streamgauge: ") and says in err


def test_compare_without_a_file(capsys, tmp_path):
    assert main.main(["compare", "nowhere.csv", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("streamgauge: nowhere.csv: ")
