"""Log-probabilities in few coordinates: the leading principal components of centred logits.

Definitions: docs/definitions.md, "MI critics". A log-probability less its mean over the vocabulary
is the logit less its own mean: the normaliser falls out, and nothing else is lost.
"""

from typing import NamedTuple

import numpy as np
import torch

from streamgauge.base.errors import StreamgaugeError
from streamgauge.numerics.arrays import TORCH, either, float64
from streamgauge.numerics.nulls import ROUNDING


class Basis(NamedTuple):
    """Mean (V,) and directions (V, components) of centred log-probabilities, and their share."""

    mean: np.ndarray | torch.Tensor
    directions: np.ndarray | torch.Tensor
    explained: float


@either("logits", inside=TORCH)
def logit_basis(logits, components: int) -> Basis:
    """Leading principal components of centred log-probabilities: ``sklearn.decomposition.PCA``.

    Args:
        logits: (n, V), n at most a few thousand, of the training part alone.
        components: how many.

    Returns:
        Directions of unit length, the largest entry of each positive; `explained` is their share
        of the variance.

    Raises:
        StreamgaugeError: the rows span fewer components.
    """
    x = _centred(logits)
    mean = x.mean(0)
    x = x - mean
    # rows are fewer than words: their products have the same spectrum as the covariance
    values, vectors = torch.linalg.eigh(x @ x.T)
    rank = int((values > ROUNDING * values[-1]).sum())
    if not 1 <= components <= rank:
        raise StreamgaugeError(
            f"{components} components of logits of rank {rank} do not exist",
            remedy="Lower critics.components or raise critics.sequences.",
        )
    directions = x.T @ vectors[:, -components:].flip(1)
    directions = directions / directions.norm(dim=0)
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    explained = float(values[-components:].sum() / values.sum())
    return Basis(mean, directions * largest.sign(), explained)


@either("logits", inside=TORCH)
def reduced_logits(logits, basis: Basis):
    """Centred log-probabilities in the coordinates of `basis`: (n, V) to (n, components)."""
    x = _centred(logits)
    mean, directions = (torch.as_tensor(part).to(x) for part in basis[:2])
    return (x - mean) @ directions


def _centred(logits) -> torch.Tensor:
    x = float64(logits.detach())
    return x - x.mean(-1, keepdim=True)
