"""Greedy generation in batches, with the residual stream of one layer patched on the way.

The loop is our own: nothing of a model's ``generation_config`` but its end tokens is read, so that
no repetition penalty and no sampling can get in. Rows are padded on the left. The keys and values
of the header that all rows share are computed once; a row in the middle of a batch starts its
cached header so late that its slots stay without a gap, which sliding windows need.
"""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from streamgauge.base.errors import StreamgaugeError
from streamgauge.models import hooks


class Patch(NamedTuple):
    """What replaces a part of the residual stream h of one row (docs/definitions.md, "Patching").

    With P the projector onto the rows of `basis`, h becomes h + P(s − h), or with `complement`
    s + P(h − s). A basis without rows and `complement` replaces all of h.

    Attributes:
        source: s for the tokens of the row behind its header, (T, d_model), or (d_model,) for all.
        step: s for every token generated, (d_model,), or None to leave those as they are.
        basis: (k, d_model), orthonormal rows.
        complement: replace what lies outside the subspace.
        norm_of: the basis (k', d_model) of another subspace: the change at every token is scaled
            to the norm of the change that patching that one would make there. None: not scaled.
    """

    source: np.ndarray
    step: np.ndarray | None
    basis: np.ndarray
    complement: bool = False
    norm_of: np.ndarray | None = None


class Generated(NamedTuple):
    """What a row was continued with.

    Attributes:
        ids: the tokens generated, without the end token.
        text: their text up to the first stop string, special tokens left out.
    """

    ids: list[int]
    text: str


def greedy(
    subject,
    rows: Sequence,
    headers: Sequence[int],
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    batch_size: int = 16,
    layer: int | None = None,
    patches: Sequence[Patch | None] | None = None,
    eos: Collection[int] | None = None,
    tick: Callable[[int], None] | None = None,
) -> list[Generated]:
    """Continue every row with its most likely tokens.

    Args:
        subject: a `subjects.Subject`.
        rows: token ids of each prompt.
        headers: leading ids of each row that are context: they are never patched.
        max_new_tokens: most tokens generated for a row.
        stop: strings that end an answer; the text is cut before the first.
        batch_size: rows computed together.
        layer: where `patches` are made.
        patches: one for every row, None for a row left alone.
        eos: ids that end a row; None: those of the tokenizer and the model (`end_tokens`).
        tick: called with the number of rows finished.

    Returns:
        One `Generated` a row, in order. Rows of one batch do not influence each other, but the
        last bits of their logits depend on the batch.

    Raises:
        StreamgaugeError: a row without tokens behind its header or too long for the model, a
            layer that does not exist, a patch of another shape, logits that are not finite.
    """
    rows = [np.asarray(row, np.int64) for row in rows]
    patches = [None] * len(rows) if patches is None else patches
    generator = Generator(
        subject, shared_header(rows, headers), max_new_tokens=max_new_tokens, stop=stop, eos=eos
    )
    found: list[Generated | None] = [None] * len(rows)
    for batch in batches(rows, batch_size):
        picked = ([values[i] for i in batch] for values in (rows, headers, patches))
        for i, result in zip(batch, generator(*picked, layer=layer), strict=True):
            found[i] = result
        if tick:
            tick(len(batch))
    return found


def shared_header(rows: Sequence[np.ndarray], headers: Sequence[int]) -> np.ndarray:
    """The longest beginning that the headers of all rows have in common, 1-d ids."""
    if not len(rows):
        return np.zeros(0, np.int64)
    first = np.asarray(rows[0])[: min(headers)]
    same = len(first)
    for row in rows:
        differs = np.flatnonzero(np.asarray(row)[:same] != first[:same])
        same = int(differs[0]) if len(differs) else same
    return first[:same]


def batches(rows: Sequence[np.ndarray], batch_size: int) -> list[list[int]]:
    """Indices of rows, in batches of equal rows or of similar length: what is padded costs time.

    Rows are taken by length, equal lengths in their order. A batch ends when it is full, and where
    the row changes once it is half full.
    """
    found: list[list[int]] = []
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        last = found[-1] if found else None
        changes = last is not None and not np.array_equal(rows[last[-1]], rows[i])
        if last is None or len(last) == batch_size or (changes and 2 * len(last) >= batch_size):
            found.append([i])
        else:
            last.append(i)
    return found


def end_tokens(subject) -> set[int]:
    """The ids that end a text: the tokenizer's, and those the model's files name."""
    named = [subject.tokenizer.eos_token_id]
    settings = getattr(subject.model, "generation_config", None)
    more = getattr(settings, "eos_token_id", None)
    named += more if isinstance(more, list | tuple) else [more]
    return {int(token) for token in named if token is not None}


