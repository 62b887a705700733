"""Reconstruction and behaviour metrics: every formula once, on arrays already in memory.

Definitions: docs/definitions.md, "Reconstruction" and "Behaviour". Euclidean functions take
activations `a` and reconstructions `a_hat` of one shape ``(..., d)``; arrays are NumPy or torch
(see `arrays`), and all sums run in float64. The ``*_per_token`` functions are the formulas
themselves: passes that stream sum them batch by batch, hand the totals to the ``*_from_totals``
functions, and get the numbers the functions on whole arrays give.
"""

import math

import numpy as np

from streamgauge.base.errors import StreamgaugeError
from streamgauge.numerics.arrays import NUMPY, TORCH, either, float64

#: Keeps the relative error of an all-zero activation finite, as the source defines it.
RELATIVE_ERROR_EPS = 1e-10
#: What `divergence` gives, in its order, as tables name it.
DIVERGENCES = ("kl", "js")


# --- token by token -----------------------------------------------------------------------------
@either("a")
def squared_norm_per_token(a):
    """‖a_t‖² for every token: shape ``(...,)`` from ``(..., d)``, float64."""
    a = float64(a)
    return (a * a).sum(-1)


@either("a", "a_hat")
def squared_error_per_token(a, a_hat):
    """‖a_t − â_t‖² for every token, float64. With a mean in place of `a_hat`: the terms of SST."""
    return squared_norm_per_token(float64(a) - float64(a_hat))


@either("a", "a_hat")
def dot_per_token(a, a_hat):
    """a_t·â_t for every token, float64; NumPy's ``vecdot``."""
    return (float64(a) * float64(a_hat)).sum(-1)


@either("a", "a_hat")
def cosine_per_token(a, a_hat):
    """a_t·â_t / (‖a_t‖‖â_t‖) for every token; 0 where either vector is zero."""
    norms = (squared_norm_per_token(a) * squared_norm_per_token(a_hat)) ** 0.5
    return dot_per_token(a, a_hat) / (norms + (norms == 0))


@either("a", "a_hat")
def relative_error_per_token(a, a_hat):
    """‖a_t − â_t‖ / (‖a_t‖ + 1e-10) for every token."""
    return squared_error_per_token(a, a_hat) ** 0.5 / (
        squared_norm_per_token(a) ** 0.5 + RELATIVE_ERROR_EPS
    )


# --- from totals over tokens --------------------------------------------------------------------
@either("sse", "sst", inside=NUMPY)
def nmse_from_totals(sse, sst):
    """NMSE = SSE/SST, element by element; NaN where SST is 0."""
    sst = np.asarray(sst, np.float64)
    with np.errstate(invalid="ignore"):
        return np.asarray(sse, np.float64) / np.where(sst == 0, np.nan, sst)


@either("sse", "sst", inside=NUMPY)
def r_squared_from_totals(sse, sst):
    """R² = 1 − SSE/SST, element by element: a ratio of totals; NaN where SST is 0.

    Args:
        sse: Σ‖a−â‖² over tokens, any shape.
        sst: Σ‖a−mean‖² over the same tokens, with one global mean vector; same shape.
    """
    return 1 - nmse_from_totals(sse, sst)


