"""SAE directories: to SAELens and back, and what is refused."""

import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from saved_sae import METADATA, edit, random_sae
from streamgauge.base.errors import StreamgaugeError
from streamgauge.sae import files


def rows(n=100, d=48):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(9))


def test_saelens_loads_the_export_with_equal_bits(tmp_path):
    from sae_lens import SAE

    sae, x = random_sae(), rows()
    files.save(sae, tmp_path, METADATA)
    theirs = SAE.load_from_disk(tmp_path)
    assert type(theirs).__name__ == "TopKSAE"
    for x in (rows(), rows().view(4, 25, 48)):
        z = sae.encode(x)
        assert torch.equal(z, theirs.encode(x))
        assert torch.equal(sae.decode(z), theirs.decode(z))
    for key, value in METADATA.items():
        assert getattr(theirs.cfg.metadata, key) == value


def test_round_trip_and_deterministic_bytes(tmp_path):
    sae = random_sae()
    files.save(sae, tmp_path / "a", METADATA)
    files.save(sae, tmp_path / "b", dict(reversed(METADATA.items())))
    for name in (files.CONFIG, files.WEIGHTS):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [files.CONFIG, files.WEIGHTS]
    back, config = files.load(tmp_path / "a")
    assert back.k == sae.k and config["metadata"]["digest"] == "abc"
    for name in files.NAMES:
        assert torch.equal(getattr(back, name), getattr(sae, name))


@pytest.mark.parametrize("rescale", [True, False])
def test_import_of_an_sae_that_saelens_saved(tmp_path, rescale):
    from sae_lens import SAE
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

    sae, x = random_sae(), rows()
    config = TopKSAEConfig(d_in=48, d_sae=160, k=7, rescale_acts_by_decoder_norm=rescale)
    theirs = TopKSAE(config)
    for name in files.NAMES:
        getattr(theirs, name).data.copy_(getattr(sae, name))
    theirs.save_model(tmp_path)
    ours, _ = files.load(tmp_path)
    z, expected = ours.encode(x), SAE.load_from_disk(tmp_path).encode(x)
    x_hat, expected_x_hat = ours.decode(z), theirs.decode(expected)
    if rescale:
        assert torch.equal(z > 0, expected > 0)
        torch.testing.assert_close(z, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(x_hat, expected_x_hat, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours.W_dec.norm(dim=1), torch.ones(160))
    else:
        assert torch.equal(z, expected) and torch.equal(x_hat, expected_x_hat)


def test_import_without_b_dec_on_the_input(tmp_path):
    from sae_lens import SAE

    files.save(random_sae(), tmp_path, METADATA)
    edit(tmp_path, apply_b_dec_to_input=False)
    ours, _ = files.load(tmp_path)
    torch.testing.assert_close(
        ours.encode(rows()), SAE.load_from_disk(tmp_path).encode(rows()), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "gated"}, "architecture is 'gated', but only topk, standard, jumprelu"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations is 'layer_norm'"),
        ({"reshape_activations": "hook_z"}, "reshape_activations is 'hook_z'"),
        ({"k": 161}, "k = 161 is outside"),
        ({"k": "many"}, "k is 'many'"),
        ({"d_in": 24}, "the configuration says 24 x 160"),
    ],
)
def test_other_saes_are_refused(tmp_path, changes, message):
    files.save(random_sae(), tmp_path, METADATA)
    edit(tmp_path, **changes)
    with pytest.raises(StreamgaugeError, match=message):
        files.load(tmp_path)


def test_pickles_are_refused(tmp_path):
    files.save(random_sae(), tmp_path, METADATA)
    weights = tmp_path / files.WEIGHTS
    tensors = load_file(weights)
    weights.unlink()
    torch.save(tensors, tmp_path / "sae_weights.pt")
    with pytest.raises(StreamgaugeError, match=r"only sae_weights\.pt, which may be a pickle"):
        files.load(tmp_path)
    weights.write_bytes(pickle.dumps({"W_enc": 1}))
    with pytest.raises(StreamgaugeError, match="not a safetensors file"):
        files.load(tmp_path)
    save_file({"W_enc": tensors["W_enc"]}, weights)
    with pytest.raises(StreamgaugeError, match="tensors missing: b_enc, W_dec, b_dec"):
        files.load(tmp_path)


def test_no_sae_there(tmp_path):
    with pytest.raises(StreamgaugeError, match=r"no readable cfg\.json"):
        files.load(tmp_path / "nowhere")
