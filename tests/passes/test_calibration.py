"""The quadratic of the probes against exact KL, on models small enough for every probe."""

import numpy as np
import pandas as pd
import pytest
import torch

import tiny_models
from streamgauge.base.errors import StreamgaugeError
from streamgauge.models import hooks, subjects
from streamgauge.passes import calibration
from streamgauge.stores import layer_stores
from streamgauge.studies import kl_calibration

LAYER, N, T, D, VOCABULARY = 1, 24, 6, 32, 24
SETTINGS = {"sequences": N, "batch_size": 8, "seed": 0}
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (N, T)).astype(np.int32)
SCALES = [0.0003, 0.01, 0.3]


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return subjects.load(tiny_models.tiny_gpt_neox(folder, vocab_size=VOCABULARY), "cpu")


def exact_probes(subject, tokens):
    """J^T F^(1/2) for every later logit, (N, T, d, (T−1)·V): their outer products sum to G."""
    ids = torch.as_tensor(tokens).long()
    with torch.no_grad():
        h = subject.residuals(ids, [LAYER])[LAYER]
    h.requires_grad_(True)
    logits = subject.logits_from(ids, LAYER, h)[:, :-1]
    p = logits.detach().softmax(-1)
    root = torch.diag_embed(p.sqrt()) - p[..., None] * p.sqrt()[..., None, :]
    columns = []
    for t in range(logits.shape[1]):
        for k in range(VOCABULARY):
            cotangent = torch.zeros_like(logits)
            cotangent[:, t] = root[:, t, :, k]
            columns.append(torch.autograd.grad(logits, h, cotangent, retain_graph=True)[0])
    return h.detach().numpy(), torch.stack(columns, dim=-1).numpy()


@pytest.fixture(scope="module")
def harvested(subject, tmp_path_factory):
    """Real stores with activations and exact probes of every token."""
    folder = tmp_path_factory.mktemp("stores")
    h, probes = exact_probes(subject, TOKENS)
    return stored(folder, h, probes)


def stored(folder, h, probes):
    """Stores of activations and probes; one token in ten is a sink by its norm."""
    shape = dict(zip(("n_sequences", "n_positions", "d_model"), h.shape, strict=True))
    shape |= {"dtype": "float32", "layer": LAYER, "hook_name": hooks.hook_name(LAYER)}
    layer_stores.create_activations(folder / "a.zarr", **shape)
    store = layer_stores.Store(folder / "a.zarr", writable=True)
    norm = np.linalg.norm(h, axis=-1)
    store.write("activations", 0, h)
    store.write("norm", 0, norm)
    store.write_all("median_norm", float(np.median(norm)))
    store.write_all("sink_threshold", float(np.quantile(norm, 0.9)))
    layer_stores.create_probes(folder / "p.zarr", n_probes=probes.shape[-1], **shape)
    layer_stores.Store(folder / "p.zarr", writable=True).write("probes", 0, probes)
    return layer_stores.ActivationStore(folder / "a.zarr"), layer_stores.ProbeStore(
        folder / "p.zarr"
    )


@pytest.fixture(scope="module")
def table(subject, harvested):
    return calibration.measure(subject, TOKENS, LAYER, *harvested, scales=SCALES, **SETTINGS)


def totals(table, token_set="all"):
    table = table[table.token_set == token_set]
    return table.groupby("scale")[["kl_sum_nats", "quad_sum_nats", "joint_quad_nats"]].sum()


def test_the_ratio_goes_to_one_as_the_error_shrinks(table):
    assert list(table.columns) == [
        *("sequence", "token_set", "scale", "n_predicted"),
        *("kl_sum_nats", "quad_sum_nats", "joint_quad_nats"),
    ]
    assert table.sequence.tolist() == sorted(list(range(N)) * 2 * len(SCALES))
    for token_set in ("all", "no_sink"):
        own = table[(table.token_set == token_set) & (table.n_predicted > 0)]
        off = abs(own.kl_sum_nats / own.joint_quad_nats - 1).groupby(own.scale).max()
        assert off[0.0003] < 4e-3 < off[0.01] < 4e-2 < off[0.3]
    # KL falls with the square of the error, four decades and more below one nat
    kl = totals(table).kl_sum_nats
    assert kl[0.01] / kl[0.0003] == pytest.approx((0.01 / 0.0003) ** 2, rel=1e-3)


