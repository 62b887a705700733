"""RowMetric: one inner product per row, the same for every consumer.

A row n has the metric ``W_n = U_n U_nᵀ`` given by factors ``U_n`` (p, s), or ``W_n = I`` without
factors. The likelihood (what a residual costs) and the gauge (how a Jacobian pulls the metric
back) read the same, only factor stack of the object, so they cannot disagree. Definitions are
those of docs/definitions.md, "RowMetric". No p x p matrix is formed from factors.
"""

from enum import StrEnum

import numpy as np
import torch

from streamgauge.base.errors import StreamgaugeError
from streamgauge.numerics.arrays import NUMPY, TORCH, either, float64, kind, to_torch
from streamgauge.numerics.metrics import squared_norm_per_token

SYMMETRY_TOLERANCE = 1e-8  # of the largest entry
EIGENVALUE_TOLERANCE = 1e-10  # of the largest entry, below 0
# Rows whose Gram matrices are formed at once in float64; 64 rows of 576 x 8 are 2 MB.
ROWS_AT_ONCE = {"cpu": 64}
ROWS_AT_ONCE_ELSEWHERE = 4096


class Provenance(StrEnum):
    """Where a metric comes from."""

    EUCLIDEAN = "Euclidean"
    OUTPUT_FISHER = "OutputFisher"
    BEHAVIORAL_FISHER = "BehavioralFisher"
    WHITENED_STRUCTURED = "WhitenedStructured"


