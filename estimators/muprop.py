"""MuProp: the score function with a first-order Taylor expansion at the mean as control variate."""

from __future__ import annotations

import torch
from torch import Tensor

from estimators._control_variates import value_and_slope
from estimators.base import Estimator, Loss
from estimators.categorical import gradient_only, probabilities, sample_with_log_prob


class MuProp(Estimator):
    r"""The score function whose control variate is the loss linearised at the mean ``p = softmax(logits)``.

    gradient = (loss(z) - loss(p) - g . (z - p)) * d log q(z) / d logits  +  (dp / d logits)^T g,  z ~ q,
    g = d loss / d z at ``p``.

    Unbiased for every loss that is differentiable between the corners. For a loss that is linear in ``z`` the first
    term is zero and the gradient exact without noise. Two evaluations: one at the hard sample, which gives the value
    and the ordinary gradient to what ``loss`` closes over, and one at the mean, of which only ``loss(p)`` and ``g`` are
    used.

    Example::

        MuProp()(logits, loss).mean().backward()

    Reference: Gu, Levine, Sutskever, Mnih, "MuProp: unbiased backpropagation for stochastic neural networks",
    arXiv 1511.05176. Differences from the paper: the control variate alone, without the paper's optional centring,
    input-dependent baseline and variance normalisation of the residual (those are :class:`estimators.NVIL`'s). With
    several layers each nested call linearises at the mean of its own layer given the sample of the layer before (which
    is unbiased for any inner estimator), while the paper runs one mean-field pass through all layers.
    """

    unbiased = True
    needs_gradient = True
    evaluations = 2

    def estimate(self, logits: Tensor, loss: Loss, context: Tensor | None) -> Tensor:
        z, log_prob = sample_with_log_prob(logits)
        p = probabilities(logits)
        losses = loss(z)
        with torch.no_grad():  # nothing that loss closes over may get a gradient from the mean
            at_mean, g = value_and_slope(loss, p.detach())
            residual = losses - at_mean - (g * (z - p)).sum(dim=(-2, -1))
        linear = (g.detach() * p).sum(dim=(-2, -1))
        return losses + gradient_only(residual.detach() * log_prob + linear)
