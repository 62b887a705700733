"""Study tables, levels, findings and the page of the cross-lingual suite."""

import json

import numpy as np
import pandas as pd
import pytest

import crosslingual_data as data
from crosslingual_data import study
from html_page import Page
from streamgauge.base.errors import StreamgaugeError
from streamgauge.crosslingual import findings
from streamgauge.crosslingual import tables as crosslingual
from streamgauge.crosslingual.findings import Finding
from streamgauge.report import findings_page, html


def block(**changes):
    (found,) = crosslingual.findings(*study(**changes))["blocks"]
    return found


# --- tables -------------------------------------------------------------------------------------
def test_cells_stand_sorted_below_each_other_with_their_names_in_front():
    cells = data.cells(subspaces=((10, 8), (3, 50), (3, 8)), subjects=("b", "a"))
    found = crosslingual.tables(cells)
    bridge = found["bridge"]
    assert list(bridge.columns[:4]) == ["subject", "prompts", "layer", "k_sub"]
    assert list(bridge.columns[4:]) == list(data.bridge().columns)
    places = bridge.drop_duplicates(["subject", "layer", "k_sub"])
    wanted = [(s, n, k) for s in "ab" for n, k in ((3, 8), (3, 50), (10, 8))]
    assert list(places[["subject", "layer", "k_sub"]].itertuples(index=False, name=None)) == wanted
    assert list(bridge.method[:2]) == ["least_squares", "ridge"]  # as the cell has them
    assert list(found["heads"].columns[:2]) == ["subject", "layer"]
    assert list(found["patching"].columns[:5]) == [*bridge.columns[:4], "source"]
    assert found["ard"].penalty.dtype == float
    for name in crosslingual.TABLES:
        shuffled = {kind: rows[::-1] for kind, rows in cells.items()}
        pd.testing.assert_frame_equal(crosslingual.tables(shuffled)[name], found[name])


def test_updates_keep_the_layer_of_the_update_apart_from_that_of_the_basis():
    found, _ = study(subspaces=((3, 8),))
    updates = found["updates"]
    assert list(updates.columns[:5]) == ["subject", "prompts", "basis_layer", "k_sub", "layer"]
    assert set(updates.basis_layer) == {3} and set(updates.layer) == set(range(5))


def test_tables_survive_the_disk_also_without_rows(tmp_path):
    found, said = study(ard_layers=())
    paths = {name: tmp_path / f"{name}.csv" for name in crosslingual.TABLES}
    files = crosslingual.write(found, paths | {"manifest": tmp_path / "x.json"})
    assert sorted(files) == sorted(map(str, paths.values()))
    again = crosslingual.read(paths)
    assert again["ard"].empty and list(again["ard"].columns) == list(found["ard"].columns)
    for name in set(paths) - {"ard"}:
        pd.testing.assert_frame_equal(again[name], found[name])
    assert crosslingual.findings(again, said) == crosslingual.findings(found, said)


# --- levels -------------------------------------------------------------------------------------
def test_a_complete_study_that_dissociates_reaches_gold():
    found = block()
    assert found["level"] == "gold" and found["next"] == []
    assert all(criterion["met"] for criterion in found["criteria"])


@pytest.mark.parametrize(
    ("changes", "reached", "lacks"),
    [
        ({"patching": data.patching(n_with_answer=14)}, None, "at least 15 problems"),
        ({"patching": data.patching(n_with_answer=0)}, None, "the rates"),
        ({"patching": data.patching(n_random=0)}, None, "beside random subspaces"),
        ({"updates": data.updates().iloc[:0]}, None, "R(ℓ)"),
        ({"ard_layers": ()}, "minimum", "ARD lengthscales"),
        ({"ard": data.ard().assign(overlap_flat=np.nan)}, "minimum", "overlap"),
        ({"bridge": data.bridge(r2=np.nan)}, "minimum", "leave-one-out"),
        ({"sources": ("mean",)}, "strong", "optimal transport"),
        ({"subspaces": ((3, 8),)}, "strong", "2 or more layers"),
        ({"bridge": data.bridge(r2=0.7)}, "strong", "orthogonal bridge"),
        ({"bridge": data.bridge(error=0.2, random_low=0.3)}, "strong", "orthogonal bridge"),
        ({"bridge": data.bridge(random_low=0.01)}, "strong", "orthogonal bridge"),
    ],
)
def test_a_level_is_refused_for_what_it_lacks(changes, reached, lacks):
    found = block(**changes)
    assert found["level"] == reached
    assert any(lacks in asked for asked in found["next"]), found["next"]


def test_the_same_verdict_means_the_same_k_sub_and_source():
    """Two layers dissociate, but one by the mean and the other by transport."""
    null = data.verdict("null")
    found = block(verdicts={(3, "ot"): null, (4, "mean"): null})
    assert found["level"] == "strong"
    (asked,) = [c for c in found["criteria"] if "2 or more layers" in c["asks"]]
    assert asked["there"] == "k_sub 8, mean: layers 3; k_sub 8, ot: layers 4, of 4 verdicts"


