"""Mutual information of paired vectors from InfoNCE critics of bounded width.

Definitions: docs/definitions.md, "MI critics". Encoders g_x and g_y map both sides of a pair to
`width` numbers, and a critic T scores how well the two fit: *separable*, T = g_x·g_y, or *hybrid*,
T = MLP([g_x, g_y]).
With x_i and y_i belonging together, among N pairs,

    I ≥ log N + mean_i log( exp T(x_i, y_i) / Σ_j exp T(x_i, y_j) ),

in nats, on pairs the critic was not trained on. It cannot exceed the ceiling log N. How the bound
grows with the width says how many numbers carry what the two sides share. Pairs may be NumPy arrays
or torch tensors; critics are trained in torch.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

from streamgauge.base.errors import StreamgaugeError
from streamgauge.numerics.arrays import NUMPY, TORCH, either, float64

CRITICS = ("separable", "hybrid")
#: A value this share of the ceiling or more is pinned: it says log N, not the information.
PINNED = 0.95
#: A width is enough when it reaches this share of the saturated value.
ENOUGH = 0.95
# parts of the pairs, by whole sequences: the last quarter is held out, and of the rest the last
# fifth decides when training stops
_HELD_OUT = 0.25
_VALIDATION = 0.2
_CHECK_EVERY = 20  # steps between looks at the validation part
_PATIENCE = 5  # looks without a gain after which training stops
# ten times as much helps where pairs are few, but makes some critics give up a dimension
_WEIGHT_DECAY = 0.1
_DEALS = 4  # ways the held-out pairs are dealt into groups of N


class Information(NamedTuple):
    """Held-out InfoNCE in nats, its ceiling log N, and the training step it was taken at."""

    mi_nats: float
    ceiling_nats: float
    step: int

    @property
    def pinned(self) -> bool:
        """Whether the value lies within 5 % of its ceiling."""
        return self.mi_nats >= PINNED * self.ceiling_nats


class Saturation(NamedTuple):
    """The largest value over widths, the smallest width that is enough, and its censoring."""

    saturated_nats: float
    k_star: float
    censored: str


@either("scores", inside=TORCH)
def infonce(scores):
    """The InfoNCE bound of a matrix of scores, in nats.

    log N less ``torch.nn.functional.cross_entropy(scores, arange(N))``.

    Args:
        scores: (N, N): row i holds T(x_i, y_j), the true pair on the diagonal.

    Returns:
        A scalar, at most log N; 0 where all scores of a row are equal.
    """
    return (scores.diagonal() - scores.logsumexp(1)).mean() + math.log(len(scores))


@either("x_train", "y_train", "x_test", "y_test", inside=NUMPY)
def information(
    x_train,
    y_train,
    x_test,
    y_test,
    critic: str,
    width: int,
    *,
    hidden: int = 128,
    steps: int = 300,
    batch_size: int = 128,
    lr: float = 2e-3,
    seed: int = 0,
    device="cpu",
    tick: Callable[[int], None] | None = None,
) -> Information:
    """Train one critic and give its value on held-out pairs.

    Both sides are standardised by the training part. A critic starts at T = 0, whose value is 0.
    The last fifth of the training pairs is not trained on: the critic is kept at the step that
    did best on it. Hand over the pairs in order of sequences.

    Args:
        x_train, y_train: paired rows, (n, d_x) and (n, d_y), arrays.
        x_test, y_test: held-out pairs, (m, d_x) and (m, d_y).
        critic: ``separable`` or ``hybrid``.
        width: numbers that each encoder may pass on.
        hidden: units of the hidden layer of each encoder and of the hybrid's own.
        steps: most AdamW steps; ended early where the validation part gains nothing.
        batch_size: N, pairs told apart, in training and in the value; m where that is smaller.
        lr: AdamW's learning rate.
        seed: of the initial weights and the batches, the same on every device.
        device: where it is trained.
        tick: called with steps done, those saved by stopping early included.

    Raises:
        StreamgaugeError: no such critic or width, sides of unequal length, values that are not
            finite, or too few pairs.
    """
    if critic not in CRITICS or width < 1:
        raise StreamgaugeError(
            f"no critic {critic!r} of width {width}",
            remedy=f"Choose one of {', '.join(CRITICS)} and a width of at least 1.",
        )
    x_train, y_train, x_test, y_test = map(_rows, (x_train, y_train, x_test, y_test))
    if len(x_train) != len(y_train) or len(x_test) != len(y_test):
        raise StreamgaugeError("the two sides of the pairs differ in length")
    n_fit = len(x_train) - round(_VALIDATION * len(x_train))
    if min(n_fit, len(x_train) - n_fit, len(x_test)) < 2:
        raise StreamgaugeError(
            f"{len(x_train)} training and {len(x_test)} held-out pairs are too few for a critic",
            remedy="Raise critics.sequences or the corpus' train_sequences.",
        )
    x_train, x_test = _standardised(x_train, x_test, n_fit, device)
    y_train, y_test = _standardised(y_train, y_test, n_fit, device)
    draws = torch.Generator().manual_seed(seed)
    model = _Critic(critic, x_train.shape[1], y_train.shape[1], width, hidden, draws).to(device)
    step = _train(model, x_train, y_train, n_fit, steps, batch_size, lr, draws, tick or _no_tick)
    n = min(batch_size, len(x_test))
    return Information(_value(model, x_test, y_test, n, seed, _DEALS), math.log(n), step)


def profile(x, y, widths: Sequence[int], *, sequence=None, critics=CRITICS, **training):
    """The value of every critic at every width, beside its null.

    Args:
        x, y: paired rows, (n, d_x) and (n, d_y).
        widths: widths tried.
        sequence: (n,) the sequence each pair belongs to, rising; pairs of one sequence stay on one
            side of the split. Default: every pair for itself.
        critics: of `CRITICS`.
        training: see `information`; everything drawn follows from ``seed``, critic and width.

    Returns:
        A DataFrame, see `summary`.

    Raises:
        StreamgaugeError: as `information`; fewer than two sequences.
    """
    test = held_out(np.arange(len(x)) if sequence is None else sequence)
    return summary(
        at_width(x, y, test, critic, w, **training) for critic in critics for w in widths
    )


@either("x", "y", "test", inside=NUMPY)
def at_width(x, y, test, critic: str, width: int, *, seed: int = 0, **training) -> dict:
    """One critic of one width, and its null.

    The null is the same critic trained and tested on pairs whose y are shuffled within each part:
    what it finds where there is nothing to find.

    Args:
        x, y: paired rows, (n, d_x) and (n, d_y).
        test: (n,) mask of the held-out pairs, see `held_out`.
        critic, width, seed, training: see `information`.

    Returns:
        ``critic, width, mi_nats, shuffled_mi_nats, ceiling_nats, pinned, n_pairs``.

    Raises:
        StreamgaugeError: as `information`.
    """
    sides = (x[~test], y[~test], x[test], y[test])
    rng = np.random.default_rng([seed, CRITICS.index(critic), width])
    own = int(rng.integers(2**31))
    shuffled = (sides[0], rng.permutation(sides[1]), sides[2], rng.permutation(sides[3]))
    found = information(*sides, critic, width, seed=own, **training)
    null = information(*shuffled, critic, width, seed=own, **training)
    values = {"mi_nats": found.mi_nats, "shuffled_mi_nats": null.mi_nats}
    values |= {"ceiling_nats": found.ceiling_nats, "pinned": found.pinned}
    return {"critic": critic, "width": width, **values, "n_pairs": len(x)}


def summary(rows: Iterable[Mapping]) -> pd.DataFrame:
    """Rows of `at_width` with the saturation of each critic, by critic and rising width.

    Returns:
        ``critic, width, mi_nats, shuffled_mi_nats, ceiling_nats, pinned`` and, the same on all
        rows of a critic, ``saturated_nats, k_star, censored`` (see `saturation`); ``n_pairs``.
    """
    parts = []
    for _, own in pd.DataFrame(list(rows)).sort_values("width").groupby("critic"):
        found = saturation(own.width, own.mi_nats, own.shuffled_mi_nats)
        own = own.assign(**found._asdict())
        parts.append(own[[*own.columns.drop("n_pairs"), "n_pairs"]])
    return pd.concat(parts, ignore_index=True)


@either("widths", "values", "null", inside=NUMPY)
def saturation(widths, values, null) -> Saturation:
    """k*: the smallest width whose value is within 5 % of the largest.

    Args:
        widths: rising, shape ``(n,)``.
        values: held-out values in nats, shape ``(n,)``.
        null: the same of shuffled pairs, shape ``(n,)``.

    Returns:
        ``censored`` is ``">k_max"`` where only the largest width tried is enough, so that more
        might be needed; ``"<=k_min"`` where the smallest tried is enough and is not 1; else "".
        `k_star` is NaN where the largest value is not above the largest of the null: there is no
        information to count numbers of.
    """
    values = np.asarray(values, np.float64)
    saturated = float(values.max())
    if saturated <= max(0.0, float(np.max(null))):
        return Saturation(saturated, math.nan, "")
    first = int(np.argmax(values >= ENOUGH * saturated))
    last = len(widths) - 1
    if first == last:
        censored = ">k_max"
    else:
        censored = "<=k_min" if first == 0 and widths[0] > 1 else ""
    return Saturation(saturated, float(widths[first]), censored)


@either("sequence", inside=NUMPY)
def held_out(sequence):
    """Mask of the pairs whose sequence is among the last quarter of the sequences.

    Args:
        sequence: (n,) the sequence of each pair.

    Raises:
        StreamgaugeError: fewer than two sequences.
    """
    every = np.unique(sequence)
    if len(every) < 2:
        raise StreamgaugeError(
            "one sequence cannot be split into training and held-out pairs",
            remedy="Raise critics.sequences or the corpus' train_sequences.",
        )
    return np.isin(sequence, every[-max(1, round(_HELD_OUT * len(every))) :])


class _Critic(nn.Module):
    """Scores of all pairs of two batches, (N, d_x) and (M, d_y) to (N, M); 0 when new."""

    def __init__(self, critic, d_x, d_y, width, hidden, draws):
        super().__init__()
        self.g_x, self.g_y = (
            nn.Sequential(nn.Linear(d, hidden), nn.ReLU(), nn.Linear(hidden, width))
            for d in (d_x, d_y)
        )
        last = self.g_y[2]
        if critic == "hybrid":
            self.of_x = nn.Linear(width, hidden)
            self.of_y = nn.Linear(width, hidden, bias=False)
            self.out = last = nn.Linear(hidden, 1, bias=False)
        self.hybrid = critic == "hybrid"
        with torch.no_grad():
            for layer in (module for module in self.modules() if isinstance(module, nn.Linear)):
                spread = math.sqrt(3 / layer.in_features)  # unit variance
                for part in layer.parameters():
                    part.uniform_(-spread, spread, generator=draws)
            for part in last.parameters():
                part.zero_()

    def forward(self, x, y):
        x, y = self.g_x(x), self.g_y(y)
        if not self.hybrid:
            return x @ y.T
        # the first layer of MLP([g_x, g_y]) is a sum of a part of each side
        return torch.relu(self.of_x(x)[:, None] + self.of_y(y)[None]) @ self.out.weight[0]


def _train(model, x, y, n_fit, steps, batch_size, lr, draws, tick) -> int:
    """Train on the first `n_fit` pairs; leaves the model at its best step and gives that step."""
    n, n_check = min(batch_size, n_fit), min(batch_size, len(x) - n_fit)
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=_WEIGHT_DECAY)
    batches = _endless(n_fit, n, draws)
    best, best_step, kept = 0.0, 0, copy.deepcopy(model.state_dict())
    for step in range(1, steps + 1):
        rows = next(batches).to(x.device)
        optimiser.zero_grad()
        (-infonce(model(x[rows], y[rows]))).backward()
        optimiser.step()
        if step % _CHECK_EVERY == 0 or step == steps:
            value = _value(model, x[n_fit:], y[n_fit:], n_check, seed=0)
            if value > best:
                best, best_step, kept = value, step, copy.deepcopy(model.state_dict())
            if step - best_step >= _PATIENCE * _CHECK_EVERY:
                tick(steps - step + 1)
                break
        tick(1)
    model.load_state_dict(kept)
    return best_step


def _no_tick(_steps: int) -> None:
    """Nobody watches."""


def _groups(n: int, size: int, draws) -> tuple[torch.Tensor, ...]:
    """Disjoint groups of `size` rows out of n, in random order; fewer than `size` are left out."""
    return torch.randperm(n, generator=draws)[: n - n % size].split(size)


def _endless(n: int, size: int, draws) -> Iterator[torch.Tensor]:
    """Batches without end: `_groups` dealt anew when they run out."""
    while True:
        yield from _groups(n, size, draws)


@torch.no_grad()
def _value(model, x, y, size: int, seed: int, deals: int = 1) -> float:
    """InfoNCE of groups of `size` pairs, mean over all groups of several deals."""
    draws = torch.Generator().manual_seed(seed)
    groups = [rows.to(x.device) for _ in range(deals) for rows in _groups(len(x), size, draws)]
    values = [infonce(float64(model(x[rows], y[rows]))).item() for rows in groups]
    return math.fsum(values) / len(values)


def _rows(x) -> np.ndarray:
    x = np.asarray(x, np.float32)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise StreamgaugeError(f"pairs of shape {x.shape} are no finite rows of numbers")
    return x


def _standardised(train, test, n_fit: int, device):
    """Both parts less the mean of the first `n_fit` training rows, over their sd, as tensors."""
    mean = train[:n_fit].mean(0, dtype=np.float64)
    sd = train[:n_fit].std(0, dtype=np.float64)
    # what never varies, but for rounding, becomes 0
    scale = np.where(sd > 1e-6 * np.abs(mean), 1 / np.where(sd > 0, sd, np.inf), 0.0)
    return [
        torch.from_numpy(((part - mean) * scale).astype(np.float32)).to(device)
        for part in (train, test)
    ]