def test_independent_errors_cost_the_sum_of_their_parts_on_average(subject, harvested):
    ratios = []
    for seed in range(12):
        made = totals(
            calibration.measure(
                subject, TOKENS, LAYER, *harvested, scales=[0.001], **{**SETTINGS, "seed": seed}
            )
        )
        ratios.append((made.kl_sum_nats / made.quad_sum_nats).item())
    error = np.std(ratios) / np.sqrt(len(ratios))
    assert abs(np.mean(ratios) - 1) < 4 * error and error < 0.02


def test_sinks_keep_their_clean_activation(harvested, table):
    """The quadratic without sinks is that of the tokens left, and they are counted."""
    activations, probes = harvested
    keep = activations.keep(0, N)
    assert not keep[:, 0].any() and 0 < (~keep[:, 1:]).sum() < N
    h, v = activations.read(0, N).astype(float), probes.read(0, N).astype(float)
    unit = np.stack([np.random.default_rng((0, i)).standard_normal((T, D)) for i in range(N)])
    unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    delta = 0.01 * np.linalg.norm(h, axis=-1, keepdims=True) * unit * keep[..., None]
    projected = np.einsum("ntds,ntd->nts", v, delta)
    own = table[(table.token_set == "no_sink") & (table.scale == 0.01)]
    np.testing.assert_allclose(own.quad_sum_nats, (projected**2).sum((1, 2)) / 2, rtol=1e-4)
    np.testing.assert_allclose(
        own.joint_quad_nats, (projected.sum(1) ** 2).sum(1) / 2, rtol=1e-4, atol=1e-12
    )
    np.testing.assert_array_equal(own.n_predicted, keep[:, :-1].sum(1))
    assert set(table.n_predicted[table.token_set == "all"]) == {T - 1}


def test_at_a_single_predicted_position_both_predictions_agree(subject, tmp_path):
    """With one position that counts there are no cross terms."""
    tokens = TOKENS[:, :2]
    both = stored(tmp_path, *exact_probes(subject, tokens))
    made = calibration.measure(subject, tokens, LAYER, *both, scales=[0.01], **SETTINGS)
    assert (made.n_predicted[made.token_set == "no_sink"] == 0).all()
    made = made[made.token_set == "all"]
    np.testing.assert_allclose(made.quad_sum_nats, made.joint_quad_nats, rtol=1e-12)
    np.testing.assert_allclose(made.kl_sum_nats, made.joint_quad_nats, rtol=0.02)


def test_the_errors_are_what_they_say(subject, harvested, table):
    """The quadratic of one sequence by hand, from G = Σ v vᵀ of the whole sequence."""
    activations, probes = harvested
    h = activations.read(5, 6)[0].astype(float)
    unit = np.random.default_rng((0, 5)).standard_normal((T, D))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    delta = 0.3 * np.linalg.norm(h, axis=1, keepdims=True) * unit
    v = probes.read(5, 6)[0].astype(float)
    whole = v.reshape(T * D, -1)
    expected = delta.ravel() @ (whole @ whole.T) @ delta.ravel() / 2
    row = table[(table.sequence == 5) & (table.scale == 0.3) & (table.token_set == "all")].iloc[0]
    assert row.joint_quad_nats == pytest.approx(expected, rel=1e-5)
    alone = sum(delta[t] @ v[t] @ v[t].T @ delta[t] / 2 for t in range(T))
    assert row.quad_sum_nats == pytest.approx(alone, rel=1e-5)


def test_the_cut_into_batches_does_not_show_and_finished_ones_are_kept(
    subject, harvested, table, tmp_path
):
    settings = {"scales": SCALES, **SETTINGS, "batch_size": 5}
    made = calibration.measure(subject, TOKENS, LAYER, *harvested, scratch=tmp_path, **settings)
    # rounding of the logits is all that may differ
    pd.testing.assert_frame_equal(made, table, rtol=0.02, atol=1e-10)
    kept = sorted(tmp_path.iterdir())
    assert len(kept) == 5 and all(path.suffix == ".parquet" for path in kept)
    kept[2].unlink()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = calibration.measure(subject, TOKENS, LAYER, *harvested, scratch=tmp_path, **settings)
    pd.testing.assert_frame_equal(again, made, check_exact=True)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    few = calibration.measure(
        subject, TOKENS, LAYER, *harvested, scales=SCALES, **{**SETTINGS, "sequences": 3}
    )
    pd.testing.assert_frame_equal(few, table[table.sequence < 3], rtol=0.02, atol=1e-10)


