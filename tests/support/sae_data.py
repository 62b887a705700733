"""Small real stores of activations and probes, for the tests of the SAE library."""

import numpy as np
import torch

from streamgauge.stores import layer_stores


def activations(n_sequences, n_positions, d_model, seed=0):
    """Sparse combinations of 2 d directions, an offset, and a massive token at position 0."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((2 * d_model, d_model))
    shape = (n_sequences, n_positions, 2 * d_model)
    codes = rng.random(shape) * (rng.random(shape) < 0.1)
    x = codes @ directions + rng.standard_normal(d_model)
    x[:, 0] = 100 * rng.standard_normal(d_model)
    return x.astype(np.float16).astype(np.float32)


def write_store(path, x):
    """An activation store of x (sequence, position, d_model), float16."""
    n_sequences, n_positions, d_model = x.shape
    layer_stores.create_activations(
        path,
        n_sequences=n_sequences,
        n_positions=n_positions,
        d_model=d_model,
        dtype="float16",
        layer=3,
        hook_name="blocks.3.hook_resid_post",
    )
    norm = np.linalg.norm(x, axis=-1).astype(np.float32)
    store = layer_stores.Store(path, writable=True)
    store.write("activations", 0, x.astype(np.float16))
    store.write("norm", 0, norm)
    store.write_all("median_norm", np.median(norm))
    store.write_all("sink_threshold", 10 * np.median(norm))
    return layer_stores.ActivationStore(path)


def write_probes(path, factors, dtype="float32", layer=3):
    """A probe store of the factors (sequence, position, d_model, probe)."""
    n_sequences, n_positions, d_model, n_probes = factors.shape
    layer_stores.create_probes(
        path,
        n_sequences=n_sequences,
        n_positions=n_positions,
        d_model=d_model,
        n_probes=n_probes,
        dtype=dtype,
        layer=layer,
        hook_name=f"blocks.{layer}.hook_resid_post",
    )
    stored = torch.as_tensor(factors, dtype=getattr(torch, dtype))
    if dtype == "bfloat16":
        stored = stored.view(torch.uint16)
    store = layer_stores.Store(path, writable=True)
    store.write("probes", 0, stored.numpy())
    return layer_stores.ProbeStore(path)
