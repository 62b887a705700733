"""Residual streams of prompt pairs: every layer, every token of the problem's own text.

The header (BOS, worked examples) is context only and is not kept. Prompts are padded on the right,
which a causal model does not see.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.progress import Progress
from streamgauge.stores import layer_stores

# rows of a problem in the table of prompts, in this order
ROLES = ("target", "source")
POOLINGS = ("mean", "mean_no_first", "last")


def harvest(
    subject,
    prompts: pd.DataFrame,
    final: str | Path,
    spec: str,
    *,
    batch_size: int,
    label: str = "states",
) -> dict[str, Any]:
    """Write the store of residual streams of all prompts at all layers.

    One forward pass a batch. Finished batches are kept beside `final` until the store is whole, so
    that a killed run goes on where it stopped. Memory: one batch at all layers, then one layer.

    The store's arrays: ``residual`` (layer, token, d_model) float32, the problem spans one after
    the other in the order of `prompts`; ``n_tokens`` (problem, role) int32, their lengths.

    Args:
        subject: a `subjects.Subject`.
        prompts: from `prompts.tokenise`.
        final: the store's path, replaced where it exists.
        spec: what unfinished work belongs to, see `manifest.identity`.
        batch_size: prompts in a forward pass.
        label: shown in progress lines.

    Returns:
        The manifest's facts: ``n_problems``, ``n_tokens``, ``n_layers``, ``d_model``,
        ``languages`` (target, source), ``units``.

    Raises:
        StreamgaugeError: a residual stream is not finite, naming problem, language and layer; a
            prompt that the model cannot take.
    """
    final = Path(final)
    spans = prompts["ids"].map(len) - prompts["header"]
    n_tokens = spans.to_numpy(np.int32).reshape(-1, len(ROLES))
    with layer_stores.working(final.with_name(f"{final.name}-batches"), spec) as batches:
        files = _forward(subject, prompts, batches, batch_size, label)
        _assemble(subject, prompts, n_tokens, files, final, spec)
    return {
        "n_problems": len(n_tokens),
        "n_tokens": int(n_tokens.sum()),
        "n_layers": subject.n_layers,
        "d_model": subject.d_model,
        "languages": _languages(prompts),
        "units": {"residual": "1", "n_tokens": "token"},
    }


def _forward(subject, prompts: pd.DataFrame, folder: Path, batch_size: int, label: str):
    """Run the model over batches that `folder` lacks; every batch's file, in order."""
    import torch  # not for those who only read states

    from streamgauge.stores import checkpoints

    lengths = prompts["ids"].map(len).to_numpy()
    starts = range(0, len(prompts), batch_size)
    files = {start: folder / f"{start:06d}-{batch_size}.safetensors" for start in starts}
    finished = {start for start, file in files.items() if file.exists()}
    progress = Progress(
        int(lengths.sum()),
        "tokens",
        label,
        done=sum(int(lengths[start : start + batch_size].sum()) for start in finished),
    )
    for start in starts:
        if start in finished:
            continue
        batch = prompts.iloc[start : start + batch_size]
        ids = np.zeros((len(batch), batch["ids"].map(len).max()), np.int64)
        for row, own in zip(ids, batch["ids"], strict=True):
            row[: len(own)] = own
        with torch.inference_mode():
            found = subject.residuals(ids, range(subject.n_layers))
        kept = [_spans(found.pop(layer), layer, batch) for layer in range(subject.n_layers)]
        checkpoints.save(
            files[start], {str(i): torch.from_numpy(x) for i, x in enumerate(kept)}, {}
        )
        progress.update(int(lengths[start : start + batch_size].sum()))
    progress.close()
    return list(files.values())


def _spans(h, layer: int, batch: pd.DataFrame) -> np.ndarray:
    """The problem spans of one layer, float32 (token, d_model), checked to be finite."""
    from streamgauge.models import hooks

    parts = []
    for row, prompt in zip(h, batch.itertuples(), strict=True):
        part = row[prompt.header : len(prompt.ids)].float().cpu().numpy()
        if not np.isfinite(part).all():
            raise StreamgaugeError(
                f"the residual stream of {prompt.problem} in {prompt.language} is not finite",
                where=hooks.hook_name(layer),
                remedy="Run the model in float32, or leave this problem out.",
            )
        parts.append(part)
    return np.concatenate(parts)


