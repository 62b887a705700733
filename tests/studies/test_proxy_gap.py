"""The proxy gap in tables of results, against the published rows and by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from streamgauge.base.errors import StreamgaugeError
from streamgauge.studies import proxy_gap

# rows of the three-model check as published: model, d_model, k, R², CE recovered, cosine
FAST3 = pd.DataFrame(
    [
        *(("70M", 512, 8, 0.81, 0.372, 0.856), ("160M", 768, 8, 0.907, 0.331, 0.869)),
        *(("410M", 1024, 8, 0.961, 0.269, 0.809), ("70M", 512, 16, 0.855, 0.58, 0.893)),
        *(("160M", 768, 16, 0.924, 0.538, 0.908), ("410M", 1024, 16, 0.968, 0.53, 0.883)),
        *(("70M", 512, 32, 0.891, 0.729, 0.92), ("160M", 768, 32, 0.938, 0.696, 0.932)),
        *(("410M", 1024, 32, 0.974, 0.723, 0.919), ("70M", 512, 64, 0.922, 0.836, 0.944)),
        *(("160M", 768, 64, 0.951, 0.809, 0.934), ("410M", 1024, 64, 0.979, 0.814, 0.901)),
    ],
    columns=["model", "d_model", "k", "r2", "ce_rec", "cos"],
)
# published differences 410M − 70M, mid layer: k, ΔR², ΔCE recovered
FAST2 = [
    *((8, 0.154, -0.106), (16, 0.112, -0.068), (32, 0.084, -0.017)),
    *((64, 0.057, -0.027), (128, 0.036, -0.032), (256, 0.017, -0.037)),
]


def written(rows, tmp_path) -> Path:
    path = tmp_path / "rows.csv"
    rows.to_csv(path, index=False)
    return path


@pytest.fixture
def fast3(tmp_path):
    return proxy_gap.read_rows(written(FAST3, tmp_path))


def test_published_rows_give_their_deltas_and_mismatches(fast3):
    table = proxy_gap.compare_scales(fast3)
    pairs = [("70M", "160M"), ("70M", "410M"), ("160M", "410M")]
    assert list(zip(table.small, table.big, strict=True)) == [p for p in pairs for _ in range(4)]
    expected = {
        ("70M", "160M"): [(0.097, -0.041), (0.069, -0.042), (0.047, -0.033), (0.029, -0.027)],
        ("70M", "410M"): [(0.151, -0.103), (0.113, -0.05), (0.083, -0.006), (0.057, -0.022)],
        ("160M", "410M"): [(0.054, -0.062), (0.044, -0.008), (0.036, 0.027), (0.028, 0.005)],
    }
    for (small, big), deltas in expected.items():
        own = table[(table.small == small) & (table.big == big)]
        assert list(own.k) == [8, 16, 32, 64]
        np.testing.assert_allclose(own[["d_r2", "d_ce_rec"]], deltas, atol=1e-9)
    np.testing.assert_allclose(table.gap, table.d_r2 - table.d_ce_rec, atol=1e-15)
    assert list(table.mismatch) == [1] * 10 + [0, 0]
    assert table.d_cosine.iloc[0] == pytest.approx(0.869 - 0.856)


def test_two_models_within_k_need_their_differences_only():
    levels = np.linspace(0.2, 0.9, len(FAST2))  # of the smaller model: they cancel
    rows = []
    for level, (k, d_r2, d_ce) in zip(levels, FAST2, strict=True):
        rows.append({"model": "70M", "d_model": 512, "k": k, "r2": level, "ce_rec": level**2})
        big = {"r2": level + d_r2, "ce_rec": level**2 + d_ce}
        rows.append({"model": "410M", "d_model": 1024, "k": k} | big)
    table = proxy_gap.correlations(pd.DataFrame(rows)).set_index("how")
    d_r2, d_ce = np.array(FAST2)[:, 1:].T
    expected = (d_r2 @ d_ce) / np.sqrt((d_r2 @ d_r2) * (d_ce @ d_ce))
    assert table.pearson["within_k"] == pytest.approx(expected, abs=1e-9)
    # printed as -0.943, from differences before rounding
    assert table.pearson["within_k"] == pytest.approx(-0.943, abs=0.002)
    # two models at one k always lie on a line
    assert table.loc["per_k", "pearson"].isna().all() and (table.loc["per_k", "n"] == 2).all()


def test_correlations_are_scipys(fast3):
    table = proxy_gap.correlations(fast3)
    pooled, within, *per_k = table.pearson
    assert pooled == pytest.approx(scipy.stats.pearsonr(fast3.r2, fast3.ce_rec)[0])
    less = fast3[["r2", "ce_rec"]] - fast3.groupby("k")[["r2", "ce_rec"]].transform("mean")
    assert within == pytest.approx(scipy.stats.pearsonr(less.r2, less.ce_rec)[0])
    for r, (_, part) in zip(per_k, fast3.groupby("k"), strict=True):
        assert r == pytest.approx(scipy.stats.pearsonr(part.r2, part.ce_rec)[0])
    assert list(table.k[2:]) == [8, 16, 32, 64] and table.k[:2].isna().all()
    assert list(table.n) == [12, 12, 3, 3, 3, 3] and set(table.n_models) == {3}


def test_correlation_rows_are_apart_by_setting_and_points_are_seed_means(fast3):
    two = pd.concat([fast3.assign(seed=seed, r2=fast3.r2 + seed / 100) for seed in (0, 1)])
    table = proxy_gap.correlations(two)
    assert list(table.n) == [12, 12, 3, 3, 3, 3]
    assert table.pearson.tolist() == pytest.approx(proxy_gap.correlations(fast3).pearson.tolist())
    depths = pd.concat([fast3.assign(depth=d) for d in ("early", "mid")])
    assert proxy_gap.correlations(depths).groupby("depth").size().to_dict() == {
        "early": 6,
        "mid": 6,
    }


def test_k_star_of_every_model(fast3):
    table = proxy_gap.k_star_table(fast3, [0.8, 0.3, 0.9]).set_index(["model", "target"])
    # 32 + 32 (0.8 - 0.729)/(0.836 - 0.729)
    assert table.k_star["70M", 0.8] == pytest.approx(32 + 32 * 0.071 / 0.107)
    assert table.censored["70M", 0.8] == ""
    assert tuple(table.loc[("70M", 0.3), ["k_star", "censored"]]) == (8, "<=k_min")
    assert tuple(table.loc[("410M", 0.9), ["k_star", "censored"]]) == (64, ">k_max")
    assert set(table.k_min) == {8} and set(table.k_max) == {64}


def test_a_mismatch_is_strict():
    rows = pd.DataFrame({"model": ["a", "b"], "d_model": [4, 8], "k": 8, "r2": 0.5, "ce_rec": 0.5})
    assert proxy_gap.compare_scales(rows).mismatch.tolist() == [0]
    rows.loc[1, "r2"] = 0.6
    assert proxy_gap.compare_scales(rows).mismatch.tolist() == [0]
    rows.loc[1, "ce_rec"] = 0.4
    assert proxy_gap.compare_scales(rows).mismatch.tolist() == [1]


def test_only_equal_settings_are_paired_and_missing_ones_are_named(fast3):
    early = fast3.assign(depth="early", tokens=10)
    rows = pd.concat([early, early[early.k == 8].assign(tokens=20)])
    rows = rows[~((rows.model == "410M") & (rows.k == 8) & (rows.tokens == 20))]
    table = proxy_gap.compare_scales(rows)
    assert len(table[table.tokens == 20]) == 1 and len(table[table.tokens == 10]) == 12
    assert proxy_gap.missing_cells(rows) == ["410M has no SAE with depth early, k 8, tokens 20"]
    assert proxy_gap.missing_cells(early) == []


@pytest.mark.parametrize("column", ["corpus", "tokenizer"])
def test_other_corpora_and_tokenizers_are_refused(fast3, column):
    rows = fast3.assign(**{column: np.where(fast3.model == "410M", "x", "y")})
    with pytest.raises(StreamgaugeError, match=f"70M and 410M cannot be compared: {column} y and"):
        proxy_gap.compare_scales(rows)


def test_layers_without_names_are_matched_by_place(fast3):
    other = {"70M": 3, "160M": 6, "410M": 12}
    rows = pd.concat(
        [
            fast3.assign(layer=fast3.model.map(other)),
            fast3.assign(layer=0, ce_rec=fast3.ce_rec / 2),
        ]
    )
    table = proxy_gap.compare_scales(rows)
    assert table.groupby("depth").size().to_dict() == {"1": 12, "2": 12}
    first = table[table.depth == "2"]
    np.testing.assert_allclose(first.d_ce_rec, proxy_gap.compare_scales(fast3).d_ce_rec)
    with pytest.raises(StreamgaugeError, match="different numbers of layers"):
        proxy_gap.compare_scales(rows[(rows.model != "70M") | (rows.layer == 0)])


def test_a_grid_table_is_read_as_its_saes(tmp_path, fast3):
    sae = fast3.rename(columns={"model": "subject", "ce_rec": "ce_rec_mean_of_ratios"})
    sae = sae.assign(codec="sae", token_set="all", layer=fast3.d_model // 100)
    extra = [sae.assign(codec="untrained"), sae.assign(token_set="no_sink")]
    rows = proxy_gap.read_rows(written(pd.concat([sae, *extra]), tmp_path))
    assert len(rows) == 12 and set(rows.depth) == {"1"}
    found, expected = (proxy_gap.compare_scales(x) for x in (rows, fast3))
    pd.testing.assert_frame_equal(found[expected.columns], expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns=["r2", "k"]), "no column k, r2"),
        (lambda t: t.astype(object).replace({"r2": {0.81: "good"}}), "'good' in column r2, row 1"),
        (lambda t: t.assign(ce_rec=np.nan), "column ce_rec, row 1"),
        (lambda t: t[:0], "no SAE"),
        (lambda t: pd.concat([t, t[:1]]), "two rows of the same SAE: model 70M, k 8"),
        (lambda t: t.assign(model="a"), "two values of d_model"),
    ],
)
def test_tables_that_cannot_be_read_name_file_and_fault(tmp_path, change, message):
    path = written(change(FAST3), tmp_path)
    with pytest.raises(StreamgaugeError, match=message) as error:
        proxy_gap.read_rows(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_no_table_at_all(tmp_path):
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)))
    for name in ("absent.csv", "empty.csv", "binary.csv"):
        with pytest.raises(StreamgaugeError, match=name):
            proxy_gap.read_rows(tmp_path / name)


def test_one_size_has_no_scale(fast3):
    with pytest.raises(StreamgaugeError, match="one size only"):
        proxy_gap.compare_scales(fast3[fast3.model == "70M"])
