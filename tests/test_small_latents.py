"""The VAEs whose latent states can be enumerated: those of the ReinMax paper, and what makes ``exact`` cheap there."""

import pytest
import torch
from test_tasks import tiny_vae, whole_split
from test_training import config

import tasks.vae
from estimators import Exact, ReinMax
from estimators.memory import Allocations
from tasks.distributions.latents import one_row
from tasks.distributions.likelihoods import bernoulli_nats
from training.config import validity
from training.pack.build import build

FAMILY = {"8x4": (8, 4), "4x24": (4, 24), "8x16": (8, 16), "16x12": (16, 12), "64x8": (64, 8), "10x30": (10, 30)}
"""Categories x latents (ReinMax, arXiv 2304.08612)."""


def job(size, *overrides):
    categories, latents = FAMILY[size]
    return config(
        f"task.latents={latents}",
        f"task.categories={categories}",
        "task.hidden=[512,256]",
        "batch_size=100",
        *overrides,
    )


def trained(*arguments):
    pack = build([job(*arguments, "task=vae_categorical", "optimizer.lr=5e-4")], torch.device("cpu"))
    return pack, [pack.train_step().item() for _ in range(2)]


@pytest.mark.parametrize("size", FAMILY)
def test_the_family_trains(size):
    pack, losses = trained(size, "estimator=reinmax", "estimator.temperature=1.3")
    assert [weight.shape[1:] for weight in pack.task.encoders[0].weights][:2] == [(64, 512), (512, 256)]
    assert all(30 < loss < 70 for loss in losses)  # 64 pixels at log 2 each


def test_exact_on_4096_states_is_cheap_and_the_others_are_refused():
    """A step on 100 images holds less than two arrays of the 40 MB that a hidden layer for all images would take."""
    assert "would enumerate the 4**24 joint states" in validity.reason_to_skip(job("4x24", "estimator=exact"))
    with Allocations() as memory:
        _, losses = trained("8x4", "estimator=exact")
    assert losses[1] < losses[0] < 64 and memory.largest < 4096 * 256 * 100 * 4 / 2


@pytest.mark.parametrize("kl", ["analytic", "sampled"])
@pytest.mark.parametrize(("categories", "latents"), [(2, 4), (3, 3)])
def test_states_decoded_once_or_for_each_image(categories, latents, kl, monkeypatch):
    """The same losses and gradients."""
    vae = tiny_vae(categories, latents, kl=kl, prior="learned").double()
    x = whole_split(vae).double()
    results = []
    for one_row_or_not in (one_row, lambda z: z):
        monkeypatch.setattr(tasks.vae, "one_row", one_row_or_not)
        losses = vae.loss(x, Exact())
        results.append([losses, *torch.autograd.grad(losses.mean(-1).sum(), list(vae.parameters()))])
    assert all(torch.allclose(*pair, rtol=1e-10, atol=1e-12) for pair in zip(*results, strict=True))


def test_what_is_taken_once():
    """Expanded states only, and none that a derivative is taken in: it would be that of the first row alone."""
    z = torch.rand(3, 2, 1, 4, 2).expand(3, 2, 5, 4, 2)
    assert one_row(z).shape == (3, 2, 1, 4, 2) and torch.equal(one_row(z).expand_as(z), z)
    assert one_row(z.clone()).shape == z.shape and one_row(z.clone().requires_grad_().expand_as(z)).shape == z.shape
    assert one_row(z.requires_grad_()).shape == z.shape
    shapes = []
    torch.func.grad(lambda z: (shapes.append(one_row(z).shape), z.sum())[1])(z.detach())
    assert shapes == [z.shape]
    seen = []
    vae = tiny_vae()
    vae.decoders[0].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].shape))
    for estimator in (Exact(), ReinMax()):
        vae.loss(whole_split(vae), estimator)
    assert seen == [(8, 2, 1, 3), (2, 40, 3)]


def test_nats_of_logits_for_all_examples():
    """Values, derivatives in both arguments and second derivatives are those of logits for each example."""
    torch.manual_seed(0)
    logits = (3 * torch.randn(4, 3, 2, 1, 6, dtype=torch.float64)).requires_grad_()
    x = torch.rand(2, 5, 6, dtype=torch.float64).requires_grad_()
    ours, theirs = bernoulli_nats(logits, x), bernoulli_nats(logits.expand(4, 3, 2, 5, 6), x)
    assert ours.shape == (4, 3, 2, 5) and torch.allclose(ours, theirs, rtol=1e-12)
    firsts = [torch.autograd.grad((nats**2).sum(), (logits, x), create_graph=True) for nats in (ours, theirs)]
    for got, want in zip(*firsts, strict=True):
        assert torch.allclose(got, want, rtol=1e-10)
    seconds = [torch.autograd.grad((first[0] ** 2).sum(), logits)[0] for first in firsts]
    assert torch.allclose(*seconds, rtol=1e-10)
    assert bernoulli_nats(logits[..., :1, :], x[:, :1]).shape == (
        4,
        3,
        2,
        1,
    )