def test_what_does_not_fit_is_refused_before_work(subject, harvested):
    def run(layer=LAYER, tokens=TOKENS, scales=(0.1,), **other):
        return calibration.measure(
            subject, tokens, layer, *harvested, scales=scales, **{**SETTINGS, **other}
        )

    with pytest.raises(StreamgaugeError, match=r"blocks\.1\.hook_resid_post.*not blocks\.2"):
        run(layer=2)
    with pytest.raises(StreamgaugeError, match="23 x 6"):
        run(tokens=TOKENS[1:])
    for scales in ([], [0.1, 0], [-1.0], [np.nan]):
        with pytest.raises(StreamgaugeError, match="relative sizes"):
            run(scales=scales)
    with pytest.raises(StreamgaugeError, match="no next token"):
        run(sequences=0)
    with pytest.raises(StreamgaugeError, match=r"relative size 1e\+39 is not finite at sequence 0"):
        run(scales=[1e39])


def manifest(**wildcards):
    return {"spec": {"wildcards": {"subject": "s", "corpus": "c", "ell": "07", **wildcards}}}


SAE = {"sae": "topk-x8-k4-t100-mse-seed0"}
SETTINGS_OF_TABLE = {"resamples": 300, "confidence": 0.9, "seed": 1}


def sae_tables(k, ratio):
    """The two tables of an SAE whose measured KL is `ratio` times the joint prediction."""
    rng = np.random.default_rng(k)
    parts = []
    for codec in ("sae", "untrained", "zero"):
        n = rng.integers(20, 40, 9)
        joint = rng.gamma(3, 1, 9) * n / k
        kl = joint * (ratio if codec == "sae" else 0.5) / n
        quad = joint * rng.uniform(0.5, 1.5, 9)
        parts.append({"codec": codec, "n": n, "joint": joint, "kl": kl, "quad": quad})
    long = pd.concat([pd.DataFrame(p).assign(sequence=range(9)) for p in parts])
    one, two = {}, {}
    for s in ("all", "no_sink"):
        one |= {f"n_predicted_{s}": long.n, f"kl_nats_{s}": long.kl}
        two |= {
            f"n_predicted_{s}": long.n,
            f"quad_sum_{s}": long.quad,
            f"joint_quad_{s}": long.joint,
        }
    keys = long[["sequence", "codec"]]
    category = {"codec": "category"}
    return keys.assign(**one).astype(category), keys.assign(**two).sample(frac=1, random_state=0)


@pytest.fixture(scope="module")
def points(table):
    records = [manifest(sae=f"topk-x8-k{k}-t100-mse-seed0") for k in (4, 16)]
    made = [sae_tables(4, 1.25), sae_tables(16, 1.25)]
    return kl_calibration.points(
        [(manifest(), table)],
        list(zip(records, (m[0] for m in made), strict=True)),
        # in whichever order they come
        list(zip(records, (m[1] for m in made), strict=True))[::-1],
    )


def test_points_hold_every_sequence_and_error_once(points, table):
    assert list(points.columns) == [
        *("subject", "corpus", "layer", "token_set", "source", "scale"),
        *("expansion", "k", "tokens", "objective", "seed", "sequence", "n_predicted"),
        *("predicted_nats", "joint_nats", "measured_nats"),
    ]
    counts = points.groupby("source").size().to_dict()
    n_empty = (table.n_predicted == 0).sum()
    assert counts == {"synthetic": 2 * 3 * N - n_empty, "sae": 2 * 18, "untrained": 2 * 18}
    assert set(points.layer) == {7} and set(points.k.dropna()) == {4, 16}
    synthetic = points[points.source == "synthetic"]
    assert synthetic[["k", "objective", "seed"]].isna().all(None) and synthetic.scale.notna().all()
    counted = table[table.n_predicted > 0]
    np.testing.assert_allclose(synthetic.measured_nats, counted.kl_sum_nats / counted.n_predicted)
    sae = points[points.source == "sae"]
    np.testing.assert_allclose(sae.measured_nats, 1.25 * sae.joint_nats)


def test_the_table_recovers_planted_ratios_and_slopes(points):
    found = kl_calibration.table(points, **SETTINGS_OF_TABLE)
    for _, of_set in found.groupby("token_set"):
        check_planted(of_set)