class RowMetric:
    """A symmetric positive semidefinite metric for each of n rows of p coordinates.

    Made by `euclidean`, `output_fisher`, `behavioral_fisher` and `whitened_structured` only; which
    of them follows from the factors there are. Attributes cannot be set and the class cannot be
    subclassed. Factors, NumPy or torch, are kept where and in the precision they are given, without
    a copy, and computed with in that of the other operand, at least float32. Every method takes an
    operand of either kind and gives the same kind back, whatever the factors are.

    Attributes:
        provenance: a `Provenance`, also a string.
        n, p, s: rows, coordinates, probes (0 for Euclidean).
        factors: U, shape ``(n, p, s)``, of the kind it was given in; None for Euclidean.
        whitens_likelihood: whether residuals are measured by W; OutputFisher is for the gauge
            only, and in a Euclidean metric there is nothing to whiten.
    """

    __slots__ = ("_factors", "_kind", "_provenance", "_shape")

    def __init__(self):
        raise TypeError(
            "RowMetric is made by euclidean, output_fisher, behavioral_fisher or "
            "whitened_structured"
        )

    def __init_subclass__(cls):
        raise TypeError("RowMetric cannot be subclassed")

    def __setattr__(self, name, _value):
        raise AttributeError(f"RowMetric is immutable: {name} cannot be set")

    def __delattr__(self, name):
        raise AttributeError(f"RowMetric is immutable: {name} cannot be deleted")

    def __repr__(self):
        return f"RowMetric({self.provenance}, n={self.n}, p={self.p}, s={self.s})"

    # --- constructors ---------------------------------------------------------------------------
    @classmethod
    def euclidean(cls, n: int, p: int) -> "RowMetric":
        """W = I for n rows of p coordinates."""
        return cls._make(Provenance.EUCLIDEAN, None, (n, p), NUMPY)

    @classmethod
    def output_fisher(cls, packed, p: int) -> "RowMetric":
        """W = G sketched by probes, for the gauge; residuals stay Euclidean.

        Args:
            packed: see `behavioral_fisher`.
            p: coordinates of a row.

        Raises:
            StreamgaugeError: see `behavioral_fisher`.
        """
        return cls._of_packed(Provenance.OUTPUT_FISHER, packed, p)

    @classmethod
    def behavioral_fisher(cls, packed, p: int) -> "RowMetric":
        """W = G sketched by probes: residuals cost nats.

        Args:
            packed: factors, shape ``(n, p * s)``, ``packed[n, i * s + k] = U[n, i, k]``; column k
                of U is probe k with the factor 1/√s.
            p: coordinates of a row.

        Raises:
            StreamgaugeError: a length that is no multiple of p, s = 0, or a value that is not
                finite, naming the row.
        """
        return cls._of_packed(Provenance.BEHAVIORAL_FISHER, packed, p)

    @classmethod
    def whitened_structured(cls, covariance, n: int | None = None) -> "RowMetric":
        """W = Σ⁻¹: residuals are measured in standard deviations of a structured noise.

        With Σ = L Lᵀ the factors are U = L⁻ᵀ: ``quad_form`` is the square of
        ``scipy.spatial.distance.mahalanobis``.

        Args:
            covariance: Σ, shape ``(n, p, p)``, or ``(p, p)`` for all rows.
            n: rows, for a shared covariance.

        Raises:
            StreamgaugeError: a block that is not finite, symmetric and positive definite, naming
                the row.
        """
        given, covariance = kind(covariance, "the covariance"), _tensor(covariance)
        blocks = covariance[None] if covariance.ndim == 2 else covariance
        check_blocks(blocks)
        working = torch.promote_types(blocks.dtype, torch.float32)
        lower, info = torch.linalg.cholesky_ex(blocks.to(working))
        if info.any():
            row = int(info.nonzero()[0])
            raise StreamgaugeError(
                f"the covariance of row {row} is singular and has no inverse",
                remedy="Add the variance of an isotropic noise to its diagonal.",
            )
        identity = torch.eye(blocks.shape[-1]).to(lower)
        factors = torch.linalg.solve_triangular(lower, identity, upper=False).mT
        check_factors(factors)
        if covariance.ndim == 2:
            if n is None:
                raise StreamgaugeError("a shared covariance needs the number of rows n")
            factors = factors.expand(n, -1, -1)
        return cls._make(Provenance.WHITENED_STRUCTURED, factors, factors.shape[:2], given)

    @classmethod
    def _of_packed(cls, provenance, packed, p):
        given, factors = kind(packed, "the packed factors"), _unpacked(_tensor(packed), p)
        check_factors(factors)
        return cls._make(provenance, factors, factors.shape[:2], given)

    @classmethod
    def _make(cls, provenance, factors, shape, given):
        if shape[0] < 0 or shape[1] < 1:
            raise StreamgaugeError(f"there is no metric for {shape[0]} rows of {shape[1]}")
        metric = object.__new__(cls)
        for name, value in (
            ("_provenance", provenance),
            ("_factors", factors),
            ("_shape", tuple(shape)),
            ("_kind", given),
        ):
            object.__setattr__(metric, name, value)
        return metric

    # --- what it is -----------------------------------------------------------------------------
    @property
    def provenance(self) -> Provenance:
        """See the class."""
        return self._provenance

    @property
    def n(self) -> int:
        """Rows."""
        return self._shape[0]

    @property
    def p(self) -> int:
        """Coordinates of a row."""
        return self._shape[1]

    @property
    def s(self) -> int:
        """Probes; 0 for Euclidean."""
        return 0 if self._factors is None else self._factors.shape[2]

    @property
    def factors(self) -> np.ndarray | torch.Tensor | None:
        """U (n, p, s), or None for Euclidean."""
        return None if self._factors is None else self._as_given(self._factors)

    def _as_given(self, x):
        # a view, so that writing into it reaches every consumer
        return x if self._kind == TORCH else x.numpy()

    @property
    def whitens_likelihood(self) -> bool:
        """See the class."""
        return self._provenance in (Provenance.BEHAVIORAL_FISHER, Provenance.WHITENED_STRUCTURED)

    def rows(self, index) -> "RowMetric":
        """The metric of some rows: `index` is a slice or int64 numbers. Nothing is re-checked."""
        if self._factors is None:
            n = len(torch.arange(self.n)[index])
            return self._make(self._provenance, None, (n, self.p), self._kind)
        factors = self._factors[index]
        return self._make(self._provenance, factors, factors.shape[:2], self._kind)

    # --- likelihood and gauge -------------------------------------------------------------------
    @either("r", inside=TORCH)
    def whiten_residual_row(self, r):
        """Uᵀr (n, s) of residuals r (n, p) where the likelihood is whitened, else r itself."""
        r = self._checked(r, 2)
        return self._project(r) if self.whitens_likelihood else r

    @either("r", inside=TORCH)
    def loss(self, r):
        """Mean over rows of the squared norm of `whiten_residual_row`, a float64 scalar.

        Euclidean and OutputFisher: the squared error per token, p times the MSE, bit for bit.
        BehavioralFisher: twice the predicted KL in nats.
        """
        return squared_norm_per_token(self.whiten_residual_row(r)).mean()

    @either("e", inside=TORCH)
    def quad_form(self, e):
        """eᵀWe = ‖Uᵀe‖² of every row, (n,) float64, for e (n, p)."""
        e = self._checked(e, 2)
        return squared_norm_per_token(e if self._factors is None else self._project(e))

    @either("e", inside=TORCH)
    def apply(self, e):
        """We = U(Uᵀe) of every row, (n, p), for e (n, p)."""
        e = self._checked(e, 2)
        if self._factors is None:
            return e
        projected = self._project(e)
        return torch.einsum("nps,ns->np", self._factors.to(projected), projected)

    @either("jacobian", inside=TORCH)
    def pullback(self, jacobian):
        """JᵀWJ = (JᵀU)(UᵀJ) of every row, (n, q, q), for J (n, p, q)."""
        jacobian = self._checked(jacobian, 3)
        dtype = self._working(jacobian)
        jacobian = jacobian.to(dtype)
        if self._factors is not None:
            jacobian = self._factors.to(jacobian.device, dtype).mT @ jacobian
        return jacobian.mT @ jacobian

    def trace(self):
        """tr W of every row, (n,) float64, of the kind of the factors; NumPy for Euclidean."""
        if self._factors is None:
            return np.full(self.n, float(self.p))
        return self._as_given(squared_norm_per_token(self._factors).sum(-1))

    @either("b", inside=TORCH)
    def solve(self, b, ridge: float):
        """(W + ridge·I)⁻¹ b of every row, (n, p) float64, for b (n, p).

        The ridge makes W invertible for this solve and is nowhere else: no residual, quadratic
        form or loss contains it.

        Raises:
            StreamgaugeError: a ridge that is not positive and finite.
        """
        if not 0 < ridge < float("inf"):
            raise StreamgaugeError(
                f"a ridge of {ridge} does not make a metric invertible",
                remedy="Choose a small positive number.",
            )
        b = float64(self._checked(b, 2))
        if self._factors is None:
            return b / (1 + ridge)
        # in the range of U by its singular values, outside it the ridge alone
        basis, values, _ = torch.linalg.svd(float64(self._factors), full_matrices=False)
        inside = torch.einsum("npk,np->nk", basis, b)
        outside = b - torch.einsum("npk,nk->np", basis, inside)
        return torch.einsum("npk,nk->np", basis, inside / (values**2 + ridge)) + outside / ridge

    def _project(self, e):
        dtype = self._working(e)
        return torch.einsum("nps,np->ns", self._factors.to(e.device, dtype), e.to(dtype))

    def _working(self, other):
        dtype = torch.promote_types(other.dtype, torch.float32)
        return dtype if self._factors is None else torch.promote_types(dtype, self._factors.dtype)

    def _checked(self, x, ndim):
        x = _tensor(x)
        if x.ndim != ndim or x.shape[:2] != self._shape:
            raise StreamgaugeError(
                f"an array of shape {tuple(x.shape)} does not fit {self.n} rows of {self.p}"
            )
        return x


