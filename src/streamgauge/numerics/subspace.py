"""The attention subspace Z of a layer, and what lies in it.

Definitions: docs/definitions.md, "Attention subspace Z" and "Residual updates". A basis V has shape
(k_sub, d) with orthonormal rows; the projector onto its subspace is P = VᵀV, which is never formed.
Everything is computed in float64; arrays are NumPy or torch (see `arrays`).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special, stats
from scipy.spatial.distance import pdist

from streamgauge.base.errors import StreamgaugeError
from streamgauge.numerics.arrays import NUMPY, either


class Subspace(NamedTuple):
    """A subspace of the residual stream.

    Attributes:
        basis: (k_sub, d) float64, orthonormal rows.
        singular_values: (k_sub,) float64, largest first, of the stacked bases of the heads: the
            square of one says in how many heads' bases its direction lies, at most H.
    """

    basis: np.ndarray
    singular_values: np.ndarray


@either("w_q", "w_k", inside=NUMPY)
def attention_subspace(w_q, w_k, k_sub: int) -> Subspace:
    """Z of a layer: what its heads' keys read most (docs/definitions.md, "Attention subspace Z").

    A_h = W_Q,hᵀ W_K,h for every head; its leading k_sub right singular vectors; those of all heads
    stacked, decomposed again, and the leading k_sub right singular vectors kept. The factors are
    decomposed, never the d×d products. Bases for different k_sub are not nested.

    Args:
        w_q: query projections, (H, d_head, d).
        w_k: key projections, (H_kv, d_head, d); head h reads key head h // (H / H_kv).
        k_sub: dimension of Z.

    Returns:
        The subspace; signs are set so that each vector's largest entry is positive. A head gives
        as many vectors as its kernel has rank, where that is below k_sub.

    Raises:
        StreamgaugeError: shapes that do not fit; a weight that is not finite; the heads together
            read fewer than k_sub directions.
    """
    stacked = [vectors[: max(k_sub, 1)] for _, vectors in _kernels(w_q, w_k)]
    _, values, rows = np.linalg.svd(np.concatenate(stacked), full_matrices=False)
    rank = _rank(values, w_q, w_k)
    if not 1 <= k_sub <= rank:
        raise StreamgaugeError(
            f"no subspace of {k_sub} dimensions: the heads' keys read {rank} of"
            f" {rows.shape[1]} directions",
            remedy=f"Choose k_sub between 1 and {rank}.",
        )
    basis = rows[:k_sub]
    largest = np.take_along_axis(basis, np.abs(basis).argmax(1)[:, None], 1)
    return Subspace(basis * np.sign(largest), values[:k_sub])


@either("w_q", "w_k", inside=NUMPY)
def kernel_singular_values(w_q, w_k):
    """Singular values of every head's kernel A_h, largest first.

    Args:
        w_q, w_k: as for `attention_subspace`.

    Returns:
        (H, min(d_head, d)) float64; the other singular values of A_h are 0.

    Raises:
        StreamgaugeError: shapes that do not fit; a weight that is not finite.
    """
    return np.stack([values for values, _ in _kernels(w_q, w_k)])


def _kernels(w_q, w_k):
    """Of each head the singular values, and the right singular vectors of those above rounding."""
    given = w_q, w_k
    w_q, w_k = (np.asarray(w, np.float64) for w in given)
    if w_q.ndim != 3 or w_q.shape[1:] != w_k.shape[1:] or len(w_q) % max(len(w_k), 1):
        raise StreamgaugeError(
            f"query and key projections of shapes {w_q.shape} and {w_k.shape} do not fit together"
        )
    if not (np.isfinite(w_q).all() and np.isfinite(w_k).all()):
        raise StreamgaugeError("a query or key weight is not finite")
    keys = [np.linalg.qr(w.T) for w in w_k]
    for head, w in enumerate(w_q):
        directions, key = keys[head // (len(w_q) // len(w_k))]
        # A = Q_q R_q R_kᵀ Q_kᵀ: the small core has the singular values of A
        _, values, rows = np.linalg.svd(np.linalg.qr(w.T, mode="r") @ key.T)
        yield values, rows[: _rank(values, *given)] @ directions.T


def _rank(values, w_q, w_k):
    """How many singular values lie above the rounding of the weights and of the arithmetic."""
    precision = max(np.finfo(np.result_type(w, np.float32)).eps for w in (w_q, w_k))
    rounding = max(16 * precision, np.shape(w_q)[-1] * np.finfo(np.float64).eps)
    return int((values > rounding * values[:1]).sum())


def random_subspace(d: int, k_sub: int, seed: int | Sequence[int]) -> np.ndarray:
    """An orthonormal basis, (k_sub, d), of a uniformly distributed subspace; a NumPy array.

    Rows of ``scipy.stats.ortho_group.rvs(d)`` have the same law.

    Args:
        d: dimension of the space.
        k_sub: dimension of the subspace.
        seed: a function of this and the sizes alone. Draw j of a family with seed s has
            ``[s, j]``.

    Raises:
        StreamgaugeError: not 1 ≤ k_sub ≤ d.
    """
    if not 1 <= k_sub <= d:
        raise StreamgaugeError(
            f"no subspace of {k_sub} dimensions in {d}", remedy=f"Choose k_sub between 1 and {d}."
        )
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((d, k_sub)))[0].T


def random_subspaces(d: int, k_sub: int, seed: int, n: int) -> list[np.ndarray]:
    """The first `n` random subspaces of a seed: the same ones wherever Z is held against them."""
    return [random_subspace(d, k_sub, [seed, j]) for j in range(n)]


@either("basis", inside=NUMPY)
def projector_error(basis) -> float:
    """‖P² − P‖ (Frobenius) of P = VᵀV, computed in float64 without forming P.

    Args:
        basis: V, (k_sub, d), rows nearly orthonormal.
    """
    gram = np.asarray(basis, np.float64)
    gram = gram @ gram.T
    excess = gram - np.eye(len(gram))
    # P² − P = Vᵀ(G − I)V with G = VVᵀ, and ‖VᵀMV‖² = tr(MGMG)
    product = excess @ gram
    return float(np.sqrt(max(np.trace(product @ product), 0.0)))


@either("v", "x", inside=NUMPY)
def project(v, x):
    """P x, the part of `x` in the subspace; the part in its complement is x − P x.

    Args:
        v: orthonormal basis, (k_sub, d).
        x: vectors, (..., d).
    """
    v, x = np.asarray(v, np.float64), np.asarray(x, np.float64)
    return (x @ v.T) @ v


@either("v1", "v2", inside=NUMPY)
def similarity(v1, v2, top: int = 20) -> float:
    """Mean squared cosine of the principal angles between two subspaces; by chance top / d.

    The mean of ``numpy.cos(scipy.linalg.subspace_angles(v1[:top].T, v2[:top].T)) ** 2``.

    Args:
        v1, v2: orthonormal bases, (k_sub, d) each, the leading rows first.
        top: how many leading rows of each span the subspaces compared.

    Raises:
        StreamgaugeError: a basis has fewer than `top` rows.
    """
    v1, v2 = np.asarray(v1, np.float64), np.asarray(v2, np.float64)
    if not 1 <= top <= min(len(v1), len(v2)):
        raise StreamgaugeError(
            f"no {top} leading rows in bases of {len(v1)} and {len(v2)}",
            remedy="Compare at most as many as the smaller basis has.",
        )
    return float(((v1[:top] @ v2[:top].T) ** 2).sum() / top)


@either("w_gate", "v", inside=NUMPY)
def ffn_alignment(w_gate, v) -> float:
    """Share of the FFN's squared input weights in the subspace, over chance: ‖WP‖²/‖W‖² ÷ k/d.

    Args:
        w_gate: gate (or only input) projection of the FFN, (d_ff, d).
        v: orthonormal basis, (k_sub, d).

    Returns:
        1 by chance, d/k_sub at most; NaN for weights of 0.
    """
    w, v = np.asarray(w_gate, np.float64), np.asarray(v, np.float64)
    k_sub, d = v.shape
    total = (w**2).sum()
    return float(((w @ v.T) ** 2).sum() / total * d / k_sub) if total else math.nan


@either("target", "source", "basis", inside=NUMPY)
def separation(target, source, basis) -> dict[str, float]:
    """How far languages lie apart, beside how far problems do, inside and outside a subspace.

    ratio_X is the mean distance of a problem's two languages, ‖P_X(source_i − target_i)‖, over the
    mean distance of two problems in one language (all pairs of problems; the mean of the two
    languages' means). E_Z is the mean share of ‖source_i − target_i‖² that lies in the subspace.

    Args:
        target, source: pooled states of the same N problems in two languages, (N, d), N ≥ 2.
        basis: orthonormal basis, (k_sub, d).

    Returns:
        ``ratio_z``, ``ratio_z_perp``, ``ratio_full``, ``e_z``. A ratio is NaN where problems do
        not differ by more than rounding; pairs that do not differ are left out of ``e_z``.

    Raises:
        StreamgaugeError: fewer than two problems, or shapes that do not fit.
    """
    target, source = np.asarray(target, np.float64), np.asarray(source, np.float64)
    basis = np.asarray(basis, np.float64)
    if target.shape != source.shape or target.ndim != 2 or target.shape[1] != basis.shape[1]:
        raise StreamgaugeError(
            f"states of shapes {target.shape} and {source.shape} and a basis of shape"
            f" {basis.shape} do not fit together"
        )
    if len(target) < 2:
        raise StreamgaugeError(
            f"{len(target)} problem(s) have no distance from one another",
            remedy="Use at least two pairs of prompts.",
        )
    # coordinates in Z have the distances of the projections
    target_z, source_z = target @ basis.T, source @ basis.T
    energy = ((source_z - target_z) ** 2).sum(1)
    total = ((source - target) ** 2).sum(1)
    apart = total > 0
    # states come from float32: distances below their rounding are none
    size = np.linalg.norm(np.concatenate([target, source]), axis=1).mean()
    least = 8 * np.finfo(np.float32).eps * size
    return {
        "ratio_z": _ratio(target_z, source_z, least),
        "ratio_z_perp": _ratio(target - target_z @ basis, source - source_z @ basis, least),
        "ratio_full": _ratio(target, source, least),
        "e_z": float((energy[apart] / total[apart]).mean()) if apart.any() else math.nan,
    }


def _ratio(target, source, least):
    across = np.linalg.norm(source - target, axis=1).mean()
    within = (pdist(target).mean() + pdist(source).mean()) / 2
    return float(across / within) if within > least else math.nan


def energy_chance(d: int, k_sub: int, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean and central interval of the share of an isotropic vector's energy in k_sub of d.

    The share follows Beta(k/2, (d−k)/2). The interval is that of a single vector: differences
    between languages have much in common, so the mean of N of them varies nearly as one does.

    Returns:
        mean (k/d), low, high.
    """
    if k_sub == d:
        return 1.0, 1.0, 1.0
    law = stats.beta(k_sub / 2, (d - k_sub) / 2)
    return k_sub / d, *(float(end) for end in law.interval(confidence))


@either("delta", "basis", inside=NUMPY)
def update_ratio(delta, basis):
    """R = ‖PΔ‖ / ‖Δ − PΔ‖ (docs/definitions.md, "Residual updates").

    Args:
        delta: updates of the residual stream, (..., d).
        basis: orthonormal basis, (k_sub, d).

    Returns:
        (...); inf where all of an update lies in the subspace, NaN where it is 0.
    """
    delta = np.asarray(delta, np.float64)
    inside = project(basis, delta)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.linalg.norm(inside, axis=-1) / np.linalg.norm(delta - inside, axis=-1)


def update_ratio_chance(d: int, k_sub: int) -> float:
    """E[R] of an isotropic update, exact: E[χ_k] E[1/χ_(d−k)].

    ‖PΔ‖ and ‖Δ − PΔ‖ of a Gaussian vector are independent and follow χ with k and d − k degrees
    of freedom. 0.1575 for 50 of 2,048, where sqrt(k/(d−k)), R of the expected energies, is 0.1582.

    Returns:
        The expectation; inf where d − k < 2.
    """
    rest = d - k_sub
    if rest < 2:
        return math.inf
    return math.exp(
        special.gammaln((k_sub + 1) / 2)
        - special.gammaln(k_sub / 2)
        + special.gammaln((rest - 1) / 2)
        - special.gammaln(rest / 2)
    )
