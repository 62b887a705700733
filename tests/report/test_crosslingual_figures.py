"""Figures of the cross-lingual suite."""

import numpy as np
import pandas as pd
import pytest

import crosslingual_data as data
from figure_checks import check_layout, check_refusals, check_same_bytes, lines
from streamgauge.crosslingual import tables as crosslingual
from streamgauge.report import ard_figures, drawing
from streamgauge.report import crosslingual_figures as drawn_by
from streamgauge.stores import layer_stores

FEW = {"subspaces": ((3, 8),), "ard_layers": (3,), "sources": ("mean",)}
MANY = {
    "subspaces": ((3, 8), (4, 8), (10, 50)),
    "subjects": ("a-model-of-some-size", "tiny"),
    "ard_layers": (3, 4, 10, 12, 14),
    "penalties": ("0.001", "0.01", "0.1"),
}


def tables(changes):
    return crosslingual.tables(data.cells(**changes))


def lengthscales(layers=(3,), penalties=(0.01,), subjects=("tiny",), permutations=3, d=64):
    """Three quarters of the dimensions at 10, one at 1; exchanged tokens have all at 3."""
    rng, parts = np.random.default_rng(0), []
    for subject in subjects:
        for layer in layers:
            for penalty in penalties:
                for fit in ["measured", *map(str, range(permutations))]:
                    value = np.where(np.arange(d) % 4, 1.0, 0.0) if fit == "measured" else 0.5
                    part = pd.DataFrame({"dimension": range(d), "fit": fit})
                    part["log10_lengthscale"] = value + 0.02 * rng.standard_normal(d)
                    place = {"subject": subject, "prompts": "math", "layer": layer}
                    parts.append(part.assign(**place, penalty=penalty))
    return pd.concat(parts, ignore_index=True)


def drawn(name, changes, title=""):
    """A figure of a made-up study."""
    if name == "spectrum":
        cells = tables(changes)["ard"]
        args = [x.unique() for x in (cells.layer, cells.penalty, cells.subject)]
        return ard_figures.spectrum(lengthscales(*args), title)
    names = {"geometry": ["layers"], "bridge": ["bridge", "bridge_spectra"]}.get(name, [name])
    found = tables(changes)
    module = ard_figures if name == "ard" else drawn_by
    return getattr(module, name)(*(found[x] for x in names), title)


NAMES = ("geometry", "updates", "patching", "ard", "spectrum", "bridge")


# --- every figure -------------------------------------------------------------------------------
@pytest.mark.parametrize("changes", [FEW, MANY], ids=["few", "many"])
@pytest.mark.parametrize("name", NAMES)
def test_text_fits_and_nothing_covers_the_axes(name, changes):
    check_layout(drawn(name, changes, "A title"))


@pytest.mark.parametrize("name", NAMES)
def test_same_table_same_bytes(name, tmp_path):
    check_same_bytes(lambda: drawn(name, FEW), tmp_path)


@pytest.mark.parametrize(
    ("draw", "name", "column"),
    [
        (drawn_by.updates, "updates", "r_random_low"),
        (drawn_by.patching, "patching", "language_switched"),
        (ard_figures.ard, "ard", "overlap_chance_low"),
        (lambda table: drawn_by.bridge(table, tables(FEW)["bridge_spectra"]), "bridge", "r2_loo"),
    ],
)
def test_unusable_and_empty_tables(draw, name, column):
    table = tables(FEW)[name]
    check_refusals(draw, table, column, empty=False)
    said = draw(table.iloc[:0])
    assert len(said.texts) == 1 and not said.axes
    check_layout(said)


def test_weights_are_always_there():
    check_refusals(drawn_by.geometry, tables(FEW)["layers"], "ffn_random_low")
    none = ard_figures.spectrum(lengthscales().iloc[:0])
    assert "no lengthscales" in none.texts[0].get_text()


# --- each figure --------------------------------------------------------------------------------
def test_geometry_shows_spread_null_and_chance():
    table = tables(FEW)["layers"]
    rank, ffn, alike = drawn_by.geometry(table).axes
    assert rank.get_title(loc="left") == "tiny"
    for ax, name in (
        (rank, "effective_rank_mean"),
        (ffn, "ffn_alignment"),
        (alike, "similarity_next"),
    ):
        (line,) = lines(ax, drawing.BLUE, "o")
        np.testing.assert_allclose(line.get_ydata(), table[name])
    band = ffn.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (0.9, 1.1)
    assert lines(ffn, drawing.GREY)[0].get_ydata()[0] == 1
    assert lines(alike, drawing.GREY)[0].get_ydata()[0] == 0.06


def test_updates_are_over_chance_with_the_widest_null_of_both_languages():
    table = tables(FEW)["updates"]
    table.loc[table.language == "zh", "r_random_high"] = 0.72
    (ax,) = drawn_by.updates(table).axes
    own = table[table.language == "zh"]
    (line,) = lines(ax, drawing.VERMILLION, "s")[:1]
    np.testing.assert_allclose(line.get_ydata(), own.r / own.r_chance)
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(2.0) and ax.get_yscale() == "log"
    assert ax.get_title(loc="left").endswith("\nZ of layer 3\nk_sub 8")


def test_updates_that_write_nothing_into_z_stay_in_the_picture():
    table = tables(FEW)["updates"]
    zero = table.layer == 2
    table.loc[zero, ["r", "r_low", "r_high", "r_over_chance"]] = 1e-17
    (ax,) = drawn_by.updates(table).axes
    triangles = [x.get_xydata().tolist() for x in lines(ax, drawing.BLUE, "v")]
    assert [[1.96, 0.02]] in triangles and ax.get_ylim()[0] > 0.01


