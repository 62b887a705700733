"""What every sparse autoencoder of this library is: four tensors, and a rule for its latents."""

from dataclasses import dataclass, fields, replace
from typing import Self

import torch

from streamgauge.base.errors import StreamgaugeError


@dataclass(frozen=True)
class SparseAutoencoder:
    """pre = (x - b_dec) W_enc + b_enc, z = rule(pre), x_hat = z W_dec + b_dec.

    Called with residuals (..., d) it is a codec: (x_hat (..., d), z (..., m)). The rule is the
    subclass's `encode`, its name in SAELens the subclass's `architecture`.

    Attributes:
        W_enc: (d, m) encoder, d = d_model, m = d_sae.
        b_enc: (m,) encoder bias.
        W_dec: (m, d) decoder, one latent a row.
        b_dec: (d,) decoder bias, also subtracted from the input.

    Raises:
        StreamgaugeError: shapes that do not fit together.
    """

    W_enc: torch.Tensor
    b_enc: torch.Tensor
    W_dec: torch.Tensor
    b_dec: torch.Tensor

    def __post_init__(self):
        if self.W_enc.ndim != 2 or 0 in self.W_enc.shape:
            raise StreamgaugeError(f"W_enc has shape {tuple(self.W_enc.shape)}, not (d, m)")
        d, m = self.W_enc.shape
        for name, shape in (("b_enc", (m,)), ("W_dec", (m, d)), ("b_dec", (d,))):
            self._check_shape(name, shape)
        # a strided operand may take another path through the BLAS, with other last bits
        for name, value in self.tensors().items():
            object.__setattr__(self, name, value.detach().contiguous())

    def _check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        found = tuple(getattr(self, name).shape)
        if found != shape:
            raise StreamgaugeError(
                f"{name} has shape {found}, but W_enc of shape {tuple(self.W_enc.shape)} "
                f"needs {shape}"
            )

    def tensors(self) -> dict[str, torch.Tensor]:
        """Its tensors by name."""
        named = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in named if isinstance(value, torch.Tensor)}

    @property
    def d_model(self) -> int:
        """Width d of the residual stream."""
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        """Number of latents m."""
        return self.W_enc.shape[1]

    def pre_activations(self, x: torch.Tensor) -> torch.Tensor:
        """What the rule is applied to, (..., m), of residuals x (..., d)."""
        return (x.to(self.W_enc.dtype) - self.b_dec) @ self.W_enc + self.b_enc

    @torch.no_grad()
    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Reconstruction (..., d) of latent activations z (..., m)."""
        return z @ self.W_dec + self.b_dec

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(x_hat (..., d), z (..., m)): the SAE as a codec."""
        z = self.encode(x)
        return self.decode(z), z

    def to(self, device: str | torch.device) -> Self:
        """The same SAE on another device."""
        return replace(self, **{name: value.to(device) for name, value in self.tensors().items()})
