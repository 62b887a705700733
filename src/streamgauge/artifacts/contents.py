"""What is in a store, a table or a weights file, in a few lines and in bounded memory."""

import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from streamgauge.base import json_file
from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.wording import bytes_in_words
from streamgauge.numerics.arrays import decode

WIDTH = 96
SAMPLE_BYTES = 32 * 2**20  # read of each array; a larger one is sampled evenly


def store(path: Path) -> Iterator[str]:
    """Every array of a Zarr store: shape, dtype, unit, statistics of a sample."""
    from streamgauge.stores import layer_stores

    opened = layer_stores.Store(path)
    rows, sampled = [], []
    for name in opened.names:
        array = opened.array(name)
        if is_coordinate(array, name):
            continue
        dims = array.metadata.dimension_names or [None] * array.ndim
        shape = " × ".join(f"{d} {n:,}" for d, n in zip(dims, array.shape, strict=True))
        kind = array.attrs.get("stored_as", str(array.dtype))
        unit = array.attrs.get("units", "")
        rows.append([name, shape or "scalar", kind, unit, *_stats_of(opened, name)])
        if array.nbytes > SAMPLE_BYTES:
            sampled.append(name)
    yield from grid(["array", "shape", "dtype", "unit", *Moments.NAMES], rows)
    if sampled:
        size = bytes_in_words(SAMPLE_BYTES)
        yield f"  statistics of an even sample of at most {size}: {', '.join(sampled)}"


def is_coordinate(array, name: str) -> bool:
    """Whether an array only labels the axis of its own name."""
    return tuple(array.metadata.dimension_names or ()) == (name,)


