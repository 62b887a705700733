"""A chunk that is corrupted, truncated or gone is found before it is used, whoever reads it."""

import re
import shutil
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import xarray

import every_store
from every_store import N
from lookup import Lookup
from pipeline import ROOT
from streamgauge.artifacts.contents import sample
from streamgauge.base.errors import StreamgaugeError
from streamgauge.crosslingual import states
from streamgauge.passes import harvest
from streamgauge.sae import stream
from streamgauge.stores import basis_store, layer_stores


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return every_store.make(tmp_path_factory.mktemp("made"))


def batches(folder, probes=None, **options):
    """What SAE training reads, an epoch and a seam."""
    store = layer_stores.ActivationStore(folder / "activations-train.zarr")
    probes = probes and layer_stores.ProbeStore(folder / "probes.zarr")
    data = stream.Stream(store, batch_size=4096, pool_tokens=20000, probes=probes, **options)
    return list(data.batches(0, data.tokens_per_epoch // 4096 + 1))


def sequences(folder):
    """What end-to-end training reads."""
    store = layer_stores.ActivationStore(folder / "activations-train.zarr")
    tokens = layer_stores.open_tokens(folder / "tokens-train.zarr")
    for start in range(0, N, 100):
        store.read(start, start + 100)
    return [tokens[i] for i in range(0, tokens.shape[0], 500)]


def evaluation(folder):
    tokens = layer_stores.open_tokens(folder / "tokens-train.zarr")
    return [np.asarray(tokens[slice(a, a + 64)]) for a in range(0, tokens.shape[0], 64)]


def means(folder):
    return layer_stores.ActivationStore(folder / "activations-train.zarr").means()


def sensitivity(folder):
    gradients, probes = layer_stores.GradientStore(folder / "gradients.zarr"), probe_store(folder)
    return gradients.read(0, N), probes.read(0, N)


def probe_store(folder):
    return layer_stores.ProbeStore(folder / "probes.zarr")


def crosslingual(folder):
    found = states.States(folder / "states.zarr")
    return [found.tokens(layer, "two", "source") for layer in range(found.n_layers)]


def inspected(name):
    def look(folder):
        store = layer_stores.Store(folder / name)
        return [list(sample(store, array)) for array in store.names]

    return look


# who reads what: reader, store, array
READERS = [
    (batches, "activations-train", "activations"),
    (lambda folder: batches(folder, exclude_sinks=True), "activations-train", "norm"),
    (lambda folder: batches(folder, probes=True), "probes", "probes"),
    (means, "activations-train", "mean"),
    (means, "activations-train", "sink_threshold"),
    (means, "activations-train", "median_norm"),
    (sequences, "tokens-train", "tokens"),
    (evaluation, "tokens-train", "tokens"),
    (
        lambda folder: layer_stores.read_tokens(folder / "tokens-train.zarr"),
        "tokens-train",
        "document",
    ),
    (sensitivity, "gradients", "gradients"),
    (sensitivity, "probes", "probes"),
    (lambda folder: probe_store(folder).same_position(0, N), "probes", "same_position"),
    (lambda folder: probe_store(folder).same_position(0, N), "probes", "sampled_position"),
    (lambda folder: probe_store(folder).shift(0, N), "probes", "shift"),
    (lambda folder: basis_store.read(folder / "basis.zarr"), "basis", "basis"),
    (crosslingual, "states", "residual"),
    (crosslingual, "states", "n_tokens"),
    (crosslingual, "states", "problem"),
    (inspected("spectra.zarr"), "spectra", "eigenvalues"),
    (inspected("states.zarr"), "states", "role"),
    (inspected("activations-train.zarr"), "activations-train", "sequence"),
]


@pytest.mark.parametrize("store", sorted({store for _, store, _ in READERS}))
def test_xarray_opens_every_store_as_it_lies(made, store):
    ours = layer_stores.Store(made / f"{store}.zarr")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with xarray.open_zarr(made / f"{store}.zarr") as opened:
            assert sorted(opened.variables) == ours.names
            for name in ours.names:
                np.testing.assert_array_equal(opened[name].values, ours.read(name))


def flip(file, rng):
    data = bytearray(file.read_bytes())
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    file.write_bytes(data)


def truncate(file, rng):
    data = file.read_bytes()
    file.write_bytes(data[: rng.integers(len(data))])


def hollow(file, rng):
    """As after a power failure: of the right size, without content."""
    file.write_bytes(bytes(file.stat().st_size))


def remove(file, rng):
    file.unlink()


def last_file(final, array):
    """The last shard of an array, and its number."""
    files = [file for file in (final / array).rglob("*") if file.is_file()]
    data = [file for file in files if file.name != "zarr.json"]
    if len(data) == 1:
        return data[0], 0
    numbered = [(int(file.relative_to(final / array / "c").parts[0]), file) for file in data]
    shard, file = max(numbered)
    return file, shard


@pytest.mark.parametrize("reader, store, array", READERS)
def test_damage_is_found_before_it_is_used(made, reader, store, array):
    final = made / f"{store}.zarr"
    file, shard = last_file(final, array)
    whole, rng = file.read_bytes(), np.random.default_rng(zlib.crc32(array.encode()))
    reader(made)
    for how in (flip, truncate, hollow, remove):
        try:
            how(file, rng)
            with pytest.raises(StreamgaugeError) as caught:
                reader(made)
        finally:
            file.write_bytes(whole)
        text = str(caught.value)
        assert re.match(rf"{final}: shard {shard} of array '{array}' is (missing|damaged)", text)
        assert "\n" not in text and "It has no manifest: make it again" in text


@pytest.mark.parametrize("store, array", [("tokens-train", "tokens"), ("probes", "shift")])
def test_every_bit_of_a_file_is_guarded(made, store, array):
    """Also those of a shard's index, and of the checksums themselves."""
    file, shard = last_file(made / f"{store}.zarr", array)
    opened = layer_stores.Store(made / f"{store}.zarr")
    first = shard * opened.shard_rows(array)
    whole, rng = file.read_bytes(), np.random.default_rng(5)
    ends = [*range(8), *range(len(whole) - 30, len(whole))]
    for at in [*ends, *rng.integers(0, len(whole), 40)]:
        data = bytearray(whole)
        data[at] ^= 1 << rng.integers(8)
        file.write_bytes(data)
        with pytest.raises(StreamgaugeError, match=f"shard {shard} of array '{array}' is damaged"):
            opened.read(array, first)
    file.write_bytes(whole)
    opened.read(array, first)


def test_nothing_reads_an_array_unchecked():
    """A slice of what `Store.array` gives would take a missing shard for zeros."""
    unchecked = re.compile(r"\.array\([^()]*\)\[")
    sources = [*(ROOT / "src").rglob("*.py"), *(ROOT / "workflow").rglob("*.py")]
    assert len(sources) > 100
    assert unchecked.search('store.array("tokens")[:5]')
    found = [path.name for path in sources if unchecked.search(Path(path).read_text())]
    assert found == []


def test_a_job_with_damaged_tokens_ends_with_their_name(made, tmp_path):
    final = tmp_path / "tokens-train.zarr"
    shutil.copytree(made / final.name, final)
    file, shard = last_file(final, "tokens")
    flip(file, np.random.default_rng(0))
    rest = layer_stores.open_tokens(final)[: shard * layer_stores.Store(final).shard_rows("tokens")]
    assert len(rest)  # what is whole may be used
    work = layer_stores.scratch(tmp_path / "a.zarr", "{}")
    table = layer_stores.open_tokens(final)
    with pytest.raises(StreamgaugeError, match=f"{final}: shard {shard} of array 'tokens'"):
        harvest.harvest(Lookup(d_model=1), table, 0, work, batch_size=256, progress=False)
