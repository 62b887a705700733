"""Patch reconstructions into the model and write down, per sequence, what that does.

The per-sequence table is the artifact every aggregate and interval is computed from (`score_card`).
All definitions are those of docs/definitions.md, "Reconstruction" and "Behaviour"; the formulas are
in `metrics`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.progress import Progress
from streamgauge.base.tables import read_parquet, write_parquet
from streamgauge.models.hooks import hook_name, logits_slices
from streamgauge.numerics import metrics
from streamgauge.numerics.arrays import float64
from streamgauge.numerics.token_sets import TOKEN_SETS, masks

#: residuals (n, d) -> (reconstructions (n, d), latents (n, m) or None); a `TopKSAE` is one
Codec = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]

# Tokens a codec is given at once, so that latents of a wide SAE fit.
TOKENS_AT_ONCE = 4096
_LATENT_COUNTS = ("latent", *(f"n_{s}" for s in TOKEN_SETS))


@torch.no_grad()
def evaluate(
    subject,
    tokens,
    layer: int,
    codecs: Mapping[str, Codec | Mapping[str, Codec]],
    mean: Mapping[str, np.ndarray],
    sink_threshold: float,
    *,
    batch_size: int,
    scratch: str | Path | None = None,
    label: str | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Losses, divergences and reconstruction sums of every sequence under every codec.

    Two token sets are treated apart. In ``all`` every position is replaced by its reconstruction.
    In ``no_sink`` sinks (position 0 and norms above `sink_threshold`) keep their clean activation,
    and losses and divergences are averaged over the positions whose *input* token is no sink, as
    SAELens masks ignored tokens.

    Args:
        subject: a `subjects.Subject`.
        tokens: token ids, shape ``(N, T)``, T ≥ 2; array or zarr.
        layer: hook point ``blocks.{layer}.hook_resid_post``.
        codecs: name -> callable, residuals ``(n, d)`` to ``(reconstructions (n, d), latents
            (n, m) or None)``; or name -> one callable for each token set.
        mean: token set -> mean residual ``(d,)`` of the evaluation tokens, about which SST is
            taken.
        sink_threshold: norm above which a token is a sink.
        batch_size: sequences in a forward pass.
        scratch: directory for finished batches, owned by this very call's arguments; a later
            call with the same one continues there and returns the same tables bit for bit.
        label: shown in progress lines.

    Returns:
        ``(per_sequence, latents)``. `per_sequence` has one row for each sequence and codec:
        ``sequence, codec, d_model`` and for each token set ``s``

        - ``n_tokens_s``, ``n_predicted_s``: tokens in the set; those of them at positions 0..T−2;
        - ``l_orig_nats_s``, ``l_recon_nats_s``, ``kl_nats_s``: mean over the predicted positions
          of the next-token cross-entropy, clean and patched, and of KL(clean‖patched); NaN when
          there is none;
        - ``sse_s``, ``sst_s``, ``squared_norm_sum_s``, ``dot_sum_s``: Σ‖a−â‖², Σ‖a−mean‖²,
          Σ‖a‖², Σa·â; ``cosine_sum_s``, ``relative_error_sum_s``: sums over tokens;
        - ``l0_sum_s``: number of non-zero latents; NaN for a codec without latents.

        `latents` has ``sequence, codec, latent, n_all, n_no_sink``: on how many tokens each latent
        is non-zero, where that is not 0.

    Raises:
        StreamgaugeError: unusable tokens; an activation, reconstruction or loss that is not
            finite, naming sequence, position and layer.
    """
    n, length = tokens.shape
    if length < 2 or n == 0:
        raise StreamgaugeError(f"no next token to predict in token rows of shape {(n, length)}")
    scratch = Path(scratch) if scratch else None
    if scratch:
        scratch.mkdir(parents=True, exist_ok=True)
    batches = [(start, min(start + batch_size, n)) for start in range(0, n, batch_size)]
    finished = {batch for batch in batches if scratch and _path(scratch, "rows", batch).exists()}
    passes = 1 + len(TOKEN_SETS) * len(codecs)
    progress = Progress(
        n * length * passes,
        "tokens",
        label or f"evaluate L{layer:02d}",
        done=sum(stop - start for start, stop in finished) * length * passes,
    )
    rows, latents = [], []
    for batch in batches:
        if batch not in finished:
            ids = torch.as_tensor(np.asarray(tokens[slice(*batch)], np.int64))
            clean = _Batch(subject, ids, layer, batch[0], mean, sink_threshold, progress)
            tables = clean.tables(codecs)
            if scratch:  # the rows last: they say that the batch is finished
                write_parquet(tables[1], _path(scratch, "latents", batch))
                write_parquet(tables[0], _path(scratch, "rows", batch))
        if scratch:
            tables = [read_parquet(_path(scratch, kind, batch)) for kind in ("rows", "latents")]
        rows.append(tables[0])
        latents.append(tables[1])
    progress.close()
    # by sequence, so that the table does not show how it was cut into batches
    return tuple(
        pd.concat(parts).sort_values("sequence", kind="stable", ignore_index=True)
        for parts in (rows, latents)
    )


