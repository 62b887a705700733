"""Eigen-spectra of every layer in one pass over token rows: how dimension runs with depth."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.progress import Progress
from streamgauge.base.tables import write_csv
from streamgauge.models import hooks
from streamgauge.numerics.arrays import to_numpy
from streamgauge.numerics.spectra import (
    SinkAwareCovariance,
    effective_rank,
    participation_ratio,
    top_share,
)
from streamgauge.numerics.token_sets import TOKEN_SETS
from streamgauge.stores import layer_stores

CENTRINGS = ("centred", "uncentred")


class Spectra(NamedTuple):
    """Result of `spectra`.

    Attributes:
        eigenvalues: (layer, token_set, centring, component) float64, largest first; token sets
            and centrings as in `token_sets.TOKEN_SETS` and `CENTRINGS`.
        n_tokens: (layer, token_set) int64.
        table: one row each for layer, token_set, centring and deflate, with the columns
            n_tokens, d_model, pr, pr_over_d, effective_rank, top_share. `deflate` leading
            eigenvalues are left out before all four; top_share is the largest remaining one over
            the sum of those remaining.
    """

    eigenvalues: np.ndarray
    n_tokens: np.ndarray
    table: pd.DataFrame


def spectra(
    subject,
    tokens,
    *,
    sequences: int | None = None,
    batch_size: int = 8,
    deflate: int = 10,
    progress: bool = True,
) -> Spectra:
    """Spectra of the residual stream after every block (docs/definitions.md, "Spectra").

    Args:
        subject: a `subjects.Subject`.
        tokens: token ids, (n_sequences, n_positions), anything that slices to an array.
        sequences: how many of the first rows to use; all where None or where there are fewer.
        batch_size: sequences in one forward pass.
        deflate: leading components removed for the deepest deflation; 0 and 1 are always there.
        progress: print progress lines with tokens/s.

    Returns:
        Eigenvalues of the covariance, centred and not, of all tokens and without sinks, and the
        table of their summaries. Memory: two d_model × d_model float64 sums a layer.

    Raises:
        StreamgaugeError: `deflate` leaves nothing; an activation is not finite.
    """
    n_sequences, n_positions = tokens.shape
    n_sequences = min(n_sequences, sequences or n_sequences)
    d_model, n_layers = subject.d_model, subject.n_layers
    if not 0 <= deflate < d_model:
        raise StreamgaugeError(
            f"deflate {deflate} leaves no component of {d_model}",
            where="spectra.deflate",
            remedy=f"Choose 0 to {d_model - 1}.",
        )
    layers = range(n_layers)
    sums = [
        SinkAwareCovariance(d_model, subject.device, label=hooks.hook_name(layer))
        for layer in layers
    ]
    bar = Progress(n_sequences * n_positions, "tokens", "spectra, forward") if progress else None
    for a in range(0, n_sequences, batch_size):
        ids = np.asarray(tokens[a : min(a + batch_size, n_sequences)])
        with torch.inference_mode():
            found = subject.residuals(
                torch.from_numpy(ids.astype(np.int64)).to(subject.device), layers
            )
            for layer in layers:
                sums[layer].update(found.pop(layer))
        if bar:
            bar.update(ids.size)
    if bar:
        bar.close()

    shape = (n_layers, len(TOKEN_SETS))
    eigenvalues = np.empty((*shape, len(CENTRINGS), d_model))
    n_tokens = np.empty(shape, np.int64)
    bar = Progress(n_layers, "layers", "spectra, eigenvalues") if progress else None
    for layer in layers:
        for s, covariance in enumerate(sums[layer].finish().values()):
            n_tokens[layer, s] = covariance.n
            for c, centring in enumerate(CENTRINGS):
                values = covariance.eigenvalues(centring == "centred")
                eigenvalues[layer, s, c] = to_numpy(values)
        if bar:
            bar.update(1)
    if bar:
        bar.close()
    return Spectra(eigenvalues, n_tokens, _table(eigenvalues, n_tokens, deflate))


def write(final: Path | str, spec: str, result: Spectra) -> None:
    """Write ``eigenvalues`` and ``n_tokens`` as a store with the dimensions by name."""
    n_layers, _, _, d_model = result.eigenvalues.shape
    work = layer_stores.scratch(final, spec)
    layer_stores.create(
        work,
        [
            layer_stores.Array(
                "eigenvalues",
                ("layer", "token_set", "centring", "component"),
                result.eigenvalues.shape,
                "float64",
                "1",
                "eigenvalues of the covariance of the residual stream, largest first",
            ),
            layer_stores.Array(
                "n_tokens",
                ("layer", "token_set"),
                result.n_tokens.shape,
                "int64",
                "token",
                "tokens the covariance is taken over",
            ),
        ],
        {
            "layer": range(n_layers),
            "token_set": TOKEN_SETS,
            "centring": CENTRINGS,
            "component": range(d_model),
        },
    )
    store = layer_stores.Store(work, writable=True)
    store.write_all("eigenvalues", result.eigenvalues)
    store.write_all("n_tokens", result.n_tokens)
    layer_stores.commit(work, final)


def write_table(path: Path | str, result: Spectra, wildcards: Mapping[str, str]) -> None:
    """Write the table as CSV, behind the columns ``subject`` and ``corpus``."""
    own = {name: wildcards[name] for name in ("subject", "corpus")}
    table = result.table.assign(**own)
    write_csv(table[[*own, *result.table.columns]], path)


def _table(eigenvalues: np.ndarray, n_tokens: np.ndarray, deflate: int) -> pd.DataFrame:
    n_layers, d_model = eigenvalues.shape[0], eigenvalues.shape[-1]
    rows = []
    for layer in range(n_layers):
        for s, token_set in enumerate(TOKEN_SETS):
            for c, centring in enumerate(CENTRINGS):
                values = eigenvalues[layer, s, c]
                for dropped in sorted({0, 1, deflate}):
                    left = values[dropped:]
                    pr = participation_ratio(values, dropped)
                    rows.append(
                        {
                            "layer": layer,
                            "token_set": token_set,
                            "centring": centring,
                            "deflate": dropped,
                            "n_tokens": int(n_tokens[layer, s]),
                            "d_model": d_model,
                            "pr": pr,
                            "pr_over_d": pr / d_model,
                            "effective_rank": effective_rank(left),
                            "top_share": top_share(left),
                        }
                    )
    return pd.DataFrame(rows)
