"""MI critics between a layer's residual stream and the model's output, and a study's table of them.

The pairs of a layer are (activation, reduced logits) at the same token, sinks left out.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.progress import Progress
from streamgauge.base.tables import read_parquet, write_parquet
from streamgauge.numerics import infonce, logit_components
from streamgauge.numerics.arrays import to_numpy

# tokens of one forward pass: bounds the logits held at once, (tokens, vocabulary)
_TOKENS_AT_ONCE = 512
# the components are fitted to this many tokens of that many sequences, evenly spread
_FIT_TOKENS, _FIT_SEQUENCES = 512, 16


def measure(
    subject,
    tokens,
    activations,
    layer: int,
    *,
    sequences: int,
    components: int,
    widths: Sequence[int],
    seed: int,
    scratch: str | Path,
    label: str | None = None,
    **training,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Information between the activations of a layer and the logits, for every critic and width.

    Args:
        subject: a `subjects.Subject`.
        tokens: token ids (N, T) of the rows that were harvested.
        activations: their `layer_stores.ActivationStore`.
        layer: where they were harvested.
        sequences: rows used, the first ones; all of them where there are fewer.
        components: numbers the logits are reduced to, see `logit_components.logit_basis`.
        widths, seed, training: see `infonce.profile`.
        scratch: directory for what is finished, owned by this very call's arguments.
        label: shown in progress lines.

    Returns:
        The table of `infonce.summary`, and facts: ``d_model``, ``n_sequences``,
        ``n_held_out_sequences``, ``n_pairs``, ``n_held_out_pairs``, ``components`` and
        ``explained``, the components' share of the variance of the centred log-probabilities.

    Raises:
        StreamgaugeError: tokens and activations of different rows; too few sequences or tokens;
            logits that are not finite.
    """
    scratch, label = Path(scratch), label or f"critics L{layer:02d}"
    n = min(sequences, activations.n_sequences)
    if tokens.shape != (activations.n_sequences, activations.n_positions):
        raise StreamgaugeError(
            f"tokens of shape {tuple(tokens.shape)} do not belong to the activations",
            where=str(activations.path),
            remedy="Run snakemake again to harvest them anew.",
        )
    keep, h = activations.keep(0, n), activations.read(0, n)
    y, explained = _reduced(subject, tokens[:n], layer, h, keep, components, scratch, label)
    x, sequence = h[keep], np.nonzero(keep)[0]
    test = infonce.held_out(sequence)
    of_one = 2 * training["steps"]  # a critic and its null
    progress = Progress(of_one * len(infonce.CRITICS) * len(widths), "steps", label)
    training |= {"device": subject.device, "tick": progress.update}
    rows = []
    for critic in infonce.CRITICS:
        for width in widths:
            path = scratch / f"{critic}-{width:05d}.parquet"
            if path.exists():
                progress.update(of_one)
            else:
                row = infonce.at_width(x, y, test, critic, width, seed=seed, **training)
                write_parquet(pd.DataFrame([row]), path)
            rows += read_parquet(path).to_dict("records")
    progress.close()
    facts = {
        "d_model": activations.d_model,
        "n_sequences": n,
        "n_held_out_sequences": len(np.unique(sequence[test])),
        "n_pairs": len(x),
        "n_held_out_pairs": int(test.sum()),
        "components": components,
        "explained": explained,
    }
    return infonce.summary(rows), facts


def _reduced(subject, tokens, layer, h, keep, components, scratch, label):
    """Reduced logits of the kept tokens, (n_pairs, components), and the share they explain."""
    path = scratch / "reduced.parquet"
    if not path.exists():
        n, length = keep.shape
        train = np.flatnonzero(~infonce.held_out(np.arange(n)))
        fitted = train[:: -(-len(train) // _FIT_SEQUENCES)]
        # the rows of these sequences together might not fit: every few tokens of each batch
        every = -(-int(keep[fitted].sum()) // _FIT_TOKENS)
        progress = Progress((n + len(fitted)) * length, "tokens", f"{label}, logits")
        batches = _logits(subject, tokens, layer, h, keep, fitted, progress)
        some = torch.cat([batch[::every] for batch in batches])
        basis = logit_components.logit_basis(some, components)
        batches = _logits(subject, tokens, layer, h, keep, np.arange(n), progress)
        reduced = [to_numpy(logit_components.reduced_logits(batch, basis)) for batch in batches]
        table = pd.DataFrame(np.concatenate(reduced))
        progress.close()
        write_parquet(table.rename(columns=str).assign(explained=basis.explained), path)
    table = read_parquet(path)
    explained = float(table.pop("explained").iloc[0])
    return table.to_numpy(), explained


def _logits(subject, tokens, layer, h, keep, rows, progress) -> Iterator[torch.Tensor]:
    """Logits of the kept tokens of the sequences `rows`, (tokens, vocabulary), batch by batch."""
    step = max(1, _TOKENS_AT_ONCE // keep.shape[1])
    for chosen in (rows[i : i + step] for i in range(0, len(rows), step)):
        residual = torch.from_numpy(h[chosen]).to(subject.device)
        with torch.inference_mode():
            found = subject.logits_from(tokens[chosen].astype(np.int64), layer, residual)
        found = found[torch.from_numpy(keep[chosen]).to(found.device)]
        if not torch.isfinite(found).all():
            raise StreamgaugeError(
                f"a logit of sequences {chosen[0]} to {chosen[-1]} is not finite",
                where=f"layer {layer}",
                remedy="Run the model in float32 (subjects: dtype), or check its weights.",
            )
        progress.update(tokens[chosen].size)
        yield found
