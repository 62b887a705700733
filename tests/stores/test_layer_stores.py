"""Stores open with plain xarray, resume by shard, and say what is wrong with them."""

import errno
import re
import shutil
import warnings

import numpy as np
import pytest

from pipeline import tree_digest
from store_data import D, N, T, declare, fill, values
from streamgauge.base.errors import StreamgaugeError
from streamgauge.numerics.arrays import decode
from streamgauge.stores import layer_stores


@pytest.fixture
def built(tmp_path):
    final = tmp_path / "activations-train.zarr"
    work = layer_stores.scratch(final, "{}")
    declare(work)
    fill(work, values())
    layer_stores.commit(work, final)
    return final


def test_layout_is_whole_sequences_in_whole_chunks():
    assert layer_stores.rows_per_chunk_and_shard(128) == (16, 128)
    assert layer_stores.rows_per_chunk_and_shard(1000) == (2, 16)
    assert layer_stores.rows_per_chunk_and_shard(5000) == (1, 3)
    assert layer_stores.rows_per_chunk_and_shard(40000) == (1, 1)
    # several vectors a token: as many bytes in a file, the same chunks
    assert layer_stores.rows_per_chunk_and_shard(128, 2) == (16, 64)
    assert layer_stores.rows_per_chunk_and_shard(128, 8) == (16, 16)
    assert layer_stores.rows_per_chunk_and_shard(128, 100) == (16, 16)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_activations_come_back_as_float32(tmp_path, dtype):
    final = tmp_path / "a.zarr"
    work = layer_stores.scratch(final, "{}")
    declare(work, dtype)
    fill(work, values(dtype))
    layer_stores.commit(work, final)
    store = layer_stores.ActivationStore(final)
    assert (store.n_sequences, store.n_positions, store.d_model) == (N, T, D)
    assert (store.chunk_sequences, store.sink_threshold, store.dtype) == (16, 10.0, dtype)
    got = store.read(120, 140)  # across a shard boundary
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, decode(values(dtype))[120:140])
    assert store.read(290, 400).shape == (10, T, D)
    np.testing.assert_array_equal(store.mean("no_sink"), np.ones(D))
    keep = store.keep(0, 10)
    assert not keep[:, 0].any() and not keep[5, 7] and keep.sum() == 10 * (T - 1) - 1


def test_bfloat16_decodes_as_torch_does():
    torch = pytest.importorskip("torch")
    x = torch.tensor([1.0, -3.1415, 7e37, 1e-40, 0.0]).to(torch.bfloat16)
    bits = x.view(torch.uint16).numpy()
    np.testing.assert_array_equal(decode(bits), x.float().numpy())


