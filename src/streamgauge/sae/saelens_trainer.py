"""The second trainer: SAELens' own, fed by the same stream (``trainer: saelens``), for ``mse``.

It exists to compare with: the same batches in the same order, from the same initial weights.
What it cannot do, or does its own way:

- it does not resume: interrupted, it starts again from the first step;
- gradients are always clipped at norm 1 and Adam's epsilon is 1e-8, whatever the settings say;
- ``unit_norm`` becomes SAELens' ``rescale_acts_by_decoder_norm``, folded into unit decoder rows
  at the end;
- AuxK is SAELens': not divided by the residual's variance, without ReLU, k_aux = d_model / 2;
  `auxk_coefficient` is handed on as it is;
- dead latents are counted in whole steps.
"""

import math
from collections.abc import Sequence

import torch

from streamgauge.base.progress import Progress
from streamgauge.sae import files, topk
from streamgauge.sae.runs import HISTORY_ROWS, Run, Settings, Trained, trained
from streamgauge.sae.start import Start, measure, not_finite
from streamgauge.sae.stream import Stream


def train(
    stream: Stream,
    runs: Sequence[Run],
    settings: Settings,
    stop_after: int | None = None,
    *,
    label: str = "train",
) -> list[Trained]:
    """Train SAEs with SAELens' ``SAETrainer``; results as `train.train`, on its stream.

    Raises:
        StreamgaugeError: a non-finite activation or loss, a store that cannot be read.
    """
    start = measure(stream, settings.b_dec_init)
    stream.scale = start.scale
    return [
        _train_one(run, settings, start, stream, stop_after, f"{label} k={run.k} seed={run.seed}")
        for run in runs
    ]


def _train_one(run, settings, start: Start, stream: Stream, stop_after, label: str) -> Trained:
    device = stream.device
    steps, batch = run.tokens // settings.batch_size, settings.batch_size
    every = math.ceil(steps / HISTORY_ROWS)
    batches = stream.batches(0, steps)
    trainer = _trainer(run, settings, start, device, steps, batches)
    progress = Progress(steps * batch, "tokens", label)
    rows = []
    for done in range(1, min(steps, stop_after or steps) + 1):
        dead = int(trainer.dead_neurons.sum())
        lr = trainer.optimizer.param_groups[0]["lr"]
        out = trainer.step(next(trainer.data_provider))
        trainer.n_training_steps += 1
        loss = out.losses["mse_loss"].item()
        if not math.isfinite(out.loss.item()):
            raise not_finite(stream, done)
        if done % every == 0 or done in (1, steps):
            x, auxk = out.sae_in, out.losses.get("auxiliary_reconstruction_loss", 0.0)
            variance = (x - x.mean(0)).square().sum().item() / batch
            l0 = (out.feature_acts > 0).sum().item() / batch
            fvu = loss / max(variance, torch.finfo(torch.float32).tiny)
            rows.append([done, done * batch, loss, fvu, float(auxk), dead, lr, l0])
        progress.update(batch, loss=loss)
    progress.close()
    theirs = trainer.sae
    sae = topk.TopKSAE(
        **{name: getattr(theirs, name).detach().cpu().clone() for name in files.NAMES}, k=run.k
    )
    if settings.unit_norm:
        sae = files.fold_decoder_norm(sae)
    sae = sae.for_unscaled_input(start.scale)
    facts = {"lr": run.peak_lr(settings), "objective": "mse", "trainer": "saelens"}
    return trained(sae, rows, start, stream, steps, steps * batch, facts)


def _trainer(run: Run, settings: Settings, start: Start, device, steps: int, batches):
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    lr = run.peak_lr(settings)
    config = TopKTrainingSAEConfig(
        d_in=len(start.b_dec),
        d_sae=run.d_sae,
        k=run.k,
        device=str(device),
        aux_loss_coefficient=settings.auxk_coefficient,
        rescale_acts_by_decoder_norm=settings.unit_norm,
    )
    with torch.random.fork_rng():  # SAELens draws weights from the global generator
        sae = TopKTrainingSAE(config)
    ours = topk.init(len(start.b_dec), run.d_sae, run.k, run.seed, start.b_dec.cpu())
    for name in files.NAMES:
        getattr(sae, name).data.copy_(getattr(ours, name))
    return SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=steps * settings.batch_size,
            train_batch_size_samples=settings.batch_size,
            lr=lr,
            lr_end=lr,
            lr_warm_up_steps=settings.warmup_steps,
            lr_decay_steps=round(settings.decay_fraction * steps),
            dead_feature_window=settings.dead_tokens // settings.batch_size,
            device=str(device),
        ),
        sae=sae,
        data_provider=batches,
    )
