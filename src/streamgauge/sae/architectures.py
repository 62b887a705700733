"""The SAEs that are read and scored, by the names SAELens gives their architectures.

To add one, see docs/extending/sae-architecture.md.
"""

from typing import NamedTuple

from streamgauge.sae.codec import SparseAutoencoder
from streamgauge.sae.threshold import ThresholdSAE
from streamgauge.sae.topk import TopKSAE


class Architecture(NamedTuple):
    """What an SAE of one kind is made of, beside the four tensors that all have.

    Attributes:
        build: its class, called with tensors and counts by name.
        tensors: of its weights, by name.
        counts: whole numbers of its configuration, by name.
    """

    build: type[SparseAutoencoder]
    tensors: tuple[str, ...] = ()
    counts: tuple[str, ...] = ()


ARCHITECTURES = {
    "topk": Architecture(TopKSAE, counts=("k",)),
    "standard": Architecture(ThresholdSAE),
    "jumprelu": Architecture(ThresholdSAE, tensors=("threshold",)),
}
