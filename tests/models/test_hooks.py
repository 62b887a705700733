"""Reading and replacing the residual stream, against plain forward passes and TransformerLens."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BloomConfig, GPTJConfig

import tiny_models
from streamgauge.base.errors import StreamgaugeError
from streamgauge.models import hooks


def bloom(directory):
    """Blocks that return tuples, and biases instead of positions."""
    config = BloomConfig(
        vocab_size=tiny_models.VOCAB, hidden_size=32, n_layer=3, n_head=4, initializer_range=0.15
    )
    return tiny_models.save(directory, config, tiny_models.tiny_tokenizer())


def gptj(directory):
    """Blocks that return tuples, parallel residual."""
    config = GPTJConfig(
        vocab_size=tiny_models.VOCAB,
        n_embd=32,
        n_layer=3,
        n_head=4,
        rotary_dim=4,
        n_positions=128,
        initializer_range=0.15,
    )
    return tiny_models.save(directory, config, tiny_models.tiny_tokenizer())


MAKERS = {
    "gpt_neox": tiny_models.tiny_gpt_neox,
    "qwen2": tiny_models.tiny_qwen2,
    "llama": tiny_models.tiny_llama,
    "gpt2": tiny_models.tiny_gpt2,
    "gemma2": tiny_models.tiny_gemma2,
    "bloom": bloom,
    "gptj": gptj,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """architecture -> its directory, made on first use."""
    root, directories = tmp_path_factory.mktemp("models"), {}

    def directory(name):
        if name not in directories:
            directories[name] = MAKERS[name](root / name)
        return directories[name]

    return directory


def load(directory):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return model.eval().requires_grad_(False)


def tokens(rows=3, length=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, tiny_models.VOCAB, (rows, length), generator=generator)


@pytest.mark.parametrize("name", MAKERS)
def test_reading_and_replacing_equal_the_plain_forward_bit_for_bit(made, name):
    model, ids = load(made(name)), tokens()
    plain = model(ids).logits
    hidden = model(ids, output_hidden_states=True).hidden_states
    last = len(hooks.blocks(model)) - 1
    full = hooks.residuals(model, ids, range(last + 1), stop=False)
    for layer in range(last + 1):
        truncated = hooks.residuals(model, ids, [layer])[layer]
        assert torch.equal(truncated, full[layer])
        if layer < last:
            assert torch.equal(truncated, hidden[layer + 1])
        assert torch.equal(hooks.logits_from(model, ids, layer, truncated), plain)
    assert hooks.skips_lower_blocks(model), "the suffix alone is enough here"
    assert not torch.equal(full[last], hidden[last + 1]), "the last hidden state is post-norm"
    assert torch.equal(hooks.logits(model, ids), plain), "no hook is left behind"


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_a_changed_residual_has_the_effect_of_a_hook_that_changes_it(made, name):
    model, ids = load(made(name)), tokens()
    plain = model(ids).logits
    for layer in (0, len(hooks.blocks(model)) - 1):
        h = hooks.residuals(model, ids, [layer])[layer].clone()
        h[..., :16] = 0
        patched = hooks.logits_from(model, ids, layer, h)
        assert torch.equal(patched, hooks._replaced(model, ids, layer, h))
        assert (patched - plain).abs().max() > 1e-2


def test_the_forward_really_stops_and_really_skips(made):
    model, ids = load(made("llama")), tokens()
    ran = []
    for index, block in enumerate(hooks.blocks(model)):
        block.mlp.register_forward_hook(lambda *_, index=index: ran.append(index))
    h = hooks.residuals(model, ids, [0, 1])[1]
    assert ran == [0, 1]
    hooks.logits_from(model, ids, 1, h)
    ran.clear()
    hooks.logits_from(model, ids, 1, h)
    assert ran == [2, 3]


def test_gradients_reach_the_replaced_residual(made):
    model, ids = load(made("gpt_neox")), tokens()
    h = hooks.residuals(model, ids, [1])[1].requires_grad_()
    hooks.logits_from(model, ids, 1, h).logsumexp(-1).sum().backward()
    assert h.grad.shape == h.shape
    assert h.grad.abs().sum() > 0


def test_blocks_that_share_more_than_the_stream_are_run(made):
    model, ids = load(made("llama")), tokens()
    modules = hooks.blocks(model)
    kept = {}
    # a model whose last block also reads what the first one left behind
    modules[0].register_forward_hook(lambda _m, _a, output: kept.update(first=output))
    modules[3].register_forward_hook(lambda _m, _a, output: output + kept.pop("first"))
    plain = model(ids).logits
    h = hooks.residuals(model, ids, [2])[2]
    kept.clear()
    assert torch.equal(hooks.logits_from(model, ids, 2, h), plain)


def test_an_error_inside_the_pass_leaves_the_model_as_it_was(made):
    model, ids = load(made("llama")), tokens()
    plain = hooks.logits(model, ids)
    with pytest.raises(IndexError):
        hooks.residuals(model, ids + 10**6, [1])
    with pytest.raises(IndexError):
        hooks.logits_from(model, ids + 10**6, 1, torch.zeros(3, 24, 32))
    assert torch.equal(hooks.logits(model, ids), plain)


def test_bad_input_is_named(made):
    model, ids = load(made("llama")), tokens()
    for call in (
        lambda: hooks.residuals(model, ids, [4]),
        lambda: hooks.residuals(model, ids, [-1]),
        lambda: hooks.logits_from(model, ids, 4, torch.zeros(3, 24, 32)),
    ):
        with pytest.raises(StreamgaugeError, match=r"layers 0 to 3.*grid\.layers"):
            call()
    with pytest.raises(StreamgaugeError, match=r"shape \(3, 24\)"):
        hooks.logits_from(model, ids, 1, torch.zeros(3, 24))
    model.config.num_hidden_layers = 5
    with pytest.raises(StreamgaugeError, match="no list of 5 decoder blocks"):
        hooks.blocks(model)


def test_names_are_those_of_transformer_lens():
    assert hooks.hook_name(7) == "blocks.7.hook_resid_post"


@pytest.mark.parametrize("name", ["gpt_neox", "qwen2", "llama", "gpt2", "gemma2"])
def test_transformer_lens_agrees(made, name):
    from transformer_lens.model_bridge import TransformerBridge

    model, ids = load(made(name)), tokens()
    tokenizer = AutoTokenizer.from_pretrained(made(name))
    bridge = TransformerBridge.boot_transformers(
        str(made(name)), device="cpu", hf_model=load(made(name)), tokenizer=tokenizer
    )
    layers = range(len(hooks.blocks(model)))
    with torch.no_grad():
        logits, cache = bridge.run_with_cache(ids)
    found = hooks.residuals(model, ids, layers)
    at_hooks = max(
        float((found[layer] - cache[hooks.hook_name(layer)]).abs().max()) for layer in layers
    )
    at_logits = float((hooks.logits(model, ids) - logits).abs().max())
    print(f"{name}: largest difference, logits {at_logits:.2g}, residuals {at_hooks:.2g}")
    assert at_logits < 1e-4
    assert at_hooks < 1e-4
