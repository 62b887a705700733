"""ARD-MMD against direct sums, autograd, scikit-learn and planted dimensions; nulls; resumption."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score
from sklearn.metrics.pairwise import rbf_kernel

from streamgauge.base.errors import StreamgaugeError
from streamgauge.crosslingual import ard_runs
from streamgauge.numerics import ard, shared_dimensions
from streamgauge.stores import layer_stores

SETTINGS = {"lr": 0.01, "steps": 300, "plateau": 1e-3, "permutations": 20}
N_SHARED, D = 12, 32


def planted(shift=0.8, pairs=16, d=D, shared=N_SHARED, seed=0):
    """Clouds of unequal sizes about a content of their pair; from `shared` on one is shifted."""
    rng, found = np.random.default_rng([7, seed]), []
    for n, m in rng.integers(12, 30, (pairs, 2)):
        content = rng.standard_normal(d)
        x, y = (content + rng.standard_normal((size, d)) for size in (n, m))
        y[:, shared:] += shift
        found.append((x.astype(np.float32), y.astype(np.float32)))
    return found


class Planted:
    """What ARD-MMD reads of a `states.States`."""

    def __init__(self, pairs):
        self.pairs, self.n_problems = pairs, len(pairs)
        self.problems = [f"q{i:02d}" for i in range(len(pairs))]

    def tokens(self, layer, problem, language):
        return self.pairs[problem][("target", "source").index(language)]


def axes(dimensions, d=D):
    return np.eye(d)[list(dimensions)]


def measured(pairs, folder, basis=None, penalty=0.01, **changed):
    folder.mkdir(exist_ok=True)
    basis = axes(range(N_SHARED)) if basis is None else basis
    given = {**SETTINGS, "seed": 0, "confidence": 0.95, "k_sub": len(basis), **changed}
    return ard_runs.measure(Planted(pairs), 3, basis, penalty, scratch=folder, **given)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return measured(planted(), tmp_path_factory.mktemp("found") / "work")


@pytest.fixture(scope="module")
def clouds():
    return ard.Clouds(planted())


def direct(x, y, log_lengthscale):
    """The formula as it is written, with differences (n, m, d); for autograd."""
    ell = torch.exp(log_lengthscale)

    def kernel(a, b):
        return torch.exp(-0.5 * (((a[:, None] - b[None]) / ell) ** 2).sum(-1))

    n, m = len(x), len(y)
    xx = kernel(x, x).sum() - torch.diagonal(kernel(x, x)).sum()
    yy = kernel(y, y).sum() - torch.diagonal(kernel(y, y)).sum()
    return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * kernel(x, y).mean()


# --- MMD² ----------------------------------------------------------------------------------------
def test_two_points_against_two_by_hand():
    e = np.exp(-0.5)
    value = ard.mmd2_unbiased([[0.0], [1.0]], [[0.0], [1.0]], [1.0])
    assert value == pytest.approx(e + e - 2 * (2 + 2 * e) / 4)
    assert value < 0  # never clipped


def test_mmd2_agrees_with_scikit_learns_kernel():
    x, y = planted()[0]
    gamma = 1 / (2 * 3.0**2)
    xx, yy = (rbf_kernel(a, gamma=gamma)[~np.eye(len(a), dtype=bool)].mean() for a in (x, y))
    expected = xx + yy - 2 * rbf_kernel(x, y, gamma=gamma).mean()
    assert ard.mmd2_unbiased(x, y, np.full(D, 3.0)) == pytest.approx(expected, abs=1e-6)


def test_mmd2_of_gaussians_has_its_closed_form_as_mean():
    # E k = ℓ/√(ℓ²+2) exp(−δ²/(2(ℓ²+2))) for unit variances δ apart
    rng, shift, ell = np.random.default_rng(0), 1.0, 1.5
    values = [
        ard.mmd2_unbiased(rng.normal(size=(20, 1)), shift + rng.normal(size=(9, 1)), [ell])
        for _ in range(2000)
    ]
    expected = 2 * ell / np.sqrt(ell**2 + 2) * (1 - np.exp(-(shift**2) / (2 * (ell**2 + 2))))
    assert np.mean(values) == pytest.approx(expected, abs=4 * stats.sem(values))


def test_a_long_lengthscale_switches_a_dimension_off():
    x, y = planted(shift=3.0)[0]
    ell = np.where(np.arange(D) < N_SHARED, 3.0, 1e9)
    alone = ard.mmd2_unbiased(x[:, :N_SHARED], y[:, :N_SHARED], 3.0)
    assert ard.mmd2_unbiased(x, y, ell) == pytest.approx(alone, abs=1e-12)


def test_batched_value_is_the_sum_over_pairs(clouds):
    rng = np.random.default_rng(1)
    theta = clouds.start() + 0.3 * rng.standard_normal(D)
    value, _ = clouds.value_and_gradient(theta)
    each = [ard.mmd2_unbiased(x / clouds.sd, y / clouds.sd, np.exp(theta)) for x, y in planted()]
    assert value == pytest.approx(sum(each), abs=1e-5)


@pytest.mark.parametrize("at_once", [2**20, 2000])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_gradient_agrees_with_autograd_of_the_formula(dtype, near, at_once, monkeypatch):
    monkeypatch.setattr(ard, "_AT_ONCE", at_once)
    clouds = ard.Clouds(planted(), dtype=dtype)
    theta = torch.from_numpy(clouds.start() + 0.3 * np.random.default_rng(1).standard_normal(D))
    theta.requires_grad_()
    sd = torch.from_numpy(clouds.sd)
    total = sum(direct(*(torch.from_numpy(c).double() / sd for c in p), theta) for p in planted())
    (expected,) = torch.autograd.grad(total, theta)
    value, gradient = clouds.value_and_gradient(theta.detach().numpy())
    assert value == pytest.approx(total.item(), abs=50 * near)
    np.testing.assert_allclose(gradient, expected.numpy(), atol=near)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_the_cpu(clouds):
    there = ard.Clouds(planted(), device="cuda")
    for a, b in zip(
        clouds.value_and_gradient(clouds.start()),
        there.value_and_gradient(clouds.start()),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-5)


# --- start and standardisation -------------------------------------------------------------------
@pytest.mark.parametrize("basis", [None, axes(range(4))])
def test_the_median_kernel_value_at_the_start_is_one_over_e(clouds, basis):
    prior = None if basis is None else shared_dimensions.structural_prior(basis)
    start = clouds.start(prior)
    values = []
    for pair in planted():
        both = np.concatenate(pair) / clouds.sd / np.exp(start)
        values.append(
            np.exp(-0.5 * ((both[:, None] - both) ** 2).sum(-1))[np.triu_indices(len(both), 1)]
        )
    assert np.median(np.concatenate(values)) == pytest.approx(np.exp(-1), rel=1e-4)


def test_the_prior_shortens_the_dimensions_of_the_basis():
    prior = shared_dimensions.structural_prior(axes(range(8)))
    # energies 1 and 0, mean 1/4: ℓ² in the ratio 1.25 to 0.25
    assert np.exp(2 * (prior[20] - prior[0])) == pytest.approx(5)


def test_scale_of_a_dimension_does_not_matter(clouds):
    scale = 10.0 ** np.random.default_rng(0).integers(-2, 3, D)
    other = ard.Clouds([(x * scale, y * scale) for x, y in planted()])
    np.testing.assert_allclose(other.sd, clouds.sd * scale, rtol=1e-5)
    np.testing.assert_allclose(other.start(), clouds.start(), atol=1e-5)


def test_sd_is_that_of_all_tokens_together(clouds):
    every = np.concatenate([cloud for pair in planted() for cloud in pair]).astype(np.float64)
    np.testing.assert_allclose(clouds.sd, every.std(0), rtol=1e-12)


def test_constant_dimensions_are_in_no_kernel_and_no_set(tmp_path):
    pairs = planted()
    with_constants = [tuple(np.hstack([c, np.full((len(c), 2), 7.0)]) for c in p) for p in pairs]
    basis = np.hstack([axes(range(N_SHARED)), np.zeros((N_SHARED, 2))])
    a = measured(pairs, tmp_path / "a", steps=40)
    b = measured(with_constants, tmp_path / "b", basis, steps=40)
    assert b.facts["n_constant"] == 2
    assert b.arrays["z"][-2:].tolist() == [0, 0]
    # the prior's floor is the mean energy, which two more dimensions lower a little
    assert b.table.z_size.item() == pytest.approx(a.table.z_size.item(), abs=1)
    assert (b.arrays["trajectory"][:, -2:] == b.arrays["initial"][-2:]).all()


# --- permutation ---------------------------------------------------------------------------------
def test_exchanging_whole_clouds_is_no_null_and_exchanging_tokens_is(clouds):
    theta = clouds.start()
    swapped = ard.Clouds([(y, x) for x, y in planted()])
    value, _ = clouds.value_and_gradient(theta)
    assert swapped.value_and_gradient(theta)[0] == pytest.approx(value, abs=1e-5)
    dealt = [
        clouds.value_and_gradient(theta, clouds.permuted(np.random.default_rng(i)))[0]
        for i in range(200)
    ]
    assert np.mean(dealt) == pytest.approx(0, abs=4 * stats.sem(dealt))
    assert max(dealt) < value / 4


def test_dealt_tokens_stay_in_their_pair_and_sizes_are_kept(clouds):
    labels = clouds.permuted(np.random.default_rng(0))
    for new, old in zip(labels, clouds.labels, strict=True):
        for sign in (1, -1):
            counts = [(sign * side[..., 0] > 0).sum(1) for side in (new, old)]
            assert torch.equal(*counts)
    assert not torch.equal(labels[0], clouds.labels[0])


# --- planted dimensions --------------------------------------------------------------------------
@pytest.mark.parametrize("penalty", [0.001, 0.01, 0.1])
@pytest.mark.parametrize("basis", [None, axes(range(N_SHARED)), axes(range(20, 32))])
def test_shared_and_shifted_dimensions_separate(clouds, penalty, basis):
    prior = None if basis is None else shared_dimensions.structural_prior(basis)
    fit = ard.fit(clouds, penalty, prior=prior, steps=150)
    shifted = np.arange(D) >= N_SHARED
    assert roc_auc_score(shifted, fit.growth(fit.read)) == 1


def test_z_is_the_shared_dimensions(found):
    z = found.arrays["z"].astype(bool)
    assert z[:N_SHARED].all()
    assert not z[N_SHARED:].any()
    row = found.table.iloc[0]
    assert row.z_size == z.sum() < row.z_size_permuted_low
    assert row.z_size_median == D // 2
    assert row.z_size_half <= row.z_size_start <= row.z_size_double <= D


def test_overlap_is_found_without_the_prior(found, tmp_path):
    row = found.table.iloc[0]
    assert row.overlap_flat == 1
    assert row.overlap_flat_p == pytest.approx(
        stats.hypergeom(D, N_SHARED, N_SHARED).pmf(N_SHARED), rel=1e-6
    )
    assert row.overlap_chance == pytest.approx(N_SHARED / D)
    assert row.overlap_chance_low < row.overlap_chance < row.overlap_chance_high
    # a prior of its own says nothing: the permuted fits keep it as well
    wrong = measured(planted(), tmp_path / "work", axes(range(20, 32)), steps=40).table.iloc[0]
    assert wrong.overlap_flat < wrong.overlap_chance
    assert wrong.overlap_permuted > 0.9


def test_mmd2_falls_and_is_held_against_dealt_tokens(found):
    row = found.table.iloc[0]
    assert row.mmd2_start > row.mmd2_start_permuted_high
    assert row.mmd2_read <= row.mmd2_start / 2
    assert row.mmd2_end < row.mmd2_read
    step = row.read_step
    mmd2 = found.arrays["mmd2"] / row.n_pairs
    assert mmd2[step] <= mmd2[0] / 2 < mmd2[step - 1] or step == 20


def test_languages_alike_leave_every_dimension_in_z(tmp_path):
    whole = []
    for seed in range(12):
        clouds = ard.Clouds(planted(shift=0, pairs=8, d=16, seed=seed))
        fits = [
            ard.fit(clouds, 0.01, labels=labels, steps=20, plateau=None).growth(-1)
            for labels in [
                None,
                *(clouds.permuted(np.random.default_rng([seed, i])) for i in range(20)),
            ]
        ]
        whole.append(shared_dimensions.shared(fits[0], np.array(fits[1:])).all())
    # at level 0.05 one of twelve may fail by chance, three do with probability 0.02
    assert sum(whole) >= 10


def test_false_calls_of_gaussian_growth_stay_at_their_level():
    rng, called = np.random.default_rng(3), []
    for _ in range(300):
        z = shared_dimensions.shared(rng.standard_normal(50), rng.standard_normal((20, 50)))
        called.append(not z.all())
    assert np.mean(called) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)


def test_growth_without_spread_shows_nothing():
    same = np.full((20, 6), 1.5)
    assert shared_dimensions.shared(same[0], same).all()
    assert shared_dimensions.shared(np.r_[same[0, :5], 2.0], same).tolist() == [True] * 5 + [False]


def test_overlap_counts_by_hand():
    energy = np.array([0.9, 0.8, 0.1, 0.1, 0.05, 0.05])
    got = shared_dimensions.overlap(np.array([0.0, 5, 1, 5, 5, 5]), energy, 2, np.ones(6, bool))
    # one of two; P(at least 1 of 2 marked in 2 drawn of 6) = 1 − C(4,2)/C(6,2)
    assert (got.overlap, got.mean) == pytest.approx((0.5, 1 / 3))
    assert got.p == pytest.approx(1 - 6 / 15)
    varying = np.array([False, True, True, True, True, True])
    assert shared_dimensions.overlap(np.zeros(6), energy, 2, varying).mean == pytest.approx(
        2 / 5 / 2
    )


# --- stopping, errors, resumption ----------------------------------------------------------------
def test_a_fit_stops_on_a_plateau_and_keeps_its_trajectory(clouds):
    fit = ard.fit(clouds, 0.01, steps=100, plateau=0.9)
    taken = len(fit.objective) - 1
    assert (fit.stopped, taken) == ("plateau", 20)
    assert fit.trajectory.shape == (taken + 1, D)
    np.testing.assert_allclose(fit.trajectory[0], clouds.start(), rtol=0)
    penalties = 0.01 * np.exp(-fit.trajectory).sum(1)
    np.testing.assert_allclose(fit.objective, fit.mmd2 + penalties)
    assert ard.fit(clouds, 0.01, steps=30, plateau=None).stopped == "steps"


def test_steps_are_those_of_torchs_adam(clouds):
    fit = ard.fit(clouds, 0.1, steps=15, plateau=None)
    theta = torch.from_numpy(clouds.start())
    adam = torch.optim.Adam([theta], 0.01, eps=0.1 * clouds.sensitivity(clouds.start()))
    for _ in range(15):
        _, gradient = clouds.value_and_gradient(theta.numpy())
        theta.grad = torch.from_numpy(gradient) - 0.1 * torch.exp(-theta)
        adam.step()
    np.testing.assert_allclose(fit.trajectory[-1], theta.numpy(), atol=1e-9)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([(np.ones((1, 4)), np.ones((5, 4)))], "pair q00: clouds of 1 and 5 tokens"),
        ([(np.full((3, 4), np.nan), np.ones((5, 4)))], "pair q00: an activation is not finite"),
        ([(np.ones((3, 4)), np.ones((5, 4)))], "no dimension varies"),
        ([], "there are no pairs"),
    ],
)
def test_clouds_that_cannot_be_compared(pairs, message):
    with pytest.raises(StreamgaugeError, match=message):
        ard.Clouds(pairs, names=[f"q{i:02d}" for i in range(len(pairs))])


def test_too_few_tokens_and_permutations_are_refused(tmp_path):
    with pytest.raises(StreamgaugeError, match="at least 2 in each"):
        ard.mmd2_unbiased(np.ones((1, 2)), np.ones((3, 2)), 1.0)
    with pytest.raises(StreamgaugeError, match=r"ard\.permutations: 3 permuted fits"):
        measured(planted(), tmp_path / "work", permutations=3)


def test_a_killed_run_goes_on_and_ends_the_same(tmp_path, monkeypatch):
    pairs, few = planted(pairs=4), {"steps": 25, "permutations": 4}
    straight = measured(pairs, tmp_path / "straight", **few)
    made, fit = [], ard.fit

    def counted(*given, **how):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(1)
        return fit(*given, **how)

    monkeypatch.setattr(ard, "fit", counted)
    with pytest.raises(KeyboardInterrupt):
        measured(pairs, tmp_path / "killed", **few)
    made.clear()
    resumed = measured(pairs, tmp_path / "killed", **few)
    assert len(made) == 3  # of 6: the fits with and without prior and one permuted were kept
    assert resumed.table.to_csv() == straight.table.to_csv()
    for name, values in straight.arrays.items():
        np.testing.assert_array_equal(resumed.arrays[name], values)


def test_the_store_holds_the_whole_fit(found, tmp_path):
    ard_runs.write(tmp_path / "ard.zarr", "{}", found)
    store = layer_stores.Store(tmp_path / "ard.zarr")
    assert store.names == sorted(found.arrays)
    for name, values in found.arrays.items():
        np.testing.assert_array_equal(store.read(name), values)
    steps, d = store.array("trajectory").shape
    assert (steps, d) == (found.facts["n_steps"] + 1, D)
    assert store.array("permuted").shape == (20, D)
    read = store.read("trajectory")[store.attributes["read_step"]]
    np.testing.assert_array_equal(store.read("log_lengthscale"), read)


def test_a_fit_takes_plain_pairs_as_well():
    rng = np.random.default_rng(3)
    pairs = [(rng.standard_normal((6, 4)), 1 + rng.standard_normal((5, 4))) for _ in range(3)]
    plain, prepared = (ard.fit(x, 0.01, steps=5) for x in (pairs, ard.Clouds(pairs)))
    np.testing.assert_array_equal(plain.trajectory, prepared.trajectory)
