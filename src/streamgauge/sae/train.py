"""Train several TopK SAEs from one stream of activations, resumable at any step.

Every SAE of a call sees the same batches in the same order, so training several together gives
the weights each would get alone.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from streamgauge.base.progress import Progress
from streamgauge.sae import topk
from streamgauge.sae.objective import Euclidean, SquaredError
from streamgauge.sae.runs import COLUMNS, HISTORY_ROWS, Run, Settings, Trained, check, trained
from streamgauge.sae.start import Start, measure, not_finite
from streamgauge.sae.step import Step
from streamgauge.sae.stream import Stream
from streamgauge.stores import checkpoints

__all__ = ["CHECKPOINT", "Run", "Settings", "Trained", "train"]

CHECKPOINT = "checkpoint.safetensors"


def train(
    store,
    runs: Sequence[Run],
    settings: Settings,
    scratch: Path | str,
    *,
    objective: SquaredError | None = None,
    device: str | torch.device = "cpu",
    data_seed: int = 0,
    checkpoint_seconds: float = 60.0,
    stop_after: int | None = None,
    label: str = "train",
) -> list[Trained]:
    """Train SAEs on an activations store.

    Killed at any moment and called again with the same arguments, it continues from the last
    checkpoint and ends with the same weights bit for bit (on the same machine).

    Args:
        store: `layer_stores.ActivationStore` of the training split.
        runs: the SAEs; they share batches, scale and b_dec.
        settings: how to train.
        scratch: directory for ``checkpoint.safetensors``; of no use once the results are stored.
        objective: what to train for; the squared error when not given. Others are in
            `behavioral` and `e2e`.
        device: where to train.
        data_seed: of the order of the data.
        checkpoint_seconds: between checkpoints.
        stop_after: steps after which to stop, with the schedule of the whole budget: the history
            begins as that of the whole run. All of them when not given.
        label: for progress lines.

    Returns:
        One result a run, in order.

    Raises:
        StreamgaugeError: k > d_sae, a budget below one batch, SAELens' trainer with another
            objective than ``mse``, what the objective needs beside the activations does not fit
            them, a non-finite activation or loss (naming the step), a store that cannot be read, a
            checkpoint that cannot be written.
    """
    objective = objective or SquaredError()
    check(runs, settings, objective.name, objective.batch_size(store, settings))
    device = torch.device(device)
    stream = objective.stream(store, settings, data_seed, device)
    if settings.trainer == "saelens":
        from streamgauge.sae import saelens_trainer

        return saelens_trainer.train(stream, runs, settings, stop_after, label=label)
    path = Path(scratch) / CHECKPOINT
    identity = _identity(stream, runs, settings, objective)
    tensors = checkpoints.resume(path, identity)
    if tensors is None:
        start = objective.start(stream, measure(stream, settings.b_dec_init))
    else:
        start = _start_from(tensors, device)
    stream.scale = start.scale
    batch = stream.batch_size
    trainings = [Training(run, settings, start, batch, device) for run in runs]
    if tensors is not None:
        for number, training in enumerate(trainings):
            training.load(_part(tensors, f"{number}."))

    def save():
        state = {"start.b_dec": start.b_dec.cpu()}
        numbers = [start.scale, start.variance, start.sample_tokens, start.reference]
        state["start.numbers"] = torch.tensor(numbers, dtype=torch.float64)
        for number, training in enumerate(trainings):
            state |= {f"{number}.{name}": value for name, value in training.state().items()}
        checkpoints.save(path, state, identity)

    budget = max(training.steps for training in trainings)
    total = min(budget, stop_after or budget)
    done = max(training.step.done for training in trainings)
    progress = Progress(total * batch, "tokens", label, done=done * batch)
    saved = time.monotonic()
    for number, drawn in enumerate(stream.batches(done, total), done):
        x, pull = objective.pull(stream, drawn, start)
        due = time.monotonic() - saved >= checkpoint_seconds
        for training in trainings:
            if number < training.steps:
                training.advance(x, pull)
                if due or device.type == "cpu" or number % 32 == 0:
                    training.settle(stream)
        if due:
            save()
            saved = time.monotonic()
        progress.update(batch, loss=sum(t.loss for t in trainings) / len(trainings))
    for training in trainings:
        training.settle(stream)
    if done < total == budget:
        save()
    progress.close()
    return [training.result(stream, objective.name) for training in trainings]


class Training:
    """One run in progress: its step, and its history."""

    def __init__(
        self, run: Run, settings: Settings, start: Start, batch_size: int, device: torch.device
    ):
        self.start = start
        self.steps = run.tokens // batch_size
        self.every = math.ceil(self.steps / HISTORY_ROWS)
        self.rows: list[list[float]] = []
        self.loss = math.nan  # of the last step looked at
        self._unread: list[tuple] = []
        d_model = len(start.b_dec)
        sae = topk.init(d_model, run.d_sae, run.k, run.seed, start.b_dec, device)
        self.step = Step(
            sae,
            steps=self.steps,
            lr=run.peak_lr(settings),
            warmup_steps=settings.warmup_steps,
            decay_fraction=settings.decay_fraction,
            eps=settings.eps,
            clip=settings.clip,
            unit_norm=settings.unit_norm,
            auxk_coefficient=settings.auxk_coefficient,
            k_aux=settings.k_aux,
            dead_tokens=settings.dead_tokens,
            variance=start.variance,
        )

    def advance(self, x: torch.Tensor, pull: Euclidean) -> None:
        """Take a step, and keep what it measured without waiting for the device."""
        lr, losses = self.step.lr, self.step.step(x, pull)
        done = self.step.done
        variance = None
        if done % self.every == 0 or done in (1, self.steps):
            variance = (x - x.mean(0)).square().sum() / len(x)
        self._unread.append((done, self.step.tokens, lr, losses, variance))

    def settle(self, stream: Stream) -> None:
        """Read what the last steps measured; stop at the first that is not finite."""
        for done, tokens, lr, losses, variance in self._unread:
            loss, auxk = losses.loss.item(), losses.auxk.item()
            if not math.isfinite(loss + auxk):
                raise not_finite(stream, done)
            self.loss = loss
            if variance is not None:
                fvu = losses.mse.item() / max(variance.item(), torch.finfo(torch.float32).tiny)
                self.rows.append([done, tokens, loss, fvu, auxk, losses.dead, lr, losses.l0.item()])
        self._unread = []

    def state(self) -> dict[str, torch.Tensor]:
        """All that the rest of the run depends on; call `settle` first."""
        rows = torch.tensor(self.rows, dtype=torch.float64).reshape(-1, len(COLUMNS))
        return {"history": rows, **self.step.state()}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Continue from a `state`."""
        self.rows = state.pop("history").tolist()
        self.step.load(state)

    def result(self, stream: Stream, objective: str) -> Trained:
        """The SAE as it stands, for unscaled activations."""
        sae = self.step.sae().to("cpu").for_unscaled_input(self.start.scale)
        facts = {"lr": self.step.peak_lr, "objective": objective, "trainer": "native"}
        seen = self.step.tokens
        return trained(sae, self.rows, self.start, stream, self.steps, seen, facts)


def _identity(stream: Stream, runs: Sequence[Run], settings: Settings, objective) -> dict:
    """What a checkpoint must have been written for to be continued."""
    data = {
        "seed": stream.seed,
        "tokens_per_epoch": stream.tokens_per_epoch,
        "d_model": stream.store.d_model,
        "objective": objective.name,
    }
    return {"runs": [asdict(run) for run in runs], "settings": asdict(settings), "data": data}


def _start_from(tensors: dict[str, torch.Tensor], device: torch.device) -> Start:
    scale, variance, sample_tokens, reference = tensors["start.numbers"].tolist()
    b_dec = tensors["start.b_dec"].to(device)
    return Start(scale, variance, b_dec, int(sample_tokens), reference)


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
