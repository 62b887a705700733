"""One store of every kind that the pipeline writes, small."""

import numpy as np

from lookup import Lookup, T, rows
from streamgauge.crosslingual import states
from streamgauge.numerics.subspace import Subspace
from streamgauge.numerics.token_sets import TOKEN_SETS
from streamgauge.passes import gather, harvest, layer_spectra
from streamgauge.stores import basis_store, layer_stores

N, D = 280, 8  # three shards of activations
LAYER = {"n_sequences": N, "n_positions": T, "d_model": D, "layer": 0, "hook_name": "h"}


def make(folder):
    """Write all of them into a folder; returns it."""
    activations(folder)
    gradients_and_probes(folder)
    others(folder)
    return folder


def activations(folder):
    final = folder / "activations-train.zarr"
    work = layer_stores.scratch(final, "{}")
    harvest.harvest(Lookup(d_model=D), rows(N), 0, work, progress=False)
    gather.activations(work, progress=False)
    layer_stores.commit(work, final)


def gradients_and_probes(folder):
    for name, create, options in (
        ("gradients", layer_stores.create_gradients, {}),
        ("probes", layer_stores.create_probes, {"n_probes": 2, "same_positions": 3, "diagonal": 1}),
    ):
        final = folder / f"{name}.zarr"
        work = layer_stores.scratch(final, "{}")
        create(work, dtype="bfloat16", **options, **LAYER)
        store = layer_stores.Store(work, writable=True)
        rng = np.random.default_rng(0)
        for array in set(store.names) - {"sequence", "position"}:
            store.write(array, 0, rng.integers(0, 99, store.array(array).shape).astype(np.uint16))
        layer_stores.commit(work, final)


def others(folder):
    layer_stores.store_tokens(folder / "tokens-train.zarr", "{}", rows(5000), rows(5000))
    q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((D, 3)))
    basis_store.write(folder / "basis.zarr", "{}", Subspace(q.T, np.ones(3)))
    shape = (4, len(TOKEN_SETS), len(layer_spectra.CENTRINGS), D)
    values = np.random.default_rng(0).random(shape)
    result = layer_spectra.Spectra(values, np.ones(shape[:2], int), None)
    layer_spectra.write(folder / "spectra.zarr", "{}", result)
    final = folder / "states.zarr"
    work = layer_stores.scratch(final, "{}")
    dims = ("layer", "token", "d_model")
    spans = layer_stores.Array("residual", dims, (3, 4, D), "float32", "1", "spans", chunk=1)
    counts = layer_stores.Array("n_tokens", ("problem", "role"), (2, 2), "int32", "token", "tokens")
    names = {"layer": range(3), "problem": ["one", "two"], "role": states.ROLES}
    layer_stores.create(work, [spans, counts], names, {"languages": ["sw", "en"]})
    store = layer_stores.Store(work, writable=True)
    store.write("residual", 0, np.ones((3, 4, D), np.float32))
    store.write_all("n_tokens", np.ones((2, 2), np.int32))
    layer_stores.commit(work, final)
