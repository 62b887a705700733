"""Projections of decoder blocks of many architectures, against the models' own computations."""

import numpy as np
import pytest
import torch
import transformers

from streamgauge.base.errors import StreamgaugeError
from streamgauge.models import subjects
from streamgauge.models.projections import projections
from tiny_models import tiny_gpt2, tiny_gpt_neox, tiny_llama, tiny_qwen2

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}


def build(name, **sizes):
    config = getattr(transformers, f"{name}Config")(**sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("make", [tiny_llama, tiny_qwen2])
def test_heads_are_cut_as_the_model_cuts_them(make, tmp_path):
    """Queries and keys of a block, computed by the model, head by head."""
    model = subjects.load(make(tmp_path), "cpu").model
    attention = model.model.layers[1].self_attn
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    bias = [getattr(attention, name).bias for name in ("q_proj", "k_proj")]
    q, k = (
        getattr(attention, name)(x) - (0 if b is None else b)
        for name, b in zip(("q_proj", "k_proj"), bias, strict=True)
    )
    found = projections(model, 1)
    # (position, head, width), as every attention of transformers views them
    for seen, w in ((q, found.w_q), (k, found.w_k)):
        seen = seen.detach().view(5, -1, attention.head_dim).numpy()
        np.testing.assert_allclose(seen, np.einsum("td,hwd->thw", x.numpy(), w), atol=1e-5)
    assert found.w_q.shape == (4, 8, 32) and found.w_k.shape == (2, 8, 32)
    np.testing.assert_array_equal(found.w_in, model.model.layers[1].mlp.gate_proj.weight.detach())
    assert found.gated and found.w_q.dtype == np.float32


def test_grouped_kernel_gives_the_models_attention_scores():
    """xᵀ A_h y is the unscaled score of head h, with the key head of its group."""
    model = build("Llama", **GROUPED)
    found, attention = projections(model, 0), model.model.layers[0].self_attn
    x = torch.randn(6, 32, generator=torch.Generator().manual_seed(1))
    q = attention.q_proj(x).view(6, 4, 8).transpose(0, 1)
    k = attention.k_proj(x).view(6, 2, 8).transpose(0, 1)
    scores = q @ transformers.models.llama.modeling_llama.repeat_kv(k[None], 2)[0].mT
    for h in range(4):
        kernel = found.w_q[h].T @ found.w_k[h // 2]
        np.testing.assert_allclose(
            x.numpy() @ kernel @ x.numpy().T, scores[h].detach().numpy(), atol=1e-5
        )


@pytest.mark.parametrize(
    ("name", "sizes", "gated"),
    [
        ("Qwen3", {**GROUPED, "head_dim": 16}, True),
        ("Gemma2", {**GROUPED, "head_dim": 16}, True),
        ("Gemma3Text", {**GROUPED, "head_dim": 16}, True),
        ("Mistral", GROUPED, True),
        ("OPT", {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32}, False),
        ("Phi", SIZES, False),
        (
            "GPTNeo",
            {**SIZES, "num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]},
            False,
        ),
    ],
)
def test_other_architectures(name, sizes, gated):
    found = projections(build(name, **sizes), 1)
    assert found.w_q.shape == (4, sizes.get("head_dim", 8), 32)
    assert found.w_k.shape == (sizes.get("num_key_value_heads", 4), *found.w_q.shape[1:])
    assert found.w_in.shape[1] == 32 and found.gated is gated


def test_experts_are_no_ffn():
    found = projections(build("Mixtral", **GROUPED, num_local_experts=2), 0)
    assert found.w_in is None and not found.gated


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_gpt_neox])
def test_fused_projections_are_refused_by_name(make, tmp_path):
    model = subjects.load(make(tmp_path), "cpu").model
    with pytest.raises(StreamgaugeError) as refused:
        projections(model, 0)
    assert type(model).__name__ in str(refused.value)
    assert "no separate query and key projections" in str(refused.value)
    assert "Llama" in refused.value.remedy and "\n" not in str(refused.value)


def test_fused_phi3_is_refused():
    with pytest.raises(StreamgaugeError, match="Phi3ForCausalLM, block 0"):
        projections(build("Phi3", **SIZES, pad_token_id=0), 0)


def test_unknown_layouts_and_layers_are_refused():
    model = build("Llama", **GROUPED)
    with pytest.raises(StreamgaugeError, match="layer 2 does not exist"):
        projections(model, 2)
    # a query projection that also carries a gate is twice as wide
    model.model.layers[0].self_attn.q_proj = torch.nn.Linear(32, 64, bias=False)
    with pytest.raises(StreamgaugeError, match=r"not those of 4 heads of 8 reading 32"):
        projections(model, 0)


def test_half_precision_becomes_float32():
    model = build("Llama", **GROUPED).bfloat16()
    found = projections(model, 0)
    assert found.w_k.dtype == np.float32
    np.testing.assert_array_equal(
        found.w_k.reshape(16, 32), model.model.layers[0].self_attn.k_proj.weight.float().detach()
    )
