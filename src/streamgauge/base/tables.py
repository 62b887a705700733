"""Tables on disk, one way in and one way out: CSV that is safe to open, Parquet with checksums.

In CSV a text that a spreadsheet would run has an apostrophe in front, which `read_csv` takes off
again; numbers stay as they are. Files are whole or not there. What is read may come from anybody:
its size, its shape and what it unpacks to are looked at before memory is taken for them.
"""

import contextlib
import csv
import io
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from pyarrow import compute, parquet

from streamgauge.base import whole_file
from streamgauge.base.errors import StreamgaugeError, first_line, out_of_memory
from streamgauge.base.wording import bytes_in_words, shown

CSV_BYTES = 1 << 28  # of a CSV file that is read as a whole
HEADER_BYTES, COLUMNS = 1 << 20, 10_000
FOOTER_BYTES = 1 << 24  # of a Parquet file
# what a Parquet file may unpack to: so many cells, or bytes of text, for each byte of the file;
# always the first of these numbers, never more than the second
PER_BYTE = 64
CELLS, TEXT_BYTES = (1 << 24, 1 << 30), (1 << 27, 1 << 32)
PIECE = 50_000  # rows

# begins a formula in a spreadsheet (OWASP, CSV injection); with the apostrophes of one escaped
_RUN = re.compile(r"'*[=+\-@\t\r]")


# --- out ----------------------------------------------------------------------------------------
def write_csv(frame: pd.DataFrame, path: Path | str) -> None:
    """Write a table as CSV without its index; texts that spreadsheets would run are escaped.

    Raises:
        StreamgaugeError: a text holds a character that no table can hold, or the file cannot be
            written; what lay at `path` stays.
    """
    columns = [_changed(frame.iloc[:, i], _escaped) for i in range(frame.shape[1])]
    made = pd.concat(columns, axis=1) if columns else frame
    made.columns = [_escaped(name) if isinstance(name, str) else name for name in frame.columns]
    texts = [text for column in [made.columns, *columns] if _is_text(column) for text in column]
    for text in texts:
        if isinstance(text, str) and ("\0" in text or re.search("[\ud800-\udfff]", text)):
            raise StreamgaugeError(
                f"the text {shown(text)} has a character that no table can hold", where=str(path)
            )
    # a carriage return ends a row for who reads, which the writer does not know
    returns = any(isinstance(text, str) and "\r" in text for text in texts)
    quoting = csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL
    whole_file.replace(path, lambda new: made.to_csv(new, index=False, quoting=quoting))


def write_parquet(frame: pd.DataFrame, path: Path | str) -> None:
    """Write a table, without its index, as Parquet whose pages carry checksums.

    Raises:
        StreamgaugeError: it cannot be written; what lay at `path` stays.
    """
    whole_file.replace(
        path, lambda new: frame.to_parquet(new, index=False, write_page_checksum=True)
    )


# --- in -----------------------------------------------------------------------------------------
def read_csv(path: Path | str, **how: Any) -> pd.DataFrame:
    """Read a table that `write_csv` wrote, or that a user did.

    Args:
        path: the file; an empty cell is a missing value, and no text is.
        how: further arguments of pandas' own function.

    Raises:
        StreamgaugeError: there is no such file, it is larger than `CSV_BYTES`, or it is damaged:
            no UTF-8, rows of different lengths, a NUL.
    """
    path = Path(path)
    with _reading(path):
        if _size(path) > CSV_BYTES:
            raise ValueError(f"more than {bytes_in_words(CSV_BYTES)}, which no table here has")
        _look_at_header(path)
        data = path.read_bytes()
        if b"\0" in data:
            raise ValueError("it holds a NUL, which no text does")
        _compare_rows(data.decode())
        return _unescaped(pd.read_csv(io.BytesIO(data), **_OURS | how))


#: How pandas is told that a name such as ``NA`` is a text.
_OURS = {"keep_default_na": False, "na_values": [""]}


def read_parquet(path: Path | str) -> pd.DataFrame:
    """Read a Parquet table as a whole, comparing the checksums of its pages.

    Raises:
        StreamgaugeError: there is no such file, it is damaged, or it unpacks to more than a table
            of its size can hold.
    """
    path = Path(path)
    with _reading(path):
        with _opened(path) as file:
            most = _most(TEXT_BYTES, path)
            texts = _texts(file)
            unpacked = 0
            for batch in file.iter_batches(PIECE, columns=texts) if texts else ():
                unpacked += sum(map(_unpacked, batch.columns))
                if unpacked > most:
                    raise ValueError(f"its texts unpack to more than {bytes_in_words(most)}")
        return pd.read_parquet(path, page_checksum_verification=True)


def pieces(path: Path | str) -> Iterator[pd.DataFrame]:
    """A CSV or Parquet table of any length, some ten thousand rows at a time.

    Raises:
        StreamgaugeError: as for the functions above.
    """
    path = Path(path)
    with _reading(path):
        if path.suffix == ".csv":
            _size(path)
            _look_at_header(path)
            with pd.read_csv(path, chunksize=PIECE, **_OURS) as chunks:
                yield from map(_unescaped, chunks)
            return
        most = _most(TEXT_BYTES, path)
        with _opened(path) as file:
            for batch in file.iter_batches(PIECE):
                if sum(map(_unpacked, batch.columns)) > most:
                    raise ValueError(f"its texts unpack to more than {bytes_in_words(most)}")
                yield _plain(batch).to_pandas()


