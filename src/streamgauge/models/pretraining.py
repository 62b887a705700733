"""Small language models pretrained on the spot: the source ``scratch``.

The members of a family are GPT-NeoX models that differ in shape alone. One configuration block
gives them the same tokenizer, the same token rows in the same order and the same schedule, so that
a difference between two of them is one of scale.
"""

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from streamgauge.base import whole_file
from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.progress import Progress, busy
from streamgauge.models import corpora, subjects
from streamgauge.models.quiet import quiet
from streamgauge.stores import checkpoints

SPECIAL = "<|endoftext|>"  # begins every row and ends every document
HELD_OUT_ROWS = 256  # at most, for the held-out loss
# documents are copied until they would make the budget even where a token takes this many
_CHARACTERS_PER_TOKEN = 8
_BYTES = 256
_ROTARY_SHARE = 0.25  # of a head's dimensions, as in Pythia
_BETAS, _WEIGHT_DECAY, _CLIP, _LAST_RATE = (0.9, 0.95), 0.01, 1.0, 0.1


def pretrain(
    block: Mapping[str, Any],
    family: Mapping[str, Any],
    corpus_block: Mapping[str, Any],
    directory: str | Path,
    scratch_dir: str | Path,
    device: str | torch.device = "cpu",
    checkpoint_seconds: float = 30.0,
) -> dict[str, Any]:
    """Pretrain one member of a family and make `directory` its Hugging Face directory.

    Killed at any moment and called again with the same arguments, it continues from the last
    checkpoint and ends with the same weights bit for bit (on one machine's CPU, with as many
    threads; a CUDA device adds up in no fixed order). The directory appears only when it is whole
    and the model has learned, been loaded and run.

    Args:
        block: the entry of ``subjects``: ``d_model``, ``n_layers``, ``n_heads``, and ``dtype``,
            the precision the model is run in later; it is trained in float32.
        family: the configuration's block ``pretrain``: ``corpus`` (its name), ``vocab_size``,
            ``context_length``, ``tokens`` (budget, rounded down to whole batches), ``batch_size``
            (sequences), ``lr`` (peak), ``warmup_fraction`` (of the steps), ``seed`` (of the
            initial weights and of the order of the rows).
        corpus_block: the entry of ``corpora``; its numbers of sequences and its context length
            are not used. Where it is shorter than the budget, its rows are read again.
        directory: to be made; replaced where it exists.
        scratch_dir: an existing directory for unfinished work.
        device: where to train, see `subjects.resolve_device`.
        checkpoint_seconds: between checkpoints.

    Returns:
        Facts of `subjects.prepare`, and ``eval_loss_nats`` (mean loss per predicted token of
        held-out rows), ``unigram_entropy_nats`` (see `unigram_entropy`), ``learned_nats`` (their
        difference, positive), ``train_tokens`` (predicted tokens seen), ``epochs`` (passes over
        the training rows), ``steps``.

    Raises:
        StreamgaugeError: heads that do not fit the width, a vocabulary without room for every
            byte, a budget below one batch, a corpus of token ids or too short for one row, a loss
            that is not finite, a model that has not learned more than how frequent each token is,
            and what `subjects.prepare` raises.
    """
    _check(block, family)
    device, scratch_dir = subjects.resolve_device(str(device)), Path(scratch_dir)
    label = f"pretrain d_model={block['d_model']}"
    copied = _copy(corpus_block, family, scratch_dir / "documents.jsonl", label)
    with busy(label, f"training a tokenizer of {family['vocab_size']:,} tokens"):
        tokenizer = train_tokenizer(copied, family["vocab_size"])
    wanted = family["tokens"] // family["context_length"]
    train, _ = corpora.token_rows(copied, tokenizer, "train", wanted, at_most=True)
    held_out, _ = corpora.token_rows(copied, tokenizer, "eval", HELD_OUT_ROWS, at_most=True)
    model = _initial(block, family).to(device)
    path = scratch_dir / "checkpoint.safetensors"
    steps = _train(model, block, family, train, path, checkpoint_seconds, label)
    loss = held_out_loss(model, held_out, family["batch_size"])
    unigram = unigram_entropy(train, held_out, family["vocab_size"])
    if not loss < unigram:
        raise StreamgaugeError(
            f"the model has learned nothing beyond how frequent each token is: held-out loss "
            f"{loss:.3f} nats, unigram entropy {unigram:.3f} nats",
            where=label,
            remedy="Raise pretrain.tokens, or lower pretrain.batch_size for more steps.",
        )

    def fill(_block: Mapping[str, Any], folder: Path) -> str:
        model.to("cpu").save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return f"scratch, {family['tokens']:,} tokens of {family['corpus']}"

    with quiet():
        facts = subjects.make(block, directory, fill)
    rows_seen = steps * family["batch_size"]
    return facts | {
        "eval_loss_nats": loss,
        "unigram_entropy_nats": unigram,
        "learned_nats": unigram - loss,
        "train_tokens": rows_seen * (family["context_length"] - 1),
        "epochs": rows_seen / len(train),
        "steps": steps,
    }


