"""Bytes that packages of transport write: when they change, the package's FORMAT must go up.

Their code is in no key (see artifacts/code.py), so a change of bytes has to be said by hand: raise
`FORMAT` in the package's ``__init__.py``, then put the new digest here under the new number.
"""

import hashlib
import json

import numpy as np
import pandas as pd
import torch

import pipeline
from streamgauge import artifacts, base, stores
from streamgauge.artifacts import manifest
from streamgauge.base import tables, whole_file
from streamgauge.numerics.subspace import Subspace
from streamgauge.stores import basis_store, checkpoints, layer_stores

GOLDEN = {
    ("stores", 2): "f9dcaf0b6cb72e7b",
    ("base", 2): "c6bd61d30fa34f96",
    ("artifacts", 2): "38d08cfeb4862a39",
}
SIZES = {"n_sequences": 6, "n_positions": 8, "d_model": 4, "layer": 1}
HOOK = {"hook_name": "blocks.1.hook_resid_post", "dtype": "float16"}


def values(*shape, dtype=np.float32):
    return (np.arange(np.prod(shape)).reshape(shape) % 97).astype(dtype) / 8


def write_stores(folder):
    """One of every kind of store, and a checkpoint."""
    made = {
        "activations": (layer_stores.create_activations, {}, (6, 8, 4)),
        "gradients": (layer_stores.create_gradients, {}, (6, 8, 4)),
        "probes": (layer_stores.create_probes, {"n_probes": 2, "seed": 0}, (6, 8, 4, 2)),
    }
    for name, (create, more, shape) in made.items():
        create(folder / f"{name}.zarr", **SIZES, **HOOK, **more)
        store = layer_stores.Store(folder / f"{name}.zarr", writable=True)
        store.write(name, 0, values(*shape, dtype=np.float16))
    ids = np.arange(48, dtype=np.int32).reshape(6, 8)
    layer_stores.store_tokens(folder / "tokens.zarr", "{}", ids, ids // 16)
    basis = np.eye(2, 4)
    energy = np.ones(2)
    basis_store.write(folder / "basis.zarr", "{}", Subspace(basis, energy))
    checkpoints.save(folder / "checkpoint.safetensors", {"w": torch.arange(3.0)}, {"step": 1})


def digest(folder):
    return pipeline.tree_digest(folder)[:16]


def test_stores(tmp_path):
    write_stores(tmp_path)
    assert digest(tmp_path) == GOLDEN["stores", stores.FORMAT]


def test_whole_files(tmp_path):
    table = pd.DataFrame({"codec": ["sae", "zero"], "kl": [0.5, np.nan], "n": [1, 2]})
    tables.write_parquet(table, tmp_path / "table.parquet")
    tables.write_csv(table.assign(name=["=1", "a,b"]), tmp_path / "table.csv")
    whole_file.replace(tmp_path / "text", lambda path: path.write_text("μ\n", encoding="utf-8"))
    assert digest(tmp_path) == GOLDEN["base", base.FORMAT]


def test_manifests(tmp_path):
    (tmp_path / "table.csv").write_text("a\n1\n")
    spec = json.dumps({"stage": "grid", "config": {}, "wildcards": {}, "code": {}})
    manifest.write(tmp_path / "one.json", spec, [tmp_path / "table.csv"], [], {"n": 1, "x": None})
    manifest.write(tmp_path / "two.json", spec, [], [tmp_path / "one.json"], {"y": 0.1})
    found = hashlib.sha256()
    for name in ("one.json", "two.json"):
        found.update((tmp_path / name).read_bytes())
    assert found.hexdigest()[:16] == GOLDEN["artifacts", artifacts.FORMAT]
