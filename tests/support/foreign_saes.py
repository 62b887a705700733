"""SAEs as other libraries save them: SAELens, sparsify and dictionary_learning."""

import json

import torch
from safetensors.torch import save_file

D, M, K = 24, 48, 5


def tensors(seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (D, M), "b_enc": (M,), "W_dec": (M, D), "b_dec": (D,), "threshold": (M,)}
    found = {name: torch.randn(*shape, generator=g) / D**0.5 for name, shape in shapes.items()}
    return found | {"threshold": found["threshold"].abs()}


def saelens(directory, architecture, **options):
    """An SAE that SAELens itself made and saved."""
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

    sae, config = {
        "standard": (StandardSAE, StandardSAEConfig),
        "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig),
        "topk": (TopKSAE, TopKSAEConfig),
    }[architecture]
    if architecture == "topk":
        options["k"] = K
    made = sae(config(d_in=D, d_sae=M, **options))
    for name, value in tensors().items():
        if hasattr(made, name):
            getattr(made, name).data.copy_(value)
    made.save_model(directory)
    return made


def sparsify(directory, **changes):
    directory.mkdir(parents=True, exist_ok=True)
    t = tensors()
    weights = {"encoder.weight": t["W_enc"].T.contiguous(), "encoder.bias": t["b_enc"]}
    save_file(weights | {"W_dec": t["W_dec"], "b_dec": t["b_dec"]}, directory / "sae.safetensors")
    config = {
        **{"activation": "topk", "expansion_factor": 2, "normalize_decoder": True},
        **{"num_latents": M, "k": K, "multi_topk": False, "skip_connection": False},
        **{"transcode": False, "d_in": D},
    }
    (directory / "cfg.json").write_text(json.dumps(config | changes))
    return weights | {"W_dec": t["W_dec"], "b_dec": t["b_dec"]}


def dictionary_learning(directory, kind="AutoEncoderTopK", **changes):
    directory.mkdir(parents=True, exist_ok=True)
    t = tensors()
    weights = {
        "encoder.weight": t["W_enc"].T.contiguous(),
        "encoder.bias": t["b_enc"],
        "decoder.weight": t["W_dec"].T.contiguous(),
        "b_dec" if kind == "AutoEncoderTopK" else "bias": t["b_dec"],
    }
    if kind == "AutoEncoderTopK":
        weights |= {"k": torch.tensor(K, dtype=torch.int32), "threshold": torch.tensor(-1.0)}
    save_file(weights, directory / "ae.safetensors")
    trainer = {
        **{"dict_class": kind, "activation_dim": D, "dict_size": M, "k": K, "layer": 3},
        **{"lm_name": "EleutherAI/pythia-70m", "submodule_name": "resid_post_layer_3"},
    }
    config = {"trainer": trainer | changes, "buffer": {"ctx_len": 128}}
    (directory / "config.json").write_text(json.dumps(config))
    return weights
