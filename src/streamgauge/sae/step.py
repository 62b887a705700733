"""One training step of a TopK SAE with closed-form gradients.

Of the six (batch, d) x (d, m) products a dense autograd step makes, only the encoder's forward
product is needed: k latents a token are active, so decoding and all four gradients are sums over
(token, latent) pairs. Those sums are written as embedding bags, once with tokens as the bags and
once, after sorting the pairs by latent, with latents as the bags. No step uses atomic additions,
so results repeat bit for bit on CUDA as well as on CPUs.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from streamgauge.sae.objective import Euclidean
from streamgauge.sae.topk import TopKSAE

EUCLIDEAN = Euclidean()


@dataclass(frozen=True)
class Losses:
    """What a step measured; tensors are scalars on the training device, reading one waits.

    Attributes:
        loss: of the objective; for `mse` the same number.
        mse: squared error summed over d, mean over tokens, as SAELens reports it (scaled input).
        auxk: error of the dead latents' reconstruction of the residual, over the residual's
            variance, both in the objective's metric; 0 when no latent is dead.
        l0: mean number of positive latents a token.
        dead: number of latents that were dead before the step.
    """

    loss: torch.Tensor
    mse: torch.Tensor
    auxk: torch.Tensor
    l0: torch.Tensor
    dead: int


def top_latents(pre: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest entries of each row of `pre` (n, m): values (n, k), ids (n, k), in no order.

    On a CPU a row is first reduced to the maxima of groups of columns. The k largest entries lie
    in the k groups with the largest maxima, so selecting among m/G maxima (again by this
    function) and then among k*G candidates is exact, and faster than `torch.topk` on m entries.
    """
    n, m = pre.shape
    group = 2 ** int(math.log2(max(m / k, 1)) / 2)
    while m % group:
        group //= 2
    if pre.device.type != "cpu" or group < 4:
        return pre.topk(k, dim=1, sorted=False)
    columns = m // group
    table = pre.view(n, group, columns)  # entry (g, c) is latent g * columns + c
    best = top_latents(table.amax(1), k)[1].unsqueeze(1)
    candidates = table.gather(2, best.expand(n, group, k)).view(n, group * k)
    latents = (best + torch.arange(0, m, columns).view(1, group, 1)).view(n, group * k)
    values, where = candidates.topk(k, dim=1, sorted=False)
    return values, latents.gather(1, where)


