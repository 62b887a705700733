"""What a patched residual does to the attention above it: divergence of every head's rows.

Attention-plan divergence (docs/definitions.md): for each head, KL(clean‖patched) and the
Jensen–Shannon divergence (JS) between the attention a query pays in the clean run and in the
patched one, causal entries only, the first query skipped (it can only look at itself). Both in
nats; JS ≤ ln 2. Heads at or below the patched layer see the clean run, so theirs is exactly 0.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.progress import Progress
from streamgauge.base.tables import read_parquet, write_parquet
from streamgauge.models import hooks
from streamgauge.numerics import metrics
from streamgauge.numerics.arrays import float64
from streamgauge.passes.evaluate import TOKENS_AT_ONCE, Codec


class _Seen(Exception):
    """Leaves a forward pass after the last attention: nobody needs the logits."""


@torch.no_grad()
def measure(
    subject,
    tokens,
    layer: int,
    codecs: Mapping[str, Codec | Mapping[str, Codec]],
    *,
    sequences: int,
    batch_size: int,
    scratch: str | Path | None = None,
    label: str | None = None,
) -> pd.DataFrame:
    """Divergence of the attention of every head when every position is patched.

    The model runs with its eager attention, the only one that forms the weights, and gets its own
    back afterwards. A sequence and its patched copies go through the blocks above `layer` as one
    batch, so that the weights of one layer only are held at a time. Where a patched weight is
    rounded to 0 and the clean one is not, the smallest number of that type stands in for it: KL is
    then a lower bound instead of infinite.

    Args:
        subject: a `subjects.Subject`.
        tokens: token ids, shape ``(N, T)``, T ≥ 2; array or zarr.
        layer: hook point ``blocks.{layer}.hook_resid_post``.
        codecs: as in `evaluate.evaluate`; of those that differ between token sets, ``all``.
        sequences: rows of `tokens` used, the first ones; all of them where there are fewer.
        batch_size: sequences in a forward pass, each with a patched copy for every codec.
        scratch: directory for finished batches, owned by this very call's arguments.
        label: shown in progress lines.

    Returns:
        One row for each sequence, codec, layer and head: ``sequence, codec, layer, head, n_rows``
        and ``kl_sum_nats, js_sum_nats``, the sums over the ``n_rows`` = T − 1 query positions.
        Layers up to `layer` are listed with sums of exactly 0. A block without attention has no
        rows.

    Raises:
        StreamgaugeError: unusable tokens; no such layer; the model exposes no attention weights;
            a divergence that is not finite, naming sequence, layer and head.
    """
    n, length = min(tokens.shape[0], sequences), tokens.shape[1]
    if length < 2 or n < 1:
        raise StreamgaugeError(f"no attention to compare in token rows of shape {(n, length)}")
    hooks.check_layers([layer], subject.n_layers)
    scratch = Path(scratch) if scratch else None
    if scratch:
        scratch.mkdir(parents=True, exist_ok=True)
    progress = Progress(n * length, "tokens", label or f"attention L{layer:02d}")
    parts = []
    with _eager(subject.model):
        for start in range(0, n, batch_size):
            stop = min(start + batch_size, n)
            path = scratch / f"rows-{start:08d}-{stop:08d}.parquet" if scratch else None
            if path and path.exists():
                parts.append(read_parquet(path))
            else:
                ids = subject.ids(np.asarray(tokens[start:stop], np.int64))
                sums = _sums(subject, ids, layer, codecs, start)
                parts.append(_rows(sums, layer, list(codecs), start, length - 1))
                if path:
                    write_parquet(parts[-1], path)
            progress.update((stop - start) * length)
    progress.close()
    return pd.concat(parts, ignore_index=True)


def _sums(subject, ids, layer: int, codecs, start: int) -> dict[int, np.ndarray]:
    """layer -> sums over queries, (sequence, codec, head, divergence)."""
    model, n_layers = subject.model, subject.n_layers
    n_heads = model.config.get_text_config().num_attention_heads
    shape = (len(ids), len(codecs))
    found = {low: np.zeros((*shape, n_heads, len(metrics.DIVERGENCES))) for low in range(layer + 1)}
    if layer == n_layers - 1:
        return found
    clean = subject.residuals(ids, [layer])[layer]
    copies = [clean, *(_patched(codec, clean) for codec in codecs.values())]
    # (sequence, copy) next to each other: clean first, then one copy for each codec
    h = torch.stack(copies, dim=1).flatten(0, 1)

    def read(at: int, weights) -> None:
        weights = weights.unflatten(0, (len(ids), len(copies)))
        found[at] = np.stack([_compare(of_one) for of_one in weights])
        bad = np.argwhere(~np.isfinite(found[at]).all(-1))
        if len(bad):
            i, codec, head = bad[0]
            raise StreamgaugeError(
                f"the attention of head {head} with {list(codecs)[codec]!r} patched in is not"
                f" finite at sequence {start + i}",
                where=f"layer {at}",
                remedy="Run the model in float32, or leave this sequence out.",
            )
        if at == n_layers - 1:
            raise _Seen

    hooks.skips_lower_blocks(model)  # tries the model, once, before anything is hooked
    with _attention(model, range(layer + 1, n_layers), read):
        try:
            subject.logits_from(ids.repeat_interleave(len(copies), 0), layer, h)
        except _Seen:
            pass
    if len(found) == layer + 1:
        raise StreamgaugeError(
            f"{type(model).__name__} exposes no attention weights",
            remedy="Attention-plan divergence needs an eager attention that returns its weights;"
            " ask for the other targets, `snakemake saes proxy_gap`.",
        )
    return found


def _patched(codec, h):
    """Reconstruction of every position, (B, T, d); a few sequences at a time."""
    codec = codec["all"] if isinstance(codec, Mapping) else codec
    step = max(1, TOKENS_AT_ONCE // h.shape[1])
    parts = [codec(part.flatten(0, 1))[0].reshape(part.shape) for part in h.split(step)]
    return torch.cat(parts).to(h)


def _compare(weights) -> np.ndarray:
    """Attention of a sequence and its copies, (copy, head, T, T), to (codec, head, divergence)."""
    clean, *patched = weights.tril()[:, :, 1:]
    kind = torch.finfo(clean.dtype)
    sums = []
    for own in patched:
        lost = (own == 0) & (clean > 0)
        filled = float64(own).masked_fill(lost, kind.tiny * kind.eps)
        sums.append([x.sum(-1).cpu().numpy() for x in metrics.divergence(clean, filled)])
    return np.moveaxis(np.array(sums), 1, -1)


def _rows(sums, layer, names, start, n_rows) -> pd.DataFrame:
    """The table of one batch, by sequence, codec, layer and head."""
    frames = []
    for at, values in sums.items():
        sequence, codec, head = (index.ravel() for index in np.indices(values.shape[:3]))
        columns = {"sequence": start + sequence, "codec": codec, "layer": at, "head": head}
        columns |= {"n_rows": n_rows}
        columns |= {
            f"{key}_sum_nats": values[..., i].ravel() for i, key in enumerate(metrics.DIVERGENCES)
        }
        frames.append(pd.DataFrame(columns))
    made = pd.concat(frames).sort_values(["sequence", "codec", "layer", "head"], ignore_index=True)
    made = made.astype(dict.fromkeys(["sequence", "layer", "head", "n_rows"], np.int32))
    return made.assign(codec=pd.Categorical.from_codes(made.codec, names))


@contextmanager
def _eager(model) -> Iterator[None]:
    """Attention that forms its weights, for as long as this lasts."""
    from streamgauge.models.quiet import quiet

    before = model.config._attn_implementation
    with quiet():  # models that are always eager say that they cannot be switched
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        with quiet():
            model.set_attn_implementation(before)


@contextmanager
def _attention(model, layers, read) -> Iterator[None]:
    """Call ``read(layer, weights (B, H, T, T))`` whenever the attention of one of `layers` ends.

    Attention modules return their output and their weights; they are recognised by that.
    """

    def reader(layer):
        def hook(_module, _arguments, output):
            weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
            if isinstance(weights, torch.Tensor) and weights.ndim == 4:
                read(layer, weights)

        return hook

    blocks = hooks.blocks(model)
    handles = [
        module.register_forward_hook(reader(layer))
        for layer in layers
        for name, module in blocks[layer].named_modules()
        if name  # the block itself may hand on the weights of its attention
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