# --- packing ------------------------------------------------------------------------------------
@either("probes", inside=TORCH)
def pack_probe_factors(probes):
    """Probes (n, s, p) as packed factors (n, p * s), ``packed[n, i * s + k] = probes[n, k, i]``.

    v₀ = (1, 3) and v₁ = (2, 4) of one row pack to [1, 2, 3, 4].

    Raises:
        StreamgaugeError: another number of axes.
    """
    probes = _tensor(probes)
    if probes.ndim != 3:
        raise StreamgaugeError(f"probes have shape {tuple(probes.shape)}, not (n, s, p)")
    return probes.mT.flatten(1)


@either("packed", inside=TORCH)
def unpack_probe_factors(packed, p: int):
    """The view U (n, p, s) of packed factors (n, p * s).

    Raises:
        StreamgaugeError: another number of axes, a length that is no multiple of p.
    """
    return _unpacked(_tensor(packed), p)


def _unpacked(packed, p):
    if packed.ndim != 2 or p < 1 or packed.shape[1] % p:
        raise StreamgaugeError(
            f"packed factors of shape {tuple(packed.shape)} do not hold rows of p = {p}",
            remedy="Pack factors (n, p, s) as (n, p * s), row-major.",
        )
    return packed.unflatten(1, (p, packed.shape[1] // p))


# --- validation ---------------------------------------------------------------------------------
def check_blocks(blocks, first_row: int = 0) -> None:
    """Refuse blocks that are no metric: the one validator.

    A block passes when it is finite, symmetric up to 1e-8 of its largest entry (its scale), and
    has no eigenvalue below -1e-10 of that scale. A block of zeros passes.

    Args:
        blocks: shape ``(n, p, p)``.
        first_row: number of the first block in messages.

    Raises:
        StreamgaugeError: another shape; a block that does not pass, naming its row.
    """
    blocks = _tensor(blocks)
    if blocks.ndim != 3 or blocks.shape[1] != blocks.shape[2] or not blocks.shape[1]:
        raise StreamgaugeError(f"metric blocks have shape {tuple(blocks.shape)}, not (n, p, p)")
    blocks = float64(blocks)
    scale = blocks.abs().amax((1, 2), keepdim=True)
    _refuse(~torch.isfinite(scale).flatten(), "holds a value that is not finite", first_row)
    blocks = blocks / torch.where(scale > 0, scale, 1)
    asymmetry = (blocks - blocks.mT).abs().amax((1, 2))
    _refuse(asymmetry > SYMMETRY_TOLERANCE, "is not symmetric", first_row)
    # positive definite after the shift if and only if no eigenvalue is below minus the shift
    shift = EIGENVALUE_TOLERANCE * torch.eye(blocks.shape[-1]).to(blocks)
    _, info = torch.linalg.cholesky_ex((blocks + blocks.mT) / 2 + shift)
    _refuse(info != 0, "has a negative eigenvalue", first_row)


def check_factors(factors) -> None:
    """Refuse factors (n, p, s) whose blocks ``U Uᵀ`` are no metric.

    The s x s Gram matrix of each row, which has the eigenvalues of its block except for zeros,
    goes through `check_blocks`.

    Raises:
        StreamgaugeError: s = 0, a value that is not finite or whose square is not, naming the row.
    """
    factors = _tensor(factors)
    n, _, s = factors.shape
    if s == 0:
        raise StreamgaugeError(
            "the factors of row 0 have s = 0 probes",
            remedy="Harvest at least one probe, or use RowMetric.euclidean.",
        )
    step = ROWS_AT_ONCE.get(factors.device.type, ROWS_AT_ONCE_ELSEWHERE)
    for first in range(0, n, step):
        part = factors[first : first + step]
        scale = float64(part.abs().amax((1, 2), keepdim=True))
        overflow = ~torch.isfinite(scale * scale * part.shape[1] * s).flatten()
        _refuse(overflow, "holds a value that is not finite, or its square is not", first)
        part = float64(part)
        if factors.dtype == torch.float64:  # squares of shorter types keep their digits
            part = part / torch.where(scale > 0, scale, 1)
        check_blocks(part.mT @ part, first)


def _refuse(bad: torch.Tensor, what: str, first_row: int) -> None:
    if bad.any():
        raise StreamgaugeError(f"the metric of row {first_row + int(bad.nonzero()[0])} {what}")


def _tensor(x) -> torch.Tensor:
    x = to_torch(x)
    return x if x.is_floating_point() else x.double()
