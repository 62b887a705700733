"""Which dimensions two languages share: ARD lengthscales that minimise MMD² between token clouds.

A *pair* is one problem in two languages: two clouds of tokens, of any two sizes. Dimensions are
divided by their standard deviation over all tokens of all pairs. A dimension in which the two
clouds differ gets a long lengthscale, so that the kernel no longer sees it; one in which they are
alike need not. What that proves is decided against fits to permuted pairs, see `shared_dimensions`.
Clouds may be NumPy arrays or torch tensors; kernels are made in torch, fits are NumPy arrays.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial.distance import cdist

from streamgauge.base.errors import StreamgaugeError
from streamgauge.numerics.arrays import NUMPY, either, to_numpy

# numbers of one chunk of pairs held at once, (pairs, tokens, d_model) or (pairs, tokens, tokens)
_AT_ONCE = 2**20
# a standard deviation below this share of the largest one is rounding of float32
_CONSTANT = 1e-6
# Adam's epsilon in units of the kernel's own sensitivity, see `fit`
_DAMPING = 0.1
# the objective is compared with its value this many steps before
_WINDOW = 20


@either("x", "y", "lengthscales", inside=NUMPY)
def mmd2_unbiased(x, y, lengthscales) -> float:
    """Unbiased squared MMD between two clouds under the ARD kernel (Gretton et al. 2012, eq. 3).

    See docs/definitions.md, "ARD-MMD". The kernel is ``sklearn.metrics.pairwise.rbf_kernel(x / ℓ,
    y / ℓ, gamma=0.5)``.

    Args:
        x, y: tokens, shapes (n, d) and (m, d).
        lengthscales: ℓ, shape (d,) or a number, in the units of the tokens.

    Returns:
        The estimate, without unit. It is negative about as often as not where the clouds come
        from one distribution, and is never clipped.

    Raises:
        StreamgaugeError: a cloud of fewer than two tokens.
    """
    x, y = (np.asarray(cloud, np.float64) / np.asarray(lengthscales) for cloud in (x, y))
    n, m = len(x), len(y)
    _check_sizes([(n, m)], ["this pair"])
    xx, yy, xy = (np.exp(-0.5 * cdist(a, b, "sqeuclidean")) for a, b in ((x, x), (y, y), (x, y)))
    # the n kernel values of a token with itself are 1
    return float((xx.sum() - n) / (n * (n - 1)) + (yy.sum() - m) / (m * (m - 1)) - 2 * xy.mean())


class Clouds:
    """Token clouds of all pairs, standardised and laid out so that kernels are made in batches.

    Both clouds of a pair lie in one padded row, so that a chunk of pairs needs one batched product
    for its kernels and one for their gradient. Nothing of shape (n, m, d_model) is ever made, and
    kernels exist for one chunk of pairs at a time.

    Args:
        pairs: for each problem the tokens of both languages, (n, d_model) and (m, d_model).
        names: what the pairs are called in errors; their numbers where None.
        device, dtype: what the kernels are computed on and in.

    Attributes:
        sd: standard deviation over all tokens of all pairs, float64 (d_model,); what dimensions
            are divided by.
        varying: bool (d_model,): dimensions that vary at all. The others are left out of kernels.
        sizes: (n, m) of every pair.
        labels: which tokens belong to which cloud, for `value_and_gradient`.

    Raises:
        StreamgaugeError: no pairs; a cloud of fewer than two tokens; values that are not finite;
            no dimension varies.
    """

    def __init__(self, pairs: Sequence, *, names=None, device="cpu", dtype=torch.float32):
        names = [str(name) for name in (range(len(pairs)) if names is None else names)]
        pairs = [tuple(to_numpy(cloud) for cloud in pair) for pair in pairs]
        self.sizes = [(len(x), len(y)) for x, y in pairs]
        _check_sizes(self.sizes, names)
        self.d_model, self.device, self.dtype = pairs[0][0].shape[1], torch.device(device), dtype
        self.sd = _pooled_sd(pairs, names)
        self.varying = self.sd > _CONSTANT * self.sd.max()
        if not self.varying.any():
            raise StreamgaugeError(
                "no dimension varies over the tokens of all pairs",
                where="ARD-MMD",
                remedy="Check the model's residual stream at this layer.",
            )
        # pairs of like size together, so that little is padded
        self._chunks, self._tokens = self._cut(), []
        for chunk in self._chunks:
            tokens = np.zeros((len(chunk), self._longest(chunk), self.d_model))
            for row, i in enumerate(chunk):
                both = np.concatenate(pairs[i])[:, self.varying].astype(np.float64)
                # the kernel does not see the mean, rounding does
                both -= both.mean(0)
                tokens[row, : len(both)][:, self.varying] = both / self.sd[self.varying]
            self._tokens.append(self._put(tokens))
        self.labels = self._labels([np.arange(n + m) for n, m in self.sizes])

    @property
    def n_tokens(self) -> int:
        """Tokens of all clouds together."""
        return int(np.sum(self.sizes))

    def permuted(self, rng: np.random.Generator) -> list[torch.Tensor]:
        """Labels after the tokens of each pair were dealt anew to its two clouds, sizes kept.

        MMD² is symmetric: exchanging the two clouds of a pair as wholes leaves it as it is and
        would be no null at all. So single tokens change sides, within their pair.
        """
        return self._labels([rng.permutation(n + m) for n, m in self.sizes])

    @either("prior", inside=NUMPY)
    def start(self, prior=None):
        """Log lengthscales at which the median kernel value over token pairs is e⁻¹.

        Args:
            prior: log lengthscales up to a constant, (d_model,), see
                `shared_dimensions.structural_prior`; equal ones where None.

        Returns:
            float64 (d_model,). The median is over all pairs of different tokens within a pair of
            clouds, whatever their cloud, so that permuted clouds start at the same place.
        """
        prior = np.zeros(self.d_model) if prior is None else np.asarray(prior, np.float64)
        found = []
        for chunk, tokens in zip(self._chunks, self._tokens, strict=True):
            _, squared = self._squared_distances(tokens, prior)
            squared = squared.cpu().numpy()
            for row, i in enumerate(chunk):
                n = sum(self.sizes[i])
                found.append(squared[row][np.triu_indices(n, 1)])
        return prior + 0.5 * np.log(np.median(np.concatenate(found).astype(np.float64)) / 2)

    @either("log_lengthscale", inside=NUMPY)
    def sensitivity(self, log_lengthscale) -> float:
        """How much the mean kernel values, summed over pairs, gain by one unit of one log ℓ.

        The mean over dimensions; kernel values between different tokens, whatever their cloud.
        """
        total = 0.0
        for chunk, tokens in zip(self._chunks, self._tokens, strict=True):
            _, squared = self._squared_distances(tokens, log_lengthscale)
            gain = (squared * torch.exp(-0.5 * squared)).cpu().numpy()
            for row, i in enumerate(chunk):
                n = sum(self.sizes[i])
                total += gain[row, :n, :n].sum(dtype=np.float64) / (n * (n - 1))
        return total / self.varying.sum()

    @either("log_lengthscale", inside=NUMPY)
    def value_and_gradient(self, log_lengthscale, labels=None):
        """Σ over pairs of the unbiased MMD², and its gradient by the log lengthscales.

        Args:
            log_lengthscale: (d_model,), of standardised dimensions.
            labels: from `permuted`; the true ones where None.

        Returns:
            The sum and its gradient, float64 (d_model,), in closed form:
            ∂k/∂log ℓ_j = k (x_j − y_j)²/ℓ_j², summed over token pairs by matrix products.
        """
        value, gradient = 0.0, np.zeros(self.d_model)
        for tokens, factors in zip(self._tokens, labels or self.labels, strict=True):
            scaled, squared = self._squared_distances(tokens, log_lengthscale)
            kernel = squared.mul_(-0.5).exp_()
            torch.diagonal(kernel, dim1=1, dim2=2).zero_()
            kernel *= torch.bmm(factors, factors.transpose(1, 2))
            value += float(kernel.double().sum())
            # Σ_ab w_ab (u_a − u_b)² = 2 Σ_a u_a (Σ_b w_ab u_a − Σ_b w_ab u_b), w symmetric
            pull = kernel.sum(2, keepdim=True) * scaled
            pull -= torch.bmm(kernel, scaled)
            pull *= scaled
            gradient += 2 * pull.sum(1).double().sum(0).cpu().numpy()
        return value, gradient

    def _squared_distances(self, tokens, log_lengthscale):
        """Scaled tokens (p, t, d) and their squared distances (p, t, t); padding lies at 0."""
        scale = np.exp(-np.asarray(log_lengthscale, np.float64))
        scaled = tokens * self._put(scale)
        product = torch.bmm(scaled, scaled.transpose(1, 2))
        squared = torch.diagonal(product, dim1=1, dim2=2).clone()
        product.mul_(-2).add_(squared[:, :, None]).add_(squared[:, None, :])
        return scaled, product.clamp_(min=0)

    def _labels(self, orders) -> list[torch.Tensor]:
        """Factors F (p, t, 3) of the weights of kernel values in MMD²: F Fᵀ off the diagonal.

        1/(n(n−1)) within the first cloud, 1/(m(m−1)) within the second, −1/(nm) across.
        """
        found = []
        for chunk in self._chunks:
            factors = np.zeros((len(chunk), self._longest(chunk), 3))
            for row, i in enumerate(chunk):
                n, m = self.sizes[i]
                first, second = orders[i][:n], orders[i][n:]
                factors[row, first, 0], factors[row, second, 0] = 1 / n, -1 / m
                factors[row, first, 1] = 1 / (n * np.sqrt(n - 1))
                factors[row, second, 2] = 1 / (m * np.sqrt(m - 1))
            found.append(self._put(factors))
        return found

    def _cut(self) -> list[list[int]]:
        chunks: list[list[int]] = [[]]
        for i in sorted(range(len(self.sizes)), key=lambda i: sum(self.sizes[i]), reverse=True):
            longest = self._longest(chunks[-1] or [i])
            if (len(chunks[-1]) + 1) * longest * max(self.d_model, longest) > _AT_ONCE:
                chunks.append([])
            chunks[-1].append(i)
        return [chunk for chunk in chunks if chunk]

    def _longest(self, chunk: list[int]) -> int:
        return max(sum(self.sizes[i]) for i in chunk)

    def _put(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(self.dtype).to(self.device)


class Fit(NamedTuple):
    """Result of `fit`.

    Attributes:
        trajectory: log lengthscales at the start and after every step, float64
            (steps + 1, d_model), of standardised dimensions.
        mmd2: Σ over pairs of MMD² there, (steps + 1,).
        objective: that and the penalty, (steps + 1,).
        stopped: ``plateau``, or ``steps`` where the last step allowed was taken.
    """

    trajectory: np.ndarray
    mmd2: np.ndarray
    objective: np.ndarray
    stopped: str

    @property
    def read(self) -> int:
        """The step at which growth is read: where MMD² first is half of what it was at the start.

        Later steps fit the noise of the clouds more and more. It is the last step where MMD² never
        halves; at least 20, and 20 where MMD² is not positive at the start.
        """
        halved = np.flatnonzero(self.mmd2 <= self.mmd2[0] / 2)
        step = int(halved[0]) if len(halved) else len(self.mmd2) - 1
        return min(max(step, _WINDOW), len(self.mmd2) - 1)

    def growth(self, step: int) -> np.ndarray:
        """Log lengthscales after `step` steps less those at the start, (d_model,)."""
        return self.trajectory[step] - self.trajectory[0]


def fit(
    pairs: Clouds | Sequence,
    penalty: float,
    *,
    labels=None,
    prior=None,
    lr: float = 0.01,
    steps: int = 1000,
    plateau: float | None = 1e-3,
    tick: Callable[[int], None] | None = None,
) -> Fit:
    """Minimise Σ MMD² + penalty Σ 1/ℓ_j over log ℓ by Adam (docs/definitions.md, "ARD-MMD").

    Adam divides a gradient by its own size plus an epsilon. With the usual 1e-8 every dimension
    moves at the full rate, whether its gradient is evidence or noise, and fits to permuted clouds
    spread as far as the real one. Here epsilon is a tenth of `Clouds.sensitivity` at the start,
    which no permutation changes: a dimension moves at full rate only where the clouds differ.
    Dimensions that do not vary keep their start and are left out of the penalty.

    Args:
        pairs: the token clouds, a `Clouds` or what it is made from.
        penalty: λ.
        labels: from `Clouds.permuted`; the true ones where None.
        prior: see `Clouds.start`.
        lr: Adam's learning rate, the most that log ℓ moves in a step or little more.
        steps: most steps taken.
        plateau: stop where 20 steps lower the objective by less than this share of its size;
            never where None, so that a permuted fit takes as many steps as the real one.
        tick: called with 1 for each step.
    """
    clouds = pairs if isinstance(pairs, Clouds) else Clouds(pairs)
    theta, varying = to_numpy(clouds.start(prior)), clouds.varying
    step = _adam(lr, _DAMPING * clouds.sensitivity(theta))
    trajectory, mmd2, objective, stopped = [theta], [], [], "steps"
    while True:
        value, gradient = clouds.value_and_gradient(theta, labels)
        inverse = varying * np.exp(-theta)
        mmd2.append(value)
        objective.append(value + penalty * inverse.sum())
        if plateau is not None and len(objective) > _WINDOW:
            before = objective[-1 - _WINDOW]
            if before - objective[-1] < plateau * abs(before):
                stopped = "plateau"
                break
        if len(trajectory) > steps:
            break
        theta = theta - step((gradient - penalty * inverse) * varying)
        trajectory.append(theta)
        if tick:
            tick(1)
    return Fit(np.array(trajectory), np.array(mmd2), np.array(objective), stopped)


def _adam(lr: float, epsilon: float) -> Callable[[np.ndarray], np.ndarray]:
    """Adam's steps for one gradient after the other, with its usual decay rates 0.9 and 0.999."""
    # torch's own takes seconds to import, as long as a small job
    first, second, taken = 0.0, 0.0, 0

    def step(gradient):
        nonlocal first, second, taken
        taken += 1
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        corrected = np.sqrt(second / (1 - 0.999**taken))
        return lr * (first / (1 - 0.9**taken)) / (corrected + epsilon)

    return step


