"""The nulls that stand beside every claim about an SAE, in one place.

Everything made here is a codec that `evaluate` can patch in, as a trained SAE is.
"""

from collections.abc import Mapping

import torch

from streamgauge.passes.evaluate import Codec
from streamgauge.sae.codec import SparseAutoencoder
from streamgauge.sae.topk import TopKSAE, init


def untrained(d_model: int, d_sae: int, k: int, seed: int, b_dec) -> TopKSAE:
    """The SAE of this shape before its first training step.

    Args:
        d_model, d_sae, k: shape of the trained SAE.
        seed: the trained SAE's, so that this is the very SAE training started from.
        b_dec: the decoder bias training started from, shape ``(d_model,)``, in the units of the
            residual stream. With b_enc = 0 an input scale cancels, so none is needed here.
    """
    return init(d_model, d_sae, k, seed, torch.as_tensor(b_dec))


def untrained_like(sae: SparseAutoencoder, facts: Mapping[str, object]) -> TopKSAE:
    """The untrained control of a trained SAE, on its device.

    An SAE without a k of its own gets a TopK control with as many latents a token as it has on
    average: thresholds are learned, and random ones would set the sparsity by chance.

    Args:
        sae: the trained SAE.
        facts: its manifest's facts: ``seed`` and ``b_dec_init``, and ``control_k`` where the SAE
            has no k.
    """
    k = facts["control_k"] if sae.k is None else sae.k
    control = untrained(sae.d_model, sae.d_sae, k, facts["seed"], facts["b_dec_init"])
    return control.to(sae.W_enc.device)


def zero_ablation() -> Codec:
    """Replace every residual by zero."""
    return lambda h: (torch.zeros_like(h), None)


def mean_ablation(mean) -> Codec:
    """Replace every residual by `mean`, shape ``(d,)``: R² = 0 on the set it is the mean of."""
    mean = torch.as_tensor(mean)

    def codec(h):
        return mean.to(h).expand_as(h), None

    return codec


def ablations(mean: Mapping[str, object]) -> dict[str, Codec | dict[str, Codec]]:
    """Zero and mean ablation, named for `evaluate`.

    Args:
        mean: mean residual of each token set, shape ``(d,)``; each set is ablated to its own.
    """
    return {
        "zero": zero_ablation(),
        "mean": {token_set: mean_ablation(vector) for token_set, vector in mean.items()},
    }
