"""Files from strangers: what they hold is never run, never leads elsewhere, never fills the memory.

Bombs are real: a pickle that makes a file when it is opened, a pipe that never ends.
"""

import ast
import json
import os
import pathlib
import pickle
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file

import foreign_saes
import gguf_file
import saved_sae
import tiny_models
from pipeline import ROOT
from streamgauge.artifacts import contents
from streamgauge.base import json_file
from streamgauge.base.errors import StreamgaugeError
from streamgauge.models import corpora, subjects
from streamgauge.sae import files, formats

CALLS = {"eval", "exec", "compile", "os.system", "torch.load", "pd.read_pickle", "pickle.load"}


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.PosixPath(self.mark),)


@pytest.fixture
def bomb(tmp_path):
    """Bytes that leave a mark when they are unpickled; the mark must not be there at the end."""
    mark = tmp_path / "exploded"
    data = pickle.dumps(Bomb(mark))
    pickle.loads(data)
    assert mark.exists(), "the bomb works"
    mark.unlink()
    yield data
    assert not mark.exists(), "the pickle was opened"


def refused(call, *arguments):
    """The message of a refusal: one line, not too long."""
    with pytest.raises(StreamgaugeError) as caught:
        call(*arguments)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 700, text
    return text


# --- code ---------------------------------------------------------------------------------------
def _dotted(node):
    return f"{_dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else node.id


def test_nothing_here_opens_pickles_or_runs_text():
    seen = 0
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "workflow").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"pickle", "dill", "joblib", "marshal", "shelve"}, path
            if not isinstance(node, ast.Call):
                continue
            seen += 1
            if isinstance(node.func, ast.Name) or (
                isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name)
            ):
                name = _dotted(node.func)
                assert name not in CALLS, f"{path}: {name}"
                assert not name.startswith(("yaml.unsafe", "yaml.full")), path
            for word in node.keywords:
                value = getattr(word.value, "value", None)
                assert (word.arg, value) not in {
                    ("allow_pickle", True),
                    ("trust_remote_code", True),
                    ("use_safetensors", False),
                    ("shell", True),
                }, f"{path}: {word.arg}"
    assert seen > 1000


# --- weights ------------------------------------------------------------------------------------
PICKLES = ["sae_weights.pt", "ae.pt", "sae.pth", "weights.bin", "w.pkl", "w.npy", "w.ckpt"]


@pytest.mark.parametrize("name", PICKLES)
def test_an_sae_in_a_pickle_is_named_and_not_opened(tmp_path, bomb, name):
    files.save(saved_sae.random_sae(), tmp_path / "sae", saved_sae.METADATA)
    (tmp_path / "sae" / files.WEIGHTS).unlink()
    (tmp_path / "sae" / name).write_bytes(bomb)
    said = refused(formats.read, tmp_path / "sae")
    assert name in said and "may be a pickle" in said and "never loaded" in said
    assert name in refused(formats.read, tmp_path / "sae", "saelens")


@pytest.mark.parametrize(
    ("maker", "name"),
    [
        (None, files.WEIGHTS),
        (foreign_saes.sparsify, "sae.safetensors"),
        (foreign_saes.dictionary_learning, "ae.safetensors"),
    ],
)
def test_a_pickle_that_calls_itself_safetensors(tmp_path, bomb, maker, name):
    if maker is None:
        files.save(saved_sae.random_sae(), tmp_path / "sae", saved_sae.METADATA)
    else:
        maker(tmp_path / "sae")
    (tmp_path / "sae" / name).write_bytes(bomb)
    assert "not a safetensors file" in refused(formats.read, tmp_path / "sae")


def header(entries, tail=b"\0" * 64, length=None):
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + tail


