"""The closed-form step against autograd, and against SAELens' own trainer."""

import math

import pytest
import torch

from streamgauge.sae import topk
from streamgauge.sae.step import Step, top_latents


def random_sae(d=24, m=64, k=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    sae = topk.init(d, m, k, seed)
    return topk.TopKSAE(
        W_enc=sae.W_enc + 0.1 * torch.randn(d, m, generator=g),
        b_enc=0.1 * torch.randn(m, generator=g),
        W_dec=sae.W_dec * (0.5 + torch.rand(m, 1, generator=g)),
        b_dec=0.2 * torch.randn(d, generator=g),
        k=k,
    )


def batch(n, d, seed=1):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + 0.3


def autograd(sae, x, *, dead=None, k_aux=256, weight=0.0):
    """Gradients of MSE + weight * AuxK through dense tensors, written from the definitions."""
    W_enc, b_enc, W_dec, b_dec = p = [
        t.double().requires_grad_() for t in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)
    ]
    x = x.double()
    pre = (x - b_dec) @ W_enc + b_enc
    values, ids = pre.topk(sae.k, dim=-1)
    z = torch.zeros_like(pre).scatter(-1, ids, values.relu())
    x_hat = z @ W_dec + b_dec
    mse = (x_hat - x).square().sum(-1).mean()
    auxk = torch.zeros(())
    if dead is not None:
        residual = (x - x_hat).detach()
        masked = pre[:, dead]
        values, ids = masked.topk(min(k_aux, len(dead)), dim=-1)
        z_aux = torch.zeros_like(masked).scatter(-1, ids, values.relu())
        variance = (residual - residual.mean(0)).square().sum(-1).mean()
        auxk = (z_aux @ W_dec[dead] - residual).square().sum(-1).mean() / variance
    (mse + weight * auxk).backward()
    return mse.item(), auxk.item(), [t.grad.float() for t in p]


def ours(step, x):
    losses, along = step.gradients(x)
    torch.testing.assert_close(along, (step.W_dec.grad * step.W_dec).sum(1).detach())
    d = x.shape[1]
    encoder = step.encoder.grad
    assert not encoder[:, d + 1 :].any()
    grads = [encoder[:, :d].T, encoder[:, d], step.W_dec.grad, step.b_dec.grad]
    return losses, grads


@pytest.mark.parametrize("k", [1, 6, 40])  # at k = 40 of 64 the ReLU cuts many pairs off
def test_gradients_equal_autograd(k):
    sae, x = random_sae(k=k), batch(50, 24)
    step = Step(sae, steps=1, lr=1e-3)
    losses, grads = ours(step, x)
    mse, _, expected = autograd(sae, x)
    assert losses.mse.item() == pytest.approx(mse, rel=1e-6)
    assert losses.l0.item() == pytest.approx((sae.encode(x) > 0).sum(1).float().mean().item())
    for got, want in zip(grads, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k_aux", [4, 256])
def test_gradients_with_auxk_equal_autograd(k_aux):
    sae, x, variance = random_sae(), batch(50, 24), 17.0
    step = Step(
        sae, steps=1, lr=1e-3, k_aux=k_aux, auxk_coefficient=0.5, variance=variance, dead_tokens=100
    )
    dead = torch.tensor([0, 3, 4, 17, 40, 41, 42, 63])
    step.tokens = 1000
    step.tokens_since_fired[dead] = 101
    losses, grads = ours(step, x)
    mse, auxk, expected = autograd(sae, x, dead=dead, k_aux=k_aux, weight=0.5 * variance)
    assert losses.dead == 8
    assert losses.mse.item() == pytest.approx(mse, rel=1e-6)
    assert losses.auxk.item() == pytest.approx(auxk, rel=1e-5)
    for got, want in zip(grads, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_auxk_of_a_residual_without_variance_is_zero():
    sae = topk.init(4, 8, 8, seed=0)
    step = Step(sae, steps=1, lr=1e-3, dead_tokens=0)
    step.tokens = 1
    step.tokens_since_fired += 5
    losses, _ = step.gradients(torch.zeros(3, 4))
    assert losses.auxk.item() == 0 and losses.dead == 8
    assert all(torch.isfinite(p.grad).all() for p in step._parameters().values())


@pytest.mark.parametrize(("m", "k"), [(4608, 32), (96, 1), (1000, 3), (60, 60), (64, 5), (37, 4)])
def test_top_latents_equals_torch_topk(m, k):
    pre = batch(20, m)
    values, ids = top_latents(pre, k)
    assert torch.equal(pre.gather(1, ids), values)
    assert all(len(set(row)) == k for row in ids.tolist())
    assert torch.equal(values.sort(dim=1).values, pre.topk(k, dim=1).values.sort(dim=1).values)


def test_decoder_rows_keep_unit_norm_and_gradient_is_projected():
    step = Step(topk.init(24, 64, 6, seed=0), steps=10, lr=1e-2)
    for i in range(10):
        before = step.W_dec.detach().clone()
        step.step(batch(50, 24, seed=i))
        assert (step.W_dec.grad * before).sum(1).abs().max() < 1e-6
        assert not torch.equal(step.W_dec, before)
    torch.testing.assert_close(step.W_dec.detach().norm(dim=1), torch.ones(64))


def test_dead_latents_are_counted_in_tokens():
    sae = topk.init(8, 16, 2, seed=0)
    b_enc = torch.zeros(16)
    b_enc[5] = -1e6  # never fires
    sae = topk.TopKSAE(sae.W_enc, b_enc, sae.W_dec, sae.b_dec, k=2)
    step = Step(sae, steps=100, lr=0.0, dead_tokens=2000)
    dead = [step.step(batch(500, 8, seed=i)).dead for i in range(8)]
    # after 5 batches latent 5 has been silent for 2,500 > 2,000 tokens
    assert dead == [0, 0, 0, 0, 0, 1, 1, 1]
    assert step.tokens_since_fired[5] == 4000
    assert (step.tokens_since_fired == 0).sum() == 15


def test_learning_rate_schedule():
    step = Step(topk.init(4, 8, 2, 0), steps=10, lr=1.0, warmup_steps=4, decay_fraction=0.2)
    rates = []
    for step.done in range(10):
        rates.append(step.lr)
    assert rates == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1.0, 0.5]


def test_clip_bounds_the_gradient_norm():
    step = Step(random_sae(), steps=1, lr=1e-3, clip=0.1, unit_norm=False)
    step.step(batch(50, 24))
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in step._parameters().values()))
    assert norm == pytest.approx(0.1, rel=1e-4)


