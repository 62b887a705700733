"""A random TopK SAE to save, what its settings say of it, and how to change them afterwards."""

import json

import torch

from streamgauge.sae import files, topk

METADATA = {
    "model_name": "tiny",
    "hook_name": "blocks.3.hook_resid_post",
    "context_size": 64,
    "prepend_bos": True,
    "digest": "abc",
}


def random_sae(d=48, m=160, k=7, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (d, m), "b_enc": (m,), "W_dec": (m, d), "b_dec": (d,)}
    tensors = {n: torch.randn(*s, generator=g) / d**0.5 for n, s in shapes.items()}
    return topk.TopKSAE(**tensors, k=k)


def edit(directory, **changes):
    path = directory / files.CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
