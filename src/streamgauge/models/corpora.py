"""Text corpora from any source, and the rows of tokens that the models read.

A document is a string, or a list of token ids where the corpus is tokenised already. Documents are
read one by one and never held together; a corpus is read only as far as it takes to fill the rows.

Sources:
    ``python-docs``: prose of the installed scientific packages (see `docstrings`).
    ``text``: files. ``.txt`` (UTF-8; blank lines separate documents), ``.jsonl`` (one object a
        line) and ``.parquet``; the text is in ``column`` of the latter two.
    ``huggingface``: a data set of the hub, or a directory of data files, streamed.
"""

import hashlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from streamgauge.base import json_file, tables
from streamgauge.base.errors import StreamgaugeError, out_of_memory
from streamgauge.base.progress import Progress
from streamgauge.models.encoding import encode

_LARGEST = 1 << 62  # of what can be a token id at all
# texts tokenised in one call: few at first, so that a short split reads little more than it needs,
# then enough to use every core
_FIRST_BATCH, _BATCH, _BATCH_CHARACTERS = 8, 256, 200_000


def documents(block: Mapping[str, Any]) -> Iterator[str | list[int]]:
    """The documents of a corpus in its own fixed order, empty ones included.

    Args:
        block: one entry of ``corpora`` in the configuration.

    Raises:
        StreamgaugeError: while reading: a file or package is missing, a column does not exist or
            holds neither text nor token ids, the data set cannot be reached.
    """
    if block["source"] == "python-docs":
        from streamgauge.models import docstrings

        return docstrings.documents()
    if block["source"] == "text":
        return (
            document
            for path in block["paths"]
            for document in _file(Path(path), block.get("column", "text"))
        )
    return _huggingface(block)


def split_of(document: str | list[int], eval_fraction: float) -> str:
    """``"train"`` or ``"eval"``, by a hash of the content: equal documents never part."""
    if isinstance(document, str):
        content = document.encode("utf-8", "surrogatepass")
    else:
        content = np.asarray(document, dtype="<i8").tobytes()
    digest = hashlib.sha256(b"split" + content).digest()
    return "eval" if int.from_bytes(digest[:8], "big") < eval_fraction * 2**64 else "train"


