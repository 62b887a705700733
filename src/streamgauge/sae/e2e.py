"""The objective ``e2e``: the divergence after patching (Braun et al. 2024).

"Identifying functionally important features with end-to-end sparse dictionary learning": the
reconstructions of whole sequences are put into the model and the SAE is trained on
KL(clean‖patched) of the next token. The gradient at the reconstruction comes from the model, the
rest of the step is that of every objective.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from streamgauge.base.errors import StreamgaugeError
from streamgauge.models.hooks import check_layers
from streamgauge.numerics import metrics
from streamgauge.sae.objective import Euclidean, SquaredError, check_same
from streamgauge.sae.runs import Settings
from streamgauge.sae.start import Start
from streamgauge.sae.stream import Stream
from streamgauge.stores.layer_stores import open_tokens

REFERENCE_TOKENS = 2_048  # of the sample whose divergence the loss is divided by
# Logits of as many sequences as hold so many are in memory at once; at least one sequence.
LOGITS_AT_ONCE = 1 << 24


class Sequences(Stream):
    """Batches of whole sequences, in an order that depends on (seed, epoch) only.

    `head` is that of `Stream`: the same sample of tokens as for the other objectives.

    Args:
        tokens: token ids, (n_sequences, n_positions), array or zarr.
        options: those of `Stream`, with a whole number of sequences as ``batch_size``; sinks that
            are excluded count there, and stay in their sequence.
    """

    def __init__(self, store, tokens, **options):
        super().__init__(store, **options)
        self.tokens = tokens

    def batches(self, start: int, stop: int) -> Iterator[tuple[torch.Tensor, ...]]:
        """Batches number `start` to `stop` - 1.

        Yields:
            x (n, d_model), the scaled activations to be reconstructed; ids (B, T); h (B, T,
            d_model), the activations as harvested; keep (B, T), which of them x holds.
        """
        rows = self.batch_size // self.store.n_positions
        for number in range(start, stop):
            ids, h, keep = self.sequences(number * rows, (number + 1) * rows)
            if not keep[:, :-1].any():
                raise StreamgaugeError(
                    "a batch predicts nothing but what follows sinks",
                    where=self.name,
                    remedy="Raise sae.batch_size, or set sae.exclude_sinks to false.",
                )
            yield h[keep] * self.scale, ids, h, keep

    def sequences(self, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(ids, h, keep) of sequences [first, last) of the shuffled epochs, see `batches`."""
        n = self.store.n_sequences
        epochs = range(first // n, (last - 1) // n + 1)
        order = [np.random.default_rng([self.seed, epoch]).permutation(n) for epoch in epochs]
        offset = epochs[0] * n
        chosen = np.concatenate(order)[first - offset : last - offset].tolist()
        ids = np.stack([np.asarray(self.tokens[i], np.int64) for i in chosen])
        h = np.concatenate([self.store.read(i, i + 1) for i in chosen])
        keep = np.ones(ids.shape, bool)
        if self.exclude_sinks:
            keep = np.concatenate([self.store.keep(i, i + 1) for i in chosen])
        ids, h, keep = (torch.from_numpy(part).to(self.device) for part in (ids, h, keep))
        return ids, h, keep


class Patched(Euclidean):
    """The pull of one batch: what the model does with the reconstructions.

    Args:
        subject: a `subjects.Subject`.
        layer: where reconstructions are put in.
        ids, h, keep: see `Sequences.batches`.
        start: of the training.
    """

    def __init__(self, subject, layer: int, ids, h, keep, start: Start):
        self.subject, self.layer, self.start = subject, layer, start
        self.ids, self.h, self.keep = ids, h, keep

    def __call__(self, error: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Euclidean`; the loss is in nats a predicted position."""
        patched = self.h.clone()
        patched[self.keep] += error / self.start.scale
        loss, gradient = divergence(self.subject, self.layer, self.ids, self.h, patched, self.keep)
        weight = self.start.variance / self.start.reference
        factor = weight * len(error) / (2 * self.start.scale)
        return loss, gradient[self.keep] * factor


class EndToEnd(SquaredError):
    """The objective ``e2e``.

    A step takes as many whole sequences as hold ``batch_size`` tokens, at least one. Scale, V and
    the initial b_dec are those of ``mse`` at the same seed. The reference is the divergence when
    every token is replaced by the initial b_dec. AuxK is Euclidean. With ``exclude_sinks`` sinks
    keep their clean activation, get no gradient and are not counted, as in the scores.

    Args:
        subject: a `subjects.Subject`.
        tokens: the token store of the training split.

    Raises:
        StreamgaugeError: no readable token store there.
    """

    name = "e2e"

    def __init__(self, subject, tokens: Path | str):
        self.subject, self.path, self.tokens = subject, str(tokens), open_tokens(tokens)

    def batch_size(self, store, settings: Settings) -> int:
        """Tokens a step takes from `store`: whole sequences."""
        return max(1, settings.batch_size // store.n_positions) * store.n_positions

    def stream(self, store, settings: Settings, seed: int, device: torch.device) -> Sequences:
        """See `SquaredError`; model and token rows must be those the activations came from."""
        rows = dict(zip(("n_sequences", "n_positions"), self.tokens.shape, strict=True))
        for field, value in rows.items():
            check_same(field, store, value, self.path)
        check_same("d_model", store, self.subject, str(self.subject.directory))
        check_layers([store.layer], self.subject.n_layers)
        if store.n_positions < 2:
            raise StreamgaugeError(
                "sequences of one token predict nothing",
                where=self.path,
                remedy="Raise context_length in the corpus' block.",
            )
        return Sequences(
            store, self.tokens, device=device, **self.stream_options(store, settings, seed)
        )

    def start(self, stream: Sequences, start: Start) -> Start:
        """`start` with the divergence when b_dec replaces every token, in nats a position.

        Raises:
            StreamgaugeError: that changes no prediction, or makes it not finite.
        """
        rows = max(1, REFERENCE_TOKENS // stream.store.n_positions)
        ids, h, keep = stream.sequences(0, min(rows, stream.store.n_sequences))
        patched = torch.where(keep[..., None], start.b_dec / start.scale, h)
        layer = stream.store.layer
        loss = divergence(self.subject, layer, ids, h, patched, keep)[0].item()
        if not 0 < loss < float("inf"):
            raise StreamgaugeError(
                f"replacing every token by b_dec has a divergence of {loss} nats, by which the "
                "loss cannot be divided",
                where=f"{stream.name}, objective e2e",
                remedy="Run the model in float32, or raise context_length in the corpus' block.",
            )
        return replace(start, reference=loss)

    def pull(self, stream: Stream, batch, start: Start) -> tuple[torch.Tensor, Patched]:
        """See `SquaredError`."""
        x, ids, h, keep = batch
        return x, Patched(self.subject, stream.store.layer, ids, h, keep, start)


@torch.no_grad()
def divergence(
    subject, layer: int, ids: torch.Tensor, h: torch.Tensor, patched: torch.Tensor, keep
) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(clean‖patched) of the next token, and its gradient with respect to what was patched in.

    A few sequences at a time, so that the logits fit.

    Args:
        subject: a `subjects.Subject`.
        layer: the hook point.
        ids: (B, T).
        h, patched: (B, T, d_model), the clean residual and its replacement.
        keep: (B, T), positions that count, of those from 0 to T - 2.

    Returns:
        The mean over the positions that count, nats, a float64 scalar (NaN where there is none);
        and its gradient, (B, T, d_model).
    """
    counted = keep[:, :-1]
    step = max(1, LOGITS_AT_ONCE // (ids.shape[1] * subject.vocab_size))
    total, gradients = torch.zeros((), dtype=torch.float64), []
    for rows in torch.arange(len(ids)).split(step):
        at = slice(int(rows[0]), int(rows[-1]) + 1)
        log_p = metrics.log_probabilities(subject.logits_from(ids[at], layer, h[at])[:, :-1])
        leaf = patched[at].detach().requires_grad_()
        with torch.enable_grad():
            logits = subject.logits_from(ids[at], layer, leaf)
        log_q = metrics.log_probabilities(logits[:, :-1].detach())
        kl = metrics.kl_per_position(log_p, log_q)
        total = total + torch.where(counted[at].cpu(), kl.cpu(), 0).sum()
        # the gradient of KL(p‖q) with respect to the logits of q is q - p
        pull = torch.zeros_like(logits)
        pull[:, :-1] = torch.where(counted[at][..., None], log_q.exp() - log_p.exp(), 0)
        gradients.append(torch.autograd.grad(logits, leaf, pull)[0])
    n = counted.sum().cpu()
    return total / n, torch.cat(gradients) / n.clamp(min=1)
