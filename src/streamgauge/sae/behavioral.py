"""The objective ``behavioral``: reconstruction measured by what the model makes of the error.

An error e = x_hat - x of unscaled activations costs ½ eᵀGe nats, the second-order KL of the token
(docs/definitions.md, "Sensitivity"), with G = UUᵀ sketched by the stored probes of the token
(`row_metric`). Training reads activations and probes; no model is run.
"""

from dataclasses import replace
from pathlib import Path

import torch

from streamgauge.base.errors import StreamgaugeError
from streamgauge.numerics.row_metric import RowMetric
from streamgauge.sae.objective import Euclidean, SquaredError, check_same
from streamgauge.sae.runs import Settings
from streamgauge.sae.start import Start, no_massive
from streamgauge.sae.stream import Stream
from streamgauge.stores.layer_stores import ProbeStore


class InMetric(Euclidean):
    """The pull of one batch in the metric of its rows.

    Args:
        metric: of the rows of the batch, for errors of unscaled activations.
        nats: of a squared whitened norm of 1 at the scale of the batch.
        weight: V / reference, both in nats.
    """

    def __init__(self, metric: RowMetric, nats: float, weight: float):
        self.metric, self.nats, self.weight = metric, nats, weight

    def __call__(self, error: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Euclidean`; the loss is in nats a token."""
        return self.metric.loss(error) * self.nats, self.metric.apply(error) * self.weight

    def whiten(self, error: torch.Tensor) -> torch.Tensor:
        """Uᵀe, (n, s)."""
        return self.metric.whiten_residual_row(error)

    def apply(self, error: torch.Tensor) -> torch.Tensor:
        """UUᵀe, (n, d)."""
        return self.metric.apply(error)


class Behavioral(SquaredError):
    """The objective ``behavioral``, for the activations the probes were harvested with.

    Batches are those of ``mse``. The reference is the mean cost of ``x - mean``, over the same
    sample and tokens as the variance V, so that V * loss / reference is the squared error where G
    is the identity.

    Args:
        probes: the probe store of the training split.

    Raises:
        StreamgaugeError: no readable probe store there.
    """

    name = "behavioral"

    def __init__(self, probes: Path | str):
        self.probes = ProbeStore(probes)

    def stream(self, store, settings: Settings, seed: int, device: torch.device) -> Stream:
        """See `SquaredError`; the probes must be of the layer and the tokens of `store`."""
        for field in ("layer", "n_sequences", "n_positions", "d_model"):
            check_same(field, store, self.probes, str(self.probes.path))
        options = self.stream_options(store, settings, seed)
        return Stream(store, probes=self.probes, device=device, **options)

    def start(self, stream: Stream, start: Start) -> Start:
        """`start` with the cost of predicting the mean, in nats a token.

        Raises:
            StreamgaugeError: the probes of the sample are all zero, or not finite.
        """
        x = stream.head(start.sample_tokens)
        usual = no_massive(x.norm(dim=1))
        x = x * start.scale
        left = (x - x[usual].mean(0)).split(stream.batch_size)
        whitened = []
        # the sample need not fill its last batch
        for part, (_, factors) in zip(left, stream.batches(0, len(left)), strict=True):
            whitened.append(self.metric(factors[: len(part)]).whiten_residual_row(part))
        cost = torch.cat(whitened)[usual].square().sum(1).double().mean().item()
        if not cost:
            raise StreamgaugeError(
                f"the probes of the first {start.sample_tokens} tokens are all zero",
                where=str(self.probes.path),
                remedy="Harvest them again with probes.dtype bfloat16 or float32.",
            )
        return replace(start, reference=cost * _nats(start))

    def pull(self, stream: Stream, batch, start: Start) -> tuple[torch.Tensor, InMetric]:
        """See `SquaredError`."""
        x, factors = batch
        nats = _nats(start)
        return x, InMetric(self.metric(factors), nats, start.variance * nats / start.reference)

    def metric(self, factors: torch.Tensor) -> RowMetric:
        """The metric of tokens with these factors (n, d, s), of any floating type.

        Raises:
            StreamgaugeError: a factor is not finite.
        """
        try:
            return RowMetric.behavioral_fisher(factors.float().flatten(1), factors.shape[1])
        except StreamgaugeError as error:
            raise StreamgaugeError(
                f"in a batch of training, {error.problem}",
                where=str(self.probes.path),
                remedy="Harvest the probes again with probes.dtype bfloat16 or float32.",
            ) from error


def _nats(start: Start) -> float:
    """Nats of a squared whitened norm of 1: half of it, in units of unscaled activations."""
    return 0.5 / start.scale**2
