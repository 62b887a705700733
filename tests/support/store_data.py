"""A small activation store: what is in it, and its making in two steps."""

import numpy as np

from streamgauge.stores import layer_stores

N, T, D = 300, 128, 8  # three shards of 128 sequences, the last one short


def values(dtype="float16"):
    x = np.random.default_rng(0).standard_normal((N, T, D)).astype(np.float32)
    if dtype == "bfloat16":
        return (x.view(np.uint32) >> 16).astype(np.uint16)
    return x.astype(dtype)


def declare(path, dtype="float16"):
    layer_stores.create_activations(
        path,
        n_sequences=N,
        n_positions=T,
        d_model=D,
        dtype=dtype,
        layer=3,
        hook_name="blocks.3.hook_resid_post",
    )


def fill(path, x, skip=()):
    store = layer_stores.Store(path, writable=True)
    for i in range(0, N, 128):
        if i // 128 not in skip:
            store.write("activations", i, x[i : i + 128])
    norm = np.ones((N, T), np.float32)
    norm[5, 7] = 11.0
    store.write("norm", 0, norm)
    store.write_all("mean", np.stack([np.zeros(D), np.ones(D)]))
    store.write_all("median_norm", 1.0)
    store.write_all("sink_threshold", 10.0)
