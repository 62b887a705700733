"""The TopK sparse autoencoder (Gao et al. 2024, "Scaling and evaluating sparse autoencoders").

    z     = TopK_k(ReLU((x - b_dec) W_enc + b_enc))
    x_hat = z W_dec + b_dec

Tensors have the orientation SAELens uses, and the formulas its order of operations, so that both
libraries give the same bits.
"""

from dataclasses import dataclass, replace

import torch

from streamgauge.base.errors import StreamgaugeError
from streamgauge.sae.codec import SparseAutoencoder


@dataclass(frozen=True)
class TopKSAE(SparseAutoencoder):
    """A TopK sparse autoencoder.

    Attributes:
        k: latents kept per token, 1 <= k <= m.

    Raises:
        StreamgaugeError: shapes that do not fit together, or k outside 1..m.
    """

    k: int

    architecture = "topk"  # no annotation: of the class, no field

    def __post_init__(self):
        super().__post_init__()
        check_k(self.k, self.d_sae)

    @torch.no_grad()
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Latent activations (..., m), at most k of them positive, of residuals x (..., d)."""
        pre = self.pre_activations(x)
        values, ids = torch.topk(pre, self.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter_(-1, ids, values.relu())

    def for_unscaled_input(self, scale: float) -> "TopKSAE":
        """Fold an input scale: an SAE of x, given this one of ``scale * x``.

        The decoder rows keep their norms; latent activations shrink by `scale`, so they stay in
        the units of the residual stream. TopK does not change under a positive factor.
        """
        return replace(self, b_enc=self.b_enc / scale, b_dec=self.b_dec / scale)


def check_k(k: int, d_sae: int) -> None:
    """Refuse a sparsity that no SAE of this width can have."""
    if not 1 <= k <= d_sae:
        raise StreamgaugeError(
            f"k = {k} is outside 1..d_sae = {d_sae}",
            remedy="Lower k or raise the expansion.",
        )


def init(
    d_model: int,
    d_sae: int,
    k: int,
    seed: int,
    b_dec: torch.Tensor | None = None,
    device: str | torch.device = "cpu",
) -> TopKSAE:
    """An untrained SAE: random unit-norm decoder rows, the encoder tied to them, b_enc = 0.

    Args:
        d_model: width d of the residual stream.
        d_sae: number of latents m.
        k: latents kept per token.
        seed: of the decoder directions; the draw is made on the CPU, the same on every device.
        b_dec: (d,) decoder bias; zeros when not given.
        device: where the tensors go.

    Raises:
        StreamgaugeError: k outside 1..d_sae.
    """
    check_k(k, d_sae)
    generator = torch.Generator().manual_seed(seed)
    W_dec = torch.randn(d_sae, d_model, generator=generator)
    W_dec /= W_dec.norm(dim=1, keepdim=True)
    if b_dec is None:
        b_dec = torch.zeros(d_model)
    return TopKSAE(
        W_enc=W_dec.T.contiguous(),
        b_enc=torch.zeros(d_sae),
        W_dec=W_dec,
        b_dec=torch.as_tensor(b_dec, dtype=torch.float32).clone(),
        k=k,
    ).to(device)