def _assemble(subject, prompts, n_tokens, files, final: Path, spec: str) -> None:
    """Join the batches, layer by layer, into the store."""
    from streamgauge.stores import checkpoints

    shape = (subject.n_layers, int(n_tokens.sum()), subject.d_model)
    work = layer_stores.scratch(final, spec)
    layer_stores.create(
        work,
        [
            layer_stores.Array(
                "residual",
                ("layer", "token", "d_model"),
                shape,
                "float32",
                "1",
                "residual stream after each block, tokens of the problems' own text",
                chunk=1,
            ),
            layer_stores.Array(
                "n_tokens",
                ("problem", "role"),
                n_tokens.shape,
                "int32",
                "token",
                "tokens of each problem's own text",
            ),
        ],
        {
            "layer": range(subject.n_layers),
            "problem": list(prompts["problem"][:: len(ROLES)]),
            "role": ROLES,
        },
        {"languages": _languages(prompts)},
    )
    store = layer_stores.Store(work, writable=True)
    for layer in range(subject.n_layers):
        spans = [checkpoints.tensor(file, str(layer)).numpy() for file in files]
        store.write("residual", layer, np.concatenate(spans)[None])
    store.write_all("n_tokens", n_tokens)
    layer_stores.commit(work, final)


def _languages(prompts: pd.DataFrame) -> list[str]:
    return list(prompts["language"].iloc[: len(ROLES)])


class States:
    """Read a store of residual streams.

    Args:
        path: the store.

    Attributes:
        problems: ids, in order.
        languages: codes of target and source.
        n_problems, n_layers, d_model: sizes.
        n_tokens: (problem, role) int32, tokens of each problem's own text.

    Raises:
        StreamgaugeError: no readable store at `path`.
    """

    def __init__(self, path: str | Path):
        self._store = layer_stores.Store(path)
        self.n_layers, _, self.d_model = self._store.array("residual").shape
        self.problems = [str(name) for name in self._store.read("problem")]
        self.languages = tuple(self._store.attributes["languages"])
        self.n_problems = len(self.problems)
        self._held = (None, None)

    @cached_property
    def n_tokens(self) -> np.ndarray:
        return self._store.read("n_tokens")

    def tokens(self, layer: int, problem: int | str, language: str) -> np.ndarray:
        """The residual stream of one problem's own tokens, float32 (T, d_model).

        The layer read last is kept in memory.

        Args:
            layer: h(layer), from 0.
            problem: its index or id.
            language: ``"target"`` or ``"source"``.

        Raises:
            StreamgaugeError: the layer does not exist; a damaged store.
        """
        at = self.problems.index(problem) if isinstance(problem, str) else problem
        row = at * len(ROLES) + ROLES.index(language)
        return self._layer(layer)[self._edges[row] : self._edges[row + 1]]

    def pooled(self, pooling: str, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """One vector a problem (docs/definitions.md, "Attention subspace Z"): target and source.

        Args:
            pooling: ``mean`` over the problem's tokens, ``mean_no_first`` without its first one,
                or ``last`` token.
            layer: h(layer), from 0.

        Returns:
            Two arrays (problem, d_model), float64, in which sums are taken too.

        Raises:
            StreamgaugeError: the layer does not exist; a problem of one token under
                ``mean_no_first``.
        """
        h, first, stop = self._layer(layer), self._edges[:-1], self._edges[1:]
        if pooling == "last":
            vectors = h[stop - 1].astype(np.float64)
        else:
            skipped = POOLINGS.index(pooling)
            self._check_lengths(skipped + 1, pooling)
            spans = zip(first + skipped, stop, strict=True)
            vectors = np.stack([h[a:b].mean(0, dtype=np.float64) for a, b in spans])
        target, source = (vectors[role :: len(ROLES)] for role in range(len(ROLES)))
        return target, source

    @cached_property
    def _edges(self) -> np.ndarray:
        """Where each span begins, and where the last one ends."""
        return np.concatenate([[0], np.cumsum(self.n_tokens.ravel(), dtype=np.int64)])

    def _layer(self, layer: int) -> np.ndarray:
        if self._held[0] != layer:
            if not 0 <= layer < self.n_layers:
                raise StreamgaugeError(
                    f"layer {layer} does not exist: there are states of layers 0 to "
                    f"{self.n_layers - 1}",
                    where=str(self._store.path),
                    remedy="Correct crosslingual.layers in the config.",
                )
            self._held = layer, self._store.read("residual", layer, layer + 1)[0]
        return self._held[1]

    def _check_lengths(self, fewest: int, pooling: str) -> None:
        short = np.argwhere(self.n_tokens < fewest)
        if len(short):
            problem, role = short[0]
            raise StreamgaugeError(
                f"{self.problems[problem]} in {self.languages[role]} has n < {fewest} tokens, too "
                f"few for {pooling}",
                where=str(self._store.path),
                remedy="Leave that problem out, or write it longer.",
            )
