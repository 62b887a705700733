"""A layer's subspace Z on disk: the store that everything inside Z is measured with."""

from pathlib import Path

import numpy as np

from streamgauge import stores
from streamgauge.errors import StreamgaugeError
from streamgauge.subspace import Subspace

# ‖P² − P‖ beyond which float32 rows are no orthonormal basis (DEFINITIONS, "Attention subspace Z")
_PROJECTOR_ERROR = 1e-5


def write(final: Path | str, spec: str, subspace: Subspace) -> dict:
    """Write ``basis`` (component, d_model), float32, and ``singular_values`` (component,), float64.

    Args:
        final: the store.
        spec: the artifact's spec.
        subspace: what to write.

    Returns:
        The manifest's facts: ``k_sub``, ``d_model``, ``projector_error`` (see `projector_error`).

    Raises:
        StreamgaugeError: the store cannot be written; rounded to float32 the basis is no longer
            orthonormal enough.
    """
    k_sub, d = subspace.basis.shape
    rounded = subspace.basis.astype(np.float32)
    error = projector_error(rounded)
    if not error < _PROJECTOR_ERROR:
        raise StreamgaugeError(
            f"the projector's error {error:.1e} is not below {_PROJECTOR_ERROR:.0e}",
            where=str(final),
        )
    work = stores.scratch(final, spec)
    stores.create(
        work,
        [
            stores.Array(
                "basis",
                ("component", "d_model"),
                (k_sub, d),
                "float32",
                "1",
                "orthonormal rows that span Z",
            ),
            stores.Array(
                "singular_values",
                ("component",),
                (k_sub,),
                "float64",
                "1",
                "singular values of the stacked bases of the heads",
            ),
        ],
        {"component": range(k_sub)},
    )
    store = stores.Store(work, writable=True)
    store.write_all("basis", rounded)
    store.write_all("singular_values", subspace.singular_values)
    stores.commit(work, final)
    return {"k_sub": k_sub, "d_model": d, "projector_error": error}


def read(path: Path | str) -> np.ndarray:
    """The basis in a store written by `write`, (k_sub, d) float64.

    Raises:
        StreamgaugeError: there is no whole store at `path`.
    """
    return stores.Store(path).read("basis").astype(np.float64)


def projector_error(basis) -> float:
    """‖P² − P‖ (Frobenius) of P = VᵀV, computed in float64 without forming P.

    Args:
        basis: V, (k_sub, d), rows nearly orthonormal.
    """
    gram = np.asarray(basis, np.float64)
    gram = gram @ gram.T
    excess = gram - np.eye(len(gram))
    # P² − P = Vᵀ(G − I)V with G = VVᵀ, and ‖VᵀMV‖² = tr(MGMG)
    product = excess @ gram
    return float(np.sqrt(max(np.trace(product @ product), 0.0)))