def test_state_continues_bit_for_bit():
    def advance(step, start, stop):
        for i in range(start, stop):
            step.step(batch(40, 24, seed=i))

    settings = dict(steps=9, lr=1e-2, warmup_steps=2, decay_fraction=0.3, dead_tokens=60, k_aux=4)
    whole = Step(random_sae(), **settings)
    advance(whole, 0, 9)
    first = Step(random_sae(), **settings)
    advance(first, 0, 5)
    second = Step(random_sae(seed=7), **settings)
    second.load(first.state())
    advance(second, 5, 9)
    for name, value in whole.state().items():
        assert torch.equal(value, second.state()[name]), name


def test_parity_with_saelens_trainer():
    """500 steps from the same weights on the same batches, with SAELens' hard-wired settings."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    d, m, k, n, steps = 16, 48, 4, 64, 500
    # sparse combinations of fixed directions: data on which every latent finds work
    g = torch.Generator().manual_seed(3)
    directions = torch.randn(m, d, generator=g)
    codes = torch.rand(steps * n, m, generator=g)
    batches = (torch.where(codes > 0.9, codes, 0.0) @ directions + 0.1).split(n)
    sae = topk.init(d, m, k, seed=0, b_dec=batches[0].mean(0))

    config = TopKTrainingSAEConfig(d_in=d, d_sae=m, k=k, rescale_acts_by_decoder_norm=False)
    theirs = TopKTrainingSAE(config)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        getattr(theirs, name).data.copy_(getattr(sae, name))
    trainer = SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=steps * n,
            train_batch_size_samples=n,
            lr=1e-3,
            lr_end=1e-3,
            lr_warm_up_steps=20,
            lr_decay_steps=100,
            dead_feature_window=10**6,
        ),
        sae=theirs,
        data_provider=iter(batches),
    )
    step = Step(
        sae, steps=steps, lr=1e-3, warmup_steps=20, decay_fraction=0.2,
        eps=1e-8, clip=1.0, unit_norm=False,
    )  # fmt: skip
    worst, losses = 0.0, []
    for x in batches:
        reference = trainer.step(x).losses["mse_loss"].item()
        trainer.n_training_steps += 1
        losses.append(step.step(x).mse.item())
        worst = max(worst, abs(losses[-1] - reference) / reference)
    assert losses[-1] < 0.5 * losses[0]
    assert worst < 1e-6
    torch.testing.assert_close(step.W_dec.detach(), theirs.W_dec.detach(), rtol=0, atol=1e-5)