def check_planted(found):
    # a row for each scale and each SAE and codec, and a pooled one for each source
    assert found.groupby("source").size().to_dict() == {"synthetic": 4, "sae": 3, "untrained": 3}
    for source, value in (("sae", 1.25), ("untrained", 0.5)):
        rows = found[found.source == source]
        assert rows.k.isna().tolist() == [False, False, True]
        for name in ("ratio_joint", "slope"):
            for end in ("", "_low", "_high"):
                np.testing.assert_allclose(rows[name + end], value)
        np.testing.assert_allclose(rows[["log_slope", "r2", "log_r2"]], 1)
        assert (rows.ratio_low < rows.ratio).all() and (rows.ratio < rows.ratio_high).all()
        assert rows.n_points.tolist() == [9, 9, 18] and set(rows.n_sequences) == {9}
    small = found[found.scale == 0.0003].iloc[0]
    assert small.ratio_joint == pytest.approx(1, abs=1e-3) and small.slope == pytest.approx(
        1, abs=1e-3
    )
    assert small.ratio_joint_low <= small.ratio_joint <= small.ratio_joint_high
    pooled = found[(found.source == "synthetic") & found.scale.isna()].iloc[0]
    assert pooled.log_slope == pytest.approx(1, abs=0.02) and pooled.log_r2 > 0.99


def test_the_fits_are_scipys_and_the_intervals_those_of_resampled_sequences(points):
    from scipy.stats import linregress

    found = kl_calibration.table(points, **SETTINGS_OF_TABLE)
    own = points[(points.source == "synthetic") & (points.token_set == "all")]
    row = found[(found.source == "synthetic") & found.scale.isna()].iloc[0]
    assert row.token_set == "all"
    fits = {
        "": linregress(own.joint_nats, own.measured_nats),
        "log_": linregress(np.log10(own.joint_nats), np.log10(own.measured_nats)),
    }
    for prefix, fit in fits.items():
        assert row[f"{prefix}slope"] == pytest.approx(fit.slope)
        assert row[f"{prefix}r2"] == pytest.approx(fit.rvalue**2)
    per_token = linregress(own.predicted_nats, own.measured_nats)
    assert row.slope_per_token == pytest.approx(per_token.slope)
    drawn = np.random.default_rng(1).integers(0, N, (300, N))
    by_sequence = [part for _, part in own.groupby("sequence")]
    slopes = []
    for sequences in drawn:
        part = pd.concat([by_sequence[i] for i in sequences])
        slopes.append(linregress(part.joint_nats, part.measured_nats).slope)
    expected = np.quantile(slopes, [0.05, 0.95])
    assert [row.slope_low, row.slope_high] == pytest.approx(expected, rel=1e-6)


def test_a_table_read_back_gives_the_same(points, tmp_path):
    points.to_csv(tmp_path / "points.csv", index=False)
    read = pd.read_csv(tmp_path / "points.csv")
    assert "4.0" not in (tmp_path / "points.csv").read_text().split("\n")[-2]
    pd.testing.assert_frame_equal(
        kl_calibration.table(read, **SETTINGS_OF_TABLE),
        kl_calibration.table(points, **SETTINGS_OF_TABLE),
    )


def test_a_kl_at_or_below_zero_is_left_out_of_the_logarithms(points):
    few = points[(points.source == "sae") & (points.k == 4) & (points.token_set == "all")].copy()
    few.iloc[0, few.columns.get_loc("measured_nats")] = -1e-9
    row = kl_calibration.table(few, **SETTINGS_OF_TABLE).iloc[0]
    assert row.log_slope == pytest.approx(1) and row.slope != pytest.approx(1, abs=1e-3)
    one = kl_calibration.table(few[1:2], **SETTINGS_OF_TABLE).iloc[0]
    assert one.ratio_joint == pytest.approx(1.25) and one[["ratio_low", "slope", "r2"]].isna().all()


def test_tables_that_do_not_belong_together_are_errors(table):
    record, (measured, predicted) = manifest(**SAE), sae_tables(4, 1.0)
    with pytest.raises(StreamgaugeError, match="no sensitivity table"):
        kl_calibration.points([(manifest(), table)], [(record, measured)], [])
    with pytest.raises(StreamgaugeError, match="different sequences"):
        kl_calibration.points(
            [], [(record, measured)], [(record, predicted[predicted.sequence > 0])]
        )
