"""Transported tokens against exhaustive assignments."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from streamgauge.base.errors import StreamgaugeError
from streamgauge.numerics.transport import transport_source


@pytest.mark.parametrize("shape", [(5, 5), (4, 7), (9, 6), (1, 3), (3, 1)])
def test_transport_keeps_the_mean(shape):
    rng = np.random.default_rng(sum(shape))
    source, target = (rng.standard_normal((n, 8)) for n in shape)
    moved = transport_source(source, target)
    assert moved.shape == target.shape
    np.testing.assert_allclose(moved.mean(0), source.mean(0), atol=1e-12)


def test_a_permuted_copy_is_a_no_op():
    rng = np.random.default_rng(0)
    target = rng.standard_normal((30, 8)) * np.where(np.arange(30) == 0, 1e4, 1.0)[:, None]
    np.testing.assert_array_equal(transport_source(rng.permutation(target), target), target)


def test_transport_of_equal_sizes_is_the_best_assignment():
    rng = np.random.default_rng(1)
    source, target = rng.standard_normal((2, 12, 5))
    rows, columns = linear_sum_assignment(cdist(source, target, "sqeuclidean"))
    expected = np.empty_like(target)
    expected[columns] = source[rows]
    np.testing.assert_allclose(transport_source(source, target), expected)


def test_transport_of_unequal_sizes_is_the_best_plan():
    """Every token taken as often as makes both sides equal, the plan is an assignment."""
    rng = np.random.default_rng(2)
    source, target = rng.standard_normal((4, 5)), rng.standard_normal((6, 5))
    many, few = np.repeat(np.arange(4), 3), np.repeat(np.arange(6), 2)
    rows, columns = linear_sum_assignment(cdist(source[many], target[few], "sqeuclidean"))
    expected = np.zeros_like(target)
    np.add.at(expected, few[columns], source[many[rows]] / 2)
    np.testing.assert_allclose(transport_source(source, target), expected)


def test_transport_without_tokens_is_an_error():
    with pytest.raises(StreamgaugeError, match="without any"):
        transport_source(np.zeros((0, 3)), np.zeros((2, 3)))
