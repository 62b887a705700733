"""The TopK sparse autoencoder (Gao et al. 2024, "Scaling and evaluating sparse autoencoders").

    z     = TopK_k(ReLU((x - b_dec) W_enc + b_enc))
    x_hat = z W_dec + b_dec

Tensors have the orientation SAELens uses, and the formulas its order of operations, so that both
libraries give the same bits.
"""

from dataclasses import dataclass, replace

import torch

from streamgauge.errors import StreamgaugeError


@dataclass(frozen=True)
class TopKSAE:
    """A TopK sparse autoencoder as four tensors and k.

    Attributes:
        W_enc: (d, m) encoder, d = d_model, m = d_sae.
        b_enc: (m,) encoder bias.
        W_dec: (m, d) decoder, one latent a row.
        b_dec: (d,) decoder bias, also subtracted from the input.
        k: latents kept per token, 1 <= k <= m.

    Raises:
        StreamgaugeError: shapes that do not fit together, or k outside 1..m.
    """

    W_enc: torch.Tensor
    b_enc: torch.Tensor
    W_dec: torch.Tensor
    b_dec: torch.Tensor
    k: int

    def __post_init__(self):
        if self.W_enc.ndim != 2:
            raise StreamgaugeError(f"W_enc has shape {tuple(self.W_enc.shape)}, not (d, m)")
        d, m = self.W_enc.shape
        for name, shape in (("b_enc", (m,)), ("W_dec", (m, d)), ("b_dec", (d,))):
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise StreamgaugeError(
                    f"{name} has shape {found}, but W_enc of shape {(d, m)} needs {shape}"
                )
        check_k(self.k, m)
        # a strided operand may take another path through the BLAS, with other last bits
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            object.__setattr__(self, name, getattr(self, name).detach().contiguous())

    @property
    def d_model(self) -> int:
        """Width d of the residual stream."""
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        """Number of latents m."""
        return self.W_enc.shape[1]

    @torch.no_grad()
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Latent activations (..., m), at most k of them positive, of residuals x (..., d)."""
        pre = (x.to(self.W_enc.dtype) - self.b_dec) @ self.W_enc + self.b_enc
        values, ids = torch.topk(pre, self.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter_(-1, ids, values.relu())

    @torch.no_grad()
    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Reconstruction (..., d) of latent activations z (..., m)."""
        return z @ self.W_dec + self.b_dec

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(x_hat (..., d), z (..., m)): the SAE as a codec."""
        z = self.encode(x)
        return self.decode(z), z

    def to(self, device: str | torch.device) -> "TopKSAE":
        """The same SAE on another device."""
        return replace(
            self,
            W_enc=self.W_enc.to(device),
            b_enc=self.b_enc.to(device),
            W_dec=self.W_dec.to(device),
            b_dec=self.b_dec.to(device),
        )

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