LAYER = {"n_sequences": N, "n_positions": T, "d_model": D, "layer": 3, "hook_name": "h"}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_gradients_come_back_as_float32(tmp_path, dtype):
    work = layer_stores.scratch(tmp_path / "g.zarr", "{}")
    layer_stores.create_gradients(work, dtype=dtype, **LAYER)
    layer_stores.Store(work, writable=True).write("gradients", 0, values(dtype))
    layer_stores.commit(work, tmp_path / "g.zarr")
    store = layer_stores.GradientStore(tmp_path / "g.zarr")
    assert (store.n_sequences, store.n_positions, store.d_model) == (N, T, D)
    assert (store.chunk_sequences, store.layer, store.dtype) == (16, 3, dtype)
    got = store.read(120, 140)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, decode(values(dtype))[120:140])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_probes_come_back_as_stored_and_as_float32(tmp_path, dtype):
    import torch

    work = layer_stores.scratch(tmp_path / "p.zarr", "{}")
    given = {"dtype": dtype, "n_probes": 2, "same_positions": 4, "diagonal": 1, **LAYER}
    layer_stores.create_probes(work, **given)
    x = values(dtype).reshape(N, T, D // 2, 2).repeat(2, axis=2)  # (N, T, D, 2)
    positions = np.arange(4 * N, dtype=np.int32).reshape(N, 4)
    store = layer_stores.Store(work, writable=True)
    store.write("probes", 0, x)
    store.write("same_position", 0, x[:, :4])
    store.write("sampled_position", 0, positions)
    store.write("shift", 0, x[..., :1])
    layer_stores.commit(work, tmp_path / "p.zarr")
    store = layer_stores.ProbeStore(tmp_path / "p.zarr")
    assert (store.d_model, store.n_probes, store.chunk_sequences) == (D, 2, 16)
    np.testing.assert_array_equal(store.read(30, 70), decode(x)[30:70])
    tensor = store.tensor(30, 70)
    assert tensor.dtype == getattr(torch, dtype)
    np.testing.assert_array_equal(tensor.float(), store.read(30, 70))
    sampled, same = store.same_position(30, 70)
    np.testing.assert_array_equal(sampled, positions[30:70])
    np.testing.assert_array_equal(same, decode(x)[30:70, :4])
    np.testing.assert_array_equal(store.shift(30, 70), decode(x)[30:70, ..., :1])
    with pytest.raises(StreamgaugeError, match="no array 'gradients'"):
        layer_stores.GradientStore(tmp_path / "p.zarr")


def test_plain_xarray_opens_without_a_warning(built):
    import xarray

    (built / ".snakemake_timestamp").touch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ds = xarray.open_zarr(built)
        other = xarray.open_zarr(built, consolidated=True)
    assert dict(ds.sizes) == {"sequence": N, "position": T, "d_model": D, "token_set": 2}
    assert ds.activations.dims == ("sequence", "position", "d_model")
    assert ds.activations.attrs["units"] == "1" and ds.position.attrs["units"] == "token"
    assert ds.attrs["hook_name"] == "blocks.3.hook_resid_post"
    assert ds.activations.dtype == np.float16
    np.testing.assert_array_equal(ds.activations.isel(sequence=150), values()[150])
    np.testing.assert_array_equal(ds["mean"].sel(token_set="no_sink"), np.ones(D))
    assert float(ds.sink_threshold) == 10.0
    assert other.identical(ds)


def test_same_content_same_bytes_in_any_order(tmp_path):
    digests = set()
    for k, order in enumerate([(0, 128, 256), (256, 0, 128)]):
        work = layer_stores.scratch(tmp_path / f"{k}.zarr", "{}")
        for i in order:
            declare(work)  # repeated by every writer
            fill(work, values(), skip={0, 1, 2})
            layer_stores.Store(work, writable=True).write("activations", i, values()[i : i + 128])
        layer_stores.commit(work, tmp_path / f"{k}.zarr")
        digests.add(tree_digest(tmp_path / f"{k}.zarr"))
    assert len(digests) == 1


def test_zeros_are_written_too(tmp_path):
    work = layer_stores.scratch(tmp_path / "z.zarr", "{}")
    declare(work)
    fill(work, np.zeros((N, T, D), np.float16))
    assert layer_stores.Store(work).missing("activations") == []


def test_scratch_is_kept_for_the_same_spec_only(tmp_path):
    final = tmp_path / "x.zarr"
    work = layer_stores.scratch(final, '{"a":1}')
    assert re.fullmatch(r"\.x\.zarr\.[0-9a-f]{8}\.partial", work.name)
    (work / "shard").write_text("work")
    assert (layer_stores.scratch(final, '{"a":1}') / "shard").exists()
    neighbour = layer_stores.scratch(tmp_path / "x.zarr.y", '{"a":1}')
    other = layer_stores.scratch(final, '{"a":2}')
    assert not (other / "shard").exists()
    # what was begun for another spec is nobody's any more; the neighbour's is
    assert sorted(tmp_path.iterdir()) == sorted([neighbour, other])


def test_processes_that_begin_together_leave_each_other_be(tmp_path):
    final = tmp_path / "x.zarr"
    name = layer_stores.scratch(final, "{}").name
    shutil.rmtree(tmp_path / name)
    begun = tmp_path / f"{name}.{'0' * 32}"  # another's, about to be renamed
    begun.mkdir()
    assert layer_stores.scratch(final, "{}").is_dir() and begun.exists()
    with layer_stores.working(final, "{}"):
        pass
    assert not list(tmp_path.iterdir())


def test_another_layout_under_the_same_spec_is_refused(tmp_path):
    work = layer_stores.scratch(tmp_path / "x.zarr", "{}")
    declare(work, "float16")
    with pytest.raises(StreamgaugeError, match=r"different layout.*Delete that directory"):
        declare(work, "bfloat16")


def test_commit_names_the_missing_shard_and_sweeps_up(tmp_path):
    final = tmp_path / "x.zarr"
    work = layer_stores.scratch(final, "{}")
    declare(work)
    fill(work, values(), skip={1})
    assert layer_stores.Store(work).missing("activations") == [1]
    with pytest.raises(StreamgaugeError, match=r"'activations' lacks 1 of 3 shards.*shard 1"):
        layer_stores.commit(work, final)
    assert not final.exists()
    layer_stores.Store(work, writable=True).write("activations", 128, values()[128:256])
    stray = work / "activations/c/1/0/0.0123.partial"
    stray.write_bytes(b"half")
    final.mkdir()
    (final / "old").touch()
    layer_stores.commit(work, final)
    assert not work.exists()
    left = {p.name for p in final.rglob("*")}
    assert not left & {"old", "spec.json", stray.name}


def test_partial_shards_cannot_be_written(tmp_path):
    work = layer_stores.scratch(tmp_path / "x.zarr", "{}")
    declare(work)
    with pytest.raises(ValueError, match="whole shards"):
        layer_stores.Store(work, writable=True).write("activations", 0, values()[:16])


@pytest.mark.parametrize("damage", ["missing", "truncated", "index"])
def test_a_damaged_shard_is_named(built, damage):
    shard = built / "activations/c/1/0/0"
    data = shard.read_bytes()
    if damage == "missing":
        shard.unlink()
    elif damage == "truncated":
        shard.write_bytes(data[: len(data) // 2])
    else:
        shard.write_bytes(data[:-4] + b"\0\0\0\0")
    store = layer_stores.ActivationStore(built)
    store.read(0, 128)
    with pytest.raises(StreamgaugeError, match=r"shard 1 of array 'activations'") as caught:
        store.read(100, 140) if damage != "index" else store.read(130, 140)
    assert str(built) in str(caught.value) and "make it again" in str(caught.value)


def test_no_store_and_no_metadata(built, tmp_path):
    with pytest.raises(StreamgaugeError, match="does not exist"):
        layer_stores.ActivationStore(tmp_path / "nowhere.zarr")
    (built / "zarr.json").write_text("{")
    with pytest.raises(StreamgaugeError, match="not a readable store"):
        layer_stores.ActivationStore(built)
    empty = tmp_path / "tokens.zarr"
    layer_stores.store_tokens(empty, "{}", np.ones((2, 4)), np.ones((2, 4)))
    with pytest.raises(StreamgaugeError, match="no array 'activations'"):
        layer_stores.ActivationStore(empty)


def test_tokens_round_trip(tmp_path):
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 50000, (5000, 16), dtype=np.int32)
    document = np.sort(rng.integers(0, 99, (5000, 16), dtype=np.int32), axis=None).reshape(5000, 16)
    layer_stores.store_tokens(tmp_path / "tokens-train.zarr", "{}", tokens, document)
    got = layer_stores.read_tokens(tmp_path / "tokens-train.zarr")
    np.testing.assert_array_equal(got[0], tokens)
    np.testing.assert_array_equal(got[1], document)
    assert got[0].dtype == got[1].dtype == np.int32


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT])
def test_refusals_to_write_are_one_readable_error(code):
    with pytest.raises(StreamgaugeError, match=r"results/x: cannot write: .*run again; what was"):
        with layer_stores.writing("results/x"):
            raise OSError(code, "refused")
