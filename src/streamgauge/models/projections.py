"""Query, key and FFN input projections of any Hugging Face decoder block, as arrays.

The weights are those published: no norm gain, bias, rotary embedding or query/key norm is folded
in (docs/definitions.md, "Attention subspace Z").
"""

from typing import NamedTuple

import numpy as np
from torch import nn

from streamgauge.base.errors import StreamgaugeError
from streamgauge.models import hooks

_INPUTS = ("fc1", "up_proj", "c_fc", "fc_in", "dense_h_to_4h")


class Projections(NamedTuple):
    """Projections of one block, float32.

    Attributes:
        w_q: (H, d_head, d).
        w_k: (H_kv, d_head, d).
        w_in: gate projection of the FFN, or its only input projection, (d_ff, d); None where the
            block has no single one (experts, fused projections).
        gated: whether `w_in` is a gate.
    """

    w_q: np.ndarray
    w_k: np.ndarray
    w_in: np.ndarray | None
    gated: bool


def projections(model: nn.Module, layer: int) -> Projections:
    """The projections of block `layer`.

    Args:
        model: a Hugging Face causal language model whose attention has a ``q_proj`` and a
            ``k_proj`` (Llama, Qwen, Gemma, Mistral, OPT and others).
        layer: from 0.

    Raises:
        StreamgaugeError: no such layer; the block's queries and keys come from one fused
            projection (GPT-2, GPT-NeoX, Phi-3), from something else than attention heads, or from
            projections of an unknown layout.
    """
    blocks = hooks.blocks(model)
    hooks.check_layers([layer], len(blocks))
    block, config = blocks[layer], model.config.get_text_config()
    where = f"{type(model).__name__}, block {layer}"
    remedy = "Choose a subject with separate projections, e.g. of the Llama, Qwen or Gemma family."
    attention = next((m for m in block.modules() if _linear(m, "q_proj", "k_proj")), None)
    if attention is None:
        raise StreamgaugeError(
            "there are no separate query and key projections (q_proj, k_proj)",
            where=where,
            remedy=remedy,
        )
    w_q, w_k = (_array(getattr(attention, name)) for name in ("q_proj", "k_proj"))
    heads, d = config.num_attention_heads, config.hidden_size
    width = getattr(attention, "head_dim", None) or len(w_q) // heads
    if w_q.shape != (heads * width, d) or w_k.shape[1] != d or len(w_k) % width:
        raise StreamgaugeError(
            f"projections of shapes {w_q.shape} and {w_k.shape} are not those of {heads} heads of"
            f" {width} reading {d}",
            where=where,
            remedy=remedy,
        )
    w_in, gated = _ffn(block, d)
    return Projections(w_q.reshape(-1, width, d), w_k.reshape(-1, width, d), w_in, gated)


def _ffn(block: nn.Module, d: int) -> tuple[np.ndarray | None, bool]:
    """The FFN's gate, else its input projection, else None; whether it is a gate."""
    for names, gated in ((("gate_proj",), True), (_INPUTS, False)):
        # deeper down lie experts, none of which is the FFN
        found = [
            getattr(module, name)
            for module in (block, *block.children())
            for name in names
            if _linear(module, name)
        ]
        if found:
            w = _array(found[0])
            return (w, gated) if w.shape[1] == d else (None, False)
    return None, False


def _linear(module: nn.Module, *names: str) -> bool:
    return all(isinstance(getattr(module, name, None), nn.Linear) for name in names)


def _array(linear: nn.Linear) -> np.ndarray:
    return linear.weight.detach().float().cpu().numpy()