def token_rows(
    block: Mapping[str, Any],
    tokenizer,
    split: str,
    sequences: int | None = None,
    *,
    at_most: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of exactly ``context_length`` tokens from the documents of one split.

    The documents of the split are joined, each followed by the EOS token (else BOS, else nothing),
    and cut into rows without gaps; every row begins with BOS where the tokenizer has one. Special
    tokens that a tokenised document brings along at its ends are not doubled.

    Args:
        block: one entry of ``corpora``: its source, ``context_length``, ``eval_fraction``
            (0.1 where absent).
        tokenizer: a Hugging Face tokenizer.
        split: ``"train"`` or ``"eval"``; see `split_of`.
        sequences: rows wanted; ``block["{split}_sequences"]`` where None.
        at_most: be content with fewer rows, at least one, where the corpus ends before.

    Returns:
        tokens: (sequences, context_length) int32.
        document: (sequences, context_length) int32, the number in the whole corpus of the document
            each token came from (its closing EOS included), -1 for an added BOS.

    Raises:
        StreamgaugeError: the corpus is too short, holds ids outside the tokenizer's vocabulary, or
            cannot be read (see `documents`).
    """
    wanted = block[f"{split}_sequences"] if sequences is None else sequences
    length, bos = block["context_length"], tokenizer.bos_token_id
    first = 0 if bos is None else 1
    width = length - first  # tokens of documents in a row
    tokens = np.empty((wanted, length), dtype=np.int32)
    document = np.full((wanted, length), -1, dtype=np.int32)
    tokens[:, :first] = -1 if bos is None else bos

    label, total, filled = f"tokens {split}", wanted * width, 0
    print(f"[{label}] reading {_name(block)}", file=sys.stderr, flush=True)
    progress = Progress(total, "tokens", label)
    for index, ids in _tokenised(block, tokenizer, split):
        before = filled
        while len(ids) and filled < total:
            row, column = divmod(filled, width)
            taken = min(len(ids), width - column)
            place = slice(first + column, first + column + taken)
            tokens[row, place], document[row, place] = ids[:taken], index
            ids, filled = ids[taken:], filled + taken
        progress.update(filled - before, documents=index + 1)
        if filled == total:
            progress.close(documents=index + 1)
            return tokens, document
    whole = filled // width
    if at_most and whole:
        progress.close()
        return tokens[:whole], document[:whole]
    raise StreamgaugeError(
        f"the corpus is too short: {wanted:,} {split} sequences of {length} tokens are wanted, "
        f"{whole:,} are there",
        where=f"corpus {_name(block)}",
        remedy=f"Lower {split}_sequences or context_length, change eval_fraction, or use a bigger "
        "corpus.",
    )


def _tokenised(block: Mapping[str, Any], tokenizer, split: str) -> Iterator[tuple[int, np.ndarray]]:
    """(number in the corpus, token ids with the closing token) of the documents of one split."""
    fraction = block.get("eval_fraction", 0.1)
    waiting: list[tuple[int, str | list[int]]] = []
    characters, size = 0, _FIRST_BATCH
    for index, document in enumerate(documents(block)):
        if not len(document) or split_of(document, fraction) != split:
            continue
        waiting.append((index, document))
        characters += len(document)
        if len(waiting) >= size or characters >= _BATCH_CHARACTERS:
            yield from _encoded(waiting, tokenizer, block)
            waiting, characters, size = [], 0, min(2 * size, _BATCH)
    yield from _encoded(waiting, tokenizer, block)


def _encoded(
    numbered: list[tuple[int, str | list[int]]], tokenizer, block: Mapping[str, Any]
) -> Iterator[tuple[int, np.ndarray]]:
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    closing = eos if eos is not None else bos
    end = np.array([] if closing is None else [closing], dtype=np.int32)
    texts = [document for _, document in numbered if isinstance(document, str)]
    encoded = iter(encode(tokenizer, texts))
    for index, document in numbered:
        ids = np.asarray(next(encoded) if isinstance(document, str) else document, dtype=np.int64)
        outside = (ids < 0) | (ids >= len(tokenizer))
        if outside.any():
            raise StreamgaugeError(
                f"document {index} holds token id {ids[outside.argmax()]}, outside the tokenizer's "
                f"vocabulary of {len(tokenizer)}",
                where=f"corpus {_name(block)}",
                remedy="It was tokenised for another model: use a text column, or that model.",
            )
        if len(ids) and ids[0] == bos:
            ids = ids[1:]
        if len(ids) and ids[-1] == closing:
            ids = ids[:-1]
        if len(ids):
            yield index, np.concatenate([ids.astype(np.int32), end])


# ---- sources -----------------------------------------------------------------------------------


def _name(block: Mapping[str, Any]) -> str:
    if block["source"] == "text":
        return ", ".join(map(str, block["paths"]))
    return block.get("repo", block["source"])


def _file(path: Path, column: str) -> Iterator[str | list[int]]:
    readers = {".txt": _txt, ".jsonl": _jsonl, ".parquet": _parquet}
    if path.suffix not in readers:
        raise StreamgaugeError(
            f"files of type {path.suffix or '(none)'} are not read",
            where=str(path),
            remedy=f"Use one of {', '.join(readers)}.",
        )
    if not path.is_file():
        raise StreamgaugeError("there is no such file", where=str(path))
    try:
        yield from readers[path.suffix](path, column)
    except StreamgaugeError:
        raise
    except Exception as error:  # of whatever kind the reader of a damaged file raises
        if out_of_memory(error):
            raise
        raise StreamgaugeError(f"the file cannot be read ({error})", where=str(path)) from error


def _txt(path: Path, _column: str) -> Iterator[str]:
    lines: list[str] = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.strip():
                lines.append(line)
            elif lines:
                yield "".join(lines).strip()
                lines = []
    if lines:
        yield "".join(lines).strip()


def _jsonl(path: Path, column: str) -> Iterator[str | list[int]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path} line {number}"
            try:
                record = json_file.loads(line)
            except ValueError as error:
                raise StreamgaugeError(f"this is no JSON ({error})", where=where) from error
            yield _value(record, column, where)


def _parquet(path: Path, column: str) -> Iterator[str | list[int]]:
    names = tables.names(path)
    if column not in names:
        _value(dict.fromkeys(names), column, str(path))
    for value in tables.values(path, column):
        yield _value({column: value}, column, str(path))


def _huggingface(block: Mapping[str, Any]) -> Iterator[str | list[int]]:
    import datasets

    repo, column = block["repo"], block.get("column", "text")
    where = f"corpus {repo}"
    datasets.disable_progress_bars()
    try:
        stream = datasets.load_dataset(
            repo,
            block.get("name"),
            split=block.get("split", "train"),
            revision=None if Path(repo).is_dir() else block.get("revision", "main"),
            streaming=True,
        )
        for record in stream:
            yield _value(record, column, where)
    except StreamgaugeError:
        raise
    except Exception as error:  # of whatever kind the readers of many formats raise
        if out_of_memory(error):
            raise
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise StreamgaugeError(
            f"the data set cannot be read ({line})",
            where=where,
            remedy="Check repo, revision, name and split, and the connection to the hub.",
        ) from error


def _value(record: Any, column: str, where: str) -> str | list[int]:
    """The document in one record: a string, or a list of token ids."""
    if not isinstance(record, dict) or column not in record:
        names = ", ".join(map(str, record)) if isinstance(record, dict) else "none"
        raise StreamgaugeError(
            f"there is no column {column!r}; there are: {names}",
            where=where,
            remedy="Set column in the corpus' block.",
        )
    value = record[column]
    if isinstance(value, str) or (
        isinstance(value, list) and all(type(x) is int and abs(x) < _LARGEST for x in value)
    ):
        return value
    raise StreamgaugeError(
        f"column {column!r} holds {type(value).__name__}, neither text nor a list of token ids",
        where=where,
        remedy="Set column in the corpus' block.",
    )