def _path(scratch: Path, kind: str, batch: tuple[int, int]) -> Path:
    return scratch / f"{kind}-{batch[0]:08d}-{batch[1]:08d}.parquet"


class _Batch:
    """A batch of sequences: its clean pass, and every codec measured against it."""

    def __init__(self, subject, ids, layer, start, mean, sink_threshold, progress):
        self.subject, self.layer, self.start, self.progress = subject, layer, start, progress
        self.ids = subject.ids(ids)
        self.h = subject.residuals(self.ids, [layer])[layer]
        self._check(self.h, "the activation")
        norm = self.h.float().norm(dim=-1).cpu().numpy()
        self.keep = masks(norm, sink_threshold)
        self.a = float64(self.h)
        self.mean = {s: torch.as_tensor(mean[s]).to(self.a) for s in TOKEN_SETS}
        self.logits = subject.logits_from(self.ids, layer, self.h)
        self.l_orig, _ = self._losses(self.logits, "the clean loss", divergence=False)

    def tables(self, codecs) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The rows and the latent counts of every codec."""
        sequence = np.arange(self.start, self.start + len(self.ids), dtype=np.int32)
        names = pd.CategoricalDtype(list(codecs))
        rows, latents = [], []
        for name, codec in codecs.items():
            by_set = codec if isinstance(codec, Mapping) else dict.fromkeys(TOKEN_SETS, codec)
            made, counts = {}, {}
            row = {"sequence": sequence, "codec": name, "d_model": np.int32(self.h.shape[-1])}
            for s in TOKEN_SETS:
                if id(by_set[s]) not in made:
                    made[id(by_set[s])] = self._reconstruct(name, by_set[s])
                h_hat, fired = made[id(by_set[s])]
                counts[s] = fired[s]
                row |= {f"{key}_{s}": x for key, x in self._measure(name, s, h_hat).items()}
                row[f"l0_sum_{s}"] = counts[s].sum(1) if counts[s].size else np.nan
            rows.append(pd.DataFrame(row))
            which, latent = np.nonzero(counts["all"] + counts["no_sink"])
            columns = {"sequence": sequence[which], "codec": name, "latent": latent}
            columns |= {f"n_{s}": counts[s][which, latent] for s in TOKEN_SETS}
            latents.append(pd.DataFrame(columns).astype(dict.fromkeys(_LATENT_COUNTS, np.int32)))
        return tuple(pd.concat(parts).astype({"codec": names}) for parts in (rows, latents))

    def _reconstruct(self, name, codec):
        """Reconstructions (B, T, d) and, for each token set, firing counts (B, m); m = 0 if none.

        A few sequences at a time: the dense latents of a wide SAE are many times the residuals.
        """
        step = max(1, TOKENS_AT_ONCE // self.h.shape[1])
        h_hat, counts = [], {s: [] for s in TOKEN_SETS}
        for first in range(0, len(self.h), step):
            part = self.h[first : first + step]
            x_hat, z = codec(part.flatten(0, 1))
            h_hat.append(x_hat.reshape(part.shape))
            fired = self.h.new_zeros(*part.shape[:2], 0) if z is None else z != 0
            fired = fired.reshape(*part.shape[:2], -1)
            for s in TOKEN_SETS:
                keep = torch.as_tensor(self.keep[s][first : first + step]).to(fired.device)
                counts[s].append((fired * keep[..., None]).sum(1).cpu().numpy())
        h_hat = torch.cat(h_hat).to(self.h.device)
        self._check(h_hat, f"the reconstruction by {name!r}")
        return h_hat, {s: np.concatenate(parts) for s, parts in counts.items()}

    def _measure(self, name, s, h_hat):
        """The columns of one codec in token set `s`, without the suffix."""
        keep, a, a_hat = self.keep[s], self.a, float64(h_hat)
        per_token = {
            "sse": metrics.squared_error_per_token(a, a_hat),
            "sst": metrics.squared_error_per_token(a, self.mean[s]),
            "squared_norm_sum": metrics.squared_norm_per_token(a),
            "dot_sum": metrics.dot_per_token(a, a_hat),
            "cosine_sum": metrics.cosine_per_token(a, a_hat),
            "relative_error_sum": metrics.relative_error_per_token(a, a_hat),
        }
        sums = {key: (x.cpu().numpy() * keep).sum(1) for key, x in per_token.items()}
        mask = torch.as_tensor(keep).to(self.h.device)[..., None]
        patched = torch.where(mask, h_hat.to(self.h.dtype), self.h)
        logits = self.subject.logits_from(self.ids, self.layer, patched)
        l_recon, kl = self._losses(logits, f"the loss with {name!r} patched in")
        predicted = keep[:, :-1]
        n_predicted = predicted.sum(1)
        means = {
            key: np.where(predicted, x, 0).sum(1) / np.where(n_predicted, n_predicted, np.nan)
            for key, x in (("l_orig", self.l_orig), ("l_recon", l_recon), ("kl", kl))
        }
        counts = {"n_tokens": keep.sum(1), "n_predicted": n_predicted}
        return (
            {key: x.astype(np.int32) for key, x in counts.items()}
            | {f"{key}_nats": x for key, x in means.items()}
            | sums
        )

    def _losses(self, logits, what, divergence=True):
        """Cross-entropy and KL(clean‖·) at positions 0..T−2 in nats, (B, T−1) each.

        A few positions at a time: at a vocabulary of 50,000 every temporary counts.
        """
        n, length, _ = logits.shape
        ce, kl = np.zeros((2, n, length - 1))
        for i in range(n):
            for at in logits_slices(logits, length - 1):
                log_q = metrics.log_probabilities(logits[i, at])
                labels = self.ids[i, at.start + 1 : at.stop + 1]
                ce[i, at] = metrics.cross_entropy_per_position(log_q, labels).cpu()
                if divergence:
                    log_p = metrics.log_probabilities(self.logits[i, at])
                    kl[i, at] = metrics.kl_per_position(log_p, log_q).cpu()
        self.progress.update(self.ids.numel())
        self._check(torch.as_tensor(ce + kl)[..., None], what)
        return ce, kl

    def _check(self, x, what):
        """Raise for the first token where `x`, (B, T, ...), is not finite."""
        bad = ~torch.isfinite(x).all(-1)
        if bad.any():
            i, position = bad.nonzero()[0].tolist()
            raise StreamgaugeError(
                f"{what} is not finite at sequence {self.start + i}, position {position}",
                where=hook_name(self.layer),
                remedy="Run the model in float32, or leave this sequence out.",
            )
