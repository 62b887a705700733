"""What an error costs the model, to first and to second order: the formulas.

Definitions: docs/definitions.md, "Sensitivity". Losses and divergences are in nats. Probes v_i of a
token are the columns of U (d, s), the factor 1/√s included, so that G ≈ UUᵀ; gradients g are those
of the summed loss of their sequence. Arrays are NumPy or torch (see `arrays`).
"""

import numpy as np

from streamgauge.numerics.arrays import TORCH, either, float64
from streamgauge.numerics.metrics import dot_per_token, log_probabilities


@either("root", "u", inside=TORCH)
def times_root_fisher(root, u):
    """F^½ u = √p ⊙ (u − √p (√p·u)), written over `u`, which is returned.

    In place, because both are as large as the logits.

    Args:
        root: √p, shape ``(..., V)``; a position of zeros counts as having no next token.
        u: shape ``(..., V)``, of the same type.
    """
    import torch

    along = torch.linalg.vecdot(root, u)[..., None]
    return u.addcmul_(root, along, value=-1).mul_(root)


@either("logits", "u", inside=TORCH)
def fisher_factor_apply(logits, u, *, diagonal: bool = False):
    """F^½ u with F = diag(p) − ppᵀ, p = softmax(logits): √p·u − p(√p·u).

    Args:
        logits, u: shape ``(..., V)``.
        diagonal: drop ppᵀ: the factor √p·u of diag(p). Not a Fisher: diag(p) exceeds F by ppᵀ and
            charges for adding one number to all logits, which changes no probability.

    Returns:
        Shape ``(..., V)``, float32 or float64. For u ~ N(0, I) its second moment is F.
    """
    root = log_probabilities(logits).exp().sqrt()
    u = u.to(root, copy=True)
    return root * u if diagonal else times_root_fisher(root, u)


@either("g", "delta")
def swd(g, delta) -> float:
    """Sensitivity-weighted distortion: mean over tokens of (g·δ)², nats².

    Args:
        g: gradients of the summed loss of their sequence, shape ``(..., d)``, in nats per unit of
            activation. Of a mean loss over T positions they would give SWD/T².
        delta: errors â − a, same shape.
    """
    return float((dot_per_token(g, delta) ** 2).mean())


@either("projected")
def quadratic(projected):
    """½ δᵀGδ = ½ Σ_i (v_i·δ)² in nats: the KL an error costs, to second order.

    Args:
        projected: v_i·δ, shape ``(..., s)``.

    Returns:
        Shape ``(...,)``, float64: every token's error priced alone.
    """
    return (float64(projected) ** 2).sum(-1) / 2


@either("projected")
def joint_quadratic(projected):
    """½ Σ_i (Σ_t v_i,t·δ_t)² in nats: the errors of all tokens of a sequence together.

    Args:
        projected: v_i,t·δ_t, shape ``(..., T, s)``, 0 for tokens without error.

    Returns:
        Shape ``(...,)``, float64.
    """
    return quadratic(float64(projected).sum(-2))


@either("probes", inside=TORCH)
def squared_trace_and_trace_of_square(probes):
    """Unbiased estimates of (tr G)² and tr G² of every token.

    With K = UᵀU they are s/(s−1) times the sums over i ≠ j of K_ii K_jj and of K_ij²: only
    products of different, independent probes.

    Args:
        probes: U, shape ``(n, d, s)``, 1/√s included.

    Returns:
        Two arrays (n,), float64; NaN for s = 1.
    """
    gram = float64(probes.mT @ probes)
    s = gram.shape[-1]
    squares = gram.diagonal(dim1=-2, dim2=-1)
    pairs = s / (s - 1) if s > 1 else np.nan
    same = (squares**2).sum(-1)
    return pairs * (squares.sum(-1) ** 2 - same), pairs * ((gram**2).sum((-2, -1)) - same)


@either("squared_trace", "trace_of_square")
def deviation_from_totals(squared_trace, trace_of_square, d: int):
    """Fisher–Euclidean deviation 1 − (tr G)²/(d·tr G²), element by element, of sums over tokens.

    0 iff G ∝ I, 1 − 1/d for rank one; it may fall below 0 by the noise of the estimates. float64.
    """
    return 1 - float64(squared_trace) / (d * float64(trace_of_square))


@either("probes", inside=TORCH)
def fisher_euclidean_deviation(probes) -> float:
    """`deviation_from_totals` over all tokens of `probes`, shape ``(n, d, s)``; NaN for s = 1."""
    squared_trace, trace_of_square = squared_trace_and_trace_of_square(probes)
    return float(deviation_from_totals(squared_trace.sum(), trace_of_square.sum(), probes.shape[1]))
