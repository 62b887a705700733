"""Covariance spectra in one pass, and the dimension numbers computed from them.

Definitions: docs/definitions.md, "Spectra": eigenvalues of the mean-centred covariance,
participation ratio (Σλ)²/Σλ², effective rank exp(H(λ/Σλ)). Accumulation is float64 throughout.
"""

import math

import numpy as np

from streamgauge.base.errors import StreamgaugeError
from streamgauge.numerics import arrays
from streamgauge.numerics.arrays import NUMPY, either
from streamgauge.numerics.token_sets import sink_threshold


@either("eigenvalues", inside=NUMPY)
def participation_ratio(eigenvalues, deflate: int = 0) -> float:
    """PR = (Σλ)²/Σλ² after the `deflate` largest eigenvalues are removed.

    Args:
        eigenvalues: shape ``(d,)``, any order.
        deflate: how many of the largest to drop, 0 ≤ deflate < d.

    Returns:
        Between 1 and d − deflate; (4, 1, 1, 1) gives 49/19. NaN when all that is left is zero.
        n samples cap it near d/(1 + d/n), so report n beside it.

    Raises:
        StreamgaugeError: nothing would be left.
    """
    values = np.sort(np.asarray(eigenvalues, np.float64).ravel())[::-1]
    if not 0 <= deflate < len(values):
        raise StreamgaugeError(
            f"{deflate} of {len(values)} eigenvalues cannot be removed",
            remedy="Choose deflate between 0 and the dimension minus 1.",
        )
    values = values[deflate:]
    largest = np.abs(values).max()
    if largest == 0:
        return math.nan
    values = values / largest  # squares of the raw values may leave the range of float64
    return float(values.sum() ** 2 / (values**2).sum())


@either("singular_values", inside=NUMPY)
def effective_rank(singular_values) -> float:
    """exp(H(σ/Σσ)), H the Shannon entropy in nats: ``exp(scipy.stats.entropy(σ))``.

    Args:
        singular_values: non-negative, shape ``(d,)``; pass covariance eigenvalues for the
            effective rank of a spectrum.

    Returns:
        Between 1 and d; NaN when all values are zero.

    Raises:
        StreamgaugeError: a value is negative.
    """
    values = np.asarray(singular_values, np.float64).ravel()
    if (values < 0).any():
        raise StreamgaugeError("effective rank needs non-negative values")
    total = values.sum()
    if total == 0:
        return math.nan
    p = values[values > 0] / total
    return float(np.exp(-(p * np.log(p)).sum()))


@either("values", inside=NUMPY)
def top_share(values) -> float:
    """The largest eigenvalue or singular value over the sum of all; NaN when all are zero."""
    values = np.asarray(values, np.float64)
    return float(values.max() / values.sum()) if values.any() else math.nan


class StreamingCovariance:
    """Mean and covariance of a stream of vectors, one batch at a time.

    Keeps the sum of squares about the running mean and merges batches exactly (Chan et al.), so
    a large common mean costs no digits: ``numpy.cov(x.T, bias=True)`` of everything added. What is
    read from it is of the kind that was added: NumPy, or torch tensors on `device`.

    Args:
        d: dimension.
        device: where the d×d sums live and the products run; an MPS device, which has no float64,
            is replaced by the CPU.

    Attributes:
        n: vectors added.

    Raises:
        StreamgaugeError: by what reads from it, where nothing was added.
    """

    def __init__(self, d: int, device="cpu"):
        import torch

        device = torch.device(device)
        self.device = torch.device("cpu") if device.type == "mps" else device
        self.n = 0
        self._kind = None
        self._mean = torch.zeros(d, dtype=torch.float64, device=self.device)
        self._scatter = torch.zeros(d, d, dtype=torch.float64, device=self.device)

    def update(self, x) -> None:
        """Add the rows of `x`, shape ``(..., d)``, NumPy or torch on any device.

        Raises:
            StreamgaugeError: it is no array of numbers, or not of the kind added before.
        """
        self._kind = arrays.same_kind(self._kind, x)
        self._add(arrays.to_torch(x).detach())

    def _add(self, x):
        x = x.reshape(-1, len(self._mean))
        if len(x) == 0:
            return
        # MPS must leave the device before it becomes float64
        x = x.to(self.device).double()
        mean = x.mean(0)
        x = x - mean
        self._merge(len(x), mean, x.T @ x)

    def merge(self, other: "StreamingCovariance") -> None:
        """Add everything `other` has seen, as if both streams had been one."""
        if other.n:
            self._kind = self._kind or other._kind
            self._merge(other.n, other._mean.to(self.device), other._scatter.to(self.device))

    def _merge(self, n, mean, scatter):
        total = self.n + n
        delta = mean - self._mean
        self._scatter += scatter
        self._scatter.addr_(delta, delta, alpha=self.n * n / total)
        self._mean = self._mean + delta * (n / total)
        self.n = total

    def _given(self, x):
        return x.clone() if self._kind == arrays.TORCH else arrays.to_numpy(x).copy()

    @property
    def mean(self):
        """The mean vector, shape ``(d,)``, float64."""
        return self._given(self._mean)

    def covariance(self, centred: bool = True):
        """E[(x−μ)(x−μ)ᵀ], or E[xxᵀ] when not `centred`; shape ``(d, d)``, float64.

        Normalised by n, so that the trace of the centred covariance is SST per token.
        """
        return self._given(self._covariance(centred))

    def _covariance(self, centred):
        if self.n == 0:
            raise StreamgaugeError("a covariance of no vectors is not defined")
        covariance = self._scatter / self.n
        if not centred:
            covariance = covariance.addr(self._mean, self._mean)
        return covariance

    def eigenvalues(self, centred: bool = True):
        """Eigenvalues of `covariance(centred)`, largest first, rounding below zero set to 0."""
        import torch

        values = torch.linalg.eigvalsh(self._covariance(centred))
        return self._given(values.clamp(min=0).flip(0))