def _pooled_sd(pairs, names) -> np.ndarray:
    n, mean, squares = 0, 0.0, 0.0
    for pair, name in zip(pairs, names, strict=True):
        for cloud in pair:
            cloud = cloud.astype(np.float64)
            if not np.isfinite(cloud).all():
                raise StreamgaugeError(
                    "an activation is not finite",
                    where=f"pair {name}",
                    remedy="Run the model in float32 (subjects: dtype), or check its weights.",
                )
            # Chan's update: no large sums are subtracted
            new = cloud.mean(0)
            squares = squares + ((cloud - new) ** 2).sum(0)
            squares = squares + (new - mean) ** 2 * (n * len(cloud) / (n + len(cloud)))
            mean = mean + (new - mean) * (len(cloud) / (n + len(cloud)))
            n += len(cloud)
    return np.sqrt(squares / n)


def _check_sizes(sizes, names) -> None:
    if not sizes:
        raise StreamgaugeError(
            "there are no pairs", where="ARD-MMD", remedy="Give at least one problem."
        )
    for (n, m), name in zip(sizes, names, strict=True):
        if min(n, m) < 2:
            raise StreamgaugeError(
                f"clouds of {n} and {m} tokens; MMD² needs at least 2 in each",
                where=f"pair {name}",
                remedy="Lengthen that problem's text or leave it out.",
            )
