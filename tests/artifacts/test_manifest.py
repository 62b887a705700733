"""A manifest notices every change to its artifact, and an identical rebuild is identical."""

import json
import shutil

import pytest

import small_disk
from streamgauge.artifacts import manifest
from streamgauge.base.errors import StreamgaugeError

SPEC = json.dumps({"stage": "s", "config": {}, "wildcards": {}, "code": {}})


@pytest.fixture
def artifact(tmp_path):
    """A store and a table beside their manifest, made from one other artifact."""
    (tmp_path / "in.csv").write_text("x\n1\n")
    manifest.write(tmp_path / "in.json", SPEC, [tmp_path / "in.csv"])
    folder = tmp_path / "deep"
    (folder / "x.zarr/c/0").mkdir(parents=True)
    (folder / "x.zarr/zarr.json").write_text("{}")
    (folder / "x.zarr/c/0/0").write_bytes(bytes(range(256)))
    (folder / "x.zarr/.snakemake_timestamp").touch()
    (folder / "x.csv").write_text("a,b\n1,2\n")
    return write(folder)


def write(folder):
    manifest.write(
        folder / "x.json",
        SPEC,
        [folder / "x.zarr", folder / "x.csv"],
        [folder.parent / "in.json"],
        {"n": 3, "scale": 0.1},
    )
    return folder / "x.json"


def test_a_sound_artifact_has_no_problems(artifact):
    assert manifest.problems(artifact) == []
    record = manifest.read(artifact)
    assert set(record["files"]) == {"x.csv", "x.zarr/zarr.json", "x.zarr/c/0/0"}
    assert list(record["inputs"]) == ["../in.json"]


def test_an_identical_rebuild_is_identical(artifact):
    before = artifact.read_bytes()
    assert write(artifact.parent).read_bytes() == before


def test_a_moved_tree_is_still_sound(artifact, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "tree"
    shutil.copytree(artifact.parents[1], elsewhere)
    assert manifest.problems(elsewhere / "deep/x.json") == []


def flip(path):
    data = bytearray(path.read_bytes())
    data[17] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda d: flip(d / "x.zarr/c/0/0"), "x.zarr/c/0/0 has changed"),
        (lambda d: (d / "x.zarr/c/0/0").write_bytes(b""), "x.zarr/c/0/0 has changed"),
        (lambda d: (d / "x.zarr/c/0/0").unlink(), "x.zarr/c/0/0 is missing"),
        (lambda d: shutil.rmtree(d / "x.zarr"), "x.zarr/zarr.json is missing"),
        (lambda d: (d / "x.zarr/c/0/1").touch(), "x.zarr/c/0/1 does not belong"),
        (lambda d: (d / "x.csv").write_text("a,b\n1,3\n"), "x.csv has changed"),
        (lambda d: (d / "../in.json").unlink(), "its input ../in.json is missing"),
    ],
)
def test_damage_is_named(artifact, damage, said):
    damage(artifact.parent)
    assert any(said in problem for problem in manifest.problems(artifact))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"n": 3', '"n": 4'),
        ('"n": 3', '"n": 3, "n": 3'),
        ('"stage": "s"', '"stage": "t"'),
        ("../in.json", "../on.json"),
        ("}\n", "}\n\n"),
        ('"files": {', '"files":  {'),
        ("x.csv", "y.csv"),
    ],
)
def test_a_manifest_changed_by_hand_is_found(artifact, old, new):
    """Whatever it says after that, it is not what was written."""
    text = artifact.read_text()
    assert old in text
    artifact.write_text(text.replace(old, new, 1))
    with pytest.raises(StreamgaugeError, match="edited by hand or damaged"):
        manifest.read(artifact)


def test_every_bit_of_a_manifest_counts(artifact):
    data = artifact.read_bytes()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        artifact.write_bytes(flipped)
        with pytest.raises(StreamgaugeError):
            manifest.read(artifact)


def test_a_manifest_of_an_earlier_version_is_read(artifact):
    """It has no seal; its text is still what its values are written as."""
    record = {key: value for key, value in manifest.read(artifact).items() if key in manifest.KEYS}
    artifact.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    assert manifest.read(artifact) == record and manifest.problems(artifact) == []
    artifact.write_text(artifact.read_text() + " ")
    with pytest.raises(StreamgaugeError):
        manifest.read(artifact)


def test_an_input_made_anew_is_found(artifact):
    source = artifact.parents[1]
    (source / "in.csv").write_text("x\n2\n")
    manifest.write(source / "in.json", SPEC, [source / "in.csv"])
    assert manifest.problems(artifact) == ["../in.json has been made anew since"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"spec": {}}'])
def test_something_else_is_refused_by_name(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(StreamgaugeError, match=r"x\.json"):
        manifest.read(tmp_path / "x.json")


def test_a_full_disk_leaves_the_old_manifest(tmp_path):
    with small_disk.mounted(tmp_path / "disk", 1) as disk:
        path = disk / "x.json"
        manifest.write(path, SPEC, [], facts={"n": 1})
        before, filler = path.read_bytes(), small_disk.fill(disk)
        with pytest.raises(StreamgaugeError, match=r"x\.json: cannot be written .*No space left"):
            manifest.write(path, SPEC, [], facts={"n": 2})
        assert path.read_bytes() == before and set(disk.iterdir()) == {path, filler}
        filler.unlink()
        assert manifest.write(path, SPEC, [], facts={"n": 2})["facts"] == {"n": 2}


def test_not_a_number_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Out of range float"):
        manifest.write(tmp_path / "x.json", SPEC, [], facts={"r2": float("nan")})


def test_unfinished_work_belongs_to_its_spec_and_to_its_inputs(artifact):
    source = artifact.parents[1]
    before = manifest.identity(SPEC, [source / "in.json"])
    assert manifest.identity(SPEC, [source / "in.json"]) == before
    assert manifest.identity(SPEC.replace('"s"', '"t"'), [source / "in.json"]) != before
    (source / "in.csv").write_text("x\n2\n")
    manifest.write(source / "in.json", SPEC, [source / "in.csv"])
    assert manifest.identity(SPEC, [source / "in.json"]) != before


def test_files_get_the_permissions_the_umask_asks_for(tmp_path):
    private, linked = tmp_path / "private", tmp_path / "linked"
    private.write_text("a")
    private.chmod(0o600)
    own = tmp_path / "own"
    own.write_text("b")
    own.chmod(0o640)
    linked.symlink_to(own)
    manifest.write(tmp_path / "x.json", SPEC, [private, linked])
    fresh = tmp_path / "fresh"
    fresh.touch()
    assert private.stat().st_mode == fresh.stat().st_mode
    assert own.stat().st_mode & 0o777 == 0o640, "the user's own files are left as they are"
