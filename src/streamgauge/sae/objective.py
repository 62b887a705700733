"""What an SAE is trained for: the loss of a reconstruction, and where it pulls it.

An objective supplies the batches, the loss that knows nothing of the token (by which it is
divided), and for each batch a *pull*: a function of the reconstruction error. The class here is
the plain squared error; `behavioral` and `e2e` hold the others.
"""

import torch

from streamgauge.base.errors import StreamgaugeError
from streamgauge.sae.runs import Settings
from streamgauge.sae.start import Start
from streamgauge.sae.stream import Stream


class Euclidean:
    """The pull of the squared error, and for any objective the metric AuxK is measured in."""

    def __call__(self, error: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss, direction) at the error x_hat - x (n, d) of scaled activations.

        Returns:
            The loss to be reported, a scalar, and (n, d): n/2 times the gradient, with respect to
            x_hat, of the loss that is minimised, V * loss / reference.
        """
        return torch.linalg.vector_norm(error, dim=1).square().mean(), error

    def whiten(self, error: torch.Tensor) -> torch.Tensor:
        """Coordinates (n, s) whose squared norm is what an error (n, d) costs."""
        return error

    def apply(self, error: torch.Tensor) -> torch.Tensor:
        """(n, d): half the gradient of that cost; may be the argument itself."""
        return error


class SquaredError:
    """The objective ``mse``.

    Attributes:
        name: as in ``grid.objectives``.
    """

    name = "mse"

    def batch_size(self, store, settings: Settings) -> int:
        """Tokens a step takes from `store`."""
        return settings.batch_size

    def stream(self, store, settings: Settings, seed: int, device: torch.device) -> Stream:
        """The batches; the same tokens in the same order for every objective that shuffles tokens.

        Raises:
            StreamgaugeError: no token to train on, or what the objective needs beside the
                activations does not fit them.
        """
        return Stream(store, device=device, **self.stream_options(store, settings, seed))

    def stream_options(self, store, settings: Settings, seed: int) -> dict:
        """What a `Stream` of this objective is made with."""
        return {
            "batch_size": self.batch_size(store, settings),
            "seed": seed,
            "pool_tokens": settings.pool_tokens,
            "exclude_sinks": settings.exclude_sinks,
        }

    def start(self, stream: Stream, start: Start) -> Start:
        """`start` with this objective's `Start.reference`; the stream is unscaled."""
        return start

    def pull(self, stream: Stream, batch, start: Start) -> tuple[torch.Tensor, Euclidean]:
        """The scaled activations (n, d) of a batch of `stream`, and their pull."""
        return batch, Euclidean()


def check_same(field: str, store, other, where: str) -> None:
    """Refuse what lies beside an activations store and is of other tokens, layer or width.

    Args:
        field: an attribute of `store`.
        other: an object with that attribute, or its value.
        where: the file of `other`.

    Raises:
        StreamgaugeError: the two differ.
    """
    expected, found = getattr(store, field), getattr(other, field, other)
    if found != expected:
        raise StreamgaugeError(
            f"{field} is {found}, but that of the activations in {store.path} is {expected}",
            where=where,
            remedy="Train on activations made from this very file; run snakemake to make both.",
        )
