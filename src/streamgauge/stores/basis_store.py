"""A layer's subspace Z on disk: the store that everything inside Z is measured with."""

from pathlib import Path

import numpy as np

from streamgauge.base.errors import StreamgaugeError
from streamgauge.numerics.subspace import Subspace, projector_error
from streamgauge.stores import layer_stores

# ‖P² − P‖ beyond which float32 rows are no orthonormal basis
# (docs/definitions.md, "Attention subspace Z")
_PROJECTOR_ERROR = 1e-5


def write(final: Path | str, spec: str, subspace: Subspace) -> dict:
    """Write ``basis`` (component, d_model), float32, and ``singular_values`` (component,), float64.

    Args:
        final: the store.
        spec: the artifact's spec.
        subspace: what to write.

    Returns:
        The manifest's facts: ``k_sub``, ``d_model``, ``projector_error`` (see
        `subspace.projector_error`).

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
    work = layer_stores.scratch(final, spec)
    layer_stores.create(
        work,
        [
            layer_stores.Array(
                "basis",
                ("component", "d_model"),
                (k_sub, d),
                "float32",
                "1",
                "orthonormal rows that span Z",
            ),
            layer_stores.Array(
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
    store = layer_stores.Store(work, writable=True)
    store.write_all("basis", rounded)
    store.write_all("singular_values", subspace.singular_values)
    layer_stores.commit(work, final)
    return {"k_sub": k_sub, "d_model": d, "projector_error": error}


def read(path: Path | str) -> np.ndarray:
    """The basis in a store written by `write`, (k_sub, d) float64.

    Raises:
        StreamgaugeError: there is no whole store at `path`.
    """
    return layer_stores.Store(path).read("basis").astype(np.float64)
