"""What lies beside its manifest is read as the manifest describes it, or not at all."""

import json
import os
import random
import shlex
import shutil

import numpy as np
import pytest
import zarr

import damages
import every_store
from streamgauge.artifacts import manifest
from streamgauge.base import sealed
from streamgauge.base.errors import StreamgaugeError
from streamgauge.stores.zarr_store import Store

SPEC = json.dumps({"stage": "s", "config": {}, "wildcards": {}, "code": {}})
STORES = ["activations-train", "gradients", "probes", "tokens-train", "basis", "spectra", "states"]


def other_values(values):
    """Of the same shape and type, everywhere else."""
    if values.dtype.kind not in "iuf":
        return np.array([f"{text}"[::-1] + "x" for text in values.ravel()], object)
    return (np.asarray(values) + 1).astype(values.dtype)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Every store with a manifest; in ``other`` the same stores, all values others."""
    folder = every_store.make(tmp_path_factory.mktemp("vouched"))
    for path in folder.glob("*.zarr"):
        shutil.copytree(path, folder / "other" / path.name)
        store = Store(folder / "other" / path.name, writable=True)
        for name in store.names:
            store.write_all(name, other_values(store.read(name)))
        manifest.write(path.with_suffix(".json"), SPEC, [path])
    assert sorted(path.stem for path in folder.glob("*.zarr")) == sorted(STORES)
    return folder


@pytest.fixture(params=["sealed", "of an earlier version"])
def described(made, request):
    """With manifests as they are written, and as earlier versions wrote them."""
    if request.param == "sealed":
        yield made
        return
    kept = {path: path.read_bytes() for path in made.glob("*.json")}
    for path in kept:
        record = {key: x for key, x in manifest.read(path).items() if key in manifest.KEYS}
        path.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    yield made
    for path, data in kept.items():
        path.write_bytes(data)


def files(store, name):
    return [file for file in (store.path / name / "c").rglob("*") if file.is_file()] or [
        store.path / name / "c"
    ]


def refused(folder, name, read):
    """The line that a damaged store ends with; its remedy names the manifest of that store."""
    with pytest.raises(StreamgaugeError) as caught:
        read()
    text = str(caught.value)
    own = folder / f"{name}.json"
    remove = shlex.join(["rm", "-rf" if own.is_dir() else "-f", str(own)])
    assert "\n" not in text and f"{remove}, then run snakemake again" in text, text
    return text


@pytest.mark.parametrize("name", STORES)
def test_every_file_is_the_one_of_its_manifest(described, name):
    """A shard of a store of the same shape is well written: its checksums are good."""
    path, other = described / f"{name}.zarr", Store(described / "other" / f"{name}.zarr")
    for array in other.names:
        before = Store(path).read(array)
        for file in files(Store(path), array):
            sibling = other.path / file.relative_to(path)
            damages.exchange(file, sibling)
            text = refused(described, name, lambda array=array: Store(path).read(array))
            assert f"of array '{array}' is not what its manifest describes" in text
            damages.exchange(file, sibling)
        np.testing.assert_array_equal(Store(path).read(array), before)


@pytest.mark.parametrize("name", STORES)
def test_one_value_written_with_its_checksum_is_found(described, name, tmp_path):
    path = described / f"{name}.zarr"
    changed = tmp_path / path.name
    shutil.copytree(path, changed)
    shutil.copy(path.with_suffix(".json"), tmp_path)
    for array in Store(path).names:
        values = np.array(Store(path).read(array))
        values.flat[-1] = other_values(values.ravel()[-1:])[0]
        Store(changed, writable=True).write_all(array, values)
        text = refused(tmp_path, name, lambda array=array: Store(changed).read(array))
        assert "is not what its manifest describes" in text


@pytest.mark.parametrize("name", STORES)
def test_without_a_manifest_a_store_vouches_for_itself_alone(made, name):
    """What the manifest adds: these same files are read where none is beside them."""
    other = Store(made / "other" / f"{name}.zarr")
    for array in other.names:
        with pytest.raises(AssertionError):
            np.testing.assert_array_equal(
                other.read(array), Store(made / f"{name}.zarr").read(array)
            )


@pytest.mark.parametrize("name", STORES)
def test_the_metadata_of_another_store_is_refused(described, name, tmp_path):
    path = described / f"{name}.zarr"
    shutil.copytree(path, tmp_path / path.name)
    shutil.copy(path.with_suffix(".json"), tmp_path)
    meta = tmp_path / path.name / "zarr.json"
    found = json.loads(meta.read_text())
    found["attributes"]["layer"] = 99
    meta.write_text(json.dumps(found, indent=1, sort_keys=True))
    text = refused(tmp_path, name, lambda: Store(tmp_path / path.name))
    assert "zarr.json is not what its manifest describes" in text


@pytest.mark.parametrize("name", STORES)
def test_a_file_that_the_manifest_does_not_know_is_refused(described, name, tmp_path):
    path = described / f"{name}.zarr"
    shutil.copytree(path, tmp_path / path.name)
    record = manifest.read(path.with_suffix(".json"))
    store = Store(path)
    gone = files(store, store.names[0])[0].relative_to(path.parent).as_posix()
    for key in ("files", "checksums"):
        record.get(key, {}).pop(gone, None)
    text = json.dumps(record, indent=1, sort_keys=True) + "\n"
    (tmp_path / f"{name}.json").write_text(text if "seal" not in record else sealed.text(record))
    refused(tmp_path, name, lambda: Store(tmp_path / path.name).read(store.names[0]))


@pytest.mark.parametrize("name", STORES)
def test_a_link_among_the_files_has_the_remedy_of_the_store(described, name, tmp_path):
    path, rng = described / f"{name}.zarr", random.Random(name)
    for file in (path / "zarr.json", files(Store(path), Store(path).names[0])[0]):
        found = (file, path)
        with damages.done(damages.draw("file", "link", found, [found], rng), rng, tmp_path):
            refused(described, name, lambda: Store(path).read(Store(path).names[0]))


@pytest.mark.parametrize("how", ["flip", "truncate", "zero", "append", "folder"])
def test_a_damaged_manifest_is_refused(described, tmp_path, how):
    path, rng = described / "probes.json", random.Random(how)
    found = (path, path)
    with damages.done(damages.draw("manifest", how, found, [found], rng), rng, tmp_path):
        refused(described, "probes", lambda: Store(path.with_suffix(".zarr")))
    Store(path.with_suffix(".zarr"))


def test_a_foreign_note_beside_a_foreign_store_is_nothing_to_us(tmp_path):
    group = zarr.create_group(tmp_path / "theirs.zarr")
    group.create_array("x", data=np.arange(6.0), compressors=None)
    zarr.consolidate_metadata(group.store)
    for note in ('{"n": 3}', "[1, 2]", "3", '{"n": 1,\n"n": 2}', '{"files": {"a": 1}}'):
        (tmp_path / "theirs.json").write_text(note)
        np.testing.assert_array_equal(Store(tmp_path / "theirs.zarr").read("x"), np.arange(6.0))
        # nor when their store is damaged, or not one that is read here
        file = tmp_path / "theirs.zarr/zarr.json"
        kept = file.read_bytes()
        for spoilt in (b"{}", kept.replace(b"regular", b"peculiar")):
            file.write_bytes(spoilt)
            with pytest.raises(StreamgaugeError) as caught:
                Store(tmp_path / "theirs.zarr")
            assert "rm -" not in str(caught.value)
        file.write_bytes(kept)
    os.remove(tmp_path / "theirs.json")
    np.testing.assert_array_equal(Store(tmp_path / "theirs.zarr").read("x"), np.arange(6.0))