def test_a_bridge_of_zeros_is_not_orthogonal_and_a_rotation_is():
    """The error of W = 0 falls as 1/√k; the root mean square does not."""
    rows = []
    for k in (8, 50):
        rotation = np.linalg.qr(np.random.default_rng(k).standard_normal((k, k)))[0]
        for w, rms in ((np.zeros((k, k)), 1.0), (rotation, 0.0), (2 * rotation, 3.0)):
            error = np.linalg.norm(w.T @ w - np.eye(k)) / k
            rows.append({"k_sub": k, "orthogonality_error": error, "rms": rms})
    table = pd.DataFrame(rows)
    np.testing.assert_allclose(crosslingual.bridge_rms(table), table.rms, atol=1e-12)


def test_a_null_result_can_be_strong():
    """Levels below gold say what was done."""
    nulls = {(n, source): data.verdict("null") for n in (3, 4) for source in ("mean", "ot")}
    assert block(verdicts=nulls)["level"] == "strong"


# --- findings -----------------------------------------------------------------------------------
def test_every_sentence_states_its_null():
    found = block()
    topics = {finding["topic"] for finding in found["findings"]}
    assert topics == {
        *("Patching", "Weight geometry", "Separation", "Residual updates", "ARD-MMD", "Bridge")
    }
    for finding in found["findings"]:
        assert ", where " in finding["text"] or "against" in finding["text"]
        assert finding["text"].endswith(".") and "{" not in finding["text"]
        assert "nan" not in finding["text"]


def test_the_rates_are_said_as_measured():
    found, _ = study(subspaces=((3, 8),), sources=("mean",))
    (finding,) = findings.rates(found["patching"])
    text = finding.text
    assert "Layer 3, k_sub 8, mean source: patching Z changes 90 % [80, 100]" in text
    assert "19 random subspaces" in text and "of which 18 had a number" in text
    draws = found["patching"]
    draws = draws[(draws.condition == "random") & (draws.over == "all")].answer_changed
    assert f"change {100 * draws.min():.0f} % to {100 * draws.max():.0f} % and keep" in text


@pytest.mark.parametrize(
    ("null", "nulls"),
    [
        ("chance is {x}", {}),
        ("chance is {x}", {"x": float("nan")}),
        ("chance is small", {"x": 0.1}),
        ("", {}),
        ("chance is {x} to {y}", {"x": 0.1}),
    ],
)
def test_a_sentence_without_its_null_cannot_be_made(null, nulls):
    with pytest.raises(StreamgaugeError, match="about R² without its null"):
        Finding("R²", "R² is {r2}", {"r2": 0.9}, null, nulls)
    with pytest.raises(StreamgaugeError, match="without its observation"):
        Finding("R²", "R² is {r2}", {"r2": float("inf")}, "chance is {x}", {"x": 0.1})
    made = Finding("R²", "R² is {r2:.2f}", {"r2": 0.9}, "chance is {x}", {"x": 0.1})
    assert made.text == "R² is 0.90, where chance is 0.1."


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("layers", "ffn_random_low"),
        ("updates", "r_random_high"),
        ("bridge", "permuted_high"),
        ("ard", "z_size_permuted_low"),
        ("separation", "e_chance"),
    ],
)
def test_a_study_that_lost_its_nulls_is_refused(name, column):
    table = getattr(data, name)()
    with pytest.raises(StreamgaugeError, match="without its null"):
        block(**{name: table.assign(**{column: np.nan})})


def test_a_verdict_without_draws_is_refused():
    with pytest.raises(StreamgaugeError, match="verdict without its null"):
        block(verdicts={(3, "mean"): data.verdict(random=())})
    found = block(verdicts={(3, "mean"): data.verdict("not adjudicated", random=())})
    texts = " ".join(finding["text"] for finding in found["findings"])
    assert "3 of 3 adjudicated verdicts (1 more are open)" in texts
    assert "at most 0.15 would be expected" in texts


def test_findings_are_plain_json():
    found = crosslingual.findings(*study())
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_one_block_for_each_subject_and_prompts():
    found = crosslingual.findings(*study(subjects=("b", "a")))
    assert [item["subject"] for item in found["blocks"]] == ["a", "b"]
    tables, _ = study(subspaces=(), ard_layers=())
    assert crosslingual.findings(tables, [])["blocks"] == []


# --- the page -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"subjects": ("a", "b"), "ard_layers": ()},
        {"patching": data.patching(n_with_answer=0)},
        {"subspaces": (), "ard_layers": ()},
    ],
)
def test_the_page_is_whole_and_says_level_and_nulls(changes):
    tables, said = study(**changes)
    facts = crosslingual.findings(tables, said)
    text = findings_page.page(facts, tables, "demo <1>")
    assert text == findings_page.page(facts, tables, "demo <1>")
    read = Page(text)
    assert read.open == [] and "demo &lt;1&gt;" in text and "nan" not in text.lower()
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in read.tags}
    assert "http" not in text
    words = " ".join(read.words)
    for found in facts["blocks"]:
        level = found["level"] or "none of the three"
        assert f"Level reached:  {level} ." in words
        for finding in found["findings"]:
            assert finding["text"] in words
        for lacking in found["next"]:
            assert lacking in words
    if facts["blocks"]:
        assert "random subspaces" in words and "Z⊥, own mean" in words
    else:
        assert "No prompts were run" in words


def test_a_table_escapes_its_text_and_marks_its_nulls():
    text = html.table({"a<b": "", "null": "null"}, [("x & y", "1")], "texts")
    assert text == (
        "<div class='scroll'><table class='texts'><tr><th>a&lt;b</th><th class='null'>null</th>"
        "</tr><tr><td>x &amp; y</td><td class='null'>1</td></tr></table></div>"
    )
