"""One cell of a study's grid: train its SAE from a store and write it down."""

from collections.abc import Mapping
from pathlib import Path

from streamgauge.base.tables import write_csv
from streamgauge.sae import files, train
from streamgauge.sae.objective import SquaredError
from streamgauge.stores.layer_stores import ActivationStore


def fit(
    activations: Path | str,
    directory: Path | str,
    cell: Mapping[str, str | int],
    settings: Mapping[str, object],
    scratch: Path | str,
    device: str = "cpu",
    objective: SquaredError | None = None,
    *,
    stop_after: int | None = None,
) -> dict:
    """Train the SAE of `cell`; write its configuration, weights and ``training.csv``.

    The cell's seed draws both the initial weights and the order of the tokens.

    Args:
        activations: the training store.
        directory: where the SAE goes.
        cell: ``subject``, ``corpus``, ``expansion``, ``k``, ``seed``, ``tokens``, see
            `provenance.cell`.
        settings: the config block ``sae``, see `train.Settings`.
        scratch: directory for unfinished work, see `train.train`.
        device: a torch device.
        objective: the squared error when not given, see `train.train`.
        stop_after: steps, where only the beginning is asked for, see `train.train`.

    Returns:
        The manifest's facts: ``d_model``, ``d_sae``, ``k``, ``seed`` and those of `train.Trained`.

    Raises:
        StreamgaugeError: see `train.train`.
    """
    store = ActivationStore(activations)
    numbers = {name: cell[name] for name in ("k", "seed", "tokens")}
    run = train.Run(d_sae=cell["expansion"] * store.d_model, **numbers)
    label = f"train L{store.layer:02d} k={run.k} seed={run.seed}"
    (made,) = train.train(
        store,
        [run],
        train.Settings(**settings),
        scratch,
        objective=objective,
        device=device,
        data_seed=run.seed,
        stop_after=stop_after,
        label=label,
    )
    files.save(made.sae, directory, _metadata(store, cell, made.facts))
    write_csv(made.history, Path(directory) / "training.csv")
    shape = {"d_model": store.d_model, "d_sae": run.d_sae, "k": run.k, "seed": run.seed}
    return {**shape, **made.facts}


def _metadata(store: ActivationStore, cell: Mapping[str, str | int], facts: Mapping) -> dict:
    """What SAELens' loader and its users look for in ``cfg.json``."""
    return {
        "model_name": cell["subject"],
        "dataset_path": cell["corpus"],
        "hook_name": store.hook_name,
        "context_size": store.n_positions,
        "training_tokens": facts["tokens_seen"],
        "objective": facts["objective"],
        "seed": cell["seed"],
    }
