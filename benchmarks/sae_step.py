"""Cost of one TopK training step: ours, a dense autograd loop, SAELens' trainer, the encoder alone.

All contenders run in one process, interleaved in rotating order, two steps at a turn, so that
other load on the machine hits them alike. On a CPU a step is timed in CPU-seconds of one thread;
on a GPU in wall time between synchronisations. Speed is tokens per second at the median time; a
ratio is the median over rounds of the ratio within a round.

    python benchmarks/sae_step.py --out sae_step.json [--device cpu] [--d-sae 4608 18432]
"""

import argparse
import json
import statistics
import time

import torch

from streamgauge.sae import topk
from streamgauge.sae.step import Step

DENSE, SAELENS, SAELENS_DEAD = "dense autograd loop", "SAELens", "SAELens, 10 % dead"
STEPS = 2  # at a turn
OURS, OURS_DEAD, ENCODER = "streamgauge", "streamgauge, 10 % dead", "encoder product alone"


class Dense:
    """The plain loop: autograd through dense latents, default Adam."""

    def __init__(self, sae: topk.TopKSAE, lr: float):
        self.p = [t.clone().requires_grad_() for t in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)]
        self.k, self.adam = sae.k, torch.optim.Adam(self.p, lr=lr)

    def step(self, x: torch.Tensor) -> None:
        W_enc, b_enc, W_dec, b_dec = self.p
        pre = (x - b_dec) @ W_enc + b_enc
        values, ids = pre.topk(self.k, dim=-1, sorted=False)
        z = torch.zeros_like(pre).scatter(-1, ids, values.relu())
        loss = (z @ W_dec + b_dec - x).square().sum(-1).mean()
        loss.backward()
        self.adam.step()
        self.adam.zero_grad()


def saelens_trainer(sae: topk.TopKSAE, batch: int, lr: float, device: str):
    """SAELens' trainer with its default TopK settings, from the same weights."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    config = TopKTrainingSAEConfig(d_in=sae.d_model, d_sae=sae.d_sae, k=sae.k, device=device)
    theirs = TopKTrainingSAE(config)
    theirs.W_enc.data.copy_(sae.W_enc)
    theirs.W_dec.data.copy_(sae.W_dec)
    trainer_config = SAETrainerConfig(
        total_training_samples=10**9,
        train_batch_size_samples=batch,
        lr=lr,
        lr_end=lr,
        device=device,
    )
    return SAETrainer(cfg=trainer_config, sae=theirs, data_provider=iter(()))


def data(d: int, batch: int, batches: int, device: str) -> list[torch.Tensor]:
    """Sparse combinations of random directions plus noise, so that training has something to do."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(2 * d, d, generator=generator)
    codes = torch.rand(batches * batch, 2 * d, generator=generator)
    codes = torch.where(codes > 0.97, codes, 0.0)
    x = codes @ directions + 0.3 * torch.randn(batches * batch, d, generator=generator)
    return list((x * (d**0.5 / x.norm(dim=1).mean())).to(device).split(batch))


def contenders(d: int, m: int, k: int, batch: int, device: str) -> dict:
    sae = topk.init(d, m, k, seed=0, device=device)
    lr = 2e-4 * (m / 16384) ** -0.5
    settings = dict(steps=10**9, lr=lr)
    dead = torch.zeros(m, dtype=torch.bool, device=device)
    dead[::10] = True

    ours, ours_dead = Step(sae, **settings), Step(sae, **settings)
    dense = Dense(sae, lr)
    theirs, theirs_dead = (saelens_trainer(sae, batch, lr, device) for _ in range(2))
    weights, pre = sae.W_enc.T.contiguous(), torch.empty(batch, m, device=device)

    def step_dead(x):
        ours_dead.tokens = ours_dead.dead_tokens + 1
        ours_dead.tokens_since_fired[dead] = ours_dead.dead_tokens + 1
        ours_dead.step(x)

    def step_theirs(x, trainer=theirs):
        trainer.step(x)
        trainer.n_training_steps += 1

    def step_theirs_dead(x):
        theirs_dead.n_forward_passes_since_fired[dead] = 10**6
        step_theirs(x, theirs_dead)

    return {
        DENSE: dense.step,
        SAELENS: step_theirs,
        SAELENS_DEAD: step_theirs_dead,
        OURS: ours.step,
        OURS_DEAD: step_dead,
        ENCODER: lambda x: torch.addmm(sae.b_enc, x, weights.T, out=pre),
    }


def measure(steps: dict, batches: list, rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds a step of each contender in each round."""
    cuda = device.startswith("cuda")
    clock = time.perf_counter if cuda else time.process_time
    names = list(steps)
    times = {name: [] for name in names}
    for i in range(-1, rounds):  # round -1 warms up
        x = batches[i % len(batches)]
        for j in range(len(names)):
            name = names[(i + j) % len(names)]
            if cuda:
                torch.cuda.synchronize()
            start = clock()
            for _ in range(STEPS):
                steps[name](x)
            if cuda:
                torch.cuda.synchronize()
            if i >= 0:
                times[name].append((clock() - start) / STEPS)
    return times


def summary(times: dict[str, list[float]], batch: int) -> dict[str, dict[str, float]]:
    """Of each contender: tokens per second, and its speed over that of others.

    A step with 10 % dead latents is compared with SAELens' step with as many.
    """

    def ratio(fast, slow):
        return statistics.median(s / f for f, s in zip(times[fast], times[slow], strict=True))

    return {
        name: {
            "tokens_per_second": batch / statistics.median(seconds),
            "over_dense": ratio(name, DENSE),
            "over_saelens": ratio(name, SAELENS_DEAD if name == OURS_DEAD else SAELENS),
            "of_encoder_limit": ratio(name, ENCODER),
        }
        for name, seconds in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, help="JSON file with the numbers")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--d-sae", type=int, nargs="+", default=[4608, 18432])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--d-model", type=int, default=576)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=2048)
    args = parser.parse_args()
    torch.set_num_threads(1)

    batches = data(args.d_model, args.batch, 4, args.device)
    results = {"arguments": vars(args), "torch": torch.__version__, "d_sae": {}}
    print("| d_sae | contender | tokens/s | x dense loop | x SAELens | share of encoder limit |")
    print("| --: | --- | --: | --: | --: | --: |")
    for m in args.d_sae:
        steps = contenders(args.d_model, m, args.k, args.batch, args.device)
        result = summary(measure(steps, batches, args.rounds, args.device), args.batch)
        results["d_sae"][m] = result
        for name, row in result.items():
            print(
                f"| {m} | {name} | {row['tokens_per_second']:,.0f} | {row['over_dense']:.2f}"
                f" | {row['over_saelens']:.2f} | {row['of_encoder_limit']:.0%} |",
                flush=True,
            )
    with open(args.out, "w") as file:
        json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()
