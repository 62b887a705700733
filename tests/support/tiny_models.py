"""Small random language models with tokenizers, made on the spot for tests: no downloads.

Every helper writes a complete Hugging Face directory (config, tokenizer, safetensors) and returns
its path as a `Path`. Weights and tokenizer are the same on every call with the same arguments.
"""

import functools
from pathlib import Path

import torch

TEXT = (
    "The residual stream carries what every block has written so far.",
    "A sparse autoencoder explains an activation by a few of many directions.",
    "Return the eigenvalues of a symmetric matrix in ascending order.",
    "The array is divided into chunks, and each chunk is stored in its own file.",
    "Compute the sum over the given axis; the result has the same type as the input.",
    "If the sequence is too short, an error is raised before any work is done.",
    "Two random variables are independent when their joint density factors.",
    "The figure shows how the loss falls as the number of tokens grows.",
    "Numbers such as 3.14, 2,718 and 1e-6 are read as floating point.",
    "Each test writes its own files and removes them when it is finished.",
)
VOCAB = 384  # size of the tiny tokenizer, special tokens included


@functools.cache
def _trained(special: tuple[str, ...]) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer.to_str()


def tiny_tokenizer(bos: str | None = "<|bos|>", eos: str = "<|eos|>"):
    """A byte-level BPE tokenizer of at most `VOCAB` tokens; `bos=None` leaves BOS out."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    special = tuple(dict.fromkeys(token for token in (bos, eos) if token))
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained(special)), bos_token=bos, eos_token=eos
    )


def save(directory, config, tokenizer, seed: int = 0, dtype=torch.float32) -> Path:
    """Write the causal LM of `config` with random weights, and `tokenizer`, to `directory`."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    directory = Path(directory)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        # biases and gains start at 0 and 1; moved, so that ignoring one of them is noticed
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn(parameter.shape).to(dtype)
            assert torch.isfinite(parameter).all(), name
    transformers_logging.disable_progress_bar()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def tiny_gpt_neox(directory, *, layers=4, d_model=32, vocab_size=VOCAB, seed=0) -> Path:
    """GPT-NeoX (parallel residual, partial rotary); like Pythia, BOS and EOS are one token."""
    from transformers import GPTNeoXConfig

    config = GPTNeoXConfig(
        vocab_size=vocab_size,
        hidden_size=d_model,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=4 * d_model,
        max_position_embeddings=256,
        initializer_range=0.15,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
    )
    return save(directory, config, tiny_tokenizer("<|endoftext|>", "<|endoftext|>"), seed)


def tiny_qwen2(directory, *, layers=4, d_model=32, vocab_size=VOCAB, n_ctx=256, seed=0) -> Path:
    """Qwen2 (grouped queries, biased q/k/v); like Qwen2, its tokenizer has no BOS."""
    from transformers import Qwen2Config

    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=d_model,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=3 * d_model,
        max_position_embeddings=n_ctx,
        initializer_range=0.15,
        bos_token_id=None,
        eos_token_id=0,
        tie_word_embeddings=True,
    )
    return save(directory, config, tiny_tokenizer(None, "<|endoftext|>"), seed)


def tiny_llama(directory, *, layers=4, d_model=32, vocab_size=VOCAB, seed=0) -> Path:
    """Llama (grouped queries, SwiGLU, RMS norm) with separate BOS and EOS tokens."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=d_model,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=3 * d_model,
        max_position_embeddings=256,
        initializer_range=0.15,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    return save(directory, config, tiny_tokenizer(), seed)


def tiny_gpt2(directory, *, layers=4, d_model=32, vocab_size=VOCAB, seed=0) -> Path:
    """GPT-2 (learned positions, tied embeddings)."""
    from transformers import GPT2Config

    config = GPT2Config(
        vocab_size=vocab_size,
        n_embd=d_model,
        n_layer=layers,
        n_head=4,
        n_positions=256,
        initializer_range=0.15,
        bos_token_id=0,
        eos_token_id=0,
    )
    return save(directory, config, tiny_tokenizer("<|endoftext|>", "<|endoftext|>"), seed)


def tiny_gemma2(directory, *, layers=4, d_model=32, vocab_size=VOCAB, seed=0) -> Path:
    """Gemma 2 (sliding-window and full attention by turns, soft-capped logits)."""
    from transformers import Gemma2Config

    return _tiny_gemma(directory, Gemma2Config, 2, layers, d_model, vocab_size, seed)


def tiny_gemma3(directory, *, layers=4, d_model=32, vocab_size=VOCAB, seed=0) -> Path:
    """Gemma 3 (norms of queries and keys, sliding-window and full attention by turns)."""
    from transformers import Gemma3TextConfig

    return _tiny_gemma(directory, Gemma3TextConfig, 1, layers, d_model, vocab_size, seed)


def _tiny_gemma(directory, kind, kv_heads, layers, d_model, vocab_size, seed) -> Path:
    config = kind(
        vocab_size=vocab_size,
        hidden_size=d_model,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        head_dim=d_model // 4,
        query_pre_attn_scalar=d_model // 4,
        intermediate_size=3 * d_model,
        max_position_embeddings=256,
        sliding_window=8,
        initializer_range=0.15,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return save(directory, config, tiny_tokenizer(), seed)


def pythia_70m_random(directory, *, seed=0) -> Path:
    """The configuration of EleutherAI/pythia-70m, float16 as published, with random weights.

    About 140 MB on disk. The tokenizer is the tiny one; its ids are valid for the model.
    """
    from transformers import GPTNeoXConfig

    config = GPTNeoXConfig(
        vocab_size=50304,
        hidden_size=512,
        num_hidden_layers=6,
        num_attention_heads=8,
        intermediate_size=2048,
        hidden_act="gelu",
        rotary_pct=0.25,
        rotary_emb_base=10000,
        max_position_embeddings=2048,
        initializer_range=0.02,
        layer_norm_eps=1e-5,
        use_parallel_residual=True,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
    )
    tokenizer = tiny_tokenizer("<|endoftext|>", "<|endoftext|>")
    return save(directory, config, tokenizer, seed, dtype=torch.float16)