def sample(opened, name: str) -> Iterator[np.ndarray]:
    """Values of an array of a store, decoded: all, or evenly spaced blocks of SAMPLE_BYTES.

    Args:
        opened: a `layer_stores.Store`.
        name: of the array.
    """

    array = opened.array(name)
    coded = array.attrs.get("stored_as") == "bfloat16"
    n = array.shape[0] if array.ndim else 1
    bytes_per_row = max(1, array.nbytes // max(n, 1))
    per_block = max(1, min(array.chunks[0] if array.ndim else 1, SAMPLE_BYTES // bytes_per_row))
    n_blocks = max(1, min(-(-n // per_block), SAMPLE_BYTES // (per_block * bytes_per_row)))
    for block in range(n_blocks):
        # from the first row to the last, whatever the number of blocks
        start = 0 if n_blocks == 1 else round(block * (n - per_block) / (n_blocks - 1))
        values = opened.read(name, max(start, 0), max(start, 0) + per_block)
        yield decode(values) if coded else np.asarray(values)


def _stats_of(opened, name: str) -> list[str]:
    moments = Moments()
    for values in sample(opened, name):
        if values.dtype.kind not in "iufb":
            words = ", ".join(map(str, values.ravel()[:4]))
            return [words, "", "", "", ""]
        moments.add(values)
    return moments.row()


def table(path: Path) -> Iterator[str]:
    """Every column of a CSV or Parquet table with its statistics, and the first rows."""
    from streamgauge.base.tables import pieces  # brings pandas

    n_rows, head, columns = 0, None, {}
    for frame in pieces(path):
        head = frame.head(5) if head is None else head
        n_rows += len(frame)
        for name in frame:
            numeric = frame[name].dtype.kind in "iufb"
            column = columns.setdefault(name, Moments() if numeric else {})
            if isinstance(column, Moments) and numeric:
                column.add(frame[name].to_numpy())
            elif isinstance(column, dict) and len(column) < 6:
                column.update(dict.fromkeys(frame[name].astype(str).unique()))
    yield f"{path.name}: {n_rows:,} rows, {len(columns)} columns"
    rows = []
    for name, column in columns.items():
        if _is_end(name, columns):
            continue
        if isinstance(column, Moments):
            rows.append([name, *column.row(), ""])
        else:
            words = ", ".join(list(column)[:5]) + (", …" if len(column) > 5 else "")
            rows.append([name, "", "", "", "", "", words])
    yield from grid(["column", *Moments.NAMES, "values"], rows)
    if len(rows) < len(columns):
        yield f"  and {len(columns) - len(rows)} ends of intervals (_low, _high)"
    if head is not None and n_rows:
        telling = [name for name in head if not _is_end(name, columns)]
        varying = [name for name in telling if head[name].astype(str).nunique() > 1]
        text = head[(varying or telling)[:7]].to_string(index=False, float_format="%.4g")
        lines = (f"  {harmless(row[: WIDTH - 2])}" for row in text.splitlines())
        yield from ["", "head", *lines]


def _is_end(name: str, columns: Mapping[str, Any]) -> bool:
    """Whether a column is an end of the interval of another."""
    return any(name.endswith(end) and name[: -len(end)] in columns for end in ("_low", "_high"))


#: Tables of `scores`: metrics shown with their interval, metrics shown without, header.
_SCORES = (
    (
        ("r2", "ce_rec_mean_of_ratios", "kl_nats"),
        ("l0", "alive"),
        ("R²", "CE recovered", "KL, nats", "L0", "alive"),
    ),
    (
        ("delta_l_nats", "joint_quad_nats", "swd"),
        ("first_order_nats", "fisher_deviation"),
        ("ΔL, nats", "½δᵀGδ, nats", "SWD", "g·δ, nats", "deviation"),
    ),
)


def scores(record: Mapping[str, Any]) -> Iterator[str]:
    """The main scores in the manifest of a ``scores.json``, each with its interval."""
    found = record["facts"].get("scores", {})
    for names, plain, header in _SCORES:
        rows = []
        for codec in sorted(found, key=lambda name: (name != "sae", name)):  # controls below it
            for token_set, entry in found[codec].items():
                cells = [_interval(entry.get(name)) for name in names]
                cells += [_interval(entry.get(name)).split(" ")[0] for name in plain]
                rows.append([codec, token_set, *cells])
        yield from grid(["codec", "tokens", *header], rows)
    yield "  value (low, high); every metric: the JSON file itself, or the study's grid.csv"


def _interval(score: Mapping[str, float | None] | None) -> str:
    if not score or score["value"] is None:
        return "-"
    ends = [score["low"], score["high"]]
    value = number(score["value"], 3)
    if None in ends or ends[0] == ends[1]:
        return value
    return f"{value} ({number(ends[0], 2)}, {number(ends[1], 2)})"


def sae(folder: Path) -> Iterator[str]:
    """Settings, weights and last training row of an SAE directory."""
    if (folder / "cfg.json").is_file():
        cfg = json_file.read(folder / "cfg.json")
        plain = {key: value for key, value in cfg.items() if not isinstance(value, dict)}
        yield line("cfg.json", flow(plain))
    for path in sorted(folder.glob("*.safetensors")):
        yield from tensors(path)
    if (folder / "training.csv").is_file():
        from streamgauge.base.tables import pieces

        *_, last = pieces(folder / "training.csv")
        end = last.iloc[-1].to_dict() if len(last) else {}
        yield line("training", "last row: " + ", ".join(f"{k} {number(v)}" for k, v in end.items()))


def model(folder: Path) -> Iterator[str]:
    """Architecture and files of a Hugging Face directory."""
    if (folder / "config.json").is_file():
        config = json_file.read(folder / "config.json")
        plain = {
            k: v for k, v in config.items() if not isinstance(v, dict | list) and v is not None
        }
        yield line("config", flow(plain))
    files = sorted(path for path in folder.iterdir() if path.is_file())
    rows = [[path.name, bytes_in_words(path.stat().st_size)] for path in files]
    yield from grid(["file", "size"], rows)


def tensors(path: Path) -> Iterator[str]:
    """The tensors of a safetensors file; statistics of the first dozen."""
    from safetensors import SafetensorError, safe_open

    rows, n_values = [], 0
    try:
        json_file.header(path)
        with safe_open(path, framework="pt") as file:
            names = sorted(file.keys())
            for name in names:
                part = file.get_slice(name)
                shape = part.get_shape()
                n_values += int(np.prod(shape))
                if len(rows) < 12:
                    stop = max(1, SAMPLE_BYTES // (8 * max(1, int(np.prod(shape[1:])))))
                    values = part[:stop] if shape else file.get_tensor(name)
                    moments = Moments()
                    moments.add(values.double().numpy())
                    size = " × ".join(f"{n:,}" for n in shape)
                    rows.append([name, size, part.get_dtype(), *moments.row()])
    except (SafetensorError, OSError, ValueError) as error:
        raise StreamgaugeError(f"not a safetensors file ({error})", where=str(path)) from error
    yield f"{path.name}: {len(names)} tensors, {n_values:,} values"
    yield from grid(["tensor", "shape", "dtype", *Moments.NAMES], rows)
    if len(names) > len(rows):
        yield f"  and {len(names) - len(rows)} more"


class Moments:
    """Count, mean, standard deviation, range and non-finite values of a stream of arrays."""

    NAMES = ("mean", "sd", "min", "max", "bad")

    def __init__(self):
        self.n, self.bad, self.mean, self.m2 = 0, 0, 0.0, 0.0
        self.low, self.high = np.inf, -np.inf

    def add(self, values: np.ndarray) -> None:
        """Count more values; NaN and infinities are counted apart."""
        values = np.asarray(values, dtype=np.float64).ravel()
        finite = values[np.isfinite(values)]
        self.bad += values.size - finite.size
        if not finite.size:
            return
        mean, n = finite.mean(), self.n + finite.size
        # merge of two groups' means and squared deviations
        shift = mean - self.mean
        self.m2 += ((finite - mean) ** 2).sum() + shift**2 * self.n * finite.size / n
        self.mean += shift * finite.size / n
        self.n = n
        self.low, self.high = min(self.low, finite.min()), max(self.high, finite.max())

    def row(self) -> list[str]:
        """The five numbers of `NAMES` as text."""
        if not self.n:
            return ["-", "-", "-", "-", f"{self.bad:,}"]
        numbers = [self.mean, np.sqrt(self.m2 / self.n), self.low, self.high]
        return [*(number(x) for x in numbers), f"{self.bad:,}" if self.bad else "0"]


# --- wording ------------------------------------------------------------------------------------
def line(label: str, text: str) -> str:
    """A labelled, wrapped line."""
    return textwrap.fill(
        harmless(text),
        WIDTH,
        initial_indent=f"  {label:<9} ",
        subsequent_indent=" " * 12,
        break_long_words=False,
        break_on_hyphens=False,
    )


def harmless(text: str) -> str:
    """Text from elsewhere without what steers a terminal: such characters as escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def flow(value: Any) -> str:
    """A JSON value in one line, as short as it reads well."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {flow(item)}" for key, item in value.items())
    if isinstance(value, list):
        items = [flow(item) for item in value[:8]]
        return f"[{', '.join(items)}{', …' if len(value) > 8 else ''}]"
    if isinstance(value, float):
        return number(value, 6)
    return value if isinstance(value, str) else json.dumps(value)


def number(value: float, digits: int = 4) -> str:
    """A number in few digits; whole numbers whole."""
    if isinstance(value, bool | str) or value is None:
        return str(value)
    if float(value).is_integer() and abs(value) < 1e12:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


_DIGITS = tuple("-0123456789")


def grid(header: list[str], rows: list[list[str]]) -> Iterator[str]:
    """A table in columns: text to the left, numbers to the right."""
    if not rows:
        return
    rows = [[harmless(f"{cell}") for cell in row] for row in rows]
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
    left = [not any(str(row[i]).startswith(_DIGITS) for row in rows) for i in range(len(header))]
    for row in [header, *rows]:
        cells = (
            f"{cell!s:<{w}}" if to_left or i == 0 else f"{cell!s:>{w}}"
            for i, (cell, w, to_left) in enumerate(zip(row, widths, left, strict=True))
        )
        yield ("  " + "  ".join(cells)).rstrip()
