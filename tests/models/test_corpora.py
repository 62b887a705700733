"""Token rows from every source: exact contents, disjoint splits, clear errors."""

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tiny_models
from streamgauge.base.errors import StreamgaugeError
from streamgauge.models import corpora, docstrings

DOCUMENTS = [
    f"Document {i}: {tiny_models.TEXT[i % 10]} {tiny_models.TEXT[(3 * i) % 10]}" for i in range(60)
]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_models.tiny_tokenizer()


@pytest.fixture
def text_block(tmp_path):
    path = tmp_path / "prose.txt"
    path.write_text("\n\n".join(DOCUMENTS) + "\n", encoding="utf-8")
    return {
        "source": "text",
        "paths": [str(path)],
        "context_length": 16,
        "train_sequences": 40,
        "eval_sequences": 4,
        "eval_fraction": 0.3,
    }


def joined(documents, tokenizer, wanted):
    """What the rows have to hold, without BOS: documents of a split, each closed by EOS."""
    stream = []
    for document in documents:
        stream += tokenizer(document, add_special_tokens=False)["input_ids"]
        stream.append(tokenizer.eos_token_id)
    return stream[:wanted]


def split(documents, name, fraction=0.3):
    return [text for text in documents if corpora.split_of(text, fraction) == name]


@pytest.mark.parametrize("name", ["train", "eval"])
def test_rows_hold_the_documents_of_the_split_one_after_the_other(text_block, tokenizer, name):
    tokens, document = corpora.token_rows(text_block, tokenizer, name)
    n = text_block[f"{name}_sequences"]
    assert tokens.shape == document.shape == (n, 16)
    assert tokens.dtype == document.dtype == np.int32
    assert (tokens[:, 0] == tokenizer.bos_token_id).all() and (document[:, 0] == -1).all()
    expected = joined(split(DOCUMENTS, name), tokenizer, n * 15)
    assert tokens[:, 1:].ravel().tolist() == expected
    for index in np.unique(document[document >= 0])[:-1]:
        text = tokenizer.decode(tokens[document == index])
        assert text == DOCUMENTS[index] + tokenizer.eos_token


def test_a_tokenizer_without_bos_leaves_its_place_to_the_text(text_block):
    tokenizer = tiny_models.tiny_tokenizer(None, "<|endoftext|>")
    tokens, document = corpora.token_rows(text_block, tokenizer, "eval")
    assert tokens.ravel().tolist() == joined(split(DOCUMENTS, "eval"), tokenizer, 4 * 16)
    assert (document >= 0).all()


def test_train_and_eval_share_no_document_even_where_the_corpus_repeats_itself(tmp_path, tokenizer):
    path = tmp_path / "twice.txt"
    path.write_text("\n\n".join(DOCUMENTS * 2), encoding="utf-8")
    block = {"source": "text", "paths": [str(path)], "context_length": 8, "eval_fraction": 0.3}
    _, train = corpora.token_rows(block, tokenizer, "train", 150)
    _, evaluation = corpora.token_rows(block, tokenizer, "eval", 30)
    texts = [DOCUMENTS[i % 60] for i in range(120)]
    seen = [{texts[i] for i in np.unique(d[d >= 0])} for d in (train, evaluation)]
    assert seen[0] and seen[1] and not seen[0] & seen[1]


def test_split_sizes_follow_the_fraction():
    names = [corpora.split_of(f"text {i}", 0.1) for i in range(4000)]
    assert 320 < names.count("eval") < 480  # 400 expected, standard deviation 19
    assert corpora.split_of([1, 2], 0.5) == corpora.split_of(np.array([1, 2]), 0.5)


def test_a_longer_request_begins_with_the_shorter_one(text_block, tokenizer):
    short, _ = corpora.token_rows(text_block, tokenizer, "train", 10)
    long, _ = corpora.token_rows(text_block, tokenizer, "train", 40)
    assert (long[:10] == short).all()


def test_every_kind_of_file_and_the_streamed_data_set_give_the_same_rows(
    tmp_path, text_block, tokenizer
):
    expected, _ = corpora.token_rows(text_block, tokenizer, "train")
    jsonl, parquet = tmp_path / "a.jsonl", tmp_path / "set" / "a.parquet"
    jsonl.write_text("".join(json.dumps({"body": text}) + "\n" for text in DOCUMENTS))
    parquet.parent.mkdir()
    pq.write_table(pa.table({"body": DOCUMENTS, "other": list(range(60))}), parquet)
    shape = {"context_length": 16, "train_sequences": 40, "eval_fraction": 0.3, "column": "body"}
    for block in (
        {"source": "text", "paths": [str(jsonl)]},
        {"source": "text", "paths": [str(parquet)]},
        {"source": "huggingface", "repo": str(parquet.parent), "split": "train", "name": None},
    ):
        tokens, _ = corpora.token_rows(block | shape, tokenizer, "train")
        assert (tokens == expected).all(), block


