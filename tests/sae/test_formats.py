"""SAEs of other libraries: read as those libraries compute, and what is refused."""

import json
import os
import pickle

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import sae_data
from foreign_saes import D, K, M, dictionary_learning, saelens, sparsify
from streamgauge.base.errors import StreamgaugeError
from streamgauge.passes import controls
from streamgauge.sae import files, formats
from streamgauge.sae.threshold import ThresholdSAE
from streamgauge.sae.topk import TopKSAE

X = torch.randn(40, D, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "topk"])
def test_saelens_and_this_library_give_equal_bits(tmp_path, architecture):
    from sae_lens import SAE

    theirs = saelens(tmp_path / "theirs", architecture)
    sae, known = formats.read(tmp_path / "theirs")
    assert known["format"] == "saelens" and known["activation"] == architecture
    files.save(sae, tmp_path / "ours", {"hook_name": "blocks.3.hook_resid_post"})
    again = SAE.load_from_disk(tmp_path / "ours")
    assert again.cfg.architecture() == architecture
    for x in (X, X.view(4, 10, D)):
        z = theirs.encode(x)
        assert 0 < (z != 0).float().mean() < 1
        for other in (sae, again):
            assert torch.equal(other.encode(x), z)
            assert torch.equal(other.decode(z), theirs.decode(z))


@pytest.mark.parametrize("architecture", ["standard", "jumprelu"])
def test_an_input_without_b_dec(tmp_path, architecture):
    theirs = saelens(tmp_path, architecture, apply_b_dec_to_input=False)
    sae, _ = formats.read(tmp_path)
    torch.testing.assert_close(sae(X)[0], theirs(X), rtol=1e-4, atol=1e-5)


def test_a_topk_sae_older_than_saelens_6(tmp_path):
    theirs = saelens(tmp_path, "topk")
    older = {
        **{"architecture": "standard", "d_in": D, "d_sae": M, "normalize_activations": False},
        **{"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}},
        **{"hook_name": "blocks.5.hook_resid_pre", "model_name": "gpt2-small"},
    }
    (tmp_path / files.CONFIG).write_text(json.dumps(older))
    sae, known = formats.read(tmp_path)
    assert torch.equal(sae.encode(X), theirs.encode(X))
    assert known["model"] == "gpt2-small" and formats.layer_of(known["hook_name"]) == 4


@pytest.mark.parametrize("sizes", [{"num_latents": M}, {"num_latents": 0, "expansion_factor": 2}])
def test_sparsify(tmp_path, sizes):
    w = sparsify(tmp_path / "layers.3", **sizes)
    sae, known = formats.read(tmp_path / "layers.3")
    assert known["format"] == "sparsify" and known["hook_name"] == "layers.3"
    pre = F.relu(F.linear(X - w["b_dec"], w["encoder.weight"], w["encoder.bias"]))
    values, ids = pre.topk(K)
    expected = (values[..., None] * w["W_dec"][ids]).sum(1) + w["b_dec"]
    torch.testing.assert_close(sae(X)[0], expected)
    assert sae.k == K and formats.layer_of(known["hook_name"]) == 3


@pytest.mark.parametrize("kind", ["AutoEncoderTopK", "AutoEncoder"])
def test_dictionary_learning(tmp_path, kind):
    w = dictionary_learning(tmp_path, kind)
    sae, known = formats.read(tmp_path)
    bias = w.get("b_dec", w.get("bias"))
    z = F.relu(F.linear(X - bias, w["encoder.weight"], w["encoder.bias"]))
    if kind == "AutoEncoderTopK":
        z = z * (z >= z.topk(K).values[:, -1:])
    torch.testing.assert_close(sae(X)[0], F.linear(z, w["decoder.weight"]) + bias)
    assert isinstance(sae, TopKSAE if kind == "AutoEncoderTopK" else ThresholdSAE)
    assert known == {
        **{"format": "dictionary_learning", "activation": sae.architecture, "corpus": None},
        **{"model": "EleutherAI/pythia-70m", "hook_name": "resid_post_layer_3"},
        "context_length": 128,
    }


class Trap:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("name", ["ae.pt", "sae.pt", "sae_weights.bin", "model.pkl"])
def test_pickles_are_named_and_never_opened(tmp_path, name):
    sae = tmp_path / "sae"
    sae.mkdir()
    (sae / name).write_bytes(pickle.dumps(Trap(tmp_path / "opened")))
    for format in ("auto", *formats.LAYOUTS):
        for config in ("cfg.json", "config.json"):
            trainer = {"dict_class": "AutoEncoder"}
            (sae / config).write_text(json.dumps({"k": K, "trainer": trainer}))
        with pytest.raises(StreamgaugeError, match=f"only {name}, which may be a pickle"):
            formats.read(sae, format)
    # under the name of a safetensors file it is no safetensors file
    (sae / name).rename(sae / "ae.safetensors")
    with pytest.raises(StreamgaugeError, match="not a safetensors file"):
        formats.read(sae)
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize(
    ("maker", "changes", "message"),
    [
        (sparsify, {"k": M + 1}, "k = 49 is outside"),
        (sparsify, {"k": True}, "k is true, not a usable number"),
        (sparsify, {"k": "5"}, "k is '5', not a usable number"),
        (sparsify, {"k": 10**30}, "k is 1000.*, not a usable number"),
        (sparsify, {"d_in": 10**6}, "the configuration says 1000000 x 48"),
        (sparsify, {"d_in": -1}, "d_in is -1"),
        (sparsify, {"num_latents": [1] * 1000}, r"the configuration says 24 x \[1, 1.*\.\.\., the"),
        (sparsify, {"activation": "groupmax"}, "activation is 'groupmax', but only 'topk'"),
        (sparsify, {"transcode": True}, "transcode is true"),
        (sparsify, {"skip_connection": {"a": 1}}, "skip_connection is"),
        (dictionary_learning, {"dict_class": "BatchTopKSAE"}, "dict_class is 'BatchTopKSAE'"),
        (dictionary_learning, {"dict_class": ["x"]}, "dict_class is"),
        (dictionary_learning, {"k": 6}, "k is 6 in config.json and 5"),
        (dictionary_learning, {"dict_size": 49}, "the configuration says 24 x 49"),
    ],
)
def test_configurations_that_are_not_to_be_believed(tmp_path, maker, changes, message):
    maker(tmp_path, **changes)
    with pytest.raises(StreamgaugeError, match=message) as caught:
        formats.read(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("text", ["[1, 2]", "not json", "[" * 100_000, '{"trainer": 5}', "{}"])
def test_files_that_are_no_configuration(tmp_path, text):
    for maker, name in ((sparsify, "cfg.json"), (dictionary_learning, "config.json")):
        directory = tmp_path / maker.__name__
        maker(directory)
        (directory / name).write_text(text)
        with pytest.raises(StreamgaugeError, match=name):
            formats.read(directory)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("W_dec", torch.full((M, D), torch.nan), "W_dec has values that are not finite"),
        ("b_dec", torch.zeros(D + 1), "b_dec has shape"),
        ("encoder.weight", torch.zeros(M, D, 2), "W_enc has shape"),
        ("encoder.weight", torch.zeros(0, D), "W_enc has shape"),
        ("encoder.bias", torch.zeros(M, dtype=torch.int64), "is of type torch.int64"),
        ("encoder.bias", None, "tensors missing: encoder.bias"),
    ],
)
def test_weights_that_fit_nothing(tmp_path, name, value, message):
    weights = sparsify(tmp_path) | {name: value}
    kept = {key: x.contiguous() for key, x in weights.items() if x is not None}
    save_file(kept, tmp_path / "sae.safetensors")
    with pytest.raises(StreamgaugeError, match=message):
        formats.read(tmp_path)