def tensor(shape, offsets, dtype="F32"):
    return {"W_enc": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        header({}, length=2**62),
        header({}, length=10**9),
        header(tensor([4, 4], [0, 10**9])),
        header(tensor([2**40, 2**40], [0, 64])),
        header(tensor([-1, 4], [0, 64])),
        header({"../../x": tensor([4, 4], [0, 64])["W_enc"]}),
        header(tensor([0, 2**50], [0, 0]), tail=b""),
    ],
    ids=["empty", "huge", "long", "past the end", "overflow", "negative", "path", "of nothing"],
)
def test_safetensors_that_lie_about_themselves(tmp_path, data):
    files.save(saved_sae.random_sae(), tmp_path, saved_sae.METADATA)
    (tmp_path / files.WEIGHTS).write_bytes(data)
    refused(formats.read, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [files.CONFIG, files.WEIGHTS]


# --- an SAE's configuration ---------------------------------------------------------------------
ODD = [None, True, -1, 0, 1.5, float("nan"), float("inf"), 10**30, "", "../x", [], {}, [[]], "\x1b"]


@pytest.mark.parametrize("maker", ["saelens", "sparsify", "dictionary_learning"])
def test_any_value_of_any_setting_is_refused_or_changes_nothing(tmp_path, maker):
    if maker == "saelens":
        files.save(saved_sae.random_sae(), tmp_path / "sae", saved_sae.METADATA)
    else:
        getattr(foreign_saes, maker)(tmp_path / "sae")
    path = tmp_path / "sae" / ("config.json" if maker == "dictionary_learning" else "cfg.json")
    sound, found = json.loads(path.read_text()), formats.read(tmp_path / "sae")[0]
    x = torch.randn(5, found.d_model, generator=torch.Generator().manual_seed(0))
    outcomes = []
    blocks = [sound, *(block for block in sound.values() if isinstance(block, dict))]
    for block in blocks:
        for key, value in list(block.items()):
            for odd in ODD:
                block[key] = odd
                path.write_text(json.dumps(sound))
                try:
                    sae, known = formats.read(tmp_path / "sae")
                except StreamgaugeError as error:
                    assert "\n" not in str(error) and "\x1b" not in str(error)
                    outcomes.append("refused")
                else:
                    outcomes.append("read")
                    # what it is can only be one of the two readings the weights allow
                    assert torch.equal(sae.encode(x), found.encode(x)) or odd in (None, True), key
                    for name in formats.KNOWN:
                        assert known[name] is None or f"{known[name]}".isprintable()
            block[key] = value
    assert outcomes.count("refused") > 20 and outcomes.count("read") > 20


def test_a_flag_is_true_or_false(tmp_path):
    files.save(saved_sae.random_sae(), tmp_path, saved_sae.METADATA)
    for name in ("apply_b_dec_to_input", "rescale_acts_by_decoder_norm"):
        saved_sae.edit(tmp_path, **{name: "false"})
        assert f"{name} is 'false', neither true nor false" in refused(formats.read, tmp_path)
        saved_sae.edit(tmp_path, **{name: name.startswith("apply")})
    formats.read(tmp_path)


def test_settings_that_are_no_small_file(tmp_path):
    files.save(saved_sae.random_sae(), tmp_path / "sae", saved_sae.METADATA)
    path = tmp_path / "sae" / files.CONFIG
    sound = path.read_bytes()
    path.write_bytes(sound + b" " * 10_000_000)
    assert "which settings never have" in refused(formats.read, tmp_path / "sae")
    for text in (b"{", b"[" * 100_000, b'{"a":' * 5000 + b"1" + b"}" * 5000, b"\xff\xfe", b"[1]"):
        path.write_bytes(text)
        refused(formats.read, tmp_path / "sae")
        refused(list, contents.sae(tmp_path / "sae"))
        (tmp_path / "sae/config.json").write_bytes(text)
        refused(list, contents.model(tmp_path / "sae"))
    # a link is followed, as in the caches of downloads, and tells nothing of where it leads
    (tmp_path / "secret").write_text("user = admin")
    path.unlink()
    path.symlink_to(tmp_path / "secret")
    assert "admin" not in refused(formats.read, tmp_path / "sae")
    path.unlink()
    os.mkfifo(path)  # read, it would never end
    assert "no regular file" in refused(formats.read, tmp_path / "sae")


def test_the_parts_of_json_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}')
    assert json_file.read(path) == {"a": 1}
    assert "12345 bytes" not in refused(lambda: json_file.read(path, largest=4))
    assert "No such file" in refused(json_file.read, tmp_path / "b.json")
    assert json_file.read(path, largest=8) == {"a": 1}


# --- models -------------------------------------------------------------------------------------
@pytest.fixture
def folder(tmp_path):
    return tiny_models.tiny_llama(tmp_path / "llama")


def prepared(folder):
    return subjects.prepare({"source": "local", "path": str(folder)}, folder.parent / "model")


def settle(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_pickles_beside_safetensors_are_neither_linked_nor_opened(folder, bomb):
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "vocab.pkl"):
        (folder / name).write_bytes(bomb)
    (folder / "own.py").write_text("raise SystemExit('ran')")
    settle(folder, auto_map={"AutoModelForCausalLM": "own.Own", "AutoConfig": "own.Own"})
    path = folder / "tokenizer_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": ["own.T", None]}})
    )
    facts = prepared(folder)
    assert facts["architecture"] == "LlamaForCausalLM"
    there = {path.suffix for path in (folder.parent / "model").iterdir()}
    assert there <= {".json", ".safetensors", ".jinja"}
    assert subjects.load_tokenizer(folder.parent / "model")("a")["input_ids"]