class SinkAwareCovariance:
    """Covariances of one layer with and without sink tokens, in one pass.

    A token is a sink when it stands at position 0 or its norm exceeds 10 × the median norm of all
    tokens, position 0 included. That median is known only at the end, so tokens whose norm is
    within a factor of the threshold estimated so far wait in a bounded buffer; all others are
    added at once to the body or the sinks. All norms are kept (8 bytes a token): `finish` settles
    the buffer by the exact median and proves that no token was placed on the wrong side.

    Args:
        d: d_model.
        device: as for `StreamingCovariance`.
        buffer: most vectors that may wait; they are kept in float32, buffer·d·4 bytes.
        label: named in errors, e.g. ``"blocks.3.hook_resid_post"``.

    Attributes (after `finish`):
        median_norm, sink_threshold (= 10 × median_norm), n_sink (tokens in `all` but not in
        `no_sink`).
    """

    #: Norms this far from the estimated threshold, either side, are placed at once.
    MARGIN = 2.0

    def __init__(self, d: int, device="cpu", buffer: int = 4096, label: str | None = None):
        self._body = StreamingCovariance(d, device)
        self._sinks = StreamingCovariance(d, device)
        self._limit, self._label = buffer, label
        self._norms: list[np.ndarray] = []
        self._n = self._n_at_estimate = 0
        self._estimate = math.nan
        self._waiting, self._waiting_norms = [], []
        self._body_max, self._sink_min = -math.inf, math.inf

    def update(self, h) -> None:
        """Add the residuals of whole sequences, shape ``(B, T, d)``, NumPy or torch.

        Raises:
            StreamgaugeError: an activation is not finite; see also `StreamingCovariance.update`.
        """
        self._body._kind = self._sinks._kind = arrays.same_kind(self._body._kind, h)
        h = arrays.to_torch(h).detach()
        x = h.to(self._body.device)  # MPS has no float64: its tensors arrive on the CPU here
        norms = x.double().square().sum(-1).sqrt()
        self._norms.append(norms.flatten().cpu().numpy())
        self._n += norms.numel()
        if not np.isfinite(self._norms[-1]).all():
            raise StreamgaugeError("an activation is not finite", where=self._label)
        # a new estimate whenever the data has grown by half: linear work in total
        if self._n >= 1.5 * self._n_at_estimate:
            self._estimate = sink_threshold(float(np.median(np.concatenate(self._norms))))
            self._n_at_estimate = self._n
        self._sinks._add(x[:, 0])
        x, norms = x[:, 1:].flatten(0, 1), norms[:, 1:].flatten()
        low = norms <= self._estimate / self.MARGIN
        high = norms > self._estimate * self.MARGIN
        self._place(x, norms, low, high)
        doubtful = ~(low | high)
        if doubtful.any():
            self._waiting.append(x[doubtful].float())
            self._waiting_norms.append(norms[doubtful])
            if sum(map(len, self._waiting)) > self._limit:
                self._shrink()

    def _place(self, x, norms, body, sinks):
        """Add the rows `body` and `sinks` select; remember how far each side reaches."""
        if body.any():
            self._body._add(x[body])
            self._body_max = max(self._body_max, float(norms[body].max()))
        if sinks.any():
            self._sinks._add(x[sinks])
            self._sink_min = min(self._sink_min, float(norms[sinks].min()))

    def _shrink(self):
        """Place the half of the buffer that lies farthest from the estimated threshold."""
        import torch

        x, norms = torch.cat(self._waiting), torch.cat(self._waiting_norms)
        distance = (norms / self._estimate).log().abs()
        order = distance.argsort(descending=True, stable=True)
        placed = torch.zeros_like(norms, dtype=torch.bool)
        placed[order[: len(order) - self._limit // 2]] = True
        above = norms > self._estimate
        self._place(x, norms, placed & ~above, placed & above)
        self._waiting, self._waiting_norms = [x[~placed]], [norms[~placed]]

    def finish(self) -> dict[str, StreamingCovariance]:
        """Settle the buffer.

        Returns:
            ``{"all": ..., "no_sink": ...}``, equal to a second pass with the exact threshold.

        Raises:
            StreamgaugeError: nothing was added, or the median moved so far during the stream that
                a token was placed on the wrong side.
        """
        import torch

        if not self._n:
            raise StreamgaugeError("a covariance of no vectors is not defined", where=self._label)
        self.median_norm = float(np.median(np.concatenate(self._norms)))
        self.sink_threshold = sink_threshold(self.median_norm)
        if self._waiting:
            x, norms = torch.cat(self._waiting), torch.cat(self._waiting_norms)
            above = norms > self.sink_threshold
            self._place(x, norms, ~above, above)
            self._waiting, self._waiting_norms = [], []
        if self._body_max > self.sink_threshold or self._sink_min <= self.sink_threshold:
            raise StreamgaugeError(
                "the norms of later tokens differ too much from those of earlier ones to separate "
                "the sinks in one pass",
                where=self._label,
                remedy="Shuffle the sequences or raise the buffer.",
            )
        self.n_sink = self._sinks.n
        everything = StreamingCovariance(len(self._body._mean), self._body.device)
        everything.merge(self._body)
        everything.merge(self._sinks)
        return {"all": everything, "no_sink": self._body}
