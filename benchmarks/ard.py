"""One step of an ARD-MMD fit, all pairs at once, against loops over the pairs.

Value and gradient of Σ MMD² over pairs of token clouds, one thread, contenders interleaved: this
library's batched products; a loop over pairs as the formula is written, with differences
(n, m, d_model) and autograd; and a loop over pairs by matrix products with autograd. Figures are
medians over rounds of ratios within a round.

    python benchmarks/ard.py [--d-model 640 2048] [--out ard.json]
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from streamgauge.numerics import ard


def draw(n_pairs: int, d_model: int, shortest: int, longest: int) -> list:
    """Pairs of Gaussian clouds, one shifted, of `shortest` to `longest` tokens."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(shortest, longest + 1, (n_pairs, 2))
    return [
        (rng.standard_normal((n, d_model), np.float32), 0.5 + rng.standard_normal((m, d_model)))
        for n, m in sizes
    ]


def by_differences(x, y, ell):
    """Squared distances of all tokens under lengthscales, through an array (n, m, d)."""
    return (((x[:, None] - y[None]) / ell) ** 2).sum(-1)


def by_products(x, y, ell):
    """The same through one matrix product."""
    x, y = x / ell, y / ell
    squared = (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T
    return squared.clamp(min=0)


def loop(distances, tokens, theta: torch.Tensor) -> tuple[float, np.ndarray]:
    """Value and gradient, pair by pair, by autograd."""
    theta = theta.clone().requires_grad_()
    value = 0.0
    for x, y in tokens:
        n, m, ell = len(x), len(y), torch.exp(theta)
        xx, yy, xy = (torch.exp(-0.5 * distances(*ab, ell)) for ab in ((x, x), (y, y), (x, y)))
        # a token's kernel value with itself is 1
        mmd2 = (xx.sum() - n) / (n * (n - 1)) + (yy.sum() - m) / (m * (m - 1)) - 2 * xy.mean()
        mmd2.backward()
        value += mmd2.item()
    return value, theta.grad.numpy()


def measure(d_model: int, args) -> dict:
    pairs = draw(args.pairs, d_model, args.shortest, args.longest)
    clouds = ard.Clouds(pairs, device="cpu")
    start = clouds.start()
    theta = torch.from_numpy(start).float()
    tokens = [tuple(torch.from_numpy(c / clouds.sd).float() for c in pair) for pair in pairs]
    ways = {
        "batched": lambda: clouds.value_and_gradient(start),
        "loop, products": lambda: loop(by_products, tokens, theta),
        "loop, differences": lambda: loop(by_differences, tokens, theta),
    }
    expected, gradient = ways["batched"]()
    seconds = {name: [] for name in ways}
    for i in range(-1, args.rounds):  # round -1 warms up
        for name in list(ways)[:: 1 if i % 2 else -1]:
            before = time.process_time()
            value, found = ways[name]()
            if i >= 0:
                seconds[name].append(time.process_time() - before)
            # contenders that do not agree are not comparable
            np.testing.assert_allclose(value, expected, rtol=1e-3)
            np.testing.assert_allclose(found, gradient, atol=1e-2 * np.abs(gradient).max())
    batched = seconds["batched"]
    return {
        "d_model": d_model,
        "tokens": clouds.n_tokens,
        "seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "ratio": {
            name: statistics.median(t / b for t, b in zip(times, batched, strict=True))
            for name, times in seconds.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file with the numbers")
    parser.add_argument("--d-model", type=int, nargs="+", default=[640, 2048])
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--shortest", type=int, default=25, help="tokens of a cloud")
    parser.add_argument("--longest", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"| {args.pairs} pairs, one step, one thread | CPU-s | over batched |")
    print("| --- | --: | --: |")
    found = []
    for d_model in args.d_model:
        found.append(measure(d_model, args))
        for name, seconds in found[-1]["seconds"].items():
            ratio = found[-1]["ratio"][name]
            print(f"| d_model {d_model}: {name} | {seconds:.4f} | {ratio:.2f} |", flush=True)
    if args.out:
        arguments = {"pairs": args.pairs, "shortest": args.shortest, "longest": args.longest}
        result = {"arguments": arguments, "torch": torch.__version__, "results": found}
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