def test_tokenised_columns_keep_their_ids_and_double_no_special_token(tmp_path, tokenizer):
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    bare = [tokenizer(text)["input_ids"] for text in DOCUMENTS]
    dressed = [[bos, *ids, eos] for ids in bare]
    path = tmp_path / "ids.parquet"
    pq.write_table(pa.table({"tokens": dressed}), path)
    block = {"paths": [str(path)], "source": "text", "column": "tokens", "context_length": 16}
    block |= {"eval_fraction": 0.3, "eval_sequences": 4}
    tokens, _ = corpora.token_rows(block, tokenizer, "eval")
    kept = [i for i in range(60) if corpora.split_of(dressed[i], 0.3) == "eval"]
    assert tokens[:, 1:].ravel().tolist() == joined([DOCUMENTS[i] for i in kept], tokenizer, 60)

    pq.write_table(pa.table({"tokens": [[5, 50000]] * 9}), path)
    with pytest.raises(StreamgaugeError, match=r"token id 50000, outside .* 384.*another model"):
        corpora.token_rows(block | {"eval_fraction": 0.999}, tokenizer, "eval")


def test_a_corpus_too_short_says_how_much_there_is(text_block, tokenizer):
    with pytest.raises(StreamgaugeError) as caught:
        corpora.token_rows(text_block, tokenizer, "eval", 10_000)
    said = str(caught.value)
    rows = len(joined(split(DOCUMENTS, "eval"), tokenizer, 10**6)) // 15
    for part in ("prose.txt", "10,000 eval sequences of 16", f"{rows:,} are there"):
        assert part in said
    assert "eval_sequences" in said and "context_length" in said


def test_bad_files_are_named(tmp_path, tokenizer):
    def rows(path, **more):
        block = {"source": "text", "paths": [str(path)], "context_length": 8, "train_sequences": 1}
        return corpora.token_rows(block | more, tokenizer, "train")

    (tmp_path / "broken.jsonl").write_text('{"text": "fine."}\n{"text": \n')
    (tmp_path / "number.jsonl").write_text('{"text": 3}\n')
    (tmp_path / "latin.txt").write_bytes("Straße".encode("latin-1"))
    (tmp_path / "no.parquet").write_text("not parquet")
    (tmp_path / "page.html").write_text("<p>")
    pq.write_table(pa.table({"body": ["a"], "title": ["b"]}), tmp_path / "other.parquet")
    for name, said in {
        "broken.jsonl": "line 2: this is no JSON",
        "number.jsonl": "holds int, neither text nor",
        "latin.txt": "cannot be read",
        "no.parquet": "not a readable table",
        "page.html": r"files of type \.html",
        "absent.txt": "no such file",
        "other.parquet": "no column 'text'; there are: body, title",
    }.items():
        with pytest.raises(StreamgaugeError, match=rf"{name}.*{said}"):
            rows(tmp_path / name)
    block = {"source": "huggingface", "repo": str(tmp_path / "nowhere"), "context_length": 8}
    with pytest.raises(StreamgaugeError, match=r"nowhere: the data set cannot be read"):
        corpora.token_rows(block, tokenizer, "train", 1)


DOCSTRING = """Return the angle between two vectors, in :class:`~geometry.Radians`.

    The angle is computed from ``atan2``, which keeps its precision
    for vectors that are nearly parallel [1]_.

    .. math:: \\\\theta = atan2(x, y)

    Parameters
    ----------
    x, y : array_like
        Vectors of the same length, `broadcast <basics>`_ against each other.
    axis : int, optional
        Axis along which the vectors lie.

    +-----+-----+
    | One | Two |
    +-----+-----+

    - Nothing is computed twice, and no copy of the
      arguments is ever made.

    Examples
    --------
    >>> angle([1, 0], [0, 1])
    1.5707963267948966
    """


def test_only_whole_sentences_of_a_docstring_are_kept():
    assert docstrings.prose(DOCSTRING).split("\n\n") == [
        "Return the angle between two vectors, in geometry.Radians.",
        "The angle is computed from `atan2`, which keeps its precision for vectors that are nearly "
        "parallel.",
        "Vectors of the same length, broadcast against each other.",
        "Axis along which the vectors lie.",
        "Nothing is computed twice, and no copy of the arguments is ever made.",
    ]


def test_python_docs_are_prose_the_same_every_time_and_import_nothing(tokenizer):
    program = """
import hashlib, itertools, sys
from streamgauge.models import corpora
texts = list(itertools.islice(corpora.documents({"source": "python-docs"}), 120))
assert len(set(texts)) == 120 and min(map(len, texts)) >= 200
assert sum(c.isalpha() or c == " " for c in "".join(texts)) > 0.9 * sum(map(len, texts))
assert not any(">>>" in text or "----" in text for text in texts)
assert not {"scipy", "sympy", "networkx", "matplotlib"} & set(sys.modules)
print(hashlib.sha256("".join(texts).encode()).hexdigest())
"""
    runs = [
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1]


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(docstrings, "PACKAGES", ("zarr", "no_such_package"))
    with pytest.raises(StreamgaugeError, match="no_such_package is not installed"):
        next(docstrings.documents())
