"""The Concrete distribution (relaxed categorical) in log space: samples and densities at any temperature.

The Concrete variable y = softmax((logits + G) / temperature) is handled as ``log_y``, since at low temperatures all
but one of its entries round to 0. Densities are those of the log-ratios log(y_k / y_K), k < K, in which the symmetric
formula below has no Jacobian left; for K = 2 that is the logistic density of the pre-sigmoid variable. The density
over the simplex is smaller by sum(log_y); a KL divergence, a difference of two log-densities at one ``log_y``, does
not depend on the choice.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from estimators._surrogate import per_latent
from estimators.base import POSITIVE, check_logits
from estimators.categorical import Number, is_binary, log_softmax, perturbed_scores, scores


def relaxed_log_sample(logits: Tensor, temperature: Number) -> Tensor:
    """A reparameterised sample ``log_y``, ``[*batch, latents, categories]``, with ``log_y.exp()`` on the simplex.

    ``log_y.exp()`` has the distribution of ``GumbelSoftmax(temperature).sample(logits)``, and is equal to it on the
    same noise. For K = 2 the pre-sigmoid variable is ``log_y[..., 1] - log_y[..., 0]``.

    Args:
        logits: ``[*batch, latents, categories]``; where they are ``-inf``, so is ``log_y``, without a gradient.
        temperature: > 0, a float or a tensor that broadcasts against ``logits``.
    """
    check_logits("relaxed_log_sample", logits)
    temperature = _positive(temperature)
    perturbed = perturbed_scores(logits)
    if is_binary(logits):
        odds = perturbed / per_latent(temperature)
        return torch.stack((F.logsigmoid(-odds), F.logsigmoid(odds)), dim=-2).mT.to(logits.dtype)
    return log_softmax(perturbed / temperature).to(logits.dtype)


def relaxed_log_prob(log_y: Tensor, logits: Tensor, temperature: Number) -> Tensor:
    r"""Log-density of ``log_y``, one value per latent, ``[*batch, latents]``; differentiable in all arguments.

    log (K - 1)! + (K - 1) log t + sum_k log softmax(logits - t log_y)_k,   t the temperature,
    with respect to the log-ratios log(y_k / y_K); for K = 2, with l = log(y_1 / y_0) and log-odds a:
    log t + log sigmoid(a - t l) + log sigmoid(t l - a).

    Args:
        log_y: ``[*batch, latents, categories]`` as from :func:`relaxed_log_sample`; a constant added to all
            categories of a latent does not matter.
        logits: of the same shape (or ``[latents, categories]`` for a prior), finite: with an impossible category there
            is no density, and the result is ``nan`` or ``-inf``. Leave out a category that is impossible.
        temperature: > 0, a float or a tensor that broadcasts against ``logits``.

    Example::

        log_y = relaxed_log_sample(logits, 2 / 3)
        kl = (relaxed_log_prob(log_y, logits, 2 / 3) - relaxed_log_prob(log_y, prior_logits, 1 / 2)).sum(-1)

    Reference: Maddison, Mnih, Teh, "The Concrete distribution", arXiv 1611.00712, appendices B and C.3 (ExpConcrete and
    the logistic density). Unlike ``torch.distributions.RelaxedOneHotCategorical`` it never takes the log of a rounded
    probability, so it is finite at temperatures of 1e-3 and below.
    """
    temperature = _positive(temperature)
    if is_binary(log_y):
        t = per_latent(temperature)
        odds = scores(logits) - t * scores(log_y)
        return _log(t) + F.logsigmoid(odds) + F.logsigmoid(-odds)
    categories = log_y.shape[-1]
    constant = math.lgamma(categories) + (categories - 1) * _log(per_latent(temperature))
    return constant + log_softmax(logits - temperature * log_y).sum(dim=-1)


def _log(value: Number) -> Number:
    return value.log() if isinstance(value, Tensor) else math.log(value)


def _positive(temperature: Number) -> Number:
    if not isinstance(temperature, Tensor) and not POSITIVE.holds(temperature):
        raise ValueError(f"Concrete: temperature must be positive and finite, not {temperature}")
    return temperature
