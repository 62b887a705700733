"""JSON and YAML of users: no key twice, no depth or length without end, no pipe."""

import json
import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamgauge.base import json_file, yaml_file
from streamgauge.base.errors import StreamgaugeError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_json_is_what_json_says(value):
    assert json_file.loads(json.dumps(value)) == value


@given(st.dictionaries(st.text(), VALUES, min_size=1), st.data(), st.integers(0, 3))
def test_a_key_given_twice_is_refused_at_any_depth(pairs, data, depth):
    key = data.draw(st.sampled_from(sorted(pairs)))
    text = json.dumps(pairs)[:-1] + f", {json.dumps(key)}: 1}}"
    text = '{"a": [' * depth + text + "]}" * depth
    with pytest.raises(ValueError, match="is given twice"):
        json_file.loads(text)


@pytest.mark.parametrize("n", [json_file.DEEPEST, 990, 100_000])
@pytest.mark.parametrize("ends", [("[", "]"), ('{"a":', "}")])
def test_depth_without_end(n, ends):
    with pytest.raises(ValueError, match="nested without end"):
        json_file.loads(ends[0] * n + "1" + ends[1] * n)
    json_file.loads(ends[0] * (json_file.DEEPEST - 1) + "1" + ends[1] * (json_file.DEEPEST - 1))


def test_a_safetensors_header_with_a_tensor_twice(tmp_path):
    entry = '"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    path = tmp_path / "a.safetensors"
    for text, says in ((f"{{{entry}, {entry}}}", "'?w'? is given twice"), ("[]", "no mapping")):
        path.write_bytes(struct.pack("<Q", len(text)) + text.encode() + bytes(4))
        with pytest.raises(ValueError, match=says):
            json_file.header(path)
    text = f"{{{entry}}}"
    path.write_bytes(struct.pack("<Q", len(text)) + text.encode() + bytes(4))
    found, at = json_file.header(path)
    assert list(found) == ["w"] and at == 8 + len(text)
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(ValueError, match="a header of"):
        json_file.header(path)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (os.mkfifo, "no regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "no regular file"),
        (lambda path: path.write_text("# x\n" * 12_000_000), "which no configuration has"),
        (lambda path: path.mkdir(), "no regular file"),
        (lambda path: path.write_bytes(b"\xff"), "not UTF-8"),
        (lambda path: None, "No such file"),
    ],
    ids=["pipe", "device", "48 MB of comments", "folder", "bytes", "nothing"],
)
def test_a_configuration_without_end_is_not_read(tmp_path, make, says):
    path = tmp_path / "x.yaml"
    make(path)
    with pytest.raises(StreamgaugeError, match=says) as caught:
        yaml_file.read(path)
    assert str(caught.value).startswith(f"{path}: cannot be read") and "\n" not in str(caught.value)