def test_patching_shows_every_draw_beside_z():
    table = tables(FEW)["patching"]
    (ax,) = drawn_by.patching(table).axes
    own = table[table.over == "all"].set_index("condition")
    labels = [text.get_text() for text in ax.get_yticklabels()]
    assert labels[:2] == ["Z", "random subspaces"] and labels[-1] == "everything"
    y = dict(zip(labels, ax.get_yticks(), strict=True))
    draws = [line for line in lines(ax, drawing.GREY, "o") if len(line.get_xdata()) > 1]
    assert len(draws) == 3
    np.testing.assert_allclose(draws[0].get_xdata(), np.sort(own.loc["random"].answer_changed))
    assert abs(draws[0].get_ydata() - y["random subspaces"]).max() < 0.5
    points = [line.get_xydata()[0] for line in lines(ax, drawing.VERMILLION, "s")]
    for condition, label in (("z", "Z"), ("z_perp", "Z⊥"), ("full", "everything")):
        (x,) = [x for x, at in points if abs(at - y[label]) < 0.5]
        assert x == own.loc[condition].language_switched


def test_ard_shows_both_overlaps_and_both_nulls():
    table = tables({**FEW, "ard_layers": (3, 4)})["ard"]
    top, low = ard_figures.ard(table).axes
    np.testing.assert_allclose(lines(top, drawing.BLUE, "o")[0].get_ydata(), 12 / 64)
    flat, prior = lines(low, drawing.BLUE, "o")
    np.testing.assert_allclose(flat.get_ydata(), 0.5)
    np.testing.assert_allclose(prior.get_ydata(), 0.75)
    assert flat.get_markerfacecolor() == drawing.BLUE and prior.get_markerfacecolor() == "white"
    (null,) = top.collections
    assert [x for x in low.get_xticks() if low.get_xlim()[0] < x < low.get_xlim()[1]] == [3, 4]
    np.testing.assert_allclose(null.get_segments()[0][:, 1], [40 / 64, 60 / 64])
    prior_null = low.collections[1].get_segments()[0][:, 1]
    np.testing.assert_allclose(prior_null, [0.1, 0.3])
    chance = low.collections[0].get_paths()[0].vertices[:, 1]
    assert (chance.min(), chance.max()) == (0.0, 0.375)


def test_one_layer_is_a_whole_layer_and_a_null_without_length_is_seen():
    table = tables(FEW)["ard"].assign(z_size_permuted_low=63, z_size_permuted_high=63)
    top, low = ard_figures.ard(table).axes
    assert [x for x in low.get_xticks() if low.get_xlim()[0] < x < low.get_xlim()[1]] == [3]
    ends = lines(top, drawing.GREY, "_")
    assert [end.get_ydata()[0] for end in ends] == [63 / 64] * 2


def test_lengthscales_are_read_from_the_stores_of_dimensions_that_vary(tmp_path):
    wildcards = {"subject": "tiny", "prompts": "math", "ell": "03", "penalty": "0.1"}
    record, path = {"spec": {"wildcards": wildcards}}, tmp_path / "ard.zarr"
    values = {
        "log_lengthscale": np.log([1.0, 10.0, 5.0]),
        "permuted": np.log([[2.0, 2.0, 5.0], [4.0, 4.0, 5.0]]),
        "varying": np.array([1, 1, 0], np.uint8),
    }
    work = layer_stores.scratch(path, "{}")
    dims = {"permuted": ("permutation", "d_model")}
    arrays = [
        layer_stores.Array(name, dims.get(name, ("d_model",)), x.shape, x.dtype.name, "1", name)
        for name, x in values.items()
    ]
    layer_stores.create(work, arrays, {})
    store = layer_stores.Store(work, writable=True)
    for name, x in values.items():
        store.write_all(name, x)
    layer_stores.commit(work, path)
    found = ard_figures.lengthscales([record], [path])
    assert set(found.layer) == {3} and set(found.penalty) == {0.1}
    wide = found.pivot(index="fit", columns="dimension", values="log10_lengthscale")
    assert list(wide.columns) == [0, 1]  # the third is constant: it has no lengthscale
    np.testing.assert_allclose(wide.loc["measured"], [0, 1], atol=1e-12)
    np.testing.assert_allclose(wide.loc["1"], np.log10([4, 4]))
    ard_figures.spectrum(found)
    assert ard_figures.lengthscales([], []).empty


def test_spectrum_shows_two_heaps_and_the_null_between():
    top, low = ard_figures.spectrum(lengthscales()).axes
    null, measured = top.patches
    values, edges, _ = measured.get_data()
    assert values.sum() == pytest.approx(1)
    middle = (edges[:-1] + edges[1:]) / 2
    assert values[middle > 0.75].sum() == pytest.approx(0.75)
    assert null.get_data().values[(middle > 0.3) & (middle < 0.7)].sum() == pytest.approx(1)
    curves = [line.get_ydata() for line in low.get_lines()]
    assert len(curves) == 4 and all((np.diff(curve) >= 0).all() for curve in curves)


def test_bridge_shows_spectra_and_r2_with_its_nulls():
    found = tables({**FEW, "bridge": data.bridge(r2=-7.0)})
    top, low = drawn_by.bridge(found["bridge"], found["bridge_spectra"]).axes
    (line,) = lines(top, drawing.BLUE, "o")
    own = found["bridge_spectra"]
    np.testing.assert_allclose(line.get_ydata(), own[own.method == "ridge"].singular_value)
    assert lines(low, drawing.BLUE, "v")[0].get_ydata()[0] == -1  # too low to draw
    spans = [c.get_segments()[0][:, 1].tolist() for c in low.collections]
    assert spans == [[-0.4, 0.1], [0.2, 0.6]] * 2
