"""Tables: what is written comes back, no spreadsheet runs it, and no file takes what it likes."""

import csv
import os
import resource
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from streamgauge.base import tables
from streamgauge.base.errors import StreamgaugeError

AWKWARD = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0")
    | st.sampled_from("=+-@\t\r\n'\",;|$ é\ufeff\u2028"),
    min_size=1,
    max_size=12,
) | st.sampled_from(["=cmd|' /C calc'!A0", "NA", "null", "'=1", "''-", "-", "None", "nan", "\r\n"])
NUMBERS = st.floats() | st.integers(-(2**60), 2**60)


def refused(call, *arguments):
    with pytest.raises(StreamgaugeError) as caught:
        call(*arguments)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 400, text
    return text


# --- CSV ----------------------------------------------------------------------------------------
@given(st.lists(st.tuples(AWKWARD, AWKWARD, NUMBERS), min_size=1, max_size=6), AWKWARD)
def test_every_text_comes_back_and_none_is_a_formula(tmp_path_factory, rows, header):
    path = tmp_path_factory.mktemp("t") / "a.csv"
    named = {f"{header}1": 0, f"{header}2": 1, "n": 2}
    frame = pd.DataFrame({name: [row[i] for row in rows] for name, i in named.items()})
    # a column in which every text is a number is a column of numbers to any reader of CSV
    frame.loc[len(frame)] = ["text", "@text", 1.0]
    tables.write_csv(frame, path)
    again = tables.read_csv(path)
    assert list(again.columns) == list(frame.columns)
    for name in frame.columns[:2]:
        assert again[name].tolist() == frame[name].tolist()
    (whole,) = tables.pieces(path)
    assert whole.equals(again)
    with path.open(newline="", encoding="utf-8") as file:
        first, *others = csv.reader(file)
    cells = [*first, *(cell for row in others for cell in row[:2])]
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in cells)


@given(st.lists(st.tuples(NUMBERS, st.integers(), st.booleans(), st.text("ab é", max_size=3))))
def test_tables_of_plain_texts_and_numbers_are_pandas_own_bytes(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("t") / "a.csv"
    frame = pd.DataFrame(rows, columns=["x", "n", "flag", "word"])
    frame["mixed"] = [None, 1, "a", 2.5][: len(frame)] + [-1] * (len(frame) - 4)
    tables.write_csv(frame, path)
    assert path.read_bytes() == frame.to_csv(index=False).encode()


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
def test_a_text_that_no_table_holds_leaves_the_old_file(tmp_path, text):
    path = tmp_path / "a.csv"
    path.write_text("old")
    frame = pd.DataFrame({"a": pd.Series([text], dtype=object)})
    assert "that no table can hold" in refused(tables.write_csv, frame, path)
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"a,b\n1,2\n3,\xff\n", "can't decode"),
        (b"a,b\n1,2\n3\n", "line 3 has 1 cells, the header 2"),
        (b"a,b\n1,2\n3,4,5\n", "line 3 has 3 cells"),
        (b"a,b\n1,2,3\n4,5,6\n", "line 2 has 3 cells"),
        (b"a,b\n1,2\x00\n", "a NUL"),
        (b'a,b\n1,"2\n', "unexpected end"),
        (b"", "No columns"),
        (b"," * 20_000 + b"\n", "more than 10,000 columns"),
        (b"x" * (1 << 21), "field larger than"),
        (b'"\n",' + b"," * (1 << 21), "header is longer"),
    ],
)
def test_a_damaged_csv_file_is_one_line(tmp_path, data, says):
    path = tmp_path / "a.csv"
    path.write_bytes(data)
    said = refused(tables.read_csv, path)
    assert said.startswith(f"{path}: ") and says in said


def test_every_cut_of_a_csv_file_is_refused_or_a_shorter_table(tmp_path):
    """A cut at the end of a row is whole to this reader; digests of manifests tell."""
    frame = pd.DataFrame({"a": ["x", "=y, z"], "b": [1.25, -3.5]})
    path = tmp_path / "a.csv"
    tables.write_csv(frame, path)
    data, ends = path.read_bytes(), []
    for i in range(len(data)):
        path.write_bytes(data[:i])
        try:
            ends.append(len(tables.read_csv(path)))
        except StreamgaugeError:
            ends.append(None)
    assert ends.count(None) > 8 and set(ends) == {None, 0, 1, 2}


def test_a_csv_file_without_end_is_not_read(tmp_path):
    path = tmp_path / "a.csv"
    with path.open("wb") as file:
        file.write(b"a,b\n")
        file.truncate(tables.CSV_BYTES + 1)
    assert "more than" in refused(tables.read_csv, path)
    path.unlink()
    os.mkfifo(path)
    for read in (tables.read_csv, tables.read_parquet, lambda p: list(tables.pieces(p))):
        assert "no regular file" in refused(read, path)