def values(path: Path | str, column: str, rows: int = 1024) -> Iterator[Any]:
    """The values of one column of a Parquet table, one by one, `rows` rows in memory at a time.

    Raises:
        StreamgaugeError: as for `read_parquet`.
    """
    path = Path(path)
    with _reading(path), _opened(path) as file:
        most = _most(TEXT_BYTES, path)
        for batch in file.iter_batches(rows, columns=[column]):
            # texts within lists are no dictionary from which each is written out in its turn
            listed = not pa.types.is_dictionary(batch.column(0).type)
            if listed and _unpacked(batch.column(0)) > most:
                raise ValueError(f"its texts unpack to more than {bytes_in_words(most)}")
            for value in batch.column(0):
                yield value.as_py()


def names(path: Path | str) -> list[str]:
    """The columns of a Parquet table.

    Raises:
        StreamgaugeError: as for `read_parquet`.
    """
    with _reading(Path(path)), _opened(Path(path)) as file:
        return file.schema_arrow.names


def stacked(read: Callable[[Any], pd.DataFrame], paths: Iterable[Path | str]) -> pd.DataFrame:
    """Several tables below each other, their rows numbered anew."""
    return pd.concat(map(read, paths), ignore_index=True)


# --- CSV ----------------------------------------------------------------------------------------
def _escaped(text: str) -> str:
    return f"'{text}" if _RUN.match(text) else text


def _plainly(text: str) -> str:
    return text[1:] if text.startswith("'") and _RUN.match(text) else text


def _is_text(column) -> bool:
    return pd.api.types.is_string_dtype(column) or column.dtype.kind == "O"


def _changed(column: pd.Series, change) -> pd.Series:
    """A column with `change` made to its texts; as it is where that changes nothing."""
    if not _is_text(column):
        return column
    cells = [change(cell) if isinstance(cell, str) else cell for cell in column]
    same = all(new is old for new, old in zip(cells, column, strict=True))
    return column if same else pd.Series(cells, index=column.index, dtype=object, name=column.name)


def _unescaped(frame: pd.DataFrame) -> pd.DataFrame:
    for i, name in enumerate(frame.columns):
        column = frame.iloc[:, i]
        new = _changed(column, _plainly)
        if new is not column:
            frame[name] = new.astype(column.dtype)
    return frame.rename(columns=_plainly)


def _look_at_header(path: Path) -> None:
    """Refuse a header that is too long, or has too many columns, for anybody's table."""
    with path.open("rb") as file:
        start = file.read(HEADER_BYTES)
    lines = csv.reader(io.StringIO(start.decode(errors="replace"), newline=""))
    header = next(lines, [])
    if len(start) == HEADER_BYTES and next(lines, None) is None:
        raise ValueError(f"its header is longer than {bytes_in_words(HEADER_BYTES)}")
    if len(header) > COLUMNS:
        raise ValueError(f"it has more than {COLUMNS:,} columns")


def _compare_rows(text: str) -> None:
    """Refuse rows of different lengths, where pandas makes up what is missing."""
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    width = len(next(lines, []))
    for row in lines:
        if row and len(row) != width:
            raise ValueError(
                f"line {lines.line_num} has {len(row)} cells, the header {width}: it is cut short "
                "or damaged"
            )


# --- Parquet ------------------------------------------------------------------------------------
def _opened(path: Path):
    """A Parquet file whose footer has been looked at; its texts come as dictionaries."""
    size = _size(path)
    with path.open("rb") as file:
        file.seek(max(0, size - 8))
        length = int.from_bytes(file.read(4), "little")
    if length > min(FOOTER_BYTES, size):
        raise ValueError(f"its footer is larger than {bytes_in_words(min(FOOTER_BYTES, size))}")
    how = {"page_checksum_verification": True}
    with parquet.ParquetFile(path, **how) as file:
        footer, texts = file.metadata, _texts(file)
    groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
    listed = sum(group.column(i).num_values for group in groups for i in range(group.num_columns))
    cells = max(listed, footer.num_rows * footer.num_columns)
    if cells > (most := _most(CELLS, path)):
        raise ValueError(
            f"it unpacks to {cells:,} cells; a file of {bytes_in_words(size)} has at most {most:,}"
        )
    return parquet.ParquetFile(path, read_dictionary=texts, metadata=footer, **how)


def _texts(file) -> list[str]:
    """The paths of columns of text or bytes."""
    columns = map(file.metadata.schema.column, range(file.metadata.num_columns))
    return [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]


def _unpacked(column) -> int:
    """The bytes that the texts of a column take once each is written out."""
    if pa.types.is_struct(column.type):
        return sum(map(_unpacked, column.flatten()))
    if pa.types.is_list(column.type) or pa.types.is_map(column.type):
        return _unpacked(column.flatten() if pa.types.is_list(column.type) else column.items)
    if not pa.types.is_dictionary(column.type):
        return 0
    lengths = compute.take(compute.binary_length(column.dictionary), column.indices)
    return compute.sum(lengths).as_py() or 0


def _plain(batch):
    """A batch with its texts written out."""
    columns = [
        column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _most(ends: Sequence[int], path: Path) -> int:
    return min(ends[1], max(ends[0], PER_BYTE * path.stat().st_size))


# --- both ---------------------------------------------------------------------------------------
def _size(path: Path) -> int:
    """The bytes of a file; a pipe or a device would be read without end."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("no regular file")
    return found.st_size


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what the readers raise about a file into one line that names it."""
    try:
        yield
    except StreamgaugeError:
        raise
    except Exception as error:  # readers of damaged files raise errors of any kind
        if out_of_memory(error):
            raise
        reason = getattr(error, "strerror", None) or first_line(error)
        raise StreamgaugeError(f"not a readable table ({reason})", where=str(path)) from error
