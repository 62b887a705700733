"""Output-Fisher probes of one layer, into a store.

docs/definitions.md, "Sensitivity": the Fisher information of the next-token distribution in the
logits is F = diag(p) − ppᵀ, with factor F^½ = diag(√p) − p√pᵀ, and G_t = Σ_{t'≥t} J_{t't}ᵀ F_t'
J_{t't} its pullback to the residual stream h_t (*downstream*: all logits that h_t reaches). One
backward pass with u drawn independently at every position gives v_t = (1/√s) Σ_{t'≥t} J_{t't}ᵀ
F_t'^½ u_t' for all t at once, and the s probes of a token satisfy E Σ vvᵀ = G_t; ½ eᵀGe is the
second-order KL in nats. *Same-position* probes take position t's own logits only and need a
backward pass for every sampled position. *Shift* probes w carry what the diagonal variant diag(p)
has beyond F: E Σ wwᵀ = Σ JᵀppᵀJ. Logits count at positions 0..T−2, as in the losses; position T−1
is zero.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from streamgauge.base.errors import StreamgaugeError
from streamgauge.models import hooks
from streamgauge.numerics.sensitivity import times_root_fisher
from streamgauge.passes import gradients
from streamgauge.passes.gradients import Pullback
from streamgauge.stores import layer_stores, shard_writer

SCOPES = ("downstream", "same_position")
# what a stream of random numbers is for; part of its seed
_PROBE, _SHIFT, _POSITIONS = range(3)


def draw(
    subject,
    ids: Tensor,
    layer: int,
    sequences: Sequence[int],
    *,
    count: int,
    seed: int = 0,
    same_positions: int = 0,
    diagonal: int = 0,
) -> dict[str, Tensor]:
    """The probes of a batch: arrays of the store, by name.

    Args:
        subject: a `subjects.Subject`.
        ids: token ids (batch, position), at least two positions, on the subject's device.
        layer: the hook point.
        sequences: index of each row in its corpus. The numbers drawn depend on `seed`, sequence,
            probe and kind of device only.
        count: s, probes of a token.
        seed: of the draws.
        same_positions: positions sampled in each row for same-position probes, without
            replacement among 0..T−2; they share u with the downstream probe of their number.
        diagonal: R, shift probes of a token.

    Returns:
        ``probes`` (batch, position, d_model, count), 1/√s included; if asked for,
        ``same_position`` (batch, sample, d_model, count) with ``sampled_position`` (batch, sample)
        int32 in ascending order, and ``shift`` (batch, position, d_model, diagonal), 1/√R included.

    Raises:
        StreamgaugeError: there is no gradient path from the logits to the hook point.
    """
    n, length = ids.shape
    pull = Pullback(subject, ids, layer)
    root, pull.logits = gradients.probabilities(pull.logits, pull.dtype).sqrt_(), None
    sampled = np.stack([_sample(seed, sequence, length, same_positions) for sequence in sequences])
    row = torch.arange(n, device=ids.device)
    positions = torch.as_tensor(sampled, device=ids.device, dtype=torch.long)
    cotangent = torch.zeros_like(root)
    probes, same = [], []
    for i in range(count):
        _normal(cotangent[:, :-1], [(seed, sequence, _PROBE, i) for sequence in sequences])
        _times_root_fisher(root, cotangent)
        own = cotangent[row[:, None], positions]
        probes.append(pull(cotangent))
        for k in range(same_positions):
            cotangent.zero_()
            cotangent[row, positions[:, k]] = own[:, k]
            same.append(pull(cotangent)[row, positions[:, k]])
    made = {"probes": torch.stack(probes, -1) / count**0.5}
    if same_positions:
        # probe by probe, sample by sample -> (batch, sample, d_model, probe)
        by_sample = torch.stack(same, -1).unflatten(-1, (count, same_positions))
        made["same_position"] = by_sample.permute(0, 3, 1, 2) / count**0.5
        made["sampled_position"] = torch.as_tensor(sampled)
    if diagonal:
        shift = []
        for r in range(diagonal):
            signs = np.stack([_signs(seed, sequence, length, r) for sequence in sequences])
            torch.mul(root, root, out=cotangent)
            cotangent *= torch.as_tensor(signs, device=root.device).to(root.dtype)[..., None]
            shift.append(pull(cotangent))
        made["shift"] = torch.stack(shift, -1) / diagonal**0.5
    return made


def _sample(seed: int, sequence: int, length: int, count: int) -> np.ndarray:
    rng = np.random.default_rng((seed, sequence, _POSITIONS))
    return np.sort(rng.choice(length - 1, count, replace=False)).astype(np.int32)


def _signs(seed: int, sequence: int, length: int, r: int) -> np.ndarray:
    return np.random.default_rng((seed, sequence, _SHIFT, r)).choice([-1, 1], length)


def _normal(out: Tensor, seeds: Sequence[tuple[int, ...]]) -> None:
    """Fill every member of `out` with standard normal numbers from its own seed."""

    def fill(i: int) -> None:
        bits = np.random.SeedSequence(seeds[i]).generate_state(1, np.uint64)
        generator = torch.Generator(out.device).manual_seed(int(bits[0]))
        out[i].normal_(generator=generator)

    # torch draws in one thread, and drawing costs up to a third of a backward pass
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(fill, range(len(out))))


def _times_root_fisher(root: Tensor, u: Tensor) -> None:
    """u <- F^½u in place, a few positions at a time.

    Args:
        root: √p, (batch, position, vocabulary).
    """
    root, u = root.flatten(0, 1), u.flatten(0, 1)
    for at in hooks.logits_slices(u, len(u)):
        times_root_fisher(root[at], u[at])


def exact_factors(subject, ids: Tensor, layer: int, scope: str = "downstream") -> Tensor:
    """Factors U with UUᵀ = G_t exactly, for small models: (T − 1)·vocabulary backward rows.

    Args:
        subject: a `subjects.Subject`.
        ids: token ids (batch, position), at least two positions, on the subject's device.
        layer: the hook point.
        scope: ``"downstream"`` (all later logits) or ``"same_position"`` (the token's own).

    Returns:
        (batch, position, d_model, d_model), float64; a token's last two axes flattened are packed
        factors. Position T−1 is zero.

    Raises:
        StreamgaugeError: no such scope; no gradient path from the logits to the hook point.
    """
    if scope not in SCOPES:
        raise StreamgaugeError(f"scope {scope!r} is not one of {', '.join(SCOPES)}")
    return torch.stack([_exact(subject, row, layer, scope) for row in ids])


def _exact(subject, row: Tensor, layer: int, scope: str) -> Tensor:
    """`exact_factors` of one sequence: a batch of its copies takes a column of F^½ each."""
    length, vocabulary, d = len(row), subject.vocab_size, subject.d_model
    columns = torch.arange(vocabulary, device=row.device).split(64)
    pulls = {n: Pullback(subject, row.expand(n, -1), layer) for n in {len(c) for c in columns}}
    r = torch.zeros(length, d, d, dtype=torch.float64, device=row.device)
    for t in range(length - 1):
        for column in columns:
            pull = pulls[len(column)]
            p = pull.logits[0, t].to(pull.dtype).softmax(-1)
            cotangent = torch.zeros_like(pull.logits, dtype=pull.dtype)
            cotangent[:, t] = -p.sqrt()[column, None] * p
            cotangent[range(len(column)), t, column] += p.sqrt()[column]
            # (position, column, d_model): rows of what has to be squared and summed
            pulled = pull(cotangent).transpose(0, 1).double()
            if scope == "same_position":
                pulled[:t] = 0
            r = torch.linalg.qr(torch.cat([r, pulled], 1), mode="r").R
    return r.transpose(1, 2)


def harvest(
    subject,
    tokens,
    layer: int,
    scratch: Path | str,
    *,
    count: int = 8,
    dtype: str = "bfloat16",
    batch_size: int = 8,
    seed: int = 0,
    same_positions: int = 0,
    diagonal: int = 0,
    part: tuple[int, int] = (0, 1),
    progress: bool = True,
) -> None:
    """Write the probes of a part of the store that `scratch` does not hold yet.

    Any number of processes may harvest parts into one `scratch`, which `gather.probes` checks; a
    shard's bytes depend on its own rows, the seed and the batch size only.

    Args:
        subject: a `subjects.Subject` in `gradients.computed_in` of its dtype.
        tokens: token ids, (n_sequences, n_positions), anything that slices to an array.
        layer: probes of the residual stream at ``blocks.{layer}.hook_resid_post``.
        scratch: directory given by `layer_stores.scratch`.
        count: s, probes of a token.
        dtype: stored as ``bfloat16``, ``float16`` or ``float32``.
        batch_size: sequences in one pass; two tables of batch × position × vocabulary are held.
        seed, same_positions, diagonal: see `draw`.
        part: (i, n), the i-th of n ranges of shards, counted from 0.
        progress: print progress lines with tokens/s.

    Raises:
        StreamgaugeError: no probe is asked for, or more sampled positions than there are; rows of
            one token; the subject computes in float16; the layer, the part or a token id does not
            exist; no gradient path; a probe is not finite, or does not fit `dtype`, above or below
            (naming sequence, position and layer); the store cannot be written. Finished shards
            stay and are skipped by the next attempt.
    """
    n_sequences, n_positions = gradients.check_request(subject, tokens, layer, dtype, "probes")
    _check_counts(count, same_positions, diagonal, n_positions)
    layer_stores.create_probes(
        scratch,
        n_sequences=n_sequences,
        n_positions=n_positions,
        d_model=subject.d_model,
        n_probes=count,
        dtype=dtype,
        layer=layer,
        hook_name=hooks.hook_name(layer),
        seed=seed,
        same_positions=same_positions,
        diagonal=diagonal,
        computed_in=gradients.dtype_of(subject),
    )
    names = ["probes"]
    names += ["same_position", "sampled_position"] if same_positions else []
    names += ["shift"] if diagonal else []

    def make(at: int, upto: int) -> dict[str, Tensor]:
        made = draw(
            subject,
            subject.ids(np.asarray(tokens[at:upto], np.int64)),
            layer,
            range(at, upto),
            count=count,
            seed=seed,
            same_positions=same_positions,
            diagonal=diagonal,
        )
        for name in sorted(made.keys() - {"sampled_position"}):
            positions = made["sampled_position"] if name == "same_position" else None
            gradients.check_fits(made[name], dtype, at, layer, "a probe", "probes", positions)
        return made

    shard_writer.write_shards(
        layer_stores.Store(scratch, writable=True),
        names,
        make,
        batch_size=batch_size,
        part=part,
        label=f"probes L{layer:02d}" if progress else None,
        pinned=torch.device(subject.device).type == "cuda",
    )


def _check_counts(count: int, same_positions: int, diagonal: int, n_positions: int) -> None:
    if count < 1:
        raise StreamgaugeError(
            f"{count} probes of a token measure nothing",
            where="probes.count",
            remedy="Set it to 1 at least; 4 to 16 are useful.",
        )
    if diagonal < 0:
        raise StreamgaugeError(f"{diagonal} is no number of probes", where="probes.diagonal")
    if not 0 <= same_positions < n_positions:
        raise StreamgaugeError(
            f"{same_positions} positions cannot be sampled from the {n_positions - 1} predicted"
            " ones of a sequence",
            where="probes.same_positions",
        )
