"""Exact log-likelihoods of models with few joint states, by summing over all of them in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tasks.distributions.latents import Bernoulli, Categorical
from tasks.distributions.likelihoods import bernoulli_log_prob_of_pairs

LogProb = Callable[[Tensor, Tensor], Tensor]
"""The decoder's outputs of some states ``[R, S, D]``, x ``[R, E, D]`` -> ``log p(x|z)`` of all pairs ``[R, E, S]``."""

MOST_STATES = 2**14
AT_ONCE = 1024
"""States whose pixels are held in memory together."""


def is_feasible(latents: Bernoulli | Categorical, layers: int = 1) -> bool:
    """Whether a layer's states, and the pairs of states of two layers that follow each other, are at most
    ``MOST_STATES``."""
    return latents.categories ** (latents.latents * min(layers, 2)) <= MOST_STATES


def all_states(latents: Bernoulli | Categorical, like: Tensor) -> Tensor:
    """Every joint state as features ``[states, width]``, in the dtype and on the device of ``like``."""
    digits = torch.arange(latents.categories**latents.latents, device=like.device).unsqueeze(-1)
    places = latents.categories ** torch.arange(latents.latents, device=like.device)
    one_hot = torch.nn.functional.one_hot(digits // places % latents.categories, latents.categories)
    return latents.features(one_hot.to(like.dtype))


def log_probs(latents: Bernoulli | Categorical, outputs: Tensor, states: Tensor) -> Tensor:
    """``log p(z)`` of all states: ``outputs`` ``[R, E, width]`` -> ``[R, E, states]``, float64."""
    slope, constant = latents.log_ratio_terms(outputs.double(), None)  # log p(z) + log number of states
    return slope @ states.double().mT + (constant - math.log(len(states))).unsqueeze(-1)


def log_likelihoods(
    decoder: Callable[[Tensor], Tensor], states: Tensor, x: Tensor, log_prob: LogProb = bernoulli_log_prob_of_pairs
) -> Tensor:
    """``log p(x|z)`` for all states: ``x`` ``[R, E, D]`` -> ``[R, E, states]``, float64."""
    parts = [log_prob(decoder(some.expand(x.shape[0], -1, -1)), x) for some in states.split(AT_ONCE)]
    return torch.cat(parts, -1)


def of_auto_encoder(
    log_q: Tensor, log_up: Sequence[Tensor], log_likelihood: Tensor, log_down: Sequence[Tensor], log_prior: Tensor
) -> dict[str, Tensor]:
    """``exact_log_likelihood``: ``log sum_z p(z) p(x|z)``, and ``exact_elbo``: ``sum_z q(z|x) log p(x, z) / q(z|x)``.

    From tables of a layer's S states -> ``[R, E]`` nats.

    Args:
        log_q: ``log q(z_1|x)`` ``[R, E, S]``.
        log_up: ``log q(z_{n+1}|z_n)`` ``[R, S, S]`` for n = 1, 2, ..., a row for each z_n; empty for one layer.
        log_likelihood: ``log p(x|z_1)`` ``[R, E, S]``.
        log_down: ``log p(z_n|z_{n+1})`` ``[R, S, S]`` likewise, a row for each z_{n+1}.
        log_prior: of the last layer, ``[R, 1, S]``.
    """
    p = log_q.exp()
    if not log_up:
        joint = log_prior + log_likelihood
        return {"exact_log_likelihood": joint.logsumexp(-1), "exact_elbo": (p * (joint - log_q)).sum(-1)}
    log_p = log_prior
    for table in reversed(log_down):
        log_p = (log_p.mT + table).logsumexp(1, keepdim=True)
    elbo = (p * (log_likelihood - log_q)).sum(-1)
    for up, down in zip(log_up, log_down, strict=True):
        elbo = elbo + (p @ (up.exp() * (down.mT - up)).sum(-1, keepdim=True)).squeeze(-1)
        p = p @ up.exp()
    elbo = elbo + (p * log_prior).sum(-1)
    return {"exact_log_likelihood": (log_p + log_likelihood).logsumexp(-1), "exact_elbo": elbo}


def of_chain(
    latents: Bernoulli | Categorical, outputs: Tensor, networks: Sequence[Callable[[Tensor], Tensor]], y: Tensor
) -> dict[str, Tensor]:
    """``exact_log_likelihood``: ``log p(y|x)``, and ``exact_elbo``: ``E[log p(y|z_last)]``, of layers in a chain.

    ``outputs`` ``[R, E, width]`` of the network before the first layer, ``networks`` those after each layer, the last
    that of the pixels ``y`` ``[R, E, D]`` -> ``[R, E]`` nats.
    """
    states = all_states(latents, outputs)
    p = log_probs(latents, outputs, states).exp()
    for network in networks[:-1]:
        p = p @ log_probs(latents, network(states.expand(y.shape[0], -1, -1)), states).exp()
    log_likelihood = log_likelihoods(networks[-1], states, y)
    return {
        "exact_log_likelihood": (p.log() + log_likelihood).logsumexp(-1),
        "exact_elbo": (p * log_likelihood).sum(-1),
    }