@either("sse", "n_tokens", inside=NUMPY)
def mse_from_totals(sse, n_tokens, d_model: int):
    """MSE = SSE/(N·d), element by element; NaN where N is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(sse, np.float64) / np.asarray(n_tokens, np.float64) / d_model


# --- on whole arrays ----------------------------------------------------------------------------
def _checked(a, a_hat):
    a, a_hat = float64(a), float64(a_hat)
    if a.shape != a_hat.shape or a.ndim < 2:
        raise StreamgaugeError(
            f"activations {tuple(a.shape)} and reconstructions {tuple(a_hat.shape)} do not match",
            remedy="Pass two arrays of one shape (tokens, d_model).",
        )
    return a.reshape(-1, a.shape[-1]), a_hat.reshape(-1, a.shape[-1])


def _totals(a, a_hat, mean) -> tuple[float, float]:
    """SSE and SST over all tokens."""
    a, a_hat = _checked(a, a_hat)
    mean = a.mean(0) if mean is None else float64(mean)
    sse = float(squared_error_per_token(a, a_hat).sum())
    return sse, float(squared_error_per_token(a, mean).sum())


@either("a", "a_hat", "mean")
def r_squared(a, a_hat, mean=None) -> float:
    """R² = 1 − SSE/SST, a ratio of totals over all tokens.

    SSE = Σ‖a−â‖², SST = Σ‖a−mean‖² with one global mean *vector*, so predicting the mean scores 0
    and a constant bias is not forgiven. ``sklearn.metrics.r2_score(a, a_hat,
    multioutput="variance_weighted")``.

    Args:
        a, a_hat: shape ``(..., d)``.
        mean: the global mean, shape ``(d,)``; the mean of `a` when not given.

    Returns:
        R², dimensionless; NaN when SST is 0.

    Raises:
        StreamgaugeError: shapes that do not match, or are no tokens.
    """
    return float(r_squared_from_totals(*_totals(a, a_hat, mean)))


@either("a", "a_hat", "mean")
def nmse(a, a_hat, mean=None) -> float:
    """NMSE = SSE/SST = 1 − R²; arguments and errors as for `r_squared`."""
    return float(nmse_from_totals(*_totals(a, a_hat, mean)))


@either("a", "a_hat")
def mse(a, a_hat) -> float:
    """MSE = SSE/(N·d), the mean over tokens and coordinates, in the squared unit of activations.

    ``sklearn.metrics.mean_squared_error``. Errors as for `r_squared`.
    """
    a, a_hat = _checked(a, a_hat)
    return float(mse_from_totals(float(squared_error_per_token(a, a_hat).sum()), *a.shape))


@either("a", "a_hat")
def cosine(a, a_hat) -> float:
    """Mean over tokens of a·â/(‖a‖‖â‖); a token where either vector is zero counts as 0.

    The mean of ``torch.nn.functional.cosine_similarity``. Errors as for `r_squared`.
    """
    return float(cosine_per_token(*_checked(a, a_hat)).mean())


@either("a", "a_hat")
def relative_error(a, a_hat) -> float:
    """Mean over tokens of ‖a−â‖/(‖a‖+1e-10), dimensionless. Errors as for `r_squared`."""
    return float(relative_error_per_token(*_checked(a, a_hat)).mean())


# --- losses -------------------------------------------------------------------------------------
@either("l_orig", "l_recon")
def loss_recovered(l_orig, l_recon):
    """2 − L_recon/L_orig, element by element: 1 when nothing is lost, 0 when the loss doubles.

    CE_rec of sequences where the losses are theirs, of totals where they are totals; float64.
    """
    return 2 - float64(l_recon) / float64(l_orig)


@either("l_orig", "l_recon", "l_ablated")
def loss_score(l_orig, l_recon, l_ablated):
    """(L_abl − L_recon)/(L_abl − L_orig), element by element: of losses or of totals; float64."""
    l_orig, l_recon, l_ablated = (float64(x) for x in (l_orig, l_recon, l_ablated))
    return (l_ablated - l_recon) / (l_ablated - l_orig)


@either("l_orig", "l_recon", "weights", inside=NUMPY)
def ce_rec(l_orig, l_recon, how: str = "mean_of_ratios", weights=None) -> float:
    """Cross-entropy recovery from per-sequence losses.

    Args:
        l_orig, l_recon: next-token cross-entropy of each sequence in nats, clean and with the
            hook point replaced by the reconstruction; shape ``(sequences,)``.
        how: ``"mean_of_ratios"`` is the mean of 2 − L_recon/L_orig (as published);
            ``"ratio_of_totals"`` is 2 − ΣL_recon/ΣL_orig.
        weights: predicted positions of each sequence, used by ``"ratio_of_totals"`` so that the
            totals run over tokens; equal weights when not given.

    Returns:
        CE_rec, dimensionless; 1 when nothing is lost. [1, 4] and [3, 4] give 0.0 and 0.6.

    Raises:
        StreamgaugeError: no such `how`.
    """
    l_orig, l_recon = np.asarray(l_orig, np.float64), np.asarray(l_recon, np.float64)
    if how == "mean_of_ratios":
        return float(np.mean(loss_recovered(l_orig, l_recon)))
    if how == "ratio_of_totals":
        weights = np.ones_like(l_orig) if weights is None else np.asarray(weights, np.float64)
        return float(loss_recovered(np.sum(weights * l_orig), np.sum(weights * l_recon)))
    raise StreamgaugeError(
        f"ce_rec has no aggregate '{how}'", remedy="Use 'mean_of_ratios' or 'ratio_of_totals'."
    )


@either("l_orig", "l_recon", "l_ablated", "weights", inside=NUMPY)
def ce_loss_score(l_orig, l_recon, l_ablated, weights=None) -> float:
    """(L_abl − L_recon)/(L_abl − L_orig) of the mean losses: SAELens' ``ce_loss_score``.

    Args:
        l_orig, l_recon, l_ablated: losses in nats, per sequence or already aggregated.
        weights: predicted positions of each sequence (SAELens averages over tokens); equal when
            not given.

    Returns:
        1 when the reconstruction costs nothing, 0 when it is as bad as the ablation.
    """
    orig, recon, ablated = (
        np.average(np.atleast_1d(np.asarray(x, np.float64)), weights=weights)
        for x in (l_orig, l_recon, l_ablated)
    )
    return float(loss_score(orig, recon, ablated))


# --- rates --------------------------------------------------------------------------------------
def rate_bits_per_token(d_sae: int, k: int, bits_per_value: float = 8) -> float:
    """Primary rate log2 C(d_sae, k) + bits_per_value·k, in bits/token.

    d_sae=16384, k=8 gives 160.70. ``numpy.log2(scipy.special.comb(d_sae, k, exact=True))`` and the
    values.

    Raises:
        StreamgaugeError: k is not between 0 and d_sae.
    """
    if not 0 <= k <= d_sae:
        raise StreamgaugeError(
            f"{k} of {d_sae} latents cannot be active", remedy="Choose k between 0 and d_sae."
        )
    return math.log2(math.comb(d_sae, k)) + bits_per_value * k


@either("firing_rates", inside=NUMPY)
def entropy_rate_bits(firing_rates, bits_per_value: float = 8):
    """Empirical rate Σ_i H_b(p_i) + bits_per_value·L0, in bits/token.

    Args:
        firing_rates: p_i, the share of tokens on which latent i is non-zero; shape ``(..., m)``.
            L0 = Σ_i p_i. H_b is ``scipy.stats.entropy([p, 1 - p], base=2)``.

    Returns:
        Shape ``(...,)``.
    """
    p = np.asarray(firing_rates, np.float64)
    q = 1 - p
    tiny = np.finfo(np.float64).tiny  # 0·log2(tiny) is 0, the limit of p·log2 p
    bits = -p * np.log2(np.maximum(p, tiny)) - q * np.log2(np.maximum(q, tiny))
    return bits.sum(-1) + bits_per_value * p.sum(-1)


# --- distributions ------------------------------------------------------------------------------
@either("logits", inside=TORCH)
def log_probabilities(logits):
    """log softmax over the last axis, in float32 or float64: the shape of `logits`, same device.

    Computed in the type of `logits`, at least float32, by ``torch.log_softmax``.
    """
    import torch

    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


@either("log_q", "labels", inside=TORCH)
def cross_entropy_per_position(log_q, labels):
    """−log q(label) in nats, float64: ``torch.nn.functional.cross_entropy`` without reduction.

    Args:
        log_q: log-probabilities ``(..., V)``, from `log_probabilities`.
        labels: token ids ``(...,)``, int64.
    """
    return -float64(log_q.gather(-1, labels[..., None])[..., 0])


@either("log_p", "log_q", inside=TORCH)
def kl_per_position(log_p, log_q):
    """KL(p‖q) = Σ p (log p − log q) in nats for every position: ``scipy.stats.entropy(p, q)``.

    Args:
        log_p, log_q: log-probabilities ``(..., V)``, from `log_probabilities`; the terms are
            formed in their precision and summed in float64.

    Returns:
        Shape ``(...,)``, float64.
    """
    import torch

    p = log_p.exp()
    # a token with p = 0 contributes nothing, also when its log-probability is −inf
    terms = torch.where(p > 0, p * (log_p - log_q), 0)
    if terms.device.type == "mps":
        terms = terms.cpu()
    return terms.sum(-1, dtype=torch.float64)


@either("logits", "logits_patched", inside=TORCH)
def kl_from_logits(logits, logits_patched) -> float:
    """Mean over positions of KL(clean‖patched) of the next-token distribution, in nats.

    Args:
        logits, logits_patched: shape ``(..., V)``.
    """
    log_p, log_q = log_probabilities(logits), log_probabilities(logits_patched)
    return float(kl_per_position(log_p, log_q).mean())


@either("p", "q", inside=TORCH)
def divergence(p, q):
    """KL(p‖q) and the Jensen–Shannon divergence of weights along the last axis, nats.

    ``scipy.stats.entropy(p, q)`` and the square of ``scipy.spatial.distance.jensenshannon``; for
    the rows of attention (docs/definitions.md, "Attention-plan divergence"). JS ≤ ln 2.

    Args:
        p, q: weights of one shape ``(..., entries)``, not negative. Each row is divided by its sum.

    Returns:
        ``(kl, js)``, float64 of shape ``(...)``. KL is infinite where q is 0 and p is not; a row
        without any weight gives NaN.
    """
    p, q = float64(p), float64(q)
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    middle = (p + q) / 2
    js = (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2
    return _relative_entropy(p, q), js


def _relative_entropy(p, q):
    """Σ p log(p/q) with 0 log 0 = 0; rounding cannot make it negative."""
    ratio = (p / q).masked_fill(p == 0, 1.0)
    return (p * ratio.log()).sum(-1).clamp(min=0)
