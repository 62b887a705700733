"""Optimal transport of one run's tokens onto another's: what the OT variant of a patch puts in."""

import numpy as np
from scipy import optimize, sparse
from scipy.spatial.distance import cdist

from streamgauge.base.errors import StreamgaugeError
from streamgauge.numerics.arrays import NUMPY, either


@either("h_source", "h_target", inside=NUMPY)
def transport_source(h_source, h_target):
    """Every token of a run as the mixture of another run's tokens that is transported to it.

    The plan π is an exact minimum of Σ π_st ‖h_source[s] − h_target[t]‖² with uniform marginals
    1/S and 1/T (docs/definitions.md, "Patching"); ``ot.emd`` of POT.

    Args:
        h_source: (S, d), the run that content comes from.
        h_target: (T, d), the run that is patched.

    Returns:
        (T, d) float64: row t is Σ_s (π_st T) h_source[s]. The rows' mean is that of `h_source`.

    Raises:
        StreamgaugeError: a run without tokens, or the solver fails.
    """
    h_source, h_target = np.asarray(h_source, np.float64), np.asarray(h_target, np.float64)
    s, t = len(h_source), len(h_target)
    if not s or not t:
        raise StreamgaugeError("tokens cannot be transported from or to a run without any")
    cost = cdist(h_source, h_target, "sqeuclidean")
    # tolerances of the solver are absolute; tokens of huge norm must not hide the others
    cost /= np.median(cost) or 1.0
    rows = sparse.kron(sparse.eye_array(s), np.ones((1, t)))
    columns = sparse.kron(np.ones((1, s)), sparse.eye_array(t))
    # in units of 1/(S T) the marginals are whole numbers, and so is every vertex of the polytope
    solved = optimize.linprog(
        cost.ravel(),
        A_eq=sparse.vstack([rows, columns]).tocsr(),
        b_eq=np.repeat([float(t), float(s)], [s, t]),
        method="highs-ds",
    )
    if not solved.success:
        raise StreamgaugeError(f"optimal transport failed: {solved.message}")
    plan = np.rint(solved.x).reshape(s, t)
    return (plan / s).T @ h_source
