"""Exact values of objectives, by enumeration of the joint states."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from estimators import noise
from estimators._autograd import may_look
from estimators.categorical import log_probabilities, one_hot


def enumerate_states(latents: int, categories: int, like: Tensor) -> Tensor:
    """All joint one-hot states, ``[categories**latents, latents, categories]``, in the dtype and device of ``like``."""
    values = torch.arange(categories, device=like.device)
    digits = torch.cartesian_prod(*[values] * latents).reshape(-1, latents, 1)
    return (digits == values).to(like.dtype)  # one_hot would look at the numbers


def expectation(logits: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """``sum_z q(z) loss(z)`` ``[*batch]``; a state of probability 0 counts as 0, and ``loss`` gets the mode for it."""
    shown, mean = enumerated(logits)
    return mean(loss(shown))


def enumerated(logits: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The states that :func:`expectation` shows ``loss``, ``[K**L, *batch, L, K]``, and the mean of their losses."""
    z, log_prob = _states(logits)
    q = log_prob.exp()
    shown, impossible = z.expand(len(z), *logits.shape), q.detach() == 0
    if _replaces(impossible):
        mode = one_hot(logits.detach().argmax(dim=-1), logits)
        shown = torch.where(impossible[..., None, None], mode, z)
    return shown, lambda losses: (q * losses.masked_fill(impossible, 0.0)).sum(dim=0)


def multi_sample_bound(logits: Tensor, loss: Callable[[Tensor], Tensor], samples: int) -> Tensor:
    """``-E[log 1/S sum_s exp(-loss(z_s))]`` ``[*batch]``, by enumeration of all multisets of S joint states."""
    z, log_q = _states(logits)
    log_weight = -loss(z.expand(len(z), *logits.shape))
    sets = torch.combinations(torch.arange(len(z), device=logits.device), samples, with_replacement=True)
    counts = torch.nn.functional.one_hot(sets, len(z)).sum(dim=1).to(logits.dtype)
    orders = math.lgamma(samples + 1) - torch.lgamma(counts + 1).sum(dim=1)
    probability = (log_q[sets].sum(dim=1) + orders.reshape(-1, *(1,) * (logits.dim() - 2))).exp()
    return -(probability * (log_weight[sets].logsumexp(dim=1) - math.log(samples))).sum(dim=0)


def _states(logits: Tensor) -> tuple[Tensor, Tensor]:
    """All states ``[K**L, 1.., L, K]`` and their log-probabilities ``[K**L, *batch]``."""
    latents, categories = logits.shape[-2:]
    states = enumerate_states(latents, categories, like=logits)
    z = states.reshape(len(states), *(1,) * (logits.dim() - 2), latents, categories)
    # where, not a product: 0 * -inf of an impossible category would be NaN
    return z, torch.where(z > 0, log_probabilities(logits), 0.0).sum(dim=(-2, -1))


def _replaces(impossible: Tensor) -> bool:
    """Whether impossible states are to be replaced: not if there are none, as states that are one tensor for all
    examples save memory and time. A harness on a GPU, or with a compiled step, does not wait for the answer, and has no
    logits of -inf.
    """
    if may_look(impossible):
        return bool(impossible.any())
    return not noise.supplied()
