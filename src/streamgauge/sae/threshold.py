"""SAEs whose latents fire above a threshold of their own: standard (ReLU) and JumpReLU.

    pre   = (x - b_dec) W_enc + b_enc
    z     = ReLU(pre), where pre > threshold
    x_hat = z W_dec + b_dec

Without thresholds it is the plain ReLU autoencoder (Bricken et al. 2023), with them JumpReLU
(Rajamanoharan et al. 2024). Orientation and order of operations are SAELens'. They are read and
scored here, never trained.
"""

from dataclasses import dataclass

import torch

from streamgauge.sae.codec import SparseAutoencoder


@dataclass(frozen=True)
class ThresholdSAE(SparseAutoencoder):
    """A standard or JumpReLU sparse autoencoder.

    Attributes:
        threshold: (m,) in units of the pre-activation; None for ReLU alone.
        k: None, the number of latents differs from token to token.

    Raises:
        StreamgaugeError: shapes that do not fit together.
    """

    threshold: torch.Tensor | None = None

    k = None  # no annotation: of the class, no field

    def __post_init__(self):
        super().__post_init__()
        if self.threshold is not None:
            self._check_shape("threshold", (self.d_sae,))

    @property
    def architecture(self) -> str:
        """What SAELens calls it: ``standard`` or ``jumprelu``."""
        return "standard" if self.threshold is None else "jumprelu"

    @torch.no_grad()
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Latent activations (..., m) of residuals x (..., d)."""
        pre = self.pre_activations(x)
        z = pre.relu()
        return z if self.threshold is None else z * (pre > self.threshold).to(z.dtype)
