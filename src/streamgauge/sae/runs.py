"""What is to be trained, how, and what comes of it; common to both trainers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamgauge.base.errors import StreamgaugeError
from streamgauge.sae import topk
from streamgauge.sae.start import Start
from streamgauge.sae.stream import Stream

if TYPE_CHECKING:
    import pandas as pd

HISTORY_ROWS = 2_000  # at most, per run
COLUMNS = ("step", "tokens", "loss", "fvu", "auxk_loss", "dead", "lr", "l0")
CHOICES = {
    "trainer": ("native", "saelens"),
    "b_dec_init": ("geometric_median", "mean", "zeros"),
}


@dataclass(frozen=True)
class Settings:
    """How SAEs are trained: the block ``sae`` of the configuration.

    Attributes:
        trainer: ``"native"``, or ``"saelens"`` for SAELens' own trainer on the same stream.
        batch_size: tokens a step.
        lr: peak learning rate, or ``"auto"``: 2e-4 / sqrt(d_sae / 16384).
        warmup_steps: steps of linear warm-up.
        decay_fraction: share of a run over which the learning rate falls to 0 at its end.
        eps: Adam's epsilon.
        clip: largest gradient norm, or None.
        unit_norm: keep decoder rows at norm 1.
        b_dec_init: ``"geometric_median"``, ``"mean"`` or ``"zeros"``, of a sample of tokens.
        auxk_coefficient: weight of AuxK in Gao et al.'s normalised loss; 0 is off.
        k_aux: dead latents AuxK uses per token.
        dead_tokens: a latent silent for more tokens than this is dead.
        exclude_sinks: train on the token set ``no_sink`` only.
        pool_tokens: tokens shuffled together in memory.
    """

    trainer: str = "native"
    batch_size: int = 4096
    lr: float | str = "auto"
    warmup_steps: int = 1_000
    decay_fraction: float = 0.2
    eps: float = 6.25e-10
    clip: float | None = None
    unit_norm: bool = True
    b_dec_init: str = "geometric_median"
    auxk_coefficient: float = 0.03125
    k_aux: int = 256
    dead_tokens: int = 10_000_000
    exclude_sinks: bool = False
    pool_tokens: int = 524_288


@dataclass(frozen=True)
class Run:
    """One SAE to train: sparsity, width, seed of its initialisation, and budget in tokens.

    A budget is rounded down to whole batches. `lr`, when given, goes before that of the settings.
    """

    k: int
    d_sae: int
    seed: int
    tokens: int
    lr: float | None = None

    def peak_lr(self, settings: Settings) -> float:
        """Learning rate after warm-up."""
        lr = settings.lr if self.lr is None else self.lr
        return 2e-4 / math.sqrt(self.d_sae / 16384) if lr == "auto" else float(lr)


@dataclass(frozen=True)
class Trained:
    """A trained SAE.

    Attributes:
        sae: for unscaled activations.
        history: one row a logged step, at most about 2,000: ``step`` and ``tokens`` done;
            ``loss``, mean over the batch, in the unit of the objective (``mse``: squared error of
            scaled activations, summed over d; ``behavioral``: nats a token, half the quadratic
            form; ``e2e``: nats a predicted position, the divergence); ``fvu``, squared error over
            the variance of the batch, for every objective; ``auxk_loss``; ``dead`` latents;
            ``lr``; ``l0``. ``training.csv`` is this table.
        facts: ``b_dec_init`` (list, unscaled), ``scale``, ``variance``, ``sample_tokens``,
            ``reference_loss`` (see `start.Start`, in the unit of ``loss``), ``epochs``, ``steps``,
            ``tokens_seen``, ``lr``, ``data_seed``, ``objective``, ``trainer``.
    """

    sae: topk.TopKSAE
    history: "pd.DataFrame"
    facts: dict


def check(runs: Sequence[Run], settings: Settings, objective: str, batch_size: int) -> None:
    """Refuse what cannot be trained, before any data is read.

    Args:
        objective: its name.
        batch_size: tokens of a step, which `objective` may round.

    Raises:
        StreamgaugeError: k > d_sae, a budget below one batch, an unknown trainer or b_dec_init,
            SAELens' trainer with another objective than ``mse``, or no run at all.
    """
    if not runs:
        raise StreamgaugeError("no SAE to train")
    for key, values in CHOICES.items():
        value = getattr(settings, key)
        if value not in values:
            raise StreamgaugeError(
                f"{value!r} is not one of {', '.join(values)}", where=f"sae.{key}"
            )
    if settings.trainer == "saelens" and objective != "mse":
        raise StreamgaugeError(
            f"SAELens' trainer knows no objective {objective!r}",
            where="sae.trainer",
            remedy="Set sae.trainer to native, or leave mse alone in grid.objectives.",
        )
    for run in runs:
        topk.check_k(run.k, run.d_sae)
        if run.tokens < batch_size:
            raise StreamgaugeError(
                f"a budget of {run.tokens} tokens is less than one batch of {batch_size}",
                remedy="Raise grid.tokens or lower sae.batch_size.",
            )


def trained(sae, rows, start: Start, stream: Stream, steps: int, seen: int, facts: dict) -> Trained:
    """The result of a run, from either trainer.

    Args:
        sae: for unscaled activations.
        rows: of the history, in the order of `COLUMNS`.
        seen: tokens.
        facts: ``lr``, ``objective`` and ``trainer``.
    """
    import pandas as pd

    history = pd.DataFrame(rows, columns=COLUMNS)
    history = history.astype(dict.fromkeys(("step", "tokens", "dead"), "int64"))
    facts = {
        "b_dec_init": (start.b_dec.cpu().double() / start.scale).tolist(),
        "scale": start.scale,
        "variance": start.variance,
        "sample_tokens": start.sample_tokens,
        "reference_loss": start.reference,
        "epochs": seen / stream.tokens_per_epoch,
        "steps": steps,
        "tokens_seen": seen,
        "data_seed": stream.seed,
        **facts,
    }
    return Trained(sae, history, facts)