def test_which_layout(tmp_path):
    with pytest.raises(StreamgaugeError, match="no such directory"):
        formats.read(tmp_path / "nowhere")
    with pytest.raises(StreamgaugeError, match="no SAE weights there"):
        formats.read(tmp_path)
    with pytest.raises(StreamgaugeError, match="no SAE format 'zip'"):
        formats.read(tmp_path, "zip")
    sparsify(tmp_path)
    dictionary_learning(tmp_path)
    with pytest.raises(StreamgaugeError, match="weights of 2 layouts"):
        formats.read(tmp_path)
    assert formats.read(tmp_path, "sparsify")[1]["format"] == "sparsify"


@pytest.mark.parametrize(
    ("hook_name", "layer"),
    [
        *(("blocks.3.hook_resid_post", 3), ("blocks.11.hook_resid_pre", 10), ("layers.0", 0)),
        *(("resid_post_layer_7", 7), ("blocks.0.hook_resid_pre", None), ("layers.3.mlp", None)),
        *(("blocks.3.hook_mlp_out", None), ("blocks.3.attn.hook_z", None), ("", None)),
    ],
)
def test_hook_points(hook_name, layer):
    if layer is None:
        with pytest.raises(StreamgaugeError, match="not to the residual stream after a block"):
            formats.layer_of(hook_name)
    else:
        assert formats.layer_of(hook_name) == layer


@pytest.fixture
def store(tmp_path):
    return sae_data.write_store(tmp_path / "activations-eval.zarr", sae_data.activations(6, 8, D))


@pytest.mark.parametrize("architecture", ["topk", "jumprelu"])
def test_an_imported_sae_is_one_of_the_study(tmp_path, store, architecture):
    saelens(tmp_path / "theirs", architecture)
    block = {"path": str(tmp_path / "theirs"), "format": "auto"}
    facts = formats.convert(block, tmp_path / "ours", store, "pythia")
    sae, config = files.load(tmp_path / "ours")
    x = torch.as_tensor(store.read(0, 6))
    fired = (sae.encode(x) != 0).sum(-1).float().mean().item()
    assert config["metadata"]["hook_name"] == store.hook_name
    assert config["metadata"]["model_name"] == "pythia"
    assert (facts["d_model"], facts["d_sae"], facts["seed"]) == (D, M, 0)
    assert facts["k"] == (K if architecture == "topk" else None)
    assert facts["mean_l0"] == pytest.approx(fired)
    assert facts["b_dec_init"] == sae.b_dec.tolist()
    json.dumps(facts, allow_nan=False)
    null = controls.untrained_like(sae, facts)
    assert null.k == (K if architecture == "topk" else round(fired))
    assert torch.equal(null.b_dec, sae.b_dec) and not torch.equal(null.W_dec, sae.W_dec)


def test_an_sae_of_another_layer_or_width_is_not_imported(tmp_path, store):
    dictionary_learning(tmp_path / "sae", submodule_name="resid_post_layer_4")
    block = {"path": str(tmp_path / "sae"), "format": "auto"}
    with pytest.raises(StreamgaugeError, match=r"belongs to resid_post_layer_4.*Use layer 4"):
        formats.convert(block, tmp_path / "ours", store, "pythia")
    wide = sae_data.write_store(tmp_path / "w.zarr", sae_data.activations(2, 8, D + 8))
    with pytest.raises(StreamgaugeError, match="24 wide, the residual stream of pythia 32"):
        formats.convert(block, tmp_path / "ours", wide, "pythia")
    assert not (tmp_path / "ours").exists()