def test_a_pickle_that_calls_itself_a_model(folder, bomb):
    (folder / "model.safetensors").write_bytes(bomb)
    assert "no safetensors file" in refused(prepared, folder)
    path = folder / "x.gguf"
    path.write_bytes(bomb)
    block = {"source": "gguf", "path": str(path)}
    said = refused(subjects.prepare, block, folder.parent / "model")
    assert "not a GGUF file" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_attn_implementation": "stranger/kernel"}, "never fetched"),
        ({"attn_implementation": "stranger/kernel:run"}, "never fetched"),
        ({"num_hidden_layers": 10**9}, "1,000,000,000 layers"),
        ({"hidden_size": "abc"}, "cannot load"),
        ({"hidden_size": -4}, "cannot load"),
        ({"hidden_size": 1 << 20}, "parameters"),
        ({"vocab_size": 1 << 40}, "parameters"),
        ({"num_attention_heads": 0}, "cannot load"),
        ({"model_type": ["llama"]}, "does not know"),
        ({"model_type": "../llama"}, "does not know"),
    ],
)
def test_a_models_configuration_that_is_not_to_be_believed(folder, changes, message):
    settle(folder, **changes)
    assert message in refused(prepared, folder)


def test_an_adapter_does_not_send_for_its_model(folder):
    adapter = {"base_model_name_or_path": "stranger/model", "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    assert "adapter to another model" in refused(prepared, folder)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", 5, ""])
def test_an_index_names_files_beside_it(folder, name):
    shutil.copy(folder / "model.safetensors", folder.parent / "secret.safetensors")
    weights = load_file(folder / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    assert "no safetensors file beside it" in refused(prepared, folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": [1]}')
    assert "no safetensors file beside it" in refused(prepared, folder)


def test_weights_beside_the_model_are_no_way_around_the_checks(folder):
    (folder / "extra.safetensors").write_bytes(header({}, length=2**62))
    assert "no safetensors file" in refused(prepared, folder)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"model": {"type": "BPE"}}', "[]"])
def test_a_tokenizer_that_is_none(folder, text):
    (folder / "tokenizer.json").write_text(text)
    refused(subjects.load_tokenizer, folder)


def test_a_gguf_file_cut_short_or_spoiled(folder, tmp_path):
    whole = gguf_file.write_gguf(folder, tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "x.gguf"
    spoiled = [whole[: len(whole) * i // 6] for i in range(1, 6)]
    spoiled.append(whole[:8] + struct.pack("<Q", 2**60) + whole[16:])  # so many tensors
    spoiled.append(whole[:16] + struct.pack("<Q", 2**60) + whole[24:])  # so many settings
    for data in spoiled:
        path.write_bytes(data)
        said = refused(subjects.prepare, {"source": "gguf", "path": str(path)}, tmp_path / "model")
        assert "x.gguf" in said
        assert not (tmp_path / "model").exists()


# --- corpora ------------------------------------------------------------------------------------
def rows(**block):
    block = {"context_length": 8, "train_sequences": 1, "eval_fraction": 0.1, **block}
    return corpora.token_rows(block, tiny_models.tiny_tokenizer(), "train")


def test_a_data_set_that_is_a_program_or_a_pickle(tmp_path, bomb):
    mark = tmp_path / "exploded"
    for name, data in (
        ("data.pkl", bomb),
        ("train.pickle", bomb),
        ("set.py", f"open({str(mark)!r}, 'w')".encode()),
    ):
        directory = tmp_path / name.replace(".", "_")
        directory.mkdir()
        (directory / name).write_bytes(data)
        refused(lambda d=directory: rows(source="huggingface", repo=str(d)))
        assert not mark.exists()


def test_a_parquet_column_with_a_pickle_for_a_type(tmp_path, bomb):
    import pyarrow as pa
    from pyarrow import parquet

    kind = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": bomb}
    text = pa.array([tiny_models.TEXT[0]] * 40)
    schema = pa.schema([pa.field("text", pa.string(), metadata=kind)])
    parquet.write_table(pa.Table.from_arrays([text], schema=schema), tmp_path / "a.parquet")
    rows(source="text", paths=[str(tmp_path / "a.parquet")])


@pytest.mark.parametrize(
    "line",
    ["[" * 100_000, '{"text": [1e999]}', f'{{"text": [{10**40}]}}', '{"text": [true]}', "{"],
)
def test_a_line_of_json_that_is_no_document(tmp_path, line):
    (tmp_path / "a.jsonl").write_text(line + "\n")
    said = refused(lambda: rows(source="text", paths=[str(tmp_path / "a.jsonl")]))
    assert "a.jsonl line 1" in said


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.txt"])
def test_bytes_of_no_format(tmp_path, name):
    (tmp_path / name).write_bytes(b"PAR1" + bytes(range(256)) * 20 + b"PAR1")
    assert name in refused(lambda: rows(source="text", paths=[str(tmp_path / name)]))