# --- Parquet ------------------------------------------------------------------------------------
def noisy(n=3000):
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {"x": rng.random(n), "n": rng.integers(0, 9, n), "codec": ["sae", "-1", None] * (n // 3)}
    )


def test_parquet_comes_back_with_its_types(tmp_path):
    frame = noisy()
    frame["list"] = [np.arange(i % 4, dtype=float) for i in range(len(frame))]
    path = tmp_path / "a.parquet"
    tables.write_parquet(frame, path)
    again = tables.read_parquet(path)
    pd.testing.assert_frame_equal(again, pd.read_parquet(path))
    assert again.dtypes.equals(pd.read_parquet(path).dtypes)
    pd.testing.assert_frame_equal(pd.concat(tables.pieces(path)), again)
    assert list(tables.values(path, "codec")) == ["sae", "-1", None] * 1000
    assert tables.names(path) == list(frame.columns)


def test_no_flipped_bit_of_a_page_is_read(tmp_path):
    """Every bit of the pages; of the footer, what is read is what was written or an error."""
    frame, path = noisy(), tmp_path / "a.parquet"
    tables.write_parquet(frame, path)
    data = path.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    places = np.random.default_rng(1).integers(4, len(data), 300)
    ends = []
    for at in places:
        spoilt = bytearray(data)
        spoilt[at] ^= 1 << int(at % 8)
        path.write_bytes(spoilt)
        for read in (tables.read_parquet, lambda p: pd.concat(tables.pieces(p))):
            try:
                found = read(path)
            except StreamgaugeError as error:
                assert "\n" not in str(error) and str(path) in str(error)
                ends.append("refused")
            else:
                ends.append("read")
                # a footer has no checksum: digests of manifests tell
                assert at >= footer or found.equals(frame), at
    assert ends.count("refused") > 500


def ones(path):
    parquet.write_table(pa.table({"a": pa.array(np.ones(1 << 27, np.int64))}), path)


def one_text_often(path):
    often = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1000, np.int32)), ["x" * 1_000_000])
    parquet.write_table(pa.table({"a": often.cast(pa.string())}), path, compression="zstd")


def one_list(path):
    table = pa.table({"a": pa.array([["x" * 1_000_000] * 1000])})
    parquet.write_table(table, path, compression="zstd")


def a_claim(path):
    """A footer that says it is longer than the file, and one of its own longer than any."""
    path.write_bytes(b"PAR1" + (2**31 - 1).to_bytes(4, "little") + b"PAR1")


@pytest.mark.parametrize("bomb", [ones, one_text_often, one_list, a_claim])
def test_a_small_file_does_not_unpack_to_a_gigabyte(tmp_path, bomb):
    """In a process whose memory tells: not even for a moment."""
    path = tmp_path / "a.parquet"
    bomb(path)
    code = (
        "import sys; from streamgauge.base import tables; from streamgauge.base.errors import *\n"
        "read = {'whole': tables.read_parquet, 'pieces': lambda p: list(tables.pieces(p))}\n"
        "import resource; peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "for name, call in read.items():\n"
        "    try: call(sys.argv[1]); print('READ')\n"
        "    except StreamgaugeError as error: print(error)\n"
        "print(peak() - before)\n"
    )
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    *said, kib = done.stdout.splitlines()
    assert len(said) == 2 and all("a.parquet: not a readable table (" in line for line in said)
    assert int(kib) < 100_000 and time.monotonic() - start < 20


def test_rows_of_a_corpus_are_written_out_one_by_one(tmp_path):
    """One long text that stands in many rows is no bomb where rows are read in turn."""
    path = tmp_path / "a.parquet"
    one_text_often(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sum(len(text) for text in tables.values(path, "a")) == 10**9
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_a_table_of_ours_of_any_size_is_read(tmp_path):
    """The ceilings grow with the file: a million rows of a wide SAE's latents."""
    n = 1 << 20
    rng = np.random.default_rng(0)
    table = {
        "sequence": np.arange(n) // 4096,
        "codec": np.where(np.arange(n) % 8192 < 4096, "sae", "untrained"),
    }
    table |= {"latent": rng.integers(0, 65536, n), "n_all": rng.integers(1, 9, n)}
    path = tmp_path / "latents.parquet"
    tables.write_parquet(pd.DataFrame(table), path)
    assert len(tables.read_parquet(path)) == n
    footer = parquet.read_metadata(path)
    assert 20 * footer.num_rows * footer.num_columns < tables.PER_BYTE * path.stat().st_size
