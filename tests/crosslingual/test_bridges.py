"""Bridges with a planted map beside their nulls: permuted pairs and random subspaces."""

import numpy as np
import pytest
from scipy.stats import ortho_group

from streamgauge.base.errors import StreamgaugeError
from streamgauge.crosslingual import bridges
from streamgauge.numerics import subspace

SETTINGS = {"ridge": 0.01, "random": 19, "permutations": 39, "seed": 0}


def planted(n=60, d=40, k=4, seed=0):
    """Content in k known directions, rotated between languages; the rest independent."""
    rng = np.random.default_rng(seed)
    directions = ortho_group.rvs(d, random_state=seed)
    inside, outside = directions[:k], directions[k:]
    content = rng.standard_normal((n, k))
    target = content @ inside + rng.standard_normal((n, d - k)) @ outside
    source = content @ ortho_group.rvs(k, random_state=seed + 1) @ inside
    return target, source + rng.standard_normal((n, d - k)) @ outside, inside


def test_a_rotation_in_z_stands_out_from_both_nulls():
    table, spectra = bridges.tables(*planted(), **SETTINGS)
    assert list(table.method) == ["least_squares", "ridge"]
    plain = table.iloc[0]
    assert plain.r2_loo == pytest.approx(1)
    assert plain.orthogonality_error < 1e-10 < plain.random_orthogonality_low
    assert plain.random_high < 0.5
    assert plain.permuted_high < 0.5
    assert (table.rank_random == 1).all()
    np.testing.assert_allclose(table.p_random, 1 / 20)
    np.testing.assert_allclose(table.p_permuted, 1 / 40)
    assert len(spectra) == 8
    assert (spectra.random_low <= spectra.random_high).all()
    np.testing.assert_allclose(spectra[spectra.method == "least_squares"].singular_value, 1)


def test_another_subspace_does_not_stand_out():
    target, source, _ = planted()
    elsewhere = subspace.random_subspace(40, 4, 99)
    table, _ = bridges.tables(target, source, elsewhere, **SETTINGS)
    assert (table.p_random > 0.05).all()


def test_p_of_permuted_pairs_is_uniform_without_a_bridge():
    rng = np.random.default_rng(7)
    settings = SETTINGS | {"random": 1, "permutations": 19}
    basis = np.eye(6)[:3]
    found = []
    for _ in range(100):
        # a common mean is no bridge
        target, source = rng.standard_normal((2, 20, 6)) + 5
        found.append(bridges.tables(target, source, basis, **settings)[0].p_permuted)
    found = np.array(found)
    assert np.abs(found.mean(0) - 0.525).max() < 0.1
    assert ((found <= 0.05).mean(0) < 0.12).all()


def test_the_same_seed_gives_the_same_tables():
    first, again = (bridges.tables(*planted(), **SETTINGS) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert one.to_csv() == other.to_csv()
    other = bridges.tables(*planted(), **SETTINGS | {"seed": 1})[0]
    assert (other.r2_loo == first[0].r2_loo).all()
    assert (other.permuted_low != first[0].permuted_low).all()
    assert (other.random_low != first[0].random_low).all()


@pytest.mark.parametrize("key", ["random", "permutations"])
def test_no_bridge_without_its_nulls(key):
    with pytest.raises(StreamgaugeError, match="no null"):
        bridges.tables(*planted(), **SETTINGS | {key: 0})