def train_tokenizer(corpus_block: Mapping[str, Any], vocab_size: int):
    """A byte-level BPE tokenizer of the training documents of a corpus of texts.

    The same documents give the same tokenizer. Its one special token serves as BOS and EOS.

    Args:
        corpus_block: an entry of ``corpora``.
        vocab_size: tokens at most, the 256 bytes and the special token included.

    Returns:
        A ``PreTrainedTokenizerFast``.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = (text for split, text in _texts(corpus_block) if split == "train")
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=SPECIAL, eos_token=SPECIAL, unk_token=None
    )


def unigram_entropy(train: np.ndarray, held_out: np.ndarray, vocab_size: int) -> float:
    """Held-out cross-entropy of the training rows' token frequencies, in nats per token.

    Frequencies are add-one smoothed: (count + 1) / (total + vocab_size). What begins a row is
    predicted by nobody and left out. A model that knows how frequent tokens are, and nothing else,
    has this loss.

    Args:
        train, held_out: token ids, (sequences, positions).
        vocab_size: number of token ids.
    """
    counts = np.bincount(train[:, 1:].ravel(), minlength=vocab_size) + 1
    return float(-np.log(counts / counts.sum())[held_out[:, 1:]].mean())


def held_out_loss(model: torch.nn.Module, rows: np.ndarray, batch_size: int) -> float:
    """Mean next-token loss, in nats per predicted token, summed in float64.

    Args:
        model: a Hugging Face causal language model.
        rows: token ids, (sequences, positions).
        batch_size: sequences per forward pass.
    """
    total = 0.0
    model.eval()
    with torch.no_grad():
        for start in range(0, len(rows), batch_size):
            losses = _losses(model, rows[start : start + batch_size])
            total += float(losses.double().sum())
    return total / rows[:, 1:].size


def learning_rate(step: int, steps: int, peak: float, warmup_fraction: float) -> float:
    """The rate of a step (from 0): a linear rise, then a half cosine down to a tenth of the peak.

    Args:
        step: number of the step, below `steps`.
        steps: of the whole run.
        peak: highest rate, reached by the last step of the warm-up.
        warmup_fraction: share of the steps over which it rises.
    """
    warmup = math.ceil(warmup_fraction * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup + 1) / (steps - warmup)
    return peak * (_LAST_RATE + (1 - _LAST_RATE) * (1 + math.cos(math.pi * done)) / 2)


def _check(block: Mapping[str, Any], family: Mapping[str, Any]) -> None:
    width, heads = block["d_model"], block["n_heads"]
    # rotary dimensions turn in pairs
    if width % heads or width // heads * _ROTARY_SHARE % 2:
        raise StreamgaugeError(
            f"{heads} heads do not divide a d_model of {width} into heads of 8, 16, 24, … "
            "dimensions",
            where="config subjects",
            remedy="Set d_model to a multiple of 8 times n_heads.",
        )
    if family["vocab_size"] <= _BYTES:
        raise StreamgaugeError(
            f"{family['vocab_size']} tokens leave no room for the {_BYTES} bytes and {SPECIAL}",
            where="pretrain.vocab_size",
            remedy=f"Set it to {_BYTES + 1} at least.",
        )
    if family["tokens"] < family["batch_size"] * family["context_length"]:
        raise StreamgaugeError(
            f"a budget of {family['tokens']:,} tokens is less than one batch of "
            f"{family['batch_size']} sequences of {family['context_length']}",
            where="pretrain.tokens",
            remedy="Raise it, or lower pretrain.batch_size.",
        )


def _texts(corpus_block: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(split, text) of every document that holds any."""
    for document in corpora.documents(corpus_block):
        if not isinstance(document, str):
            raise StreamgaugeError(
                "a tokenizer is trained on text, and this corpus holds token ids",
                where="pretrain.corpus",
                remedy="Name a corpus with a column of text.",
            )
        if document:
            yield corpora.split_of(document, corpus_block.get("eval_fraction", 0.1)), document


