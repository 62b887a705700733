"""Stores from strangers: nothing outside them is read, nothing in them is run or unpacked."""

import json
import os
import pathlib
import pickle
import shutil

import numpy as np
import pytest
import zarr

import store_data
from streamgauge.artifacts import contents, look
from streamgauge.base.errors import StreamgaugeError
from streamgauge.stores import layer_stores, zarr_trust


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store as the pipeline makes it; to be copied."""
    final = tmp_path_factory.mktemp("store") / "activations-train.zarr"
    work = layer_stores.scratch(final, "{}")
    store_data.declare(work)
    store_data.fill(work, store_data.values())
    layer_stores.commit(work, final)
    return final


@pytest.fixture
def store(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "activations-train.zarr")


def refused(path):
    """The message with which every way to open a store refuses this one."""
    said = set()
    for opened in (
        layer_stores.Store,
        layer_stores.ActivationStore,
        lambda p: layer_stores.Store(p, writable=True),
        lambda p: list(contents.store(p)),
        lambda p: look.picture(p),
    ):
        with pytest.raises(StreamgaugeError) as caught:
            opened(path)
        said.add(str(caught.value))
    assert len(said) == 1
    (text,) = said
    assert "\n" not in text and len(text) < 500
    return text


def edit(store, change):
    """Change the metadata that is read: that of the group, consolidated."""
    path = store / "zarr.json"
    root = json.loads(path.read_text())
    change(root, root["consolidated_metadata"]["metadata"])
    path.write_text(json.dumps(root))


def test_every_store_of_the_pipeline_passes(store, tmp_path):
    zarr_trust.check(store)
    store_data.declare(tmp_path / "begun.zarr", "bfloat16")
    zarr_trust.check(tmp_path / "begun.zarr")
    shape = {"n_sequences": 3, "n_positions": 4, "d_model": 2, "dtype": "float32", "layer": 1}
    layer_stores.create_gradients(tmp_path / "g.zarr", hook_name="h", **shape)
    layer_stores.create_probes(
        tmp_path / "p.zarr", hook_name="h", n_probes=2, same_positions=1, diagonal=1, **shape
    )
    ids = np.arange(12).reshape(3, 4)
    layer_stores.store_tokens(tmp_path / "t.zarr", "{}", ids, ids)
    for name in "gpt":
        zarr_trust.check(tmp_path / f"{name}.zarr")


def test_a_store_reached_through_a_link_is_one(store, tmp_path):
    (tmp_path / "elsewhere.zarr").symlink_to(store)
    assert layer_stores.ActivationStore(tmp_path / "elsewhere.zarr").read(0, 2).shape[0] == 2


# --- what it asks for ---------------------------------------------------------------------------
def _set(name, *path, value):
    def change(_, members):
        entry = members[name]
        for key in path[:-1]:
            entry = entry[key]
        entry[path[-1]] = value

    return change


def _member(name):
    return lambda _, members: members.update({name: members["activations"]})


GRID = ("chunk_grid", "configuration", "chunk_shape")
INNER = ("codecs", 0, "configuration")
PLAIN = {"name": "bytes", "configuration": {"endian": "little"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_member("../secret.zarr/activations"), "a member called '../secret.zarr/activations'"),
        (_member("/elsewhere/secret.zarr/activations"), "a member called '/elsewhere/"),
        (_member(".."), "a member called '..'"),
        (_member("a/b"), "a member called 'a/b'"),
        (_member(""), "a member called ''"),
        (_member("\x1b[2J"), r"a member called '\x1b[2J'"),
        (lambda _, m: m.update(group={"zarr_format": 3, "node_type": "group"}), "is no array"),
        (lambda _, m: m.update(old={**m["mean"], "zarr_format": 2}), "is no array"),
        (lambda _, m: m.update(odd=5), "is no array"),
        (_set("mean", "codecs", value=[PLAIN, {"name": "zstd"}]), "stored by bytes, zstd"),
        (_set("mean", "codecs", value=[PLAIN, {"name": "numcodecs.pickle"}]), "numcodecs.pickle"),
        (_set("mean", "codecs", value="bytes"), "no list of codecs"),
        (_set("mean", "codecs", value=[]), "no codec"),
        (_set("activations", *INNER, "codecs", value=[PLAIN, {"name": "gzip"}]), "bytes, gzip"),
        (_set("activations", *INNER, "index_codecs", value=[{"name": "x"}]), "stored by x"),
        (_set("token_set", "codecs", value=[{"name": "vlen-bytes"}]), "codecs that"),
        (_set("mean", "data_type", value="object"), "of type 'object'"),
        (_set("mean", "data_type", value={"name": "structured"}), "of type {"),
        (_set("mean", "storage_transformers", value=[{"name": "x"}]), "spreads its files"),
        (_set("mean", "chunk_grid", "name", value="rectilinear"), "is not regular"),
        (_set("mean", "chunk_key_encoding", "name", value="v2"), "is not default"),
        (_set("mean", "chunk_key_encoding", "configuration", "separator", value="."), "spreads"),
        (_set("mean", "shape", value=[2**62, 8]), "claims"),
        (_set("mean", "shape", value=[-1, 8]), "claims"),
        (_set("mean", "shape", value=[True, 8]), "claims"),
        (_set("mean", "shape", value=[1] * 40), "claims"),
        (_set("mean", "shape", value=8), "claims"),
        (_set("mean", *GRID, value=[0, 8]), "claims"),
        (_set("mean", *GRID, value=[2]), "do not fit"),
        (_set("mean", *GRID, value=[2**35, 8]), "claims"),
        (_set("token_set", "shape", value=[2**40]), "texts"),
        (_set("activations", *INNER, "chunk_shape", value=[1, 1, 0]), "claims"),
        (
            _set("activations", *GRID, value=[16 << 21, 128, 8]),  # two million chunks in a shard
            "do not fit",
        ),
    ],
)
def test_metadata_that_asks_for_more_than_plain_arrays(store, change, message):
    edit(store, change)
    said = refused(store)
    assert "not trusted" in said and message in said


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 900 + "1" + "}" * 900, " " * (zarr_trust.LARGEST_METADATA + 1)],
    ids=["deep list", "deep mapping", "large"],
)
def test_metadata_without_end(store, text):
    (store / "zarr.json").write_text(text)
    assert "not trusted" in refused(store)


@pytest.mark.parametrize("text", ["{", "[]", "5", '"text"', "{}", '{"zarr_format": 3}', "\xff"])
def test_metadata_that_is_none(store, text):
    (store / "zarr.json").write_text(text, encoding="latin-1")
    assert "not a readable store" in refused(store)


@pytest.mark.parametrize("change", [{"layer": "../x"}, {"layer": None}, {"dtype": ...}])
def test_a_store_that_does_not_say_what_it_is_of(store, change):
    def _attributes(root, _):
        root["attributes"] |= {k: v for k, v in change.items() if v is not ...}
        for key in [k for k, v in change.items() if v is ...]:
            del root["attributes"][key]

    edit(store, _attributes)
    with pytest.raises(StreamgaugeError, match="is no store of activations"):
        layer_stores.ActivationStore(store)


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.PosixPath(self.mark),)


def test_a_store_of_format_2_with_a_pickle(tmp_path, monkeypatch):
    import numcodecs.pickles

    # older numcodecs opened every pickle; this one asks to be told
    monkeypatch.setattr(numcodecs.pickles, "ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)
    store, mark = tmp_path / "activations-train.zarr", tmp_path / "exploded"
    (store / "activations").mkdir(parents=True)
    array = {"zarr_format": 2, "shape": [1], "chunks": [1], "dtype": "|O", "order": "C"}
    array |= {"fill_value": "", "compressor": {"id": "pickle"}, "filters": [{"id": "vlen-utf8"}]}
    files = {".zgroup": {"zarr_format": 2}, "activations/.zarray": array}
    for name, content in files.items():
        (store / name).write_text(json.dumps(content))
    consolidated = {"zarr_consolidated_format": 1, "metadata": files}
    (store / ".zmetadata").write_text(json.dumps(consolidated))
    (store / "activations/0").write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(Exception):  # noqa: B017 - whatever zarr makes of what the bomb returns
        zarr.open_group(store, mode="r")["activations"][:]
    assert mark.exists(), "the bomb works"
    mark.unlink()
    assert "format 2" in refused(store)
    assert not mark.exists()


# --- links and devices --------------------------------------------------------------------------
@pytest.fixture
def secret(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "secret.zarr")


def link(path, to):
    """Put a link in the place of a file or folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    path.symlink_to(to)


