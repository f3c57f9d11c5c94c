"""MuProp: the score function with a first-order Taylor expansion at the mean as control variate."""

from __future__ import annotations

import torch
from torch import Tensor

from estimators._autograd import carried, score_term
from estimators._control_variates import value_and_slope
from estimators._running import MovingAverage
from estimators.base import Estimator, Loss
from estimators.categorical import Decay, probabilities, sample_with_log_prob


class MuProp(Estimator):
    r"""The score function whose control variate is the loss linearised at the mean ``p = softmax(logits)``.

    gradient = (r - c) * d log q(z) / d logits  +  (dp / d logits)^T g,
    r = loss(z) - loss(p) - g . (z - p),  z ~ q,  g = d loss / d z at ``p``;
    c: moving average of the residual ``r`` over the examples of earlier calls.

    Unbiased for every loss that is differentiable between the corners, because ``c`` does not depend on ``z``. For a
    loss that is linear in ``z`` the residual is zero and the gradient exact without noise; otherwise its mean is
    ``E_q[loss(z)] - loss(p)``, the loss of rounding ``p`` to corners, which centring takes away. Two evaluations: one
    at the hard sample, which gives the value and the ordinary gradient to what ``loss`` closes over, and one at the
    mean, of which only ``loss(p)`` and ``g`` are used.

    Args:
        centring: subtract ``c``; it is a buffer, frozen by ``eval()``. Residuals that are not finite are left out.
        decay: of the moving average, in [0, 1); a float or a tensor that broadcasts against ``logits``.
        replicas: if given, ``logits`` are ``[..., replicas, examples, latents, categories]`` and ``c`` is kept per
            replica; otherwise there is one for all examples.

    Raises:
        RuntimeError: in the backward pass, if gradient checkpointing computes the call again with centring: the average
            holds its own residuals by then.

    Example::

        MuProp()(logits, loss).mean().backward()

    Reference: Gu, Levine, Sutskever, Mnih, "MuProp: unbiased backpropagation for stochastic neural networks",
    arXiv 1511.05176; with centring the paper's MuProp-C, which all its published results build on. Differences: ``c``
    is of earlier calls only, with the decay of :class:`estimators.NVIL`; the optional input-dependent baseline and
    variance normalisation of the residual are not here (they are :class:`estimators.NVIL`'s). With several layers each
    nested call linearises at the mean of its own layer given the sample of the layer before (which is unbiased for any
    inner estimator), while the paper runs one mean-field pass through all layers.
    """

    family = "control variate"
    unbiased = True
    needs_gradient = True
    evaluations = 2

    def __init__(self, *, centring: bool = True, decay: Decay = 0.8, replicas: int | None = None) -> None:
        super().__init__()
        self.decay = self._decay(decay)
        self.average = MovingAverage("MuProp", replicas) if centring else None

    def estimate(self, logits: Tensor, loss: Loss, context: Tensor | None) -> Tensor:
        # First what earlier calls have left, then the sample: loss may call this estimator for an inner layer.
        centre = self.average.value() if self.average is not None else None
        p = probabilities(logits)
        with torch.no_grad():  # nothing that loss closes over may get a gradient from the mean
            at_mean, g = value_and_slope(loss, p.detach())
        z, log_prob = sample_with_log_prob(logits)
        losses = loss(z)
        signal = (losses - at_mean - (g * (z - p)).sum(dim=(-2, -1))).detach()
        if self.average is not None and centre is not None:
            self.average.update(signal, self.decay)
            signal = signal - centre.to(signal.dtype)
        linear = (g.detach() * p).sum(dim=(-2, -1))  # no_grad reaches the innermost of nested transforms only
        # At constant g, linear is the mean of what signal subtracts: its own graph is right to every order.
        return score_term(losses, signal, log_prob) + carried(linear)