def _copy(
    corpus_block: Mapping[str, Any], family: Mapping[str, Any], path: Path, label: str
) -> dict[str, Any]:
    """Copy as much of a corpus as the budget can use, and describe the copy as a corpus.

    It is read three times over, and reading the source may take far longer than that.
    """
    wanted = _CHARACTERS_PER_TOKEN * family["tokens"]

    def write(copy: Path) -> None:
        progress = Progress(wanted, "characters", f"{label} copy")
        with copy.open("w", encoding="utf-8") as file:
            for split, text in _texts(corpus_block):
                file.write(json.dumps({"text": text}) + "\n")
                progress.update(len(text) if split == "train" else 0)
                if progress.done >= wanted:
                    break
        progress.close()

    whole_file.replace(path, write)
    return {
        "source": "text",
        "paths": [path],
        "context_length": family["context_length"],
        "eval_fraction": corpus_block.get("eval_fraction", 0.1),
    }


def _initial(block: Mapping[str, Any], family: Mapping[str, Any]) -> torch.nn.Module:
    """The model at its first step; drawn on the CPU, so that the device makes no difference."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    width = block["d_model"]
    config = GPTNeoXConfig(
        vocab_size=family["vocab_size"],
        hidden_size=width,
        num_hidden_layers=block["n_layers"],
        num_attention_heads=block["n_heads"],
        intermediate_size=4 * width,
        max_position_embeddings=family["context_length"],
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "partial_rotary_factor": _ROTARY_SHARE,
        },
        use_parallel_residual=True,
        # narrow layers need larger weights: the usual 0.02 suits a width of a thousand
        initializer_range=math.sqrt(2 / (5 * width)),
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(family["seed"])
        return GPTNeoXForCausalLM(config)


def _train(
    model: torch.nn.Module,
    block: Mapping[str, Any],
    family: Mapping[str, Any],
    rows: np.ndarray,
    path: Path,
    checkpoint_seconds: float,
    label: str,
) -> int:
    """Train `model` in place, from the checkpoint where there is one; the number of steps."""
    size = family["batch_size"]
    steps = family["tokens"] // (size * family["context_length"])
    work = {
        "block": dict(block),
        "family": dict(family),
        "rows": hashlib.sha256(rows.tobytes()).hexdigest(),
    }
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=_BETAS, weight_decay=_WEIGHT_DECAY, fused=True
    )
    saved = checkpoints.resume(path, work)
    first = 0 if saved is None else _restore(model, optimizer, saved)
    per_step = size * family["context_length"]
    progress = Progress(steps * per_step, "tokens", label, done=first * per_step)
    model.train()
    last = time.monotonic()
    for step in range(first, steps):
        rate = learning_rate(step, steps, family["lr"], family["warmup_fraction"])
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = _losses(model, rows[_places(step, size, len(rows), family["seed"])]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
        optimizer.step()
        if not math.isfinite(loss.item()):
            raise StreamgaugeError(
                f"the loss is not finite at step {step + 1} of {steps}",
                where=label,
                remedy="Lower pretrain.lr.",
            )
        if time.monotonic() - last >= checkpoint_seconds or step == steps - 1:
            checkpoints.save(path, _state(model, optimizer, step + 1), work)
            last = time.monotonic()
        progress.update(per_step, loss=loss.item())
    progress.close()
    return steps


def _losses(model: torch.nn.Module, rows: np.ndarray) -> torch.Tensor:
    """Next-token losses in nats, (sequences * (positions - 1),)."""
    ids = torch.from_numpy(rows).to(model.device, torch.long)
    logits = model(ids, use_cache=False).logits[:, :-1]
    return cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")


def _places(step: int, size: int, n_rows: int, seed: int) -> np.ndarray:
    """The rows of a step: every epoch goes through all of them in an order of its own."""
    epochs, places = np.divmod(np.arange(step * size, (step + 1) * size), n_rows)
    orders = {e: np.random.default_rng([seed, e]).permutation(n_rows) for e in set(epochs.tolist())}
    return np.array([orders[e][place] for e, place in zip(epochs.tolist(), places, strict=True)])


def _state(model: torch.nn.Module, optimizer, done: int) -> dict[str, torch.Tensor]:
    """All that the rest of the run depends on."""
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for number, slots in optimizer.state_dict()["state"].items():
        state |= {f"adam.{number}.{name}": tensor for name, tensor in slots.items()}
    return state | {"done": torch.tensor(done)}


def _restore(model: torch.nn.Module, optimizer, saved: Mapping[str, torch.Tensor]) -> int:
    """Continue from a `_state`; the number of steps done."""
    weights, slots = {}, {}
    for name, tensor in saved.items():
        kind, _, rest = name.partition(".")
        if kind == "model":
            weights[rest] = tensor
        elif kind == "adam":
            number, _, slot = rest.partition(".")
            slots.setdefault(int(number), {})[slot] = tensor
    model.load_state_dict(weights)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})
    return int(saved["done"])
