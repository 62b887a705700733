"""ARD-MMD of one layer and penalty: the fits, their permuted nulls, the table and the store."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from streamgauge.base.progress import Progress
from streamgauge.base.tables import read_parquet, write_parquet
from streamgauge.numerics import ard, shared_dimensions
from streamgauge.numerics.inference import percentile_interval
from streamgauge.numerics.nulls import one_sided_p
from streamgauge.stores import layer_stores

# fixed thresholds of ℓ at the end of the fit, as multiples of its start
_THRESHOLDS = {"half": 0.5, "start": 1.0, "double": 2.0}


class Found(NamedTuple):
    """Result of `measure`.

    Attributes:
        table: one row, see `measure`.
        arrays: what `write` stores.
        facts: ``d_model``, ``n_constant``, ``k_sub``, ``n_pairs``, ``n_tokens``, ``n_steps``,
            ``read_step``, ``stopped``.
    """

    table: pd.DataFrame
    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]


def measure(
    states,
    layer: int,
    basis: np.ndarray,
    penalty: float,
    *,
    k_sub: int,
    lr: float,
    steps: int,
    plateau: float,
    permutations: int,
    seed: int,
    confidence: float,
    scratch: str | Path,
    device="cpu",
    label: str | None = None,
) -> Found:
    """Fit lengthscales to a layer's token clouds of both languages.

    See docs/definitions.md, "ARD-MMD". One fit begins at the structural prior of Z, one at equal
    lengthscales (flat); `permutations` more begin at the prior with the tokens of every pair dealt
    anew to the two languages, and take as many steps as the first takes to its reading step
    (`ard.Fit.read`). Everything but what is said to be at the end is read at that step.

    Args:
        states: a `states.States`.
        layer: h(layer), from 0.
        basis: V of Z, orthonormal rows (k_sub, d_model).
        penalty: λ, the weight of Σ 1/ℓ.
        k_sub: dimensions compared with Z, as many as Z has.
        lr, steps, plateau: see `ard.fit`.
        permutations: permuted fits, at least 4.
        seed: permutation i is drawn from ``[seed, i]``.
        confidence: of the intervals; 1 − confidence is the level of z_size.
        scratch: directory for finished fits, owned by this very call's arguments.
        device: what the kernels are computed on.
        label: shown in progress lines.

    Returns:
        The table has one row with the columns

        - ``d_model, n_constant`` (dimensions that do not vary: in no set and no kernel)
          ``, k_sub, n_pairs, n_tokens, n_permutations``
        - ``n_steps, read_step, stopped`` (``plateau`` or ``steps``)
        - ``mmd2_start, mmd2_start_permuted_low, mmd2_start_permuted_high``: mean over pairs of
          MMD² at the start, and its interval over permutations
        - ``mmd2_read, mmd2_permuted_low, mmd2_permuted_high``: the same at the reading step of
          each fit; ``mmd2_end``: at the end
        - ``z_size, z_size_permuted_low, z_size_permuted_high``: |Z|, see
          `shared_dimensions.shared`, and of each permuted fit held against the others
        - ``z_size_half, z_size_start, z_size_double``: dimensions whose ℓ at the end of the fit is
          at most half, once, twice that at its start; they have no null
        - ``z_size_median``: dimensions below the median: half of them, whatever the data
        - ``overlap`` of the fit with the prior, which favours Z by itself:
          ``overlap_permuted, overlap_permuted_low, overlap_permuted_high`` of the permuted fits
          (mean, interval), and ``overlap_p``, its exact rank among them
        - ``overlap_flat, overlap_flat_p`` of the fit without the prior, with its hypergeometric p;
          ``overlap_chance, overlap_chance_low, overlap_chance_high`` of that law

        Overlaps are shares of k_sub, see `shared_dimensions.overlap`.

    Raises:
        StreamgaugeError: a problem of fewer than two tokens in a language; fewer than 4
            permutations; the layer does not exist; a damaged store.
    """
    scratch, label = Path(scratch), label or f"ARD-MMD L{layer:02d}"
    shared_dimensions.check_permutations(permutations)
    pairs = [
        tuple(states.tokens(layer, i, language) for language in ("target", "source"))
        for i in range(states.n_problems)
    ]
    clouds = ard.Clouds(pairs, names=states.problems, device=device)
    prior, energy = shared_dimensions.structural_prior(basis), shared_dimensions.basis_energy(basis)
    progress = Progress((2 + permutations) * steps, "steps", label)
    common = {"lr": lr, "tick": progress.update}
    whole = {**common, "steps": steps, "plateau": plateau}
    real = _kept(scratch / "real.parquet", clouds, penalty, prior=prior, **whole)
    flat = _kept(scratch / "flat.parquet", clouds, penalty, **whole)
    # what was found earlier or need not be done is no work left
    progress.total = progress.done + permutations * real.read
    permuted = []
    for i in range(permutations):
        labels = clouds.permuted(np.random.default_rng([seed, i]))
        how = {**common, "labels": labels, "prior": prior, "steps": real.read, "plateau": None}
        path = scratch / f"permuted-{i:04d}.parquet"
        if path.exists():
            progress.total -= real.read
        permuted.append(_kept(path, clouds, penalty, **how))
    progress.close()

    varying = clouds.varying
    growth = real.growth(real.read)
    null = np.array([fit.growth(real.read) for fit in permuted])
    z = np.zeros(clouds.d_model, bool)
    z[varying] = shared_dimensions.shared(growth[varying], null[:, varying], 1 - confidence)
    arrays = {
        "log_lengthscale": real.trajectory[real.read],
        "initial": real.trajectory[0],
        "log_lengthscale_flat": flat.trajectory[flat.read],
        "sd": clouds.sd,
        "varying": varying.astype(np.uint8),
        "basis_energy": energy,
        "z": z.astype(np.uint8),
        "permuted": np.array([fit.trajectory[real.read] for fit in permuted]),
        "trajectory": real.trajectory,
        "objective": real.objective,
        "mmd2": real.mmd2,
    }
    facts = {
        "d_model": clouds.d_model,
        "n_constant": int((~varying).sum()),
        "k_sub": k_sub,
        "n_pairs": len(pairs),
        "n_tokens": clouds.n_tokens,
        "n_permutations": permutations,
        "n_steps": len(real.mmd2) - 1,
        "read_step": real.read,
        "stopped": real.stopped,
    }
    row = {
        **facts,
        **_discrepancies(real, permuted, len(pairs), confidence),
        **_sizes(real, z, null[:, varying], varying, confidence),
        **_overlaps(arrays, k_sub, varying, confidence),
    }
    return Found(pd.DataFrame([row]), arrays, facts)


def write(final: Path | str, spec: str, found: Found) -> None:
    """Write the fits of a layer as a store with the dimensions by name.

    Arrays over d_model: ``log_lengthscale`` at the reading step, ``initial``,
    ``log_lengthscale_flat`` (without the prior, at its own reading step), ``sd`` (what a dimension
    was divided by; ℓ times sd is in units of the activation), ``varying``, ``basis_energy``,
    ``z`` (1: shared). ``permuted`` (permutation, d_model) are log lengthscales at the reading
    step. ``trajectory`` (step, d_model), ``objective`` and ``mmd2`` (step,), both sums over pairs,
    are the whole fit with the prior.

    Raises:
        StreamgaugeError: the store cannot be written.
    """
    kinds = {
        "log_lengthscale": "log of the lengthscale of the standardised dimension, as read",
        "initial": "log lengthscale at the start, with the structural prior",
        "log_lengthscale_flat": "log lengthscale of the fit without the prior, as read",
        "sd": "standard deviation over the tokens of all pairs",
        "varying": "1 where the dimension varies at all",
        "basis_energy": "share of the dimension that lies in Z",
        "z": "1 where the dimension grows no more than in permuted fits",
        "permuted": "log lengthscales of permuted fits, as read",
        "trajectory": "log lengthscales at the start and after every step",
        "objective": "sum over pairs of MMD², and the penalty",
        "mmd2": "sum over pairs of MMD²",
    }
    first = {"permuted": "permutation", "trajectory": "step", "objective": "step", "mmd2": "step"}
    arrays = []
    for name, what in kinds.items():
        values = found.arrays[name]
        dims = (first[name],) if name in first else ()
        dims += ("d_model",) * (values.ndim - len(dims))
        arrays.append(layer_stores.Array(name, dims, values.shape, values.dtype.name, "1", what))
    work = layer_stores.scratch(final, spec)
    layer_stores.create(work, arrays, {}, {"read_step": found.facts["read_step"]})
    store = layer_stores.Store(work, writable=True)
    for name in kinds:
        store.write_all(name, found.arrays[name])
    layer_stores.commit(work, final)


def _kept(path: Path, clouds, penalty: float, **how) -> ard.Fit:
    """A fit, from disk where an earlier attempt finished it."""
    if not path.exists():
        fit = ard.fit(clouds, penalty, **how)
        columns = {"mmd2": fit.mmd2, "objective": fit.objective, "stopped": fit.stopped}
        write_parquet(pd.DataFrame({**columns, "trajectory": list(fit.trajectory)}), path)
    kept = read_parquet(path)
    values = (np.stack(kept.trajectory), kept.mmd2.to_numpy(), kept.objective.to_numpy())
    return ard.Fit(*values, str(kept.stopped.iloc[0]))


def _discrepancies(real, permuted, n_pairs, confidence) -> dict:
    row = {}
    for name, null, step in (("start", "start_permuted", 0), ("read", "permuted", real.read)):
        row[f"mmd2_{name}"] = real.mmd2[step] / n_pairs
        interval = _interval([fit.mmd2[step] / n_pairs for fit in permuted], confidence)
        row[f"mmd2_{null}_low"], row[f"mmd2_{null}_high"] = interval
    return {**row, "mmd2_end": real.mmd2[-1] / n_pairs}


def _sizes(real, z, null, varying, confidence) -> dict:
    rest = [np.delete(null, i, 0) for i in range(len(null))]
    sizes = [
        shared_dimensions.shared(g, others, 1 - confidence).sum()
        for g, others in zip(null, rest, strict=True)
    ]
    low, high = _interval(sizes, confidence)
    row = {"z_size": int(z.sum()), "z_size_permuted_low": low, "z_size_permuted_high": high}
    end = real.growth(-1)[varying]
    for name, factor in _THRESHOLDS.items():
        row[f"z_size_{name}"] = int((end <= np.log(factor)).sum())
    final = real.trajectory[-1][varying]
    return {**row, "z_size_median": int((final < np.median(final)).sum())}


def _overlaps(arrays, k_sub, varying, confidence) -> dict:
    def of(log_lengthscale):
        energy = arrays["basis_energy"]
        return shared_dimensions.overlap(log_lengthscale, energy, k_sub, varying, confidence)

    prior, flat = of(arrays["log_lengthscale"]), of(arrays["log_lengthscale_flat"])
    permuted = np.array([of(one).overlap for one in arrays["permuted"]])
    low, high = _interval(permuted, confidence)
    return {
        "overlap": prior.overlap,
        "overlap_permuted": float(permuted.mean()),
        "overlap_permuted_low": low,
        "overlap_permuted_high": high,
        "overlap_p": one_sided_p(prior.overlap, permuted),
        "overlap_flat": flat.overlap,
        "overlap_flat_p": flat.p,
        "overlap_chance": flat.mean,
        "overlap_chance_low": flat.low,
        "overlap_chance_high": flat.high,
    }


def _interval(values, confidence) -> tuple[float, float]:
    return percentile_interval(np.nan, values, len(values), confidence)[1:]