@pytest.mark.parametrize("name", ["activations", "activations/c", "zarr.json"])
def test_a_link_in_place_of_metadata_or_of_an_array(store, secret, name):
    link(store / name, secret / name)
    assert "link" in refused(store)


@pytest.mark.parametrize("name", ["activations/c/1", "activations/c/1/0", "activations/c/1/0/0"])
def test_a_link_in_place_of_a_shard(store, secret, name):
    link(store / name, secret / name)
    opened = layer_stores.ActivationStore(store)
    assert opened.read(0, 128).shape[0] == 128
    with pytest.raises(StreamgaugeError, match=r"shard 1 of array 'activations' is no file of"):
        opened.read(120, 140)
    assert layer_stores.Store(store).missing("activations") == [1]


def test_a_pipe_in_place_of_a_file(store):
    for name in ("token_set/c/0", "mean/c/0/0"):
        (store / name).unlink()
        os.mkfifo(store / name)  # read, it would never end
        with pytest.raises(StreamgaugeError, match="no file of this store"):
            layer_stores.Store(store).read(name.split("/")[0])
    (store / "zarr.json").unlink()
    os.mkfifo(store / "zarr.json")
    assert "not trusted" in refused(store)


def test_a_hole_in_place_of_a_shard_is_no_data(store):
    """A file that is all hole costs a stranger nothing, whatever size it claims."""
    file = store / "activations/c/0/0/0"
    size = file.stat().st_size
    file.unlink()
    with file.open("wb") as sparse:
        sparse.truncate(size)
    with pytest.raises(StreamgaugeError, match="shard 0 of array 'activations' is damaged"):
        layer_stores.ActivationStore(store).read(0, 16)
