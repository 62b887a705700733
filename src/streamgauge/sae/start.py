"""What training takes from a sample of the data before its first step."""

import math
from dataclasses import dataclass

import torch

from streamgauge.base.errors import StreamgaugeError
from streamgauge.numerics.token_sets import sink_threshold
from streamgauge.sae.stream import Stream

SAMPLE_TOKENS = 32_768  # as many as Gao et al. (2024) take


@dataclass(frozen=True)
class Start:
    """Scale, variance and initial b_dec, measured on the first tokens of the stream.

    Attributes:
        scale: makes the mean norm of the sample's tokens sqrt(d); sinks, whose norm exceeds 10
            times the median, do not count.
        variance: total variance of the scaled tokens that are no sinks.
        b_dec: (d,) initial decoder bias, scaled.
        sample_tokens: size of the sample.
        reference: the objective's loss of a reconstruction that knows nothing of the token, in
            the units of its loss; the loss is divided by it.
    """

    scale: float
    variance: float
    b_dec: torch.Tensor
    sample_tokens: int
    reference: float


def measure(stream: Stream, b_dec_init: str) -> Start:
    """Scale, variance and initial b_dec from the first tokens of an unscaled stream.

    `Start.reference` is that of the squared error, the variance.

    Args:
        stream: with ``scale`` 1.
        b_dec_init: ``"geometric_median"``, ``"mean"`` or ``"zeros"``.

    Raises:
        StreamgaugeError: the activations are not finite, or all zero.
    """
    x = stream.head(SAMPLE_TOKENS)
    norm = x.norm(dim=1)
    if not torch.isfinite(norm).all():
        raise not_finite(stream, 0)
    usual = no_massive(norm)
    mean_norm = norm[usual].double().mean().item()
    if not mean_norm:
        raise StreamgaugeError(
            "the activations are all zero",
            where=stream.name,
            remedy="Harvest this layer again; `streamgauge verify` names a damaged store.",
        )
    scale = math.sqrt(x.shape[1]) / mean_norm
    x = x * scale
    rest = x[usual]
    variance = (rest - rest.mean(0)).square().sum(1).double().mean().item()
    centre = {"geometric_median": geometric_median, "mean": lambda x: x.mean(0)}
    b_dec = torch.zeros_like(x[0])
    if b_dec_init != "zeros":
        b_dec = centre[b_dec_init](x)
    return Start(scale, variance, b_dec, len(x), reference=variance)


def no_massive(norm: torch.Tensor) -> torch.Tensor:
    """Which tokens of a sample have a norm (n,) of at most 10 times the median."""
    return norm <= sink_threshold(norm.median())


def geometric_median(x: torch.Tensor, steps: int = 100, tolerance: float = 1e-6) -> torch.Tensor:
    """The point with the least summed distance to the rows of x (n, d), by Weiszfeld's algorithm.

    It ignores how far away the few massive activations are, which drag the mean along.
    """
    point = x.mean(0)
    for _ in range(steps):
        weight = 1 / (x - point).norm(dim=1).clamp(min=1e-12)
        new = (weight @ x) / weight.sum()
        if (new - point).norm() <= tolerance * new.norm():
            return new
        point = new
    return point


def not_finite(stream: Stream, step: int) -> StreamgaugeError:
    """Why the loss of step number `step` (from 1; 0 is the sample before it) is not finite."""
    x = next(stream.batches(step - 1, step)) if step else stream.head(SAMPLE_TOKENS)
    x = x[0] if isinstance(x, tuple) else x
    where = f"{stream.name}, training step {step}"
    if torch.isfinite(x).all():
        return StreamgaugeError(
            "the loss is not finite",
            where=where,
            remedy="Training diverged: lower sae.lr, or set sae.clip to 1.0.",
        )
    return StreamgaugeError(
        "an activation is not finite",
        where=where,
        remedy="Harvest again with harvest.dtype bfloat16 or float32.",
    )