class Generator:
    """Continues batches of prompts that begin with the same header.

    Args:
        subject: a `subjects.Subject`.
        header: ids that every row begins with; their keys and values are computed once. May be
            empty.
        max_new_tokens, stop, eos: see `greedy`.
    """

    def __init__(self, subject, header, *, max_new_tokens: int, stop=(), eos=None):
        self.subject, self.stop, self.most = subject, tuple(stop), max_new_tokens
        self.eos = end_tokens(subject) if eos is None else set(eos)
        self.header = np.array(header, np.int64)
        self._cached: list[tuple[Tensor, Tensor]] | None = None

    @torch.inference_mode()
    def __call__(self, rows, headers, patches, *, layer: int | None = None) -> list[Generated]:
        """Continue the rows of one batch; arguments and errors as for `greedy`."""
        rows = [np.asarray(row, np.int64) for row in rows]
        self._check(rows, headers)
        if len(self.header) and self._cached is None:  # before any hook: it is never patched
            self._cached = self._header()
        if all(patch is None for patch in patches):
            return self._continue(rows, None, None)
        spans = [len(row) - n for row, n in zip(rows, headers, strict=True)]
        slots = max(len(row) for row in rows) - len(self.header)
        edit = _Edit(patches, spans, slots, self.subject)
        with hooks.edited(self.subject.model, layer, edit):
            return self._continue(rows, edit, layer)

    def _check(self, rows, headers) -> None:
        n_ctx = self.subject.n_ctx
        for row, header in zip(rows, headers, strict=True):
            if header >= len(row):
                raise StreamgaugeError(
                    f"a prompt of {len(row)} tokens has a header of {header}: nothing is left of it"
                )
            if n_ctx is not None and len(row) + self.most > n_ctx:
                raise StreamgaugeError(
                    f"a prompt of {len(row)} tokens and {self.most} new ones exceed the model's "
                    f"context of {n_ctx}",
                    remedy="Lower shots in the prompts' block, or patching.max_new_tokens.",
                )
            if len(row) <= len(self.header) or (row[: len(self.header)] != self.header).any():
                raise StreamgaugeError("a prompt does not begin with the header of its batch")

    def _continue(self, rows, edit, layer) -> list[Generated]:
        """The loop: prefill, then one token a step, until every row has ended.

        Patches of one and the same prompt share its prefill up to the patched layer: there one row
        goes in, and the hook returns as many as there are patches.
        """
        length = max(len(row) for row in rows)
        padding = torch.tensor([length - len(row) for row in rows])
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, length - len(row) :] = torch.tensor(row)
        device = self.subject.device
        there = torch.arange(length + self.most)[None] >= padding[:, None]
        there = there.long().to(device)
        position = (there.cumsum(1) - 1).clamp_min(0)
        at = len(self.header)
        shared = edit is not None and all(np.array_equal(row, rows[0]) for row in rows)
        n, below = (1, layer + 1) if shared else (len(rows), 0)
        cache = self._cache(padding.to(device), length + self.most, below)
        new = self.subject.ids(ids)[:n, at:]
        alive, found = list(range(len(rows))), [[] for _ in rows]
        going = set(alive)
        for _ in range(self.most):
            token = self._next(new, there[:n, :length], position[:n, at:length], cache)
            for i, chosen in zip(alive, token.tolist(), strict=True):
                if i in going and not self._ends(found[i], chosen):
                    going.discard(i)
            if not going:
                break
            for held in cache.layers[:below]:
                held.batch_repeat_interleave(len(rows))
            n, below = len(rows), 0
            at, length = length, length + 1
            keep = [j for j, i in enumerate(alive) if i in going]
            if 4 * len(keep) <= 3 * len(alive):  # copying the cache costs more than a few rows
                index = torch.tensor(keep, device=device)
                token, there, position = (x[index] for x in (token, there, position))
                cache.batch_select_indices(index)
                alive = [alive[j] for j in keep]
                if edit:
                    edit.select(index)
            new = token[:, None]
        return [Generated(tokens, self._text(tokens)) for tokens in found]

    def _next(self, ids, there, position, cache) -> Tensor:
        logits = self.subject.model(
            ids,
            attention_mask=there,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        value, token = logits.max(-1)
        if not torch.isfinite(value).all():
            raise StreamgaugeError(
                "a logit is not finite while generating",
                remedy="Run the model in float32 (subjects: dtype), or check its weights.",
            )
        return token

    def _ends(self, tokens: list[int], chosen: int) -> bool:
        """Append the token; False where it ends the row."""
        if chosen in self.eos:
            return False
        tokens.append(chosen)
        if not self.stop:
            return True
        text = self._decode(tokens)
        return not any(string in text for string in self.stop)

    def _decode(self, tokens) -> str:
        return self.subject.tokenizer.decode(tokens, skip_special_tokens=True)

    def _text(self, tokens) -> str:
        text = self._decode(tokens)
        ends = [text.find(string) for string in self.stop if string in text]
        return text[: min(ends)] if ends else text

    def _cache(self, padding: Tensor, capacity: int, below: int) -> Cache:
        """A cache that holds the header for every row, behind as many slots as its padding.

        The first `below` layers hold it for the first row alone.
        """
        layers = [_Buffer(capacity) for _ in hooks.blocks(self.subject.model)]
        if self._cached is not None:
            slots = torch.arange(len(self.header), device=padding.device)[None] - padding[:, None]
            slots = slots.clamp_min(0)  # what padding holds does not matter: it is masked
            for i, (layer, held) in enumerate(zip(layers, self._cached, strict=True)):
                own = slots[:1] if i < below else slots
                layer.update(*(x[0][:, own].transpose(0, 1) for x in held))
        return Cache(layers=layers)

    def _header(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the header in every layer, (1, head, token, d_head) each."""
        layers = [_Buffer(len(self.header)) for _ in hooks.blocks(self.subject.model)]
        ids = self.subject.ids(self.header[None])
        self.subject.model(
            ids, past_key_values=Cache(layers=layers), use_cache=True, logits_to_keep=1
        )
        return [(layer.keys, layer.values) for layer in layers]


class _Buffer(DynamicLayer):
    """Keys and values of one layer, written into room made once instead of joined at every step."""

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity = capacity

    def update(self, key_states, value_states, *_arguments, **_options):
        """Append (batch, head, new, d_head); returns all that is held."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.room = tuple(
                x.new_empty(*x.shape[:2], self.capacity, x.shape[3])
                for x in (key_states, value_states)
            )
            self.length = 0
        end = self.length + key_states.shape[2]
        for room, new in zip(self.room, (key_states, value_states), strict=True):
            room[:, :, self.length : end] = new
        self.length = end
        self._hold(self.room)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices` of the batch."""
        self._hold(tuple(room[indices] for room in self.room))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row of the batch, `repeats` times."""
        self._hold(tuple(room.repeat_interleave(repeats, 0) for room in self.room))

    def _hold(self, room: tuple[Tensor, Tensor]) -> None:
        self.room = room
        self.keys, self.values = (part[:, :, : self.length] for part in room)


class _Edit:
    """The patches of a batch as one function of the residual stream: prefill, then single steps."""

    def __init__(self, patches, spans, slots: int, subject):
        d, n = subject.d_model, len(patches)
        source, step = np.zeros((n, slots, d), np.float32), np.zeros((n, 1, d), np.float32)
        inside, outside = np.zeros((n, slots, 1), bool), np.zeros((n, 1, 1), bool)
        whole, scaled = np.zeros((n, 1, 1), np.float32), np.zeros((n, 1, 1), bool)
        for i, (patch, span) in enumerate(zip(patches, spans, strict=True)):
            if patch is None:
                continue
            _check(patch, span, d)
            source[i, slots - span :], inside[i, slots - span :] = patch.source, True
            if patch.step is not None:
                step[i, 0], outside[i] = patch.step, True
            whole[i], scaled[i] = patch.complement, patch.norm_of is not None
        none = np.zeros((0, d), np.float32)
        bases = [none if patch is None else patch.basis for patch in patches]
        norms = [none if p is None or p.norm_of is None else p.norm_of for p in patches]
        tensors = (source, inside, step, outside, whole, scaled, _stacked(bases), _stacked(norms))
        self.rows = [torch.from_numpy(x).to(subject.device) for x in tensors]
        self.prefill, self.scales = True, bool(scaled.any())

    def __call__(self, h: Tensor) -> Tensor:
        """h (batch, position, d_model) with every row's patch made, in float32."""
        span, inside, step, outside, whole, scaled, basis, norm_of = self.rows
        source, where = (span, inside) if self.prefill else (step, outside)
        self.prefill = False
        delta = source - h.float()
        coordinates = delta @ basis.mT
        change = whole * delta + (1 - 2 * whole) * (coordinates @ basis)
        if self.scales:
            wanted = (delta @ norm_of.mT).norm(dim=-1, keepdim=True)
            found = change.norm(dim=-1, keepdim=True)
            ratio = wanted / found.clamp_min(torch.finfo(found.dtype).tiny)
            change = torch.where(scaled, ratio, 1.0) * change
        return torch.where(where, h.float() + change, h.float()).to(h.dtype)

    def select(self, indices: Tensor) -> None:
        """Keep the rows `indices` of the batch."""
        self.rows = [x[indices] for x in self.rows]


def _check(patch: Patch, span: int, d: int) -> None:
    """Raise StreamgaugeError where the parts of a patch do not fit its row."""
    shapes = {
        "source": (patch.source, [(d,), (span, d)]),
        "step": (patch.step, [(d,)]),
        "basis": (patch.basis, [(len(patch.basis), d)]),
        "norm_of": (patch.norm_of, [(0 if patch.norm_of is None else len(patch.norm_of), d)]),
    }
    for name, (array, legal) in shapes.items():
        if array is not None and np.shape(array) not in legal:
            raise StreamgaugeError(
                f"the {name} of a patch has shape {np.shape(array)} for {span} tokens and a "
                f"d_model of {d}"
            )


def _stacked(bases: Sequence[np.ndarray]) -> np.ndarray:
    """(row, k, d_model) float32; smaller bases are filled up with zeros, which project nothing."""
    found = np.zeros((len(bases), max(map(len, bases)), bases[0].shape[1]), np.float32)
    for i, basis in enumerate(bases):
        found[i, : len(basis)] = basis
    return found