class Step:
    """Parameters, optimiser and dead-latent counters of one SAE in training.

    The total loss is V * (loss / reference + c * auxk), for the squared error the loss of Gao et
    al. (2024) in SAELens' units: V is the total variance of the training activations, c the AuxK
    coefficient, and the reference that of the objective (V itself for the squared error).

    Args:
        sae: the starting point; its tensors are copied.
        steps: length of the run, which fixes the learning-rate schedule.
        lr: peak learning rate of Adam (beta 0.9, 0.999).
        warmup_steps: linear warm-up.
        decay_fraction: share of the run, at its end, over which lr falls linearly to 0.
        eps: Adam's epsilon.
        clip: largest global gradient norm, or None.
        unit_norm: keep decoder rows at norm 1 (gradient projected, rows renormalised).
        auxk_coefficient: c above; 0 switches AuxK off.
        k_aux: dead latents used per token by AuxK.
        dead_tokens: a latent is dead when it has not fired for more than so many tokens.
        variance: V above.
    """

    def __init__(
        self,
        sae: TopKSAE,
        *,
        steps: int,
        lr: float,
        warmup_steps: int = 0,
        decay_fraction: float = 0.0,
        eps: float = 6.25e-10,
        clip: float | None = None,
        unit_norm: bool = True,
        auxk_coefficient: float = 1 / 32,
        k_aux: int = 256,
        dead_tokens: int = 10_000_000,
        variance: float = 1.0,
    ):
        self.k, self.steps, self.peak_lr = sae.k, steps, lr
        self.warmup_steps, self.decay_steps = warmup_steps, round(decay_fraction * steps)
        self.clip, self.unit_norm = clip, unit_norm
        self.auxk_weight, self.k_aux = auxk_coefficient * variance, k_aux
        self.dead_tokens = dead_tokens
        self.done = 0  # steps
        self.tokens = 0
        d, m = sae.d_model, sae.d_sae
        # The encoder is kept latent by latent, the layout in which its gradient is summed. b_enc
        # is its column d, to which the input is always 1: no separate pass over (n, m) adds it.
        # The columns behind that are zero and keep the rows aligned.
        encoder = sae.W_enc.new_zeros(m, 4 * (d // 4 + 1))
        encoder[:, :d], encoder[:, d] = sae.W_enc.T, sae.b_enc
        self.encoder = torch.nn.Parameter(encoder)
        self.W_dec = torch.nn.Parameter(sae.W_dec.clone())
        self.b_dec = torch.nn.Parameter(sae.b_dec.clone())
        self.tokens_since_fired = torch.zeros(m, dtype=torch.int64, device=encoder.device)
        self.adam = torch.optim.Adam(self._parameters().values(), lr=lr, eps=eps, fused=True)
        self._buffers: dict[str, torch.Tensor] = {}

    def _parameters(self) -> dict[str, torch.nn.Parameter]:
        return {"encoder": self.encoder, "W_dec": self.W_dec, "b_dec": self.b_dec}

    @property
    def lr(self) -> float:
        """Learning rate of the next step: linear warm-up, constant, linear decay to 0."""
        up = (self.done + 1) / self.warmup_steps if self.warmup_steps else 1.0
        down = (self.steps - self.done) / self.decay_steps if self.decay_steps else 1.0
        return self.peak_lr * min(up, 1.0, down)

    @torch.no_grad()
    def step(self, x: torch.Tensor, pull: Euclidean = EUCLIDEAN) -> Losses:
        """Take one optimiser step on the scaled activations x (n, d), float32."""
        losses, along = self.gradients(x, pull)
        if self.unit_norm:
            # leave the component along a row out: renormalising would only undo it
            self.W_dec.grad.addcmul_(self.W_dec, along.unsqueeze(1), value=-1)
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters().values(), self.clip)
        for name, p in self._parameters().items():
            # torch's fused Adam pairs the two memories and is silently wrong on other layouts
            assert p.is_contiguous() and p.grad.is_contiguous(), name
        self.adam.param_groups[0]["lr"] = self.lr
        self.adam.step()
        if self.unit_norm:
            self.W_dec.div_(torch.linalg.vector_norm(self.W_dec, dim=1, keepdim=True))
        self.done += 1
        return losses

    @torch.no_grad()
    def gradients(
        self, x: torch.Tensor, pull: Euclidean = EUCLIDEAN
    ) -> tuple[Losses, torch.Tensor]:
        """Set the gradient of the total loss at x (n, d), and count which latents fired.

        The gradient with respect to the reconstruction comes from `pull`; from there on the
        formulas are the same for every objective.

        Args:
            x: scaled activations.
            pull: of these very rows, see `objective`.

        Returns:
            The losses, and (m,) the inner product of each decoder row with its gradient.
        """
        (n, d), (m, width), k = x.shape, self.encoder.shape, self.k
        encoder, W_dec = self.encoder.detach(), self.W_dec.detach()
        inputs = self._buffer("inputs", n, width)
        centred = torch.sub(x, self.b_dec, out=inputs[:, :d])
        inputs[:, d] = 1.0
        pre = torch.mm(inputs, encoder.T, out=self._buffer("pre", n, m))
        values, ids = top_latents(pre, k)
        values = values.relu_()

        error = F.embedding_bag(ids, W_dec, per_sample_weights=values, mode="sum")
        error = error.sub_(centred)  # x_hat - x
        mse = torch.linalg.vector_norm(error, dim=1).square().mean()
        loss, direction = pull(error)  # for the squared error the error itself

        # the pairs sorted by latent; pairs cut off by the ReLU go to a bag behind all others
        latent, order = torch.where(values > 0, ids, m).view(-1).int().sort(stable=True)
        bags = torch.arange(m + 1, dtype=torch.int32, device=x.device)
        offsets = torch.searchsorted(latent, bags, out_int32=True)
        token = order.div(k, rounding_mode="floor").int()
        z = values.view(-1)[order]
        # d total / d z = 2/n <direction, decoder row>
        dz = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            direction, W_dec, latent.clamp(max=m - 1), offsets, token, 0, -1
        ).mul_(2 / n)
        dz = torch.where(z > 0, dz, 0.0)

        by_latent = dict(offsets=offsets, mode="sum")
        z_scaled = z * (2 / n)
        d_decoder = F.embedding_bag(token, direction, per_sample_weights=z_scaled, **by_latent)[:m]
        d_encoder = F.embedding_bag(token, inputs, per_sample_weights=dz, **by_latent)[:m]
        # <decoder row, its gradient> = sum of z dz over the row's pairs
        pair = torch.arange(n * k, dtype=torch.int32, device=x.device)
        along = F.embedding_bag(pair, (z * dz).unsqueeze(1), **by_latent)[:m].squeeze(1)

        auxk, dead = mse.new_zeros(()), self._dead_latents()
        if len(dead):
            grads = (d_encoder, d_decoder, along)
            auxk = self._add_auxk(dead, pre[:, dead], inputs, error, pull, *grads)

        self.encoder.grad, self.W_dec.grad = d_encoder, d_decoder
        # b_dec enters twice; summing over tokens before multiplying spares a dense product
        self.b_dec.grad = direction.sum(0).mul_(2 / n) - (d_encoder[:, d] @ encoder)[:d]

        fired = offsets.diff() > 0
        self.tokens_since_fired = torch.where(fired, 0, self.tokens_since_fired + n)
        self.tokens += n
        return Losses(loss, mse, auxk, offsets[m] / n, len(dead)), along

    def _buffer(self, name: str, *shape: int) -> torch.Tensor:
        # kept between steps: faulting in fresh pages would cost as much as a sparse product
        if name not in self._buffers or self._buffers[name].shape != shape:
            self._buffers[name] = torch.zeros(shape, device=self.encoder.device)
        return self._buffers[name]

    def _dead_latents(self) -> torch.Tensor:
        # nothing can be dead before dead_tokens tokens: then the device need not be asked
        if not self.auxk_weight or self.tokens <= self.dead_tokens:
            return self.tokens_since_fired[:0]
        return (self.tokens_since_fired > self.dead_tokens).nonzero().squeeze(1)

    def _add_auxk(
        self, dead, pre, inputs, error, pull, d_encoder, d_decoder, along
    ) -> torch.Tensor:
        """Add AuxK's gradients in place; the auxiliary loss (Gao et al. 2024, appendix A.2).

        The k_aux dead latents with the largest pre-activations reconstruct the residual
        x - x_hat, which counts as data: no gradient flows into it. Only dead columns are touched.
        """
        n = len(inputs)
        W_dec = self.W_dec[dead]
        z = pre
        if len(dead) > self.k_aux:
            values, ids = top_latents(pre, self.k_aux)
            z = torch.zeros_like(pre).scatter_(1, ids, values)
        z = z.relu_()
        difference = (z @ W_dec).add_(error)  # minus the residual is plus the error
        variance = pull.whiten(error - error.mean(0)).square().sum() / n
        per_variance = torch.where(variance > 0, 1 / variance, 0.0)
        loss = pull.whiten(difference).square().sum() / n * per_variance
        g = pull.apply(difference).mul_(2 * self.auxk_weight / n * per_variance)
        dz = torch.where(z > 0, g @ W_dec.T, 0.0)
        # `dead` holds no latent twice, so the order of these additions does not matter
        d_decoder.index_add_(0, dead, z.T @ g)
        d_encoder.index_add_(0, dead, dz.T @ inputs)
        along.index_add_(0, dead, (z * dz).sum(0))
        return loss

    def sae(self) -> TopKSAE:
        """A copy of the SAE as it stands, for scaled input."""
        d, encoder = self.W_dec.shape[1], self.encoder.detach()
        return TopKSAE(
            W_enc=encoder[:, :d].T.clone(memory_format=torch.contiguous_format),
            b_enc=encoder[:, d].clone(),
            W_dec=self.W_dec.detach().clone(),
            b_dec=self.b_dec.detach().clone(),
            k=self.k,
        )

    def state(self) -> dict[str, torch.Tensor]:
        """Everything the next step depends on, as contiguous CPU tensors."""
        state = {"tokens_since_fired": self.tokens_since_fired}
        state["done"] = torch.tensor([self.done, self.tokens])
        for name, p in self._parameters().items():
            state[name] = p.detach()
            for moment, value in self.adam.state[p].items():
                state[f"{name}.{moment}"] = value
        return {name: value.cpu().contiguous().clone() for name, value in state.items()}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Continue from a `state`."""
        device = self.b_dec.device
        self.done, self.tokens = state["done"].tolist()
        self.tokens_since_fired = state["tokens_since_fired"].to(device)
        for name, p in self._parameters().items():
            p.data.copy_(state[name])
            self.adam.state[p] = {
                moment: state[f"{name}.{moment}"].to(device)
                for moment in ("step", "exp_avg", "exp_avg_sq")
                if f"{name}.{moment}" in state
            }
