"""Mean and variance of an estimated gradient over many draws, and its bias against exact enumeration."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from estimators.base import Estimator, Loss
from estimators.exact import Exact

CHUNK_NUMBERS = 4_000_000
"""By default a chunk holds at most about so many numbers per tensor: draws * samples per draw * size of the logits."""


@dataclass(frozen=True)
class GradientMoments:
    r"""Moments of one estimated gradient ``g`` over independent draws; see :func:`gradient_moments`.

    Attributes:
        draws: N, the number of independent gradients.
        value: ``[*batch]``, the mean of the losses that the estimator returned.
        mean: ``[*batch, latents, categories]``, 1/N sum_n g_n, in units of loss per unit of logit.
        variance: the same shape, 1/(N - 1) sum_n (g_n - mean)^2, of **one** gradient, in squared units of the gradient.
        exact: the same shape, the exact gradient, or ``None`` if it is not known.

    The figures below are over all coordinates of all examples together, without units; they are ``None`` if ``exact``
    is, and infinite or NaN if ``exact`` is zero.
    """

    draws: int
    value: Tensor
    mean: Tensor
    variance: Tensor
    exact: Tensor | None

    @property
    def standard_error(self) -> Tensor:
        """Of ``mean``, per coordinate: ``sqrt(variance / draws)``."""
        return (self.variance / self.draws).sqrt()

    @property
    def relative_bias(self) -> float | None:
        """``|mean - exact| / |exact|``; without any bias it is about :attr:`resolution`."""
        return None if self.exact is None else ((self.mean - self.exact).norm() / self.exact.norm()).item()

    @property
    def resolution(self) -> float | None:
        """``sqrt(sum variance / draws) / |exact|``: the root-mean-square norm of the error of ``mean``, relative.

        The norm of the bias is in ``relative_bias +- 2 resolution`` with 95 % confidence or more (the error's norm
        exceeds twice its root mean square most often if it has one dimension, which is 4.6 % for a normal one).
        """
        return None if self.exact is None else (self.standard_error.norm() / self.exact.norm()).item()

    @property
    def cosine(self) -> float | None:
        """Cosine of the angle between ``mean`` and ``exact``."""
        if self.exact is None:
            return None
        return torch.nn.functional.cosine_similarity(self.mean.flatten(), self.exact.flatten(), dim=0).item()

    @property
    def relative_variance(self) -> float | None:
        """``sum variance / |exact|^2``: trace of the covariance of one gradient over the squared exact norm."""
        return None if self.exact is None else (self.variance.sum() / self.exact.square().sum()).item()

    @property
    def max_z(self) -> float | None:
        """The largest ``|mean - exact|`` of a coordinate in standard errors (plus what rounding may contribute)."""
        if self.exact is None:
            return None
        size = 1 + self.exact.abs().max() + self.mean.abs().max()
        rounding = torch.finfo(self.mean.dtype).eps ** 0.5 * 0.05 * size
        return ((self.mean - self.exact).abs() / (self.standard_error + rounding)).max().item()


def gradient_moments(
    estimator: Estimator,
    logits: Tensor,
    loss: Loss,
    draws: int,
    *,
    context: Tensor | None = None,
    chunk: int | None = None,
    exact: Tensor | None = None,
    max_states: int = 4096,
) -> GradientMoments:
    r"""Mean and variance, per coordinate of ``logits``, of the gradient that ``estimator`` gives in one call.

    g_n = d estimator(logits, loss) / d logits, n = 1..``draws`` independent;  mean = 1/N sum_n g_n,
    variance = 1/(N - 1) sum_n (g_n - mean)^2;  relative bias = |mean - exact| / |exact|.

    The draws are a leading dimension of one call (no backward pass per draw), in chunks whose moments are merged by
    Chan's formula, so memory does not grow with ``draws``. Every chunk works on a fresh copy of the estimator as it is:
    its parameters, their ``.grad`` and its running statistics stay untouched, and all draws see the same ones. Noise
    comes from torch's global generator. What ``loss`` closes over gets no gradient; if it uses ``logits`` itself, that
    path is in neither the estimate nor the exact gradient.

    Args:
        estimator: any estimator, in the dtype of ``logits``.
        logits: ``[*batch, latents, categories]``.
        loss: ``z -> [*batch]``, which must broadcast over leading dimensions.
        draws: at least 2.
        context: ``[*batch, features]``, for an input-dependent baseline.
        chunk: draws per call; by default so many that a tensor holds about 4 million numbers.
        exact: the exact gradient, where it is known (of another objective, say). By default it is enumerated if the
            objective is E_q[loss(z)] and there are few joint states, and ``None`` otherwise.
        max_states: the largest number of joint states ``categories**latents`` to enumerate.

    Raises:
        ValueError: if ``draws < 2`` or ``chunk < 1``.

    Example::

        moments = gradient_moments(RLOO(4), logits, loss, 10_000)
        moments.standard_error, moments.relative_bias, moments.resolution
    """
    if draws < 2:
        raise ValueError(f"gradient_moments: a variance needs at least 2 draws, not {draws}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"gradient_moments: chunk must be at least 1, not {chunk}")
    logits = logits.detach()
    if chunk is None:
        chunk = max(1, CHUNK_NUMBERS // (logits.numel() * estimator.evaluations_for(logits)))
    if exact is None and getattr(estimator, "objective", "mean") == "mean":
        exact = exact_gradient(logits, loss, max_states)
    seen = 0
    value, mean, square = logits.new_zeros(()), torch.zeros_like(logits), torch.zeros_like(logits)
    while seen < draws:
        size = min(chunk, draws - seen)
        losses, gradients = _gradients(estimator, logits, loss, size, context)
        seen += size
        new = gradients.mean(dim=0)
        delta = new - mean
        square = square + (gradients - new).square().sum(dim=0) + delta.square() * ((seen - size) * size / seen)
        mean = mean + delta * (size / seen)
        value = value + (losses.mean(dim=0) - value) * (size / seen)
    return GradientMoments(draws, value, mean, square / (draws - 1), exact)


def exact_gradient(logits: Tensor, loss: Loss, max_states: int) -> Tensor | None:
    """By enumeration, in the shape of ``logits``; ``None`` if there are more than ``max_states`` joint states."""
    if logits.shape[-1] ** logits.shape[-2] > max_states:
        return None
    leaf = logits.detach().clone().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(Exact(max_states)(leaf, loss).sum(), leaf)[0]


def _gradients(
    estimator: Estimator, logits: Tensor, loss: Loss, draws: int, context: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``draws`` losses ``[draws, *batch]`` and gradients ``[draws, *logits.shape]`` from one backward pass."""
    leaf = logits.expand(draws, *logits.shape).contiguous().requires_grad_()
    if context is not None:
        context = context.expand(draws, *context.shape)
    with torch.enable_grad():
        losses = copy.deepcopy(estimator)(leaf, loss, context)
        return losses.detach(), torch.autograd.grad(losses.sum(), leaf)[0]
