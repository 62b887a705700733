"""How stores lie on disk: against stores that were written, and the reads that pay for one."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from small_study import SMALL, study
from streamgauge.artifacts import costs
from streamgauge.base.errors import StreamgaugeError
from streamgauge.planning import store_layout
from streamgauge.stores import layer_stores

D, L, V = 16, 4, 100
SHAPE = costs.Shape(D, L, V)
RATES = {"tflops": 30.0, "gb_per_s": 1.0}


def table(*overlays, rates=RATES):
    return store_layout.layout(study(SMALL, *overlays), {"one": SHAPE}, **rates).set_index("store")


def corpus(**changes):
    return {"corpora": {"python-docs": SMALL["corpora"]["python-docs"] | changes}}


def test_a_study_by_hand():
    found = table()
    assert list(found.index) == [
        f"one/python-docs/L01/{name}"
        for name in ("activations-train", "activations-eval", "gradients-eval", "probes-eval")
    ]
    row = found.loc["one/python-docs/L01/activations-train"]
    # 3 rows of 8 tokens, 16 numbers of 2 bytes and a norm of 4 each; one SAE of 1,000 tokens
    assert (row.tokens, row.disk_bytes, row.shard_bytes) == (24, 24 * 36, 24 * 32)
    assert (row.shards, row.parts) == (1, 1)
    assert row.reads == pytest.approx(1000 / 24)
    assert found.reads["one/python-docs/L01/gradients-eval"] == 1


def test_reads_count_every_sae():
    grid = SMALL["grid"] | {
        "k": [3, 4],
        "tokens": [1000, 5000],
        "seeds": [0, 1, 2],
        "seeds_at": {"1000": [7]},
        "objectives": ["mse", "behavioral"],
    }
    found = table({"grid": grid})
    place = "one/python-docs/L01"
    assert found.reads[f"{place}/probes-train"] == pytest.approx(2 * (1000 + 3 * 5000) / 24)
    assert found.reads[f"{place}/activations-train"] == pytest.approx(4 * (1000 + 3 * 5000) / 24)
    assert found.reads[f"{place}/probes-eval"] == 2 * 2 * 4


def written(path, create, sizes):
    """Shards of the largest array, files and bytes of a store filled with zeros."""
    create(path, **sizes, layer=1, hook_name="h")
    store = layer_stores.Store(path, writable=True)
    for name in store.names:
        array = store.array(name)
        if array.dtype.kind in "iuf" and array.ndim and name not in ("sequence", "position"):
            store.write(name, 0, np.zeros(array.shape, array.dtype))
        elif not array.ndim:
            store.write_all(name, 0)
    files = [file for file in path.rglob("*") if file.is_file()]
    largest = max(store.n_shards(name) for name in store.names)
    return largest, len(files), sum(file.stat().st_size for file in files)


@pytest.mark.parametrize(
    "name", ["activations-train", "activations-eval", "gradients-eval", "probes-eval"]
)
def test_files_are_those_of_a_store(tmp_path, name):
    rows = {"context_length": 256, "train_sequences": 400, "eval_sequences": 200}
    row = table(corpus(**rows)).loc[f"one/python-docs/L01/{name}"]
    n = rows["train_sequences" if name.endswith("train") else "eval_sequences"]
    sizes = {"n_sequences": n, "n_positions": 256, "d_model": D, "dtype": "float16"}
    create = getattr(layer_stores, f"create_{name.split('-')[0]}")
    if name == "probes-eval":
        sizes |= {"n_probes": 4, "same_positions": 2, "diagonal": 1}
    shards, files, size = written(tmp_path / "store.zarr", create, sizes)
    assert (row.shards, row.files) == (shards, files)
    assert shards > 3 and row.disk_bytes == pytest.approx(size, rel=0.02)


def test_parts_are_those_of_the_jobs():
    rows = corpus(context_length=256, train_sequences=6400)
    found = table(rows, {"scatter": {"harvest": 400_000}})
    name = "one/python-docs/L01/activations-train"
    assert found.parts[name] == layer_stores.n_parts(6400, 256, 400_000, 1) > 3
    assert found.parts["one/python-docs/L01/gradients-eval"] == 1


# --- when a store pays --------------------------------------------------------------------------
def test_pays_from_by_hand():
    # 3 s to compute a token and 1 s to move it: n reads take 4 + n or 3 n, equal at 2
    assert store_layout.pays_from(3e12, 1e9, tflops=1, gb_per_s=1) == 3
    # moving costs next to nothing: the second read is for free
    assert store_layout.pays_from(3e12, 1, tflops=1, gb_per_s=1) == 2
    assert store_layout.pays_from(1e12, 1e9, tflops=1, gb_per_s=1) == math.inf
    assert store_layout.pays_from(1e12, 2e9, tflops=1, gb_per_s=1) == math.inf


sizes = st.floats(1e-3, 1e6)


@given(sizes, sizes, st.floats(0.1, 1e3), st.floats(0.1, 1e2))
def test_it_is_the_first_number_of_reads_that_pays(flops, size, tflops, gb_per_s):
    computed, moved = flops * 1e9 / (tflops * 1e12), size / (gb_per_s * 1e9)
    n = store_layout.pays_from(flops * 1e9, size, tflops=tflops, gb_per_s=gb_per_s)
    if n == math.inf:
        assert computed <= moved
        return
    close = 1 + 1e-9
    assert computed + moved + n * moved <= n * computed * close
    assert (computed + moved + (n - 1) * moved) * close >= (n - 1) * computed


def test_rates_must_be_positive():
    for rates in ({"tflops": 0}, {"gb_per_s": -1}, {"gb_per_s": math.inf}):
        with pytest.raises(StreamgaugeError, match="is no rate"):
            table(rates=RATES | rates)


def test_describe_names_every_store():
    def of(rates):
        return store_layout.describe(
            store_layout.layout(study(SMALL), {"one": SHAPE}, **rates), **rates
        )

    found = of(RATES | {"tflops": 0.001})
    assert all(f"one/python-docs/L01/{name}" in found for name in ("gradients-eval", "probes-eval"))
    assert "at 0.001 TFLOP/s" in found and "at 1 GB/s" in found
    # a small model computes a token sooner than it is read
    assert "never" in of(RATES) and "never" not in found
