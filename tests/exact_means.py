"""The exact mean of a sampling estimator: its sampler is replaced by the enumeration of all joint samples."""

import copy
import importlib

import torch

from estimators import Exact
from estimators.categorical import log_probabilities
from estimators.exact import enumerate_states


def exact_mean(monkeypatch, estimator, logits, loss, num_samples=None):
    """Mean value and mean gradient ``[L, K]`` of ``estimator`` at ``logits`` ``[L, K]``, over all joint samples.

    Only for estimators whose one source of randomness is ``sample_with_log_prob``.
    """
    latents, categories = logits.shape
    states = enumerate_states(latents, categories, like=logits)
    joint = torch.cartesian_prod(*[torch.arange(len(states))] * (num_samples or 1)).reshape(-1, num_samples or 1)
    z = states[joint].movedim(1, 0)  # [S, draws, L, K]
    probability = (z * log_probabilities(logits)).sum((-2, -1)).sum(0).exp()

    def enumerated(logits):
        shown = z if num_samples else z[0]
        return shown, (shown * log_probabilities(logits)).sum((-2, -1))

    for module in {importlib.import_module(kind.__module__) for kind in type(estimator).__mro__}:
        if hasattr(module, "sample_with_log_prob"):  # its own, or that of its base
            monkeypatch.setattr(module, "sample_with_log_prob", enumerated)
    leaf = logits.expand(len(joint), latents, categories).clone().requires_grad_()
    losses = copy.deepcopy(estimator).double()(leaf, loss)
    gradient = torch.autograd.grad(losses.sum(), leaf)[0]
    return (probability * losses.detach()).sum(), torch.einsum("n,nlk->lk", probability, gradient)


def polynomial(degree, latents, categories, seed=0):
    """``0.3 + sum_power (a_power . z)^power``, ``[*batch]``: products of latents, neither even nor odd."""
    weights = torch.randn(
        degree, latents, categories, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    return lambda z: 0.3 + sum((z * weights[i].to(z.dtype)).sum((-2, -1)) ** (i + 1) for i in range(degree))


def exact_gradient(logits, loss):
    leaf = logits.detach().clone().requires_grad_()
    losses = Exact()(leaf, loss)
    return torch.autograd.grad(losses.sum(), leaf)[0]


def gradients(estimator, logits, loss, draws):
    """One gradient per draw, ``[draws, *logits.shape]``, in float64."""
    leaf = logits.double().expand(draws, *logits.shape).contiguous().requires_grad_()
    return torch.autograd.grad(copy.deepcopy(estimator).double()(leaf, loss).sum(), leaf)[0]
