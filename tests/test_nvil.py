"""NVIL: its three variance reductions, alone and together, and its state per replica."""

import copy
import math

import pytest
import torch

from estimators import NVIL, REINFORCE, Exact
from estimators.noise import noise_source, open_uniform


def gradients(estimator, logits, loss, draws):
    """One gradient per draw, ``[draws, *logits.shape]``, in float64."""
    leaf = logits.double().expand(draws, *logits.shape).contiguous().requires_grad_()
    return torch.autograd.grad(copy.deepcopy(estimator).double()(leaf, loss).sum(), leaf)[0]


def test_nvil_without_its_tricks_is_reinforce():
    logits = torch.randn(50, 3, 4)
    loss = lambda z: (z * torch.arange(4.0)).sum((-2, -1)) ** 2  # noqa: E731
    results = []
    for estimator in (REINFORCE(), NVIL(centring=False, input_dependent=False, variance_normalisation=False)):
        torch.manual_seed(0)
        results.append(gradients(estimator, logits, loss, 2))
    assert torch.equal(*results)


def test_nvil_statistics_follow_the_losses_of_earlier_calls():
    """centre and scale are the bias-corrected moving moments of what was seen before the call."""
    estimator = NVIL(decay=0.5)
    estimator.train()
    values = [torch.tensor([1.0, 3.0]), torch.tensor([10.0, 30.0])]
    expected_mean = (0.25 * 2.0 + 0.5 * 20.0) / 0.75
    expected_square = (0.25 * 5.0 + 0.5 * 500.0) / 0.75
    for value in values:
        estimator(torch.zeros(2, 1, 2), lambda z, value=value: value + 0 * z.sum((-2, -1)))
    signal, learned = estimator.signal(torch.tensor([5.0, 7.0]), None)
    sigma = math.sqrt(expected_square - expected_mean**2)
    assert torch.allclose(signal, (torch.tensor([5.0, 7.0]) - expected_mean) / sigma) and learned is None


def test_nvil_is_frozen_in_eval_mode():
    estimator = NVIL().eval()
    before = copy.deepcopy(estimator.state_dict())
    estimator(torch.zeros(4, 2, 2, requires_grad=True), lambda z: 100 + z.sum((-2, -1)))
    assert all(torch.equal(before[key], value) for key, value in estimator.state_dict().items())


def test_nvil_centring_keeps_the_mean_and_lowers_the_variance():
    torch.manual_seed(0)
    logits = torch.randn(1, 2, 3)
    loss = lambda z: 20 + (z * torch.arange(3.0)).sum((-2, -1)) ** 2  # noqa: E731
    estimator = NVIL(variance_normalisation=False)
    for _ in range(50):
        estimator(logits.expand(100, 1, 2, 3), loss)
    centred, plain = gradients(estimator, logits, loss, 50_000), gradients(REINFORCE(), logits, loss, 50_000)
    exact = gradients(Exact(), logits, loss, 1)[0]
    assert ((centred.mean(0) - exact).abs() < 6 * centred.std(0) / 50_000**0.5).all()
    assert centred.var(0).mean() < 0.1 * plain.var(0).mean()


def test_nvil_baseline_learns_the_loss_from_the_context():
    """With a loss that is a function of the context the residual, and so the gradient's variance, goes to zero."""
    torch.manual_seed(0)
    estimator = NVIL(3, variance_normalisation=False, hidden=20)
    optimizer = torch.optim.Adam(estimator.parameters(), lr=0.03)
    context = torch.randn(64, 3)
    target = 5 * torch.tanh(context[:, 0]) + 2

    def variance():
        logits = torch.zeros(64, 2, 2, requires_grad=True)
        losses = copy.deepcopy(estimator)(logits, lambda z: target + 0 * z.sum((-2, -1)), context)
        return torch.autograd.grad(losses.sum(), logits)[0].var().item()

    start = variance()
    for _ in range(300):
        optimizer.zero_grad()
        estimator(torch.zeros(64, 2, 2), lambda z: target + 0 * z.sum((-2, -1)), context).mean().backward()
        optimizer.step()
    assert variance() < 0.02 * start


def test_nvil_keeps_statistics_and_baselines_per_replica():
    """Two replicas in one call equal two estimators alone, on each replica's own noise."""

    def source(seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]

        def draw(shape, dtype, device, event_dims):
            dim = len(shape) - event_dims - 2
            return open_uniform(shape, dtype, device, generators, dim)

        return draw

    def train(seeds, scales):
        noise = source(seeds)
        with noise_source(noise):
            estimator = NVIL(4, replicas=len(seeds), hidden=8)
            logits = torch.full((len(seeds), 6, 2, 3), 0.1, requires_grad=True)
            context = torch.ones(len(seeds), 6, 4)
            scale = torch.tensor(scales).reshape(-1, 1)
            for _ in range(4):
                losses = estimator(logits, lambda z: scale * (z * torch.arange(3.0)).sum((-2, -1)), context)
            return torch.autograd.grad(losses.mean(-1).sum(), (logits, *estimator.parameters()))

    both, first, second = train([1, 2], [1.0, 50.0]), train([1], [1.0]), train([2], [50.0])
    for together, a, b in zip(both, first, second, strict=True):
        assert torch.allclose(together, torch.cat((a, b)), rtol=1e-5, atol=1e-7)


def test_a_missing_context_is_named():
    with pytest.raises(ValueError, match=r"needs context \[\*batch, 5\]"):
        NVIL(5)(torch.zeros(3, 2, 2), lambda z: z.sum((-2, -1)))
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\)"):
        NVIL(decay=1.0)
